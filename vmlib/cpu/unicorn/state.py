"""The emulator's CPU as our dataclasses, and back.

QEMU keeps a segment's rights as they stand in the descriptor's second word, and next to the
registers a digest of what the translator must know (mode, ring, widths): `hflags`. Whoever writes
segments or control registers from outside has to work it out again, as `_digest` does (QEMU 5.0,
target/i386/cpu.h: `cpu_x86_load_seg_cache`; helper.c: `cpu_x86_update_cr0`).
"""

import struct
from functools import lru_cache

from vmlib.cpu.events import EventCpu
from vmlib.cpu.linear import Fault, Memory, OutsideRam
from vmlib.cpu.state import (
    CR0_PE,
    EFER_LMA,
    XSAVE_SIZE,
    Registers,
    Segment,
    SystemRegisters,
    Table,
)
from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.errors import Unsupported

_GPRS = struct.Struct("=17Q")
_SEGMENTS = struct.Struct("=" + "I4xQII" * 10)  # ES CS SS DS FS GS LDT TR GDT IDT
_CONTROL = struct.Struct("=5Q")
_PE, _LMA, _CS32, _SS32, _ADDSEG, _CS64, _VM = 7, 14, 4, 5, 6, 15, 17
_KEPT = 1 << 19 | 1 << 21 | 1 << 24 | 3 << 25  # SMM, SVM guest, I/O breakpoints, MPX
_CPL, _SHADOW = 3, 1 << 3
_DESC_L, _DESC_B, _DESC_DPL = 1 << 21, 1 << 22, 13

_X87_HEAD = struct.Struct("<HHBxHQQ")  # FCW, FSW, tags, FOP, FIP, FDP
_XSTATE_BV, _X87_SSE = 512, 3
MSRS: tuple[int, ...] = (
    0x10,
    0x1B,
    0x174,
    0x175,
    0x176,
    0x277,
    0xC0000081,
    0xC0000082,
    0xC0000083,
    0xC0000084,
)
MSRS += (0xC0000102, 0xC0000103)
"""TSC, APIC_BASE, SYSENTER_*, PAT, STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, TSC_AUX."""
_RESTORED = MSRS[2:]


def read_registers(emu: Emulator) -> Registers:
    """Return the general registers."""
    values = _GPRS.unpack_from(emu.view, raw.GPRS)
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip = values
    low = (rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp)
    return Registers(*low, r8, r9, r10, r11, r12, r13, r14, r15, rip, emu.read(raw.EFLAGS))


def write_registers(emu: Emulator, registers: Registers) -> None:
    """Replace the general registers."""
    r = registers
    low = (r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi)
    high = (r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15)
    _GPRS.pack_into(emu.view, raw.GPRS, *low, *high, r.rip)
    emu.write(raw.EFLAGS, r.rflags)


def read_system(emu: Emulator) -> SystemRegisters:
    """Return segments, tables, control registers and EFER."""
    flat = _SEGMENTS.unpack_from(emu.view, raw.SEGMENTS)
    es, cs, ss, ds, fs, gs, ldt, tr = (_segment(flat, i) for i in range(8))
    cr0, _, cr2, cr3, cr4 = _CONTROL.unpack_from(emu.view, raw.CR0)
    (efer,) = struct.unpack_from("=Q", emu.view, raw.EFER)
    gdt, idt = _table(flat, 8), _table(flat, 9)
    return SystemRegisters(
        cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, emu.read(raw.CR8), efer
    )


def write_system(emu: Emulator, system: SystemRegisters) -> None:
    """Replace them, and what the emulator derives from them."""
    s = system
    flat: list[int] = []
    for segment in (s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr):
        flat += (segment.selector, segment.base, segment.limit, segment.attributes << 8)
    for table in (s.gdt, s.idt):
        flat += (0, table.base, table.limit, 0)
    _SEGMENTS.pack_into(emu.view, raw.SEGMENTS, *flat)
    _CONTROL.pack_into(emu.view, raw.CR0, s.cr0, 0, s.cr2, s.cr3, s.cr4)
    struct.pack_into("=Q", emu.view, raw.EFER, s.efer)
    emu.write(raw.CR8, s.cr8)
    rflags = emu.read(raw.EFLAGS)
    emu.hflags.value = _digest(s, rflags, emu.hflags.value)
    emu.forget_addresses()


