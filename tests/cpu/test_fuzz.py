"""One instruction at a time on the emulator and on the real CPU: registers, flags, memory, faults.

Ring 3 on KVM runs on the CPU itself, also where the host's KVM emulates ring 0, so that this holds
the emulator against silicon. `fuzz_tolerances.py` lists where the two may differ.
"""

import os
import secrets
from collections import Counter

import fuzz_run
import numpy as np
import pytest
from engine_files import EMULATOR_FILES, KVM_FILES
from fuzz_compare import Trial, differing
from fuzz_guest import (
    AREA_END,
    BATCH,
    CR2,
    ERROR,
    FAULT_RIP,
    FLAGS,
    MEMORY,
    MXCSR,
    PAD,
    SLOT,
    ST,
    VECTOR,
    WORD,
    X87,
    XMM,
    slot,
    slots,
)
from fuzz_run import EMULATED, Fuzz
from fuzz_state import states
from fuzz_table import LEFT_OUT
from fuzz_tolerances import TOLERANCES, explain
from fuzz_trials import ROWS, Maker, fill, trials

from vmlib.cpu import probe

FIXED, BATCHES, PER_ENTRY = 20161, 4, 2048
SOAK = int(os.environ.get("VMLIB_SOAK_FUZZ", 10_000_000))
"""How many trials `make soak` runs; what it logs is what it ran."""
MODULES = "guest state state_x87 table table_sse table_x87 trials compare "
MODULES += "judge double wrong wrong_x87 tolerances tolerances_x87 run"
FIELDS = [
    0,
    *(WORD * k for k in range(1, 16)),
    FLAGS,
    VECTOR,
    ERROR,
    FAULT_RIP,
    CR2,
    PAD,
    X87,
    MXCSR,
]
FIELDS += [*range(ST, AREA_END, WORD), *range(MEMORY, MEMORY + 256, WORD)]


@pytest.fixture(scope="module")
def fuzz():
    with Fuzz() as both:
        yield both


def rows_of(tolerance):
    names = tolerance.rows or (tolerance.seen_in,)
    return [row for row in ROWS if row.name in names]


@pytest.mark.needs("unicorn", "kvm")
def test_the_emulator_does_what_the_cpu_does(check, fuzz):
    """With a seed that stays and one that changes; then each entry of the table for itself."""
    with check(
        "cpu/fuzz-silicon",
        what="Single instructions of ring 3 with random operands on the emulator and on the CPU: "
        "registers, flags, memory, exceptions; but for the differences in the table",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*EMULATOR_FILES, *KVM_FILES, *(f"tests/cpu/fuzz_{m}.py" for m in MODULES.split())],
    ) as record:
        turning = secrets.randbits(32)
        for seed in [*range(FIXED, FIXED + BATCHES), *range(turning, turning + BATCHES)]:
            left = fuzz.run(seed)
            for number in range(BATCH):
                record.case(left.get(number, ""), "", "an instruction")
        record.show("instructions", 2 * BATCHES * BATCH, fuzz.count)
        for one in TOLERANCES:
            before = fuzz.used[one.id]
            record.case(fuzz.run(FIXED, PER_ENTRY, rows_of(one)), {}, one.id)
            record.case(fuzz.used[one.id] > before, True, f"{one.id} still differs")
        record.show("kinds of difference in the table", len(TOLERANCES), len(TOLERANCES))


