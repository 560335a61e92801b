"""#VMEXIT: out of the guest and back into the host, the half of VMRUN that the emulator lacks.

The guest's state goes into the save area of its VMCB, the host's comes out of the page that
VMRUN filled (AMD APM vol. 2, 15.6). Of the host that is ES, CS, SS, DS, GDTR, IDTR, CR0, CR3, CR4,
EFER, RFLAGS, RIP, RSP and RAX; its breakpoints are off. FS, GS, TR, LDTR and CR2 are still the
guest's then: hypervisors swap them by VMSAVE and VMLOAD, or by hand.

Left out: TSC_OFFSET stays in force until the next VMRUN (nothing in the host reads the clock).
"""

import struct
from dataclasses import replace
from typing import cast

from vmlib.cpu.events import WITH_ERROR_CODE, Event, EventCpu
from vmlib.cpu.exits import Shutdown
from vmlib.cpu.gates import raise_event
from vmlib.cpu.linear import Fault, LinearMemory, OutsideRam
from vmlib.cpu.npt import NestedFault, NestedMemory
from vmlib.cpu.scan import instruction_length
from vmlib.cpu.state import CR0_PE, Registers
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.vmcb import Vmcb
from vmlib.memory import GuestRam

GUEST_MODE, _SHADOW = 1 << 21, 1 << 3  # HF_GUEST and HF_INHIBIT_IRQ in hflags
GIF, _HIF, _VINTR, _NPT = 1 << 0, 1 << 1, 1 << 3, 1 << 6  # in hflags2
NO_BREAKPOINTS = (0, 0, 0, 0, 0xFFFF0FF0, 0x400)
_HFLAGS2 = raw.HFLAGS + 4
_LONGEST = 15


def save_guest(emu: Emulator, vmcb: Vmcb) -> Registers:
    """Store the guest in its VMCB; return the general registers, which have no place there."""
    guest, now = state.read_system(emu), state.read_registers(emu)
    for name in ("ES", "CS", "SS", "DS"):
        vmcb.set_segment(name, getattr(guest, name.lower()))
    for name in ("GDTR", "IDTR"):
        table = getattr(guest, name[:3].lower())
        old = vmcb.segment(name)
        vmcb.set_segment(name, replace(old, base=table.base, limit=table.limit))
    for name in ("CR0", "CR2", "CR3", "CR4", "EFER"):
        vmcb[name] = getattr(guest, name.lower())
    for name in ("RIP", "RSP", "RAX", "RFLAGS"):
        vmcb[name] = getattr(now, name.lower())
    *_, vmcb["DR6"], vmcb["DR7"] = state.read_debug(emu)
    vmcb["CPL"] = emu.hflags.value & 3
    vmcb["INTERRUPT_SHADOW"] = state.shadow(emu)
    return replace(now, rax=0, rsp=0, rip=0, rflags=2)


def load_host(emu: Emulator, saved: Vmcb) -> None:
    """Load the host from its save area and leave guest mode."""
    guest, now = state.read_system(emu), state.read_registers(emu)
    leave_guest_mode(emu)
    host = replace(
        saved.state(),
        cr0=saved["CR0"] | CR0_PE,
        **{name: getattr(guest, name) for name in ("fs", "gs", "tr", "ldt", "cr2", "cr8")},
    )
    back = {name: saved[name.upper()] for name in ("rax", "rsp", "rip", "rflags")}
    state.write_registers(emu, replace(now, **back))
    state.write_system(emu, host)
    state.write_debug(emu, NO_BREAKPOINTS)


def leave_guest_mode(emu: Emulator) -> None:
    """Clear what the emulator remembers of a guest, and a HLT."""
    emu.hflags.value &= ~(GUEST_MODE | _SHADOW)
    emu.halted.value = 0
    set_hflags2(emu, hflags2(emu) & ~(_HIF | _VINTR | _NPT))


def hflags2(emu: Emulator) -> int:
    """Return the emulator's second word of hidden flags, which holds GIF."""
    return int(struct.unpack_from("=I", emu.view, _HFLAGS2)[0])


def set_hflags2(emu: Emulator, flags: int) -> None:
    """Replace it."""
    struct.pack_into("=I", emu.view, _HFLAGS2, flags)


def guest_memory(ram: GuestRam, vmcb: Vmcb, cpu: EventCpu) -> LinearMemory:
    """Return the guest's memory by linear address, behind one stage of tables or two."""
    if vmcb["NP_ENABLE"] & 1:
        return LinearMemory(cast(GuestRam, NestedMemory(ram, vmcb["N_CR3"])), cpu)
    return LinearMemory(ram, cpu)


def deliver(emu: Emulator, ram: GuestRam, vmcb: Vmcb, vector: int) -> Shutdown | None:
    """Deliver an exception or INT n through the guest's IDT; return a Shutdown if that fails.

    `NestedFault` where the second stage refuses a table or the stack.
    """
    emu.old_exception.value = -1
    software, emu.is_int.value = bool(emu.is_int.value), 0
    code = emu.error_code.value if vector in WITH_ERROR_CODE and not software else None
    cpu = state.read_event_cpu(emu)
    event = Event(vector, code, "software" if software else "fault")
    shut = raise_event(cpu, guest_memory(ram, vmcb, cpu), event)
    if shut is None:
        state.write_event_cpu(emu, cpu)
    return shut


def next_rip(emu: Emulator, ram: GuestRam, vmcb: Vmcb) -> int | None:
    """Return RIP behind the guest's instruction (15.7.1), None for one that is not known here."""
    cpu, system = state.read_event_cpu(emu), state.read_system(emu)
    at = cpu.rip + (0 if system.mode == "long" else cpu.cs.base)
    memory, code = guest_memory(ram, vmcb, cpu), b""
    try:
        for i in range(_LONGEST):
            code += memory.read(at + i, 1)
    except (NestedFault, Fault, OutsideRam):
        pass  # the instruction ends before the page does
    length = instruction_length(code, 0, system.bits)
    return cpu.rip + length if length else None
