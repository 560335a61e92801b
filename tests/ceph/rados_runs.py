"""One run of a RADOS cluster in trouble, and the verdict on what its clients and its disks show."""

import random
from dataclasses import dataclass, replace

from rados_schedules import OBJECTS, is_newer, schedule, setting

from vmlib.ceph.rados import (
    ClientDied,
    Cluster,
    MonConfig,
    NotDone,
    OsdConfig,
    decode,
    inject,
    wrong_objects,
)

FAST = OsdConfig(tick=0.5, heartbeat=1.0, recovery_active=1)
QUICK = MonConfig(tick=0.5, lease=2.0, down_out=25.0)
TIME = 60.0
RATE = 4.0


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


def generator(seed):
    """Return what a run's setting and schedule are drawn from."""
    return random.Random(f"newer/{seed}" if is_newer(seed) else seed)


def run(seed):
    """Run clients and faults for a minute of the cluster's time, let it heal, read everything."""
    draw = generator(seed)
    how = setting(seed, draw)
    cluster = Cluster(
        seed,
        osds=how.osds,
        clients=how.clients,
        pools=[how.pool],
        policy=how.policy,
        osd_config=replace(FAST, log_length=how.log_length, grace=how.grace, lease=0.8 * how.grace),
        mon_config=QUICK,
        resend=1.0,
    )
    cluster.engine.jitter = how.jitter
    for osd in cluster.osds:
        osd.store.latency = how.latency
    end = cluster.engine.now + TIME
    inject(cluster, schedule(seed, draw, cluster, end))
    step = how.clients // how.writers
    busy = [
        cluster.engine.env.process(
            _work(
                cluster, client, random.Random(f"{seed}/{i}"), how.names, end, i % step == step - 1
            )
        )
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


def _work(cluster, client, draw, names, end, writer):
    """A client with a favourite object; it writes, or it reads only."""
    count, favourite = 0, draw.choice(names)
    writes, loyal = (draw.choice((0.5, 0.9)), 0.4) if writer else (0.0, 0.9)
    while cluster.engine.now < end:
        if draw.random() < 0.04:
            favourite = draw.choice(names)
        name = favourite if draw.random() < loyal else draw.choice(names)
        try:
            if draw.random() < writes:
                count += 1
                yield from client.write(name, f"{client.name}:{count}".encode())
            else:
                yield from client.read(name)
        except ClientDied:
            yield cluster.engine.env.timeout(0.5)
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
