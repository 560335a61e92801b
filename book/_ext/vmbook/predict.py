"""``{predict} ID``: a question whose answer stays closed until the reader has committed.

The body is YAML: question, options (or unit), answer, because, often, jump. The HTML is made by
`vmlib.view`, the same as for `Predict(…)` in a code cell.
"""

import inspect
from typing import Any

import yaml
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


def html(identifier: str, fields: dict[str, Any]) -> str:
    """Return the predict's HTML; TypeError or ValueError where fields are wrong or missing."""
    from vmlib.view import predict

    make = predict.predict_html
    inspect.signature(make).bind(identifier, **fields)
    return str(make(identifier, **fields))


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
        except (yaml.YAMLError, TypeError, ValueError, ImportError, AttributeError) as error:
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
