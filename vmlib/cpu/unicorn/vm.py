"""The Unicorn engine: a vCPU that needs no privilege and no hardware.

Unicorn executes instructions faithfully, walks the guest's own page tables, and was made for
analysing code, not for being a machine. Six habits of it are mended:

* it stops late after port I/O: see `traps.py`;
* asked to stop from another thread it does so in the middle of an instruction: see
  `Emulator.start`;
* the address at which to stop is a trap when the guest may jump anywhere: it is switched off;
* it remembers the last fault for ever, so that a second one looks like a double fault: the
  memory is wiped after each;
* it starts in 64-bit mode without page tables, which no processor has: its hidden state is set to
  that of a real one in any mode (`state.py`);
* it delivers no exception, INT or interrupt, and no SYSCALL: `gates.py` and `fast_calls.py` do.

vCPUs of one VM take turns, for two emulators do not lock against each other.
"""

import os
from collections.abc import Callable

from vmlib.cpu.doorbell import EventfdBell
from vmlib.cpu.engine import (
    BaseVm,
    InterruptController,
    ReadHandler,
    WriteHandler,
)
from vmlib.cpu.limits import check_doorbell, check_handlers, check_pages, check_ports
from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.home import REFUSED
from vmlib.cpu.unicorn.turns import Turns
from vmlib.cpu.unicorn.vcpu import UnicornVcpu
from vmlib.errors import BadInput
from vmlib.given import check_one

VERSION = raw.VERSION


class Bell(EventfdBell):
    """A doorbell for writes of one width, and of one value if `match` is given."""

    def __init__(self, size: int, match: int | None) -> None:
        super().__init__()
        self._size = size
        self._match = match

    def ring(self, address: int, size: int, value: int) -> object:
        """Take the write if it is for this bell."""
        if size != self._size or (self._match is not None and value != self._match):
            return REFUSED
        os.eventfd_write(self._fd, 1)
        return None


class UnicornVm(BaseVm[UnicornVcpu]):
    """A VM whose vCPUs are Unicorn's.

    With `parallel` its vCPUs run at the same moment and locked instructions are not atomic
    between them: an exercise, not a machine.
    """

    engine = "unicorn"

    def __init__(self, ram: int | str, parallel: bool = False) -> None:
        super().__init__(ram)
        self.reads: dict[int, ReadHandler] = {}
        self.writes: dict[int, Callable[[int, int, int], object]] = {}
        self.bells: dict[int, Callable[[int, int, int], object]] = {}
        self.regions: list[tuple[int, int, ReadHandler, WriteHandler]] = []
        self.controller: InterruptController | None = None
        self.turns = Turns()
        self.shared = False
        self.parallel = parallel
        self._doorbells: list[Bell] = []

    def doorbell(
        self, address: int, size: int, *, mmio: bool = False, match: int | None = None
    ) -> Bell:
        """Let writes of `size` bytes (of value `match`, if given) ring instead of exit."""
        self._check_open()
        check_doorbell(address, size, mmio, match, self.ram.size)
        place = self.bells if mmio else self.writes
        if address in place:
            raise BadInput("address", f"{address:#x} has a handler or a doorbell already")
        bell = Bell(size, match)
        self._doorbells.append(bell)
        place[address] = bell.ring
        return bell

    def handle_ports(self, first: int, count: int, read: ReadHandler, write: WriteHandler) -> None:
        """Have these ports handled inside `run`."""
        self._check_open()
        check_ports(first, count)
        check_handlers(read, write)
        ports = range(first, first + count)
        if taken := [port for port in ports if port in self.reads or port in self.writes]:
            raise BadInput("ports", f"{taken[0]:#x} has a handler or a doorbell already")
        for port in ports:
            self.reads[port] = read
            self.writes[port] = write

    def handle_memory(self, gpa: int, size: int, read: ReadHandler, write: WriteHandler) -> None:
        """Have these whole pages outside RAM handled inside `run`."""
        self._check_open()
        check_pages(gpa, size, self.ram.size)
        check_handlers(read, write)
        for other, length, _, _ in self.regions:
            if gpa < other + length and other < gpa + size:
                raise BadInput(
                    "gpa", f"{gpa:#x}+{size:#x} overlaps the region at {other:#x}+{length:#x}"
                )
        self.regions.append((gpa, size, read, write))

    def create_irqchip(self, controller: InterruptController | None = None) -> None:
        """Put an interrupt controller beside the vCPUs, before the first one is created."""
        self._check_open()
        if controller is None:
            raise BadInput("controller", "the emulator has none of its own: give it a model of one")
        check_one(controller, InterruptController, "controller")
        if self.vcpus:
            raise BadInput("irqchip", "must be there before the first vCPU")
        if self.controller is not None:
            raise BadInput("irqchip", "is there already")
        self.controller = controller
        controller.notify(self._wake)

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an input line of the interrupt controller."""
        self._check_open()
        if self.controller is None:
            raise BadInput("irqchip", "there is none; call create_irqchip() first")
        check_one(level, bool, "level")
        self.controller.set_irq(line, level)

    def reset_irqchip(self) -> None:
        """Let the interrupt controller be as when it was new."""
        self._check_open()
        if self.controller is None:
            raise BadInput("irqchip", "there is none; call create_irqchip() first")
        self.controller.reset()

    def _wake(self) -> None:
        if self.vcpus:
            self.vcpus[0].look_up()

    def _new_vcpu(self, index: int) -> UnicornVcpu:
        vcpu = UnicornVcpu(self, index)
        self.shared = bool(self.vcpus)
        for other in self.vcpus:
            other.look_up()  # it may be running as if it were alone
        return vcpu

    def _release(self) -> None:
        for bell in self._doorbells:
            bell.close()
