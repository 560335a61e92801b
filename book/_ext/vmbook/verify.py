"""What must hold of the written pages, or the build has failed.

Every page of the table of contents exists; every figure that a source promises is on its page,
once; nothing is shown that needs a kernel or a script we do not ship; nothing is loaded from
outside the book; no icon font is left.

A source promises figures with the cell tag ``figure`` (one figure each) and with ``{predict}``.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.util import logging

from vmbook import fold

logger = logging.getLogger(__name__)

FIGURES = ("vm-player", "vm-plot", "vm-predict", "vm-figure")
FENCE = re.compile(r"^(?P<ticks>`{3,}|:{3,})\{(?P<name>[\w-]+)\}.*?^(?P=ticks)\s*$", re.M | re.S)
TAGS = re.compile(r"^\s*:?tags:\s*(?:\[(?P<row>[^\]]*)\]|(?P<list>(?:\s*^\s*- .*$)+))", re.M)
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}
VOID |= {"track", "wbr"}
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
LOADS |= {"audio": "src", "video": "src", "embed": "src", "object": "data", "image": "href"}
CSS_LOAD = re.compile(r"(?:@import\s+|url\()\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.I)
OUTSIDE = re.compile(r"^(?:https?:)?//", re.I)
WIDGET = "application/vnd.jupyter.widget-view+json"


class Promise(NamedTuple):
    """How many figure cells and predict directives a source has."""

    figures: int
    predicts: int


def promised(path: Path) -> Promise:
    """Count what a chapter or a lab promises to show."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        tags = [cell.get("metadata", {}).get("tags", []) for cell in cells]
        prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        below = promised_text("\n\n".join(prose))
        return Promise(sum("figure" in each for each in tags), below.predicts)
    return promised_text(text)


def promised_text(text: str) -> Promise:
    """Count what a MyST text promises to show."""
    figures = predicts = 0
    for fence in FENCE.finditer(text):
        if fence["name"] == "predict":
            predicts += 1
        elif fence["name"] == "code-cell":
            found = TAGS.search(fence.group())
            words = re.findall(r"[\w-]+", (found["row"] or found["list"]) if found else "")
            figures += "figure" in words
    return Promise(figures, predicts)


class Page(HTMLParser):
    """What a written page shows and loads."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, bool, bool]] = []  # (tag, a figure cell?, a figure?)
        self.cells: list[int] = []  # outermost figures per cell tagged figure
        self.outside: list[str] = []  # kinds of figures outside such cells
        self.loads: list[str] = []
        self.problems: list[str] = []
        self.ids: set[str] = set()
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note figures, loads, duplicate ids and leftovers."""
        names = {key: value or "" for key, value in attrs}
        classes = names.get("class", "").split()
        kind = next((f for f in FIGURES if f in classes or f == tag), "")
        nested = any(figure for _, _, figure in self.open)
        cell = "cell" in classes and "tag_figure" in classes
        if cell:
            self.cells.append(0)
        if kind and not nested:
            if any(inside for _, inside, _ in self.open):
                self.cells[-1] += 1
            else:
                self.outside.append(kind)
        if tag == "script" and names.get("type") == WIDGET:
            self.problems.append("a widget that needs a kernel and has no HTML of its own")
        if any(c.startswith("fa-") or c in ("fas", "far", "fab") for c in classes):
            self.problems.append(f"an icon-font element: {names['class']}")
        if names.get("id") in self.ids:
            self.problems.append(f"the id {names['id']!r} twice")
        self.ids.add(names.get("id") or f"({len(self.ids)})")
        relation = names.get("rel", "")
        if tag in LOADS and not (tag == "link" and relation in ("next", "prev", "canonical")):
            self.loads.append(names.get(LOADS[tag], ""))
        self.loads += [part.split()[0] for part in names.get("srcset", "").split(",") if part]
        self.loads += CSS_LOAD.findall(names.get("style", ""))
        self.in_style = tag == "style"
        if tag not in VOID:
            self.open.append((tag, cell, bool(kind)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Treat ``<path/>`` as opened and closed."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close the element, and those left open inside it."""
        self.in_style = False
        for index in range(len(self.open) - 1, -1, -1):
            if self.open[index][0] == tag:
                del self.open[index:]
                break

    def handle_data(self, data: str) -> None:
        """Look into inline style sheets."""
        if self.in_style:
            self.loads += CSS_LOAD.findall(data)


def read_page(html: str) -> Page:
    """Parse a written page."""
    page = Page()
    page.feed(html)
    return page


def page_problems(html: str, promise: Promise) -> list[str]:
    """Return one sentence for each thing wrong with a page."""
    page = read_page(html)
    found = list(page.problems)
    found += [f"loads {url} from outside the book" for url in page.loads if OUTSIDE.match(url)]
    if len(page.cells) != promise.figures:
        found.append(f"shows {len(page.cells)} of its {promise.figures} figure cells")
    found += [
        f"figure cell {number} shows {count} figures instead of one"
        for number, count in enumerate(page.cells, 1)
        if count != 1
    ]
    predicts = page.outside.count("vm-predict")
    if predicts != promise.predicts:
        found.append(f"shows {predicts} of its {promise.predicts} predict directives")
    stray = [kind for kind in page.outside if kind != "vm-predict"]
    if stray:
        found.append(f"shows {', '.join(stray)} in a cell that has no tag 'figure'")
    found += fold.problems(html)
    for leftover in ("fontawesome", "Font Awesome"):
        if leftover in html:
            found.append(f"mentions {leftover}")
    return found


def static_problems(static: Path) -> list[str]:
    """Return one sentence for each style sheet that loads from outside."""
    return [
        f"_static/{path.relative_to(static)} loads {url}"
        for path in sorted(static.rglob("*.css"))
        for url in CSS_LOAD.findall(path.read_text(encoding="utf-8", errors="replace"))
    ]


def verify(app: Any, error: Exception | None) -> None:
    """Warn of everything that is wrong; warnings fail the build."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for docname in sorted(app.env.found_docs):
        path = out / f"{docname}.html"
        if not path.is_file():
            logger.warning("the page was not written", location=docname, type="vmbook")
            continue
        html = path.read_text(encoding="utf-8")
        for problem in page_problems(html, promised(Path(app.env.doc2path(docname)))):
            logger.warning(problem, location=docname, type="vmbook", subtype="page")
    for name in ("search.html", "genindex.html"):
        path = out / name
        if path.is_file():
            for problem in page_problems(path.read_text(encoding="utf-8"), Promise(0, 0)):
                logger.warning(problem, location=name, type="vmbook", subtype="page")
    for problem in static_problems(out / "_static"):
        logger.warning(problem, type="vmbook", subtype="static")


def setup(app: Any) -> None:
    """Verify after everything else."""
    app.connect("build-finished", verify, priority=950)
