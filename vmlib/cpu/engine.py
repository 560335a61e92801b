"""What an engine is: the protocol that Unicorn and KVM both fulfil.

A VM owns guest RAM; a vCPU runs in it until something happens that the engine cannot finish
alone, and says so with an exit. Nothing else differs between an emulator and real hardware as
far as the rest of vmlib is concerned; what one of them cannot do is in `capabilities.py`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from vmlib.cpu.budget import Budget
from vmlib.cpu.exits import Exit, answer_size
from vmlib.cpu.state import Registers, SystemRegisters, VcpuState
from vmlib.errors import BadInput
from vmlib.given import octets
from vmlib.memory import GuestRam
from vmlib.numbers import whole
from vmlib.units import PAGE_SIZE

REAL_MODE_SP = 0x0F00
"""Initial stack pointer of a flat guest, in the middle of nothing else (contract of `run`)."""

INTERCEPTS = ("msr", "cpuid", "cr3", "hypercall")
"""What `intercept` can ask for, beyond the exits that always come."""

ReadHandler = Callable[[int, int], int]
"""``read(address, size) -> value``: what a device answers, little-endian as an int."""
WriteHandler = Callable[[int, int, int], None]
"""``write(address, size, value)``: what a device takes."""


class Doorbell(Protocol):
    """A counter that a guest's write raises without an exit to user space: KVM's ioeventfd."""

    def take(self) -> int:
        """Return how often it rang since the last call, and start at zero again."""

    def fileno(self) -> int:
        """The eventfd, for `select` and friends."""


class InterruptController(Protocol):
    """An interrupt controller that the emulator treats as KVM treats its irqchip.

    It lives beside the vCPU and not in the VMM's loop: a halted vCPU waits in `run()` for it.
    """

    def pending(self) -> bool:
        """Say whether there is an interrupt for the vCPU. Called often; must be quick."""

    def acknowledge(self) -> int:
        """Return the vector of the highest pending interrupt, now in service."""

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an input line. Callable from any thread."""

    def reset(self) -> None:
        """Be as when new: not set up, nothing pending."""

    def notify(self, wake: Callable[[], None]) -> None:
        """Have `wake()` called whenever an interrupt becomes pending."""


class Vcpu(Protocol):
    """One virtual CPU. On KVM it belongs to the thread that first runs it."""

    index: int
    exits: Counter[str]
    """Exits to user space so far, by reason."""

    @property
    def handled(self) -> Counter[str]:
        """Events that a handler inside finished, by kind; the guest never left for them."""

    def start_real_mode(self, ip: int, sp: int = REAL_MODE_SP) -> None:
        """Real mode with every segment base 0, interrupts off, at `ip`; registers zero."""

    def start_protected_mode(self, eip: int, esp: int = 0) -> None:
        """32-bit protected mode, flat, no paging, interrupts off."""

    def start_long_mode(self, rip: int, rsp: int, cr3: int) -> None:
        """64-bit mode with the guest's own page tables at `cr3`, interrupts off."""

    def set_budget(self, budget: Budget) -> None:
        """Limit what `run` may use from now on. `Unsupported` if the engine cannot count it."""

    def run(self) -> Exit:
        """Run the guest until it leaves; return why."""

    def step(self) -> Exit | None:
        """Run one instruction; None if it finished inside the guest."""

    def complete(self, data: bytes) -> None:
        """Answer the exit that asks for something. The guest sees it on the next `run`."""

    def refuse(self) -> None:
        """Answer an MsrRead or MsrWrite with a general-protection fault."""

    def inject(self, vector: int) -> None:
        """Have an external interrupt delivered as soon as the guest can take it.

        One at a time: `BadInput` while an earlier one waits. If the guest has interrupts off, the
        next `run` returns `InterruptWindow` once it has them on, and the one after delivers.
        """

    def kick(self) -> None:
        """Make `run` return soon. Callable from any thread, at any time, and never lost."""

    def breakpoints(self, addresses: Iterable[int]) -> None:
        """Replace the debugger's breakpoints by these linear addresses, four at most."""

    def intercept(self, *kinds: str) -> None:
        """Have these exit too (see INTERCEPTS); `Unsupported` where the engine cannot.

        Whoever only looks on changes nothing at an MSR: without an answer a read gets the engine's
        own value, and without a refusal a write is done. CPUID and hypercalls find zeros then.
        """

    def registers(self) -> Registers:
        """The registers now, after finishing a pending instruction."""

    def set_registers(self, registers: Registers) -> None:
        """Replace all general registers, RIP and RFLAGS; `BadInput` for one that does not fit."""

    def system(self) -> SystemRegisters:
        """Segments, control registers and tables now, after finishing a pending instruction."""

    def set_system(self, system: SystemRegisters) -> None:
        """Replace them; `BadInput` for what does not fit or, on KVM, contradicts itself."""

    def save(self) -> VcpuState:
        """The full state, after finishing a pending instruction."""

    def restore(self, state: VcpuState) -> None:
        """Become what `save` returned, on this engine or another; a pending exit is forgotten.

        `BadInput` for what does not fit, `Unsupported` for what this engine does not have. A halted
        vCPU that nothing inside could wake says so once more: its next exit is `Halt`.
        """

    def close(self) -> None:
        """Give back what the vCPU holds."""


