"""The nested pager: one nested page fault a page, and nothing for what the guest does after."""

import pytest

from vmlib.errors import BadInput
from vmlib.memory import GuestRam, Map, MemorySlots, NestedPager, Slot, build_tables
from vmlib.units import KIB, MIB

GUEST, PAGES = 4 * MIB, 0x40_0000


class Shifted:
    size = MIB

    def __init__(self, host):
        self.host = host

    def read_u64(self, gpa):
        return self.host.read_u64(GUEST + gpa)

    def write(self, gpa, data):
        self.host.write(GUEST + gpa, data)


@pytest.fixture
def world():
    host = GuestRam(8 * MIB)
    ram = Shifted(host)
    mapping = [
        Map(PAGES, 0x80000, 16 * KIB),
        Map(PAGES + 0x4000, 0x90000),
        Map(PAGES + 0x5000, 0x20_0000),
        Map(PAGES + 0x8000, 0x10000, 32 * KIB),  # the tables themselves
    ]
    tables = build_tables(ram, at=0x10000, mapping=mapping)
    slots = MemorySlots()
    slots.set(Slot(0, 0, 0x90000, GUEST))
    slots.set(Slot(1, 0x90000, 4 * KIB, GUEST + 0x90000, readonly=True))
    yield NestedPager(host, slots, at=0, end=MIB, **tables.registers), tables, ram
    host.close()


def test_each_page_is_asked_for_once_tables_too(world):
    pager, _, _ = world
    done = pager.access(PAGES + 8)
    assert (done.gpa, done.hpa, done.trap) == (0x80008, GUEST + 0x80008, "filled")
    assert pager.traps == {"filled": 5}  # four tables and the page
    assert pager.access(PAGES + 0x10).trap is None
    assert pager.access(PAGES + 0x1000, "write").hpa == GUEST + 0x81000
    assert pager.traps == {"filled": 6}
    assert pager.counts == {"tables made": 4}


def test_what_the_guest_does_to_its_tables_is_its_own_affair(world):
    pager, tables, ram = world
    for page in range(2):
        pager.load(PAGES + 0x1000 * page)
    before = dict(pager.traps)
    entry = tables.entry(ram, PAGES)
    pager.access(PAGES + 0x8000 + entry - 0x10000 & -8, "write")
    pager.store(PAGES + 0x8000 + entry - 0x10000, 0x81007)
    pager.invlpg(PAGES)
    pager.load_cr3(tables.root)
    assert pager.access(PAGES).gpa == 0x81000
    assert pager.traps == before


def test_faults_stay_in_the_guest_and_devices_do_not(world):
    pager, _, _ = world
    done = pager.access(PAGES + 0x10_0000)
    assert (done.fault.vector, done.fault.error_code, done.hpa) == (14, 0, None)
    done = pager.access(PAGES + 0x5008)
    assert (done.gpa, done.hpa, done.trap) == (0x20_0008, None, "mmio")
    assert pager.load(PAGES + 0x5008) is None
    assert pager.load(PAGES + 0x4000) == 0
    assert pager.store(PAGES + 0x4000, 1).trap == "mmio"  # a read-only slot
    assert pager.traps["mmio"] == 3


def test_room_for_tables_ends(world):
    pager, tables, _ = world
    small = NestedPager(pager.host, pager.slots, at=0, end=8 * KIB, **tables.registers)
    with pytest.raises(BadInput, match="no room"):
        small.access(PAGES)
