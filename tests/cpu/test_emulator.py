"""What only the emulator does, and each thing that it mends about Unicorn.

Code is hexadecimal with its assembler beside it. `guest` boots it, see `kvm_guests.boot`: 16-bit
code at 0x1000, else with a GDT, a TSS and gates at 0x10000.
"""

import itertools
import os
import random
import resource
import struct
import threading
import time
from dataclasses import replace

import pytest
from kvm_guests import (
    CODE,
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    HANDLERS,
    IF,
    IOPL3,
    STACK,
    TABLES,
    TSS,
    boot,
    identity_map,
)

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Cpuid,
    Cr3Write,
    Debug,
    Halt,
    Hypercall,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    MsrRead,
    MsrWrite,
    Registers,
    Segment,
    SystemRegisters,
    open_vm,
)
from vmlib.devices import PicPair
from vmlib.errors import BadInput

pytestmark = pytest.mark.needs("unicorn")
DEVICE = 0x200000
"""Above the RAM of these guests."""


@pytest.fixture
def vm():
    with open_vm("unicorn", "1M") as vm:
        yield vm


@pytest.fixture
def guest(vm):
    return lambda code, **options: boot(vm, code, **options)


def take(vcpu, count):
    return [vcpu.run() for _ in range(count)]


def ports(exits):
    """The ports of OUTs, and other exits as they are."""
    return [one.port if isinstance(one, IoOut) else one for one in exits]


def in_thread(work):
    """Start `work` in a thread; `result()` waits for it and returns or raises what it did."""
    box = []

    def call():
        try:
            box.append((work(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=call, daemon=True)  # a red test still ends
    thread.start()

    def result(after=lambda: None):
        thread.join(10)
        if thread.is_alive():
            after()
            thread.join(10)
            raise AssertionError("it did not come back by itself")
        value, error = box[0]
        if error is not None:
            raise error
        return value

    return result


def wait_for(condition):
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never happened")


# --- an OUT stops at once -------------------------------------------------------------------------


def test_nothing_behind_an_out_is_done_at_its_exit(vm, guest):
    """l: out 0x10, al; inc word [0x2000]; jmp l. The first time is undone, later ones stop."""
    vcpu = guest("e6 10 ff 06 00 20 eb f8")
    for count in range(5):
        assert vcpu.run() == IoOut(0x10, 1, b"\0")
        assert vm.ram.read(0x2000, 2) == bytes((count, 0))


def test_nothing_behind_a_string_output_is_done_at_its_exits(vm, guest):
    """l: mov si, 0x2000; mov cx, 3; mov dx, 0x10; rep outsb; inc word [0x3000]; jmp l."""
    vcpu = guest("be 00 20 b9 03 00 ba 10 00 f3 6e ff 06 00 30 e9 ee ff")
    vm.ram.write(0x2000, b"abc")
    for count in range(3):
        for char in b"abc":
            assert vcpu.run() == IoOut(0x10, 1, bytes((char,)))
            assert vm.ram.read(0x3000, 1)[0] == count


def test_registers_in_the_midst_of_a_string_output(vm, guest):
    """The items so far are done: that is where a save would go on."""
    vcpu = guest("be 00 20 b9 03 00 ba 10 00 f3 6e f4")
    for left in (2, 1, 0):
        assert isinstance(vcpu.run(), IoOut)
        registers = vcpu.registers()
        assert (registers.rcx, registers.rsi) == (left, 0x2003 - left)
    assert vcpu.run() == Halt()


@pytest.mark.parametrize("access", ["e6 10", "e4 10", "a2 00 00 20 00", "a0 00 00 20 00"])
def test_flags_outlast_an_exit(guest, access):
    """xor ecx, ecx; the access; setz bl; inc ecx; hlt: BL has XOR's flag."""
    vcpu = guest(f"31 c9 {access} 0f 94 c3 41 f4", bits=32)
    vcpu.run()
    assert vcpu.run() == Halt()
    assert vcpu.registers().rbx == 1


# --- there is no address at which it stops --------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_address_0_is_an_address(vm, bits):
    """At 0: out 0x10, al; jmp 0."""
    identity_map(vm.ram)
    vm.ram.write(0, bytes.fromhex("e6 10 eb fc"))
    vcpu = vm.vcpu()
    starts = {16: (0,), 32: (0,), 64: (0, STACK, TABLES)}[bits]
    {16: vcpu.start_real_mode, 32: vcpu.start_protected_mode, 64: vcpu.start_long_mode}[bits](
        *starts
    )
    vcpu.set_budget(Budget(seconds=2))
    assert ports(take(vcpu, 4)) == [0x10] * 4


def test_a_jump_wraps_at_64_kib(vm):
    """At 0xfff0: jmp 0x10000, which is 0."""
    vm.ram.write(0, bytes.fromhex("e6 10 f4"))
    vm.ram.write(0xFFF0, bytes.fromhex("e9 0d 00"))
    vcpu = vm.vcpu()
    vcpu.start_real_mode(0xFFF0)
    vcpu.set_budget(Budget(seconds=2))
    assert ports(take(vcpu, 2)) == [0x10, Halt()]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "vector", "handler"),
    [  # three faulting instructions; the handler says 0x10 and skips one
        (16, "31 c9 f7 f1 f7 f1 f7 f1 f4", 0, "e6 10 89 e5 83 46 00 02 cf"),
        (32, "31 c9 f7 f1 f7 f1 f7 f1 f4", 0, "e6 10 83 04 24 02 cf"),
        (64, "8b 04 25 00 00 00 40" * 3 + "f4", 14, "e6 10 58 48 83 04 24 07 48 cf"),
    ],
)
def test_a_second_fault_is_no_double_fault(guest, bits, code, vector, handler):
    vcpu = guest(code, bits=bits, gates={vector: handler, 8: "e6 99 f4"})
    assert ports(take(vcpu, 4)) == [0x10, 0x10, 0x10, Halt()]


