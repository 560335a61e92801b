"""The player and predictions in a real browser, on pages opened from the disk."""

from typing import Any

import pytest
from playwright.sync_api import expect
from view_helpers import make_trace

from vmlib.view import assets, player_html, plot_html, predict_html

pytestmark = pytest.mark.needs("chromium")

READ = """name => {
  const e = document.getElementById(name), one = s => e.querySelector(s);
  return {
    index: e.vmPlayer.index,
    number: one(".vm-number").textContent,
    sentence: one(".vm-sentence").textContent,
    where: one("[data-lane]").dataset.lane,
    crossing: one("[data-crossing]").dataset.crossing,
    line: Number(one("[data-line]").dataset.line),
    lit: one("[data-line] tr[aria-current]")?.textContent ?? null,
    registers: [...e.querySelectorAll("[data-register]")].map(
      c => [c.dataset.register, c.textContent]),
    exit: one("[data-exit]").dataset.exit,
    output: one("[data-output]").dataset.output,
  };
}"""
PLAYING = "document.getElementById('p').vmPlayer.playing"


def read(page: Any, name: str = "p") -> dict[str, Any]:
    return page.evaluate(READ, name)


def at(page: Any, name: str = "p") -> int:
    return page.evaluate(f"document.getElementById('{name}').vmPlayer.index")


def test_every_step_can_be_read_back(open_page: Any) -> None:
    trace = make_trace(60)
    page = open_page(player_html(trace, name="p"))
    for step in trace.steps:
        page.evaluate(f"document.getElementById('p').vmPlayer.go({step.i})")
        seen, state = read(page), step.state
        crossing, left = state["crossing"], state["exit"]
        assert seen["number"] == f"step {step.i} of 59"
        assert seen["sentence"] == step.text
        assert seen["where"] == step.where
        assert seen["crossing"] == (">".join(crossing) if crossing else "")
        assert seen["registers"] == state["registers"]
        assert seen["output"] == state["output"]
        assert seen["exit"] == (f"{left['reason']} {left['detail']}" if left else "")
        assert seen["line"] == state["line"]
        if state["line"] >= 0:
            assert seen["lit"] == "".join(state["code"][state["line"]])
        else:
            assert seen["lit"] is None


