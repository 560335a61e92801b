"""The shadow pager, one rule a test: what traps, what is counted, what is refused."""

import pytest

from vmlib.errors import BadInput, Unsupported
from vmlib.memory import (
    KVM,
    OUT_OF_SYNC,
    WRITE_PROTECT,
    GuestRam,
    Map,
    MemorySlots,
    ShadowPager,
    Slot,
    TableOutsideRam,
    build_tables,
)
from vmlib.memory.paging import CR0_WP, CR4_PAE, CR4_PKE, CR4_SMAP, CR4_SMEP, NX, US
from vmlib.units import KIB, MIB

GUEST = 4 * MIB  # host-physical address of guest-physical 0
WINDOW, PAGES, LARGE = 0x1000_0000, 0x40_0000, 0x4000_0000
STRATEGIES = pytest.mark.parametrize("strategy", [WRITE_PROTECT, OUT_OF_SYNC, KVM], ids=str)


class World:
    """A guest of 2 MiB: its tables from 0x10000, seen at WINDOW; four pages at PAGES."""

    def __init__(self, strategy=WRITE_PROTECT, levels=4, **options):
        self.host = GuestRam(8 * MIB)
        self.ram = Shifted(self.host)
        self.tables = build_tables(
            self.ram,
            at=0x10000,
            levels=levels,
            mapping=[
                Map(PAGES, 0x80000, 16 * KIB),
                Map(PAGES + 0x4000, 0x84000, writable=False),
                Map(PAGES + 0x5000, 0x85000, user=False),
                Map(PAGES + 0x6000, 0x86000, nx=True),
                Map(PAGES + 0x7000, 0x7F0000),
                Map(WINDOW, 0, 512 * KIB),
                Map(LARGE, 0, 2 * MIB, page=2 * MIB),
            ],
        )
        slots = MemorySlots()
        slots.set(Slot(0, 0, 2 * MIB, GUEST))
        registers = self.tables.registers | options.pop("registers", {})
        self.pager = ShadowPager(
            self.host, slots, at=0, end=MIB, strategy=strategy, **registers, **options
        )

    def pte(self, gva, level=1):
        return WINDOW + self.tables.entry(self.ram, gva, level)

    def value(self, gva, level=1):
        return self.ram.read_u64(self.tables.entry(self.ram, gva, level))


class Shifted:
    """The guest's memory, as the host has it."""

    size = 2 * MIB

    def __init__(self, host):
        self.host = host

    def read_u64(self, gpa):
        return self.host.read_u64(GUEST + gpa)

    def write(self, gpa, data):
        self.host.write(GUEST + gpa, data)


@STRATEGIES
@pytest.mark.parametrize("levels", [4, 5])
def test_a_translation_is_filled_once(strategy, levels):
    world = World(strategy, levels)
    assert world.pager.access(PAGES + 0x2000, "write").trap == "filled"  # and D with it
    world = World(strategy, levels)
    first, again = (world.pager.access(PAGES + 0x123) for _ in range(2))
    assert (first.gpa, first.hpa, first.trap) == (0x80123, GUEST + 0x80123, "filled")
    assert (again.gpa, again.hpa, again.trap) == (0x80123, GUEST + 0x80123, None)
    assert world.pager.traps == {"filled": 1}
    assert world.pager.counts["pages created"] == levels
    shadow = world.pager.walk(PAGES)
    assert (shadow.gpa, shadow.page_size, len(shadow.entries)) == (GUEST + 0x80000, 4 * KIB, levels)


def test_the_first_write_to_a_clean_page_is_seen_and_sets_d():
    world = World()
    assert world.value(PAGES) & 0x60 == 0
    world.pager.access(PAGES)
    assert world.value(PAGES) & 0x60 == 0x20
    assert world.pager.store(PAGES, 5).trap == "dirty"
    assert world.value(PAGES) & 0x60 == 0x60
    assert world.pager.store(PAGES, 6).trap is None
    assert world.pager.load(PAGES) == 6
    assert world.pager.counts["accessed set"] == 4
    assert world.pager.counts["dirty set"] == 1


