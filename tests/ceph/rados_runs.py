"""One run of a RADOS cluster in trouble, and the verdict on what its clients and its disks show.

Half of the schedules are random; the others are random within a shape that is known to hurt:
a relay, in which those who were away come back when those who were there die; a primary that is
cut off from everybody but its clients; members that come back and lack a little; power that fails
for all while disks are slow.
"""

import random
from dataclasses import dataclass, replace

from vmlib.ceph.rados import (
    KINDS,
    Cluster,
    Fault,
    MonConfig,
    NotDone,
    OsdConfig,
    Pool,
    decode,
    inject,
    random_faults,
    wrong_objects,
)

FAST = OsdConfig(tick=0.5, heartbeat=1.0, grace=4.0, lease=3.2, recovery_active=1)
QUICK = MonConfig(tick=0.5, lease=2.0, down_out=25.0)
TIME = 60.0
RATE = 4.0
OBJECTS = "abcdefgh"
THEMES = (
    (KINDS, 7),
    (KINDS, 14),
    (("crash", "crash", "crash", "power", "slow disk"), 14),
    (("backend", "node", "link", "slow wire"), 8),
    (("crash", "backend", "monitor", "echo", "slow disk"), 10),
)
"""Kinds of faults and how many of them."""


@dataclass(frozen=True)
class Verdict:
    """`wrong`: objects whose history no register explains; `stuck`: what did not end.

    `split`: what copies or monitors do not agree on after all is healed.
    """

    wrong: list
    stuck: str
    split: list
    operations: int
    cluster: Cluster

    @property
    def good(self) -> bool:
        return not (self.wrong or self.stuck or self.split)


def shape(seed):
    """Return pools and read policy of a run: all combinations turn up."""
    erasure = seed % 3 == 2
    pool = Pool.erasure(2, 2, pg_num=2) if erasure else Pool(pg_num=2)
    return pool, ("default", "balance", "localize")[seed // 3 % 3]


def relay(draw, cluster, begin, end):
    """Some OSDs die; later the others die and the first come back: who knows what was written?"""
    osds = list(range(len(cluster.osds)))
    draw.shuffle(osds)
    first = osds[: draw.randint(1, len(osds) - 1)]
    change = begin + draw.uniform(12, 25)
    faults = [Fault("crash", begin + draw.uniform(0, 3), change - begin, o) for o in first]
    for osd in osds[len(first) :]:
        faults.append(Fault("crash", change - draw.uniform(0, 2), end - change - 5, osd))
    return faults


def cut_off(draw, cluster, begin, end):
    """A primary loses everybody but its clients, and comes back; twice."""
    faults = []
    for start in (begin, begin + 28):
        osd = cluster.primary(draw.choice(OBJECTS))
        faults.append(Fault("backend", start + draw.uniform(0, 5), draw.uniform(8, 18), osd))
    return faults


def late_return(draw, cluster, begin, end):
    """A member is away for some writes and returns, again and again."""
    starts = (begin, begin + 14, begin + 28, begin + 42)
    osds = range(len(cluster.osds))
    return [Fault("crash", at, draw.uniform(0.5, 8), draw.choice(osds)) for at in starts]


def blackout(draw, cluster, begin, end):
    """The power fails for everybody while the disks are slow."""
    faults = []
    for start in (begin, begin + 20, begin + 40):
        off = start + draw.uniform(4, 10)
        faults.append(Fault("power", off, draw.uniform(0.3, 4), 0))
        for osd in draw.sample(range(len(cluster.osds)), 2):
            faults.append(Fault("slow disk", off - 3, 4, osd))
    return faults


def schedule(seed, draw, cluster, end):
    """Return the faults of a run."""
    begin = cluster.engine.now
    if draw.random() < 0.4:
        kinds, count = draw.choice(THEMES)
        return random_faults(seed, cluster, until=end, count=count, kinds=kinds)
    return draw.choice((relay, relay, cut_off, late_return, blackout))(draw, cluster, begin, end)


def run(seed):
    """Run clients and faults for a minute of the cluster's time, let it heal, read everything."""
    pool, policy = shape(seed)
    draw = random.Random(seed)
    osds = draw.choice((5, 6)) if pool.k else draw.choice((3, 4, 5))
    cluster = Cluster(
        seed,
        osds=osds,
        clients=4,
        pools=[pool],
        policy=policy,
        osd_config=replace(FAST, log_length=draw.choice((12, 200))),
        mon_config=QUICK,
        resend=1.0,
    )
    cluster.engine.jitter = draw.choice((0.001, 0.03))
    latency = draw.choice((0.03, 0.2))
    for osd in cluster.osds:
        osd.store.latency = latency
    end = cluster.engine.now + TIME
    inject(cluster, schedule(seed, draw, cluster, end))
    busy = [
        cluster.engine.env.process(_work(cluster, client, random.Random(f"{seed}/{i}"), end, i % 2))
        for i, client in enumerate(cluster.clients)
    ]
    stuck, split = "", []
    try:
        cluster.run(TIME)
        cluster.settle(limit=120)
        limit = cluster.engine.now + 60
        while not all(process.processed for process in busy):
            if cluster.engine.now > limit:
                raise NotDone("a client waits for ever")
            cluster.run(1.0)
        for name in OBJECTS:
            cluster.read(name)
        cluster.run(5.0)
        split = disagreements(cluster)
    except NotDone as error:
        stuck = str(error)
    history = cluster.history()
    return Verdict(wrong_objects(history), stuck, split, len(history), cluster)


def _work(cluster, client, draw, end, writer):
    """A client with a favourite object; half of them write."""
    count, favourite = 0, draw.choice(OBJECTS)
    writes, loyal = (draw.choice((0.5, 0.9)), 0.4) if writer else (0.0, 0.9)
    while cluster.engine.now < end:
        if draw.random() < 0.04:
            favourite = draw.choice(OBJECTS)
        name = favourite if draw.random() < loyal else draw.choice(OBJECTS)
        if draw.random() < writes:
            count += 1
            yield from client.write(name, f"{client.name}:{count}".encode())
        else:
            yield from client.read(name)
        yield cluster.engine.env.timeout(draw.expovariate(RATE))


def disagreements(cluster):
    """Scrub: every copy of a settled cluster the same, every epoch the same for all monitors."""
    found = []
    for monitor in cluster.monitors:
        if cluster.monitors[0].maps[: monitor.epoch] != monitor.maps[: cluster.monitors[0].epoch]:
            found.append(f"{monitor.name} has another history")
    for pg in cluster.map.pgs():
        leader = cluster.leader(pg)
        pool = leader.pool
        copies = [cluster.osds[osd].pgs[pg, shard].copy for osd, shard in leader.acting]
        names = {name for copy in copies for name in copy.objects}
        for name in sorted(names):
            held = [copy.objects.get(name) for copy in copies]
            if None in held or len({one.version for one in held}) > 1:
                found.append(f"{pg} {name}: {held}")
            elif not pool.k:
                found += [f"{pg} {name}: {held}"] if len({one.data for one in held}) > 1 else []
            else:
                chunks = {shard: held[i].data for i, (_, shard) in enumerate(leader.acting)}
                first = decode(dict(list(chunks.items())[: pool.k]), pool.k, pool.m, held[0].length)
                last = decode(dict(list(chunks.items())[-pool.k :]), pool.k, pool.m, held[0].length)
                found += [f"{pg} {name}: chunks differ"] if first != last else []
    return found
