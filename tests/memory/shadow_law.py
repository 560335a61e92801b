"""The law of shadow paging, as something that can be tried: a guest, its pager, and the judge.

    shadow walk = guest walk, then memory slots

for every access after any sequence of writes to guest tables, invalidations, loads of CR3,
changes of registers and of slots. The outcome (address, fault with its code, MMIO), and all of
guest memory after it (A and D set on the way of an allowed access, and not a bit more), must be
what the composed walk says of the tables as they are now.

A pager that lets tables go out of sync may differ in one way, the one that the architecture gives
to a TLB: an access that does not trap may go by an older value of the *last-level* entry, if that
entry held it at some moment since the address was last invalidated (INVLPG of it, a load of CR3,
a change of registers or slots), had A, and D for a write. Nothing else may be old: no upper
entry, no fault.
"""

from vmlib.memory import (
    OUT_OF_SYNC,
    GuestRam,
    MemorySlots,
    ShadowPager,
    Slot,
    TableOutsideRam,
    translate,
    walk,
)
from vmlib.memory.paging import (
    ADDRESS,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_NXE,
    NX,
    PS,
    RW,
    US,
    A,
    D,
    P,
)
from vmlib.memory.shadow.tables import SlotMemory
from vmlib.memory.walk import references

CR0, CR4, EFER = CR0_PG | 0x10011, CR4_PAE, EFER_LMA | EFER_NXE
PAGE = 0x1000
SHADOWS, HOST = 0x100000, 0x800000
TABLES = 12
"""Pages 0 to 11 are tables: two roots first. What follows is data, up to a hole."""
ROOTS = (0, 0x1000)
WINDOW = 1 << 39
"""Where the guest sees its memory: 4 KiB pages, the same in a large one, and what is from HIGH."""
LARGE = 1 << 21
HIGH = 0x200
"""The first page of memory that a large page may map as one: no table is there to begin with."""
SLOTS = (
    Slot(0, 0, 0x10000, 0x700000),
    Slot(1, 0x10000, 0x8000, 0x600000),
    Slot(2, 0x1A000, 0x2000, 0x650000, readonly=True),
)
BIG = (Slot(0, 0, 0x400000, 0x400000),)
PIECES = ((0, 0x29000), (HIGH * PAGE, (HIGH + 2) * PAGE))
"""What there is to guest memory: the rest is never written."""


