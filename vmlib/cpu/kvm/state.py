"""The state of a vCPU, between vmlib's dataclasses and KVM's structures.

Nothing here talks to the kernel: bytes in, facts out, and the other way round. Layouts are in
`abi.py`; what the fields mean stands in the Intel SDM, vol. 3C, *Guest Register State*.

Left out: SMM, nested virtualization, and everything that belongs to an irqchip.
"""

from collections.abc import Iterator

from vmlib.cpu.kvm import abi
from vmlib.cpu.state import REGISTER_NAMES, Registers, Segment, SystemRegisters, Table

MSRS = (
    0x174,  # IA32_SYSENTER_CS
    0x175,  # IA32_SYSENTER_ESP
    0x176,  # IA32_SYSENTER_EIP
    0x1A0,  # IA32_MISC_ENABLE
    0x277,  # IA32_PAT
    0xC0000081,  # STAR
    0xC0000082,  # LSTAR
    0xC0000083,  # CSTAR
    0xC0000084,  # SFMASK
    0xC0000102,  # KERNEL_GS_BASE
    0xC0000103,  # TSC_AUX
)
"""What `save` keeps (Intel SDM vol. 4, table 2-2). EFER, FS and GS base are among the system
registers; the time-stamp counter goes on, as it does for a vCPU that nobody ran for a while."""

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES_AT = len(_SEGMENTS) * abi.SEGMENT.size
_TAIL_AT = _TABLES_AT + 2 * abi.DTABLE.size
APIC_BASE_AT = _TAIL_AT + 6 * 8
_XSTATE_BV = 512
_SHADOW_MOV_SS, _SHADOW_STI = 1, 2
_FLAG_IF = 1 << 9

# (shift, mask) of a descriptor's attributes, in the order of struct kvm_segment's bytes
_ATTRIBUTES = ((0, 15), (7, 1), (5, 3), (14, 1), (4, 1), (13, 1), (15, 1), (12, 1))


def pack_registers(registers: Registers) -> bytes:
    """Return a `struct kvm_regs`."""
    return abi.REGS.pack(*(getattr(registers, name) for name in REGISTER_NAMES))


def unpack_registers(raw: bytes | bytearray) -> Registers:
    """Read a `struct kvm_regs`."""
    return Registers(*abi.REGS.unpack(raw))


def pack_segment(segment: Segment) -> bytes:
    """Return a `struct kvm_segment`; what is not present is unusable."""
    bits = (segment.attributes >> shift & mask for shift, mask in _ATTRIBUTES)
    unusable = not segment.present
    return abi.SEGMENT.pack(segment.base, segment.limit, segment.selector, *bits, unusable)


def unpack_segment(raw: bytes | bytearray | memoryview) -> Segment:
    """Read a `struct kvm_segment`; what is unusable is not present."""
    base, limit, selector, *bits, unusable = abi.SEGMENT.unpack(raw)
    attributes = sum(bit << shift for bit, (shift, _) in zip(bits, _ATTRIBUTES, strict=True))
    if unusable:
        attributes &= ~0x80
    return Segment(selector, base, limit, attributes)


def pack_system(system: SystemRegisters, apic_base: int) -> bytes:
    """Return a `struct kvm_sregs` with nothing in its bitmap of interrupts under way."""
    return b"".join(
        (
            *(pack_segment(getattr(system, name)) for name in _SEGMENTS),
            *(abi.DTABLE.pack(table.base, table.limit) for table in (system.gdt, system.idt)),
            abi.SREGS_TAIL.pack(
                system.cr0,
                system.cr2,
                system.cr3,
                system.cr4,
                system.cr8,
                system.efer,
                apic_base,
                *[0] * 4,
            ),
        )
    )


def unpack_system(raw: bytes | bytearray) -> SystemRegisters:
    """Read a `struct kvm_sregs`."""
    size = abi.SEGMENT.size
    segments = [unpack_segment(raw[i * size : (i + 1) * size]) for i in range(len(_SEGMENTS))]
    gdt, idt = (Table(*pair) for pair in abi.DTABLE.iter_unpack(raw[_TABLES_AT:_TAIL_AT]))
    cr0, cr2, cr3, cr4, cr8, efer, *_ = abi.SREGS_TAIL.unpack_from(raw, _TAIL_AT)
    cs, ds, es, fs, gs, ss, tr, ldt = segments
    return SystemRegisters(
        cs=cs,
        ds=ds,
        es=es,
        fs=fs,
        gs=gs,
        ss=ss,
        tr=tr,
        ldt=ldt,
        gdt=gdt,
        idt=idt,
        cr0=cr0,
        cr2=cr2,
        cr3=cr3,
        cr4=cr4,
        cr8=cr8,
        efer=efer,
    )