@pytest.mark.parametrize(
    ("gva", "access", "cpl", "code"),
    [
        (PAGES + 0x10_0000, "read", 0, 0),
        (PAGES + 0x10_0000, "write", 3, 6),
        (PAGES + 0x4000, "write", 0, 3),
        (PAGES + 0x5000, "read", 3, 5),
        (PAGES + 0x6000, "fetch", 0, 0x11),
    ],
)
@STRATEGIES
def test_a_fault_of_the_guests_is_given_back(strategy, gva, access, cpl, code):
    world = World(strategy)
    for _ in range(2):
        done = world.pager.access(gva, access, cpl=cpl)
        assert (done.fault.vector, done.fault.error_code) == (14, code)
        assert (done.hpa, done.trap) == (None, "injected")
    assert world.pager.traps == {"injected": 2}
    assert world.pager.access(1 << 60).fault.vector == 13


def test_a_write_to_a_guest_table_is_carried_out_and_takes_effect():
    world = World(WRITE_PROTECT)
    world.pager.access(PAGES)
    done = world.pager.store(world.pte(PAGES), 0x81007)
    assert done.trap == "emulated"
    assert world.value(PAGES) == 0x81007
    assert world.pager.access(PAGES).gpa == 0x81000  # no INVLPG was needed
    assert world.pager.store(world.pte(PAGES), 0x82007).trap == "emulated"
    assert world.pager.traps["emulated"] == 2


def test_a_table_goes_out_of_sync_until_invlpg():
    world = World(OUT_OF_SYNC)
    for page in (0, 0x1000):
        world.pager.access(PAGES + page)
    assert world.pager.store(world.pte(PAGES), 0x82007).trap == "unsync"
    assert world.pager.store(world.pte(PAGES + 0x1000), 0x83007).trap is None  # unseen
    assert [world.pager.access(PAGES + page).gpa for page in (0, 0x1000)] == [0x80000, 0x81000]
    world.pager.invlpg(PAGES)
    assert [world.pager.access(PAGES + page).gpa for page in (0, 0x1000)] == [0x82000, 0x81000]
    world.pager.load_cr3(world.tables.root)
    assert [world.pager.access(PAGES + page).gpa for page in (0, 0x1000)] == [0x82000, 0x83000]
    assert world.pager.counts["pages unsynced"] == world.pager.counts["pages synced"] == 1
    assert world.pager.store(world.pte(PAGES), 0x80007).trap == "unsync"  # protected again


def test_an_upper_table_is_never_out_of_sync():
    world = World(OUT_OF_SYNC)
    world.pager.access(PAGES)
    assert world.pager.store(world.pte(PAGES, 2), 0).trap == "emulated"
    assert world.pager.access(PAGES).fault.error_code == 0


def test_shadow_pages_outlive_a_load_of_cr3():
    world = World()
    world.pager.access(PAGES)
    world.host.write(GUEST + 0x60000, world.host.read(GUEST + world.tables.root, 4 * KIB))
    world.pager.load_cr3(0x60000)
    assert world.pager.access(PAGES).trap == "filled"  # a root of its own, and the tables shared
    assert world.pager.counts["pages created"] == 5
    world.pager.load_cr3(world.tables.root)
    assert world.pager.access(PAGES).trap is None


def test_a_large_page_is_split_where_the_host_has_small_ones_and_kept_where_it_has_large():
    split = World()
    split.pager.access(LARGE + 0x81000)
    assert split.pager.walk(LARGE + 0x81000).page_size == 4 * KIB
    assert split.pager.access(LARGE + 0x82000).trap == "filled"
    assert [page.level for page in split.pager.pages if page.direct] == [1]

    kept = World(host_page=2 * MIB)
    kept.pager.access(LARGE + 0x81000)
    # The guest's tables lie in it, and four of them have shadows: it cannot be one writable page.
    assert kept.pager.walk(LARGE + 0x81000).page_size == 4 * KIB


