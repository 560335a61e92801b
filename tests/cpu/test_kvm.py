"""KVM alone: modes, state, exits, and an orderly end.

What both engines must do is in test_engines.py, what this host does wrong in test_oddities.py.
"""

import os
import re
from dataclasses import replace

import pytest
from kvm_guests import CODE, IF, REAL_CODE, TABLES, boot, guest, take

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Halt,
    IoIn,
    IoOut,
    Mmio,
    Registers,
    Segment,
    Shutdown,
    SystemRegisters,
    open_vm,
)
from vmlib.cpu.kvm import abi as kvm_abi
from vmlib.cpu.kvm import state as kvm_state
from vmlib.cpu.state import UNUSABLE
from vmlib.errors import BadInput, HostUnavailable, Unsupported

kvm = pytest.mark.needs("kvm")
LOOP = "eb fe"
OUT = IoOut(0x10, 1, b"\0")
NO_MSR = 0x8899


# --- modes and state ------------------------------------------------------------------------------


@kvm
@pytest.mark.parametrize(("bits", "mode"), [(16, "real"), (32, "protected"), (64, "long")])
def test_modes(bits, mode):
    """mov al, 0x5a; out 0x10, al; hlt"""
    with guest("b0 5a e6 10 f4", bits=bits) as vcpu:
        assert take(vcpu, 2) == [IoOut(0x10, 1, b"\x5a"), Halt()]
        assert vcpu.system().mode == mode
        assert vcpu.registers().rip == (REAL_CODE if bits == 16 else CODE) + 5


@kvm
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_what_was_set_is_what_is_read(bits):
    with guest("f4", bits=bits) as vcpu:
        system = replace(vcpu.system(), fs=Segment(0x10, 0x123000, 0xFFFF, 0x93), cr2=0x5678)
        vcpu.set_system(system)
        assert vcpu.system() == system
        values = {name: 0x1000 + i for i, name in enumerate(Registers.__slots__)}
        registers = Registers(**values | {"rflags": 0x246})
        vcpu.set_registers(registers)
        assert vcpu.registers() == registers
        vcpu.set_system(replace(system, gs=UNUSABLE))
        assert not vcpu.system().gs.present


@kvm
def test_a_gigabyte_page_works_where_cpuid_announces_it():
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(vm, "b8 01 00 00 80 0f a2 c1 ea 1a 83 e2 01 89 d0 e6 10", bits=64)
        announced = vcpu.run().data == b"\1"  # CPUID 0x80000001 EDX bit 26
        vcpu = boot(vm, "e6 11", bits=64)
        vm.ram.write_u64(TABLES + 0x1000, 0x87)
        exit = vcpu.run()
    if announced:
        assert exit == IoOut(0x11, 1, b"\0")
    else:
        assert isinstance(exit, Shutdown), "the bit is reserved"


@kvm
def test_contradictory_system_registers():
    with guest("f4") as vcpu:
        long = SystemRegisters.long_mode(TABLES)
        with pytest.raises(BadInput, match=r"EFER\.LMA"):
            vcpu.set_system(replace(long, efer=0))
        assert vcpu.system().mode == "real"


@kvm
def test_cpuid_tells_the_number_of_the_vcpu():
    """mov eax, 1; cpuid; mov eax, ebx; shr eax, 24; out 0x10, al"""
    code = "b8 01 00 00 00 0f a2 89 d8 c1 e8 18 e6 10"
    with open_vm("kvm", "1M") as vm:
        for index in range(3):
            vcpu = boot(vm, code, bits=32)
            assert vcpu.index == index
            assert vcpu.run() == IoOut(0x10, 1, bytes([index]))


@kvm
def test_only_the_first_vcpu_is_the_bootstrap_processor():
    """mov ecx, 0x1b; rdmsr; out 0x10, eax: IA32_APIC_BASE, whose bit 8 says so.

    Intel SDM vol. 4, table 2-2. A restore leaves it as KVM has set it.
    """
    with open_vm("kvm", "1M") as vm:
        vm.create_irqchip()
        bases = []
        for _ in range(2):
            vcpu = boot(vm, "b9 1b 00 00 00 0f 32 e7 10 f4", bits=32)
            vcpu.restore(vcpu.save())
            bases.append(int.from_bytes(vcpu.run().data, "little"))
    assert bases == [0xFEE00900, 0xFEE00800]


