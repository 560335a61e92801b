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

from vmlib.ceph.crush.facts import NONE, RULE_TYPES, Bucket, Rule, Step
from vmlib.ceph.crush.run import UNSET, Run


def run_msr(run: Run, rule: Rule, n: int) -> list[int]:
    """Return the devices that an MSR rule gives: at most `n`; holes as NONE if indep."""
    mapping = _Msr(run, n)
    mapping.run_steps(rule)
    if rule.type == RULE_TYPES["msr_firstn"]:
        return mapping.found
    return [NONE if device == UNSET else device for device in mapping.out]


class _Msr:
    """The places of one answer, filled descent by descent."""

    def __init__(self, run: Run, n: int) -> None:
        self.run, self.n = run, n
        self.descents = run.crush.tunables.msr_descents
        self.collision_tries = run.crush.tunables.msr_collision_tries
        self.out = [UNSET] * n
        self.found: list[int] = []
        """The devices in the order in which they were found: the answer of a firstn rule."""
        self.steps: list[Step] = []
        self.used: list[dict[int, list[int]]] = []
        """For each choice of the rule: what was chosen for each stride, by its first place."""

    def run_steps(self, rule: Rule) -> None:
        """Run each take … emit in turn; it gets the places after those of the one before."""
        start, root = 0, 0
        for step in rule.steps:
            if self.run.watch:
                self.run.watch.begin(step)
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
            if self.run.watch:
                self.run.watch.ran(step, (), tuple(self.found))

    def emit(self, root: int, start: int) -> int:
        """Fill the places of one take … emit, and return where the next one begins."""
        width = 1
        for step in self.steps:
            width *= step.arg1 or self.n
        end = min(start + width, self.n)
        if root not in self.run.buckets:
            return end
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
            holder, item = self.find(bucket, step.arg2, low, number, descent, others)
            if item is None:
                continue
            if depth + 1 < len(self.steps):
                got = 0 if item >= 0 else self.choose(item, depth + 1, low, stride, high, descent)
            else:
                got = self.take(holder, item, low, descent)
            filled += got
            mine = used.setdefault(low, [])
            if item not in mine and (got or item < 0):  # a device that is out is not taken
                mine.append(item)
                if not got:
                    in_vain.append((low, item))
        for low, item in in_vain:
            used[low].remove(item)
        return filled

    def take(self, holder: Bucket, item: int, place: int, descent: int) -> int:
        """Put what the last choice found at its place; return how many places that filled."""
        if item < 0:
            return 0
        if self.run.is_out(item):
            self.run.refuse(holder, place, item, "out", "next descent")
            return 0
        self.out[place] = item
        self.found.append(item)
        self.run.place(place, item, descent)
        return 1

    def find(
        self, root: int, kind: int, place: int, number: int, descent: int, others: set[int]
    ) -> tuple[Bucket, int | None]:
        """Return an item of a type below `root` that no other stride has, or None.

        Beside it stands the bucket that drew it.
        """
        bucket = self.run.buckets[root]
        for attempt in range(self.collision_tries):
            r = ((descent * self.n + number) << 16) + attempt
            bucket, item = self.descend(root, kind, place, r, number)
            if item is None or item not in others:
                return bucket, item
            self.run.refuse(bucket, place, item, "collision", "same descent")
        return bucket, None

    def descend(
        self, root: int, kind: int, place: int, r: int, number: int
    ) -> tuple[Bucket, int | None]:
        """Walk down to an item of a type; None at an empty bucket or a device met too soon."""
        bucket = self.run.buckets[root]
        while bucket.items:
            item = self.run.pick(bucket, place, r, number)
            if self.run.type_of(item) == kind:
                return bucket, item
            if item >= 0:
                break
            bucket = self.run.buckets[item]
        return bucket, None
