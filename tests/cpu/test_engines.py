"""Both engines, asked the same things: exits, budgets, kicks, and guests that behave badly."""

import os
import random
import resource
import threading
import time
from dataclasses import replace

import pytest
from kvm_guests import boot

from vmlib.cpu import (
    ENGINES,
    Budget,
    BudgetSpent,
    Debug,
    Halt,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    MsrRead,
    MsrWrite,
    Registers,
    Segment,
    Shutdown,
    Table,
    open_vm,
    probe,
)
from vmlib.cpu.budget import Watchdog
from vmlib.devices import PicPair
from vmlib.errors import BadInput, HostUnavailable, Unsupported

BOTH = [
    pytest.param("unicorn", marks=pytest.mark.needs("unicorn")),
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
]
LOOP = "eb fe"  # jmp to itself
OUTS = "e6 10 eb fc"  # out 0x10, al, for ever


@pytest.fixture(params=BOTH)
def start(request):
    """Start the bytes written in hex on an engine; everything is closed in the end."""
    opened = []

    def start(code, ram="64K", budget="2s", at=0x1000):
        vm = open_vm(request.param, ram)
        opened.append(vm)
        vm.ram.write(at, bytes.fromhex(code))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(at)
        vcpu.set_budget(Budget.parse(budget))
        vcpu.vm = vm if hasattr(vcpu, "__dict__") else None
        return vcpu

    start.engine = request.param
    yield start
    for vm in opened:
        vm.close()


def test_out_stops_at_once(start):
    """out; inc bx three times; hlt: at the exit BX is still 0."""
    vcpu = start("e6 10 43 43 43 f4")
    assert vcpu.run() == IoOut(0x10, 1, b"\0")
    assert vcpu.registers().rbx == 0
    assert vcpu.registers().rip == 0x1002
    assert vcpu.run() == Halt()
    assert vcpu.registers().rbx == 3


@pytest.mark.parametrize("budget", [None, "20s"])
def test_every_out_is_counted(start, budget):
    """Also on the short way, which a guest without a budget takes."""
    vcpu = start(OUTS, budget=budget)
    for count in range(1, 7):
        assert vcpu.run() == IoOut(0x10, 1, b"\0")
        assert vcpu.exits == {"IO": count}


def test_wide_out(start):
    """mov eax, 0x12345678; mov dx, 0x510; out dx, eax; out dx, ax; hlt."""
    vcpu = start("66 b8 78 56 34 12 ba 10 05 66 ef ef f4")
    assert vcpu.run() == IoOut(0x510, 4, bytes.fromhex("78563412"))
    assert vcpu.run() == IoOut(0x510, 2, bytes.fromhex("7856"))
    assert vcpu.run() == Halt()


def test_in_finishes_on_reentry(start):
    """mov ax, 0x1122; in al, 0x60; out 0x61, al; hlt: AH stays."""
    vcpu = start("b8 22 11 e4 60 e6 61 f4")
    assert vcpu.run() == IoIn(0x60, 1)
    vcpu.complete(b"\x5a")
    assert vcpu.run() == IoOut(0x61, 1, b"\x5a")
    assert vcpu.registers().rax == 0x115A
    assert vcpu.run() == Halt()


def test_registers_show_an_answered_in(start):
    vcpu = start("e4 60 f4")
    vcpu.run()
    vcpu.complete(b"\x42")
    assert vcpu.registers().rax & 0xFF == 0x42
    assert vcpu.run() == Halt()
    assert vcpu.registers().rax & 0xFF == 0x42


def test_in_that_nobody_answers_reads_ones(start):
    vcpu = start("e5 60 e7 61 f4")
    assert vcpu.run() == IoIn(0x60, 2)
    assert vcpu.run() == IoOut(0x61, 2, b"\xff\xff")


def test_string_input(start):
    """mov di, 0x2000; mov dx, 0x60; insb; out 0x61, al; hlt."""
    vcpu = start("bf 00 20 ba 60 00 6c e6 61 f4")
    assert vcpu.run() == IoIn(0x60, 1)
    vcpu.complete(b"Q")
    assert isinstance(vcpu.run(), IoOut)
    assert vcpu.vm.ram.read(0x2000, 2) == b"Q\0"
    assert vcpu.registers().rdi == 0x2001


