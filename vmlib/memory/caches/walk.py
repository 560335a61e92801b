"""A walk that begins where the caches leave off.

The walk is that of `walk` and `walk_nested`, rights, faults and bits A and D included. What is
cached is put under it: a memory that answers the first reads from a cache and the others from
RAM. So a translation that is found is the same walk with no reads left to make, and it is judged
by the same code. The entries may be stale; that is the point.

What is used, in this order (SDM vol. 3A, 4.10.3.2): the translation of the page; the lowest table
that a paging-structure cache knows; CR3. `nested` has the same behind a second stage.

Left out: caches are filled when an access has succeeded, as A and D are set then; a processor
does it on the way, and for accesses that fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vmlib.memory.caches.tlb import Mapping, Tag, TranslationCache
from vmlib.memory.nested import NestedStep
from vmlib.memory.paging import (
    ERROR_W,
    NAMES,
    A,
    AccessRules,
    D,
    G,
    PagingMode,
    flag_names,
)
from vmlib.memory.second_stage import (
    EPT_A,
    EPT_D,
    Ept,
    SecondStage,
    SecondStageExit,
)
from vmlib.memory.walk import Fault, TableMemory, follow, references, set_accessed_dirty

TLB = "TLB"
_CACHES = {f"{name} cache" for name in NAMES.values()}


class Shortcut(NamedTuple):
    """A cache answered: the walk goes on at this place of the grid of `walk_nested`.

    All cells from where the walk stood are saved. Column and row count as in `NestedStep`; a
    column past the last is the end of a walk with one stage, where the only row is 0.
    """

    cache: str
    """"TLB", "PDE cache" and its like, "guest-physical TLB", "guest-physical PDE cache" …"""
    column: int
    row: int


@dataclass(frozen=True, slots=True)
class CachedWalk:
    """What became of one access, and what it cost. As `NestedWalk`; without a second stage the
    guest-physical address is the host-physical one."""

    gva: int
    gpa: int | None
    hpa: int | None
    page_size: int
    """Bytes that a TLB entry covers; 0 where nothing is translated, and with paging off."""
    fault: Fault | None
    exit: SecondStageExit | None
    steps: tuple[NestedStep, ...]
    """The memory references made."""
    saved: int
    """References that the caches saved: as many as were made when they were filled."""
    shortcuts: tuple[Shortcut, ...]

    @property
    def hit(self) -> bool:
        """Whether the TLB knew the translation."""
        return bool(self.shortcuts) and self.shortcuts[0].cache == TLB

    @property
    def from_table(self) -> bool:
        """Whether a paging-structure cache knew a table on the way of the linear address."""
        return bool(self.shortcuts) and self.shortcuts[0].cache in _CACHES


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of one processor, and whose entries are current."""

    linear: TranslationCache
    """Linear and combined mappings."""
    physical: TranslationCache
    """Guest-physical mappings."""
    tag: Tag
    physical_tag: Tag
    globals_on: bool
    """CR4.PGE: whether G in a leaf counts."""


class Known:
    """Memory whose first words are already known."""

    def __init__(self, memory: TableMemory, known: Sequence[int]) -> None:
        self._memory = memory
        self._words = iter(known)

    def read_u64(self, gpa: int) -> int:
        """Return the next known word; the memory's when there are no more."""
        for word in self._words:
            return word
        return self._memory.read_u64(gpa)

    def write_u64(self, gpa: int, value: int) -> None:
        """Nothing is written on the way."""
        raise AssertionError("nothing is written on the way")


def walk_cached(
    memory: TableMemory,
    caches: Caches,
    gva: int,
    cr3: int,
    mode: PagingMode | None,
    rules: AccessRules,
    pkru: int,
) -> CachedWalk:
    """Translate one access through the caches, with no second stage; fill them on success."""
    address = linear_address(gva, mode)
    known, shortcuts = look_up(caches, address, None, mode, rules)
    entries: list[int] = []
    seen = Known(memory, words(known.entries, gva, mode))
    gpa, size, fault = follow(seen, gva, cr3, mode, rules, pkru, False, entries)
    if gpa is not None and mode is not None:
        dirty = D if rules.error_code & ERROR_W else 0
        set_accessed_dirty(memory, list(references(gva, cr3, mode, entries)), dirty)
        if len(known.entries) < len(entries):
            passed = marked(entries, mode, dirty)
            for count in range(1, len(entries)):
                keep_structure(caches, address, mode, Mapping(passed[:count], (), count))
            keep_page(caches, address, size, Mapping(passed, (), len(passed), size))
    steps = _steps(gva, cr3, mode, entries, len(known.entries))
    return CachedWalk(gva, gpa, gpa, size, fault, None, steps, len(known.entries), shortcuts)


