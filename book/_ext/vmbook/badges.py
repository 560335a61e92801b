"""Badges and tables of the checks: what a statement was held against, and when.

A badge says no more than its record: *checked* against a named real tool, *recorded* on another
machine, or taken *from the specification*. A badge whose covered files have changed since is
greyed. An id without a record is a warning, and warnings fail the build.
"""

from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from vmbook import records

logger = logging.getLogger(__name__)

SAYS = {
    "checked": "checked against",
    "recorded": "recorded on",
    "specification": "from the specification:",
}
STALE = "the code has changed since"


def find(record_id: str, location: Any = None) -> records.Record | None:
    """Return a record, or None with a warning where there is none or it cannot be read."""
    try:
        record = records.load(record_id)
        if record.data.get("kind", "checked") not in records.KINDS:
            raise ValueError(f"unknown kind {record.data['kind']!r}")
        return record
    except (OSError, KeyError, ValueError) as error:
        logger.warning(
            f"no usable check record {record_id!r}: {error}",
            location=location,
            type="vmbook",
            subtype="record",
        )
        return None


def authority(record: records.Record) -> str:
    """Return what the record was held against, with its version."""
    version = str(record.data.get("tool_version", "")).strip()
    return record.data["tool"] + (f" ({version})" if version else "")


def state(record: records.Record) -> str:
    """Return the record's state in words."""
    return STALE if record.stale else "the code is what was checked"


def badge_html(record: records.Record) -> str:
    """Return one badge."""
    kind = record.data.get("kind", "checked")
    text = escape(f"{SAYS[kind]} {authority(record)}, ")
    date = f'<span class="vm-date">{escape(record.data["date"])}</span>'
    old = f' <span class="vm-badge-stale">{STALE}</span>' if record.stale else ""
    classes = f"vm-badge vm-badge-{kind}" + (" vm-stale" if record.stale else "")
    title = escape(str(record.data.get("what", record.id)), quote=True)
    return f'<span class="{classes}" title="{title}">{text}{date}{old}</span>'


def badges_html(ids: list[str], location: Any = None) -> str:
    """Return the badges of several records, side by side."""
    found = [find(each, location) for each in ids]
    return " ".join(badge_html(record) for record in found if record is not None)


def table_html(found: list[records.Record]) -> str:
    """Return the table of quantities, ours and the real system's; a group of rows a record.

    A group is headed by what was compared and by the badge: tool, version, date.
    """
    groups = []
    for record in found:
        what = escape(str(record.data["what"]))
        rows = [
            f'<tr class="vm-check-what"><th colspan="3" scope="rowgroup">{what}'
            f"<br>{badge_html(record)}</th></tr>"
        ]
        for row in record.rows:
            name, ours, real = (escape(str(cell)) for cell in row)
            rows.append(f'<tr><th scope="row">{name}</th><td>{ours}</td><td>{real}</td></tr>')
        groups.append(f"<tbody>{''.join(rows)}</tbody>")
    head = "".join(
        f'<th scope="col">{each}</th>' for each in ("quantity", "ours", "the real system’s")
    )
    return (
        '<div class="vm-scroll" role="region" aria-label="Checked against the real system" '
        f'tabindex="0"><table class="table vm-check-table"><thead><tr>{head}</tr></thead>'
        f"{''.join(groups)}</table></div>"
    )


class Checks(SphinxDirective):
    """``{checks} ID [ID …]``: the table of the records."""

    required_arguments = 1
    optional_arguments = 99

    def run(self) -> list[nodes.Node]:
        """Return the table as HTML."""
        ids = " ".join(self.arguments).split()
        found = [r for r in (find(each, self.get_location()) for each in ids) if r]
        if not found:
            return []
        return [nodes.raw("", table_html(found), format="html")]


class Badge(SphinxDirective):
    """``{badge} ID [ID …]``: the badges alone."""

    required_arguments = 1
    optional_arguments = 99
    option_spec = {"class": directives.class_option}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the badges as one paragraph."""
        ids = " ".join(self.arguments).split()
        html = badges_html(ids, self.get_location())
        return [nodes.raw("", f'<p class="vm-badges">{html}</p>', format="html")]


class BadgeRole(SphinxRole):
    """``{badge}`ID` ``: a badge within a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the badge as inline HTML."""
        html = badges_html(self.text.split(), self.get_location())
        return [nodes.raw("", html, format="html")], []


def setup(app: Any) -> None:
    """Register the directives and the role."""
    app.add_directive("checks", Checks)
    app.add_directive("badge", Badge)
    app.add_role("badge", BadgeRole())