@kvm
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_save_and_restore(bits):
    """inc eax (not in long mode), out, inc, hlt: taken back to the OUT, in another VM."""
    with guest("04 01 e6 10 04 01 f4", bits=bits) as vcpu:
        vcpu.run()
        state = vcpu.save()
        assert len(state.xsave) == 4096
        assert dict(state.msrs).keys() == set(kvm_state.MSRS)
        assert vcpu.run() == Halt()
        with guest("04 01 e6 10 04 01 f4", bits=bits) as other:
            other.restore(state)
            assert other.save() == state
            assert other.run() == Halt()
            assert other.registers() == vcpu.registers()
        vcpu.restore(state)
        assert take(vcpu, 1) == [Halt()]


@kvm
def test_what_restore_brings_back():
    with guest("90 f4") as vcpu:
        state = vcpu.save()
        xsave = bytearray(state.xsave)
        xsave[160:176] = bytes(range(16))  # XMM0
        xsave[512] |= 2
        changed = replace(
            state,
            xsave=bytes(xsave),
            msrs=tuple((i, 0x1234000 if i == 0xC0000082 else v) for i, v in state.msrs),
            debug=(0x1000, 0, 0, 0, 0xFFFF0FF0, 0x400),
            interrupt=0x33,
            halted=True,
        )
        vcpu.restore(changed)
        assert vcpu.save() == changed
        assert vcpu.run() == Halt()
        with pytest.raises(Unsupported, match="MSR 0x8899 = 0x1"):
            vcpu.restore(replace(state, msrs=((NO_MSR, 1),)))
        with pytest.raises(BadInput, match="4096 bytes"):
            vcpu.restore(replace(state, xsave=b""))


@kvm
def test_an_interrupt_shadow_is_saved():
    """In the shadow of an STI nothing is delivered before the next instruction is through."""
    with guest("90 90 f4", flags=IF) as vcpu:
        state = vcpu.save()
        assert not state.shadow
        vcpu.restore(replace(state, shadow=True))
        assert vcpu.save().shadow
        assert vcpu.step() is None
        assert not vcpu.save().shadow


@pytest.mark.needs("kvm", "unicorn")
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("way", [("kvm", "unicorn"), ("unicorn", "kvm")], ids="→".join)
def test_a_guest_moves_between_the_engines(bits, way):
    """add al, 1; out; add al, 1; out; hlt, one half here and one there."""
    code = "04 01 e6 10 04 01 e6 11 f4"
    with open_vm(way[0], "1M") as here, open_vm(way[1], "1M") as there:
        first, second = boot(here, code, bits), boot(there, code, bits)
        assert first.run() == IoOut(0x10, 1, b"\1")
        there.ram.view[:] = here.ram.view
        second.restore(first.save())
        assert take(second, 2) == [IoOut(0x11, 1, b"\2"), Halt()]
        assert take(first, 2) == [IoOut(0x11, 1, b"\2"), Halt()]
        assert first.registers().rip == second.registers().rip


# --- exits ----------------------------------------------------------------------------------------


@kvm
def test_string_output_is_one_exit_per_item():
    """mov si, 0x1000; mov cx, 3; mov dx, 0x10; rep outsw; hlt: its own first bytes"""
    with guest("be 00 10 b9 03 00 ba 10 00 f3 6f f4") as vcpu:
        items = []
        while isinstance(exit := vcpu.run(), IoOut):
            assert exit.size == 2
            items.append(exit.data)
        assert exit == Halt()
        assert b"".join(items) == bytes.fromhex("be 00 10 b9 03 00")