def test_a_fault_tells_error_code_and_address(vm, guest):
    """mov eax, [0x40000000] in ring 3, beyond the guest's page tables."""
    vcpu = guest("8b 04 25 00 00 00 40", bits=64, ring=3, gates={14: "e6 10"})
    assert ports([vcpu.run()]) == [0x10]
    assert vcpu.system().cr2 == 0x40000000
    assert struct.unpack("<6Q", vm.ram.read(STACK - 48, 48))[:3] == (4, CODE, CODE3)


def test_a_stack_that_is_not_where_it_is_in_ram(vm, guest):
    """int 0x80; hlt in ring 3. The TSS has a stack at a linear address of its own."""
    upper = 200 << 21
    gates = {0x80: "e6 10 48 cf", 13: "e6 66 f4"}
    vcpu = guest("cd 80 f4", bits=64, ring=3, gates=gates, flags=IF)
    vm.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0x83)
    vm.ram.write_u64(TSS + 4, upper + STACK)
    assert ports([vcpu.run()]) == [0x10]
    frame = struct.unpack("<5Q", vm.ram.read(STACK - 40, 40))
    assert frame == (CODE + 2, CODE3, IF | 2, STACK - 0x1000, DATA3)
    assert vcpu.registers().rsp == upper + STACK - 40
    assert (vcpu.system().cs.selector, vcpu.system().ss.selector) == (CODE0, 0)
    assert ports(take(vcpu, 2)) == [0x66, Halt()]  # IRET led back to ring 3, which may not HLT


def test_rings_of_protected_mode(vm, guest):
    """int 0x80; hlt in ring 3; mov eax, cs in the handler would be the kernel's."""
    vcpu = guest("cd 80 f4", bits=32, ring=3, gates={0x80: "8c c8 e6 10 cf", 13: "e6 66 f4"})
    assert vcpu.run() == IoOut(0x10, 1, bytes((CODE0,)))
    frame = struct.unpack("<5I", vm.ram.read(STACK - 20, 20))
    assert frame == (CODE + 2, CODE3, 2, STACK - 0x1000, DATA3)
    assert vcpu.system().ss.selector == DATA0
    assert ports(take(vcpu, 2)) == [0x66, Halt()]


# --- state in any mode ----------------------------------------------------------------------------

WIDTH = "31 c0 48 ff c8 f4"
"""xor eax, eax; then `dec ax` twice, `dec eax` twice, or `dec rax` once; hlt."""
MODES = {
    "real": (SystemRegisters.real_mode(), 0xFFFE),
    "protected": (SystemRegisters.protected_mode(), 0xFFFFFFFE),
    "long": (SystemRegisters.long_mode(TABLES), (1 << 64) - 1),
}


@pytest.mark.parametrize("order", list(itertools.permutations(MODES)), ids="-".join)
def test_a_vcpu_can_be_put_into_any_mode_from_any_other(vm, order):
    identity_map(vm.ram)
    vm.ram.write(0x1000, bytes.fromhex(WIDTH))
    vcpu = vm.vcpu()
    for mode in order + order:
        system, rax = MODES[mode]
        vcpu.set_system(system)
        vcpu.set_registers(Registers(rip=0x1000, rsp=0x1800))
        assert vcpu.system() == system
        assert vcpu.run() == Halt()
        assert vcpu.registers().rax == rax
        assert vcpu.system().mode == mode


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("real", "64 a0 10 00 e6 10"),
        ("protected", "64 a0 10 00 00 00 e6 10"),
        ("long", "64 8a 04 25 10 00 00 00 e6 10"),
    ],
)
def test_the_hidden_part_of_a_segment_counts(vm, mode, code):
    """mov al, [fs:0x10]; out 0x10, al: the base is not what the selector says."""
    identity_map(vm.ram)
    vm.ram.write(0x1000, bytes.fromhex(code))
    vm.ram.write(0x54330, b"H")
    vcpu = vm.vcpu()
    hidden = Segment(0x10, 0x54320, 0x7FFF, 0x93)
    vcpu.set_system(replace(MODES[mode][0], fs=hidden))
    vcpu.set_registers(Registers(rip=0x1000))
    assert vcpu.system().fs == hidden
    assert vcpu.run() == IoOut(0x10, 1, b"H")