class Vm(Protocol):
    """A virtual machine of an engine: RAM and vCPUs."""

    engine: str
    ram: GuestRam

    def vcpu(self) -> Vcpu:
        """Create the next vCPU."""

    def doorbell(
        self, address: int, size: int, *, mmio: bool = False, match: int | None = None
    ) -> Doorbell:
        """Let writes of `size` bytes (of value `match`, if given) ring instead of exit."""

    def handle_ports(self, first: int, count: int, read: ReadHandler, write: WriteHandler) -> None:
        """Have these ports handled inside `run`. `Unsupported` where that is not Python's place."""

    def handle_memory(self, gpa: int, size: int, read: ReadHandler, write: WriteHandler) -> None:
        """Have these whole pages outside RAM handled inside `run`."""

    def create_irqchip(self, controller: InterruptController | None = None) -> None:
        """Put an interrupt controller beside the vCPUs, before the first one is created.

        KVM has its own and takes none; the emulator needs one.
        """

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an input line of the interrupt controller. Callable from any thread."""

    def reset_irqchip(self) -> None:
        """Let the interrupt controller be as when it was new. No vCPU may run meanwhile."""

    def close(self) -> None:
        """Give everything back. A closed VM can only be closed again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class BaseVcpu(ABC):
    """What the vCPUs of all engines share: how they start, what they count, what is pending."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.exits: Counter[str] = Counter()
        self._pending: Exit | None = None
        self._closed = False

    def start_real_mode(self, ip: int, sp: int = REAL_MODE_SP) -> None:
        """Real mode with every segment base 0, interrupts off, at `ip`; registers zero."""
        registers = Registers(rip=whole(ip, "ip", 0, 0xFFFF), rsp=whole(sp, "sp", 0, 0xFFFF))
        self._start(SystemRegisters.real_mode(), registers)

    def start_protected_mode(self, eip: int, esp: int = 0) -> None:
        """32-bit protected mode, flat, no paging, interrupts off."""
        top = (1 << 32) - 1
        registers = Registers(rip=whole(eip, "eip", 0, top), rsp=whole(esp, "esp", 0, top))
        self._start(SystemRegisters.protected_mode(), registers)

    def start_long_mode(self, rip: int, rsp: int, cr3: int) -> None:
        """64-bit mode with the guest's own page tables at `cr3`, interrupts off."""
        top = (1 << 64) - 1
        registers = Registers(rip=whole(rip, "rip", 0, top), rsp=whole(rsp, "rsp", 0, top))
        if (root := whole(cr3, "cr3", 0, top)) % PAGE_SIZE:
            raise BadInput("cr3", f"is the address of a page, not {root:#x}")
        self._start(SystemRegisters.long_mode(root), registers)

    def complete(self, data: bytes) -> None:
        """Answer the exit that asks for something. The guest sees it on the next `run`."""
        self._check_open()
        size = answer_size(self._pending)
        if size is None:
            raise BadInput("complete", "no exit is waiting for an answer: no IN, no MMIO read")
        answer = data if isinstance(data, bytes) else octets(data, "data")
        if len(answer) != size:
            raise BadInput("complete", f"the guest reads {size} byte(s), not {len(answer)}")
        self._answer(answer)

    @property
    def handled(self) -> Counter[str]:
        """Events that a handler inside finished, by kind; a kernel does not tell its own."""
        return Counter()

    def __iter__(self) -> Iterator[Exit]:
        """Yield exits for ever: ``for exit in vcpu`` is the outer loop."""
        while True:
            yield self.run()

    @abstractmethod
    def run(self) -> Exit:
        """Run the guest until it leaves; return why."""

    @abstractmethod
    def set_registers(self, registers: Registers) -> None:
        """Replace all general registers, RIP and RFLAGS."""

    @abstractmethod
    def set_system(self, system: SystemRegisters) -> None:
        """Replace segments, control registers and tables."""

    @abstractmethod
    def _answer(self, data: bytes) -> None:
        """Keep a checked answer to the pending exit for the next entry."""

    def _start(self, system: SystemRegisters, registers: Registers) -> None:
        self.set_system(system)  # an engine may refuse it: nothing is forgotten before
        self._forget()
        self.set_registers(registers)

    @abstractmethod
    def _forget(self) -> None:
        """Drop what is pending: an unfinished instruction, an injected interrupt."""

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput("vcpu", "is closed")


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
        self._check_open()
        self.vcpus.append(self._new_vcpu(len(self.vcpus)))
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
    def _new_vcpu(self, index: int) -> AnyVcpu:
        """Create a vCPU of this engine."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what the engine holds besides vCPUs and RAM."""

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput("vm", "is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether an engine can be used here: `reason` and `fix` say why not."""

    engine: str
    usable: bool
    version: str
    reason: str = ""
    fix: str = ""