class Law:
    """A guest with some tables, and its pager, judged at each access."""

    def __init__(self, strategy=OUT_OF_SYNC, host_page=PAGE, cr3=0):
        self.host = GuestRam(HOST)
        slots = MemorySlots()
        for slot in BIG if host_page > PAGE else SLOTS:
            slots.set(slot)
        self.registers = {"cr0": CR0, "cr4": CR4, "efer": EFER}
        self.guest = SlotMemory(self.host, slots)
        self._lay_tables()
        self.pager = ShadowPager(
            self.host,
            slots,
            at=SHADOWS,
            end=SHADOWS + 96 * PAGE,
            cr3=cr3,
            strategy=strategy,
            host_page=host_page,
            **self.registers,
        )
        self.now = 0
        self.all_fresh = 0
        self.fresh: dict[int, int] = {}
        self.was: dict[int, list[tuple[int, int]]] = {}
        self.stale = 0
        self._last: Snapshot | None = None

    def close(self):
        self.host.close()

    def _lay_tables(self):
        """Both roots: the window at 1 << 39; at 0 a tree of the second table's, shared by both."""
        rights = P | RW | US
        for root in ROOTS:
            self.guest.write_u64(root, 0x2000 | rights)  # tree
            self.guest.write_u64(root + 8, 0x8000 | rights)  # window
        self.guest.write_u64(0x2000, 0x3000 | rights)
        self.guest.write_u64(0x2008, 0x3000 | P | US)  # the same tables, read-only
        self.guest.write_u64(0x3000, 0x4000 | rights)
        self.guest.write_u64(0x3008, 0x5000 | rights)
        for index in range(4):
            self.guest.write_u64(0x4000 + 8 * index, 0xC000 + PAGE * index | rights)
            self.guest.write_u64(0x5000 + 8 * index, 0xD000 + PAGE * index | rights)
        self.guest.write_u64(0x8000, 0x9000 | rights)
        self.guest.write_u64(0x9000, 0xA000 | rights)
        self.guest.write_u64(0x9008, rights | PS)
        self.guest.write_u64(0x9010, HIGH * PAGE | rights | PS)
        for index in range(32):
            self.guest.write_u64(0xA000 + 8 * index, PAGE * index | rights)

    # --- what a guest does ---------------------------------------------------------------------

    def write_entry(self, at, value, large=False):
        """Write a table entry at guest-physical `at` through the window."""
        self.store(WINDOW + (LARGE if large else 0) + at, value)

    def entry_of(self, gva, level=1):
        """Address and value of the entry of `level` on the way of `gva`, or of its last one."""
        try:
            found = walk(self.guest, gva, cr3=self.pager.cr3, **self.registers)
        except TableOutsideRam as outside:
            return outside.gpa, 0
        passed = list(references(gva, found.cr3, found.mode, found.entries))
        return next((one[1:] for one in passed if one[0].number == level), passed[-1][1:])

    def event(self, name, gva):
        """What a guest may do after a change: nothing, INVLPG, or load CR3."""
        if name == "invlpg":
            self.invlpg(gva)
        elif name == "cr3":
            self.load_cr3(self.pager.cr3)
        elif name == "there and back":
            here = self.pager.cr3
            self.load_cr3(ROOTS[here == ROOTS[0]])
            self.load_cr3(here)

    def store(self, gva, value, cpl=0):
        self._judge(gva, "write", cpl, value)

    def access(self, gva, access="read", cpl=0):
        self._judge(gva, access, cpl, None)

    def invlpg(self, gva):
        self.pager.invlpg(gva)
        self.now += 1
        self.fresh[gva >> 12] = self.now

    def load_cr3(self, cr3):
        self.pager.load_cr3(cr3)
        self._all_fresh()

    def set_registers(self, **changed):
        self.registers |= changed
        self.pager.set_registers(**changed)
        self._all_fresh()

    def set_slot(self, slot):
        self.pager.set_slot(slot)
        self._all_fresh()

    def remove_slot(self, number):
        self.pager.remove_slot(number)
        self._all_fresh()

    def _all_fresh(self):
        self._last = None
        self.now += 1
        self.all_fresh = self.now

    # --- the judge -----------------------------------------------------------------------------

    def _judge(self, gva, access, cpl, value):
        kind = {**self.registers, "cr3": self.pager.cr3, "access": access, "cpl": cpl}
        before = self._last or Snapshot(self.guest)
        try:
            allowed = [self._composed(before, gva, kind)]
        except TableOutsideRam:
            return  # x86 defines nothing here
        old = list(self._old(before, gva, kind))
        try:
            if value is None:
                got = self.pager.access(gva, access, cpl=cpl)
            else:
                got = self.pager.store(gva, value, cpl=cpl)
        except TableOutsideRam:
            raise AssertionError(f"{gva:#x}: the composed walk finds all tables") from None
        stored = value is not None and got.hpa is not None
        if stored:
            found = allowed[0][1].read_u64(got.gpa & -8)  # A and D of the store's own walk included
            for _, memory in (*allowed, *old):
                memory.write_u64(got.gpa, value)
        self.now += 1
        after = self._last = Snapshot(self.guest)
        told = (got.gpa, got.hpa, got.fault and (got.fault.vector, got.fault.error_code))
        is_now = (told, after) == allowed[0]
        if stored:
            self._remember(got.gpa & -8, found if is_now else before.read_u64(got.gpa & -8))
        if not is_now and got.trap is None and self.pager.strategy.out_of_sync:
            assert (told, after) in old, self._say(gva, kind, told, allowed[0][0])
            self.stale += 1
            return
        assert told == allowed[0][0], self._say(gva, kind, told, allowed[0][0])
        assert after == allowed[0][1], f"{gva:#x} {kind}: guest memory is not as it should be"

    def _composed(self, before, gva, kind):
        """The outcome by the tables as they are, and the guest's memory then."""
        memory = before.copy()
        gpa, _, fault = translate(memory, gva, set_ad=True, **kind)
        if fault:
            return (None, None, (fault.vector, fault.error_code)), memory
        slot = self.pager.slots.find(gpa)
        if slot is None or (kind["access"] == "write" and slot.readonly):
            return (gpa, None, None), memory
        return (gpa, slot.hva + gpa - slot.gpa, None), memory

    def _old(self, before, gva, kind):
        """The outcomes that older values of the last-level entry give."""
        passed = list(references(gva, kind["cr3"], *self._way(before, gva, kind)))
        if not passed or passed[-1][0].number != 1:
            return
        at = passed[-1][1]
        since = max(self.all_fresh, self.fresh.get(gva >> 12, 0))
        for time, value in self.was.get(at, ()):
            if time < since or not value & A or (kind["access"] == "write" and not value & D):
                continue
            memory = before.copy()
            memory.write_u64(at, value)
            (gpa, hpa, fault), _ = self._composed(memory, gva, kind)
            if fault is None and hpa is not None:
                yield (gpa, hpa, None), before.copy()

    def _way(self, memory, gva, kind):
        found = walk(memory, gva, **kind)
        return found.mode, found.entries

    def _remember(self, at, value):
        """Keep what a store has found at `at`, in case it was an entry."""
        self.was.setdefault(at, []).append((self.now, value))

    def _say(self, gva, kind, told, wanted):
        show = lambda x: [hex(y) if isinstance(y, int) else y for y in x]  # noqa: E731
        return f"{gva:#x} {kind['access']} at {kind['cpl']}: {show(told)}, not {show(wanted)}"


