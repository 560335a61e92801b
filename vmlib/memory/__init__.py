"""The memory room: guest RAM so far."""

from vmlib.memory.ram import GuestRam

__all__ = ["GuestRam"]
