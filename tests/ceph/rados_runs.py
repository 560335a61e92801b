"""One run of a RADOS cluster under random faults, and the verdict on what its clients saw."""

import random
from dataclasses import dataclass

from linearizability import wrong_objects

from vmlib.ceph.rados import (
    KINDS,
    Cluster,
    MonConfig,
    NotDone,
    OsdConfig,
    Pool,
    inject,
    random_faults,
)

FAST = OsdConfig(tick=0.5, heartbeat=1.0, grace=4.0, lease=3.2, log_length=12, recovery_active=1)
QUICK = MonConfig(tick=0.5, lease=2.0, down_out=25.0)
TIME = 60.0
OBJECTS = ("a", "b", "c", "d")
THEMES = (
    (KINDS, 7),
    (KINDS, 14),
    (("crash", "crash", "crash", "power", "slow disk"), 14),
    (("backend", "node", "link", "slow wire"), 8),
    (("crash", "backend", "monitor", "echo", "slow disk"), 10),
)
"""Kinds of faults and how many of them: a theme for each run."""


@dataclass(frozen=True)
class Verdict:
    """`wrong`: objects whose history no register explains; `stuck`: what did not end."""

    wrong: list
    stuck: str
    operations: int
    epochs: int
    cluster: Cluster

    @property
    def good(self) -> bool:
        return not self.wrong and not self.stuck


def shape(seed):
    """Return pools and read policy of a run: all combinations turn up."""
    erasure = seed % 3 == 2
    pool = Pool.erasure(2, 2, pg_num=2) if erasure else Pool(pg_num=2)
    return pool, ("default", "balance", "localize")[seed // 3 % 3]


def run(seed):
    """Run clients and faults for a minute of the cluster's time, let it heal, read everything."""
    pool, policy = shape(seed)
    draw = random.Random(seed)
    osds = draw.choice((5, 6)) if pool.k else draw.choice((3, 4, 5))
    kinds, count = draw.choice(THEMES)
    cluster = Cluster(
        seed,
        osds=osds,
        clients=4,
        pools=[pool],
        policy=policy,
        osd_config=FAST,
        mon_config=QUICK,
        resend=1.0,
    )
    for osd in cluster.osds:
        osd.store.latency = 0.03
    end = cluster.engine.now + TIME
    inject(cluster, random_faults(seed, cluster, until=end, count=count, kinds=kinds))
    busy = [
        cluster.engine.env.process(_work(cluster, client, random.Random(f"{seed}/{i}"), end))
        for i, client in enumerate(cluster.clients)
    ]
    stuck = ""
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
    except NotDone as error:
        stuck = str(error)
    history = cluster.history()
    return Verdict(wrong_objects(history), stuck, len(history), cluster.map.epoch, cluster)


def _work(cluster, client, draw, end):
    count = 0
    writes = draw.choice((0.05, 0.5, 0.8))
    while cluster.engine.now < end:
        name = draw.choice(OBJECTS)
        if draw.random() < writes:
            count += 1
            yield from client.write(name, f"{client.name}:{count}".encode())
        else:
            yield from client.read(name)
        yield cluster.engine.env.timeout(draw.expovariate(2.0))