class Snapshot:
    """A copy of what there is of the guest's memory, in the shape of a memory."""

    def __init__(self, memory):
        self._slots = memory._slots
        self._pieces = []
        for first, end in PIECES:
            piece = bytearray(end - first)
            for slot in self._slots:
                low, high = max(first, slot.gpa), min(end, slot.end)
                if low < high:
                    part = memory._host.read(slot.hva + low - slot.gpa, high - low)
                    piece[low - first : high - first] = part
            self._pieces.append(piece)

    def copy(self):
        twin = object.__new__(Snapshot)
        twin._slots, twin._pieces = self._slots, list(map(bytearray, self._pieces))
        return twin

    def read_u64(self, gpa):
        if self._slots.find(gpa) is None:
            raise ValueError(gpa)
        piece, at = self._place(gpa)
        return int.from_bytes(piece[at : at + 8], "little")

    def write_u64(self, gpa, value):
        slot = self._slots.find(gpa)
        if slot is None:
            raise ValueError(gpa)
        if not slot.readonly:
            piece, at = self._place(gpa)
            piece[at : at + 8] = value.to_bytes(8, "little")

    def _place(self, gpa):
        for piece, (first, end) in zip(self._pieces, PIECES, strict=True):
            if first <= gpa < end:
                return piece, gpa - first
        raise AssertionError(f"{gpa:#x} is in no piece")

    def __eq__(self, other):
        return self._pieces == other._pieces

    __hash__ = None


def entry_of(page, writable=True, user=True, nx=False, large=False, accessed=0):
    """A guest entry: what the sequences write. `accessed` 1 sets A, 2 A and D."""
    bits = P | (RW if writable else 0) | (US if user else 0) | (NX if nx else 0)
    bits |= (A if accessed else 0) | (D if accessed == 2 else 0)
    return (PS if large else page * PAGE & ADDRESS) | bits
