"""The grid in which a walk is drawn: its cells, their entries bit by bit, the addresses by field.

A column for each of the guest's levels and one for the data; a row for each level of the second
stage and one for the guest's own entry. A one-dimensional walk is the last row alone. What is
returned is ready for JSON: 64-bit values are strings.

The bits of an entry: Intel SDM vol. 3A, table 4-15 and after; of EPT, vol. 3C, 29.3.2.
"""

from dataclasses import dataclass
from typing import Any

from vmlib.memory.paging import ADDRESS, NAMES, PS, PagingMode
from vmlib.memory.second_stage import Ept, SecondStage

FIELDS = {5: "PML5", 4: "PML4", 3: "PDPT", 2: "PD", 1: "PT"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One reference and its place in the grid."""

    column: int
    row: int
    nested: bool
    level: int
    index: int
    gpa: int
    """Of the entry, or of what is being translated."""
    at: int
    """The address that is read: host-physical in a 2-D walk."""
    entry: int

    @property
    def name(self) -> str:
        """What the manual calls the entry."""
        return NAMES[self.level]

    @property
    def place(self) -> list[int]:
        """Column and row."""
        return [self.column, self.row]


class Grid:
    """The shape of a walk: the guest's levels by those of the second stage, if there is one."""

    def __init__(self, gva: int, mode: PagingMode | None, second: SecondStage | None) -> None:
        self.gva, self.mode, self.second = gva, mode, second
        self.guest = mode.levels if mode else ()
        self.nested = second.levels if second else 0
        self.stage = "" if not second else "EPT" if isinstance(second, Ept) else "nested"
        self.columns = [level.name for level in self.guest] + (["data"] if second else [])
        self.rows = [NAMES[level] for level in range(self.nested, 0, -1)]
        self.rows += ["entry"] if self.guest else []
        self.possible = (len(self.guest) + 1) * (self.nested + 1) - 1
        """References at most: (n+1)(m+1)-1."""

    def target(self, column: int) -> str:
        """Return what a column is there to find."""
        return f"the guest's {self.columns[column]}" if column < len(self.guest) else "the data"

    def is_leaf(self, cell: Cell) -> bool:
        """Return whether the entry maps a page, and does not lead to a table."""
        if not cell.nested:
            return bool(cell.entry & self.guest[cell.column].leaf)
        return cell.level == 1 or (cell.level <= 3 and bool(cell.entry & PS))

    def leads_to(self, cell: Cell) -> int:
        """Return where a leaf leads."""
        if cell.nested:
            size = 1 << 12 + 9 * (cell.level - 1)
            return cell.entry & ADDRESS & -size | cell.gpa & size - 1
        level = self.guest[cell.column]
        high = (cell.entry & level.frame_high) << 19
        return cell.entry & level.frame | self.gva & level.offset | high

    def spared(self, cell: Cell) -> list[list[int]]:
        """Return the places that a leaf above level 1 makes needless."""
        if cell.nested:
            return [[cell.column, row] for row in range(cell.row + 1, self.nested)]
        below = range(cell.column + 1, len(self.guest))
        return [[column, row] for column in below for row in range(self.nested + 1)]

    def shown(self, cell: Cell) -> dict[str, Any]:
        """Return a cell as the scene shows it."""
        return {
            "place": cell.place,
            "nested": cell.nested,
            "name": cell.name,
            "index": f"{cell.index:#05x}",
            "table": f"{cell.at & ~0xFFF:#x}",
            "at": f"{cell.at:#x}",
            "entry": f"{cell.entry:#x}",
            "bits": self._bits(cell),
        }

    def _bits(self, cell: Cell) -> list[list[str]]:
        """Return the fields of an entry, from the top down, as name and value."""
        entry, leaf = cell.entry, self.is_leaf(cell)
        large = [("PS", 7)] if cell.level in (2, 3) else []
        address = ["address", f"{entry & ADDRESS:#x}"]

        def show(*names: tuple[str, int]) -> list[list[str]]:
            return [[name, str(entry >> bit & 1)] for name, bit in names]

        if cell.nested and isinstance(self.second, Ept):
            kind = [["type", str(entry >> 3 & 7)]] if leaf else []
            dirty = [("D", 9)] if leaf else []
            rights = show(("X", 2), ("W", 1), ("R", 0))
            return [address, *show(*dirty, ("A", 8), *large), *kind, *rights]
        shared, dirty = ([("G", 8)], [("D", 6)]) if leaf else ([], [])
        rest = show(*shared, *large, *dirty, ("A", 5), ("US", 2), ("RW", 1), ("P", 0))
        return [["NX", str(entry >> 63)], address, *rest]

    def bars(self, cell: Cell | None) -> list[list[Any]]:
        """Return the addresses: space, value, fields as [name, high bit, low bit, value, used]."""
        bars = [["GVA", f"{self.gva:#x}", self._gva_fields(cell.column if cell else -1)]]
        if self.second and cell:
            fields: list[list[Any]] = []
            for row in range(self.nested):
                level = self.nested - row
                low = 12 + 9 * (level - 1)
                used = cell.nested and row == cell.row
                value = f"{cell.gpa >> low & 511:#05x}"
                fields.append([FIELDS[level], low + 8, low, value, used])
            fields.append(["offset", 11, 0, f"{cell.gpa & 0xFFF:#05x}", not cell.nested])
            bars.append(["GPA", f"{cell.gpa:#x}", fields])
        return bars

    def _gva_fields(self, column: int) -> list[list[Any]]:
        if self.mode is None:
            return [["linear address", 31, 0, f"{self.gva & 0xFFFF_FFFF:#010x}", False]]
        fields: list[list[Any]] = []
        for i, level in enumerate(self.guest):
            low = level.page_size.bit_length() - 1
            wide = (level.offset_mask // level.entry_bytes).bit_length()
            value = f"{level.index(self.gva):#0{(wide + 3) // 4 + 2}x}"
            fields.append([FIELDS[level.number], low + wide - 1, low, value, i == column])
        low = self.guest[-1].page_size.bit_length() - 1
        fields.append(["offset", low - 1, 0, f"{self.gva & (1 << low) - 1:#05x}", False])
        return fields
