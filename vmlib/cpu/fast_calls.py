"""SYSCALL and SYSENTER: into the kernel without a gate.

The emulator executes their returns, SYSRET and SYSEXIT, and leaves the way in to whoever uses it.
Intel SDM vol. 2B, SYSCALL and SYSENTER; MSR numbers from vol. 4, table 2-2.
"""

from collections.abc import Callable

from vmlib.cpu.events import GP, IF, RF, UD, VM, Event, EventCpu
from vmlib.cpu.state import CR0_PE, EFER_LMA, Segment

EFER_SCE = 1
STAR, LSTAR, CSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176

_FLAT = 0xFFFFFFFF
_CODE64, _CODE32, _DATA = 0xA09B, 0xC09B, 0xC093


def syscall(cpu: EventCpu, msr: Callable[[int], int], back: int) -> tuple[int, int] | Event:
    """Enter ring 0 as STAR, LSTAR and SFMASK say; `back` is the address of the next instruction.

    Return what RCX and R11 become, or the event that the instruction raises instead. In legacy
    mode, where only AMD has it, R11 is not touched: the second value is then -1.
    """
    if not cpu.efer & EFER_SCE or not cpu.cr0 & CR0_PE:
        return Event(UD)
    selector = msr(STAR) >> 32 & 0xFFFC
    wide = bool(cpu.efer & EFER_LMA)
    saved = cpu.rflags & ~RF
    if wide:
        cpu.rip = msr(LSTAR) if cpu.cs.long else msr(CSTAR)
        cpu.rflags = cpu.rflags & ~msr(SFMASK) & ~RF | 2
    else:
        cpu.rip = msr(STAR) & 0xFFFFFFFF
        cpu.rflags &= ~(VM | IF | RF)
    cpu.cs = Segment(selector, 0, _FLAT, _CODE64 if wide else _CODE32)
    cpu.ss = Segment(selector + 8, 0, _FLAT, _DATA)
    cpu.cpl = 0
    return back, saved if wide else -1


def sysenter(cpu: EventCpu, msr: Callable[[int], int]) -> Event | None:
    """Enter ring 0 as the three SYSENTER registers say, or return the event raised instead."""
    selector = msr(SYSENTER_CS) & 0xFFFC
    if not cpu.cr0 & CR0_PE or not selector:
        return Event(GP, 0)
    wide = bool(cpu.efer & EFER_LMA)
    mask = (1 << 64) - 1 if wide else 0xFFFFFFFF
    cpu.rip, cpu.rsp = msr(SYSENTER_EIP) & mask, msr(SYSENTER_ESP) & mask
    cpu.cs = Segment(selector, 0, _FLAT, _CODE64 if wide else _CODE32)
    cpu.ss = Segment(selector + 8, 0, _FLAT, _DATA)
    cpu.rflags &= ~(VM | IF | RF)
    cpu.cpl = 0
    return None
