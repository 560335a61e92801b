"""Memory slots beside KVM's own: which it takes, what a guest finds there, what the log holds.

The same random calls go to `MemorySlots` and to KVM_SET_USER_MEMORY_REGION. Then a guest loads
and stores at random, and each access must be memory or MMIO as the model says, and each log the
same pages. Addresses stay below what every host's KVM allows.
"""

import ctypes
import errno
import mmap
import platform
import random
import struct
from collections import Counter
from dataclasses import replace

import pytest
from engine_files import KVM_FILES

from vmlib.cpu import Budget, Halt, Mmio, Registers, SystemRegisters, open_vm
from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm.calls import call
from vmlib.cpu.kvm.oddities import kvm_modules
from vmlib.errors import BadInput
from vmlib.memory import MemorySlots, Slot

PAGE, MIB = 4096, 1 << 20
LOG_DIRTY, READONLY = 1, 2  # KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
DIRTY_LOG = struct.Struct("=IIQ")  # struct kvm_dirty_log: slot, padding, pointer to the bitmap
GET_DIRTY_LOG = 1 << 30 | DIRTY_LOG.size << 16 | 0xAE << 8 | 0x42  # _IOW(KVMIO, 0x42, …)
CODE = 0x1000
STUBS = {"read": "8a03 f4", "write": "8803 f4"}  # mov al, [ebx]; mov [ebx], al; hlt
CALLS, ACCESSES = 3000, 600


TAKEN, OVERLAP, ELSE = "taken", "refused for an overlap", "refused for something else"


def kernel_says(fd, slot, size):
    """What KVM makes of a slot of this size."""
    flags = LOG_DIRTY * slot.log_dirty | READONLY * slot.readonly
    packed = abi.MEMORY_REGION.pack(slot.number, flags, slot.gpa, size, slot.hva)
    try:
        call(fd, abi.SET_USER_MEMORY_REGION, packed)
    except OSError as error:
        return {errno.EEXIST: OVERLAP, errno.EINVAL: ELSE}[error.errno]
    return TAKEN


def ours_says(function, given):
    """What ours makes of it."""
    try:
        function(given)
    except BadInput as error:
        return OVERLAP if "overlaps" in error.rule else ELSE
    return TAKEN


def random_slot(rng, slots, room):
    """A slot to set: anew, moved, with other flags, or with what is not allowed."""
    old = {slot.number: slot for slot in slots}
    slot = Slot(
        rng.randrange(1, 7),
        16 * MIB + rng.randrange(24) * PAGE,
        rng.randrange(1, 7) * PAGE,
        room + rng.randrange(8) * PAGE,
        rng.random() < 0.3,
        rng.random() < 0.3,
    )
    if slot.number in old and rng.random() < 0.8:
        slot = old[slot.number]
        kind = rng.randrange(6)
        changes = (
            {"gpa": 16 * MIB + rng.randrange(24) * PAGE},
            {"log_dirty": not slot.log_dirty},
            {"size": slot.size + PAGE},
            {"hva": slot.hva + PAGE},
            {"readonly": not slot.readonly},
            {},
        )[kind]
        return replace(slot, **changes)
    if rng.random() < 0.15:
        wrong = (
            {"gpa": slot.gpa + 8},
            {"hva": slot.hva + 8},
            {"size": slot.size + 8},
            {"gpa": (1 << 64) - slot.size},
            {"gpa": (1 << 64) - PAGE, "size": 2 * PAGE},
            {"hva": (1 << 64) - PAGE, "size": 2 * PAGE},
        )
        return replace(slot, **rng.choice(wrong))
    return slot


def same_calls(record, rng, vm, slots, room):
    """Set and remove at random; both must take the same, and see the same overlaps."""
    ours, real = Counter(), Counter()
    for _ in range(CALLS):
        if rng.random() < 0.25:
            slot = Slot(rng.randrange(1, 7), 0, 0, 0)
            told = ours_says(slots.remove, slot.number), kernel_says(vm._fd, slot, 0)
        else:
            slot = random_slot(rng, slots, room)
            told = ours_says(slots.set, slot), kernel_says(vm._fd, slot, slot.size)
        record.case(*told, str(slot))
        ours[told[0]] += 1
        real[told[1]] += 1
    assert min(ours[kind] for kind in (TAKEN, OVERLAP, ELSE)) > 200, ours
    for kind in (TAKEN, OVERLAP, ELSE):
        record.show(f"slots {kind}", ours[kind], real[kind])


def settle(vm, slots, room):
    """Remove all of it, and leave a few of each kind."""
    for slot in list(slots):
        slots.remove(slot.number)
        assert kernel_says(vm._fd, slot, 0) == TAKEN
    for slot in (
        Slot(1, 16 * MIB, 4 * PAGE, room),
        Slot(2, 16 * MIB + 4 * PAGE, 4 * PAGE, room + 8 * PAGE, readonly=True),
        Slot(3, 16 * MIB + 10 * PAGE, 6 * PAGE, room + 4 * PAGE, log_dirty=True),
        Slot(4, 16 * MIB + 20 * PAGE, 3 * PAGE, room, log_dirty=True),
    ):
        slots.set(slot)
        assert kernel_says(vm._fd, slot, slot.size) == TAKEN


