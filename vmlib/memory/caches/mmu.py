"""A processor's MMU with its caches, and the instructions of any machine that invalidate them.

After a change of tables the caches may hold what is no longer so: the architecture allows it until
software invalidates, and each instruction that does has its own rule on which mappings must go.
This model drops exactly those that must, and none besides, so that whatever software forgets to
invalidate shows. A processor may drop more at any time.

Intel SDM vol. 3A, 4.10.4.1 (INVLPG, INVPCID, MOV to CR0, CR3 and CR4, page faults); vol. 3C,
29.4.3.1 (EPT violations). How guests are entered and left is in `vmx_mmu.py` and `svm_mmu.py`.

Left out: task switches; other processors' caches (each `Mmu` is one processor: shoot-downs are for
the caller to do). Where the manual leaves it open: a global translation counts as one of each
PCID, so a page fault and CR4.SMEP drop it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vmlib.errors import BadInput, SpecViolation
from vmlib.given import check_fields, check_one, names_bad_input
from vmlib.memory.caches.nested import walk_nested_cached
from vmlib.memory.caches.tlb import Tag, TlbShape, TranslationCache
from vmlib.memory.caches.walk import CachedWalk, Caches, linear_address, walk_cached
from vmlib.memory.paging import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    CR4_SMEP,
    EFER_LMA,
    VECTOR_PF,
    Access,
    word,
)
from vmlib.memory.second_stage import Ept, Npt, SecondStage
from vmlib.memory.walk import TableMemory, setting
from vmlib.numbers import whole

CR4_PGE = 1 << 7
CR4_PCIDE = 1 << 17
KEEP = 1 << 63
"""Bit 63 of what MOV to CR3 writes: invalidate nothing. Only with CR4.PCIDE."""


@dataclass(slots=True)
class TlbCounters:
    """What has happened since the MMU was made."""

    accesses: int = 0
    hits: int = 0
    """Accesses whose translation the TLB knew."""
    structure_hits: int = 0
    """Walks that began at a table which a paging-structure cache knew."""
    references: int = 0
    """Memory references made."""
    saved: int = 0
    """Memory references saved."""
    invalidations: int = 0
    """Operations that invalidate something or might have."""
    dropped: int = 0
    """Mappings that they invalidated."""

    @property
    def misses(self) -> int:
        """Accesses whose translation the TLB did not know."""
        return self.accesses - self.hits


@dataclass(frozen=True, slots=True)
class Context:
    """What chooses an address space."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    vpid: int = 0
    second: SecondStage | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("cr0", "cr3", "cr4", "efer"):
            word(getattr(self, name), name)

    @property
    def pcid(self) -> int:
        """The current process-context identifier."""
        return self.cr3 & 0xFFF if self.cr4 & CR4_PCIDE else 0

    @property
    def tag(self) -> Tag:
        """Whose linear or combined mappings are used and made."""
        return Tag(self.vpid, self.pcid, self.ep4ta)

    @property
    def ep4ta(self) -> int | None:
        """The root of the second stage; 0 on AMD, which tells guests apart by their ASID alone."""
        return self.second.root if isinstance(self.second, Ept) else 0 if self.second else None

    @property
    def physical_tag(self) -> Tag:
        """Whose guest-physical mappings are used and made."""
        return Tag(self.vpid if isinstance(self.second, Npt) else 0, None, self.ep4ta)


