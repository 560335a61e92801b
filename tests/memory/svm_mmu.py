"""A guest behind nested tables on the emulator's AMD-V, made to do one access at a time.

Host RAM of 16 MiB: the guest's 4 MiB stand from BASE on, page by page in another order, and its
nested tables from NESTED on. Every free word of the guest's tells its host-physical address.
"""

from dataclasses import dataclass, replace

import numpy as np
from engine_mmu import MARK, word

from vmlib.cpu import Registers, Segment, SystemRegisters, open_svm
from vmlib.memory import Map, build_tables
from vmlib.memory.paging import A

HOST, BASE, NESTED, GUEST = 16 << 20, 8 << 20, 4 << 20, 4 << 20
ROOT = 0x10000
CODE = 0x9000
_STUBS = {  # access: code of a 64-bit guest, of a 32-bit one; ud2 ends it
    "read": ("488b3b 0f0b", "8b3b 0f0b"),
    "write": ("488933 0f0b", "8933 0f0b"),
    "fetch": ("ffe3", "ffe3"),
}
_LOW = 16
"""Guest pages below ROOT, which hold the code and its own tables; nobody spoils them."""


@dataclass(frozen=True)
class Left:
    """Why the guest left: #UD after its access, #PF, #GP or NPF, and what the VMCB says."""

    name: str
    info1: int = 0
    info2: int = 0
    loaded: int | None = None


class NestedMmu:
    """One guest and its nested tables; a context manager."""

    def __init__(self, rng, levels, image):
        self.levels, self._long = levels, levels >= 4
        self.host = open_svm(HOST)
        self.ram = self.host.ram
        self.vmcb = self.host.vmcb()
        self.order = [*range(_LOW), *rng.sample(range(_LOW, GUEST >> 12), (GUEST >> 12) - _LOW)]
        words = np.arange(BASE, BASE + GUEST, 8, dtype=np.uint64) << np.uint64(8)
        self.ram.write(BASE, (words | np.uint64(word(0))).tobytes())
        pages = [Map(n << 12, BASE + (to << 12)) for n, to in enumerate(self.order)]
        self.nested = build_tables(self.ram, at=NESTED, mapping=pages)
        self.vmcb["NP_ENABLE"], self.vmcb["N_CR3"] = 1, self.nested.root
        self.vmcb.intercept("#UD", "#PF", "#GP", "SHUTDOWN")
        for n in range(0, len(image), 4096):
            self.write(ROOT + n, image[n : n + 4096])
        for number, stubs in enumerate(_STUBS.values()):
            self.write(CODE + 16 * number, bytes.fromhex(stubs[0 if self._long else 1]))
        self._code = self._map_code()

    def hpa(self, gpa):
        """Where a byte of the guest's RAM was put when its nested tables were made."""
        return BASE + (self.order[gpa >> 12] << 12) + (gpa & 0xFFF)

    def forget_accessed(self):
        """Clear A in the nested tables above the leaves: the next walk has to set it again."""
        pages = range(0, GUEST, 2 << 20)
        for at in {self.nested.entry(self.ram, gpa, n) for gpa in pages for n in (4, 3, 2)}:
            self.ram.write_u64(at, self.ram.read_u64(at) & ~A)

    def write(self, gpa, data):
        """Put bytes of one page into the guest's RAM."""
        self.ram.write(self.hpa(gpa), data)

    def _put(self, gpa, value, size=8):
        self.write(gpa, value.to_bytes(size, "little"))

    def _map_code(self):
        """Map the code for both rings, A and D set; return its addresses by user=False, True."""
        put = self._put
        if self.levels == 2:
            put(0x1000 + 4 * (CODE >> 12), CODE | 0x67, 4)
            put(ROOT + 0xC00, 0x1023, 4)
            put(ROOT + 0x800, 0x1027, 4)
            return {False: 0xC000_0000, True: 0x8000_0000}
        put(0x1000 + 8 * (CODE >> 12), CODE | 0x67)
        put(0x2000, 0x1027)
        if self.levels == 3:
            put(0x3000, 0x1023)
            put(ROOT + 3 * 8, 0x3001)
            put(ROOT + 2 * 8, 0x2001)
            return {False: 0xC000_0000, True: 0x8000_0000}
        put(0x3000, 0x2027)
        put(ROOT + 8 * 255, 0x3023)
        put(ROOT + 8 * 254, 0x3027)
        return {False: 255 << 39, True: 254 << 39}

    def access(self, gva, access, *, cr0, cr3, cr4, efer, cpl, ac):
        """Let the guest do one access; return how it left."""
        flat = SystemRegisters.long_mode(cr3) if self._long else SystemRegisters.protected_mode()
        system = replace(flat, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer)
        if cpl == 3:
            data = Segment(0x1B, 0, 0xFFFFFFFF, 0xC0F3)
            code = Segment(0x23, 0, 0xFFFFFFFF, 0xA0FB if self._long else 0xC0FB)
            system = replace(system, cs=code, ss=data, ds=data, es=data)
        rip = self._code[cpl == 3] + CODE + 16 * list(_STUBS).index(access)
        self.vmcb.set_state(system, rip=rip, rsp=0)
        self.vmcb["CPL"] = cpl
        self.vmcb["RFLAGS"] = 2 | ac << 18
        self.host.registers = Registers(rbx=gva, rsi=MARK)
        ended = self.host.vmrun(self.vmcb.at)
        if ended.name == "EXCP6":
            return Left("EXCP6", loaded=self.host.registers.rdi)
        return Left(ended.name, ended.info1, ended.info2)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.host.close()
