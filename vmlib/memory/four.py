"""Four addresses of one byte: guest-virtual, guest-physical, host-virtual and host-physical.

GVA to GPA is the guest's page tables (`walk`), GPA to HVA the VM's memory slots, HVA to HPA the
host's own page tables, which a process sees through /proc/self/pagemap (Linux
Documentation/admin-guide/mm/pagemap.rst): 8 bytes a page, bit 63 present, bit 62 swapped,
bits 54..0 the page frame number, which reads as 0 without CAP_SYS_ADMIN.

Left out: huge pages of the host (the number told is that of the 4 KiB part). And a warning: where
the host is a virtual machine itself, what it calls physical is guest-physical to the one below.
"""

from dataclasses import dataclass
from pathlib import Path

from vmlib.given import names_bad_input
from vmlib.memory.paging import Access
from vmlib.memory.slots import MemorySlots
from vmlib.memory.walk import TableMemory, Walk, walk
from vmlib.units import PAGE_SIZE

_PRESENT, _SWAPPED, _PFN = 1 << 63, 1 << 62, (1 << 55) - 1
PAGEMAP = Path("/proc/self/pagemap")


@dataclass(frozen=True, slots=True)
class HostAddress:
    """A host-physical address, or why there is none to tell."""

    hpa: int | None
    word: str


@dataclass(frozen=True, slots=True)
class FourAddresses:
    """One byte on four rulers; None from where the way ends. `word` says how it ended."""

    gva: int
    gpa: int | None
    hva: int | None
    hpa: int | None
    word: str
    walk: Walk


@names_bad_input
def host_address(hva: int, pagemap: Path = PAGEMAP) -> HostAddress:
    """Return where a byte of this process is in the host's memory, as far as one may know."""
    try:
        with pagemap.open("rb", buffering=0) as file:
            file.seek(hva // PAGE_SIZE * 8)
            raw = file.read(8)
    except (OSError, ValueError, OverflowError) as error:
        return HostAddress(None, f"{pagemap} cannot be read: {error}")
    if len(raw) < 8:
        return HostAddress(None, "no address of a process")
    return from_pagemap(int.from_bytes(raw, "little"), hva)


def from_pagemap(entry: int, hva: int) -> HostAddress:
    """Return what an entry of the page map says about `hva`."""
    if entry & _SWAPPED:
        return HostAddress(None, "the page is swapped out: it has no physical address now")
    if not entry & _PRESENT:
        return HostAddress(None, "no page yet: the host gives one at the first access")
    if not entry & _PFN:
        return HostAddress(None, "the host hides page frame numbers from a process without root")
    hpa = (entry & _PFN) * PAGE_SIZE + hva % PAGE_SIZE
    return HostAddress(hpa, "physical to this kernel; under a hypervisor, guest-physical again")


@names_bad_input
def four_addresses(
    memory: TableMemory,
    slots: MemorySlots,
    gva: int,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    access: Access = "read",
    cpl: int = 0,
    pagemap: Path = PAGEMAP,
) -> FourAddresses:
    """Follow one address of the guest down to the host's memory. Keywords as in `walk`.

    Raises what `walk` raises: `TableOutsideRam` where a table of the guest's is not in `memory`.
    """
    found = walk(memory, gva, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer, access=access, cpl=cpl)
    if found.gpa is None:
        assert found.fault is not None
        word = f"the guest faults: vector {found.fault.vector}, level {found.fault.level}"
        return FourAddresses(gva, None, None, None, word, found)
    hva = slots.hva(found.gpa, access)
    if hva is None:
        slot = slots.find(found.gpa)
        word = f"{slot} is read-only: MMIO" if slot else "no slot holds it: MMIO"
        return FourAddresses(gva, found.gpa, None, None, word, found)
    host = host_address(hva, pagemap)
    return FourAddresses(gva, found.gpa, hva, host.hpa, host.word, found)
