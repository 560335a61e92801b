"""Memory that is not RAM: which devices inside answer there, and what an access finds.

The emulator asks twice of every access. First its hook wants to know whether the access may go on:
it may when a device inside has handled it (`handle`), or when it is executed again and the answer
has come (`settled`). Then the access itself is made, in pieces where it likes: a load finds the
bytes that are `known`, a store has nothing left to do.
"""

from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.unicorn.home import REFUSED, Inside

HOLE_END = 1 << 40
"""The emulated CPU has 40 physical address bits; all of them that are not RAM may be devices."""


class DeviceMemory:
    """All guest-physical memory of one emulator from the end of its RAM on."""

    def __init__(self, emu: Emulator, base: int, inside: Inside) -> None:
        self.known: dict[int, int] = {}
        """Bytes that device memory holds for the load that is executed again, by GPA."""
        self.written: set[int] = set()
        """Addresses whose store has been reported."""
        self.handled = 0
        """Accesses that a device inside has handled."""
        self._base = base
        self._inside = inside
        self._once = False
        emu.map_device(base, HOLE_END - base, self._load, self._store)

    def forget(self) -> None:
        """Drop all that is pending."""
        self.known.clear()
        self.written.clear()
        self._once = False

    def settled(self, access: int, gpa: int, size: int) -> bool:
        """Whether this load has its bytes already, or this store has been reported."""
        if access in raw.READS:
            return gpa in self.known or gpa + size - 1 in self.known
        return gpa in self.written

    def handle(self, access: int, gpa: int, size: int, value: int) -> bool:
        """Let a device inside handle a load or store, if there is one; say whether it did."""
        value &= (1 << 8 * size) - 1
        region = next(
            (one for one in self._inside.regions if one[0] <= gpa < one[0] + one[1]), None
        )
        if region is not None:
            _, _, read, write = region
            self.handled += 1
            if access in raw.READS:
                got = read(gpa, size) & (1 << 8 * size) - 1
                self.known.update(enumerate(got.to_bytes(size, "little"), gpa))
            else:
                write(gpa, size, value)
                self.written.update(range(gpa, gpa + size))
        else:
            bell = self._inside.bells.get(gpa) if access in raw.WRITES else None
            if bell is None or bell(gpa, size, value) is REFUSED:
                return False
            self.handled += 1
            self.written.update(range(gpa, gpa + size))
        self._once = True
        return True

    def _load(self, offset: int, size: int) -> int:
        """Give a load the bytes that are known by now."""
        gpa, known = self._base + offset, self.known
        value = sum(known.get(gpa + i, 0) << 8 * i for i in range(size))
        if self._once:
            self._used(range(gpa, gpa + size), known)
        return value

    def _store(self, offset: int, size: int, value: int) -> None:
        """The store has been taken care of; here it only has to end."""
        if self._once:
            gpa = self._base + offset
            self._used(range(gpa, gpa + size), self.written)

    def _used(self, addresses: range, left: dict[int, int] | set[int]) -> None:
        """What a handler inside gave or took is good for one access, which may come in pieces."""
        for gpa in addresses:
            if isinstance(left, dict):
                left.pop(gpa, None)
            else:
                left.discard(gpa)
        self._once = bool(self.known or self.written)
