"""The map scene in a real browser: what it shows of each step, and the hand on the picture."""

from typing import Any

import pytest

from vmlib.ceph import CrushMap
from vmlib.ceph.crush.browser import for_browser
from vmlib.ceph.crush.change import reweighted
from vmlib.trace import Trace
from vmlib.view import player_html

pytestmark = pytest.mark.needs("chromium")

PLAYER = "document.getElementById('p').vmPlayer"
READ = """name => {
  const e = document.getElementById(name), one = s => e.querySelector(s);
  return { ...one(".vm-map").dataset, sentence: one(".vm-sentence").textContent,
    copies: one(".vm-copies").dataset.copies,
    marks: [...e.querySelectorAll(".vm-copy text")].map(t => t.textContent),
    won: [...e.querySelectorAll(".vm-straws-now .vm-won-name")].map(t => t.textContent),
    rows: [...e.querySelectorAll(".vm-draws tbody tr")].map(
      r => [...r.cells].map(c => c.textContent)),
    turned: [...e.querySelectorAll(".vm-turned li")].map(t => t.textContent) };
}"""
DRAWING = (
    "[...document.querySelectorAll('#p .vm-map, #p .vm-ribbons')].map(e => e.outerHTML).join()"
)


def explained(
    x: int = 8, *, osd: int = 7, weight: float = 2, shape: tuple[int, int, int] = (0, 6, 5)
) -> tuple[CrushMap, Trace]:
    crush = CrushMap.build(racks=shape[0], hosts=shape[1], osds=shape[2])
    return crush, reweighted(crush, osd, weight).explain("replicated", x, 3)


def figure(
    x: int = 8,
    *,
    osd: int = 7,
    weight: float = 2,
    shape: tuple[int, int, int] = (0, 6, 5),
    **options: Any,
) -> str:
    crush, trace = explained(x, osd=osd, weight=weight, shape=shape)
    inputs = [
        {"key": "x", "label": "input", "value": x},
        {"key": "osd", "value": osd},
        {"key": "weight", "label": "its weight", "value": weight},
        {"key": "out", "label": "it is out", "value": False},
    ]
    ask = [{"key": "moved", "question": "How many % move?", "kind": "number", "tolerance": 1}]
    start = max(s.i for s in trace.steps if s.event == "draw")
    return player_html(
        trace, name="p", model="crush", start=start, inputs=inputs, ask=ask,
        given=for_browser(crush, "replicated", 3), **options,
    )  # fmt: skip


def with_retry() -> int:
    """An input that is turned down once on its way."""
    return next(x for x in range(100) if explained(x)[1].counters.get("collision"))


@pytest.mark.parametrize("given", [True, False])
def test_every_step_can_be_read_back(open_page: Any, given: bool) -> None:
    """With the whole map beside it, and as a bare trace."""
    x = with_retry()
    _, trace = explained(x)
    page = open_page(figure(x) if given else player_html(trace, name="p"))
    page.evaluate("document.querySelector('#p details').open = true")
    table = page.locator("#p [data-row]").evaluate_all("rows => rows.map(r => r.textContent)")
    refusals: list[str] = []
    placed: list[str] = []
    for step in trace.steps:
        page.evaluate(f"{PLAYER}.go({step.i})")
        seen, state = page.evaluate(READ, "p"), step.state
        names = {row[0]: row[1] for s in trace.steps for row in s.state["draws"]}
        assert seen["sentence"] == step.text
        assert (seen["where"], seen["path"]) == (step.where, " ".join(state["path"]))
        assert seen["reason"] == (state["reason"] or "")
        assert seen["result"] == " ".join(state["result"])
        assert seen["straws"] == str(len(state["draws"]))
        winner = "" if state["winner"] is None else names[state["winner"]]
        assert seen["winner"] == winner
        if step.event == "draw":
            assert seen["won"] == [winner]
            shown = [[name, str(u), f"{weight / 65536:.2f}", f"−{-int(straw) / 1e6:.1f}"]
                     for _, name, u, _, weight, straw in state["draws"]]  # fmt: skip
            assert seen["rows"] == shown
        if step.event == "refuse":
            refusals.append(winner)
        assert [text.split(",")[0] for text in seen["turned"]] == refusals
        if step.event == "place" and state["winner"] >= 0:
            placed.append(names[state["winner"]])
        assert seen["copies"].split() == placed
        assert seen["marks"] == [str(k + 1) for k in range(len(placed))]
        for words in (step.text, *(row[5] for row in state["draws"]), *state["result"]):
            assert words in table[step.i]
    assert refusals
    assert placed == trace.steps[-1].state["result"]


