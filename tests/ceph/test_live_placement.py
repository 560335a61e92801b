"""Every prediction of a running cluster's placement: what `ceph osd map` answers.

Three OSDs run, and six more exist in its map, so that rules have something to choose from. Each
step changes the cluster and our map alike; then all groups of all pools, and many objects, have
to be at the same OSDs in three ways: our map changed by our methods, our map read anew, and the
cluster's own answer.
"""

import base64
import random
from dataclasses import replace

import pytest
from crush_maps import version
from live_cluster import NEEDS, LiveCluster
from osd_maps import groups, ours

from vmlib.ceph import rbd_objects
from vmlib.ceph.pools import HASHPSPOOL

pytestmark = pytest.mark.needs(*NEEDS)

COVERS = [
    f"vmlib/ceph/{name}.py"
    for name in (
        "object_hash",
        "pools",
        "upmap",
        "placement",
        "osdmap",
        "read_osdmap",
        "rbd",
    )
]
NAMES = [("", "a"), ("", "rbd_directory"), ("", "对象"), ("tenant", "a"), ("空间", "b" * 37)]
PIECES = 24


@pytest.fixture(scope="module")
def cluster():
    with LiveCluster(3) as running:
        running.mon("osd set-require-min-compat-client", version="luminous")
        for name, size, groups_, pgp in (("meta", 2, 24, 12), ("data", 3, 32, 32)):
            running.mon("osd pool create", pool=name, pg_num=groups_, pgp_num=pgp, size=size)
        profile = ["k=2", "m=1", "crush-failure-domain=host"]
        running.mon("osd erasure-code-profile set", name="k2m1", profile=profile)
        coded = {"pool_type": "erasure", "erasure_code_profile": "k2m1"}
        running.mon("osd pool create", pool="coded", pg_num=16, pgp_num=16, **coded)
        yield running


SHAPE = ("order", "stripe_unit", "stripe_count")
IMAGES = {
    "plain": {},
    "small-objects": {"order": 16},
    "striped": {
        "order": 20,
        "features": ["striping"],
        "stripe_unit": 1 << 16,
        "stripe_count": 3,
    },
    "one-unit": {
        "order": 18,
        "features": ["striping"],
        "stripe_unit": 1 << 18,
        "stripe_count": 5,
    },
    "elsewhere": {"features": ["data-pool"], "data_pool": "data"},
    "mapped": {"features": ["exclusive-lock", "object-map"]},
}


def test_every_byte_of_an_image_is_where_we_say(cluster, check):
    rng = random.Random(3)
    size = (6 << 20) + 4096 * 5
    with check(
        "ceph/live-rbd",
        what="object, offset and content of random pieces of images, striped in six ways",
        tool="librbd and librados of a running cluster",
        tool_version=version(),
        covers=["vmlib/ceph/rbd.py"],
    ) as done:
        for name, how in IMAGES.items():
            real = cluster.image("meta", name, size, **how)
            shape = {
                key: how[key] for key in ("order", "stripe_unit", "stripe_count") if key in how
            }
            image = rbd_objects(real["prefix"], size, **shape)
            own = cluster.osdmap()[0].pool("meta").pool if "data_pool" in how else None
            done.case(rbd_objects(real["id"], size, pool=own).prefix, real["prefix"], name)
            pieces = []
            for _ in range(PIECES):
                length = rng.choice((1, 512, 4096, 70_000, 1 << 20))
                pieces.append((rng.randrange(size - length), rng.randbytes(length)))
            pieces.append((size - 1, b"!"))
            kept = bytearray(size)  # pieces may overlap; the last one stays
            for offset, data in pieces:
                kept[offset : offset + len(data)] = data
            coded = [[offset, base64.b64encode(data).decode()] for offset, data in pieces]
            cluster.do("write", pool="meta", name=name, pieces=coded)
            where = how.get("data_pool", "meta")
            written = {
                extent.name for offset, data in pieces for extent in image.at(offset, len(data))
            }
            names = {key for _, key in cluster.do("names", pool=where)}
            data_names = {key for key in names if key.startswith(real["prefix"] + ".")}
            done.case(sorted(written), sorted(data_names), f"{name}: objects")
            heads = {image.header, f"rbd_id.{name}", "rbd_directory"}
            heads |= {image.object_map} if "object-map" in how.get("features", ()) else set()
            assert heads <= {key for _, key in cluster.do("names", pool="meta")}
            for offset, data in pieces:
                for part in image.at(offset, len(data)):
                    asked = {"name": part.name, "offset": part.offset, "length": part.length}
                    got = base64.b64decode(cluster.do("get", pool=where, **asked))
                    mine = bytes(kept[part.image_offset : part.image_offset + part.length])
                    done.case(mine, got, f"{name}: {part}")


