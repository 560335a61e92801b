"""``{exits} ID``: who finishes what, as a table made from a check's record.

Each row of the record reads ``1 × io; 1 × IO``: for what the guest was left, and for what KVM_RUN
returned, in the kernel's own words.
"""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from vmbook import records
from vmbook.badges import badge_html, find

HEAD = ("the guest does this", "VM exits", "returns", "finished by")
NARROW = ' style="min-width:3rem"'


def finisher(leaves: str, returns: str) -> str:
    """Return who finishes what leaves the guest so often and comes up so often."""
    if returns != "0":
        return "VMM"
    return "kernel" if leaves != "0" else "processor"


def table_html(record: records.Record) -> str:
    """Return the table, headed by the record's badge."""
    rows = []
    for name, _, real in record.rows:
        leaves, returns = real.split("; ")
        cells = ("–" if each == "0" else each for each in (leaves, returns))
        told = "".join(
            f"<td{NARROW}>{escape(each)}</td>" for each in (*cells, finisher(leaves, returns))
        )
        rows.append(f'<tr><th scope="row" style="min-width:7rem">{escape(name)}</th>{told}</tr>')
    head = "".join(f'<th scope="col"{NARROW}>{each}</th>' for each in HEAD)
    return (
        '<div class="vm-scroll" role="region" aria-label="Who finishes what" tabindex="0">'
        f'<table class="table vm-check-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
        f'</tbody></table></div><p class="vm-badges">{badge_html(record)}</p>'
    )


class Exits(SphinxDirective):
    """The directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table as HTML, or a warning and nothing."""
        record = find(self.arguments[0], self.get_location())
        return [nodes.raw("", table_html(record), format="html")] if record else []


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("exits", Exits)
