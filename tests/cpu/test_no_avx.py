"""The emulator has no AVX: it does not say so, and every VEX instruction but BMI's is #UD.

Which instructions VEX makes, and what CPUID leaves 1, 7 and 0xd say: Intel SDM vol. 2, appendix A,
tables A-3 to A-5, and vol. 2A, CPUID. A processor without AVX: vol. 1, 14.3.
"""

import itertools
import struct
from dataclasses import replace

import pytest
from kvm_guests import CODE

from vmlib.cpu import Budget, Halt, IoOut

OSFXSR, OSXSAVE = 1 << 9, 1 << 18
SAYS_UD, SAYS_GP = "e6 06 f4", "e6 0d f4"  # out 6, al; hlt, or out 13, al; hlt
BMI = {(2, opcode) for opcode in (0xF2, 0xF3, 0xF5, 0xF6, 0xF7)} | {(3, 0xF0)}
"""Map and opcode of what works on general registers: ANDN, BLSR and others, and RORX."""

pytestmark = pytest.mark.needs("unicorn")


@pytest.fixture
def on(guest):
    """A vCPU in ring 0 of long mode, with SSE and XSAVE switched on."""
    vcpu = guest("f4", bits=64, gates={6: SAYS_UD, 13: SAYS_GP})
    system = vcpu.system()
    vcpu.set_system(replace(system, cr4=system.cr4 | OSFXSR | OSXSAVE))
    vcpu.set_budget(Budget())  # some tests here are thousands of runs
    return vcpu


def run(vm, vcpu, code, **registers):
    """Run a few bytes and a HLT; return the exit and the registers."""
    vm.ram.write(CODE, bytes.fromhex(code) + b"\xf4" * 8)
    vcpu.set_registers(replace(vcpu.registers(), rip=CODE, **registers))
    return vcpu.run(), vcpu.registers()


def faults(end):
    return isinstance(end, IoOut) and end.port == 6


@pytest.mark.parametrize("pp", range(4))
def test_of_all_that_vex_makes_only_bmi_is_executed(vm, on, pp):
    """VEX of two bytes is map 1; L is 128 or 256 bits; ModRM names registers, and is /1."""
    for opcode, length in itertools.product(range(256), (0, 1)):
        short = bytes([0xC5, 0xF0 | length << 2 | pp, opcode, 0xC8, 0])
        assert faults(run(vm, on, short.hex())[0]), short.hex()
        for table in (1, 2, 3):
            code = bytes([0xC4, 0xE0 | table, 0x70 | length << 2 | pp, opcode, 0xC8, 0])
            end, _ = run(vm, on, code.hex())
            if (table, opcode) in BMI and not length:
                # which prefix belongs to which of them is the fuzz's to find
                assert faults(end) or end == Halt(), code.hex()
            else:
                assert faults(end), code.hex()


@pytest.mark.parametrize("table", [0, *range(4, 32)])
def test_maps_that_do_not_exist(vm, on, table):
    for opcode in (0x00, 0x58, 0xEF, 0xF0, 0xF2):
        code = bytes([0xC4, 0xE0 | table, 0x78, opcode, 0xC8])
        assert faults(run(vm, on, code.hex())[0])


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("c4 e2 70 f2 c2", "andn eax, ecx, edx"),
        ("c4 e2 78 f3 ca", "blsr eax, edx"),
        ("c4 e2 70 f5 c2", "bzhi eax, edx, ecx"),
        ("c4 e2 73 f5 c2", "pdep eax, ecx, edx"),
        ("c4 e2 72 f5 c2", "pext eax, ecx, edx"),
        ("c4 e2 73 f6 c2", "mulx eax, ecx, edx"),
        ("c4 e2 70 f7 c2", "bextr eax, edx, ecx"),
        ("c4 e2 71 f7 c2", "shlx eax, edx, ecx"),
        ("c4 e3 7b f0 c2 04", "rorx eax, edx, 4"),
    ],
)
def test_bmi_still_is(vm, on, code, name):
    end, registers = run(vm, on, code, rax=0, rcx=3, rdx=0xF0F0F0F0)
    assert end == Halt(), name
    assert registers.rip == CODE + len(bytes.fromhex(code)) + 1


def test_an_operand_in_memory_and_a_page_behind_which_nothing_is(vm, on):
    """The look at the opcode behind VEX reads no byte too many: the last one of RAM is HLT."""
    code = bytes.fromhex("c4 e2 70 f2 05 00 00 00 00 f4")  # andn eax, ecx, [rip]
    at = vm.ram.size - len(code)
    vm.ram.write(at, code)
    on.set_registers(replace(on.registers(), rip=at, rcx=-1 & 0xFFFFFFFF, rax=5))
    assert on.run() == Halt()
    assert on.registers().rax == 0


def test_where_it_is_no_prefix_it_is_les_and_lds(vm, guest):
    """les ax, [0x500]; lds bx, [0x500]; hlt, in real mode."""
    vcpu = guest("c4 06 00 05 c5 1e 00 05 f4")
    vm.ram.write(0x500, struct.pack("<HH", 0x1234, 0))
    assert vcpu.run() == Halt()
    assert (vcpu.registers().rax, vcpu.registers().rbx) == (0x1234, 0x1234)


def test_cpuid_does_not_announce_it(vm, on):
    """Neither the instructions nor their state, which XSETBV refuses too."""
    _, one = run(vm, on, "0f a2", rax=1, rcx=0)
    assert one.rcx >> 26 & 1  # XSAVE
    assert not one.rcx & (1 << 12 | 1 << 28 | 1 << 29)  # FMA, AVX, F16C
    _, seven = run(vm, on, "0f a2", rax=7, rcx=0)
    assert not seven.rbx & (1 << 5 | 1 << 16)  # AVX2, AVX512F
    _, state = run(vm, on, "0f a2", rax=0xD, rcx=0)
    assert (state.rax, state.rcx, state.rdx) == (3, 576, 0)
    _, ymm = run(vm, on, "0f a2", rax=0xD, rcx=2)
    assert (ymm.rax, ymm.rbx) == (0, 0)
    assert run(vm, on, "0f 01 d1", rax=3, rcx=0, rdx=0)[0] == Halt()  # xsetbv
    assert run(vm, on, "0f 01 d1", rax=7, rcx=0, rdx=0)[0].port == 13
