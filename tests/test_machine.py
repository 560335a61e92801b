import pytest

from vmlib.__main__ import main
from vmlib.cpu import BudgetSpent, Halt, add_guest
from vmlib.errors import BadInput
from vmlib.machine import Machine
from vmlib.trace import Trace

pytestmark = pytest.mark.needs("unicorn")


def test_a_machine_runs_a_guest_to_its_end():
    with Machine() as machine:
        outcome = machine.load(add_guest(7, 5)).run()
    assert outcome.output == b"12\n"
    assert outcome.last == Halt()
    assert outcome.counts == {"IO": 3, "HLT": 1}


def test_it_can_be_loaded_again():
    with Machine() as machine:
        for a, printed in ((1, b"2\n"), (99, b"100\n"), (3, b"4\n")):
            assert machine.load(add_guest(a, 1)).run().output == printed


def test_labs_have_a_budget_by_default():
    with Machine(budget="50ms") as machine:
        assert isinstance(machine.load(b"\xeb\xfe").run().last, BudgetSpent)
    assert Machine()._budget.seconds == 2


def test_nothing_loaded():
    with Machine() as machine, pytest.raises(BadInput, match="no guest yet; call load"):
        machine.run()


def test_other_ports_are_nobodys():
    code = bytes.fromhex("e4 60 ba f8 03 ee e6 80 f4")  # in al, 0x60; out 0x3f8; out 0x80; hlt
    with Machine() as machine:
        assert machine.load(code).run().output == b"\xff"


def test_a_recording_stands_on_its_own():
    with Machine() as machine:
        trace = machine.load(add_guest(200, 100)).record("Title.")
    assert Trace.from_json(trace.to_json()) == trace
    assert trace.provenance.guest_sha256 == add_guest().sha256
    assert trace.counters["exits to user space"] == 4
    last = trace.steps[-1]
    assert (last.where, last.event, last.state["output"]) == ("host user", "return", "44\n")
    assert last.state["exit"] == {"reason": "HLT", "detail": ""}
    assert all(step.text.endswith((".", "?")) for step in trace.steps)


def test_a_recording_that_would_not_end():
    with Machine() as machine:
        trace = machine.load(b"\xeb\xfe").record(limit=40)
    assert len(trace.steps) == 41
    assert trace.steps[-1].event == "end"


def test_a_recording_ends_with_the_guest_that_misbehaves():
    with Machine() as machine:
        trace = machine.load(bytes.fromhex("b8 00 f0 8e d8 a2 00 00")).record()
    assert trace.steps[-1].state["exit"]["reason"] == "MMIO"


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "unicorn  yes  Unicorn 2.1" in said
    assert "Tools for outside checks" in said
