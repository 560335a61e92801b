"""The figure with several recordings: picking one, guessing, and what its data must hold."""

from typing import Any

import pytest
from view_helpers import make_trace

from vmlib.errors import BadInput
from vmlib.view import Player, player_data, player_html

ASK = [{"key": "exits", "question": "How many exits?", "kind": "number"}]
NOW = "document.getElementById('p').vmPlayer.index"
LENGTH = "document.getElementById('p').vmPlayer.length"


def choices(*traces: Any) -> list[dict[str, Any]]:
    return [
        {
            "label": f"recording {i}",
            "trace": trace,
            "start": i + 1,
            "answers": {"exits": i},
            "because": f"Because of `{i}`.",
        }
        for i, trace in enumerate(traces)
    ]


def figure() -> str:
    short, long = make_trace(12), make_trace(30)
    options = choices(short, long)
    return player_html(short, name="p", start=1, choose="what", choices=options, ask=ASK)


@pytest.mark.needs("chromium")
def test_the_reader_picks_a_recording_and_guesses(open_page: Any) -> None:
    page = open_page(figure())
    verdict = page.locator("#p .vm-verdict")
    assert (page.evaluate(NOW), page.evaluate(LENGTH)) == (1, 12)
    assert page.locator("#p.vm-veiled").count() == 1
    page.click("#p .vm-commit")
    assert "as your guess" in page.inner_text("#p .vm-help")
    page.fill("#p-ask-exits", "many")
    page.keyboard.press("Enter")
    assert "Write a number" in page.inner_text("#p .vm-help")
    page.fill("#p-ask-exits", "3")
    page.keyboard.press("Enter")
    assert "You said 3 · it is 0." in verdict.inner_text()
    assert "Because of 0." in verdict.inner_text()
    assert page.evaluate(NOW) == 11
    assert page.locator("#p.vm-veiled").count() == 0
    page.select_option("#p-choice", label="recording 1")
    assert verdict.inner_text() == ""
    assert page.input_value("#p-ask-exits") == ""
    assert page.locator("#p.vm-veiled").count() == 1
    assert (page.evaluate(NOW), page.evaluate(LENGTH)) == (2, 30)
    assert page.get_by_label("what", exact=True).count() == 1
    page.click("#p >> text=show me")
    assert "It is 1." in verdict.inner_text()
    page.click("#p >> text=watch it from the start")
    assert page.evaluate("document.getElementById('p').vmPlayer.playing")
    page.select_option("#p-choice", label="recording 0")
    assert page.evaluate(LENGTH) == 12


@pytest.mark.needs("chromium")
def test_the_choice_is_made_with_the_keyboard_alone(open_page: Any) -> None:
    page = open_page(figure())
    page.focus("#p-choice")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(LENGTH) == 30
    assert page.evaluate(NOW) == 2, "the player does not take the picker's keys"


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(open_page: Any, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    page = open_page(figure(), theme=theme, width=width)
    page.click("#p >> text=show me")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()


def test_the_figures_own_trace_travels_once() -> None:
    trace, other = make_trace(12), make_trace(30)
    data = player_data(trace, name="p", choices=choices(other, trace), ask=ASK)
    assert [one["trace"] is None for one in data["choices"]] == [False, True]
    assert "choices" not in player_data(trace, name="p")


def test_what_is_wrong_is_named() -> None:
    trace, other = make_trace(12), make_trace(30)
    with pytest.raises(BadInput, match="own trace"):
        player_data(trace, name="p", choices=choices(other))
    with pytest.raises(BadInput, match=r"choices\[0\]: needs a label"):
        player_data(trace, name="p", choices=[{"trace": trace}])
    with pytest.raises(BadInput, match="an answer to 'exits'"):
        player_data(trace, name="p", ask=ASK, choices=[{"label": "x", "trace": trace}])
    wrong = choices(trace, other)
    wrong[1]["start"] = 30
    with pytest.raises(BadInput, match=r"choices\[1\].start"):
        player_data(trace, name="p", choices=wrong, ask=ASK)


def test_a_new_trace_in_a_live_notebook_leaves_the_choices_behind() -> None:
    trace = make_trace(12)
    player = Player(trace, name="p", choices=choices(trace, make_trace(30)))
    player.trace = make_trace(5)
    assert "choices" not in player.data
    assert player.data["start"] == 0
