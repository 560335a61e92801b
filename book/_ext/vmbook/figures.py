"""What figures need: the player, its scenes, and plotly, each on the pages that use it.

Plain classic scripts: module scripts and fetch are refused on ``file://``.
"""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

PLAYER = re.compile(r'class="[^"]*\bvm-(?:player|predict)\b|<vm-(?:player|predict)\b')
PLOT = re.compile(r'class="[^"]*\bvm-plot\b')
DATA = re.compile(r'<script type="application/json" class="vm-data">(.*?)</script>', re.DOTALL)

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
            ("vm.js", source.core_script()),
            ("vm.css", source.stylesheet()),
            ("vm-plot.js", source.plot_script()),
            *((f"vm-{part}.js", source.part_script(part)) for part in source.PARTS),
        ):
            (static / name).write_text(text, encoding="utf-8")


def parts(html: str) -> list[str]:
    """Return the scenes and models that the players of a page need, in the order to load them."""
    source = assets()
    data = [json.loads(text) for text in DATA.findall(html)]
    players = [one for one in data if one.get("type") == "player"]
    traces = [one["trace"] for player in players for one in (player, *player.get("choices", ()))]
    kinds = {trace["kind"] for trace in traces if trace}
    models = {player["model"] for player in players if player["model"]}
    found: list[str] = source.parts_for(kinds, models) if source else []
    return found


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
        names = ["vm", *(f"vm-{part}" for part in parts(html))]
        tags += [f'<script defer src="{to_static}{name}.js"></script>' for name in names]
    if PLOT.search(html):
        copy_plotly(app)
        tags.append(f'<script defer src="{to_static}plotly.min.js"></script>')
        tags.append(f'<script defer src="{to_static}vm-plot.js"></script>')
    return html.replace("</head>", "\n".join([*tags, "</head>"]), 1)


def setup(app: Any) -> None:
    """Write the files before pages are made."""
    app.connect("builder-inited", write_static)
