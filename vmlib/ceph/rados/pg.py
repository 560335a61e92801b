"""One copy of a placement group on one OSD: its state, and where its messages go.

In every interval a copy is the primary, a replica (in the acting set) or a stray. What each does
stands in three modules: `peering` (until all agree on one history), `ops` (reads and writes, while
active) and `recovery` (what is missing is copied). Everything here that is not in `copy` is lost
with the interval, and with the process.

States, as `ceph pg stat` names them: peering (getinfo, getlog, getmissing, wait_up_thru,
wait_acting, activating), down, incomplete, peered (too few members for min_size), active; a replica
is "replica" once activated. Ceph: doc/dev/peering.rst, doc/dev/placement-group.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmlib.ceph.rados import gather, lease, ops, peering, recovery
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import NONE, Interval, Placed, Pool
from vmlib.ceph.rados.engine import Node
from vmlib.ceph.rados.pglog import ZERO, Peer, PgId, PgInfo, PgMeta, Version
from vmlib.ceph.rados.store import Copy, Transaction

if TYPE_CHECKING:
    from vmlib.ceph.rados.osd import Osd


class PG:
    """A copy: `shard` is its place in an erasure-coded set, -1 in a replicated pool."""

    def __init__(self, osd: Osd, id: PgId, shard: int, copy: Copy) -> None:
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
        self.in_flight: dict[Version, ops.InFlight] = {}
        self.waiting: list[tuple[Node, m.ClientOp]] = []
        self.locks: dict[str, int] = {}
        """Objects that reads or recovery hold: writes wait."""
        self.recovering: dict[str, set[Peer]] = {}
        self.unfound: set[str] = set()
        self.wanted: list[str] = []
        """Objects that clients wait for; recovered first."""
        self.gathers: dict[int, gather.Gather] = {}
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

    def start_interval(self, epoch: int, placed: Placed) -> None:
        """Begin a new interval: forget the old one, and peer or report to the new primary."""
        bound = max(self.bound, self.info.readable_until_ub)
        self.copy.meta = replace(self.copy.meta, info=replace(self.info, readable_until_ub=bound))
        self.placed, self.since, self.bound = placed, epoch, 0.0
        self._reset()
        if self.is_primary:
            peering.start(self)
        elif (
            self.osd.serving and self.primary and (self.me in self.acting or self.info != PgInfo())
        ):
            peering.notify(self, self.primary, full=False)

    def new_map(self) -> None:
        """A new epoch, the same interval."""
        if self.is_primary:
            peering.look_again(self)

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

    # -- messages ------------------------------------------------------------------------------

    def receive(self, message: m.PgMessage) -> None:
        """Take a message from another copy; one of an interval that has ended is dropped."""
        if message.epoch < self.since:
            return
        source = message.source
        match message:
            case m.Query():
                peering.notify(self, source, message.full)
            case m.Activate():
                peering.activated_by(self, message)
            case m.Notify() if self.is_primary:
                peering.got_notify(self, message)
            case m.Activated() if self.is_primary:
                peering.got_activated(self, message)
            case m.History() if source == self.primary:
                self.commit(
                    Transaction(self.meta(history_les=message.les, last_epoch_clean=message.clean))
                )
            case m.Lease() if source == self.primary:
                self.bound = max(self.bound, message.bound)
                self.readable_until = message.until
                self.send(source, m.LeaseAck, message.bound)
            case m.LeaseAck() if self.is_primary:
                lease.got_ack(self, source, message.bound)
            case m.RepOp() if source == self.primary:
                ops.replicate(self, message)
            case m.RepAck() if self.is_primary:
                ops.got_commit(self, source, message.version)
            case m.Committed() if source == self.primary:
                ops.roll_forward(self, message.version)
            case m.Fetch():
                held = self.copy.objects.get(message.name)
                self.send(source, m.Fetched, message.name, message.tid, held)
            case m.Fetched() if self.is_primary:
                gather.got(self, source, message)
            case m.Push() if source == self.primary:
                recovery.pushed_by(self, message)
            case m.Pushed() if self.is_primary:
                recovery.got_pushed(self, source, message.name)
