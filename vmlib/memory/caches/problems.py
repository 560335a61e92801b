"""Seeded problems about the TLB: as many as a reader wants, each the same everywhere.

A guest with two processes and three pages runs behind EPT. It uses pages, switches processes and
is left now and then; its kernel or the host moves a page, and may forget to say so. How many uses
miss the TLB, and how many reach memory that the tables no longer lead to? The answer is not kept
anywhere: `CachedMmu` lives through the story, beside a walk that looks at the tables alone.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from vmlib.given import names_bad_input
from vmlib.memory.caches.mmu import CR4_PCIDE, KEEP
from vmlib.memory.caches.vmx_mmu import CachedMmu
from vmlib.memory.nested import walk_nested
from vmlib.memory.second_stage import Ept
from vmlib.memory.sparse import SparseMemory
from vmlib.memory.tables import Map, build_tables
from vmlib.problems import checked_seed, marked
from vmlib.units import MIB, PAGE_SIZE

_GVA = 0x40_0000
_DATA, _SPARE = 0x8_0000, 0xC_0000
_TABLES = {1: 0x1_0000, 2: 0x2_0000}


class Event(NamedTuple):
    """One thing that happens. `page` is 1 to 3, `process` 1 or 2, each 0 where it has no part."""

    kind: str
    page: int = 0
    process: int = 0


WORDS = {
    "use": "page {page} is read",
    "switch": "the guest loads CR3 for process {process}",
    "keep": "the guest loads CR3 for process {process}, with bit 63 set",
    "invlpg": "the guest executes INVLPG for page {page}",
    "move": "the guest's kernel changes the running process's PTE of page {page}",
    "move host": "the host is entered, changes the EPT entry behind the running process's page "
    "{page}, and enters the guest again",
    "move invept": "the host is entered, changes the EPT entry behind the running process's page "
    "{page}, executes INVEPT, and enters the guest again",
    "exit": "the guest is left and entered again",
}
"""What can happen, in words."""


@dataclass(frozen=True)
class TlbProblem:
    """A story: how many uses miss the TLB, and how many reach an old page?"""

    seed: int
    vpid: bool
    pcid: bool
    story: tuple[Event, ...]

    @property
    def question(self) -> str:
        """The problem in words."""
        lines = [event_words(event) for event in self.story]
        return (
            f"Problem {self.seed}: a guest runs behind EPT, {'with a' if self.vpid else 'without'} "
            f"VPID and with CR4.PCIDE = {int(self.pcid)}. Two processes have pages 1 to 3 at the "
            "same addresses, none of them global. The caches are empty, and process 1 runs. Then: "
            + "; ".join(lines)
            + ". How many of the reads miss the TLB, and how many reach memory that the tables no "
            "longer lead to?"
        )

    @cached_property
    def reads(self) -> tuple[tuple[bool, bool], ...]:
        """Of each read, in order: whether it missed the TLB, and whether it reached an old page."""
        return _live(self)

    @property
    def answer(self) -> tuple[int, int]:
        """Misses, and reads of an old page."""
        return sum(missed for missed, _ in self.reads), sum(old for _, old in self.reads)

    @names_bad_input
    def mark(self, misses: int | None = None, old: int | None = None) -> str:
        """Mark an answer by living through the story; give nothing away."""
        missed, went_wrong = self.answer
        return marked(self.seed, ("misses", misses, missed), ("old", old, went_wrong))


def event_words(event: Event) -> str:
    """Return a sentence about an event."""
    return WORDS[event.kind].format(page=event.page, process=event.process)


def tlb_problem(seed: int) -> TlbProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    chance = random.Random(seed)
    vpid, pcid = chance.random() < 0.6, chance.random() < 0.5
    pages = chance.sample((1, 2, 3), 2)
    story = [Event("use", pages[0])]
    running = 1
    for _ in range(chance.randint(3, 5)):
        kind = chance.choice(tuple(WORDS)[1:])
        if kind in ("switch", "keep"):
            running = 3 - running if chance.random() < 0.7 else running
            story.append(Event("keep" if kind == "keep" and pcid else "switch", 0, running))
        elif kind == "exit":
            story.append(Event(kind))
        else:
            story.append(Event(kind, chance.choice((pages[0], *pages))))
        story.append(Event("use", chance.choice((pages[0], *pages))))
    return TlbProblem(seed, vpid, pcid, tuple(story))


def _live(problem: TlbProblem) -> tuple[tuple[bool, bool], ...]:
    """Run the story through the caches and beside them."""
    memory = SparseMemory(16 * MIB)
    regs, tables = {}, {}
    for process, at in _TABLES.items():
        mapping = [Map(_gva(page), _gpa(process, page)) for page in (1, 2, 3)]
        tables[process] = build_tables(memory, at=at, mapping=mapping)
        regs[process] = tables[process].registers
        if problem.pcid:
            regs[process]["cr4"] |= CR4_PCIDE
            regs[process]["cr3"] |= process
    second_tables = build_tables(memory, at=2 * MIB, mapping=[Map(0, 0, MIB)], format="ept")
    second, vpid, running = Ept(second_tables.eptp), int(problem.vpid), 1
    mmu = CachedMmu(memory, shape=None, **regs[1])
    mmu.vm_entry(**regs[1], vpid=vpid, second=second)
    reads = []
    for kind, page, process in problem.story:
        if kind == "use":
            found = mmu.access(_gva(page))
            cr = regs[running]
            now = walk_nested(
                memory,
                _gva(page),
                second,
                cr0=cr["cr0"],
                cr3=cr["cr3"],
                cr4=cr["cr4"],
                efer=cr["efer"],
            )
            reads.append((not found.hit, found.hpa != now.hpa))
        elif kind in ("switch", "keep"):
            running = process
            mmu.mov_cr3(regs[process]["cr3"] | (KEEP if kind == "keep" else 0))
        elif kind == "invlpg":
            mmu.invlpg(_gva(page))
        elif kind == "move":
            at = tables[running].entry(memory, _gva(page), 1)
            assert at is not None
            memory.write_u64(at, memory.read_u64(at) ^ PAGE_SIZE)
        else:
            mmu.vm_exit()
            if kind != "exit":
                at = tables[running].entry(memory, _gva(page), 1)
                assert at is not None
                gpa = memory.read_u64(at) & -PAGE_SIZE
                behind = second_tables.entry(memory, gpa, 1)
                assert behind is not None
                memory.write_u64(behind, memory.read_u64(behind) ^ (_DATA ^ _SPARE))
            if kind == "move invept":
                mmu.invept(1, second.eptp)
            mmu.vm_entry(**regs[running], vpid=vpid, second=second)
    return tuple(reads)


def _gva(page: int) -> int:
    return _GVA + page * PAGE_SIZE


def _gpa(process: int, page: int) -> int:
    """Where a page of a process begins; its other place is the next page."""
    return _DATA + (process * 8 + page * 2) * PAGE_SIZE