class Mmu:
    """One logical processor as far as it translates addresses. It starts as the host.

    The registers are its own; `maxphyaddr` is in bits. Raises `BadInput` for registers that no
    processor has, `TableOutsideRam` where an access meets a table outside `memory`, and
    `SpecViolation`, with the section, for what the processor refuses.
    """

    @names_bad_input
    def __init__(
        self,
        memory: TableMemory,
        *,
        cr0: int,
        cr3: int,
        cr4: int,
        efer: int,
        shape: TlbShape | None = None,
        maxphyaddr: int = 52,
    ) -> None:
        check_one(memory, TableMemory, "memory")
        check_one(shape, TlbShape | None, "shape")
        shape = shape or TlbShape()
        self.memory = memory
        self.linear = TranslationCache(shape)
        """Linear and combined mappings."""
        self.physical = TranslationCache(shape)
        """Guest-physical mappings."""
        self.counters = TlbCounters()
        self._maxphyaddr = whole(maxphyaddr, "maxphyaddr", 32, 52)
        self._now = Context(cr0, cr3, cr4, efer)
        self._host: Context | None = None

    @property
    def tag(self) -> Tag:
        """Whose mappings are used and made now."""
        return self._now.tag

    @property
    def in_guest(self) -> bool:
        """Whether a guest runs."""
        return self._host is not None

    @names_bad_input
    def access(
        self,
        gva: int,
        access: Access = "read",
        *,
        cpl: int = 0,
        pkru: int = 0,
        ac: bool = False,
        implicit: bool = False,
    ) -> CachedWalk:
        """Translate one access, from the caches as far as they go. Keywords as in `walk`.

        A and D are set, as a processor does. A page fault or an EPT violation drops what would
        translate its address: it cannot come twice from a stale entry.
        """
        now = self._now
        mode, rules = setting(
            now.cr0, now.cr4, now.efer, self._maxphyaddr, access, cpl, ac, implicit
        )
        caches = Caches(
            self.linear, self.physical, now.tag, now.physical_tag, bool(now.cr4 & CR4_PGE)
        )
        if now.second is None:
            found = walk_cached(self.memory, caches, gva, now.cr3, mode, rules, pkru)
        else:
            found = walk_nested_cached(
                self.memory, caches, gva, now.second, now.cr3, mode, rules, pkru, access
            )
        count = self.counters
        count.accesses += 1
        count.hits += found.hit
        count.structure_hits += found.from_table
        count.references += len(found.steps)
        count.saved += found.saved
        address = linear_address(gva, mode)
        if found.fault and found.fault.vector == VECTOR_PF:
            self._drop_mine(lambda tag: tag.pcid in (now.pcid, None), address)
        elif found.exit and found.exit.kind != "misconfiguration":
            mine = now.tag
            self._drop(lambda tag: tag in (mine, mine._replace(pcid=None)), address)
            self._drop_physical(lambda tag: tag == now.physical_tag, found.exit.gpa)
        return found

    # ---- Instructions of 4.10.4.1: for the current VPID or ASID, whatever the second stage

    @names_bad_input
    def mov_cr0(self, value: int) -> None:
        """MOV to CR0: from PG 1 to 0 all of this VPID goes."""
        off = self._now.cr0 & ~value & CR0_PG
        if off and self._now.cr4 & CR4_PCIDE:
            raise SpecViolation(
                "Intel SDM vol. 3A, 4.10.1; AMD APM vol. 2, 5.5.1",
                "CR0.PG is not cleared while CR4.PCIDE is set: #GP(0)",
            )
        self._now = replace(self._now, cr0=value)
        if off:
            self._drop_mine(lambda tag: True)

    @names_bad_input
    def mov_cr3(self, value: int) -> None:
        """MOV to CR3: the PCID that is loaded goes, global pages aside; nothing with bit 63."""
        keep = bool(value & KEEP)
        if keep and not self._now.cr4 & CR4_PCIDE:
            raise SpecViolation(
                "Intel SDM vol. 3A, 4.5.2; AMD APM vol. 2, 5.3.2",
                "bit 63 of CR3 needs CR4.PCIDE: #GP(0)",
            )
        self._now = replace(self._now, cr3=value & ~KEEP)
        if not keep:
            pcid = self._now.pcid
            self._drop_mine(lambda tag: tag.pcid == pcid)

    @names_bad_input
    def mov_cr4(self, value: int) -> None:
        """MOV to CR4: PGE, and PCIDE from 1 to 0, drop all; PAE, and SMEP from 0 to 1, a PCID.

        PSE and LA57 drop the PCID's too: they change what an entry means.
        """
        old = self._now
        changed, pcid = old.cr4 ^ value, old.pcid
        if changed & value & CR4_PCIDE and (old.cr3 & 0xFFF or not old.efer & EFER_LMA):
            raise SpecViolation(
                "Intel SDM vol. 3A, 4.10.1; AMD APM vol. 2, 5.5.1",
                "CR4.PCIDE is set in long mode, with bits 11:0 of CR3 clear: else #GP(0)",
            )
        self._now = replace(old, cr4=value)
        if changed & CR4_PGE or changed & ~value & CR4_PCIDE:
            self._drop_mine(lambda tag: True)
        elif changed & (CR4_PAE | CR4_PSE | CR4_LA57) or changed & value & CR4_SMEP:
            self._drop_mine(lambda tag: tag.pcid in (pcid, None))

    @names_bad_input
    def invlpg(self, gva: int) -> None:
        """INVLPG: the page, global or not, and all paging-structure entries of this PCID."""
        word(gva, "gva")
        pcid = self._now.pcid
        self._drop_mine(lambda tag: tag.pcid in (pcid, None), gva, all_structures=True)

    @names_bad_input
    def invpcid(self, type: int, pcid: int = 0, gva: int = 0) -> None:
        """INVPCID: 0 an address of a PCID, 1 a PCID, 2 all, 3 all but global pages."""
        for name, operand in (("type", type), ("pcid", pcid)):
            whole(operand, name)
        word(gva, "gva")
        if type not in (0, 1, 2, 3) or not 0 <= pcid < 1 << 12:
            raise SpecViolation("Intel SDM vol. 2A, INVPCID", "no such type or PCID: #GP(0)")
        if type < 2 and pcid and not self._now.cr4 & CR4_PCIDE:
            raise SpecViolation(
                "Intel SDM vol. 2A, INVPCID", "a PCID other than 0 needs CR4.PCIDE: #GP(0)"
            )
        if type == 2:
            self._drop_mine(lambda tag: True)
        elif type == 3:
            self._drop_mine(lambda tag: tag.pcid is not None)
        else:
            self._drop_mine(lambda tag: tag.pcid == pcid, gva if type == 0 else None)

    # ---- For those that know guests

    def _enter(self, guest: Context) -> None:
        self._host, self._now = self._now, guest

    def _leave(self) -> None:
        if self._host is None:
            raise BadInput("vm_exit", "no guest runs")
        self._now, self._host = self._host, None

    def _as_host(self, what: str, section: str) -> None:
        if self._host is not None:
            raise SpecViolation(section, f"{what} in a guest is a VM exit")

    def _drop_mine(
        self,
        whose: Callable[[Tag], bool],
        address: int | None = None,
        *,
        all_structures: bool = False,
    ) -> None:
        vpid = self._now.vpid
        self._drop(
            lambda tag: tag.vpid == vpid and whose(tag), address, all_structures=all_structures
        )

    def _drop(
        self,
        whose: Callable[[Tag], bool],
        address: int | None = None,
        *,
        all_structures: bool = False,
    ) -> None:
        self.counters.invalidations += 1
        self.counters.dropped += self.linear.drop(whose, address, all_structures=all_structures)

    def _drop_physical(self, whose: Callable[[Tag], bool], address: int | None = None) -> None:
        self.counters.dropped += self.physical.drop(whose, address)
