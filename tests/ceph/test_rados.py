"""A cluster in peace and with one thing broken: what is sent, written, refused and recovered."""

import pytest
from rados_runs import disagreements

from vmlib.ceph.rados import (
    NONE,
    ClientDied,
    Cluster,
    Fault,
    NotDone,
    OsdConfig,
    Pool,
    amplification,
    decode,
    encode,
    inject,
)
from vmlib.errors import BadInput, Unsupported
from vmlib.units import MIB


def watched(cluster):
    """Return the list that all messages between clients and OSDs go into from now on."""
    seen = []

    def watch(event, source, target, message):
        kind = type(message).__name__
        if kind in ("ClientOp", "ClientReply", "RepOp", "RepAck", "Fetch", "Fetched", "Push"):
            seen.append((event, kind, source, target))

    cluster.engine.watch = watch
    return seen


def copies(cluster, name):
    """Return what each member of an object's acting set has in memory, by (OSD, shard)."""
    leader = cluster.leader(cluster.pg_of(name))
    found = {}
    for osd, shard in leader.acting:
        found[osd, shard] = cluster.osds[osd].pgs[leader.id, shard].copy.objects.get(name)
    return found


def on_disk(cluster, name):
    """Return the OSDs whose disk would give the object back after a crash."""
    pg = cluster.pg_of(name)
    return {
        osd.id
        for osd in cluster.osds
        for (id, _), copy in osd.store.mount().items()
        if id == pg and name in copy.objects
    }


# -- writes ------------------------------------------------------------------------------------


def test_one_write_is_three_and_the_ack_comes_last():
    cluster = Cluster(1, osds=4)
    cluster.write("x", b"before")
    seen = watched(cluster)
    cluster.write("x", b"hello")
    first, *replicas = (f"osd.{osd}" for osd in cluster.placed("x").acting)
    arrived = [(kind, source, target) for event, kind, source, target in seen if event == "arrived"]
    assert arrived[0] == ("ClientOp", "client.0", first)
    assert sorted(arrived[1:3]) == sorted(("RepOp", first, r) for r in replicas)
    assert sorted(arrived[3:5]) == sorted(("RepAck", r, first) for r in replicas)
    assert arrived[5:] == [("ClientReply", first, "client.0")]
    assert on_disk(cluster, "x") == set(cluster.placed("x").acting)
    assert {held.data for held in copies(cluster, "x").values()} == {b"hello"}


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_slowest_disk_sets_the_time_of_the_ack(slow):
    cluster = Cluster(1, osds=3)
    cluster.write("x", b"a")
    cluster.osds[cluster.placed("x").acting[slow]].store.latency = 2.0
    start = cluster.engine.now
    cluster.write("x", b"b")
    assert 2.0 < cluster.engine.now - start < 2.1


def test_an_object_can_be_written_in_pieces():
    cluster = Cluster(1, osds=3)
    cluster.write("x", b"middle", offset=4)
    cluster.write("x", b"end", offset=8)
    assert cluster.read("x") == b"\0\0\0\0midden"[:8] + b"end"


def test_a_request_that_comes_twice_is_done_once():
    cluster = Cluster(5, osds=3, clients=2)
    cluster.write("x", b"zero")
    cluster.engine.echo = 1.0
    version = copies(cluster, "x")
    for value in (b"one", b"two", b"three"):
        cluster.write("x", value)
    cluster.engine.echo = 0.0
    cluster.run(10)
    assert cluster.read("x", client=1) == b"three"
    head = next(iter(copies(cluster, "x").values())).version
    assert head[1] - next(iter(version.values())).version[1] == 3


# -- erasure coding ----------------------------------------------------------------------------


