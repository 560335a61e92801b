"""Random bytes as guest code: whatever they do, the interpreter lives, the budget holds, memory
that is not the guest's stays, and every run ends in an exit. `bad_guests.py` runs them."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import bad_guests
import pytest
from kvm_guests import boot

from vmlib.cpu import exits, open_vm

RUNNER = Path(bad_guests.__file__)
REASONS = {one.reason for one in exits.Exit.__subclasses__()}
FIXED, PER_PROCESS = 20161, 1000
SOAK = int(os.environ.get("VMLIB_SOAK_PROGRAMS", 100_000))
"""How many programs `make soak` runs on each engine; what it logs is what it ran."""

ENGINES = [
    pytest.param("unicorn", 750, marks=pytest.mark.needs("unicorn")),
    pytest.param("kvm", 150, marks=pytest.mark.needs("kvm")),
]


def start(tmp_path, engine, seed, first, count, *how):
    """Start programs in a process of their own."""
    words = [engine, *map(str, (seed, first, count)), *how]
    with (tmp_path / str(seed)).open("w") as out:
        return subprocess.Popen(
            [sys.executable, str(RUNNER), *words], stdout=out, stderr=subprocess.PIPE, text=True
        )


def finish(tmp_path, process):
    """Return the sum of what a process has run, or fail with the program that was running."""
    _, errors = process.communicate()
    engine, seed = process.args[2:4]
    told = (tmp_path / seed).read_text().strip()
    if process.returncode:
        again = f"bad_guests.py {engine} {seed} {told.split(' ')[0]} 1"
        why = errors.strip().rpartition("\n")[2]
        pytest.fail(f"status {process.returncode} {why}\n{told}\nagain: {again}", pytrace=False)
    return Counter(json.loads(told))


def check_sum(ends, count):
    """Every program has run and ended in an exit."""
    programs, left = ends.pop("programs"), ends.pop("exits")
    assert programs == count == ends.total()
    assert left > count
    assert set(ends) <= REASONS


def check_kinds(ends):
    """The programs are not all of one kind. That can be said of a seed that stays or of many
    programs; of 150 new ones on KVM, where two or three end in HLT, none does now and then."""
    assert {"IO", "SHUTDOWN", "BUDGET", "HLT"} <= set(ends)


@pytest.mark.parametrize(("engine", "count"), ENGINES)
def test_random_bytes(tmp_path, engine, count):
    """With a seed that stays and one that changes, side by side."""
    seeds = [FIXED, secrets.randbits(32)]
    processes = [start(tmp_path, engine, seed, 0, count) for seed in seeds]
    try:
        fixed, new = [finish(tmp_path, process) for process in processes]
        check_sum(fixed, count)
        check_sum(new, count)
        check_kinds(fixed)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.soak
@pytest.mark.parametrize("engine", [pytest.param(e.values[0], marks=e.marks) for e in ENGINES])
def test_random_bytes_for_long(tmp_path, engine, log_soak):
    seed, ends = secrets.randbits(32), Counter()
    for first in range(0, SOAK, PER_PROCESS):
        count = min(PER_PROCESS, SOAK - first)
        ends += finish(tmp_path, start(tmp_path, engine, seed, first, count))
    check_sum(ends, SOAK)
    check_kinds(ends)
    log_soak(f"Random bytes as guest code on {engine}, each in its own VM", seed, SOAK)


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("crash", "status -11 "),
        ("below", "status -11 "),
        ("above", "status -11 "),
        ("kvm-below", "status 1 AssertionError: the guest wrote beside its RAM"),
        ("kvm-above", "status 1 AssertionError: the guest wrote beside its RAM"),
        ("other", "status 1 AssertionError: a guest wrote into the RAM of another VM"),
        ("hang", "status -14 "),
        ("raise", "status 1 OverflowError: spoilt"),
        ("callback", "status 70 ZeroDivisionError: integer division"),
    ],
)
def test_findings_are_reported_with_the_program(tmp_path, how, status):
    with pytest.raises(pytest.fail.Exception) as caught:
        finish(tmp_path, start(tmp_path, "unicorn", 5, 7, 1, how))
    told = str(caught.value)
    assert told.startswith(status)
    assert bad_guests.program(5, 7).code.hex(" ") in told
    assert re.search(r"again: bad_guests.py unicorn 5 7 1$", told)


@pytest.mark.needs("unicorn")
def test_long_mode_that_lost_its_paging_is_a_failure_of_the_engine():
    """UD2 in a state into which no guest gets, for a processor refuses to clear CR4.PAE then, and
    KVM to be given it. The emulator takes it, and then no table can be walked."""
    with open_vm("unicorn", "256K") as vm:
        vcpu = boot(vm, "0f 0b", bits=64, gates={6: "e6 06 f4"})
        vcpu.set_system(replace(vcpu.system(), cr4=0))
        ended = vcpu.run()
        assert isinstance(ended, exits.EngineFailure)
        assert "PAE" in ended.why


def test_programs_depend_on_seed_and_number_alone():
    assert bad_guests.program(1, 2) == bad_guests.program(1, 2)
    assert len({bad_guests.program(1, k).code for k in range(300)}) == 300
    kinds = {(p.bits, p.ring) for p in (bad_guests.program(1, k) for k in range(300))}
    assert kinds == {(16, 0), (32, 0), (32, 3), (64, 0), (64, 3)}
