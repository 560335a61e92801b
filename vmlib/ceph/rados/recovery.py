"""Recovery and backfill: what a member lacks is copied while clients go on.

Recovery follows the log: each copy knows by name which objects it lacks, and in which version. The
primary fetches what it lacks itself, then pushes to the others; an object that a client waits for
comes first. A copy whose log does not reach back far enough is backfilled: all names in order, and
those behind the cursor already take part in writes. While an object is under way writes to it
wait, so that no push can overwrite something newer.

In an erasure-coded pool an object is put together from any k chunks of its version, and the chunks
that are missing are computed again: k chunks are read for each one written.

Ceph: doc/dev/osd_internals/recovery_reservation.rst, backfill_reservation.rst, log_based_pg.rst;
`osd_recovery_max_active` (3 for hdd) is `recovery_active` here. Left out: reservations, throttling
by priority, partial recovery of an object (an object is copied whole).
"""

from collections.abc import Callable
from functools import partial

from vmlib.ceph.rados import gather
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import NONE
from vmlib.ceph.rados.erasure import decode, encode
from vmlib.ceph.rados.pg_state import PgState
from vmlib.ceph.rados.pglog import MAX_NAME, ZERO, Peer, Version, newest
from vmlib.ceph.rados.store import Stored, Transaction


def kick(pg: PgState) -> None:
    """Start as many recoveries as may run at a time; note it when nothing is left to do."""
    if not pg.active:
        return
    while len(pg.recovering) < pg.osd.config.recovery_active:
        name = _next(pg)
        if name is None:
            break
        _recover(pg, name)
    if not pg.recovering and not _lacking(pg) and not pg.unfound:
        if pg.backfill.keys() - pg.filled:
            _backfill(pg)
        else:
            _finished(pg)


def _lacking(pg: PgState) -> set[str]:
    names = set(pg.copy.meta.missing)
    for lacks in pg.missing.values():
        names.update(lacks)
    return names


def _next(pg: PgState) -> str | None:
    lacking = _lacking(pg) - pg.recovering.keys() - pg.unfound
    lacking -= pg.locks.keys() | {write.name for write in pg.in_flight.values()}
    first = [name for name in pg.wanted if name in lacking]
    return first[0] if first else min(lacking, default=None)


def want(pg: PgState, name: str) -> None:
    """A client waits for this object."""
    if name not in pg.wanted:
        pg.wanted.append(name)
    kick(pg)


def needed_version(pg: PgState, name: str) -> Version:
    """Return the version that every member should hold of an object (ZERO: none)."""
    if name in pg.copy.meta.missing:
        return pg.copy.meta.missing[name]
    entry = newest(pg.copy.meta.log.entries, name)
    return entry.version if entry else pg.copy.version_of(name)


# -- one object --------------------------------------------------------------------------------


def _recover(pg: PgState, name: str) -> None:
    """Bring one object to every member that lacks it."""
    pg.recovering[name] = set()
    if name in pg.wanted:
        pg.wanted.remove(name)
    version = needed_version(pg, name)
    targets = [peer for peer, lacks in pg.missing.items() if name in lacks]
    fetch(pg, name, version, lambda got: _fetched(pg, name, version, targets, got))


def fetch(
    pg: PgState, name: str, version: Version, then: Callable[[dict[int, Stored] | None], None]
) -> None:
    """Hand over what each shard should store of an object, from here or from others."""
    pool = pg.pool

    def read(got: dict[int, Stored] | None) -> None:
        if got is None:
            then(None)
            return
        size = sum(len(stored.data) for stored in got.values())
        pg.later(pg.osd.store.read_time(size), lambda: then(rebuilt(got)))

    def rebuilt(got: dict[int, Stored]) -> dict[int, Stored]:
        if not pool.k:
            return got
        length = next(iter(got.values())).length
        data = decode({i: chunk.data for i, chunk in got.items()}, pool.k, pool.m, length)
        chunks = encode(data, pool.k, pool.m)
        return {i: Stored(version, chunk, length) for i, chunk in enumerate(chunks)}

    gather.start(pg, name, version, pool.k or 1, read)


def _fetched(
    pg: PgState, name: str, version: Version, targets: list[Peer], got: dict[int, Stored] | None
) -> None:
    if got is None:
        pg.unfound.add(name)
        del pg.recovering[name]
        kick(pg)
        return
    waiting = pg.recovering[name]
    waiting.update(targets)
    if name in pg.copy.meta.missing:
        waiting.add(pg.me)
        missing = {n: v for n, v in pg.copy.meta.missing.items() if n != name}
        put = got[pg.shard]
        pg.commit(Transaction(pg.meta(missing), {name: put}), lambda: got_pushed(pg, pg.me, name))
    for peer in targets:
        pg.send(peer, m.Push, name, got[peer[1]], version)
    if not waiting:
        _recovered(pg, name)


