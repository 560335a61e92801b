"""Delivery of events: one rule of the manual a test, without an engine.

Sections are those of the Intel SDM, volume 3A, in its editions of 2023, unless another volume is
named.
"""

import struct
from dataclasses import replace

import pytest
from kvm_guests import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    GDT,
    IDT,
    STACK,
    TABLES,
    TASK,
    TSS,
    identity_map,
    write_tables,
)

from vmlib.cpu.events import (
    AC,
    BP,
    DB,
    DE,
    DF,
    GP,
    IF,
    NP,
    NT,
    PF,
    RF,
    SS,
    TF,
    TS,
    UD,
    VM,
    Event,
    EventCpu,
)
from vmlib.cpu.gates import deliver, raise_event
from vmlib.cpu.linear import Fault, LinearMemory, OutsideRam
from vmlib.cpu.state import Segment, SystemRegisters, Table
from vmlib.errors import Unsupported
from vmlib.memory import GuestRam

HANDLER, USER_STACK = 0x20000, 0x2F000
UPPER = 200 << 21
"""A linear address whose 2 MiB are mapped to the first ones by `aliased`."""


def make_cpu(system, ring, rip=0x10005, rsp=USER_STACK, rflags=IF | 2):
    s = system
    return EventCpu(
        rip,
        rsp,
        rflags,
        ring,
        s.cs,
        s.ss,
        s.tr,
        s.ldt,
        s.gdt,
        s.idt,
        s.cr0,
        0,
        s.cr3,
        s.cr4,
        s.efer,
    )


