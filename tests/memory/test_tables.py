"""Tables made from a description lead where the description says, and nowhere else."""

import random

import pytest

from vmlib.errors import BadInput
from vmlib.memory import GuestRam, Map, build_tables, walk

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_every_page_leads_where_it_should(levels):
    """Any page of the mapping, any offset in it; the pages beside it are not there."""
    ram = GuestRam("1M")
    large = 4 * MIB if levels == 2 else 2 * MIB
    mapping = [
        Map(0x40_0000, 0x9000, 5 * 4 * KIB),
        Map(0x8000_0000, 0x4000_0000, 3 * large, page=large),
    ]
    if levels > 3:
        mapping += [Map(0xFFFF_8000_0000_0000, 1 << 40, 2 * GIB, page=GIB)]
    tables = build_tables(ram, at=0x10000, mapping=mapping, levels=levels)
    rng = random.Random(levels)
    for one in mapping:
        for _ in range(20):
            offset = rng.randrange(one.size)
            found = walk(ram, one.gva + offset, **tables.registers, access="write", cpl=3)
            assert (found.gpa, found.page_size) == (one.gpa + offset, one.page)
        for beside in (one.gva - 1, one.gva + one.size):
            assert walk(ram, beside, **tables.registers).fault.vector in (13, 14)
    assert tables.pages[0] == tables.registers["cr3"] == 0x10000


def test_each_right_is_the_leaf_s():
    ram = GuestRam("64K")
    rights = [
        Map(0x1000, 0, writable=False),
        Map(0x2000, 0, user=False),
        Map(0x3000, 0, nx=True),
        Map(0x4000, 0, key=5),
        Map(0x5000, 0, shared=True),
    ]
    tables = build_tables(ram, at=0x4000, mapping=rights)

    def code(gva, **how):
        found = walk(ram, gva, **{**tables.registers, "cpl": 3, **how})
        return found.fault.error_code if found.fault else None

    assert [code(gva, access="write") for gva in (0x1000, 0x2000, 0x3000)] == [7, 7, None]
    assert [code(gva) for gva in (0x1000, 0x2000, 0x3000)] == [None, 5, None]
    assert code(0x3000, access="fetch") == 0x15
    keys = {"cr4": tables.registers["cr4"] | 1 << 22, "pkru": 1 << 10}
    assert (code(0x4000, **keys), code(0x3000, **keys)) == (0x25, None)
    assert "G" in walk(ram, 0x5000, **tables.registers).steps[-1].flags


def test_an_entry_can_be_found_and_changed():
    ram = GuestRam("64K")
    tables = build_tables(ram, at=0x4000, mapping=[Map(0x1000, 0x9000)])
    assert ram.read_u64(tables.entry(ram, 0x1000)) & 0xFF000 == 0x9000
    assert tables.entry(ram, 0x1000, level=4) == 0x4000
    with pytest.raises(BadInput, match="passes no entry"):
        tables.entry(ram, 1 << 40)


@pytest.mark.parametrize(
    ("field", "how"),
    [
        ("at", {"at": 0x123}),
        ("levels", {"levels": 6}),
        ("levels", {"levels": 3, "format": "ept"}),
        ("at", {"at": 0xF000}),
        ("mapping", {"mapping": [Map(0, 0), Map(0, 0x1000)]}),
        ("mapping", {"mapping": [Map(0, 0, 2 * MIB, page=2 * MIB), Map(0x1000, 0)]}),
        ("mapping", {"mapping": [Map(0x1000, 0), Map(0, 0, 2 * MIB, page=2 * MIB)]}),
        ("page", {"mapping": [Map(0, 0, 4 * MIB, page=4 * MIB)]}),
        ("page", {"mapping": [Map(0, 0, GIB, page=GIB)], "levels": 3}),
        ("gva", {"mapping": [Map(0x10, 0)]}),
        ("gpa", {"mapping": [Map(0, 0x1000, 2 * MIB, page=2 * MIB)]}),
        ("size", {"mapping": [Map(0, 0, 0)]}),
        ("size", {"mapping": [Map(0, 0, 0x800)]}),
        ("key", {"mapping": [Map(0, 0, key=16)]}),
        ("gva", {"mapping": [Map(1 << 32, 0)], "levels": 2}),
        ("gpa", {"mapping": [Map(0, 1 << 52)]}),
        ("nx", {"mapping": [Map(0, 0, nx=True)], "levels": 2}),
    ],
)
def test_what_does_not_fit_is_named(field, how):
    with pytest.raises(BadInput) as caught:
        build_tables(GuestRam("64K"), **{"at": 0x4000, "mapping": [Map(0, 0)], **how})
    assert caught.value.field == field
