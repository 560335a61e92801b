"""Every mapping of a Linux that runs elsewhere, beside what the emulator's monitor says of it.

QEMU 7.2's words: `info tlb` lists each leaf with its flags (X is NX, P a large page), `info mem`
the rights that all levels together grant (in 4-level paging; it has no 5-level one),
`gva2gpa`, `gpa2hva` and `gpa2hpa` take one address each, `info mtree -f` shows the memory slots.
"""

import os
import random
import re
from bisect import bisect_right
from contextlib import ExitStack

import pytest
from qemu_linux import FrozenLinux, qemu_version

from vmlib.memory import MemorySlots, Slot, four_addresses, host_address, walk, walk_many
from vmlib.memory.paging import CR4_SMAP, CR4_SMEP, NX, PCD, PS, PWT, RW, US, A, D, G

pytestmark = pytest.mark.needs("qemu-system-x86_64", "box")

CPUS = {4: "max,-la57", 5: "max"}
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000  # 16 MiB on: Linux Documentation/arch/x86/x86_64/mm.rst
FLAGS = tuple(zip("XGPDACTUW", (NX, G, PS, D, A, PCD, PWT, US, RW), strict=True))
RIGHTS = {
    (True, True): "user's, writable",
    (True, False): "user's, read-only",
    (False, True): "kernel's, writable",
    (False, False): "kernel's, read-only",
}
UNMAPPED = 3000
SAMPLE = 60


@pytest.fixture(scope="module")
def guests():
    """Both at once: each takes a processor of its own."""
    with ExitStack() as stack:
        started = {n: stack.enter_context(FrozenLinux(cpu)) for n, cpu in CPUS.items()}
        for one in started.values():
            one.freeze()
        yield started


def mappings(said):
    """(GVA, GPA, flags) of each line of `info tlb`."""
    lines = re.findall(r"^([0-9a-f]{16}): ([0-9a-f]{16}) ([-XGPDACTUW]{9})$", said, re.MULTILINE)
    assert len(lines) == said.count("\n"), "a line that is not understood"
    return [(int(gva, 16), int(gpa, 16), flags) for gva, gpa, flags in lines]


def leaf_flags(entry, page_size):
    """The flags of a leaf as `info tlb` prints them; bit 7 of a PTE is PAT and no P."""
    entry &= ~PS if page_size == 4096 else -1
    return "".join(name if entry & bit else "-" for name, bit in FLAGS)


def memory_slots(guest):
    """The slots of the VM by its own memory map: HVA of each by that of the whole RAM."""
    views = guest.ask("info mtree -f").split("FlatView #")
    (view,) = [one for one in views if 'AS "memory"' in one]
    lines = re.findall(
        r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio \d+, (ram|rom)\): pc\.ram(?: @([0-9a-f]+))?",
        view,
        re.MULTILINE,
    )
    base = guest.address("gpa2hva 0")
    slots = MemorySlots()
    for number, (first, last, kind, offset) in enumerate(lines):
        gpa = int(first, 16)
        hva = base + int(offset or "0", 16)
        slots.set(Slot(number, gpa, int(last, 16) + 1 - gpa, hva, readonly=kind == "rom"))
    assert len(slots) > 2  # RAM, and parts of it that show the firmware
    return slots


def unmapped(rng, listed):
    """Addresses beside mappings, and anywhere in either half, that no line of the list covers."""
    starts = [gva for gva, _, _ in listed]
    sizes = dict.fromkeys(starts, 4096)
    sizes |= {gva: 2 << 20 for gva, _, flags in listed if "P" in flags}
    found = []
    while len(found) < UNMAPPED:
        near = rng.choice(starts) + rng.choice([-1, 1]) * rng.randrange(1 << 24)
        gva = rng.choice([near, rng.getrandbits(47), near, -rng.getrandbits(47)]) & (1 << 64) - 1
        before = bisect_right(starts, gva) - 1
        if gva >> 47 in (0, (1 << 17) - 1) and (
            before < 0 or gva >= starts[before] + sizes[starts[before]]
        ):
            found.append(gva)
    return found


