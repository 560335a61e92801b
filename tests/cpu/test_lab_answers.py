"""The labs' own checks: a right answer is taken however it is written, and a wrong one is not."""

import json

import pytest

from vmlib.cpu import add_problem

pytestmark = pytest.mark.needs("unicorn")

LETTERS = "ba f8 03 b0 {a:02x} ee 40 3c {b:02x} 75 fa b0 0a ee "
"""Section 5 of the first lab, without its last byte."""
GATE = ("b0 68 48 cf", "gate(0x2000, rights=0xEE)")


def said(root, capsys, lab, *cells, **instead):
    """Run a lab's first cell, and those with these words in them; return the last one's lines.

    `instead` maps a text to what a reader writes there.
    """
    notebook = json.loads((root / f"labs/cpu/{lab}.ipynb").read_text())
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    names = {}
    chosen = [code[0]] + [one for words in cells for one in code if words in one]
    assert len(chosen) == 1 + len(cells)
    for source in chosen:
        capsys.readouterr()
        for old, new in instead.get("written", {}).items():
            source = source.replace(old, new)
        exec(compile(source, lab, "exec"), names)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("wanted", "text", "told"),
    [
        ("BUDGET", "eb fe", "2 byte(s); yes"),
        ("MMIO", "b4 f0 8e d8 a2 00 00", "7 byte(s); yes"),
        ("MMIO", "b8 00 f0 8e d8 a2 00 00", "8 byte(s); yes, but shorter: 7 at most"),
        ("SHUTDOWN", "0f 01 1e 00 20 cc", "6 byte(s); yes"),
        (
            "SHUTDOWN",
            "0f 01 1e 00 20 0f 20 c0 0c 01 0f 22 c0 0f 0b",
            "15 byte(s); yes, but shorter: 14 at most",
        ),
        ("SHUTDOWN", "f4", "1 byte(s); it ended with HLT "),
    ],
)
def test_three_ways_to_misbehave(root, capsys, wanted, text, told):
    written = {f'"{wanted}": ""': f'"{wanted}": "{text}"'}
    lines = said(root, capsys, "run-a-vm", "longest = ", written=written)
    assert f"{wanted}: {told}" in lines
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("f4", "15 byte(s): that is it"),
        ("eb fe", "16 byte(s): that is not it yet"),  # all letters, and never an end
        ("ee f4", "16 byte(s): that is not it yet"),
    ],
)
def test_letters(root, capsys, end, told):
    first, last = ord("a") + add_problem(1).a % 13, ord("n") + add_problem(1).b % 13
    written = {"    f4    ": LETTERS.format(a=first, b=last + 1) + end}
    lines = said(root, capsys, "run-a-vm", "letters = ", "wanted = ", written=written)
    assert lines[-1] == told


@pytest.mark.parametrize(
    ("output", "exits", "told"),
    [
        ('"170"', "5", "output: right; exits: right"),
        ('b"170\\n"', '"5"', "output: right; exits: right"),
        ("170", "None", "output: right; exits: not answered yet"),
        ('"17"', '"five"', "output: not what the guest does; exits: not what the guest does"),
    ],
)
def test_the_sum_and_its_exits(root, capsys, output, exits, told):
    written = {"output = None": f"output = {output}", "exits = None": f"exits = {exits}"}
    cells = ("letters = ", "problem = add_problem")
    assert said(root, capsys, "run-a-vm", *cells, written=written)[-1] == f"Problem 1: {told}"


MENDED = """case IoIn(port=0x3FD):
                vcpu.complete(b"{ready}")
            case Mmio(gpa=gpa, data=None, size=size):
                vcpu.complete(bytes([screen.get(gpa, 0)]) * size)
            case Mmio(gpa=gpa, data=data):
                screen[gpa] = data[0]
            # ✎"""


@pytest.mark.parametrize(
    ("ready", "verdict", "last"),
    [("\\x60", "that is it", "HLT"), ("\\0", "that is not it yet", "BUDGET")],
)
def test_the_outer_loop(root, capsys, ready, verdict, last):
    """A guest whose question is never answered as it hopes asks until its time is up."""
    written = {"# ✎ IoIn": MENDED.format(ready=ready)}
    _, screen, exits = said(root, capsys, "vcpu-loop", "def outer_loop", written=written)
    assert screen == f"screen: {verdict}"
    assert f"'{last}': 1" in exits


@pytest.mark.parametrize(
    ("pair", "told"),
    [("(1, 1)", "right"), ("[1, 1]", "right"), ("(1, 0)", "not so"), ("1", "not so")],
)
def test_who_returns(root, capsys, pair, told):
    written = {"  # ✎ or": f'; mine["out"] = {pair}  # ✎ or'}
    lines = said(root, capsys, "vcpu-loop", "def returns", written=written)
    assert lines[0] == f"OUT to the serial port: {told}"


@pytest.mark.parametrize(
    ("what", "where", "told"),
    [
        ("nothing spoiled", "f", "right"),
        ("nothing spoiled", " F", "right"),
        ("nothing spoiled", "D", "not there"),
        ("gates 14 and 8 both not present", "shutdown", "right"),
    ],
)
def test_where_a_page_fault_lands(root, capsys, what, where, told):
    written = {"  # ✎ or": f'; mine["{what}"] = "{where}"  # ✎ or'}
    lines = said(root, capsys, "modes", "def land", "everything = ", "spoiled = ", written=written)
    assert f"{what}: {told}" in lines


@pytest.mark.parametrize(
    ("handler", "entry", "told"),
    [
        (*GATE, "that is it"),
        ("b0 69 48 cf", GATE[1], "that is not it yet: 'i' came"),
        # #GP, whose handler goes on one byte further: in the midst of INT 0x81
        (GATE[0], "gate(0x2000)", "that is not it yet: 'BUDGET' came"),
    ],
)
def test_a_system_call_of_ones_own(root, capsys, handler, entry, told):
    written = {
        "    48 cf    ": f"    {handler}    ",
        "my_gate = gate(0x2000)": f"my_gate = {entry}",
    }
    lines = said(root, capsys, "modes", "def land", "def by_int", written=written)
    assert lines[-1] == told


@pytest.mark.parametrize(
    ("handler", "told"),
    [("b0 68 48 0f 07", "that is it"), ("b0 69 48 0f 07", "that is not it yet: 'i' came")],
)
def test_the_same_by_syscall(root, capsys, handler, told):
    written = {"    48 0f 07    ": f"    {handler}    "}
    cells = ("def land", "def by_int", "def by_syscall")
    assert said(root, capsys, "modes", *cells, written=written)[-1] == told