def test_complete_is_checked(start):
    vcpu = start("e5 60 f4")
    with pytest.raises(BadInput, match="no exit is waiting"):
        vcpu.complete(b"\0")
    vcpu.run()
    with pytest.raises(BadInput, match=r"reads 2 byte\(s\), not 1"):
        vcpu.complete(b"\0")


def test_a_time_budget_ends_a_loop(start):
    vcpu = start(LOOP, budget="100ms")
    began = time.monotonic()
    assert vcpu.run() == BudgetSpent("0.1 s")
    assert time.monotonic() - began < 5
    assert vcpu.run() == BudgetSpent("0.1 s"), "spent is spent"
    vcpu.set_budget(Budget(seconds=0.05))
    assert isinstance(vcpu.run(), BudgetSpent)


def test_a_budget_counts_only_time_inside(start):
    vcpu = start("e6 10 f4", budget="200ms")
    vcpu.run()
    time.sleep(0.4)
    assert vcpu.run() == Halt()


def test_nothing_runs_on_a_spent_budget(start):
    vcpu = start("43 eb fd", budget="20ms")  # inc bx, for ever
    assert isinstance(vcpu.run(), BudgetSpent)
    before = vcpu.registers()
    assert isinstance(vcpu.run(), BudgetSpent)
    assert vcpu.registers() == before


def test_a_watchdog_takes_off_what_a_run_has_lasted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("vmlib.cpu.budget.time.monotonic", lambda: now[0])
    watchdog = Watchdog(3600, lambda: None)
    for lasted, left in ((1500, 2100), (2000, 100), (0, 100), (200, 0)):
        with watchdog:
            now[0] += lasted
        assert watchdog.remaining == left
    watchdog.close()


def test_a_watchdog_kicks_until_somebody_hears_it():
    kicks, third = [], threading.Event()

    def kick():
        kicks.append(1)
        if len(kicks) == 3:
            third.set()

    watchdog = Watchdog(0.001, kick)
    with watchdog:
        assert third.wait(60)
    watchdog.close()
    assert watchdog.expired


def test_a_new_budget_leaves_no_watchdog_behind(start):
    """The thread that watches an hour ends with that budget, or with the vCPU."""
    vcpu = start(OUTS, budget="3600s")
    others = set(threading.enumerate())
    for end in (lambda: vcpu.set_budget(Budget(seconds=3600)), vcpu.close):
        assert isinstance(vcpu.run(), IoOut)
        assert set(threading.enumerate()) > others
        end()
        assert set(threading.enumerate()) == others


def test_an_instruction_budget(start):
    if start.engine == "kvm":
        with pytest.raises(Unsupported, match="counts no instructions"):
            start("90 f4", budget="10i")
        return
    vcpu = start("43 43 43 43 43 f4", budget="3i")  # inc bx, five times
    assert vcpu.run() == BudgetSpent("3 instructions")
    assert vcpu.registers().rbx == 3
    vcpu.set_budget(Budget(instructions=3))
    assert vcpu.run() == Halt()


def test_instruction_budget_goes_on_over_exits():
    with open_vm("unicorn") as vm:
        vm.ram.write(0, bytes.fromhex("e6 10 eb fc"))  # out; jmp back
        vcpu = vm.vcpu()
        vcpu.set_budget(Budget(instructions=9))
        exits = []
        while not exits or not isinstance(exits[-1], BudgetSpent):
            exits.append(vcpu.run())
        assert len(exits) == 6, "nine instructions are five OUTs and four jumps"


def test_kick_from_another_thread(start):
    vcpu = start(LOOP, budget=None)
    threading.Timer(0.05, vcpu.kick).start()
    assert vcpu.run() == Kicked()


