"""From names to OSDs: held against `osdmaptool`, and the rules that it cannot be made to show."""

import copy
import json
import os
import random
import time
from dataclasses import replace

import pytest
from crush_maps import WEIGHT_SETS, version
from damage import ODD, places, put, sort_out
from osd_maps import groups, made, osdmaptool, ours, read

from vmlib.ceph import (
    ERASURE,
    NONE,
    BucketArgs,
    CrushMap,
    Move,
    Osd,
    OSDMap,
    Pool,
    crush_hash,
    moves,
    object_hash,
    stable_mod,
)
from vmlib.errors import BadInput, Unsupported

COVERS = [
    f"vmlib/ceph/{name}.py"
    for name in (
        "object_hash",
        "pools",
        "upmap",
        "placement",
        "osdmap",
        "read_osdmap",
    )
]


@pytest.mark.needs("osdmaptool")
def test_every_group_is_where_osdmaptool_says(check, tmp_path):
    with check(
        "ceph/osdmap-pgs",
        what="where every placement group of random maps is, through out OSDs and upmaps",
        tool="osdmaptool (Ceph)",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        upmaps = 0
        for seed, weight_set in enumerate(WEIGHT_SETS):
            for file in made(tmp_path, 40 + seed, weight_set, seed % 2 == 1, 3 - seed % 2):
                mine = read(file)
                upmaps += len(mine.pg_upmap_items)
                table = {place.pgid: ours(place) for place in mine.pg_table("rbd")}
                for pgid, theirs in groups(file).items():
                    done.case(table.pop(pgid), theirs, f"seed {seed} {pgid}")
                assert not table
        assert upmaps > 100


NAMES = [
    "",
    "a",
    "foo",
    "rbd_directory",
    "rbd_data.10d5f4c6b3a1.00000000000000ff",
    "twelve bytes",
    "twelve bytes, and as many",
    "对象",
    "é" * 50,
]


@pytest.mark.needs("osdmaptool")
def test_every_name_is_in_the_group_that_osdmaptool_says(check, tmp_path):
    rng = random.Random(7)
    names = NAMES[1:] + ["".join(rng.choices("abc._0123456789", k=k)) for k in range(1, 41)]
    *_, file = made(tmp_path, 3)
    mine = read(file)
    with check(
        "ceph/osdmap-objects",
        what="the placement group and OSDs of object names of 1 to 100 bytes",
        tool="osdmaptool (Ceph)",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        for name in names:
            out = osdmaptool(file, "--test-map-object", name, "--pool", 1)
            theirs = out[out.index(" object '") :].splitlines()[0].strip()
            place = mine.locate("rbd", name)
            osds = json.dumps(place.acting).replace(" ", "")
            done.case(f"object '{name}' -> {place.pgid} -> {osds}", theirs, name)


@pytest.mark.soak
@pytest.mark.needs("osdmaptool")
def test_many_maps_of_osdmaptool(tmp_path, log_soak):
    base, count = random.randrange(1 << 30), 0
    for seed in range(base, base + 60):
        for file in made(tmp_path, seed, WEIGHT_SETS[seed % 4], seed % 3 == 0, 1 + seed % 3):
            mine = read(file)
            table = {place.pgid: ours(place) for place in mine.pg_table("rbd")}
            theirs = groups(file)
            assert table == theirs, f"seed {seed}"
            count += len(theirs)
    log_soak("placement groups against osdmaptool", base, count)


# What follows needs no tool.


@pytest.fixture
def cluster():
    """Six hosts of two OSDs, a replicated pool and an erasure-coded one."""
    crush = CrushMap.build(hosts=6, osds=2)
    pools = [
        Pool(1, "data", pg_num=64),
        Pool(2, "ec", size=6, pg_num=32, crush_rule=1, type=ERASURE),
    ]
    return OSDMap.build(crush, pools)


def test_one_by_one_and_all_at_once_are_the_same(cluster):
    changed = cluster.without(osd=3).reweight(5, 0.4).affinity(1, 0.25).upmap_items("1.7", [(8, 9)])
    for pool in (1, 2):
        for place in changed.pg_table(pool):
            assert changed.pg(place.pg) == place
    assert changed.epoch == cluster.epoch + 4


def test_the_groups_split_one_by_one():
    """Growing by one group moves the objects of one group only, half of them."""
    for count in range(1, 70):
        changed = {h: stable_mod(h, count) for h in range(4096)}
        left = {changed[h] for h in changed if stable_mod(h, count + 1) != changed[h]}
        assert len(left) == 1
        assert {stable_mod(h, count + 1) for h in changed} == set(range(count + 1))


def test_the_hash_takes_bytes_in_twelves():
    assert object_hash("foo") == 0x7FC1F406
    assert object_hash("b", "a") == object_hash("a\x1fb")
    assert len({object_hash("x" * n) for n in range(64)}) == 64


def test_down_leaves_the_set_and_out_is_replaced(cluster):
    place = next(p for p in cluster.pg_table("data") if 4 in p.up)
    down = cluster.mark(4, up=False).pg(place.pg)
    assert down.raw == place.raw
    assert down.up == tuple(osd for osd in place.up if osd != 4)
    out = cluster.mark(4, in_=False).pg(place.pg)
    assert len(out.up) == 3
    assert 4 not in out.raw


def test_a_shard_that_is_down_leaves_a_hole(cluster):
    place = next(p for p in cluster.pg_table("ec") if p.up[2] == 4)
    down = cluster.mark(4, up=False).pg(place.pg)
    assert down.up == (*place.up[:2], NONE, *place.up[3:])


def test_an_upmap_to_an_osd_that_is_out_is_ignored(cluster):
    place = cluster.pg("1.0")
    other = next(osd for osd in range(12) if osd not in place.up)
    last = place.up[-1]
    exchanged = cluster.upmap_items("1.0", [(last, other)])
    assert exchanged.pg("1.0").up == (*place.up[:-1], other)
    assert exchanged.pg("1.0").raw == place.raw
    back = exchanged.mark(other, in_=False)
    assert other not in back.pg("1.0").up
    whole = cluster.upmap("1.0", [other, *place.up[1:]])
    assert whole.pg("1.0").up[0] == other
    # A whole set that cannot be had takes its exchanges with it.
    gone = whole.upmap_items("1.0", [(last, (other + 1) % 12)]).mark(other, in_=False)
    assert gone.pg("1.0").up == gone.pg("1.0").raw
    assert whole.upmap("1.0", []).pg("1.0") == place


def test_an_exchange_never_names_an_osd_twice(cluster):
    a, b, _ = cluster.pg("1.3").up
    assert cluster.upmap_items("1.3", [(a, b)]).pg("1.3").up == cluster.pg("1.3").up


def test_a_pool_s_own_weight_set_goes_before_the_one_for_all(cluster):
    root = cluster.crush.buckets[-1]
    one_host, all_hosts = (
        {-1: BucketArgs(((0x10000,) + (weight,) * (len(root.items) - 1),))}
        for weight in (0, 0x10000)
    )
    for own, common in ((one_host, all_hosts), (all_hosts, one_host)):
        crush = replace(cluster.crush, choose_args={1: own, -1: common})
        both = cluster.with_crush(crush).pg_table("data")
        alone = cluster.with_crush(replace(crush, choose_args={1: own})).pg_table("data")
        others = cluster.with_crush(replace(crush, choose_args={-1: common})).pg_table("data")
        assert both == alone
        assert both != others


def test_a_device_that_is_no_osd_of_the_map_is_out_and_others_are_drawn():
    crush = CrushMap.build(hosts=4, osds=1)
    mine = OSDMap(1, crush, {i: Osd(i) for i in range(3)}, {1: Pool(1, "data")}, 4)
    assert all(sorted(place.raw) == [0, 1, 2] for place in mine.pg_table("data"))


def test_a_weight_that_is_given_is_cut_off_and_one_that_is_read_is_rounded(cluster):
    """`ceph osd reweight` makes 16.16 of a number by cutting; a dump has what is 16.16 already."""
    assert cluster.reweight(0, 0.3).osds[0].weight == 19_660  # 19,660.8
    assert cluster.affinity(0, 0.3).osds[0].primary_affinity == 19_660
    for weight in range(0, 65_537, 257):
        printed = float(f"{weight / 65_536:.8f}")
        osd = {"osd": 0, "up": 1, "weight": printed, "primary_affinity": printed}
        read = OSDMap.from_json(dump(osds=[osd]), crush=cluster.crush).osds[0]
        assert (read.weight, read.primary_affinity) == (weight, weight)


def test_an_osd_declines_where_its_hash_is_as_large_as_its_affinity(cluster):
    """It serves where the upper half of the hash is below the affinity (`_apply_primary_affinity`).

    Equal is not below: so it is with one unit less that the first OSD loses its place.
    """
    place = cluster.pg("1.5")
    first = place.up[0]
    edge = crush_hash(place.pps, first) >> 16
    for affinity, primary in ((edge + 1, first), (edge, place.up[1])):
        shy = replace(cluster.osds[first], primary_affinity=affinity)
        there = replace(cluster, osds={**cluster.osds, first: shy})
        assert there.pg("1.5").up_primary == primary


def test_primary_affinity_moves_the_primary_to_the_front(cluster):
    place = cluster.pg("1.5")
    first, second, third = place.up
    assert cluster.affinity(first, 0).pg("1.5").up == (second, first, third)
    shy = cluster.affinity(first, 0).affinity(second, 0).affinity(third, 0).pg("1.5")
    assert (shy.up, shy.up_primary) == (place.up, first)  # somebody must
    ec = cluster.pg("2.1")
    moved = cluster.affinity(ec.up[0], 0).pg("2.1")
    assert (moved.up, moved.up_primary) == (ec.up, ec.up[1])


def test_temp_changes_who_acts_and_not_who_is_up(cluster):
    place = cluster.pg("1.9")
    others = [osd for osd in range(12) if osd not in place.up][:3]
    temp = cluster.temp("1.9", others)
    assert (temp.pg("1.9").up, temp.pg("1.9").acting) == (place.up, tuple(others))
    assert temp.pg("1.9").acting_primary == others[0]
    first_down = temp.mark(others[0], up=False).pg("1.9")
    assert first_down.acting == tuple(others[1:])
    assert cluster.temp("1.9", primary=place.up[2]).pg("1.9").acting_primary == place.up[2]
    assert temp.temp("1.9").pg("1.9") == place


def test_pools_without_hashpspool_lie_side_by_side():
    """As before 2013: seed and pool are added, so groups of two pools meet."""
    old = Pool(3, "old", pg_num=8, flags=0)
    assert [old.pps(seed) for seed in range(8)] == list(range(3, 11))
    assert Pool((1 << 32) + 2, "far", pg_num=8, flags=0).pps(5) == 7


def test_a_rule_for_other_sizes_places_nothing_until_ceph_16(cluster):
    wide = replace(cluster, pools={1: replace(cluster.pool(1), size=11)})
    assert len(wide.pg("1.0").up) > 3
    assert replace(wide, rule_masks=True).pg("1.0").up == ()
    rule = replace(cluster.crush.rules[0], min_size=3, max_size=3)  # both ends count
    edge = cluster.with_crush(replace(cluster.crush, rules={0: rule}))
    assert len(replace(edge, rule_masks=True).pg("1.0").up) == 3
    other_kind = replace(cluster, pools={1: replace(cluster.pool(1), crush_rule=1)})
    assert other_kind.pg("1.0").raw == ()
    assert other_kind.pg("1.0").acting_primary == -1


def test_a_shard_moves_to_an_osd_that_had_another(cluster):
    """Copies are alike, shards are not: the same OSDs in another order lack all of them."""
    up = cluster.pg("2.1").up
    turned = cluster.upmap("2.1", (*up[1:], up[0]))
    assert [(move.shard, move.to) for move in moves(cluster, turned, "ec")] == list(
        enumerate((*up[1:], up[0]))
    )


def test_what_moves_is_what_the_new_members_lack(cluster):
    lost = cluster.without(osd=0)
    for pool, per_group in (("data", 3), ("ec", 6)):
        held = sum(0 in place.up for place in cluster.pg_table(pool))
        found = moves(cluster, lost, pool)
        assert len(found) >= held > 0
        assert all(move.to != 0 for move in found)
        assert len(found) < cluster.pool(pool).pg_num * per_group / 2
    assert not moves(cluster, cluster.affinity(0, 0), "data")
    place = cluster.pg("1.0")
    other = next(osd for osd in range(12) if osd not in place.up)
    one = cluster.upmap_items("1.0", [(place.up[0], other)])
    assert moves(cluster, one, "data") == [Move((1, 0), -1, other)]


def dump(**changes):
    osd = {"osd": 0, "up": 1, "in": 1, "weight": 1, "primary_affinity": 1}
    pool = {
        "pool": 1,
        "pool_name": "rbd",
        "flags": 1,
        "type": 1,
        "size": 3,
        "min_size": 2,
        "crush_rule": 0,
        "object_hash": 2,
        "pg_num": 8,
        "pg_placement_num": 8,
    }
    data = {"epoch": 5, "max_osd": 2, "pools": [pool], "osds": [osd]}
    for path, value in changes.items():
        at = data
        *way, last = path.split("__")
        for key in way:
            at = at[int(key) if isinstance(at, list) else key]
        if value is None:
            del at[int(last) if isinstance(at, list) else last]
        else:
            at[int(last) if isinstance(at, list) else last] = value
    return data


BAD = {
    "epoch": ({"epoch": "five"}, "epoch"),
    "no pools": ({"pools": None}, "pools"),
    "pool type": ({"pools__0__type": 2}, "pools[0].type"),
    "pg_num": ({"pools__0__pg_num": 0}, "pools[0].pg_num"),
    "hash": ({"pools__0__object_hash": 1}, "pools[0].object_hash"),
    "size": ({"pools__0__size": -1}, "pools[0].size"),
    "no size": ({"pools__0__size": None}, "pools[0].size"),
    "osd too large": ({"osds__0__osd": 2}, "osds[0].osd"),
    "up": ({"osds__0__up": 7}, "osds[0].up"),
    "weight": ({"osds__0__weight": 1.5}, "osds[0].weight"),
    "weight is nan": ({"osds__0__weight": float("nan")}, "osds[0].weight"),
    "affinity": ({"osds__0__primary_affinity": "1"}, "osds[0].primary_affinity"),
    "no weight": ({"osds__0__weight": None}, "osds[0].weight"),
    "osd is a number": ({"osds__0": 3}, "osds[0]"),
    "pgid": ({"pg_temp": [{"pgid": "1.g", "osds": []}]}, "pg_temp[0].pgid"),
    "upmap": ({"pg_upmap": [{"pgid": "1.0", "osds": [0, "1"]}]}, "pg_upmap[0].osds[1]"),
    "items": (
        {"pg_upmap_items": [{"pgid": "1.0", "mappings": [{"from": 1}]}]},
        "pg_upmap_items[0].mappings[0].to",
    ),
    "primary": ({"primary_temp": ["1.0", "x"]}, "primary_temp[1]"),
    "primary of what": ({"primary_temp": [1, "1.0"]}, "primary_temp[0]"),
    "no primary": ({"primary_temp": ["1.0"]}, "primary_temp"),
    "twice": (
        {"pg_temp": [{"pgid": "1.1", "osds": [0]}, {"pgid": "1.1", "osds": [1]}]},
        "pg_temp[1].pgid",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_dump_is_named_by_its_field(name):
    changes, field = BAD[name]
    with pytest.raises(BadInput) as caught:
        OSDMap.from_json(dump(**changes), crush=CrushMap.build(hosts=2))
    assert caught.value.field == field


def test_a_dump_that_cannot_be_placed_exactly_is_refused():
    with pytest.raises(Unsupported):
        OSDMap.from_json(dump(pg_upmap_primaries=[{"pgid": "1.0"}]), crush=CrushMap.build())


def test_a_dump_is_read_from_a_file(tmp_path):
    path = tmp_path / "osd_dump.json"
    path.write_text(json.dumps(dump(primary_temp=["1.3", 1])))
    mine = OSDMap.load(path, crush=CrushMap.build(hosts=2))
    assert (mine.epoch, len(mine.pools), mine.osds[0].up) == (5, 1, True)
    assert mine.pg("1.3").acting_primary == 1
    assert mine.pg("1.0").up == (0,)  # the second device is no OSD of this map
    path.write_text("{")
    with pytest.raises(BadInput, match="JSON"):
        OSDMap.load(path, crush=CrushMap.build())


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda cluster: cluster.locate("nope", "x"), "pool"),
        (lambda cluster: cluster.locate("data", 5), "name"),
        (lambda cluster: cluster.pg("1.40"), "pgid"),
        (lambda cluster: cluster.pg("one"), "pgid"),
        (lambda cluster: cluster.pg(5), "pgid"),
        (lambda cluster: cluster.pg((1, 2, 3)), "pgid"),
        (lambda cluster: cluster.pg((1, "x")), "pgid[1]"),
        (lambda cluster: cluster.without(osd=12), "osd"),
        (lambda cluster: cluster.mark(1.5), "osd"),
        (lambda cluster: cluster.reweight(0, 1.1), "weight"),
        (lambda cluster: cluster.reweight(0, "half"), "weight"),
        (lambda cluster: cluster.affinity(0, -1), "affinity"),
        (lambda cluster: cluster.upmap("3.0", [1]), "pool"),
        (lambda cluster: cluster.upmap("1.0", [1, 99]), "osds[1]"),
        (lambda cluster: cluster.upmap("1.0", None), "osds"),
        (lambda cluster: cluster.upmap_items("1.0", [(1, 2), (3,)]), "exchanges[1]"),
        (lambda cluster: cluster.upmap_items("1.0", [(1, 99)]), "exchanges[0][1]"),
        (lambda cluster: cluster.temp("1.0", [99]), "osds[0]"),
        (lambda cluster: cluster.temp("1.0", primary=99), "osd"),
        (
            lambda cluster: OSDMap.build(cluster.crush, [Pool(1, "a"), Pool(1, "b")]),
            "pools[1].pool",
        ),
        (lambda cluster: Pool(1, "a", pg_num=0), "pool 'a': pg_num"),
        (lambda cluster: Pool(1, "a", size=0), "pool 'a': size"),
        (lambda cluster: Pool(1, "a", type=2), "pool 'a': type"),
    ],
)
def test_wrong_questions_are_refused(cluster, ask, field):
    with pytest.raises(BadInput) as caught:
        ask(cluster)
    assert caught.value.field == field


def test_a_split_is_not_counted_as_a_move(cluster):
    split = replace(cluster, pools={1: replace(cluster.pool(1), pg_num=128)})
    with pytest.raises(Unsupported, match="split"):
        moves(cluster, split, "data")


def test_a_binary_map_is_known_as_one(tmp_path):
    (tmp_path / "osdmap").write_bytes(b"\x08\x07\xd0\xff")
    with pytest.raises(BadInput, match="osdmaptool"):
        OSDMap.load(tmp_path / "osdmap", crush=CrushMap.build())


def damaged(rng, whole):
    """Return a dump with something else in a few of its places."""
    data = copy.deepcopy(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        put(data, rng.choice(list(places(data))), copy.deepcopy(rng.choice((*ODD, "1.0", 3, NONE))))
    return data


def fuzz(seed, enough):
    """Damage dumps until `enough(count)`; return counts of refused and of usable ones."""
    rng = random.Random(seed)
    whole = dump(
        osds=[{"osd": i, "up": 1, "weight": 1 - i / 8, "primary_affinity": 0.5} for i in range(4)],
        max_osd=4,
        pg_upmap=[{"pgid": "1.1", "osds": [3, 2, 1]}],
        pg_upmap_items=[{"pgid": "1.2", "mappings": [{"from": 0, "to": 3}]}],
        pg_temp=[{"pgid": "1.3", "osds": [1, 0]}],
        primary_temp=["1.4", 2],
    )
    crush = CrushMap.build(hosts=4, osds=1)

    def use(mine):
        for pool in mine.pools.values():
            if pool.pg_num <= 64:
                for place in mine.pg_table(pool.pool):
                    assert mine.pg(place.pg) == place
            mine.locate(pool.pool, "x")
        for osd in mine.osds:
            mine.without(osd=osd).reweight(osd, 0.5).affinity(osd, 0.5)

    return sort_out(lambda: OSDMap.from_json(damaged(rng, whole), crush=crush), use, enough)


def test_damaged_dumps_are_refused_or_work():
    refused, usable = fuzz(20_161, lambda count: count >= 400)
    assert refused > 100
    assert usable > 15


@pytest.mark.soak
def test_damaged_dumps_for_a_while(log_soak):
    seed = random.SystemRandom().randrange(1 << 30)
    end = time.monotonic() + float(os.environ.get("VMLIB_FUZZ_SECONDS", 600))
    refused, usable = fuzz(seed, lambda count: time.monotonic() > end)
    log_soak("damaged OSD maps", seed, refused + usable)
