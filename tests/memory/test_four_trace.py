"""The recording behind the four rulers: made live, kept, and equal to `four_addresses`."""

import os
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from vmlib.errors import BadInput
from vmlib.machine import host_name
from vmlib.memory import (
    HostPages,
    MemorySlots,
    Slot,
    four_addresses,
    four_opening,
    four_problem,
    four_slots,
    four_tables,
    host_pages,
    record_four,
    record_four_example,
    rulers_of,
)
from vmlib.memory.four_example import PLACES, POSITIONS, SIZES, UNTOUCHED

KEPT = Path(__file__).parents[2] / "book/memory/traces/four-host.json"
PAGES = sum(SIZES) // 4096 - len(UNTOUCHED)


def test_where_the_host_has_put_them(request):
    """Live: as many pages as were touched, each in a frame of its own.

    This writes the file where it is missing, under --write-checks. The lab shows its addresses, so
    a new one wants the lab executed again.
    """
    live = host_pages(host_name(), date.today().isoformat())
    if os.geteuid():
        assert not live.pages, "a process without root sees no page frames"
        return
    assert len(live.pages) == len(set(live.pages.values())) == PAGES
    if request.config.getoption("--write-checks") and not KEPT.exists():
        live.save(KEPT)
    kept = HostPages.load(KEPT)
    assert len(kept.pages) == len(set(kept.pages.values())) == PAGES

    def shape(one):
        """Which pages of which piece there are; the addresses are others each time."""
        return [
            [hva + at in one.pages for at in range(0, size, 4096)]
            for hva, size in zip(one.hvas, SIZES, strict=True)
        ]

    assert shape(kept) == shape(live)
    assert all(hpa % 4096 == 0 for hpa in kept.pages.values())


@pytest.mark.parametrize("position", POSITIONS)
def test_it_tells_what_four_addresses_tells(position):
    kept, (memory, registers) = HostPages.load(KEPT), four_tables()
    slots = four_slots(position, kept.hvas)
    for gva in PLACES:
        for access in ("read", "write"):
            trace = record_four_example(kept, gva, position, access)
            found = four_addresses(memory, slots, gva, **registers, access=access)
            hpa = kept.address(found.hva).hpa if found.hva is not None else None
            told = [value for _, value in trace.steps[-1].state["registers"]]
            meant = [gva, found.gpa, found.hva, hpa]
            assert told == ["unknown" if one is None else f"{one:#x}" for one in meant]
            assert trace.counters["addresses"] == 4 - meant.count(None)


def test_two_names_of_one_byte():
    kept = HostPages.load(KEPT)
    ends = [
        record_four_example(kept, gva).steps[-1].state["registers"][1:]
        for gva in (0x7FFF_FFFF_D123, 0xFFFF_8000_0008_2123)
    ]
    assert ends[0] == ends[1]


def test_the_rulers_cover_what_is_drawn():
    kept = HostPages.load(KEPT)
    rulers = record_four_example(kept).steps[0].state["rulers"]
    gpa = dict(rulers)["GPA"]
    ends = [int(first, 16) + int(size, 16) for _, first, size in gpa]
    assert [int(first, 16) for _, first, _ in gpa] == [0, *ends[:-1]]
    assert ends[-1] == 1 << 20
    assert [label for label, _, _ in gpa] == [
        "slot 0", "hole", "slot 1", "hole", "slot 2, read-only",
    ]  # fmt: skip
    assert rulers_of([], MemorySlots(), [], 0).plain() == [
        [n, []] for n in ("GVA", "GPA", "HVA", "HPA")
    ]


def test_paging_off_and_a_live_host():
    memory, _ = four_tables()
    slots = MemorySlots()
    slots.set(Slot(0, 0, 4096, 0x1000))
    empty = rulers_of([], slots, [], 4096)
    trace = record_four(memory, slots, 0x123, empty, cr0=0x11, cr3=0, cr4=0, efer=0)
    assert [step.event for step in trace.steps] == ["start", "guest", "slot", "later"]
    assert trace.steps[1].text == "Paging is off in the guest: GPA 0x123 is the address as it is."
    assert four_opening(trace) == 2


def test_bad_input_is_named(tmp_path):
    kept = HostPages.load(KEPT)
    with pytest.raises(BadInput, match="position"):
        record_four_example(kept, position="0x1000")
    with pytest.raises(BadInput, match="access"):
        record_four_example(kept, access="fetch")
    (tmp_path / "x.json").write_text('{"hvas": []}')
    with pytest.raises(BadInput, match=r"x\.json"):
        HostPages.load(tmp_path / "x.json")


def test_problems_are_the_same_for_everybody_and_cover_every_end():
    ends = Counter()
    for seed in range(200):
        problem = four_problem(seed)
        assert problem == four_problem(seed)
        assert problem.mark() == f"Problem {seed}: GPA: not answered yet; HVA: not answered yet"
        gpa, hva = problem.truth
        assert problem.mark(gpa, hva).count("right") == 2
        assert problem.mark("no", 0).count("not so") == 2
        ends[hva if isinstance(hva, str) else "HVA"] += 1
        if isinstance(hva, int):  # by hand, from the question's own words
            (one,) = [m for m in problem.mapping if m.gva <= problem.gva < m.gva + m.size]
            (slot,) = [s for s in problem.slots if s.gpa <= gpa < s.end]
            assert gpa == one.gpa + problem.gva - one.gva
            assert hva == slot.hva + gpa - slot.gpa
    assert min(ends[end] for end in ("fault", "MMIO", "HVA")) > 20, ends
    with pytest.raises(BadInput, match="seed"):
        four_problem(-1)
