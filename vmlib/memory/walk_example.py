"""The guest of the walk figure: a Linux process, its kernel, and a host that plays tricks on it.

Small tables, built with `build_tables`, for each choice the reader has: how the guest maps its
memory (`GUESTS`), how the host does (`HOSTS`), and what is done to an address (`ACCESSES`).
`PLACES` are addresses worth a visit. `record_example` walks them here, and `example_tables` gives
the same tables as plain data to a model that walks them in a page.

Guest-physical memory is 2 GiB; a device has its registers at 0xfebd0000, above it. Every address
of the guest leads to a whole number of GiB plus itself modulo 1 GiB, so that the pages of 4 KiB,
2 MiB and 1 GiB all lead to the same place. Where the host maps 4 KiB pages it has two of them in
swap, one of them a page table of the guest, and watches one for writes. The device's page is
mapped so that it can't be walked, as KVM does it to tell devices from missing memory: writable
and not readable in EPT, bit 51 in nested tables (Linux, arch/x86/kvm/mmu/spte.c).

Left out: the pages' contents, which no walk reads.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.memory.paging import CR4_SMAP, CR4_SMEP, Access
from vmlib.memory.second_stage import Ept, Npt, SecondStage
from vmlib.memory.sparse import SparseMemory
from vmlib.memory.tables import Map, Tables, build_tables
from vmlib.memory.walk_trace import Caches, Setting, record_walk, record_walk_nested
from vmlib.trace import Trace
from vmlib.units import GIB, MIB, PAGE_SIZE

MAXPHYADDR = 48
GUEST_RAM = 2 * GIB
DEVICE = 0xFEBD_0000
START = 0x5555_5555_4123
"""Where the figure opens: the first page of a program, as Linux loads it."""

GUESTS = {
    "4K": "pages of 4 KiB",
    "2M": "pages of 2 MiB",
    "1G": "pages of 1 GiB",
    "five": "4 KiB, five levels",
    "off": "paging off",
}
HOSTS = {
    "ept": "EPT, 4 KiB",
    "ept-2M": "EPT, 2 MiB",
    "ept-1G": "EPT, 1 GiB",
    "ept-five": "EPT, five levels",
    "npt": "NPT (AMD), 4 KiB",
    "none": "no second stage",
}
ACCESSES: dict[str, tuple[str, Access, int, Caches]] = {
    "read": ("a program reads", "read", 3, "cold"),
    "write": ("a program writes", "write", 3, "cold"),
    "fetch": ("a program jumps there", "fetch", 3, "cold"),
    "kernel": ("the kernel reads", "read", 0, "cold"),
    "next": ("reads, after a read next door", "read", 3, "next door"),
    "again": ("reads the same again", "read", 3, "again"),
}
"""Label, access, privilege level, and what an earlier access has left in the caches."""
PLACES = {
    START: "program",
    0x5555_5575_8010: "data",
    0x7FFF_FFFF_D008: "stack",
    0x7FFF_FFFF_C000: "watched page",
    0x7F3C_2A40_0040: "swapped page",
    0x7F21_1000_0000: "swapped table",
    0x7FEE_FEBD_0000: "device",
    0x5555_5555_7000: "broken entry",
    0xFFFF_FFFF_8100_0000: "kernel",
    0xFFFF_F6FB_7DBE_DAA8: "the tables",
}


class _Region(NamedTuple):
    gva: int
    gib: int
    """The page is at this many GiB plus the address modulo 1 GiB."""
    pages: int
    writable: bool
    user: bool = True
    nx: bool = True


_REGIONS = (
    _Region(0x5555_5555_4000, 1, 4, False, nx=False),
    _Region(0x5555_5575_8000, 1, 2, True),
    _Region(0x7F21_1000_0000, 1, 1, False),
    _Region(0x7F3C_2A40_0000, 1, 2, True),
    _Region(0x7FEE_FEBD_0000, 3, 1, True),
    _Region(0x7FFF_FFFF_C000, 1, 3, True),
    _Region(0xFFFF_FFFF_8100_0000, 0, 2, False, False, False),
)
_WATCHED, _SWAPPED, _BROKEN, _TABLE_AWAY = (
    0x7FFF_FFFF_C000, 0x7F3C_2A40_0000, 0x5555_5555_7000, 0x7F21_1000_0000,
)  # fmt: skip
_SIZES = {"4K": PAGE_SIZE, "five": PAGE_SIZE, "2M": 2 * MIB, "1G": GIB}
_ROOTS = {"4K": 0x0200_0000, "2M": 0x0204_0000, "1G": 0x0208_0000, "five": 0x020C_0000}
_SELF = 0x1ED
"""The entry of the root table that leads back to it, as some kernels have one to see their tables
with: 0xffff_f6fb_7dbe_d000 is the root table, walked four times through itself."""
_HOST_TABLES = 0x10_0000
_HOST_FRAMES = 5 * GIB


class Example(NamedTuple):
    """One host: its memory, its second stage (or None), and the guests that live there."""

    memory: SparseMemory
    second: SecondStage | None
    registers: dict[str, dict[str, int]]


@names_bad_input
def record_example(
    gva: int = START, guest: str = "4K", host: str = "ept", access: str = "read"
) -> Trace:
    """Return the trace of one access; `guest`, `host`, `access` are keys of the tables above."""
    for name, value, known in (
        ("guest", guest, list(GUESTS)),
        ("host", host, list(HOSTS)),
        ("access", access, list(ACCESSES)),
    ):
        if value not in known:
            raise BadInput(name, f"is one of {', '.join(known)}, not {value!r}")
    at = _HOSTS(host)
    _, kind, cpl, caches = ACCESSES[access]
    how: Setting = {"access": kind, "cpl": cpl, "maxphyaddr": MAXPHYADDR}
    how.update(at.registers[guest])  # type: ignore[typeddict-item]
    if at.second is None:
        return record_walk(at.memory, gva, caches=caches, **how)
    return record_walk_nested(at.memory, gva, at.second, caches=caches, **how)


def example_controls() -> dict[str, Any]:
    """Return what a player needs to let the reader choose: its model, inputs and tables."""
    return {
        "model": "walk",
        "given": example_tables(),
        "inputs": [
            {
                "key": "gva",
                "label": "address",
                "value": f"{START:#x}",
                "places": [[label, f"{gva:#x}"] for gva, label in PLACES.items()],
            },
            {"key": "guest", "label": "the guest maps", "value": "4K", **_options(GUESTS)},
            {"key": "host", "label": "the host maps", "value": "ept", **_options(HOSTS)},
            {
                "key": "access",
                "label": "what happens",
                "value": "read",
                **_options({key: label for key, (label, *_) in ACCESSES.items()}),
            },
        ],
    }


def _options(labels: dict[str, str]) -> dict[str, Any]:
    return {"kind": "select", "options": [[key, label] for key, label in labels.items()]}


def example_tables() -> dict[str, Any]:
    """Return all tables as plain data for a page: words as hex, address and value in turns."""
    hosts = []
    for key in HOSTS:
        at = _HOSTS(key)
        second: dict[str, Any] | None = None
        if isinstance(at.second, Ept):
            second = {"kind": "EPT", "pointer": f"{at.second.eptp:x}", "levels": at.second.levels}
        elif at.second:
            second = {"kind": "NPT", "pointer": f"{at.second.n_cr3:x}", "levels": at.second.levels}
        words = [f"{each:x}" for word in at.memory.words() for each in word]
        hosts.append([key, {"second": second, "size": f"{at.memory.size:x}", "words": words}])
    registers = [
        [key, {name: f"{value:x}" for name, value in regs.items()}]
        for key, regs in _HOSTS("ept").registers.items()
    ]
    accesses = [[key, list(rest)] for key, (_, *rest) in ACCESSES.items()]
    return {
        "hosts": hosts,
        "guests": registers,
        "accesses": accesses,
        "maxphyaddr": MAXPHYADDR,
    }


@names_bad_input
def example_host(host: str = "ept") -> Example:
    """Return a host, a key of `HOSTS`, and its guests; new ones each time, to do with as you like.

    `registers` has those of each guest, a key of `GUESTS`: cr0, cr3, cr4 and efer.
    """
    if host not in HOSTS:
        raise BadInput("host", f"is one of {', '.join(HOSTS)}, not {host!r}")
    ram = SparseMemory(GUEST_RAM)
    guests = {key: _guest(ram, key) for key in _SIZES}
    registers = {key: _registers(tables) for key, tables in guests.items()}
    registers["off"] = {"cr0": 0x11, "cr3": 0, "cr4": 0, "efer": 0}
    if host == "none":
        return Example(ram, None, registers)
    away = [guests[key].entry(ram, _TABLE_AWAY) & -PAGE_SIZE for key in ("4K", "five")]
    needed = [page for tables in guests.values() for page in tables.pages]
    needed += [_gpa(one) + n * PAGE_SIZE for one in _REGIONS for n in range(one.pages)]
    memory = SparseMemory(16 * GIB)
    second, frame = _second(memory, host, sorted(set(needed)), set(away))
    for at, value in ram.words():
        memory.write_u64(frame(at), value)
    return Example(memory, second, registers)


_HOSTS = cache(example_host)
"""The same, made once, for those who only read."""


def _gpa(one: _Region) -> int:
    return one.gib * GIB + one.gva % GIB


def _guest(ram: SparseMemory, key: str) -> Tables:
    """Build one set of the guest's tables: all regions, in pages of one size."""
    size, maps = _SIZES[key], dict[int, Map]()
    for one in _REGIONS:
        for n in range(one.pages if size == PAGE_SIZE else 1):
            gva = (one.gva + n * PAGE_SIZE) & -size
            gpa = (_gpa(one) + n * PAGE_SIZE) & -size
            if gva not in maps or one.writable:
                maps[gva] = Map(gva, gpa, size, one.writable, one.user, one.nx, page=size)
            if size == GIB:  # program and data share a page, which must let both do their work
                maps[gva] = Map(gva, gpa, size, user=one.user, page=size)
    levels = 5 if key == "five" else 4
    tables = build_tables(ram, at=_ROOTS[key], mapping=list(maps.values()), levels=levels)
    ram.write_u64(tables.root + 8 * _SELF, tables.root | 1 << 63 | 0x3)
    if size == PAGE_SIZE:
        at = tables.entry(ram, _BROKEN)
        ram.write_u64(at, ram.read_u64(at) | 1 << 51)
    return tables


