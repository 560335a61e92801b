"""Client operations on an active PG: the primary orders, everybody journals, then comes the ack.

A write gets the next version, goes into the primary's log and journal and to every other member at
the same time, and is acknowledged when all of them have it on disk: never earlier, also when only
min_size are left, for then there are no others. A request that comes a second time is known by its
id in the log. Reads wait for writes of the same object that are not on every disk.

A replica may serve a read (`balance`, `localize`) while its lease holds, if it lacks nothing of the
object and the last write to it is known to be everywhere; else it answers "again" (EAGAIN) and the
client asks the primary. Ceph allows this since Octopus: Linux commit 117d96a04f00 ("safe wrt.
unstable or uncommitted state"), `can_serve_replica_read`; before, such reads could be stale, and
RBD used them for snapshots alone. Erasure-coded pools are read through the primary.

Different here: the primary tells at once when a write is everywhere (`Committed`); Ceph lets that
travel with the next write. A write at an offset travels as its own bytes but is applied as a whole
object. Left out: overwrites of parts in erasure-coded pools, deletes, snapshots, watch and notify.
"""

from vmlib.ceph.rados import gather, lease
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.engine import Node
from vmlib.ceph.rados.erasure import decode, encode
from vmlib.ceph.rados.pg_state import InFlight, PgState
from vmlib.ceph.rados.pglog import ZERO, LogEntry, Peer, PgMeta, Version, newest
from vmlib.ceph.rados.store import Stored, Transaction
from vmlib.errors import Unsupported


def client_op(pg: PgState, source: Node, op: m.ClientOp) -> None:
    """Take an operation from a client, at the primary; wait with it while it cannot be done."""
    if not (pg.state == "active" and lease.readable(pg)):
        wait(pg, source, op)
    elif op.data is None:
        _read(pg, source, op)
    else:
        _write(pg, source, op)


def wait(pg: PgState, source: Node, op: m.ClientOp) -> None:
    """Keep an operation for later, once, however often it was sent."""
    if all(other.reqid != op.reqid for _, other in pg.waiting):
        pg.waiting.append((source, op))


def requeue(pg: PgState) -> None:
    """Try everything that waits again, in order."""
    waiting, pg.waiting = pg.waiting, []
    for source, op in waiting:
        client_op(pg, source, op)


# -- writes ------------------------------------------------------------------------------------


def _write(pg: PgState, source: Node, op: m.ClientOp) -> None:
    assert op.data is not None
    known = find_request(pg, op)
    if known is not None:
        if known in pg.in_flight:
            pg.in_flight[known].clients.append((source, op))
        else:
            pg.osd.send(source, m.ClientReply(op.reqid))
        return
    if must_wait(pg, op.name):
        wait(pg, source, op)
        return
    stored, written = _compose(pg, op)
    held = newest(pg.copy.meta.log.entries, op.name)
    prior = held.version if held else pg.copy.version_of(op.name)
    version = (pg.osd.epoch, pg.info.last_update[1] + 1)
    entry = LogEntry(version, op.name, prior, op.reqid)
    trim = _trim_to(pg)
    puts = _chunks(pg, Stored(version, stored, len(stored)))
    if pg.pool.k:
        written = len(puts[pg.shard].data)
    pg.in_flight[version] = order(pg, op, source)
    for peer in pg.writers:
        if peer != pg.me:
            there = peer not in pg.backfill or op.name <= pg.backfill[peer]
            put = puts[peer[1]] if there else None
            pg.send(peer, m.RepOp, entry, put, written, pg.committed, trim)
    _journal(pg, entry, puts[pg.shard], written, trim, pg.committed)


def find_request(pg: PgState, op: m.ClientOp) -> Version | None:
    """Return the version that this request already has: it was sent before."""
    return pg.copy.meta.log.find(op.reqid)


def order(pg: PgState, op: m.ClientOp, source: Node) -> InFlight:
    """Return the record of a write that every member still has to put on disk."""
    return InFlight(op.name, set(pg.writers), [(source, op)])


def must_wait(pg: PgState, name: str) -> bool:
    """Whether a write has to wait until some copy of the object is complete."""
    if name in pg.locks or name in pg.recovering:
        return True
    if name in pg.copy.meta.missing or any(name in lacks for lacks in pg.missing.values()):
        pg.recover_first(name)
        return True
    return False


def _compose(pg: PgState, op: m.ClientOp) -> tuple[bytes, int]:
    """Return the object after the write, and how many bytes of it the write touches."""
    assert op.data is not None
    if op.offset is None:
        return op.data, len(op.data)
    if pg.pool.k:
        raise Unsupported("the model overwrites objects of erasure-coded pools as a whole only")
    held = pg.copy.objects.get(op.name)
    before = held.data if held else b""
    start, end = op.offset, op.offset + len(op.data)
    return before[:start].ljust(start, b"\0") + op.data + before[end:], len(op.data)


