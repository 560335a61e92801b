"""Shadow paging: the processor walks tables of the hypervisor's, made from the guest's as needed.

There is one stage of translation in hardware, and two are needed. So the guest's own tables are
never walked by the processor. It walks *shadow* tables that lead from a guest's linear address
to a host-physical one, and the hypervisor makes each entry when a page fault asks for it: the
guest's tables say where the page is, the memory slots where that is in the host. What is made
must be taken back when the guest changes its mind; how that is noticed is the `Strategy`.

A and D are set in the guest's tables at those faults, as the processor would have done it; so a
clean page is not writable until its first write. Roots are kept over a load of CR3: the shadow
pages of the address space that is left stay, and are found again. Linux
Documentation/virt/kvm/x86/mmu.rst; Intel SDM vol. 3A, 4.8 and 4.10.

Left out: guests with 2- or 3-level paging, SMAP where CR0.WP is clear, protection keys (KVM hides
them from such guests too), PCID, the processor's TLB, and writes of devices to guest tables,
which are not seen (as in KVM).
"""

from collections import Counter, deque

from vmlib.errors import BadInput, Unsupported
from vmlib.given import check_one, names_bad_input
from vmlib.memory.paging import (
    ADDRESS,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    ERROR_P,
    VECTOR_PF,
    A,
    Access,
    D,
    paging_mode,
    word,
)
from vmlib.memory.shadow.entry import leaf_rights, rights_above
from vmlib.memory.shadow.pages import HostMemory, ShadowPage, aligned, page_bytes
from vmlib.memory.shadow.strategy import (
    FORGETS,
    WRITE_PROTECT,
    Forget,
    ShadowAccess,
    Strategy,
    Trap,
)
from vmlib.memory.shadow.tables import ShadowTables
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.walk import Walk, references, set_accessed_dirty, walk
from vmlib.units import PAGE_SIZE


