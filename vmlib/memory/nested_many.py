"""Many 2-D walks at once: `walk_nested` over whole arrays.

The guest's tables are walked by the same code as in `walk_many`; only its reader is another one,
which takes the addresses of all entries of a level through the second stage before it reads them.

Left out, beside what `walk_nested` leaves out: no steps are kept, and A and D are not set. To set
them in a guest's entry is a write that the second stage may refuse; whether it is needed depends on
the accesses before, and all of these are walked at once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vmlib.given import names_bad_input
from vmlib.memory.many import (
    NO_GPA,
    OUTSIDE_RAM,
    Lanes,
    Mask,
    Reader,
    WalkMany,
    WordMemory,
    Words,
    as_addresses,
    only,
    ram_reader,
    walk_lanes,
)
from vmlib.memory.paging import ADDRESS, PS, Access
from vmlib.memory.second_stage import (
    BAD_TYPES,
    EPT_MISCONFIGURATION,
    EPT_R,
    EPT_TYPE_SHIFT,
    EPT_VIOLATION,
    EPT_W,
    EPT_X,
    NEED,
    NPF,
    NPF_FINAL,
    NPF_TABLE,
    Ept,
    Npt,
    SecondStage,
    qualification,
    table_access,
)
from vmlib.memory.usual import usual_walk
from vmlib.memory.walk import check_wide, setting

PIECE = 1 << 15
_WRITE_BACK = 6 << EPT_TYPE_SHIFT
_TYPE = 7 << EPT_TYPE_SHIFT


@dataclass(frozen=True, slots=True, eq=False)
class NestedMany:
    """What became of each address, in the order they were given in."""

    guest: WalkMany
    """The guest's part. `gpa` is 2**64 - 1 also where a nested exit came first; a table of either
    stage outside the host's RAM has vector 255. `page_size` is the guest's."""
    hpa: Words
    """2**64 - 1 where there is none."""
    page_size: npt.NDArray[np.int64]
    """Of both stages the smaller; 0 where there is no `hpa`."""
    exit_reason: npt.NDArray[np.int16]
    """0, or as `SecondStageExit.reason` has it: 48, 49 or 0x400."""
    exit_qualification: Words
    exit_gpa: Words

    def __len__(self) -> int:
        return len(self.hpa)

    @classmethod
    def empty(cls, count: int) -> "NestedMany":
        """Return room for `count` outcomes."""
        return cls(
            WalkMany.empty(count),
            np.full(count, NO_GPA),
            np.zeros(count, np.int64),
            np.zeros(count, np.int16),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
        )

    @names_bad_input
    def part(self, piece: slice) -> "NestedMany":
        """Return a view of some outcomes."""
        return NestedMany(
            self.guest.part(piece),
            self.hpa[piece],
            self.page_size[piece],
            self.exit_reason[piece],
            self.exit_qualification[piece],
            self.exit_gpa[piece],
        )


@names_bad_input
def walk_nested_many(
    memory: WordMemory,
    gvas: npt.ArrayLike,
    second: SecondStage,
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
    implicit: bool = False,
) -> NestedMany:
    """Walk both stages for every address of `gvas` (one dimension, integers).

    Keywords are those of `walk_nested`, but `set_ad`, and so is the outcome for each address.
    Raises `BadInput` for what is no address or no access.
    """
    mode, rules = setting(cr0, cr4, efer, maxphyaddr, access, cpl, ac, implicit)
    addresses = as_addresses(gvas)
    check_wide(0, cr3, pkru)
    out = NestedMany.empty(len(addresses))
    words = memory.u64
    entry_bytes = mode.entry_bytes if mode else 8
    for start in range(0, len(addresses), PIECE):
        piece = slice(start, start + PIECE)
        part = out.part(piece)
        read = _guest_reader(words, second, part, entry_bytes)
        walk_lanes(read, addresses[piece], cr3, mode, rules, pkru, part.guest)
        ended = (part.guest.vector != 0) | (part.exit_reason != 0)
        lanes = np.flatnonzero(~ended) if ended.any() else np.arange(len(part))
        gpa = part.guest.gpa[lanes]
        hpa, size, gone = _translate(words, second, gpa, lanes, access, False, part)
        if gone is not None:
            lanes, hpa, size = only(~gone, lanes, hpa, size)
        guest_size = part.guest.page_size[lanes]
        part.hpa[lanes] = hpa
        part.page_size[lanes] = size if mode is None else np.minimum(size, guest_size)
    return out


def _guest_reader(words: Words, second: SecondStage, out: NestedMany, entry_bytes: int) -> Reader:
    """Return a reader of guest entries at guest-physical addresses."""
    flat, access = ram_reader(words, out.guest, entry_bytes), table_access(second)

    def read(at: Words, lanes: Lanes) -> tuple[Words, Mask | None]:
        hpa, _, gone = _translate(words, second, at, lanes, access, True, out)
        if gone is None:
            return flat(hpa, lanes)
        entry = np.zeros_like(at)
        there = np.flatnonzero(~gone)
        entry[there], outside = flat(hpa[there], lanes[there])
        if outside is not None:
            gone[there[outside]] = True
        return entry, gone

    return read


def _translate(
    words: Words,
    second: SecondStage,
    gpa: Words,
    lanes: Lanes,
    access: Access,
    table: bool,
    out: NestedMany,
) -> tuple[Words, npt.NDArray[np.int64] | np.int64, Mask | None]:
    """Take addresses through the second stage. Return host-physical ones, page sizes, and which
    lanes ended there (their outcome is written; None: none did)."""
    if (quick := usual_walk(words, gpa, second, access)) is not None:
        return quick[0], np.int64(quick[1]), None
    if isinstance(second, Npt):
        mode = second.mode
        found = WalkMany.empty(len(gpa))
        top = np.uint64(64 - mode.sign_bit - 1)
        extended = ((gpa << top).view(np.int64) >> top.view(np.int64)).view(np.uint64)
        rules = second.rules(access)
        walk_lanes(ram_reader(words, found, 8), extended, second.n_cr3, mode, rules, 0, found)
        beyond = gpa >> np.uint64(mode.sign_bit + 1) != 0
        if beyond.any():
            found.vector[beyond], found.error_code[beyond] = 14, rules.error_code
        gone = found.vector != 0
        if not gone.any():
            return found.gpa, found.page_size, None
        code = found.error_code.astype(np.uint64) | np.uint64(NPF_TABLE if table else NPF_FINAL)
        _leave(out, lanes, gpa, gone & (found.vector != OUTSIDE_RAM), NPF, code)
        out.guest.vector[lanes[found.vector == OUTSIDE_RAM]] = OUTSIDE_RAM
        out.guest.error_code[lanes[found.vector == OUTSIDE_RAM]] = 0
        return found.gpa, found.page_size, gone
    found = WalkMany.empty(len(gpa))
    rights = _ept_lanes(words, gpa, second, NEED[access], found)
    gone = found.vector != 0
    if not gone.any():
        return found.gpa, found.page_size, None
    codes = np.array([qualification(second, access, r, table) for r in range(8)], np.uint64)
    violated = found.vector == EPT_VIOLATION
    _leave(out, lanes, gpa, violated, EPT_VIOLATION, codes[rights])
    wrong = found.vector == EPT_MISCONFIGURATION
    _leave(out, lanes, gpa, wrong, EPT_MISCONFIGURATION, np.zeros_like(gpa))
    out.guest.vector[lanes[found.vector == OUTSIDE_RAM]] = OUTSIDE_RAM
    out.guest.error_code[lanes[found.vector == OUTSIDE_RAM]] = 0
    return found.gpa, found.page_size, gone


def _leave(
    out: NestedMany, lanes: Lanes, gpa: Words, which: Mask, reason: int, code: Words
) -> None:
    """Write the exits of some lanes. What the guest's walk has come to is void then."""
    who = lanes[which]
    out.exit_reason[who] = reason
    out.exit_qualification[who] = code[which]
    out.exit_gpa[who] = gpa[which]