def _chunks(pg: PgState, stored: Stored) -> dict[int, Stored]:
    """Return what each shard stores of an object."""
    pool = pg.pool
    if not pool.k:
        return {-1: stored}
    chunks = encode(stored.data, pool.k, pool.m)
    return {i: Stored(stored.version, chunk, stored.length) for i, chunk in enumerate(chunks)}


def _trim_to(pg: PgState) -> Version:
    """Return how far the log may be cut: the excess over its length that is on every disk."""
    entries = pg.copy.meta.log.entries
    excess = len(entries) - pg.osd.config.log_length
    return min(entries[excess - 1].version, pg.committed) if excess > 0 else ZERO


def _journal(
    pg: PgState, entry: LogEntry, put: Stored | None, written: int, trim: Version, forget: Version
) -> None:
    """Log and store one write; tell the primary when it is on disk."""
    log = pg.copy.meta.log.append(entry).trim(trim)
    info = pg.meta(last_update=entry.version, log_tail=log.tail).info
    puts = {} if put is None else {entry.name: put}
    undo = {}
    if pg.pool.k and put is not None:
        undo = {entry.version: (entry.name, pg.copy.objects.get(entry.name))}
    txn = Transaction(
        PgMeta(info, log, pg.copy.meta.missing), puts, undo, forget, written if put else 0
    )
    pg.commit(txn, lambda: _on_disk(pg, entry.version))


def _on_disk(pg: PgState, version: Version) -> None:
    if pg.is_primary:
        got_commit(pg, pg.me, version)
    elif pg.primary:
        pg.send(pg.primary, m.RepAck, version)


def replicate(pg: PgState, message: m.RepOp) -> None:
    """A member takes a write from the primary."""
    if pg.state != "replica":
        return
    pg.committed = max(pg.committed, message.committed)
    _journal(pg, message.entry, message.put, message.written, message.trim, message.committed)


def got_commit(pg: PgState, peer: Peer, version: Version) -> None:
    """A member has a write on disk; when all have it, the client hears of it."""
    write = pg.in_flight.get(version)
    if write is None:
        return
    write.waiting.discard(peer)
    if write.waiting:
        return
    finish(pg, version)


def finish(pg: PgState, version: Version) -> None:
    """A write is on every disk: acknowledge it and let those who waited for it go on."""
    write = pg.in_flight.pop(version)
    pg.committed = max(pg.committed, version)
    for source, op in write.clients:
        pg.osd.send(source, m.ClientReply(op.reqid))
    for peer in pg.writers:
        if peer != pg.me:
            pg.send(peer, m.Committed, pg.committed)
    roll_forward(pg, pg.committed)
    requeue(pg)


def roll_forward(pg: PgState, version: Version) -> None:
    """Everything up to this version is everywhere: it will never be undone."""
    pg.committed = max(pg.committed, version)
    for old in [v for v in pg.copy.undo if v <= pg.committed]:
        del pg.copy.undo[old]


# -- reads -------------------------------------------------------------------------------------


def _read(pg: PgState, source: Node, op: m.ClientOp) -> None:
    name = op.name
    if name in pg.copy.meta.missing:
        pg.recover_first(name)
        wait(pg, source, op)
    elif any(write.name == name for write in pg.in_flight.values()):
        wait(pg, source, op)
    elif pg.pool.k:
        _read_chunks(pg, source, op)
    else:
        held = pg.copy.objects.get(name)
        pg.osd.send(source, m.ClientReply(op.reqid, held.data if held else None))


def _read_chunks(pg: PgState, source: Node, op: m.ClientOp) -> None:
    """Read k chunks and decode; the object is locked against writes meanwhile."""
    held = pg.copy.objects.get(op.name)
    if held is None:
        pg.osd.send(source, m.ClientReply(op.reqid))
        return
    pool = pg.pool

    def done(got: dict[int, Stored] | None) -> None:
        pg.unlock(op.name)
        if got is None:  # too many members lack it still: recovery comes first
            pg.recover_first(op.name)
            wait(pg, source, op)
            return
        chunks = {shard: chunk.data for shard, chunk in got.items()}
        data = decode(chunks, pool.k, pool.m, held.length)
        pg.osd.send(source, m.ClientReply(op.reqid, data))
        requeue(pg)
        pg.recover()  # it passed this object over while it was locked

    pg.lock(op.name)
    gather.start(pg, op.name, held.version, pool.k, done)


def replica_read(pg: PgState, source: Node, op: m.ClientOp) -> None:
    """Serve a read at a member that is not the primary, or send the client to the primary."""
    if stable_here(pg, op.name):
        held = pg.copy.objects.get(op.name)
        pg.osd.send(source, m.ClientReply(op.reqid, held.data if held else None))
    else:
        pg.osd.send(source, m.ClientReply(op.reqid, again=True))


def stable_here(pg: PgState, name: str) -> bool:
    """Whether this replica may answer: lease, nothing missing, last write known everywhere."""
    if pg.state != "replica" or pg.pool.k or pg.osd.now >= pg.readable_until:
        return False
    if name in pg.copy.meta.missing or pg.info.incomplete:
        return False
    last = newest(pg.copy.meta.log.entries, name)
    return last is None or last.version <= pg.committed
