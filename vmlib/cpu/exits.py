"""Exits: why `run()` came back, in the same objects on every engine.

Names and numbers are KVM's (`KVM_EXIT_*`, Linux `include/uapi/linux/kvm.h`; meaning in
`Documentation/virt/kvm/api.rst`, section 5). An exit is a fact and never changes; what the
device answers goes to `vcpu.complete()`.
"""

from dataclasses import dataclass
from functools import lru_cache
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
    """The guest wrote `data` to an I/O port, in items of `size` bytes. KVM_EXIT_IO, 2."""

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

    `data` holds what it wrote; for a read it is None, and `complete()` answers.
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
    """Triple fault: a fault that could not be delivered. KVM_EXIT_SHUTDOWN, 8.

    `why` is the diagnosis in words. `vector` is the first exception of the chain, `cr2` the
    address of the last page fault, `gate` what was wrong with the gate or stack on which the chain
    ended; each is None or empty where the engine cannot know it.
    """

    why: str
    vector: int | None = None
    cr2: int | None = None
    gate: str = ""
    reason: ClassVar[str] = "SHUTDOWN"

    @property
    def detail(self) -> str:
        """The diagnosis."""
        return self.why


@dataclass(frozen=True, slots=True)
class InterruptWindow(Exit):
    """An injected interrupt had to wait, and could be delivered now. KVM_EXIT_IRQ_WINDOW_OPEN, 7.

    The next `run()` delivers it.
    """

    reason: ClassVar[str] = "IRQ_WINDOW_OPEN"


@dataclass(frozen=True, slots=True)
class Debug(Exit):
    """The guest reached a breakpoint of the debugger's. KVM_EXIT_DEBUG, 4.

    `address` is linear, and its instruction has not been executed. A repeated string instruction
    may break more than once: the emulator begins it anew for each item, and so may KVM.
    """

    address: int
    reason: ClassVar[str] = "DEBUG"

    @property
    def detail(self) -> str:
        """Where it stands."""
        return f"breakpoint at {self.address:#x}"


@dataclass(frozen=True, slots=True)
class MsrRead(Exit):
    """RDMSR that user space asked to see; answer with eight bytes. KVM_EXIT_X86_RDMSR, 29."""

    index: int
    reason: ClassVar[str] = "X86_RDMSR"

    @property
    def detail(self) -> str:
        """Which one."""
        return f"RDMSR {self.index:#x}"


@dataclass(frozen=True, slots=True)
class MsrWrite(Exit):
    """WRMSR that user space asked to see. KVM_EXIT_X86_WRMSR, 30."""

    index: int
    value: int
    reason: ClassVar[str] = "X86_WRMSR"

    @property
    def detail(self) -> str:
        """Which one, and the value."""
        return f"WRMSR {self.index:#x} ← {self.value:#x}"


@dataclass(frozen=True, slots=True)
class Cpuid(Exit):
    """CPUID; answer with EAX, EBX, ECX and EDX, sixteen bytes. KVM finishes it in the kernel."""

    leaf: int
    subleaf: int
    reason: ClassVar[str] = "CPUID"

    @property
    def detail(self) -> str:
        """Leaf and subleaf."""
        return f"CPUID {self.leaf:#x}, {self.subleaf:#x}"


@dataclass(frozen=True, slots=True)
class Cr3Write(Exit):
    """MOV to CR3, already done. KVM finishes it in the kernel."""

    value: int
    reason: ClassVar[str] = "CR3"

    @property
    def detail(self) -> str:
        """The new value."""
        return f"CR3 ← {self.value:#x}"


@dataclass(frozen=True, slots=True)
class Hypercall(Exit):
    """VMCALL or VMMCALL; answer with RAX, eight bytes. KVM_EXIT_HYPERCALL, 3.

    `args` are RBX, RCX, RDX and RSI, as Linux guests pass them (`Documentation/virt/kvm/x86/
    hypercalls.rst`).
    """

    number: int
    args: tuple[int, int, int, int]
    reason: ClassVar[str] = "HYPERCALL"

    @property
    def detail(self) -> str:
        """Number and arguments."""
        return f"hypercall {self.number}({', '.join(map(hex, self.args))})"


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


Answerable = IoIn | Mmio | MsrRead | Cpuid | Hypercall


def answer_size(exit: Exit | None) -> int | None:
    """Return how many bytes `complete()` must give for this exit; None if it asks for none."""
    match exit:
        case IoIn(size=size, count=count):
            return size * count
        case Mmio(size=size, data=None):
            return size
        case MsrRead() | Hypercall():
            return 8
        case Cpuid():
            return 16
    return None


# On the emulator these two come by the hundred thousand a second and are much alike. To make one is
# a tenth of all that an exit costs there.


@lru_cache(maxsize=1024)
def io_out(port: int, size: int, value: int) -> IoOut:
    """Return the exit of a guest that wrote one item of `size` bytes to a port."""
    return IoOut(port, size, value.to_bytes(size, "little"))


@lru_cache(maxsize=1024)
def io_in(port: int, size: int) -> IoIn:
    """Return the exit of a guest that reads one item of `size` bytes from a port."""
    return IoIn(port, size)
