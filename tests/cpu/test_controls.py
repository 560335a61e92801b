"""Writes of control registers: what a processor refuses, and what it has to let pass.

That the refusals are a processor's is held against KVM by small guests (`small_guests.py`). The
rules are those of the Intel SDM, vol. 2B, MOV to control registers, and vol. 3A, *IA-32e Mode*.
"""

from dataclasses import replace

import pytest
from kvm_guests import CODE, TABLES, boot

from vmlib.cpu import ENGINES, Halt, Registers, SystemRegisters, open_vm
from vmlib.cpu.controls import (
    CR0_CD,
    CR0_NW,
    CR4_PCIDE,
    EFER,
    refuses_cr0,
    refuses_cr4,
    refuses_msr,
)
from vmlib.cpu.events import EventCpu
from vmlib.cpu.state import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME
from vmlib.memory.paging import CR4_LA57

LONG, PROTECTED = SystemRegisters.long_mode(TABLES), SystemRegisters.protected_mode()
COMPATIBILITY = replace(LONG, cs=PROTECTED.cs)
READY = replace(PROTECTED, cr4=CR4_PAE, efer=EFER_LME)
"""One MOV to CR0 away from long mode."""


def cpu(system, **changed):
    return EventCpu.of(Registers(), replace(system, **changed))


@pytest.mark.parametrize(
    ("system", "value", "refused"),
    [
        (PROTECTED, CR0_PE | CR0_PG, False),
        (PROTECTED, CR0_PG, True),
        (PROTECTED, 0, False),
        (PROTECTED, CR0_PE | CR0_CD | CR0_NW, False),
        (PROTECTED, CR0_PE | CR0_CD, False),
        (PROTECTED, CR0_PE | CR0_NW, True),
        (READY, CR0_PE | CR0_PG, False),  # the last of four steps
        (replace(READY, cr4=0), CR0_PE | CR0_PG, True),
        (replace(READY, cs=LONG.cs), CR0_PE | CR0_PG, True),
        (LONG, LONG.cr0, False),
        (LONG, CR0_PE, True),
        (COMPATIBILITY, CR0_PE, False),  # the way out
        (replace(COMPATIBILITY, cr4=CR4_PAE | CR4_PCIDE), CR0_PE, True),
    ],
)
def test_cr0(system, value, refused):
    assert refuses_cr0(value, cpu(system)) is refused


@pytest.mark.parametrize(
    ("system", "value", "refused"),
    [
        (LONG, LONG.cr4, False),
        (LONG, 0, True),
        (COMPATIBILITY, 0, True),
        (PROTECTED, 0, False),
        (LONG, CR4_PAE | CR4_LA57, True),
        (PROTECTED, CR4_PAE | CR4_LA57, False),
        (replace(LONG, cr4=CR4_PAE | CR4_LA57), CR4_PAE, True),
        (LONG, CR4_PAE | CR4_PCIDE, False),
        (replace(LONG, cr3=TABLES | 8), CR4_PAE | CR4_PCIDE, True),
        (replace(LONG, cr3=TABLES | 8, cr4=CR4_PAE | CR4_PCIDE), CR4_PAE | CR4_PCIDE, False),
        (PROTECTED, CR4_PAE | CR4_PCIDE, True),
    ],
)
def test_cr4(system, value, refused):
    assert refuses_cr4(value, cpu(system)) is refused


@pytest.mark.parametrize(
    ("system", "index", "value", "refused"),
    [
        (LONG, EFER, EFER_LME | EFER_LMA | 1, False),
        (LONG, EFER, EFER_LMA, True),
        (PROTECTED, EFER, EFER_LME, False),
        (replace(PROTECTED, cr0=CR0_PE | CR0_PG), EFER, EFER_LME, True),
        (LONG, 0xC0000082, 0x7FFF_FFFF_FFFF, False),
        (LONG, 0xC0000082, 1 << 47, True),
        (LONG, 0xC0000101, 0xFFFF_8000_0000_0000, False),
        (LONG, 0xC0000101, 0xFFFF_7FFF_FFFF_FFFF, True),
        (replace(LONG, cr4=CR4_PAE | CR4_LA57), 0x176, 1 << 47, False),
        (LONG, 0xC0000081, 1 << 63, False),  # STAR holds selectors
    ],
)
def test_msrs(system, index, value, refused):
    assert refuses_msr(index, value, cpu(system)) is refused


@pytest.mark.parametrize(
    "engine", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ENGINES]
)
@pytest.mark.parametrize(
    ("bits", "code"),
    [
        (64, "b9 82 00 00 c0 31 c0 ba 00 00 01 00 0f 30"),
        (32, "b9 80 00 00 c0 0f 32 0d 00 01 00 00 0f 30 b8 11 00 00 80 0f 22 c0"),
    ],
    ids=["LSTAR that is not canonical", "long mode without PAE"],
)
def test_two_that_the_box_cannot_show(engine, bits, code):
    """mov ecx, LSTAR; xor eax, eax; mov edx, 0x10000; wrmsr. Or: set EFER.LME, then CR0.PG.

    Under VMRUN the first is for QEMU's processor, which takes any value, and the second stops QEMU.
    """
    with open_vm(engine, "1M") as vm:
        vcpu = boot(vm, code, bits=bits, gates={13: "58 59 e6 0d f4"})  # pop: error code, then RIP
        assert vcpu.run().port == 13
        registers = vcpu.registers()
    last = 2 if bits == 64 else 3
    assert (registers.rax, registers.rcx) == (0, CODE + len(bytes.fromhex(code)) - last)


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("exits", [(), ("msr", "cr3")])
def test_a_guest_that_is_refused_can_go_on(guest, exits):
    """l: mov cr4, rax, with RAX = 0; inc ebx; cmp ebx, 3; jne l; hlt. Its handler skips the MOV."""
    handler = "ff c1 48 83 44 24 08 03 48 83 c4 08 48 cf"  # inc ecx; add [rsp + 8], 3; drop; iretq
    vcpu = guest("0f 22 e0 ff c3 83 fb 03 75 f6 f4", bits=64, gates={13: handler})
    vcpu.intercept(*exits)
    cr4 = vcpu.system().cr4
    assert vcpu.run() == Halt()
    assert (vcpu.registers().rbx, vcpu.registers().rcx) == (3, 3)
    assert vcpu.system().cr4 == cr4


@pytest.mark.needs("unicorn")
def test_the_way_out_of_long_mode_is_open(guest):
    """Out of long mode by the manual's way (*Switching Out of IA-32e Mode*): each step is let pass.

    In compatibility mode: mov eax, cr0; and eax, 0x7fffffff; mov cr0, eax; mov ecx, EFER; rdmsr;
    and eax, ~0x100; wrmsr; xor eax, eax; mov cr4, eax; hlt
    """
    code = "0f 20 c0 25 ff ff ff 7f 0f 22 c0 b9 80 00 00 c0 0f 32 25 ff fe ff ff 0f 30"
    vcpu = guest(f"{code} 31 c0 0f 22 e0 f4", bits=64)
    system = vcpu.system()
    vcpu.set_system(replace(system, cs=replace(system.cs, attributes=0xC09B)))
    assert vcpu.run() == Halt()
    system = vcpu.system()
    assert (system.mode, system.cr4, system.efer) == ("protected", 0, 0)
