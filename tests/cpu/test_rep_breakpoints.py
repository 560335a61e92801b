"""A breakpoint of the debugger's on a repeated string instruction, on both engines.

The manual has it break once, before the first item: between items RF is set (Intel SDM vol. 3B,
*Instruction-Breakpoint Exception Condition*). The emulator begins the instruction anew for each
item and for the look that finds the count at 0, and breaks each time. A KVM that runs ring 0 in its
instruction emulator (kvm_pvm) breaks each time it decodes the instruction: for REP OUTS that is as
often, and for what needs no exit between items it is at the beginning and at the end. How often a
KVM on VT-x or AMD-V breaks was not measured: at least once, before the first item.
"""

from dataclasses import replace

import pytest
from kvm_guests import CODE, REAL_CODE, boot

from vmlib.cpu import ENGINES, Debug, Halt, IoIn, IoOut, Mmio, open_vm
from vmlib.cpu.kvm.oddities import PVM, kvm_modules

ITEMS, PORT, DATA, OUTSIDE = 3, 0x10, 0x500, 0x200000
OUTS, INS, STOS, OUT_LOOP = "90 f3 6e 90 f4", "90 f3 6c 90 f4", "90 f3 aa 90 f4", "90 ee e2 fd f4"

engines = pytest.mark.parametrize(
    "engine", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ENGINES]
)
every_mode = pytest.mark.parametrize("bits", [16, 32, 64])


def exits(engine, bits, code, to=DATA, items=ITEMS):
    """Run to the HLT with a breakpoint on the second byte; return the exits before it."""
    found = []
    with open_vm(engine, "1M") as vm:
        vcpu = boot(vm, code, bits=bits)
        registers = replace(vcpu.registers(), rcx=items, rdx=PORT, rsi=DATA, rdi=to)
        vcpu.set_registers(registers)
        at = (REAL_CODE if bits == 16 else CODE) + 1
        vcpu.breakpoints([at])
        while (end := vcpu.run()) != Halt():
            assert isinstance(end, IoIn | IoOut | Mmio) or end == Debug(at)
            found.append(end)
            assert len(found) < 4 * ITEMS
        assert vcpu.registers().rcx == 0
    return found


def check(engine, found, emulator, emulated):
    """Hold the breaks among the exits against the emulator's, or those of a KVM that emulates."""
    debugs = [isinstance(one, Debug) for one in found]
    if engine == "unicorn":
        assert debugs == emulator
    elif PVM in kvm_modules():
        assert debugs == emulated
    else:
        assert debugs[0]


EACH, ONCE = [True, False] * ITEMS, [True]


@engines
@every_mode
def test_rep_outs_breaks_before_each_item_and_before_the_end(engine, bits):
    check(engine, exits(engine, bits, OUTS), EACH + ONCE, EACH + ONCE)


@engines
@every_mode
def test_with_nothing_to_do_it_breaks_once(engine, bits):
    assert len(exits(engine, bits, OUTS, items=0)) == 1


@engines
@every_mode
def test_a_loop_breaks_each_time_round(engine, bits):
    """out dx, al; loop: here every break is one the manual has too."""
    found = exits(engine, bits, OUT_LOOP)
    assert [isinstance(one, Debug) for one in found] == EACH


@engines
@every_mode
def test_rep_ins(engine, bits):
    """KVM asks for all items at once, the emulator for one after the other."""
    found = exits(engine, bits, INS)
    reads = [one for one in found if isinstance(one, IoIn)]
    assert reads == ([IoIn(PORT, 1)] * ITEMS if engine == "unicorn" else [IoIn(PORT, 1, ITEMS)])
    check(engine, found, EACH + ONCE, [True, False, True])


@engines
@every_mode
def test_rep_stos_to_ram(engine, bits):
    """Nothing leaves the guest between two items."""
    check(engine, exits(engine, bits, STOS), ONCE * (ITEMS + 1), ONCE * 2)


@engines
@pytest.mark.parametrize("bits", [32, 64])
def test_rep_stos_to_a_device(engine, bits):
    """The emulator steps over a store to a device, and so takes the end's look with the last."""
    check(engine, exits(engine, bits, STOS, to=OUTSIDE), EACH, EACH + ONCE)