def old_kind(pool):
    """The pool without `hashpspool`: its id is added to a group's number, not hashed with it."""
    return replace(pool, flags=pool.flags & ~HASHPSPOOL)


def steps(cluster):
    """Yield (what, change of the cluster, the same change of our map)."""
    mon = cluster.mon

    def more_osds():
        for osd in range(3, 9):
            mon("osd new", uuid=f"00000000-0000-4000-8000-00000000000{osd}", id=osd)
            cluster.place(osd, 0.5 + osd / 4, host=osd // 2)
            mon("osd in", ids=[str(osd)])

    def far(pgid, count=1):
        """OSDs that a group does not have."""
        place = cluster.osdmap()[0].pg(pgid)
        return [osd for osd in range(9) if osd not in place.raw][:count]

    yield "at rest", lambda: None, lambda m: m
    yield "more OSDs, none of them up", more_osds, None
    mon("osd set", key="noup")
    down = lambda: mon("osd down", ids=["1"])  # noqa: E731
    yield "one down", down, lambda m: m.mark(1, up=False)
    yield "and out", lambda: mon("osd out", ids=["1"]), lambda m: m.without(osd=1)
    yield "one more out", lambda: mon("osd out", ids=["7"]), lambda m: m.mark(7, in_=False)
    yield "in again", lambda: mon("osd in", ids=["1"]), lambda m: m.mark(1, in_=True)
    yield (
        "reweighted",
        lambda: [mon("osd reweight", id=osd, weight=w) for osd, w in ((2, 0.3), (6, 0.75))],
        lambda m: m.reweight(2, 0.3).reweight(6, 0.75),
    )
    mon("osd unset", key="noup")
    cluster.until(lambda: sum(osd["up"] for osd in cluster.dump()["osds"]) == 3)
    yield (
        "primary affinity",
        lambda: [mon("osd primary-affinity", id=osd, weight=w) for osd, w in ((0, 0.4), (2, 0.0))],
        lambda m: m.affinity(0, 0.4).affinity(2, 0),
    )
    (away,) = far("2.3")
    one = cluster.osdmap()[0].pg("2.3").raw[0]
    yield (
        "an exchange",
        lambda: mon("osd pg-upmap-items", pgid="2.3", id=[one, away]),
        lambda m: m.upmap_items("2.3", [(one, away)]),
    )
    whole = [0, 1, 2]
    yield (
        "a set that is given",
        lambda: mon("osd pg-upmap", pgid="2.5", id=whole),
        lambda m: m.upmap("2.5", whole),
    )
    shards = cluster.osdmap()[0].pg("3.2").raw
    (spare,) = far("3.2")
    yield (
        "a shard exchanged",
        lambda: mon("osd pg-upmap-items", pgid="3.2", id=[shards[1], spare]),
        lambda m: m.upmap_items("3.2", [(shards[1], spare)]),
    )
    yield (
        "its target out",
        lambda: mon("osd out", ids=[str(spare)]),
        lambda m: m.mark(spare, in_=False),
    )
    yield (
        "another acting set",
        lambda: mon("osd pg-temp", pgid="2.8", id=[8, 0, 2]),
        lambda m: m.temp("2.8", [8, 0, 2]),
    )
    yield (
        "another acting primary",
        lambda: mon("osd primary-temp", pgid="2.9", id=2),
        lambda m: m.temp("2.9", primary=2),
    )
    mon("osd pg-temp", pgid="2.8")
    mon("osd primary-temp", pgid="2.9", id=-1)
    yield (
        "a weight-set for all",
        lambda: [
            mon("osd crush weight-set create-compat"),
            mon("osd crush weight-set reweight-compat", item="osd.4", weight=[0.25]),
            mon("osd crush weight-set reweight-compat", item="osd.0", weight=[2.5]),
        ],
        None,
    )
    yield (
        "a weight-set for one pool, by position",
        lambda: [
            mon("osd crush weight-set create", pool="data", mode="positional"),
            mon("osd crush weight-set reweight", pool="data", item="osd.5", weight=[0.1, 3, 1.5]),
        ],
        None,
    )
    yield (
        "a device class",
        lambda: [
            mon("osd crush set-device-class", **{"class": "ssd", "ids": ["0", "4", "6", "8"]}),
            mon("osd crush rule create-replicated", name="fast", root="default", type="host",
                **{"class": "ssd"}),
            mon("osd pool set", pool="meta", var="crush_rule", val="fast"),
        ],
        None,
    )  # fmt: skip
    sure = {"yes_i_really_mean_it": True}
    yield (
        "a pool as they were made before 2013",
        lambda: mon("osd pool set", pool="data", var="hashpspool", val="false", **sure),
        lambda m: replace(m, pools={**m.pools, m.pool("data").pool: old_kind(m.pool("data"))}),
    )
    mon("osd out", ids=["8"])
    yield "an OSD that is gone", lambda: mon("osd rm", ids=["8"]), None


def test_every_prediction_is_what_ceph_osd_map_answers(cluster, check):
    names = list(NAMES)
    for name in ("first", "second"):
        image = rbd_objects(cluster.image("meta", name, 1 << 30)["id"], 1 << 30)
        names += [("", image.name(number)) for number in range(0, image.count, 37)]
    with check(
        "ceph/live-placement",
        what="OSDs of every placement group, of objects and of images, in 19 states of a cluster",
        tool="ceph osd map and osdmaptool on a running cluster",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        states = 0
        for what, change, same_change in steps(cluster):
            before = cluster.osdmap()[0]
            change()
            predicted = same_change(before) if same_change else None
            now, real, objects = answers(cluster, names)
            for pool in now.pools:
                wanted = predicted.pg_table(pool) if predicted else now.pg_table(pool)
                for place, guess in zip(now.pg_table(pool), wanted, strict=True):
                    name = f"{what}: {place.pgid}"
                    done.case(ours(place), real.pop(place.pgid), name)
                    if predicted:  # pg_temp is the cluster's own affair
                        done.case((guess.raw, guess.up, guess.up_primary), ours(place)[:3], name)
            assert not real
            for (pool, namespace, name), theirs in objects.items():
                place = now.locate(pool, name, namespace)
                mine = {
                    "raw_pgid": f"{place.pg[0]}.{place.hash:x}",
                    "pgid": place.pgid,
                    "up": list(place.up),
                    "up_primary": place.up_primary,
                    "acting": list(place.acting),
                    "acting_primary": place.acting_primary,
                }
                done.case(mine, {key: theirs[key] for key in mine}, f"{what}: {name}")
            states += 1
        assert states == 19


def answers(cluster, names):
    """Return our map, the groups and the objects as the cluster has them, all of one epoch."""
    while True:
        now, binary = cluster.osdmap()
        objects = {
            (pool.pool_name, namespace, name): cluster.mon(
                "osd map", pool=pool.pool_name, object=name, nspace=namespace
            )
            for pool in now.pools.values()
            for namespace, name in names
        }
        if all(one["epoch"] == now.epoch for one in objects.values()):
            return now, groups(binary), objects