def _digest(s: SystemRegisters, rflags: int, before: int) -> int:
    flags = before & _KEPT
    flags |= (s.cr0 & CR0_PE) << _PE
    flags |= (s.cr0 << 8) & (7 << 9)  # MP, EM, TS
    flags |= bool(s.efer & EFER_LMA) << _LMA
    flags |= (s.efer >> 12 & 1) << 20  # SVME
    flags |= (s.cr4 >> 9 & 1) << 22  # OSFXSR
    flags |= (s.cr4 >> 21 & 1) << 23  # SMAP
    if s.efer & EFER_LMA and s.cs.long:
        flags |= 1 << _CS32 | 1 << _CS64
    else:
        flags |= s.cs.big << _CS32
    return _stack_digest(
        flags, s.ss.attributes << 8, s.cr0, rflags, bool(s.ds.base | s.es.base | s.ss.base)
    )


def _stack_digest(flags: int, ss: int, cr0: int, rflags: int, bases: bool) -> int:
    """Add ring, stack width and whether segment bases count."""
    flags |= ss >> _DESC_DPL & 3
    flags |= (bool(ss & _DESC_B) or bool(flags & 1 << _CS64)) << _SS32
    if flags & 1 << _CS64:
        return flags
    plain = not cr0 & CR0_PE or rflags >> _VM & 1 or not flags & 1 << _CS32
    return flags | (bool(plain) or bases) << _ADDSEG


def read_event_cpu(emu: Emulator) -> EventCpu:
    """Return what delivering an event needs."""
    flat = _SEGMENTS.unpack_from(emu.view, raw.SEGMENTS)
    cr0, _, cr2, cr3, cr4 = _CONTROL.unpack_from(emu.view, raw.CR0)
    (efer,) = struct.unpack_from("=Q", emu.view, raw.EFER)
    (rsp,) = struct.unpack_from("=Q", emu.view, raw.GPRS + 32)
    return EventCpu(
        emu.rip.value,
        rsp,
        emu.read(raw.EFLAGS),
        emu.hflags.value & _CPL,
        _segment(flat, 1),
        _segment(flat, 2),
        _segment(flat, 7),
        _segment(flat, 6),
        _table(flat, 8),
        _table(flat, 9),
        cr0,
        cr2,
        cr3,
        cr4,
        efer,
    )


def write_event_cpu(emu: Emulator, cpu: EventCpu) -> None:
    """Take over what delivering an event has changed."""
    for at, segment in ((1, cpu.cs), (2, cpu.ss)):
        raw.SEGMENT.pack_into(
            emu.view,
            raw.SEGMENTS + raw.SEGMENT.size * at,
            segment.selector,
            segment.base,
            segment.limit,
            segment.attributes << 8,
        )
    struct.pack_into("=Q", emu.view, raw.GPRS + 32, cpu.rsp)
    emu.rip.value = cpu.rip
    emu.cr2.value = cpu.cr2
    emu.write(raw.EFLAGS, cpu.rflags)
    moved = 3 | _SHADOW | 1 << _CS32 | 1 << _SS32 | 1 << _ADDSEG | 1 << _CS64
    flags = emu.hflags.value & ~moved
    if cpu.efer & EFER_LMA and cpu.cs.long:
        flags |= 1 << _CS32 | 1 << _CS64
    else:
        flags |= cpu.cs.big << _CS32
    flat = _SEGMENTS.unpack_from(emu.view, raw.SEGMENTS)
    bases = bool(flat[1] | flat[9] | flat[13])
    flags = _stack_digest(flags, cpu.ss.attributes << 8, cpu.cr0, cpu.rflags, bases)
    emu.hflags.value = flags & ~3 | cpu.cpl


def shadow(emu: Emulator) -> bool:
    """Say whether the instruction after STI or MOV SS comes next."""
    return bool(emu.hflags.value & _SHADOW)


def set_shadow(emu: Emulator, on: bool) -> None:
    """Set that."""
    emu.hflags.value = emu.hflags.value & ~_SHADOW | bool(on) << 3


def read_xsave(emu: Emulator) -> bytes:
    """Return x87 and SSE as an XSAVE area (Intel SDM vol. 1, 13.4 and 10.5.1)."""
    area = bytearray(XSAVE_SIZE)
    tags = emu.read(raw.FPTAG) & 0xFFFF
    valid = sum((tags >> 2 * i & 3 != 3) << i for i in range(8))
    control, status, opcode = (emu.read(r) & 0xFFFF for r in (raw.FPCW, raw.FPSW, raw.FOP))
    where = emu.read(raw.FIP), emu.read(raw.FDP)
    _X87_HEAD.pack_into(area, 0, control, status, valid, opcode, *where)
    struct.pack_into("<II", area, 24, emu.read(raw.MXCSR) & 0xFFFFFFFF, 0xFFFF)
    for i in range(8):
        area[32 + 16 * i : 42 + 16 * i] = emu.read_wide(raw.ST0 + i, 10)
    for i in range(16):
        area[160 + 16 * i : 176 + 16 * i] = emu.read_wide(raw.XMM0 + i, 16)
    struct.pack_into("<Q", area, _XSTATE_BV, _X87_SSE)
    return bytes(area)


