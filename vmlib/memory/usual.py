"""Many walks in which nothing happens: the common case of the second stage, taken in one go.

Nearly always all addresses of a piece lead through tables that are present and grant the access,
to pages of one size. Then no lane needs a verdict of its own: two numbers tell whether a level is
in order, the AND of all its entries (what each of them grants) and their OR (what any of them has
set). Where they say no, the walk is given up, and `nested_many` does it lane by lane. That way is
the reference; this one may only be faster.

Left out: everything unusual, which is its meaning.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vmlib.memory.many import Words
from vmlib.memory.paging import ADDRESS, PS, Access, P
from vmlib.memory.second_stage import EPT_R, EPT_TYPE_SHIFT, NEED, Ept, SecondStage

_WRITE_BACK, _TYPE = 6 << EPT_TYPE_SHIFT, 7 << EPT_TYPE_SHIFT


class Row(NamedTuple):
    """What is usual at one level: of the bits `watched` those in `usual` are set, and no others."""

    shift: int
    """From the address to the byte offset of the entry in its table."""
    usual: int
    watched: int
    leaf_usual: int
    """The same of an entry that maps a page; 0 where none can."""
    leaf_watched: int


def usual_walk(
    words: Words, gpa: Words, second: SecondStage, access: Access
) -> tuple[Words, int] | None:
    """Take all of `gpa` through the second stage: host-physical addresses, and the page size.

    None where for one of them something else happens, or their pages have several sizes.
    """
    reach, rows = usual_rows(second, access)
    if int(np.bitwise_or.reduce(gpa)) >> reach:
        return None
    table: Words | np.uint64 = np.uint64(second.root if isinstance(second, Ept) else second.n_cr3)
    table &= np.uint64(ADDRESS)
    for row in rows:
        at = gpa >> np.uint64(row.shift)
        at &= np.uint64(0xFF8)
        at += table
        at >>= np.uint64(3)
        try:
            entry = words.take(at.view(np.int64))
        except IndexError:
            return None
        common, any_set = int(np.bitwise_and.reduce(entry)), int(np.bitwise_or.reduce(entry))
        leaf = bool(row.leaf_usual) and common & row.leaf_usual == row.leaf_usual
        usual, watched = row[3:] if leaf else row[1:3]
        if common & usual != usual or any_set & watched & ~usual:
            return None
        if leaf:
            size = 1 << row.shift + 3
            entry &= np.uint64(ADDRESS & -size)
            entry |= gpa & np.uint64(size - 1)
            return entry, size
        entry &= np.uint64(ADDRESS)
        table = entry
    return None


@lru_cache(maxsize=64)
def usual_rows(second: SecondStage, access: Access) -> tuple[int, tuple[Row, ...]]:
    """Return how many bits of address the tables reach, and what is usual from the root down."""
    rows = []
    if isinstance(second, Ept):
        grants = EPT_R | NEED[access]
        for level in range(second.levels, 0, -1):
            large = PS if 1 < level <= 3 else 0
            watched = grants | PS | second.reserved(level, leaf=False)
            usual = grants | large | _WRITE_BACK
            of_leaf = grants | large | _TYPE | second.reserved(level, leaf=True)
            can_be_leaf = level <= 3
            rows.append(
                Row(9 * level, grants, watched, *((usual, of_leaf) if can_be_leaf else (0, 0)))
            )
        return 12 + 9 * second.levels, tuple(rows)
    rules = second.rules(access)
    grants = P | rules.needs
    for one in second.mode.levels:
        watched = grants | one.fixed | one.leaf | rules.bars
        usual, of_leaf = grants | one.leaf, grants | one.leaf | one.leaf_fixed | rules.bars
        if not one.leaf:
            usual = of_leaf = 0
        rows.append(Row(one.offset_shift, grants, watched, usual, of_leaf))
    return second.mode.sign_bit + 1, tuple(rows)
