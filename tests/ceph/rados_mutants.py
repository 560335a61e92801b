"""Protocols that are RADOS but for one rule each: what the checker has to notice.

Each takes pytest's `monkeypatch` and breaks one rule; its docstring says what is done instead.
`MUTANTS` has each with what gives it away, and with a seed whose schedule leads to that: "wrong" is
a history that no register explains, "split" copies or monitors that disagree when all is healed,
"stuck" a cluster that does not come to rest or a client that waits for ever.

Not here, for they break nothing: a replicated pool that takes the shortest log (dear, but every
acknowledged write is in it), writes that a member takes as a stray, messages of an interval that
has ended, erasure-coded reads that do not lock, recovery of objects that are being written. In
each case another rule, or the order that a connection keeps, holds what this one holds.
"""

from dataclasses import replace

from vmlib.ceph.rados import clustermap, gather, lease, ops, osd, peering, pg, pg_state, recovery
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados import monitor as monitors
from vmlib.ceph.rados import store as store_module
from vmlib.ceph.rados.pglog import MAX_NAME, ZERO, PgLog

# -- writes and reads --------------------------------------------------------------------------


def ack_before_replicas(patch):
    """The primary's own disk is enough."""
    real = ops.order
    patch.setattr(ops, "order", lambda pg, *a: replace(real(pg, *a), waiting={pg.me}))


def ack_one_shard_short(patch):
    """An erasure-coded write is acknowledged with k-1 shards on disk."""
    real = ops.got_commit

    def got_commit(pg, peer, version):
        write = pg.in_flight.get(version)
        if pg.pool.k and write and len(pg.writers) - len(write.waiting) + 1 >= pg.pool.k - 1:
            write.waiting.intersection_update({peer})
        real(pg, peer, version)

    patch.setattr(ops, "got_commit", got_commit)


def stale_primary(patch):
    """No lease: whoever thinks that it leads serves."""
    patch.setattr(lease, "readable", lambda pg: True)


def no_peering(patch):
    """The new primary takes its own log for the right one, whatever the others have."""
    patch.setattr(peering, "find_best_info", lambda infos, *, erasure, prefer: prefer)
    patch.setattr(peering, "choose_acting", lambda pg, auth: (pg.placed.acting, []))
    patch.setattr(peering, "lost_interval", lambda pg: False)


def peering_forgets_the_past(patch):
    """A past interval of which nobody is left is taken for one that wrote nothing."""
    patch.setattr(peering, "lost_interval", lambda pg: False)


def no_rollback(patch):
    """Divergent writes stay in the objects; only the log forgets them."""
    real = peering.merge

    def merge(meta, auth, *, rollback):
        done = real(meta, auth, rollback=rollback)
        own = {entry.name for entry in done.undo}
        missing = {n: v for n, v in done.missing.items() if n not in own}
        return replace(done, undo=(), remove=(), missing=missing)

    patch.setattr(peering, "merge", merge)


def recovery_overwrites(patch):
    """Writes do not wait for recovery, and a push is stored whatever is there."""
    patch.setattr(ops, "must_wait", lambda pg, name: name in pg.copy.meta.missing)
    patch.setattr(recovery, "newer_here", lambda pg, name, version: False)


def min_size_ignored(patch):
    """Writes are taken by fewer than min_size members, and peering does not know."""
    patch.setattr(peering, "can_write", lambda pg: True)


def resends_are_new(patch):
    """A request that is sent again is done again."""
    patch.setattr(ops, "find_request", lambda pg, op: None)


def replicas_read_anything(patch):
    """A replica answers from what it has."""
    patch.setattr(ops, "stable_here", lambda pg, name: pg.state == "replica" and not pg.pool.k)


def journal_not_awaited(patch):
    """A member says that a write is on disk when it is in memory."""
    real = store_module.Store.submit

    def submit(self, key, txn, on_commit):
        self._engine.at(0, on_commit)
        real(self, key, txn, lambda: None)

    patch.setattr(store_module.Store, "submit", submit)


def own_journal_not_awaited(patch):
    """The primary acknowledges when the others have a write on disk, and its own disk may not."""
    real = ops.order

    def order(pg, *a):
        write = real(pg, *a)
        return replace(write, waiting=write.waiting - {pg.me} or write.waiting)

    patch.setattr(ops, "order", order)


def reads_before_peering(patch):
    """A primary that has not peered yet answers reads from what it has."""
    real = ops.client_op

    def client_op(pg, source, op):
        if op.data is None and not pg.pool.k and pg.state != "active":
            held = pg.copy.objects.get(op.name)
            pg.osd.send(source, m.ClientReply(op.reqid, held.data if held else None))
        else:
            real(pg, source, op)

    patch.setattr(ops, "client_op", client_op)