def test_a_large_page_is_split_where_the_slot_shifts_it():
    """2 MiB of the guest's that begin 4 KiB off in the host are no large page there."""
    world = World(host_page=2 * MIB)
    world.pager.set_slot(Slot(1, 0x80_0000, 2 * MIB, 2 * MIB - 4 * KIB))
    world.pager.store(world.pte(LARGE, 2), 0x80_0087)
    for page in (0, 0x5000):
        done = world.pager.access(LARGE + page)
        assert (done.hpa, done.trap) == (2 * MIB - 4 * KIB + page, "filled")
    assert world.pager.walk(LARGE).page_size == 4 * KIB


def test_a_large_page_without_tables_stays_large():
    world = World(host_page=2 * MIB)
    slots = world.pager.slots
    world.pager.set_slot(Slot(1, 0x80_0000, 2 * MIB, 2 * MIB))
    assert len(slots) == 2
    world.pager.store(world.pte(LARGE, 2), 0x80_0087)
    for page, trap in ((0, "filled"), (0x5000, None)):
        done = world.pager.access(LARGE + page)
        assert (done.hpa, done.trap) == (2 * MIB + page, trap)
    assert world.pager.walk(LARGE).page_size == 2 * MIB


def test_a_table_in_a_large_page_takes_its_right_to_write():
    """The large leaf is there before the table is one: a write through it must be seen."""
    world = World(host_page=2 * MIB)
    world.pager.set_slot(Slot(1, 0x80_0000, 2 * MIB, 2 * MIB))
    world.pager.store(world.pte(LARGE, 2), 0x80_0087)
    entry = LARGE + 0x5000
    assert world.pager.store(entry, 0x8_1067).trap == "filled"
    assert world.pager.store(entry, 0x8_1067).trap is None
    assert world.pager.walk(entry, access="write").page_size == 2 * MIB
    world.pager.store(world.pte(PAGES, 2), 0x80_5007)
    assert world.pager.access(PAGES).gpa == 0x8_1000
    assert world.pager.store(entry, 0x8_2067).trap == "emulated"
    assert world.pager.access(PAGES).gpa == 0x8_2000


def test_memory_that_is_not_there_is_mmio_and_a_read_only_slot_for_writes():
    world = World()
    done = world.pager.access(PAGES + 0x7008)
    assert (done.gpa, done.hpa, done.fault, done.trap) == (0x7F0008, None, None, "mmio")
    assert world.pager.load(PAGES + 0x7008) is None
    world.pager.set_slot(Slot(1, 0x7F0000, 4 * KIB, MIB, readonly=True))
    assert world.pager.access(PAGES + 0x7008).hpa == MIB + 8
    assert world.pager.store(PAGES + 0x7008, 1).trap == "mmio"
    assert world.host.read_u64(MIB + 8) == 0
    world.pager.remove_slot(1)
    assert world.pager.access(PAGES + 0x7008).trap == "mmio"


def test_a_slot_that_keeps_a_log_is_marked():
    world = World()
    world.pager.set_slot(Slot(0, 0, 2 * MIB, GUEST, log_dirty=True))
    world.pager.access(PAGES)
    assert 0x80000 not in world.pager.slots.dirty_log(0)  # only tables: A is set in them
    world.pager.access(PAGES, "write")
    assert 0x80000 in world.pager.slots.dirty_log(0)


