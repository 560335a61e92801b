"""What a caller gets wrong is named, wherever in the room it comes in; nothing else is raised."""

import pytest

from vmlib.errors import BadInput
from vmlib.memory import (
    Ept,
    GuestRam,
    HostPages,
    Map,
    MemorySlots,
    NestedPager,
    Npt,
    Rulers,
    ShadowPager,
    Slot,
    TlbShape,
    batch,
    build_tables,
    record_four,
    record_walk,
    record_walk_nested,
    translate_gpa,
    walk,
    walk_many,
    walk_nested,
    walk_nested_many,
)

RAM = GuestRam("64K")
REGS = build_tables(RAM, at=0x1000, mapping=[Map(0x40_0000, 0x9000)]).registers
EPT, NPT = Ept(0x1018), Npt(0x1000)
NOBODY = Rulers((), (), (), ())


@pytest.mark.parametrize(
    "act",
    [
        lambda how: walk(RAM, 0, **how),
        lambda how: walk_many(RAM, [0], **how),
        lambda how: walk_nested(RAM, 0, EPT, **how),
        lambda how: walk_nested_many(RAM, [0], NPT, **how),
        lambda how: record_walk(RAM, 0, **how),
        lambda how: record_walk_nested(RAM, 0, EPT, **how),
        lambda how: record_four(RAM, MemorySlots(), 0, NOBODY, **how),
        lambda how: translate_gpa(RAM, EPT, 0, how["access"]),
        lambda how: translate_gpa(RAM, NPT, 0, how["access"]),
    ],
)
def test_no_such_access(act):
    with pytest.raises(BadInput, match="access: is 'read', 'write' or 'fetch', not 'jump'"):
        act({**REGS, "access": "jump"})


@pytest.mark.parametrize("pages", [0, -1, 33, 64])
def test_a_batch_of_more_pages_than_there_are_frames(pages):
    with pytest.raises(BadInput, match="pages: are 1 to 32"):
        batch(pages)
    assert len(batch(32)) == 65


@pytest.mark.parametrize("structures", [{2: 0}, {1: 4}, {6: 4}])
def test_a_paging_structure_cache_that_is_none(structures):
    with pytest.raises(BadInput, match="structures"):
        TlbShape(structures=structures)


@pytest.mark.parametrize("pager", [ShadowPager, NestedPager])
def test_words_off_their_boundary(pager):
    """Eight bytes from the end of a page would be those of two, which lie apart in the host."""
    host, slots = GuestRam("1M"), MemorySlots()
    slots.set(Slot(0, 0, 0x10000, 0x80000))
    one = pager(host, slots, at=0, end=0x40000, **REGS)
    for act in (lambda: one.load(0x40_0FFC), lambda: one.store(0x40_0FFC, 1)):
        with pytest.raises(BadInput, match="gva: is a multiple of 8"):
            act()


def test_a_recording_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.json"):
        HostPages.load(tmp_path / "gone.json")