class Guest:
    """RAM with tables, registers, and the memory between them."""

    def __init__(self, bits, ring=0, gates=None):
        self.bits = bits
        self.ram = GuestRam("1M")
        if bits == 16:
            system = SystemRegisters.real_mode()
            for vector, handler in (gates or {}).items():
                self.ram.write(4 * vector, struct.pack("<HH", handler & 0xFFFF, 0x100))
        else:
            write_tables(self.ram, bits, gates or {})
            system = SystemRegisters.protected_mode()
            if bits == 64:
                identity_map(self.ram)
                system = SystemRegisters.long_mode(TABLES)
            limit = 256 * bits // 4 - 1
            system = replace(system, gdt=Table(GDT, 0x2F), idt=Table(IDT, limit))
            system = replace(system, tr=Segment(TASK, TSS, 0x67, 0x8B))
            if ring:
                code = Segment(CODE3, 0, 0xFFFFFFFF, 0xA0FB if bits == 64 else 0xC0FB)
                system = replace(system, cs=code, ss=Segment(DATA3, 0, 0xFFFFFFFF, 0xC0F3))
        self.cpu = make_cpu(system, ring)

    @property
    def memory(self):
        return LinearMemory(self.ram, self.cpu)

    def deliver(self, *event):
        deliver(self.cpu, self.memory, Event(*event))

    def fault(self, *event):
        """Deliver what cannot be delivered: vector and error code of the fault. Nothing moved."""
        before = replace(self.cpu)
        with pytest.raises(Fault) as raised:
            self.deliver(*event)
        assert self.cpu == before
        return raised.value.vector, raised.value.error_code

    def frame(self, count):
        """The uppermost words of the stack, without translation."""
        size = {16: 2, 32: 4, 64: 8}[self.bits]
        data = self.ram.read(self.cpu.rsp % UPPER, count * size)
        return struct.unpack(f"<{count}{ {2: 'H', 4: 'I', 8: 'Q'}[size] }", data)

    def gate(self, vector, kind=0x8E, selector=CODE0, ist=0, handler=HANDLER):
        low = struct.pack("<HHBBH", handler & 0xFFFF, selector, ist, kind, handler >> 16)
        self.ram.write(IDT + vector * self.bits // 4, low)

    def descriptor(self, selector, value):
        self.ram.write_u64(GDT + (selector & 0xF8), value)


CODE_32, CODE_64, DATA = 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
PRESENT, WIDE = 1 << 47, pytest.mark.parametrize("bits", [32, 64])


# --- real mode (vol. 3B, *8086 Emulation*; vol. 2A, INT n) ----------------------------------------


def test_real_mode_pushes_three_words():
    guest = Guest(16, gates={0x21: 0x2345})
    guest.cpu.rsp, guest.cpu.cs = 0x1000, Segment(0x1000, 0x10000, 0xFFFF, 0x9B)
    guest.cpu.rip = 0x77
    guest.deliver(0x21, None, "software")
    assert guest.frame(3) == (0x77, 0x1000, IF | 2)
    assert (guest.cpu.rip, guest.cpu.cs.selector, guest.cpu.cs.base) == (0x2345, 0x100, 0x1000)
    assert guest.cpu.rsp == 0xFFA


def test_real_mode_clears_if_tf_and_ac():
    guest = Guest(16, gates={0: 1})
    guest.cpu.rflags = 1 << 18 | TF | IF | 3
    guest.deliver(DE)
    assert guest.cpu.rflags == 3


def test_real_mode_pushes_no_error_code():
    guest = Guest(16, gates={GP: 1})
    guest.cpu.rsp = 0x1000
    guest.deliver(GP, 0)
    assert guest.cpu.rsp == 0x1000 - 6


def test_the_stack_of_real_mode_wraps_at_64_kib():
    guest = Guest(16, gates={0: 1})
    guest.cpu.rsp, guest.cpu.ss = 0xAAAA0002, Segment(0x4000, 0x40000)
    guest.deliver(DE)
    assert guest.cpu.rsp == 0xAAAAFFFC
    assert guest.ram.read(0x40000, 2) == struct.pack("<H", IF | 2)
    assert guest.ram.read(0x4FFFC, 2) == struct.pack("<H", 0x0005)


def test_the_table_of_real_mode_has_base_and_limit():
    guest = Guest(16)
    guest.cpu.idt = Table(0x8000, 4 * 3 + 3)
    guest.ram.write(0x8000 + 4 * 3, struct.pack("<HH", 0x1111, 0x2222))
    guest.deliver(BP, None, "software")
    assert (guest.cpu.cs.selector, guest.cpu.rip) == (0x2222, 0x1111)
    assert guest.fault(4, None, "software") == (GP, 0)
    guest.cpu.idt = Table(0x8000, 4 * 3 + 2)
    assert guest.fault(BP, None, "software") == (GP, 0)


# --- gates (6.11, 6.12, 6.14) ---------------------------------------------------------------------


@WIDE
def test_a_frame_in_the_same_ring(bits):
    guest = Guest(bits, gates={0x30: HANDLER})
    guest.deliver(0x30, None, "external")
    words = (0x10005, CODE0, IF | 2)
    more = (USER_STACK, DATA0) if bits == 64 else ()  # 6.14.2: SS:RSP is pushed always
    assert guest.frame(3 + len(more)) == words + more
    assert (guest.cpu.rip, guest.cpu.cs.selector, guest.cpu.cpl) == (HANDLER, CODE0, 0)
    assert guest.cpu.ss.selector == DATA0
    assert guest.cpu.rsp == USER_STACK - (48 if bits == 64 else 12) + (8 if bits == 64 else 0)


def test_the_stack_is_aligned_to_16_in_64_bit_mode():
    """6.14.2."""
    guest = Guest(64, gates={0x30: HANDLER})
    guest.cpu.rsp = USER_STACK + 13
    guest.deliver(0x30, None, "external")
    assert guest.cpu.rsp == USER_STACK - 40
    assert guest.frame(5)[3] == USER_STACK + 13


@WIDE
def test_an_error_code_lies_on_top(bits):
    """6.13."""
    guest = Guest(bits, gates={GP: HANDLER})
    guest.deliver(GP, 0x1234)
    assert guest.frame(2) == (0x1234, 0x10005)


@WIDE
def test_an_interrupt_gate_clears_if_and_a_trap_gate_does_not(bits):
    """6.12.1.3."""
    guest = Guest(bits, gates={0x30: HANDLER, 0x31: HANDLER})
    guest.gate(0x31, kind=0x8F)
    guest.cpu.rflags = flags = IF | TF | NT | RF | 0x41
    guest.deliver(0x31, None, "external")
    assert guest.cpu.rflags == IF | 0x41
    guest.cpu.rflags = flags
    guest.deliver(0x30, None, "external")
    assert guest.cpu.rflags == 0x41


@pytest.mark.parametrize(
    ("event", "pushed"),
    [
        (Event(DE), RF),
        (Event(UD), RF),
        (Event(GP, 0), RF),
        (Event(PF, 0), RF),
        (Event(DB), 0),
        (Event(DF, 0), 0),
        (Event(BP, None, "software"), 0),
        (Event(0x30, None, "external"), 0),
    ],
)
def test_faults_push_rf(event, pushed):
    """Vol. 3B, *Instruction-Breakpoint Exception Condition*: all faults push RF set."""
    guest = Guest(64, gates={event.vector: HANDLER})
    deliver(guest.cpu, guest.memory, event)
    assert guest.frame(4)[2 + (event.error_code is not None)] & RF == pushed


@WIDE
def test_a_ring_change_takes_the_stack_of_the_tss(bits):
    """6.12.1 and 6.14.4: in 64-bit mode SS becomes null."""
    guest = Guest(bits, ring=3, gates={0x80: HANDLER})
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == STACK - 5 * bits // 8
    assert guest.frame(5) == (0x10005, CODE3, IF | 2, USER_STACK, DATA3)
    assert (guest.cpu.cpl, guest.cpu.cs.selector, guest.cpu.cs.dpl) == (0, CODE0, 0)
    assert guest.cpu.ss.selector == (0 if bits == 64 else DATA0)
    assert guest.cpu.ss.dpl == 0


@WIDE
def test_a_conforming_segment_keeps_the_ring(bits):
    """6.12.1: the code runs in the ring of the interrupted one, on its stack."""
    guest = Guest(bits, ring=3, gates={0x80: HANDLER})
    guest.descriptor(CODE0, (CODE_64 if bits == 64 else CODE_32) | 1 << 42)
    guest.deliver(0x80, None, "software")
    assert (guest.cpu.cpl, guest.cpu.cs.selector & 3, guest.cpu.ss.selector) == (3, 3, DATA3)
    assert guest.cpu.rsp < USER_STACK


@WIDE
def test_a_closed_gate_refuses_only_software(bits):
    """6.12.1.1: DPL is looked at for INT n, INT3 and INTO alone."""
    guest = Guest(bits, ring=3)
    guest.gate(0x30, kind=0x8E)
    assert guest.fault(0x30, None, "software") == (GP, 0x30 << 3 | 2)
    guest.deliver(0x30, None, "external")
    assert guest.cpu.rip == HANDLER


@WIDE
def test_the_gate_is_refused_before_it_is_missed(bits):
    """Vol. 2A, INT n, Operation: DPL comes before P."""
    guest = Guest(bits, ring=3)
    guest.gate(0x30, kind=0x0E)
    assert guest.fault(0x30, None, "software")[0] == GP
    guest.gate(0x30, kind=0x6E)
    assert guest.fault(0x30, None, "software") == (NP, 0x30 << 3 | 2)


@WIDE
@pytest.mark.parametrize(("kind", "ext"), [("software", 0), ("fault", 1), ("external", 1)])
def test_error_codes_name_the_gate_and_who_asked(bits, kind, ext):
    """6.13: index times eight, IDT, and EXT for what the program did not ask for."""
    guest = Guest(bits)
    guest.gate(0x30, kind=0x6E)
    assert guest.fault(0x30, None, kind) == (NP, 0x30 << 3 | 2 | ext)
    guest.cpu.idt = Table(IDT, 0x30 * bits // 4 - 1)
    assert guest.fault(0x30, None, kind) == (GP, 0x30 << 3 | 2 | ext)


@WIDE
def test_a_gate_has_to_lie_within_the_limit_to_its_last_byte(bits):
    """6.10."""
    guest = Guest(bits, gates={0x30: HANDLER})
    guest.cpu.idt = Table(IDT, 0x31 * bits // 4 - 2)
    assert guest.fault(0x30, None, "external")[0] == GP
    guest.cpu.idt = Table(IDT, 0x31 * bits // 4 - 1)
    guest.deliver(0x30, None, "external")


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(64, 0x86), (64, 0x87), (64, 0x85), (64, 0x8C), (64, 0x9E), (32, 0x82), (32, 0x9E)],
)
def test_what_is_no_gate_is_refused(bits, kind):
    """6.11, 6.14.1: 64-bit mode has no 16-bit gates and no task gates."""
    guest = Guest(bits)
    guest.gate(0x30, kind=kind)
    assert guest.fault(0x30, None, "software") == (GP, 0x30 << 3 | 2)


def test_a_16_bit_gate_pushes_words():
    """6.12.1."""
    guest = Guest(32)
    guest.gate(0x30, kind=0x86, handler=0xFFFF1234)
    guest.deliver(0x30, None, "external")
    assert guest.cpu.rip == 0x1234
    assert guest.cpu.rsp == USER_STACK - 6
    assert guest.ram.read(USER_STACK - 6, 6) == struct.pack("<HHH", 0x0005, CODE0, IF | 2)


def test_64_bit_handlers_lie_anywhere():
    """6.14.1: the upper half of the address is in the third word of the gate."""
    guest = Guest(64, gates={0x30: HANDLER})
    guest.ram.write(IDT + 0x300 + 8, struct.pack("<I", 0xFFFF8000))
    guest.deliver(0x30, None, "external")
    assert guest.cpu.rip == 0xFFFF8000_00000000 + HANDLER


# --- the handler's code segment (6.12.1.2; vol. 2A, INT n, Operation) ----------------------------


@WIDE
@pytest.mark.parametrize(
    ("selector", "descriptor", "expected"),
    [
        (0, None, (GP, 1)),
        (3, None, (GP, 1)),
        (0x30, None, (GP, 0x31)),
        (CODE0, DATA, (GP, CODE0 | 1)),
        (CODE0, 0x00008B0000000067, (GP, CODE0 | 1)),
        (CODE0, "absent", (NP, CODE0 | 1)),
        (CODE3, None, (GP, CODE3 & ~3 | 1)),
    ],
)
def test_the_selector_of_a_gate(bits, selector, descriptor, expected):
    guest = Guest(bits)
    guest.gate(0x30, selector=selector)
    if descriptor == "absent":
        descriptor = (CODE_64 if bits == 64 else CODE_32) & ~PRESENT
    if descriptor is not None:
        guest.descriptor(selector, descriptor)
    assert guest.fault(0x30, None, "external") == expected


@WIDE
def test_a_descriptor_has_to_lie_within_the_limit_to_its_last_byte(bits):
    """3.5.1."""
    guest = Guest(bits)
    guest.gate(0x30, selector=0x30)
    guest.descriptor(0x30, CODE_64 if bits == 64 else CODE_32)
    guest.cpu.gdt = Table(GDT, 0x36)
    assert guest.fault(0x30, None, "external") == (GP, 0x31)
    guest.cpu.gdt = Table(GDT, 0x37)
    guest.deliver(0x30, None, "external")
    assert guest.cpu.cs.selector == 0x30


@pytest.mark.parametrize("descriptor", [CODE_32, CODE_64 | 1 << 54])
def test_a_64_bit_gate_leads_to_64_bit_code(descriptor):
    """6.14.1: L set and D clear."""
    guest = Guest(64, gates={0x30: HANDLER})
    guest.descriptor(CODE0, descriptor)
    assert guest.fault(0x30, None, "software") == (GP, CODE0)


def test_loading_a_descriptor_marks_it_accessed():
    """3.4.5.1."""
    guest = Guest(32, gates={0x30: HANDLER})
    guest.descriptor(CODE0, CODE_32 & ~(1 << 40))
    guest.deliver(0x30, None, "external")
    assert guest.ram.read_u64(GDT + CODE0) == CODE_32
    assert guest.cpu.cs.type == 0xB


def test_a_selector_may_point_into_the_ldt():
    """3.4.2."""
    guest = Guest(32)
    guest.gate(0x30, selector=0x0C)
    guest.cpu.ldt = Segment(0, 0x9000, 0xF, 0x82)
    guest.ram.write_u64(0x9008, CODE_32 | 0x4000 << 16)
    guest.deliver(0x30, None, "external")
    assert (guest.cpu.cs.selector, guest.cpu.cs.base) == (0x0C, 0x4000)


# --- stacks (6.12.1, 6.14.2 to 6.14.5) ------------------------------------------------------------


def test_an_ist_stack_is_used_in_any_ring():
    """6.14.5."""
    guest = Guest(64)
    guest.gate(DF, ist=3)
    guest.ram.write_u64(TSS + 0x1C + 24, 0x40000)
    guest.deliver(DF, 0)
    assert guest.cpu.rsp == 0x40000 - 48
    assert guest.frame(6)[4] == USER_STACK


@WIDE
def test_a_short_tss_is_ts(bits):
    """Vol. 3A, 6.15, Interrupt 10: the error code is the TSS's selector."""
    guest = Guest(bits, ring=3, gates={0x80: HANDLER})
    guest.cpu.tr = replace(guest.cpu.tr, limit=10)
    assert guest.fault(0x80, None, "external") == (TS, TASK | 1)
    guest.cpu.tr = replace(guest.cpu.tr, limit=11)
    guest.deliver(0x80, None, "external")


@pytest.mark.parametrize(
    ("selector", "descriptor", "expected"),
    [
        (0, None, (TS, 0)),
        (0x38, None, (TS, 0x38)),
        (DATA0 | 3, None, (TS, DATA0)),
        (DATA3 & ~3, None, (TS, DATA3 & ~3)),
        (DATA0, CODE_32, (TS, DATA0)),
        (DATA0, DATA & ~(1 << 41), (TS, DATA0)),
        (DATA0, DATA & ~PRESENT, (SS, DATA0)),
    ],
)
def test_the_inner_stack_segment(selector, descriptor, expected):
    """Vol. 2A, INT n, Operation (INTER-PRIVILEGE-LEVEL-INTERRUPT)."""
    guest = Guest(32, ring=3, gates={0x80: HANDLER})
    guest.ram.write(TSS + 8, struct.pack("<I", selector))
    if descriptor is not None:
        guest.descriptor(selector, descriptor)
    assert guest.fault(0x80, None, "software") == expected


def test_a_16_bit_tss_has_words():
    """*16-Bit Task-State Segment (TSS)*: SP0 at 2, SS0 at 4."""
    guest = Guest(32, ring=3, gates={0x80: HANDLER})
    guest.cpu.tr = Segment(TASK, TSS, 0x2B, 0x83)
    guest.ram.write(TSS, struct.pack("<HHH", 0, 0x6000, DATA0))
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == 0x6000 - 20


def test_a_frame_that_does_not_fit_is_ss():
    """Vol. 2A, INT n: #SS(EXT) on the same stack, #SS(selector) on the one of the TSS."""
    guest = Guest(32, gates={0x80: HANDLER})
    guest.cpu.ss = replace(guest.cpu.ss, limit=USER_STACK - 2)
    assert guest.fault(0x80, None, "software") == (SS, 0)
    assert guest.fault(0x80, None, "external") == (SS, 1)
    guest = Guest(32, ring=3, gates={0x80: HANDLER})
    guest.descriptor(DATA0, 0x0040930000001000)
    assert guest.fault(0x80, None, "software") == (SS, DATA0)


def test_a_stack_that_grows_down_from_its_limit():
    """3.4.5.1: an expand-down segment is valid above its limit."""
    guest = Guest(32, gates={0x80: HANDLER})
    guest.cpu.ss = Segment(DATA0, 0, USER_STACK - 13, 0x4097)
    guest.deliver(0x80, None, "software")
    guest = Guest(32, gates={0x80: HANDLER})
    guest.cpu.ss = Segment(DATA0, 0, USER_STACK - 12, 0x4097)
    assert guest.fault(0x80, None, "software") == (SS, 0)


def test_a_16_bit_stack_wraps_and_keeps_the_upper_half():
    """6.12.1 with the B flag of 3.4.5."""
    guest = Guest(32, gates={0x80: HANDLER})
    guest.cpu.ss = Segment(DATA0, 0x40000, 0xFFFF, 0x93)
    guest.cpu.rsp = 0x77770000
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == 0x7777FFF4
    assert guest.ram.read(0x4FFF4, 4) == struct.pack("<I", 0x10005)


@pytest.mark.parametrize("where", ["rsp", "tss"])
def test_a_stack_that_is_not_canonical_is_ss(where):
    """6.14.2, and 6.15, Interrupt 12."""
    guest = Guest(64, ring=0 if where == "rsp" else 3, gates={0x80: HANDLER})
    if where == "rsp":
        guest.cpu.rsp = 1 << 60
    else:
        guest.ram.write_u64(TSS + 4, 1 << 60)
    assert guest.fault(0x80, None, "software") == (SS, 0)


def test_with_five_levels_57_bits_are_canonical():
    """3.3.7.1: a stack in the TSS that four levels would not let pass."""
    guest = Guest(64, ring=3, gates={0x80: HANDLER})
    top, pml5 = 1 << 48 | STACK, 0xA000
    guest.ram.write_u64(TSS + 4, top)
    assert guest.fault(0x80, None, "software") == (SS, 0)
    guest.ram.write_u64(pml5, TABLES | 7)
    guest.ram.write_u64(pml5 + 8, TABLES | 7)
    guest.cpu.cr3, guest.cpu.cr4 = pml5, guest.cpu.cr4 | 1 << 12
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == top - 40


# --- memory ---------------------------------------------------------------------------------------


def aliased(ring=0):
    """A 64-bit guest whose supervisor's memory is seen a second time at `UPPER`."""
    guest = Guest(64, ring=ring, gates={0x80: HANDLER})
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0x83)
    return guest


def test_tables_and_stack_are_linear_addresses():
    """6.10, and *Task-State Segment (TSS)*: all of them go through the page tables."""
    guest = aliased(ring=3)
    guest.ram.write_u64(TSS + 4, UPPER + STACK)
    for name in ("idt", "gdt"):
        table = getattr(guest.cpu, name)
        setattr(guest.cpu, name, Table(table.base + UPPER, table.limit))
    guest.cpu.tr = replace(guest.cpu.tr, base=UPPER + TSS)
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == UPPER + STACK - 40
    assert guest.frame(5) == (0x10005, CODE3, IF | 2, USER_STACK, DATA3)


@pytest.mark.parametrize("ring", [0, 3])
def test_a_page_fault_while_delivering_is_a_supervisors(ring):
    """*Determination of Access Rights*: implicit accesses count as supervisor's; U stays clear."""
    guest = aliased(ring)
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0)
    guest.cpu.idt = Table(UPPER + IDT, 0xFFF)
    before = replace(guest.cpu)
    with pytest.raises(Fault) as raised:
        guest.deliver(0x80, None, "software")
    assert (raised.value.vector, raised.value.error_code) == (PF, 0)
    assert raised.value.cr2 == UPPER + IDT + 0x800
    assert guest.cpu == before


