"""Guests made of single accesses: the same list is code for a processor and work for a pager.

A *script* is a list of what the guest does, one line each: ``read ADDRESS``, ``write ADDRESS
VALUE``, ``invlpg ADDRESS``, ``cr3 VALUE``. From it come the guest's bytes, 64-bit code in which
each line is one fixed form of instruction, and the accesses that this code makes, for our pagers.
The guest ends with a write to port 0xf4.

A page fault is handled by the guest itself: the handler writes the error code to port 0xe0 and
goes on behind the instruction, which has ten bytes whenever it can fault.
"""

import struct
from dataclasses import replace

from vmlib.cpu import Budget, IoOut, Registers, Segment, SystemRegisters, Table, open_vm
from vmlib.memory import GuestRam, MemorySlots, NestedPager, ShadowPager, Slot
from vmlib.memory.paging import PS, RW, US, P

PAGE, GUEST = 0x1000, 0x400000
RAM = "4M"
# The guest's pages. All are mapped one to one, supervisor and user, by the table at PT.
CODE, STACK, SYSTEM = 0x1000, 0x3000, 0x4000  # code has two pages; SYSTEM holds GDT and IDT
GDT, IDT = SYSTEM, SYSTEM + 0x100
HANDLER = CODE + 0x1F00
PML4, PDPT, PD, PT = 0x10000, 0x11000, 0x12000, 0x13000
PT2, PML4_B, PD2 = 0x14000, 0x15000, 0x16000
DATA = 0x20000
SECOND = 0x200000
"""The second 2 MiB of addresses: what PT2 maps. All of it lies in the guest's first 2 MiB."""
LARGE = 0x400000
"""One 2 MiB page, to the guest's second 2 MiB of memory."""
DONE, FAULT = 0xF4, 0xE0

_DESCRIPTORS = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
HANDLER_CODE = bytes.fromhex("58 e7 e0 48 83 04 24 0a 48 cf")
"""pop rax; out 0xe0, eax; add qword [rsp], 10; iretq."""


def parse(script):
    """Return the lines of a script as tuples; names are those of this module."""
    lines = [line.split("#")[0].split(None, 2) for line in script.splitlines()]
    return [
        (words[0], *(eval(word, globals()) for word in words[1:]))  # our own text, not input
        for words in lines
        if words
    ]


def assemble(steps):
    """Return the code, and for each step the addresses of its instructions."""
    code, places = b"", []
    for what, *values in steps:
        pieces = {
            "read": lambda at: [b"\x48\xa1" + _q(at)],
            "write": lambda at, value: [b"\x48\xb8" + _q(value), b"\x48\xa3" + _q(at)],
            "invlpg": lambda at: [b"\x48\xb8" + _q(at), b"\x0f\x01\x38"],
            "cr3": lambda value: [b"\x48\xb8" + _q(value), b"\x0f\x22\xd8"],
        }[what](*values)
        here = []
        for piece in pieces:
            here.append((CODE + len(code), len(piece)))
            code += piece
        places.append(here)
    end = (CODE + len(code), 2)
    code += b"\xe6\xf4"
    assert len(code) < HANDLER - CODE
    return code, places, end


def _q(value):
    return struct.pack("<Q", value)


def lay(write, code):
    """Write a guest's memory through `write(gpa, bytes)`."""
    write(CODE, code)
    write(HANDLER, HANDLER_CODE)
    write(GDT, b"".join(map(_q, _DESCRIPTORS)))
    gate = struct.pack("<HHHHII", HANDLER & 0xFFFF, 8, 0x8E00, HANDLER >> 16, 0, 0)
    write(IDT + 14 * 16, gate)
    rights = P | RW | US
    for root in (PML4, PML4_B):
        write(root, _q(PDPT | rights))
    write(PDPT, _q(PD | rights))
    write(PD, _q(PT | rights) + _q(PT2 | rights) + _q(SECOND | rights | PS))
    pages = [number * PAGE | rights for number in range(64)]
    write(PT, b"".join(map(_q, pages)))
    write(PT2, b"".join(_q(DATA + number * PAGE | rights) for number in range(16)))


