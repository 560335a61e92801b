"""Whatever a guest writes into its tables: an address, a fault, an exit, or one of our errors.

Garbage of every kind, in the guest's tables and in those of the second stage: nothing else may
come out of any walk, and those by the array must say the same as those one by one.
"""

import random
from collections import Counter

import numpy as np
import pytest
from test_nested import nested_row, nested_rows
from test_walk_many import one_by_one, rows

from vmlib.errors import BadInput
from vmlib.memory import (
    Ept,
    GuestRam,
    MemorySlots,
    Npt,
    Slot,
    TableOutsideRam,
    four_addresses,
    walk,
    walk_many,
    walk_nested,
    walk_nested_many,
)
from vmlib.memory.paging import CR4_LA57, CR4_PAE, PS

PAGE, RAM, NONE = 4096, 64 * 1024, (1 << 64) - 1
TABLE_BITS = np.uint64(0xFFF | 1 << 63)


def garbage(rng):
    """RAM of one kind of nonsense, from pure noise to tables that are almost right."""
    ram = GuestRam(RAM)
    kind = rng.randrange(5)
    noise = np.frombuffer(rng.randbytes(RAM), np.uint64)
    pages = noise >> np.uint64(20) << np.uint64(12) & np.uint64(RAM - PAGE)
    entries = {
        0: noise,
        1: pages | noise & TABLE_BITS | np.uint64(1),  # all within RAM: loops everywhere
        2: pages | np.uint64(7),
        3: pages | noise & np.uint64(0x87) | np.uint64(0x30),  # EPT: types, large pages
        4: np.full(RAM // 8, rng.choice([0, 7, PS | 7, (1 << 64) - 1, 0x1007, 1 << 51 | 7])),
    }[kind].astype(np.uint64)
    ram.write(0, entries.tobytes())
    for _ in range(rng.randrange(20)):
        ram.write_u64(rng.randrange(0, RAM, 8), rng.getrandbits(64))
    return ram


def registers(rng):
    """Control registers, sensible or not: long mode without PAE is `BadInput`."""
    regs = {"cr0": rng.choice([0x8001_0011, 0x8000_0011, 0x11, rng.getrandbits(32)])}
    regs["cr3"] = rng.choice([0, 0x1000, rng.getrandbits(16), rng.getrandbits(52)])
    regs["cr4"] = rng.choice([CR4_PAE, CR4_PAE | CR4_LA57, 0x10, 0, rng.getrandbits(24)])
    regs["efer"] = rng.choice([0xD00, 0x500, 0, rng.getrandbits(13)])
    regs |= {"access": rng.choice(["read", "write", "fetch"]), "cpl": rng.randrange(4)}
    regs |= {"pkru": rng.getrandbits(32), "ac": rng.random() < 0.5}
    return regs | {"maxphyaddr": rng.choice([52, 40, 32]), "implicit": rng.random() < 0.1}


def second_stage(rng):
    if rng.random() < 0.5:
        eptp = rng.choice([0, 0x1000, rng.getrandbits(16)]) & ~0x38 | rng.choice([3, 4]) << 3
        return Ept(eptp, rng.choice([52, 40]), rng.random() < 0.5)
    return Npt(rng.getrandbits(16), rng.choice([4, 5]), rng.choice([52, 40]), rng.random() < 0.8)


def one_trial(seed, seen):
    rng = random.Random(seed)
    ram, regs, second = garbage(rng), registers(rng), second_stage(rng)
    gvas = [rng.getrandbits(rng.choice([12, 32, 47, 48, 57, 64])) for _ in range(8)]
    try:
        flat = [one_by_one(ram, gva, **regs) for gva in gvas]
    except BadInput as error:
        with pytest.raises(BadInput, match=error.field):
            walk_many(ram, gvas, **regs)
        with pytest.raises(BadInput, match=error.field):
            walk_nested(ram, gvas[0], second, **regs)
        seen["BadInput"] += 1
        return
    assert rows(walk_many(ram, gvas, **regs)) == flat, seed
    nested = [nested_row(ram, gva, second, **regs) for gva in gvas]
    assert nested_rows(walk_nested_many(ram, gvas, second, **regs)) == nested, seed
    for hpa, _, reason, _, _, vector, _ in nested:
        ended = f"exit {reason}" if reason else f"vector {vector}"
        seen["address" if hpa != NONE else ended] += 1
    slots = MemorySlots()
    slots.set(Slot(0, 0, RAM // 2, ram.hva))
    for gva in gvas[:2]:
        how = {name: regs[name] for name in ("cr0", "cr3", "cr4", "efer", "access", "cpl")}
        try:
            four_addresses(ram, slots, gva, **how)
            walk(ram, gva, **regs, set_ad=True)
            walk_nested(ram, gva, second, **regs, set_ad=True)
        except TableOutsideRam as error:
            seen[type(error).__name__] += 1
    walk_many(ram, gvas, **regs, set_ad=True)


def test_garbage_never_escapes():
    """A slice; the seed of the day's run stands in the message of a failure."""
    start, seen = random.SystemRandom().randrange(1 << 32), Counter()
    for seed in range(start, start + 1500):
        one_trial(seed, seen)
    expected = {"address", "vector 14", "vector 13", "vector 255", "exit 48", "exit 49"}
    assert expected | {"exit 1024", "BadInput", "TableOutsideRam"} <= seen.keys(), seen


@pytest.mark.soak
def test_garbage_for_long(log_soak):
    seed, count, seen = random.SystemRandom().randrange(1 << 32), 200_000, Counter()
    for one in range(seed, seed + count):
        one_trial(one, seen)
    log_soak("garbage in page tables, one and two stages", seed, count)


# ---- Tables that lead nowhere, and slots that do not fit


def test_nested_tables_that_point_to_themselves():
    """One entry serves all levels of both stages, and is the data too: hardware does not mind."""
    ram = GuestRam("8K")
    ram.write_u64(0x1000 + 511 * 8, 0x1000 | 7)
    how = {"cr0": 0x8001_0011, "cr3": 0x1000, "cr4": 0x20, "efer": 0xD00, "access": "write"}
    top = 0xFFFF_FFFF_FFFF_FFF8
    assert walk(ram, top, **how).gpa == 0x1FF8
    # Guest-physical 0x1ff8 has nested index 0 at the top, and that entry is empty.
    assert walk_nested(ram, top, Npt(0x1000), **how).exit.level == 4
    ram.write_u64(0x1000, 0x1000 | 7)
    ram.write_u64(0x1008, 0x1000 | 7)
    found = walk_nested(ram, top, Npt(0x1000), **how, set_ad=True)
    assert (found.hpa, found.gpa, len(found.steps)) == (0x1FF8, 0x1FF8, 24)
    assert {step.hpa for step in found.steps} == {0x1000, 0x1008, 0x1FF8}
    assert ram.read_u64(0x1FF8) == 0x1000 | 0x67


@pytest.mark.parametrize("format", ["ept", "npt"])
def test_a_nested_table_outside_ram_is_named_with_its_level(format):
    ram = GuestRam("64K")
    ram.write_u64(0x1000, 1 << 45 | 7)
    second = Ept(0x1018) if format == "ept" else Npt(0x1000)
    how = {"cr0": 0x8001_0011, "cr3": 0x2000, "cr4": 0x20, "efer": 0xD00}
    with pytest.raises(TableOutsideRam, match="level-3 table entry at 0x200000000000") as caught:
        walk_nested(ram, 0x5000, second, **how)
    assert (caught.value.level, caught.value.gpa) == (3, 1 << 45)


def test_slots_at_the_ends_of_the_address_space():
    """To the last page but one: KVM's sum has 64 bits. An overlap names both slots."""
    slots, last = MemorySlots(), (1 << 64) - PAGE
    slots.set(Slot(1, last - PAGE, PAGE, 0x1000))
    assert slots.hva(last - 1) == 0x1FFF
    assert slots.hva(last) is None
    assert slots.hva(last - PAGE - 1) is None
    for size in (PAGE, 2 * PAGE):
        with pytest.raises(BadInput, match=r"slot 2 \(0xffff.*wraps around"):
            slots.set(Slot(2, last, size, 0x1000))
    with pytest.raises(BadInput, match=r"slot 3 .* overlaps slot 1 "):
        slots.set(Slot(3, last - 2 * PAGE, 2 * PAGE, 0x1000))
    assert [slot.number for slot in slots] == [1]
