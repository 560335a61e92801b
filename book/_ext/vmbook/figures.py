"""What figures need: the player's script and style, and plotly, each on the pages that use it.

Plain classic scripts: module scripts and fetch are refused on ``file://``.
"""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

PLAYER = re.compile(r'class="[^"]*\bvm-(?:player|predict)\b|<vm-(?:player|predict)\b')
PLOT = re.compile(r'class="[^"]*\bvm-plot\b')

WIDGET_STATE = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-state\+json">.*?</script>', re.DOTALL
)


def assets() -> Any:
    """Return vmlib's module of scripts and styles, or None where there is none yet."""
    try:
        return importlib.import_module("vmlib.view.assets")
    except ImportError:
        return None


def write_static(app: Any) -> None:
    """Write the player's and plots' files into the book's _static."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    source = assets()
    if source is not None:
        for name, text in (
            ("vm.js", source.script()),
            ("vm.css", source.stylesheet()),
            ("vm-plot.js", source.plot_script()),
        ):
            (static / name).write_text(text, encoding="utf-8")


def copy_plotly(app: Any) -> None:
    """Copy plotly's script out of the installed package, once."""
    import plotly

    source = Path(plotly.__file__).parent / "package_data/plotly.min.js"
    target = Path(app.outdir) / "_static/plotly.min.js"
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)


def add_assets(app: Any, html: str, to_static: str) -> str:
    """Add the links that a finished page's figures need to its head."""
    html = WIDGET_STATE.sub("", html)
    tags = []
    if PLAYER.search(html) or PLOT.search(html):
        tags.append(f'<link rel="stylesheet" href="{to_static}vm.css"/>')
    if PLAYER.search(html):
        tags.append(f'<script defer src="{to_static}vm.js"></script>')
    if PLOT.search(html):
        copy_plotly(app)
        tags.append(f'<script defer src="{to_static}plotly.min.js"></script>')
        tags.append(f'<script defer src="{to_static}vm-plot.js"></script>')
    return html.replace("</head>", "\n".join([*tags, "</head>"]), 1)


def setup(app: Any) -> None:
    """Write the files before pages are made."""
    app.connect("builder-inited", write_static)
