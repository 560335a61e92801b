"""The walk scene in a real browser: what it draws, how it is driven, who can read it."""

from typing import Any

import pytest

from vmlib.memory import example_controls, record_example, walk_opening
from vmlib.memory.walk_example import ACCESSES, GUESTS, HOSTS, PLACES, START
from vmlib.view import player_html

pytestmark = pytest.mark.needs("chromium")
PLAYER = "document.getElementById('p').vmPlayer"
READ = """() => {
  const e = document.getElementById("p"), one = (s) => e.querySelector(s), all = (s) => [...e.querySelectorAll(s)];
  const place = (node) => node.dataset.cell.split(",").map(Number);
  return {
    cell: one("svg[data-cell]").dataset.cell,
    end: one("svg[data-cell]").dataset.end,
    sentence: one(".vm-sentence").textContent,
    lit: all(".vm-lit").map((node) => [place(node), node.textContent]),
    gone: all(".vm-gone").map(place), saved: all(".vm-saved").map(place), ahead: all(".vm-ahead").map(place),
    here: all(".vm-here").map(place), guilty: all(".vm-guilty").map(place),
    fields: all(".vm-part .vm-index").map((node) => node.textContent),
    rows: all(".vm-row-index").map((node) => node.textContent),
    registers: all("[data-register]").map((c) => [c.dataset.register, c.textContent]),
    entry: one("[data-entry]")?.dataset.entry ?? null,
    bits: all(".vm-bits li").map((li) => [...li.children].map((part) => part.textContent)),
    counters: one(".vm-counters").textContent,
  };
}"""  # noqa: E501


def figure(trace: Any = None, **options: Any) -> str:
    return player_html(trace or record_example(), name="p", **options)


def live(**options: Any) -> str:
    trace = record_example()
    return figure(trace, start=walk_opening(trace), **example_controls(), **options)


def go(page: Any, i: int) -> Any:
    page.evaluate(f"{PLAYER}.go({i})")
    return page.evaluate(READ)


@pytest.mark.parametrize(
    ("gva", "guest", "host", "access"),
    [
        (START, "4K", "ept", "read"),
        (START, "2M", "ept-2M", "read"),
        (START, "five", "npt", "next"),
        (START, "4K", "none", "again"),
        (START, "off", "ept-1G", "read"),
        (START, "4K", "ept", "write"),
        (0x7F21_1000_0000, "4K", "ept", "read"),
    ],
)
def test_every_step_can_be_read_back(
    open_page: Any, gva: int, guest: str, host: str, access: str
) -> None:
    trace = record_example(gva, guest, host, access)
    page = open_page(figure(trace))
    for step in trace.steps:
        seen, state = go(page, step.i), step.state
        cell, end = state["cell"], state["end"]
        assert seen["sentence"] == step.text
        assert seen["cell"] == (",".join(map(str, cell["place"])) if cell else "")
        assert seen["here"] == ([cell["place"]] if cell else [])
        numbers = [f"{i}" for i in range(1, len(state["lit"]) + 1)]
        blamed = end and end["cell"] and end["cell"]["place"]
        assert sorted((p, t.removeprefix("✗ ")) for p, t in seen["lit"]) == sorted(
            zip(state["lit"], numbers, strict=True)
        )
        assert sorted(seen["gone"]) == sorted(state["gone"])
        assert sorted(seen["saved"]) == sorted(state["saved"])
        drawn = len(seen["lit"]) + len(seen["gone"]) + len(seen["saved"]) + len(seen["ahead"])
        assert drawn == state["possible"]
        assert seen["fields"] == [field[3] for field in state["bars"][0][2]]
        known = [pair for pair in state["registers"] if pair[1] != "unknown"]
        assert seen["registers"] == known
        assert seen["guilty"] == ([blamed] if blamed else [])
        if cell:
            assert seen["entry"] == cell["entry"]
            assert [b[1] for b in seen["bits"]] == [value for _, value in cell["bits"]]
            if len(state["bars"]) > 1:
                assert seen["rows"] == [field[3] for field in state["bars"][1][2][:-1]]
        if blamed:
            assert any(name == f"✗ {end['bit']}" for name, _ in seen["bits"])
        assert f"references {len(state['lit'])} of {state['possible']}" in seen["counters"]


