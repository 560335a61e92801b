"""Guest memory by linear address, as the processor itself uses it for tables and stacks.

Such accesses go through the guest's page tables as a supervisor's, whatever ring the guest is in,
and set A and D on their way (Intel SDM vol. 3A, *Determination of Access Rights*: implicit
supervisor-mode accesses).
"""

from typing import Literal, Protocol

from vmlib.cpu.state import EFER_LMA
from vmlib.errors import BadInput, Unsupported
from vmlib.memory import GuestRam, TableOutsideRam, translate
from vmlib.memory.paging import VECTOR_GP, VECTOR_PF
from vmlib.units import PAGE_SIZE


class Paging(Protocol):
    """The registers that say how linear addresses are translated."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


class Fault(Exception):
    """Delivery itself faulted: the next exception, and in words what was wrong with the gate."""

    def __init__(self, vector: int, error_code: int, gate: str, cr2: int | None = None) -> None:
        super().__init__(gate)
        self.vector = vector
        self.error_code = error_code
        self.gate = gate
        self.cr2 = cr2


class Memory(Protocol):
    """Guest memory by linear address, as the processor itself uses it."""

    def read(self, linear: int, size: int) -> bytes:
        """Return `size` bytes; `Fault` where the guest's tables say no."""

    def write(self, linear: int, data: bytes) -> None:
        """Store all of `data` or none; `Fault` where the guest's tables say no."""


class LinearMemory:
    """Guest RAM behind the guest's page tables, for implicit supervisor accesses."""

    def __init__(self, ram: GuestRam, cpu: Paging) -> None:
        self._ram = ram
        self._cr0, self._cr3, self._cr4, self._efer = cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer
        self._wide = bool(cpu.efer & EFER_LMA)

    def read(self, linear: int, size: int) -> bytes:
        """Return `size` bytes; `Fault` where the guest's tables say no."""
        if linear % PAGE_SIZE + size <= PAGE_SIZE:
            return self._fetch(self.gpa(linear, "read"), size)
        first = PAGE_SIZE - linear % PAGE_SIZE
        return self.read(linear, first) + self.read(linear + first, size - first)

    def write(self, linear: int, data: bytes) -> None:
        """Store all of `data` or none; `Fault` where the guest's tables say no."""
        first = PAGE_SIZE - linear % PAGE_SIZE
        here = self.gpa(linear, "write")
        if len(data) <= first:
            self._store(here, data)
            return
        there = self.gpa(linear + first, "write")
        self._store(here, data[:first])
        self._store(there, data[first:])

    def gpa(self, linear: int, access: Literal["read", "write"] = "read") -> int:
        """Return the guest-physical address of a linear one; `Fault` where there is none."""
        linear &= (1 << 64) - 1 if self._wide else 0xFFFFFFFF
        try:
            gpa, _, fault = translate(
                self._ram,
                linear,
                cr0=self._cr0,
                cr3=self._cr3,
                cr4=self._cr4,
                efer=self._efer,
                access=access,
                set_ad=True,
                implicit=True,
            )
        except TableOutsideRam as error:
            raise OutsideRam(str(error)) from None
        except BadInput as error:
            raise Unsupported(f"no processor gets into this state: {error}") from None
        if gpa is None:
            assert fault is not None
            if fault.vector == VECTOR_PF:
                what = f"page fault on {access} of {linear:#x}, which delivery needs"
                raise Fault(VECTOR_PF, fault.error_code, what, linear)
            raise Fault(VECTOR_GP, 0, f"{linear:#x} is not canonical")
        return gpa

    def _fetch(self, gpa: int, size: int) -> bytes:
        if gpa + size > self._ram.size:
            raise OutsideRam(f"the table at {gpa:#x} lies outside guest RAM")
        return self._ram.read(gpa, size)

    def _store(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > self._ram.size:
            raise OutsideRam(f"the stack at {gpa:#x} lies outside guest RAM")
        self._ram.write(gpa, data)


class OutsideRam(Exception):
    """Delivery needs memory that the guest does not have; x86 defines no fault for that."""
