"""The player's scripts and style, in the pieces that a page or a widget loads.

A page gets classic scripts: module scripts and `fetch` are refused on ``file://``. The core goes
to every page with a figure, a scene or a model only to the pages that use it, so that a new scene
weighs on nobody else's page. JupyterLab gets all of it as one module that ends in one export,
which is what anywidget asks for.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

JS = Path(__file__).parent / "js"
CORE = ("core", "frame", "guesses", "experiment", "choices", "predict")
PARTS: dict[str, tuple[str, ...]] = {
    "walking": (),
    "model_add": (),
    "model_loop": (),
    "model_walk": ("walking",),
    "model_four": ("walking",),
    "model_crush": (),
    "scene_lanes": (),
    "scene_walk": (),
    "scene_map": ("model_crush",),
    "scene_rulers": (),
    "scene_flow": (),
}
"""Every script that is not core, and which of those above it builds on.

`scene_KIND.js` draws traces of a kind, `model_NAME.js` is the model that a figure names.
"""
STYLE = "player.css"
PLOT_SCRIPT = "plot.js"


@cache
def _read(name: str) -> str:
    return (JS / name).read_text(encoding="utf-8")


def _lean(text: str) -> str:
    """Return a script without its comments and indentation: every page has to load it."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _join(names: Iterable[str]) -> str:
    return "\n".join(_lean(_read(f"{name}.js")) for name in names)


def core_script() -> str:
    """Return the player without any scene; it hydrates the page once the page's scripts are in."""
    return _join(CORE)


def part_script(part: str) -> str:
    """Return one of the `PARTS`, to be loaded after the core and after the parts it builds on."""
    return _join([part])


def parts_for(kinds: Iterable[str], models: Iterable[str]) -> list[str]:
    """Return the parts that figures of these kinds and models take, in the order to load them.

    A kind that no scene draws has no part: the player refuses such a trace by name.
    """
    wanted = [f"scene_{kind}" for kind in kinds] + [f"model_{name}" for name in models]
    taken = {one for part in wanted if part in PARTS for one in (part, *PARTS[part])}
    return [part for part in PARTS if part in taken]


def script() -> str:
    """Return the player with every scene and model as one classic script."""
    return _join([*CORE, *PARTS])


def stylesheet() -> str:
    """Return the style of players, predictions and plots."""
    return _read(STYLE)


def esm() -> str:
    """Return the whole player as an ES module for anywidget."""
    return f"{script()}\nexport default {{ render: globalThis.vmView.render }};\n"


def plot_script() -> str:
    """Return the classic script that draws the plots of a page with the page's own Plotly."""
    return _read(PLOT_SCRIPT)
