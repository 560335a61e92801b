"""Many mappings at once with numpy: the same answers as the reference, some hundred times sooner.

Takes rules that end each `take` with one choice, over straw2 buckets, without the old local
tries: the maps of today. Everything else falls back to the reference.

Inputs are worked on side by side. All that still look for their replica have failed equally
often, so a retry is one more round with fewer inputs, and the number of the round is the same
for all. `draws` says how a bucket draws for thousands of inputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush.draws import MISSING, Drawer, Ints
from vmlib.ceph.crush.facts import NONE, ONE, ChooseArgs, MapFacts, Rule, Step, Weights
from vmlib.ceph.crush.hashing import MASK
from vmlib.ceph.crush.knobs import knobs_of, set_knob
from vmlib.ceph.crush.mapper import check_count, do_rule
from vmlib.ceph.crush.run import UNSET, check_weights, weight_lookup
from vmlib.errors import BadInput

PAD = -1
"""What fills a row that is shorter than n."""

MOST_INPUTS = 1 << 28
"""Answers for more do not fit into most memories."""

BLOCK = 1 << 16
"""Inputs worked on together; what a block needs beside its answer is a few megabytes."""


def map_many(
    crush: MapFacts,
    rule: Rule,
    xs: Iterable[int] | NDArray[Any],
    n: int,
    weights: Weights,
    args: ChooseArgs,
    engine: str,
) -> NDArray[np.int32]:
    """Return the devices for each input: int32 of shape (len(xs), n), padded with -1."""
    check_count(n)
    if engine not in ("numpy", "python"):
        raise BadInput("engine", f"{engine!r} is unknown; there are numpy, python")
    check_weights(weights)
    inputs = as_inputs(xs)
    out = np.full((len(inputs), n), PAD, np.int32)
    fast = _Many(crush, weights, args) if engine == "numpy" and suits(crush, rule) else None
    for start in range(0, len(inputs), BLOCK):
        block = inputs[start : start + BLOCK]
        rows = out[start : start + BLOCK]
        if fast is not None:
            if isinstance(block, range):
                block = np.arange(block.start, block.stop, block.step)
            with np.errstate(invalid="ignore"):  # straws without end, see `draws`
                fast.run(rule, block.astype(np.uint32), rows)
            continue
        for x, row in zip(block, rows, strict=True):
            devices = do_rule(crush, rule, int(x), n, weights, args)
            row[: len(devices)] = devices
    return out


def as_inputs(xs: Iterable[int] | NDArray[Any]) -> NDArray[Any] | range:
    """Return inputs in a form that has a length and parts; CRUSH takes them modulo 2^32."""
    if isinstance(xs, range):
        if xs[MOST_INPUTS:]:
            raise BadInput("xs", f"are more than {MOST_INPUTS:,}; map them in pieces")
        if max(abs(xs.start), abs(xs.stop)) < 1 << 62:
            return xs
    if isinstance(xs, np.ndarray):
        if xs.ndim != 1 or xs.dtype.kind not in "iu":
            raise BadInput("xs", "must be whole numbers in one dimension")
        return xs
    try:
        return np.array([index(x) & MASK for x in xs], np.uint32)
    except TypeError:
        raise BadInput("xs", "must be whole numbers") from None


def suits(crush: MapFacts, rule: Rule) -> bool:
    """Return whether the fast path takes a rule of a map."""
    knobs = knobs_of(crush.tunables)
    blocks: list[list[str]] = [[]]
    reached = [step.arg1 for step in rule.steps if step.op == "take"]
    for step in rule.steps:
        if step.op.startswith("set_"):
            set_knob(knobs, step)
        else:
            blocks[-1].append(step.op)
            if step.op == "emit":
                blocks.append([])
    one_choice = all(
        len(block) == 3 and block[0] == "take" and block[1].startswith("choose")
        for block in blocks[:-1]
    )
    seen = set()
    while reached:
        item = reached.pop()
        if item < 0 and item not in seen:
            seen.add(item)
            reached += crush.buckets[item].items
    return (
        not rule.is_msr
        and one_choice
        and not blocks[-1]
        and not (knobs.local_tries or knobs.local_fallback_tries)
        and all(crush.buckets[bucket].alg == "straw2" for bucket in seen)
        and all(step.arg1 < 0 for step in rule.steps if step.op == "take")
    )


@dataclass(slots=True)
class Found:
    """What was found for each input: an item, a device below it, and the next r to try."""

    item: Ints
    leaf: Ints
    untried: Ints

    @classmethod
    def nothing(cls, r: Ints, leaves: bool) -> Self:
        """Return what is known before the first attempt."""
        item = np.full(len(r), MISSING, np.int64)
        return cls(item, item.copy() if leaves else item, r.copy())


class _Many:
    """One map with its weights, ready for any number of inputs."""

    def __init__(self, crush: MapFacts, weights: Weights, args: ChooseArgs) -> None:
        self.crush = crush
        self.drawer = Drawer(crush, args)
        self.out_weights = np.full(crush.max_devices, ONE, np.int64)
        if weights is not None:
            weight_of = weight_lookup(weights)
            self.out_weights[:] = [weight_of(i) for i in range(crush.max_devices)]
        self.all_in = bool((self.out_weights >= ONE).all())

    def run(self, rule: Rule, x: NDArray[np.uint32], rows: NDArray[np.int32]) -> None:
        """Fill `rows` with the devices for `x`."""
        n = rows.shape[1]
        self.knobs = knobs_of(self.crush.tunables)
        filled = np.zeros(len(x), np.intp)
        start = 0
        for step in rule.steps:
            if step.op.startswith("set_"):
                set_knob(self.knobs, step)
            elif step.op == "take":
                start = int(step.arg1)
            elif step.op.startswith("choose"):
                self.emit(self.choose(step, start, x, n), rows, filled)

    def emit(self, chosen: Ints, rows: NDArray[np.int32], filled: Ints) -> None:
        """Append each row's devices, as far as there is room."""
        n = rows.shape[1]
        for row in chosen:
            at = np.flatnonzero((row != MISSING) & (filled < n))
            rows[at, filled[at]] = row[at]
            filled[at] += 1

    def choose(self, step: Step, start: int, x: NDArray[np.uint32], n: int) -> Ints:
        """Run one choice for all inputs: a row for each replica, MISSING where there is none."""
        numrep = step.arg1 if step.arg1 > 0 else step.arg1 + n
        if numrep <= 0:
            return np.empty((0, len(x)), np.int64)
        leaf = step.op.startswith("chooseleaf")
        if step.op.endswith("firstn"):
            return self.firstn(start, x, numrep, n, step.arg2, leaf)
        return self.indep(start, x, numrep, min(numrep, n), step.arg2, leaf)

    def turn_down(self, good: NDArray[np.bool_], item: Ints, x: NDArray[np.uint32]) -> None:
        """Take the devices that are out from what is good."""
        if self.all_in:
            return
        weight = self.out_weights.take(item, mode="clip")
        some = np.flatnonzero(good & (weight < ONE))
        hashed = self.drawer.hasher(x[some], item[some].astype(np.uint32))
        good[some] = (hashed & 0xFFFF) < weight[some].clip(0)

    def firstn(
        self, start: int, x: NDArray[np.uint32], numrep: int, room: int, kind: int, to_leaf: bool
    ) -> Ints:
        """Choose for all inputs; the answer has a row for each replica.

        An attempt is known by its r. What another replica has tried would fail again: it was
        taken, or it collided, or its device was out. So each replica begins behind all of
        those, which the reference draws again. It does not hold where a draw depends on the
        replica's place: with weights by position, or leaves that are not `stable`.
        """
        sure = self.drawer.positions == 1 and (self.knobs.stable or not to_leaf)
        count = np.zeros(len(x), np.intp)
        items = np.full((min(room, numrep), len(x)), MISSING, np.int64)
        leaves = items.copy() if to_leaf else items
        untried = np.zeros(len(x), np.int64)
        for rep in range(numrep):
            some: Any = np.flatnonzero(count < room) if rep >= room else slice(None)
            here = x[some]
            begin = np.maximum(untried[some], rep) if sure else np.full(len(here), rep, np.int64)
            found = self.place(
                start,
                here,
                begin,
                rep + self.knobs.tries,
                kind,
                items[:rep, some],
                leaves[:rep, some] if to_leaf else None,
                count[some],
            )
            untried[some] = found.untried
            at, item, leaf = np.arange(len(x))[some], found.item, found.leaf
            there = item != MISSING
            if not there.all():
                at, item, leaf = at[there], item[there], leaf[there]
            items[count[at], at] = item
            if to_leaf:
                leaves[count[at], at] = leaf
            count[at] += 1
        return leaves

    def place(
        self,
        start: int | Ints,
        x: NDArray[np.uint32],
        r: Ints,
        end: int | Ints,
        kind: int,
        taken: Ints,
        leaves: Ints | None,
        position: Ints,
    ) -> Found:
        """Find an item for each input, and with `leaves` a device below it.

        Attempts go from `r` to before `end`. Those that failed go into the next round; what
        belongs to them is taken along.
        """
        found = Found.nothing(r, leaves is not None)
        rows: Any = slice(None)
        while len(x):
            item, ended = self.drawer.descend(start, x, r, position, kind)
            good = item != MISSING
            for row in taken:
                good &= row != item
            if leaves is not None:
                leaf = item.copy()
                if kind:
                    below = np.flatnonzero(good)
                    leaf[below] = self.leaf(
                        item[below], x[below], r[below], leaves[:, below], position[below]
                    )
                    good &= leaf != MISSING
                found.leaf[rows] = np.where(good, leaf, MISSING)
            if kind == 0:
                self.turn_down(good, item, x)
            found.item[rows] = np.where(good, item, MISSING)
            found.untried[rows] = np.where(ended, r, r + 1)
            again = np.flatnonzero(~good & ~ended & (r + 1 < end))
            rows = np.arange(len(x))[again] if isinstance(rows, slice) else rows[again]
            x, r, position, taken = x[again], r[again] + 1, position[again], taken[:, again]
            leaves = None if leaves is None else leaves[:, again]
            start = start if isinstance(start, int) else start[again]
            end = end if isinstance(end, int) else end[again]
        return found

    def leaf(
        self, item: Ints, x: NDArray[np.uint32], r: Ints, leaves: Ints, position: Ints
    ) -> Ints:
        """Return a device below each item."""
        knobs = self.knobs
        begin = np.zeros(len(x), np.int64) if knobs.stable else position.astype(np.int64)
        if knobs.vary_r:
            begin = begin + (r >> (knobs.vary_r - 1))
        once = self.crush.tunables.chooseleaf_descend_once
        tries = knobs.leaf_tries or (1 if once else knobs.tries)
        return self.place(item, x, begin, begin + tries, 0, leaves, None, position).item

    def indep(
        self, start: int, x: NDArray[np.uint32], numrep: int, places: int, kind: int, to_leaf: bool
    ) -> Ints:
        items = np.full((places, len(x)), UNSET, np.int64)
        leaves = items.copy() if to_leaf else items
        for failed in range(self.knobs.tries):
            busy = False
            for rep in range(places):
                active = np.flatnonzero(items[rep] == UNSET)
                if not active.size:
                    continue
                busy = True
                here = x[active]
                r = np.full(len(active), rep + numrep * failed, np.int64)
                first = np.zeros(len(active), np.intp)
                item, ended = self.drawer.descend(start, here, r, first, kind)
                good = item != MISSING
                good &= ~(items[:, active] == item).any(axis=0)
                if to_leaf:
                    below = np.flatnonzero(good)
                    leaf = item[below]
                    if kind:
                        leaf = self.indep_leaf(leaf, here[below], r[below], rep, numrep)
                    # A device that is out stays as the leaf of its place, as it does in Ceph.
                    leaves[rep, active[below]] = np.where(leaf == MISSING, NONE, leaf)
                    good[below] = leaf != MISSING
                if kind == 0:
                    self.turn_down(good, item, here)
                items[rep, active[good]] = item[good]
                items[rep, active[ended]] = NONE
                leaves[rep, active[ended]] = NONE
            if not busy:
                break
        leaves[leaves == UNSET] = NONE
        return leaves

    def indep_leaf(self, item: Ints, x: NDArray[np.uint32], r: Ints, rep: int, numrep: int) -> Ints:
        """Return a device below each item, for one place."""
        found = np.full(len(x), MISSING, np.int64)
        active = np.arange(len(x))
        for failed in range(self.knobs.leaf_tries or 1):
            here = x[active]
            place = np.full(len(active), rep, np.intp)
            device, ended = self.drawer.descend(
                item[active], here, r[active] + (rep + numrep * failed), place, 0
            )
            good = device != MISSING
            self.turn_down(good, device, here)
            found[active[good]] = device[good]
            active = active[~good & ~ended]
            if not active.size:
                break
        return found