def test_an_erasure_coded_object_lies_in_chunks_and_any_k_give_it_back():
    cluster = Cluster(2, osds=7, pools=[Pool.erasure(4, 2)])
    data = bytes(range(256)) * 5 + b"tail"
    cluster.write("x", data)
    chunks = {shard: held.data for (_, shard), held in copies(cluster, "x").items()}
    assert sorted(chunks) == [0, 1, 2, 3, 4, 5]
    assert {len(chunk) for chunk in chunks.values()} == {321}
    assert b"".join(chunks[i] for i in range(4))[: len(data)] == data
    for lost in range(5):
        some = {i: chunk for i, chunk in chunks.items() if i not in (lost, lost + 1)}
        assert decode(some, 4, 2, len(data)) == data


def test_reading_with_chunks_missing_decodes():
    cluster = Cluster(2, osds=6, pools=[Pool.erasure(4, 2)])
    cluster.write("x", b"a long enough object" * 9)
    for osd in cluster.placed("x").acting[1:2]:  # 5 of 6 stay: min_size is k+1
        cluster.osds[osd].crash()
    cluster.run(60)
    assert NONE in cluster.placed("x").acting
    assert cluster.read("x") == b"a long enough object" * 9
    assert cluster.states()[str(cluster.pg_of("x"))] == "active+undersized+degraded"


def test_pieces_of_erasure_coded_objects_are_not_written():
    cluster = Cluster(2, osds=6, pools=[Pool.erasure(4, 2)])
    with pytest.raises(Unsupported, match="as a whole"):
        cluster.write("x", b"piece", offset=4)


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "disk", "wire"), [(Pool(), 3.0, 2.0), (Pool.erasure(4, 2), 1.5, 1.25)]
)
def test_bytes_of_large_writes(pool, disk, wire):
    """Every copy and every chunk is written once; all but the primary's go over the wire again."""
    cluster = Cluster(3, osds=7, pools=[pool])
    cluster.write("first", b"")
    before, sent = cluster.device_bytes(), dict(cluster.engine.bytes_sent)
    for i in range(4):
        cluster.write(f"big{i}", bytes(4 * MIB))
    client = 16 * MIB
    assert (cluster.device_bytes().data - before.data) / client == disk
    assert cluster.engine.bytes_sent["ClientOp"] - sent.get("ClientOp", 0) == client
    assert (cluster.engine.bytes_sent["RepOp"] - sent.get("RepOp", 0)) / client == wire


# -- reads -------------------------------------------------------------------------------------


def readers(policy, reads=60):
    cluster = Cluster(4, osds=3, policy=policy, clients=3)
    cluster.write("x", b"hot")
    cluster.run(20)
    seen = watched(cluster)
    for i in range(reads):
        assert cluster.read("x", client=i % 3) == b"hot"
    asked = [(s, t) for event, kind, s, t in seen if (event, kind) == ("arrived", "ClientOp")]
    return cluster, asked


def test_by_default_the_primary_serves_every_read():
    cluster, asked = readers("default")
    assert {target for _, target in asked} == {f"osd.{cluster.primary('x')}"}


def test_balanced_reads_go_to_all_members():
    _, asked = readers("balance")
    counts = [sum(target == f"osd.{i}" for _, target in asked) for i in range(3)]
    assert sum(counts) == 60
    assert min(counts) >= 10


def test_localised_reads_go_to_the_nearest_member():
    _, asked = readers("localize")
    assert set(asked) == {(f"client.{i}", f"osd.{i}") for i in range(3)}


@pytest.mark.parametrize("policy", ["balance", "localize"])
def test_a_replica_sends_the_reader_away_while_a_write_is_not_everywhere(policy):
    cluster = Cluster(6, osds=3, clients=3, policy=policy)
    cluster.write("x", b"old")
    cluster.run(20)
    primary, near, far = cluster.placed("x").acting
    cluster.osds[far].store.latency = 1.0
    env, seen = cluster.engine.env, watched(cluster)
    write = env.process(cluster.clients[primary].write("x", b"new"))
    cluster.run(0.1)
    assert copies(cluster, "x")[near, -1].data == b"new"  # there, and not yet acknowledged
    assert not write.processed
    cluster.clients[near].policy = "localize"
    assert cluster.read("x", client=near) == b"new"
    asked = [
        t
        for event, kind, s, t in seen
        if (event, kind, s) == ("sent", "ClientOp", f"client.{near}")
    ]
    assert asked == [f"osd.{near}", f"osd.{primary}"]
    assert write.processed  # the primary, too, answered only then


