"""Memory slots beside a picture of them page by page, and the way down to the host's memory."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from vmlib.errors import BadInput
from vmlib.memory import (
    GuestRam,
    Map,
    MemorySlots,
    Slot,
    build_tables,
    four_addresses,
    host_address,
)
from vmlib.memory.four import from_pagemap

PAGE = 4096
HVA = 0x7000_0000_0000


def test_random_slots_beside_a_picture_page_by_page():
    """Sets, moves and removals: each is refused exactly where two slots would share a page."""
    rng, slots, picture = random.Random(1), MemorySlots(), {}
    refused = done = 0
    for _ in range(4000):
        number = rng.randrange(6)
        mine = [page for page, (owner, _) in picture.items() if owner == number]
        if mine and rng.random() < 0.3:
            slots.remove(number)
            picture = {page: who for page, who in picture.items() if who[0] != number}
            continue
        size = len(mine) or rng.randrange(1, 8)
        first, hva = rng.randrange(30), HVA + number * 64 * PAGE
        rest = {page: who for page, who in picture.items() if who[0] != number}
        slot = Slot(number, first * PAGE, size * PAGE, hva)
        if any(first + n in rest for n in range(size)):
            refused += 1
            with pytest.raises(BadInput, match="overlaps"):
                slots.set(slot)
        else:
            done += 1
            slots.set(slot)
            rest |= {first + n: (number, hva + n * PAGE) for n in range(size)}
            picture = rest
        page = rng.randrange(40)
        expected = picture.get(page)
        for offset in (0, rng.randrange(PAGE), PAGE - 1):
            wanted = expected[1] + offset if expected else None
            assert slots.hva(page * PAGE + offset) == wanted
        assert len(slots) == len({owner for owner, _ in picture.values()})
    assert min(refused, done) > 200


def test_an_overlap_names_both_and_changes_nothing():
    slots = MemorySlots()
    slots.set(Slot(0, 0, 4 * PAGE, HVA))
    with pytest.raises(BadInput, match=r"slot 7 \(0x3000\.\.0x4fff\) overlaps slot 0 \(0x0"):
        slots.set(Slot(7, 3 * PAGE, 2 * PAGE, HVA))
    assert [one.number for one in slots] == [0]
    slots.set(Slot(7, 4 * PAGE, PAGE, HVA))  # side by side is no overlap


@pytest.mark.parametrize(
    ("field", "slot"),
    [
        ("gpa", Slot(0, 1, PAGE, HVA)),
        ("size", Slot(0, 0, 100, HVA)),
        ("size", Slot(0, 0, 0, HVA)),
        ("hva", Slot(0, 0, PAGE, HVA + 8)),
        ("gpa", Slot(0, (1 << 64) - PAGE, 2 * PAGE, HVA)),
        ("gpa", Slot(0, (1 << 64) - PAGE, PAGE, HVA)),
        ("hva", Slot(0, 0, 2 * PAGE, (1 << 64) - PAGE)),
        ("gpa", Slot(0, -PAGE, PAGE, HVA)),
    ],
)
def test_a_bad_slot_is_refused(field, slot):
    with pytest.raises(BadInput) as caught:
        MemorySlots().set(slot)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "other", [Slot(0, 0, 2 * PAGE, HVA), Slot(0, 0, PAGE, 0), Slot(0, 0, PAGE, HVA, readonly=True)]
)
def test_a_slot_keeps_size_hva_and_readonly(other):
    """KVM's rule: such a change is a removal and a new slot."""
    slots = MemorySlots()
    slots.set(Slot(0, 0, PAGE, HVA))
    with pytest.raises(BadInput, match="remove it first"):
        slots.set(other)
    slots.remove(0)
    slots.set(other)
    with pytest.raises(BadInput, match="no slot 1"):
        slots.remove(1)


def test_a_write_to_a_read_only_slot_is_mmio():
    slots = MemorySlots()
    slots.set(Slot(0, PAGE, PAGE, HVA, readonly=True))
    assert slots.hva(PAGE + 5) == HVA + 5
    assert slots.hva(PAGE + 5, "write") is None


