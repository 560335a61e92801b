"""Page walks: one by one against by the array, one dimension against two, and a sparse 64 GiB.

All guests have 4-level tables with 4 KiB pages in four places of the address space; accesses are a
user's writes to random addresses, with rights checked. A ratio is that of two neighbouring runs.
Times are of the processor, not of the clock on the wall: a busy machine spoils them less.
"""

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import Figure
from vmlib.memory import (
    Ept,
    GuestRam,
    Map,
    Npt,
    build_tables,
    translate,
    walk,
    walk_many,
    walk_nested_many,
)
from vmlib.units import GIB, MIB, PAGE_SIZE

PAIRS = 9
BASE, SIZE = 128 * MIB, 64 * MIB  # where the guest's RAM stands in the host's, and how much
PLACES = (0, 0x5500_0000_0000, 0x7F00_0000_0000, 0xFFFF_8880_0000_0000)
EACH = 8 * MIB
FEW, MANY = 20_000, 1 << 18


class Inside:
    """The guest's memory in the host's, as the guest sees it."""

    size = SIZE

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self.u64 = ram.u64[BASE // 8 : (BASE + SIZE) // 8]

    def read_u64(self, gpa: int) -> int:
        return self._ram.read_u64(BASE + gpa)

    def write(self, gpa: int, data: bytes) -> None:
        self._ram.write(BASE + gpa, data)


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def run() -> list[Figure]:
    """Measure pairs."""
    host = GuestRam("256M")
    guest = Inside(host)
    mapping = [Map(gva, 16 * MIB + n * EACH, EACH) for n, gva in enumerate(PLACES)]
    regs = build_tables(guest, at=MIB, mapping=mapping).registers
    behind = [Map(0, BASE, SIZE)]
    ept = Ept(build_tables(host, at=MIB, mapping=behind, format="ept").eptp)
    npt = Npt(build_tables(host, at=8 * MIB, mapping=behind).root)

    # The scalar walker has a `GuestRam` of its own, as a guest has that is not nested.
    alone = GuestRam("64M")
    alone.view[:] = host.view[BASE : BASE + SIZE]
    rng = np.random.default_rng(1)
    gvas = np.array(PLACES, np.uint64)[rng.integers(0, 4, MANY)]
    gvas += rng.integers(0, EACH, MANY).astype(np.uint64)
    few = [int(gva) for gva in gvas[:FEW]]
    cr0, cr3, cr4, efer = (regs[name] for name in ("cr0", "cr3", "cr4", "efer"))

    def each(function: Callable[..., Any]) -> float:
        began = time.process_time()
        for gva in few:
            function(alone, gva, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer, access="write", cpl=3)
        return (time.process_time() - began) / FEW

    def array() -> float:
        return seconds(lambda: walk_many(alone, gvas, **regs, access="write", cpl=3)) / MANY

    def nested(second: Ept | Npt) -> float:
        how = {**regs, "access": "write", "cpl": 3}
        return seconds(lambda: walk_nested_many(host, gvas, second, **how)) / MANY

    one = [(each(walk), each(translate), array()) for _ in range(PAIRS)]
    two = [(array(), nested(ept), nested(npt)) for _ in range(PAIRS)]
    sparse = [float(word) for word in _sparse().split()]
    return [
        Figure("walk, with steps", tuple(1e-6 / a for a, _, _ in one), "M/s", "must 0.45"),
        Figure("translate", tuple(1e-6 / b for _, b, _ in one), "M/s", "must 0.45"),
        Figure("walk_many", tuple(1e-6 / c for _, _, c in one), "M/s", ""),
        Figure("walk_many, of translate", tuple(b / c for _, b, c in one), "", "must 40, aim 60"),
        Figure(
            "walk_nested_many, of walk_many: EPT",
            tuple(a / b for a, b, _ in two),
            "",
            "24 references: must 1/10, aim 1/6",
        ),
        Figure(
            "walk_nested_many, of walk_many: NPT",
            tuple(a / c for a, _, c in two),
            "",
            "must 1/10, aim 1/6",
        ),
        Figure("walk_nested_many: EPT", tuple(1e-6 / b for _, b, _ in two), "M/s", ""),
        Figure("64 GiB, 16 M mappings: peak RSS, of its tables", (sparse[0],), "", "at most 1.2"),
        Figure("the same, tables and traced peak", (sparse[1],), "", "at most 1.2"),
        Figure("64 GiB, 16 M mappings, random pages", (sparse[2],), "M/s", ""),
    ]


def _sparse() -> str:
    """Return what a fresh process says, whose memory is nothing but this."""
    command = [sys.executable, "-c", "from benchmarks.walks import sparse; sparse()"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _held(what: str) -> int:
    """Return a figure of this process's memory in bytes: VmRSS, VmHWM (its peak) or VmPTE."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(what))
    return int(line.split()[1]) * 1024


def sparse() -> None:
    """Build tables that map 64 GiB page by page, walk each page in random order, and print.

    The peak of resident memory over what the process had before, page tables of the host
    included, by the size of the guest's tables; the tables and the peak of what Python and numpy
    have allocated, by the same, in a second round; and walks a second.
    """
    pages = 64 * GIB // PAGE_SIZE
    before = _held("VmRSS") + _held("VmPTE")
    ram = GuestRam("64G")
    words = ram.u64
    at, levels, counts = GIB, [], (pages, pages // 512, pages // 512**2, 1)
    for count in counts:
        levels.append(at)
        at += -(-count * 8 // PAGE_SIZE) * PAGE_SIZE
    step = 1 << 16
    for table, count, below in zip(levels, counts, (0, *levels), strict=False):
        for first in range(0, count, step):
            entries = np.arange(first, min(first + step, count), dtype=np.uint64)
            # A second half for each page number: a mapping that is not the identity.
            leads = entries ^ np.uint64(0x5A5A5) if count == pages else entries
            start = table // 8 + first
            words[start : start + len(entries)] = leads * PAGE_SIZE + below | np.uint64(7)
    tables = at - GIB
    regs = {"cr0": 0x8001_0011, "cr3": levels[-1], "cr4": 0x20, "efer": 0xD00}

    def walk_all(rng: np.random.Generator) -> float:
        spent = 0.0
        for first in range(0, pages, step):
            numbers = rng.permutation(step).astype(np.uint64) * np.uint64(pages // step)
            numbers += np.uint64(first // step)
            numbers *= np.uint64(PAGE_SIZE)
            began = time.process_time()
            found = walk_many(ram, numbers, **regs, access="write", cpl=3)
            spent += time.process_time() - began
            if not (found.gpa ^ numbers == 0x5A5A5 * PAGE_SIZE).all():
                raise AssertionError("a walk led elsewhere")
        return spent

    spent = walk_all(np.random.default_rng(2))
    held = _held("VmHWM") + _held("VmPTE") - before
    tracemalloc.start()
    walk_all(np.random.default_rng(3))
    traced = tracemalloc.get_traced_memory()[1]
    print(held / tables, (tables + traced) / tables, pages / spent / 1e6)