# --- kicks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [Budget(), Budget(seconds=30), Budget(instructions=10**12)])
def test_a_kick_never_falls_into_an_instruction(vm, guest, budget):
    """l: inc dword [0x40000]; inc ecx; jmp l. Memory and ECX agree wherever it stands."""
    kicks = 100 if budget.instructions is None else 10
    vcpu = guest("ff 05 00 00 04 00 41 eb f7", bits=32)
    vcpu.set_budget(budget)
    rng = random.Random(1)
    back = threading.Semaphore(0)

    def kick():
        for _ in range(kicks):
            time.sleep(rng.random() * 0.002)
            vcpu.kick()
            back.acquire()

    done = in_thread(kick)
    behind = set()
    for _ in range(kicks):
        assert vcpu.run() == Kicked()
        registers = vcpu.registers()
        ahead = registers.rip == CODE + 6
        assert int.from_bytes(vm.ram.read(0x40000, 4), "little") == registers.rcx + ahead
        behind.add(registers.rcx)
        back.release()
    done()
    assert len(behind) > kicks // 2  # it did run in between


# --- devices in memory ----------------------------------------------------------------------------


def test_read_modify_write_is_two_exits(vm, guest):
    """inc dword [DEVICE]; hlt."""
    vcpu = guest("ff 05 00 00 20 00 f4", bits=32)
    assert vcpu.run() == Mmio(DEVICE, 4, None)
    vcpu.complete(struct.pack("<I", 41))
    assert vcpu.run() == Mmio(DEVICE, 4, struct.pack("<I", 42))
    assert vcpu.run() == Halt()


def test_the_same_address_again_is_asked_again(guest):
    """inc dword [DEVICE] twice; hlt: no answer is kept for the next instruction."""
    vcpu = guest("ff 05 00 00 20 00 ff 05 00 00 20 00 f4", bits=32)
    for value in (7, 100):
        assert vcpu.run() == Mmio(DEVICE, 4, None)
        vcpu.complete(struct.pack("<I", value))
        assert vcpu.run() == Mmio(DEVICE, 4, struct.pack("<I", value + 1))
    assert vcpu.run() == Halt()


def test_a_string_is_copied_from_a_device(vm, guest):
    """mov esi, DEVICE; mov edi, 0x4000; mov ecx, 3; rep movsb; hlt."""
    vcpu = guest("be 00 00 20 00 bf 00 40 00 00 b9 03 00 00 00 f3 a4 f4", bits=32)
    for at, char in enumerate(b"abc"):
        assert vcpu.run() == Mmio(DEVICE + at, 1, None)
        vcpu.complete(bytes((char,)))
    assert vcpu.run() == Halt()
    assert vm.ram.read(0x4000, 4) == b"abc\0"


def test_an_address_need_not_be_aligned(guest):
    """mov eax, [DEVICE + 1]; mov [DEVICE + 5], eax; hlt."""
    vcpu = guest("a1 01 00 20 00 a3 05 00 20 00 f4", bits=32)
    assert vcpu.run() == Mmio(DEVICE + 1, 4, None)
    vcpu.complete(b"abcd")
    assert vcpu.run() == Mmio(DEVICE + 5, 4, b"abcd")
    assert vcpu.run() == Halt()


def test_eight_bytes_at_once(guest):
    """mov rax, [DEVICE]; inc rax; mov [DEVICE + 8], rax; hlt."""
    vcpu = guest("48 8b 04 25 00 00 20 00 48 ff c0 48 89 04 25 08 00 20 00 f4", bits=64)
    assert vcpu.run() == Mmio(DEVICE, 8, None)
    vcpu.complete(struct.pack("<Q", 0x1122334455667788))
    assert vcpu.run() == Mmio(DEVICE + 8, 8, struct.pack("<Q", 0x1122334455667789))
    assert vcpu.run() == Halt()


def test_nothing_behind_a_store_to_a_device_is_done(vm, guest):
    """l: mov [DEVICE], al; inc dword [0x40000]; inc ebx; jmp l."""
    vcpu = guest("a2 00 00 20 00 ff 05 00 00 04 00 43 eb f2", bits=32)
    for count in range(3):
        assert vcpu.run() == Mmio(DEVICE, 1, b"\0")
        assert vm.ram.read(0x40000, 1)[0] == count
        assert vcpu.registers().rbx == count


