"""Taking turns: one big lock for a VM, handed on fairly.

Two emulators that share RAM do not lock against each other: half of ten million `lock inc` are
lost when both run at the same moment. So the vCPUs of a VM run one at a time, and whoever waits
taps the one that runs on the shoulder after a slice. Early kernels did the same and called it the
big kernel lock.
"""

import threading
from collections.abc import Callable

SLICE = 0.002
"""Seconds for which a vCPU may run on while another waits."""


class Turns:
    """A lock that is handed on in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._serving = 0
        self._tap: Callable[[], None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the one that has the turn."""
        return self._next - self._serving > 1

    def take(self, tap: Callable[[], None]) -> None:
        """Wait for the turn; `tap` is called when others have waited long enough."""
        with self._changed:
            mine = self._next
            self._next += 1
            while self._serving != mine:
                if not self._changed.wait(SLICE) and self._tap is not None:
                    self._tap()
            self._tap = tap

    def give(self) -> None:
        """Hand the turn on."""
        with self._changed:
            self._serving += 1
            self._tap = None
            self._changed.notify_all()
