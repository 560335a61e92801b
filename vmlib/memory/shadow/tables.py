"""Shadow entries: how they are made from the guest's, let out of sync, compared, and taken back.

`ShadowTables` is the hypervisor's half that knows the guest's tables. It is asked for a way to a
page and told of what the guest did; when the processor asks, and what is a trap, is in `pager`.

Two rules carry it. The page of a guest table that has a shadow is not writable in any shadow leaf,
unless all its shadow pages are last-level and unsync. And a shadow page that gets into reach of
the current root again is compared first: the guest owes no invalidation for an entry that it
makes present.

Linux Documentation/virt/kvm/x86/mmu.rst. Left out: what makes Linux's fast (bit maps of unsync
children, chunks of reverse maps), and host pages that are not there: here they always are.
"""

from collections import Counter
from collections.abc import Sequence

from vmlib.errors import BadInput
from vmlib.memory.paging import ADDRESS, RW, A, D, P, PagingMode
from vmlib.memory.shadow.entry import ALL, leaf_entry, rights_of
from vmlib.memory.shadow.pages import HostMemory, Key, ShadowPage, ShadowPages, page_bytes
from vmlib.memory.shadow.strategy import Forget, Strategy
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.walk import Walk
from vmlib.units import PAGE_SIZE


class SlotMemory:
    """Guest-physical memory by its slots, in 64-bit words of the host's."""

    def __init__(self, host: HostMemory, slots: MemorySlots) -> None:
        self._host = host
        self._slots = slots

    def read_u64(self, gpa: int) -> int:
        """Return 8 bytes; `BadInput` in a hole."""
        return self._host.read_u64(self._hpa(gpa))

    def write_u64(self, gpa: int, value: int) -> None:
        """Store 8 bytes; a read-only slot keeps what it has."""
        hpa = self._hpa(gpa)
        if self._slots.hva(gpa, "write") is not None:
            self._host.write_u64(hpa, value)

    def _hpa(self, gpa: int) -> int:
        hpa = self._slots.hva(gpa)
        if hpa is None:
            raise BadInput("gpa", f"no slot holds {gpa:#x}")
        return hpa


