"""Delivery: what the processor does with a fault, an INT n or an interrupt.

It looks up a gate in the interrupt descriptor table, checks it, changes rings and stacks if the
gate leads inward, pushes a frame and goes on at the handler. Each of these steps can fault in its
turn; then the fault is delivered instead, or a double fault, or nothing: the *triple fault*.

Tables and stacks are linear addresses and are walked through the guest's own page tables, as a
supervisor, whatever ring the guest was in. Intel SDM vol. 3A, chapter 6 (*Interrupt and Exception
Handling*); vol. 3B, *8086 Emulation*, for real mode. Left out: task gates, shadow stacks, and the
frames of virtual-8086 mode.
"""

import struct

from vmlib.cpu.events import (
    BP,
    DB,
    DE,
    DF,
    GP,
    IF,
    NAMES,
    NP,
    NT,
    OF,
    PF,
    RF,
    SS,
    TF,
    TS,
    VM,
    Event,
    EventCpu,
)
from vmlib.cpu.exits import Shutdown
from vmlib.cpu.linear import Fault, Memory, OutsideRam
from vmlib.cpu.state import CR0_PE, EFER_LMA, Segment, Table
from vmlib.errors import Unsupported
from vmlib.memory.paging import CR4_LA57

_CONTRIBUTORY = frozenset((DE, TS, NP, SS, GP))
_NO_RESUME_FLAG = frozenset((DB, BP, OF, DF))  # traps and aborts push RF as it is
_CODE, _CONFORMING, _SYSTEM_OK = 0x8, 0x4, 0x10
_IDT_BIT, _EXT = 2, 1


def raise_event(cpu: EventCpu, memory: Memory, event: Event) -> Shutdown | None:
    """Deliver an event, or what becomes of it; return a Shutdown if nothing can be delivered.

    Faults while delivering follow SDM vol. 3A, table 6-5: a contributory fault on a contributory
    one, or any of them on a page fault, is a double fault; one on a double fault shuts down.
    """
    first = current = event
    gate = ""
    while True:
        try:
            deliver(cpu, memory, current)
            return None
        except OutsideRam as error:
            return Shutdown(f"triple fault at {cpu.rip:#x}: {error}", first.vector, gate=str(error))
        except Fault as fault:
            gate = fault.gate
            if fault.cr2 is not None:
                cpu.cr2 = fault.cr2
            if current.vector == DF and current.kind == "fault":
                return _shutdown(cpu, first, gate)
            current = _second(current, fault)


def _second(first: Event, fault: Fault) -> Event:
    if first.kind == "fault":
        serious = fault.vector in _CONTRIBUTORY or fault.vector == PF
        if (first.vector in _CONTRIBUTORY and fault.vector in _CONTRIBUTORY) or (
            first.vector == PF and serious
        ):
            return Event(DF, 0)
    return Event(fault.vector, fault.error_code)


def _shutdown(cpu: EventCpu, first: Event, gate: str) -> Shutdown:
    name = NAMES.get(first.vector, f"vector {first.vector}")
    where = f" at address {cpu.cr2:#x}" if first.vector == PF else ""
    why = (
        f"triple fault at {cpu.rip:#x}: {name}{where} could not be delivered, "
        f"nor the double fault: {gate} (IDT at {cpu.idt.base:#x}, limit {cpu.idt.limit:#x})"
    )
    return Shutdown(why, first.vector, cpu.cr2 if first.vector == PF else None, gate)


def deliver(cpu: EventCpu, memory: Memory, event: Event) -> None:
    """Push the frame and point `cpu` at the handler's first instruction.

    On a `Fault` the registers are as before, and so is memory but for A and D bits.
    """
    if not cpu.cr0 & CR0_PE:
        _deliver_real(cpu, memory, event)
    elif cpu.rflags & VM:
        raise Unsupported("events in virtual-8086 mode are not modelled")
    elif cpu.efer & EFER_LMA:
        _deliver_long(cpu, memory, event)
    else:
        _deliver_protected(cpu, memory, event)


def _deliver_real(cpu: EventCpu, memory: Memory, event: Event) -> None:
    """Push FLAGS, CS and IP, and jump through a table of far pointers, four bytes a vector."""
    if 4 * event.vector + 3 > cpu.idt.limit:
        raise Fault(GP, 0, _beyond(event, cpu.idt))
    ip, selector = struct.unpack("<HH", memory.read(cpu.idt.base + 4 * event.vector, 4))
    frame = struct.pack("<3H", cpu.rip & 0xFFFF, cpu.cs.selector, cpu.rflags & 0xFFFF)
    sp = cpu.rsp - len(frame) & 0xFFFF
    if sp + len(frame) <= 1 << 16:
        memory.write(cpu.ss.base + sp, frame)
    else:  # the stack goes on at the other end of its segment
        for at in range(0, len(frame), 2):
            memory.write(cpu.ss.base + (sp + at & 0xFFFF), frame[at : at + 2])
    cpu.rsp = cpu.rsp & ~0xFFFF | sp
    cpu.rflags &= ~(TF | IF | RF | 1 << 18)
    cpu.cs = Segment(selector, selector << 4, cpu.cs.limit, cpu.cs.attributes)
    cpu.rip = ip


