"""The guest to watch, its trace and problems, and what the chapter and the lab say of them."""

import json
import random
import re

import pytest

from vmlib.errors import BadInput, Unsupported
from vmlib.memory import (
    KVM,
    NESTED,
    OUT_OF_SYNC,
    WRITE_PROTECT,
    ShadowGuest,
    batch,
    record_shadow,
    shadow_problem,
)

STRATEGIES = (WRITE_PROTECT, OUT_OF_SYNC, KVM, NESTED)


def play(strategy, deeds, **options):
    guest = ShadowGuest(strategy, **options)
    return "".join(guest.do(*deed)[0] for deed in deeds), guest


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
@pytest.mark.parametrize("each", [True, False])
def test_a_guest_that_invalidates_reads_its_new_frames(strategy, each):
    assert play(strategy, batch(6, each=each))[0] == "GHIJKL"


@pytest.mark.parametrize("n", [1, 2, 8, 24])
def test_what_a_batch_costs(n):
    """Exercise 1, and the chapter's bars."""
    exits = {
        (strategy, each): play(strategy, batch(n, each=each))[1].exits
        for strategy in STRATEGIES
        for each in (True, False)
    }
    assert exits == {
        (WRITE_PROTECT, True): 2 * n,
        (WRITE_PROTECT, False): 2 * n + 1,
        (OUT_OF_SYNC, True): 2 * n + 1,
        (OUT_OF_SYNC, False): n + 2,
        (KVM, True): 2 * n + 1,
        (KVM, False): n + 2,
        (NESTED, True): 0,
        (NESTED, False): 0,
    }


def test_of_four_stores_one_is_seen():
    """The chapter's first prediction."""
    guest = ShadowGuest(OUT_OF_SYNC)
    seen = [guest.do("move", page, "Z")[1].trap for page in range(4)]
    assert seen == ["unsync", None, None, None]


def test_what_the_guest_may_read_late():
    guest = ShadowGuest(OUT_OF_SYNC)
    guest.move(0, "C")
    assert (guest.read(0), guest.guest_says(0), guest.shadow_says(0)) == ("A", "C", "A")
    guest.invlpg(0)
    assert (guest.shadow_says(0), guest.read(0)) == ("–", "C")


def test_a_missing_page_owes_no_invalidation():
    """Exercise 2."""
    for strategy in STRATEGIES:
        guest = ShadowGuest(strategy)
        guest.unmap(0)
        guest.invlpg(0)
        assert (guest.read(0), guest.guest_says(0)) == ("page fault", "–")
        guest.move(0, "Q")
        assert guest.read(0) == "Q"


@pytest.mark.parametrize(
    ("duty", "strategy", "owed"),
    [
        ("write", WRITE_PROTECT, []),
        ("protect", WRITE_PROTECT, []),
        ("invlpg", OUT_OF_SYNC, [("invlpg", 0, "")]),
        ("cr3", OUT_OF_SYNC, [("load cr3", 0, "")]),
    ],
)
def test_what_a_forgotten_duty_shows(duty, strategy, owed):
    deeds = [("move", 0, "E"), *owed, ("read", 0, "")]
    assert play(strategy, deeds)[0] == "E"
    assert play(strategy, deeds, forget=duty)[0] == "A"


@pytest.mark.parametrize(
    ("duty", "strategy", "owed", "trap"),
    [
        ("write", WRITE_PROTECT, [], "drops the shadow entry"),
        ("invlpg", OUT_OF_SYNC, [("invlpg", 0, "")], "drops what the shadow has"),
        ("cr3", OUT_OF_SYNC, [("load cr3", 0, "")], "compares what is unsync"),
    ],
)
def test_a_trace_says_nothing_was_done_where_it_was_forgotten(duty, strategy, owed, trap):
    deeds = [("move", 0, "E"), *owed, ("read", 0, "")]
    told = {forget: record_shadow(strategy, deeds, forget=forget).steps for forget in (None, duty)}
    for forget, steps in told.items():
        said = [step for step in steps if step.event == "handled" and trap in step.text]
        assert bool(said) is (forget is None)
        last = [step for step in steps if step.event == "handled"][len(owed)]
        shadow = dict(last.state["registers"])["shadow 0"]
        assert shadow == ("A" if forget else "–"), last.text
        assert dict(steps[-1].state["registers"])["read"] == ("A" if forget else "E")


def test_entries_of_both_tables():
    guest = ShadowGuest(WRITE_PROTECT, used=False)
    assert guest.shadow_entry(3) == 0
    guest.read(3)
    assert guest.shadow_entry(3) & 0xFF_F002 == guest.guest_entry(3) & 0xFF_F000 | 0x10_0000
    guest.write(3, "x")
    assert guest.shadow_entry(3) & 2
    assert guest.read(3) == "x"
    with pytest.raises(Unsupported, match="no shadow table"):
        ShadowGuest(NESTED).shadow_entry(0)


