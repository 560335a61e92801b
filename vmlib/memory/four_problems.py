"""Seeded problems about the way down: as many as a reader wants, each the same everywhere."""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.given import names_bad_input
from vmlib.memory.paging import Access
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.sparse import SparseMemory
from vmlib.memory.tables import Map, build_tables
from vmlib.memory.walk import walk
from vmlib.problems import checked_seed, marked
from vmlib.units import MIB, PAGE_SIZE

_RAM = 16 * MIB
_TABLES = 15 * MIB
_HVA = 0x7F00_0000_0000


@dataclass(frozen=True)
class FourProblem:
    """What a guest maps, what the VMM has put where, and one access."""

    seed: int
    mapping: tuple[Map, ...]
    slots: tuple[Slot, ...]
    gva: int
    write: bool

    @property
    def question(self) -> str:
        """The problem in words."""
        maps = "; ".join(
            f"GVA {one.gva:#x}, {one.size // PAGE_SIZE} pages, to GPA {one.gpa:#x}"
            + ("" if one.writable else ", read-only")
            for one in self.mapping
        )
        slots = "; ".join(
            f"GPA {one.gpa:#x}..{one.end - 1:#x} at HVA {one.hva:#x}"
            + (", read-only" if one.readonly else "")
            for one in self.slots
        )
        return (
            f"Problem {self.seed}: the guest maps {maps}. The VMM's slots are {slots}. A user's "
            f"program {'stores to' if self.write else 'loads from'} GVA {self.gva:#x}. Say GPA "
            "and HVA; 'fault' where the guest's tables refuse, 'MMIO' where no memory answers."
        )

    @cached_property
    def truth(self) -> tuple[int | str, int | str]:
        """GPA and HVA, or a word in their place: walked, and looked up in the slots."""
        memory, slots = SparseMemory(_RAM), MemorySlots()
        tables = build_tables(memory, at=_TABLES, mapping=self.mapping)
        for one in self.slots:
            slots.set(one)
        access: Access = "write" if self.write else "read"
        regs = tables.registers
        gpa = walk(
            memory, self.gva, cr0=regs["cr0"], cr3=regs["cr3"], cr4=regs["cr4"], efer=regs["efer"],
            access=access, cpl=3,
        ).gpa  # fmt: skip
        if gpa is None:
            return "fault", "fault"
        hva = slots.hva(gpa, access)
        return gpa, "MMIO" if hva is None else hva

    @names_bad_input
    def mark(self, gpa: int | str | None = None, hva: int | str | None = None) -> str:
        """Mark an answer by walking; say what is right and give nothing away."""
        there, host = self.truth
        return marked(self.seed, ("GPA", gpa, there), ("HVA", hva, host))


def four_problem(seed: int) -> FourProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    chance = random.Random(seed)
    slots: list[Slot] = []
    at, hva = 0, _HVA + chance.randrange(1 << 20) * PAGE_SIZE
    for number in range(3):
        size = chance.randint(4, 32) * PAGE_SIZE
        slots.append(Slot(number, at, size, hva, readonly=number == 2 and chance.random() < 0.5))
        at += size + chance.choice([0, 16, 64]) * PAGE_SIZE
        hva -= chance.randint(64, 512) * PAGE_SIZE
    mapping = []
    for base in chance.sample([0x40_0000, 0x60_0000, 0x5555_5555_0000, 0x7FFF_FFFF_0000], 3):
        gpa = chance.randrange(0, at // PAGE_SIZE) * PAGE_SIZE
        pages = chance.randint(2, 6)
        mapping.append(Map(base, gpa, pages * PAGE_SIZE, writable=chance.random() < 0.7))
    one = chance.choice(mapping)
    page = chance.randrange(-1 if chance.random() < 0.2 else 0, one.size // PAGE_SIZE)
    gva = one.gva + page * PAGE_SIZE + chance.randrange(PAGE_SIZE)
    return FourProblem(seed, tuple(mapping), tuple(slots), gva, chance.random() < 0.5)