@pytest.mark.parametrize("code", [LOOP, OUTS], ids=["inside", "between"])
def test_no_kick_is_lost(start, code):
    """A kick at any moment, however the guest goes in and out, ends one run as Kicked."""
    rng = random.Random(5)
    vcpu = start(code, budget=None)
    guard = threading.Timer(60, os._exit, (99,))
    guard.start()
    for _ in range(300):
        spin = rng.randrange(400)

        def kick(spin=spin):
            for _ in range(spin):
                pass
            vcpu.kick()

        thread = threading.Thread(target=kick)
        thread.start()
        while vcpu.run() != Kicked():
            pass
        thread.join()
    guard.cancel()
    assert vcpu.exits["INTR"] == 300


def test_kick_before_run_is_not_lost(start):
    vcpu = start(LOOP)
    vcpu.kick()
    assert vcpu.run() == Kicked()


def test_a_write_outside_ram(start):
    """mov ax, 0xf000; mov ds, ax; mov [0], al; hlt, with 64 KiB of RAM: GPA 0xf0000."""
    vcpu = start("b8 00 f0 8e d8 a2 00 00 f4")
    assert vcpu.run() == Mmio(0xF0000, 1, b"\0")


def test_a_read_outside_ram(start):
    vcpu = start("b8 00 f0 8e d8 a0 34 12 f4")
    assert vcpu.run() == Mmio(0xF1234, 1, None)


def test_mmio_is_finished_on_reentry(start):
    vcpu = start("b8 00 f0 8e d8 a0 34 12 e6 10 f4")
    vcpu.run()
    vcpu.complete(b"\x77")
    assert vcpu.run() == IoOut(0x10, 1, b"\x77")


@pytest.mark.parametrize("fault", ["0f 0b", "31 d2 f7 f2"], ids=["ud2", "div"])
def test_triple_fault(start, fault):
    """lidt with limit 0, protected mode, a fault: neither it nor the double fault has a gate."""
    last = start("0f 01 1e 00 20  0f 20 c0 0c 01 0f 22 c0 " + fault).run()
    assert isinstance(last, Shutdown), last
    assert "triple fault" in last.why
    assert "limit 0x0" in last.why


@pytest.mark.needs("unicorn")
def test_faults_and_int_go_through_the_vector_table():
    """Three divisions by zero, each skipped by the handler, and an INT 0x21."""
    code = bytes.fromhex(
        "c7 06 00 00 00 11"  # mov word [0], 0x1100: #DE
        "c7 06 84 00 10 11"  # mov word [0x84], 0x1110: INT 0x21
        "31 d2 f7 f2 f7 f2 f7 f2 cd 21 f4"
    )
    with open_vm() as vm:
        vm.ram.write(0x1000, code)
        vm.ram.write(0x1100, bytes.fromhex("41 89 e5 83 46 00 02 cf"))  # inc cx; skip; iret
        vm.ram.write(0x1110, bytes.fromhex("83 c1 10 cf"))  # add cx, 16; iret
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        vcpu.set_budget(Budget(seconds=2))
        assert vcpu.run() == Halt()
        assert vcpu.registers().rcx == 0x13
        assert vcpu.registers().rsp == 0x0F00


def test_looking_behind_an_exit_leaves_no_trace_in_dr6(start):
    vcpu = start("e6 10 e4 11 f4")
    before = vcpu.save().debug
    for _ in range(2):
        vcpu.run()
        vcpu.registers()
    assert vcpu.save().debug == before


def test_a_breakpoint_at_an_access_comes_once_and_before_it(start):
    """nop; out 0x10, al; in al, 0x11; hlt. Looking or not, the access is not begun twice."""
    for looks in (False, True):
        vcpu = start("90 e6 10 e4 11 f4")
        vcpu.breakpoints([0x1001, 0x1003, 0x1003, 0x1001, 0x1001])  # two, said more than once
        exits = []
        while not exits or exits[-1] != Halt():
            exits.append(vcpu.run())
            assert len(exits) < 9
            if looks:
                vcpu.registers()
        assert exits == [Debug(0x1001), IoOut(0x10, 1, b"\0"), Debug(0x1003), IoIn(0x11, 1), Halt()]
        vcpu.breakpoints([])
        vcpu.set_registers(replace(vcpu.registers(), rip=0x1000))
        assert isinstance(vcpu.run(), IoOut)


