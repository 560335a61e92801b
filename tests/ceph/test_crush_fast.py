"""The numpy path gives what the reference gives."""

import random

import numpy as np
import pytest
from crush_maps import PROFILES, WEIGHT_SETS, map_text, seed_of_the_day

from vmlib.ceph import Bucket, CrushMap, Device, Rule, Step, hash_many
from vmlib.ceph.crush import draws as draws_module
from vmlib.ceph.crush.fast import suits
from vmlib.ceph.crush.ln import negative_ln
from vmlib.errors import BadInput

MODERN = [name for name in PROFILES if name not in ("legacy", "odd", "local")]


def both(crush, rule, n, weights=None, args=None, xs=range(60)):
    fast = crush.map_many(rule, xs, n, weights, args)
    slow = crush.map_many(rule, xs, n, weights, args, engine="python")
    assert fast.dtype == np.int32
    assert fast.shape == (len(xs), n)
    assert (fast == slow).all(), np.flatnonzero((fast != slow).any(axis=1))[:5]


@pytest.mark.parametrize("part", range(8))
def test_fast_is_the_reference(part):
    seed = 8 * seed_of_the_day() + part
    rng = random.Random(seed)
    profile, weight_set = MODERN[seed % len(MODERN)], WEIGHT_SETS[seed // 4 % 4]
    crush = CrushMap.from_text(
        map_text(seed, "straw2", profile, weight_set, seed % 2 == 0, seed % 3 == 0)
    )
    out = {i: rng.choice((0, 9000, 60_000)) for i in range(0, crush.max_devices, 3)}
    args = None if weight_set == "none" else "auto"
    taken = [rule for rule in crush.rules if suits(crush, crush.rule(rule))]
    assert {0, 1, 3, 5, 7} <= set(taken)
    for rule in taken:
        for n in (1, 3, 7):
            both(crush, rule, n, out, args, range(seed, seed + 40))


def test_what_the_fast_path_does_not_take_falls_back():
    for alg, profile in (("list", "jewel"), ("straw2", "legacy"), ("straw", "hammer")):
        crush = CrushMap.from_text(map_text(2, alg, profile))
        assert not suits(crush, crush.rule(0))
        both(crush, 0, 3, xs=range(20))
    crush = CrushMap.from_text(map_text(2))
    assert not suits(crush, crush.rule("steps"))
    both(crush, "steps", 3, xs=range(20))


@pytest.mark.parametrize("weight", [1.0, 0.0, [0] * 59 + [1], [1, 2] * 30, [1 / 65536] * 60])
def test_odd_weights(weight):
    crush = CrushMap.build(racks=3, hosts=4, osds=5, weight=weight)
    for rule in (0, 1):
        both(crush, rule, 3)


def test_the_tables_of_ranks_are_used_and_decide_ties_alike():
    crush = CrushMap.build(hosts=8, osds=8, weight=60_000.0 / 8 / 8)
    drawer = draws_module.Drawer(crush, {})
    assert all(group.tables is not None for group in drawer.groups.values())
    both(crush, 0, 3, xs=range(3000))


def test_division_in_doubles_is_exact():
    rng = np.random.default_rng(3)
    ln = negative_ln()
    for weight in [*rng.integers(1, 1 << 32, 40).tolist(), 1, 2, 3, 65535, 65536, (1 << 32) - 1]:
        assert (np.floor(ln / np.float64(weight)).astype(np.int64) == ln // weight).all()


@pytest.mark.parametrize("weight", [1.0, 300.0, 4000.0])
def test_near_draws_are_divided_exactly(weight):
    """Heavy items make small quotients, of which many are equal when they are rounded down."""
    crush = CrushMap.build(hosts=1, osds=14, weight=[weight, weight + 0.5] * 7)
    drawer = draws_module.Drawer(crush, {})
    group = drawer.groups[14]
    assert group.tables is None
    x = np.arange(200_000, dtype=np.uint32)
    u = (hash_many(x[None, :], np.arange(14)[:, None], 3) & 0xFFFF).astype(np.int64)
    ours = drawer.winner(group, 0, 0, x, np.full(len(x), 3, np.uint32))
    assert (ours == drawer.exact_winner(group, 0, u)).all()


def test_flat_and_uneven_maps():
    rng = random.Random(4)
    crush = CrushMap.build(hosts=300, osds=1, weight=[rng.uniform(0, 3) for _ in range(300)])
    both(crush, 0, 4, xs=range(60))
    both(crush, 1, 4, xs=range(60))


@pytest.mark.parametrize("xs", [[1.5], np.array([0.5]), np.zeros((2, 2), int)])
def test_inputs_that_are_no_whole_numbers(xs):
    crush = CrushMap.build(hosts=3, osds=1)
    with pytest.raises(BadInput):
        crush.map_many(0, xs, 2)


def test_unknown_engine():
    with pytest.raises(BadInput, match="engine"):
        CrushMap.build().map_many(0, range(3), 1, engine="abacus")


def test_no_inputs():
    assert CrushMap.build().map_many(0, [], 2).shape == (0, 2)


def test_a_bucket_with_the_number_of_the_padding_is_like_any_other():
    """Id -1 is also what fills short rows: a host of that number was once taken for a gap."""
    dump = CrushMap.build(hosts=4, osds=2).to_json()
    other = {-1: -2, -2: -1}
    for bucket in dump["buckets"]:
        bucket["id"] = other.get(bucket["id"], bucket["id"])
        for item in bucket["items"]:
            item["id"] = other.get(item["id"], item["id"])
    for rule in dump["rules"]:
        rule["steps"][0]["item"] = -2
    dump["tunables"]["choose_total_tries"] = 0  # one try, so that there are gaps
    crush = CrushMap.from_json(dump)
    for rule in (0, 1):
        both(crush, rule, 4)


def test_a_device_among_hosts_ends_every_replica_that_draws_it():
    """A replica whose draw met the wrong device is given up; the next one draws it again."""
    take, emit = Step("take", -1), Step("emit")
    crush = CrushMap(
        {i: Device(i, f"osd.{i}") for i in range(5)},
        {0: "osd", 1: "host", 2: "root"},
        {
            -1: Bucket(-1, "root", 2, "straw2", (-2, -3, 4), (65536,) * 3),
            -2: Bucket(-2, "host0", 1, "straw2", (0, 1), (65536,) * 2),
            -3: Bucket(-3, "host1", 1, "straw2", (2, 3), (65536,) * 2),
        },
        {0: Rule(0, "r", 1, (take, Step("chooseleaf_firstn", 0, 1), emit))},
    )
    assert suits(crush, crush.rule(0))
    both(crush, 0, 3, xs=range(400))
