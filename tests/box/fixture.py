"""The fixture `box`, for tests marked `needs("box")`; `tests/conftest.py` imports it."""

from collections.abc import Iterator

import pytest

from box import Box, import_path


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """The box of this session; it boots for its first job and is gone after the last test."""
    with Box(import_path()) as started:
        yield started
