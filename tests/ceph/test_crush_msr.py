"""Multi-step-retry rules against answers recorded from a newer crushtool (see msr_maps.py)."""

import json
import random
from pathlib import Path

import pytest
from crush_maps import seed_of_the_day, tool_weights
from msr_maps import msr_text

from vmlib.ceph import NONE, CrushMap

VECTORS = json.loads((Path(__file__).parent / "msr_vectors.json").read_text())


def recorded():
    """Return every (map, rule, n): the answers of 16 inputs are recorded for each."""
    return [(one, *map(int, key.split())) for one in VECTORS["maps"] for key in one["mappings"]]


def compare(one, rule, n, xs):
    """Yield (ours, the tool's) for some inputs of one recorded rule."""
    crush = CrushMap.from_json(one["dump"])
    outs = {int(osd): round(w * 65536) for osd, w in one["outs"].items()}
    weights = tool_weights(crush, outs)
    for x in xs:
        ours = crush.map(rule, x, n, weights, "auto")
        yield ours, one["mappings"][f"{rule} {n}"][x], f"seed {one['seed']} rule {rule} n {n} x {x}"


def test_msr_rules_place_as_recorded(check):
    rng = random.Random(seed_of_the_day())
    with check(
        "ceph/crush-msr",
        kind="recorded",
        what="where multi-step-retry rules put random inputs",
        tool="crushtool (Ceph)",
        tool_version=f"{VECTORS['version']}, recorded {VECTORS['recorded']}",
        covers=[
            "vmlib/ceph/crush/msr.py",
            "vmlib/ceph/crush/run.py",
            "vmlib/ceph/crush/buckets.py",
            "tests/ceph/msr_vectors.json",
        ],
    ) as done:
        for one in rng.sample(recorded(), 100):
            for case in compare(*one, [rng.randrange(16)]):
                done.case(*case)


@pytest.mark.soak
def test_all_of_the_recorded_answers(log_soak):
    cases = [case for one in recorded() for case in compare(*one, range(16))]
    for ours, theirs, what in cases:
        assert ours == theirs, what
    log_soak("Multi-step-retry rules against recorded answers", "all", len(cases))


def test_the_recorded_maps_are_those_of_the_generator():
    for one in VECTORS["maps"]:
        text, outs = msr_text(one["seed"])
        assert CrushMap.from_text(text).buckets == CrushMap.from_json(one["dump"]).buckets
        assert {str(k): v for k, v in outs.items()} == one["outs"]


def test_a_host_whose_devices_are_out_is_left():
    """What MSR rules are for: the same two steps in an ordinary rule leave a hole."""
    text = CrushMap.build(hosts=4, osds=2).to_text()
    steps = "choosemsr 3 type host\n\tstep choosemsr 1 type osd"
    msr = text.replace("type erasure", "type msr_indep").replace(
        "chooseleaf indep 0 type host", steps
    )
    plain = text.replace(
        "chooseleaf indep 0 type host", "choose indep 3 type host\n\tstep choose indep 1 type osd"
    )
    out = {0: 0, 1: 0}
    holes = [
        sum(NONE in CrushMap.from_text(one).map(1, x, 3, out) for x in range(100))
        for one in (msr, plain)
    ]
    assert holes[0] == 0
    assert holes[1] > 50
