"""A hypervisor with nested paging: what it is asked, and how little.

The processor walks the guest's own tables and its own second stage together, so the hypervisor is
asked once for each page of guest-physical memory, when it is first touched, and never for what
the guest does to its tables. `NestedPager` has the face of `ShadowPager`, so that both can be
asked the same things. Its second stage is AMD's; APM vol. 2, 15.25.

Left out: taking pages back, a dirty log, large pages in the second stage.
"""

from collections import Counter

from vmlib.errors import BadInput
from vmlib.given import check_one, names_bad_input
from vmlib.memory.nested import walk_nested
from vmlib.memory.paging import (
    ADDRESS,
    RW,
    US,
    Access,
    P,
    word,
)
from vmlib.memory.second_stage import Npt, SecondStageExit
from vmlib.memory.shadow.pages import HostMemory, aligned
from vmlib.memory.shadow.strategy import ShadowAccess, Trap
from vmlib.memory.slots import MemorySlots
from vmlib.units import PAGE_SIZE


class NestedPager:
    """Nested tables, filled one page at a time as the guest touches its memory.

    `host`, `slots` and the addresses are those of `ShadowPager`; the registers are the guest's.
    Raises `BadInput` where the tables need more room than there is from `at` to `end`.
    """

    @names_bad_input
    def __init__(
        self,
        host: HostMemory,
        slots: MemorySlots,
        *,
        at: int,
        cr0: int,
        cr3: int,
        cr4: int,
        efer: int,
        end: int | None = None,
        levels: int = 4,
        maxphyaddr: int = 52,
    ) -> None:
        check_one(host, HostMemory, "host")
        check_one(slots, MemorySlots, "slots")
        self.host = host
        self.slots = slots
        self.cr3 = word(cr3, "cr3")
        self.traps: Counter[Trap] = Counter()
        """Nested page faults: "filled", or "mmio" where no slot holds the page."""
        self.counts: Counter[str] = Counter()
        self._end = host.size if end is None else end
        if at % PAGE_SIZE or not 0 <= at < self._end <= host.size:
            raise BadInput("at", f"{at:#x}..{self._end - 1:#x} are no pages of host RAM")
        self._next = at
        self._second = Npt(self._table(), levels=levels)
        self._cr0, self._cr4, self._efer = cr0, cr4, efer
        self._maxphyaddr = maxphyaddr

    @names_bad_input
    def access(
        self, gva: int, access: Access = "read", *, cpl: int = 0, ac: bool = False
    ) -> ShadowAccess:
        """Do one access: walk both stages, give the page that is missing, try again."""
        trap: Trap | None = None
        while True:
            done = walk_nested(
                self.host,
                gva,
                self._second,
                cr0=self._cr0,
                cr3=self.cr3,
                cr4=self._cr4,
                efer=self._efer,
                access=access,
                cpl=cpl,
                ac=ac,
                maxphyaddr=self._maxphyaddr,
                set_ad=True,
            )
            if done.exit is None:
                return ShadowAccess(gva, done.gpa, done.hpa, done.fault, trap)
            trap = self._nested_fault(done.exit)
            self.traps[trap] += 1
            if trap == "mmio":
                return ShadowAccess(gva, done.exit.gpa, None, None, trap)

    @names_bad_input
    def load(self, gva: int, *, cpl: int = 0) -> int | None:
        """Return the 8 bytes at an aligned address; None on a fault or where it is MMIO."""
        hpa = self.access(aligned(gva), cpl=cpl).hpa
        return None if hpa is None else self.host.read_u64(hpa)

    @names_bad_input
    def store(self, gva: int, value: int, *, cpl: int = 0, ac: bool = False) -> ShadowAccess:
        """Store 8 bytes at an aligned address, a guest table's or not: there is no difference."""
        done = self.access(aligned(gva), "write", cpl=cpl, ac=ac)
        if done.hpa is not None:
            self.host.write_u64(done.hpa, value)
        return done

    @names_bad_input
    def invlpg(self, gva: int) -> None:
        """The guest executes INVLPG: the processor does it, and nobody is asked."""
        word(gva, "gva")

    @names_bad_input
    def load_cr3(self, cr3: int) -> None:
        """The guest loads CR3: the processor does it, and nobody is asked."""
        self.cr3 = word(cr3, "cr3")

    def _nested_fault(self, left: SecondStageExit) -> Trap:
        """Give the page at which the second stage ended, if there is one."""
        slot = self.slots.find(left.gpa)
        if slot is None or left.level == 0 or left.qualification & P:
            return "mmio"
        table, mode = self._second.n_cr3, self._second.mode
        for level in mode.levels[:-1]:
            at = table + (left.gpa >> level.offset_shift & level.offset_mask)
            if not self.host.read_u64(at):
                self.host.write_u64(at, self._table() | P | RW | US)
            table = self.host.read_u64(at) & ADDRESS
        last = mode.levels[-1]
        at = table + (left.gpa >> last.offset_shift & last.offset_mask)
        hpa = slot.hva + (left.gpa - slot.gpa & -PAGE_SIZE)
        self.host.write_u64(at, hpa | P | US | (0 if slot.readonly else RW))
        return "filled"

    def _table(self) -> int:
        """Return a new, empty table."""
        if self._next + PAGE_SIZE > self._end:
            raise BadInput("end", f"{self._end:#x}: there is no room for another nested table")
        table, self._next = self._next, self._next + PAGE_SIZE
        self.host.write(table, bytes(PAGE_SIZE))
        self.counts["tables made"] += 1
        return table