def test_the_default_frame_shows_the_puzzle(open_page: Any) -> None:
    page = open_page(live())
    seen = page.evaluate(READ)
    assert len(seen["lit"]) == 5
    assert len(seen["ahead"]) == 19
    assert "5 of 24" in seen["counters"]


def test_the_reader_types_any_address(open_page: Any) -> None:
    page = open_page(live())
    page.evaluate(f"{PLAYER}.go(25)")
    box = page.get_by_label("address", exact=True)
    for text in ("0x7fff_ffff_d008", "ffffffff`81000000", "5555 5555 7000", "0"):
        gva = int(text.replace("`", "").replace(" ", ""), 16)
        box.fill(text)
        last = record_example(gva).steps[-1]
        seen = page.evaluate(READ)
        assert seen["sentence"] == last.text, "who looks at the end sees the next one's"
        assert seen["end"] == last.state["end"]["kind"]
    assert "model “walk”" in page.inner_text("#p .vm-origin")
    box.fill("0xg")
    assert "hexadecimal" in page.inner_text("#p .vm-help")
    assert box.get_attribute("aria-invalid") == "true"
    assert page.evaluate(READ)["sentence"] == record_example(0).steps[-1].text
    box.fill("")
    assert "hexadecimal" in page.inner_text("#p .vm-help")
    box.fill(f"{START:#x}")
    assert page.inner_text("#p .vm-help") == ""
    assert page.evaluate(READ)["sentence"] == record_example().steps[-1].text


def test_places_lead_there(open_page: Any) -> None:
    page = open_page(live())
    page.evaluate(f"{PLAYER}.go(25)")
    for gva, name in PLACES.items():
        page.get_by_role("button", name=name, exact=True).click()
        assert page.get_by_label("address", exact=True).input_value() == f"{gva:#x}"
        assert page.evaluate(READ)["sentence"] == record_example(gva).steps[-1].text


def test_a_field_is_dragged_and_turned_with_the_keys(open_page: Any) -> None:
    page = open_page(live())
    slider = page.get_by_role("slider", name="PT index, bits 20 to 12 of the address")
    slider.focus()
    page.keyboard.press("ArrowUp")
    assert page.get_by_label("address", exact=True).input_value() == "0x555555555123"
    assert slider.get_attribute("aria-valuetext") == "0x155"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    assert page.evaluate(f"{PLAYER}.index") == walk_opening(record_example())
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuenow") == "0"
    page.keyboard.press("ArrowDown")
    assert slider.get_attribute("aria-valuenow") == "0"
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuenow") == "511"
    page.keyboard.press("PageDown")
    assert slider.get_attribute("aria-valuenow") == "495"
    box = slider.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y, steps=3)
    page.mouse.move(x - 60, y, steps=3)
    page.mouse.up()
    assert slider.get_attribute("aria-valuenow") == "485"
    page.mouse.move(x + 60, y)
    assert slider.get_attribute("aria-valuenow") == "485", "let go is let go"
    top = page.get_by_role("slider", name="PML4 index")
    top.focus()
    page.keyboard.press("End")
    value = int(page.get_by_label("address", exact=True).input_value(), 16)
    assert value >> 47 == (1 << 17) - 1, "the bits above follow: it stays canonical"


