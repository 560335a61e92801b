"""Guest RAM: one anonymous mapping that the guest, Python and numpy all see.

A VM's memory is ordinary memory of the process that runs it. `GuestRam` allocates it once; an
engine maps the same pages into the guest by their host virtual address, so nothing is ever
copied between guest and reader. Guest-physical address 0 is byte 0 of the mapping. The host gives
a page when it is first touched and promises nothing before: a guest may have far more RAM than
the host, as long as it leaves most of it alone.
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from operator import index

import numpy as np
import numpy.typing as npt

from vmlib.errors import BadInput, HostUnavailable
from vmlib.given import names_bad_input
from vmlib.units import PAGE_SIZE, format_size, parse_size

_NORESERVE = 0x4000  # Linux's number; Python has the name from 3.13 on


class GuestRam:
    """`size` bytes of guest-physical memory from GPA 0, zeroed.

    Raises `HostUnavailable` where the host does not give so much address space.
    """

    def __init__(self, size: int | str) -> None:
        self.size = parse_size(size, "ram")
        if self.size % PAGE_SIZE:
            raise BadInput("ram", f"must be whole pages of {PAGE_SIZE} bytes, not {self.size}")
        try:
            self._mapping = _map(self.size)
        except (OSError, OverflowError) as error:
            raise HostUnavailable(
                f"the host gives no {format_size(self.size)} of address space: {error}",
                "Ask for less, or raise what forbids it: `ulimit -v`, or vm.overcommit_memory = 2",
            ) from None
        self.hva = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        """Host virtual address of GPA 0, for the engine that maps these pages."""
        self.words64 = memoryview(self._mapping).cast("Q")
        """The same bytes as 64-bit words, quicker to read one by one than `u64`."""
        self.watchers: list[Callable[[int, int], None]] = []
        """Called with address and length after each `write`: an emulator that has translated what
        stood there must know. Writes through `view` and `array` are seen by nobody."""

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"GuestRam({format_size(self.size)!r})"

    @property
    def view(self) -> memoryview:
        """The bytes themselves, writable, not a copy."""
        return memoryview(self._mapping)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes as a numpy array, writable, not a copy."""
        return np.frombuffer(self._mapping, dtype=np.uint8)

    @property
    def u64(self) -> npt.NDArray[np.uint64]:
        """The same bytes as little-endian 64-bit words, from GPA 0; writable, not a copy."""
        return np.frombuffer(self._mapping, dtype="<u8")

    @names_bad_input
    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes at guest-physical address `gpa`."""
        self._check(gpa, length)
        return self._mapping[gpa : gpa + length]

    @names_bad_input
    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at guest-physical address `gpa`; all of it or, if it does not fit, none."""
        self._check(gpa, len(data))
        self._mapping[gpa : gpa + len(data)] = data
        for tell in self.watchers:
            tell(gpa, len(data))

    def read_u64(self, gpa: int) -> int:
        """Return the little-endian 64-bit word at `gpa`; quick where `gpa` is aligned."""
        try:
            if gpa >= 0 and not gpa & 7:
                return self.words64[gpa >> 3]
        except (IndexError, ValueError, TypeError):
            pass  # outside, closed, or no number: `read` says which
        return int.from_bytes(self.read(gpa, 8), "little")

    @names_bad_input
    def write_u64(self, gpa: int, value: int) -> None:
        """Store `value`, 0 to 2**64 - 1, as a little-endian 64-bit word at `gpa`."""
        if not 0 <= value < 1 << 64:
            raise BadInput("value", f"does not fit 64 bits: {value:#x}")
        self.write(gpa, index(value).to_bytes(8, "little"))

    def close(self) -> None:
        """Give the pages back, or leave that to the last numpy view that still uses them."""
        self.words64.release()
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def _check(self, gpa: int, length: int) -> None:
        if self._mapping.closed:
            raise BadInput("ram", "the VM it belongs to is closed")
        if gpa < 0 or length < 0 or gpa + length > self.size:
            raise BadInput(
                "gpa", f"{gpa:#x}+{length:#x} lies outside guest RAM 0x0..{self.size - 1:#x}"
            )


def _map(size: int) -> mmap.mmap:
    """Return zeroed memory that the host need not have yet."""
    if sys.platform == "linux":
        return mmap.mmap(-1, size, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE)
    return mmap.mmap(-1, size)  # elsewhere it is like that anyway
