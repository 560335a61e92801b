"""The walk trace: every step tells what the walk did, and the bit that is named is the one."""

import random
from itertools import product

import pytest
from test_nested import pair
from test_walk import RAM, ROOT, random_address, random_registers, random_tables

from vmlib.errors import BadInput
from vmlib.memory import (
    CachedMmu,
    Ept,
    GuestRam,
    Npt,
    SparseMemory,
    TableOutsideRam,
    build_tables,
    example_controls,
    example_host,
    record_example,
    record_walk,
    record_walk_nested,
    walk,
    walk_nested,
    walk_opening,
    walk_problem,
)
from vmlib.memory.walk_example import ACCESSES, GUESTS, HOSTS, MAXPHYADDR, PLACES, START
from vmlib.memory.walk_problems import ENDS
from vmlib.trace import Trace

LARGE = 1 << 7


def cells(trace):
    return [step.state["cell"] for step in trace.steps if step.state["cell"]]


@pytest.mark.parametrize("kind", ["ept", "npt"])
@pytest.mark.parametrize(("levels", "nested"), [(4, 4), (5, 5), (2, 4), (3, 5)])
def test_a_step_for_each_reference_of_the_walk(kind, levels, nested):
    ram, regs, second, _ = pair(levels, nested, kind=kind)
    done = walk_nested(ram, 0x20_0123, second, **regs)
    trace = record_walk_nested(ram, 0x20_0123, second, **regs)
    assert trace.kind == "walk"
    assert [s.event for s in trace.steps[:1] + trace.steps[-1:]] == ["start", "arrived"]
    assert len(trace.steps) == len(done.steps) + 2
    for step, told in zip(done.steps, trace.steps[1:-1], strict=True):
        cell = told.state["cell"]
        assert cell["place"] == [step.column, step.row]
        assert told.state["lit"][-1] == cell["place"]
        assert len(told.state["lit"]) == told.i
        assert (cell["nested"], cell["name"]) == (step.space == "host", step.name)
        assert [int(cell[key], 16) for key in ("index", "at", "entry")] == [
            step.index, step.hpa, step.entry,
        ]  # fmt: skip
        assert dict(told.state["registers"])["GPA"] == f"{step.gpa:#x}"
        names = {name for name, value in cell["bits"] if value == "1" and name != "type"}
        assert names <= set(step.flags), "the bits that are shown are the flags of the walk"
    possible = (levels + 1) * (nested + 1) - 1
    assert dict(trace.counters) == {
        "references": possible, "of at most": possible, "saved by large pages": 0,
        "saved by caches": 0,
    }  # fmt: skip
    assert dict(trace.steps[-1].state["registers"]) == {"GPA": "0x200123", "HPA": f"{done.hpa:#x}"}
    assert Trace.from_json(trace.to_json()) == trace


def test_one_dimension_is_one_row():
    trace = record_example(host="none")
    assert [cell["place"] for cell in cells(trace)] == [[i, 0] for i in range(4)]
    assert trace.steps[0].state["rows"] == ["entry"]
    assert trace.counters["references"] == trace.counters["of at most"] == 4


def test_the_fields_of_an_address_put_it_together_again():
    chance = random.Random(9)
    for _ in range(200):
        guest, host = chance.choice(list(GUESTS)), chance.choice(list(HOSTS))
        gva = chance.choice(list(PLACES)) ^ chance.getrandbits(21)
        for step in record_example(gva, guest, host).steps:
            for space, value, fields in step.state["bars"]:
                whole = sum(int(v, 16) << low for _, _, low, v, _ in fields)
                wide = fields[0][1] + 1
                assert whole == int(value, 16) % (1 << wide), (space, value)
                assert [f[2] for f in fields[:-1]] == [f[1] + 1 for f in fields[1:]], "no gap"


@pytest.mark.parametrize(("guest", "host"), list(product(GUESTS, HOSTS)))
def test_lit_and_spared_cells_are_the_whole_grid(guest, host):
    trace = record_example(guest=guest, host=host)
    last = trace.steps[-1].state
    places = [tuple(place) for place in last["lit"] + last["gone"]]
    assert len(set(places)) == len(places) == last["possible"]
    counters = trace.counters
    assert counters["references"] + counters["saved by large pages"] == counters["of at most"]


