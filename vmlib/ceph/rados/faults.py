"""Random trouble, seeded: what happens to a cluster, when, and for how long.

Every fault ends by itself, so that in the end all that was acknowledged must be readable again:
crash and restart (the journal stays, memory does not), a node or a link cut off, a slow disk, a
monitor lost, a slow wire, power lost for all OSDs at once, and "echo": clients' messages that
arrive a second time. "backend" cuts an OSD off from other OSDs and the monitors while clients
still reach it, with their old maps: the case that leases are for. "down" is the same with an
operator who has it marked down at once, long before its lease is over. "split" cuts a monitor off
from the other monitors while OSDs and clients still reach it. "client" kills a client in the
middle of an operation, which then may or may not happen; another life of it begins later. "out"
is an operator who wants an OSD out, and says so until it is, and then wants it in again: several
at a time replace a whole acting set.

Left out: disks that are lost for good or lie, clocks that drift, operators' other commands.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from vmlib.ceph.rados.client import Client
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
    "split",
    "client",
    "out",
    "down",
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
        target = draw.randrange(len(_targets(cluster, kind)))
        faults.append(Fault(kind, start, length, target, draw.randrange(len(cluster.osds))))
    return sorted(faults, key=lambda fault: fault.start)


def _targets(cluster: Cluster, kind: str) -> Sequence[Osd | Monitor | Client]:
    if kind in ("monitor", "split"):
        return cluster.monitors
    return cluster.clients if kind == "client" else cluster.osds


@names_bad_input
def inject(cluster: Cluster, faults: Sequence[Fault]) -> None:
    """Let these faults happen to the cluster when their time comes."""
    crashed: dict[str, int] = {}
    operator = _Operator(cluster)
    for fault in faults:
        if fault.kind not in KINDS:
            raise BadInput("fault.kind", f"{fault.kind!r} is unknown")
        if fault.start < cluster.engine.now:
            raise BadInput("fault.start", f"{fault} is in the past: it is {cluster.engine.now:g} s")
        begin, end = _actions(cluster, fault, crashed, operator)
        cluster.engine.at(fault.start - cluster.engine.now, begin)
        cluster.engine.at(fault.start + fault.length - cluster.engine.now, end)


def _actions(
    cluster: Cluster, fault: Fault, crashed: dict[str, int], operator: "_Operator"
) -> tuple[Callable[[], None], Callable[[], None]]:
    targets = _targets(cluster, fault.kind)
    target = targets[fault.target % len(targets)]
    osd = cluster.osds[fault.target % len(cluster.osds)]
    if fault.kind in ("crash", "monitor", "power", "client"):
        nodes = cluster.osds if fault.kind == "power" else [target]

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
    if fault.kind == "out":
        return (lambda: operator.wants_out(osd.id, 1)), (lambda: operator.wants_out(osd.id, -1))
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
    others = _cut_from(cluster, fault, target.name)

    def cut() -> None:
        for other in others:
            engine.cut(target.name, other)
        if fault.kind == "down":
            cluster.set_down(osd.id)

    def heal() -> None:
        for other in others:
            engine.heal(target.name, other)

    return cut, heal


def _cut_from(cluster: Cluster, fault: Fault, name: str) -> list[str]:
    osds = [osd.name for osd in cluster.osds if osd.name != name]
    monitors = [monitor.name for monitor in cluster.monitors if monitor.name != name]
    if fault.kind == "link":
        return [other for other in osds if other == f"osd.{fault.other}"]
    if fault.kind == "split":
        return monitors
    if fault.kind in ("backend", "down"):
        return osds + monitors
    return osds + monitors + [client.name for client in cluster.clients]


class _Operator:
    """Somebody who wants OSDs out or in, looks every second, and says it again where it is not so.

    A command is lost where no monitor leads, may come true late, and an OSD that boots comes in by
    itself: so the looking does not end.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._out: dict[int, int] = {}
        """By OSD, how many faults want it out."""

    def wants_out(self, osd: int, more: int) -> None:
        """Want an OSD out once more (1) or once less (-1)."""
        first = not self._out
        self._out[osd] = self._out.get(osd, 0) + more
        if first:
            self._look()

    def _look(self) -> None:
        states = self._cluster.map.osds
        for osd, wishes in self._out.items():
            in_ = not wishes
            if states[osd].in_ != in_ and states[osd].up:
                self._cluster.set_in(osd, in_)
        self._cluster.engine.at(1.0, self._look)
