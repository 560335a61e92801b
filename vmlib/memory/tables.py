"""Page tables made from a readable description: which addresses lead where, with which rights.

`build_tables` writes real tables into RAM, in the format of x86 paging with 2 to 5 levels or in
that of Intel's EPT, taking zeroed pages from `at` upwards as it needs them. Every table entry
grants everything, so that the leaf alone decides, as operating systems mostly do it.

Intel SDM vol. 3A, 4.3 to 4.5; EPT: vol. 3C, 29.3.2. Left out: PSE-36, and rights in upper levels
(write them into the entry afterwards: `Tables.entry` says where it is).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Literal, Protocol

from vmlib.errors import BadInput
from vmlib.given import check_fields, check_one, names_bad_input
from vmlib.memory.paging import (
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    KEY_SHIFT,
    NX,
    PS,
    RW,
    US,
    G,
    P,
    PagingMode,
    paging_mode,
    word,
)
from vmlib.numbers import whole
from vmlib.units import GIB, MIB, PAGE_SIZE, format_size

_CR0 = CR0_PG | CR0_WP | 0x11  # PE and ET
_EPT_WRITE_BACK = 6 << 3
_EPT_ALL = 7
_LEVEL_OF = {4 * 1024: 1, 2 * MIB: 2, 4 * MIB: 2, GIB: 3}

Format = Literal["x86", "ept"]


class Ram(Protocol):
    """Where tables are written: `GuestRam` is one."""

    size: int

    def read_u64(self, gpa: int, /) -> int:
        """Return the 8 bytes at `gpa`."""

    def write(self, gpa: int, data: bytes, /) -> None:
        """Store bytes."""


@dataclass(frozen=True, slots=True)
class Map:
    """`size` bytes from `gva` on lead to those from `gpa` on, in pages of `page` bytes.

    In a second stage read `gva` as guest-physical and `gpa` as host-physical; there `user`,
    `shared` and `key` have no meaning.
    """

    gva: int
    gpa: int
    size: int = PAGE_SIZE
    writable: bool = True
    user: bool = True
    nx: bool = False
    shared: bool = False
    """The bit G: the translation survives a load of CR3."""
    key: int = 0
    page: int = PAGE_SIZE

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables that stand in RAM."""

    root: int
    mode: PagingMode
    format: Format
    pages: tuple[int, ...]
    """Addresses of all pages that hold tables, the root first."""
    registers: dict[str, int]
    """cr0, cr3, cr4 and efer with which these tables are walked; empty for EPT."""

    @property
    def eptp(self) -> int:
        """The EPT pointer: root, walk length, write-back; A and D are off (SDM 25.6.11)."""
        return self.root | len(self.mode.levels) - 1 << 3 | 6

    @names_bad_input
    def entry(self, ram: Ram, gva: int, level: int = 1) -> int:
        """Return the address of the entry that `gva` passes at `level`; `BadInput` if none."""
        word(gva, "gva")
        whole(level, "level")
        table = self.root
        for one in self.mode.levels:
            at = table + (gva >> one.offset_shift & one.offset_mask)
            if one.number == level:
                return at
            entry = _read(ram, at, one.entry_bytes)
            if not entry or entry & PS:
                break
            table = entry & self.mode.address
        raise BadInput("level", f"{gva:#x} passes no entry of level {level}")


