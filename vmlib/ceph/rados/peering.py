"""Peering: the members of a new interval agree on one history before anybody reads or writes.

The primary asks everybody who may know something for their info (GetInfo): the members now, and
those of past intervals that may have accepted writes. It picks the authoritative log, fetches it
if it is not its own (GetLog), learns what others lack or hold (GetMissing), makes sure that the
monitors know it alive in this interval (up_thru), and activates: every member writes the history
down with a new last_epoch_started. Only then do clients get through.

If from a past interval that may have been writable too few members are left, the PG is down: it
waits rather than forgets. Where somebody of an earlier interval is down, he may not know that it
is over: operations wait until the lease of that interval has run out.

Ceph: doc/dev/peering.rst, doc/dev/osd_internals/last_epoch_started.rst and stale_read.rst
("readable_until", "Prior Intervals", PG "wait" and "laggy" states), `calc_replicated_acting`.

Left out: dead_epoch (an early way out of WAIT), removal of strays, async recovery, reservations.
A restarted OSD does not remember its lease, so it assumes one that began at its restart.
"""

from dataclasses import replace

from vmlib.ceph.rados import gather, lease, ops, recovery
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import NONE, past_intervals
from vmlib.ceph.rados.pg_state import PgState
from vmlib.ceph.rados.pglog import (
    ZERO,
    Merge,
    Peer,
    PgInfo,
    PgLog,
    PgMeta,
    find_best_info,
    merge,
    overlaps,
)
from vmlib.ceph.rados.store import Stored, Transaction


def start(pg: PgState) -> None:
    """GetInfo: ask everybody who may know something."""
    pg.state = "getinfo"
    osd = pg.osd
    since = min(pg.info.history_les, pg.info.last_epoch_clean)
    pg.intervals = past_intervals(osd.maps, osd.place, pg.id, since, pg.since)
    pg.probing = probe_set(pg)
    for peer in sorted(pg.probing):
        pg.send(peer, m.Query)
    pg.commit(Transaction(pg.copy.meta), lambda: _own_info(pg))


def probe_set(pg: PgState) -> set[Peer]:
    """Return the copies to hear: all members now or since the PG was last clean that are up."""
    members = {*pg.acting, *pg.up}
    for interval in pg.intervals:
        members.update(pg.members(interval.placed.acting))
    return {peer for peer in members if pg.osd.map.is_up(peer[0]) and peer != pg.me}


def _own_info(pg: PgState) -> None:
    if pg.state == "getinfo":
        pg.infos[pg.me] = pg.info
        _maybe_choose(pg)


def look_again(pg: PgState) -> None:
    """A new epoch in the same interval: somebody came back, or somebody asked is gone."""
    if pg.active:
        gather.give_up_on_dead(pg)
    elif pg.state in ("down", "incomplete") or (
        pg.state != "activating" and probe_set(pg) != pg.probing
    ):
        pg.start_interval(pg.since, pg.placed)
    elif pg.state == "wait_up_thru":
        _maybe_activate(pg)


def notify(pg: PgState, target: Peer, full: bool) -> None:
    """Tell the primary what this copy has, once all of that is on disk."""

    def tell() -> None:
        pg.send(target, m.Notify, pg.info, pg.copy.meta if full else None)

    pg.commit(Transaction(pg.copy.meta), tell)


def got_notify(pg: PgState, message: m.Notify) -> None:
    """A copy's info, or all of its log."""
    peer = message.source
    if message.full is not None:
        pg.metas[peer] = message.full
        if pg.state == "getlog" and peer == pg.auth:
            _take_log(pg, message.full.log)
        elif pg.state == "getmissing":
            _maybe_wait_up_thru(pg)
        elif pg.active:
            recovery.new_source(pg)
        return
    if pg.state == "getinfo" and peer in pg.probing:
        pg.infos[peer] = message.info
        _maybe_choose(pg)
    elif pg.active and pg.unfound and peer not in pg.acting:
        pg.send(peer, m.Query, True)


