"""Where the emulator stops, and in what state: addresses, modes, kicks, budgets, breakpoints.

Code is hexadecimal with its assembler beside it. `guest` boots it, see `kvm_guests.boot`: 16-bit
code at 0x1000, else with a GDT, a TSS and gates at 0x10000.
"""

import itertools
import random
import struct
import threading
import time
from dataclasses import replace

import pytest
from emulator_guests import in_thread, ports
from kvm_guests import CODE, STACK, TABLES, boot, identity_map, take

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Debug,
    Halt,
    IoIn,
    IoOut,
    Kicked,
    Registers,
    Segment,
    SystemRegisters,
    open_vm,
)
from vmlib.errors import BadInput

pytestmark = pytest.mark.needs("unicorn")


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


@pytest.mark.parametrize("access", ["e6 10", "e4 10"])
def test_an_instruction_budget_is_exact_over_kicks(guest, access):
    """l: inc ebx; the access; jmp l, with a kick at every exit, which finishes the access."""
    vcpu = guest(f"43 {access} eb fb", bits=32)
    for budget in range(1, 16):
        vcpu.set_registers(Registers(rip=CODE))
        vcpu.set_budget(Budget(instructions=budget))
        while not isinstance(vcpu.run(), BudgetSpent):
            vcpu.kick()
            assert vcpu.run() == Kicked()
        registers = vcpu.registers()
        more = {0: 0, 1: 1 - 3, 3: 2 - 3}[registers.rip - CODE]
        assert registers.rbx * 3 + more == budget


def test_an_instruction_budget_is_exact_over_many_rounds(guest):
    """inc ebx; jmp to it: the emulator looks round every so often, and counts on."""
    vcpu = guest("43 eb fd", bits=32)
    vcpu.set_budget(Budget(instructions=500_001))
    assert isinstance(vcpu.run(), BudgetSpent)
    assert (vcpu.registers().rbx, vcpu.registers().rip) == (250_001, CODE + 1)


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