class ShadowTables:
    """The shadow tables of one VM. `mode` and `efer` are the guest's, set by the pager."""

    mode: PagingMode
    efer: int

    def __init__(
        self,
        host: HostMemory,
        slots: MemorySlots,
        strategy: Strategy,
        at: int,
        end: int,
        host_page: int,
        forget: Forget | None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.pages = ShadowPages(host, at, end, self.counts)
        self.guest = SlotMemory(host, slots)
        self._slots = slots
        self._strategy = strategy
        self._host_page = host_page
        self._forget = forget

    def root_key(self, cr3: int) -> Key:
        """Return what the root of an address space stands for."""
        return cr3 & ADDRESS, len(self.mode.levels), ALL, False

    # --- making --------------------------------------------------------------------------------

    def fill(
        self, root: ShadowPage, seen: Walk, above: Sequence[int], rights: int, slot: Slot
    ) -> bool:
        """Make the way to the page that `seen` found, and its leaf; return if it may be written.

        `above` are the rights that the guest's upper entries grant, from the root down, each with
        those before it; `rights` are the leaf's.
        """
        assert seen.gpa is not None
        page = root
        for entry, granted in zip(seen.entries[:-1], above, strict=True):
            page = self.child(page, seen.gva, (entry & ADDRESS, page.level - 1, granted, False))
        goal = self.goal(seen.gpa, page.level, slot)
        while page.level > goal:
            base = seen.gpa & -page_bytes(page.level)
            page = self.child(page, seen.gva, (base, page.level - 1, rights, True))
        index = page.index(seen.gva)
        writable = self.put(page, index, seen.gpa & -page_bytes(goal), rights)
        if self._strategy.prefetch > 1 and page.level == 1:
            self.prefetch_around(page, index)
        return writable

    def goal(self, gpa: int, level: int, slot: Slot) -> int:
        """Return the level of the largest leaf that the second stage allows here."""
        while level > 1:
            size = page_bytes(level)
            base = gpa & -size
            if (
                size <= self._host_page
                and slot.gpa <= base
                and base + size <= slot.end
                and (slot.gpa - slot.hva) % size == 0
                and not self.pages.tables_in(base, size)
            ):
                break
            level -= 1
        return level

    def child(self, page: ShadowPage, gva: int, key: Key) -> ShadowPage:
        """Return the shadow page below an entry; make it or link it where it is not there."""
        index = page.index(gva)
        child = page.children.get(index)
        if child is not None and (not child.direct or child.rights == key[2]):
            return child
        child = self.get(key)
        self.sync_below(child)  # it may have been out of reach for long
        self.pages.link(page, index, child)
        return child

    def get(self, key: Key) -> ShadowPage:
        """Return the shadow page of a guest table, which is write-protected from then on."""
        table, level, _, direct = key
        if not direct and level > 1:
            for other in self.pages.of(table):
                if other.unsync:  # an upper table's entries must not change unseen
                    self.pages.zap(other)
        page = self.pages.find(key)
        if page is None:
            page = self.pages.create(key)
            if not direct and self._forget != "protect":
                self.pages.protect(table)
        elif page.unsync:
            self._compare(page)
        return page

    def put(
        self, page: ShadowPage, index: int, gpa: int, rights: int, *, may_unsync: bool = True
    ) -> bool:
        """Set a leaf; return whether it may be written. A guest table's page may not, unless …"""
        slot = self._slots.find(gpa)
        assert slot is not None
        writable = bool(rights & RW) and not slot.readonly and self._let_go(gpa, may_unsync)
        if not writable:
            rights &= ~RW
        elif slot.log_dirty:
            self._slots.hva(gpa, "write")
        entry = leaf_entry(slot.hva + gpa - slot.gpa, rights, page.level)
        self.counts["leaves set"] += self.pages.set_leaf(page, index, gpa, entry)
        return writable

    def _let_go(self, gpa: int, may_unsync: bool) -> bool:
        """Say whether a page may be written unseen; let a last-level table go out of sync."""
        if self._forget == "protect":
            return True
        tables = self.pages.of(gpa)
        synced = [page for page in tables if not page.unsync]
        if self.is_trapped(gpa) or (synced and not may_unsync):
            return False
        for page in synced:
            page.unsync = True
        self.counts["pages unsynced"] += len(synced)
        return True

    def is_trapped(self, gpa: int) -> bool:
        """Say whether each write to this page has to be seen: it holds a guest table."""
        tables = self.pages.of(gpa)
        if self._strategy.out_of_sync:
            return any(page.level > 1 for page in tables)
        return bool(tables) and self._forget != "protect"

    # --- taking back ---------------------------------------------------------------------------

    def table_written(self, gpa: int) -> None:
        """The guest wrote an entry at `gpa`, and we did it: its shadows are dropped."""
        if self._forget == "write":
            return
        for page in self.pages.of(gpa):
            if page.level > 1 and self._strategy.flood:
                page.writes += 1
                if page.writes >= self._strategy.flood:
                    self.pages.zap(page)
                    continue
            self.pages.drop(page, gpa % PAGE_SIZE // 8)

    def sync_below(self, page: ShadowPage) -> None:
        """Compare what is unsync below a page, and write-protect it again."""
        below = self.pages.unsync_below(page)
        for one in below:  # all of them first: one may map the table of another
            self.pages.protect(one.table)
            one.unsync = False
            self.counts["pages synced"] += 1
        for one in below:
            self._compare(one)

    def _compare(self, page: ShadowPage) -> None:
        """Let the leaves of a last-level shadow page be what the guest's table says now."""
        for index, gpa in list(page.leaves.items()):
            entry = self.guest.read_u64(page.table + 8 * index)
            if not self._is_usable(entry) or entry & ADDRESS != gpa:
                self.pages.drop(page, index)
                continue
            rights = self._rights(page, entry)
            if self.pages.of(gpa) and not self.pages.entry(page, index) & RW:
                rights &= ~RW  # a table's page gets writable by a fault only
            self.put(page, index, gpa, rights, may_unsync=False)

    def prefetch_around(self, page: ShadowPage, index: int) -> None:
        """Fill the neighbours of an entry, up to the first that cannot be."""
        first = index & -self._strategy.prefetch
        for one in range(first, first + self._strategy.prefetch):
            if one not in page.leaves and not self.prefetch_entry(page, one):
                return

    def prefetch_entry(self, page: ShadowPage, index: int) -> bool:
        """Fill an entry that nobody has asked for; return whether it could be."""
        if page.direct:
            gpa, rights = page.table + index * PAGE_SIZE, page.rights
        else:
            entry = self.guest.read_u64(page.table + 8 * index)
            if not self._is_usable(entry):
                return False
            gpa, rights = entry & ADDRESS, self._rights(page, entry)
        if self._slots.find(gpa) is None:
            return False
        self.put(page, index, gpa, rights, may_unsync=False)
        self.counts["prefetched"] += 1
        return True

    def _is_usable(self, entry: int) -> bool:
        """Say whether a last-level guest entry maps a page that the guest has used before."""
        return entry & self.mode.levels[-1].leaf_fixed == P and bool(entry & A)

    def _rights(self, page: ShadowPage, entry: int) -> int:
        rights = page.rights & rights_of(entry, self.efer)
        return rights if entry & D or self._forget == "dirty" else rights & ~RW
