"""Maps with one thing changed, against crushtool's own edits of the same map."""

import json

import pytest
from crush_maps import Compiled, crushtool, map_text, version

from vmlib.ceph import CrushMap
from vmlib.ceph.crush.change import below, find, removed, reweighted
from vmlib.errors import BadInput


def edited(real, folder, *edits):
    """Return what crushtool makes of a compiled map, one edit after the other."""
    path = real.binary
    for i, edit in enumerate(edits):
        after = folder / f"edited{i}"
        crushtool("-i", path, *edit, "-o", after)
        path = after
    told = crushtool("-i", path, "--dump")
    return CrushMap.from_json(json.loads(told[told.index("{") :]))


@pytest.mark.needs("crushtool")
def test_weights_and_removals_as_crushtool_makes_them(check, tmp_path):
    with check(
        "ceph/crush-change",
        what="random CRUSH maps after a device is given another weight, is removed, "
        "and a host is removed with all its devices",
        tool="crushtool --reweight-item, --remove-item (Ceph)",
        tool_version=version(),
        covers=[
            "vmlib/ceph/crush/change.py",
            "vmlib/ceph/crush/crush_map.py",
            "vmlib/ceph/crush/read_json.py",
        ],
    ) as done:
        for seed in range(6):
            real = Compiled(map_text(seed), tmp_path)
            crush = CrushMap.from_json(real.json())
            steps = [step for rule in crush.rules.values() for step in rule.steps]
            starts = {step.arg1 for step in steps if step.op == "take"}
            hosts = [
                bucket
                for bucket in crush.buckets.values()
                if bucket.items and min(bucket.items) >= 0 and bucket.id not in starts
            ]
            host = hosts[seed % len(hosts)]
            device = crush.devices[host.items[0]]
            weight = (0, 0.25, 1, 2.5, 7.75, 100)[seed]
            name = device.name
            theirs = edited(real, tmp_path, ("--reweight-item", name, str(weight)))
            done.case(reweighted(crush, name, weight), theirs, f"{seed}: {name} weighs {weight}")
            theirs = edited(real, tmp_path, ("--remove-item", name))
            ours = removed(crush, name)  # the tool's dump goes on listing the number of a device
            done.case(ours.buckets, theirs.buckets, f"{seed}: without {name}")
            emptied = [("--remove-item", crush.devices[i].name) for i in host.items]
            theirs = edited(real, tmp_path, *emptied, ("--remove-item", host.name))
            ours = removed(crush, host.name)
            done.case(ours.buckets, theirs.buckets, f"{seed}: without {host.name}")
            done.case(ours.rules, theirs.rules, f"{seed}: rules")


def test_a_change_goes_up_to_the_root_and_leaves_the_old_map_alone():
    crush = CrushMap.build(racks=2, hosts=2, osds=2)
    heavier = reweighted(crush, 7, 3)
    assert [heavier.buckets[i].weight >> 16 for i in (-1, -2, -3, -7)] == [10, 4, 6, 4]
    assert crush.buckets[-1].weight == 8 << 16
    assert reweighted(heavier, "osd.7", 1) == crush
    lighter = removed(crush, "rack1")
    assert set(lighter.devices) == {0, 1, 2, 3}
    assert lighter.buckets[-1].weight == 4 << 16
    assert below(crush, find(crush, "rack1")) == {-3, -6, -7, 4, 5, 6, 7}
    assert not {-3, -6, -7} & set(lighter.buckets)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda crush: reweighted(crush, "osd.99", 1), "item"),
        (lambda crush: reweighted(crush, "host1", 1), "item"),
        (lambda crush: reweighted(crush, 1, -1), "weight"),
        (lambda crush: reweighted(crush, True, 1), "item"),
        (lambda crush: removed(crush, "default"), "item"),
    ],
)
def test_what_is_no_change_is_refused_by_name(change, field):
    with pytest.raises(BadInput) as caught:
        change(CrushMap.build(hosts=2, osds=2))
    assert caught.value.field == field
