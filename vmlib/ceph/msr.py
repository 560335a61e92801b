"""Multi-step-retry rules: choices in several steps that are tried again as a whole.

With ordinary rules a step that has chosen a host keeps it, even if all its devices are out: the
next step has nobody to ask for another host. MSR rules (Ceph 19.2 and later, types `msr_firstn`
and `msr_indep`) go down all steps for one place after another, and start again from the top
when the leaf does not do.

A rule is a `take`, some `choosemsr NUM type TYPE` and an `emit`. The places of the answer are cut
into NUM equal strides by the first choice, each stride into NUM by the second, and so on down to
devices. Numbers stand in docs.ceph.com, "CRUSH maps", MSR rules; the order of draws and of
retries was held against recorded answers of a newer crushtool.
"""

from typing import TYPE_CHECKING

from vmlib.ceph.buckets import PICKERS, Draw
from vmlib.ceph.crush_map import NONE, RULE_TYPES, ChooseArgs, Rule, Step, Weights

if TYPE_CHECKING:
    from vmlib.ceph.crush_map import CrushMap
    from vmlib.ceph.watch import Watch

UNSET = NONE - 1


def do_msr_rule(
    crush: "CrushMap",
    rule: Rule,
    x: int,
    n: int,
    weights: Weights,
    args: ChooseArgs,
    watch: "Watch | None" = None,
) -> list[int]:
    """Return the devices that an MSR rule gives `x`: at most `n`; holes as NONE if indep."""
    run = _Msr(crush, x, n, weights, args, watch)
    run.run(rule)
    if rule.type == RULE_TYPES["msr_firstn"]:
        return run.found
    return [NONE if device == UNSET else device for device in run.out]


class _Msr:
    """One run of one MSR rule for one input."""

    def __init__(
        self,
        crush: "CrushMap",
        x: int,
        n: int,
        weights: Weights,
        args: ChooseArgs,
        watch: "Watch | None",
    ) -> None:
        from vmlib.ceph.mapper import weight_lookup

        self.crush, self.x, self.n, self.args, self.watch = crush, x, n, args, watch
        self.weight_of = weight_lookup(weights)
        self.descents = crush.tunables.msr_descents
        self.collision_tries = crush.tunables.msr_collision_tries
        self.out = [UNSET] * n
        self.found: list[int] = []
        """The devices in the order in which they were found: the answer of a firstn rule."""
        self.steps: list[Step] = []
        self.used: list[dict[int, list[int]]] = []
        """For each choice of the rule: what was chosen for each stride, by its first place."""

    def run(self, rule: Rule) -> None:
        """Run each take … emit in turn; it gets the places after those of the one before."""
        start, root = 0, 0
        for step in rule.steps:
            if self.watch:
                self.watch.begin(step)
            if step.op == "set_msr_descents":
                self.descents = step.arg1
            elif step.op == "set_msr_collision_tries":
                self.collision_tries = step.arg1
            elif step.op == "take":
                root, self.steps = step.arg1, []
            elif step.op == "choosemsr":
                self.steps.append(step)
            elif step.op == "emit" and self.steps:
                start = self.emit(root, start)
            if self.watch:
                self.watch.ran(step, (), tuple(self.found))

    def emit(self, root: int, start: int) -> int:
        """Fill the places of one take … emit, and return where the next one begins."""
        width = 1
        for step in self.steps:
            width *= step.arg1 or self.n
        end = min(start + width, self.n)
        self.used = [{} for _ in self.steps]
        for descent in range(self.descents):
            if UNSET not in self.out[start:end]:
                break
            self.choose(root, 0, start, width, end, descent)
        return end

    def choose(
        self, bucket: int, depth: int, start: int, width: int, end: int, descent: int
    ) -> int:
        """Fill places from `start` below a bucket; return how many were filled."""
        step = self.steps[depth]
        strides = step.arg1 or self.n
        stride = max(width // strides, 1)
        used = self.used[depth]
        filled = 0
        in_vain: list[tuple[int, int]] = []
        for number in range(strides):
            low = start + number * stride
            high = min(low + stride, end)
            if low >= high or UNSET not in self.out[low:high]:
                continue
            others = {
                item
                for place, items in used.items()
                if start <= place < start + width and place != low
                for item in items
            }
            item = self.find(bucket, step.arg2, low, number, descent, others)
            if item is None:
                continue
            got = self.below(item, depth, low, stride, high, descent)
            filled += got
            mine = used.setdefault(low, [])
            if item not in mine and (got or item < 0):  # a device that is out is not taken
                mine.append(item)
                if not got:
                    in_vain.append((low, item))
        for low, item in in_vain:
            used[low].remove(item)
        return filled

    def below(self, item: int, depth: int, low: int, stride: int, high: int, descent: int) -> int:
        """Use what was chosen for a stride: a device itself, or a bucket by the next choice."""
        from vmlib.ceph.mapper import is_out

        if depth + 1 < len(self.steps):
            return 0 if item >= 0 else self.choose(item, depth + 1, low, stride, high, descent)
        if item < 0:
            return 0
        if is_out(self.weight_of(item), item, self.x):
            if self.watch:
                here = self.holder
                self.watch.refused(here, low, item, "out", "next descent", False)
            return 0
        self.out[low] = item
        self.found.append(item)
        if self.watch:
            self.watch.placed(low, item, descent, False)
        return 1

    def find(
        self, root: int, kind: int, place: int, number: int, descent: int, others: set[int]
    ) -> int | None:
        """Return an item of a type below `root` that no other stride has, or None."""
        for attempt in range(self.collision_tries):
            r = ((descent * self.n + number) << 16) + attempt
            at, item = root, root
            while True:
                bucket = self.crush.buckets.get(at)
                if bucket is None or not bucket.items:
                    return None
                self.holder = bucket
                draws: list[Draw] | None = [] if self.watch else None
                version = self.crush.tunables.straw_calc_version
                change = self.args.get(at)
                item = PICKERS[bucket.alg](bucket, self.x, r, change, number, draws, version)
                if self.watch:
                    self.watch.drew(bucket, place, r, draws or (), item, False)
                found = 0 if item >= 0 else self.crush.buckets[item].type
                if found == kind:
                    break
                if item >= 0:
                    return None
                at = item
            if item not in others:
                return item
            if self.watch:
                self.watch.refused(bucket, place, item, "collision", "same descent", False)
        return None
