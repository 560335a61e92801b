"""The player's scripts and style, joined in a fixed order into what a page or a widget loads.

A page gets one classic script: module scripts and `fetch` are refused on ``file://``. JupyterLab
gets the same text as a module that ends in one export, which is what anywidget asks for.
"""

from functools import cache
from pathlib import Path

JS = Path(__file__).parent / "js"
SCRIPTS = (
    "core.js",
    "frame.js",
    "experiment.js",
    "choices.js",
    "scene_lanes.js",
    "scene_walk.js",
    "scene_map.js",
    "scene_rulers.js",
    "scene_flow.js",
    "model_add.js",
    "model_loop.js",
    "walking.js",
    "model_walk.js",
    "model_crush.js",
    "model_four.js",
    "predict.js",
)
STYLE = "player.css"
PLOT_SCRIPT = "plot.js"


@cache
def _read(name: str) -> str:
    return (JS / name).read_text(encoding="utf-8")


def _lean(text: str) -> str:
    """Return a script without its comments and indentation: every page has to load it."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def script() -> str:
    """Return the player as one classic script; it hydrates the page when the page is ready."""
    return "\n".join(_lean(_read(name)) for name in SCRIPTS)


def stylesheet() -> str:
    """Return the style of players, predictions and plots."""
    return _read(STYLE)


def esm() -> str:
    """Return the player as an ES module for anywidget."""
    return f"{script()}\nexport default {{ render: globalThis.vmView.render }};\n"


def plot_script() -> str:
    """Return the classic script that draws the plots of a page with the page's own Plotly."""
    return _read(PLOT_SCRIPT)