def test_keys_drive_it_and_the_page_never_hears_them(open_page: Any) -> None:
    before = "window.heard = 0; addEventListener('keydown', () => heard++);"
    page = open_page(player_html(make_trace(41), name="p", start=5), before=before)
    assert at(page) == 5
    page.keyboard.press("ArrowRight")
    assert at(page) == 5
    assert page.evaluate("heard") == 1
    page.focus("#p")
    for key, there in [("ArrowRight", 6), ("ArrowLeft", 5), ("End", 40), ("ArrowRight", 40),
                       ("5", 20), ("0", 0), ("ArrowLeft", 0), ("9", 36), ("Home", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert at(page) == there, key
    page.keyboard.press(" ")
    assert page.evaluate(PLAYING)
    assert page.get_attribute("#p .vm-sentence", "aria-live") == "off"
    page.keyboard.press(" ")
    assert not page.evaluate(PLAYING)
    assert page.get_attribute("#p .vm-sentence", "aria-live") == "polite"
    assert page.evaluate("heard") == 1
    page.keyboard.press("Control+k")
    assert page.evaluate("heard") == 3
    assert page.get_attribute("#p", "data-lm-suppress-shortcuts") == "true"


def test_space_presses_the_button_that_has_the_keyboards_focus(open_page: Any) -> None:
    page = open_page(player_html(make_trace(), name="p"))
    page.focus("#p .vm-forward")
    page.keyboard.press(" ")
    assert (at(page), page.evaluate(PLAYING)) == (1, False)
    page.click("#p .vm-forward")
    page.keyboard.press(" ")
    assert (at(page), page.evaluate(PLAYING)) == (2, True)


def test_buttons_and_their_ends(open_page: Any) -> None:
    page = open_page(player_html(make_trace(42), name="p"))
    off = "button => button.getAttribute('aria-disabled')"
    assert page.eval_on_selector("#p .vm-back", off) == "true"
    page.click("#p .vm-last")
    assert at(page) == 41
    assert page.eval_on_selector("#p .vm-forward", off) == "true"
    page.click("#p .vm-back")
    page.click("#p .vm-first")
    assert at(page) == 0
    page.click("#p .vm-speed")
    assert page.inner_text("#p .vm-speed") == "2×"


def test_play_runs_to_the_end_and_starts_over(open_page: Any) -> None:
    page = open_page(player_html(make_trace(12), name="p", start=9), reduced_motion="reduce")
    page.click("#p .vm-speed")
    page.click("#p .vm-speed")
    page.click("#p .vm-play")
    page.wait_for_function("document.getElementById('p').vmPlayer.index === 11", timeout=3000)
    assert not page.evaluate(PLAYING)
    page.click("#p .vm-play")
    page.wait_for_function("document.getElementById('p').vmPlayer.index === 1", timeout=3000)


def test_scrubber_strip_and_table_jump(open_page: Any) -> None:
    page = open_page(player_html(make_trace(101), name="p"))
    box = page.locator("#p .vm-scrubber").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert at(page) == 50
    page.mouse.click(box["x"] + 3, box["y"] + 9)
    assert at(page) == 0
    lanes = page.locator("#p .vm-lanes").bounding_box()
    page.mouse.click(lanes["x"] + 300, lanes["y"] + 60)
    assert at(page) > 0
    assert page.locator("#p .vm-rows tr").count() == 0
    page.click("#p summary")
    page.wait_for_selector("#p .vm-rows tr")
    page.click("#p tr[data-row='33'] td >> nth=2")
    assert at(page) == 33
    assert page.get_attribute("#p .vm-rows tr[aria-current]", "data-row") == "33"


def test_table_holds_every_state_in_words(open_page: Any) -> None:
    trace = make_trace(30)
    page = open_page(player_html(trace, name="p"))
    page.click("#p summary")
    page.wait_for_selector("#p .vm-rows tr")
    rows = page.eval_on_selector_all(
        "#p .vm-rows tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    for step, row in zip(trace.steps, rows, strict=True):
        assert row[:1] + row[2:4] == [str(step.i), step.event, step.text]
        assert row[1].startswith(step.where)
        for name, old, new in step.changed:
            if name != "output":
                assert f"{name} {old} → {new}" in row[4]
        assert row[6] == ", ".join(" ".join(pair) for pair in step.state["registers"])
        assert row[8] == step.state["output"].replace("\n", "⏎")


def test_deep_link_on_load_and_on_hashchange(open_page: Any) -> None:
    filler = '<div style="height:3000px">far</div>'
    page = open_page(filler + player_html(make_trace(), name="p"), fragment="#p-step-12")
    assert at(page) == 12
    page.wait_for_function(
        "document.getElementById('p').getBoundingClientRect().top < innerHeight", timeout=3000
    )
    page.evaluate("location.hash = '#p-step-20'")
    page.wait_for_function("document.getElementById('p').vmPlayer.index === 20", timeout=3000)
    page.focus("#p")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash === '#p-step-21'", timeout=3000)
    page.evaluate("location.hash = '#p-step-%'")
    assert at(page) == 21


def test_linked_players_move_together(open_page: Any) -> None:
    figures = [player_html(make_trace(n), name=f"p{n}", link="one") for n in (42, 20)]
    page = open_page("".join(figures) + player_html(make_trace(), name="alone"))
    page.evaluate("document.getElementById('p42').vmPlayer.go(15)")
    assert [at(page, name) for name in ("p42", "p20", "alone")] == [15, 15, 0]
    page.evaluate("document.getElementById('p20').vmPlayer.go(3)")
    assert [at(page, name) for name in ("p42", "p20", "alone")] == [3, 3, 0]


def test_checks_are_kept_for_the_badges(open_page: Any) -> None:
    html = player_html(make_trace(), name="p", checks=["cpu/a"])
    html = html.replace('data-checks="cpu/a"></span>', 'data-checks="cpu/a"><b>a badge</b></span>')
    page = open_page(html)
    assert page.inner_text("#p .vm-foot .vm-checks") == "a badge"
    assert page.locator("#p .vm-checks").count() == 1


def test_unknown_kinds_are_refused_by_name_and_stay_readable(open_page: Any) -> None:
    page = open_page(player_html(make_trace(kind="ring"), name="p"))
    assert "ring" in page.inner_text("#p .vm-refused")
    assert "This is what step 0 says." in page.inner_text("#p")


def damaged(damage: str) -> str:
    """Return the script that spoils the data of the figure `p` before the player reads them."""
    return (
        "const data = document.querySelector('#p .vm-data'), figure = JSON.parse(data.textContent);"
        f"{damage}; data.textContent = text ?? JSON.stringify(figure);"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("let text = '{\"type\": '", "data can't be read"),
        ("let text; figure.trace = null", "holds no trace"),
        ("let text; figure.trace.schema = 2", "schema 2"),
        ("let text; figure.trace.steps = []", "without a single step"),
        ("let text; delete figure.trace.steps", "without a single step"),
        ("let text; delete figure.trace.counters", "can't be drawn"),
        ("let text; delete figure.trace.steps[0].text; delete figure.trace.steps[0].changed",
         "can't be drawn"),
    ],
)  # fmt: skip
def test_a_broken_trace_says_so_and_stays_readable(open_page: Any, damage: str, said: str) -> None:
    page = open_page(player_html(make_trace(), name="p"), before=damaged(damage))
    expect(page.locator("#p .vm-refused")).to_contain_text(said)
    expect(page.locator("#p")).to_contain_text("This is what step 0 says.")
    page.set_viewport_size({"width": 390, "height": 900})  # and nothing tries to draw it again
    page.evaluate("new Promise(requestAnimationFrame)")


def test_a_step_that_cannot_be_drawn_says_so_and_the_others_go_on(open_page: Any) -> None:
    spoiled = damaged("let text; delete figure.trace.steps[5].changed")
    page = open_page(player_html(make_trace(), name="p", start=4), before=spoiled)
    wrong = page.locator("#p .vm-refused")
    expect(wrong).to_be_hidden()
    page.focus("#p")
    page.keyboard.press("ArrowRight")
    expect(wrong).to_contain_text("Step 5 can't be drawn")
    page.keyboard.press("ArrowRight")
    expect(wrong).to_be_hidden()
    expect(page.locator("#p .vm-number")).to_have_text("step 6 of 41")


def test_a_player_nobody_sees_does_not_play(open_page: Any) -> None:
    page = open_page(player_html(make_trace(), name="p") + '<div style="height:4000px">far</div>')
    page.click("#p .vm-play")
    page.wait_for_function("document.getElementById('p').vmPlayer.index > 0")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function(f"!({PLAYING})")
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator("#p .vm-play")).to_have_attribute("aria-label", "Play (Space)")


def test_what_scrolls_is_scrolled_with_the_keys(open_page: Any) -> None:
    page = open_page(player_html(make_trace(101), name="p", start=50), width=390)
    page.click("#p summary")
    rows = page.locator("#p .vm-rows")
    expect(rows.locator("[data-row]")).to_have_count(101)
    rows.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#p .vm-rows').scrollLeft > 0")
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#p .vm-rows').scrollTop > 2000")
    assert at(page) == 50
    rows.locator("a").first.focus()  # on a link in it they step, for it scrolls nowhere
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('p').vmPlayer.index === 51")


def test_what_a_trace_never_has_takes_no_line(open_page: Any) -> None:
    page = open_page(player_html(make_trace(42), name="p") + player_html(make_trace(5), name="q"))
    labels = page.locator("#p .vm-aside .vm-label")
    assert labels.all_text_contents() == ["exit reason", "serial port"]
    assert page.locator("#q .vm-aside").inner_text() == ""


def test_a_date_stays_in_one_line(open_page: Any) -> None:
    page = open_page(player_html(make_trace(), name="p"))
    for width in (390, 350, 310, 290):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("#p .vm-date").evaluate("e => e.getClientRects().length") == 1


def test_emulator_lane_says_what_it_is(open_page: Any) -> None:
    page = open_page(player_html(make_trace(engine="unicorn"), name="p", start=1))
    assert page.inner_text("#p .vm-where") == "emulator (in the kernel's place)"
    assert read(page)["where"] == "host kernel"


def test_two_thousand_steps_are_drawn_with_a_few_paths(open_page: Any) -> None:
    """What a key press costs is measured in benchmarks/player.py; this is why it costs little."""
    page = open_page(player_html(make_trace(2000), name="p"))
    page.click("#p summary")
    page.wait_for_selector("#p .vm-rows tr[data-row='1999']")
    page.focus("#p")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert at(page) == 3
    assert page.eval_on_selector("#p .vm-ticks", "svg => svg.querySelectorAll('path').length") < 12


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_axe_finds_nothing(open_page: Any, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    question = {"options": ["one", "two"], "answer": 1, "because": "so", "often": "one."}
    body = player_html(make_trace(42), name="p", start=6)
    body += predict_html("q", "Which?", **question)
    body += predict_html("n", "How many?", answer=3, because="so", unit="bytes")
    page = open_page(body, theme=theme, width=width, reduced_motion="reduce")
    page.click("#p summary")
    page.click("#predict-q .vm-quiet >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()


REFUSED = (
    "Object.defineProperty(window, 'localStorage', "
    "{ get() { throw new DOMException('no', 'SecurityError'); } });"
)


@pytest.mark.parametrize("before", ["", REFUSED], ids=["storage", "no storage"])
def test_predict_commit_reveal_forget(open_page: Any, before: str) -> None:
    html = player_html(make_trace(), name="p") + predict_html(
        "cpu/q", "Which one?", options=["first", "second"], answer=1, because="it is",
        often="the first.", jump=["p", 8],
    )  # fmt: skip
    page = open_page(html, before=before)
    quiz = page.locator("#predict-cpu-q")
    assert quiz.locator(".vm-verdict").inner_text() == ""
    quiz.locator(".vm-commit").click()
    assert "Choose one" in quiz.locator(".vm-help").inner_text()
    page.focus("#predict-cpu-q-0")
    page.keyboard.press(" ")
    page.keyboard.press("Enter")
    verdict = quiz.locator(".vm-verdict").inner_text()
    assert "You said first · it is second · because it is." in verdict
    assert "the first." in verdict
    assert at(page) == 8
    if not before:
        page.reload()
        assert "You said first" in quiz.locator(".vm-verdict").inner_text()
        assert at(page) == 8 or at(page) == 0
    quiz.get_by_text("forget my guess").click()
    assert quiz.locator(".vm-verdict").inner_text() == ""
    assert quiz.locator("input:checked").count() == 0
    quiz.get_by_text("show me").click()
    assert quiz.locator(".vm-verdict").inner_text().startswith("It is second")


def test_predict_a_number_with_tolerance(open_page: Any) -> None:
    html = predict_html("n", "How long?", unit="µs", answer=2.5, tolerance=0.5, because="so")
    page = open_page(html)
    quiz = page.locator("#predict-n")
    quiz.locator("input").fill("many")
    quiz.locator(".vm-commit").click()
    assert "Write a number" in quiz.locator(".vm-help").inner_text()
    quiz.locator("input").fill("2,9")
    quiz.locator(".vm-commit").click()
    assert "You said 2,9 µs · it is 2.5 µs" in quiz.locator(".vm-verdict").inner_text()
    assert "(right)" in quiz.locator(".vm-verdict .vm-mark").first.text_content()


MARKED = "a*b is *not this* and `x *y* z`, 2 * 3 * 4, *one* <b>"


def test_emphasis_and_code_look_the_same_with_and_without_a_script(open_page: Any) -> None:
    html = predict_html("n", MARKED, answer=3, because="so")
    for script in (True, False):
        question = open_page(html, java_script_enabled=script).locator(".vm-question").first
        assert question.text_content() == "a*b is not this and x *y* z, 2 * 3 * 4, one <b>"
        assert question.locator("em").all_text_contents() == ["not this", "one"]
        assert question.locator("code").all_text_contents() == ["x *y* z"]


def test_the_verdict_is_not_printed(open_page: Any) -> None:
    page = open_page(predict_html("n", "How many?", answer=3, because="so"))
    page.click("#predict-n >> text=show me")
    page.emulate_media(media="print")
    assert not page.locator("#predict-n .vm-verdict").is_visible()


def test_without_a_script_everything_can_still_be_read(open_page: Any) -> None:
    html = player_html(make_trace(), name="p") + predict_html("n", "N?", answer=3, because="so")
    page = open_page(html, java_script_enabled=False)
    assert "This is what step 0 says." in page.inner_text("#p")
    page.click("#predict-n summary")
    assert "It is 3 · because so." in page.inner_text("#predict-n")


def test_a_live_notebook_keeps_index_and_data_in_step(open_page: Any) -> None:
    html = player_html(make_trace(), name="p") + "<div id='cell'></div>"
    page = open_page(html, script="0")
    page.evaluate(
        """async text => {
          const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
          window.widget = (await import(url)).default;
        }""",
        assets.esm(),
    )
    index = page.evaluate(
        """() => {
          const data = JSON.parse(document.querySelector("#p script").textContent);
          const state = { data: { ...data, name: "live" }, index: 2 }, on = {};
          const model = { get: k => state[k], set: (k, v) => { state[k] = v; },
            save_changes() {}, on: (k, f) => { on[k] = f; }, off() {} };
          const done = widget.render({ model, el: document.getElementById("cell") });
          const figure = document.querySelector("#cell figure");
          const seen = [figure.vmPlayer.index];
          state.index = 7; on["change:index"](); seen.push(figure.vmPlayer.index);
          figure.vmPlayer.go(9); seen.push(state.index);
          const { vmPlayer } = figure;
          vmPlayer.play();
          state.data = { ...state.data, start: 0 }; on["change:data"]();
          seen.push(document.querySelector("#cell figure").vmPlayer.index);
          done();
          const left = [...globalThis.vmView.players].filter(player => player.name === "live");
          return [...seen, vmPlayer.playing, left.length];
        }"""
    )
    assert index == [2, 7, 9, 9, False, 0]


def test_page_and_player_name_the_same_source(open_page: Any) -> None:
    html = player_html(make_trace(engine="unicorn"), name="p")
    quiet = open_page(html, java_script_enabled=False).inner_text("#p .vm-origin")
    assert open_page(html).inner_text("#p .vm-origin") == quiet


PLOTLY = """window.calls = []; window.given = []; window.Plotly = {
  newPlot(place, figure) {
    place.textContent = "drawn"; calls.push(figure.layout); return Promise.resolve(); },
  Plots: { resize() {} },
  react(place, data, layout) { calls.push(layout); given.push(data); } };"""


def test_plots_take_the_colours_of_the_page(open_page: Any) -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4])).update_layout(yaxis_title="cost")
    html = plot_html(figure, "It rises.", {"x": [1, 2], "y": [3, 4]})
    style = "<style>html{--pst-color-text-base:#111;--pst-color-border:#ccc}"
    style += "html[data-theme=dark]{--pst-color-text-base:#eee;--pst-color-border:#444}</style>"
    page = open_page(style + html, before=PLOTLY, script=assets.plot_script())
    page.wait_for_function("calls.length === 1")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function("calls.length === 2")
    light, dark = page.evaluate("calls")
    assert (light["font"]["color"], dark["font"]["color"]) == ("#111", "#eee")
    assert (light["xaxis"]["gridcolor"], dark["xaxis"]["gridcolor"]) == ("#ccc", "#444")
    assert dark["yaxis"]["title"]["text"] == "cost"
    assert light["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_a_plot_leaves_a_phone_room_unless_the_figure_says_otherwise(open_page: Any) -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[1, 1000], y=[3, 4]))
    figure.update_xaxes(type="log", title="microseconds (logarithmic)")
    figure.update_layout(margin={"r": 5}, legend={"y": 2})
    html = plot_html(figure, "It rises.", {"x": [1, 1000], "y": [3, 4]})
    page = open_page(html, before=PLOTLY, script=assets.plot_script())
    page.wait_for_function("calls.length === 1")
    (layout,) = page.evaluate("calls")
    assert layout["margin"] == {"t": 30, "r": 5}
    assert (layout["legend"]["orientation"], layout["legend"]["y"]) == ("h", 2)
    assert layout["xaxis"]["title"]["text"] == "microseconds<br>(logarithmic)"
    assert layout["xaxis"]["nticks"] == 4


def test_the_slider_of_a_plot_is_worked_by_keyboard(open_page: Any) -> None:
    import plotly.graph_objects as go

    curves = {"little": [1, 2], "much": [5, 6]}
    lines = {name: [go.Scatter(x=[1, 2], y=y)] for name, y in curves.items()}
    steps = [{"label": name, "method": "animate", "args": [[name], {}]} for name in curves]
    figure = go.Figure(lines["little"], frames=[go.Frame(name=n, data=d) for n, d in lines.items()])
    figure.update_layout(sliders=[{"currentvalue": {"prefix": "share: "}, "steps": steps}])
    page = open_page(
        plot_html(figure, "Two curves.", {"x": [1, 2]}),
        before=PLOTLY,
        script=assets.plot_script(),
    )
    page.wait_for_function("calls.length === 1")
    assert "sliders" not in page.evaluate("calls[0]")
    knob = page.get_by_role("slider", name="share")
    assert knob.get_attribute("aria-valuetext") == "little"
    knob.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("given.at(-1)[0].y") == [5, 6]
    assert knob.get_attribute("aria-valuetext") == "much"
    assert page.inner_text(".vm-plot-knob output") == "much"
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function("calls.length === 3")
    assert page.evaluate("given.at(-1)[0].y") == [5, 6], "another theme shows the same curve"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("given.at(-1)[0].y") == [1, 2]


def test_without_plotly_the_numbers_are_shown(open_page: Any) -> None:
    import plotly.graph_objects as go

    html = plot_html(go.Figure(), "Nothing.", {"x": [17]})
    page = open_page(html, script=assets.plot_script())
    page.wait_for_selector(".vm-plot details[open]")
    assert "17" in page.inner_text(".vm-plot table")
