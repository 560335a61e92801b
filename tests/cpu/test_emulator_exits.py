"""The emulator's exits: ports, memory that is not there, and what is handled inside.

Code is hexadecimal with its assembler beside it. `guest` boots it, see `kvm_guests.boot`: 16-bit
code at 0x1000, else with a GDT, a TSS and gates at 0x10000.
"""

import struct
from dataclasses import replace

import pytest
from emulator_guests import DEVICE, ports
from kvm_guests import CODE, IOPL3, STACK, TABLES, take

from vmlib.cpu import (
    Budget,
    Cpuid,
    Cr3Write,
    Debug,
    Halt,
    Hypercall,
    IoIn,
    IoOut,
    Mmio,
    MsrRead,
    MsrWrite,
)
from vmlib.cpu.events import TF
from vmlib.cpu.unicorn.traps import IO_BREAKPOINT

pytestmark = pytest.mark.needs("unicorn")


# --- an OUT stops at once -------------------------------------------------------------------------


def test_nothing_behind_an_out_is_done_at_its_exit(vm, guest):
    """l: out 0x10, al; inc word [0x2000]; jmp l. The first time is undone, later ones stop."""
    vcpu = guest("e6 10 ff 06 00 20 eb f8")
    for count in range(5):
        assert vcpu.run() == IoOut(0x10, 1, b"\0")
        assert vm.ram.read(0x2000, 2) == bytes((count, 0))


def test_the_short_way_leaves_the_guest_its_debug_registers_and_its_exceptions(guest):
    """l: out 0x10, al; inc ebx; cmp ebx, 5; jne l; int 0x80; hlt, without a budget.

    Each OUT is stopped by a breakpoint of ours, while exceptions are not listened to.
    """
    code = "e6 10 43 83 fb 05 75 f8 cd 80 f4"
    vcpu = guest(code, bits=32, gates={0x80: "e6 20 cf"})
    debug = (0x1234, 2, 3, 4, 0xFFFF0FF0, 0x400)
    vcpu.restore(replace(vcpu.save(), debug=debug))
    vcpu.set_budget(Budget())
    assert ports(take(vcpu, 5)) == [0x10] * 5
    assert vcpu.save().debug == debug
    vcpu.set_registers(replace(vcpu.registers(), rip=CODE, rbx=0))
    assert ports(take(vcpu, 7)) == [0x10] * 5 + [0x20, Halt()]
    assert vcpu.save().debug == debug


def test_an_out_stops_in_time_also_behind_a_write_of_dr7(guest):
    """mov dr7, eax; l: out 0x10, al; jmp l. The write puts the I/O breakpoints out of order."""
    vcpu = guest("0f 23 f8 e6 10 eb fc", bits=32)
    vcpu.set_registers(replace(vcpu.registers(), rax=0x400))
    for _ in range(3):
        assert vcpu.run() == IoOut(0x10, 1, b"\0")
        assert vcpu._emu.hflags.value & IO_BREAKPOINT


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


@pytest.mark.parametrize("looks", [False, True])
def test_the_trap_of_a_guest_that_steps_itself_comes_behind_the_access(guest, looks):
    """out 0x10, al; in al, 0x11; mov [DEVICE], al; nop; hlt with TF set. The handler of #DB says 1.

    One trap behind each instruction (Intel SDM vol. 3B, *Single-Step Exception Condition*), and
    none lost where looking at the registers has finished the instruction.
    """
    code = "e6 10 e4 11 a2 00 00 20 00 90 f4"
    vcpu = guest(code, bits=32, gates={1: "e6 01 cf"}, flags=TF)
    told = []
    while not isinstance(exit := vcpu.run(), Halt):
        told.append(exit if isinstance(exit, Mmio) else exit.port)
        if looks:
            vcpu.registers()
        assert len(told) < 9
    assert told == [0x10, 1, 0x11, 1, Mmio(DEVICE, 1, b"\xff"), 1, 1]


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


