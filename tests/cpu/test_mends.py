"""Guests that end the process of an emulator that is not mended, with `mends.py` and without."""

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
from vmlib.cpu.unicorn import mends
mends.{name} = lambda library: None
"""
LENGTH = """
from dataclasses import replace
def compare(code):
    with open_vm("unicorn", "256K") as vm:
        vcpu = boot(vm, code + "f4", 64)
        system = vcpu.system()
        vcpu.set_system(replace(system, cr4=system.cr4 | 1 << 9))  # OSFXSR
        vcpu.set_registers(replace(vcpu.registers(), rax=1 << 31, rdx=1 << 31))
        return f"{vcpu.run().reason} {vcpu.registers().rcx}"
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
    """When this no longer happens Unicorn is mended, and the mend goes; so with the two below."""
    done = python(f"print(run({code!r}, 16))", UNMENDED.format(name="shorten_blocks"))
    assert done.returncode == -signal.SIGSEGV
    assert python(f"print(run({code!r}, 16))").returncode == 0


@pytest.mark.needs("unicorn")
def test_a_length_of_minus_2_to_the_31_is_cut_off():
    """SDM vol. 2B, PCMPESTRI: the magnitude of a length saturates, at 16 bytes or 8 words."""
    codes = ["660f3a61c100", "660f3a60c100", "660f3a61c101", "660f3a60c101"]
    done = python(f"for code in {codes}: print(compare(code))", LENGTH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == ["HLT 0"] * 4


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("code", ["660f3a61c100", "660f3a60c100"])
def test_where_it_is_not_the_process_dies(code):
    ends = python(f"compare({code!r})", LENGTH + UNMENDED.format(name="cut_off_lengths"))
    assert ends.returncode == -signal.SIGSEGV


LOCKED = ["f00fa3c8", "f00fabc8", "f00fb3c1", "f00fbbd1", "f00fbae803"]


@pytest.mark.needs("unicorn")
def test_a_locked_bit_test_of_a_register_is_no_instruction():
    """SDM vol. 2A, BTS: LOCK and a register is #UD, which without an IDT is a shutdown at once."""
    cases = [(code, bits) for code in LOCKED for bits in (32, 64)]
    done = python(f"for case in {cases}: print(run(*case))")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases)
    assert all("Shutdown" in line and "#UD" in line for line in lines), lines


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("code", [LOCKED[0], LOCKED[-1]])
def test_without_the_mend_it_aborts(code):
    ends = python(f"run({code!r}, 64)", UNMENDED.format(name="refuse_locked_registers"))
    assert ends.returncode == -signal.SIGABRT


@pytest.mark.needs("unicorn")
def test_without_the_mend_what_avx_adds_is_taken_for_what_was_there_before():
    """VZEROUPPER has the opcode of EMMS, and VMOVD that of MOVD: see test_no_avx."""
    compare = LENGTH + "print(compare('c5f877'), compare('c5f96ec0'))"
    assert python(compare).stdout.count("SHUTDOWN") == 2
    assert python(compare, UNMENDED.format(name="refuse_avx")).stdout.count("HLT") == 2


@pytest.mark.needs("unicorn")
def test_a_library_that_is_built_otherwise_is_left_alone():
    from vmlib.cpu.unicorn import mends

    class Other:
        """Has none of the functions."""

    with pytest.warns(RuntimeWarning, match="left out") as warned:
        assert mends.mend(Other()) == []
    assert len(warned) == 4


@pytest.mark.needs("unicorn")
def test_mending_twice_is_mending_once():
    from vmlib.cpu.unicorn import mends, raw

    names = ["shorten_blocks", "cut_off_lengths", "refuse_locked_registers", "refuse_avx"]
    assert mends.mend(raw.library) == mends.mend(raw.library) == names