def kernel_log(vm, slot):
    """The pages of KVM_GET_DIRTY_LOG, which forgets them."""
    bitmap = bytearray(8 * (slot.size // PAGE // 64 + 1))
    at = ctypes.addressof((ctypes.c_char * len(bitmap)).from_buffer(bitmap))
    call(vm._fd, GET_DIRTY_LOG, DIRTY_LOG.pack(slot.number, 0, at))
    bits = int.from_bytes(bitmap, "little")
    return [slot.gpa + n * PAGE for n in range(slot.size // PAGE) if bits >> n & 1]


def one_access(vcpu, access, gpa, value):
    """What a guest sees of a load or store of one byte: MMIO, or memory, and the byte."""
    flat = SystemRegisters.protected_mode()
    vcpu.set_system(flat)
    rip = CODE + 16 * list(STUBS).index(access)
    vcpu.set_registers(Registers(rip=rip, rbx=gpa, rax=value))
    vcpu.set_budget(Budget(seconds=5))
    left = vcpu.run()
    if isinstance(left, Mmio):
        return "MMIO", left.gpa
    assert isinstance(left, Halt), left
    return "memory", vcpu.registers().rax & 0xFF


def same_accesses(record, rng, vm, slots):
    """Loads and stores at random, and the logs after every few of them."""
    for number, code in enumerate(STUBS.values()):
        vm.ram.write(CODE + 16 * number, bytes.fromhex(code))
    vcpu, ours, real, seen = vm.vcpu(), Counter(), Counter(), set()
    for n in range(ACCESSES):
        access, value = rng.choice(("read", "write")), rng.randrange(256)
        gpa = 16 * MIB + rng.randrange(-2 * PAGE, 26 * PAGE)
        theirs = one_access(vcpu, access, gpa, value)
        hva, slot = slots.hva(gpa, access), slots.find(gpa)
        mine = ("MMIO", gpa) if hva is None else ("memory", ctypes.string_at(hva, 1)[0])
        record.case(mine, theirs, f"{access} {gpa:#x}")
        ours[access, mine[0]] += 1
        real[access, theirs[0]] += 1
        seen.add((access, slot and slot.number))
        if n % 20 == 19:
            for slot in (one for one in slots if one.log_dirty):
                pages, theirs = slots.dirty_log(slot.number).tolist(), kernel_log(vm, slot)
                record.case(pages, theirs, f"log of {slot}")
                ours["pages logged"] += len(pages)
                real["pages logged"] += len(theirs)
    assert len(seen) == 2 * (len(slots) + 1), "each kind of access, to each slot and to a hole"
    assert ours["pages logged"] > 50
    for access, did in (("read", "loads"), ("write", "stores")):
        for end, words in (("memory", "that find memory"), ("MMIO", "that are MMIO")):
            record.show(f"{did} {words}", ours[access, end], real[access, end])
    record.show("pages in the dirty logs", ours["pages logged"], real["pages logged"])


def same_at_the_edges(record, vm, slots):
    """Loads and stores of the first and last byte of each slot, and of those beside."""
    vcpu = vm.vcpu()
    for slot in list(slots):
        for gpa in (slot.gpa - 1, slot.gpa, slot.end - 1, slot.end):
            for access in STUBS:
                theirs = one_access(vcpu, access, gpa, 0x5A)
                hva = slots.hva(gpa, access)
                mine = ("MMIO", gpa) if hva is None else ("memory", ctypes.string_at(hva, 1)[0])
                record.case(mine, theirs, f"{access} {gpa:#x}, at an edge of {slot}")


def same_logs_of_slots_that_change(record, vm, slots):
    """A page is written, and its slot moved, re-flagged, or removed and made anew."""
    vcpu, slot = vm.vcpu(), next(one for one in slots if one.log_dirty)

    def same_log(slot):
        pages = slots.dirty_log(slot.number).tolist()
        record.case(pages, kernel_log(vm, slot), f"log of {slot}")
        return pages

    def do(new):
        """Set a slot; None removes the one that is written."""
        if new:
            slots.set(new)
        else:
            slots.remove(slot.number)
        assert kernel_says(vm._fd, new or slot, new.size if new else 0) == TAKEN

    same_log(slot)
    away, silent = replace(slot, gpa=slot.gpa + 32 * PAGE), replace(slot, log_dirty=False)
    for changes, left in (
        ([away], [away.gpa + PAGE]),
        ([silent, slot], []),
        ([None, slot], []),
    ):
        assert one_access(vcpu, "write", slot.gpa + PAGE, 1)[0] == "memory"
        slots.hva(slot.gpa + PAGE, "write")
        for new in changes:
            do(new)
        assert same_log(changes[-1]) == left
        do(slot)


@pytest.mark.needs("kvm")
def test_slots_beside_the_kernel_s(check):
    """Which calls are taken; memory or MMIO, and which byte; what the dirty logs hold."""
    rng = random.Random("slots")
    backing = mmap.mmap(-1, 32 * PAGE)
    backing[:] = rng.randbytes(len(backing))
    room = ctypes.addressof(ctypes.c_char.from_buffer(backing))
    with (
        check(
            "memory/slots-kvm",
            what="memory slots: which are taken and which refused, what a guest's loads and stores "
            "find there, and the pages of the dirty logs",
            tool="KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG, and a guest on /dev/kvm",
            tool_version=f"Linux {platform.release()}, {kvm_modules()}",
            covers=["vmlib/memory/slots.py", *KVM_FILES],
        ) as record,
        open_vm("kvm", MIB) as vm,
    ):
        slots = MemorySlots()
        same_calls(record, rng, vm, slots, room)
        settle(vm, slots, room)
        same_accesses(record, rng, vm, slots)
        same_at_the_edges(record, vm, slots)
        same_logs_of_slots_that_change(record, vm, slots)
