"""What all tests share: outside tools, check records, and the counting of skips."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from box import why_not as why_no_box
from box.fixture import box  # noqa: F401
from checking import Checker

from vmlib.cpu import probe

ROOT = Path(__file__).resolve().parents[1]
REQUIRE_ALL = os.environ.get("VMLIB_REQUIRE") == "all"


def _why_missing(tool: str) -> str:
    """Return why an outside tool cannot be used here, or an empty string."""
    if tool in ("kvm", "unicorn"):
        status = probe(tool)
        return "" if status.usable else status.reason
    if tool == "box":
        return why_no_box()
    if tool == "x86-64 programs":
        here = f"{sys.platform} on {platform.machine()}"
        return "" if here == "linux on x86_64" else f"this is {here}"
    if tool == "UMIP":
        flags = Path("/proc/cpuinfo").read_text().split()
        return "" if "umip" in flags else "this processor has no UMIP"
    if tool == "two processors":
        return "" if len(os.sched_getaffinity(0)) > 1 else "this process has one processor"
    if tool == "keystone":
        return "" if find_spec(tool) else "keystone-engine is not installed"
    if tool == "python3-rados":  # Debian's bindings are for Debian's Python alone
        asked = subprocess.run(["/usr/bin/python3", "-c", "import rados, rbd"], capture_output=True)
        return "python3-rados or python3-rbd is not installed" if asked.returncode else ""
    return "" if shutil.which(tool) else f"{tool} is not installed"


def pytest_addoption(parser):
    parser.addoption("--write-checks", action="store_true", help="write checks/ROOM/ID.json anew")
    parser.addoption("--soak", action="store_true", help="run the long counts too")


def pytest_configure(config):
    config.addinivalue_line("markers", "soak: a long count; runs only with --soak")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--soak"):  # left out, not skipped: a skip is a check not made
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_runtest_setup(item):
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if why := _why_missing(tool):
                if REQUIRE_ALL:
                    pytest.fail(f"VMLIB_REQUIRE=all, but {why}", pytrace=False)
                pytest.skip(f"outside check not run: {why}")


def pytest_terminal_summary(terminalreporter):
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if "outside check" in reason:
            reasons[reason.removeprefix("Skipped: ")] += 1
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} x {reason}")


@pytest.fixture
def check(request):
    """Hold ours against a real system and keep a record: see `checking.Checker`."""
    test = request.node.nodeid.split("[")[0]
    return Checker(test, request.config.getoption("--write-checks"))


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that talks to nobody by itself. For tests that need chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        yield running
        running.close()


@pytest.fixture(scope="session")
def root():
    """The project's folder."""
    return ROOT


@pytest.fixture
def log_soak():
    """`log_soak(what, seed, count)` keeps a long count for the status page (checks/soak.json)."""
    path = ROOT / "checks/soak.json"

    def log(what, seed, count):
        runs = json.loads(path.read_text()) if path.is_file() else []
        runs = [run for run in runs if run["what"] != what]
        today = date.today().isoformat()
        runs.append({"what": what, "seed": seed, "count": count, "date": today})
        path.write_text(json.dumps(runs, indent=1) + "\n")

    return log