def test_string_input(vm, guest):
    """mov di, 0x2000; mov dx, 0x60; mov cx, 3; rep insb; hlt."""
    vcpu = guest("bf 00 20 ba 60 00 b9 03 00 f3 6c f4")
    for char in b"abc":
        assert vcpu.run() == IoIn(0x60, 1)
        vcpu.complete(bytes((char,)))
    assert vcpu.run() == Halt()
    assert vm.ram.read(0x2000, 4) == b"abc\0"


# --- handled inside -------------------------------------------------------------------------------


def test_ports_are_handled_inside(vm, guest):
    """in al, 0x70; out 0x71, al; out 0x72, al; hlt."""
    seen = []
    vm.handle_ports(0x70, 2, lambda port, size: 0x5A, lambda *write: seen.append(write))
    vcpu = guest("e4 70 e6 71 e6 72 f4")
    assert vcpu.run() == IoOut(0x72, 1, b"\x5a")
    assert seen == [(0x71, 1, 0x5A)]
    assert vcpu.handled == {"IO": 2}
    assert vcpu.exits == {"IO": 1}


@pytest.mark.parametrize("when", ["before the vCPU", "after it", "after it has run"])
def test_memory_is_handled_inside(vm, guest, when):
    """out 0x10, al; mov eax, [DEVICE]; mov [DEVICE + 4], eax; mov [DEVICE + 0x1000], eax."""
    seen = []

    def handle(now):
        if now == when:
            vm.handle_memory(DEVICE, 0x1000, lambda gpa, _: gpa, lambda *what: seen.append(what))

    handle("before the vCPU")
    vcpu = guest("e6 10 a1 00 00 20 00 a3 04 00 20 00 a3 00 10 20 00", bits=32)
    handle("after it")
    assert vcpu.run() == IoOut(0x10, 1, b"\0")
    handle("after it has run")
    assert vcpu.run() == Mmio(DEVICE + 0x1000, 4, struct.pack("<I", DEVICE))
    assert seen == [(DEVICE + 4, 4, DEVICE)]
    assert vcpu.handled == {"MMIO": 2}


class Sulky:
    """A device that raises at its first access."""

    def __init__(self):
        self.seen = []

    def read(self, address, size):
        return self.take((address, size), 0x42)

    def write(self, address, size, value):
        self.take((address, size, value), None)

    def take(self, what, answer):
        self.seen.append(what)
        if len(self.seen) == 1:
            raise ZeroDivisionError("not today")
        return answer


@pytest.mark.parametrize(
    ("code", "access"),
    [
        ("43 eb 00 e6 70 43 ff 05 00 00 04 00 f4", (0x70, 1, 0)),
        ("43 eb 00 e4 70 43 ff 05 00 00 04 00 f4", (0x70, 1)),
        ("43 eb 00 a2 00 00 20 00 43 ff 05 00 00 04 00 f4", (DEVICE, 1, 0)),
        ("43 eb 00 a0 00 00 20 00 43 ff 05 00 00 04 00 f4", (DEVICE, 1)),
        ("43 90 90 e6 70 43 ff 05 00 00 04 00 f4", (0x70, 1, 0)),
        ("43 90 90 e4 70 43 ff 05 00 00 04 00 f4", (0x70, 1)),
        ("43 90 90 a2 00 00 20 00 43 ff 05 00 00 04 00 f4", (DEVICE, 1, 0)),
        ("43 90 90 a0 00 00 20 00 43 ff 05 00 00 04 00 f4", (DEVICE, 1)),
    ],
)
def test_what_a_handler_raises_comes_out_of_run_and_nothing_is_lost(vm, guest, code, access):
    """inc ebx; a jump to the next, or two NOPs; the access; inc ebx; inc dword [0x40000]; hlt."""
    device = Sulky()
    vm.handle_ports(0x70, 1, device.read, device.write)
    vm.handle_memory(DEVICE, 0x1000, device.read, device.write)
    vcpu = guest(code, bits=32)
    with pytest.raises(ZeroDivisionError, match="not today"):
        vcpu.run()
    assert vm.ram.read(0x40000, 1) == b"\0"
    assert vcpu.registers().rbx == 1
    assert vcpu.registers().rip == CODE + 3
    assert vcpu.run() == Halt()
    assert device.seen == [access, access]
    assert (vcpu.registers().rbx, vm.ram.read(0x40000, 1)) == (2, b"\1")
    assert vcpu.registers().rax & 0xFF == (0x42 if len(access) == 2 else 0)


# --- doorbells ------------------------------------------------------------------------------------


