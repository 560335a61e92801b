"""The browser's model of the four rulers against the Python, on thousands of inputs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from vmlib.memory import (
    HostPages,
    four_controls,
    four_opening,
    four_slots,
    record_four_example,
)
from vmlib.memory.four_example import ACCESSES, PLACES, POSITIONS
from vmlib.view import player_html

pytestmark = pytest.mark.needs("chromium")
HOST = HostPages.load(Path(__file__).parents[2] / "book/memory/traces/four-host.json")
RUN = """list => {
  const { trace, given } = JSON.parse(document.querySelector("#p script").textContent);
  const template = vmView.unpack(trace);
  return list.map(([gva, position, access]) =>
    JSON.stringify(vmView.models.four.run(template, { gva, position, access }, given)));
}"""
KERNELS = 0xFFFF_8000_0000_0000
"""Here the guest maps its memory from GPA 0 on."""
WAYS = [(position, access) for position in POSITIONS for access in ACCESSES]


def figure(**options: Any) -> str:
    return player_html(record_four_example(HOST), name="p", **{**four_controls(HOST), **options})


def addresses(chance: random.Random, n: int) -> list[int]:
    """Near the places, far from them, and between."""
    found = []
    for _ in range(n):
        gva = chance.choice(list(PLACES)) & -4096
        kind = chance.randrange(6)
        if kind == 0:
            gva = chance.getrandbits(64)
        elif kind == 1:
            gva ^= 1 << chance.randrange(12, 64)
        elif kind < 4:
            gva += chance.randrange(-5, 6) << 12
        else:
            gva = 0xFFFF_8000_0000_0000 + chance.randrange(1 << 21)
        found.append((gva + chance.randrange(4096)) % (1 << 64))
    return found


def test_the_model_equals_the_python(open_page: Any) -> None:
    """Whole traces: every sentence, address and counter, and where the figure opens."""
    chance, page = random.Random(4), open_page(figure())
    slots = [slot for place in POSITIONS for slot in four_slots(place, HOST.hvas)]
    edges = {KERNELS + gpa + beside for slot in slots for gpa in (slot.gpa, slot.end)
             for beside in (-1, 0)} - {KERNELS - 1}  # fmt: skip
    inputs = [
        (f"{gva:#x}", *way)
        for way in WAYS
        for gva in [*PLACES, *sorted(edges), *addresses(chance, 400)]
    ]
    assert len(inputs) > 2400
    ends = set()
    for given, text in zip(inputs, page.evaluate(RUN, inputs), strict=True):
        model, trace = json.loads(text), record_four_example(HOST, int(given[0], 16), *given[1:])
        real = json.loads(json.dumps(trace.to_dict()))
        assert model["trace"]["steps"] == real["steps"], given
        assert model["trace"]["counters"] == real["counters"], given
        assert model["trace"]["provenance"] == real["provenance"]
        assert model["start"] == four_opening(trace), given
        assert model["answers"] == {"addresses": trace.counters["addresses"]}
        ends.add((trace.steps[-1].event, trace.steps[-1].text[:4]))
    assert {event for event, _ in ends} == {"fault", "mmio", "later", "arrived"}
    assert {("mmio", "Slot"), ("mmio", "No s"), ("fault", "Page"), ("fault", "Gene")} <= ends


def test_every_control_changes_the_picture(open_page: Any) -> None:
    page = open_page(figure(start=3))
    player = "document.getElementById('p').vmPlayer"

    def drawing() -> str:
        return page.evaluate("document.querySelector('#p svg.vm-rulers').innerHTML")

    seen = [drawing()]
    page.get_by_label("slot 1 is").select_option("0xc0000")
    page.evaluate(f"{player}.go(9)")
    assert "No slot holds GPA 0x82123" in page.inner_text("#p .vm-sentence")
    assert "✗ MMIO" in (page.text_content("#p svg.vm-rulers") or "")
    seen.append(drawing())
    page.get_by_role("button", name="the ROM").click()
    page.evaluate(f"{player}.go(9)")
    assert page.inner_text("#p [data-register=HVA]").startswith("0x7")
    seen.append(drawing())
    page.get_by_label("what happens").select_option("write")
    page.evaluate(f"{player}.go(9)")
    assert "is read-only" in page.inner_text("#p .vm-sentence")
    seen.append(drawing())
    assert len(set(seen)) == 4
    page.get_by_label("address", exact=True).fill("rubbish")
    assert "16 hexadecimal digits" in page.inner_text("#p .vm-help")


def test_a_click_on_the_first_ruler_chooses_an_address(open_page: Any) -> None:
    page = open_page(figure(start=0))
    box = page.locator("#p svg.vm-rulers").bounding_box()
    page.mouse.click(box["x"] + 10, box["y"] + 44)
    assert page.inner_text("#p [data-register=GVA]") == "0x400123"


NAMES_OUTSIDE = """() => {
  const boxes = [...document.querySelectorAll('#p .vm-segment')].map(
    e => e.getBoundingClientRect());
  return [...document.querySelectorAll('#p .vm-segment-name')].filter(e => {
    const name = e.getBoundingClientRect();
    return !boxes.some(box => box.top < name.bottom && box.bottom > name.top
      && box.left + 2 <= name.left && name.right <= box.right - 2);
  }).map(e => e.textContent);
}"""


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_each_name_stands_inside_its_segment(open_page: Any, width: int) -> None:
    page = open_page(figure(start=0), width=width)
    names = page.locator("#p .vm-segment-name")
    assert names.count() >= 10
    for name in ("program", "device"):
        assert names.get_by_text(name, exact=True).count() == 1
    for step in range(page.evaluate("document.getElementById('p').vmPlayer.length")):
        page.evaluate(f"document.getElementById('p').vmPlayer.go({step})")
        assert page.evaluate(NAMES_OUTSIDE) == []


def test_every_step_shows_its_addresses(open_page: Any) -> None:
    trace = record_four_example(HOST)
    page = open_page(figure(start=four_opening(trace)))
    for step in trace.steps:
        page.evaluate(f"document.getElementById('p').vmPlayer.go({step.i})")
        known = [pair for pair in step.state["registers"] if pair[1] != "unknown"]
        shown = page.eval_on_selector_all(
            "#p [data-register]", "all => all.map(e => [e.dataset.register, e.textContent])"
        )
        assert shown == known
        pins = page.eval_on_selector_all("#p .vm-pin", "all => all.map(e => e.dataset.space)")
        assert pins == [name for name, _ in known]
        assert page.inner_text("#p .vm-sentence") == step.text
