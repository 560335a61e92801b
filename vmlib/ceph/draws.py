"""straw2 draws for thousands of inputs at once.

A block of draws is a table: a row for each item of a bucket, a column for each input. Buckets of
one size are kept together, so that inputs that stand before different buckets of that size still
share a table. Blocks are as large as fits the second-level cache.

The draw is (2^48 - ln) / weight, rounded down, and the smallest wins: the sign is turned round
from Ceph's, whose division rounds toward zero, so the results are the same. In double precision
it is exact: the quotient of a number up to 2^48 by one up to 2^32 never rounds across a whole
number. The rounding down must stay, for equal quotients are decided by the items' order. An item's
place in its bucket is put below the quotient, so that one minimum finds both the least and,
among equals, the first.

Where all items of a bucket weigh the same, division does not change who wins but for ties. Then
one table for each weight gives the rank of every hash, and no division is left.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush_map import NONE, ChooseArgs
from vmlib.ceph.hashing import Hasher
from vmlib.ceph.ln import TOP, negative_ln

if TYPE_CHECKING:
    from vmlib.ceph.crush_map import CrushMap

Ints = NDArray[np.int64]

MISSING = NONE - 2
CELLS = 1 << 15
"""Draws in a block."""

MOST_TABLES = 16
"""Rank tables for one size of bucket; with more weights than that, division is as good."""


@lru_cache(maxsize=64)
def ranks(weight: int) -> NDArray[np.uint32]:
    """Return the rank of floor((2^48 - ln u) / weight) for every u, times 2^16."""
    quotients = negative_ln() // weight if weight else np.zeros(1 << 16, np.int64)
    rank = np.unique(quotients, return_inverse=True)[1]
    return rank.astype(np.uint32) << np.uint32(16)


@dataclass(frozen=True, slots=True)
class SameSize:
    """All buckets of one size. A column is a bucket (in a position, if weights depend on it)."""

    size: int
    buckets: int
    positions: int
    items: Ints  # (size, buckets)
    hashed: NDArray[np.uint32]  # (size, buckets): what is hashed for each item
    weights: NDArray[np.float64] | None  # (size, positions * buckets), or None with tables
    tables: NDArray[np.uint32] | None  # ranks by weight, one after the other
    table_of: Ints  # (positions * buckets): where a bucket's table begins
    room: float  # what a quotient is multiplied with to make room for the place; 0: none is left


class Drawer:
    """The straw2 buckets of a map, ready to draw from."""

    def __init__(self, crush: "CrushMap", args: ChooseArgs) -> None:
        count = -min(crush.buckets, default=0)
        self.types = np.zeros(count, np.int64)
        self.sizes = np.zeros(count, np.int64)
        self.column = np.zeros(count, np.intp)
        by_size: dict[int, list[int]] = {}
        for bucket in crush.buckets.values():
            self.types[-1 - bucket.id] = bucket.type
            if bucket.alg != "straw2":
                continue
            size = self.sizes[-1 - bucket.id] = len(bucket.items)
            kept = by_size.setdefault(int(size), [])
            self.column[-1 - bucket.id] = len(kept)
            kept.append(bucket.id)
        self.groups = {size: _same_size(crush, args, ids) for size, ids in by_size.items() if size}
        self.negative_ln = negative_ln().astype(np.float64)
        self.hasher = Hasher()
        self._index = np.empty(0, np.intp)
        self._keys = np.empty(0, np.uint32)
        self._straws = np.empty((2, 0), np.float64)

    def descend(
        self, start: int | Ints, x: NDArray[np.uint32], r: Ints, position: Ints, kind: int
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Walk from a bucket (one for all, or one each) down to an item of a type.

        Returns the items, MISSING where the walk met an empty bucket or the wrong device; and
        where it met the wrong device, which no retry mends.
        """
        found = np.full(len(x), MISSING, np.int64)
        ended = np.zeros(len(x), np.bool_)
        active = np.arange(len(x))
        tries = r.astype(np.uint32)
        at: int | Ints = start
        while active.size:
            whole = len(active) == len(x)
            here, r_here, where = (
                (x, tries, position) if whole else (x[active], tries[active], position[active])
            )
            item = self.pick(at, here, r_here, where)
            device = item >= 0
            there = item != MISSING
            found_kind = np.zeros(len(item), np.int64)
            inner = np.flatnonzero(~device)
            found_kind[inner] = self.types[-1 - item[inner]]
            done = there & (found_kind == kind)
            found[active[done]] = item[done]
            ended[active[there & device & ~done]] = True
            further = ~device & ~done
            active, at = active[further], item[further]
        return found, ended

    def pick(
        self, at: int | Ints, x: NDArray[np.uint32], r: NDArray[np.uint32], position: Ints
    ) -> Ints:
        """Return the item that each input draws; MISSING from an empty bucket."""
        if isinstance(at, int):
            group = self.groups.get(int(self.sizes[-1 - at]))
            if group is None:
                return np.full(len(x), MISSING, np.int64)
            column = int(self.column[-1 - at])
            if group.positions == 1:
                return self.draw(group, column, column, x, r)
            return self.draw(group, column, self.spot(group, column, position), x, r)
        item = np.full(len(x), MISSING, np.int64)
        sizes = self.sizes[-1 - at]
        columns = self.column[-1 - at]
        for size in np.unique(sizes).tolist():
            group = self.groups.get(size)
            if group is None:
                continue
            which = np.flatnonzero(sizes == size)
            if len(which) == len(x):
                return self.draw(group, columns, self.spot(group, columns, position), x, r)
            mine = columns[which]
            spot = self.spot(group, mine, position[which])
            item[which] = self.draw(group, mine, spot, x[which], r[which])
        return item

    @staticmethod
    def spot(group: SameSize, column: int | Ints, position: Ints) -> Ints:
        """Return the column of the weights for each input's position."""
        last = np.int64(group.positions - 1)
        place: Ints = np.minimum(position, last)
        spot: Ints = place * group.buckets + column
        return spot

    def draw(
        self,
        group: SameSize,
        column: int | Ints,
        spot: int | Ints,
        x: NDArray[np.uint32],
        r: NDArray[np.uint32],
    ) -> Ints:
        """Return the winner of each input's bucket, block by block."""
        out = np.empty(len(x), np.int64)
        width = max(1, CELLS // group.size)
        for begin in range(0, len(x), width):
            block = slice(begin, begin + width)
            columns = column if isinstance(column, int) else column[block]
            spots = spot if isinstance(spot, int) else spot[block]
            winner = self.winner(group, columns, spots, x[block], r[block])
            out[block] = group.items[winner, columns]
        return out

    def winner(
        self,
        group: SameSize,
        column: int | Ints,
        spot: int | Ints,
        x: NDArray[np.uint32],
        r: NDArray[np.uint32],
    ) -> Ints:
        """Return the place in its bucket of each input's winner, for one block."""
        shape = (group.size, len(x))
        cells = group.size * len(x)
        if isinstance(column, int):
            hashed = group.hashed[:, column : column + 1]
        else:
            hashed = group.hashed.take(column, axis=1)
        value = self.hasher(x[None, :], hashed, r[None, :])
        if len(self._index) < cells:
            self._index = np.empty(cells, np.intp)
            self._keys = np.empty(cells, np.uint32)
            self._straws = np.empty((2, cells), np.float64)
        u = self._index[:cells].reshape(shape)
        value &= np.uint32(0xFFFF)
        np.copyto(u, value, casting="unsafe")
        if group.tables is not None:
            keys = self._keys[:cells].reshape(shape)
            if len(group.tables) > 1 << 16:
                u += group.table_of[spot]
            group.tables.take(u, out=keys, mode="clip")
            keys |= np.arange(group.size, dtype=np.uint32)[:, None]
            best: NDArray[np.uint32] = np.minimum.reduce(keys, axis=0)
            return (best & np.uint32(0xFFFF)).astype(np.int64)
        assert group.weights is not None
        straws = self._straws[0, :cells].reshape(shape)
        self.negative_ln.take(u, out=straws, mode="clip")
        if isinstance(spot, int):
            weights = group.weights[:, spot : spot + 1]
        else:
            weights = self._straws[1, :cells].reshape(shape)
            group.weights.take(spot, axis=1, out=weights, mode="clip")
        with np.errstate(divide="ignore"):  # weight 0 makes an endless straw, which never wins
            straws /= weights
        np.floor(straws, out=straws)
        if not group.room:
            first: Ints = straws.argmin(axis=0)
            return first
        straws *= group.room
        straws += np.arange(group.size, dtype=np.float64)[:, None]
        least: NDArray[np.float64] = np.minimum.reduce(straws, axis=0)
        least[np.isinf(least)] = 0  # nothing has weight: the first wins
        return least.astype(np.int64) & (int(group.room) - 1)


def _same_size(crush: "CrushMap", args: ChooseArgs, ids: list[int]) -> SameSize:
    """Return the tables of all buckets of one size."""
    buckets = [crush.buckets[number] for number in ids]
    changes = [args.get(number) for number in ids]
    positions = max((len(c.weight_set) for c in changes if c and c.weight_set), default=1)
    columns: list[tuple[int, ...]] = []
    for place in range(positions):
        for bucket, change in zip(buckets, changes, strict=True):
            rows = change.weight_set if change and change.weight_set else (bucket.weights,)
            columns.append(rows[min(place, len(rows) - 1)])
    hashed = [
        change.ids if change and change.ids else bucket.items
        for bucket, change in zip(buckets, changes, strict=True)
    ]
    size = len(buckets[0].items)
    equal = all(len(set(column)) == 1 for column in columns)
    distinct = sorted({column[0] for column in columns})
    tabled = equal and len(distinct) <= MOST_TABLES and size <= 1 << 16
    weights = np.array(columns, np.float64).T
    room = float(1 << (size - 1).bit_length())
    fits = room * (TOP // min((w for c in columns for w in c if w), default=1) + 1) < 1 << 53
    return SameSize(
        size,
        len(buckets),
        positions,
        np.ascontiguousarray(np.array([b.items for b in buckets], np.int64).T),
        np.ascontiguousarray(np.array(hashed, np.int64).T.astype(np.uint32)),
        None if tabled else np.ascontiguousarray(weights),
        np.concatenate([ranks(weight) for weight in distinct]) if tabled else None,
        np.array([distinct.index(c[0]) if tabled else 0 for c in columns], np.int64) << 16,
        room if fits else 0.0,
    )