def test_a_vcpu_that_is_put_on_another_breakpoint_stops_there(start):
    """Only the one it stands at has been told."""
    vcpu = start("90 90 90 f4")
    vcpu.breakpoints([0x1001, 0x1002])
    assert vcpu.run() == Debug(0x1001)
    vcpu.set_registers(replace(vcpu.registers(), rip=0x1002))
    assert vcpu.run() == Debug(0x1002)
    assert vcpu.run() == Halt()


@pytest.mark.parametrize("limited", [False, True])
def test_a_breakpoint_in_code_that_has_run_already(start, limited):
    """l: out 0x10, al; nop; jmp l, also where instructions are counted, if they can be."""
    limit = "1e9i" if start.engine == "unicorn" else "20s"
    vcpu = start("e6 10 90 eb fb", budget=limit if limited else None)
    for _ in range(4):
        assert isinstance(vcpu.run(), IoOut)
    vcpu.breakpoints([0x1002])
    assert vcpu.run() == Debug(0x1002)
    assert isinstance(vcpu.run(), IoOut)
    vcpu.breakpoints([])
    assert isinstance(vcpu.run(), IoOut)


def test_single_steps(start):
    vcpu = start("40 e6 10 40 f4")
    assert vcpu.step() is None
    assert vcpu.registers().rax == 1
    assert vcpu.step() == IoOut(0x10, 1, b"\1")
    assert vcpu.step() is None
    assert vcpu.registers().rax == 2
    assert vcpu.step() == Halt()


def test_a_closed_vcpu_says_so(start):
    vcpu = start("f4")
    vcpu.close()
    vcpu.close()
    for ask in (vcpu.run, vcpu.step, vcpu.registers):
        with pytest.raises(BadInput, match="closed"):
            ask()


