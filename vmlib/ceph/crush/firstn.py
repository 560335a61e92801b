"""firstn: as many items as there are, the first ones best; when one fails, later ones move up.

For replication, where all copies are alike and only the first of them leads. Replica `rep` draws
with r = rep in its first attempt and with one more after each failure, so attempts of different
replicas share draws, and a failure shifts those behind it.

A failed attempt starts again from the top. The tunables `choose_local_tries` and
`choose_local_fallback_tries`, 0 for many years, have it first draw again in the same bucket.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import Bucket
from vmlib.ceph.crush.run import Run


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for: items of a type below a bucket. `leaf`: a device of a chosen item."""

    start: Bucket
    kind: int
    tries: int
    leaf: bool = False


def firstn(run: Run, start: Bucket, numrep: int, room: int, kind: int, to_leaf: bool) -> list[int]:
    """Return up to `room` items of a type below `start`, or a device below each of them."""
    search = Search(start, kind, run.knobs.tries)
    items: list[int] = []
    leaves: list[int] | None = [] if to_leaf else None
    for rep in range(numrep):
        if len(items) == room:
            break
        item = _find(run, search, rep, rep, items, leaves)
        if item is not None:
            items.append(item)
    return items if leaves is None else leaves[: len(items)]


def _find(
    run: Run, search: Search, rep: int, base: int, taken: list[int], leaves: list[int] | None
) -> int | None:
    """Find an item that is not taken, or None. With `leaves`, its device is put there.

    `rep` names the replica; `base` is the r of the first attempt.
    """
    bucket, failed, failed_here = search.start, 0, 0
    position = len(taken)
    while True:
        item: int | None = None
        why = "empty"
        if bucket.items:
            permute = _falls_back(run, bucket, failed_here)
            r = base + failed
            item = run.pick(bucket, rep, r, position, search.leaf, permute)
            found = run.type_of(item)
            if found != search.kind and item < 0:
                bucket = run.buckets[item]
                continue
            if found != search.kind:
                run.refuse(bucket, rep, item, "bad type", "skip", search.leaf)
                return None
            if item in taken:
                why = "collision"
            elif leaves is not None and not _add_leaf(run, item, r, leaves, position):
                why = "leaf failed"
            elif run.is_out(item):
                why = "out"
            else:
                run.place(rep, item, failed, search.leaf)
                run.tried(failed)
                return item
        failed += 1
        failed_here += 1
        if _tries_here(run, bucket, why, failed_here):
            then = "same bucket"
        elif failed < search.tries:
            then = "from the top"
        else:
            then = "skip"
        run.refuse(bucket, rep, item, why, then, search.leaf)
        if then == "skip":
            return None
        if then == "from the top":
            bucket, failed_here = search.start, 0


def _falls_back(run: Run, bucket: Bucket, failed_here: int) -> bool:
    """Return whether the bucket's permutation is asked, after many failures in it."""
    limit = run.knobs.local_fallback_tries
    return 0 < limit < failed_here and failed_here >= len(bucket.items) >> 1


def _tries_here(run: Run, bucket: Bucket, why: str, failed_here: int) -> bool:
    """Return whether the next attempt is made in the same bucket."""
    limit = run.knobs.local_fallback_tries
    if why == "collision" and failed_here <= run.knobs.local_tries:
        return True
    return limit > 0 and failed_here <= len(bucket.items) + limit


def _add_leaf(run: Run, item: int, r: int, leaves: list[int], position: int) -> bool:
    """Put a device below `item` at `leaves[position]`; return whether there is one."""
    knobs = run.knobs
    del leaves[position:]
    device: int | None = item
    if item < 0:
        once = run.crush.tunables.chooseleaf_descend_once
        tries = knobs.leaf_tries or (1 if once else knobs.tries)
        rep = 0 if knobs.stable else position
        base = rep + (r >> (knobs.vary_r - 1) if knobs.vary_r else 0)
        below = Search(run.buckets[item], 0, tries, leaf=True)
        device = _find(run, below, rep, base, leaves, None)
    if device is None:
        return False
    leaves.append(device)
    return True
