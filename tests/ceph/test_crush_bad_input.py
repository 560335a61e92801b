"""Damaged maps: an error that names the field, never another exception, never a hang."""

import json
import os
import random
import re
import time

import numpy as np
import pytest
from crush_maps import map_text
from damage import damaged_map, dump, put, sort_out

from vmlib.ceph import (
    CrushMap,
    crush_hash,
    crush_ln,
    for_browser,
    hash_many,
    object_hash,
    pieces,
    reweighted,
    stable_mod,
    utilisation,
)
from vmlib.errors import BadInput


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("buckets", 5, "items", 0, "id"), 999, "buckets[5].items[0].id"),
        (("buckets", 5, "items", 0, "id"), -999, "buckets[5].items[0].id"),
        (("buckets", 5, "items", 0, "id"), "one", "buckets[5].items[0].id"),
        (("buckets", 5, "items", 0, "weight"), -1, "buckets[5].items[0].weight"),
        (("buckets", 5, "items", 0, "weight"), 1 << 32, "buckets[5].items[0].weight"),
        (("buckets", 5, "items", 0, "weight"), None, "buckets[5].items[0].weight"),
        (("buckets", 5, "alg"), "straw3", "buckets[5].alg"),
        (("buckets", 5, "hash"), "md5", "buckets[5].hash"),
        (("buckets", 5, "type_id"), 77, "buckets[5].type_id"),
        (("buckets", 5, "type_id"), 0, "buckets[5].type_id"),
        (("buckets", 5, "id"), 3, "buckets[5].id"),
        (("buckets", 5, "items"), {}, "buckets[5].items"),
        (("buckets",), None, "buckets"),
        (("devices", 0, "id"), 1, "devices[1].id"),
        (("devices", 0, "id"), 1 << 40, "devices[0].id"),
        (("devices", 0), 5, "devices[0]"),
        (("types", 0, "type_id"), 9, "types"),
        (("rules", 0, "steps", 0, "item"), -999, "rules[0].steps[0].item"),
        (("rules", 0, "steps", 1, "num"), 1 << 31, "rules[0].steps[1].num"),
        (("rules", 0, "steps", 1, "type"), "shed", "rules[0].steps[1].type"),
        (("rules", 0, "steps", 1, "op"), "guess", "rules[0].steps[1].op"),
        (("rules", 0, "type"), 99, "rules[0].type"),
        (("rules", 0, "rule_id"), 1, "rules[1].rule_id"),
        (("tunables", "choose_total_tries"), 1 << 31, "tunables.choose_total_tries"),
        (("tunables", "choose_total_tries"), -1, "tunables.choose_total_tries"),
        (("tunables", "chooseleaf_descend_once"), 2, "tunables.chooseleaf_descend_once"),
        (("tunables", "chooseleaf_vary_r"), 256, "tunables.chooseleaf_vary_r"),
        (("types", 1, "type_id"), -1, "types[1].type_id"),
        (("rules", 0, "max_size"), 256, "rules[0].max_size"),
        (("rules", 0, "rule_name"), "ec", "rules[3].rule_name"),
        (("choose_args", "x"), [], "choose_args.x"),
        (("choose_args", "0", 0, "bucket_id"), -999, "choose_args.0[0].bucket_id"),
        (("choose_args", "0", 0, "weight_set", 0), [1] * 9, "choose_args.0[0].weight_set[0]"),
        (("choose_args", "0", 0, "weight_set", 0, 0), -1, "choose_args.0[0].weight_set[0][0]"),
    ],
)
def test_the_error_names_the_field(path, value, field):
    data = dump()
    put(data, path, value)
    with pytest.raises(BadInput) as caught:
        CrushMap.from_json(data)
    assert caught.value.field == field


def test_two_types_of_one_name():
    data = dump()
    data["types"].append({"type_id": 9, "name": "rack"})
    with pytest.raises(BadInput, match="rack") as caught:
        CrushMap.from_json(data)
    assert caught.value.field == "types[4].name"


def test_a_loop_of_buckets():
    data = dump()
    buckets = {bucket["name"]: bucket for bucket in data["buckets"]}
    item = {"id": buckets["root"]["id"], "weight": 1, "pos": 0}
    buckets["host1"]["items"] = [item]
    data["choose_args"] = {}
    with pytest.raises(BadInput, match="loop") as caught:
        CrushMap.from_json(data)
    # Which edge closes a loop depends on where the walk begins: any of its three will do.
    number, place = map(int, re.findall(r"[0-9]+", caught.value.field))
    assert caught.value.field == f"buckets[{number}].items[{place}].id"
    above = data["buckets"][number]
    below = next(b for b in data["buckets"] if b["id"] == above["items"][place]["id"])
    rack = next(b["name"] for b in data["buckets"] if buckets["host1"]["id"] in ids(b))
    edge = (above["name"], below["name"])
    assert edge in {("root", rack), (rack, "host1"), ("host1", "root")}


