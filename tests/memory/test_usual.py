"""The quick way through the second stage: taken when all is usual, given up when not."""

import numpy as np
import pytest

from vmlib.memory import Ept, GuestRam, Map, Npt, build_tables, translate_gpa
from vmlib.memory.paging import NX
from vmlib.memory.usual import usual_walk

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FIRST, LAST = 0x40_0000, 0x5F_F000


def nested(kind, levels=4, page=4 * KIB):
    """Tables that map 2 MiB or more to 4 MiB further up, and their RAM."""
    ram = GuestRam("1M")
    start = FIRST & -page
    one = Map(start, start + (4 * MIB if page < GIB else GIB), max(page, 2 * MIB), page=page)
    format = "ept" if kind == "ept" else "x86"
    tables = build_tables(ram, at=0x1000, mapping=[one], levels=levels, format=format)
    return ram, tables, Ept(tables.eptp) if kind == "ept" else Npt(tables.root, levels)


def gpas():
    return np.arange(FIRST, LAST + 1, 0x1234, dtype=np.uint64)


@pytest.mark.parametrize("access", ["read", "write", "fetch"])
@pytest.mark.parametrize("page", [4 * KIB, 2 * MIB, GIB])
@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("kind", ["ept", "npt"])
def test_it_is_taken_and_leads_where_the_walk_leads(kind, levels, page, access):
    ram, _, second = nested(kind, levels, page)
    hpa, size = usual_walk(ram.u64, gpas(), second, access)
    walked = [translate_gpa(ram, second, int(gpa), access) for gpa in gpas()]
    assert hpa.tolist() == [one.hpa for one in walked]
    assert size == page == walked[0].page_size


CHANGES = {
    "absent": lambda entry: entry & ~7,
    "not writable": lambda entry: entry & ~2,
    "a reserved bit": lambda entry: entry | 1 << 51,
    "outside RAM": lambda entry: entry | 1 << 39,
    "a large page": lambda entry: entry & 0xFFF | 6 << 3 | 1 << 7,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["ept", "npt"])
def test_one_odd_entry_gives_it_up(kind, level, change):
    """The odd entry is that of the last lane. Some of these are no oddity at every level."""
    ram, tables, second = nested(kind)
    second = Ept(second.eptp, 48) if kind == "ept" else Npt(second.n_cr3, maxphyaddr=48)
    gpa = gpas()
    at = tables.entry(ram, int(gpa[-1]), level)
    ram.write_u64(at, CHANGES[change](ram.read_u64(at)))
    found = usual_walk(ram.u64, gpa, second, "write")
    # Data may lie anywhere; all lanes may share one large page; in a PTE bit 7 is another thing.
    fine = (change == "outside RAM" and level == 1) or (change == "a large page" and level < 4)
    assert (found is not None) == fine
    if found:
        walked = [translate_gpa(ram, second, int(one), "write") for one in gpa]
        assert [(one.hpa, one.page_size) for one in walked] == [
            (hpa, found[1]) for hpa in found[0].tolist()
        ]


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["ept", "npt"])
def test_a_fetch_gives_it_up_where_one_entry_forbids_it(kind, level):
    ram, tables, second = nested(kind)
    at = tables.entry(ram, int(gpas()[-1]), level)
    ram.write_u64(at, ram.read_u64(at) & ~4 if kind == "ept" else ram.read_u64(at) | NX)
    assert usual_walk(ram.u64, gpas(), second, "read")
    assert usual_walk(ram.u64, gpas(), second, "fetch") is None


def test_pages_of_two_sizes_and_addresses_beyond_the_tables():
    ram = GuestRam("1M")
    maps = [Map(0, 0, 2 * MIB), Map(2 * MIB, 2 * MIB, 2 * MIB, page=2 * MIB)]
    second = Ept(build_tables(ram, at=0, mapping=maps, format="ept").eptp)
    assert usual_walk(ram.u64, np.array([0, 3 * MIB], np.uint64), second, "read") is None
    assert usual_walk(ram.u64, np.array([0, 1 << 48], np.uint64), second, "read") is None
    assert usual_walk(ram.u64, np.array([5], np.uint64), second, "read")[0].tolist() == [5]
