"""A machine: a VM, one vCPU, a board with a few devices, and the outer of the two loops.

The inner loop is `vcpu.run()`, the guest's. The outer one is here: run, look why the guest came
back, let the device at that address answer, run again. `record()` runs the same loop one
instruction at a time and writes down who acted, which makes the *lanes* trace.

The devices are those of `vmlib.board`, and on request an interrupt controller. Left out: a timer,
disks, networks, and a second vCPU.

`record_loop`, exported here, is a smaller machine made for one figure: the two loops around a guest
that tries one thing (a key of `LOOP_TRIES`).
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmlib import multiboot
from vmlib.board import COM1, COM1_LINE, Board
from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Cpuid,
    Cr3Write,
    EngineFailure,
    Exit,
    Guest,
    Halt,
    Hypercall,
    InterruptWindow,
    IoIn,
    IoOut,
    Mmio,
    MsrRead,
    MsrWrite,
    Registers,
    Shutdown,
    Vcpu,
    Vm,
    open_vm,
    probe,
)
from vmlib.cpu.exits import answer_size
from vmlib.devices import PicPair, pic
from vmlib.errors import BadInput
from vmlib.given import check_one, shown
from vmlib.lanes import BETWEEN_INSTRUCTIONS, VMM, Scribe
from vmlib.loop_problems import LoopProblem, loop_problem
from vmlib.loop_trace import TRIES as LOOP_TRIES
from vmlib.loop_trace import opening as loop_opening
from vmlib.loop_trace import record_loop
from vmlib.numbers import whole
from vmlib.trace import Provenance, Trace

LOAD_ADDRESS = 0x1000
DEFAULT_BUDGET = "2s"
SHOWN_REGISTERS = ("AX", "DX", "SP", "IP")

HALTED, FAILED, CRASHED, SPENT = 0, 69, 124, 125
"""Exit statuses of a run that the guest did not choose."""

__all__ = [
    "COM1",
    "LOOP_TRIES",
    "Board",
    "LoopProblem",
    "Machine",
    "Outcome",
    "host_name",
    "loop_opening",
    "loop_problem",
    "record_loop",
]

_IF = 1 << 9
_NO_SUCH_CALL = (-1000 & (1 << 64) - 1).to_bytes(8, "little")  # -KVM_ENOSYS, linux/kvm_para.h


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the bytes on the serial port, every exit in order, and how it ended.

    `status` is what a command line would exit with: the guest's own choice by the debug exit, 0
    for a halt with interrupts off, 124 for a shutdown, 125 for a spent budget, 69 if the engine
    gave up, and None where the guest could go on.
    """

    output: bytes
    exits: tuple[Exit, ...]
    status: int | None = None

    @property
    def last(self) -> Exit:
        """The exit that ended the run."""
        return self.exits[-1]

    @property
    def counts(self) -> dict[str, int]:
        """How many exits of each reason."""
        return dict(Counter(one.reason for one in self.exits))