def _deliver_long(cpu: EventCpu, memory: Memory, event: Event) -> None:
    """64-bit gates: SS and RSP are always pushed, on a stack aligned to 16 (SDM 6.14)."""
    vector = event.vector
    if 16 * vector + 15 > cpu.idt.limit:
        raise Fault(GP, _gate_error(event), _beyond(event, cpu.idt))
    low, selector, ist, kind, middle, high = struct.unpack(
        "<HHBBHI4x", memory.read(cpu.idt.base + 16 * vector, 16)
    )
    if kind & 0x1F not in (0x0E, 0x0F):
        raise Fault(GP, _gate_error(event), f"the gate of vector {vector} has type {kind & 31:#x}")
    _check_gate(cpu, event, kind)
    code = _code_segment(cpu, memory, event, selector)
    if not code.long or code.big:
        raise Fault(
            GP, selector & 0xFFFC | _ext(event), f"the handler's CS {selector:#x} is not 64-bit"
        )
    inward = not code.type & _CONFORMING and code.dpl < cpu.cpl
    ring = code.dpl if not code.type & _CONFORMING else cpu.cpl
    rsp = cpu.rsp
    if ist & 7:
        rsp = _tss_u64(cpu, memory, event, 0x1C + 8 * (ist & 7))
    elif inward:
        rsp = _tss_u64(cpu, memory, event, 4 + 8 * ring)
    frame = struct.pack(
        "<5Q", cpu.rip, cpu.cs.selector, _pushed_flags(cpu, event), cpu.rsp, cpu.ss.selector
    )
    if event.error_code is not None:
        frame = struct.pack("<Q", event.error_code) + frame
    rsp = (rsp & ~15) - len(frame) & (1 << 64) - 1
    _push(memory, rsp, frame, event)
    if inward:
        cpu.ss = Segment(ring, 0, 0, ring << 5)
    _enter(cpu, code, ring, low | middle << 16 | high << 32, rsp, kind)


def _deliver_protected(cpu: EventCpu, memory: Memory, event: Event) -> None:
    """16- and 32-bit gates; the stack comes from the TSS only when the ring changes (SDM 6.12)."""
    vector = event.vector
    if 8 * vector + 7 > cpu.idt.limit:
        raise Fault(GP, _gate_error(event), _beyond(event, cpu.idt))
    low, selector, _, kind, middle = struct.unpack(
        "<HHBBH", memory.read(cpu.idt.base + 8 * vector, 8)
    )
    if kind & 0x1F == 5:
        raise Unsupported("task gates are not modelled")
    if kind & 0x1F not in (0x06, 0x07, 0x0E, 0x0F):
        raise Fault(GP, _gate_error(event), f"the gate of vector {vector} has type {kind & 31:#x}")
    _check_gate(cpu, event, kind)
    code = _code_segment(cpu, memory, event, selector)
    inward = not code.type & _CONFORMING and code.dpl < cpu.cpl
    ring = code.dpl if not code.type & _CONFORMING else cpu.cpl
    wide = bool(kind & 8)
    words = [cpu.rip, cpu.cs.selector, _pushed_flags(cpu, event)]
    if event.error_code is not None:
        words.insert(0, event.error_code)
    stack, esp = cpu.ss, cpu.rsp
    if inward:
        esp, stack = _inner_stack(cpu, memory, event, ring)
        words += [cpu.rsp, cpu.ss.selector]
    mask = 0xFFFFFFFF if wide else 0xFFFF
    frame = struct.pack(f"<{len(words)}{'I' if wide else 'H'}", *(word & mask for word in words))
    reach = 0xFFFFFFFF if stack.big else 0xFFFF
    top = esp - len(frame) & reach
    _check_stack(stack, top, len(frame), event, inward)
    _push(memory, stack.base + top & 0xFFFFFFFF, frame, event, 4 if wide else 2)
    cpu.ss = stack
    rip = low | middle << 16 if wide else low
    _enter(cpu, code, ring, rip, cpu.rsp & ~reach | top if not inward else top, kind)


def _enter(cpu: EventCpu, code: Segment, ring: int, rip: int, rsp: int, kind: int) -> None:
    cpu.cs = Segment(code.selector & ~3 | ring, code.base, code.limit, code.attributes)
    cpu.cpl, cpu.rip, cpu.rsp = ring, rip, rsp
    cpu.rflags &= ~(TF | NT | RF | VM)
    if not kind & 1:  # an interrupt gate; a trap gate leaves IF alone
        cpu.rflags &= ~IF


def _check_gate(cpu: EventCpu, event: Event, kind: int) -> None:
    if event.kind == "software" and kind >> 5 & 3 < cpu.cpl:
        what = f"the gate of vector {event.vector} is closed to ring {cpu.cpl}"
        raise Fault(GP, _gate_error(event), what)
    if not kind & 0x80:
        raise Fault(NP, _gate_error(event), f"the gate of vector {event.vector} is not present")


