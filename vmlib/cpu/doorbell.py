"""A doorbell: an eventfd that a guest's write raises, on either engine (KVM's ioeventfd).

Whoever waits for it may sleep on its descriptor. It lives as long as its VM.
"""

import os

from vmlib.errors import BadInput


class EventfdBell:
    """A counter behind a descriptor; `vmlib.cpu.engine.Doorbell` says what it promises."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def take(self) -> int:
        """Return how often it rang since the last call, and start at zero again."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    def fileno(self) -> int:
        """The eventfd, for `select` and friends; `BadInput` once the VM is closed."""
        if self._fd < 0:
            raise BadInput("doorbell", "the VM it belongs to is closed")
        return self._fd

    def close(self) -> None:
        """Close the descriptor: its number may soon be somebody else's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
