"""Many page walks at once: the algorithm of `walk`, level by level over whole arrays.

All addresses start as lanes side by side. At each level every lane reads its entry; lanes that
end there (a fault, a large page) leave, and the others go one level down. As long as all entries
of a level only point to tables, which is the common case, that is one comparison for all of them.
Addresses are taken in pieces that fit the processor's cache.

`walk` says what is left out. One thing more: with `set_ad` all bits A and D are set after the
last address of a piece is translated, so a walk never sees a bit that its neighbour has set. It
could only tell in a PAE PDPT that serves as another table too: there A and D are reserved bits.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.memory.paging import (
    ERROR_P,
    ERROR_PK,
    ERROR_RSVD,
    ERROR_W,
    KEY_SHIFT,
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
)
from vmlib.memory.walk import check_wide, setting

Words = npt.NDArray[np.uint64]
Lanes = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
NO_GPA = np.uint64((1 << 64) - 1)
OUTSIDE_RAM = 255
"""The vector of a walk that met a table outside RAM; x86 has no such vector."""
PIECE = 1 << 16
"""Addresses walked together: half a MiB an array."""

Reader = Callable[[Words, Lanes], tuple[Words, Mask | None]]
"""Reads the entries at addresses for lanes; says which of them ended in that (None: none did).