def test_large_pages_take_cells_away_when_they_are_found():
    trace = record_example(guest="2M", host="ept-2M")
    gone = [len(step.state["gone"]) for step in trace.steps]
    assert gone == sorted(gone)
    assert (gone[0], gone[-1]) == (0, 9)
    for step, before in zip(trace.steps[1:], gone, strict=False):
        grew = len(step.state["gone"]) > before
        assert grew == ("need not be read" in step.text)
        if grew:
            assert ["PS", "1"] in step.state["cell"]["bits"]


@pytest.mark.parametrize(
    ("host", "guest", "saved"),
    [("ept", "4K", 19), ("ept", "2M", 14), ("ept", "1G", 9), ("npt", "five", 24),
     ("none", "4K", 3), ("ept-2M", "4K", 15)],
)  # fmt: skip
def test_next_door_leaves_the_last_table_on_the_way(host, guest, saved):
    """SDM vol. 3C, 29.4.1: a combined mapping leads to the table's physical address."""
    cold, warm = (record_example(START, guest, host, access) for access in ("read", "next"))
    assert warm.counters["saved by caches"] == saved
    assert warm.counters["references"] + saved == cold.counters["references"]
    assert warm.steps[1].event == "cached"
    assert cells(warm) == cells(cold)[saved:], "the same references, those before left out"
    assert warm.steps[-1].state["registers"] == cold.steps[-1].state["registers"]


def test_again_needs_no_reference():
    trace = record_example(access="again")
    assert [step.event for step in trace.steps] == ["start", "cached", "arrived"]
    assert trace.counters["references"] == 0
    assert trace.counters["saved by caches"] == 24


def test_a_tlb_keeps_no_fault():
    """SDM vol. 3A, 4.10.2.3: only a translation that was made is cached."""
    for gva in (0x7F3C_2A40_0040, 0x5555_5555_7000, 0xFFFF_FFFF_8100_0000, 1 << 47):
        again, once = record_example(gva, access="again"), record_example(gva)
        assert again.steps == once.steps
    with pytest.raises(BadInput, match="caches"):
        record_walk(GuestRam("64K"), 0, caches="warm", cr0=0x11, cr3=0, cr4=0, efer=0)


def test_it_opens_before_the_answer():
    for guest, host, access in product(GUESTS, HOSTS, ACCESSES):
        trace = record_example(guest=guest, host=host, access=access)
        step = trace.steps[walk_opening(trace)]
        assert step.state["end"] is None
        assert step.event in ("guest", "cached", "start")


# ---- The bit that is named


class Turned:
    """A memory in which one bit of one word reads otherwise."""

    def __init__(self, memory, at, mask):
        self.memory, self.at, self.mask = memory, at, mask

    def read_u64(self, at):
        return self.memory.read_u64(at) ^ (self.mask if at == self.at else 0)

    def write_u64(self, at, value):
        raise AssertionError("a trace changes nothing")


BITS = {"P": 1, "RW": 2, "US": 4, "NX": 1 << 63, "R": 1, "W": 2, "X": 4, "PS": LARGE}


def blame(end):
    """Return the word and the bits of the entry that is to blame."""
    bit, cell = end["bit"], end["cell"]
    mask = 1 << int(bit[4:]) if bit.startswith("bit ") else BITS.get(bit)
    if bit == "R" and end["kind"] == "EPT violation" and int(cell["entry"], 16) & 7 == 0:
        mask = 7  # nothing is there: R, W and X
    if bit == "type":
        mask = int(cell["entry"], 16) & 7 << 3  # uncached, type 0
    return int(cell["at"], 16), mask


def outcome(trace):
    end = trace.steps[-1].state["end"]
    return end["kind"], end["code"], end["bit"], str(end["cell"] and end["cell"]["place"])


