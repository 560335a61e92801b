"""One run of one rule for one input: what all kinds of choice have in common.

A `Run` knows the map, the input, the out-weights, the weight-set and the tunables in force. It
lets buckets pick, asks devices whether they are out, and tells a `watch`, if there is one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vmlib.ceph.crush.buckets import PICKERS, Draw, permuted
from vmlib.ceph.crush.facts import NONE, ONE, Bucket, ChooseArgs, MapFacts, Weights
from vmlib.ceph.crush.hashing import crush_hash
from vmlib.ceph.crush.knobs import knobs_of
from vmlib.ceph.crush.validate import MAX_WEIGHT
from vmlib.ceph.crush.watch import Watch
from vmlib.errors import BadInput
from vmlib.numbers import whole

UNSET = NONE - 1
"""A place in an answer that is not filled yet."""


def weight_lookup(weights: Weights) -> Callable[[int], int]:
    """Return a function from device id to 16.16 out-weight; a missing one is 1.0."""
    if weights is None:
        return lambda item: ONE
    if isinstance(weights, Mapping):
        return lambda item: weights.get(item, ONE)
    return lambda item: weights[item] if item < len(weights) else ONE


def check_weights(weights: Weights) -> None:
    """Refuse out-weights that are none: decimals above all, of which 0.5 would mean nothing."""
    if weights is None:
        return
    if isinstance(weights, Mapping):
        given: Iterable[tuple[int, int]] = weights.items()
    elif isinstance(weights, Sequence | np.ndarray):
        given = enumerate(weights)
    else:
        raise BadInput("weights", "must be a sequence, or a mapping from OSD ids")
    for osd, weight in given:
        if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
            whole(weight, f"weights[{osd}] (16.16, so 0x10000 is 1.0)", 0, MAX_WEIGHT)


def is_out(weight: int, item: int, x: int) -> bool:
    """Return whether a device turns `x` down: by its weight, the same answer every time."""
    if weight >= ONE:
        return False
    return weight <= 0 or crush_hash(x, item) & 0xFFFF >= weight


class Run:
    """A map, an input and what is in force while a rule runs."""

    def __init__(
        self, crush: MapFacts, x: int, weights: Weights, args: ChooseArgs, watch: Watch | None
    ) -> None:
        self.crush, self.buckets = crush, crush.buckets
        self.x, self.args, self.watch = x, args, watch
        self.weight_of = weight_lookup(weights)
        self.knobs = knobs_of(crush.tunables)

    def type_of(self, item: int) -> int:
        """Return the type of an item; a device has type 0."""
        return 0 if item >= 0 else self.buckets[item].type

    def is_out(self, item: int) -> bool:
        """Return whether an item is a device that turns the input down."""
        return item >= 0 and is_out(self.weight_of(item), item, self.x)

    def pick(
        self,
        bucket: Bucket,
        rep: int,
        r: int,
        position: int,
        leaf: bool = False,
        permute: bool = False,
    ) -> int:
        """Let a bucket pick an item in attempt `r` for replica `rep`.

        `position` chooses among the rows of a weight-set, `leaf` says that a device below a
        chosen item is looked for, `permute` asks for the bucket's permutation, whatever its
        algorithm is.
        """
        draws: list[Draw] | None = [] if self.watch else None
        if permute:
            item = permuted(bucket, self.x, r, draws)
        else:
            version = self.crush.tunables.straw_calc_version
            change = self.args.get(bucket.id)
            item = PICKERS[bucket.alg](bucket, self.x, r, change, position, draws, version)
        if self.watch:
            self.watch.drew(bucket, rep, r, draws or (), item, leaf)
        return item

    def refuse(
        self, bucket: Bucket, rep: int, item: int | None, why: str, then: str, leaf: bool = False
    ) -> None:
        """Tell that an item of a bucket was turned down; None if the bucket has no items."""
        if self.watch:
            self.watch.refused(bucket, rep, item, why, then, leaf)

    def place(self, rep: int, item: int, failed: int, leaf: bool = False) -> None:
        """Tell that an item was taken after so many failures."""
        if self.watch:
            self.watch.placed(rep, item, failed, leaf)

    def tried(self, failed: int) -> None:
        """Tell that a choice ended after so many failures."""
        if self.watch:
            self.watch.tried(failed)
