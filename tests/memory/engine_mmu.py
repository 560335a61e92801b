"""One access of a guest, executed by an engine: what the guest itself sees come of it.

The guest has an IDT. Its handlers tell the vector by the port they write to, the error code in RAX
and CR2 in RCX; an access that succeeds runs on into a UD2. So the fault is not only raised by the
engine but taken by the guest, and the exit to the VMM is the same on every engine.

A VM lives as long as its tables: a hypervisor with shadow tables sees what the guest writes to its
own, not what somebody else writes behind its back.
"""

import struct
from dataclasses import dataclass, replace

import numpy as np

from vmlib.cpu import Budget, IoOut, Mmio, Registers, Segment, SystemRegisters, Table, open_vm

RAM, ROOT, DATA = 4 << 20, 0x10000, 0x100000
MARK = 0x1122_3344_5566_7788
_PT, _PD, _PDPT, _PML4 = 0x1000, 0x2000, 0x3000, 0x4000
_GDT, _TSS, _IDT, _STACK, _CODE, _HANDLERS = 0x5000, 0x6000, 0x7000, 0x9000, 0x9000, 0xA000
_KERNEL4, _USER4 = 255 << 39, 254 << 39
_KERNEL5, _USER5 = 1 << 48 | 1 << 39, 1 << 48 | 2 << 39
_STUBS = {  # mov rdi, [rbx]; mov [rbx], rsi; jmp rbx, and ud2 after the first two
    "read": "488b3b 0f0b",
    "write": "488933 0f0b",
    "fetch": "ffe3",
}
# pop rax; mov rcx, cr2; out vector, al; hlt. A #UD has no error code.
_HANDLER = {6: "e606 f4", 13: "58 e60d f4", 14: "58 0f20d1 e60e f4"}


def word(gpa):
    """Eight bytes that tell their address, read or run: `mov edi, gpa; ud2`."""
    return 0xBF | gpa << 8 | 0x0B0F << 40


_GPAS = np.arange(DATA, RAM, 8, dtype=np.uint64)
_WORDS = (np.uint64(word(0)) | _GPAS << np.uint64(8)).tobytes()


@dataclass(frozen=True)
class Seen:
    """`vector` None: the access succeeded. `outside`: it went to a GPA where there is no RAM."""

    vector: int | None = None
    error_code: int | None = None
    cr2: int | None = None
    outside: int | None = None
    loaded: int | None = None


class EngineMmu:
    """A VM with one set of tables, 4- or 5-level; a context manager."""

    def __init__(self, engine, levels, image):
        self._vm = open_vm(engine, RAM)
        self.ram = self._vm.ram
        self.ram.write(DATA, _WORDS)
        self.ram.write(ROOT, image)
        put = self.ram.write_u64
        for page in range(_PT >> 12, ROOT >> 12):
            put(_PT + 8 * page, page << 12 | 0x67)
        put(_PD, _PT | 0x27)
        put(_PDPT, _PD | 0x27)
        if levels == 4:
            self._kernel, self._user = _KERNEL4, _USER4
            put(ROOT + 8 * 255, _PDPT | 0x23)
            put(ROOT + 8 * 254, _PDPT | 0x27)
        else:
            self._kernel, self._user = _KERNEL5, _USER5
            put(_PML4 + 8, _PDPT | 0x23)
            put(_PML4 + 16, _PDPT | 0x27)
            put(ROOT + 8, _PML4 | 0x27)
        self._write_tables()
        self.vcpu = self._vm.vcpu()

    def _write_tables(self):
        ram = self.ram
        code, data, ring3 = 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 3 << 45
        ram.write(_GDT, struct.pack("<5Q", 0, code, data, data | ring3, code | ring3))
        ram.write(_TSS + 4, struct.pack("<Q", self._kernel + _STACK))
        for vector, body in _HANDLER.items():
            at = self._kernel + _HANDLERS + 16 * vector
            gate = struct.pack("<HHBBHII", at & 0xFFFF, 8, 0, 0x8E, at >> 16 & 0xFFFF, at >> 32, 0)
            ram.write(_IDT + 16 * vector, gate)
            ram.write(_HANDLERS + 16 * vector, bytes.fromhex(body))
        for number, stub in enumerate(_STUBS.values()):
            ram.write(_CODE + 16 * number, bytes.fromhex(stub))

    def enter(self, *, cr0, cr3, cr4, efer, cpl, ac, rip=0, rbx=0):
        """Give the vCPU its registers; nothing runs yet."""
        kernel = self._kernel
        system = replace(
            SystemRegisters.long_mode(cr3),
            cr0=cr0,
            cr4=cr4,
            efer=efer,
            gdt=Table(kernel + _GDT, 0x27),
            idt=Table(kernel + _IDT, 0xFFF),
            tr=Segment(0x28, kernel + _TSS, 0x67, 0x8B),
        )
        if cpl == 3:
            flat = Segment(0x1B, 0, 0xFFFFFFFF, 0xC0F3)
            code = Segment(0x23, 0, 0xFFFFFFFF, 0xA0FB)
            system = replace(system, cs=code, ss=flat, ds=flat, es=flat)
        self.vcpu.set_system(system)
        half = self._user if cpl == 3 else kernel
        registers = Registers(rip=half + rip, rsp=half + _STACK, rbx=rbx, rsi=MARK)
        self.vcpu.set_registers(replace(registers, rflags=2 | ac << 18))

    def access(self, gva, access, **how):
        """Execute one access and return what the guest saw; `how` as in `enter`."""
        self.enter(**how, rip=_CODE + 16 * list(_STUBS).index(access), rbx=gva)
        self.vcpu.set_budget(Budget(seconds=5))
        left = self.vcpu.run()
        if isinstance(left, Mmio):
            return Seen(outside=left.gpa)
        assert isinstance(left, IoOut), left
        registers = self.vcpu.registers()
        if left.port == 6:
            return Seen(loaded=registers.rdi)
        return Seen(left.port, registers.rax, registers.rcx if left.port == 14 else None)

    def close(self):
        self._vm.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
