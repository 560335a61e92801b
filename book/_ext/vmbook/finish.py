"""The last touch on every page: icons, badges in figures, figure assets, names for readers' aids.

Pages are finished as they are rendered, so a rebuild touches only the pages it writes.
"""

import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

from vmbook import badges, figures, icons, predict, tables

PLAYER_CHECKS = re.compile(r'(<span class="vm-checks" data-checks="([^"]*)">)\s*(</span>)')
BLANK_END = re.compile(r"\n\s*\n(?=</pre>)")  # a piece of a file ends where the next begins
OUTPUT = re.compile(r'(<div class="output [^"]*"><div class="highlight"><pre)(>.*?</pre>)', re.S)
GAP = re.compile(r"\S {2,}\S|\t")
UNUSED = (
    "vendor",
    "locales",
    "images",
    "webpack-macros.html",
    "sbt-webpack-macros.html",
    ".gitignore",
    "file.png",
    "plus.png",
    "minus.png",
    "design-tabs.js.map",
    "styles/bootstrap.css.map",
    "styles/pydata-sphinx-theme.css.map",
    "styles/sphinx-book-theme.css.map",
    "scripts/bootstrap.js.map",
    "scripts/pydata-sphinx-theme.js.map",
    "scripts/sphinx-book-theme.js.map",
)


def fill_checks(html: str, page: str) -> str:
    """Put the badges into the players' feet."""

    def fill(match: re.Match[str]) -> str:
        return match.group(1) + badges.badges_html(match.group(2).split(), page) + match.group(3)

    return PLAYER_CHECKS.sub(fill, html)


def wrap_words(html: str) -> str:
    """Let outputs of words break their lines; what stands in columns is scrolled instead."""

    def mark(match: re.Match[str]) -> str:
        lines = re.sub(r"<[^>]*>", "", match[2].removeprefix(">")).split("\n")
        if sum(bool(GAP.search(line)) for line in lines) > 1:
            return match[0]
        return f'{match[1]} class="vm-words"{match[2]}'

    return OUTPUT.sub(mark, html)


def finish(app: Any, html: str, page: str) -> str:
    """Return a rendered page as it is to be written."""
    to_static = "../" * page.count("/") + "_static/"
    html = fill_checks(html, page)
    html = predict.add_verdicts(html)
    html = tables.stacked(html)
    html = BLANK_END.sub("\n", html)
    html = wrap_words(html)
    html = icons.replace(html)
    return figures.add_assets(app, html, to_static)


def wrap_renderer(app: Any) -> None:
    """Let every page pass through `finish` on its way out of the template engine."""
    if app.builder.format != "html":
        return
    templates = app.builder.templates
    render = templates.render

    def render_finished(template: str, context: dict[str, Any]) -> str:
        html = render(template, context)
        page = context.get("pagename")
        return finish(app, html, page) if page and "</head>" in html else html

    templates.render = render_finished


def drop_unused(app: Any, error: Exception | None) -> None:
    """Remove the theme's icon fonts, maps and other files that no page loads."""
    if error or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for name in UNUSED:
        path = static / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


FIRST = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"/><title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}"/></head>
<body><main><h1>{title}</h1><p><a href="{page}">Open the book</a></p></main></body>
</html>
"""


def write_first(app: Any, error: Exception | None) -> None:
    """Let ``index.html`` at the top lead to the book's front page."""
    if not error and app.builder.format == "html" and app.config.root_doc != "index":
        text = FIRST.format(title=escape(app.config.html_title), page=f"{app.config.root_doc}.html")
        (Path(app.outdir) / "index.html").write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Connect the two steps."""
    app.connect("builder-inited", wrap_renderer)
    app.connect("build-finished", drop_unused, priority=900)
    app.connect("build-finished", write_first, priority=900)
