"""No acknowledged write is lost and no read is stale, whatever breaks; and we would notice.

Each seed is one cluster, one schedule of faults and four clients. The mutants break one rule of
RADOS each, in this file only, and have to be caught among the first schedules.
"""

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rados_runs import run, shape

from vmlib.ceph import rados
from vmlib.ceph.rados import Operation, lease, linearizable, ops, peering, recovery
from vmlib.ceph.rados import store as store_module

SLICE = 40
MODEL = Path(rados.__file__).parent


def op(kind, value, start, end, client="client.0"):
    value = None if value is None else value.encode()
    return Operation(client, "x", kind, value, start, end)


@pytest.mark.parametrize(
    ("history", "right"),
    [
        ([op("read", None, 0, 1)], True),
        ([op("write", "a", 0, 1), op("read", "a", 2, 3)], True),
        ([op("write", "a", 0, 1), op("read", None, 2, 3)], False),  # lost
        ([op("write", "a", 0, None), op("read", None, 2, 3), op("read", "a", 4, 5)], True),
        ([op("write", "a", 0, None), op("read", "a", 2, 3), op("read", None, 4, 5)], False),
        ([op("write", "a", 0, 9), op("write", "b", 0, 9), op("read", "a", 1, 2)], True),
        (
            [
                op("write", "a", 0, 9),
                op("write", "b", 0, 9),
                *(op("read", v, i, i + 0.5) for i, v in enumerate("aba", start=10)),
            ],
            False,
        ),
        ([op("read", "never written", 0, 1)], False),
    ],
)
def test_the_checker(history, right):
    assert linearizable(history) is right
    assert linearizable(history[::-1]) is right


def sequential(history):
    """The slow definition: some order that respects time is a register's. For few operations."""
    from itertools import combinations, permutations

    must = [o for o in history if o.end is not None]
    may = [o for o in history if o.end is None and o.kind == "write"]
    for extra in (c for n in range(len(may) + 1) for c in combinations(may, n)):
        for order in permutations([*must, *extra]):
            late = any(
                b.end is not None and b.end < a.start
                for i, a in enumerate(order)
                for b in order[i + 1 :]
            )
            value = None
            for o in () if late else order:
                if o.kind == "read" and o.value != value:
                    break
                value = o.value
            else:
                if not late:
                    return True
    return False


def test_the_checker_equals_the_definition():
    draw = random.Random(5)
    verdicts = []
    for _ in range(400):
        history = []
        for _ in range(draw.randint(1, 5)):
            start = draw.randint(0, 6)
            end = None if draw.random() < 0.15 else start + draw.uniform(0.1, 4)
            kind = draw.choice(("read", "write"))
            value = draw.choice((None, "a", "b")) if kind == "read" else draw.choice("ab")
            history.append(op(kind, value, start + draw.random() / 100, end))
        verdicts.append(linearizable(history))
        assert verdicts[-1] is sequential(history), history
    assert 50 < sum(verdicts) < 350


def test_nothing_acknowledged_is_lost(check):
    first = int(time.strftime("%j")) * 1000  # another slice each day
    operations = wrong = 0
    with check(
        "ceph/rados-register",
        what="Histories of clients under random faults, against what one register could have done",
        tool="Herlihy and Wing 1990, section 2: linearizability",
        tool_version="",
        kind="specification",
        covers=[f"vmlib/ceph/rados/{path.name}" for path in sorted(MODEL.glob("*.py"))],
    ) as record:
        for seed in range(first, first + SLICE):
            verdict = run(seed)
            bad = (seed, shape(seed), verdict.wrong, verdict.stuck, verdict.split)
            assert verdict.good, bad
            record.case(verdict.wrong, [], str(seed))
            operations += verdict.operations
            wrong += len(verdict.wrong)
        record.show("objects with a lost write or a stale read", wrong, 0)
    assert operations > 100 * SLICE


def test_a_seed_is_a_run():
    once, again = run(3), run(3)
    assert once.cluster.history() == again.cluster.history()
    assert once.cluster.history() != run(12).cluster.history()


def test_recovery_comes_back_to_an_object_that_was_being_read():
    """Of this schedule's last object a client reads chunks when its turn comes to be recovered."""
    assert not run(644556395).stuck


def test_a_stray_that_went_further_gives_what_it_had_before():
    """Two copies have a write that the others never saw: nobody else has what stood before it."""
    assert not run(741901982).stuck


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_in_many_schedules(log_soak):
    first, count = random.SystemRandom().randrange(10**9), 10_000
    for seed in range(first, first + count):
        verdict = run(seed)
        assert verdict.good, (seed, shape(seed), verdict.wrong, verdict.stuck, verdict.split)
    log_soak("RADOS: random fault schedules, linearizable and live", first, count)


# -- mutants -----------------------------------------------------------------------------------


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


MUTANTS = [
    ack_before_replicas,
    ack_one_shard_short,
    stale_primary,
    no_peering,
    peering_forgets_the_past,
    no_rollback,
    recovery_overwrites,
    min_size_ignored,
    resends_are_new,
    replicas_read_anything,
    journal_not_awaited,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_rule_is_caught(mutant, monkeypatch):
    """Some history of a slice that always is the same is one that no register explains."""
    mutant(monkeypatch)
    assert any(run(seed).wrong for seed in range(SLICE))