# -- failure, peering, recovery ----------------------------------------------------------------


def test_two_reporters_mark_an_osd_down_after_the_grace_and_the_clock_marks_it_out():
    cluster = Cluster(1, osds=5)
    cluster.run(30)
    start = cluster.engine.now
    cluster.osds[2].crash()
    while cluster.map.osds[2].up:
        cluster.run(0.5)
    down = cluster.engine.now - start
    assert 20.0 - 6.0 < down < 20.0 + 3.0  # the last ping was up to one interval before the crash
    while cluster.map.osds[2].in_:
        cluster.run(5)
    assert 600 <= cluster.engine.now - start - down < 615


def test_one_reporter_is_not_enough():
    cluster = Cluster(1, osds=2, pools=[Pool(size=2, min_size=1)])
    cluster.osds[1].crash()
    cluster.run(120)
    assert cluster.map.osds[1].up


def test_below_min_size_nothing_is_written_and_nothing_lost():
    cluster = Cluster(1, osds=3)
    cluster.write("x", b"kept")
    gone = cluster.placed("x").acting[1:]
    for osd in gone:
        cluster.osds[osd].crash()
    cluster.run(40)  # nobody is left to report the second: the map still has it up
    process = cluster.engine.env.process(cluster.clients[0].write("x", b"waits"))
    cluster.run(60)
    assert not process.processed
    cluster.osds[gone[0]].start()
    cluster.run(80)
    assert process.processed
    assert cluster.read("x") == b"waits"


def test_an_erasure_coded_pg_below_min_size_serves_nothing_until_others_are_filled():
    cluster = Cluster(1, osds=9, pools=[Pool.erasure(4, 2)])
    cluster.write("x", b"kept in six chunks")
    for osd in cluster.placed("x").acting[4:]:
        cluster.osds[osd].crash()
    cluster.run(60)
    assert cluster.states()[str(cluster.pg_of("x"))].startswith("peered")
    reading = cluster.engine.env.process(cluster.clients[0].read("x"))
    cluster.run(300)
    assert not reading.processed
    cluster.run(400)  # out: others take the places
    assert reading.value == b"kept in six chunks"


def test_two_members_of_which_one_saw_the_last_interval_go_on():
    """The chapter's third exercise: each member of an interval is a witness of all it wrote."""
    cluster = Cluster(1, osds=3)
    cluster.write("x", b"old")
    first, second, third = cluster.placed("x").acting
    cluster.osds[first].crash()
    cluster.run(60)
    cluster.write("x", b"new")
    for osd in (second, third):
        cluster.osds[osd].crash()
        cluster.set_down(osd)
    cluster.osds[first].start()
    cluster.osds[second].start()
    cluster.run(60)
    assert cluster.read("x") == b"new"


def test_a_lost_interval_is_waited_for():
    """Two wrote on while the third was away: alone it must not serve what it remembers."""
    cluster = Cluster(1, osds=4, pools=[Pool(size=3, min_size=1)])
    cluster.write("x", b"old")
    away, *others = cluster.placed("x").acting
    cluster.osds[away].crash()
    cluster.run(60)
    cluster.write("x", b"new")
    others = [osd.id for osd in cluster.osds if osd.id != away]
    for osd in others:
        cluster.osds[osd].crash()
    cluster.osds[away].start()
    for osd in others:  # reported down by an administrator: nobody else is there
        cluster.set_down(osd)
    cluster.run(40)
    assert cluster.states()[str(cluster.pg_of("x"))] == "down"
    for osd in others:
        cluster.osds[osd].start()
    cluster.settle()
    assert cluster.read("x") == b"new"


