"""Why a guest shut down, as far as it can be told afterwards.

KVM_EXIT_SHUTDOWN says that a triple fault happened and no more. Left to look at are the registers,
CR2, the last exception that KVM had in its hands, and the guest's tables. The double fault is the
last link of every such chain, so its delivery is gone through once more, without touching anything
(`gates.deliver` on memory that forgets what is written): where that fails, the chain ended. KVM's
last exception may be an old one, and counts only if the guest could not have been given it.

On AMD there is nothing to look at: the processor leaves the guest's state undefined and KVM resets
the vCPU (Linux `arch/x86/kvm/svm/svm.c`, `shutdown_interception`).
"""

from typing import cast

from vmlib.cpu import events, gates
from vmlib.cpu.exits import Shutdown
from vmlib.cpu.linear import Fault, LinearMemory, OutsideRam
from vmlib.cpu.state import Registers, SystemRegisters
from vmlib.errors import Unsupported
from vmlib.memory import GuestRam

_RESET_RIP, _RESET_BASE = 0xFFF0, 0xFFFF0000


class _Untouched:
    """Guest RAM that can be read, and where writes have no effect."""

    def __init__(self, ram: GuestRam) -> None:
        self.size = ram.size
        self.read = ram.read
        self.read_u64 = ram.read_u64

    def write(self, gpa: int, data: bytes) -> None:
        """Nothing."""

    def write_u64(self, gpa: int, value: int) -> None:
        """Nothing."""


def diagnose(
    registers: Registers, system: SystemRegisters, last: int | None, ram: GuestRam
) -> Shutdown:
    """Return the exit with its diagnosis; `last` is KVM's last exception, if it had one."""
    if registers.rip == _RESET_RIP and system.cs.base == _RESET_BASE:
        return Shutdown("triple fault; the processor keeps no state of it, and KVM reset the vCPU")
    vector = last
    if last == events.DF or (last is not None and not _fails(last, registers, system, ram)):
        vector = None
    cr2 = system.cr2 if vector == events.PF else None
    name = "a fault" if vector is None else events.NAMES.get(vector, f"vector {vector}")
    where = f" at address {cr2:#x}" if cr2 is not None else ""
    gate = _fails(events.DF, registers, system, ram)
    idt = f"IDT at {system.idt.base:#x}, limit {system.idt.limit:#x}"
    why = (
        f"triple fault near {registers.rip:#x}: {name}{where} could not be delivered, "
        f"nor the double fault: {gate or 'KVM does not say why'} ({idt})"
    )
    return Shutdown(why, vector, cr2, gate)


def _fails(vector: int, registers: Registers, system: SystemRegisters, ram: GuestRam) -> str:
    """Say what is wrong with a vector's gate or stack; empty if nothing is."""
    cpu = events.EventCpu.of(registers, system)
    memory = LinearMemory(cast(GuestRam, _Untouched(ram)), cpu)
    try:
        code = 0 if vector in events.WITH_ERROR_CODE else None
        gates.deliver(cpu, memory, events.Event(vector, code))
    except Fault as fault:
        return fault.gate
    except (OutsideRam, Unsupported) as error:
        return str(error)
    return ""
