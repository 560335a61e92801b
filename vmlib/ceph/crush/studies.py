"""What the CRUSH paper measured, measured again: movement and balance (Weil et al., SC'06).

- `movement_by_algorithm`: how much an added or removed item moves in each kind of bucket, as a
  multiple of its share (the paper's Table 2 says poor, good or optimal).
- `movement_by_level`: 7,290 devices in four levels, as in the paper's Figure 5; where a change
  of weight is spread over the hierarchy, and how much more than its share it moves.
- `utilisation`: how evenly devices fill, beside what chance alone would give.

Movement counts placements and does not look at their order. Each function says what it does
with how many inputs; more inputs mean less noise.

**Past one core.** Mapping is pure, so it can be cut into pieces; `device_counts` is a piece's
work, and its result is small, so that mappings never travel. On one machine::

    with ProcessPoolExecutor() as pool:
        total = sum(pool.map(partial(device_counts, crush=crush, rule=0, n=3), pieces(10**7)))

On many, with Dask, the map is sent once, and sums are made where the counts are::

    everywhere = client.scatter(crush, broadcast=True)
    counts = client.map(device_counts, pieces(10**9), crush=everywhere, rule=0, n=3)
    while len(counts) > 1:
        counts = client.map(sum, [counts[i : i + 8] for i in range(0, len(counts), 8)])
    total = counts[0].result()
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.ceph.crush.facts import ALGORITHMS, NONE, ONE, Bucket, Device, Rule, Step, Weights
from vmlib.ceph.crush.fast import MOST_INPUTS
from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.numbers import whole

LEVELS = (10, 9, 9, 9)
"""Rows, racks in a row, hosts in a rack, devices in a host: the paper's 7,290 devices."""

TYPES = {0: "osd", 1: "host", 2: "rack", 3: "row", 4: "root"}
PIECE = 1 << 18
MOST_PIECES = 1 << 20
MOST_ITEMS = 10_000


def tree(fanouts: Sequence[int], weights: Sequence[int]) -> CrushMap:
    """Return a regular hierarchy, from the root down; `weights` are 16.16, one for each device.

    Its one rule chooses devices, whatever they share.
    """
    if len(weights) != prod(fanouts) or not 1 <= len(fanouts) < len(TYPES):
        raise BadInput("weights", f"must be one for each of {prod(fanouts)} devices")
    buckets: dict[int, Bucket] = {}
    below, heavy, number = list(range(len(weights))), list(weights), -1 - prod(fanouts[:-1]) * 2
    for kind, fanout in enumerate(reversed(fanouts), 1):
        above: list[int] = []
        sums: list[int] = []
        for first in range(0, len(below), fanout):
            number = -1 if len(below) == fanout else number + 1
            part = slice(first, first + fanout)
            buckets[number] = Bucket(
                number,
                f"{TYPES[kind]}{-number}",
                kind,
                "straw2",
                tuple(below[part]),
                tuple(heavy[part]),
            )
            above.append(number)
            sums.append(buckets[number].weight)
        below, heavy = above, sums
    return CrushMap(
        {i: Device(i, f"osd.{i}") for i in range(len(weights))}, TYPES, buckets, {0: _devices(-1)}
    )


def _devices(root: int) -> Rule:
    steps = (Step("take", root), Step("choose_firstn", 0, 0), Step("emit"))
    return Rule(0, "devices", 1, steps)


def _flat(alg: str, items: Sequence[int]) -> CrushMap:
    """Return one bucket of devices of weight 1.0, in an order."""
    root = Bucket(-1, "root", 1, alg, tuple(items), (ONE,) * len(items))
    devices = {i: Device(i, f"osd.{i}") for i in sorted(items)}
    return CrushMap(devices, {0: "osd", 1: "root"}, {-1: root}, {0: _devices(-1)})


def moved(old: CrushMap, new: CrushMap, n: int, xs: range) -> float:
    """Return the share of placements that change, in whatever order they stand."""
    before, after = (np.sort(crush.map_many(0, xs, n), axis=1) for crush in (old, new))
    stay = sum(int((after == before[:, i : i + 1]).any(axis=1).sum()) for i in range(n))
    return 1 - stay / (n * len(xs))


