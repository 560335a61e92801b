"""Events, by number and name, and the registers that delivering one reads and writes.

A fault, an INT n and an interrupt are delivered alike; how, is in `gates.py`. Intel SDM vol. 3A,
chapter 6 (*Interrupt and Exception Handling*), table 6-1.
"""

from dataclasses import dataclass
from typing import Literal

from vmlib.cpu.state import Registers, Segment, SystemRegisters, Table

DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = range(10, 15)
AC = 17
NAMES = {0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM"}
NAMES |= {8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC"}
NAMES |= {18: "#MC", 19: "#XM"}
WITH_ERROR_CODE = frozenset((DF, TS, NP, SS, GP, PF, AC))

TF, IF, NT, RF, VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17

Kind = Literal["fault", "software", "external"]


@dataclass(frozen=True, slots=True)
class Event:
    """What is to be delivered. `kind` is "fault" for exceptions, "software" for INT n, INT3 and
    INTO (whose gate must be open to the guest's ring), "external" for interrupts."""

    vector: int
    error_code: int | None = None
    kind: Kind = "fault"


@dataclass(slots=True)
class EventCpu:
    """The registers that delivery reads and writes."""

    rip: int
    rsp: int
    rflags: int
    cpl: int
    cs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Table
    idt: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int

    @classmethod
    def of(cls, registers: Registers, system: SystemRegisters) -> "EventCpu":
        """Return those of a vCPU that stands still."""
        r, s = registers, system
        return cls(
            rip=r.rip,
            rsp=r.rsp,
            rflags=r.rflags,
            cpl=s.ss.dpl,
            cs=s.cs,
            ss=s.ss,
            tr=s.tr,
            ldt=s.ldt,
            gdt=s.gdt,
            idt=s.idt,
            cr0=s.cr0,
            cr2=s.cr2,
            cr3=s.cr3,
            cr4=s.cr4,
            efer=s.efer,
        )
