"""The fixture `box`, for tests marked `needs("box")`; `tests/conftest.py` imports it."""

from collections.abc import Iterator

import pytest

from box.run import Box


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """The box of this session; it boots for its first job and is gone after the last test."""
    with Box() as started:
        yield started
