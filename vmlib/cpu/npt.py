"""Nested page tables: from guest-physical to host-physical addresses, in the host's own format.

AMD-V's second stage of translation is an ordinary 4-level table whose root is in the VMCB (N_CR3).
Every guest-physical address passes through it, those of the guest's own page tables included, and
always as a user-mode access: an entry without US faults (APM vol. 2, 15.25.5 and 15.25.6). What
it refuses is no page fault of the guest's but an exit, VMEXIT_NPF, with the guest-physical
address in EXITINFO2 and a page fault's error code in EXITINFO1.

Left out: large pages, and a second stage in another paging mode than 4-level.
"""

from collections.abc import Callable
from typing import Literal

from vmlib.errors import BadInput, GuestError
from vmlib.given import names_bad_input
from vmlib.memory import GuestRam, TableOutsideRam, translate
from vmlib.units import PAGE_SIZE

_P, _RW, _US, _NX = 1 << 0, 1 << 1, 1 << 2, 1 << 63
_ADDRESS = (1 << 52) - PAGE_SIZE
_CR0, _CR4, _EFER = 0x80010011, 0x20, 0xD00  # PG, WP, PE; PAE; LME, LMA, NXE
WORD = 8


class NestedTables:
    """A tree of nested page tables in host RAM. `allocate` returns a zeroed page's address."""

    def __init__(self, ram: GuestRam, allocate: Callable[[], int]) -> None:
        self._ram = ram
        self._allocate = allocate
        self.root = allocate()
        """Host-physical address of the top table: what N_CR3 holds."""

    @names_bad_input
    def map(
        self, gpa: int, hpa: int, size: int, *, write: bool = True, execute: bool = True
    ) -> None:
        """Let whole pages from `gpa` on be those from `hpa` on; what was mapped there is not."""
        if gpa % PAGE_SIZE or hpa % PAGE_SIZE or size % PAGE_SIZE:
            raise BadInput("map", "maps whole pages: both addresses and the size end in 000")
        rights = _P | _US | (_RW if write else 0) | (0 if execute else _NX)
        for offset in range(0, size, PAGE_SIZE):
            self._ram.write_u64(self.entry(gpa + offset), hpa + offset | rights)

    @names_bad_input
    def unmap(self, gpa: int, size: int = PAGE_SIZE) -> None:
        """Let whole pages be not present."""
        for offset in range(0, size, PAGE_SIZE):
            self._ram.write_u64(self.entry(gpa + offset), 0)

    @names_bad_input
    def entry(self, gpa: int) -> int:
        """Return the host-physical address of the last-level entry of `gpa`; make its tables."""
        table = self.root
        for shift in (39, 30, 21):
            at = table + (gpa >> shift & 511) * WORD
            if not self._ram.read_u64(at) & _P:
                self._ram.write_u64(at, self._allocate() | _P | _RW | _US)
            table = self._ram.read_u64(at) & _ADDRESS
        return table + (gpa >> 12 & 511) * WORD


class NestedFault(Exception):
    """The second stage refused: what a VMEXIT_NPF tells."""

    def __init__(self, gpa: int, error_code: int) -> None:
        super().__init__(f"nested page fault at GPA {gpa:#x}, error code {error_code:#x}")
        self.gpa = gpa
        self.error_code = error_code


class NestedMemory:
    """Guest-physical memory seen through nested tables, in the shape of a `GuestRam`."""

    size = 1 << 52

    def __init__(self, ram: GuestRam, n_cr3: int) -> None:
        self._ram = ram
        self._n_cr3 = n_cr3

    def hpa(self, gpa: int, access: Literal["read", "write"]) -> int:
        """Return the host-physical address; `NestedFault` where the tables refuse."""
        try:
            hpa, _, fault = translate(
                self._ram,
                gpa,
                cr0=_CR0,
                cr3=self._n_cr3,
                cr4=_CR4,
                efer=_EFER,
                access=access,
                cpl=3,
                set_ad=True,
            )
        except TableOutsideRam as error:
            raise GuestError(f"a nested page table lies outside host RAM: {error}") from None
        if hpa is None:
            raise NestedFault(gpa, fault.error_code if fault else 0)
        return hpa

    def read(self, gpa: int, size: int) -> bytes:
        """Return bytes within one page."""
        return self._ram.read(self.hpa(gpa, "read"), size)

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes within one page."""
        self._ram.write(self.hpa(gpa, "write"), data)

    def read_u64(self, gpa: int) -> int:
        """Return an entry of a guest table: a write to the second stage (15.25.6)."""
        return self._ram.read_u64(self.hpa(gpa, "write"))

    def write_u64(self, gpa: int, value: int) -> None:
        """Store one."""
        self._ram.write_u64(self.hpa(gpa, "write"), value)