def _ept_lanes(
    words: Words, gpa: Words, ept: Ept, need: int, out: WalkMany
) -> npt.NDArray[np.uint8]:
    """Walk EPT for all of `gpa`; the exit reason goes to `out.vector`.

    Return the rights (bits 2..0) that the entries of each lane have in common.
    """
    common = np.zeros(len(gpa), np.uint8)
    lanes: Lanes = np.arange(len(gpa))
    reach = np.uint64(12 + 9 * ept.levels)
    beyond = gpa >> reach != 0
    if beyond.any():
        out.vector[beyond] = EPT_VIOLATION
        lanes, gpa = only(~beyond, lanes, gpa)
    read = ram_reader(words, out, 8)
    rights: Words | None = None
    table: Words | np.uint64 = np.uint64(ept.root)
    for level in range(ept.levels, 0, -1):
        at = gpa >> np.uint64(12 + 9 * (level - 1) - 3) & np.uint64(0xFF8)
        at += table
        entry, gone = read(at, lanes)
        if gone is not None:
            lanes, gpa, entry, rights = only(~gone, lanes, gpa, entry, rights)
        rights = entry if rights is None else rights & entry

        # A readable pointer to a table, or a readable write-back page, is what nearly all are.
        usual, watched = EPT_R, EPT_R | PS | ept.reserved(level, leaf=False)
        if level == 1:
            usual, watched = EPT_R | _WRITE_BACK, EPT_R | _TYPE | ept.reserved(1, leaf=True)
        odd = (entry & np.uint64(watched)) != usual
        if odd.any():
            absent, wrong, leaf = _sort_out(entry, level, ept)
            out.vector[lanes[absent]] = EPT_VIOLATION  # with no rights in common
            out.vector[lanes[wrong]] = EPT_MISCONFIGURATION
            bad = absent | wrong
            if level > 1:
                large = leaf & ~bad
                if large.any():
                    _end(only(large, lanes, gpa, entry, rights), level, need, out, common)
                bad |= leaf
            lanes, gpa, entry, rights = only(~bad, lanes, gpa, entry, rights)
        if not len(lanes):
            return common
        if level > 1:
            table = entry & np.uint64(ADDRESS)
    _end((lanes, gpa, entry, rights), 1, need, out, common)
    return common


