"""Several vCPUs on the emulator, code that changes under them, and an orderly end.

Code is hexadecimal with its assembler beside it. `guest` boots it, see `kvm_guests.boot`: 16-bit
code at 0x1000, else with a GDT, a TSS and gates at 0x10000.
"""

import time
from dataclasses import replace

import pytest
from emulator_guests import DEVICE, in_thread, ports, wait_for
from kvm_guests import CODE, boot, take

from vmlib.cpu import Budget, Halt, IoOut, Kicked, Registers, SystemRegisters, open_vm
from vmlib.devices import PicPair
from vmlib.errors import BadInput

pytestmark = pytest.mark.needs("unicorn")


# --- several vCPUs, and code that changes ---------------------------------------------------------

COUNT = 200_000


def count_with_two(parallel):
    """out 0x10, al; mov ecx, COUNT; l: lock inc dword [0x40000]; dec ecx; jnz l; hlt.

    On two vCPUs, of which one has run before there was another.
    """
    with open_vm("unicorn", "1M", parallel=parallel) as vm:
        vcpus = []
        for _ in range(2):
            vcpus.append(boot(vm, "e6 10 b9 40 0d 03 00 f0 ff 05 00 00 04 00 49 75 f6 f4", bits=32))
            vcpus[-1].set_budget(Budget())
            assert ports([vcpus[-1].run()]) == [0x10]
        ends = [in_thread(vcpu.run) for vcpu in vcpus]
        assert [end(vcpu.kick) for end, vcpu in zip(ends, vcpus, strict=True)] == [Halt(), Halt()]
        assert [vcpu.registers().rcx for vcpu in vcpus] == [0, 0]
        return int.from_bytes(vm.ram.read(0x40000, 4), "little")


def test_locked_instructions_of_two_vcpus_are_exact():
    assert count_with_two(parallel=False) == 2 * COUNT


@pytest.mark.needs("two processors")
def test_vcpus_that_run_at_the_same_moment_lose_updates():
    """This is what taking turns is for. How many are lost is chance, and so is a run with none."""
    counts = [2 * COUNT]
    while counts[-1] == 2 * COUNT and len(counts) < 20:
        counts.append(count_with_two(parallel=True))
    assert 0 < counts[-1] < 2 * COUNT


COUNTS = "31 c9 e6 10 41 83 f9 05 75 f8 ff 05 00 00 04 00 eb f8"
"""xor ecx, ecx; l: out 0x10, al; inc ecx; cmp ecx, 5; jne l; m: inc dword [0x40000]; jmp m"""


def counter(vm):
    return int.from_bytes(vm.ram.read(0x40000, 4), "little")


def stands_still(vm):
    before = counter(vm)
    time.sleep(0.05)
    return counter(vm) == before


@pytest.mark.parametrize("budget", [Budget(), Budget(seconds=60)], ids=["short way", "long way"])
def test_who_runs_alone_takes_turns_as_soon_as_there_is_another(vm, guest, budget):
    """The second vCPU is created while the first is inside; then this thread takes the turn."""
    vcpu = guest(COUNTS, bits=32)
    vcpu.set_budget(budget)
    assert ports(take(vcpu, 5)) == [0x10] * 5
    end = in_thread(vcpu.run)
    wait_for(lambda: counter(vm))
    vm.vcpu()
    vm.turns.take(lambda: None)
    still = stands_still(vm)
    vm.turns.give()
    before = counter(vm)
    wait_for(lambda: counter(vm) != before)
    vcpu.kick()
    assert end() == Kicked()
    assert still


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_short_way_is_no_way_past_the_turn(vm, guest, which):
    """Each has made exits without a budget, the first while it was alone."""
    vcpus = []
    for _ in range(2):
        vcpus.append(guest(COUNTS, bits=32))
        vcpus[-1].set_budget(Budget())
        assert ports(take(vcpus[-1], 5)) == [0x10] * 5
    vcpu = vcpus[which == "second"]
    vm.turns.take(lambda: None)
    end = in_thread(vcpu.run)
    still = stands_still(vm)
    vm.turns.give()
    wait_for(lambda: counter(vm))
    vcpu.kick()
    assert end() == Kicked()
    assert still


def test_who_waits_gets_the_turn_from_one_that_never_leaves(vm, guest):
    """l: cmp byte [0x40000], 0; je l; hlt. The other says so: mov byte [0x40000], 1; hlt."""
    waits, tells = (guest("80 3d 00 00 04 00 00 74 f7 f4", bits=32) for _ in range(2))
    vm.ram.write(CODE + 0x100, bytes.fromhex("c6 05 00 00 04 00 01 f4"))
    tells.set_registers(replace(tells.registers(), rip=CODE + 0x100))
    for vcpu in (waits, tells):
        vcpu.set_budget(Budget())
    ends = [in_thread(waits.run), in_thread(tells.run)]
    try:
        assert ends[1]() == Halt()
    finally:
        vm.ram.write(0x40000, b"\1")
    assert ends[0]() == Halt()


def test_code_written_while_it_runs_is_seen(vm, guest):
    """l: inc word [0x2000]; jmp l, which becomes a HLT."""
    vcpu = guest("ff 06 00 20 eb fa")
    vcpu.set_budget(Budget())
    end = in_thread(vcpu.run)
    wait_for(lambda: vm.ram.read(0x2000, 2) != b"\0\0")
    vm.ram.write(0x1000, b"\xf4")
    assert end(vcpu.kick) == Halt()


