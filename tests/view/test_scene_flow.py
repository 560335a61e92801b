"""The flow scene in a real browser: every step can be read back, and nothing leaves the page."""

from typing import Any

import pytest

from vmlib.ceph.rados import record_write
from vmlib.trace import Trace
from vmlib.view import player_html

pytestmark = pytest.mark.needs("chromium")

RUNS: dict[str, dict[str, Any]] = {
    "three": {},
    "chunks": {"erasure": True},
    "replica": {"kill": "replica"},
    "primary": {"kill": "primary"},
}
READ = """name => {
  const e = document.getElementById(name), all = s => [...e.querySelectorAll(s)];
  return {
    where: e.querySelector("[data-where]").dataset.where,
    sentence: e.querySelector(".vm-sentence").textContent,
    groups: all("[data-group]").map(g => [g.dataset.group, g.dataset.role, g.dataset.mode]),
    boxes: all("[data-box]").map(b => [b.dataset.box, b.querySelector(".vm-holds").textContent,
      b.dataset.mode]),
    wires: all("[data-wire]").map(w => w.dataset.wire).sort(),
    labels: all(".vm-wire text").map(t => t.textContent),
    acks: e.querySelector("[data-acks]").dataset.acks,
    acting: all(".vm-group.vm-acting").map(g => g.dataset.group),
    time: Number(e.querySelector("[data-time]").dataset.time),
    counters: e.querySelector(".vm-counters").textContent,
  };
}"""


@pytest.fixture(scope="module", params=RUNS)
def trace(request: Any) -> Trace:
    return record_write(**RUNS[request.param])


def test_every_step_can_be_read_back(open_page: Any, trace: Trace) -> None:
    page = open_page(player_html(trace, name="p"))
    for step in trace.steps:
        page.evaluate(f"document.getElementById('p').vmPlayer.go({step.i})")
        seen, state = page.evaluate(READ, "p"), step.state
        groups = state["groups"]
        assert seen["where"] == step.where
        assert seen["acting"] == [step.where]
        assert seen["sentence"] == step.text.replace("`", "")
        assert seen["groups"] == [[g[0], g[2], g[4]] for g in groups]
        assert seen["boxes"] == [[f"{g[0]}/{b}", it, how] for g in groups for b, it, how in g[5]]
        assert seen["wires"] == sorted("|".join(wire) for wire in state["wires"])
        assert sorted(label.removeprefix("✕ ") for label in seen["labels"]) == sorted(
            wire[2] for wire in state["wires"]
        )
        assert seen["acks"].split() == state["acks"]
        assert seen["time"] == state["time"]
        for name, value in state["sofar"]:
            assert f"{name} {value}" in seen["counters"]


def test_table_holds_every_state_in_words(open_page: Any, trace: Trace) -> None:
    page = open_page(player_html(trace, name="p"))
    page.click("#p summary")
    page.wait_for_selector("#p .vm-rows tr")
    rows = page.eval_on_selector_all(
        "#p .vm-rows tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    for step, row in zip(trace.steps, rows, strict=True):
        assert row[:4] == [str(step.i), step.where, step.event, step.text]
        for group in step.state["groups"]:
            for box, held, _ in group[5]:
                assert f"{box} {held}" in row[5]
            assert (f"{group[1]} (no power) down" in row[5]) is (group[4] == "down")
        for source, target, label, mode in step.state["wires"]:
            assert f"{source} → {target}: {label}, {mode}" in row[6]
        assert row[7].split(", ") == (step.state["acks"] or [""])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_axe_finds_nothing(open_page: Any, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    body = "".join(
        player_html(record_write(**options), name=name, start=12) for name, options in RUNS.items()
    )
    page = open_page(body, theme=theme, width=width, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overflow = """() => [...document.querySelectorAll('.vm-flow [data-group]')].filter(g => {
      const frame = g.querySelector('.vm-group-frame').getBoundingClientRect();
      return [...g.querySelectorAll('text')].some(t => {
        const box = t.getBoundingClientRect();
        return box.right > frame.right + 1 || box.left < frame.left - 1;
      });
    }).map(g => g.dataset.group)"""
    assert page.evaluate(overflow) == []
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()


HIDDEN = """() => {
  const boxes = s => [...document.querySelectorAll(s)].map(
    e => [e.textContent, e.getBoundingClientRect()]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  const player = document.getElementById("p").vmPlayer, found = [];
  for (let i = 0; i < player.length; i++) {
    player.go(i);
    const words = boxes("#p .vm-group text");
    for (const [said, label] of boxes("#p .vm-wire:has(text)")) {
      found.push(...words.filter(([, word]) => meet(label, word)).map(([word]) => [i, said, word]));
    }
  }
  return found;
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_no_message_hides_what_a_node_holds(open_page: Any, trace: Trace, width: int) -> None:
    page = open_page(player_html(trace, name="p"), width=width)
    assert page.evaluate(HIDDEN) == []


def test_it_is_drawn_again_when_the_page_gets_narrow(open_page: Any) -> None:
    page = open_page(player_html(record_write(erasure=True), name="p", start=9))
    wide = page.locator("#p .vm-flow").bounding_box()["width"]
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function(
        "w => document.querySelector('#p .vm-flow').getBoundingClientRect().width < w", arg=wide
    )
    assert page.evaluate(READ, "p")["acting"] == [page.evaluate(READ, "p")["where"]]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
