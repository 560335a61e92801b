"""Many mappings at once with numpy: the same answers as the reference, some hundred times sooner.

Takes rules that end each `take` with one choice, over straw2 buckets, without the old local
tries: the maps of today. Everything else falls back to the reference.

Inputs are worked on side by side. All that still look for their replica have failed equally
often, so a retry is one more round with fewer inputs, and the number of the round is the same
for all. `draws` says how a bucket draws for thousands of inputs.
"""

from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush_map import NONE, ONE, ChooseArgs, Rule, Step, Weights
from vmlib.ceph.draws import MISSING, Drawer, Ints
from vmlib.ceph.hashing import MASK, hash_many
from vmlib.ceph.knobs import knobs_of, set_knob
from vmlib.ceph.mapper import check_count, do_rule
from vmlib.ceph.run import UNSET, weight_lookup
from vmlib.errors import BadInput

if TYPE_CHECKING:
    from vmlib.ceph.crush_map import CrushMap

PAD = -1
"""What fills a row that is shorter than n."""

BLOCK = 1 << 14
"""Inputs worked on together; what a block needs beside its answer is a few megabytes."""


def map_many(
    crush: "CrushMap",
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
    inputs = as_inputs(xs)
    out = np.full((len(inputs), n), PAD, np.int32)
    fast = _Many(crush, weights, args) if engine == "numpy" and suits(crush, rule) else None
    for start in range(0, len(inputs), BLOCK):
        block = inputs[start : start + BLOCK]
        rows = out[start : start + BLOCK]
        if fast is not None:
            if isinstance(block, range):
                block = np.arange(block.start, block.stop, block.step)
            fast.run(rule, block.astype(np.uint32), rows)
            continue
        for x, row in zip(block, rows, strict=True):
            devices = do_rule(crush, rule, int(x), n, weights, args)
            row[: len(devices)] = devices
    return out


def as_inputs(xs: Iterable[int] | NDArray[Any]) -> NDArray[Any] | range:
    """Return inputs in a form that has a length and parts; CRUSH takes them modulo 2^32."""
    if isinstance(xs, range) and max(abs(xs.start), abs(xs.stop)) < 1 << 62:
        return xs
    if isinstance(xs, np.ndarray):
        if xs.ndim != 1 or xs.dtype.kind not in "iu":
            raise BadInput("xs", "must be whole numbers in one dimension")
        return xs
    try:
        return np.array([index(x) & MASK for x in xs], np.uint32)
    except TypeError:
        raise BadInput("xs", "must be whole numbers") from None


def suits(crush: "CrushMap", rule: Rule) -> bool:
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


class _Many:
    """One map with its weights, ready for any number of inputs."""

    def __init__(self, crush: "CrushMap", weights: Weights, args: ChooseArgs) -> None:
        self.crush = crush
        self.drawer = Drawer(crush, args)
        weight_of = weight_lookup(weights)
        self.out_weights = np.array([weight_of(i) for i in range(crush.max_devices)], np.int64)
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
                start = step.arg1
            elif step.op.startswith("choose"):
                self.emit(self.choose(step, start, x, n), rows, filled)

    def emit(self, chosen: Ints, rows: NDArray[np.int32], filled: Ints) -> None:
        """Append each row's devices, as far as there is room."""
        n = rows.shape[1]
        for column in chosen.T:
            at = np.flatnonzero((column != MISSING) & (filled < n))
            rows[at, filled[at]] = column[at]
            filled[at] += 1

    def choose(self, step: Step, start: int, x: NDArray[np.uint32], n: int) -> Ints:
        """Run one choice for all inputs; each row is filled from the left."""
        numrep = step.arg1 if step.arg1 > 0 else step.arg1 + n
        if numrep <= 0:
            return np.empty((len(x), 0), np.int64)
        leaf = step.op.startswith("chooseleaf")
        if step.op.endswith("firstn"):
            return self.firstn(start, x, numrep, n, step.arg2, leaf)
        return self.indep(start, x, numrep, min(numrep, n), step.arg2, leaf)

    def is_out(self, item: Ints, x: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return which devices turn their input down."""
        out = np.zeros(len(item), np.bool_)
        if self.all_in:
            return out
        weight = self.out_weights[item]
        some = np.flatnonzero(weight < ONE)
        out[some] = (hash_many(x[some], item[some]) & 0xFFFF) >= weight[some].clip(0)
        return out

    def firstn(
        self, start: int, x: NDArray[np.uint32], numrep: int, room: int, kind: int, to_leaf: bool
    ) -> Ints:
        count = np.zeros(len(x), np.intp)
        items = np.full((len(x), room), MISSING, np.int64)
        leaves = items.copy() if to_leaf else None
        for rep in range(numrep):
            active = np.flatnonzero(count < room)
            if not active.size:
                break
            base = np.full(len(active), rep, np.int64)
            item, leaf = self.place(
                start,
                x[active],
                base,
                kind,
                items[active, : min(rep, room)],
                None if leaves is None else leaves[active, : min(rep, room)],
                count[active],
                self.knobs.tries,
            )
            there = item != MISSING
            at = active[there]
            items[at, count[at]] = item[there]
            if leaves is not None:
                leaves[at, count[at]] = leaf[there]
            count[at] += 1
        return items if leaves is None else leaves

    def place(
        self,
        start: int | Ints,
        x: NDArray[np.uint32],
        base: Ints,
        kind: int,
        taken: Ints,
        leaves: Ints | None,
        position: Ints,
        tries: int,
    ) -> tuple[Ints, Ints]:
        """Return an item for each input, and with `leaves` a device below it; or MISSING."""
        found = np.full(len(x), MISSING, np.int64)
        found_leaf = found.copy()
        active = np.arange(len(x))
        for failed in range(tries):
            here, r = x[active], base[active] + failed
            begin = start if isinstance(start, int) else start[active]
            item, ended = self.drawer.descend(begin, here, r, position[active], kind)
            good = item != MISSING
            for column in taken[active].T:
                good &= column != item
            leaf = item.copy()
            if leaves is not None:
                below = np.flatnonzero(good & (item < 0))
                if below.size:
                    leaf[below] = self.leaf(
                        item[below], here[below], r[below], leaves, active[below], position
                    )
                    good &= leaf != MISSING
            if kind == 0:
                devices = np.flatnonzero(good)
                good[devices] = ~self.is_out(item[devices], here[devices])
            found[active[good]] = item[good]
            found_leaf[active[good]] = leaf[good]
            active = active[~good & ~ended]
            if not active.size:
                break
        return found, found_leaf

    def leaf(
        self,
        item: Ints,
        x: NDArray[np.uint32],
        r: Ints,
        leaves: Ints,
        rows: Ints,
        position: Ints,
    ) -> Ints:
        """Return a device below each item."""
        knobs, here = self.knobs, position[rows]
        base = np.zeros(len(x), np.int64) if knobs.stable else here.astype(np.int64)
        if knobs.vary_r:
            base = base + (r >> (knobs.vary_r - 1))
        once = self.crush.tunables.chooseleaf_descend_once
        tries = knobs.leaf_tries or (1 if once else knobs.tries)
        return self.place(item, x, base, 0, leaves[rows], None, here, tries)[0]

    def indep(
        self, start: int, x: NDArray[np.uint32], numrep: int, places: int, kind: int, to_leaf: bool
    ) -> Ints:
        items = np.full((len(x), places), UNSET, np.int64)
        leaves = items.copy() if to_leaf else items
        for failed in range(self.knobs.tries):
            busy = False
            for rep in range(places):
                active = np.flatnonzero(items[:, rep] == UNSET)
                if not active.size:
                    continue
                busy = True
                here = x[active]
                r = np.full(len(active), rep + numrep * failed, np.int64)
                first = np.zeros(len(active), np.intp)
                item, ended = self.drawer.descend(start, here, r, first, kind)
                good = item != MISSING
                good &= ~(items[active] == item[:, None]).any(axis=1)
                if to_leaf:
                    below = np.flatnonzero(good)
                    leaf = item[below]
                    if kind:
                        leaf = self.indep_leaf(leaf, here[below], r[below], rep, numrep)
                    # A device that is out stays as the leaf of its place, as it does in Ceph.
                    leaves[active[below], rep] = np.where(leaf == MISSING, NONE, leaf)
                    good[below] = leaf != MISSING
                if kind == 0:
                    devices = np.flatnonzero(good)
                    good[devices] = ~self.is_out(item[devices], here[devices])
                items[active[good], rep] = item[good]
                items[active[ended], rep] = NONE
                leaves[active[ended], rep] = NONE
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
            devices = np.flatnonzero(good)
            good[devices] = ~self.is_out(device[devices], here[devices])
            found[active[good]] = device[good]
            active = active[~good & ~ended]
            if not active.size:
                break
        return found
