"""Formulas as MathML, made while the book is built: no script, readable by screen readers.

Browsers of today lay MathML out themselves. TeX that the converter does not know would come out
as its own source, so whatever still holds a backslash is reported as a warning.
"""

import re
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)

LEFTOVER = re.compile(r"<m[a-z]+[^>]*>\s*(\\[A-Za-z]+)")


def to_mathml(tex: str, block: bool = False) -> str:
    """Return TeX as a MathML element; ValueError where it is not understood."""
    tex = tex.strip()
    try:
        text = convert(tex, display="block" if block else "inline")
    except Exception as error:  # the converter has many exception types and no common one
        raise ValueError(f"TeX not understood: {tex!r} ({type(error).__name__})") from error
    unknown = LEFTOVER.search(text)
    if unknown:
        raise ValueError(f"TeX not understood: {unknown.group(1)} in {tex!r}")
    return str(text).replace("<math ", f'<math alttext="{escape(tex, quote=True)}" ', 1)


def _render(tex: str, node: nodes.Element, block: bool) -> str:
    try:
        return to_mathml(tex, block)
    except ValueError as error:
        logger.warning(str(error), location=node, type="vmbook", subtype="math")
        return f"<code>{escape(tex)}</code>"


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(f'<span class="math">{_render(node.astext(), node, False)}</span>')
    raise nodes.SkipNode


def display(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own line, with its number if it has one."""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = translator.builder.env.get_domain("math")
        label = number.get_equation_number_for(node["label"]) or node["number"]
        translator.body.append(f'<span class="eqno">({label})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(_render(node.astext(), node, True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the renderer; `html_math_renderer: mathml` selects it."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
