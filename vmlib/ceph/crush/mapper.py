"""Running a rule: from an input number to devices. The reference that everything is held to.

Models `crush_do_rule` in all of its behaviour that can be seen from outside. A rule takes a
bucket, chooses below it, perhaps below what it chose, and emits. The choices themselves are in
`firstn` and `indep`; multi-step-retry rules are in `msr`. The algorithm is in Weil et al.,
SC'06, section 3.2; what the tunables changed since is in docs.ceph.com, "CRUSH maps", and is
held against `crushtool`.

A `watch`, if given, is told of every draw, refusal and placement; there is no second version of
this code that explains.
"""

from vmlib.ceph.crush.facts import ChooseArgs, MapFacts, Rule, Step, Weights
from vmlib.ceph.crush.firstn import firstn
from vmlib.ceph.crush.indep import indep
from vmlib.ceph.crush.knobs import set_knob
from vmlib.ceph.crush.msr import run_msr
from vmlib.ceph.crush.run import Run
from vmlib.ceph.crush.watch import Watch
from vmlib.numbers import whole

MOST = 10_000
"""The largest number of replicas asked for at once."""


def check_count(n: int) -> None:
    """Refuse a count of replicas that no rule can have."""
    whole(n, "n", 1, MOST)


def do_rule(
    crush: MapFacts,
    rule: Rule,
    x: int,
    n: int,
    weights: Weights,
    args: ChooseArgs,
    watch: Watch | None = None,
) -> list[int]:
    """Return the devices that `rule` gives `x`: at most `n`, holes of indep as NONE."""
    check_count(n)
    run = Run(crush, whole(x, "x"), weights, args, watch)
    return run_msr(run, rule, n) if rule.is_msr else run_steps(run, rule, n)


def run_steps(run: Run, rule: Rule, n: int) -> list[int]:
    """Run an ordinary rule step by step."""
    result: list[int] = []
    working: list[int] = []
    for step in rule.steps:
        if run.watch:
            run.watch.begin(step)
        if step.op == "take":
            working = [step.arg1]
        elif step.op == "emit":
            result += working[: n - len(result)]
            working = []
        elif step.op.startswith("set_"):
            set_knob(run.knobs, step)
        elif step.op.startswith("choose") and working:
            working = choose(run, step, working, n)
        if run.watch:
            run.watch.ran(step, tuple(working), tuple(result))
    return result


def choose(run: Run, step: Step, working: list[int], n: int) -> list[int]:
    """Choose below each item of the working set, as long as there is room for more."""
    verb, mode = step.op.split("_")
    leaf = verb == "chooseleaf"
    chosen: list[int] = []
    numrep = step.arg1 if step.arg1 > 0 else step.arg1 + n
    for item in working:
        if numrep <= 0 or item not in run.buckets:
            continue
        start, room = run.buckets[item], n - len(chosen)
        if mode == "firstn":
            chosen += firstn(run, start, numrep, room, step.arg2, leaf)
        else:
            chosen += indep(run, start, numrep, min(numrep, room), step.arg2, leaf)
    return chosen
