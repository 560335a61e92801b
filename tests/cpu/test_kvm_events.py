"""KVM alone: interrupts, the irqchip, the debugger, MSRs, doorbells."""

import os
import threading

import pytest
from kvm_guests import CODE, IF, REAL_CODE, boot, guest, take

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Debug,
    Halt,
    InterruptWindow,
    IoOut,
    Kicked,
    Mmio,
    MsrRead,
    MsrWrite,
    open_vm,
)
from vmlib.errors import BadInput, Unsupported

kvm = pytest.mark.needs("kvm")
OUT = IoOut(0x10, 1, b"\0")
EFER, EFER_SCE = 0xC0000080, 1
NO_MSR = 0x8899


# --- interrupts -----------------------------------------------------------------------------------

TELL = {16: "e6 20 cf", 64: "e6 20 48 cf"}  # out 0x20, al; iret
TOLD = IoOut(0x20, 1, b"\0")


@kvm
@pytest.mark.parametrize("bits", [16, 64])
def test_an_interrupt_is_delivered_at_once(bits):
    """nop; out 0x10, al; hlt, with interrupts on: the handler comes first."""
    with guest("90 e6 10 f4", bits=bits, gates={0x33: TELL[bits]}, flags=IF) as vcpu:
        vcpu.inject(0x33)
        assert take(vcpu, 3) == [TOLD, OUT, Halt()]
        assert vcpu.save().interrupt is None


@kvm
def test_an_interrupt_waits_for_a_guest_that_has_them_off():
    """sti, nop, and round and round: the window opens in the loop."""
    with guest("90 fb 90 eb fd", gates={0x33: TELL[16]}) as vcpu:
        vcpu.inject(0x33)
        assert vcpu.save().interrupt == 0x33
        with pytest.raises(BadInput, match="vector 51 is still waiting"):
            vcpu.inject(0x34)
        assert take(vcpu, 2) == [InterruptWindow(), TOLD]
        vcpu.inject(0x33)
        assert take(vcpu, 2) == [InterruptWindow(), TOLD], "one more, after the handler's IRET"


@kvm
def test_an_interrupt_ends_a_halt():
    """sti; hlt; out 0x10, al"""
    with guest("fb f4 e6 10 f4", gates={0x33: TELL[16]}) as vcpu:
        assert vcpu.run() == Halt()
        vcpu.inject(0x33)
        assert take(vcpu, 3) == [TOLD, OUT, Halt()]


@kvm
def test_an_interrupt_waits_while_nobody_turns_them_on():
    with guest("e6 10 f4", gates={0x33: TELL[16]}) as vcpu:
        vcpu.inject(0x33)
        assert take(vcpu, 2) == [OUT, Halt()]
        vcpu.start_real_mode(REAL_CODE)
        vcpu.inject(0x33)  # a start forgets the first


@kvm
@pytest.mark.parametrize("vector", [-1, 256, 1.5, True])
def test_bad_vectors(vector):
    with guest("f4") as vcpu, pytest.raises(BadInput, match="0 to 255"):
        vcpu.inject(vector)


# mov al, X; out P, al: the PIC's ICW1-4 (vectors from 0x20), then only line 0 let through.
PIC = "b0 11 e6 20 b0 20 e6 21 b0 04 e6 21 b0 01 e6 21 b0 fe e6 21"
END_OF_INTERRUPT = "e6 10 b0 20 e6 20 cf"  # out 0x10, al; and tell the PIC


@kvm
def test_the_irqchip_is_in_the_kernel():
    """PIC set up; sti; hlt; out 0x12, al: neither the PIC's ports nor HLT reach us."""
    with open_vm("kvm", "64K") as vm:
        vm.create_irqchip()
        vcpu = boot(vm, f"{PIC} fb f4 e6 12 fa f4", gates={0x20: END_OF_INTERRUPT})
        vcpu.set_budget(Budget(seconds=0.1))
        assert isinstance(vcpu.run(), BudgetSpent), "asleep in the kernel"
        assert vcpu.save().halted
        vcpu.set_budget(Budget(seconds=2))
        threading.Timer(0.05, vm.set_irq, (0, True)).start()
        assert vcpu.run() == IoOut(0x10, 1, b"\xfe"), "set_irq woke it"
        vm.set_irq(0, False)
        assert vcpu.run() == IoOut(0x12, 1, b"\x20")
        threading.Timer(0.05, vcpu.kick).start()
        assert vcpu.run() == Kicked(), "a halt for ever can be left"
        assert vcpu.exits == {"IO": 2, "BUDGET": 1, "INTR": 1}
        with pytest.raises(Unsupported, match="set_irq"):
            vcpu.inject(0x20)


