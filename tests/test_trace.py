"""The Trace format: round trips, and what a damaged file gets to hear."""

import json

import pytest

from vmlib.errors import BadInput
from vmlib.trace import KINDS, Provenance, Recorder, Trace


@pytest.fixture
def trace():
    recorder = Recorder("lanes", "A title", watch=("output",))
    for k in range(3):
        recorder.count("steps taken")
        state = {"registers": [["AX", f"0x{k // 2:04x}"]], "output": "x" * k, "deep": {"k": [k]}}
        recorder.step("guest kernel", "instruction", f"Step {k}.", state)
    versions = {"engine": "Unicorn 2.1.4"}
    return recorder.finish(Provenance("unicorn", versions, "Linux", None, "2026-11-23"))


def test_round_trip(trace, tmp_path):
    assert Trace.from_json(trace.to_json()) == trace
    assert Trace.from_json(trace.to_json(indent=2)) == trace
    trace.save(tmp_path / "t.json")
    assert Trace.load(tmp_path / "t.json") == trace
    assert len((tmp_path / "t.json").read_text().splitlines()) < 40


def test_the_json_is_the_contract(trace):
    plain = json.loads(trace.to_json())
    assert list(plain) == ["schema", "kind", "title", "provenance", "steps", "counters"]
    assert plain["schema"] == 1
    assert list(plain["provenance"]) == ["engine", "versions", "host", "guest_sha256", "recorded"]
    assert list(plain["steps"][0]) == ["i", "where", "event", "text", "changed", "state"]
    assert plain["steps"][2]["changed"] == [["AX", "0x0000", "0x0001"], ["output", "x", "xx"]]
    assert plain["counters"] == {"steps taken": 3}


def test_changed_is_only_what_changed(trace):
    assert trace.steps[0].changed == ()
    assert trace.steps[1].changed == (("output", "", "x"),)


def damage(trace, edit):
    plain = json.loads(trace.to_json())
    edit(plain)
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.update(schema=2), r"t.json.schema: is 2; this vmlib reads 1"),
        (lambda t: t.update(schema=True), r"t.json.schema: must be int"),
        (lambda t: t.update(kind="pie"), r"'pie' is unknown; known are lanes, walk"),
        (lambda t: t.pop("steps"), r"t.json.steps: is missing"),
        (lambda t: t["steps"].pop(1), r"t.json.steps\[1\].i: is 2; steps are numbered"),
        (lambda t: t["steps"][2].pop("state"), r"t.json.steps\[2\].state: is missing"),
        (lambda t: t["steps"].append(7), r"t.json.steps\[3\]: must be an object"),
        (lambda t: t["steps"][0].update(changed=[["AX", 1, 2]]), r"steps\[0\].changed"),
        (lambda t: t["provenance"].pop("engine"), r"t.json.provenance.engine: is missing"),
        (lambda t: t["provenance"].update(guest_sha256=1), r"guest_sha256: must be a string"),
        (lambda t: t["counters"].update(x=1.5), r"counters.x: must be a whole number"),
    ],
)
def test_a_damaged_trace_names_file_field_and_rule(trace, edit, says):
    with pytest.raises(BadInput, match=says):
        Trace.from_json(damage(trace, edit), "t.json")


def test_files_that_are_no_traces(tmp_path):
    (tmp_path / "cut.json").write_text('{"schema": 1, "ki')
    with pytest.raises(BadInput, match=r"cut.json: is not JSON"):
        Trace.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BadInput, match=r"list.json: must be an object, not list"):
        Trace.load(tmp_path / "list.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"bytes.json: is not UTF-8"):
        Trace.load(tmp_path / "bytes.json")


def test_unknown_kinds_are_refused_early():
    with pytest.raises(BadInput, match="kind"):
        Recorder("pie", "no")
    assert Recorder(KINDS[0], "yes").kind == "lanes"
