"""What the view makes without a browser: bundles, HTML, and the files a page loads."""

import gzip
import json
import re
from typing import Any

import pytest
from view_helpers import make_trace

from vmlib.errors import BadInput
from vmlib.view import Player, Plot, Predict, assets, player_html, predict_html, verdict_html
from vmlib.view.player import ROWS, WIDGET_MIME, pack

BUDGET = 60_000


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" class="vm-data">(.*?)</script>', html)
    assert found
    return json.loads(found[1])


def unpack(packed: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `pack`, written a second time so that the two must agree."""
    last: dict[str, Any] = {}
    keys = packed.pop("packed")
    for step in packed["steps"]:
        last.update({k: v for k, v in step["state"].items() if k in keys})
        step["state"] = {**last, **step["state"]}
    return packed


def test_player_shows_itself_three_ways() -> None:
    player = Player(make_trace(42), name="exits")
    bundle = player._repr_mimebundle_()
    assert bundle["text/plain"] == repr(player) == "Player('exits': 42 steps, lanes)"
    assert bundle["text/html"].startswith('<figure class="vm-player" id="exits"')
    assert bundle[WIDGET_MIME]["model_id"] == player.model_id


def test_html_is_the_same_for_the_same_trace() -> None:
    options = {"name": "exits", "start": 3, "checks": ["cpu/a", "cpu/b"]}
    assert player_html(make_trace(), **options) == player_html(make_trace(), **options)


def test_packing_loses_nothing() -> None:
    trace = make_trace(60)
    packed = pack(trace)
    assert len(json.dumps(packed)) < len(trace.to_json()) / 2
    assert unpack(json.loads(json.dumps(packed))) == json.loads(trace.to_json())


def test_packing_keeps_a_key_that_comes_and_goes() -> None:
    trace = make_trace(12)
    trace.steps[4].state["note"] = "here"  # type: ignore[index]
    assert unpack(pack(trace)) == trace.to_dict()


def test_fallback_reads_without_a_script() -> None:
    html = player_html(make_trace(), name="exits", start=7, checks=["cpu/a", "cpu/b"])
    assert '<p class="vm-sentence">This is what step 7 says.</p>' in html
    assert '<span class="vm-checks" data-checks="cpu/a cpu/b"></span>' in html
    assert html.count('<th scope="row">') == 42
    assert "guest abababab" in html


def test_long_fallback_says_what_it_leaves_out() -> None:
    html = player_html(make_trace(ROWS + 50), name="exits")
    assert html.count('<th scope="row">') == ROWS
    assert "50 more follow" in html


def test_nothing_in_the_data_can_close_its_element() -> None:
    evil = "</script><script>alert(1)</script><!-- <b>"
    html = predict_html("x", evil, options=[evil, "b"], answer=1, because=evil, often=evil)
    assert html.count("</script>") == 1
    assert "<!--" not in html
    assert data_of(html)["question"] == evil


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "two words"}, "name"),
        ({"name": "x", "start": 42}, "start"),
        ({"name": "x", "inputs": [{"key": "a"}]}, "inputs"),
        ({"name": "x", "ask": [{"key": "a", "question": "?"}]}, "ask"),
    ],
)
def test_player_refuses_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        player_html(make_trace(), **options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"options": ["one"], "answer": 0}, "options"),
        ({"options": ["one", "two"], "answer": 2}, "answer"),
        ({"options": ["one", "two"], "answer": "one"}, "answer"),
        ({"answer": 3, "jump": ["exits"]}, "jump"),
    ],
)
def test_predict_refuses_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        predict_html("x", "What?", because="so", **options)


def test_predict_and_its_printed_answer() -> None:
    options: dict[str, Any] = {"options": ["`a`", "b"], "answer": 0, "because": "it is so."}
    predict = Predict("cpu/first", "Which?", **options)
    assert repr(predict) == "Predict('cpu/first')"
    html = predict._repr_mimebundle_()["text/html"]
    assert html == predict_html("cpu/first", "Which?", **options)
    assert 'id="predict-cpu-first"' in html
    verdict = verdict_html("cpu/first", "Which?", **options)
    assert "It is <strong><code>a</code></strong> · because it is so.</p>" in verdict
    assert "<script" not in verdict


def test_trace_can_be_exchanged_in_a_live_notebook() -> None:
    player = Player(make_trace(42), name="exits", start=40)
    player.trace = make_trace(10)
    assert player.index == 9
    assert repr(player) == "Player('exits': 10 steps, lanes)"


def test_plot() -> None:
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))
    plot = Plot(figure, "Two points", {"x": [1, 2], "y": [3, 4]}, title="It rises")
    bundle = plot._repr_mimebundle_()
    assert bundle["text/plain"] == "Plot('Two points')"
    html = bundle["text/html"]
    assert html.startswith('<figure class="vm-plot"><script')
    assert "</script><figcaption>It rises</figcaption>" in html
    assert 'role="img" aria-label="Two points"' in html
    assert "template" not in data_of(html)["layout"]
    assert "<td>4</td>" in html
    with pytest.raises(BadInput, match="table"):
        Plot(figure, "Two points", {"x": [1], "y": [3, 4]})._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["layout"]["title"] == {"text": "It rises"}
    assert "title" not in data_of(html)["layout"]
    figure.update_layout(title="It rises")
    with pytest.raises(BadInput, match="figure"):
        plot._repr_mimebundle_()


def test_assets_reach_for_nothing_outside() -> None:
    for text in (assets.script(), assets.esm(), assets.stylesheet(), assets.plot_script()):
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"'`)]*", text))
        assert urls <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"@import|url\(\s*['\"]?(?!#)[a-z]+:", text)
    assert not re.search(r"^\s*(import|export)\b|\bfetch\(", assets.script(), re.MULTILINE)
    assert assets.esm().rstrip().endswith("export default { render: globalThis.vmView.render };")


def test_every_script_is_core_or_a_part_and_says_what_it_builds_on() -> None:
    files = {path.stem for path in assets.JS.glob("*.js")} - {"plot"}
    assert {*assets.CORE, *assets.PARTS} == files
    texts = {name: (assets.JS / f"{name}.js").read_text() for name in files}
    given: dict[str, set[str]] = {
        name: set(re.findall(r"vmView\.(\w+) = ", text)) for name, text in texts.items()
    }
    # The literal in core.js that makes the global, with the registries in it.
    given["core"] |= {"scenes", "models", "frame", "predict", "players"}
    core = set().union(*(given[name] for name in assets.CORE))
    for part, needs in assets.PARTS.items():
        known = core.union(given[part], *(given[need] for need in needs))
        assert set(re.findall(r"vmView\.(\w+)", texts[part])) <= known, part
        assert set(needs) <= set(list(assets.PARTS)[: list(assets.PARTS).index(part)]), part
        assert not any(assets.PARTS[need] for need in needs), "needs of needs are not followed"
    for name in assets.CORE:
        assert set(re.findall(r"vmView\.(\w+)", texts[name])) <= core, name


def test_a_page_takes_the_parts_of_its_figures_and_no_others() -> None:
    assert assets.parts_for([], []) == []
    assert assets.parts_for(["lanes", "lanes"], []) == ["scene_lanes"]
    assert assets.parts_for(["rulers"], ["four"]) == ["walking", "model_four", "scene_rulers"]
    assert assets.parts_for(["map"], []) == ["model_crush", "scene_map"]
    assert assets.parts_for(["nothing draws this"], ["no such model"]) == []


def test_assets_stay_small() -> None:
    """Whatever three scenes and models meet on a page, with all that is on every page."""
    sizes = [len(gzip.compress(assets.part_script(part).encode())) for part in assets.PARTS]
    shared = assets.core_script() + assets.stylesheet() + assets.plot_script()
    assert len(gzip.compress(shared.encode())) + sum(sorted(sizes)[-6:]) <= BUDGET