def test_a_doorbell_rings_for_its_value_and_width(vm, guest):
    """mov al, 7; out 0x50, al; out 0x50, al; out 0x50, ax; mov al, 8; out 0x50, al; hlt."""
    bell = vm.doorbell(0x50, 1, match=7)
    vcpu = guest("b0 07 e6 50 e6 50 e7 50 b0 08 e6 50 f4")
    exits = take(vcpu, 3)
    assert exits == [IoOut(0x50, 2, b"\7\0"), IoOut(0x50, 1, b"\x08"), Halt()]
    assert (bell.take(), bell.take()) == (2, 0)


def test_a_doorbell_in_memory(vm, guest):
    """mov [DEVICE + 4], eax; mov [DEVICE + 4], al; hlt."""
    bell = vm.doorbell(DEVICE + 4, 4, mmio=True)
    vcpu = guest("a3 04 00 20 00 a2 04 00 20 00 f4", bits=32)
    assert take(vcpu, 2) == [Mmio(DEVICE + 4, 1, b"\0"), Halt()]
    assert bell.take() == 1
    assert vcpu.handled == {"MMIO": 1}


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


def test_vcpus_may_run_at_the_same_moment():
    """Then updates are lost, now and then more than one by a late store of the other vCPU."""
    assert 0 < count_with_two(parallel=True) <= 2 * COUNT


def test_code_written_while_it_runs_is_seen(vm, guest):
    """l: inc word [0x2000]; jmp l, which becomes a HLT."""
    vcpu = guest("ff 06 00 20 eb fa")
    vcpu.set_budget(Budget())
    end = in_thread(vcpu.run)
    wait_for(lambda: vm.ram.read(0x2000, 2) != b"\0\0")
    vm.ram.write(0x1000, b"\xf4")
    assert end(vcpu.kick) == Halt()


# --- budgets and breakpoints ----------------------------------------------------------------------


@pytest.mark.parametrize("access", ["e6 10", "e4 10", "a2 00 00 20 00", "a0 00 00 20 00"])
def test_an_instruction_budget_is_exact_over_exits(vm, guest, access):
    """l: inc ebx; inc ebx; the access; inc ebx; jmp l. EBX and EIP tell how many were executed."""
    long = len(bytes.fromhex(access))
    vcpu = guest(f"43 43 {access} 43 eb {256 - long - 5:02x}", bits=32)
    counted = {0: (0, 0), 1: (1, 1), 2: (2, 2), 2 + long: (3, 2), 3 + long: (4, 3)}
    for budget in range(1, 24):
        vcpu.set_registers(Registers(rip=CODE))
        vcpu.set_budget(Budget(instructions=budget))
        exits = 0
        while not isinstance(vcpu.run(), BudgetSpent):
            exits += 1
        registers = vcpu.registers()
        more, ebx = counted[registers.rip - CODE]
        assert (registers.rbx - ebx) // 3 * 5 + more == budget
        assert exits == (budget + 2) // 5


def test_a_breakpoint_in_a_loop_is_hit_in_every_round(vm, guest):
    """l: inc word [0x2000]; inc word [0x2002]; jmp l, with a breakpoint at the second."""
    vcpu = guest("ff 06 00 20 ff 06 02 20 eb f6")
    vcpu.breakpoints([0x1004])
    for count in range(1, 4):
        assert vcpu.run() == Debug(0x1004)
        assert struct.unpack("<2H", vm.ram.read(0x2000, 4)) == (count, count - 1)
        if count == 2:  # looking changes nothing
            assert vcpu.registers().rip == 0x1004
    vcpu.breakpoints([])
    vcpu.set_budget(Budget(instructions=100))
    assert isinstance(vcpu.run(), BudgetSpent)


def test_x86_has_four_breakpoints(guest):
    with pytest.raises(BadInput, match="four address registers, not 5"):
        guest("f4").breakpoints(range(5))


# --- what can be made to exit ---------------------------------------------------------------------

RDMSR = "b9 34 12 00 00 0f 32 f4"
WRMSR = "b9 34 12 00 00 b8 11 00 00 00 ba 22 00 00 00 0f 30 f4"


def test_rdmsr_is_answered(guest):
    """mov ecx, 0x1234; rdmsr; hlt."""
    vcpu = guest(RDMSR, bits=64)
    vcpu.intercept("msr")
    assert vcpu.run() == MsrRead(0x1234)
    vcpu.complete(struct.pack("<Q", 0x1122334455667788))
    assert vcpu.run() == Halt()
    assert (vcpu.registers().rdx, vcpu.registers().rax) == (0x11223344, 0x55667788)


def test_wrmsr_is_taken(guest):
    """mov ecx, 0x1234; mov eax, 0x11; mov edx, 0x22; wrmsr; hlt."""
    vcpu = guest(WRMSR, bits=64)
    vcpu.intercept("msr")
    assert take(vcpu, 2) == [MsrWrite(0x1234, 0x22_00000011), Halt()]


