import ctypes
import subprocess
import sys

import pytest

from vmlib.errors import BadInput, HostUnavailable
from vmlib.memory import GuestRam


def test_one_memory_seen_three_ways():
    ram = GuestRam("8K")
    ram.write(0x1000, b"abc")
    ram.view[0x1001] = ord("B")
    ram.array[0x1002] = ord("C")
    assert ram.read(0x1000, 3) == b"aBC"
    assert ctypes.string_at(ram.hva + 0x1000, 3) == b"aBC"
    assert len(ram) == 8192
    assert repr(ram) == "GuestRam('8K')"


@pytest.mark.parametrize(("gpa", "length"), [(-1, 1), (0, 8193), (8192, 1), (8190, 3), (0, -1)])
def test_outside_is_named(gpa, length):
    with pytest.raises(BadInput, match="outside guest RAM"):
        GuestRam("8K").read(gpa, length)


def test_a_write_that_does_not_fit_writes_nothing():
    ram = GuestRam("4K")
    with pytest.raises(BadInput):
        ram.write(4094, b"1234")
    assert ram.read(4094, 2) == b"\0\0"


def test_whole_pages():
    with pytest.raises(BadInput, match="whole pages"):
        GuestRam(5000)


def test_closing_with_and_without_a_view():
    ram = GuestRam("4K")
    array = ram.array
    ram.close()
    array[0] = 1
    ram = GuestRam("4K")
    ram.close()
    with pytest.raises(BadInput, match="closed"):
        ram.read(0, 1)


def resident():
    """Bytes of memory that this process holds."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_more_ram_than_the_host_has():
    """64 GiB cost what is touched of them: the host gives a page at its first use."""
    before = resident()
    ram = GuestRam("64G")
    top = ram.size - 4096
    ram.write_u64(top, 1 << 63)
    assert (ram.read_u64(top), ram.read_u64(32 << 30), len(ram.u64)) == (1 << 63, 0, 1 << 33)
    assert resident() - before < 1 << 22


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_host_that_refuses_is_named():
    code = """
import resource
from vmlib.errors import HostUnavailable
from vmlib.memory import GuestRam
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    GuestRam("64G")
except HostUnavailable as error:
    print(error.reason, error.fix, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the host gives no 64G of address space")
    assert "ulimit -v" in done.stdout.split("|")[1]
    with pytest.raises(HostUnavailable, match="address space"):
        GuestRam(1 << 62)