def ids(bucket):
    return [item["id"] for item in bucket["items"]]


@pytest.mark.parametrize("n", [0, -1, 10_001, 1.5, True, "3"])
def test_impossible_counts(n):
    with pytest.raises(BadInput, match=r"^n: is"):
        CrushMap.build().map(0, 1, n)
    with pytest.raises(BadInput, match=r"^n: is"):
        CrushMap.build().map_many(0, [1], n)


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda crush: crush.map(0, 1.5, 2), "x"),
        (lambda crush: crush.explain(0, "a", 2), "x"),
        (lambda crush: crush.map_many(0, [1, "a"], 2), "xs"),
        (lambda crush: crush.map(0, 1, 2, 5), "weights"),
        (lambda crush: crush.map(0, 1, 2, {1: -1}), "weights[1]"),
        (lambda crush: crush.map(0, 1, 2, [65536, 0.5]), "weights[1]"),
        (lambda crush: crush.map_many(0, [1], 2, {3: 0.5}), "weights[3]"),
        (lambda crush: crush.map_many(0, [1], 2, np.array([0.5])), "weights[0]"),
        (lambda crush: crush.explain(0, 1, 2, {0: None}), "weights[0]"),
        (lambda crush: for_browser(crush, 0, 0), "n"),
        (lambda crush: crush_ln(-1), "u"),
        (lambda crush: crush_ln(1 << 16), "u"),
        (lambda crush: crush_hash(), "words"),
        (lambda crush: hash_many(1, 2, 3, 4, 5, 6), "words"),
        (lambda crush: stable_mod(1, 0), "count"),
        (lambda crush: object_hash(5), "name"),
        (lambda crush: object_hash("x", "\udc80"), "namespace"),
        (lambda crush: pieces(10, 0), "size"),
        (lambda crush: utilisation(0), "inputs"),
        (lambda crush: reweighted(crush, 0, "heavy"), "weight"),
        (lambda crush: CrushMap.build(weight="heavy"), "weight"),
        (lambda crush: CrushMap.build(hosts=2, weight=[1, None]), "weight[1]"),
        (lambda crush: CrushMap.build(weight=float("nan")), "weight[0]"),
    ],
)
def test_wrong_arguments_are_named(ask, field):
    with pytest.raises(BadInput) as caught:
        ask(CrushMap.build(hosts=2, osds=2))
    assert caught.value.field.split(" ")[0] == field


def test_out_weights_may_come_from_numpy():
    crush = CrushMap.build(hosts=4, osds=1)
    out = [0x10000, 0, 0x8000, 0x10000]
    wanted = [crush.map(0, x, 3, out) for x in range(50)]
    for weights in (np.array(out), np.array(out, np.uint32), dict(enumerate(np.array(out)))):
        assert [crush.map(0, x, 3, weights) for x in range(50)] == wanted


def test_absent_rules_and_weight_sets():
    crush = CrushMap.build()
    with pytest.raises(BadInput, match="rule: 'gold' is not in this map; there are replicated"):
        crush.map("gold", 1, 1)
    with pytest.raises(BadInput, match="choose_args: 4"):
        crush.map(0, 1, 1, choose_args=4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"racks": -1},
        {"hosts": 0},
        {"osds": 1.5},
        {"weight": -1.0},
        {"weight": [1, 2, 3]},
        {"alg": "dice"},
        {"tunables": "none"},
        {"hosts": 10_000, "osds": 1000},
    ],
)
def test_maps_that_cannot_be_built(arguments):
    with pytest.raises(BadInput):
        CrushMap.build(**arguments)


def use(crush):
    for rule in crush.rules.values():
        for x in range(3):
            crush.map(rule.id, x, 3, {0: 0}, "auto")
        crush.map_many(rule.id, range(5), 2)
        crush.explain(rule.id, 1, 2)
    json.dumps(crush.to_json())


def fuzz(seed, enough):
    """Use damaged maps until `enough(count)`; return counts of refused and of usable ones."""
    rng = random.Random(seed)
    whole, text = dump(), map_text(seed % 50, classes=True, weight_set="ids")
    return sort_out(lambda: damaged_map(rng, whole, text), use, enough)


def test_damaged_maps_are_refused_or_work():
    refused, usable = fuzz(20_161, lambda count: count >= 250)
    assert refused > 80
    assert usable > 20


@pytest.mark.soak
def test_damaged_maps_for_an_hour(log_soak):
    seed = int(os.environ.get("VMLIB_SEED", time.time()))
    end = time.monotonic() + float(os.environ.get("VMLIB_FUZZ_SECONDS", 3600))
    refused, usable = fuzz(seed, lambda count: time.monotonic() > end)
    log_soak("damaged CRUSH maps", seed, refused + usable)