@kvm
def test_string_input_may_come_in_one_exit():
    """mov di, 0x3000; mov cx, 5; mov dx, 0x10; rep insb; hlt"""
    with open_vm("kvm", "64K") as vm:
        vcpu = boot(vm, "bf 00 30 b9 05 00 ba 10 00 f3 6c f4")
        source = b"fives"
        while isinstance(exit := vcpu.run(), IoIn):
            part, source = source[: exit.count], source[exit.count :]
            vcpu.complete(part)
        assert exit == Halt()
        assert vm.ram.read(0x3000, 6) == b"fives\0"


@kvm
@pytest.mark.parametrize("budget", [Budget(), Budget(seconds=60)], ids=["short way", "long way"])
def test_registers_in_the_midst_of_a_string_instruction(budget):
    """The next item's exit is there already when the last one's is finished, and is not lost."""
    with guest("be 00 10 b9 03 00 ba 10 00 f3 6e f4") as vcpu:
        vcpu.set_budget(budget)
        for left in (2, 1, 0):
            exit = vcpu.run()
            assert isinstance(exit, IoOut)
            assert vcpu.registers().rcx == left
        assert vcpu.run() == Halt()
        assert vcpu.exits == {"IO": 3, "HLT": 1}


@kvm
@pytest.mark.parametrize(
    "code",
    ["b9 ff ff ba 10 00 f3 6e f4", "b8 00 f0 8e d8 b9 ff ff f3 a4 f4"],
    ids=["outsb", "movsb"],
)
def test_a_new_start_forgets_a_string_instruction(code):
    """rep outsb, and rep movsb from where there is no RAM: each item is an exit."""
    with open_vm("kvm", "64K") as vm:
        vcpu = boot(vm, code)
        vcpu.run()
        finish, finished = vcpu._finish, []
        vcpu._finish = lambda: finished.append(finish())
        vcpu.start_real_mode(REAL_CODE + len(bytes.fromhex(code)) - 1)
        assert len(finished) < 4, "65535 items are not gone through one by one"
        assert vcpu.run() == Halt()
        assert vcpu.registers().rcx == 0


@kvm
@pytest.mark.parametrize(("opcode", "size"), [("a0", 1), ("66 a1", 2), ("a1", 4), ("48 a1", 8)])
def test_mmio_of_every_width(opcode, size):
    """mov to AL, AX, EAX, RAX from 0x10000020, and back to eight bytes further."""
    address = "00 00 10 00 00 00 00"
    store = opcode.replace("a0", "a2").replace("a1", "a3")
    with guest(f"{opcode} 20 {address} {store} 28 {address} f4", bits=64) as vcpu:
        assert vcpu.run() == Mmio(0x10000020, size, None)
        data = bytes(range(0x81, 0x81 + size))
        vcpu.complete(data)
        assert vcpu.run() == Mmio(0x10000028, size, data)
        assert vcpu.run() == Halt()


@kvm
@pytest.mark.parametrize("budget", [Budget(), Budget(seconds=60)], ids=["short way", "long way"])
def test_mmio_across_a_page_is_two_exits(budget):
    """mov rax, [0x10000ffc]"""
    with guest("48 a1 fc 0f 00 10 00 00 00 00 f4", bits=64) as vcpu:
        vcpu.set_budget(budget)
        assert vcpu.run() == Mmio(0x10000FFC, 4, None)
        vcpu.complete(b"\1\2\3\4")
        assert vcpu.registers().rip == CODE, "half done is not done"
        assert vcpu.run() == Mmio(0x10001000, 4, None)
        vcpu.complete(b"\5\6\7\x08")
        assert vcpu.registers().rax == 0x0807060504030201
        assert vcpu.run() == Halt()


@kvm
def test_mmio_that_nobody_answers_reads_ones():
    with guest("48 a1 20 00 00 10 00 00 00 00 f4", bits=64) as vcpu:
        vcpu.run()
        assert vcpu.run() == Halt()
        assert vcpu.registers().rax == (1 << 64) - 1