def test_smap_holds_for_delivery_whatever_ac_says():
    """*Determination of Access Rights*: AC opens pages of ring 3 to explicit accesses only."""
    guest = aliased()
    guest.cpu.cr4 |= 1 << 21
    guest.cpu.rflags |= 1 << 18
    assert guest.fault(0x80, None, "software") == (PF, 1)


def test_a_frame_across_two_pages_is_pushed_whole():
    guest = aliased()
    guest.cpu.rsp = UPPER + 0x30010
    guest.deliver(0x80, None, "software")
    assert guest.cpu.rsp == UPPER + 0x30010 - 40
    assert guest.frame(5) == (0x10005, CODE0, IF | 2, UPPER + 0x30010, DATA0)


@pytest.mark.parametrize(
    ("above", "first_that_fails"), [(0x00, 8), (0x10, 8), (0x20, 8), (-0x10, 0x18), (-0x1F0, 0x1F8)]
)
def test_a_frame_fault_is_that_of_the_first_word_that_fails(above, first_that_fails):
    """Vol. 2A, INT n, Operation: SS is pushed first, then RSP, RFLAGS, CS and RIP downwards.

    What a KVM says to the first three is in test_oddities.py.
    """
    guest = aliased()
    end = 201 << 21
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0)
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 201, 0x83)
    guest.cpu.rsp = end + above
    with pytest.raises(Fault) as raised:
        guest.deliver(0x80, None, "software")
    assert (raised.value.vector, raised.value.error_code) == (PF, 2)
    assert raised.value.cr2 == end - first_that_fails


