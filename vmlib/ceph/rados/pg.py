"""A copy at work: a new interval, a new map, and which message is whose.

In every interval a copy is the primary, a replica (in the acting set) or a stray. What each does
stands in three modules: `peering` (until all agree on one history), `ops` (reads and writes, while
active) and `recovery` (what is missing is copied). What they know is in `pg_state`.
"""

from dataclasses import replace

from vmlib.ceph.rados import gather, lease, ops, peering, recovery
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import Placed
from vmlib.ceph.rados.pg_state import PgState
from vmlib.ceph.rados.pglog import PgInfo
from vmlib.ceph.rados.store import Transaction


class PG(PgState):
    """A copy that acts."""

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

    def requeue(self) -> None:
        """Take the operations that wait once more."""
        ops.requeue(self)

    def recover(self) -> None:
        """Start what recovery can do now."""
        recovery.kick(self)

    def recover_first(self, name: str) -> None:
        """A client waits for this object: recover it first."""
        recovery.want(self, name)

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
                held = self.copy.held(message.name, message.version)
                self.send(source, m.Fetched, message.name, message.tid, held)
            case m.Fetched() if self.is_primary:
                gather.got(self, source, message)
            case m.Push() if source == self.primary:
                recovery.pushed_by(self, message)
            case m.Pushed() if self.is_primary:
                recovery.got_pushed(self, source, message.name)