@dataclass(frozen=True, slots=True)
class Movement:
    """How much a change moved: `moved` of all placements, where `share` would do."""

    what: str
    moved: float
    share: float

    @property
    def factor(self) -> float:
        """How many times its share moved."""
        return self.moved / self.share


def movement_by_algorithm(items: int = 20, inputs: int = 1000) -> dict[str, tuple[Movement, ...]]:
    """Return for each algorithm what four changes of a bucket of equal items move.

    An item is added behind or before the others, the last or the first is taken away. Its share
    is that of its weight.
    """
    xs = range(whole(inputs, "inputs", 1, MOST_INPUTS))
    whole(items, "items", 1, MOST_ITEMS)
    everyone = range(items)
    changes = {
        "add at the tail": ([*everyone, items], 1 / (items + 1)),
        "add at the head": ([items, *everyone], 1 / (items + 1)),
        "remove the tail": (everyone[:-1], 1 / items),
        "remove the head": (everyone[1:], 1 / items),
    }
    return {
        alg: tuple(
            Movement(what, moved(_flat(alg, everyone), _flat(alg, after), 1, xs), share)
            for what, (after, share) in changes.items()
        )
        for alg in ALGORITHMS
    }


def movement_by_level(inputs: int = 20_000) -> tuple[Movement, ...]:
    """Return what adding devices moves in 7,290, by where in the hierarchy they are added.

    The devices named have weight 0 before and 1.0 after; three devices are chosen for an input.
    A change in one corner alters the straws of every level above it, and each level moves its
    share: up to four times in all. A change that is spread evenly alters the lowest level only.
    """
    count, host = prod(LEVELS), LEVELS[-1]
    rack, row = host * LEVELS[-2], host * LEVELS[-2] * LEVELS[-3]
    places = {
        "one device": range(1),
        "the devices of one host": range(host),
        "one device in each of 9 hosts of a rack": range(0, rack, host),
        "one device in each of 81 hosts of a row": range(0, row, host),
        "one device in each of all 810 hosts": range(0, count, host),
    }
    full = tree(LEVELS, [ONE] * count)
    xs = range(whole(inputs, "inputs", 1, MOST_INPUTS))
    found = []
    for what, added in places.items():
        before = [0 if i in added else ONE for i in range(count)]
        found.append(Movement(what, moved(tree(LEVELS, before), full, 3, xs), len(added) / count))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Utilisation:
    """How many placements devices have, and what chance alone would give."""

    placements: int
    mean: float
    deviation: float
    binomial: float
    fullest: float
    """The fullest device's count over the mean."""


def utilisation(inputs: int = 65_536, n: int = 3) -> Utilisation:
    """Return how evenly `inputs` placement groups of `n` devices fill 7,290 equal devices."""
    count = prod(LEVELS)
    counts = device_counts(
        range(whole(inputs, "inputs", 1, MOST_INPUTS)), tree(LEVELS, [ONE] * count), 0, n
    )
    placements = int(counts.sum())
    binomial = sqrt(placements * (1 / count) * (1 - 1 / count))
    mean = float(counts.mean())
    return Utilisation(placements, mean, float(counts.std()), binomial, float(counts.max()) / mean)


def pieces(count: int, size: int = PIECE) -> list[range]:
    """Return ranges of inputs that together are the first `count`."""
    whole(count, "count", 0)
    whole(size, "size", 1)
    if count > size * MOST_PIECES:
        raise BadInput("size", f"is {size}; {count} inputs are more than {MOST_PIECES:,} of these")
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


@names_bad_input
def device_counts(
    xs: Iterable[int], crush: CrushMap, rule: int | str, n: int, weights: Weights = None
) -> NDArray[np.int64]:
    """Return how many placements each device has: int64 by device id."""
    rows = crush.map_many(rule, xs, n, weights).ravel()
    found: NDArray[np.int64] = np.bincount(
        rows[(rows >= 0) & (rows != NONE)], minlength=crush.max_devices
    )
    return found
