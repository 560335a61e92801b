"""Events in real mode: what the CPU does with a fault, an INT or an interrupt.

It pushes FLAGS, CS and IP and jumps through a table of far pointers, four bytes a vector, whose
base and limit LIDT sets (Intel SDM vol. 3A, *Interrupt and Exception Handling* in real mode).
A vector beyond the limit is a double fault, and when that lies beyond it too, the CPU shuts down.
"""

import struct
from dataclasses import dataclass

from vmlib.cpu.exits import Shutdown
from vmlib.memory import GuestRam

DOUBLE_FAULT = 8
INVALID_OPCODE = 6
ENTRY_SIZE = 4
PROTECTED_ENTRY_SIZE = 8
_TF_AND_IF = 0x0300


@dataclass(frozen=True, slots=True)
class State:
    """The registers that delivering an event reads and writes."""

    cs: int
    ip: int
    flags: int
    ss: int
    sp: int


def find_gate(vector: int, limit: int, ip: int, entry_size: int = ENTRY_SIZE) -> int | Shutdown:
    """Return the vector to deliver: the one asked for, the double fault, or a shutdown at `ip`."""
    for wanted in (vector, DOUBLE_FAULT):
        if entry_size * (wanted + 1) - 1 <= limit:
            return wanted
    return Shutdown(
        f"triple fault at {ip:#x}: no gate for vector {vector}, "
        f"nor for the double fault (IDT limit {limit:#x})"
    )


def deliver(ram: GuestRam, vector: int, base: int, state: State) -> State | Shutdown:
    """Push the frame in guest RAM and return the state at the handler's first instruction.

    A table or a stack outside RAM ends in a shutdown: nothing there can take the event.
    """
    entry = base + ENTRY_SIZE * vector
    if entry + ENTRY_SIZE > ram.size:
        return Shutdown(f"the interrupt table at {base:#x} lies outside guest RAM")
    sp = state.sp
    for word in (state.flags, state.cs, state.ip):
        sp = (sp - 2) & 0xFFFF
        at = (state.ss << 4) + sp
        if at + 2 > ram.size:
            return Shutdown(f"the stack at {at:#x} lies outside guest RAM")
        ram.write(at, struct.pack("<H", word))
    ip, cs = struct.unpack("<HH", ram.read(entry, ENTRY_SIZE))
    return State(cs=cs, ip=ip, flags=state.flags & ~_TF_AND_IF, ss=state.ss, sp=sp)