@kvm
def test_a_second_vcpu_beside_an_irqchip_runs_when_started():
    with open_vm("kvm", "64K") as vm:
        vm.create_irqchip()
        assert [boot(vm, "e6 10").run() for _ in range(2)] == [OUT, OUT]


@kvm
def test_wrong_use_of_the_irqchip():
    with open_vm("kvm", "64K") as vm:
        with pytest.raises(BadInput, match="no interrupt controller"):
            vm.set_irq(0, True)
        with pytest.raises(BadInput, match="takes none"):
            vm.create_irqchip(object())
        vm.create_irqchip()
        with pytest.raises(BadInput, match="already"):
            vm.create_irqchip()
        with pytest.raises(BadInput, match="0 to 23"):
            vm.set_irq(24, True)
    with open_vm("kvm", "64K") as vm:
        vm.vcpu()
        with pytest.raises(BadInput, match="before the first vCPU"):
            vm.create_irqchip()


# --- debugging, MSRs ------------------------------------------------------------------------------


@kvm
@pytest.mark.parametrize("bits", [16, 64])
def test_breakpoints(bits):
    """nop ×3; out 0x10, al; nop; hlt"""
    at = REAL_CODE if bits == 16 else CODE
    with guest("90 90 90 e6 10 90 f4", bits=bits) as vcpu:
        vcpu.breakpoints([at + 2, at + 3, at + 5, at + 6])
        assert vcpu.run() == Debug(at + 2)
        assert vcpu.registers().rip == at + 2
        assert take(vcpu, 3) == [Debug(at + 3), OUT, Debug(at + 5)]
        assert vcpu.step() is None
        assert take(vcpu, 2) == [Debug(at + 6), Halt()]


@kvm
def test_a_breakpoint_in_a_loop_is_hit_in_every_round():
    """inc ax; jmp back"""
    with guest("40 eb fd") as vcpu:
        vcpu.breakpoints([REAL_CODE])
        for rounds in range(3):
            assert vcpu.run() == Debug(REAL_CODE)
            assert vcpu.registers().rax == rounds
        vcpu.breakpoints([])
        vcpu.set_budget(Budget(seconds=0.05))
        assert isinstance(vcpu.run(), BudgetSpent)


@kvm
def test_a_kick_at_a_breakpoint_does_not_make_it_hit_again():
    with guest("90 f4") as vcpu:
        vcpu.breakpoints([REAL_CODE])
        assert vcpu.run() == Debug(REAL_CODE)
        vcpu.kick()
        assert take(vcpu, 2) == [Kicked(), Halt()]


@kvm
def test_bad_breakpoints():
    with guest("f4") as vcpu:
        with pytest.raises(BadInput, match="four address registers, not 5"):
            vcpu.breakpoints(range(5))
        with pytest.raises(BadInput, match="64 bits"):
            vcpu.breakpoints([1 << 64])
        vcpu.breakpoints([1, 2, 3, 4, 4, 4])


# mov ecx, EFER; rdmsr; out 0x10, al; or eax, 1; wrmsr; rdmsr; out 0x11, al; mov ecx, 0x8899;
# rdmsr; hlt
MSRS = "b9 80 00 00 c0 0f 32 e6 10 83 c8 01 0f 30 0f 32 e6 11 b9 99 88 00 00 0f 32 f4"
GP = {13: "e6 0d f4"}


@kvm
def test_msrs_can_be_watched_without_changing_anything():
    with guest(MSRS, bits=64, gates=GP) as vcpu:
        without = take(vcpu, 4)
    with guest(MSRS, bits=64, gates=GP) as vcpu:
        vcpu.intercept("msr")
        exits = take(vcpu, 8)
        assert vcpu.system().efer & EFER_SCE
    assert exits[0] == exits[3] == MsrRead(EFER)
    assert exits[2] == MsrWrite(EFER, 0x501)
    assert exits[5] == MsrRead(NO_MSR)
    assert [exits[1], exits[4], *exits[6:]] == without
    assert without == [OUT, IoOut(0x11, 1, b"\1"), IoOut(13, 1, b"\1"), Halt()]


