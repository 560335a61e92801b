"""The browser's model of CRUSH against vmlib.ceph: mappings, explanations and what moves."""

import json
import os
import random
from collections import Counter
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from vmlib.ceph import CrushMap, Rule, Step, crush_hash, hash_many
from vmlib.ceph.crush.browser import for_browser
from vmlib.ceph.crush.change import reweighted
from vmlib.ceph.crush.facts import NONE, ONE
from vmlib.errors import Unsupported

pytestmark = pytest.mark.needs("chromium")

SEED = int(os.environ.get("VMLIB_SEED", date.today().toordinal()))
SHAPES = [(0, 10, 10), (0, 3, 2), (4, 5, 3), (0, 25, 4), (3, 2, 1)]
TAKE, EMIT = Step("take", -1), Step("emit")


def some_map(seed: int) -> CrushMap:
    """A map with unequal weights, some of them 0, and rules of each kind."""
    dice = random.Random(seed)
    racks, hosts, osds = dice.choice(SHAPES)
    count = max(racks, 1) * hosts * osds
    weights = [dice.choice([0, 0.25, 1, 1, 1, 1.75, 3.64, 7.28]) for _ in range(count)]
    crush = CrushMap.build(racks=racks, hosts=hosts, osds=osds, weight=weights)
    rules = [
        [TAKE, Step("chooseleaf_firstn", 0, 1), EMIT],
        [TAKE, Step("chooseleaf_indep", 0, 1), EMIT],
        [TAKE, Step("choose_firstn", 0, 0), EMIT],
        [TAKE, Step("choose_indep", 0, 0), EMIT],
        [TAKE, Step("choose_firstn", 2, 1), Step("choose_firstn", 2, 0), EMIT],
        [TAKE, Step("set_chooseleaf_tries", 5), Step("set_choose_tries", 100),
         Step("choose_indep", 2, 1), Step("chooseleaf_indep", 2, 0), EMIT],
        [TAKE, Step("choose_firstn", -1, 1), Step("chooseleaf_firstn", 1, 0), EMIT],
    ]  # fmt: skip
    if racks:
        rules.append([TAKE, Step("choose_firstn", 2, 2), Step("chooseleaf_firstn", 2, 1), EMIT])
        rules.append([TAKE, Step("chooseleaf_indep", 0, 2), EMIT])
    return replace(
        crush, rules={i: Rule(i, f"rule{i}", 1, tuple(steps)) for i, steps in enumerate(rules)}
    )


OPEN = "window.ln = window.ln || given.ln; given.ln = window.ln;"  # the table is made once a page
MAP = (
    "([given, outs, xs]) => {"
    + OPEN
    + """
  const map = { ...vmView.crush.open(given), out: new Map(outs) };
  return xs.map(x => vmView.crush.doRule(map, x, given.n));
}"""
)
EXPLAIN = (
    "([given, outs, x]) => {"
    + OPEN
    + """
  return vmView.crush.explain({ ...vmView.crush.open(given), out: new Map(outs) }, x, given.n, {});
}"""
)
RUN = f"([given, values]) => {{ {OPEN} return vmView.models.crush.run({{}}, values, given); }}"


def outs_of(dice: random.Random, crush: CrushMap) -> dict[int, int]:
    return {osd: dice.choice([0, 0x4000, 0xCCCC]) for osd in crush.devices if dice.random() < 0.15}


def test_it_maps_as_the_library_does(open_page: Any) -> None:
    """Thousands of inputs: maps, rules, counts and out-weights drawn from a rotating seed."""
    page = open_page("")
    dice = random.Random(SEED)
    compared = 0
    for _ in range(10):
        seed = dice.getrandbits(32)
        crush = some_map(seed)
        for rule in crush.rules:
            n = dice.choice([1, 2, 3, 4, 6])
            outs = dice.choice([{}, outs_of(dice, crush)])
            xs = [dice.getrandbits(dice.choice([8, 16, 31])) for _ in range(50)]
            theirs = page.evaluate(MAP, [for_browser(crush, rule, n), list(outs.items()), xs])
            for x, found in zip(xs, theirs, strict=True):
                assert found == crush.map(rule, x, n, outs), (SEED, seed, rule, n, outs, x)
                compared += 1
    assert compared > 3000


def test_it_explains_as_the_library_does(open_page: Any) -> None:
    """Each draw, refusal and placement; all reasons for a refusal occur."""
    page = open_page("")
    dice = random.Random(SEED + 1)
    reasons: Counter[str] = Counter()
    for _ in range(40):
        seed = dice.getrandbits(32)
        crush = some_map(seed)
        rule = dice.choice(list(crush.rules))
        outs = outs_of(dice, crush)
        x, n = dice.getrandbits(16), dice.choice([2, 3, 5])
        given = for_browser(crush, rule, n)
        theirs = page.evaluate(EXPLAIN, [given, list(outs.items()), x])
        ours = crush.explain(rule, x, n, outs)
        assert theirs["steps"] == json.loads(ours.to_json())["steps"], (SEED, seed, rule, x, n)
        counters = {k: v for k, v in ours.counters.items() if not k.startswith("tries ")}
        assert theirs["counters"] == counters
        reasons.update(s.state["reason"] for s in ours.steps if s.state["reason"])
    assert {"collision", "out", "leaf failed"} <= set(reasons)


