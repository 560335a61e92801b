"""What a TLB miss costs, measured on the host that runs this.

A load that waits for the one before it shows the whole latency of memory: each loaded word is the
address of the next, in random order, so nothing can be fetched ahead. One word is used in each
page, so that few cache lines are needed and many translations: the same words in huge pages need
512 times fewer of them. Where the two curves part, the difference is the price of TLB misses:
on bare metal of one walk each, in a virtual machine with nested paging of a 2-D one.

The loop is the machine code below, put into executable memory at run time; numpy and Python are
too slow to show nanoseconds. It follows the System V calling convention for x86-64 (psABI 3.2.3).

Left out: which level of cache or TLB missed (that takes the processor's event counters), and
the placement of memory on several NUMA nodes.
"""

import ctypes
import mmap
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from vmlib.errors import BadInput, HostUnavailable
from vmlib.given import names_bad_input
from vmlib.numbers import whole
from vmlib.units import GIB, KIB, MIB, PAGE_SIZE, format_size, parse_size

LISTING = (
    ("48 8b 3f", "next: mov rdi, [rdi]"),
    ("48 ff ce", "dec rsi"),
    ("75 f8", "jnz next"),
    ("48 89 f8", "mov rax, rdi"),
    ("c3", "ret"),
)
"""The routine: its bytes, and what an assembler calls them. RDI is where to begin, RSI how many
loads to make; RAX is where they end."""
LINE = 64
HUGE = 2 * MIB
DEFAULT_SIZES = tuple(16 * KIB << n for n in range(17))
"""16 KiB to 1 GiB."""
_LOADS = 1 << 17
_MAPS = "/proc/self/smaps"

Chase = Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """Loads that hit one word in each 4 KiB of `size` bytes."""

    size: int
    huge: bool
    """Whether huge pages were asked for."""
    huge_share: float
    """How much of the memory is in huge pages, 0 to 1; NaN where the host does not say."""
    nanoseconds: float
    """A load, median of the repeats."""
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Points in order of size, first with 4 KiB pages and then with huge ones; and what to know."""

    points: tuple[LatencyPoint, ...]
    notes: tuple[str, ...]

    def of(self, huge: bool) -> tuple[LatencyPoint, ...]:
        """Return the points of one kind of page."""
        return tuple(point for point in self.points if point.huge == huge)


@names_bad_input
def latency_curve(
    sizes: Sequence[int | str] = DEFAULT_SIZES,
    *,
    repeats: int = 5,
    loads: int = _LOADS,
    seed: int = 1,
) -> LatencyCurve:
    """Measure. `sizes` are working sets in bytes, multiples of 4 KiB; each takes `repeats` runs
    (1 to 1,000) of `loads` loads (1 to 2^30).

    Sizes beyond half of the memory that the host has free are left out, and a note says so.
    Raises `HostUnavailable` where this machine cannot run the loop.
    """
    wanted = sorted({parse_size(size, "sizes") for size in sizes})
    if not wanted or any(size % PAGE_SIZE for size in wanted):
        raise BadInput("sizes", f"are multiples of {PAGE_SIZE} bytes, at least one")
    whole(repeats, "repeats", 1, 1000)
    whole(loads, "loads", 1, 1 << 30)  # to the loop it is a number of 64 bits, cut without a word
    whole(seed, "seed", 0)
    chase = chase_routine()
    free = _available()
    fitting = [size for size in wanted if size <= free // 2]
    notes = []
    if len(fitting) < len(wanted):
        least = format_size(wanted[len(fitting)])
        notes.append(f"from {least} on left out: the host has {free // MIB} MiB free")
    points: list[LatencyPoint] = []
    for huge in (False, True):
        if fitting:
            points += _measure(chase, fitting, huge, repeats, loads, seed)
    got = [point.huge_share for point in points if point.huge and point.size >= HUGE]
    if got and not max(got) > 0.5:
        notes.append("the host gives no huge pages: both curves are of 4 KiB pages")
    return LatencyCurve(tuple(points), tuple(notes))


def chase_routine() -> Chase:
    """Return the routine as a function of (first address, loads) that returns the last address."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise HostUnavailable(
            f"the loop is x86-64 code for Linux, and this is {platform.machine()} {sys.platform}",
            "Look at the curve that is stored in the lab on the 2-D walk",
        )
    code = bytes.fromhex("".join(digits for digits, _ in LISTING))
    page = mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    reach = ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE)
    if libc.mprotect(*reach, mmap.PROT_READ | mmap.PROT_EXEC):
        raise HostUnavailable(
            f"the host lets no program make code: mprotect, errno {ctypes.get_errno()}",
            "Allow executable memory to this process (SELinux: execmem)",
        )
    routine = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(address)

    def chase(first: int, loads: int) -> int:
        assert not page.closed  # the code lives as long as the function
        return int(routine(first, loads))

    return chase


def lay_out(words: npt.NDArray[np.uint64], base: int, pages: int, seed: int) -> int:
    """Write one random cycle through `pages` pages into `words`, which stand at address `base`.

    A page has one word of it, in a line of its own choice, or all would fall into the same sets
    of the caches. Return the address of the first.
    """
    rng = np.random.default_rng(seed)
    offset = np.arange(pages) * PAGE_SIZE + rng.integers(0, PAGE_SIZE // LINE, pages) * LINE
    offset = offset[rng.permutation(pages)]
    words[offset // 8] = (np.roll(offset, -1) + base).astype(np.uint64)
    return base + int(offset[0])


def _measure(
    chase: Chase, sizes: Sequence[int], huge: bool, repeats: int, loads: int, seed: int
) -> list[LatencyPoint]:
    room = mmap.mmap(-1, sizes[-1] + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    base = -(-start // HUGE) * HUGE
    words = np.frombuffer(room, np.uint64, sizes[-1] // 8, base - start)
    points = []
    for size in sizes:
        first = lay_out(words, base, size // PAGE_SIZE, seed)
        chase(first, max(loads, size // PAGE_SIZE))  # warm
        spent = []
        for _ in range(repeats):
            began = time.perf_counter_ns()
            chase(first, loads)
            spent.append((time.perf_counter_ns() - began) / loads)
        share = min(1.0, _huge_bytes(base) / size)
        points.append(LatencyPoint(size, huge, share, median(spent), min(spent), max(spent)))
    return points


def _huge_bytes(address: int) -> float:
    """Return how many bytes of the mapping around `address` are in huge pages."""
    inside = False
    try:
        with open(_MAPS) as maps:
            for line in maps:
                if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                    inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
                elif inside and line.startswith("AnonHugePages:"):
                    return int(line.split()[1]) * KIB
    except OSError:
        pass
    return float("nan")


def _available() -> int:
    """Return the bytes of memory that the host could give now; 1 GiB where it does not say."""
    try:
        with open("/proc/meminfo") as info:
            line = next(line for line in info if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return GIB
    return int(line.split()[1]) * KIB
