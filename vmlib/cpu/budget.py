"""Budgets: how long a guest may run before `run()` hands it back.

A guest may loop for ever and a hung notebook teaches nothing, so time and instructions can be
limited. Only time spent inside `run()` counts: a reader may think between two calls as long as
they like.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmlib.errors import BadInput
from vmlib.given import check_fields


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit in seconds, in instructions, or both; None is no limit."""

    seconds: float | None = None
    instructions: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seconds is not None and not 0 < self.seconds < threading.TIMEOUT_MAX:
            most = f"{threading.TIMEOUT_MAX:.0f}"  # what a thread can wait for
            raise BadInput("budget", f"seconds are from above 0 to {most}, not {self.seconds}")
        if self.instructions is not None and self.instructions < 1:
            raise BadInput("budget", f"instructions must be at least 1, not {self.instructions}")

    @classmethod
    def parse(cls, text: "str | Budget | None") -> "Budget":
        """Read ``"2s"``, ``"500ms"`` or ``"1e6i"`` (instructions)."""
        if text is None:
            return cls()
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*(s|ms|i)\s*", str(text), re.ASCII)
        if match is None:
            raise BadInput("budget", f"{text!r} is not a budget; write '2s', '500ms' or '1e6i'")
        number, unit = float(match[1]), match[2]
        if unit == "i":
            return cls(instructions=int(number))
        return cls(seconds=number if unit == "s" else number / 1000)

    def __str__(self) -> str:
        parts = []
        if self.seconds is not None:
            parts.append(f"{self.seconds:g} s")
        if self.instructions is not None:
            parts.append(f"{self.instructions} instructions")
        return " and ".join(parts) or "no limit"


class Watchdog:
    """Kicks a vCPU when its time is up, again and again until it has left the guest.

    A kick that arrives between two looks of the engine can be lost; repeating it costs nothing
    and closes that gap. The thread lives only while runs are in progress: after the last one it
    wakes once, sees nothing to watch, and ends.
    """

    def __init__(self, seconds: float, kick: Callable[[], None]) -> None:
        self.remaining = seconds
        self.expired = False
        self._kick = kick
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def __enter__(self) -> None:
        with self._lock:
            self._deadline = time.monotonic() + self.remaining
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._deadline is not None:
                self.remaining = max(0.0, self._deadline - time.monotonic())
            self._deadline = None

    def close(self) -> None:
        """End the thread now and wait for it."""
        thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        while True:
            with self._lock:
                if self._deadline is None or self._wake.is_set():
                    self._thread = None
                    return
                left = self._deadline - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._kick()
                    left = 0.001
            self._wake.wait(left)
