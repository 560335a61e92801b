"""The view: draws traces and results, computes nothing, and reaches no mechanism.

`Player` steps through a trace, `Predict` asks before it tells, `Plot` draws numbers. Each shows
itself in JupyterLab and as plain HTML on a page; the `…_html` functions make the latter alone.
"""

from vmlib.view.player import Player, player_data, player_html
from vmlib.view.plot import Plot, plot_html
from vmlib.view.predict import Predict, predict_data, predict_html, verdict_html

__all__ = [
    "Player",
    "Plot",
    "Predict",
    "player_data",
    "player_html",
    "plot_html",
    "predict_data",
    "predict_html",
    "verdict_html",
]