@kvm
def test_msrs_can_be_answered_and_refused():
    """The same; EFER reads with SCE set, its write is refused; what nobody knows reads 0x1234."""
    with guest(MSRS, bits=64, gates=GP) as vcpu:
        vcpu.intercept("msr")
        assert vcpu.run() == MsrRead(EFER)
        with pytest.raises(BadInput, match="reads 8 byte"):
            vcpu.complete(b"\0")
        vcpu.complete((0x501).to_bytes(8, "little"))
        assert vcpu.run() == IoOut(0x10, 1, b"\1")
        assert vcpu.run() == MsrWrite(EFER, 0x501)
        vcpu.refuse()
        assert vcpu.run() == IoOut(13, 1, b"\1"), "the fault's handler"
        assert not vcpu.system().efer & EFER_SCE
    with guest("b9 99 88 00 00 0f 32 e7 10", bits=64, gates=GP) as vcpu:
        vcpu.intercept("msr")
        vcpu.run()
        vcpu.complete((0x1234).to_bytes(8, "little"))
        assert vcpu.run() == IoOut(0x10, 4, b"\x34\x12\0\0")


@kvm
def test_registers_after_an_msr_exit_show_it_done():
    with guest("b9 80 00 00 c0 0f 32 f4", bits=64) as vcpu:
        vcpu.intercept("msr")
        vcpu.run()
        assert vcpu.registers().rax == 0x500
        assert vcpu.run() == Halt()


@kvm
def test_what_kvm_cannot_do_is_refused_with_the_reason():
    with guest("f4") as vcpu:
        with pytest.raises(BadInput, match="'mrs' is none of msr, cpuid"):
            vcpu.intercept("mrs")
        for kind, reason in [("cpuid", "KVM_SET_CPUID2"), ("cr3", "CR3"), ("hypercall", "kernel")]:
            with pytest.raises(Unsupported, match=reason):
                vcpu.intercept(kind)
        with pytest.raises(BadInput, match="no RDMSR"):
            vcpu.refuse()
    with open_vm("kvm") as vm:
        for handle in (vm.handle_ports, vm.handle_memory):
            with pytest.raises(Unsupported, match="device in Python"):
                handle(0x10, 1, lambda *_: 0, lambda *_: None)


# --- doorbells ------------------------------------------------------------------------------------


@kvm
def test_a_doorbell_rings_without_an_exit():
    """mov cx, 100; out 0x10, al; loop; hlt"""
    with open_vm("kvm", "64K") as vm:
        vcpu = boot(vm, "b9 64 00 e6 10 e2 fc f4")
        bell = vm.doorbell(0x10, 1)
        assert bell.take() == 0
        assert vcpu.run() == Halt()
        assert vcpu.exits == {"HLT": 1}
        assert bell.take() == 100
        assert bell.take() == 0
        os.eventfd_write(bell.fileno(), 2)
        assert bell.take() == 2
    with pytest.raises(BadInput, match="closed"):
        bell.take()


@kvm
def test_a_doorbell_for_one_value_in_memory():
    """mov dword [0x10000000], 7; then 8; then 7 as a word"""
    code = "c7 05 00 00 00 10 07 00 00 00 c7 05 00 00 00 10 08 00 00 00"
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(vm, f"{code} 66 c7 05 00 00 00 10 07 00 f4", bits=32)
        bell = vm.doorbell(0x10000000, 4, mmio=True, match=7)
        assert vcpu.run() == Mmio(0x10000000, 4, b"\x08\0\0\0")
        assert vcpu.run() == Mmio(0x10000000, 2, b"\7\0")
        assert vcpu.run() == Halt()
        assert bell.take() == 1


@kvm
def test_a_doorbell_that_is_refused_leaves_no_descriptor():
    with open_vm("kvm", "64K") as vm:
        vm.doorbell(0x10, 1)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BadInput, match="already"):
            vm.doorbell(0x10, 1)
        assert len(os.listdir("/proc/self/fd")) == before