@pytest.mark.parametrize("how", ["restore", "set_system", "start"])
def test_a_vcpu_that_is_put_elsewhere_reads_its_code_anew(vm, guest, how):
    """mov al, 1; out 0x10, al; hlt, of which another takes the place through the RAM's view."""
    vcpu = guest("b0 01 e6 10 f4", bits=32)
    state = vcpu.save()
    assert vcpu.run() == IoOut(0x10, 1, b"\1")
    vm.ram.view[CODE + 1] = 2  # which nobody hears of
    match how:
        case "restore":
            vcpu.restore(state)
        case "set_system":
            vcpu.set_system(state.system)
            vcpu.set_registers(state.registers)
        case "start":
            vcpu.start_protected_mode(CODE)
    assert vcpu.run() == IoOut(0x10, 1, b"\2")


@pytest.mark.parametrize("what", ["writes code", "kicks"])
def test_a_handler_inside_can_do_so_in_a_thread_that_is_new_to_the_vcpu(vm, guest, what):
    """xor ecx, ecx; l: out 0x10, al; inc ecx; cmp ecx, 5; jne l; nop; out 0x70, al; a jump
    to the next; out 0x11, al; hlt.

    By its fifth exit the vCPU goes the short way, on which it must know its thread too.
    """

    def handler(*_):
        if what == "kicks":
            vcpu.kick()
        else:
            vm.ram.write(CODE + 15, b"\xf4")  # in place of the last OUT

    vm.handle_ports(0x70, 1, handler, handler)
    vcpu = guest("31 c9 e6 10 41 83 f9 05 75 f8 90 e6 70 eb 00 e6 11 f4", bits=32)
    vcpu.set_budget(Budget())
    assert ports(take(vcpu, 5)) == [0x10] * 5
    end = in_thread(vcpu.run)
    assert end() == (Kicked() if what == "kicks" else Halt())


# --- an orderly end -------------------------------------------------------------------------------


def test_closed_is_closed():
    vm = open_vm("unicorn", "64K")
    vcpu = vm.vcpu()
    state = vcpu.save()
    vm.close()
    vm.close()
    calls = [
        vcpu.run,
        vcpu.step,
        vcpu.registers,
        vcpu.system,
        vcpu.save,
        vcpu.refuse,
        lambda: vcpu.restore(state),
        lambda: vcpu.complete(b""),
        lambda: vcpu.inject(32),
        lambda: vcpu.breakpoints([]),
        lambda: vcpu.intercept("msr"),
        lambda: vcpu.set_budget(Budget()),
        lambda: vcpu.set_registers(Registers()),
        lambda: vcpu.set_system(SystemRegisters()),
        lambda: vcpu.start_real_mode(0),
        vm.vcpu,
        vm.create_irqchip,
        lambda: vm.set_irq(1, True),
        lambda: vm.doorbell(0x10, 1),
        lambda: vm.handle_ports(0x10, 1, int, int),
        lambda: vm.handle_memory(0x10000, 0x1000, int, int),
        lambda: vm.ram.read(0, 1),
        vcpu.kick,
    ]
    for call in calls:
        with pytest.raises(BadInput, match="closed"):
            call()


def test_a_closed_vcpu_hears_of_ram_no_more(vm):
    """Its translations are gone, and so is whoever would drop them."""
    before = list(vm.ram.watchers)
    vcpu = vm.vcpu()
    assert len(vm.ram.watchers) == len(before) + 1
    vcpu.close()
    assert vm.ram.watchers == before


@pytest.mark.parametrize(
    ("gpa", "size", "says"),
    [
        (DEVICE + 1, 0x1000, "whole pages of 4096 bytes"),
        (DEVICE, 0x800, "whole pages of 4096 bytes"),
        (DEVICE, 0, "size: is 0; it must be from 1"),
        (0xFF000, 0x2000, "0xff000 lies in RAM, which ends at 0x100000"),
        (DEVICE + 0x1000, 0x1000, r"0x201000\+0x1000 overlaps the region at 0x200000\+0x2000"),
    ],
)
def test_a_region_that_cannot_be_says_why(vm, gpa, size, says):
    vm.handle_memory(DEVICE, 0x2000, lambda *_: 0, lambda *_: None)
    with pytest.raises(BadInput, match=says):
        vm.handle_memory(gpa, size, lambda *_: 0, lambda *_: None)


def test_ports_and_doorbells_that_cannot_be_say_why(vm):
    vm.doorbell(0x50, 1)
    vm.handle_ports(0x60, 2, lambda *_: 0, lambda *_: None)
    for call, says in (
        (lambda: vm.doorbell(0x50, 2), "0x50 has a handler or a doorbell already"),
        (lambda: vm.doorbell(0x61, 1), "0x61 has a handler or a doorbell already"),
        (lambda: vm.handle_ports(0x4F, 2, int, int), "0x50 has a handler or a doorbell already"),
        (lambda: vm.handle_ports(0xFFFF, 2, int, int), r"0xffff\+2 is not within"),
        (vm.create_irqchip, "give it a model of one"),
        (lambda: vm.set_irq(1, True), "call create_irqchip"),
    ):
        with pytest.raises(BadInput, match=says):
            call()
    vm.create_irqchip(PicPair())
    with pytest.raises(BadInput, match="there already"):
        vm.create_irqchip(PicPair())
    vm.vcpu()
    with pytest.raises(BadInput, match="before the first vCPU"):
        vm.create_irqchip(PicPair())
