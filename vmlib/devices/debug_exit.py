"""The port by which a guest ends its machine: QEMU's `isa-debug-exit`.

A write of `value` ends the emulator with exit status ``(value << 1) | 1``, which is never 0: so a
test can tell a guest that ended on purpose from an emulator that ended by itself. An operating
system keeps eight bits of it. Modelled on QEMU's documented device (`-device
isa-debug-exit,iobase=0xf4,iosize=0x04`); no hardware has it.
"""

PORT, COUNT = 0xF4, 4


class DebugExit:
    """Remembers the status that the guest asked for; the machine looks there after each write."""

    name = "the debug exit"
    widest = 4

    def __init__(self) -> None:
        self.status: int | None = None
        """Exit status, 1 to 255, or None as long as the guest has not written."""

    def read(self, offset: int, size: int) -> int:
        """Reads find zeros."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine; the first write counts."""
        if self.status is None:
            self.status = (value << 1 | 1) & 0xFF

    def reset(self) -> None:
        """Forget it."""
        self.status = None
