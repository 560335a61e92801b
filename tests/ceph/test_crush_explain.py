"""The explanation tells what happened: equal to crushtool's own count, and to the mapping."""

from collections import Counter
from itertools import pairwise

import pytest
from crush_maps import (
    ALGS,
    PROFILES,
    Compiled,
    map_text,
    out_weights,
    seed_of_the_day,
    tool_weights,
    version,
)
from test_crush import combinations

from vmlib.ceph import CrushMap, crush_ln, histogram
from vmlib.ceph.crush.explain import REASONS, THEN
from vmlib.ceph.crush.hashing import crush_hash
from vmlib.ceph.crush.ln import TOP
from vmlib.trace import Trace

COVERS = [
    f"vmlib/ceph/crush/{n}.py"
    for n in ("explain", "watch", "mapper", "run", "firstn", "indep", "knobs", "buckets")
]


@pytest.mark.needs("crushtool")
def test_tries_are_those_that_crushtool_counts(check, tmp_path):
    with check(
        "ceph/crush-tries",
        what="how many tries each choice took (--show-choose-tries)",
        tool="crushtool (Ceph)",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        reasons = set()
        for seed, one in enumerate(combinations(seed_of_the_day()), seed_of_the_day() * 100):
            text = map_text(seed, *one)
            real = Compiled(text, tmp_path)
            crush = CrushMap.from_text(text)
            weights = out_weights(seed, crush.max_devices)
            mine = tool_weights(crush, weights)
            xs = range(4)
            ours = Counter()
            for rule in crush.rules:
                for x in xs:
                    trace = crush.explain(rule, x, 3, mine, "auto")
                    ours.update(histogram(trace))
                    reasons |= REASONS.keys() & trace.counters.keys()
            theirs = real.tries(None, 3, xs, weights)
            done.case(dict(ours), theirs, f"seed {seed} {one}")
        assert reasons == set(REASONS), "each is met where it is held against the tool"


def traces(seeds, algs=ALGS):
    for seed in seeds:
        for alg in algs:
            for profile in PROFILES:
                crush = CrushMap.from_text(map_text(seed, alg, profile))
                weights = out_weights(seed, crush.max_devices)
                for rule in crush.rules:
                    yield crush, rule, seed * 31, weights


def test_every_reason_and_every_consequence_is_met():
    reasons, consequences = set(), set()
    for crush, rule, x, weights in traces(range(3)):
        trace = crush.explain(rule, x, 4, weights)
        refused = [step.state for step in trace.steps if step.event == "refuse"]
        reasons |= {state["reason"] for state in refused}
        consequences |= {state["then"] for state in refused}
    msr = CrushMap.from_text(
        CrushMap.build(hosts=3, osds=2)
        .to_text()
        .replace("type erasure", "type msr_indep")
        .replace("chooseleaf indep 0 type host", "choosemsr 3 type host\nstep choosemsr 1 type osd")
    )
    for x in range(10):
        trace = msr.explain(1, x, 3, {0: 0, 2: 0})
        consequences |= {s.state["then"] for s in trace.steps if s.event == "refuse"}
    assert reasons == set(REASONS)
    assert consequences == set(THEN)


def test_an_explanation_ends_with_the_mapping_and_its_draws_are_right():
    for crush, rule, x, weights in traces((5,), ("straw2", "list")):
        trace = crush.explain(rule, x, 3, weights)
        devices = crush.map(rule, x, 3, weights)
        assert trace.steps[-1].state["result"] == [
            "none" if d == 0x7FFFFFFF else crush.name_of(d) for d in devices
        ]
        for step in trace.steps:
            state = step.state
            if step.event != "draw":
                continue
            if state["draws"] and state["draws"][0][3] is not None:  # straw2
                best = max(state["draws"], key=lambda row: int(row[5]))
                assert state["winner"] == best[0]
                for item, _, u, ln, weight, straw in state["draws"]:
                    assert u == crush_hash(x, item, state["r"]) & 0xFFFF
                    if weight:
                        assert int(ln) == crush_ln(u) - TOP
                        assert int(straw) == -(-int(ln) // weight)


def test_what_is_drawn_from_is_named():
    """A tree bucket walks from inner node to inner node, so its rows are nodes and not items."""
    for alg, named in (("straw2", "osd."), ("tree", "node ")):
        crush = CrushMap.build(osds=4, alg=alg)
        steps = crush.explain("replicated", 1, 1).steps
        rows = [row for s in steps if s.where == "host0" for row in s.state["draws"]]
        assert rows
        assert all(name == f"{named}{item}" for item, name, *_ in rows)


def test_a_trace_is_whole_and_can_be_kept(tmp_path):
    crush = CrushMap.build(racks=2, hosts=3, osds=3)
    trace = crush.explain("replicated", 9, 3)
    assert trace.kind == "map"
    assert Trace.from_json(trace.to_json()) == Trace.from_json(trace.to_json())
    for step in trace.steps:
        if step.event == "draw":
            path = step.state["path"]
            for above, below in pairwise(path):
                holder = next(b for b in crush.buckets.values() if b.name == above)
                assert below in {crush.name_of(i) for i in holder.items}
            assert step.state["path"][-1] == step.where
    text = trace.to_json()
    assert all(abs(n) < 1 << 53 for n in numbers(trace.to_dict())), text


def numbers(data):
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list | tuple):
        for one in data:
            yield from numbers(one)
    elif isinstance(data, int):
        yield data
