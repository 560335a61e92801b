"""Memory slots: which guest-physical addresses are backed by which bytes of the VMM's own memory.

A VM's physical address space is a list of intervals. Each *slot* says that guest-physical bytes
from `gpa` on are the process's bytes from `hva` on. What lies in no slot is a hole: an access
there is a device's business and comes back as an MMIO exit, and so does a write to a read-only
slot. The rules are those of KVM_SET_USER_MEMORY_REGION (Linux Documentation/virt/kvm/api.rst,
4.35) and KVM_GET_DIRTY_LOG (4.8).

Left out: several address spaces (SMM), private memory of guest_memfd, the dirty ring; and two
limits of the host's: how many slots there may be, and how wide a guest-physical address.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index

import numpy as np
import numpy.typing as npt

from vmlib.errors import BadInput
from vmlib.given import check_fields, names_bad_input
from vmlib.memory.paging import Access, check_access
from vmlib.units import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Slot:
    """One interval. Addresses and `size` in bytes, whole pages."""

    number: int
    gpa: int
    size: int
    hva: int
    readonly: bool = False
    log_dirty: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def end(self) -> int:
        """The first guest-physical address behind it."""
        return self.gpa + self.size

    def __str__(self) -> str:
        return f"slot {self.number} ({self.gpa:#x}..{self.end - 1:#x})"


class MemorySlots:
    """The slots of one VM, kept in order of their guest-physical addresses."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []
        self._dirty: dict[int, npt.NDArray[np.bool_]] = {}

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @names_bad_input
    def set(self, slot: Slot) -> None:
        """Add a slot, or move or re-flag the one of its number.

        A slot that exists keeps its size, its `hva` and `readonly`: KVM refuses to change them.
        Raises `BadInput` for a bad slot, naming both where two overlap; then nothing changes.
        """
        _check(slot)
        old = next((one for one in self._slots if one.number == slot.number), None)
        if old and (old.size, old.hva, old.readonly) != (slot.size, slot.hva, slot.readonly):
            raise BadInput("slot", f"{old} keeps its size, hva and readonly: remove it first")
        others = [one for one in self._slots if one is not old]
        for one in others:
            if slot.gpa < one.end and one.gpa < slot.end:
                raise BadInput("slot", f"{slot} overlaps {one}")
        self._slots = sorted([*others, slot], key=lambda one: one.gpa)
        if not slot.log_dirty:
            self._dirty.pop(slot.number, None)
        elif slot.number not in self._dirty:
            self._dirty[slot.number] = np.zeros(slot.size // PAGE_SIZE, np.bool_)

    @names_bad_input
    def remove(self, number: int) -> None:
        """Let a slot's addresses be a hole (to KVM: a region of size 0)."""
        self._slots.remove(self._numbered(number))
        self._dirty.pop(number, None)

    @names_bad_input
    def find(self, gpa: int) -> Slot | None:
        """Return the slot that holds `gpa`; None in a hole."""
        gpa = index(gpa)
        place = bisect_right(self._slots, gpa, key=lambda one: one.gpa) - 1
        if place >= 0 and gpa < self._slots[place].end:
            return self._slots[place]
        return None

    @names_bad_input
    def hva(self, gpa: int, access: Access = "read") -> int | None:
        """Return the host-virtual address of an access, or None where it is MMIO.

        A write marks its page dirty if the slot keeps a log.
        """
        check_access(access)
        slot = self.find(gpa)
        if slot is None or (access == "write" and slot.readonly):
            return None
        offset = gpa - slot.gpa
        if access == "write" and slot.log_dirty:
            self._dirty[slot.number][offset // PAGE_SIZE] = True
        return slot.hva + offset

    @names_bad_input
    def dirty_log(self, number: int) -> npt.NDArray[np.int64]:
        """Return guest-physical addresses of pages written since the last call, and forget them."""
        slot = self._numbered(number)
        if not slot.log_dirty:
            raise BadInput("slot", f"{slot} keeps no dirty log")
        log = self._dirty[number]
        pages = slot.gpa + np.flatnonzero(log) * PAGE_SIZE
        log[:] = False
        return pages

    def _numbered(self, number: int) -> Slot:
        for one in self._slots:
            if one.number == number:
                return one
        raise BadInput("number", f"there is no slot {number}")


def _check(slot: Slot) -> None:
    for name in ("gpa", "size", "hva"):
        value = getattr(slot, name)
        if value < 0 or value % PAGE_SIZE:
            raise BadInput(name, f"is whole pages of {PAGE_SIZE} bytes, not {value:#x}")
    if not slot.size:
        raise BadInput("size", "is at least one page; `remove` takes a slot away")
    for name in ("gpa", "hva"):
        if getattr(slot, name) + slot.size >= 1 << 64:  # KVM's sum has 64 bits: 2**64 is 0 to it
            raise BadInput(name, f"{slot}: {name} + size wraps around 2**64")
