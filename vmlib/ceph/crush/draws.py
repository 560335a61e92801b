"""straw2 draws for thousands of inputs at once.

A block of draws is a table: a row for each item of a bucket, a column for each input. Buckets of
one size are kept together, so that inputs that stand before different buckets of that size still
share a table. Blocks are as large as fits the second-level cache.

The draw is (2^48 - ln) / weight, rounded down, and the smallest wins: the sign is turned round
from Ceph's, whose division rounds toward zero, so the results are the same. It is made roughly
first, in single precision and with 1 / weight, and an item's place in its bucket is written into
the lowest bits of the quotient, so that one minimum finds both. Where another item comes so near
that the roughness or the rounding down might decide, which is rare, the column is divided again in
double precision. There it is exact: the quotient of a number up to 2^48 by one up to 2^32 never
rounds across a whole number. The rounding down must stay: equals are decided by the items' order.

Where all items of a bucket weigh the same, division does not change who wins but for ties. Then
one table for each weight gives the rank of every hash, and no division is left.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush.facts import NONE, ChooseArgs, MapFacts
from vmlib.ceph.crush.hashing import Hasher, aligned
from vmlib.ceph.crush.ln import negative_ln

Ints = NDArray[np.int64]

MISSING = NONE - 2
LOW_HALF = np.uint32(0xFFFF)
LOW_HALVES = slice(0 if sys.byteorder == "little" else 1, None, 2)
"""The lower halves of 32-bit words in a table of 16-bit ones."""
CELLS = 3 << 14
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
    weights: NDArray[np.float64]  # (size, positions * buckets)
    rough_inverse: NDArray[np.float32]  # 1 / weights
    tables: NDArray[np.uint32] | None  # ranks by weight, one after the other
    table_of: Ints  # (positions * buckets): where a bucket's table begins
    places: NDArray[np.uint32]  # (size, 1): 0, 1, 2, …
    above_place: np.uint32  # the bits of a key that do not hold a place
    counter: type  # a dtype that counts to size
    slack: np.float32  # rough straws this close, relatively, must be divided exactly


class Drawer:
    """The straw2 buckets of a map, ready to draw from."""

    def __init__(self, crush: MapFacts, args: ChooseArgs) -> None:
        count = self.lowest = -min(crush.buckets, default=0)
        self.kinds = np.zeros(count + crush.max_devices + 1, np.int64)
        self.kinds[-1] = -1
        self.sizes = np.zeros(count, np.int64)
        self.column = np.zeros(count, np.intp)
        by_size: dict[int, list[int]] = {}
        for bucket in crush.buckets.values():
            self.kinds[bucket.id + count] = bucket.type
            if bucket.alg != "straw2":
                continue
            size = self.sizes[-1 - bucket.id] = len(bucket.items)
            kept = by_size.setdefault(int(size), [])
            self.column[-1 - bucket.id] = len(kept)
            kept.append(bucket.id)
        self.groups = {size: _same_size(crush, args, ids) for size, ids in by_size.items() if size}
        self.positions = max((group.positions for group in self.groups.values()), default=1)
        self.negative_ln = negative_ln().astype(np.float64)
        self.hasher = Hasher()
        self.rough_ln = negative_ln().astype(np.float32)
        self._make_room(0)

    def descend(
        self, start: int | Ints, x: NDArray[np.uint32], r: Ints, position: Ints, kind: int
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Walk from a bucket (one for all, or one each) down to an item of a type.

        Returns the items, MISSING where the walk met an empty bucket or the wrong device; and
        where it met the wrong device, which no retry mends.
        """
        ended = np.zeros(len(x), np.bool_)
        r_here = r.astype(np.uint32)
        found = self.pick(start, x, r_here, position)
        kinds = self.kinds_of(found)
        rows = np.flatnonzero(kinds != kind)
        at = found[rows]
        kinds = kinds[rows]
        while rows.size:
            ended[rows[kinds == 0]] = True
            found[rows[kinds == 0]] = MISSING
            further = kinds > 0
            rows, at = rows[further], at[further]
            if not rows.size:
                break
            at = found[rows] = self.pick(at, x[rows], r_here[rows], position[rows])
            kinds = self.kinds_of(at)
            wrong = kinds != kind
            rows, at, kinds = rows[wrong], at[wrong], kinds[wrong]
        return found, ended

    def kinds_of(self, items: Ints) -> Ints:
        """Return the type of each item: 0 for a device, -1 for MISSING."""
        kinds: Ints = self.kinds.take(items + self.lowest, mode="clip")
        return kinds

    def pick(
        self, at: int | Ints, x: NDArray[np.uint32], r: NDArray[np.uint32], position: Ints
    ) -> Ints:
        """Return the item that each input draws; MISSING from an empty bucket."""
        if isinstance(at, int):
            group = self.groups.get(int(self.sizes[-1 - at]))
            if group is None:
                return np.full(len(x), MISSING, np.int64)
            column = int(self.column[-1 - at])
            return self.draw(group, column, self.spot(group, column, position), x, r)
        sizes = self.sizes.take(-1 - at)
        columns = self.column.take(-1 - at)
        least, most = (int(sizes.min()), int(sizes.max())) if sizes.size else (0, 0)
        if least == most and least:
            group = self.groups[least]
            return self.draw(group, columns, self.spot(group, columns, position), x, r)
        item = np.full(len(x), MISSING, np.int64)
        for size in np.unique(sizes).tolist():
            group = self.groups.get(size)
            if group is not None:
                which = np.flatnonzero(sizes == size)
                mine = columns[which]
                spot = self.spot(group, mine, position[which])
                item[which] = self.draw(group, mine, spot, x[which], r[which])
        return item

    @staticmethod
    def spot(group: SameSize, column: int | Ints, position: Ints) -> int | Ints:
        """Return the column of the weights for each input's position."""
        if group.positions == 1:
            return column
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
        blocks = -(-len(x) * group.size // CELLS) or 1
        width = -(-len(x) // blocks) or 1
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
        if len(self._u) < group.size * len(x):
            self._make_room(group.size * len(x))
        hashed = _columns(group.hashed, column, self._hashed, shape)
        value = self.hasher(x[None, :], hashed, r[None, :])
        u = _shaped(self._u, shape)
        np.copyto(u, value.view(np.uint16)[:, LOW_HALVES])
        keys = _shaped(self._keys, shape)
        if group.tables is not None:
            if len(group.tables) > 1 << 16:
                u += group.table_of[spot]
            group.tables.take(u, out=keys, mode="clip")
            keys |= group.places
            best: NDArray[np.uint32] = np.minimum.reduce(keys, axis=0)
            return (best & LOW_HALF).astype(np.int64)
        straws = keys.view(np.float32)
        self.rough_ln.take(u, out=straws, mode="clip")
        straws *= _columns(group.rough_inverse, spot, self._inverse, shape)
        keys &= group.above_place
        keys |= group.places
        best = np.minimum.reduce(keys, axis=0)
        limit = best.view(np.float32) * (1 + group.slack) + np.float32(1)
        near = _shaped(self._near, shape)
        np.less_equal(straws, limit, out=near)
        winner = (best & ~group.above_place).astype(np.int64)
        close = np.flatnonzero(np.add.reduce(near.view(np.uint8), axis=0, dtype=group.counter) != 1)
        if close.size:
            spots = spot if isinstance(spot, int) else spot[close]
            winner[close] = self.exact_winner(group, spots, u[:, close])
        return winner

    def exact_winner(self, group: SameSize, spot: int | Ints, u: Ints) -> Ints:
        """Return the winners for some columns of hashes, by exact division."""
        weights = (
            group.weights[:, spot : spot + 1] if isinstance(spot, int) else group.weights[:, spot]
        )
        with np.errstate(divide="ignore"):  # weight 0 makes an endless straw, which never wins
            straws = np.floor(self.negative_ln[u] / weights)
        first: Ints = straws.argmin(axis=0)
        return first

    def _make_room(self, cells: int) -> None:
        (self._u,) = aligned(1, cells, np.intp)
        self._keys, self._hashed = aligned(2, cells, np.uint32)
        (self._inverse,) = aligned(1, cells, np.float32)
        (self._near,) = aligned(1, cells, np.bool_)


def _shaped(kept: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the front of a buffer as a table."""
    return kept[: shape[0] * shape[1]].reshape(shape)


def _columns(
    table: NDArray[Any], which: int | Ints, kept: NDArray[Any], shape: tuple[int, int]
) -> NDArray[Any]:
    """Return one column of a table, or many side by side in a buffer."""
    if isinstance(which, int):
        return table[:, which : which + 1]
    return table.take(which, axis=1, out=_shaped(kept, shape), mode="clip")


def _same_size(crush: MapFacts, args: ChooseArgs, ids: list[int]) -> SameSize:
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
    bits = (size - 1).bit_length()
    with np.errstate(divide="ignore"):
        inverse = (1 / weights).astype(np.float32)
    return SameSize(
        size,
        len(buckets),
        positions,
        np.ascontiguousarray(np.array([b.items for b in buckets], np.int64).T),
        np.ascontiguousarray(np.array(hashed, np.int64).T.astype(np.uint32)),
        np.ascontiguousarray(weights),
        np.ascontiguousarray(inverse),
        np.concatenate([ranks(weight) for weight in distinct]) if tabled else None,
        np.array([distinct.index(c[0]) if tabled else 0 for c in columns], np.int64) << 16,
        np.arange(size, dtype=np.uint32)[:, None],
        np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF),
        np.uint8 if size < 256 else np.uint32,
        np.float32(2.0 ** (bits - 21)),
    )
