"""Exits: why `run()` came back, in the same objects on every engine.

Names and numbers are KVM's (`KVM_EXIT_*`, Linux `include/uapi/linux/kvm.h`; meaning in
`Documentation/virt/kvm/api.rst`, section 5). An exit is a fact and never changes; what the
device answers goes to `vcpu.complete()`.
"""

from dataclasses import dataclass
from typing import ClassVar

_NEWLINE = 0x0A


def show_bytes(data: bytes) -> str:
    """Return bytes as a reader sees them: ``0x34 '4'``, ``0x0a '⏎'``, ``0x1234``."""
    number = f"0x{int.from_bytes(data, 'little'):0{2 * len(data)}x}"
    if len(data) != 1:
        return number
    if data[0] == _NEWLINE:
        return f"{number} '⏎'"
    char = chr(data[0]) if 0x20 <= data[0] < 0x7F else ""
    return f"{number} '{char}'" if char else number


@dataclass(frozen=True, slots=True)
class Exit:
    """What every exit has: a `reason`, KVM's name for it, and a sentence."""

    reason: ClassVar[str] = "UNKNOWN"

    @property
    def detail(self) -> str:
        """The facts of this exit in a few words."""
        return ""


@dataclass(frozen=True, slots=True)
class IoOut(Exit):
    """The guest wrote `data` (`size` bytes per item) to an I/O port. KVM_EXIT_IO, 2."""

    port: int
    size: int
    data: bytes
    reason: ClassVar[str] = "IO"

    @property
    def detail(self) -> str:
        """Port and bytes."""
        return f"OUT {self.port:#x} ← {show_bytes(self.data)}"


@dataclass(frozen=True, slots=True)
class IoIn(Exit):
    """The guest reads `count` items of `size` bytes from a port; answer with `complete()`."""

    port: int
    size: int
    count: int = 1
    reason: ClassVar[str] = "IO"

    @property
    def detail(self) -> str:
        """Port and width."""
        return f"IN {self.port:#x}, {self.size * self.count} byte(s)"


@dataclass(frozen=True, slots=True)
class Mmio(Exit):
    """The guest touched a guest-physical address where there is no RAM. KVM_EXIT_MMIO, 6.

    `data` holds what it wrote; for a read it is None.
    """

    gpa: int
    size: int
    data: bytes | None
    reason: ClassVar[str] = "MMIO"

    @property
    def detail(self) -> str:
        """Address and direction."""
        if self.data is None:
            return f"read {self.size} byte(s) at GPA {self.gpa:#x}"
        return f"write GPA {self.gpa:#x} ← {show_bytes(self.data)}"


@dataclass(frozen=True, slots=True)
class Halt(Exit):
    """HLT, and nobody in the kernel could wake this vCPU. KVM_EXIT_HLT, 5."""

    reason: ClassVar[str] = "HLT"


@dataclass(frozen=True, slots=True)
class Shutdown(Exit):
    """Triple fault: a fault that could not be delivered. KVM_EXIT_SHUTDOWN, 8."""

    why: str
    reason: ClassVar[str] = "SHUTDOWN"

    @property
    def detail(self) -> str:
        """The diagnosis."""
        return self.why


@dataclass(frozen=True, slots=True)
class BudgetSpent(Exit):
    """The guest used up the time or the instructions it was given. The vCPU can go on."""

    limit: str
    reason: ClassVar[str] = "BUDGET"

    @property
    def detail(self) -> str:
        """The limit."""
        return f"used up {self.limit}"


@dataclass(frozen=True, slots=True)
class Kicked(Exit):
    """Somebody called `kick()`. KVM_EXIT_INTR, 10."""

    reason: ClassVar[str] = "INTR"


@dataclass(frozen=True, slots=True)
class EngineFailure(Exit):
    """The engine itself gave up on the guest: KVM_EXIT_INTERNAL_ERROR (17), FAIL_ENTRY (9)."""

    why: str
    reason: ClassVar[str] = "INTERNAL_ERROR"

    @property
    def detail(self) -> str:
        """What the engine said."""
        return self.why