def test_a_supervisor_writes_to_a_read_only_page_where_wp_is_clear_and_a_user_does_not():
    world = World()
    page = PAGES + 0x4000
    assert world.pager.access(page, "write").fault
    world.pager.set_registers(cr0=world.tables.registers["cr0"] & ~CR0_WP)
    assert world.pager.store(page, 1).hpa == GUEST + 0x84000
    assert world.pager.access(page, cpl=3).hpa == GUEST + 0x84000
    assert world.pager.access(page, "write", cpl=3).fault.error_code == 7
    assert world.pager.store(page, 2).hpa == GUEST + 0x84000
    world.pager.set_registers(cr0=world.tables.registers["cr0"])
    assert world.pager.access(page, "write").fault.error_code == 3


def test_smep_and_smap_hold():
    registers = {"cr4": CR4_PAE | CR4_SMEP | CR4_SMAP}
    world = World(registers=registers)
    assert world.pager.access(PAGES, cpl=3).hpa
    assert world.pager.access(PAGES, "fetch").fault.error_code == 0x11
    assert world.pager.access(PAGES).fault.error_code == 1
    assert world.pager.access(PAGES, ac=True).hpa
    assert world.pager.access(PAGES).fault


def test_what_a_supervisor_may_write_without_wp_it_may_not_run_under_smep():
    """The shadow of such a page is a supervisor's, but the guest's page is a user's still."""
    cr0 = World().tables.registers["cr0"] & ~CR0_WP
    world = World(registers={"cr0": cr0, "cr4": CR4_PAE | CR4_SMEP})
    page = PAGES + 0x4000
    assert world.pager.store(page, 1).hpa == GUEST + 0x84000
    assert not world.pager.walk(page).entries[-1] & US
    assert world.pager.access(page, "fetch").fault.error_code == 0x11
    assert world.pager.access(page, "fetch", cpl=3).hpa == GUEST + 0x84000


def test_kvm_fills_neighbours_that_were_used_before():
    world = World(KVM)
    for page in (0, 0x1000, 0x3000):
        world.pager.access(PAGES + page)
    world.pager.set_slot(Slot(1, 0x80_0000, 4 * KIB, MIB))  # all shadows go
    assert world.pager.access(PAGES).trap == "filled"
    assert world.pager.access(PAGES + 0x1000).trap is None
    assert world.pager.access(PAGES + 0x3000).trap == "filled"  # the one before was never used
    assert world.pager.counts["prefetched"] == 1


def test_a_table_outside_ram_is_named():
    world = World()
    world.pager.store(world.pte(PAGES, 2), 0x70_0007)
    with pytest.raises(TableOutsideRam, match="level-1 table entry at 0x700000"):
        world.pager.access(PAGES)


def test_where_room_ends_all_is_begun_anew():
    world = World()
    world.pager = ShadowPager(
        world.host, world.pager.slots, at=0, end=68 * KIB, **world.tables.registers
    )
    top = world.host.read(GUEST + world.tables.root, 4 * KIB)
    for root in (0x60000, 0x61000, 0x62000, 0x63000):
        world.host.write(GUEST + root, top)
        world.pager.load_cr3(root)
        for gva in (PAGES, WINDOW, LARGE):
            for access in ("read", "write"):
                assert world.pager.access(gva + 0x1000, access).hpa is not None
    assert world.pager.counts["pages zapped"]
    assert len(world.pager.pages) <= 17


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"registers": {"cr0": 1}}, Unsupported, "4- and 5-level"),
        ({"registers": {"efer": 0}}, Unsupported, "4- and 5-level"),
        ({"registers": {"cr4": CR4_PAE | CR4_PKE}}, Unsupported, "protection keys"),
        ({"registers": {"cr4": CR4_PAE | CR4_SMAP, "cr0": 0x80000001}}, Unsupported, "SMAP"),
        ({"host_page": 8192}, BadInput, "host_page"),
        ({"forget": "everything"}, BadInput, "forget"),
    ],
)
def test_what_is_not_modelled_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        World(**options)


