"""The labs in a real JupyterLab, as `make lab` starts it: the same player, live."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect
from vmbook import build, lab, records

pytestmark = pytest.mark.needs("chromium")
ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-this-test-alone"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    """JupyterLab on a copy of the labs, so that nothing a test does is kept."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "labs", home / "labs")
    build.prepare_kernels(records.ROOT)
    environment = {**os.environ, **lab.settings(home / ".settings")}
    port = free_port()
    command = lab.command(
        ["--no-browser", f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}"]
    )
    command = [f"--ServerApp.root_dir={home}" if "root_dir" in c else c for c in command]
    log = (home / "log").open("w")
    with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    with urllib.request.urlopen(f"{address}/api?token={TOKEN}") as answer:
                        assert json.load(answer)["version"]
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail((home / "log").read_text()[-2000:])
            yield address
        finally:
            server.terminate()


def test_the_lab_runs_with_the_same_player(browser, jupyterlab):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    tab = context.new_page()
    outside = []
    tab.on(
        "request",
        lambda asked: (
            outside.append(asked.url)
            if not asked.url.startswith((jupyterlab, "ws://127.0.0.1", "data:", "blob:"))
            else None
        ),
    )
    tab.goto(f"{jupyterlab}/lab/tree/labs/cpu/run-a-vm.ipynb?token={TOKEN}")
    tab.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    # Cells run before the kernel is there would make JupyterLab ask which kernel to use.
    tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    tab.get_by_role("menuitem", name="Run", exact=True).first.click()
    tab.get_by_text("Run All Cells", exact=True).click()
    # The check of section 7 is the last output, and the notebook shows cells as they are needed.
    figure = tab.locator(".jp-OutputArea .vm-player").first
    figure.wait_for(timeout=60_000)
    figure.scroll_into_view_if_needed()
    figure.locator("svg[data-lane]").wait_for(timeout=60_000)
    # The whole notebook has run before a key is pressed: outputs that arrive move the page.
    expect(tab.get_by_text("Problem 1: output: not answered yet")).to_have_count(1, timeout=60_000)
    tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    expect(figure.locator("[data-register=AX]")).to_have_text("0x0031", timeout=60_000)
    figure.scroll_into_view_if_needed()
    cells = tab.locator(".jp-Cell").count()
    figure.focus()
    for key in ("ArrowRight", "ArrowRight", "a", "b", "x"):  # the last three would edit cells
        tab.keyboard.press(key)
    expect(figure.locator(".vm-number")).to_have_text("step 22 of 45", timeout=10_000)
    expect(figure.locator(".vm-sentence")).to_contain_text("exit_reason = IO")
    expect(tab.locator(".jp-Cell")).to_have_count(cells)
    expect(tab.locator(".jp-OutputArea .vm-predict").first).to_be_visible()
    assert not tab.get_by_text("Would you like to get notified about official Jupyter news").count()
    assert outside == []
    context.close()