def write_xsave(emu: Emulator, saved: bytes) -> None:
    """Take over an XSAVE area; components that are not in use are as after reset."""
    (used,) = struct.unpack_from("<Q", saved, _XSTATE_BV)
    if used & ~_X87_SSE:
        raise Unsupported(
            f"the state uses vector registers that the emulator does not have (XSTATE_BV {used:#x})"
        )
    area = bytearray(saved)
    if not used & 1:
        _X87_HEAD.pack_into(area, 0, 0x37F, 0, 0, 0, 0, 0)
        area[32:160] = bytes(128)
    if not used & 2:
        area[160:416] = bytes(256)
        struct.pack_into("<I", area, 24, 0x1F80)
    control, status, valid, opcode, instruction, operand = _X87_HEAD.unpack_from(area)
    emu.write(raw.FPCW, control)
    emu.write(raw.FPSW, status)
    emu.write(raw.FOP, opcode)
    emu.write(raw.FIP, instruction)
    emu.write(raw.FDP, operand)
    emu.write(raw.FPTAG, sum((0 if valid >> i & 1 else 3) << 2 * i for i in range(8)))
    emu.write(raw.MXCSR, struct.unpack_from("<I", area, 24)[0])
    for i in range(8):
        emu.write_wide(raw.ST0 + i, bytes(area[32 + 16 * i : 42 + 16 * i]))
    for i in range(16):
        emu.write_wide(raw.XMM0 + i, bytes(area[160 + 16 * i : 176 + 16 * i]))


def read_msrs(emu: Emulator) -> tuple[tuple[int, int], ...]:
    """Return the model-specific registers that a guest may have set."""
    return tuple((index, emu.rdmsr(index)) for index in MSRS)


def write_msrs(emu: Emulator, msrs: tuple[tuple[int, int], ...]) -> None:
    """Set those that the emulator has; the clock goes on by itself."""
    for index, value in msrs:
        if index in _RESTORED:
            emu.wrmsr(index, value)


def read_debug(emu: Emulator) -> tuple[int, ...]:
    """Return DR0 to DR3, DR6 and DR7."""
    return tuple(emu.read(raw.DR0 + i) for i in (0, 1, 2, 3, 6, 7))


def write_debug(emu: Emulator, debug: tuple[int, ...]) -> None:
    """Set them."""
    for i, value in zip((0, 1, 2, 3, 6, 7), debug, strict=True):
        emu.write(raw.DR0 + i, value)


def _segment(flat: tuple[int, ...], i: int) -> Segment:
    return _known_segment(*flat[4 * i : 4 * i + 4])


def _table(flat: tuple[int, ...], i: int) -> Table:
    return _known_table(*flat[4 * i + 1 : 4 * i + 3])


# They are read at every event and seldom change.
@lru_cache(maxsize=256)
def _known_segment(selector: int, base: int, limit: int, flags: int) -> Segment:
    return Segment(selector, base, limit, flags >> 8 & 0xF0FF)


@lru_cache(maxsize=256)
def _known_table(base: int, limit: int) -> Table:
    return Table(base, limit)


def may_use_ports(emu: Emulator, memory: Memory, port: int, size: int) -> bool:
    """Say whether a guest outside ring 0 has the right to I/O (SDM vol. 1, *Protected-Mode I/O*).

    IOPL decides, and where it says no, the bit map in the TSS.
    """
    (rflags,) = struct.unpack_from("=I", emu.view, raw.EFLAGS_RAW)
    if emu.hflags.value & 3 <= rflags >> 12 & 3 and not rflags >> _VM & 1:
        return True
    _, base, limit, flags = raw.SEGMENT.unpack_from(emu.view, raw.TR)
    if flags >> 8 & 0xD != 9 or limit < 0x67:  # a 32- or 64-bit TSS, available or busy
        return False
    try:
        (offset,) = struct.unpack("<H", memory.read(base + 0x66, 2))
        if offset + port // 8 + 1 > limit:
            return False
        (bits,) = struct.unpack("<H", memory.read(base + offset + port // 8, 2))
    except (Fault, OutsideRam):
        return False
    return not bits >> port % 8 & (1 << size) - 1