def test_recovery_moves_what_changed_and_nothing_else():
    cluster = Cluster(1, osds=3)
    for i in range(10):
        cluster.write(f"o{i}", bytes(1000))
    away = cluster.placed("o0").acting[1]
    cluster.osds[away].crash()
    cluster.run(60)
    for i in range(3):
        cluster.write(f"o{i}", bytes(1000))
    before = cluster.engine.bytes_sent.get("Push", 0)
    cluster.osds[away].start()
    cluster.settle()
    assert cluster.engine.bytes_sent["Push"] - before == 3 * 1000
    assert len({held.version for held in copies(cluster, "o0").values()}) == 1


@pytest.mark.parametrize("log_length", [3, 3000], ids=["backfill", "by the log"])
def test_a_new_member_gets_every_object(log_length):
    config = OsdConfig(log_length=log_length)
    cluster = Cluster(1, osds=4, pools=[Pool(pg_num=1)], osd_config=config)
    for i in range(10):
        cluster.write(f"o{i}", bytes(1000))
    outside = ({0, 1, 2, 3} - set(cluster.placed("o0").acting)).pop()
    gone = cluster.placed("o0").acting[2]
    cluster.osds[gone].crash()
    anew = []

    def watch(event, source, target, message):
        if type(message).__name__ == "Activate" and event == "arrived":
            anew.append((target, message.backfill))

    cluster.engine.watch = watch
    cluster.run(750)  # down, then out: the fourth takes its place
    assert ((f"osd.{outside}", True) in anew) is (log_length == 3)
    assert cluster.clean()
    assert outside in cluster.placed("o0").acting
    assert cluster.engine.bytes_sent["Push"] == 10 * 1000
    assert on_disk(cluster, "o9") >= set(cluster.placed("o0").acting)


@pytest.mark.parametrize("pool", [Pool(pg_num=1), Pool.erasure(2, 1)], ids=["copies", "chunks"])
def test_objects_made_while_a_backfill_runs_are_not_passed_over(pool):
    """The cursor stands at the object under way, not at the one before it."""
    cluster = Cluster(1, osds=4, pools=[pool], osd_config=OsdConfig(log_length=3))
    for i in range(8):
        cluster.write(f"o{i}", b"old")
    gone = cluster.placed("o0").acting[2]
    cluster.osds[gone].crash()
    cluster.run(60)
    for i in range(8):  # more than the log has room for
        cluster.write(f"o{i}", b"newer")
    for osd in cluster.osds:
        osd.store.latency = 0.3
    cluster.osds[gone].start()
    made = 0
    while made < 5:
        cluster.run(0.05)
        leader = cluster.leader(cluster.pg_of("o0"))
        way = min(leader.recovering, default="") if leader else ""
        if len(way) == 2:  # o3 is being read for the new member: make o2~, which is before it
            cluster.write(f"o{int(way[1]) - 1}~{made}", b"new")
            made += 1
    cluster.settle()
    assert disagreements(cluster) == []


def test_recovery_of_a_chunk_reads_k_chunks():
    cluster = Cluster(1, osds=7, pools=[Pool.erasure(4, 2)])
    for i in range(5):
        cluster.write(f"o{i}", bytes(4000))
    before = cluster.placed("o0").acting
    cluster.osds[before[3]].crash()
    cluster.run(700)
    cluster.settle()
    after, sent = cluster.placed("o0").acting, cluster.engine.bytes_sent
    assert NONE not in after
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    assert 1 <= moved <= 2
    assert sent["Push"] == moved * 5 * 1000
    assert sent["Fetched"] == 3 * 5 * 1000  # of the four chunks one is the primary's own


def test_with_fewer_osds_in_than_copies_others_stand_in():
    """CRUSH finds two OSDs where three copies are wanted: a third that has one goes on serving."""
    cluster = Cluster(1, osds=4)
    cluster.write("a", b"1")
    members = cluster.placed("a").acting
    for osd in (members[1], next(o for o in range(4) if o not in members)):
        cluster.set_in(osd, False)
    cluster.run(30)
    epoch = cluster.map.epoch
    cluster.run(60)
    assert cluster.map.epoch == epoch  # it comes to rest
    assert cluster.clean()
    placed = cluster.placed("a")
    assert (placed.up, placed.acting) == (
        (members[0], members[2]),
        (members[0], members[2], members[1]),
    )


