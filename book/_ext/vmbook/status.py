"""``{status}``: what this copy of the book was built from, and what its checks say.

Nothing on that page is written by hand: records, execution times, versions and host facts are
collected while the book is built.
"""

import os
import platform
import re
from collections.abc import Iterable
from datetime import date
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from vmbook import badges, records


class status_place(nodes.General, nodes.Element):
    """Where the status goes; filled when the page is written."""


class StatusDirective(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        """Leave a place; remember which page it is on."""
        self.env.metadata[self.env.docname]["vmbook_status"] = True
        return [status_place()]


class Html(str):
    """A cell that is HTML already."""


def _cell(value: Any) -> str:
    if isinstance(value, date):
        return f'<td class="vm-date">{value.isoformat()}</td>'
    return f"<td>{value if isinstance(value, Html) else escape(str(value))}</td>"


def _table(label: str, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    heads = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in rows)
    return (
        f'<section id="status-{re.sub("[^a-z]+", "-", label.lower())}"><h2>{escape(label)}</h2>'
        f'<div class="vm-scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f'<table class="table"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        "</div></section>"
    )


CHECK_HEAD = ("what", "held against", "cases", "outcome", "date", "where")


def _two(first: str, second: str) -> Html:
    return Html(f"{escape(first)}<br/><small>{escape(second)}</small>")


def check_rows() -> list[list[Any]]:
    """Return one row per check record, in the order of `CHECK_HEAD`."""
    rows: list[list[Any]] = []
    for record_id in records.all_ids():
        record = badges.find(record_id, "the status page")
        if record:
            data = record.data
            rows.append(
                [
                    _two(data.get("what", ""), record_id),
                    _two(badges.authority(record), data.get("kind", "checked")),
                    data.get("cases", ""),
                    _two(str(data.get("outcome", "")), badges.state(record)),
                    date.fromisoformat(data["date"]),
                    data.get("host", ""),
                ]
            )
    return rows


def soak_rows() -> list[list[Any]]:
    """Return one row per long count recorded by ``make soak`` (checks/soak.json, if any)."""
    import json

    path = records.CHECKS / "soak.json"
    if not path.is_file():
        return []
    runs = json.loads(path.read_text(encoding="utf-8"))
    return [[run.get(k, "") for k in ("what", "seed", "count", "date")] for run in runs]


def time_rows(app: Any) -> list[list[Any]]:
    """Return title and seconds of every page that runs code."""
    from myst_nb.sphinx_ import NbMetadataCollector

    rows = []
    for docname in sorted(app.env.found_docs):
        data = NbMetadataCollector.get_exec_data(app.env, docname)
        if data and data.get("runtime") is not None:
            title = app.env.titles[docname].astext()
            kind = "lab" if docname.startswith("labs/") else "page"
            rows.append([title, kind, docname, f"{data['runtime']:.1f} s"])
    return rows


def version_rows(root: Path) -> list[list[str]]:
    """Return name and installed version of every package that the project names itself."""
    rows = []
    for line in (root / "requirements.in").read_text(encoding="utf-8").splitlines():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and not line.startswith("#"):
            try:
                rows.append([name.group(), metadata.version(name.group())])
            except metadata.PackageNotFoundError:
                rows.append([name.group(), "not installed"])
    return rows


def cpu_model() -> str:
    """Return the processor's name as Linux tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def host_rows() -> list[list[Any]]:
    """Return what the pages were built on."""
    return [
        ["built", date.today()],
        ["processor", f"{cpu_model()}, {os.cpu_count()} logical"],
        ["kernel", f"{platform.system()} {platform.release()} {platform.machine()}"],
        ["Python", platform.python_version()],
        ["/dev/kvm", "present" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "not usable"],
    ]


def status_html(app: Any) -> str:
    """Return the whole content of the status page."""
    checks = check_rows()
    parts = [
        _table("Checks", CHECK_HEAD, checks)
        if checks
        else '<section id="status-checks"><h2>Checks</h2><p>No check is recorded yet.</p></section>'
    ]
    soak = soak_rows()
    if soak:
        parts.append(_table("Long counts", ["what", "seed", "count", "date"], soak))
    times = time_rows(app)
    if times:
        parts.append(_table("Execution times", ["title", "kind", "source", "time"], times))
    parts.append(_table("This build", ["fact", "value"], host_rows()))
    parts.append(_table("Packages", ["package", "version"], version_rows(Path(app.srcdir))))
    return "\n".join(parts)


def fill(app: Any, doctree: nodes.document, docname: str) -> None:
    """Replace the directive's place by the collected tables."""
    for node in list(doctree.findall(status_place)):
        node.replace_self(nodes.raw("", status_html(app), format="html"))


def note_reading(app: Any, env: Any, docnames: list[str]) -> None:
    """Remember whether this build reads any page."""
    app.vmbook_reads = bool(docnames)


def rewrite(app: Any, env: Any) -> list[str]:
    """Have the status page written again whenever any page was read."""
    if not app.vmbook_reads:
        return []
    return [name for name, data in env.metadata.items() if data.get("vmbook_status")]


def setup(app: Any) -> None:
    """Register node, directive and events."""
    app.add_node(status_place)
    app.add_directive("status", StatusDirective)
    app.connect("doctree-resolved", fill)
    app.connect("env-before-read-docs", note_reading)
    app.connect("env-updated", rewrite)
