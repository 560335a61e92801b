"""Read leases: whoever may have been replaced without knowing it stops reading in time.

The primary asks every member to see a bound, and reads until the smallest bound that all have
acknowledged; replicas may read as long. After a change of members the bound of the interval before
is known to all who were in it, and where one of them is down nobody is served until it has passed
(`PG.prior_bound`, the state "wait").

Ceph: doc/dev/osd_internals/stale_read.rst. `osd_pool_default_read_lease_ratio` 0.8 times the grace.
Different here: one clock for all, so bounds are times and not durations.
"""

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.pg_state import PgState
from vmlib.ceph.rados.pglog import Peer


def readable(pg: PgState) -> bool:
    """Our lease holds, and nobody of an earlier interval can still be reading."""
    return pg.prior_bound <= pg.osd.now < pg.readable_until


def renew(pg: PgState) -> None:
    """Ask every member to let this one read a while longer, and again before that ends."""
    if not pg.active:
        return
    pg.bound = pg.osd.now + pg.osd.config.lease
    for peer in pg.acting:
        if peer != pg.me:
            pg.send(peer, m.Lease, pg.bound, pg.readable_until)
    got_ack(pg, pg.me, pg.bound)
    pg.later(pg.osd.config.lease / 2, lambda: renew(pg))


def got_ack(pg: PgState, peer: Peer, bound: float) -> None:
    """The lease is as long as the shortest bound that a member has acknowledged."""
    pg.lease_acks[peer] = bound
    until = min(pg.lease_acks.get(member, 0.0) for member in pg.acting)
    if until > pg.readable_until:
        pg.readable_until = until
        pg.requeue()
