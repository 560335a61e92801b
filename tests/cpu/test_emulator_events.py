"""The emulator's faults, rings and interrupts, as the guest sees them.

Code is hexadecimal with its assembler beside it. `guest` boots it, see `kvm_guests.boot`: 16-bit
code at 0x1000, else with a GDT, a TSS and gates at 0x10000.
"""

import struct
from dataclasses import replace

import pytest
from emulator_guests import in_thread, ports
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
    take,
)

from vmlib.cpu import Budget, Halt, InterruptWindow, IoIn, IoOut, Kicked
from vmlib.devices import PicPair
from vmlib.errors import BadInput, Unsupported

pytestmark = pytest.mark.needs("unicorn")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "ring"), [(16, 0), (32, 0), (32, 3), (64, 0), (64, 3)])
def test_int1_calls_the_handler_of_the_debug_exception(guest, bits, ring):
    """int1; inc eax; hlt. The frame holds the address behind it (Intel SDM vol. 2A, INT1)."""
    back = {16: "cf", 32: "cf", 64: "48 cf"}[bits]
    vcpu = guest("f1 ff c0 f4", bits=bits, ring=ring, gates={1: "e6 01" + back, 13: "e6 0d f4"})
    ends = [IoOut(13, 1, b"\1"), Halt()] if ring else [Halt()]  # HLT is for ring 0
    assert take(vcpu, 1 + len(ends)) == [IoOut(1, 1, b"\0"), *ends]
    assert vcpu.registers().rax == 1


@pytest.mark.parametrize(("bits", "ring"), [(16, 0), (64, 0), (64, 3)])
def test_rdpmc_finds_no_counter(guest, bits, ring):
    """rdpmc: #GP for a counter that is not there (Intel SDM vol. 2B, RDPMC)."""
    vcpu = guest("0f 33 f4", bits=bits, ring=ring, gates={13: "e6 0d f4", 6: "e6 06 f4"})
    assert take(vcpu, 2) == [IoOut(13, 1, b"\0"), Halt()]


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


# --- what ring 3 may do ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("access", ["e6 10", "e4 10"])
def test_io_outside_ring_0_needs_iopl(vm, guest, bits, access):
    """Intel SDM vol. 1, *I/O Privilege Level*; without it #GP(0), at the instruction."""
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
    """Intel SDM vol. 1, *I/O Permission Bit Map*: every port of the access has its bit clear."""
    vcpu = guest(f"{access} f4", bits=64, ring=3, gates={13: "e6 66 f4"})
    system = vcpu.system()
    vcpu.set_system(replace(system, tr=replace(system.tr, limit=0x68 + 0x100)))
    vm.ram.write(TSS + 0x68, b"\xff\xff\xfe" + b"\xff" * 0x100)
    assert vcpu.run().port == (0x10 if allowed else 0x66)


@pytest.mark.parametrize(("limit", "allowed"), [(0x6A, False), (0x6B, True)])
def test_ports_beyond_the_limit_of_the_tss_are_closed(vm, guest, limit, allowed):
    """SDM vol. 1, *I/O Permission Bit Map*: two bytes of it are read, both within the TSS."""
    vcpu = guest("e6 10 f4", bits=64, ring=3, gates={13: "e6 66 f4"})
    system = vcpu.system()
    vcpu.set_system(replace(system, tr=replace(system.tr, limit=limit)))
    assert vcpu.run().port == (0x10 if allowed else 0x66)


@pytest.mark.parametrize(
    "code", ["68 02 00 04 00 9d 8b 04 25 01 40 02 00", "0f 28 04 25 01 40 02 00"]
)
def test_no_alignment_is_checked(guest, code):
    """CR0.AM and AC ask for it: mov eax, [0x24001]; or movaps xmm0, [0x24001]. Then UD2.

    The table of capabilities says so. Where this fails its entry goes.
    """
    gates = {vector: f"e6 {vector:02x} f4" for vector in (6, 13, 17)}
    vcpu = guest(f"{code} 0f 0b", bits=64, ring=3, gates=gates)
    system = vcpu.system()
    vcpu.set_system(replace(system, cr0=system.cr0 | 1 << 18, cr4=system.cr4 | 1 << 9))
    assert ports([vcpu.run()]) == [6]


@pytest.mark.parametrize(
    ("bits", "code", "vector"),
    [(32, "0f 05", 6), (64, "0f 05", 6), (32, "0f 34", 13)],
    ids=["syscall-32", "syscall-64", "sysenter-32"],
)
def test_a_fast_call_that_is_not_set_up_faults_where_it_stands(vm, guest, bits, code, vector):
    """nop; the call in ring 3. SYSCALL without EFER.SCE is #UD, SYSENTER without a CS #GP(0)."""
    gates = {one: f"e6 {one:02x} f4" for one in (6, 13)}
    vcpu = guest(f"90 {code} f4", bits=bits, ring=3, gates=gates)
    assert ports([vcpu.run()]) == [vector]
    size, words = bits // 8, [0, CODE + 1] if vector == 13 else [CODE + 1]
    at = STACK - (4 + len(words)) * size
    assert vm.ram.read(at, len(words) * size) == b"".join(w.to_bytes(size, "little") for w in words)


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


def test_an_interrupt_of_the_controller_waits_over_exits(vm, guest):
    """l: out 0x10, al; inc bl; cmp bl, 5; jne l; sti; nop; out 0x11, al; hlt.

    Without a budget, and with interrupts off, the exits come the short way.
    """
    with_pic(vm)
    gates = {0x21: "b0 20 e6 20 e6 12 cf"}
    vcpu = guest("e6 10 fe c3 80 fb 05 75 f7 fb 90 e6 11 f4", gates=gates)
    vcpu.set_budget(Budget())
    vm.set_irq(1, True)
    assert ports(take(vcpu, 7)) == [0x10] * 5 + [0x12, 0x11]


def test_the_controller_is_wired_to_the_first_vcpu_alone(vm, guest):
    pic = with_pic(vm)
    first, second = (guest("90 f4", gates={0x21: "e6 12 cf"}, flags=IF) for _ in range(2))
    vm.set_irq(1, True)
    assert second.run() == Halt()
    assert pic.pending()
    assert ports([first.run()]) == [0x12]


def test_a_halted_vcpu_with_a_controller_can_be_kicked(vm, guest):
    with_pic(vm)
    vcpu = guest("fb f4")
    vcpu.set_budget(Budget())
    for _ in range(2):
        end = in_thread(vcpu.run)
        vcpu.kick()
        assert end() == Kicked()
    with pytest.raises(Unsupported, match="raise one of its lines with set_irq"):
        vcpu.inject(0x20)