@pytest.mark.parametrize(
    ("deed", "field"),
    [(("move", 64, "A"), "page"), (("move", 0, "?"), "letter"), (("fly",), "what")],
)
def test_what_the_guest_does_not_do(deed, field):
    with pytest.raises(BadInput, match=field):
        ShadowGuest(WRITE_PROTECT).do(*deed)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_the_trace_tells_each_exit_once_and_what_the_guest_read(strategy):
    deeds = batch(4)
    trace = record_shadow(strategy, deeds)
    read, guest = play(strategy, deeds)
    events = [step.event for step in trace.steps]
    assert events.count("exit") == events.count("handled") == guest.exits
    assert events.count("entry") == guest.exits + 1
    assert trace.counters == {"instructions": len(deeds), "finished in the kernel": guest.exits}
    assert read == "EFGH"
    assert [step.state["line"] for step in trace.steps if step.event == "instruction"] == list(
        range(len(deeds))
    )
    last = dict(trace.steps[-1].state["registers"])
    assert last["entry 3"] == last["processor 3" if strategy is NESTED else "shadow 3"] == "H"
    assert last["read"] == read
    assert strategy.name in trace.title
    assert not re.search(r"\d", trace.title), "the title gives the answer away"


def test_the_figure_stands_where_the_prediction_says():
    """`jump: [shadow, 5]` is the first store that nobody sees."""
    step = record_shadow(OUT_OF_SYNC, batch(4)).steps[5]
    assert (step.event, step.where) == ("instruction", "guest kernel")
    assert "entry of page 1" in step.text
    assert dict(step.state["registers"])["table"] == "writable"


def test_a_trace_needs_deeds():
    with pytest.raises(BadInput, match="deeds"):
        record_shadow(WRITE_PROTECT, [])
    with pytest.raises(BadInput, match="deeds"):
        record_shadow(WRITE_PROTECT, [("fly", 0, "")])


def test_problems_have_one_answer_and_are_marked():
    for seed in range(30):
        problem = shadow_problem(seed)
        letters, exits = problem.answer
        assert problem.mark().count("not answered yet") == 2
        assert problem.mark(letters, exits).count("right") == 2
        assert problem.mark(", ".join(letters.lower()), str(exits)).count("right") == 2
        assert problem.mark(letters, exits + 1).endswith("letters: right; exits: not so")
        assert problem.mark(letters + "?", exits + 1).count("not so") == 2
        assert shadow_problem(seed) == problem
    with pytest.raises(BadInput, match="seed"):
        shadow_problem(-1)


# --- the lab ----------------------------------------------------------------------------------


def lab_cell(root, word):
    notebook = json.loads((root / "labs/memory/shadow-page-tables.ipynb").read_text())
    [source] = [
        text
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and word in (text := "".join(cell["source"]))
    ]
    return source


COMPARE = """
def compare(table, shadow):
    kept = {}
    for page, (frame, *_) in shadow.items():
        if page in table:
            there, writable, accessed, dirty = table[page]
            if there == frame and accessed:
                kept[page] = (frame, writable and dirty, accessed, dirty)
    return kept
"""


def test_section_5_can_be_solved_and_is_not_given_away(root, capsys):
    source = lab_cell(root, "def hidden_tests")
    given = {"OUT_OF_SYNC": OUT_OF_SYNC, "ShadowGuest": ShadowGuest, "random": random, "SEED": 7}
    exec(source, dict(given))
    assert "of 100 not yet, look at page " in capsys.readouterr().out
    solved = re.sub(r"def compare.*?\n\n", COMPARE + "\n", source, count=1, flags=re.S)
    assert solved != source
    exec(solved, dict(given))
    assert capsys.readouterr().out == "100 of 100 that is it\n"
    for rule, forgotten in (
        ("there == frame and accessed", "accessed"),
        ("there == frame and accessed", "there == frame"),
        ("writable and dirty", "writable"),
        ("writable and dirty", "dirty"),
    ):
        assert rule in solved
        exec(solved.replace(rule, forgotten), dict(given))
        assert "not yet, look at page " in capsys.readouterr().out


def test_section_4_can_be_solved(root, capsys):
    source = lab_cell(root, "for strategy in (OUT_OF_SYNC, WRITE_PROTECT):")
    mine = 'mine = [("move", 0, "E"), ("read", 0, "")]'
    names = {"OUT_OF_SYNC": OUT_OF_SYNC, "WRITE_PROTECT": WRITE_PROTECT, "ShadowGuest": ShadowGuest}
    exec(re.sub(r"mine = .*", mine, source, count=1), names)
    assert capsys.readouterr().out == "A and E: that is it\n"
    for mine, why in (
        ('mine = [("move", 0, "E"), ("invlpg", 0), ("read", 0)]', "the same under both"),
        ('mine = [("read", 1)] * 3 + [("move", 0, "E"), ("read", 0)]', "more than four deeds"),
    ):
        exec(re.sub(r"mine = .*", mine, source, count=1), names)
        assert why in capsys.readouterr().out


@pytest.mark.parametrize("duty", ["protect", "write", "invlpg", "cr3"])
def test_section_4_what_a_broken_hypervisor_shows_tells_what_it_forgot(duty):
    """Three experiments tell the four apart."""
    shown = tuple(
        play(strategy, [("move", 0, "E"), *owed, ("read", 0, "")], forget=duty)[0]
        for strategy, owed in (
            (WRITE_PROTECT, []),
            (OUT_OF_SYNC, [("invlpg", 0, "")]),
            (OUT_OF_SYNC, [("load cr3", 0, "")]),
        )
    )
    assert (
        shown
        == {
            "write": ("A", "E", "E"),
            "protect": ("A", "A", "A"),
            "invlpg": ("E", "A", "E"),
            "cr3": ("E", "E", "A"),
        }[duty]
    )
