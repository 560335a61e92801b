"""Plot: a plain plotly figure with words for whoever cannot see it and numbers for whoever asks.

JupyterLab draws it itself; a page gets the figure's data and `js/plot.js` draws it with the
page's own copy of Plotly, in the colours of the page's theme. Plotly is imported only when a plot
is made.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from vmlib.errors import BadInput
from vmlib.view.html import data_script, inline, table

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLOTLY_MIME = "application/vnd.plotly.v1+json"
COLOURS = ("#8f6bb0", "#808080", "#c0568f", "#9a7b2d")
"""Colours of series: legible on light and dark, and none of the four address-space hues."""


def plot_json(figure: "go.Figure") -> dict[str, Any]:
    """Return the figure as plain data, without plotly's default template."""
    import plotly.graph_objects as go

    plain = go.Figure(figure)
    plain.layout.template = None
    if plain.layout.colorway is None:
        plain.layout.colorway = COLOURS
    data: dict[str, Any] = json.loads(plain.to_json())
    data.get("layout", {}).pop("template", None)
    return data


def plot_html(
    figure: "go.Figure",
    alt: str,
    columns: Mapping[str, Sequence[Any]],
    *,
    title: str | None = None,
) -> str:
    """Return the plot for a page: data, a text instead of the picture, and a table of the numbers.

    `columns` maps each column's heading to its values, all of one length.
    """
    if not alt.strip():
        raise BadInput("alt", "must say what the picture shows")
    if figure.layout.title.text:
        raise BadInput("figure", "has no title of its own: a phone cuts it off; give `title`")
    if len({len(values) for values in columns.values()}) != 1:
        raise BadInput("table", "must be columns of one length")
    rows = list(zip(*columns.values(), strict=True))
    caption = f"<figcaption>{inline(title)}</figcaption>" if title else ""
    return (
        f'<figure class="vm-plot">{data_script(plot_json(figure))}{caption}'
        f'<div class="vm-plot-place" role="img" aria-label="{escape(alt)}"></div>'
        f"<details><summary>Numbers as a table</summary>{table(list(columns), rows, alt)}</details>"
        "</figure>"
    )


class Plot:
    """A plotly figure for a notebook cell and the page made from it.

    `alt` says in a sentence or two what the picture shows; `table` maps column headings to values.
    """

    def __init__(
        self,
        figure: "go.Figure",
        alt: str,
        table: Mapping[str, Sequence[Any]],
        *,
        title: str | None = None,
    ) -> None:
        self.figure = figure
        self.alt = alt
        self.table = {name: list(values) for name, values in table.items()}
        self.title = title

    def __repr__(self) -> str:
        return f"Plot({self.alt!r})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        html = plot_html(self.figure, self.alt, self.table, title=self.title)
        alone = plot_json(self.figure)  # JupyterLab draws this one, and no caption
        if self.title:
            alone["layout"]["title"] = {"text": self.title}
        return {"text/plain": repr(self), "text/html": html, PLOTLY_MIME: alone}