def _sort_out(entry: Words, level: int, ept: Ept) -> tuple[Mask, Mask, Mask]:
    """Return which entries are absent, which misconfigured, and which would map a page."""
    granted = entry & np.uint64(7)
    absent = granted == 0
    leaf = np.full(len(entry), level == 1)
    if level in (2, 3):
        leaf = (entry & np.uint64(PS)) != 0
    wrong = (granted & np.uint64(3)) == EPT_W
    if not ept.execute_only:
        wrong |= granted == EPT_X
    reserved = np.where(
        leaf, np.uint64(ept.reserved(level, True)), np.uint64(ept.reserved(level, False))
    )
    wrong |= (entry & reserved) != 0
    kind = entry >> np.uint64(EPT_TYPE_SHIFT) & np.uint64(7)
    wrong |= leaf & ((np.uint64(BAD_TYPES) >> kind & np.uint64(1)) != 0)
    return absent, wrong & ~absent, leaf


def _end(lane: Any, level: int, need: int, out: WalkMany, common: npt.NDArray[np.uint8]) -> None:
    """Judge the rights of lanes that have reached their page, and write where they lead."""
    lanes, gpa, entry, rights = lane
    size = 1 << 12 + 9 * (level - 1)
    hpa = entry & np.uint64(ADDRESS & -size)
    hpa |= gpa & np.uint64(size - 1)
    denied = (rights & np.uint64(need)) == 0
    if denied.any():
        who = lanes[denied]
        out.vector[who] = EPT_VIOLATION
        common[who] = (rights[denied] & np.uint64(7)).astype(np.uint8)
        lanes, hpa = only(~denied, lanes, hpa)
    if len(lanes) == len(out):
        out.gpa[:], out.page_size[:] = hpa, size
    else:
        out.gpa[lanes], out.page_size[lanes] = hpa, size
