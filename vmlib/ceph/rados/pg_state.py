"""One copy of a placement group on one OSD: what it knows, and where its messages go.

Everything here that is not in `copy` is lost with the interval, and with the process.

States, as `ceph pg stat` names them: peering (getinfo, getlog, getmissing, wait_up_thru,
wait_acting, activating), down, incomplete, peered (too few members for min_size), active; a replica
is "replica" once activated. Ceph: doc/dev/peering.rst, doc/dev/placement-group.rst.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import NONE, ClusterMap, Interval, Placed, Placement, Pool
from vmlib.ceph.rados.engine import Engine, Node
from vmlib.ceph.rados.osd_config import OsdConfig
from vmlib.ceph.rados.pglog import ZERO, Peer, PgId, PgInfo, PgMeta, Version
from vmlib.ceph.rados.store import Copy, Store, Stored, Transaction


@dataclass
class InFlight:
    """A write that not every copy has on disk yet."""

    name: str
    waiting: set[Peer]
    clients: list[tuple[Node, m.ClientOp]]


@dataclass
class Gather:
    """One such read: `got` by shard, `ask` those not asked yet, `asked` those who owe an answer."""

    name: str
    version: Version
    need: int
    ask: list[Peer]
    done: Callable[[dict[int, Stored] | None], None]
    got: dict[int, Stored] = field(default_factory=dict)
    asked: set[Peer] = field(default_factory=set)


class Home(Protocol):
    """The OSD, as its copies see it."""

    id: int
    name: str
    life: int
    tids: int
    engine: Engine
    store: Store
    place: Placement
    maps: dict[int, ClusterMap]
    epoch: int
    config: OsdConfig

    @property
    def map(self) -> ClusterMap:
        """The newest map."""

    @property
    def now(self) -> float:
        """Seconds since the start."""

    @property
    def serving(self) -> bool:
        """Whether the map says that this life of the OSD is up."""

    def send(self, target: Node, message: Any) -> None:
        """Send a message."""

    def ask_monitors(self) -> None:
        """Say now what is wanted of the monitors, and not only with the next tick."""


class PgState(ABC):
    """A copy: `shard` is its place in an erasure-coded set, -1 in a replicated pool."""

    def __init__(self, osd: Home, id: PgId, shard: int, copy: Copy) -> None:
        self.osd, self.id, self.shard, self.copy = osd, id, shard, copy
        self.me: Peer = (osd.id, shard)
        self.placed = Placed((), ())
        self.since = 0
        self.bound = 0.0
        """Nobody of this interval reads after this (s), as far as this copy knows."""
        self._reset()
        self.state = "new"

    def _reset(self) -> None:
        self.state = "stray"
        self.readable_until = 0.0
        self.committed = ZERO
        """Every copy has everything up to this version on disk."""
        self.intervals: list[Interval] = []
        self.probing: set[Peer] = set()
        self.infos: dict[Peer, PgInfo] = {}
        self.metas: dict[Peer, PgMeta] = {}
        self.auth: Peer | None = None
        self.activating: set[Peer] = set()
        self.prior_bound = 0.0
        self.lease_acks: dict[Peer, float] = {}
        self.want: tuple[int, ...] | None = None
        """The acting set that the primary asks the monitors for."""
        self.missing: dict[Peer, dict[str, Version]] = {}
        """What the other members lack."""
        self.backfill: dict[Peer, str] = {}
        """How far each backfill has come: names up to here are there or under way."""
        self.filled: set[Peer] = set()
        """Backfills that are done; their members wait for the next interval."""
        self.holds: dict[Peer, dict[str, Version]] = {}
        self.in_flight: dict[Version, InFlight] = {}
        self.waiting: list[tuple[Node, m.ClientOp]] = []
        self.locks: dict[str, int] = {}
        """Objects that reads or recovery hold: writes wait."""
        self.recovering: dict[str, set[Peer]] = {}
        self.unfound: set[str] = set()
        self.wanted: list[str] = []
        """Objects that clients wait for; recovered first."""
        self.gathers: dict[int, Gather] = {}
        self.clean = False

    # -- facts ---------------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """The pool, as of the current epoch."""
        return self.osd.map.pool(self.id.pool)

    @property
    def info(self) -> PgInfo:
        """What this copy says of itself."""
        return self.copy.meta.info

    @property
    def is_primary(self) -> bool:
        """Whether this copy leads the current interval."""
        return self.osd.serving and self.me == self.primary

    @property
    def primary(self) -> Peer | None:
        """The copy that leads the current interval."""
        return next(iter(self.acting), None)

    @property
    def acting(self) -> list[Peer]:
        """The members of the acting set, in order, holes left out."""
        return self.members(self.placed.acting)

    @property
    def up(self) -> list[Peer]:
        """The members of the up set, in order, holes left out."""
        return self.members(self.placed.up)

    def members(self, osds: tuple[int, ...]) -> list[Peer]:
        """Return the copies that a set of OSDs holds."""
        pool = self.pool
        return [(osd, pool.shard(i)) for i, osd in enumerate(osds) if osd != NONE]

    @property
    def writers(self) -> list[Peer]:
        """Everybody who takes part in a write: the acting set, and those being backfilled."""
        return [*self.acting, *self.backfill]

    @property
    def active(self) -> bool:
        """Peering is over, whether or not there are enough members for min_size."""
        return self.state in ("active", "peered")

    # -- change --------------------------------------------------------------------------------

    def commit(self, txn: Transaction, done: Callable[[], None] | None = None) -> None:
        """Change memory now, the disk soon; call back if the interval still is the same then."""
        txn.apply(self.copy)
        since = self.since

        def on_commit() -> None:
            self.osd.engine.tell("on disk", self.osd.name, self.osd.name, txn)
            if done and self.since == since:
                done()

        self.osd.store.submit((self.id, self.shard), txn, on_commit)

    def meta(self, missing: Mapping[str, Version] | None = None, **changes: Any) -> PgMeta:
        """Return the meta data with some fields of its info, or the missing set, replaced."""
        info = replace(self.info, **changes)
        now = self.copy.meta
        return PgMeta(info, now.log, now.missing if missing is None else missing)

    def send(self, peer: Peer, kind: type[Any], *fields: Any) -> None:
        """Send a message of this kind to another copy."""
        message = kind(self.id, peer[1], self.me, self.osd.epoch, *fields)
        self.osd.send(f"osd.{peer[0]}", message)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call after a delay (s), unless the interval or the process has ended by then."""
        since, life = self.since, self.osd.life

        def go() -> None:
            if self.since == since and self.osd.life == life:
                call()

        self.osd.engine.at(delay, go)

    def lock(self, name: str) -> None:
        """Hold writes to an object back."""
        self.locks[name] = self.locks.get(name, 0) + 1

    def unlock(self, name: str) -> None:
        """Let writes to an object through, if nobody else holds it."""
        self.locks[name] -= 1
        if not self.locks[name]:
            del self.locks[name]

    def ask_acting(self, want: tuple[int, ...]) -> None:
        """Ask the monitors for another acting set; the OSD repeats it until the map has it."""
        self.want = () if want == self.placed.up else want
        self.osd.ask_monitors()

    def record_history(self, les: int, clean: int) -> None:
        """Write down, here and with every member, how far all have come together."""
        self.commit(Transaction(self.meta(history_les=les, last_epoch_clean=clean)))
        for peer in self.writers:
            if peer != self.me:
                self.send(peer, m.History, les, clean)

    @abstractmethod
    def start_interval(self, epoch: int, placed: Placed) -> None:
        """Begin a new interval: forget the old one, and peer or report to the new primary."""

    @abstractmethod
    def requeue(self) -> None:
        """Take the operations that wait once more."""

    @abstractmethod
    def recover(self) -> None:
        """Start what recovery can do now."""

    @abstractmethod
    def recover_first(self, name: str) -> None:
        """A client waits for this object: recover it first."""