def pushed_by(pg: PgState, message: m.Push) -> None:
    """A member takes an object from the primary, unless it has something newer."""
    name, put = message.name, message.put
    missing = {n: v for n, v in pg.copy.meta.missing.items() if n != name}
    puts = {} if newer_here(pg, name, message.version) or name == MAX_NAME else {name: put}
    meta = pg.meta(missing)
    if message.backfilled is not None:
        meta = pg.meta(missing, last_backfill=message.backfilled)
    pg.commit(Transaction(meta, puts), lambda: pg.send(message.source, m.Pushed, name))


def newer_here(pg: PgState, name: str, version: Version) -> bool:
    """Whether this copy holds the object in a later version than the one pushed."""
    return pg.copy.version_of(name) > version and name not in pg.copy.meta.missing


def got_pushed(pg: PgState, peer: Peer, name: str) -> None:
    """A member has the object on disk."""
    if name in pg.recovering:
        pg.missing.get(peer, {}).pop(name, None)
        pg.recovering[name].discard(peer)
        if not pg.recovering[name]:
            _recovered(pg, name)


def _recovered(pg: PgState, name: str) -> None:
    del pg.recovering[name]
    if name == MAX_NAME:
        pg.filled = {peer for peer, cursor in pg.backfill.items() if cursor == MAX_NAME}
    pg.requeue()
    kick(pg)


def new_source(pg: PgState) -> None:
    """Somebody came back who may have what nobody had."""
    pg.unfound.clear()
    kick(pg)


# -- a whole copy ------------------------------------------------------------------------------


def _backfill(pg: PgState) -> None:
    """Push the next object after the cursor of one backfill, or end it."""
    peer = min(pg.backfill.keys() - pg.filled)
    cursor = pg.backfill[peer]
    holds = pg.holds.get(peer, {})
    busy = {write.name for write in pg.in_flight.values()} | pg.locks.keys()
    for name in sorted({*pg.copy.objects, *holds}):
        if name <= cursor:
            continue
        if name in busy:
            pg.later(pg.osd.config.tick / 4, lambda: kick(pg))
            return
        version = pg.copy.version_of(name)
        if holds.get(name, ZERO) == version:
            pg.backfill[peer] = cursor = name
            continue
        pg.recovering[name] = {peer}
        pg.backfill[peer] = name  # what is made between the two from now on is sent whole
        if version == ZERO:
            _send_backfill(pg, peer, name, version, None)
        else:
            fetch(pg, name, version, partial(_backfilled, pg, peer, name, cursor))
        return
    pg.recovering[MAX_NAME] = {peer}
    _send_backfill(pg, peer, MAX_NAME, ZERO, None)


def _backfilled(
    pg: PgState, peer: Peer, name: str, before: str, got: dict[int, Stored] | None
) -> None:
    if got is None:
        del pg.recovering[name]
        pg.backfill[peer] = before
        pg.unfound.add(name)
    else:
        put = got[peer[1]]
        _send_backfill(pg, peer, name, put.version, put)


def _send_backfill(
    pg: PgState, peer: Peer, name: str, version: Version, put: Stored | None
) -> None:
    pg.backfill[peer] = name
    pg.send(peer, m.Push, name, put, version, name)


def _settled(pg: PgState) -> tuple[int, ...]:
    """Return the acting set to end with: `up`, and who serves now where `up` has nobody.

    With fewer OSDs in than the pool has copies it never is `up` alone: the PG stays remapped.
    """
    up, acting = pg.placed.up, pg.placed.acting
    if pg.pool.k:
        rest = [osd if osd not in up else NONE for osd in acting]
        return tuple(o if o != NONE else other for o, other in zip(up, rest, strict=True))
    return (*up, *(osd for osd in acting if osd not in up))[: pg.pool.size]


def _finished(pg: PgState) -> None:
    """Nothing is missing anywhere: give pg_temp back, or note that the PG is clean."""
    if pg.placed.acting != (want := _settled(pg)):
        pg.ask_acting(want)
    elif not pg.clean and pg.osd.now >= pg.prior_bound:
        pg.clean = True
        pg.record_history(pg.info.history_les, pg.osd.epoch)