def rights(said, gvas):
    """What `info mem` says of each address: user, writable."""
    ranges = re.findall(r"^([0-9a-f]{16})-([0-9a-f]{16}) \S+ (\S{3})$", said, re.MULTILINE)
    assert len(ranges) == said.count("\n")
    starts = [int(first, 16) for first, _, _ in ranges]
    told = []
    for gva in gvas:
        _, end, flags = ranges[bisect_right(starts, gva) - 1]
        assert gva < int(end, 16) or int(end, 16) == 0
        told.append((flags[0] == "u", flags[2] == "w"))
    return told


def compare_mappings(record, levels, guest, ram, registers, listed):
    """All mappings, one by one and by the array, and addresses that have none."""
    real_sizes = [2 << 20 if "P" in flags else 4096 for _, _, flags in listed]
    ours, sizes = [], []
    for gva, _, _ in listed:
        found = walk(ram, gva, **registers, ac=True)
        ours.append((gva, found.gpa, leaf_flags(found.entries[-1], found.page_size)))
        sizes.append(found.page_size)
    record.case(differing(ours, listed), [], f"{levels}-level, one by one")
    record.case(differing(sizes, real_sizes), [], f"{levels}-level, page sizes")
    many = walk_many(ram, [gva for gva, _, _ in listed], **registers, ac=True)
    both = zip(many.gpa.tolist(), many.page_size.tolist(), strict=True)
    real = [(gpa, size) for (_, gpa, _), size in zip(listed, real_sizes, strict=True)]
    record.case(differing(both, real), [], f"{levels}-level, by the array")
    record.show(f"{levels}-level: mappings, all equal", about(ours), about(listed))
    assert real_sizes.count(2 << 20) > 20

    rng = random.Random(levels)
    nothing = unmapped(rng, listed)
    faults = [walk(ram, gva, **registers, ac=True).fault for gva in nothing]
    found = walk_many(ram, nothing, **registers, ac=True)
    assert [(fault.vector, fault.error_code) for fault in faults] == [(14, 0)] * UNMAPPED
    assert (set(found.vector.tolist()), set(found.error_code.tolist())) == ({14}, {0})
    for gva in rng.sample(nothing, SAMPLE):
        record.case(None, guest.address(f"gva2gpa {gva:#x}"), f"{gva:#x} is not mapped")


def differing(ours, real):
    """The pairs that are not equal: none, one hopes."""
    return [(mine, theirs) for mine, theirs in zip(ours, real, strict=True) if mine != theirs]


def about(listed):
    """How many, in a word that is the same for the next kernel."""
    return f"{len(listed) // 10_000 * 10_000:,} and more"


def compare_rights(record, guest, ram, registers, listed):
    """What all levels grant, on every mapping."""
    gvas = [gva for gva, _, _ in listed]
    real = rights(guest.ask("info mem"), gvas)
    how = {**registers, "cr4": registers["cr4"] & ~CR4_SMEP, "ac": True}
    user = walk_many(ram, gvas, **how, cpl=3).vector == 0
    write = walk_many(ram, gvas, **how, access="write").vector == 0
    ours = list(zip(user.tolist(), write.tolist(), strict=True))
    record.case(differing(ours, real), [], "rights")
    for (user, write), name in RIGHTS.items():
        some = (user, write) in ours, (user, write) in real
        assert some == (True, True)
        record.show(
            f"4-level: some pages are the {name}", *("yes" if one else "no" for one in some)
        )
    # NX is not in `info mem`: Linux sets it in leaves only, where `info tlb` shows it.
    fetch = walk_many(ram, gvas, **how, access="fetch").vector == 0
    record.case(differing(fetch.tolist(), ["X" not in flags for _, _, flags in listed]), [], "NX")


