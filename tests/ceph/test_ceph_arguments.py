"""Whatever is given in the place of an argument: an error of vmlib's or an answer, and soon."""

import math
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from vmlib import ceph
from vmlib.ceph import (
    Bucket,
    BucketArgs,
    CrushMap,
    Device,
    Osd,
    OSDMap,
    Pool,
    RbdObjects,
    Rule,
    Step,
    Tunables,
    rados,
    rbd_objects,
    rbd_problem,
    straw_problem,
)
from vmlib.errors import BadInput, VmlibError

ODD = (
    None, True, -1, 0, 1 << 70, 1.5, math.nan, math.inf, "", "x", "\0", "\udc80", b"", [], {}, [1],
    [None], (1, 2), object(), np.array([1.5]), np.int64(-1), np.int64(1), lambda: 1,
)  # fmt: skip
SECONDS = 5


class TooLong(BaseException):
    """No `Exception`: nobody on the way may take it for one."""


@contextmanager
def time_limit():
    def over(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


CRUSH = CrushMap.build(racks=2, hosts=2, osds=2)
CLUSTER = OSDMap.build(CrushMap.build(hosts=4, osds=2), [Pool(1, "data")])
STEPS = (Step("take", -1), Step("choose_firstn", 0, 0), Step("emit"))
FACTS = {
    "devices": {0: Device(0, "osd.0")},
    "types": {0: "osd", 1: "root"},
    "buckets": {-1: Bucket(-1, "root", 1, "straw2", (0,), (65536,))},
    "rules": {0: Rule(0, "r", 1, STEPS)},
    "tunables": Tunables(),
    "choose_args": {0: {-1: BucketArgs(((65536,),), (0,))}},
}


def fields(fact):
    return {name: getattr(fact, name) for name in fact.__dataclass_fields__}


def use_map(**facts):
    crush = CrushMap(**{**FACTS, **facts})
    crush.map(0, 1, 2, None, "auto")
    crush.map_many(0, [1], 2, None, "auto")
    crush.explain(0, 1, 2, None, "auto")
    crush.to_json()
    crush.to_text()


def in_table(name, number, kind):
    """Return a call that puts one fact into one of the map's tables, and uses the map."""
    return lambda **of: use_map(**{name: {number: kind(**of)}})


def use_step(**of):
    use_map(rules={0: Rule(0, "r", 1, (STEPS[0], Step(**of), STEPS[2]))})


def use_cluster(cluster):
    cluster.locate("data", "x")
    cluster.pg_table("data")
    cluster.pg("1.0")
    cluster.without(0)


def use_image(image):
    return image.count, image.header, image.object_map, image.at(0), next(image.names())


MAP = {"rule": 0, "x": 1, "n": 2, "weights": None, "choose_args": None}
CALLS = {
    "CrushMap": (use_map, FACTS),
    "CrushMap devices": (lambda one: use_map(devices={0: one}), {"one": Device(0, "osd.0")}),
    "CrushMap rules": (lambda one: use_map(rules={0: one}), {"one": FACTS["rules"][0]}),
    "CrushMap steps": (lambda one: use_map(rules={0: Rule(0, "r", 1, (one,))}), {"one": STEPS[2]}),
    "CrushMap buckets": (lambda one: use_map(buckets={-1: one}), {"one": FACTS["buckets"][-1]}),
    "CrushMap types": (lambda one: use_map(types={0: "osd", 1: one}), {"one": "root"}),
    "CrushMap args": (lambda one: use_map(choose_args={0: {-1: one}}), {"one": BucketArgs()}),
    "Device": (in_table("devices", 0, Device), fields(FACTS["devices"][0])),
    "Bucket": (in_table("buckets", -1, Bucket), fields(FACTS["buckets"][-1])),
    "Rule": (in_table("rules", 0, Rule), fields(FACTS["rules"][0])),
    "Step take": (
        lambda **of: use_map(rules={0: Rule(0, "r", 1, (Step(**of), *STEPS[1:]))}),
        fields(STEPS[0]),
    ),
    "Step choose": (use_step, fields(STEPS[1])),
    "Tunables": (lambda **of: use_map(tunables=Tunables(**of)), fields(Tunables())),
    "BucketArgs": (
        lambda **of: use_map(choose_args={0: {-1: BucketArgs(**of)}}),
        fields(FACTS["choose_args"][0][-1]),
    ),
    "CrushMap.load": (lambda path: path and CrushMap.load(path), {"path": None}),
    "CrushMap.from_json": (lambda data: data and CrushMap.from_json(data), {"data": None}),
    "CrushMap.from_text": (CrushMap.from_text, {"text": CRUSH.to_text()}),
    "CrushMap.build": (
        CrushMap.build,
        {"racks": 0, "hosts": 1, "osds": 1, "weight": 1, "alg": "straw2", "tunables": "jewel"},
    ),
    "CrushMap.map": (CRUSH.map, MAP),
    "CrushMap.explain": (CRUSH.explain, MAP),
    "CrushMap.map_many": (
        lambda x, **more: CRUSH.map_many(xs=x, **more),
        {**MAP, "x": [1, 2], "engine": "numpy"},
    ),
    "CrushMap.compare": (
        CRUSH.compare,
        {"other": CRUSH, "rule": 0, "n": 2, "xs": [1], "weights": None},
    ),
    "CrushMap.rule": (CRUSH.rule, {"rule": 0}),
    "CrushMap.name_of": (CRUSH.name_of, {"item": 0}),
    "CrushMap.args": (CRUSH.args, {"key": None}),
    "weights": (lambda one: CRUSH.map_many(0, [1], 2, {0: one}), {"one": 0}),
    "xs": (lambda one: CRUSH.map_many(0, [one], 2), {"one": 0}),
    "crush_hash": (lambda a, b: ceph.crush_hash(a, b), {"a": 1, "b": 2}),
    "hash_many": (lambda a, b: ceph.hash_many(a, b), {"a": [1, 2], "b": 2}),
    "crush_ln": (ceph.crush_ln, {"u": 1}),
    "object_hash": (ceph.object_hash, {"name": "x", "namespace": ""}),
    "stable_mod": (ceph.stable_mod, {"value": 1, "count": 3}),
    "device_counts": (
        ceph.device_counts,
        {"xs": [1], "crush": CRUSH, "rule": 0, "n": 2, "weights": None},
    ),
    "for_browser": (ceph.for_browser, {"crush": CRUSH, "rule": 0, "n": 2, "inputs": 10}),
    "histogram": (ceph.histogram, {"trace": CRUSH.explain(0, 1, 2)}),
    "movement_by_algorithm": (ceph.movement_by_algorithm, {"items": 3, "inputs": 5}),
    "movement_by_level": (ceph.movement_by_level, {"inputs": 5}),
    "utilisation": (ceph.utilisation, {"inputs": 5, "n": 2}),
    "pieces": (ceph.pieces, {"count": 10, "size": 3}),
    "reweighted": (ceph.reweighted, {"crush": CRUSH, "item": 0, "weight": 1.0}),
    "removed": (ceph.removed, {"crush": CRUSH, "item": 0}),
    "moves": (ceph.moves, {"before": CLUSTER, "after": CLUSTER.without(0), "pool": "data"}),
    "straw_problem": (straw_problem, {"seed": 1}),
    "straw_problem.mark": (straw_problem(1).mark, {"winner": 1, "then": 1}),
    "rbd_problem": (rbd_problem, {"seed": 1}),
    "rbd_problem.mark": (rbd_problem(1).mark, {"number": 1, "offset": 1}),
    "rbd_objects": (
        lambda **of: use_image(rbd_objects(**of)),
        {"prefix": "a", "size": "1G", "order": 22, "stripe_unit": None, "stripe_count": 1,
         "pool": None},
    ),
    "RbdObjects": (lambda **of: use_image(RbdObjects(**of)), fields(rbd_objects("a", "1G"))),
    "RbdObjects.at": (rbd_objects("a", "1G").at, {"offset": 0, "length": 1}),
    "RbdObjects.name": (rbd_objects("a", "1G").name, {"number": 0}),
    "OSDMap": (lambda **of: use_cluster(OSDMap(**of)), fields(CLUSTER)),
    "Osd": (lambda **of: use_cluster(OSDMap(**{**fields(CLUSTER), "osds": {0: Osd(**of)}})),
            fields(Osd(0))),
    "OSDMap osds": (lambda one: use_cluster(OSDMap(**{**fields(CLUSTER), "osds": {0: one}})),
                    {"one": Osd(0)}),
    "OSDMap pools": (lambda one: use_cluster(OSDMap(**{**fields(CLUSTER), "pools": {1: one}})),
                     {"one": Pool(1, "data")}),
    "Pool": (lambda **of: OSDMap.build(CRUSH, [Pool(**of)]).pg_table(of["pool"]),
             {**fields(Pool(1, "data")), "pg_num": 8}),
    "Pool.seed_of": (Pool(1, "data").seed_of, {"hash": 1}),
    "Pool.pps": (Pool(1, "data").pps, {"seed": 1}),
    "OSDMap.load": (lambda path, crush: path and OSDMap.load(path, crush=crush),
                    {"path": None, "crush": CRUSH}),
    "OSDMap.from_json": (
        OSDMap.from_json,
        {"data": {"epoch": 1, "max_osd": 1, "osds": [], "pools": []}, "crush": CRUSH},
    ),
    "OSDMap.build": (OSDMap.build, {"crush": CRUSH, "pools": [Pool(1, "a")], "epoch": 1}),
    "OSDMap.pool": (CLUSTER.pool, {"pool": 1}),
    "OSDMap.exists": (CLUSTER.exists, {"osd": 1}),
    "OSDMap.is_up": (CLUSTER.is_up, {"osd": 1}),
    "OSDMap.is_out": (CLUSTER.is_out, {"osd": 1}),
    "OSDMap.pg_of": (CLUSTER.pg_of, {"pool": 1, "name": "x", "namespace": ""}),
    "OSDMap.locate": (CLUSTER.locate, {"pool": 1, "name": "x", "namespace": ""}),
    "OSDMap.pg": (CLUSTER.pg, {"pgid": "1.0"}),
    "OSDMap.pg_table": (CLUSTER.pg_table, {"pool": 1}),
    "OSDMap.without": (CLUSTER.without, {"osd": 1}),
    "OSDMap.mark": (CLUSTER.mark, {"osd": 1, "up": None, "in_": None}),
    "OSDMap.reweight": (CLUSTER.reweight, {"osd": 1, "weight": 0.5}),
    "OSDMap.affinity": (CLUSTER.affinity, {"osd": 1, "affinity": 0.5}),
    "OSDMap.upmap": (CLUSTER.upmap, {"pgid": "1.0", "osds": [1, 2]}),
    "OSDMap.upmap_items": (CLUSTER.upmap_items, {"pgid": "1.0", "exchanges": [(1, 2)]}),
    "OSDMap.temp": (CLUSTER.temp, {"pgid": "1.0", "osds": [1, 2], "primary": None}),
    "OSDMap.with_crush": (CLUSTER.with_crush, {"crush": CRUSH}),
}  # fmt: skip


def fault(call, arguments):
    """Return what is wrong with how a call ends, or None."""
    try:
        with time_limit():
            call(**arguments)
    except BadInput as error:
        return None if error.field else "an error without a field"
    except VmlibError:
        return None
    except (Exception, TooLong) as error:
        return repr(error)
    return None


def small(**options):
    return rados.Cluster(1, **{"osds": 3, "monitors": 1, **options})


def use_small(**options):
    cluster = small(**options)
    cluster.write("a", b"x")
    cluster.osds[0].crash()
    cluster.run(30)
    cluster.read("a")


def of_small(name):
    """Return a call of one of a cluster's methods."""
    return lambda **given: getattr(small(), name)(**given)


def use_tier(config=None, base=("a",)):
    tier = rados.CacheTier(config, base)
    for i in range(30):
        tier.write(f"o{i}", 4096, 100.0 * i)
        tier.read("a", 10, 100.0 * i)


def use_operation(**of):
    operations = [rados.Operation(**of), OPERATION]
    return rados.linearizable(operations), rados.wrong_objects(operations)


def use_fault(**of):
    cluster = small()
    rados.inject(cluster, [rados.Fault(**of)])
    cluster.run(30)


SMALL = small()
OPERATION = rados.Operation("client.0", "a", "write", b"x", 0.0, 1.0)
CHUNKS = dict(enumerate(rados.encode(b"abcd", 2, 1)))
CALLS |= {
    "OsdConfig": (lambda **of: use_small(osd_config=rados.OsdConfig(**of)),
                  fields(rados.OsdConfig())),
    "MonConfig": (lambda **of: use_small(mon_config=rados.MonConfig(**of)),
                  fields(rados.MonConfig())),
    "rados.Pool": (lambda **of: use_small(pools=[rados.Pool(**of)]), fields(rados.Pool())),
    "rados.Pool.erasure": (rados.Pool.erasure, {"k": 2, "m": 1}),
    "Cluster": (
        lambda pools, **of: rados.Cluster(pools=pools, **of) and use_small(pools=pools),
        {"seed": 1, "osds": 3, "monitors": 1, "clients": 1, "pools": (rados.Pool(),),
         "place": None, "osd_config": None, "mon_config": None,
         "backend": rados.BLUESTORE_HDD, "policy": "default", "resend": 3.0, "settle": True},
    ),
    "Cluster.run": (of_small("run"), {"seconds": 1.0}),
    "Cluster.settle": (of_small("settle"), {"limit": 1000.0}),
    "Cluster.write": (of_small("write"), {"name": "a", "data": b"x", "offset": None, "client": 0}),
    "Cluster.read": (of_small("read"), {"name": "a", "client": 0}),
    "Cluster.placed": (SMALL.placed, {"name": "a", "pool": None}),
    "Cluster.pg_of": (SMALL.pg_of, {"name": "a", "pool": None}),
    "Cluster.primary": (SMALL.primary, {"name": "a"}),
    "Cluster.leader": (SMALL.leader, {"pg": SMALL.pg_of("a")}),
    "Cluster.set_in": (of_small("set_in"), {"osd": 0, "in_": True}),
    "Cluster.set_down": (of_small("set_down"), {"osd": 0}),
    "state": (rados.state, {"pg": SMALL.leader(SMALL.pg_of("a"))}),
    "RawPlacement": (rados.RawPlacement, {"raw": rados.rendezvous}),
    "rendezvous": (rados.rendezvous,
                   {"map": SMALL.map, "pool": rados.Pool(), "pg": SMALL.pg_of("a")}),
    "encode": (rados.encode, {"data": b"abcd", "k": 2, "m": 1}),
    "decode": (rados.decode, {"chunks": CHUNKS, "k": 2, "m": 1, "length": 4}),
    "decode a chunk": (lambda one: rados.decode({0: one, 2: one}, 2, 1, 4), {"one": b"ab"}),
    "Backend": (lambda **of: rados.write_cost(4096, rados.Backend(**of)),
                fields(rados.BLUESTORE_HDD)),
    "write_cost": (rados.write_cost, {"length": 4096, "backend": rados.BLUESTORE_HDD}),
    "amplification": (
        rados.amplification,
        {"length": 4096, "copies": 3, "k": 0, "m": 0, "backend": rados.BLUESTORE_HDD},
    ),
    "ceiling.replicated": (rados.ceiling.replicated, {"link": 1.0, "copies": 3}),
    "ceiling.cluster": (rados.ceiling.cluster, {"nodes": 3, "link": 1.0, "copies": 3}),
    "ceiling.iscsi": (rados.ceiling.iscsi, {"link": 1.0}),
    "random_faults": (
        rados.random_faults,
        {"seed": 1, "cluster": SMALL, "until": 100.0, "count": 3, "kinds": rados.KINDS},
    ),
    "Fault": (use_fault, fields(rados.Fault("crash", 20.0, 1.0, 0))),
    "inject": (rados.inject, {"cluster": SMALL, "faults": []}),
    "record_write": (rados.record_write, {"erasure": False, "kill": None, "seed": 1}),
    "Operation": (use_operation, fields(OPERATION)),
    "linearizable": (rados.linearizable, {"ops": [OPERATION]}),
    "wrong_objects": (rados.wrong_objects, {"history": [OPERATION]}),
    "write_problem": (rados.write_problem, {"seed": 1}),
    "write_problem.mark": (rados.write_problem(1).mark,
                           {"messages": 1, "wire": 1.0, "disks": 1.0}),
    "TierConfig": (lambda **of: use_tier(rados.TierConfig(**of)), fields(rados.TierConfig())),
    "CacheTier": (use_tier, {"config": None, "base": ["a"]}),
    "CacheTier.read": (lambda **of: rados.CacheTier().read(**of),
                       {"name": "a", "length": 1, "now": 1.0}),
    "CacheTier.write": (lambda **of: rados.CacheTier().write(**of),
                        {"name": "a", "length": 1, "now": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_no_argument_makes_it_fall_or_hang(name):
    call, good = CALLS[name]
    call(**good)
    faults = [
        f"{argument}={odd!r}: {found}"
        for argument in good
        for odd in ODD
        if (found := fault(call, {**good, argument: odd}))
    ]
    assert not faults, "\n".join(faults)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "absent", tmp_path, "a\0b"):
        with pytest.raises(BadInput, match="can't be read") as caught:
            CrushMap.load(path)
        assert caught.value.field == "path"
        with pytest.raises(BadInput, match="can't be read"):
            OSDMap.load(path, crush=CRUSH)


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: use_map(devices={5: Device(0, "osd.0")}), "devices[0].id"),
        (lambda: use_map(types={0: "osd", 1: None}), "types[1].name"),
        (lambda: use_map(buckets={-1: FACTS["devices"][0]}), "buckets[0]"),
        (lambda: use_map(rules={0: Rule(0, "r", 1, ("take",))}), "rules[0].steps"),
        (lambda: CLUSTER.mark(0, in_=5), "in_"),
        (lambda: CLUSTER.mark(0, up="yes"), "up"),
        (lambda: Osd(0, weight=1 << 17), "weight"),
        (lambda: OSDMap(1, CRUSH, {3: Osd(2)}, {}, 8), "osds[0].osd"),
        (lambda: OSDMap(1, CRUSH, {}, {}, 8, pg_temp={(1, 0): 3}), "pg_temp[(1, 0)]"),
        (lambda: ceph.hash_many([1, 2], [1, 2, 3]), "words"),
        (lambda: CRUSH.map_many(0, range(1 << 40), 1), "xs"),
        (lambda: CRUSH.map(0, 1, 2, {0: 1 << 32}), "weights[0]"),
        (lambda: ceph.pieces(1 << 40, 1), "size"),
        (lambda: RbdObjects("rbd_data.a", 1 << 30, 22, 3, 1), "stripe_unit"),
        (lambda: rbd_objects("a", 1 << 62).at(0, 1 << 60), "length"),
        (lambda: rados.OsdConfig(lease=0), "lease"),
        (lambda: rados.MonConfig(tick=math.nan), "tick"),
        (lambda: rados.ceiling.replicated(math.nan), "link"),
        (lambda: rados.ceiling.iscsi(-1), "link"),
        (lambda: rados.ceiling.cluster(3, "10G"), "link"),
        (lambda: rados.CacheTier().read("a", 1, math.nan), "now"),
        (lambda: rados.Fault("crash", math.nan, 1.0, 0), "fault.start"),
        (lambda: SMALL.write("a", b"x", offset=128 << 20), "offset"),
        (lambda: SMALL.write("a", bytes(1 + (128 << 20))), "data"),
        (lambda: SMALL.read("a", client=1), "client"),
        (lambda: SMALL.read("\udc80"), "name"),
    ],
)
def test_the_field_is_named(ask, field):
    with pytest.raises(BadInput) as caught:
        ask()
    assert caught.value.field.split(" (")[0] == field
