"""The two-dimensional walk: a guest's tables, each of them behind the host's.

Every address that the guest's tables hold is guest-physical, so before each guest entry can be
read its own address goes through the second stage, and so does the address that comes out in the
end. With n guest and m nested levels that is (n+1)(m+1)-1 references: 24 for 4 by 4.

The walk itself is the one of `walk`, over a memory whose reads pass the second stage first.
Intel SDM vol. 3C, 29.3.2; AMD APM vol. 2, 15.25.5.

Left out: there are no caches (`caches` has them). A and D of both stages are set together in the
end, when the access is allowed by both. A PAE guest's PDPTEs are read in the walk, as by AMD
(15.25.10); Intel processors load them with CR3.
"""

from dataclasses import dataclass
from typing import Literal

from vmlib.given import names_bad_input
from vmlib.memory.paging import (
    ERROR_W,
    NAMES,
    PS,
    Access,
    AccessRules,
    D,
    PagingMode,
    flag_names,
)
from vmlib.memory.second_stage import (
    EPT_TYPE_SHIFT,
    Ept,
    SecondStage,
    SecondStageExit,
    Translation,
    set_second_stage_bits,
    table_access,
    through,
)
from vmlib.memory.walk import (
    Fault,
    TableMemory,
    follow,
    references,
    set_accessed_dirty,
    setting,
)


@dataclass(frozen=True, slots=True)
class NestedStep:
    """One memory reference of a 2-D walk, and its place in the grid.

    `column` counts the guest's levels from its root; the last one is the data. `row` counts
    nested levels from the root; the last row is the guest's own entry. A step of space "guest"
    reads a guest entry, one of space "host" a nested one on the way of `gpa`.
    """

    column: int
    row: int
    space: Literal["guest", "host"]
    level: int
    name: str
    index: int
    gpa: int
    """The guest-physical address in question: of the entry read, or of what is translated."""
    hpa: int
    """The host-physical address that is read."""
    entry: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NestedWalk:
    """What became of one access: `hpa`, or a `fault` of the guest, or an `exit` to the host."""

    gva: int
    gpa: int | None
    """Where the guest's tables lead; None where it did not come so far."""
    hpa: int | None
    page_size: int
    """Bytes that one TLB entry can cover: the smaller page of both stages; 0 without `hpa`."""
    fault: Fault | None
    exit: SecondStageExit | None
    steps: tuple[NestedStep, ...]


@names_bad_input
def walk_nested(
    memory: TableMemory,
    gva: int,
    second: SecondStage,
    *,
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    access: Access = "read",
    cpl: int = 0,
    pkru: int = 0,
    ac: bool = False,
    maxphyaddr: int = 52,
    set_ad: bool = False,
    implicit: bool = False,
) -> NestedWalk:
    """Walk both stages for one access; keywords are those of `walk`, of the guest.

    `memory` is the host's. With `set_ad` the bits A and D are set in both stages, where they keep
    them and the access is allowed. Raises `TableOutsideRam` where a table of either stage is not in
    `memory`, and `BadInput` for what is no access.
    """
    mode, rules = setting(cr0, cr4, efer, maxphyaddr, access, cpl, ac, implicit)
    seen = GuestMemory(memory, second, mode, gva)
    return follow_nested(seen, cr3, rules, pkru, access, set_ad)


def follow_nested(
    seen: "GuestMemory", cr3: int, rules: AccessRules, pkru: int, access: Access, set_ad: bool
) -> NestedWalk:
    """Walk the guest's tables as `seen` shows them: the core of `walk_nested`."""
    gva, mode = seen.gva, seen.mode
    try:
        gpa, size, fault = follow(seen, gva, cr3, mode, rules, pkru, False, seen.entries)
        if gpa is None:
            return NestedWalk(gva, None, None, 0, fault, None, tuple(seen.steps))
        seen.at_data()
        last = seen.translate(gpa, access)
        if set_ad:
            dirty = D if rules.error_code & ERROR_W else 0
            passed = list(references(gva, cr3, mode, seen.entries))
            if passed:
                set_accessed_dirty(_Quiet(seen), passed, dirty)
            for done, kind in seen.done:
                set_second_stage_bits(seen.host, seen.second, done, kind)
    except _Left as left:
        told = left.told
        return NestedWalk(gva, seen.final, None, 0, None, told, tuple(seen.steps))
    smaller = min(size or last.page_size, last.page_size)
    return NestedWalk(gva, gpa, last.hpa, smaller, None, None, tuple(seen.steps))