@pytest.mark.parametrize("code", [RDMSR, WRMSR])
def test_an_msr_is_refused_with_gp(vm, guest, code):
    vcpu = guest(code, bits=64, gates={13: "e6 66 f4"})
    vcpu.intercept("msr")
    vcpu.run()
    vcpu.refuse()
    assert ports(take(vcpu, 2)) == [0x66, Halt()]
    at = CODE + len(bytes.fromhex(code)) - 3
    error, rip = struct.unpack("<2Q", vm.ram.read(STACK - 0x1000 - 48, 16))
    assert (error, rip) == (0, at)


def test_cpuid_is_answered(guest):
    """mov eax, 0x40000000; mov ecx, 5; cpuid; mov esi, ebx; hlt."""
    vcpu = guest("b8 00 00 00 40 b9 05 00 00 00 0f a2 89 de f4", bits=32)
    vcpu.intercept("cpuid")
    assert vcpu.run() == Cpuid(0x40000000, 5)
    vcpu.complete(struct.pack("<4I", 1, 2, 3, 4))
    assert vcpu.run() == Halt()
    r = vcpu.registers()
    assert (r.rax, r.rbx, r.rcx, r.rdx, r.rsi) == (1, 2, 3, 4, 2)


def test_a_write_of_cr3_is_done_and_told(vm, guest):
    """mov eax, 0xa000; mov cr3, rax; hlt."""
    vcpu = guest("b8 00 a0 00 00 0f 22 d8 f4", bits=64)
    vm.ram.write_u64(0xA000, vm.ram.read_u64(TABLES))
    vcpu.intercept("cr3")
    assert vcpu.run() == Cr3Write(0xA000)
    assert vcpu.system().cr3 == 0xA000
    assert vcpu.run() == Halt()


@pytest.mark.parametrize("call", ["0f 01 c1", "0f 01 d9"])
def test_a_hypercall_is_answered(guest, call):
    """mov eax, 5; VMCALL or VMMCALL; hlt."""
    vcpu = guest(f"b8 05 00 00 00 {call} f4", bits=64)
    vcpu.intercept("hypercall")
    vcpu.set_registers(replace(vcpu.registers(), rbx=1, rcx=2, rdx=3, rsi=4))
    assert vcpu.run() == Hypercall(5, (1, 2, 3, 4))
    vcpu.complete(struct.pack("<Q", 99))
    assert vcpu.run() == Halt()
    assert vcpu.registers().rax == 99


@pytest.mark.parametrize(("ring", "error"), [(0, 1000), (3, 1)])
def test_nobodys_hypercall_gets_kvms_answer(guest, ring, error):
    """mov eax, 5; vmcall; out 0x10, al: -KVM_ENOSYS, or -KVM_EPERM outside ring 0."""
    vcpu = guest("b8 05 00 00 00 0f 01 c1 e6 10", bits=64, ring=ring, flags=IOPL3)
    assert ports([vcpu.run()]) == [0x10]
    assert vcpu.registers().rax == (1 << 64) - error
    assert vcpu.handled == {"HYPERCALL": 1}


