"""Guests that are one long block: the emulator's room for temporaries must not run out."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from kvm_guests import boot
from vmlib.cpu import Budget, open_vm
{before}
def run(code, bits):
    code = (bytes.fromhex(code) * 520)[:3900]
    with open_vm("unicorn", "256K") as vm:
        vcpu = boot(vm, (code + b"\\xf4").hex(), bits)
        vcpu.set_budget(Budget(seconds=0.02))
        return vcpu.run()
"""
EVERY = """
done = 0
for opcode in range(256):
    for bits in (16, 64):
        for code in ("%02xc0", "0f%02xc0", "%02x"):
            print(code % opcode, bits, file=sys.stderr, flush=True)
            run(code % opcode, bits)
            done += 1
print(done)
"""
UNMENDED = """
from vmlib.cpu.unicorn import blocks
blocks.shorten_blocks = lambda library: False
"""


def python(code, before=""):
    return subprocess.run(
        [sys.executable, "-c", RUN.format(before=before) + code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.needs("unicorn")
def test_the_same_instruction_for_a_page():
    """Every opcode of one byte and of two, with a register, in two modes."""
    done = python(EVERY)
    assert done.returncode == 0, done.stderr.splitlines()[-1:]
    assert done.stdout == "1536\n"


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("code", ["d9c0", "0f20c0", "d40a"])
def test_without_shorter_blocks_the_process_dies(code):
    """When this no longer happens Unicorn is mended, and blocks.py goes."""
    done = python(f"print(run({code!r}, 16))", UNMENDED)
    assert done.returncode == -signal.SIGSEGV
    assert python(f"print(run({code!r}, 16))").returncode == 0


@pytest.mark.needs("unicorn")
def test_a_library_that_is_built_otherwise_is_left_alone():
    from vmlib.cpu.unicorn import blocks

    class Other:
        """Has the function, with other code."""

        tb_gen_code_x86_64 = None

    with pytest.warns(RuntimeWarning, match="stay as long"):
        assert not blocks.shorten_blocks(Other())
