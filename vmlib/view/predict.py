"""Predict: a question whose answer stays closed until the reader has made a guess.

The guess is kept in the reader's browser and goes nowhere else. `predict_html` is the question on
a page, `verdict_html` its answer for the collection at the end of a printed chapter.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

import anywidget
import traitlets

from vmlib.errors import BadInput
from vmlib.view import assets
from vmlib.view.html import data_script, inline
from vmlib.view.player import WIDGET_MIME


def element_id(id: str) -> str:
    """Return the HTML id of the prediction called `id`."""
    return "predict-" + re.sub(r"[^\w-]", "-", id)


def predict_data(
    id: str,
    question: str,
    *,
    answer: int | float | str,
    because: str,
    options: Sequence[str] | None = None,
    unit: str | None = None,
    tolerance: float = 0,
    often: str | None = None,
    jump: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the description of a prediction; `BadInput` names what is wrong in it.

    With `options`, `answer` is the index of the right one; else it is a number, right within
    `tolerance`, or a text. `jump` is (name of a player, number of a step).
    """
    if options is not None:
        if len(options) < 2:
            raise BadInput("options", "must offer at least two answers")
        if isinstance(answer, bool) or not isinstance(answer, int):
            raise BadInput("answer", "must be the index of the right option")
        if not 0 <= answer < len(options):
            raise BadInput("answer", f"{answer} is no index into {len(options)} options")
    if jump is not None and (
        len(jump) != 2 or not isinstance(jump[0], str) or not isinstance(jump[1], int)
    ):
        raise BadInput("jump", "must be (name of a player, number of a step)")
    return {
        "type": "predict",
        "id": id,
        "question": question,
        "options": None if options is None else [str(one) for one in options],
        "unit": unit,
        "answer": answer,
        "tolerance": tolerance,
        "because": because,
        "often": often,
        "jump": None if jump is None else list(jump),
    }


def verdict_html(id: str, question: str, **options: Any) -> str:
    """Return the answer alone, with its question, for the end of a printed chapter."""
    data = predict_data(id, question, **options)
    return (
        f'<div class="vm-answer" data-predict="{escape(id)}">'
        f'<p class="vm-question">{inline(question)}</p>{_verdict(data)}</div>'
    )


def predict_html(id: str, question: str, **options: Any) -> str:
    """Return the prediction for a page; `options` are those of `predict_data`."""
    data = predict_data(id, question, **options)
    choices = "".join(f"<li>{inline(one)}</li>" for one in data["options"] or ())
    return (
        f'<section class="vm-predict" id="{element_id(id)}">{data_script(data)}'
        f'<p class="vm-eyebrow">Predict</p><p class="vm-question">{inline(question)}</p>'
        + (f"<ol>{choices}</ol>" if choices else "")
        + f"<details><summary>Show me</summary>{_verdict(data)}</details></section>"
    )


def _verdict(data: dict[str, Any]) -> str:
    options = data["options"]
    right = options[data["answer"]] if options else str(data["answer"])
    unit = f" {escape(data['unit'])}" if data["unit"] and not options else ""
    because = data["because"].rstrip(".")
    joint = "because:" if re.match(r"[A-Z][a-z ]", because) else "because"
    text = f"<p>It is <strong>{inline(right)}{unit}</strong> · {joint} {inline(because)}.</p>"
    if data["often"]:
        text += f'<p class="vm-often"><em>Others:</em> {inline(data["often"])}</p>'
    return text


class Predict(anywidget.AnyWidget):
    """A question for a notebook cell; the arguments are those of `predict_data`."""

    _esm = assets.esm()
    _css = assets.stylesheet()
    data = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        id: str,
        question: str,
        *,
        options: Sequence[str] | None = None,
        unit: str | None = None,
        answer: int | float | str,
        because: str,
        tolerance: float = 0,
        often: str | None = None,
        jump: Sequence[Any] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "options": options,
            "unit": unit,
            "answer": answer,
            "because": because,
            "tolerance": tolerance,
            "often": often,
            "jump": jump,
        }
        super().__init__(data=predict_data(id, question, **self._options))

    def __repr__(self) -> str:
        return f"Predict('{self.data['id']}')"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        html = predict_html(self.data["id"], self.data["question"], **self._options)
        return {"text/plain": repr(self), "text/html": html, WIDGET_MIME: view}
