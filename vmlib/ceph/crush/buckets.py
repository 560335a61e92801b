"""How a bucket picks one of its items: five algorithms, each a function of numbers alone.

`pick(bucket, x, r)` answers the same question in each: which item does input `x` get in attempt
`r`? They differ in what a change of the bucket moves (Weil et al., SC'06, section 3.4, Table 2):

- uniform: a permutation of the items; all weights equal, any change reshuffles.
- list: newest item first, "does it stop here?"; cheap to add to, dear to take from.
- tree: a walk down a binary tree of weight sums.
- straw: every item draws a straw, its length scaled once for the bucket; the longest wins.
- straw2: every item draws log(u)/weight; the largest wins, and only a changed item moves.

A `draws` list, if given, receives one `Draw` for each number that was looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from vmlib.ceph.crush.facts import Bucket, BucketArgs
from vmlib.ceph.crush.hashing import crush_hash, hash3
from vmlib.ceph.crush.ln import TOP, crush_ln

WORST = -(1 << 63)
"""The draw of an item with weight 0 in a straw2 bucket: less than any other."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One number drawn: the item (or tree node), hash, its logarithm, weight and the result."""

    item: int
    u: int
    ln: int | None
    weight: int
    straw: int


Draws = list[Draw] | None
Picker = Callable[[Bucket, int, int, BucketArgs | None, int, Draws, int], int]

NO_ARGS = BucketArgs()


def straw2(
    bucket: Bucket,
    x: int,
    r: int,
    args: BucketArgs | None,
    position: int,
    draws: Draws,
    version: int,
) -> int:
    """Pick by the largest ln(u)/weight; the first wins a tie.

    A weight-set gives other weights for each position (the last serves all later ones), and may
    have other ids hashed in the items' stead.
    """
    weights, ids = bucket.weights, bucket.items
    if args is not None:
        if args.weight_set:
            weights = args.weight_set[min(position, len(args.weight_set) - 1)]
        ids = args.ids or ids
    best, winner = 0, -1
    for i, (hashed, weight) in enumerate(zip(ids, weights, strict=True)):
        u = hash3(x, hashed, r) & 0xFFFF
        ln = crush_ln(u) - TOP if weight else 0
        # Division rounds toward zero, and ln is never positive.
        straw = -(-ln // weight) if weight else WORST
        if draws is not None:
            draws.append(Draw(bucket.items[i], u, ln, weight, straw))
        if winner < 0 or straw > best:
            best, winner = straw, i
    return bucket.items[winner]


def straw(
    bucket: Bucket,
    x: int,
    r: int,
    args: BucketArgs | None,
    position: int,
    draws: Draws,
    version: int,
) -> int:
    """Pick by the longest straw: a 16-bit hash times the item's straw length."""
    best, winner = 0, -1
    for i, length in enumerate(straw_lengths(bucket.weights, version)):
        u = hash3(x, bucket.items[i], r) & 0xFFFF
        drawn = u * length
        if draws is not None:
            draws.append(Draw(bucket.items[i], u, None, length, drawn))
        if winner < 0 or drawn > best:
            best, winner = drawn, i
    return bucket.items[winner]


@lru_cache(maxsize=4096)
def straw_lengths(weights: tuple[int, ...], version: int) -> tuple[int, ...]:
    """Return the straw length of each item, 16.16, from the weights.

    Items are taken from light to heavy. The lightest has length 1; each next length is set so
    that the share of draws above the last one fits the weight that is left. Version 0 miscounts
    the items that are left where weights are equal or zero; version 1 mends that.
    """
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    lengths = [0] * len(weights)
    left = len(weights)
    length, below, before_last = 1.0, 0.0, 0.0
    for place, i in enumerate(order):
        weight = weights[i]
        if weight == 0:
            left -= version >= 1
            continue
        last = weights[order[place - 1]] if place else 0
        if last and (version >= 1 or weight != last):
            below += (last - before_last) * left
            if version >= 1:
                left -= 1
            else:
                left -= sum(1 for j in order[place:] if weights[j] == weight)
            above = left * (weight - last)
            if left > 0:  # otherwise the length would grow without bound
                length *= (1 / (below / (below + above))) ** (1 / left)
            before_last = last
        lengths[i] = int(length * 0x10000)
    return tuple(lengths)


def list_(
    bucket: Bucket,
    x: int,
    r: int,
    args: BucketArgs | None,
    position: int,
    draws: Draws,
    version: int,
) -> int:
    """Pick by asking each item, newest first, whether it takes x: weight against the sum."""
    total = sum(bucket.weights)
    for item, weight in zip(reversed(bucket.items), reversed(bucket.weights), strict=True):
        u = crush_hash(x, item, r, bucket.id) & 0xFFFF
        reached = u * total >> 16
        if draws is not None:
            draws.append(Draw(item, u, None, weight, reached))
        if reached < weight:
            return item
        total -= weight
    return bucket.items[0]


def tree(
    bucket: Bucket,
    x: int,
    r: int,
    args: BucketArgs | None,
    position: int,
    draws: Draws,
    version: int,
) -> int:
    """Pick by walking down a binary tree: left with the left half's share of the weight."""
    nodes = tree_nodes(bucket.weights)
    node = len(nodes) >> 1
    while not node & 1:
        half = (node & -node) >> 1
        u = crush_hash(x, node, r, bucket.id)
        reached = u * nodes[node] >> 32
        if draws is not None:
            draws.append(Draw(node, u, None, nodes[node], reached))
        node += -half if reached < nodes[node - half] else half
    return bucket.items[node >> 1]


@lru_cache(maxsize=4096)
def tree_nodes(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights of a tree bucket's nodes.

    Item i is node 2i + 1; a node's height is its count of trailing zero bits, so the root is in
    the middle, and halves are reached by adding or taking off half the lowest set bit.
    """
    depth = 1 + (len(weights) - 1).bit_length()
    nodes = [0] * (1 << depth)
    for i, weight in enumerate(weights):
        node = 2 * i + 1
        nodes[node] = weight
        for _ in range(depth - 1):
            step = node & -node
            node += -step if node & (step << 1) else step
            nodes[node] += weight
    return tuple(nodes)


def uniform(
    bucket: Bucket,
    x: int,
    r: int,
    args: BucketArgs | None,
    position: int,
    draws: Draws,
    version: int,
) -> int:
    """Pick the r-th of a permutation of the items that x and the bucket's id make."""
    return permuted(bucket, x, r, draws)


def permuted(bucket: Bucket, x: int, r: int, draws: Draws = None) -> int:
    """Return item r, modulo the size, of x's permutation of a bucket; built up to that place.

    Also what the old tunable `choose_local_fallback_tries` falls back to in any bucket.
    """
    size = len(bucket.items)
    place = r % size
    order = list(range(size))
    for p in range(min(place + 1, size - 1)):
        u = crush_hash(x, bucket.id & 0xFFFFFFFF, p)
        other = p + u % (size - p)
        order[p], order[other] = order[other], order[p]
        if draws is not None:
            draws.append(Draw(bucket.items[order[p]], u, None, size - p, other))
    return bucket.items[order[place]]


PICKERS: dict[str, Picker] = {
    "uniform": uniform,
    "list": list_,
    "tree": tree,
    "straw": straw,
    "straw2": straw2,
}
