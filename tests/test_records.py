"""A record that nobody checked, or that has outlived its code, is caught."""

import json

import pytest
from checking import Checker
from vmbook import records


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty shelf of records."""
    monkeypatch.setattr(records, "CHECKS", tmp_path)
    return tmp_path


def once(checker, ours="4", real="4", id="cpu/sample"):
    with checker(
        id, what="two and two", tool="abacus", tool_version="1", covers=["vmlib/units.py"]
    ) as check:
        check.show("two and two", ours, real)


def test_a_record_is_written_by_a_passing_test_and_then_holds(shelf):
    once(Checker("tests/x.py::test", write=True))
    once(Checker("tests/x.py::test", write=False))
    assert records.all_ids() == ["cpu/sample"]
    assert records.load("cpu/sample").rows == [("two and two", "4", "4")]
    assert not records.load("cpu/sample").stale


def test_a_difference_writes_nothing(shelf):
    with pytest.raises(pytest.fail.Exception, match="ours '5', the real system '4'"):
        once(Checker("tests/x.py::test", write=True), ours="5")
    assert records.all_ids() == []


def test_nothing_compared_is_no_check(shelf):
    checker = Checker("tests/x.py::test", write=True)
    with (
        pytest.raises(AssertionError, match="nothing was compared"),
        checker("cpu/empty", what="", tool="", tool_version="", covers=[]),
    ):
        pass


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cases", 1000),
        ("ours", {"two and two": "5"}),
        ("outcome", "better"),
        ("test", "none"),
        ("extra", 1),
        ("covers", []),
    ],
)
def test_a_hand_written_field_is_caught(shelf, field, value):
    once(Checker("tests/x.py::test", write=True))
    path = records.path_of("cpu/sample")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(AssertionError, match=f"outlived.*{field}"):
        once(Checker("tests/x.py::test", write=False))


@pytest.mark.parametrize("field", records.FREE[:3])
def test_date_host_and_tool_version_may_differ(shelf, field):
    once(Checker("tests/x.py::test", write=True))
    path = records.path_of("cpu/sample")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: "elsewhere"}))
    once(Checker("tests/x.py::test", write=False))


def test_a_record_outlived_by_its_code_is_stale_and_caught(shelf):
    once(Checker("tests/x.py::test", write=True))
    path = records.path_of("cpu/sample")
    data = json.loads(path.read_text())
    data["sha256"]["vmlib/units.py"] = "0" * 64
    path.write_text(json.dumps(data))
    assert records.load("cpu/sample").stale == ("vmlib/units.py",)
    with pytest.raises(AssertionError, match="sha256"):
        once(Checker("tests/x.py::test", write=False))


def test_a_missing_record_is_caught(shelf):
    with pytest.raises(AssertionError, match="no record yet"):
        once(Checker("tests/x.py::test", write=False))


def test_every_committed_record_belongs_to_a_test_that_names_it(root):
    for id in records.all_ids():
        record = records.load(id)
        assert record.data["id"] == id
        file, _, name = record.data["test"].partition("::")
        source = (root / file).read_text()
        assert f"def {name}(" in source, f"{id}: {record.data['test']} is gone"
        assert f'"{id}"' in source, f"{id} is not made by {file}"
