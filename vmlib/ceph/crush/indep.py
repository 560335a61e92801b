"""indep: one item for each place; a failure leaves its place open and moves nobody.

For erasure codes, where each place holds a shard of its own. All open places are tried once in
each round. Place `rep` draws with r = rep, and with `numrep` more in each round, so that no two
places ever share a draw. What stays open at the end is a hole, NONE.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import NONE, Bucket
from vmlib.ceph.crush.run import UNSET, Run


@dataclass(frozen=True, slots=True)
class Attempt:
    """The try for one place in one round. `base` is what r counts from."""

    rep: int
    base: int
    numrep: int
    round: int
    leaf: bool = False

    def r(self, bucket: Bucket) -> int:
        """Return what is hashed with the input."""
        # A uniform bucket's permutation repeats: step so as not to meet the same items again.
        repeats = bucket.alg == "uniform" and len(bucket.items) % self.numrep == 0
        return self.base + (self.numrep + repeats) * self.round


def indep(run: Run, start: Bucket, numrep: int, places: int, kind: int, to_leaf: bool) -> list[int]:
    """Return exactly `places` items of a type below `start`, or devices below them."""
    items = [UNSET] * places
    leaves = [UNSET] * places
    failed = 0
    while failed < run.knobs.tries and UNSET in items:
        for rep in range(places):
            if items[rep] == UNSET:
                attempt = Attempt(rep, rep, numrep, failed)
                items[rep], leaves[rep] = _fill(
                    run, start, attempt, kind, items, leaves[rep] if to_leaf else None
                )
        failed += 1
    run.tried(failed)
    return [NONE if item == UNSET else item for item in (leaves if to_leaf else items)]


def _fill(
    run: Run, start: Bucket, attempt: Attempt, kind: int, taken: list[int], leaf: int | None
) -> tuple[int, int]:
    """Try to fill a place: return its item and the device below it.

    `leaf` is the device of an earlier round, or None if none is wanted. UNSET leaves the place
    open; NONE closes it, because trying again is no use.
    """
    rep = attempt.rep
    bucket, item = _descend(run, start, attempt, kind)
    if item in (UNSET, NONE):
        return item, NONE if item == NONE or leaf is None else leaf
    why = ""
    if item in taken:
        why = "collision"
    elif leaf is not None:
        leaf = item if item >= 0 else _leaf(run, run.buckets[item], attempt, attempt.r(bucket))
        why = "leaf failed" if leaf == NONE else ""
    if not why and run.is_out(item):
        why = "out"  # a device that is out stays as the leaf of its place all the same
    if why:
        run.refuse(bucket, rep, item, why, "next round")
        item = UNSET
    else:
        run.place(rep, item, attempt.round)
    return item, UNSET if leaf is None else leaf


def _leaf(run: Run, below: Bucket, above: Attempt, r: int) -> int:
    """Return a device below a chosen bucket, or NONE; `r` is what chose the bucket."""
    rep = above.rep
    tries = run.knobs.leaf_tries or 1
    failed, device = 0, UNSET
    while device == UNSET and failed < tries:
        attempt = Attempt(rep, rep + r, above.numrep, failed, leaf=True)
        bucket, device = _descend(run, below, attempt, 0)
        if device not in (UNSET, NONE):
            if run.is_out(device):
                run.refuse(bucket, rep, device, "out", "next round", leaf=True)
                device = UNSET
            else:
                run.place(rep, device, failed, leaf=True)
        failed += 1
    run.tried(failed)
    return NONE if device == UNSET else device


def _descend(run: Run, start: Bucket, attempt: Attempt, kind: int) -> tuple[Bucket, int]:
    """Walk down to an item of a type; return the bucket that drew it, and the item.

    The item is UNSET where a bucket is empty, and NONE where a device was met too soon.
    """
    bucket, rep, leaf = start, attempt.rep, attempt.leaf
    position = rep if leaf else 0
    while bucket.items:
        item = run.pick(bucket, rep, attempt.r(bucket), position, leaf)
        if run.type_of(item) == kind:
            return bucket, item
        if item >= 0:
            run.refuse(bucket, rep, item, "bad type", "hole", leaf)
            return bucket, NONE
        bucket = run.buckets[item]
    run.refuse(bucket, rep, None, "empty", "next round", leaf)
    return bucket, UNSET