def in_use():
    """Open descriptors, threads, and resident bytes of this process."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    return fds, threads, pages * resource.getpagesize()


def test_a_thousand_vms_leave_nothing_behind(start):
    """mov [0x10000000], al; out 0x50, al; out 0x10, al; hlt, with a doorbell at 0x50."""

    def one():
        with open_vm(start.engine, "1M") as vm:
            bell = vm.doorbell(0x50, 1)
            vcpu = boot(vm, "a2 00 00 00 10 e6 50 e6 10 f4", bits=32)
            assert [type(vcpu.run()) for _ in range(3)] == [Mmio, IoOut, Halt]
            assert bell.take() == 1

    for _ in range(100):
        one()
    fds, threads, size = in_use()
    for _ in range(900):
        one()
    more_fds, more_threads, more_size = in_use()
    assert (more_fds, more_threads) == (fds, threads)
    assert more_size - size < 8 << 20


# --- what the guest is refused, and what its caller is --------------------------------------------


def test_a_refusal_that_cannot_be_delivered_is_a_shutdown(start):
    """mov ecx, 0x1234; rdmsr in protected mode, without an IDT."""
    vcpu = start("b9 34 12 00 00 0f 32 f4")
    vcpu.start_protected_mode(0x1000)
    vcpu.intercept("msr")
    assert vcpu.run() == MsrRead(0x1234)
    vcpu.refuse()
    last = vcpu.run()
    assert isinstance(last, Shutdown), last


SCE = "b9 80 00 00 c0 0f 32 83 c8 01 0f 30 31 c0 0f 32 e6 10 f4"
"""mov ecx, EFER; rdmsr; or eax, 1; wrmsr; xor eax, eax; rdmsr; out 0x10, al; hlt"""


def test_whoever_only_looks_on_at_msrs_changes_nothing(start):
    vcpu = start(SCE)
    vcpu.start_protected_mode(0x1000)
    vcpu.intercept("msr")
    efer = 0xC0000080
    seen = [vcpu.run() for _ in range(4)]
    assert seen == [MsrRead(efer), MsrWrite(efer, 1), MsrRead(efer), IoOut(0x10, 1, b"\1")]
    assert vcpu.system().efer == 1


def test_looking_at_a_write_of_an_msr_finds_it_done(start):
    vcpu = start(SCE)
    vcpu.start_protected_mode(0x1000)
    vcpu.intercept("msr")
    assert [vcpu.run(), vcpu.run()] == [MsrRead(0xC0000080), MsrWrite(0xC0000080, 1)]
    assert vcpu.system().efer == 1
    vcpu.set_system(replace(vcpu.system(), efer=0))
    assert vcpu.run() == MsrRead(0xC0000080)
    assert vcpu.run() == IoOut(0x10, 1, b"\0"), "and it is not done a second time"


def test_a_write_of_an_msr_that_nobody_refused_can_still_fault(start):
    """mov ecx, LSTAR; xor eax, eax; mov edx, 0x10000; wrmsr: not canonical, and without an IDT."""
    vcpu = start("b9 82 00 00 c0 31 c0 ba 00 00 01 00 0f 30 f4")
    vcpu.start_protected_mode(0x1000)
    vcpu.intercept("msr")
    assert vcpu.run() == MsrWrite(0xC0000082, 1 << 48)
    assert isinstance(vcpu.run(), Shutdown)


def test_a_halt_that_nobody_inside_can_end_is_told_once_more(start):
    """Saved where a controller could have woken it, restored where there is none."""
    vcpu = start("f4 43 f4")  # hlt; inc bx; hlt
    vcpu.run()
    state = replace(vcpu.save(), halted=True)
    vcpu.restore(state)
    assert vcpu.save() == state
    assert vcpu.run() == Halt()
    assert vcpu.registers().rbx == 0
    assert vcpu.run() == Halt()
    assert vcpu.registers().rbx == 1


TELL = "e6 20 cf"  # out 0x20, al; iret
both_ways = pytest.mark.parametrize(
    "way",
    [
        pytest.param((one, other), marks=pytest.mark.needs(one, other), id=f"{one}-{other}")
        for one in ENGINES
        for other in ENGINES
    ],
)


@both_ways
def test_an_interrupt_that_waits_moves_with_the_vcpu(way):
    """nop; l: sti; nop; jmp l"""
    code = "90 fb 90 eb fd"
    with open_vm(way[0], "64K") as here, open_vm(way[1], "64K") as there:
        first, second = (boot(vm, code, gates={0x33: TELL}) for vm in (here, there))
        first.inject(0x33)
        state = first.save()
        assert state.interrupt == 0x33
        second.restore(state)
        assert second.save() == state or way[0] != way[1]
        for vcpu in (first, second):
            assert [vcpu.run(), vcpu.run()] == [InterruptWindow(), IoOut(0x20, 1, b"\0")]
            assert vcpu.save().interrupt is None


def test_a_start_forgets_an_interrupt_that_waits(start):
    vcpu = start("e6 10 fb 90 90 fa f4")  # out 0x10, al; sti; nop; nop; cli; hlt
    vcpu.inject(0x33)
    vcpu.start_real_mode(0x1000)
    assert vcpu.save().interrupt is None
    assert [vcpu.run(), vcpu.run()] == [IoOut(0x10, 1, b"\0"), Halt()]


@both_ways
def test_debug_registers_move_with_the_vcpu(way):
    """mov eax, dr0; out 0x10, eax; mov eax, dr6; out 0x10, eax"""
    code, debug = "0f 21 c0 e7 10 0f 21 f0 e7 10", (0x12345678, 2, 3, 4, 0xFFFF0FF1, 0x400)
    with open_vm(way[0], "1M") as here, open_vm(way[1], "1M") as there:
        first, second = (boot(vm, code, bits=32) for vm in (here, there))
        first.restore(replace(first.save(), debug=debug))
        second.restore(first.save())
        assert second.save().debug == debug
        seen = [vcpu.run().data for vcpu in (first, first, second, second)]
    assert seen == [(debug[i]).to_bytes(4, "little") for i in (0, 4, 0, 4)]


# The PICs' ICW1-4, vectors from 0x20 and 0x28; then only line 0 is let through.
PICS = "".join(f"b0 {v} e6 {p} " for v, p in (("11", "20"), ("20", "21"), ("04", "21")))
PICS += "b0 01 e6 21 b0 fe e6 21"


def with_irqchip(engine, code):
    """A VM with an interrupt controller inside, whose handler says 0x22 and ends the interrupt."""
    vm = open_vm(engine, "64K")
    if engine == "kvm":
        vm.create_irqchip()
    else:
        pic = PicPair()
        vm.create_irqchip(pic)
        vm.handle_ports(0x20, 2, pic.read, pic.write)
    return vm, boot(vm, PICS + code, gates={0x20: "e6 22 b0 20 e6 20 cf"})


def sleeps(vcpu):
    """Run until the vCPU is halted, as it says itself."""
    for _ in range(500):
        vcpu.set_budget(Budget(seconds=0.02))
        assert isinstance(vcpu.run(), BudgetSpent)
        if vcpu.save().halted:
            return True
    return False


def test_a_sleeping_vcpu_is_saved_and_restored_asleep(start):
    """sti; hlt; out 0x12, al; cli; hlt, with a controller that could wake it."""
    vm, vcpu = with_irqchip(start.engine, "fb f4 e6 12 fa f4")
    with vm:
        assert sleeps(vcpu)
        state = vcpu.save()
        vcpu.restore(replace(state, halted=False))
        vcpu.set_budget(Budget(seconds=60))
        assert vcpu.run() == IoOut(0x12, 1, b"\xfe"), "awake it goes on behind its HLT"
        vcpu.restore(state)
        assert vcpu.save().halted
        assert sleeps(vcpu)
        assert vcpu.save().registers == state.registers
        vcpu.set_budget(Budget(seconds=60))
        vm.set_irq(0, True)
        assert vcpu.run() == IoOut(0x22, 1, b"\xfe")
        assert not vcpu.save().halted
        assert vcpu.run() == IoOut(0x12, 1, b"\x20")


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"rax": -1}, "rax: has 64 bits"),
        ({"r15": 1 << 64}, "r15: has 64 bits"),
        ({"rip": 1.5}, "rip: has 64 bits"),
    ],
)
def test_registers_that_do_not_fit(start, changed, rule):
    vcpu = start("f4")
    with pytest.raises(BadInput, match=rule):
        vcpu.set_registers(Registers(**changed))
    assert vcpu.registers().rip == 0x1000


@pytest.mark.parametrize("name", ["", "E", "QQ", "RZX", "al"])
def test_registers_that_do_not_exist(name):
    with pytest.raises(BadInput, match="is none: AX, EAX and RAX are"):
        Registers().show(name)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"fs": Segment(selector=1 << 16)}, r"fs.selector: has 16 bits"),
        ({"cs": Segment(limit=1 << 32)}, r"cs.limit: has 32 bits"),
        ({"ss": Segment(base=-1)}, r"ss.base: has 64 bits"),
        ({"idt": Table(0, 1 << 16)}, r"idt.limit: has 16 bits"),
        ({"cr3": 1 << 64}, "cr3: has 64 bits"),
        ({"cr8": 16}, "cr8: has 4 bits"),
    ],
)
def test_system_registers_that_do_not_fit(start, changed, rule):
    vcpu = start("f4")
    with pytest.raises(BadInput, match=rule):
        vcpu.set_system(replace(vcpu.system(), **changed))
    with pytest.raises(BadInput, match=rule):
        vcpu.restore(replace(vcpu.save(), system=replace(vcpu.system(), **changed)))
    assert vcpu.run() == Halt()


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"xsave": b""}, "xsave: has 4096 bytes, not 0"),
        ({"debug": (1, 2)}, "DR6 and DR7, not 2 values"),
        ({"debug": (1 << 64, 0, 0, 0, 0, 0)}, "dr0: has 64 bits"),
        ({"msrs": ((0x174, -1),)}, "MSR 0x174: has 64 bits"),
        ({"msrs": ((1 << 32, 0),)}, "msrs: has 32 bits"),
        ({"interrupt": 256}, "from 0 to 255"),
        ({"shadow": -1}, "shadow: is -1; it must be True or False"),
        ({"halted": 1.5}, "halted: is 1.5; it must be True or False"),
    ],
)
def test_states_that_do_not_fit(start, changed, rule):
    vcpu = start("f4")
    with pytest.raises(BadInput, match=rule):
        vcpu.restore(replace(vcpu.save(), **changed))
    assert vcpu.run() == Halt()


def test_starts_that_do_not_fit(start):
    vcpu = start("f4")
    for call, rule in (
        (lambda: vcpu.start_long_mode(-1, 0, 0x1000), "rip: is -1; it must be from 0"),
        (lambda: vcpu.start_long_mode(0, 0, 1 << 64), "cr3: is 18446744073709551616;"),
        (lambda: vcpu.start_long_mode(0, 0, 0x1001), "address of a page"),
        (lambda: vcpu.start_protected_mode(1 << 32), "eip: is 4294967296; it must be from 0"),
        (lambda: vcpu.breakpoints([1 << 64]), "breakpoints: has 64 bits"),
        (lambda: vcpu.breakpoints(range(5)), "four address registers, not 5"),
    ):
        with pytest.raises(BadInput, match=rule):
            call()


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"address": 0x10, "size": 3}, "width"),
        ({"address": 0x10, "size": 8}, "width"),
        ({"address": 0x10000, "size": 1}, "outside"),
        ({"address": 0xFFFF, "size": 2}, "outside"),
        ({"address": -1, "size": 1}, "outside"),
        ({"address": 1 << 52, "size": 4, "mmio": True}, "outside"),
        ({"address": 0x1000, "size": 4, "mmio": True}, "lies in RAM"),
        ({"address": 0x10, "size": 1, "match": 256}, "does not fit"),
    ],
)
def test_doorbells_that_nothing_can_ring(start, wrong, rule):
    with open_vm(start.engine) as vm, pytest.raises(BadInput, match=rule):
        vm.doorbell(**wrong)


def test_a_doorbell_ends_with_its_vm(start):
    """Its descriptor's number is somebody else's by then."""
    with open_vm(start.engine) as vm:
        bell = vm.doorbell(0x10, 1)
        number = bell.fileno()
    other = os.eventfd(5)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    try:
        with pytest.raises(BadInput, match="closed"):
            bell.take()
        with pytest.raises(BadInput, match="closed"):
            bell.fileno()
        assert os.eventfd_read(number) == 5
    finally:
        os.close(number)


def test_real_mode_offsets_are_16_bits(start):
    with pytest.raises(BadInput, match="ip: is 65536; it must be from 0 to 65535"):
        start("f4").start_real_mode(0x10000)


def test_unknown_engine():
    with pytest.raises(BadInput, match="engine: 'bochs' is unknown"):
        open_vm("bochs")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(), "does not exist"),
        (PermissionError(), "may not be opened"),
        (OSError(19, "No such device"), "No such device"),
    ],
)
def test_no_dev_kvm_is_explained(monkeypatch, error, says):
    def refuse(*_):
        raise error

    monkeypatch.setattr("vmlib.cpu.kvm.vm.os.open", refuse)
    with pytest.raises(HostUnavailable, match=says) as caught:
        open_vm("kvm")
    assert "engine='unicorn'" in caught.value.fix
    assert not probe("kvm").usable


def test_a_byte_is_shown_as_a_reader_sees_it():
    shown = [IoOut(0x3F8, 1, bytes([byte])).detail for byte in b"4\n\x7f"]
    assert shown == [f"OUT 0x3f8 ← {what}" for what in ("0x34 '4'", "0x0a '⏎'", "0x7f")]
    assert Mmio(0xB8000, 2, b"4\n").detail == "write GPA 0xb8000 ← 0x0a34"


@pytest.mark.parametrize("text", ["", "2", "2h", "-1s", "0s", "0i", "1e400s", "nan"])
def test_bad_budgets(text):
    with pytest.raises(BadInput, match="budget"):
        Budget.parse(text)


def test_budgets():
    assert Budget.parse("500ms") == Budget(seconds=0.5)
    assert Budget.parse("1e6i") == Budget(instructions=1_000_000)
    assert str(Budget()) == "no limit"