def linear_address(gva: int, mode: PagingMode | None) -> int:
    """Return the address by which caches know it: 32 bits where the mode has no more."""
    return gva if mode is None or mode.sign_bit else gva & 0xFFFF_FFFF


def look_up(
    caches: Caches,
    address: int,
    second: SecondStage | None,
    mode: PagingMode | None,
    rules: AccessRules,
) -> tuple[Mapping, tuple[Shortcut, ...]]:
    """Return what the caches know of a linear address, and where the walk goes on."""
    if mode is None:
        return Mapping(()), ()
    last_row = second.levels if second else 0
    found = caches.linear.translation(caches.tag, address)
    # A page whose D is clear in the cache: the processor must set it in memory, and walks.
    if found and (not rules.error_code & ERROR_W or _may_write(found, second)):
        return found, (Shortcut(TLB, len(found.entries), last_row),)
    sizes = {level.number: level.page_size for level in mode.levels if _cached(level.number, mode)}
    if upper := caches.linear.structure(caches.tag, address, sizes):
        number, mapping = upper
        name = f"{NAMES[number]} cache"
        return mapping, (Shortcut(name, len(mapping.entries), last_row),)
    return Mapping(()), ()


def _cached(number: int, mode: PagingMode) -> bool:
    """Say whether there is a cache for tables of this level. The PDPTEs of PAE are registers."""
    return number > 1 and not (mode.name == "3-level" and number == 3)


def _may_write(mapping: Mapping, second: SecondStage | None) -> bool:
    return bool(mapping.entries[-1] & D) and second_dirty(mapping.behind, second)


def second_dirty(entries: Sequence[int], second: SecondStage | None) -> bool:
    """Say whether the second stage need not set a D."""
    _, dirty = second_marks(second)
    return not dirty or bool(entries and entries[-1] & dirty)


def second_marks(second: SecondStage | None) -> tuple[int, int]:
    """Return the bits A and D of the second stage; 0 where it keeps none."""
    if isinstance(second, Ept):
        return (EPT_A, EPT_D) if second.accessed_dirty else (0, 0)
    return (A, D) if second else (0, 0)


def words(entries: Sequence[int], gva: int, mode: PagingMode | None) -> list[int]:
    """Return the words that hold known entries: one of 4 bytes is half of its word."""
    if mode is None or mode.entry_bytes == 8:
        return list(entries)
    halves = (32 * (level.index(gva) & 1) for level in mode.levels)
    return [entry << half for entry, half in zip(entries, halves, strict=False)]


def marked(entries: Sequence[int], mode: PagingMode, dirty: int) -> tuple[int, ...]:
    """Return entries as they stand in memory once A and D are set."""
    grants = (level.grants for level in mode.levels)
    *upper, leaf = (entry | A & ~given for entry, given in zip(entries, grants, strict=False))
    return (*upper, leaf | dirty)


def keep_page(caches: Caches, address: int, size: int, mapping: Mapping) -> None:
    """Cache a translation; a global page's for all PCIDs."""
    shared = caches.globals_on and mapping.entries[-1] & G
    tag = caches.tag._replace(pcid=None) if shared else caches.tag
    caches.linear.keep_translation(tag, address, size, mapping)


def keep_structure(caches: Caches, address: int, mode: PagingMode, mapping: Mapping) -> None:
    """Cache the upper part of a walk. Never global: G is a leaf's bit (4.10.3.1)."""
    level = mode.levels[len(mapping.entries) - 1]
    if _cached(level.number, mode):
        caches.linear.keep_structure(caches.tag, level.number, address, level.page_size, mapping)


def _steps(
    gva: int, cr3: int, mode: PagingMode | None, entries: Sequence[int], known: int
) -> tuple[NestedStep, ...]:
    """Return the references made: a grid of one row."""
    passed = enumerate(references(gva, cr3, mode, entries))
    return tuple(
        NestedStep(
            column,
            0,
            "guest",
            level.number,
            level.name,
            level.index(gva),
            at,
            at,
            entry,
            flag_names(entry, level),
        )
        for column, (level, at, entry) in passed
        if column >= known
    )
