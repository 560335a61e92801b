"""``{predict} ID``: a question whose answer stays closed until the reader has committed.

The body is YAML: question, options (or unit), answer, because, often, jump. The HTML is made by
`vmlib.view`, the same as for `Predict(…)` in a code cell. On paper nothing can be opened, so a
page's verdicts are collected in a section at its end that only print shows.
"""

import json
import re
from typing import Any

import yaml
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

DATA = re.compile(
    r'<section class="vm-predict"[^>]*>\s*'
    r'<script type="application/json" class="vm-data">(.*?)</script>',
    re.DOTALL,
)
ASKED = ("options", "unit", "answer", "because", "tolerance", "often", "jump")


def html(identifier: str, fields: dict[str, Any]) -> str:
    """Return the predict's HTML; an error where fields are wrong or missing."""
    from vmlib.view import predict_html

    return str(predict_html(identifier, **fields))


def add_verdicts(page: str) -> str:
    """Add the verdicts of a page's predictions at the end of its article, for print."""
    found = [json.loads(text) for text in DATA.findall(page)]
    if not found:
        return page
    from vmlib.view import verdict_html

    verdicts = "".join(
        verdict_html(
            data["id"], data["question"], **{name: data[name] for name in ASKED if name in data}
        )
        for data in found
    )
    section = f'<section class="vm-print"><h2>What you predicted</h2>{verdicts}</section>'
    head, close, tail = page.rpartition("</article>")
    return head + section + close + tail


class PredictDirective(SphinxDirective):
    """The directive."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the predict as raw HTML, or a warning and nothing."""
        try:
            fields = yaml.safe_load("\n".join(self.content))
            if not isinstance(fields, dict):
                raise ValueError("its body is not a YAML mapping")
            text = html(self.arguments[0], fields)
        except Exception as error:  # whatever is wrong with it, say so and build on
            logger.warning(
                f"predict {self.arguments[0]!r}: {error}",
                location=self.get_location(),
                type="vmbook",
                subtype="predict",
            )
            return []
        return [nodes.raw("", text, format="html")]


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("predict", PredictDirective)