def _maybe_choose(pg: PgState) -> None:
    if pg.me not in pg.infos or not pg.probing <= pg.infos.keys():
        return
    if lost_interval(pg):
        pg.state = "down"
        return
    pool = pg.pool
    if any_down(pg):
        pg.prior_bound = max(info.readable_until_ub for info in pg.infos.values())
    pg.auth = find_best_info(pg.infos, erasure=bool(pool.k), prefer=pg.me)
    chosen = choose_acting(pg, pg.infos[pg.auth]) if pg.auth else None
    if chosen is None:
        pg.state = "incomplete"
        return
    want, backfill = chosen
    if want != pg.placed.acting:
        pg.state = "wait_acting"
        pg.ask_acting(want)
        return
    pg.backfill = {peer: pg.infos.get(peer, PgInfo()).last_backfill for peer in backfill}
    if pg.auth == pg.me:
        _take_log(pg, pg.copy.meta.log)
    else:
        assert pg.auth
        pg.state = "getlog"
        pg.send(pg.auth, m.Query, True)


def any_down(pg: PgState) -> bool:
    """Whether somebody of a past interval is not here to say that it has ended for him."""
    members = {p for interval in pg.intervals for p in pg.members(interval.placed.acting)}
    return any(not pg.osd.map.is_up(peer[0]) for peer in members)


def lost_interval(pg: PgState) -> bool:
    """Whether too few are left of a past interval that may have accepted writes."""
    les = max(info.history_les for info in pg.infos.values())
    need = pg.pool.k or 1
    for interval in pg.intervals:
        if interval.last >= les and interval.maybe_went_rw:
            alive = [p for p in pg.members(interval.placed.acting) if pg.osd.map.is_up(p[0])]
            if len(alive) < need:
                return True
    return False


def choose_acting(pg: PgState, auth: PgInfo) -> tuple[tuple[int, ...], list[Peer]] | None:
    """Return the acting set to serve with and the members of `up` to backfill, None if too few.

    A member whose log does not reach the authoritative one is no good for serving: somebody who
    was there before stands in for it (pg_temp) until it is filled.
    """
    pool = pg.pool

    def usable(peer: Peer) -> bool:
        info = pg.infos.get(peer)
        return info is not None and not info.incomplete and info.last_update >= auth.log_tail

    backfill = [peer for peer in pg.up if not usable(peer)]
    if pool.k:
        want = []
        for position in range(pool.size):
            here = [osds[position] for osds in (pg.placed.up, pg.placed.acting) if osds]
            others = sorted(osd for osd, shard in pg.infos if shard == position)
            can = (o for o in [*here, *others] if o not in want and usable((o, position)))
            want.append(next(can, NONE))
        if sum(osd != NONE for osd in want) < pool.k:
            return None
        return tuple(want), backfill
    assert pg.auth
    first = pg.up[0] if pg.up and usable(pg.up[0]) else pg.auth
    row = [first, *(peer for peer in pg.up if usable(peer) and peer != first)]
    for peer in [*pg.acting, *sorted(pg.infos)]:
        if len(row) < pool.size and peer not in row and usable(peer):
            row.append(peer)
    return tuple(osd for osd, _ in row), backfill


def _take_log(pg: PgState, log: PgLog) -> None:
    """The primary adopts the authoritative log, and asks the others for all of theirs."""
    apply_merge(pg, log)
    pg.state = "getmissing"
    for peer in sorted(pg.infos):
        if peer != pg.me and peer not in pg.metas:
            pg.send(peer, m.Query, True)
    _maybe_wait_up_thru(pg)


def apply_merge(pg: PgState, log: PgLog, les: int | None = None) -> Merge:
    """Make this copy agree with a log: roll divergent writes back, note what is missing."""
    done = merge(pg.copy.meta, log, rollback=bool(pg.pool.k))
    puts: dict[str, Stored | None] = dict.fromkeys(done.remove)
    missing = dict(done.missing)
    if pg.pool.k:
        for entry in done.undo:
            if entry.version in pg.copy.undo:
                puts[entry.name] = pg.copy.undo[entry.version][1]
            elif entry.prior != ZERO and entry.name <= pg.info.last_backfill:
                missing.setdefault(entry.name, entry.prior)
    info = replace(pg.info, last_update=log.head, log_tail=log.tail)
    if les is not None:
        info = replace(info, last_epoch_started=les)
    pg.commit(Transaction(PgMeta(info, log, missing), puts))
    return done