def test_bad_arguments_are_named():
    world = World()
    with pytest.raises(BadInput, match="gva"):
        world.pager.store(PAGES + 4, 1)
    with pytest.raises(BadInput, match="gva"):
        world.pager.load(PAGES + 1)
    with pytest.raises(BadInput, match="at"):
        ShadowPager(world.host, world.pager.slots, at=1, **world.tables.registers)
    with pytest.raises(BadInput, match="at"):
        ShadowPager(world.host, world.pager.slots, at=8 * MIB - 4096, **world.tables.registers)


def stale(forget, strategy, change, **options):
    """What a page reads after a change, with a duty done and with it left undone: GPAs."""
    told = []
    for duty in (None, forget):
        world = World(strategy, forget=duty, **options)
        world.pager.access(PAGES)
        world.pager.access(PAGES + 0x1000)
        change(world)
        told.append(world.pager.access(PAGES).gpa)
    return told


def move(world):
    world.pager.store(world.pte(PAGES), 0x83067)


def invlpg(world):
    move(world)
    world.pager.invlpg(PAGES)


def load_cr3(world):
    move(world)
    world.pager.load_cr3(world.tables.root)


@pytest.mark.parametrize(
    ("forget", "strategy", "change"),
    [
        ("protect", WRITE_PROTECT, move),
        ("write", WRITE_PROTECT, move),
        ("invlpg", OUT_OF_SYNC, invlpg),
        ("cr3", OUT_OF_SYNC, load_cr3),
        ("protect", OUT_OF_SYNC, load_cr3),
    ],
)
def test_a_duty_that_is_forgotten_shows_the_old_page(forget, strategy, change):
    assert stale(forget, strategy, change) == [0x83000, 0x80000]


def test_a_forgotten_slot_stays_mapped():
    for forget, gpa_is_mmio in ((None, True), ("slot", False)):
        world = World(forget=forget)
        world.pager.set_slot(Slot(1, 0x7F0000, 4 * KIB, MIB))
        world.pager.access(PAGES + 0x7000)
        world.pager.remove_slot(1)
        assert (world.pager.access(PAGES + 0x7000).trap == "mmio") == gpa_is_mmio


def test_a_forgotten_dirty_bit_is_never_set():
    for forget, dirty in ((None, 0x40), ("dirty", 0)):
        world = World(forget=forget)
        world.pager.access(PAGES)
        world.pager.store(PAGES, 1)
        assert world.value(PAGES) & 0x40 == dirty


def test_nx_and_supervisor_pages_keep_their_rights_in_the_shadow():
    world = World()
    for page in (0x4000, 0x5000, 0x6000):
        world.pager.access(PAGES + page)
    leaves = [world.pager.walk(PAGES + page).entries[-1] for page in (0x4000, 0x5000, 0x6000)]
    assert [leaf & 6 for leaf in leaves] == [4, 0, 4]
    assert [bool(leaf & NX) for leaf in leaves] == [False, False, True]


@pytest.mark.parametrize("first", [PAGES, WINDOW])
def test_tables_that_map_one_another_are_compared_as_one(first):
    """Found by the law: the window's own table went out of sync together with the one it shows."""
    world = World(OUT_OF_SYNC)
    window = world.pte(WINDOW)
    for gva in (first, PAGES):
        world.pager.store(gva, 1)
    here = world.tables.entry(world.ram, WINDOW)  # where the window's own table is
    shown = WINDOW + (world.tables.entry(world.ram, PAGES) & -0x1000)
    itself = world.tables.entry(world.ram, shown)
    for gva, value in ((world.pte(PAGES), 0x80067), (window, world.ram.read_u64(here))):
        assert world.pager.store(gva, value).trap == "unsync"
    assert world.ram.read_u64(itself) & 0x40  # the table's page is dirty, and may be writable
    world.pager.load_cr3(world.tables.root)
    assert world.pager.walk(shown, access="write").fault
    assert world.pager.walk(WINDOW + (here & -0x1000), access="write").fault
