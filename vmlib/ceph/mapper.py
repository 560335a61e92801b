"""Running a rule: from an input number to devices. The reference that everything is held to.

Models `crush_do_rule` in all of its behaviour that can be seen from outside: firstn and indep,
choices in several steps, leaf recursion, every tunable, `set_*` steps, out-weights, weight-sets.
Multi-step-retry rules are in `msr`. The algorithm is in Weil et al., SC'06, section 3.2; what
the tunables changed since is in docs.ceph.com, "CRUSH maps", and is held against `crushtool`.

A `watch`, if given, is told of every draw, refusal and placement; there is no second version of
this code that explains.
"""

from collections.abc import Callable, Mapping

from vmlib.ceph.buckets import PICKERS, Draw, permuted
from vmlib.ceph.crush_map import (
    NONE,
    ONE,
    Bucket,
    ChooseArgs,
    CrushMap,
    Rule,
    Step,
    Weights,
)
from vmlib.ceph.hashing import crush_hash
from vmlib.ceph.knobs import knobs_of, set_knob
from vmlib.ceph.watch import Watch
from vmlib.errors import BadInput

MOST = 10_000
"""The largest number of replicas asked for at once."""

UNSET = NONE - 1


def weight_lookup(weights: Weights) -> Callable[[int], int]:
    """Return a function from device id to 16.16 out-weight; a missing one is 1.0."""
    if weights is None:
        return lambda item: ONE
    if isinstance(weights, Mapping):
        return lambda item: weights.get(item, ONE)
    return lambda item: weights[item] if item < len(weights) else ONE


def is_out(weight: int, item: int, x: int) -> bool:
    """Return whether a device turns `x` down: by its weight, the same answer every time."""
    if weight >= ONE:
        return False
    return weight <= 0 or crush_hash(x, item) & 0xFFFF >= weight