def test_a_client_that_dies_leaves_an_operation_without_an_end():
    cluster = Cluster(1, osds=3)
    client = cluster.clients[0]
    cluster.write("a", b"0")  # it has a map now
    died = []

    def work():
        for value in (b"1", b"2"):
            try:
                yield from client.write("a", value)
            except ClientDied:
                died.append(value)

    cluster.engine.env.process(work())
    inject(cluster, [Fault("client", cluster.engine.now + 0.0001, 1.0, 0)])
    cluster.run(5)
    assert died == [b"1", b"2"]
    assert [op.end is None for op in cluster.history()] == [False, True]
    assert cluster.read("a") == b"1"  # it had been sent


def test_an_operator_has_the_last_word():
    cluster = Cluster(1, osds=4)
    now = cluster.engine.now
    inject(cluster, [Fault("out", now + 1, 10, 2), Fault("crash", now + 3, 1, 2)])
    cluster.run(10)
    assert not cluster.map.osds[2].in_  # though it came in by itself when it booted
    cluster.run(10)
    assert cluster.map.osds[2].in_


# -- monitors ----------------------------------------------------------------------------------


def test_the_leader_dies_and_another_leads():
    cluster = Cluster(1, osds=3)
    leader = next(monitor for monitor in cluster.monitors if monitor.leading)
    leader.crash()
    epoch = cluster.map.epoch
    cluster.run(15)
    cluster.set_in(2, False)
    cluster.run(2)
    assert cluster.map.epoch > epoch
    assert not cluster.map.osds[2].in_
    leader.start()
    cluster.run(15)
    assert {monitor.epoch for monitor in cluster.monitors} == {cluster.map.epoch}


def test_a_minority_of_monitors_decides_nothing():
    cluster = Cluster(1, osds=3)
    for monitor in cluster.monitors[:2]:
        monitor.crash()
    epoch = cluster.map.epoch
    cluster.osds[2].crash()
    cluster.run(120)
    assert cluster.map.epoch == epoch
    cluster.monitors[0].start()
    cluster.run(40)
    assert not cluster.map.osds[2].up


# -- the edges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: Cluster(osds=0), "osds"),
        (lambda: Cluster(osds=1.5), "osds"),
        (lambda: Cluster(clients=0), "clients"),
        (lambda: Cluster(pools=[]), "pools"),
        (lambda: Cluster(policy="nearest"), "policy"),
        (lambda: Cluster(osds=3).set_in(3, False), "osd"),
        (lambda: Cluster(osds=3).write("x", "text"), "data"),
        (lambda: Cluster(osds=3).write("x", b"a", offset=-1), "offset"),
        (lambda: Pool(size=3, min_size=4), "pool.min_size"),
        (lambda: Pool(size=6, min_size=3, k=4), "pool.min_size"),
        (lambda: Pool(pg_num=0), "pool.pg_num"),
        (lambda: inject(Cluster(osds=3), [Fault("flood", 99.0, 1.0, 0)]), "fault.kind"),
        (lambda: inject(Cluster(osds=3), [Fault("crash", 0.0, 1.0, 0)]), "fault.start"),
        (lambda: encode(b"abc", 0, 1), "k"),
        (lambda: encode(b"abc", 200, 100), "m"),
        (lambda: decode({0: b"a", 7: b"b"}, 2, 1, 2), "chunks"),
        (lambda: decode({0: b"a", 1: b"bc"}, 2, 1, 2), "chunks"),
        (lambda: amplification(4096, copies=0), "copies"),
        (lambda: amplification(4096, k=-1), "k"),
    ],
)
def test_bad_input_is_refused(ask, field):
    with pytest.raises(BadInput) as caught:
        ask()
    assert caught.value.field == field


def test_what_never_comes_is_said():
    cluster = Cluster(1, osds=3, settle=False)
    for osd in cluster.osds:
        osd.crash()
    with pytest.raises(NotDone, match="unknown"):
        cluster.settle(limit=20)