Those have their outcome written, and what stands for their entries means nothing."""
Visited = list[tuple[Level, Words, Words, Lanes]]
"""Of each level: where the lanes read, what they read, and which lanes they were."""


class WordMemory(Protocol):
    """Memory that numpy sees: `u64` holds its little-endian 64-bit words from address 0."""

    @property
    def u64(self) -> Words:
        """All words, not a copy."""


@dataclass(frozen=True, slots=True, eq=False)
class WalkMany:
    """What became of each address, in the order they were given in."""

    gpa: Words
    """Where the address leads; 2**64 - 1 on a fault."""
    error_code: npt.NDArray[np.int32]
    """-1 where there is no fault."""
    vector: npt.NDArray[np.uint8]
    """14 (#PF), 13 (#GP), 255 (a table lies outside RAM); 0 where there is no fault."""
    page_size: npt.NDArray[np.int64]
    """In bytes; 0 on a fault, and with paging off."""

    @classmethod
    def empty(cls, count: int) -> "WalkMany":
        """Return room for `count` outcomes."""
        return cls(
            np.full(count, NO_GPA),
            np.full(count, -1, np.int32),
            np.zeros(count, np.uint8),
            np.zeros(count, np.int64),
        )

    def __len__(self) -> int:
        return len(self.gpa)

    @names_bad_input
    def part(self, piece: slice) -> "WalkMany":
        """Return a view of some outcomes."""
        return WalkMany(
            self.gpa[piece], self.error_code[piece], self.vector[piece], self.page_size[piece]
        )


@names_bad_input
def walk_many(
    memory: WordMemory,
    gvas: npt.ArrayLike,
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
) -> WalkMany:
    """Walk the guest's tables for every address of `gvas` (one dimension, integers).

    The same keywords as `walk`, and the same outcome for each address: see the module for the one
    exception. Raises `BadInput` for what is no address or no access.
    """
    mode, rules = setting(cr0, cr4, efer, maxphyaddr, access, cpl, ac, implicit)
    addresses = as_addresses(gvas)
    check_wide(0, cr3, pkru)
    out = WalkMany.empty(len(addresses))
    words = memory.u64
    for start in range(0, len(addresses), PIECE):
        piece = slice(start, start + PIECE)
        part = out.part(piece)
        visited: Visited = []
        read = ram_reader(words, part, 4 if mode and mode.entry_bytes == 4 else 8)
        walk_lanes(
            read, addresses[piece], cr3, mode, rules, pkru, part, visited if set_ad else None
        )
        if set_ad:
            _set_accessed_dirty(words, visited, part, bool(rules.error_code & ERROR_W))
    return out


def as_addresses(values: npt.ArrayLike, field: str = "gvas") -> Words:
    """Return 64-bit addresses; `BadInput` where these are none."""
    if not isinstance(values, np.ndarray):  # numpy would round a list of large and small ones
        try:
            given: Any = values
            values = np.array([operator.index(value) for value in given], np.uint64)
        except (TypeError, OverflowError):
            raise BadInput(field, "is a list of 64-bit addresses, as integers") from None
    if values.ndim != 1 or values.dtype.kind not in "ui":
        raise BadInput(field, f"is a list of integers, not {values.ndim}-D {values.dtype}")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise BadInput(field, f"holds a negative address, {values.min():#x}")
    return values.astype(np.uint64, copy=False)


def ram_reader(words: Words, out: WalkMany, entry_bytes: int) -> Reader:
    """Return a reader of entries in RAM. A lane whose table is outside ends with vector 255."""

    def read(at: Words, lanes: Lanes) -> tuple[Words, Mask | None]:
        where = (at >> np.uint64(3)).view(np.int64)
        outside = None
        try:
            entry = words[where]
        except IndexError:
            outside = where >= len(words)
            entry = words[np.where(outside, 0, where)] if len(words) else np.zeros_like(at)
            out.vector[lanes[outside]] = OUTSIDE_RAM
            out.error_code[lanes[outside]] = 0
        if entry_bytes == 4:
            entry = entry >> ((at & np.uint64(4)) << np.uint64(3)) & np.uint64(0xFFFF_FFFF)
        return entry, outside

    return read


def walk_lanes(
    read: Reader,
    gva: Words,
    cr3: int,
    mode: PagingMode | None,
    rules: AccessRules,
    pkru: int,
    out: WalkMany,
    visited: Visited | None = None,
) -> None:
    """Walk all of `gva`, one lane each, and write the outcomes to `out`."""
    lanes: Lanes = np.arange(len(gva))
    if mode is None:
        out.gpa[:] = gva & np.uint64(0xFFFF_FFFF)
        return
    if mode.sign_bit:
        wrong = (gva + np.uint64(1 << mode.sign_bit)) >> np.uint64(mode.sign_bit + 1) != 0
        if wrong.any():
            out.vector[wrong], out.error_code[wrong] = VECTOR_GP, 0
            lanes, gva = lanes[~wrong], gva[~wrong]

    # `granted` gathers what all entries have in common. Where NX bars the access it is gathered
    # upside down, so that one comparison in the end judges all rights.
    upside_down = np.uint64(rules.bars)
    granted: Words | None = None
    table: Words | np.uint64 = np.uint64(cr3 & mode.root)
    for level in mode.levels:
        at = gva >> np.uint64(level.offset_shift) & np.uint64(level.offset_mask)
        at += table
        entry, gone = read(at, lanes)
        if gone is not None:
            lanes, gva, at, entry, granted = only(~gone, lanes, gva, at, entry, granted)
        if visited is not None:
            visited.append((level, at, entry, lanes))
        here = entry ^ upside_down if upside_down else entry
        if level.grants:
            here = here | np.uint64(level.grants)
        granted = here if granted is None else granted & here

        # Only P, and not the bit that makes a leaf: then all of them point to tables.
        watched = level.fixed | level.leaf if level.number > 1 else level.leaf_fixed
        odd = (entry & np.uint64(watched)) != P
        if odd.any():
            is_leaf = (entry & np.uint64(level.leaf)) != 0
            fixed = np.where(is_leaf, np.uint64(level.leaf_fixed), np.uint64(level.fixed))
            bad = (entry & fixed) != P
            if bad.any():
                why = np.where(entry[bad] & np.uint64(P), ERROR_P | ERROR_RSVD, 0)
                out.vector[lanes[bad]] = VECTOR_PF
                out.error_code[lanes[bad]] = rules.error_code | why
            if level.number > 1:
                large = is_leaf & ~bad
                if large.any():
                    who, to, what, may = only(large, lanes, gva, entry, granted)
                    _finish(who, to, what, may, level, rules, pkru, out)
                bad |= is_leaf
            lanes, gva, entry, granted = only(~bad, lanes, gva, entry, granted)
        if not len(lanes):
            return
        if level.number == 1:
            _finish(lanes, gva, entry, granted, level, rules, pkru, out)
            return
        table = entry & np.uint64(mode.address)


def only(keep: Mask, *arrays: Any) -> Any:
    """Return the arrays' elements under a mask; None stays None."""
    where = np.flatnonzero(keep)
    return tuple(None if array is None else array[where] for array in arrays)


def _finish(
    lanes: Lanes,
    gva: Words,
    entry: Words,
    granted: Words,
    level: Level,
    rules: AccessRules,
    pkru: int,
    out: WalkMany,
) -> None:
    """Judge the rights of lanes that have reached their leaf, and write their outcomes."""
    needs = rules.needs | rules.bars
    denied = (granted & np.uint64(needs | rules.refuses)) != np.uint64(needs)
    why: Any = np.int32(0)
    if rules.key_denies:
        denies = np.array([pkru >> 2 * key & rules.key_denies for key in range(16)], np.bool_)
        by_key = denies[(entry >> np.uint64(KEY_SHIFT) & np.uint64(15)).view(np.int64)]
        by_key &= (granted & np.uint64(US)) != 0
        if by_key.any():
            why = np.where(by_key, np.int32(ERROR_PK), np.int32(0))
            denied |= by_key
    gpa = entry & np.uint64(level.frame)
    gpa |= gva & np.uint64(level.offset)
    if level.frame_high:
        gpa |= (entry & np.uint64(level.frame_high)) << np.uint64(19)
    if denied.any():
        code = np.where(denied, why | np.int32(rules.error_code | ERROR_P), np.int32(-1))
        out.error_code[lanes] = code
        out.vector[lanes[denied]] = VECTOR_PF
        gpa[denied] = NO_GPA
        out.page_size[lanes] = np.where(denied, 0, level.page_size)
        out.gpa[lanes] = gpa
    elif len(lanes) == len(out):  # all of them, in order: no need to scatter
        out.gpa[:], out.page_size[:] = gpa, level.page_size
    else:
        out.gpa[lanes], out.page_size[lanes] = gpa, level.page_size


def _set_accessed_dirty(words: Words, visited: Visited, out: WalkMany, write: bool) -> None:
    """Set A in every entry that an allowed access passed, and D in the leaf it wrote through."""
    for level, at, entry, lanes in visited:
        allowed = out.vector[lanes] == 0
        bits = np.full(len(at), A & ~level.grants, np.uint64)
        if write:
            is_leaf = (entry & np.uint64(level.leaf)) != 0
            bits[is_leaf] |= np.uint64(D)
        todo = np.flatnonzero(allowed & ((bits & ~entry) != 0))
        shift = (at[todo] & np.uint64(4)) << np.uint64(3)
        np.bitwise_or.at(words, (at[todo] >> np.uint64(3)).view(np.int64), bits[todo] << shift)


__all__ = ["OUTSIDE_RAM", "WalkMany", "WordMemory", "walk_many"]