def test_what_a_large_page_does_not_translate_is_offset(open_page: Any) -> None:
    page = open_page(live())
    page.select_option("#p-in-guest", "2M")
    page.select_option("#p-in-host", "ept-2M")
    names = "#p .vm-part-name > span:first-child"
    assert page.locator(names).all_text_contents() == ["PML4", "PDPT", "PD", "PT", "offset"]
    page.evaluate(f"{PLAYER}.go(12)")  # the guest's PDE, which maps a page
    assert page.locator(names).all_text_contents() == ["PML4", "PDPT", "PD", "offset", "offset"]
    page.evaluate(f"{PLAYER}.go(15)")  # the host's PDE for the data
    assert page.locator("#p .vm-row").all_text_contents()[2:4] == ["PD", "offset"]


def test_without_a_model_nothing_looks_as_if_it_could_be_moved(open_page: Any) -> None:
    page = open_page(figure())
    assert page.locator("#p .vm-part[role], #p .vm-part[tabindex]").count() == 0
    assert page.locator("#p .vm-part").count() == 5


def test_every_control_changes_the_picture(open_page: Any) -> None:
    page = open_page(live())
    page.evaluate(f"{PLAYER}.go(99)")
    for key, options in (("guest", GUESTS), ("host", HOSTS), ("access", ACCESSES)):
        seen = []
        first = page.input_value(f"#p-in-{key}")
        for option in options:
            page.select_option(f"#p-in-{key}", option)
            page.evaluate(f"{PLAYER}.go(99)")
            now = page.evaluate(READ)
            seen.append(str([now[k] for k in ("lit", "gone", "saved", "registers", "sentence")]))
            assert page.locator("#p .vm-part").count() == len(now["fields"])
        page.select_option(f"#p-in-{key}", first)
        same = {"host": 1, "access": 1}.get(key, 0)  # what jumps sees what reads sees; so does AMD
        assert len(set(seen)) >= len(options) - same, key


def test_keys_step_and_a_click_on_a_cell_goes_there(open_page: Any) -> None:
    page = open_page(live())
    page.focus("#p")
    page.keyboard.press("End")
    assert page.evaluate(f"{PLAYER}.index") == 25
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(READ)["cell"] == "4,3"
    page.locator("#p [data-cell='2,1'] rect").click(force=True)
    assert page.evaluate(f"{PLAYER}.index") == 12
    assert page.evaluate(READ)["cell"] == "2,1"
    page.locator("#p [data-cell='3,4'] rect").click(force=True)
    assert page.evaluate(f"{PLAYER}.index") == 20


def test_the_table_tells_every_reference(open_page: Any) -> None:
    trace = record_example()
    page = open_page(figure(trace))
    page.click("#p summary")
    page.wait_for_selector("#p .vm-rows tr")
    rows = page.eval_on_selector_all(
        "#p .vm-rows tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    for step, row in zip(trace.steps, rows, strict=True):
        assert row[:4] == [str(step.i), step.where, step.event, step.text]
        if cell := step.state["cell"]:
            columns, names = step.state["columns"], step.state["rows"]
            column, line = cell["place"]
            assert row[5:8] == [f"{columns[column]}, {names[line]}", cell["at"], cell["entry"]]
            assert row[8] == ", ".join(" ".join(pair) for pair in cell["bits"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_axe_finds_nothing(open_page: Any, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    page = open_page(live(), theme=theme, width=width, reduced_motion="reduce")
    page.select_option("#p-in-guest", "five")
    page.select_option("#p-in-host", "ept-five")
    for i in (20, 36):
        page.evaluate(f"{PLAYER}.go({i})")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.eval_on_selector_all(
            "#p .vm-lit",
            "cells => cells.map(c => c.getBoundingClientRect()).map(b => [b.left, b.right])",
        )
        assert all(0 <= left < right <= width for left, right in wide)
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()
    assert (
        page.eval_on_selector(".vm-fresh, .vm-way", "e => getComputedStyle(e).animationName")
        == "none"
    )


def test_without_a_script_everything_can_still_be_read(open_page: Any) -> None:
    page = open_page(live(), java_script_enabled=False)
    assert "The guest's PML4E 0x0aa leads to the table" in page.inner_text("#p")
    assert page.locator("#p .vm-fallback tbody tr").count() == 26
