"""Player: a trace the reader can step through, in JupyterLab and on a page without a kernel.

One description of the figure (`player_data`) feeds both: JupyterLab shows it as a widget, a page
shows `player_html`, which the page's script brings to life and which reads well without it.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import anywidget
import traitlets

from vmlib.errors import BadInput
from vmlib.trace import Provenance, Step, Trace
from vmlib.view import assets
from vmlib.view.html import data_script, inline, is_name, table, visible

ROWS = 200
"""Rows of the table that is written into the page; the player itself shows all of them."""

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
_HEAD = ("step", "where", "event", "what happens", "changed")


def pack(trace: Trace) -> dict[str, Any]:
    """Return the trace as JSON-ready data without the state that stayed as it was.

    A state key that every step has is written only where it differs from the step before;
    `packed` lists those keys. `vmView.unpack` in core.js puts them back.
    """
    plain = trace.to_dict()
    steps = plain["steps"]
    shared = [key for key in steps[0]["state"] if all(key in s["state"] for s in steps)]
    last: dict[str, Any] = {}
    for step in steps:
        state = dict(step["state"])
        for key in shared:
            if key in last and last[key] == state[key]:
                del state[key]
            else:
                last[key] = state[key]
        step["state"] = state
    return {**plain, "packed": shared}


def player_data(
    trace: Trace,
    *,
    name: str,
    title: str | None = None,
    start: int | None = None,
    model: str | None = None,
    given: Mapping[str, Any] | None = None,
    inputs: Sequence[Mapping[str, Any]] = (),
    ask: Sequence[Mapping[str, Any]] = (),
    checks: Sequence[str] = (),
    link: str | None = None,
    choose: str | None = None,
    choices: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the description of a player; `BadInput` names what is wrong in it."""
    if not is_name(name):
        raise BadInput("name", f"{name!r} must be letters, digits and hyphens, a letter first")
    if not trace.steps:
        raise BadInput("trace", "has no step to stand on")
    first = 0 if start is None else start
    if not 0 <= first < len(trace.steps):
        raise BadInput("start", f"{first} is no step of a trace of {len(trace.steps)} steps")
    for i, one in enumerate(inputs):
        if "key" not in one or "value" not in one:
            raise BadInput(f"inputs[{i}]", "needs a key and a value")
    for i, one in enumerate(ask):
        if "key" not in one or "question" not in one:
            raise BadInput(f"ask[{i}]", "needs a key and a question")
        if model is None and not choices and "answer" not in one:
            raise BadInput(f"ask[{i}]", "needs an answer, since no model computes one")
    keys = [str(one["key"]) for one in ask if "answer" not in one]
    chosen = {"choose": choose, "choices": _choices(trace, choices, keys)} if choices else {}
    return {
        "type": "player",
        "name": name,
        "title": title,
        "start": first,
        "model": model,
        "inputs": [dict(one) for one in inputs],
        "ask": [dict(one) for one in ask],
        "checks": list(checks),
        "link": link,
        "trace": pack(trace),
        **({"given": dict(given)} if given else {}),
        **chosen,
    }


