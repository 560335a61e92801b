"""Multi-step-retry rules against answers recorded from a newer crushtool (see msr_maps.py)."""

import json
from pathlib import Path

from crush_maps import tool_weights
from msr_maps import msr_text

from vmlib.ceph import NONE, CrushMap

VECTORS = json.loads((Path(__file__).parent / "msr_vectors.json").read_text())


def test_msr_rules_place_as_recorded(check):
    with check(
        "ceph/crush-msr",
        kind="recorded",
        what="where multi-step-retry rules put random inputs",
        tool="crushtool (Ceph)",
        tool_version=f"{VECTORS['version']}, recorded {VECTORS['recorded']}",
        covers=["vmlib/ceph/msr.py", "vmlib/ceph/buckets.py", "tests/ceph/msr_vectors.json"],
    ) as done:
        for one in VECTORS["maps"]:
            crush = CrushMap.from_json(one["dump"])
            outs = {int(osd): round(w * 65536) for osd, w in one["outs"].items()}
            weights = tool_weights(crush, outs)
            for key, rows in one["mappings"].items():
                rule, n = map(int, key.split())
                for x, theirs in enumerate(rows):
                    ours = crush.map(rule, x, n, weights, "auto")
                    done.case(ours, theirs, f"seed {one['seed']} rule {rule} x {x}")


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
