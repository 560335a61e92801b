"""Tables whose rows are sentences: on a phone each row becomes a block (book.css, ``vm-stack``).

Three columns of prose side by side leave a phone twelve letters a line. So each cell of such a
table carries the name of its column, for the style to show above it; and the roles that a table
has by itself are written down, because browsers forget them of what is no longer laid out as one.
"""

import re
from html import escape, unescape

LONG = 75
"""Letters in a row from which on it is no longer read well in 350 pixels."""

_TABLE = re.compile(r'<table class="table">.*?</table>', re.S)
_HEAD = re.compile(r"<thead>.*?</thead>", re.S)
_ROW = re.compile(r"<tr\b.*?</tr>", re.S)
_CELL = re.compile(r"<(t[hd])\b([^>]*)>(.*?)</\1>", re.S)
_ROLES = {"thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "td": "cell"}


def _plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def stacked(html: str) -> str:
    """Return a page in which every table of prose can be stacked."""
    return _TABLE.sub(lambda match: _table(match.group()), html)


def _table(html: str) -> str:
    head = _HEAD.search(html)
    if not head or "span=" in html:
        return html
    names = [_plain(cell[2]) for cell in _CELL.findall(head.group())]
    rows = [_CELL.findall(row) for row in _ROW.findall(html[head.end() :])]
    longest = max((sum(len(_plain(cell[2])) for cell in row) for row in rows), default=0)
    if len(names) < 3 or longest < LONG:
        return html

    def row(match: re.Match[str]) -> str:
        left = iter(names)

        def cell(found: re.Match[str]) -> str:
            tag, attributes, text = found.groups()
            name = escape(next(left, ""))
            role = ' role="rowheader"' if tag == "th" else ""
            return f'<{tag}{attributes}{role} data-head="{name}">{text}</{tag}>'

        return _CELL.sub(cell, match.group())

    body = _ROW.sub(row, html[head.end() :])
    heading = re.sub(r"<th\b", '<th role="columnheader"', head.group())
    named = html[: head.start()] + heading + body
    for tag, role in _ROLES.items():
        named = re.sub(rf"<{tag}\b", f'<{tag} role="{role}"', named)
    return named.replace('<table class="table">', '<table class="table vm-stack" role="table">', 1)
