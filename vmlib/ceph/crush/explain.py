"""Why an input is where it is: every draw, every retry and its reason, as a Trace.

The reference mapper runs with a watch that writes down what it is told; nothing is computed
twice. A step's `state` holds all that a view needs to draw it:

- ``x``, ``rule``, ``n``; ``step``: the rule's step; ``working``: names that it left to go on with
- ``path``: names of the buckets entered, the last is the one that draws; ``leaf``: looking for
  the device below an item that was chosen
- ``rep``: which replica; ``r``: the attempt that was hashed
- ``columns`` and ``draws``: one row for each number drawn; ``winner``: the item picked
- ``reason`` and ``then`` of a refusal; ``result``: the devices so far

64-bit values are decimal strings. The counters hold how often each event and each reason came,
and ``tries N``: how many choices ended after N failures, as `crushtool --show-choose-tries`.
"""

from collections.abc import Sequence
from typing import Any

from vmlib import __version__
from vmlib.ceph.crush.buckets import Draw
from vmlib.ceph.crush.facts import NONE, Bucket, ChooseArgs, MapFacts, Rule, Step, Weights
from vmlib.ceph.crush.mapper import do_rule
from vmlib.given import names_bad_input
from vmlib.trace import Provenance, Recorder, Trace

COLUMNS = ("item", "name", "u", "ln", "weight", "straw")
"""The columns of a draw: the item (in a tree bucket the node), the hash, its logarithm less
2^48 (straw2 only), the weight it is set against, and the result that is compared."""

REASONS = {
    "collision": "it is there already",
    "out": "its out-weight turns this input down",
    "leaf failed": "no device below it could be used",
    "bad type": "it is a device, and the rule wants another type",
    "empty": "the bucket is empty",
}

THEN = {
    "from the top": "Start again from the top.",
    "same bucket": "Draw again in the same bucket.",
    "skip": "Give this replica up.",
    "next round": "Leave the place open for the next round.",
    "hole": "The place stays a hole.",
    "same descent": "Draw again in this descent.",
    "next descent": "Leave the place open for the next descent.",
}


def explain(
    crush: MapFacts, rule: Rule, x: int, n: int, weights: Weights, args: ChooseArgs
) -> Trace:
    """Return the Trace of one mapping. `trace.steps[-1].state["result"]` is its answer."""
    scribe = _Scribe(crush, rule, x, n)
    result = do_rule(crush, rule, x, n, weights, args, scribe)
    return scribe.finish(result)


@names_bad_input
def histogram(trace: Trace) -> dict[int, int]:
    """Return how many choices of a trace ended after how many failures."""
    return {
        int(name.split()[1]): count
        for name, count in trace.counters.items()
        if name.startswith("tries ")
    }


class _Scribe:
    """A watch that writes a trace."""

    def __init__(self, crush: MapFacts, rule: Rule, x: int, n: int) -> None:
        self.crush, self.rule, self.x, self.n = crush, rule, x, n
        title = f"Where {rule.name} puts input {x}"
        self.recorder = Recorder("map", title, watch=("working", "result"))
        self.path: list[str] = []
        self.won: int | None = None
        self.result: list[str] = []
        self.working: list[str] = []
        self.step_text = ""

    def name(self, item: int) -> str:
        return "none" if item == NONE else self.crush.name_of(item)

    def write(self, where: str, event: str, text: str, **more: Any) -> None:
        state: dict[str, Any] = {
            "x": self.x,
            "rule": self.rule.name,
            "n": self.n,
            "step": self.step_text,
            "working": list(self.working),
            "path": list(self.path),
            "leaf": False,
            "rep": None,
            "r": None,
            "columns": list(COLUMNS),
            "draws": [],
            "winner": None,
            "reason": None,
            "then": None,
            "result": list(self.result),
        }
        self.recorder.count(event)
        self.recorder.step(where, event, text, state | more)

    # what the mapper tells

    def begin(self, step: Step) -> None:
        self.path = []
        kind = f" type {self.crush.types[step.arg2]}" if step.op.startswith("choose") else ""
        what = self.name(step.arg1) if step.op == "take" else str(step.arg1)
        self.step_text = step.op if step.op in ("emit", "noop") else f"{step.op} {what}{kind}"

    def ran(self, step: Step, working: Sequence[int], result: Sequence[int]) -> None:
        self.path = []
        self.working = [self.name(item) for item in working]
        self.result = [self.name(item) for item in result]
        now = ", ".join(self.result if step.op == "emit" else self.working) or "nothing"
        text = {
            "take": f"The rule starts at {now}.",
            "emit": f"The answer is now {now}.",
        }.get(step.op, f"{self.step_text}: the rule goes on with {now}.")
        self.write("rule", "step", text)

    def drew(
        self, bucket: Bucket, rep: int, r: int, draws: Sequence[Draw], item: int, leaf: bool
    ) -> None:
        if bucket.id == self.won:
            self.path.append(bucket.name)  # one floor down
        elif bucket.name in self.path:
            del self.path[self.path.index(bucket.name) + 1 :]  # back up
        else:
            self.path = [bucket.name]
        self.won = item
        in_tree = bucket.alg == "tree"
        rows = [
            [
                draw.item,
                f"node {draw.item}" if in_tree else self.name(draw.item),
                draw.u,
                None if draw.ln is None else str(draw.ln),
                draw.weight,
                str(draw.straw),
            ]
            for draw in draws
        ]
        self.recorder.count("draws", len(rows))
        self.write(
            bucket.name,
            "draw",
            f"{bucket.name} draws for replica {rep}, attempt {r}: {self.name(item)} wins.",
            leaf=leaf,
            rep=rep,
            r=r,
            draws=rows,
            winner=item,
        )

    def refused(
        self, bucket: Bucket, rep: int, item: int | None, why: str, then: str, leaf: bool
    ) -> None:
        self.recorder.count(why)
        what = bucket.name if item is None else self.name(item)
        self.write(
            bucket.name,
            "refuse",
            f"{what} does not do: {REASONS[why]}. {THEN[then]}",
            leaf=leaf,
            rep=rep,
            winner=item,
            reason=why,
            then=then,
        )

    def placed(self, rep: int, item: int, failed: int, leaf: bool) -> None:
        after = f" after {failed} failures" if failed else ""
        self.write(
            self.name(item),
            "place",
            f"{self.name(item)} is taken for replica {rep}{after}.",
            leaf=leaf,
            rep=rep,
            winner=item,
        )

    def tried(self, failed: int) -> None:
        if failed < self.crush.tunables.choose_total_tries:  # the tool's table ends there
            self.recorder.count(f"tries {failed}")

    def finish(self, result: Sequence[int]) -> Trace:
        self.result = [self.name(item) for item in result]
        self.path, self.working, self.step_text = [], [], ""
        self.write("rule", "end", f"Input {self.x} is on {', '.join(self.result) or 'nothing'}.")
        return self.recorder.finish(
            Provenance(engine="vmlib.ceph", versions={"vmlib": __version__}, host="")
        )
