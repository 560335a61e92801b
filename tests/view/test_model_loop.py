"""The browser's model of the two loops against the machine itself, for every setting there is."""

from itertools import product
from typing import Any

import pytest

from vmlib.loop_trace import TRIES, opening, record_loop
from vmlib.trace import Trace
from vmlib.view import player_html

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.needs("unicorn")]
SETTINGS = list(product(TRIES, (False, True), (False, True)))
INPUTS = [
    {"key": "tries", "label": "the guest tries", "value": "out"},
    {"key": "irqchip", "label": "irqchip in the kernel", "value": False},
    {"key": "ioeventfd", "label": "`ioeventfd` on the doorbell", "value": False},
]
ASK = [
    {"key": "exits", "question": "How often is the guest left?", "kind": "number"},
    {"key": "returns", "question": "How often does `KVM_RUN` return?", "kind": "number"},
]
RUN = """([tries, irqchip, ioeventfd]) => vmView.models.loop.run(
  vmView.unpack(JSON.parse(document.querySelector("#p script").textContent).trace),
  { tries, irqchip, ioeventfd })"""


def figure(trace: Trace, **options: Any) -> str:
    return player_html(trace, name="p", model="loop", inputs=INPUTS, ask=ASK, **options)


@pytest.mark.parametrize("template", [("out", False, False), ("load", True, True)])
def test_the_model_equals_the_recording(open_page: Any, template: tuple[str, bool, bool]) -> None:
    page = open_page(figure(record_loop(*template)))
    for setting in SETTINGS:
        model = page.evaluate(RUN, list(setting))
        trace = record_loop(*setting)
        real = trace.to_dict()
        assert model["trace"]["steps"] == real["steps"], setting
        assert list(model["trace"]["counters"].items()) == list(real["counters"].items())
        assert model["start"] == opening(trace, setting[0])
        events = [step.event for step in trace.steps]
        assert model["answers"] == {
            "returns": events.count("return"),
            "exits": events.count("return") + events.count("handled"),
        }


def test_the_model_offers_what_the_guest_can_try(open_page: Any) -> None:
    page = open_page(figure(record_loop()))
    offered = page.evaluate("vmView.models.loop.inputs.tries.options")
    assert [tuple(pair) for pair in offered] == list(TRIES.items())


def test_every_control_changes_the_picture(open_page: Any) -> None:
    """From any setting, each switch turned and each other thing tried gives another trace."""
    page = open_page(figure(record_loop()))
    seen = {setting: page.evaluate(RUN, list(setting))["trace"]["steps"] for setting in SETTINGS}
    shapes = [
        [(step["where"], step["state"]["crossing"], step["text"]) for step in steps]
        for steps in seen.values()
    ]
    assert all(one != other for i, one in enumerate(shapes) for other in shapes[:i])


def test_the_switches(open_page: Any) -> None:
    trace = record_loop()
    start = opening(trace)
    page = open_page(figure(trace, start=start))
    player = "document.getElementById('p').vmPlayer"
    verdict = page.locator("#p .vm-verdict")
    assert page.evaluate(f"{player}.index") == start
    assert page.evaluate(f"{player}.trace.counters")["exits to user space"] == 5
    assert "recorded on Unicorn" in page.inner_text("#p .vm-origin")
    page.get_by_label("irqchip in the kernel").focus()
    page.keyboard.press("Space")  # turns the switch, and does not start the player
    assert page.get_by_label("irqchip in the kernel").is_checked()
    assert not page.evaluate(f"{player}.playing")
    assert page.evaluate(f"{player}.trace.counters")["exits to user space"] == 3
    assert "model “loop”" in page.inner_text("#p .vm-origin")
    page.get_by_label("ioeventfd on the doorbell").check()
    page.get_by_label("the guest tries").select_option("CPUID")
    assert page.evaluate(f"{player}.index") == 3
    assert "under whom do I run?" in page.inner_text("#p .vm-sentence")
    assert verdict.inner_text() == ""
    page.fill("#p-ask-exits", "5")
    page.fill("#p-ask-returns", "2")
    page.click("#p .vm-commit")
    assert "You said 5 · it is 5." in verdict.inner_text()
    assert "You said 2 · it is 1." in verdict.inner_text()
    page.get_by_label("irqchip in the kernel").uncheck()
    assert verdict.inner_text() == ""
    assert page.locator("#p.vm-veiled").count() == 1
    page.get_by_label("ioeventfd on the doorbell").uncheck()
    page.get_by_label("the guest tries").select_option("out")
    assert "recorded on Unicorn" in page.inner_text("#p .vm-origin")
