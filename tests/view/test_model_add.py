"""The browser's model of the adding guest against the machine itself, step for step."""

import random
from typing import Any

import pytest

from vmlib.cpu import add_guest
from vmlib.machine import Machine
from vmlib.trace import Trace
from vmlib.view import player_html

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.needs("unicorn")]
SEED = 2016
INPUTS = [
    {"key": "a", "label": "first", "value": 200},
    {"key": "b", "label": "second", "value": 100},
]
ASK = [
    {"key": "output", "question": "What does it print?", "kind": "text"},
    {"key": "exits", "question": "How many times does `KVM_RUN` return?", "kind": "number"},
]
EVERY = ("AX", "BX", "CX", "DX", "SI", "DI", "SP", "BP", "IP", "CF", "PF", "ZF", "SF", "OF", "IF")


def record(a: int, b: int, **options: Any) -> Trace:
    with Machine("unicorn") as machine:
        return machine.load(add_guest(a, b)).record(**options)


def pairs(n: int) -> list[tuple[int, int]]:
    chance = random.Random(SEED)
    edges = [(0, 0), (255, 255), (255, 1), (0, 9), (5, 5), (127, 1), (99, 1), (128, 128)]
    return edges + [(chance.randrange(256), chance.randrange(256)) for _ in range(n)]


@pytest.mark.parametrize("registers", [("AX", "DX", "SP", "IP", "ZF"), EVERY], ids=["shown", "all"])
def test_the_model_equals_the_recording(open_page: Any, registers: tuple[str, ...]) -> None:
    template = record(200, 100, registers=registers)
    page = open_page(player_html(template, name="p", model="add", inputs=INPUTS, ask=ASK))
    run = """([a, b]) => vmView.models.add.run(
      vmView.unpack(JSON.parse(document.querySelector("#p script").textContent).trace), { a, b })"""
    for a, b in pairs(60):
        model = page.evaluate(run, [a, b])
        real = record(a, b, registers=registers).to_dict()
        assert model["trace"]["steps"] == real["steps"], (a, b)
        assert list(model["trace"]["counters"].items()) == list(real["counters"].items())
        assert model["answers"]["output"] == f"{(a + b) % 256}\n"
        assert model["answers"]["exits"] == len(f"{(a + b) % 256}") + 2


def test_the_model_adds_like_python_for_every_pair(open_page: Any) -> None:
    page = open_page(player_html(record(200, 100), name="p", model="add", inputs=INPUTS, ask=ASK))
    wrong = page.evaluate(
        """() => {
          const { trace } = JSON.parse(document.querySelector("#p script").textContent);
          const template = vmView.unpack(trace), wrong = [];
          for (let a = 0; a < 256; a += 3)
            for (let b = 0; b < 256; b++) {
              const { answers } = vmView.models.add.run(template, { a, b });
              if (answers.output !== `${(a + b) % 256}\\n`) wrong.push([a, b, answers]);
            }
          return wrong;
        }"""
    )
    assert wrong == []


def test_the_experiment(open_page: Any) -> None:
    html = player_html(record(200, 100), name="p", start=1, model="add", inputs=INPUTS, ask=ASK)
    page = open_page(html)
    index = "document.getElementById('p').vmPlayer.index"
    verdict = page.locator("#p .vm-verdict")
    assert page.evaluate(index) == 1
    assert page.locator("#p.vm-veiled").count() == 1
    page.fill("#p-in-a", "300")
    assert "from 0 to 255" in page.inner_text("#p .vm-help")
    page.fill("#p-in-a", "7")
    assert page.inner_text("#p .vm-help") == ""
    assert "mov al, 7" in page.inner_text("#p .vm-listing")
    assert "model" in page.inner_text("#p .vm-origin")
    page.click("#p .vm-commit")
    assert "your guess first" in page.inner_text("#p .vm-help")
    assert verdict.inner_text() == ""
    page.fill("#p-ask-output", "107")
    page.fill("#p-ask-exits", "4")
    page.keyboard.press("Enter")
    assert "You said 107 · it is 107⏎." in verdict.inner_text()
    assert "You said 4 · it is 5." in verdict.inner_text()
    assert verdict.locator(".vm-mark").all_text_contents() == ["✓ (right)", "✗ (not so)"]
    assert page.evaluate(index) == page.evaluate("document.getElementById('p').vmPlayer.length") - 1
    page.fill("#p-in-b", "3")
    assert verdict.inner_text() == ""
    assert page.evaluate(index) == 1
    page.click("#p >> text=show me")
    assert "It is 10⏎." in verdict.inner_text()
    page.click("#p >> text=watch it from the start")
    assert page.evaluate("document.getElementById('p').vmPlayer.playing")
    page.fill("#p-in-a", "200")
    page.fill("#p-in-b", "100")
    assert "recorded on Unicorn" in page.inner_text("#p .vm-origin")