# --- what ring 3 may do ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("access", ["e6 10", "e4 10"])
def test_io_outside_ring_0_needs_iopl(vm, guest, bits, access):
    """Intel SDM vol. 1, 19.5.1; without it #GP(0), at the instruction."""
    gates = {13: "e6 66 f4"}
    vcpu = guest(
        f"43 {access} ff c3 f4" if bits == 32 else f"90 {access} ff c3 f4",
        bits=bits,
        ring=3,
        gates=gates,
    )
    assert ports(take(vcpu, 2)) == [0x66, Halt()]
    size = bits // 8
    frame = vm.ram.read(STACK - 6 * size, 2 * size)
    assert (int.from_bytes(frame[:size], "little"), int.from_bytes(frame[size:], "little")) == (
        0,
        CODE + 1,
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_iopl_3_opens_the_ports_to_ring_3(guest, bits):
    vcpu = guest("e6 10 e4 10", bits=bits, ring=3, flags=IOPL3)
    assert take(vcpu, 2) == [IoOut(0x10, 1, b"\0"), IoIn(0x10, 1)]


@pytest.mark.parametrize(
    ("access", "allowed"), [("e6 10", True), ("e6 11", False), ("e7 10", False), ("e4 10", True)]
)
def test_the_tss_opens_single_ports(vm, guest, access, allowed):
    """Intel SDM vol. 1, 19.5.2: every port of the access has its bit clear."""
    vcpu = guest(f"{access} f4", bits=64, ring=3, gates={13: "e6 66 f4"})
    system = vcpu.system()
    vcpu.set_system(replace(system, tr=replace(system.tr, limit=0x68 + 0x100)))
    vm.ram.write(TSS + 0x68, b"\xff\xff\xfe" + b"\xff" * 0x100)
    assert vcpu.run().port == (0x10 if allowed else 0x66)


@pytest.mark.parametrize(("limit", "allowed"), [(0x6A, False), (0x6B, True)])
def test_ports_beyond_the_limit_of_the_tss_are_closed(vm, guest, limit, allowed):
    """Intel SDM vol. 1, 19.5.2: two bytes of the map are read, and both lie within the TSS."""
    vcpu = guest("e6 10 f4", bits=64, ring=3, gates={13: "e6 66 f4"})
    system = vcpu.system()
    vcpu.set_system(replace(system, tr=replace(system.tr, limit=limit)))
    assert vcpu.run().port == (0x10 if allowed else 0x66)


def test_syscall_and_sysret(guest):
    """syscall; out 0x20, al in ring 3; the kernel says 0x21 and returns by SYSRET."""
    vcpu = guest("0f 05 e6 20", bits=64, ring=3, gates={0: "e6 21 48 0f 07"}, flags=IOPL3 | IF)
    state = vcpu.save()
    msrs = {**dict(state.msrs), 0xC0000081: 0x10 << 48 | CODE0 << 32}
    msrs |= {0xC0000082: HANDLERS, 0xC0000084: IF}
    system = replace(state.system, efer=state.system.efer | 1)
    vcpu.restore(replace(state, system=system, msrs=tuple(msrs.items())))
    assert ports([vcpu.run()]) == [0x21]
    registers, system = vcpu.registers(), vcpu.system()
    assert (system.cs.selector, system.ss.selector, system.ss.dpl) == (CODE0, DATA0, 0)
    assert (registers.rcx, registers.r11) == (CODE + 2, IOPL3 | IF | 2)
    assert registers.rflags == IOPL3 | 2
    assert ports([vcpu.run()]) == [0x20]
    registers, system = vcpu.registers(), vcpu.system()
    assert (system.cs.selector, system.ss.selector) == (CODE3, DATA3)
    assert (registers.rip, registers.rflags) == (CODE + 4, IOPL3 | IF | 2)


# --- save and restore -----------------------------------------------------------------------------

WORK = """b9 c8 00 00 00 d9 ee
69 c0 6d 4e c6 41 05 39 30 00 00 50 d9 e8 de c1 5b 11 da 80 fa 80 77 02 e7 10
e4 11 0f b6 f3 10 96 00 00 04 00 49 75 d8 db 1d 00 00 05 00 f4"""
"""mov ecx, 200; fldz; l: imul eax, eax, 1103515245; add eax, 12345; push eax; fld1; faddp; pop ebx;
adc edx, ebx; cmp dl, 0x80; ja m; out 0x10, eax; m: in al, 0x11; movzx esi, bl;
adc [esi + 0x40000], dl; dec ecx; jnz l; fistp dword [0x50000]; hlt"""


def finish(vcpu, exits, until=None):
    """Run to the end, answering each IN by how many exits there have been."""
    while not exits or exits[-1] != Halt():
        exits.append(vcpu.run())
        assert isinstance(exits[-1], IoOut | IoIn | Halt | BudgetSpent)
        if isinstance(exits[-1], BudgetSpent):
            exits.pop()
            return
        if isinstance(exits[-1], IoIn):
            vcpu.complete(bytes((len(exits) & 0xFF,)))


@pytest.mark.parametrize("seed", range(8))
def test_a_guest_that_moves_never_notices(seed):
    """Saved at random moments and restored into another VM, it ends as the one that stayed."""
    rng = random.Random(seed)
    with open_vm("unicorn", "1M") as vm:
        stayed = boot(vm, WORK, bits=32)
        expected = []
        finish(stayed, expected)
        end, memory = stayed.save(), vm.ram.read(0, vm.ram.size)
        assert vm.ram.read(0x50000, 4) == struct.pack("<I", 200)
    vm = open_vm("unicorn", "1M")
    vcpu, exits, moves = boot(vm, WORK, bits=32), [], 0
    while not exits or exits[-1] != Halt():
        vcpu.set_budget(Budget(instructions=rng.randrange(1, 700)))
        finish(vcpu, exits)
        state, ram = vcpu.save(), vm.ram.read(0, vm.ram.size)
        vm.close()
        vm = open_vm("unicorn", "1M")
        vm.ram.write(0, ram)
        vcpu = vm.vcpu()
        vcpu.restore(state)
        moves += 1
    assert moves > 3
    assert exits == expected
    final = vcpu.save()
    assert (final.registers, final.system, final.xsave) == (end.registers, end.system, end.xsave)
    assert vm.ram.read(0, vm.ram.size) == memory
    vm.close()


# --- interrupts -----------------------------------------------------------------------------------


def test_an_interrupt_is_delivered_before_the_next_instruction(vm, guest):
    """inc bx; hlt. The handler says 0x10."""
    vcpu = guest("43 f4", gates={0x20: "e6 10 cf"}, flags=IF)
    vcpu.inject(0x20)
    with pytest.raises(BadInput, match="vector 32 is still waiting"):
        vcpu.inject(0x21)
    assert ports([vcpu.run()]) == [0x10]
    assert struct.unpack("<3H", vm.ram.read(0xEFA, 6)) == (0x1000, 0, IF | 2)
    assert vcpu.run() == Halt()
    assert vcpu.registers().rbx == 1


def test_the_instruction_after_sti_comes_first(vm, guest):
    """nop; sti; inc bx; inc bx; hlt."""
    vcpu = guest("90 fb 43 43 f4", gates={0x20: "e6 10 cf"})
    vcpu.inject(0x20)
    assert vcpu.run() == InterruptWindow()
    assert (vcpu.registers().rip, vcpu.registers().rbx) == (0x1003, 1)
    assert ports([vcpu.run()]) == [0x10]
    assert struct.unpack("<H", vm.ram.read(0xEFA, 2)) == (0x1003,)
    assert vcpu.run() == Halt()


def test_the_shadow_of_sti_is_saved(vm, guest):
    """sti; inc bx; hlt, saved behind the first."""
    vcpu = guest("fb 43 f4", gates={0x20: "e6 10 cf"})
    vcpu.step()
    state = vcpu.save()
    assert state.shadow
    vcpu.restore(state)
    vcpu.inject(0x20)
    exits = take(vcpu, 2)
    assert ports(exits) == [InterruptWindow(), 0x10]
    assert struct.unpack("<H", vm.ram.read(0xEFA, 2)) == (0x1002,)


def with_pic(vm):
    pic = PicPair()
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)):
        pic.write(port, 1, value)
    vm.create_irqchip(pic)
    vm.handle_ports(0x20, 2, pic.read, pic.write)
    return pic


