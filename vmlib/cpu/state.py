"""The state of a vCPU: what a program on it can see, and what the processor remembers for it.

General registers in the order of `struct kvm_regs`; segment registers with their hidden parts,
control registers and tables as in `struct kvm_sregs` (Linux `arch/x86/include/uapi/asm/kvm.h`).
A `VcpuState` is everything that must be carried over so that a guest never notices: save it,
restore it later or elsewhere, also on the other engine.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

from vmlib.errors import BadInput
from vmlib.given import check_one

FLAG_BITS = {
    "CF": 0,
    "PF": 2,
    "AF": 4,
    "ZF": 6,
    "SF": 7,
    "TF": 8,
    "IF": 9,
    "DF": 10,
    "OF": 11,
    "NT": 14,
    "RF": 16,
    "VM": 17,
    "AC": 18,
}
CR0_PE, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1 << 0, 1 << 4, 1 << 5, 1 << 16, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
XSAVE_SIZE = 4096
"""Bytes of a saved XSAVE area: KVM's `struct kvm_xsave`."""


@dataclass(slots=True)
class Registers:
    """General registers of a vCPU, 64 bits each, in the order of `struct kvm_regs`."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def show(self, name: str) -> str:
        """Return a register as shown to a reader.

        ``"AX"`` gives 16 bits in hex, ``"EAX"`` 32, ``"RAX"`` 64; a flag such as ``"ZF"`` 0 or 1.
        `BadInput` for a name that is none of them.
        """
        check_one(name, str, "register")
        if name in FLAG_BITS:
            return str(self.rflags >> FLAG_BITS[name] & 1)
        low = name.lower()
        if low in REGISTER_NAMES:
            return f"0x{getattr(self, low):016x}"
        if low[:1] == "e" and "r" + low[1:] in REGISTER_NAMES:
            return f"0x{getattr(self, 'r' + low[1:]) & 0xFFFFFFFF:08x}"
        if "r" + low in REGISTER_NAMES:
            return f"0x{getattr(self, 'r' + low) & 0xFFFF:04x}"
        raise BadInput(
            "register", f"{name!r} is none: AX, EAX and RAX are, R8, and flags such as ZF"
        )


REGISTER_NAMES = tuple(one.name for one in fields(Registers))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register: the visible selector and the hidden descriptor.

    `limit` is in bytes, granularity applied. `attributes` is laid out as VMX's access rights
    (Intel SDM vol. 3C, *Guest Register State*): type in bits 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13,
    D/B 14, G 15.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attributes: int = 0x93

    @property
    def type(self) -> int:
        """The four type bits; their meaning depends on S."""
        return self.attributes & 0xF

    @property
    def dpl(self) -> int:
        """Descriptor privilege level, 0 to 3."""
        return self.attributes >> 5 & 3

    @property
    def present(self) -> bool:
        """The P bit; an unusable segment is not present."""
        return bool(self.attributes >> 7 & 1)

    @property
    def long(self) -> bool:
        """The L bit: 64-bit code."""
        return bool(self.attributes >> 13 & 1)

    @property
    def big(self) -> bool:
        """The D/B bit: 32-bit code or stack."""
        return bool(self.attributes >> 14 & 1)


@dataclass(frozen=True, slots=True)
class Table:
    """Base and limit of a descriptor table, as in GDTR and IDTR."""

    base: int = 0
    limit: int = 0xFFFF


UNUSABLE = Segment(0, 0, 0, 0)
_FLAT_CODE32, _FLAT_DATA32 = 0xC09B, 0xC093
_FLAT_CODE64 = 0xA09B
_BUSY_TSS32 = 0x008B
_LDT = 0x0082
_FOUR_GIB = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SystemRegisters:
    """Segments, descriptor tables, control registers and EFER. The default is real mode.

    Not quite the state after reset: every segment has base 0, so that a flat guest needs no
    firmware (the reset value of CS has base 0xffff0000).
    """

    cs: Segment = Segment(attributes=0x9B)
    ds: Segment = Segment()
    es: Segment = Segment()
    fs: Segment = Segment()
    gs: Segment = Segment()
    ss: Segment = Segment()
    tr: Segment = Segment(attributes=_BUSY_TSS32)
    ldt: Segment = Segment(attributes=_LDT)
    gdt: Table = Table()
    idt: Table = Table()
    cr0: int = CR0_ET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0

    @classmethod
    def real_mode(cls) -> Self:
        """Real mode, every base 0, the interrupt table at 0 as after reset."""
        return cls()

    @classmethod
    def protected_mode(cls, code: int = 0x08, data: int = 0x10) -> Self:
        """32-bit protected mode without paging, flat segments; there is no GDT in memory yet.

        This is the state in which a multiboot loader enters a kernel (Multiboot 0.6.96, 3.2).
        """
        flat = Segment(data, 0, _FOUR_GIB, _FLAT_DATA32)
        return cls(
            cs=Segment(code, 0, _FOUR_GIB, _FLAT_CODE32),
            ds=flat,
            es=flat,
            fs=flat,
            gs=flat,
            ss=flat,
            gdt=Table(0, 0),
            idt=Table(0, 0),
            cr0=CR0_ET | CR0_NE | CR0_PE,
        )

    @classmethod
    def long_mode(cls, cr3: int, code: int = 0x08, data: int = 0x10) -> Self:
        """64-bit mode with the page tables at `cr3`; there is no GDT in memory yet."""
        flat = cls.protected_mode(code, data)
        return replace(
            flat,
            cs=Segment(code, 0, _FOUR_GIB, _FLAT_CODE64),
            cr0=flat.cr0 | CR0_PG | CR0_WP,
            cr3=cr3,
            cr4=CR4_PAE,
            efer=EFER_LME | EFER_LMA,
        )

    @property
    def mode(self) -> str:
        """The processor's mode: ``"real"``, ``"protected"``, ``"compatibility"`` or ``"long"``."""
        if not self.cr0 & CR0_PE:
            return "real"
        if not self.efer & EFER_LMA:
            return "protected"
        return "long" if self.cs.long else "compatibility"

    @property
    def bits(self) -> int:
        """Width of the code that CS selects: 16, 32 or 64."""
        if self.mode == "long":
            return 64
        return 32 if self.cs.big and self.mode != "real" else 16


@dataclass(frozen=True, slots=True)
class VcpuState:
    """Everything a vCPU must not forget. Portable between engines.

    `xsave` is a standard-format XSAVE area of 4096 bytes (Intel SDM vol. 1, 13.4), of which the
    emulator has x87 and SSE. `msrs` are (index, value) pairs; `debug` is DR0-DR3, DR6 and DR7.
    `interrupt` is a vector that was injected and is not delivered yet, or None; `shadow` says that
    the instruction after STI or MOV SS comes next, `halted` that the vCPU sleeps in a HLT.
    """

    registers: Registers
    system: SystemRegisters
    xsave: bytes
    msrs: tuple[tuple[int, int], ...] = ()
    debug: tuple[int, ...] = (0, 0, 0, 0, 0xFFFF0FF0, 0x400)
    interrupt: int | None = None
    shadow: bool = False
    halted: bool = False
