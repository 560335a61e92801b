"""A bus: which device answers at which address, and what happens where none does.

A machine has two: I/O ports (64 Ki of them) and guest-physical memory outside RAM. A device
claims a range and sees offsets into it. An access that lies within one device goes there in pieces
no wider than the device takes, low part first; one that straddles a border is split into bytes,
each to its owner. Where nobody is, a read finds ones and a write vanishes, as on a bus whose lines
are pulled up; both are counted.

Left out: wait states, bus masters, and devices that move or shadow each other (PCI).
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.numbers import whole


class Device(Protocol):
    """What a bus needs of a device. Values are little-endian ints of `size` bytes."""

    name: str
    """How pages and errors call it: "the serial port"."""
    widest: int
    """The widest access it takes in one piece, in bytes: 1, 2, 4 or 8."""

    def read(self, offset: int, size: int) -> int:
        """Answer a read of `size` bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a write of `size` bytes."""

    def reset(self) -> None:
        """Become as after power-on."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A range of addresses and the device that answers there."""

    first: int
    count: int
    device: Device

    @property
    def end(self) -> int:
        """One past the last address."""
        return self.first + self.count


class Bus:
    """Addresses from 0 to `size` - 1, each owned by one device at most."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.stray_reads = 0
        """Accesses where no device was, in pieces as they were split."""
        self.stray_writes = 0
        self._claims: list[Claim] = []
        self._firsts: list[int] = []

    @property
    def claims(self) -> tuple[Claim, ...]:
        """All claims by address."""
        return tuple(self._claims)

    def attach(self, device: Device, first: int, count: int) -> None:
        """Give a device `count` addresses from `first`; refuse what another one has."""
        check_one(device, Device, "device")
        first, count = whole(first, "first"), whole(count, "count")
        if count < 1 or first < 0 or first + count > self.size:
            where = f"{first:#x}+{count:#x} is not within 0x0..{self.size - 1:#x}"
            raise BadInput(f"{self.name} of {device.name}", where)
        for other in self._claims:
            if first < other.end and other.first < first + count:
                raise BadInput(
                    f"{self.name} of {device.name}",
                    f"{first:#x}..{first + count - 1:#x} overlaps {other.device.name} at "
                    f"{other.first:#x}..{other.end - 1:#x}",
                )
        at = bisect_right(self._firsts, first)
        self._claims.insert(at, Claim(first, count, device))
        self._firsts.insert(at, first)

    def find(self, address: int) -> Claim | None:
        """Return who answers at an address, or None."""
        at = bisect_right(self._firsts, address) - 1
        if at >= 0 and address < self._claims[at].end:
            return self._claims[at]
        return None

    def read(self, address: int, size: int) -> int:
        """Return `size` bytes at an address, as an int."""
        value = shift = 0
        for at, width, claim in self._pieces(address, size):
            if claim is None:
                self.stray_reads += 1
                piece = (1 << 8 * width) - 1
            else:
                piece = claim.device.read(at - claim.first, width) & (1 << 8 * width) - 1
            value |= piece << shift
            shift += 8 * width
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """Store the low `size` bytes of an int at an address."""
        for at, width, claim in self._pieces(address, size):
            if claim is None:
                self.stray_writes += 1
            else:
                claim.device.write(at - claim.first, width, value & (1 << 8 * width) - 1)
            value >>= 8 * width

    def reset(self) -> None:
        """Reset every device, and the counts."""
        self.stray_reads = self.stray_writes = 0
        for device in {id(claim.device): claim.device for claim in self._claims}.values():
            device.reset()

    def _pieces(self, address: int, size: int) -> list[tuple[int, int, Claim | None]]:
        claim = self.find(address)
        if claim is not None and address + size <= claim.end:
            width = min(size, claim.device.widest)
        elif claim is None and all(self.find(address + k) is None for k in range(1, size)):
            return [(address, size, None)]
        else:
            width = 1
        if width == 1 and size > 1:
            return [(address + k, 1, self.find(address + k)) for k in range(size)]
        return [(address + k, width, claim) for k in range(0, size, width)]