def test_an_interrupt_controller_wakes_a_halted_vcpu(vm, guest):
    """l: sti; hlt; cli; out 0x11, al; jmp l. The handler ends the interrupt and says 0x10."""
    with_pic(vm)
    vcpu = guest("fb f4 fa e6 11 eb f9", gates={0x21: "b0 20 e6 20 e6 10 cf"})
    vcpu.set_budget(Budget())
    for _ in range(2):
        exits = in_thread(lambda: take(vcpu, 2))
        vm.set_irq(1, True)
        assert ports(exits(vcpu.kick)) == [0x10, 0x11]
        vm.set_irq(1, False)
    assert vcpu.handled == {"IRQ": 2, "IO": 2}
    assert vcpu.exits == {"IO": 4}


def test_a_halted_vcpu_with_a_controller_can_be_kicked(vm, guest):
    with_pic(vm)
    vcpu = guest("fb f4")
    vcpu.set_budget(Budget())
    for _ in range(2):
        end = in_thread(vcpu.run)
        vcpu.kick()
        assert end() == Kicked()
    with pytest.raises(BadInput, match=r"use vm.set_irq\(\)"):
        vcpu.inject(0x20)


# --- an orderly end -------------------------------------------------------------------------------


def in_use():
    """Open descriptors, threads, and resident pages of this process."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages


def test_a_thousand_vms_leave_nothing_behind():
    """mov [DEVICE], al; out 0x10, al; hlt."""

    def one():
        with open_vm("unicorn", "1M") as vm:
            bell = vm.doorbell(0x50, 1)
            vcpu = boot(vm, "a2 00 00 20 00 e6 50 e6 10 f4", bits=32)
            assert [type(one) for one in take(vcpu, 3)] == [Mmio, IoOut, Halt]
            assert bell.take() == 1

    for _ in range(100):
        one()
    fds, threads, pages = in_use()
    for _ in range(900):
        one()
    more_fds, more_threads, more_pages = in_use()
    assert more_fds == fds
    assert more_threads == threads
    assert (more_pages - pages) * resource.getpagesize() < 8 << 20


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
    ]
    for call in calls:
        with pytest.raises(BadInput, match="closed"):
            call()
    vcpu.kick()  # from another thread one may always come late


@pytest.mark.parametrize(
    ("gpa", "size", "says"),
    [
        (DEVICE + 1, 0x1000, "whole pages of 4096 bytes"),
        (DEVICE, 0x800, "whole pages of 4096 bytes"),
        (DEVICE, 0, "whole pages of 4096 bytes"),
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
        (lambda: vm.doorbell(0x70, 3), "1, 2 or 4 bytes"),
        (lambda: vm.doorbell(0x70, 8), "1, 2 or 4 bytes"),
        (lambda: vm.doorbell(0x1000, 4, mmio=True), "lies in RAM"),
        (vm.create_irqchip, "give it a model of one"),
        (lambda: vm.set_irq(1, True), "call create_irqchip"),
    ):
        with pytest.raises(BadInput, match=says):
            call()
    vm.vcpu()
    with pytest.raises(BadInput, match="before the first vCPU"):
        vm.create_irqchip(PicPair())