def unpack_events(raw: bytes | bytearray) -> tuple[int | None, bool]:
    """Read a `struct kvm_vcpu_events`: an external interrupt under way or None, and the shadow.

    An exception under way is left out. Its instruction is executed again and faults again.
    """
    injected, vector, soft, shadow = abi.EVENTS.unpack(raw)[5:9]
    return (vector if injected and not soft else None), bool(shadow)


def last_exception(raw: bytes | bytearray) -> int | None:
    """Return the vector of the exception that KVM had in hand last, under way or not.

    KVM does not tell vector 0 from none, unless it is under way.
    """
    injected, vector, _, pending = abi.EVENTS.unpack(raw)[:4]
    return vector if vector or injected or pending else None


def pack_events(interrupt: int | None, shadow: bool, rflags: int) -> bytes:
    """Return a `struct kvm_vcpu_events` with nothing else under way.

    The shadow is STI's where interrupts are on, else MOV SS's: no other combination can be
    entered (Intel SDM vol. 3C, *Checks on Guest Non-Register State*).
    """
    kind = (_SHADOW_STI if rflags & _FLAG_IF else _SHADOW_MOV_SS) if shadow else 0
    event = (interrupt is not None, interrupt or 0, 0, kind)
    valid = abi.VCPUEVENT_VALID_NMI_PENDING | abi.VCPUEVENT_VALID_SHADOW
    return abi.EVENTS.pack(*(0, 0, 0, 0, 0), *event, *(0, 0, 0), 0, valid)


def pack_debug(debug: tuple[int, ...]) -> bytes:
    """Return a `struct kvm_debugregs` of DR0-DR3, DR6 and DR7."""
    return abi.DEBUGREGS.pack(*debug, 0)


def unpack_debug(raw: bytes | bytearray) -> tuple[int, ...]:
    """Read a `struct kvm_debugregs`."""
    return tuple(abi.DEBUGREGS.unpack(raw)[:6])


def xsave_components(cpuid: bytes) -> dict[int, tuple[int, int]]:
    """Return where the components of an XSAVE area lie: bit number to (offset, size).

    From CPUID leaf 0xd of a table (head and entries), subleaf n for component n; those that only
    XSAVES knows (ECX bit 0) have no place in the standard format (Intel SDM vol. 1, 13.4.3).
    """
    places = {}
    for leaf, number, _, size, offset, ecx, _ in _entries(cpuid):
        if leaf == 0xD and number >= 2 and size and not ecx & 1:
            places[number] = (offset, size)
    return places


def forget_initial(xsave: bytearray, places: dict[int, tuple[int, int]]) -> bytes:
    """Return the area with XSTATE_BV bits only for what is not as after reset.

    KVM sets the bit of whatever the guest may use. Beyond x87 and SSE the state after reset is
    zero (Intel SDM vol. 1, 13.6), and an area that says so can be restored where AVX is unknown.
    """
    (used,) = abi.U64.unpack_from(xsave, _XSTATE_BV)
    for number, (offset, size) in places.items():
        if offset + size <= len(xsave) and not any(xsave[offset : offset + size]):
            used &= ~(1 << number)
    abi.U64.pack_into(xsave, _XSTATE_BV, used)
    return bytes(xsave)


def number_cpuid(table: bytes, index: int) -> bytes:
    """Return a CPUID table (head and entries) in which the APIC id is the vCPU's number.

    It stands in EBX of leaf 1, bits 24-31, and in EDX of leaves 0xb and 0x1f (Intel SDM vol. 2A,
    CPUID). KVM does not fill it in.
    """
    made = bytearray(table[: abi.CPUID_HEAD.size])
    for leaf, subleaf, flags, eax, ebx, ecx, edx in _entries(table):
        if leaf == 1:
            ebx = ebx & 0x00FFFFFF | (index & 0xFF) << 24
        elif leaf in (0xB, 0x1F):
            edx = index
        made += abi.CPUID_ENTRY.pack(leaf, subleaf, flags, eax, ebx, ecx, edx)
    return bytes(made)


def _entries(table: bytes) -> Iterator[tuple[int, ...]]:
    return abi.CPUID_ENTRY.iter_unpack(table[abi.CPUID_HEAD.size :])
