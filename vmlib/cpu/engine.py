"""What an engine is: the protocol that Unicorn and KVM both fulfil.

A VM owns guest RAM; a vCPU runs in it until something happens that the engine cannot finish
alone, and says so with an exit. Nothing else differs between an emulator and real hardware as
far as the rest of vmlib is concerned.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Generic, Protocol, Self, TypeVar

from vmlib.cpu.budget import Budget
from vmlib.cpu.exits import Exit
from vmlib.errors import BadInput
from vmlib.memory import GuestRam

REAL_MODE_SP = 0x0F00
"""Initial stack pointer of a flat guest, in the middle of nothing else (contract of `run`)."""

FLAG_BITS = {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11}


@dataclass(slots=True)
class Registers:
    """General registers of a vCPU, 64 bits each, in the order of `struct kvm_regs`."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def show(self, name: str) -> str:
        """Return a register as shown to a reader.

        ``"AX"`` gives 16 bits in hex, ``"EAX"`` 32, ``"RAX"`` 64; a flag such as ``"ZF"`` 0 or 1.
        """
        if name in FLAG_BITS:
            return str(self.rflags >> FLAG_BITS[name] & 1)
        low = name.lower()
        if low in _NAMES:
            return f"0x{getattr(self, low):016x}"
        if low[0] == "e" and "r" + low[1:] in _NAMES:
            return f"0x{getattr(self, 'r' + low[1:]) & 0xFFFFFFFF:08x}"
        if "r" + low in _NAMES:
            return f"0x{getattr(self, 'r' + low) & 0xFFFF:04x}"
        raise KeyError(name)


_NAMES = frozenset(field.name for field in fields(Registers))


class Vcpu(Protocol):
    """One virtual CPU. On KVM it belongs to the thread that first runs it."""

    def start_real_mode(self, ip: int, sp: int = REAL_MODE_SP) -> None:
        """Real mode with every segment base 0, interrupts off, at `ip`; registers zero."""

    def set_budget(self, budget: Budget) -> None:
        """Limit what `run` may use from now on. `Unsupported` if the engine cannot count it."""

    def run(self) -> Exit:
        """Run the guest until it leaves; return why."""

    def step(self) -> Exit | None:
        """Run one instruction; None if it finished inside the guest."""

    def complete(self, data: bytes) -> None:
        """Answer the pending IoIn or Mmio read. The guest sees it on the next `run`."""

    def kick(self) -> None:
        """Make `run` return soon. Callable from any thread, at any time."""

    def registers(self) -> Registers:
        """The registers now, after finishing a pending instruction."""

    def close(self) -> None:
        """Give back what the vCPU holds."""


class Vm(Protocol):
    """A virtual machine of an engine: RAM and vCPUs."""

    engine: str
    ram: GuestRam

    def vcpu(self) -> Vcpu:
        """Create the next vCPU."""

    def close(self) -> None:
        """Give everything back. A closed VM can only be closed again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


AnyVcpu = TypeVar("AnyVcpu", bound=Vcpu)


class BaseVm(ABC, Generic[AnyVcpu]):
    """What the VMs of all engines share: RAM, the list of vCPUs, and an orderly end."""

    engine = ""

    def __init__(self, ram: int | str) -> None:
        self.ram = GuestRam(ram)
        self.vcpus: list[AnyVcpu] = []
        self._closed = False

    def vcpu(self) -> AnyVcpu:
        """Create the next vCPU."""
        if self._closed:
            raise BadInput("vm", "is closed")
        self.vcpus.append(self._new_vcpu())
        return self.vcpus[-1]

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        for vcpu in self.vcpus:
            vcpu.close()
        self._release()
        self.ram.close()

    @abstractmethod
    def _new_vcpu(self) -> AnyVcpu:
        """Create a vCPU of this engine."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what the engine holds besides vCPUs and RAM."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_real_mode_start(ip: int, sp: int) -> None:
    """Refuse offsets that real mode does not have."""
    if not 0 <= ip <= 0xFFFF or not 0 <= sp <= 0xFFFF:
        raise BadInput("ip, sp", "are 16-bit offsets in real mode")


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether an engine can be used here: `reason` and `fix` say why not."""

    engine: str
    usable: bool
    version: str
    reason: str = ""
    fix: str = ""
