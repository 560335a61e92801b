"""What a vCPU on Unicorn needs of its VM: the RAM, what is handled inside, and the turns."""

from collections.abc import Callable
from typing import Protocol

from vmlib.cpu.engine import InterruptController, ReadHandler, WriteHandler
from vmlib.cpu.unicorn.turns import Turns
from vmlib.memory import GuestRam

REFUSED = object()
"""What a port's or a bell's write handler returns to let the guest leave after all."""


class Inside(Protocol):
    """What the VM has registered to be handled inside."""

    reads: dict[int, ReadHandler]
    writes: dict[int, Callable[[int, int, int], object]]
    bells: dict[int, Callable[[int, int, int], object]]
    regions: list[tuple[int, int, ReadHandler, WriteHandler]]


class Home(Inside, Protocol):
    """The VM, as its vCPUs see it."""

    ram: GuestRam
    controller: InterruptController | None
    turns: Turns
    parallel: bool
    """Whether vCPUs run at the same moment instead of taking turns."""

    shared: bool
    """Whether there is more than one vCPU."""