@names_bad_input
def build_tables(
    ram: Ram, *, at: int, mapping: Iterable[Map], levels: int = 4, format: Format = "x86"
) -> Tables:
    """Write tables for `mapping` into `ram` from page `at` on, and return where they are.

    `levels` is 2 (32-bit), 3 (PAE), 4 or 5; for EPT 4 or 5. The pages must be free: they are
    zeroed. Raises `BadInput` naming what does not fit: an address that is not aligned to its
    page, a page size that the mode has not, two maps of one address, RAM that is too small.
    """
    check_one(ram, Ram, "ram")
    check_one(format, Format, "format")
    if whole(at, "at", 0) % PAGE_SIZE:
        raise BadInput("at", f"is the address of a page, not {at:#x}")
    registers = _registers(levels)
    if format == "ept" and levels < 4:
        raise BadInput("levels", f"of EPT are 4 or 5, not {levels}")
    registers["cr3"] = at
    mode = paging_mode(registers["cr0"], registers["cr4"], registers["efer"])
    assert mode is not None  # _registers switches paging on
    pages: list[int] = []

    def allocate() -> int:
        page = at + len(pages) * PAGE_SIZE
        if page + PAGE_SIZE > ram.size:
            raise BadInput("at", f"RAM ends at {ram.size:#x}, and the tables need more")
        ram.write(page, bytes(PAGE_SIZE))
        pages.append(page)
        return page

    allocate()
    for one in mapping:
        _check(one, mode)
        leaf = _leaf(one, mode, format)
        for offset in range(0, one.size, one.page):
            table = at
            for level in mode.levels:
                where = table + (one.gva + offset >> level.offset_shift & level.offset_mask)
                entry = _read(ram, where, level.entry_bytes)
                if level.number == _LEVEL_OF[one.page]:
                    if entry:
                        raise BadInput("mapping", f"maps {one.gva + offset:#x} twice")
                    _write(ram, where, one.gpa + offset | leaf, level.entry_bytes)
                    break
                if not entry:
                    entry = allocate() | (
                        _EPT_ALL if format == "ept" else P | (0 if level.grants else RW | US)
                    )
                    _write(ram, where, entry, level.entry_bytes)
                elif entry & PS:
                    raise BadInput("mapping", f"maps {one.gva + offset:#x} twice")
                table = entry & mode.address
    return Tables(at, mode, format, tuple(pages), {} if format == "ept" else registers)


def _registers(levels: int) -> dict[str, int]:
    """Return the control registers, CR3 aside, that choose so many levels."""
    if levels not in (2, 3, 4, 5):
        raise BadInput("levels", f"are 2, 3, 4 or 5, not {levels}")
    cr4 = CR4_PSE if levels == 2 else CR4_PAE | (CR4_LA57 if levels == 5 else 0)
    efer = (EFER_NXE if levels > 2 else 0) | (EFER_LME | EFER_LMA if levels > 3 else 0)
    return {"cr0": _CR0, "cr3": 0, "cr4": cr4, "efer": efer}


def _check(one: Map, mode: PagingMode) -> None:
    wide = mode.entry_bytes == 8
    sizes = [PAGE_SIZE, 2 * MIB if wide else 4 * MIB, *([GIB] if mode.sign_bit else [])]
    if one.page not in sizes:
        raise BadInput("page", f"has {', '.join(map(format_size, sizes))} here, not {one.page}")
    for name in ("gva", "gpa", "size"):
        value = getattr(one, name)
        if value < 0 or value % one.page:
            raise BadInput(name, f"is a multiple of the page's size, not {value:#x}")
    if not one.size:
        raise BadInput("size", "is at least one page")
    if not 0 <= one.key < 16:
        raise BadInput("key", f"is 0 to 15, not {one.key}")
    top = 64 if mode.sign_bit else 32
    if one.gva + one.size > 1 << top:
        raise BadInput("gva", f"{one.gva:#x}+{one.size:#x} is beyond {top} bits")
    if one.gpa + one.size > (1 << 52 if wide else 1 << 32):
        raise BadInput("gpa", f"{one.gpa:#x}+{one.size:#x} is beyond what an entry can hold")
    if one.nx and not wide:
        raise BadInput("nx", "does not exist in 2-level paging")


def _leaf(one: Map, mode: PagingMode, format: Format) -> int:
    """Return the flags of a map's leaves."""
    large = PS if one.page > PAGE_SIZE else 0
    if format == "ept":
        return 1 | one.writable << 1 | (not one.nx) << 2 | _EPT_WRITE_BACK | large
    bits = P | (RW if one.writable else 0) | (US if one.user else 0) | large
    bits |= (NX if one.nx else 0) | (G if one.shared else 0)
    return bits | (one.key << KEY_SHIFT if mode.sign_bit else 0)


def _read(ram: Ram, at: int, size: int) -> int:
    return ram.read_u64(at & ~7) >> (at & 4 if size == 4 else 0) * 8 & (1 << 8 * size) - 1


def _write(ram: Ram, at: int, value: int, size: int) -> None:
    ram.write(at, index(value).to_bytes(size, "little"))
