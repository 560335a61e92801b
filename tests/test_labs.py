"""Labs are committed executed, and their exercises have solutions that work."""

import itertools
import json
import random

import pytest

from vmlib.box import Job
from vmlib.ceph import CrushMap, crush_hash, crush_ln
from vmlib.cpu import add_problem, open_vm
from vmlib.errors import BadInput
from vmlib.machine import Machine
from vmlib.memory import (
    Ept,
    GuestRam,
    Map,
    MemorySlots,
    Slot,
    build_tables,
    example_host,
    record_example,
    translate_gpa,
    walk_nested,
)
from vmlib.view.lab import explain


def labs(root):
    found = sorted(root.glob("labs/*/*.ipynb"))
    assert found
    return [(path, json.loads(path.read_text())) for path in found]


def test_every_code_cell_was_executed_in_order(root):
    """An unexecuted cell would be run by nbval and compared with nothing."""
    for path, notebook in labs(root):
        counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
        assert counts == list(range(1, len(counts) + 1)), path


def test_output_is_ignored_only_where_it_is_measured(root):
    for path, notebook in labs(root):
        for cell in notebook["cells"]:
            tags = set(cell["metadata"].get("tags", []))
            assert tags <= {"measured", "figure", "raises-exception"}, path
            assert "NBVAL" not in "".join(cell["source"]), path


def test_no_widget_state_is_stored(root):
    for path, notebook in labs(root):
        assert "widgets" not in notebook["metadata"], path
        assert path.stat().st_size < 300_000, path


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("BUDGET", "eb fe"),
        ("MMIO", "b4 f0 8e d8 a2 00 00"),
        ("SHUTDOWN", "0f 01 1e 00 20 0f 20 c0 40 0f 22 c0 0f 0b"),
    ],
)
def test_cpu_three_ways_to_misbehave(reason, code):
    with Machine(budget="100ms") as machine:
        assert machine.load(bytes.fromhex(code)).run().last.reason == reason


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("seed", [1, 2, 3, 77])
def test_cpu_letters(seed):
    """Section 5, in fifteen bytes: `inc ax` is one byte where `inc al` takes two."""
    first = ord("a") + add_problem(seed).a % 13
    last = ord("n") + add_problem(seed).b % 13
    code = bytes([0xBA, 0xF8, 0x03, 0xB0, first, 0xEE, 0x40, 0x3C, last + 1, 0x75, 0xFA])
    code += bytes([0xB0, 0x0A, 0xEE, 0xF4])
    assert len(code) == 15
    with Machine() as machine:
        printed = machine.load(code).run().output
    assert printed == bytes(range(first, last + 1)) + b"\n"


@pytest.mark.needs("box")
def test_cpu_four_finished_in_the_kernel_and_two_returns(box):
    """The box lab, section 5: four times CPUID, and a port."""
    guest = "0f a2 " * 4 + "e6 80 e6 f4"
    done = box.run([Job("guest", "vmlib.box.jobs:run_flat", [guest])])["guest"]
    assert done.count("kvm_exit", "cpuid") == 4
    assert done.count("kvm_userspace_exit", "KVM_EXIT_IO") == 2


def memory_second_stage(read, eptp, gpa):
    """The 2-D walk lab, section 4."""
    table = eptp & 0xF_FFFF_FFFF_F000
    for level in (4, 3, 2, 1):
        shift = 12 + 9 * (level - 1)
        entry = read(table + 8 * (gpa >> shift & 511))
        if entry & 3 == 2:
            return "misconfiguration"
        if not entry & 1:
            return "violation"
        if level == 1 or entry & 1 << 7:
            break
        table = entry & 0xF_FFFF_FFFF_F000
    size = 1 << shift
    return entry & 0xF_FFFF_FFFF_F000 & -size | gpa & size - 1


def test_memory_the_second_stage_can_be_written(root):
    """Every cell of the lab marks this solution right; the numbers of the lab are so."""
    notebook = json.loads((root / "labs/memory/two-dimensional-walk.ipynb").read_text())
    names = {"translate_gpa": translate_gpa, "example_host": example_host}
    (cell,) = [c for c in notebook["cells"] if "def compare" in "".join(c["source"])]
    exec("".join(cell["source"]), names)
    assert names["compare"](memory_second_stage) == "28 of 28 right"

    def blind(bits):
        """The same, of entries in which these bits seem to be what they should."""
        return lambda read, eptp, gpa: memory_second_stage(lambda at: read(at) | bits, eptp, gpa)

    for bits, right in ((1, 17), (1 << 7, 0)):
        assert names["compare"](blind(bits)).startswith(f"{right} of 28 right; look at GPA 0x")
    kernel = [record_example(0x7F3C_2A40_0040, access=a) for a in ("read", "kernel")]
    assert [(t.steps[-1].event, t.counters["references"]) for t in kernel] == [
        ("exit", 24), ("fault", 20),
    ]  # fmt: skip
    assert record_example(0x5555_5555_7000, "2M").steps[-1].event == "arrived"


def test_memory_the_prediction_of_the_lab():
    """A host with 2 MiB pages, and the guest's last table in swap: 15 references."""
    ram, big = GuestRam("16M"), 2 << 20
    host = build_tables(ram, at=12 << 20, mapping=[Map(0, 0, big, page=big)], format="ept")
    # Three tables at the end of the first 2 MiB, and the fourth in the next, which are away.
    guest = build_tables(ram, at=big - 0x3000, mapping=[Map(0x4000_0000, 0x1000)])
    done = walk_nested(ram, 0x4000_0000, Ept(host.eptp), **guest.registers)
    assert (done.exit.gpa, done.exit.level, len(done.steps)) == (big, 2, 15)


