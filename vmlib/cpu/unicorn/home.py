"""What a vCPU on Unicorn needs of its VM: the RAM, what is handled inside, and the turns."""

from collections.abc import Sized
from typing import Protocol

from vmlib.cpu.engine import InterruptController
from vmlib.cpu.unicorn.traps import Inside
from vmlib.cpu.unicorn.turns import Turns
from vmlib.memory import GuestRam


class Home(Inside, Protocol):
    """The VM, as its vCPUs see it."""

    ram: GuestRam
    controller: InterruptController | None
    turns: Turns
    parallel: bool
    """Whether vCPUs run at the same moment instead of taking turns."""

    @property
    def vcpus(self) -> Sized:
        """All of them."""