def test_turning_the_bit_that_is_named_mends_the_walk_or_brings_another():
    """Random guest and nested tables; each mending takes one fault away until it arrives."""
    chance = random.Random(2024)
    faults, arrived = 0, 0
    for _ in range(150):
        ram = GuestRam("64M")
        ept = chance.random() < 0.5
        five = chance.random() < 0.5
        levels = 5 if five else 4
        host_root, maxphyaddr = 0, 36
        random_tables_at(ram, chance, host_root, levels, ept)
        guest = random_registers(chance, chance.choice([4, 5]))
        random_guest(ram, chance, guest)
        second = (
            Ept(host_root | levels - 1 << 3 | 6, maxphyaddr, chance.random() < 0.5)
            if ept
            else Npt(host_root, levels, maxphyaddr)
        )
        how = {**guest, "access": chance.choice(["read", "write", "fetch"]),
               "cpl": chance.choice([0, 3]), "maxphyaddr": maxphyaddr}  # fmt: skip
        gva = chance.randrange(1 << 21)
        memory, seen = ram, set()
        while True:
            try:
                trace = record_walk_nested(memory, gva, second, **how)
            except TableOutsideRam:
                break
            end = trace.steps[-1].state["end"]
            if trace.steps[-1].event == "arrived":
                arrived += 1
                break
            assert outcome(trace) not in seen, "the bit that was named was not to blame"
            seen.add(outcome(trace))
            faults += 1
            if "keeps the kernel out" in trace.steps[-1].text or not end["cell"]:
                break  # no single bit does it
            at, mask = blame(end)
            memory = Turned(memory, at, mask)
    assert faults > 150
    assert arrived > 50


def random_tables_at(ram, chance, root, levels, ept):
    """One page for each level, whose entry 0 leads on; some bits of it are wrong."""
    for depth in range(levels):
        level, at = levels - depth, root + depth * 0x1000
        for index in range(8):
            entry = (root + (depth + 1) * 0x1000 if level > 1 else 0x10_0000 + index * 0x1000) | 7
            entry |= 6 << 3 if ept and level == 1 else 0
            if chance.random() < 0.15:
                entry ^= 1 << chance.choice([0, 1, 2, 7, 40, 45, 51, 63][: 7 if ept else 8])
            ram.write_u64(at + 8 * index, entry)


def random_guest(ram, chance, registers):
    """The guest's tables at GPA 0x3000 and on, which the second stage puts at 0x10_3000."""
    levels = 5 if registers["cr4"] >> 12 & 1 else 4
    registers["cr3"] = 0
    for depth in range(levels):
        level, at = levels - depth, 0x10_0000 + depth * 0x1000
        for index in range(512 if level == 1 else 8):
            entry = ((depth + 1) * 0x1000 if level > 1 else 0x7000) | 7
            if chance.random() < 0.1:
                entry ^= 1 << chance.choice([0, 1, 2, 40, 51, 63])
            ram.write_u64(at + 8 * index, entry)


def test_one_dimensional_faults_name_their_bit_too():
    chance = random.Random(77)
    ram = GuestRam(RAM)
    kinds = set()
    for n in range(400):
        if n % 20 == 0:
            levels = chance.choice([2, 3, 4, 5])
            image, indices = random_tables(chance, levels)
            ram.write(ROOT, image)
        how = {**random_registers(chance, levels), "cpl": chance.choice([0, 3]),
               "access": chance.choice(["read", "write", "fetch"])}  # fmt: skip
        gva = random_address(chance, levels, indices)
        try:
            done = walk(ram, gva, **how)
        except TableOutsideRam:
            with pytest.raises(TableOutsideRam):
                record_walk(ram, gva, **how)
            continue
        trace = record_walk(ram, gva, **how)
        last = trace.steps[-1]
        assert len(trace.steps) == len(done.steps) + 2
        if done.fault:
            assert last.state["end"]["code"] == f"{done.fault.error_code:#x}"
            kinds.add((last.state["end"]["bit"], done.fault.error_code & 9))
        else:
            assert dict(last.state["registers"])["GPA"] == f"{done.gpa:#x}"
    assert {("P", 0), ("US", 1), ("RW", 1)} <= kinds


# ---- The guest of the figure