def test_ceph_a_short_log_that_forgets_is_noticed(root):
    """The RADOS lab, section 6: with a log of 5 an echo is done twice, and the checker sees it."""
    lab = json.loads((root / "labs/ceph/rados.ipynb").read_text())
    names = {}
    for cell in lab["cells"]:
        source = "".join(cell["source"])
        if any(word in source for word in ("import random", "def trial", "def forgetful")):
            exec(compile(source, "rados.ipynb", "exec"), names)
    for seed in range(3):
        trial, echo = names["trial"], names["echo"]
        assert trial(seed, echo, log_length=5)[0] == []
        assert trial(seed, echo, log_length=5, before=names["forgetful"])[0] != []


@pytest.mark.needs("unicorn")
def test_problems_are_the_same_for_everybody_and_marked_by_running():
    assert (add_problem(1).a, add_problem(1).b) == (60, 110)
    assert add_problem(1).mark("170", 5) == "Problem 1: output: right; exits: right"
    assert "not what the guest does" in add_problem(1).mark("171", 4)
    assert "not answered yet" in add_problem(1).mark()
    with pytest.raises(BadInput, match="seed"):
        add_problem(-1)


def test_a_cell_run_out_of_order_gets_a_sentence():
    with pytest.raises(NameError) as caught:
        eval("outcome")
    assert "run the cells in order" in explain(caught.value)
    assert explain(BadInput("bytes", "is empty")) == "BadInput: bytes: is empty"


def test_ceph_straw2_in_six_lines(root):
    """The CRUSH lab, section 5: a `pick` that goes everywhere where Ceph goes."""

    def pick(x, items, weights, r):
        best, winner = None, items[0]
        for item, weight in zip(items, weights, strict=True):
            luck = crush_ln(crush_hash(x, item, r) & 0xFFFF) - 2**48
            straw = -(-luck // weight)
            if best is None or straw > best:
                best, winner = straw, item
        return winner

    lab = json.loads((root / "labs/ceph/objects-pgs-crush.ipynb").read_text())
    cell = next(c for c in lab["cells"] if "def straw2_agrees" in "".join(c["source"]))
    code = "".join(cell["source"])
    names = {"CrushMap": CrushMap, "crush_hash": crush_hash, "SEED": 3}
    exec(code[code.index("def straw2_agrees") : code.index("print(")], names)
    assert names["straw2_agrees"](pick) == 2000
    assert names["straw2_agrees"](lambda x, items, weights, r: items[0]) < 200


def test_memory_four_the_middle_arrow(root, capsys):
    """Section 4 can be solved, and says so; unsolved it gives nothing away."""
    lab = json.loads((root / "labs/memory/four-addresses.ipynb").read_text())
    cell = next(c for c in lab["cells"] if "def to_hva" in "".join(c["source"]))
    code = "".join(cell["source"])
    names = {"BadInput": BadInput, "MemorySlots": MemorySlots, "Slot": Slot, "random": random}
    exec(code, {**names, "SEED": 3})
    assert capsys.readouterr().out.count("not yet, look at ") == 2

    def to_hva(slots, gpa):
        return next((hva + gpa - at for at, size, hva in slots if at <= gpa < at + size), None)

    def overlaps(slots):
        pairs = itertools.combinations(enumerate(slots), 2)
        return [(i, j) for (i, a), (j, b) in pairs if a[0] < b[0] + b[1] and b[0] < a[0] + a[1]]

    checks = code[code.index("def marks") :]
    exec(checks, {**names, "SEED": 3, "to_hva": to_hva, "overlaps": overlaps})
    assert capsys.readouterr().out.splitlines() == [
        "to_hva   100 of 100 that is it",
        "overlaps 100 of 100 that is it",
    ]
    # One byte too far is not right, for either of them.
    longer = {
        "to_hva": lambda slots, gpa: to_hva([(at, size + 1, hva) for at, size, hva in slots], gpa),
        "overlaps": lambda slots: overlaps([(at, size + 1, hva) for at, size, hva in slots]),
    }
    exec(checks, {**names, "SEED": 3, **longer})
    assert capsys.readouterr().out.count("not yet, look at ") == 2


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize(
    ("mapped", "store", "told"),
    [
        ((0x500000, 0xB8000), "50", ["MMIO read", "MMIO write", "HLT"]),
        (None, "50", ["SHUTDOWN"]),
    ],
)
def test_memory_four_a_guest_that_runs(mapped, store, told):
    """Section 5: load and store at one GVA that leads to a hole; and at one that leads nowhere."""
    with open_vm("unicorn", "256K") as vm:
        mapping = [Map(0x8000, 0x8000), *([Map(*mapped)] if mapped else [])]
        tables = build_tables(vm.ram, at=0x20000, mapping=mapping)
        vm.ram.write(0x8000, bytes.fromhex(f"8a042500005000 88042500 00{store}00 f4"))
        vcpu = vm.vcpu()
        vcpu.start_long_mode(0x8000, 0xF000, tables.root)
        for expected in told:
            left = vcpu.run()
            assert f"{left.reason} {left.detail}".startswith(expected)
            if expected == "MMIO read":
                vcpu.complete(b"x")