def _choices(
    trace: Trace, choices: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the choices as data; the one that has `trace` itself carries no second copy of it."""
    found = []
    for i, one in enumerate(choices):
        if not isinstance(one.get("label"), str) or not isinstance(one.get("trace"), Trace):
            raise BadInput(f"choices[{i}]", "needs a label and a trace")
        if missing := [key for key in keys if key not in one.get("answers", {})]:
            raise BadInput(f"choices[{i}]", f"needs an answer to {missing[0]!r}")
        if not 0 <= one.get("start", 0) < len(one["trace"].steps):
            raise BadInput(f"choices[{i}].start", "is no step of its trace")
        own = one["trace"] is trace
        found.append({**one, "trace": None if own else pack(one["trace"])})
    if found and sum(one["trace"] is None for one in found) != 1:
        raise BadInput("choices", "must hold the figure's own trace, once")
    return found


def player_html(trace: Trace, *, name: str, **options: Any) -> str:
    """Return the figure for a page: its data, and all of it in words for whoever runs no script.

    `options` are those of `player_data`.
    """
    data = player_data(trace, name=name, **options)
    step = trace.steps[data["start"]]
    rest = len(trace.steps) - ROWS
    caption = f"The first {ROWS} steps; {rest} more follow." if rest > 0 else "Every step, in words"
    rows = [_row(one) for one in trace.steps[:ROWS]]
    return (
        f'<figure class="vm-player" id="{escape(name)}">{data_script(data)}'
        '<div class="vm-fallback">'
        f'<figcaption class="vm-title">{inline(data["title"] or trace.title)}</figcaption>'
        f'<p class="vm-step">step {step.i} of {len(trace.steps) - 1} · {escape(step.where)}</p>'
        f'<p class="vm-sentence">{inline(step.text)}</p>'
        f'<details class="vm-table"><summary>Steps as a table</summary>'
        f'<div class="vm-rows">{table(_HEAD, rows, caption)}</div></details>'
        f'<p class="vm-foot"><span class="vm-origin">{escape(_origin(trace.provenance))}</span> '
        f'<span class="vm-checks" data-checks="{escape(" ".join(data["checks"]))}"></span></p>'
        "</div></figure>"
    )


def _origin(origin: Provenance) -> str:
    verb = "computed by" if origin.engine.startswith("vmlib") else "recorded on"
    versions = [v if name == "engine" else f"{name} {v}" for name, v in origin.versions.items()]
    if not (versions and versions[0].lower().startswith(origin.engine)):
        versions.insert(0, origin.engine)
    guest = f"guest {origin.guest_sha256[:8]}" if origin.guest_sha256 else ""
    parts = (f"{verb} {', '.join(versions)}", origin.host, origin.recorded, guest)
    return " · ".join(part for part in parts if part)


def _row(step: Step) -> tuple[str, ...]:
    changed = ", ".join(
        f"{name} {visible(old) or 'nothing'} → {visible(new) or 'nothing'}"
        for name, old, new in step.changed
    )
    return (str(step.i), step.where, step.event, step.text, changed)


class Player(anywidget.AnyWidget):
    """A figure that plays a trace.

    `name` is its id on the page and in links (``#name-step-12``), `start` the step it opens on,
    `link` a word that players moving together share. With `model`, `inputs` and `ask` the reader
    changes operands and commits a guess first: ``inputs=[{"key": "a", "label": "first", "value":
    200}]``, ``ask=[{"key": "output", "question": "What does it print?", "kind": "text"}]``.
    `given` is what the model needs beside the trace: tables to walk, say.
    With `choices` the reader picks one of several recordings, `trace` among them; `choose` is the
    label of that control: ``choices=[{"label": "a page fault", "trace": trace, "start": 4,
    "answers": {"exits": 0}, "because": "…"}]``.
    In a live notebook `index` follows the reader and can be set, and so can `trace`.
    """

    _esm = assets.esm()
    _css = assets.stylesheet()
    data = traitlets.Dict().tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        trace: Trace,
        *,
        name: str = "player",
        title: str | None = None,
        start: int | None = None,
        model: str | None = None,
        given: Mapping[str, Any] | None = None,
        inputs: Sequence[Mapping[str, Any]] = (),
        ask: Sequence[Mapping[str, Any]] = (),
        checks: Sequence[str] = (),
        link: str | None = None,
        choose: str | None = None,
        choices: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._trace = trace
        self._options: dict[str, Any] = {
            "name": name,
            "title": title,
            "start": start,
            "model": model,
            "given": given,
            "inputs": inputs,
            "ask": ask,
            "checks": checks,
            "link": link,
            "choose": choose,
            "choices": choices,
        }
        data = player_data(trace, **self._options)
        super().__init__(data=data, index=data["start"])

    @property
    def trace(self) -> Trace:
        """The trace it plays; a new one is shown from its start."""
        return self._trace

    @trace.setter
    def trace(self, trace: Trace) -> None:
        self._options["start"] = min(self._options["start"] or 0, len(trace.steps) - 1)
        self._options["choices"] = ()  # they were other recordings
        data = player_data(trace, **self._options)
        self._trace = trace
        self.index = data["start"]
        self.data = data

    def __repr__(self) -> str:
        return (
            f"Player('{self._options['name']}': {len(self._trace.steps)} steps, {self._trace.kind})"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {
            "text/plain": repr(self),
            "text/html": player_html(self._trace, **self._options),
            WIDGET_MIME: view,
        }