def reads_before_all_have_it(patch):
    """The primary answers reads with a write that is not on every disk."""
    real = ops._read

    def read(pg, source, op):
        in_flight, pg.in_flight = pg.in_flight, {}
        real(pg, source, op)
        pg.in_flight = in_flight

    patch.setattr(ops, "_read", read)


def missing_objects_served(patch):
    """The primary answers from an old version of an object that it knows it lacks."""
    real = ops._read

    def read(pg, source, op):
        if pg.pool.k or op.name not in pg.copy.meta.missing:
            real(pg, source, op)
        else:
            held = pg.copy.objects.get(op.name)
            pg.osd.send(source, m.ClientReply(op.reqid, held.data if held else None))

    patch.setattr(ops, "_read", read)


def requests_forgotten_with_the_log(patch):
    """What is cut off the log takes the ids of its requests with it."""
    real = PgLog.trim
    patch.setattr(PgLog, "trim", lambda self, to: replace(real(self, to), dups={}))


def undo_records_dropped(patch):
    """An erasure-coded write is journaled without what it takes to undo it."""
    real = ops._journal

    def journal(pg, entry, put, written, trim, forget):
        real(pg, entry, put, written, trim, entry.version)

    patch.setattr(ops, "_journal", journal)


def log_cut_before_all_have_it(patch):
    """The log is cut up to the newest entry, wherever that is on disk."""

    def trim_to(pg):
        entries = pg.copy.meta.log.entries
        return entries[-1].version if entries else ZERO

    patch.setattr(ops, "_trim_to", trim_to)


def chunks_of_any_version(patch):
    """A member hands out what it has of an object, and nobody looks which version that is."""

    def got(pg, source, message):
        work = pg.gathers.get(message.tid)
        if work is not None and source in work.asked:
            work.asked.discard(source)
            if message.held:
                work.got[source[1]] = message.held
            gather._ask_more(pg, message.tid)

    patch.setattr(gather, "got", got)
    patch.setattr(store_module.Copy, "held", lambda self, name, version: self.objects.get(name))


# -- leases ------------------------------------------------------------------------------------


def lease_without_acks(patch):
    """The primary lets itself read on without hearing from the members."""

    def got_ack(pg, peer, bound):
        if bound > pg.readable_until:
            pg.readable_until = bound
            pg.requeue()

    patch.setattr(lease, "got_ack", got_ack)


def old_lease_not_waited_for(patch):
    """A new interval serves while somebody of the one before may still read."""
    patch.setattr(lease, "readable", lambda pg: pg.osd.now < pg.readable_until)


def lease_not_remembered(patch):
    """A member does not tell the next interval how long the last one may read."""
    real = pg.PG.start_interval

    def start_interval(self, epoch, placed):
        self.bound = 0.0
        real(self, epoch, placed)

    patch.setattr(pg.PG, "start_interval", start_interval)


# -- peering -----------------------------------------------------------------------------------


def up_thru_ignored(patch):
    """A primary goes active before the monitors know it alive in its interval."""
    patch.setattr(peering, "_maybe_activate", peering.activate)


def undersized_intervals_forgotten(patch):
    """An interval with min_size members, but fewer than size, is taken for one without writes."""
    real = clustermap._maybe_went_rw

    def maybe_went_rw(end, pg, placed, first):
        members = [osd for osd in placed.acting if osd != clustermap.NONE]
        return len(members) >= end.pool(pg.pool).size and real(end, pg, placed, first)

    patch.setattr(clustermap, "_maybe_went_rw", maybe_went_rw)


def only_the_members_are_heard(patch):
    """Peering asks who is a member now, and nobody of the past."""

    def probe_set(pg):
        members = {*pg.acting, *pg.up} - {pg.me}
        return {peer for peer in members if pg.osd.map.is_up(peer[0])}

    patch.setattr(peering, "probe_set", probe_set)


def only_the_last_interval_counts(patch):
    """Peering looks one interval back."""
    real = peering.past_intervals
    patch.setattr(peering, "past_intervals", lambda *a: real(*a)[-1:])


def erasure_takes_the_longest_log(patch):
    """An erasure-coded pool takes writes for its history that too few shards have."""
    real = peering.find_best_info

    def find_best_info(infos, *, erasure, prefer):
        return real(infos, erasure=False, prefer=prefer)

    patch.setattr(peering, "find_best_info", find_best_info)


def last_epoch_started_ignored(patch):
    """The longest log counts, whether or not its owner was there when all last agreed."""
    real = peering.find_best_info

    def find_best_info(infos, *, erasure, prefer):
        infos = {p: replace(i, last_epoch_started=0, history_les=0) for p, i in infos.items()}
        return real(infos, erasure=erasure, prefer=prefer)

    patch.setattr(peering, "find_best_info", find_best_info)