class Machine:
    """A machine with `ram` of memory whose vCPU is `engine`; a context manager.

    `budget` limits the guest's time, or on the emulator its instructions: ``"2s"``, ``"1e6i"``,
    or None for no limit. With `irqchip` there is an interrupt controller beside the vCPU. With
    `open_bus` an access to memory where nobody is does what it does on a PC: reads find ones,
    writes vanish; without, it ends the run. `console` takes the serial port's bytes as they come,
    which are then not kept.
    """

    def __init__(
        self,
        engine: str = "unicorn",
        ram: int | str = "64K",
        budget: str | Budget | None = DEFAULT_BUDGET,
        *,
        irqchip: bool = False,
        open_bus: bool = False,
        console: Callable[[bytes], object] | None = None,
    ) -> None:
        if console is not None and not callable(console):
            raise BadInput("console", f"is {shown(console)}; it must be a function")
        self.engine = engine
        self.open_bus = open_bus
        self.guest: Guest | None = None
        self.last: Exit | None = None
        """The exit that ended the guest, or None while it is not over."""
        self._budget = Budget.parse(budget)
        self._output = bytearray()
        self._at = LOAD_ADDRESS
        self._answer: bytes | None = None
        self._vm: Vm = open_vm(engine, ram)
        self.ram = self._vm.ram
        self._irqchip = irqchip
        if irqchip:
            self._create_irqchip()
        self.vcpu: Vcpu = self._vm.vcpu()
        self.board = Board(self.ram.size, console or self._output.extend)
        if irqchip:
            self.board.uart.irq = lambda level: self._vm.set_irq(COM1_LINE, level)
        self.debug_exit = self.board.debug_exit

    def load(self, guest: Guest | bytes, at: int | None = None) -> Self:
        """Put a guest's bytes into RAM and point the vCPU there, in real mode.

        `at` is 0x1000 unless the guest wants to be elsewhere. A Multiboot guest goes where its
        header says and starts as that demands.
        """
        guest = guest if isinstance(guest, Guest) else Guest.from_bytes(guest)
        if guest.entry == "multiboot":
            return self.load_multiboot(guest)
        if at is None:
            at = LOAD_ADDRESS if guest.at is None else guest.at
        elif guest.at not in (None, at):
            raise BadInput("at", f"{guest.name} runs at {guest.at:#x} only, not at {at:#x}")
        whole(at, "at", 0, 0xFFFF)
        self.ram.write(at, guest.code)  # all of it, or the guest before stays
        self._begin(guest, at)
        self.vcpu.start_real_mode(at)
        return self

    def load_multiboot(self, image: Guest | bytes | str | Path, command_line: str = "") -> Self:
        """Put a Multiboot kernel into RAM, and the vCPU into the state that it expects."""
        if isinstance(image, str | Path):
            kernel = multiboot.read_kernel(image)
        else:
            code, name = (image.code, image.name) if isinstance(image, Guest) else (image, "kernel")
            kernel = multiboot.parse_kernel(code, name)
        guest = image if isinstance(image, Guest) else Guest(kernel.name, kernel.image, ())
        loaded = multiboot.load(kernel, self.ram, command_line)
        self._begin(guest, guest.at or 0)
        self.vcpu.start_protected_mode(loaded.entry)
        registers = Registers(rip=loaded.entry, rax=multiboot.BOOT_MAGIC, rbx=loaded.info)
        self.vcpu.set_registers(registers)
        return self

    def run(self) -> Outcome:
        """Run the guest to its end, with the devices answering; return what came out."""
        before = len(self._output)
        exits = tuple(self.exits())
        return Outcome(bytes(self._output[before:]), exits, self.status_of(exits[-1]))

    def exits(self) -> Iterator[Exit]:
        """Run the guest and yield each exit after the device has answered; the last one ends it.

        A machine that has stopped can go on: after an `inject`, say, or with a new budget.
        """
        self._loaded()
        self.last = None
        while True:
            came_back = self.vcpu.run()
            if not self._serve(came_back):
                self.last = came_back
            yield came_back
            if self.last is not None:
                return

    def record(
        self,
        title: str = "Who runs, and what makes it leave",
        registers: Sequence[str] = SHOWN_REGISTERS,
        limit: int = 2000,
    ) -> Trace:
        """Run the guest one instruction at a time and return the lanes trace of it.

        A guest that is not over after `limit` steps is left there, and the last step says so.
        """
        guest = self._loaded()
        whole(limit, "limit", 3)  # the call, the entry, and a step
        check_one(title, str, "title")
        check_one(registers, Sequence[str], "registers")
        scribe = Scribe(guest, self._at, title, tuple(registers))
        scribe.note(VMM, "run", "The VMM calls KVM_RUN.", self.vcpu.registers())
        scribe.enter(self.vcpu.registers(), self._ring())
        while len(scribe.recorder) < limit:
            before, ring = self.vcpu.registers(), self._ring()
            inside = self.vcpu.handled.copy()
            came_back = self.vcpu.step()
            # To look at the registers finishes an instruction: not before it has its answer.
            asks = answer_size(came_back) is not None
            seen = before if asks else self.vcpu.registers()
            if not isinstance(came_back, BETWEEN_INSTRUCTIONS):
                scribe.instruction(before, seen, ring)
            if finished := self.vcpu.handled - inside:
                scribe.handled(finished, seen, ring)
            if came_back is None:
                continue
            scribe.leave(came_back, seen)
            if not self._serve(came_back):
                self.last = came_back
                break
            device, output = self.board.device(came_back), bytes(self._output)
            scribe.device(came_back, device, self._answer, output, seen)
            scribe.enter(self.vcpu.registers(), self._ring())
        else:
            scribe.note(VMM, "end", f"The recording ends after {limit} steps.", before)
        return scribe.recorder.finish(self._provenance(guest))

    def status_of(self, last: Exit) -> int | None:
        """Return the exit status of a run that ended with this exit (see `Outcome`)."""
        if self.debug_exit.status is not None:
            return self.debug_exit.status
        match last:
            case Halt():
                return None if self.vcpu.registers().rflags & _IF else HALTED
            case Shutdown():
                return CRASHED
            case BudgetSpent():
                return SPENT
            case EngineFailure():
                return FAILED
        return None

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower a line of the interrupt controller. Callable from any thread."""
        self._vm.set_irq(line, level)

    def close(self) -> None:
        """Give everything back."""
        self._vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create_irqchip(self) -> None:
        """KVM has a pair of 8259As in the kernel; beside the emulator we put ours."""
        if self.engine == "kvm":
            self._vm.create_irqchip()
            return
        pair = PicPair()
        self._vm.create_irqchip(pair)
        for base in (pic.PRIMARY, pic.SECONDARY):
            self._vm.handle_ports(base, pic.COUNT, pair.read, pair.write)

    def _begin(self, guest: Guest, at: int) -> None:
        self.vcpu.set_budget(self._budget)  # an engine may refuse it
        self.guest, self._at, self.last = guest, at, None
        self._output.clear()
        self.board.reset()
        if self._irqchip:
            self._vm.reset_irqchip()

    def _loaded(self) -> Guest:
        if self.guest is None:
            raise BadInput("machine", "has no guest yet; call load() first")
        return self.guest

    def _serve(self, request: Exit) -> bool:
        """Do what the guest wants of the machine; return whether it can go on."""
        self._answer = None
        match request:
            case IoOut() | IoIn():
                self._complete(self.board.serve(request))
                return self.debug_exit.status is None
            case Mmio():
                if not self.open_bus and not self.board.device(request):
                    return False
                self._complete(self.board.serve(request))
            case MsrRead() | MsrWrite():
                self.vcpu.refuse()
            case Cpuid():
                self._complete(bytes(16))
            case Hypercall():
                self._complete(_NO_SUCH_CALL)
            case InterruptWindow() | Cr3Write():
                pass
            case _:
                return False
        return True

    def _complete(self, answer: bytes | None) -> None:
        self._answer = answer
        if answer is not None:
            self.vcpu.complete(answer)

    def _ring(self) -> int:
        """The guest's privilege level, which is that of its stack segment."""
        return self.vcpu.system().ss.dpl

    def _provenance(self, guest: Guest) -> Provenance:
        return Provenance(
            engine=self.engine,
            versions={"engine": probe(self.engine).version, "Python": platform.python_version()},
            host=host_name(),
            guest_sha256=guest.sha256,
        )


def host_name() -> str:
    """Return the host's facts that a reader needs to judge a recording: kernel and CPU kind."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"