class ShadowPager:
    """The hypervisor's pager of one vCPU. `counts` says what it did, `traps` what it was asked.

    `host` is host-physical memory; the slots' `hva` are addresses in it, and shadow tables lie in
    it from `at` to `end`. `host_page` is the largest page that the slots' memory is mapped with:
    where it allows, a large guest page keeps a large shadow leaf. The registers are the guest's.
    `forget` leaves one duty undone, for those who want to see what it is for. Raises `Unsupported`
    for a guest that is not modelled, and `BadInput` for no room for 16 shadow pages.
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
        strategy: Strategy = WRITE_PROTECT,
        host_page: int = PAGE_SIZE,
        maxphyaddr: int = 52,
        forget: Forget | None = None,
    ) -> None:
        if host_page not in map(page_bytes, (1, 2, 3)):
            raise BadInput("host_page", f"is 4 KiB, 2 MiB or 1 GiB, not {host_page}")
        if forget is not None and forget not in FORGETS:
            raise BadInput("forget", f"is one of {', '.join(FORGETS)}, not {forget!r}")
        check_one(host, HostMemory, "host")
        check_one(slots, MemorySlots, "slots")
        check_one(strategy, Strategy, "strategy")
        self.host = host
        self.slots = slots
        self.strategy = strategy
        self.traps: Counter[Trap] = Counter()
        self._maxphyaddr = maxphyaddr
        self._forget = forget
        end = host.size if end is None else end
        self._shadow = ShadowTables(host, slots, strategy, at, end, host_page, forget)
        self._guest = self._shadow.guest
        self._pages = self._shadow.pages
        self._roots: deque[int] = deque(maxlen=4)  # KVM: the current one and three before
        self.cr3 = word(cr3, "cr3")
        self._configure(cr0, cr4, efer)

    @property
    def counts(self) -> Counter[str]:
        """Pages created, zapped, unsynced, synced; entries prefetched; guest walks; A and D set."""
        return self._shadow.counts

    @property
    def pages(self) -> tuple[ShadowPage, ...]:
        """The shadow pages there are, in order of their making."""
        return tuple(self._pages)

    @names_bad_input
    def walk(self, gva: int, *, access: Access = "read", cpl: int = 0, ac: bool = False) -> Walk:
        """Walk the shadow tables as the processor does; nothing traps, nothing is filled.

        The `gpa` of the walk is host-physical here.
        """
        return walk(
            self.host,
            gva,
            cr0=self._cr0 | CR0_WP,
            cr3=self._root().hpa,
            cr4=CR4_PAE | self._cr4 & (CR4_LA57 | CR4_SMEP | CR4_SMAP),
            efer=EFER_LMA | EFER_NXE,
            access=access,
            cpl=cpl,
            ac=ac,
        )

    @names_bad_input
    def access(
        self, gva: int, access: Access = "read", *, cpl: int = 0, ac: bool = False
    ) -> ShadowAccess:
        """Do one access as the processor does: walk, trap where the walk faults, try again.

        A write to a guest table has to be a `store`, which says what is written. Raises
        `TableOutsideRam` where a guest table lies in no slot.
        """
        trap: Trap | None = None
        while True:
            found = self.walk(gva, access=access, cpl=cpl, ac=ac)
            if found.gpa is not None:
                return ShadowAccess(gva, self._gpa_of(gva), found.gpa, None, trap)
            assert found.fault is not None
            if found.fault.vector != VECTOR_PF:
                return ShadowAccess(gva, None, None, found.fault, trap)
            assert trap is None, f"the fault at {gva:#x} was mended, and has come again"
            done = self._page_fault(gva, access, cpl, ac, found.fault.error_code)
            trap = done.trap
            assert trap is not None
            self.traps[trap] += 1
            if trap in ("injected", "mmio", "emulated"):
                return done

    @names_bad_input
    def load(self, gva: int, *, cpl: int = 0) -> int | None:
        """Return the 8 bytes at an aligned address; None on a fault or where it is MMIO."""
        hpa = self.access(aligned(gva), cpl=cpl).hpa
        return None if hpa is None else self.host.read_u64(hpa)

    @names_bad_input
    def store(self, gva: int, value: int, *, cpl: int = 0, ac: bool = False) -> ShadowAccess:
        """Store 8 bytes at an aligned address, a guest table's or any other."""
        done = self.access(aligned(gva), "write", cpl=cpl, ac=ac)
        if done.hpa is not None:
            self.host.write_u64(done.hpa, value)
        if done.trap == "emulated":
            assert done.gpa is not None
            self._shadow.table_written(done.gpa)
        return done

    @names_bad_input
    def invlpg(self, gva: int) -> None:
        """The guest executes INVLPG: what is unsync on the way of `gva` is not used again.

        Where no table can be unsync it is not intercepted: the processor does it.
        """
        word(gva, "gva")
        if not self.strategy.out_of_sync:
            return
        self.traps["invlpg"] += 1
        if self._forget == "invlpg":
            return
        for table in self._roots:
            root = self._pages.find(self._shadow.root_key(table))
            if root is None:
                continue
            last = self._pages.path(root, gva)[-1]
            if last.unsync:
                self._pages.drop(last, last.index(gva))
                if self.strategy.prefetch > 1:
                    self._shadow.prefetch_entry(last, last.index(gva))

    @names_bad_input
    def load_cr3(self, cr3: int) -> None:
        """The guest loads CR3: what is unsync in that address space is compared with its tables.

        No entry is taken for global. Other address spaces are compared when their turn comes.
        """
        self.traps["cr3"] += 1
        self.cr3 = word(cr3, "cr3")
        root = self._root()
        root.writes = 0
        if self._forget != "cr3":
            self._shadow.sync_below(root)

    @names_bad_input
    def set_registers(
        self, *, cr0: int | None = None, cr4: int | None = None, efer: int | None = None
    ) -> None:
        """Change control registers. All shadow pages are thrown away (KVM keeps them apart)."""
        self._pages.zap_all()
        self._configure(
            self._cr0 if cr0 is None else cr0,
            self._cr4 if cr4 is None else cr4,
            self._efer if efer is None else efer,
        )

    @names_bad_input
    def set_slot(self, slot: Slot) -> None:
        """The VMM adds, moves or re-flags a memory slot: all shadow pages are thrown away."""
        self.slots.set(slot)
        self._slots_changed()

    @names_bad_input
    def remove_slot(self, number: int) -> None:
        """The VMM lets a slot's addresses be a hole: all shadow pages are thrown away."""
        self.slots.remove(number)
        self._slots_changed()

    def _page_fault(
        self, gva: int, access: Access, cpl: int, ac: bool, error_code: int
    ) -> ShadowAccess:
        """Find out from the guest's tables what the fault was, and mend it if it is ours."""
        self.counts["guest walks"] += 1
        seen = walk(
            self._guest,
            gva,
            cr0=self._cr0,
            cr3=self.cr3,
            cr4=self._cr4,
            efer=self._efer,
            access=access,
            cpl=cpl,
            ac=ac,
            maxphyaddr=self._maxphyaddr,
        )
        if seen.gpa is None:
            return ShadowAccess(gva, None, None, seen.fault, "injected")
        gpa, write = seen.gpa, access == "write"
        present = bool(error_code & ERROR_P)
        leaf = self._set_accessed_dirty(seen, write)
        slot = self.slots.find(gpa)
        if slot is None or (write and slot.readonly):
            return ShadowAccess(gva, gpa, None, None, "mmio")

        trap: Trap = "filled"
        if write and present and self._shadow.is_trapped(gpa):
            trap = "emulated"
            for page in self._pages.path(self._root(), gva):
                page.writes = 0
        else:
            if self._pages.room < 2 * len(self._shadow.mode.levels):
                self._pages.zap_all()  # KVM gives up the oldest first
            synced = any(not page.unsync for page in self._pages.of(gpa))
            common = rights_above(seen.entries, self._efer)
            rights = common[-1]
            if self._forget != "dirty":
                rights = leaf_rights(rights, leaf, access, cpl == 3, cr0=self._cr0, cr4=self._cr4)
            writable = self._shadow.fill(self._root(), seen, common[:-1], rights, slot)
            if write and not writable:
                trap = "emulated"
            elif write and synced:
                trap = "unsync"
            elif write and present and not seen.entries[-1] & D:
                trap = "dirty"
        return ShadowAccess(gva, gpa, slot.hva + gpa - slot.gpa, None, trap)

    def _set_accessed_dirty(self, seen: Walk, write: bool) -> int:
        """Set A and D in the guest's tables, for the processor; return the leaf after that."""
        passed = list(references(seen.gva, seen.cr3, seen.mode, seen.entries))
        dirty = D if write else 0
        self.counts["accessed set"] += len({at for _, at, entry in passed if not entry & A})
        self.counts["dirty set"] += bool(dirty & ~seen.entries[-1])
        set_accessed_dirty(self._guest, passed, dirty)
        return seen.entries[-1] | A | dirty

    def _slots_changed(self) -> None:
        if self._forget != "slot":
            self._pages.zap_all()

    def _configure(self, cr0: int, cr4: int, efer: int) -> None:
        mode = paging_mode(cr0, cr4, efer, self._maxphyaddr)
        if mode is None or not mode.sign_bit:
            raise Unsupported("shadow paging is modelled for guests with 4- and 5-level paging")
        if cr4 & CR4_PKE:
            raise Unsupported("there are no protection keys under shadow paging")
        if cr4 & CR4_SMAP and not cr0 & CR0_WP:
            raise Unsupported("SMAP with CR0.WP clear is not modelled under shadow paging")
        self._cr0, self._cr4, self._efer = cr0, cr4, efer
        self._shadow.mode, self._shadow.efer = mode, efer

    def _root(self) -> ShadowPage:
        """Return the root shadow page of the current address space."""
        table = self.cr3 & ADDRESS
        key = self._shadow.root_key(table)
        found = self._pages.find(key)
        if found is None or self._roots[0] != table:
            if table in self._roots:
                self._roots.remove(table)
            self._roots.appendleft(table)
            return self._shadow.get(key)
        return found

    def _gpa_of(self, gva: int) -> int:
        """Return the guest-physical address that the shadow leaf of `gva` stands for."""
        last = self._pages.path(self._root(), gva)[-1]
        return last.leaves[last.index(gva)] | gva & page_bytes(last.level) - 1
