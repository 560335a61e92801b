import ctypes

import pytest

from vmlib.errors import BadInput
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
