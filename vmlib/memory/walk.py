"""The page walk: from a guest's linear address to a guest-physical one, or to the exact fault.

One algorithm for 2-, 3-, 4- and 5-level paging. It reads one entry per level, stops at the first
that is not present or has a reserved bit set, and judges the rights when it has them all: writes
and user accesses must be allowed by every level, fetches forbidden by none. `walk` keeps what it
read and shows it as `steps`; `translate` is the same walk without the record.

Intel SDM vol. 3A, chapter 4, and vol. 1, 3.3.7.1 (canonical addresses); AMD APM vol. 2, chapter 5.

What the model does otherwise than silicon:

* There is no TLB: each walk reads the tables as they are now.
* A and D are set when the access is allowed, and nothing is written when it faults, as in KVM's
  own walker. Hardware may set A in upper levels before it finds the fault; SDM 4.8 lets it.
* They are set by a plain read and write, not by a locked one: hold the VM's lock.
* PAE: Intel processors read the four PDPTEs when CR3 is loaded, and a reserved bit in one makes
  that MOV to CR3 fault with #GP(0) (SDM 4.4.1). Here a PDPTE is read in the walk, and a reserved
  bit is a page fault with RSVD, as AMD processors do it for guests, and the newer ones always
  (APM 5.5.3).
* Segmentation comes before: `gva` is a linear address. A non-canonical one is #GP(0) here; that
  a stack access makes it #SS(0) is for the caller to know.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from vmlib.errors import BadInput, GuestError
from vmlib.given import STUMBLES, blamed
from vmlib.memory.paging import (
    ERROR_P,
    ERROR_PK,
    ERROR_RSVD,
    ERROR_W,
    KEY_SHIFT,
    RW,
    US,
    VECTOR_GP,
    VECTOR_PF,
    A,
    Access,
    AccessRules,
    D,
    Level,
    P,
    PagingMode,
    access_rules,
    flag_names,
    paging_mode,
)

# How a memory may say that an address is not its own: BadInput, IndexError, struct.error, ...
OUTSIDE = (ValueError, LookupError, struct.error)

Reference = tuple[Level, int, int]


class TableMemory(Protocol):
    """What a walk reads: aligned little-endian 64-bit words of guest-physical memory.

    Outside memory both raise `ValueError` (`BadInput` is one) or `LookupError`.
    `write_u64` is called only to set A and D. Where all of memory is one run of such words, as in
    `GuestRam`, `words64` may give it: then 8-byte entries are read from there, without a call.
    """

    def read_u64(self, gpa: int, /) -> int:
        """Return the 8 bytes at `gpa`."""

    def write_u64(self, gpa: int, value: int, /) -> None:
        """Store 8 bytes at `gpa`."""


class TableOutsideRam(GuestError):
    """A paging structure lies where there is no RAM; x86 defines no fault for that.

    `level` is the table's, `gpa` the address of the entry that could not be read.
    """

    def __init__(self, level: int, gpa: int) -> None:
        super().__init__(f"the level-{level} table entry at {gpa:#x} lies outside guest RAM")
        self.level = level
        self.gpa = gpa


@dataclass(frozen=True, slots=True)
class Fault:
    """The exception that a walk ends in: 14 (#PF), or 13 (#GP) for a non-canonical address.

    `level` is that of the entry at which the walk stopped (of the leaf, where the entries are
    good and the access is not allowed), and 0 where no table was read.
    """

    vector: int
    error_code: int
    level: int


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One memory reference: the entry at guest-physical `gpa`, as it was read."""

    level: int
    name: str
    """PML5E, PML4E, PDPTE, PDE or PTE."""
    index: int
    gpa: int
    entry: int
    flags: tuple[str, ...]


class Walk(NamedTuple):
    """How one access was translated: to `gpa`, which is None where it ends in `fault`.

    `page_size` is in bytes; 0 where there is no page: on a fault, and with paging off.
    A named tuple, because a frozen dataclass takes twice as long to make; read it by its names.
    """

    gva: int
    gpa: int | None
    page_size: int
    fault: Fault | None
    cr3: int
    mode: PagingMode | None
    """None with paging off."""
    entries: Sequence[int]
    """The entries as they were read, from the root down; `steps` says the same in words."""

    @property
    def steps(self) -> tuple[WalkStep, ...]:
        """The references to tables, from the root down."""
        return tuple(
            WalkStep(
                level.number,
                level.name,
                level.index(self.gva),
                gpa,
                entry,
                flag_names(entry, level),
            )
            for level, gpa, entry in references(self.gva, self.cr3, self.mode, self.entries)
        )


def walk(
    memory: TableMemory,
    gva: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    access: Access = "read",
    cpl: int = 0,
    pkru: int = 0,
    ac: bool = False,
    maxphyaddr: int = 52,
    set_ad: bool = False,
    implicit: bool = False,
) -> Walk:
    """Walk the guest's tables for one access and return every step of it.

    `access` is "read", "write" or "fetch"; `ac` is EFLAGS.AC. `implicit` marks an access that the
    processor makes by itself (to a descriptor, a TSS, an event's frame): supervisor at any CPL.
    With `set_ad` the bits A and D are set in the tables when the access is allowed.

    Raises `TableOutsideRam` where a table is not in RAM, and `BadInput` for what is no access.
    """
    try:
        mode, rules = setting(cr0, cr4, efer, maxphyaddr, access, cpl, ac, implicit)
        entries: list[int] = []
        gpa, page_size, fault = follow(memory, gva, cr3, mode, rules, pkru, set_ad, entries)
    except STUMBLES as error:
        raise blamed(error, walk, locals()) from None
    # As Walk(...) does it, in half the time.
    return tuple.__new__(Walk, (gva, gpa, page_size, fault, cr3, mode, entries))


def translate(
    memory: TableMemory,
    gva: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    access: Access = "read",
    cpl: int = 0,
    pkru: int = 0,
    ac: bool = False,
    maxphyaddr: int = 52,
    set_ad: bool = False,
    implicit: bool = False,
) -> tuple[int | None, int, Fault | None]:
    """Return (gpa, page size, fault) of the same walk as `walk`, without the steps."""
    try:
        mode, rules = setting(cr0, cr4, efer, maxphyaddr, access, cpl, ac, implicit)
        entries: list[int] | None = [] if set_ad else None
        return follow(memory, gva, cr3, mode, rules, pkru, set_ad, entries)
    except STUMBLES as error:
        raise blamed(error, translate, locals()) from None


@lru_cache(maxsize=256)
def setting(
    cr0: int,
    cr4: int,
    efer: int,
    maxphyaddr: int,
    access: Access,
    cpl: int,
    ac: bool,
    implicit: bool,
) -> tuple[PagingMode | None, AccessRules]:
    """Return what a walk needs to know of the registers: the same for millions of walks."""
    return (
        paging_mode(cr0, cr4, efer, maxphyaddr),
        access_rules(cr0, cr4, efer, access, cpl, ac, implicit),
    )


def follow(
    memory: TableMemory,
    gva: int,
    cr3: int,
    mode: PagingMode | None,
    rules: AccessRules,
    pkru: int,
    set_ad: bool,
    entries: list[int] | None,
) -> tuple[int | None, int, Fault | None]:
    """Walk; append what is read to `entries` if there is such a list (`set_ad` needs it)."""
    if (gva | cr3 | pkru << 32) >> 64:
        check_wide(gva, cr3, pkru)
    if mode is None:
        return gva & 0xFFFF_FFFF, 0, None
    if mode.sign_bit:
        sign = gva >> mode.sign_bit
        if sign and sign != (1 << 64 - mode.sign_bit) - 1:
            return None, 0, Fault(VECTOR_GP, 0, 0)
    read, words = memory.read_u64, None
    if mode.entry_bytes == 8:
        words = getattr(memory, "words64", None)
    else:
        read = _narrow(read)
    keep = entries.append if entries is not None else None
    address = mode.address

    table = cr3 & mode.root
    granted = RW | US | A
    bars, barred = rules.bars, 0
    for level in mode.levels:
        at = table + (gva >> level.offset_shift & level.offset_mask)
        try:
            entry = read(at) if words is None else words[at >> 3]
        except OUTSIDE:
            raise TableOutsideRam(level.number, at) from None
        if keep:
            keep(entry)
        leaf = entry & level.leaf
        if entry & (level.leaf_fixed if leaf else level.fixed) != P:
            return None, 0, _unusable(entry, rules, level)
        granted &= entry | level.grants if level.grants else entry
        if bars:
            barred |= entry
        if leaf:
            break
        table = entry & address

    key_error = 0
    if rules.key_denies and granted & US:
        key = entry >> KEY_SHIFT & 15
        if pkru >> key * 2 & rules.key_denies:
            key_error = ERROR_PK
    if (
        granted & rules.needs != rules.needs
        or granted & rules.refuses
        or barred & bars
        or key_error
    ):
        return None, 0, _broken(rules, key_error, level)
    if set_ad and entries is not None:
        dirty = D if rules.error_code & ERROR_W else 0
        if not granted & A or dirty & ~entry:
            set_accessed_dirty(memory, list(references(gva, cr3, mode, entries)), dirty)

    gpa = entry & level.frame | gva & level.offset
    if level.frame_high:
        gpa |= (entry & level.frame_high) << 19
    return gpa, level.page_size, None


def check_wide(gva: int, cr3: int, pkru: int) -> None:
    """Raise `BadInput` for an address, a CR3 or a PKRU that has not so few bits."""
    for name, value, bits in (("gva", gva, 64), ("cr3", cr3, 64), ("pkru", pkru, 32)):
        if value >> bits:
            raise BadInput(name, f"has {bits} bits, not {value:#x}")


def _unusable(entry: int, rules: AccessRules, level: Level) -> Fault:
    """Return the page fault of an entry that is not present or has a reserved bit set."""
    if entry & P:
        return _broken(rules, ERROR_RSVD, level)
    return Fault(VECTOR_PF, rules.error_code, level.number)


def _broken(rules: AccessRules, why: int, level: Level) -> Fault:
    """Return the page fault of an access that a present entry forbids."""
    return Fault(VECTOR_PF, rules.error_code | ERROR_P | why, level.number)


def _narrow(read_u64: Callable[[int], int]) -> Callable[[int], int]:
    """Return a reader of 4-byte entries: half of the aligned word around each."""
    return lambda gpa: read_u64(gpa >> 3 << 3) >> (gpa & 4) * 8 & 0xFFFF_FFFF


def references(
    gva: int, cr3: int, mode: PagingMode | None, entries: Sequence[int]
) -> Iterator[Reference]:
    """Yield level, guest-physical address and value of each entry that was read."""
    if mode is not None:
        table = cr3 & mode.root
        for level, entry in zip(mode.levels, entries, strict=False):  # a walk may end early
            yield level, table + (gva >> level.offset_shift & level.offset_mask), entry
            table = entry & mode.address


def set_accessed_dirty(memory: TableMemory, passed: Sequence[Reference], dirty: int) -> None:
    """Set A in every entry passed, and `dirty` in the last. SDM vol. 3A, 4.8.

    Each word is read again: tables that point to themselves make one entry serve two levels.
    """
    leaf = passed[-1]
    for step in passed:
        level, at, entry = step
        bits = A & ~level.grants | (dirty if step is leaf else 0)
        if bits & ~entry:
            word = at & ~7
            memory.write_u64(word, memory.read_u64(word) | bits << (at & 4) * 8)
