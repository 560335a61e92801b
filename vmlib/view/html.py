"""Small pieces of HTML that players, predictions and plots share. Pure functions, text in and out.

What they make is the page before any script has run: complete, readable, and the same bytes for
the same input.
"""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_NAME = re.compile(r"[A-Za-z][\w-]*\Z")
_EMPHASIS = re.compile(r"\*([^\s*](?:[^*]*[^\s*])?)\*")


def is_name(name: str) -> bool:
    """Return whether a name can be an HTML id and stand in a link without escapes."""
    return bool(_NAME.match(name))


def inline(text: str) -> str:
    """Return text as HTML: backticks make code of it, asterisks emphasis; all else is escaped.

    The same rule as `inline` in js/core.js.
    """
    return "".join(
        f"<code>{escape(part)}</code>" if i % 2 else _EMPHASIS.sub(r"<em>\1</em>", escape(part))
        for i, part in enumerate(text.split("`"))
    )


def data_script(data: object) -> str:
    """Return JSON data as an inert script element; no text in it can close the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return f'<script type="application/json" class="vm-data">{safe}</script>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """Return a table whose first column names the rows."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    )


def visible(text: str) -> str:
    """Return text with its control characters as pictures: a newline as ⏎, NUL as ␀."""
    return "".join(
        "⏎" if c == "\n" else chr(0x2400 + ord(c)) if ord(c) < 32 else "␡" if c == "\x7f" else c
        for c in text
    )