def missing_not_noted(patch):
    """A member that takes a longer log does not note what it lacks by it."""
    real = peering.merge

    def merge(meta, auth, *, rollback):
        return replace(real(meta, auth, rollback=rollback), missing={})

    patch.setattr(peering, "merge", merge)


def activation_not_awaited(patch):
    """A primary serves before the members have the agreed history on disk."""
    real = peering.activate

    def activate(pg):
        real(pg)
        if pg.state == "activating":
            pg.activating = set()
            peering._activated(pg, pg.me)

    patch.setattr(peering, "activate", activate)


def earlier_life_serves(patch):
    """A process takes itself for up because an earlier life of its OSD is."""
    serving = property(lambda self: self.alive and self.map.osds[self.id].up)
    patch.setattr(osd.Osd, "serving", serving)


# -- recovery ----------------------------------------------------------------------------------


def backfill_misses_writes(patch):
    """A write does not reach a member that is being backfilled, behind the cursor either."""
    real = pg_state.PgState.send

    def send(self, peer, kind, *fields):
        if kind is m.RepOp and peer in self.backfill:
            fields = (fields[0], None, *fields[2:])
        real(self, peer, kind, *fields)

    patch.setattr(pg_state.PgState, "send", send)


def backfill_is_done_when_it_begins(patch):
    """A member that is to be backfilled says that it lacks nothing."""
    real = peering.activated_by

    def activated_by(pg, message):
        real(pg, message)
        if message.backfill:
            pg.commit(store_module.Transaction(pg.meta(last_backfill=MAX_NAME)))

    patch.setattr(peering, "activated_by", activated_by)


def pushes_not_stored(patch):
    """A member takes everything that is pushed to it for older than what it has."""
    patch.setattr(recovery, "newer_here", lambda pg, name, version: True)


# -- monitors ----------------------------------------------------------------------------------


def alone(patch, method):
    """Let a method of the monitors believe that there is only one."""
    real = getattr(monitors.Monitor, method)

    def believing(self):
        count, self._count = self._count, 1
        try:
            real(self)
        finally:
            self._count = count

    patch.setattr(monitors.Monitor, method, believing)


def monitor_decides_alone(patch):
    """The leader publishes an epoch that no other monitor has accepted."""
    alone(patch, "_maybe_commit")


def monitor_leads_alone(patch):
    """A monitor leads without promises from a majority."""
    alone(patch, "_maybe_lead")


def open_proposal_dropped(patch):
    """A new leader does not finish what may have been decided under the old one."""
    real = monitors.Monitor._maybe_lead

    def maybe_lead(self):
        self._promises = {
            name: replace(last, accepted=None) for name, last in self._promises.items()
        }
        real(self)

    patch.setattr(monitors.Monitor, "_maybe_lead", maybe_lead)


MUTANTS = (
    (ack_before_replicas, "wrong", 2),
    (ack_one_shard_short, "wrong", 2),
    (own_journal_not_awaited, "stuck", 148),
    (stale_primary, "wrong", 9),
    (no_peering, "wrong", 3),
    (peering_forgets_the_past, "wrong", 15),
    (no_rollback, "wrong", 66),
    (recovery_overwrites, "split", 26),
    (min_size_ignored, "wrong", 195),
    (resends_are_new, "wrong", 0),
    (replicas_read_anything, "wrong", 3),
    (journal_not_awaited, "wrong", 4),
    (reads_before_peering, "wrong", 5),
    (reads_before_all_have_it, "wrong", 31),
    (missing_objects_served, "wrong", 6),
    (requests_forgotten_with_the_log, "wrong", 32),
    (log_cut_before_all_have_it, "stuck", 224),
    (chunks_of_any_version, "wrong", 272),
    (undo_records_dropped, "stuck", 20),
    (lease_without_acks, "wrong", 19),
    (old_lease_not_waited_for, "wrong", 9),
    (lease_not_remembered, "wrong", 9),
    (up_thru_ignored, "wrong", 15),
    (undersized_intervals_forgotten, "wrong", 15),
    (only_the_members_are_heard, "wrong", 33),
    (only_the_last_interval_counts, "wrong", 15),
    (erasure_takes_the_longest_log, "stuck", 4),
    (last_epoch_started_ignored, "wrong", 0),
    (missing_not_noted, "wrong", 3),
    (activation_not_awaited, "wrong", 516),
    (earlier_life_serves, "stuck", 14),
    (backfill_misses_writes, "wrong", 9),
    (backfill_is_done_when_it_begins, "split", 35),
    (pushes_not_stored, "split", 3),
    (monitor_decides_alone, "split", 36),
    (monitor_leads_alone, "split", 29),
    (open_proposal_dropped, "split", 93),
)