@pytest.mark.parametrize("mode", ["firstn", "indep"])
def test_odd_maps_are_explained_alike(open_page: Any, mode: str) -> None:
    """An empty host, and a rule that meets devices where it wants hosts."""
    crush = CrushMap.build(hosts=4, osds=2)
    root = crush.buckets[-1]
    mixed = replace(root, items=(*root.items, 8, -9), weights=(*root.weights, 2 * ONE, 3 * ONE))
    empty = replace(crush.buckets[-2], id=-9, name="bare", items=(), weights=())
    devices = {**crush.devices, 8: replace(crush.devices[0], id=8, name="loner")}
    crush = replace(
        crush,
        devices=devices,
        buckets={**crush.buckets, -1: mixed, -9: empty},
        rules={0: Rule(0, "odd", 1, (TAKE, Step(f"chooseleaf_{mode}", 0, 1), EMIT))},
    )
    page, reasons = open_page(""), set()
    for x in range(60):
        ours = crush.explain(0, x, 3)
        theirs = page.evaluate(EXPLAIN, [for_browser(crush, 0, 3), [], x])
        assert theirs["steps"] == json.loads(ours.to_json())["steps"], x
        reasons |= {step.state["reason"] for step in ours.steps}
    assert {"bad type", "collision", "leaf failed"} <= reasons


def test_of_equal_straws_the_first_wins(open_page: Any) -> None:
    """Hashes equal by chance, among the best of a bucket; and a map that weighs nothing."""
    crush = CrushMap.build(hosts=8, osds=1)
    xs = np.arange(200_000)
    hashes = hash_many(xs[:, None], np.array(crush.buckets[-1].items), np.array(0)) & 0xFFFF
    best = np.sort(hashes, axis=1)[:, -2:]
    ties = xs[best[:, 0] == best[:, 1]].tolist()
    assert len(ties) > 10
    page = open_page("")
    theirs = page.evaluate(MAP, [for_browser(crush, 0, 1), [], ties])
    assert theirs == [crush.map(0, x, 1) for x in ties]
    nothing = CrushMap.build(hosts=4, osds=3, weight=0)
    assert page.evaluate(MAP, [for_browser(nothing, 0, 1), [], [5]]) == [nothing.map(0, 5, 1)]


def modulo(crush: CrushMap, out: int | None, inputs: int) -> list[int]:
    """A table with a line for each quarter of weight, and line number hash modulo lines."""
    weights = {
        item: weight
        for bucket in crush.buckets.values()
        for item, weight in zip(bucket.items, bucket.weights, strict=True)
        if item >= 0
    }
    lines = [osd for osd in sorted(weights) if osd != out for _ in range(weights[osd] // 0x4000)]
    return [lines[crush_hash(x) % len(lines)] for x in range(inputs)]


@pytest.mark.parametrize("rule", ["replicated", "erasure"])
def test_what_moves_is_what_moves(open_page: Any, rule: str) -> None:
    page = open_page("")
    dice = random.Random(SEED + 2)
    for shape in SHAPES[:3]:
        racks, hosts, osds = shape
        before = CrushMap.build(racks=racks, hosts=hosts, osds=osds)
        given = for_browser(before, rule, 3, inputs=200)
        for _ in range(3):
            osd, weight = dice.choice(list(before.devices)), dice.randrange(17) / 4
            out = dice.random() < 0.3
            values = {"x": 5, "osd": osd, "weight": weight, "out": out}
            seen = page.evaluate(RUN, [given, values])
            after = reweighted(before, osd, weight)
            outs = {osd: 0} if out else None
            xs = np.arange(200)
            rows = [
                np.where((found := crush.map_many(rule, xs, 3, w)) == -1, NONE, found)
                for crush, w in ((before, None), (after, outs))
            ]
            _, found = seen["live"]["ways"][0]
            if not out:
                ours = before.compare(after, rule, 3, xs)
                assert (found["moved"], found["needed"]) == (ours.moved, ours.needed)
                assert {(a, b): many for a, b, many in found["moves"]} == dict(ours.moves)
                assert found["placed"] == ours.placements
            pairs = [(set(a) - {NONE}, set(b) - {NONE}) for a, b in zip(*rows, strict=True)]
            gone = sum(len(a - b) for a, b in pairs)
            came = sum(len(b - a) for a, b in pairs)
            assert max(gone, came) <= found["moved"] <= gone + came
            steps = json.loads(after.explain(rule, 5, 3, outs).to_json())["steps"]
            assert seen["trace"]["steps"] == steps
            old, new = modulo(before, None, 200), modulo(after, osd if out else None, 200)
            _, other = seen["live"]["ways"][1]
            assert other["moved"] == sum(a != b for a, b in zip(old, new, strict=True))
            assert seen["answers"]["modulo"] == pytest.approx(100 * other["moved"] / 200, abs=0.051)


def test_what_it_cannot_do_is_refused_by_name() -> None:
    crush = CrushMap.build(hosts=3, osds=2)
    with pytest.raises(Unsupported, match="tunables"):
        for_browser(CrushMap.build(hosts=3, tunables="legacy"), 0, 3)
    with pytest.raises(Unsupported, match=r"buckets\[default\]\.alg"):
        for_browser(CrushMap.build(hosts=3, alg="list"), 0, 3)
    steps = (TAKE, Step("set_chooseleaf_stable", 0), EMIT)
    odd = replace(crush, rules={0: Rule(0, "odd", 1, steps)})
    with pytest.raises(Unsupported, match=r"rules\[odd\]\.steps\[1\]\.op"):
        for_browser(odd, 0, 3)