def test_what_moves_waits_for_a_guess(open_page: Any) -> None:
    crush, _ = explained()
    told = crush.compare(reweighted(crush, 7, 2), "replicated", 3)
    page = open_page(figure())
    ways = page.locator("#p .vm-way")
    assert "what do you say" in ways.first.inner_text()
    assert not page.locator("#p .vm-ribbon").first.is_visible()
    page.fill("#p-ask-moved", f"{told.fraction * 100 + 0.8:.1f}")
    page.click("#p .vm-commit")
    assert page.locator("#p .vm-ribbon").first.is_visible()
    share, least = (round(1000 * part / told.placements) / 10 for part in (told.moved, told.needed))
    assert f"moves {share:g} %; the least would be {least:g} %" in ways.first.inner_text()
    verdict = page.inner_text("#p .vm-verdict")
    assert f"it is {share:g}." in verdict
    assert "(right)" in page.locator("#p .vm-verdict").text_content()
    assert page.evaluate(f"{PLAYER}.index === {PLAYER}.length - 1")


def test_every_control_changes_the_picture(open_page: Any) -> None:
    page = open_page(figure())
    page.click("text=show me")
    page.evaluate(f"{PLAYER}.go(4)")
    seen = [page.evaluate(DRAWING)]

    def looks_new() -> None:
        page.evaluate(f"{PLAYER}.go(4)")
        seen.append(page.evaluate(DRAWING))
        assert seen[-1] not in seen[:-1]

    page.fill("#p-in-x", "9")
    looks_new()
    page.focus("#p-in-weight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#p output") == "2.25"
    looks_new()
    page.get_by_label("osd.7 is out").check()
    looks_new()
    page.focus("#p .vm-hand")
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("weight of osd.8").input_value() == "1"
    looks_new()


def test_a_hand_on_the_keyboard(open_page: Any) -> None:
    """The arrows choose an OSD and its weight; the page hears nothing of it."""
    before = "window.heard = 0; addEventListener('keydown', () => heard++);"
    page = open_page(figure(), before=before)
    index = page.evaluate(f"{PLAYER}.index")
    page.focus("#p .vm-hand")
    told = page.locator("#p .vm-hand").get_attribute
    assert told("aria-valuetext") == "osd.7, weight 2.00"
    for key, text in [
        ("ArrowUp", "osd.7, weight 2.25"),
        ("ArrowDown", "osd.7, weight 2.00"),
        ("ArrowRight", "osd.8, weight 1.00"),
        ("ArrowUp", "osd.8, weight 1.25"),
        ("Home", "osd.0, weight 1.00"),
        ("End", "osd.29, weight 1.00"),
        ("ArrowRight", "osd.29, weight 1.00"),
    ]:
        page.keyboard.press(key)
        assert told("aria-valuetext") == text, key
    assert page.evaluate("heard") == 0
    assert page.evaluate("document.activeElement.className") == "vm-hand"
    assert page.inner_text("#p .vm-way >> nth=0").startswith("CRUSH")
    assert page.evaluate("document.querySelector('#p .vm-way').dataset.moved") == "0"
    page.get_by_label("osd.29 is out").check()
    assert told("aria-valuetext") == "osd.29, weight 1.00, out"
    assert page.locator("#p .vm-cross").count() >= 1
    assert index < page.evaluate(f"{PLAYER}.length")


def test_a_hand_on_the_mouse(open_page: Any) -> None:
    page = open_page(figure())
    page.click("text=show me")
    hand = page.locator("#p .vm-hand")
    box = hand.bounding_box()
    x, y = box["x"] + box["width"] * 20.5 / 31, box["y"] + box["height"] / 2  # osd.7 weighs two
    page.mouse.move(x, y)
    page.mouse.down()
    assert hand.get_attribute("aria-valuetext") == "osd.19, weight 1.00"
    page.mouse.move(x + 30, y)
    page.mouse.move(x + 56, y)
    assert hand.get_attribute("aria-valuetext") == "osd.19, weight 2.00"
    page.mouse.up()
    page.mouse.move(x + 200, y)
    assert hand.get_attribute("aria-valuetext") == "osd.19, weight 2.00"
    assert page.input_value("#p-in-weight") == "2"
    assert page.locator("#p .vm-ribbon").first.is_visible(), "what was told stays told"
    crush, _ = explained()
    moved = crush.compare(reweighted(crush, 19, 2), "replicated", 3).moved
    assert page.evaluate("Number(document.querySelector('#p .vm-way').dataset.moved)") == moved
    assert str(round(1000 * moved / 3072) / 10) in page.inner_text("#p .vm-verdict")


def test_ten_thousand_devices(open_page: Any) -> None:
    """What is thinner than a pixel is one band; three levels of straws; few elements."""
    page = open_page(figure(5, shape=(40, 25, 10)))
    assert "10,000 osds" in page.locator("#p .vm-map").text_content()
    assert "1,000 hosts" in page.locator("#p .vm-map").text_content()
    assert page.locator("#p .vm-straws").count() == 3
    assert page.evaluate("document.querySelectorAll('#p .vm-map *').length") < 500
    assert page.locator("#p .vm-copy").count() == 2
    widths = page.eval_on_selector_all(
        "#p .vm-lit rect", "cells => cells.map(c => c.getBoundingClientRect().width)"
    )
    assert min(widths) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_axe_finds_nothing(open_page: Any, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    page = open_page(figure(with_retry()), theme=theme, width=width, reduced_motion="reduce")
    page.click("text=show me")
    page.click("#p summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()