def registers():
    """Return the state in which the guest starts."""
    system = SystemRegisters.long_mode(PML4)
    task = Segment(0, 0, 0x67, 0x8B)  # busy, of 64 bits
    system = replace(system, gdt=Table(GDT, 23), idt=Table(IDT, 0xFF), tr=task)
    return system, Registers(rip=CODE, rsp=STACK + 0x800, rflags=2)


def run(engine, script):
    """Run a script on an engine; return the error codes of its faults and the tables at the end."""
    code, _, _ = assemble(parse(script))
    with open_vm(engine, RAM) as vm:
        vm.ram.array[:] = 0  # the host has all pages from the start
        lay(vm.ram.write, code)
        vcpu = vm.vcpu()
        system, general = registers()
        vcpu.set_system(system)
        vcpu.set_registers(general)
        vcpu.set_budget(Budget(seconds=20))
        faults = []
        while True:
            left = vcpu.run()
            match left:
                case IoOut(port=port, data=data) if port == FAULT:
                    faults.append(int.from_bytes(data, "little"))
                case IoOut(port=port) if port == DONE:
                    break
                case _:
                    return {"faults": faults, "ended": repr(left), "tables": ""}
        return {"faults": faults, "ended": "done", "tables": vm.ram.read(PML4, 0x7000).hex()}


def run_all(engine, scripts):
    """Run scripts one after the other, each in a VM of its own."""
    return [run(engine, script) for script in scripts]


TOP = STACK + 0x800  # of a stack that is aligned to 16 bytes
DELIVERY = (
    ("read", IDT + 14 * 16),
    ("read", GDT + 8),
    ("write", TOP - 48),  # error code, RIP, CS, RFLAGS, RSP, SS
    ("fetch", HANDLER),
    ("read", TOP - 48),
    ("write", TOP - 40),
    ("read", GDT + 8),
    ("read", GDT + 16),
)
"""The accesses of a page fault's delivery, of its handler and of the handler's IRETQ."""


def execute(steps, do):
    """Tell `do(what, values…)` all that the processor does. It says whether that was a fault."""
    for (what, *values), places in steps:
        for at, size in places:
            for byte in sorted({at, at + size - 1}):
                assert not do("fetch", byte)
        if what != "end" and do(what, *values):
            for access in DELIVERY:
                assert not do(*access), access


class Watched(ShadowPager):
    """A pager that keeps the page faults it is asked about, in order: address and error code."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def _page_fault(self, gva, access, cpl, ac, error_code):
        self.asked.append((gva, error_code))
        return super()._page_fault(gva, access, cpl, ac, error_code)


class WatchedNested(NestedPager):
    """A pager that keeps the nested page faults it is asked about: address and EXITINFO1."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def _nested_fault(self, left):
        self.asked.append((left.gpa, left.qualification))
        return super()._nested_fault(left)


def nested(script, **options):
    """Run a script on a nested pager; return it, the error codes of faults, and the tables."""
    return _paged(WatchedNested, script, **options)


def shadowed(script, strategy, **options):
    """The same on a shadow pager."""
    return _paged(Watched, script, strategy=strategy, **options)


def _paged(kind, script, **options):
    steps = parse(script)
    code, places, end = assemble(steps)
    host = GuestRam(0x1000000)
    lay(lambda gpa, data: host.write(GUEST + gpa, data), code)
    slots = MemorySlots()
    slots.set(Slot(0, 0, 4 << 20, GUEST))
    system, _ = registers()
    controls = {"cr0": system.cr0, "cr3": system.cr3, "cr4": system.cr4, "efer": system.efer}
    pager = kind(host, slots, at=0x800000, **controls, **options)
    faults = []

    def do(what, at, *value):
        if what == "invlpg":
            return pager.invlpg(at)
        if what == "cr3":
            return pager.load_cr3(at)
        done = pager.store(at, *value) if value else pager.access(at, what)
        if done.fault:
            faults.append(done.fault.error_code)
        return done.fault is not None

    execute([*zip(steps, places, strict=True), (("end",), [end])], do)
    tables = host.read(GUEST + PML4, 0x7000).hex()
    host.close()
    return pager, faults, tables