def test_a_store_across_two_pages_looks_at_both_before_it_stores():
    guest = aliased()
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 201, 0)
    end = 201 << 21
    guest.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0x83)
    with pytest.raises(OutsideRam):  # the last page of these 2 MiB lies above RAM
        guest.memory.write(end - 4, b"1234")
    with pytest.raises(Fault):  # and the next one is not mapped, which is found before storing
        guest.memory.write(end - 4, b"12345678")


def test_delivery_sets_accessed_and_dirty():
    """*Accessed and Dirty Flags*: also for accesses that the processor makes by itself."""
    guest = aliased()
    guest.cpu.rsp = UPPER + STACK
    entry = TABLES + 0x2000 + 8 * 200
    assert guest.ram.read_u64(entry) & 0x60 == 0
    guest.deliver(0x80, None, "software")
    assert guest.ram.read_u64(entry) & 0x60 == 0x60


def test_linear_addresses_of_protected_mode_wrap_at_4_gib():
    """3.3.5 (vol. 1): outside 64-bit mode addresses have 32 bits."""
    guest = Guest(32)
    guest.ram.write(0, b"abcd")
    assert guest.memory.read((1 << 32) + 1, 2) == b"bc"


# --- faults on faults (6.15, Interrupt 8, table 6-5) ----------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "becomes"),
    [
        (Event(DE), NP, DF),
        (Event(GP, 0), NP, DF),
        (Event(TS, 0), GP, DF),
        (Event(PF, 0), NP, DF),
        (Event(PF, 0), PF, DF),
        (Event(GP, 0), PF, PF),
        (Event(UD), NP, NP),
        (Event(DB), GP, GP),
        (Event(AC, 0), NP, NP),
        (Event(UD), PF, PF),
        (Event(0x40, None, "external"), NP, NP),
        (Event(0x40, None, "software"), GP, GP),
        (Event(GP, None, "software"), NP, NP),
    ],
)
def test_what_becomes_of_a_fault_on_a_fault(first, second, becomes):
    guest = Guest(64)
    handlers = {vector: HANDLER + 16 * vector for vector in (DF, TS, NP, SS, GP, PF)}
    for vector, handler in handlers.items():
        if vector != first.vector:
            guest.gate(vector, kind=0x8E, handler=handler)
    if second == PF:
        guest.ram.write_u64(TABLES + 0x2000 + 8 * 200, 0)
        guest.gate(first.vector, ist=1)
        guest.ram.write_u64(TSS + 0x24, UPPER + STACK)
    elif second == NP:
        guest.gate(first.vector, kind=0x0E)
    else:
        guest.gate(first.vector, kind=0x8C)
    if second == first.vector == PF:
        guest.gate(PF, ist=1)
    assert raise_event(guest.cpu, guest.memory, first) is None
    assert guest.cpu.rip == handlers[becomes]
    assert guest.cpu.cr2 == (UPPER + STACK - 8 if second == PF else 0)  # the frame's first word
    if becomes == DF:
        assert guest.frame(1) == (0,)