def compare_down_to_the_host(record, levels, guest, ram, registers, listed):
    """Slots against `gpa2hva`, the page map against `gpa2hpa`, and one whole way after another."""
    slots = memory_slots(guest)
    rng = random.Random(f"host {levels}")
    gpas = [128 << 20, 0xFEE0_0000, 0xFEC0_0000, 1 << 40]  # behind the RAM, and two devices
    for slot in slots:
        gpas += [slot.gpa, slot.end - 1, *(rng.randrange(slot.gpa, slot.end) for _ in range(8))]
    ours = [slots.hva(gpa) for gpa in gpas]
    real = [guest.address(f"gpa2hva {gpa:#x}") for gpa in gpas]
    assert real[:4] == [None] * 4
    record.case(differing(ours, real), [], f"{levels}-level, GPA to HVA")

    # SMAP is for the kernel's own reads; the monitor asks for none.
    how = {**registers, "cr4": registers["cr4"] & ~CR4_SMAP}
    ways, told = [], list(zip(gpas, real, strict=True))
    for gva, _, _ in rng.sample(listed, SAMPLE):
        gva |= rng.randrange(4096)
        gpa = guest.address(f"gva2gpa {gva:#x}")
        hva = guest.address(f"gpa2hva {gpa:#x}")
        found = four_addresses(ram, slots, gva, **how)
        ways.append(((found.gpa, found.hva), (gpa, hva)))
        told.append((gpa, hva))
    record.case(differing(*zip(*ways, strict=True)), [], f"{levels}-level, GVA to HVA")

    hosts = [host_addresses(guest, gpa, hva) for gpa, hva in told if hva is not None]
    known = [pair for pair in hosts if pair[0] is not None]
    assert len(known) > 50 or os.geteuid()
    record.case([pair for pair in known if pair[0] != pair[1]], [], f"{levels}-level, HVA to HPA")


def host_addresses(guest, gpa, hva):
    """Ours and the monitor's, or (None, None) without root, or for a page never touched.

    The kernel may move a page between the two questions; then they are asked again.
    """
    for _ in range(5):
        before = host_address(hva, guest.pagemap).hpa
        if before is None:
            return None, None
        real = guest.address(f"gpa2hpa {gpa:#x}")
        if host_address(hva, guest.pagemap).hpa == before:
            break
    return before, real


def test_all_mappings_of_a_linux(guests, check):
    """Both depths of paging; addresses, sizes, flags, rights, and the way down to the host."""
    kernel = guests[4].kernel
    with check(
        "memory/linux-in-qemu",
        what="every mapping of a Linux guest, with flags and rights, addresses without one, and "
        "the way from there to host-virtual and host-physical addresses",
        tool="QEMU's monitor (info tlb, info mem, gva2gpa, gpa2hva, gpa2hpa)",
        tool_version=f"{qemu_version()}, guest Linux {kernel}",
        covers=[
            "vmlib/memory/four.py",
            "vmlib/memory/many.py",
            "vmlib/memory/paging.py",
            "vmlib/memory/slots.py",
            "vmlib/memory/walk.py",
        ],
    ) as record:
        for levels, guest in guests.items():
            registers, ram = guest.registers(), guest.ram()
            listed = mappings(guest.ask("info tlb"))
            assert len(walk(ram, KERNEL_TEXT, **registers).mode.levels) == levels
            compare_mappings(record, levels, guest, ram, registers, listed)
            if levels == 4:
                compare_rights(record, guest, ram, registers, listed)
            compare_down_to_the_host(record, levels, guest, ram, registers, listed)
            record.show(
                f"{levels}-level: GVA {KERNEL_TEXT:#x} is GPA",
                hex(walk(ram, KERNEL_TEXT, **registers).gpa),
                hex(guest.address(f"gva2gpa {KERNEL_TEXT:#x}")),
            )
