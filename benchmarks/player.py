"""What a key press costs in a trace of 2,000 steps: script, in headless Chromium.

One frame at 60 Hz is 16 ms, and the browser wants most of it for layout and paint.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import Figure
from vmlib.view import assets, player_html

STEPS, PRESSES = 2000, 300
PRESS = """count => {
  const figure = document.getElementById("p"), times = [];
  for (let i = 0; i < count; i++) {
    const key = { key: "ArrowRight", bubbles: true, cancelable: true };
    const start = performance.now();
    figure.dispatchEvent(new KeyboardEvent("keydown", key));
    times.push(performance.now() - start);
  }
  return times;
}"""


def run() -> list[Figure]:
    """Press a key three hundred times, with the table closed and with it open."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/view"))
    from view_helpers import make_trace

    body = player_html(make_trace(STEPS), name="p")
    style, script = assets.stylesheet(), assets.script()
    figures = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "page.html"
        page_file.write_text(
            f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}"
            f"<script>{script}</script>"
        )
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for table in ("closed", "open"):
            page = browser.new_page()
            page.goto(page_file.as_uri())
            if table == "open":
                page.click("#p summary")
                page.wait_for_selector(f"#p .vm-rows tr[data-row='{STEPS - 1}']")
            times = sorted(page.evaluate(PRESS, PRESSES))
            name = f"key press, 2,000 steps, table {table}"
            figures.append(Figure(name, tuple(times), "ms", "at most 16"))
        browser.close()
    return figures