@WIDE
def test_a_fault_on_a_double_fault_shuts_down(bits):
    guest = Guest(bits)
    guest.cpu.idt = Table(0x7000, 0)
    before = replace(guest.cpu)
    shutdown = raise_event(guest.cpu, guest.memory, Event(UD))
    assert shutdown.vector == UD
    assert "#UD could not be delivered, nor the double fault" in shutdown.why
    assert "no gate for vector 8" in shutdown.gate
    assert guest.cpu == before


def test_a_shutdown_after_a_page_fault_tells_the_address():
    guest = Guest(64)
    guest.cpu.cr2 = 0xABC000
    guest.cpu.idt = Table(0x7000, 0)
    shutdown = raise_event(guest.cpu, guest.memory, Event(PF, 2))
    assert (shutdown.vector, shutdown.cr2) == (PF, 0xABC000)
    assert "at address 0xabc000" in shutdown.why


def test_int_8_is_no_double_fault():
    """Table 6-5 speaks of exceptions; INT 8 that fails raises its fault and does not shut down."""
    guest = Guest(64, gates={NP: HANDLER})
    guest.gate(DF, kind=0x6E)
    assert raise_event(guest.cpu, guest.memory, Event(DF, None, "software")) is None
    assert guest.cpu.rip == HANDLER
    assert guest.frame(1) == (DF << 3 | 2,)


def test_a_table_outside_ram_shuts_down_and_says_so():
    guest = Guest(32)
    guest.cpu.idt = Table(0x40000000, 0x7FF)
    shutdown = raise_event(guest.cpu, guest.memory, Event(UD))
    assert shutdown.gate == "the table at 0x40000030 lies outside guest RAM"


@pytest.mark.parametrize("what", ["task gate", "virtual-8086"])
def test_what_is_left_out_says_so(what):
    guest = Guest(32)
    if what == "task gate":
        guest.gate(0x30, kind=0x85)
    else:
        guest.cpu.rflags |= VM
    with pytest.raises(Unsupported, match=what):
        guest.deliver(0x30, None, "external")