def test_each_place_does_what_it_is_there_for():
    ends = {
        name: record_example(gva).steps[-1].state["end"]["kind"] for gva, name in PLACES.items()
    }
    assert ends == {
        "program": "HPA", "data": "HPA", "stack": "HPA", "watched page": "HPA",
        "swapped page": "EPT violation", "swapped table": "EPT violation",
        "device": "EPT misconfiguration", "broken entry": "page fault", "kernel": "page fault",
        "the tables": "page fault",
    }  # fmt: skip
    assert record_example(0x7FFF_FFFF_C000, access="write").steps[-1].event == "exit"
    assert record_example(0xFFFF_FFFF_8100_0000, access="kernel").steps[-1].event == "arrived"
    assert record_example(0x7FEE_FEBD_0000, host="npt").steps[-1].state["end"]["bit"] == "bit 51"
    for name in ("guest", "host", "access"):
        with pytest.raises(BadInput, match=name):
            record_example(**{name: "nothing"})


def test_the_self_reference_shows_the_tables_as_memory():
    """Walking the root's own entry at every level ends at the root, four times read."""
    host = example_host("none")
    root = host.registers["4K"]["cr3"]
    trace = record_example(0xFFFF_F6FB_7DBE_D000, host="none", access="kernel")
    assert {cell["table"] for cell in cells(trace)} == {f"{root:#x}"}
    assert dict(trace.steps[-1].state["registers"])["GPA"] == f"{root:#x}"


def test_the_page_gets_the_same_tables_as_strings():
    controls = example_controls()
    given = controls["given"]
    for key, host in given["hosts"]:
        words = host["words"]
        pairs = zip(words[::2], words[1::2], strict=True)
        assert [(int(a, 16), int(v, 16)) for a, v in pairs] == example_host(key).memory.words()
    assert [one["key"] for one in controls["inputs"]] == ["gva", "guest", "host", "access"]


def test_sparse_memory_refuses_what_it_has_not():
    memory = SparseMemory(0x1000)
    memory.write_u64(8, 5)
    memory.write(16, bytes(8) + b"\1" + bytes(7))
    assert memory.words() == [(8, 5), (24, 1)]
    memory.write_u64(8, 0)
    assert memory.words() == [(24, 1)]
    for at in (-8, 4, 0x1000):
        with pytest.raises(BadInput, match="no aligned word"):
            memory.read_u64(at)
    with pytest.raises(BadInput, match="data"):
        memory.write(0, b"abc")
    assert build_tables(SparseMemory(1 << 20), at=0, mapping=[]).root == 0


# ---- Beside the model of the caches


@pytest.mark.parametrize(("guest", "host"), list(product(["4K", "2M", "five"], HOSTS)))
def test_a_warm_walk_begins_where_the_model_of_the_caches_has_it(guest, host):
    """After an access to the page next door: the first table entry that is read is the same."""
    at = example_host(host)
    neighbour = START + 0x1000 if guest in ("4K", "five") else 0x5555_5575_8010
    off = {"cr0": 0x8001_0011, "cr3": 0, "cr4": 0x20, "efer": 0xD00}
    mmu = CachedMmu(at.memory, maxphyaddr=MAXPHYADDR, **(off if at.second else at.registers[guest]))
    if at.second:
        mmu.vm_entry(**at.registers[guest], vpid=1, second=at.second)
    mmu.access(neighbour, cpl=3)
    warm = mmu.access(START, cpl=3)
    told = record_example(START, guest, host, "next")
    (first, *_) = [s for s in told.steps if s.state["cell"]]
    shared = warm.shortcuts[0]
    assert shared.cache.endswith("cache")
    assert told.steps[1].text.startswith(
        f"An access next door has left the {shared.cache.split()[0]} in"
    )
    step = warm.steps[0]
    assert first.state["cell"]["entry"] == f"{at.memory.read_u64(step.hpa) & ~0x20:#x}"
    assert first.state["cell"]["at"] == f"{step.hpa:#x}"


def test_problems_are_the_same_for_everybody_and_marked_by_walking():
    ends = {walk_problem(seed).answer[1] for seed in range(40)}
    assert ends == set(ENDS)
    problem = walk_problem(3)
    assert problem == walk_problem(3) != walk_problem(4)
    references, who = problem.answer
    assert problem.mark() == "Problem 3: references: not answered yet; who: not answered yet"
    assert problem.mark(references, who) == "Problem 3: references: right; who: right"
    assert "references: not so" in problem.mark(references + 1, who)
    assert f"{problem.gva:#x}" in problem.question
    with pytest.raises(BadInput, match="seed"):
        walk_problem(-1)
    with pytest.raises(BadInput, match="who"):
        problem.mark(1, "nobody")