def _registers(tables: Tables) -> dict[str, int]:
    regs = dict(tables.registers)
    regs["cr4"] |= CR4_SMEP | CR4_SMAP
    return regs


def _second(
    memory: SparseMemory, host: str, needed: list[int], away: set[int]
) -> tuple[SecondStage, Callable[[int], int]]:
    """Build one host's tables; return them, and where a guest-physical address is."""
    size = {"ept-2M": 2 * MIB, "ept-1G": GIB}.get(host, PAGE_SIZE)
    chunks = sorted({page & -size for page in needed if page < GUEST_RAM})
    frames = {chunk: _frame(i, size) for i, chunk in enumerate(chunks)}
    swapped = next(_gpa(one) for one in _REGIONS if one.gva == _SWAPPED)
    watched = next(_gpa(one) for one in _REGIONS if one.gva == _WATCHED)
    small = size == PAGE_SIZE
    maps = [
        Map(chunk, hpa, size, page=size, writable=not (small and chunk == watched))
        for chunk, hpa in frames.items()
        if not (small and (chunk == swapped or chunk in away))
    ]
    maps.append(Map(DEVICE, 0))
    format = "x86" if host == "npt" else "ept"
    levels = 5 if host == "ept-five" else 4
    tables = build_tables(memory, at=_HOST_TABLES, mapping=maps, levels=levels, format=format)  # type: ignore[arg-type]
    device = tables.entry(memory, DEVICE)
    memory.write_u64(device, 1 << 51 | 0x1 if host == "npt" else 0x6)
    second: SecondStage = (
        Npt(tables.root, levels, MAXPHYADDR) if host == "npt" else Ept(tables.eptp, MAXPHYADDR)
    )
    return second, lambda gpa: frames[gpa & -size] | gpa & size - 1


def _frame(i: int, size: int) -> int:
    """Return the host's i-th page of a size: scattered, as a host's free pages are."""
    if size == PAGE_SIZE:
        return _HOST_FRAMES + i * 0x1D35 % 0x4_0000 * PAGE_SIZE
    if size == 2 * MIB:
        return _HOST_FRAMES + i * 37 % 512 * size
    return _HOST_FRAMES + (i + 1) % 2 * size