def _maybe_wait_up_thru(pg: PgState) -> None:
    if any(peer not in pg.metas for peer in pg.infos if peer != pg.me):
        return
    log = pg.copy.meta.log
    for peer in pg.writers:
        if peer != pg.me and overlaps(pg.infos[peer], log):
            pg.missing[peer] = dict(merge(pg.metas[peer], log, rollback=bool(pg.pool.k)).missing)
    pg.state = "wait_up_thru"
    _maybe_activate(pg)


def _maybe_activate(pg: PgState) -> None:
    if pg.osd.map.osds[pg.osd.id].up_thru < pg.since:
        pg.osd.ask_monitors()
        return
    activate(pg)


def activate(pg: PgState) -> None:
    """All members write the history down, with this epoch as their last_epoch_started."""
    pg.state = "activating"
    pg.activating = {pg.me, *pg.writers}
    les = max([pg.info.history_les, *(info.history_les for info in pg.infos.values())])
    clean = max([pg.info.last_epoch_clean, *(i.last_epoch_clean for i in pg.infos.values())])
    meta = pg.meta(
        last_epoch_started=pg.osd.epoch,
        history_les=les,
        last_epoch_clean=clean,
        readable_until_ub=pg.prior_bound,
    )
    pg.commit(Transaction(meta), lambda: _activated(pg, pg.me))
    pg.bound = pg.osd.now + pg.osd.config.lease
    for peer in pg.writers:
        if peer != pg.me:
            anew = peer in pg.backfill and not overlaps(pg.infos[peer], meta.log)
            if anew:
                pg.backfill[peer] = ""
            pg.send(peer, m.Activate, meta, pg.bound, anew)


def activated_by(pg: PgState, message: m.Activate) -> None:
    """A member takes the history that the primary sends."""
    auth = message.meta
    pg.bound = max(pg.bound, message.lease)
    pg.state = "replica"
    if message.backfill:
        info = replace(auth.info, last_backfill="")
        pg.commit(Transaction(PgMeta(info, auth.log, {})))
    else:
        apply_merge(pg, auth.log, auth.info.last_epoch_started)
    holds: tuple[tuple[str, tuple[int, int]], ...] = ()
    if pg.info.incomplete:
        holds = tuple(sorted((name, held.version) for name, held in pg.copy.objects.items()))
    missing = tuple(sorted(pg.copy.meta.missing.items()))
    pg.commit(
        Transaction(pg.meta(history_les=auth.info.history_les)),
        lambda: pg.send(message.source, m.Activated, missing, holds),
    )


def got_activated(pg: PgState, message: m.Activated) -> None:
    """A member has the history on disk."""
    if pg.state == "activating":
        pg.missing[message.source] = dict(message.missing)
        pg.holds[message.source] = dict(message.holds)
        _activated(pg, message.source)


def _activated(pg: PgState, peer: Peer) -> None:
    pg.activating.discard(peer)
    if pg.activating:
        return
    pg.state = "active" if can_write(pg) else "peered"
    pg.committed = pg.copy.meta.log.head
    pg.record_history(les=pg.info.last_epoch_started, clean=pg.info.last_epoch_clean)
    for other in pg.writers:
        if other != pg.me:
            pg.send(other, m.Committed, pg.committed)
    ops.roll_forward(pg, pg.committed)
    lease.renew(pg)
    if pg.prior_bound > pg.osd.now:
        pg.later(pg.prior_bound - pg.osd.now + 1e-6, lambda: _wait_over(pg))
    ops.requeue(pg)
    recovery.kick(pg)


def _wait_over(pg: PgState) -> None:
    ops.requeue(pg)
    recovery.kick(pg)


def can_write(pg: PgState) -> bool:
    """Whether there are enough members to accept client operations (min_size)."""
    return len(pg.acting) >= pg.pool.min_size
