"""What a processor refuses to have written into a control register: the guest gets #GP(0) for it.

The rules are those of the Intel SDM, vol. 2B, *MOV—Move to/from Control Registers*, vol. 2D,
*WRMSR*, and vol. 3A, *Initializing IA-32e Mode*: combinations of bits that no mode has, and steps
between modes that leave one out. Left out: reserved bits, of which each processor has others, and
CR3 and CR8.
"""

from typing import Final

from vmlib.cpu.events import EventCpu
from vmlib.cpu.state import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME
from vmlib.memory.paging import CR4_LA57

CR0_NW, CR0_CD, CR4_PCIDE = 1 << 29, 1 << 30, 1 << 17
EFER: Final = 0xC0000080
ADDRESSES: Final = frozenset(
    # SYSENTER_ESP and _EIP, LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE
    (0x175, 0x176, 0xC0000082, 0xC0000083, 0xC0000100, 0xC0000101, 0xC0000102)
)
"""Registers that hold linear addresses, which must be canonical."""


def refuses_cr0(value: int, cpu: EventCpu) -> bool:
    """Say whether MOV to CR0 faults with this value; `cpu` is as it is before."""
    if value & CR0_PG and not value & CR0_PE:
        return True
    if value & CR0_NW and not value & CR0_CD:
        return True
    turned = (value ^ cpu.cr0) & CR0_PG
    if turned and value & CR0_PG and cpu.efer & EFER_LME:
        return not cpu.cr4 & CR4_PAE or cpu.cs.long
    if turned and not value & CR0_PG:
        return bool(cpu.efer & EFER_LMA and cpu.cs.long) or bool(cpu.cr4 & CR4_PCIDE)
    return False


def refuses_cr4(value: int, cpu: EventCpu) -> bool:
    """Say whether MOV to CR4 faults with this value."""
    turned = value ^ cpu.cr4
    if cpu.efer & EFER_LMA:
        if not value & CR4_PAE or turned & CR4_LA57:
            return True
        return bool(turned & value & CR4_PCIDE and cpu.cr3 & 0xFFF)
    return bool(turned & value & CR4_PCIDE)


def refuses_msr(index: int, value: int, cpu: EventCpu) -> bool:
    """Say whether WRMSR faults with this value, for the registers that modes hang on."""
    if index == EFER:
        return bool((value ^ cpu.efer) & EFER_LME and cpu.cr0 & CR0_PG)
    if index in ADDRESSES:
        sign = 56 if cpu.cr4 & CR4_LA57 else 47
        return value >> sign not in (0, (1 << 64 - sign) - 1)
    return False