@pytest.mark.parametrize("looks", [False, True])
def test_stores_and_loads_in_one_instruction(guest, looks):
    """enter 0, 3; hlt with its stack in a device: EBP and two frame pointers are copied.

    Looking does the stores that need no answer, and stops at the next load.
    """
    vcpu = guest("c8 00 00 03 f4", bits=32)
    top = DEVICE + 0x100
    vcpu.set_registers(replace(vcpu.registers(), rsp=top, rbp=top))
    word = struct.Struct("<I").pack
    expected = [Mmio(top - 4, 4, word(top))]
    for level in (1, 2):
        at = 4 * level
        expected += [Mmio(top - at, 4, None), Mmio(top - at - 4, 4, word(0x100 + level))]
    expected += [Mmio(top - 16, 4, word(top - 4)), Halt()]
    for exit in expected:
        assert vcpu.run() == exit
        if exit == Mmio(top - 4, 4, None) or exit == Mmio(top - 8, 4, None):
            vcpu.complete(word(0x100 + (top - exit.gpa) // 4))
        if looks:
            vcpu.registers()
    assert (vcpu.registers().rsp, vcpu.registers().rbp) == (top - 16, top - 4)


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


@pytest.mark.parametrize("answer", [-1, 0x1FF, (1 << 70) - 1])
def test_what_a_handler_answers_is_cut_to_the_width_of_the_access(vm, guest, answer):
    """xor eax, eax; in al, 0x70; mov bl, [DEVICE]; mov ecx, [DEVICE]; in eax, 0x70; hlt."""
    vm.handle_ports(0x70, 1, lambda *_: answer, lambda *_: None)
    vm.handle_memory(DEVICE, 0x1000, lambda *_: answer, lambda *_: None)
    vcpu = guest("31 c0 e4 70 8a 1d 00 00 20 00 8b 0d 00 00 20 00 e6 10 e5 70 f4", bits=32)
    assert vcpu.run() == IoOut(0x10, 1, b"\xff")
    assert vcpu.run() == Halt()
    registers = vcpu.registers()
    assert (registers.rbx, registers.rcx) == (0xFF, answer & 0xFFFFFFFF)
    assert registers.rax == answer & 0xFFFFFFFF


def test_a_handler_inside_hears_of_every_access_and_of_its_width_alone(vm, guest):
    """mov al, [DEVICE]; mov ah, [DEVICE]; mov [DEVICE], eax; mov [DEVICE], al; inc dword [DEVICE]
    hlt, EAX being -1 but for what is loaded."""
    seen, answers = [], iter((1, 2, 7))
    vm.handle_memory(
        DEVICE, 0x1000, lambda *_: next(answers), lambda *write: seen.append(write[1:])
    )
    code = (
        "a0 00 00 20 00 8a 25 00 00 20 00 a3 00 00 20 00 c6 05 00 00 20 00 fe ff 05 00 00 20 00 f4"
    )
    vcpu = guest(code, bits=32)
    vcpu.set_registers(replace(vcpu.registers(), rax=0xFFFFFFFF))
    assert vcpu.run() == Halt()
    assert vcpu.registers().rax == 0xFFFF0201
    assert seen == [(4, 0xFFFF0201), (1, 0xFE), (4, 8)]
    assert vcpu.handled == {"MMIO": 6}


def test_a_handler_inside_gets_eight_bytes_without_a_sign(vm, guest):
    """mov [DEVICE], rax; hlt, RAX being -2."""
    seen = []
    vm.handle_memory(DEVICE, 0x1000, lambda *_: 0, lambda *write: seen.append(write))
    vcpu = guest("48 89 04 25 00 00 20 00 f4", bits=64)
    vcpu.set_registers(replace(vcpu.registers(), rax=(1 << 64) - 2))
    assert vcpu.run() == Halt()
    assert seen == [(DEVICE, 8, (1 << 64) - 2)]


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


@pytest.mark.parametrize("at", [0, 1, 6, 8, 9])
@pytest.mark.parametrize("first", ["breakpoint", "intercept"])
def test_a_breakpoint_and_an_msr_in_one_new_block(guest, at, first):
    """l: nop; mov ecx, 0x1234; rdmsr; inc ebx; jmp l, with a breakpoint at one of them.

    The block is translated when both are wanted, and again because of the RDMSR in it. Each
    happens once a round, the breakpoint first where they meet.
    """
    vcpu = guest("90 b9 34 12 00 00 0f 32 43 eb f5", bits=32)
    if first == "breakpoint":
        vcpu.breakpoints([CODE + at])
        vcpu.intercept("msr")
    else:
        vcpu.intercept("msr")
        vcpu.breakpoints([CODE + at])
    order = [Debug(CODE + at), MsrRead(0x1234)]
    for count in range(3):
        for expected in order if at <= 6 else reversed(order):
            assert vcpu.run() == expected
            if expected == MsrRead(0x1234):
                vcpu.complete(struct.pack("<Q", count))
            behind_inc = expected == Debug(CODE + 9)
            assert vcpu.registers().rbx == count + behind_inc
    assert vcpu.registers().rax == 2


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
