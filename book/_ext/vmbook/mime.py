"""Which form of an output a page takes: its HTML, if it has any, and then nothing else.

Figures carry several forms: HTML for pages, a widget or a plotly description for JupyterLab.
myst-nb looks at every one of them and warns of those it does not know, chosen or not. An output
that has only forms unknown to pages still gets that warning, and fails the build.
"""

from typing import Any

import nbformat


def for_pages(output: Any) -> Any:
    """Return the output with its HTML alone, or as it was where it has none."""
    if "text/html" not in output.get("data", {}):
        return output
    return nbformat.from_dict({**output, "data": {"text/html": output["data"]["text/html"]}})


def setup(app: Any) -> None:
    """Let myst-nb see only what a page shows."""
    from myst_nb.sphinx_ import SphinxNbRenderer

    render = SphinxNbRenderer._render_nb_cell_code_outputs
    if getattr(render, "for_pages", False):
        return

    def render_for_pages(self: Any, token: Any, outputs: list[Any]) -> None:
        render(self, token, [for_pages(output) for output in outputs])

    render_for_pages.for_pages = True  # type: ignore[attr-defined]
    SphinxNbRenderer._render_nb_cell_code_outputs = render_for_pages