def check_count(n: int) -> None:
    """Refuse a count of replicas that no rule can have."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST:
        raise BadInput("n", f"is {n!r}; the number of replicas is from 1 to {MOST}")


def do_rule(
    crush: CrushMap,
    rule: Rule,
    x: int,
    n: int,
    weights: Weights,
    args: ChooseArgs,
    watch: Watch | None = None,
) -> list[int]:
    """Return the devices that `rule` gives `x`: at most `n`, holes of indep as NONE."""
    check_count(n)
    if rule.is_msr:
        from vmlib.ceph.msr import do_msr_rule

        return do_msr_rule(crush, rule, x, n, weights, args, watch)
    return _Mapping(crush, x, weights, args, watch).run(rule, n)


class _Mapping:
    """One run of one rule for one input."""

    def __init__(
        self, crush: CrushMap, x: int, weights: Weights, args: ChooseArgs, watch: Watch | None
    ) -> None:
        self.crush, self.buckets = crush, crush.buckets
        self.x, self.args, self.watch = x, args, watch
        self.weight_of = weight_lookup(weights)
        self.knobs = knobs_of(crush.tunables)

    def run(self, rule: Rule, n: int) -> list[int]:
        result: list[int] = []
        working: list[int] = []
        for step in rule.steps:
            if self.watch:
                self.watch.begin(step)
            if step.op == "take":
                working = [step.arg1]
            elif step.op == "emit":
                result += working[: n - len(result)]
                working = []
            elif step.op.startswith("set_"):
                set_knob(self.knobs, step)
            elif step.op.startswith("choose") and working:
                working = self.choose(step, working, n)
            if self.watch:
                self.watch.ran(step, tuple(working), tuple(result))
        return result

    def choose(self, step: Step, working: list[int], n: int) -> list[int]:
        """Choose below each item of the working set, as long as there is room for more."""
        verb, mode = step.op.split("_")
        leaf = verb == "chooseleaf"
        chosen: list[int] = []
        numrep = step.arg1 if step.arg1 > 0 else step.arg1 + n
        for item in working:
            if numrep <= 0 or item not in self.buckets:
                continue
            room = n - len(chosen)
            if mode == "firstn":
                chosen += self.firstn(self.buckets[item], numrep, room, step.arg2, leaf)
            else:
                places = min(numrep, room)
                chosen += self.indep(self.buckets[item], numrep, places, step.arg2, leaf)
        return chosen

    def pick(self, bucket: Bucket, rep: int, r: int, position: int, leaf: bool, old: bool) -> int:
        """Let a bucket pick; `old` asks for its permutation, whatever its algorithm is."""
        draws: list[Draw] | None = [] if self.watch else None
        if old:
            item = permuted(bucket, self.x, r, draws)
        else:
            item = PICKERS[bucket.alg](
                bucket,
                self.x,
                r,
                self.args.get(bucket.id),
                position,
                draws,
                self.crush.tunables.straw_calc_version,
            )
        if self.watch:
            self.watch.drew(bucket, rep, r, draws or (), item, leaf)
        return item

    def type_of(self, item: int) -> int:
        return 0 if item >= 0 else self.buckets[item].type

    # firstn: a list of devices; when one fails, later ones move up

    def firstn(self, start: Bucket, numrep: int, room: int, kind: int, to_leaf: bool) -> list[int]:
        """Return up to `room` items of a type below `start`, or a device below each of them."""
        items: list[int] = []
        leaves: list[int] | None = [] if to_leaf else None
        for rep in range(numrep):
            if len(items) == room:
                break
            item = self.place(start, rep, 0, kind, items, leaves, self.knobs.tries, leaf=False)
            if item is not None:
                items.append(item)
        return items if leaves is None else leaves[: len(items)]

    def place(
        self,
        start: Bucket,
        rep: int,
        parent_r: int,
        kind: int,
        taken: list[int],
        leaves: list[int] | None,
        tries: int,
        leaf: bool,
    ) -> int | None:
        """Find the item for one replica, or None. With `leaves`, add its device there."""
        knobs = self.knobs
        bucket, failed, failed_here = start, 0, 0
        position = len(taken)
        while True:
            item: int | None = None
            why = ""
            if not bucket.items:
                why = "empty"
            else:
                old = (
                    knobs.local_fallback_tries > 0
                    and failed_here >= len(bucket.items) >> 1
                    and failed_here > knobs.local_fallback_tries
                )
                r = rep + parent_r + failed
                item = self.pick(bucket, rep, r, position, leaf, old)
                found = self.type_of(item)
                if found != kind:
                    if item >= 0:
                        self.refuse(bucket, rep, item, "bad type", "skip", leaf)
                        return None
                    bucket = self.buckets[item]
                    continue
                if item in taken:
                    why = "collision"
                elif leaves is not None and not self.add_leaf(item, rep, r, leaves, position):
                    why = "leaf failed"
                elif found == 0 and is_out(self.weight_of(item), item, self.x):
                    why = "out"
                if not why:
                    if self.watch:
                        self.watch.placed(rep, item, failed, leaf)
                        self.watch.tried(failed)
                    return item
            failed += 1
            failed_here += 1
            if (why == "collision" and failed_here <= knobs.local_tries) or (
                knobs.local_fallback_tries > 0
                and failed_here <= len(bucket.items) + knobs.local_fallback_tries
            ):
                self.refuse(bucket, rep, item, why, "same bucket", leaf)
            elif failed < tries:
                self.refuse(bucket, rep, item, why, "from the top", leaf)
                bucket, failed_here = start, 0
            else:
                self.refuse(bucket, rep, item, why, "skip", leaf)
                return None

    def add_leaf(self, item: int, rep: int, r: int, leaves: list[int], position: int) -> bool:
        """Put a device below `item` at `leaves[position]`; return whether there is one."""
        knobs = self.knobs
        del leaves[position:]
        device: int | None = item
        if item < 0:
            once = self.crush.tunables.chooseleaf_descend_once
            device = self.place(
                self.buckets[item],
                rep=0 if knobs.stable else position,
                parent_r=r >> (knobs.vary_r - 1) if knobs.vary_r else 0,
                kind=0,
                taken=leaves,
                leaves=None,
                tries=knobs.leaf_tries or (1 if once else knobs.tries),
                leaf=True,
            )
        if device is None:
            return False
        leaves.append(device)
        return True

    def refuse(
        self, bucket: Bucket, rep: int, item: int | None, why: str, then: str, leaf: bool
    ) -> None:
        if self.watch:
            self.watch.refused(bucket, rep, item, why, then, leaf)

    # indep: fixed places; a failure leaves a hole and moves nobody

    def indep(self, start: Bucket, numrep: int, places: int, kind: int, to_leaf: bool) -> list[int]:
        """Return exactly `places` items of a type below `start`, or devices below them."""
        items = [UNSET] * places
        leaves = [UNSET] * places
        self.fill(start, items, leaves if to_leaf else None, 0, places, numrep, 0, kind)
        return leaves if to_leaf else items

    def fill(
        self,
        start: Bucket,
        items: list[int],
        leaves: list[int] | None,
        first: int,
        end: int,
        numrep: int,
        parent_r: int,
        kind: int,
        leaf: bool = False,
    ) -> None:
        """Fill the places first to end of `items`, all of them once in each round."""
        tries = (self.knobs.leaf_tries or 1) if leaf else self.knobs.tries
        items[first:end] = [UNSET] * (end - first)
        if leaves is not None:
            leaves[first:end] = [UNSET] * (end - first)
        failed = 0
        while failed < tries and UNSET in items[first:end]:
            for rep in range(first, end):
                if items[rep] == UNSET:
                    self.fill_one(
                        start, items, leaves, first, end, rep, numrep, parent_r, failed, kind, leaf
                    )
            failed += 1
        for row in (items, leaves):
            if row is not None:
                row[first:end] = [NONE if item == UNSET else item for item in row[first:end]]
        if self.watch:
            self.watch.tried(failed)

    def fill_one(
        self,
        start: Bucket,
        items: list[int],
        leaves: list[int] | None,
        first: int,
        end: int,
        rep: int,
        numrep: int,
        parent_r: int,
        failed: int,
        kind: int,
        leaf: bool,
    ) -> None:
        """Try to fill one place: leave it unset to try again, or NONE if trying is no use."""
        bucket = start
        while True:
            if not bucket.items:
                self.refuse(bucket, rep, None, "empty", "next round", leaf)
                return
            # A uniform bucket's permutation repeats: step so as not to meet the same items again.
            shifted = bucket.alg == "uniform" and len(bucket.items) % numrep == 0
            r = rep + parent_r + (numrep + 1 if shifted else numrep) * failed
            item = self.pick(bucket, rep, r, first, leaf, old=False)
            found = self.type_of(item)
            if found == kind:
                break
            if item >= 0:
                self.refuse(bucket, rep, item, "bad type", "hole", leaf)
                items[rep] = NONE
                if leaves is not None:
                    leaves[rep] = NONE
                return
            bucket = self.buckets[item]
        why = ""
        if item in items[first:end]:
            why = "collision"
        elif leaves is not None:
            if item < 0:
                below = self.buckets[item]
                self.fill(below, leaves, None, rep, rep + 1, numrep, r, 0, leaf=True)
                why = "leaf failed" if leaves[rep] == NONE else ""
            else:
                leaves[rep] = item
        if not why and found == 0 and is_out(self.weight_of(item), item, self.x):
            why = "out"
        if why:
            self.refuse(bucket, rep, item, why, "next round", leaf)
            return
        items[rep] = item
        if self.watch:
            self.watch.placed(rep, item, failed, leaf)
