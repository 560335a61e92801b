"""Icons as inline SVG: the outlines come from the theme's own icon package at build time.

The theme would load 1.4 MB of script to draw about fifteen small icons. The same outlines, put
into the page, cost a few hundred bytes each and need no script.
"""

import re
from functools import cache
from html import escape
from pathlib import Path

import pydata_sphinx_theme

ENTRY = re.compile(r'"?([a-z0-9-]+)"?:\[(\d+),(\d+),\[([^\]]*)\],"[0-9a-f]+","([^"]+)"\]')
USE = re.compile(r'<(i|span)((?:\s+[a-z-]+="[^"]*")*?)\s+class="([^"]*\bfa-[^"]*)"([^>]*)>\s*</\1>')
STYLE_WORDS = {"fa-solid", "fa-regular", "fa-brands", "fas", "far", "fab", "fa-lg", "fa-fw"}


def package() -> Path:
    """Return the folder of the icon package that the installed theme ships."""
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static"
    return next((theme / "vendor/fontawesome").glob("*"))


@cache
def outlines() -> dict[str, tuple[str, str, str]]:
    """Return name -> (width, height, path), aliases included; the solid style comes last."""
    found: dict[str, tuple[str, str, str]] = {}
    for match in ENTRY.finditer((package() / "js/all.min.js").read_text(encoding="utf-8")):
        name, width, height, aliases, path = match.groups()
        for each in (name, *re.findall(r'"([a-z0-9-]+)"', aliases)):
            found[each] = (width, height, path)
    return found


def svg(name: str, classes: str = "", attributes: str = "") -> str:
    """Return an icon as SVG, hidden from screen readers; KeyError if there is none."""
    width, height, path = outlines()[name]
    kind = escape(f"vm-icon {classes}".strip())
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" aria-hidden="true" '
        f'focusable="false"{attributes}><path fill="currentColor" d="{path}"/></svg>'
    )


def _swap(match: re.Match[str]) -> str:
    classes = match.group(3).split()
    names = [c[3:] for c in classes if c.startswith("fa-") and c not in STYLE_WORDS]
    others = [c for c in classes if not c.startswith("fa-") and c not in STYLE_WORDS]
    return svg(names[0], " ".join(others), match.group(2) + match.group(4)) if names else ""


def replace(html: str) -> str:
    """Replace every icon-font element of a page by its outline."""
    return USE.sub(_swap, html)
