"""``{fold} TITLE`` … ``{endfold}``: what stands between them is closed until it is opened.

A code cell has to stand at the top level of a chapter to be run, so it cannot be inside a
``{dropdown}``. These two stand beside it instead, one before, one after.
"""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

OPEN = '<details class="sd-dropdown vm-fold"><summary>{}</summary><div class="sd-summary-content">'
CLOSE = "</div></details><!-- fold ends -->"


class Fold(SphinxDirective):
    """Where the folded part begins, with the words to click on."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Open the box."""
        return [nodes.raw("", OPEN.format(escape(self.arguments[0])), format="html")]


class EndFold(SphinxDirective):
    """Where it ends."""

    def run(self) -> list[nodes.Node]:
        """Close the box."""
        return [nodes.raw("", CLOSE, format="html")]


def problems(html: str) -> list[str]:
    """Return a sentence where a page's folds are not all closed, or closed twice."""
    opened, closed = html.count('class="sd-dropdown vm-fold"'), html.count(CLOSE)
    return [] if opened == closed else [f"opens {opened} folds and closes {closed}"]


def setup(app: Any) -> None:
    """Register the two."""
    app.add_directive("fold", Fold)
    app.add_directive("endfold", EndFold)