def _code_segment(cpu: EventCpu, memory: Memory, event: Event, selector: int) -> Segment:
    error = selector & 0xFFFC | _ext(event)
    if not selector & 0xFFFC:
        raise Fault(GP, _ext(event), f"the gate of vector {event.vector} has a null selector")
    code = _descriptor(cpu, memory, selector, GP, error)
    if not code.attributes & _SYSTEM_OK or not code.type & _CODE or code.dpl > cpu.cpl:
        raise Fault(
            GP, error, f"the handler's selector {selector:#x} is no code for ring {cpu.cpl}"
        )
    if not code.present:
        raise Fault(NP, error, f"the handler's code segment {selector:#x} is not present")
    return code


def _descriptor(cpu: EventCpu, memory: Memory, selector: int, vector: int, error: int) -> Segment:
    table = Table(cpu.ldt.base, cpu.ldt.limit) if selector & 4 else cpu.gdt
    offset = selector & 0xFFF8
    if offset + 7 > table.limit:
        raise Fault(vector, error, f"the selector {selector:#x} lies beyond its table's limit")
    low, high = struct.unpack("<II", memory.read(table.base + offset, 8))
    limit = low & 0xFFFF | high & 0xF0000
    if high & 1 << 23:
        limit = limit << 12 | 0xFFF
    if high & 1 << 12 and not high & 1 << 8:  # SDM 3.4.5.1: loading it sets the accessed bit
        high |= 1 << 8
        memory.write(table.base + offset + 4, struct.pack("<I", high))
    base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000
    return Segment(selector, base, limit, high >> 8 & 0xF0FF)


def _tss_u64(cpu: EventCpu, memory: Memory, event: Event, offset: int) -> int:
    if offset + 7 > cpu.tr.limit:
        raise Fault(TS, cpu.tr.selector & 0xFFFC | _ext(event), "the TSS is too short")
    value = int.from_bytes(memory.read(cpu.tr.base + offset, 8), "little")
    sign = 56 if cpu.cr4 & CR4_LA57 else 47
    if value >> sign not in (0, (1 << 64 - sign) - 1):
        raise Fault(SS, _ext(event), f"the stack pointer {value:#x} in the TSS is not canonical")
    return value


def _inner_stack(cpu: EventCpu, memory: Memory, event: Event, ring: int) -> tuple[int, Segment]:
    """Return ESP and SS of a ring from the TSS, checked (SDM vol. 3A, 6.12.1)."""
    wide = cpu.tr.type & 8
    offset, size = (4 + 8 * ring, 8) if wide else (2 + 4 * ring, 4)
    if offset + size - 1 > cpu.tr.limit:
        raise Fault(TS, cpu.tr.selector & 0xFFFC | _ext(event), "the TSS is too short")
    esp, selector = struct.unpack(
        "<IH2x" if wide else "<HH", memory.read(cpu.tr.base + offset, size)
    )
    error = selector & 0xFFFC | _ext(event)
    if not selector & 0xFFFC:
        raise Fault(TS, _ext(event), f"the TSS has a null stack selector for ring {ring}")
    stack = _descriptor(cpu, memory, selector, TS, error)
    writable = stack.attributes & _SYSTEM_OK and stack.type & 0xA == 2
    if selector & 3 != ring or stack.dpl != ring or not writable:
        raise Fault(
            TS, error, f"the stack selector {selector:#x} in the TSS is no stack of ring {ring}"
        )
    if not stack.present:
        raise Fault(SS, error, f"the stack segment {selector:#x} is not present")
    return esp, stack


def _check_stack(stack: Segment, top: int, size: int, event: Event, inward: bool) -> None:
    last = top + size - 1
    if stack.type & 0xC == 4:  # expand-down: valid above the limit
        inside = top > stack.limit and last <= (0xFFFFFFFF if stack.big else 0xFFFF)
    else:
        inside = last <= stack.limit
    if not inside:
        error = stack.selector & 0xFFFC if inward else 0
        raise Fault(SS, error | _ext(event), "the frame does not fit below the stack pointer")


def _push(memory: Memory, linear: int, frame: bytes, event: Event, word: int = 8) -> None:
    try:
        memory.write(linear, frame)
    except Fault as fault:
        if fault.vector == GP:  # a stack that is not canonical is #SS
            raise Fault(SS, _ext(event), fault.gate) from None
        # The processor pushes word by word, so the fault is that of the first word that fails.
        for at in range(len(frame) - word, -1, -word):
            memory.write(linear + at, frame[at : at + word])
        raise


def _pushed_flags(cpu: EventCpu, event: Event) -> int:
    resume = RF if event.kind == "fault" and event.vector not in _NO_RESUME_FLAG else 0
    return cpu.rflags | resume


def _ext(event: Event) -> int:
    return 0 if event.kind == "software" else _EXT


def _gate_error(event: Event) -> int:
    return event.vector << 3 | _IDT_BIT | _ext(event)


def _beyond(event: Event, idt: Table) -> str:
    return f"no gate for vector {event.vector} below the IDT's limit {idt.limit:#x}"
