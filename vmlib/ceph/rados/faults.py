"""Random trouble, seeded: what happens to a cluster, when, and for how long.

Every fault ends by itself, so that in the end all that was acknowledged must be readable again:
crash and restart (the journal stays, memory does not), a node or a link cut off, a slow disk, a
monitor lost, a slow wire, power lost for all OSDs at once, and "echo": clients' messages that
arrive a second time. "backend" cuts an OSD off from other OSDs and the monitors while clients
still reach it, with their old maps: the case that leases are for.

Left out: disks that are lost for good or lie, clocks that drift, operators' commands.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from vmlib.ceph.rados.cluster import Cluster
from vmlib.ceph.rados.monitor import Monitor
from vmlib.ceph.rados.osd import Osd
from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.numbers import decimal, whole

KINDS = (
    "crash",
    "power",
    "backend",
    "node",
    "link",
    "slow disk",
    "monitor",
    "slow wire",
    "echo",
)
MOST_FAULTS = 10_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One piece of trouble: from `start` (s) on, for `length` seconds."""

    kind: str
    start: float
    length: float
    target: int
    other: int = 0
    """The far end of a link."""

    def __post_init__(self) -> None:
        decimal(self.start, "fault.start", 0, inf)
        decimal(self.length, "fault.length", 0, inf)
        whole(self.target, "fault.target", 0)
        whole(self.other, "fault.other", 0)

    def __str__(self) -> str:
        return f"{self.start:.1f}+{self.length:.1f} s: {self.kind} {self.target}/{self.other}"


@names_bad_input
def random_faults(
    seed: int,
    cluster: Cluster,
    *,
    until: float,
    count: int = 6,
    kinds: Sequence[str] = KINDS,
) -> list[Fault]:
    """Return `count` faults between now and `until` (s), all over by then."""
    draw = random.Random(whole(seed, "seed"))
    now = cluster.engine.now
    decimal(until, "until", now, inf)
    whole(count, "count", 0, MOST_FAULTS)
    if not set(kinds) or not set(kinds) <= set(KINDS):
        raise BadInput("kinds", f"must be some of {', '.join(KINDS)}")
    faults = []
    for _ in range(count):
        kind = draw.choice(kinds)
        start = draw.uniform(now, now + 0.8 * (until - now))
        length = min(draw.choice((0.3, 2.0, 8.0, 20.0)) * draw.uniform(0.5, 1.5), until - start)
        among = len(cluster.monitors if kind == "monitor" else cluster.osds)
        target = draw.randrange(among)
        faults.append(Fault(kind, start, length, target, draw.randrange(len(cluster.osds))))
    return sorted(faults, key=lambda fault: fault.start)


@names_bad_input
def inject(cluster: Cluster, faults: Sequence[Fault]) -> None:
    """Let these faults happen to the cluster when their time comes."""
    crashed: dict[str, int] = {}
    for fault in faults:
        if fault.kind not in KINDS:
            raise BadInput("fault.kind", f"{fault.kind!r} is unknown")
        if fault.start < cluster.engine.now:
            raise BadInput("fault.start", f"{fault} is in the past: it is {cluster.engine.now:g} s")
        begin, end = _actions(cluster, fault, crashed)
        cluster.engine.at(fault.start - cluster.engine.now, begin)
        cluster.engine.at(fault.start + fault.length - cluster.engine.now, end)


def _actions(
    cluster: Cluster, fault: Fault, crashed: dict[str, int]
) -> tuple[Callable[[], None], Callable[[], None]]:
    osd = cluster.osds[fault.target % len(cluster.osds)]
    if fault.kind in ("crash", "monitor", "power"):
        nodes: Sequence[Osd | Monitor] = [osd]
        if fault.kind == "monitor":
            nodes = [cluster.monitors[fault.target % len(cluster.monitors)]]
        elif fault.kind == "power":
            nodes = cluster.osds

        def down() -> None:
            for node in nodes:
                crashed[node.name] = crashed.get(node.name, 0) + 1
                if node.alive:
                    node.crash()

        def up() -> None:
            for node in nodes:
                crashed[node.name] -= 1
                if not crashed[node.name]:
                    node.start()

        return down, up
    if fault.kind == "slow disk":

        def slow() -> None:
            osd.store.slow += 40

        def normal() -> None:
            osd.store.slow -= 40

        return slow, normal
    engine = cluster.engine
    if fault.kind == "echo":

        def twice() -> None:
            engine.echo += 0.3

        def once() -> None:
            engine.echo -= 0.3

        return twice, once
    if fault.kind == "slow wire":

        def late() -> None:
            engine.jitter += 0.1

        def punctual() -> None:
            engine.jitter -= 0.1

        return late, punctual
    others = _cut_from(cluster, fault, osd.name)

    def cut() -> None:
        for other in others:
            engine.cut(osd.name, other)

    def heal() -> None:
        for other in others:
            engine.heal(osd.name, other)

    return cut, heal


def _cut_from(cluster: Cluster, fault: Fault, name: str) -> list[str]:
    osds = [osd.name for osd in cluster.osds if osd.name != name]
    monitors = [monitor.name for monitor in cluster.monitors]
    if fault.kind == "link":
        return [other for other in osds if other == f"osd.{fault.other}"]
    if fault.kind == "backend":
        return osds + monitors
    return osds + monitors + [client.name for client in cluster.clients]