def test_the_dirty_log_holds_each_page_once_and_forgets():
    slots = MemorySlots()
    slots.set(Slot(3, PAGE, 4 * PAGE, HVA, log_dirty=True))
    for gpa in (PAGE, PAGE + 8, 3 * PAGE + 1):
        slots.hva(gpa, "write")
    slots.hva(2 * PAGE, "read")
    assert slots.dirty_log(3).tolist() == [PAGE, 3 * PAGE]
    assert slots.dirty_log(3).tolist() == []
    slots.set(Slot(3, PAGE, 4 * PAGE, HVA))
    with pytest.raises(BadInput, match="keeps no dirty log"):
        slots.dirty_log(3)


def test_a_log_goes_with_its_slot_and_outlives_a_move():
    slots, logged = MemorySlots(), Slot(1, 0x1_0000, 0x4000, 0x40_0000, log_dirty=True)
    slots.set(logged)
    slots.hva(0x1_1000, "write")
    slots.set(replace(logged, gpa=0x2_0000))
    assert slots.dirty_log(1).tolist() == [0x2_1000]
    slots.hva(0x2_1000, "write")
    slots.set(replace(logged, log_dirty=False))
    slots.set(logged)
    assert slots.dirty_log(1).tolist() == []
    slots.hva(0x1_1000, "write")
    slots.remove(1)
    slots.set(replace(logged, size=0x2000))
    assert slots.dirty_log(1).tolist() == []


# ---- Down to the host


def test_the_page_map_has_a_word_for_each_case():
    assert from_pagemap(0, 5).word.startswith("no page yet")
    assert from_pagemap(1 << 62 | 99, 5).word.startswith("the page is swapped out")
    assert from_pagemap(1 << 63, 5).word.startswith("the host hides")
    assert from_pagemap(1 << 63 | 7, 0x1005).hpa == 7 * PAGE + 5
    assert host_address(0, Path("/nonexistent")).word.startswith("/nonexistent cannot be read")


def test_two_addresses_of_one_page_have_one_frame():
    """The kernel is the authority: a file mapped twice is one page with two virtual addresses."""
    import ctypes
    import mmap
    import tempfile

    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(PAGE)
        one, two = mmap.mmap(file.fileno(), PAGE), mmap.mmap(file.fileno(), PAGE)
        places = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (one, two)]
        assert host_address(places[0]).hpa is None
        one[0], two[1] = 1, 2
        found = [host_address(place + 9) for place in places]
    assert places[0] != places[1]
    assert found[0] == found[1]
    assert found[0].hpa is None or found[0].hpa % PAGE == 9


def test_four_addresses_and_where_the_way_ends():
    ram = GuestRam("64K")
    mapping = [Map(0x40_0000, 0x9000), Map(0x41_0000, 0x9000_0000), Map(0x42_0000, 0x8000)]
    tables = build_tables(ram, at=0x1000, mapping=mapping)
    slots = MemorySlots()
    slots.set(Slot(0, 0, 0x8000, ram.hva))
    slots.set(Slot(1, 0x8000, 0x1000, ram.hva + 0x8000, readonly=True))
    slots.set(Slot(2, 0x9000, 0x7000, ram.hva + 0x9000))
    ram.write(0x9000, b"x")
    found = four_addresses(ram, slots, 0x40_0123, **tables.registers)
    assert (found.gpa, found.hva) == (0x9123, ram.hva + 0x9123)
    assert found.hpa is None or found.hpa % PAGE == 0x123
    hole = four_addresses(ram, slots, 0x41_0000, **tables.registers)
    assert (hole.gpa, hole.hva, hole.word) == (0x9000_0000, None, "no slot holds it: MMIO")
    rom = four_addresses(ram, slots, 0x42_0000, **tables.registers, access="write")
    assert rom.hva is None
    assert "read-only" in rom.word
    fault = four_addresses(ram, slots, 0x43_0000, **tables.registers)
    assert (fault.gpa, fault.word) == (None, "the guest faults: vector 14, level 1")
