"""The words of shadow paging: the strategies, the kinds of trap, and what became of an access.

A guest table that has a shadow is mapped read-only, so that a write to it traps. What is done
then is the strategy. `WRITE_PROTECT`: the hypervisor carries out each such write and drops the
shadow entry. `OUT_OF_SYNC`: the first write to a last-level table makes it writable, *unsync*,
because the architecture lets a processor use a translation until INVLPG or a load of CR3 (Intel
SDM vol. 3A, 4.10.4). Those two are intercepted, and the table is compared then, entry by entry.
Upper tables are trapped as before. `KVM` is that with what Linux adds: neighbours of an entry are
filled with it, and an upper table that is written three times in a row loses its shadow page.

Linux Documentation/virt/kvm/x86/mmu.rst, "Synchronized and unsynchronized pages" and "Reaction to
events". Left out: a hypervisor that protects nothing and makes everything anew at each load of CR3.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from vmlib.errors import BadInput
from vmlib.given import check_fields
from vmlib.memory.walk import Fault

Trap = Literal["filled", "dirty", "emulated", "unsync", "injected", "mmio", "invlpg", "cr3"]
"""Why the guest was left. The first six are page faults: a translation put in its place; the
first write to a clean page; a write to a guest table carried out; a last-level table let out of
sync; a fault that is the guest's own; no memory there. The others are the instructions."""
TRAPS: tuple[Trap, ...] = get_args(Trap)

Forget = Literal["protect", "write", "invlpg", "cr3", "dirty", "slot"]
"""A duty that can be left undone, to see what it is for: to write-protect a table that gets a
shadow, to drop the shadow of an entry written, to act on INVLPG or on a load of CR3, to keep a
clean page read-only, to forget the shadows when a memory slot changes."""
FORGETS: tuple[Forget, ...] = get_args(Forget)


@dataclass(frozen=True, slots=True)
class Strategy:
    """How shadow tables are kept coherent."""

    name: str
    out_of_sync: bool = False
    """Last-level tables may be written unseen until INVLPG or a load of CR3."""
    prefetch: int = 1
    """How many entries, a power of two, are looked at when one of them is filled."""
    flood: int = 0
    """Writes in a row after which an upper table loses its shadow page; 0 for never."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prefetch < 1 or self.prefetch & self.prefetch - 1 or self.prefetch > 512:
            raise BadInput("prefetch", f"is a power of two up to 512, not {self.prefetch}")
        if self.flood < 0:
            raise BadInput("flood", f"is 0 or more writes, not {self.flood}")


WRITE_PROTECT = Strategy("write-protect")
OUT_OF_SYNC = Strategy("out-of-sync", out_of_sync=True)
KVM = Strategy("KVM", out_of_sync=True, prefetch=8, flood=3)


@dataclass(frozen=True, slots=True)
class ShadowAccess:
    """What became of one access: `hpa`, or a `fault` for the guest, or MMIO (neither).

    `trap` is the page fault that the hypervisor saw, None where the processor needed no help.
    """

    gva: int
    gpa: int | None
    hpa: int | None
    fault: Fault | None
    trap: Trap | None
