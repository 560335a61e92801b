"""No acknowledged write is lost and no read is stale, whatever breaks; and we would notice.

Each seed is one cluster, one schedule of faults and some clients. Each of the mutants
(`rados_mutants`) breaks one rule of RADOS, and has to be caught.
"""

import random
import time
from pathlib import Path

import pytest
from rados_mutants import MUTANTS
from rados_runs import generator, run
from rados_schedules import setting

from vmlib.ceph import rados
from vmlib.ceph.rados import Operation, linearizable

SLICE = 80
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
            bad = (
                seed,
                setting(seed, generator(seed)),
                verdict.wrong,
                verdict.stuck,
                verdict.split,
            )
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
        bad = (seed, setting(seed, generator(seed)), verdict.wrong, verdict.stuck, verdict.split)
        assert verdict.good, bad
    log_soak("RADOS: random fault schedules, linearizable and live", first, count)


@pytest.mark.parametrize(
    ("mutant", "finding", "seed"), MUTANTS, ids=[mutant.__name__ for mutant, *_ in MUTANTS]
)
def test_a_broken_rule_is_caught(mutant, finding, seed, monkeypatch):
    """The schedule of this seed gives it away, or one of the next if the model has changed."""
    mutant(monkeypatch)
    assert any(getattr(run(at), finding) for at in range(seed, seed + SLICE))
