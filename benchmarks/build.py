"""How long a reader waits: a cold `make book`, a rebuild of nothing, the labs.

Cold means a fresh clone with no virtual environment; packages come from pip's cache when an
earlier run has filled it, and the first of the runs, which may download, is not counted.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import Figure

ROOT = Path(__file__).resolve().parents[1]
COLD_RUNS = 3  # and one before that is not counted


def timed(command: list[str], folder: Path) -> float:
    """Return the seconds a command takes; it must succeed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=clean, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def run() -> list[Figure]:
    """Measure in fresh clones of the committed state."""
    cold: list[float] = []
    again: list[float] = []
    for number in range(COLD_RUNS + 1):
        with tempfile.TemporaryDirectory() as folder:
            clone = Path(folder) / "book"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
            seconds = timed(["make", "book"], clone)
            if number:
                cold.append(seconds)
                again.append(timed(["make", "book"], clone))
    figures = [
        Figure("cold make book", tuple(cold), "s", "at most 90"),
        Figure("make book again, nothing changed", tuple(again), "s", "at most 5"),
    ]
    for lab in sorted((ROOT / "labs").glob("*/*.ipynb")):
        command = [sys.executable, "-m", "pytest", "-q", str(lab)]
        runs = tuple(timed(command, ROOT) for _ in range(3))
        figures.append(Figure(f"lab {lab.parent.name}/{lab.stem}", runs, "s", "at most 10"))
    return figures