class _Left(Exception):
    """The second stage ends the walk. Not an error, so it does not leave this module."""

    def __init__(self, told: SecondStageExit) -> None:
        self.told = told


class _Quiet:
    """Guest-physical memory as the processor accesses it when it sets A and D of the guest."""

    def __init__(self, seen: "GuestMemory") -> None:
        self._seen = seen

    def read_u64(self, gpa: int) -> int:
        return self._seen.host.read_u64(self._hpa(gpa, table_access(self._seen.second)))

    def write_u64(self, gpa: int, value: int) -> None:
        self._seen.host.write_u64(self._hpa(gpa, "write"), value)

    def _hpa(self, gpa: int, access: Access) -> int:
        done = self._seen.again(gpa, access)
        if done.hpa is None:
            assert done.exit is not None
            raise _Left(done.exit)
        return done.hpa


class GuestMemory:
    """Guest-physical memory as a walk reads it, keeping each reference with its grid place."""

    def __init__(
        self, memory: TableMemory, second: SecondStage, mode: PagingMode | None, gva: int
    ) -> None:
        self.host = memory
        self.second = second
        self.mode = mode
        self.gva = gva
        self._levels = mode.levels if mode else ()
        self._table_access = table_access(second)
        self._column = 0
        self.entries: list[int] = []
        """The guest's entries as the walk took them, from the root down."""
        self.steps: list[NestedStep] = []
        self.done: list[tuple[Translation, Access]] = []
        self.final: int | None = None
        """The guest-physical address of the data, once it is known."""

    def second_stage(self, gpa: int, access: Access, table: bool) -> tuple[Translation, int]:
        """Translate, and say how many of the entries passed were not read: none, without caches."""
        return through(self.host, self.second, gpa, access, table), 0

    def again(self, gpa: int, access: Access) -> Translation:
        """Translate the address of a guest entry once more, to set its A and D."""
        return through(self.host, self.second, gpa, access, True)

    def at_data(self) -> None:
        """The guest's tables are through: what follows is the last column."""
        self._column = len(self._levels)

    def translate(self, gpa: int, access: Access) -> Translation:
        """Take an address through the second stage and keep the references."""
        table = self._column < len(self._levels)
        if not table:
            self.final = gpa
        done, known = self.second_stage(gpa, access, table)
        for row, (level, at, entry) in enumerate(done.passed):
            if row < known:
                continue
            names = _second_flags(self.second, level, entry)
            index = gpa >> 12 + 9 * (level - 1) & 511
            self._add(row, "host", level, NAMES[level], index, gpa, at, entry, names)
        if done.hpa is None:
            assert done.exit is not None
            raise _Left(done.exit)
        self.done.append((done, access))
        return done

    def read_u64(self, gpa: int) -> int:
        """Return the word around the guest entry at `gpa`."""
        level = self._levels[self._column]
        index = level.index(self.gva)
        # An entry of 4 bytes is half of the word that is asked for.
        half = 4 * (index & 1) if level.entry_bytes == 4 else 0
        hpa = self.translate(gpa + half, self._table_access).hpa
        assert hpa is not None
        word = self.host.read_u64(hpa - half)
        entry = word >> 8 * half & (1 << 8 * level.entry_bytes) - 1
        names, row = flag_names(entry, level), self.second.levels
        self._add(row, "guest", level.number, level.name, index, gpa + half, hpa, entry, names)
        self._column += 1
        return word

    def write_u64(self, gpa: int, value: int) -> None:
        """Nothing is written on the way."""
        raise AssertionError("A and D are set through _Quiet")

    def _add(
        self,
        row: int,
        space: Literal["guest", "host"],
        level: int,
        name: str,
        index: int,
        gpa: int,
        hpa: int,
        entry: int,
        flags: tuple[str, ...],
    ) -> None:
        step = NestedStep(self._column, row, space, level, name, index, gpa, hpa, entry, flags)
        self.steps.append(step)


def _second_flags(second: SecondStage, level: int, entry: int) -> tuple[str, ...]:
    if not isinstance(second, Ept):
        return flag_names(entry, second.mode.levels[second.levels - level])
    names = [name for name, bit in (("R", 1), ("W", 2), ("X", 4)) if entry & bit]
    if level == 1 or entry & PS:
        names += [f"type {entry >> EPT_TYPE_SHIFT & 7}"]
    names += [name for name, bit in (("A", 1 << 8), ("D", 1 << 9)) if entry & bit]
    return (*names, "PS") if level > 1 and entry & PS else tuple(names)
