"""The box of the tests: `vmlib.box`, with the modules of the tests in it.

Tests are marked `needs("box")` and take the fixture `box`. Unlike a reader's, their box fetches its
kernel by itself when there is none.
"""

import functools
import shutil
from pathlib import Path

from vmlib.box import Box, BoxError, Image, Job, Result, fetch
from vmlib.box.image import QEMU
from vmlib.errors import HostUnavailable

__all__ = ["Box", "BoxError", "Image", "Job", "Result", "fetch", "import_path", "why_not"]


@functools.cache
def why_not() -> str:
    """Return why there can be no box here, or an empty string. The first call may fetch."""
    if not shutil.which(QEMU):
        return f"{QEMU} is not installed"
    try:
        fetch()
    except HostUnavailable as error:
        return error.reason
    return ""


def import_path() -> list[Path]:
    """Return where a job's imports are found: as in the tests, but for what is installed."""
    tests = Path(__file__).resolve().parents[1]
    rooms = [p for p in sorted(tests.iterdir()) if p.is_dir() and not (p / "__init__.py").exists()]
    return [tests, *rooms, tests.parent / "book/_ext"]
