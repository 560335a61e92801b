"""One write recorded: what the reader is shown is what the cluster did."""

import json

import pytest

from vmlib.ceph.rados import record_write
from vmlib.errors import BadInput
from vmlib.trace import Trace

RUNS = {
    "three": {},
    "chunks": {"erasure": True},
    "replica": {"kill": "replica"},
    "primary": {"kill": "primary"},
}


@pytest.fixture(scope="module")
def traces():
    return {name: record_write(**options) for name, options in RUNS.items()}


def holds(step, box):
    """What a box of each OSD holds in a step."""
    return {
        group[0]: held
        for group in step.state["groups"]
        for name, held, _ in group[5]
        if name == box
    }


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_acknowledged_before_every_serving_disk_has_it(traces, run):
    steps = traces[run].steps
    answer = next(
        s for s in steps if s.event == "sent" and [w[2] for w in s.state["wires"]] == ["ack"]
    )
    serving = [g for g in answer.state["groups"] if g[0].startswith("osd.") and g[4] != "down"]
    assert len(serving) == {"three": 3, "chunks": 6}.get(run, 2)
    assert all(held.startswith("B") for g in serving for name, held, _ in g[5] if name == "disk")
    assert answer.i == len(steps) - 2
    assert holds(steps[-1], "the write") == {"client.0": "told: done"}


@pytest.mark.parametrize("run", RUNS)
def test_every_step_says_what_changed_and_survives_json(traces, run):
    trace = traces[run]
    assert Trace.from_json(trace.to_json()) == Trace.from_json(json.dumps(trace.to_dict()))
    for before, after in zip(trace.steps, trace.steps[1:], strict=False):
        differ = {}
        for box in ("memory", "disk"):
            then, now = holds(before, box), holds(after, box)
            differ |= {f"{g} {box}": (then[g], now[g]) for g in now if now[g] != then[g]}
        said = {name: (old, new) for name, old, new in after.changed if name.startswith("osd.")}
        assert said == differ
        assert after.state["time"] >= before.state["time"]
        counts = zip(before.state["sofar"], after.state["sofar"], strict=True)
        assert all(x <= y for (_, x), (_, y) in counts)


def test_three_copies_cost_what_three_copies_cost(traces):
    counters = dict(traces["three"].counters)
    assert counters == {
        "messages": 6,
        "disks that have B": 3,
        "MiB on the wire": 12,  # in once, out twice
        "MiB to disks": 12,
    }
    assert [s.event for s in traces["three"].steps].count("on disk") == 3
    opening = traces["three"].steps[6]  # where the chapter's figure opens
    assert set(holds(opening, "memory").values()) == {"B"}
    assert set(holds(opening, "disk").values()) == {"A"}


def test_six_chunks_cost_half_of_that_and_twice_the_messages(traces):
    counters = dict(traces["chunks"].counters)
    assert counters == {
        "messages": 12,
        "disks that have B": 6,
        "MiB on the wire": 9,  # 4 in, 5 out
        "MiB to disks": 6,
    }
    assert sorted(holds(traces["chunks"].steps[-1], "disk").values()) == [f"B{i}" for i in range(6)]


def test_a_replica_that_dies_loses_its_memory_and_keeps_its_disk(traces):
    steps = traces["replica"].steps
    crash = next(step for step in steps if step.event == "crash")
    dead = crash.where
    assert holds(steps[crash.i - 1], "memory")[dead] == "B"
    assert holds(steps[-1], "memory")[dead] == "—"
    assert holds(steps[-1], "disk")[dead] == "A"
    assert steps[-1].state["time"] > 14  # longer than any disk: the grace, and the old lease


def test_a_primary_that_dies_before_the_answer_is_answered_for(traces):
    steps = traces["primary"].steps
    crash = next(step for step in steps if step.event == "crash")
    assert not crash.state["acks"][1:]  # it knew of nobody but itself
    sent = [step for step in steps if step.event == "sent"]
    asked = [w for step in sent for w in step.state["wires"][-1:] if w[2] == "write"]
    assert [w[1] for w in asked] == [crash.where, sent[-1].where]
    assert sum(step.event == "on disk" for step in steps) == 3  # nobody writes a second time
    assert [w[3] for s in steps for w in s.state["wires"]].count("lost") == 1


def test_the_same_seed_gives_the_same_trace():
    assert record_write(seed=3).to_dict() == record_write(seed=3).to_dict()
    with pytest.raises(BadInput, match="kill"):
        record_write(kill="monitor")