@kvm
def test_shutdown_says_what_failed():
    """A page fault with an IDT that has gates for nothing."""
    with guest("48 a1 00 00 00 00 01 00 00 00", bits=64) as vcpu:
        system = vcpu.system()
        vcpu.set_system(replace(system, idt=replace(system.idt, limit=0)))
        vcpu.set_registers(Registers(rip=0x40000000))  # not mapped
        exit = vcpu.run()
        assert isinstance(exit, Shutdown)
        assert exit.why.startswith("triple fault")
        if "KVM reset the vCPU" not in exit.why:
            assert exit.gate == "no gate for vector 8 below the IDT's limit 0x0"
            assert exit.gate in exit.why
            assert "limit 0x0" in exit.why
            if exit.vector is not None:
                assert (exit.vector, exit.cr2) == (14, 0x40000000)
                assert "#PF at address 0x40000000" in exit.why


@kvm
def test_exits_are_counted():
    with guest("e6 10 e4 10 a1 00 00 f4", bits=16) as vcpu:
        take(vcpu, 3)
        assert vcpu.exits == {"IO": 2, "HLT": 1}
        assert not vcpu.handled


# --- life and death -------------------------------------------------------------------------------


@kvm
def test_budgets_and_none():
    with guest(LOOP) as vcpu:
        vcpu.set_budget(Budget(seconds=0.02))
        assert vcpu.run() == BudgetSpent("0.02 s")
        assert vcpu.step() == BudgetSpent("0.02 s"), "spent is spent"
        vcpu.set_budget(Budget())
        assert vcpu.step() is None
        with pytest.raises(Unsupported, match="counts no instructions"):
            vcpu.set_budget(Budget(instructions=3))


def requests():
    names = (
        "CREATE_VM SET_USER_MEMORY_REGION GET_SUPPORTED_CPUID SET_IDENTITY_MAP_ADDR SET_TSS_ADDR"
    )
    return [*names.split(), "CREATE_VCPU", "SET_CPUID2", "SET_SREGS"]


@kvm
@pytest.mark.parametrize("name", requests())
def test_nothing_is_left_behind_when_a_request_fails(monkeypatch, name):
    from vmlib.cpu.kvm import file as kvm_file
    from vmlib.cpu.kvm import vm as kvm

    real = kvm.call

    def failing(fd, request, argument=0):
        if request == getattr(kvm_abi, name):
            raise OSError(12, "Cannot allocate memory")
        return real(fd, request, argument)

    monkeypatch.setattr(kvm, "call", failing)
    monkeypatch.setattr(kvm_file, "call", failing)
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises((HostUnavailable, BadInput), match=r"KVM .*Cannot allocate memory"),
        open_vm("kvm") as vm,
    ):
        vm.vcpu()
    assert os.listdir("/proc/self/fd") == before


@kvm
def test_ram_ends_below_the_pages_that_kvm_needs():
    with pytest.raises(BadInput, match="0xfffbc000"):
        open_vm("kvm", "4G")


@kvm
def test_closed_is_closed():
    with open_vm("kvm", "64K") as vm:
        vcpu = boot(vm, "f4")
    asks = (
        vcpu.run,
        vcpu.step,
        vcpu.kick,
        vcpu.registers,
        vcpu.system,
        vcpu.save,
        vcpu.refuse,
        vm.vcpu,
        vm.create_irqchip,
        lambda: vcpu.complete(b""),
        lambda: vcpu.inject(3),
        lambda: vcpu.breakpoints([]),
        lambda: vcpu.intercept("msr"),
        lambda: vcpu.set_budget(Budget()),
        lambda: vcpu.start_real_mode(0),
        lambda: vm.doorbell(0x10, 1),
        lambda: vm.set_irq(0, True),
    )
    for ask in asks:
        with pytest.raises(BadInput, match="closed"):
            ask()
    vcpu.close()
    vm.close()


def test_dev_kvm_is_opened_in_one_file(root):
    opens = [
        p.name for p in (root / "vmlib").rglob("*.py") if re.search(r'"/dev/kvm"', p.read_text())
    ]
    assert opens == ["vm.py"]