@pytest.mark.soak
@pytest.mark.needs("unicorn", "kvm")
def test_for_long(fuzz, log_soak):
    seed = secrets.randbits(32)
    start, fuzz.used = fuzz.count, Counter()
    while fuzz.count - start < SOAK:
        left = fuzz.run(seed + (fuzz.count - start) // BATCH)
        assert not left, "\n".join(left.values())
    count = fuzz.count - start
    log_soak("Single instructions on the emulator and on the CPU", seed, count)
    unseen = {one.id for one in TOLERANCES} - set(fuzz.used)
    assert not unseen, f"no longer occur in {count} trials: {unseen}"


def equal_trial(fuzz, names=("add",)):
    """A trial of these rows in which nothing differs."""
    made, batch = trials(FIXED, 64, [row for row in ROWS if row.name in names])
    ours, real = fuzz.emulator.run(batch), fuzz.cpu.run(batch)
    number = next(
        k
        for k in range(64)
        if (ours[k] == real[k]).all() and not made[k].memory and made[k].code[0] != 0xF0
    )
    return Trial(made[number], batch.records[number], ours[number].copy(), real[number])


@pytest.mark.needs("unicorn", "kvm")
def test_a_wrong_result_is_seen_in_every_field(fuzz):
    trial = equal_trial(fuzz)
    assert not trial.difference()
    for offset in FIELDS:
        trial.ours[offset // WORD] ^= np.uint64(1 << 5)
        assert trial.difference(), hex(offset)
        assert explain(trial) == ([], False), hex(offset)
        trial.ours[offset // WORD] ^= np.uint64(1 << 5)
    assert not trial.difference()


@pytest.mark.needs("unicorn", "kvm")
def test_a_wrong_result_fails_the_run(monkeypatch):
    """One bit of one register of one trial in a batch."""
    with Fuzz() as both:
        right = both.emulator.run

        def wrong(batch):
            out = right(batch).copy()
            out[77, 9] ^= np.uint64(1)
            return out

        assert not both.run(FIXED)
        monkeypatch.setattr(both.emulator, "run", wrong)
        left = both.run(FIXED)
    assert list(left) == [77]
    assert "r9: before" in left[77]


@pytest.mark.needs("unicorn", "kvm")
@pytest.mark.parametrize(
    ("names", "flag", "tolerated"),
    [
        (("shl", "shr"), "AF", True),
        (("shl", "shr"), "OF", False),
        (("shl", "shr"), "CF", False),
        (("mul",), "ZF", True),
        (("mul",), "CF", False),
        (("add",), "AF", False),
        (("blsr",), "PF", True),
        (("blsr",), "CF", False),
    ],
)
def test_no_tolerance_is_wider_than_its_flags(fuzz, names, flag, tolerated):
    bits = {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "OF": 11}
    trial = equal_trial(fuzz, names)
    trial.ours[FLAGS // WORD] ^= np.uint64(1 << bits[flag])
    assert explain(trial)[1] is tolerated
    trial.ours[0] ^= np.uint64(1)
    assert not explain(trial)[1]


VALUES = [one for one in TOLERANCES if one.kind == "bug" and {*one.fields} - {"all"}]


@pytest.mark.needs("unicorn", "kvm")
@pytest.mark.parametrize("tolerance", VALUES, ids=lambda one: one.id)
def test_a_wrong_value_is_tolerated_only_if_it_is_the_emulators_own(fuzz, tolerance):
    """In the first trials that it explains, one more bit in a word that differs is one too many."""
    made, batch = trials(FIXED, PER_ENTRY, rows_of(tolerance))
    ours, real = fuzz.emulator.run(batch), fuzz.cpu.run(batch)
    found = []
    for _, trial in differing(made, batch, ours.copy(), real):
        if tolerance.id in explain(trial)[0] and explain(trial)[1]:
            found.append(trial)
    assert found
    for trial in found[:5]:
        for word in np.nonzero(trial.ours != trial.real)[0].tolist():
            upper = WORD * word >= XMM and word % 2
            if word == FLAGS // WORD or (upper and trial.made.row.name in ("extrq", "insertq")):
                continue  # the upper half is undefined
            if WORD * word >= MEMORY and trial.made.row.name in ("fnstenv", "fnsave"):
                continue  # it may be x87's pointers
            # Bit 62 of a significand makes a NaN quiet, which may be what differs.
            bit = 3 if word == MXCSR // WORD else 61 if ST <= WORD * word < XMM else 62
            trial.ours[word] ^= np.uint64(1 << bit)
            assert not explain(trial)[1], f"{WORD * word:#x} of {trial}"
            trial.ours[word] ^= np.uint64(1 << bit)


@pytest.mark.needs("kvm")
def test_only_a_repeat_can_blame_kvm(monkeypatch):
    """#UD that comes again is a finding; one that does not is KVM's emulation."""
    with Fuzz() as both:
        right, calls = both.cpu.run, []

        def odd(batch):
            calls.append(1)
            out = right(batch).copy()
            if len(calls) <= times:
                out[5, VECTOR // WORD] = 6
            return out

        monkeypatch.setattr(both.cpu, "run", odd)
        rows = [row for row in ROWS if row.name == "mov"]
        times, both.repeats = 1, False
        assert list(both.run(3, 64, rows)) == [5]
        calls, both.repeats = [], True
        assert not both.run(3, 64, rows)
        assert both.used[EMULATED] == 1
        calls, times = [], 2
        assert list(both.run(3, 64, rows)) == [5]


def test_a_batch_depends_on_its_seed_alone():
    first, again, other = (trials(seed, 500) for seed in (1, 1, 2))
    assert first[1].instructions == again[1].instructions != other[1].instructions
    assert (first[1].records == again[1].records).all()
    assert all(len(code) <= 15 for code in first[1].instructions)


def test_every_row_is_made():
    made = [Maker("all").make(number, row) for number, row in enumerate(ROWS)]
    assert len({(row.name, row.prefix, row.opcode, row.words) for row in ROWS}) == len(ROWS) > 500
    assert fill(made, states(1, len(made))).shape[0] == len(ROWS)
    assert all(one.code for one in made)


def test_all_slots_at_once_are_the_slots_one_by_one():
    codes = [bytes([0x90] * (1 + k % 15)) for k in range(40)]
    assert slots(codes) == b"".join(slot(k, code) for k, code in enumerate(codes))
    assert len(slots(codes)) == 40 * SLOT


def test_every_entry_says_what_and_why():
    names = {row.name for row in ROWS}
    assert len({one.id for one in TOLERANCES}) == len(TOLERANCES)
    for one in TOLERANCES:
        assert one.kind in ("undefined", "bug", "oddity")
        assert set(one.rows or (one.seen_in,)) <= names, one.id
        assert one.manual
        assert one.flags or one.mxcsr or one.x87 or one.fields
    assert all(LEFT_OUT.values())
    assert fuzz_run.EMULATED not in {one.id for one in TOLERANCES}
