"""The walk trace: one access falling through the tables, one step for each memory reference.

The steps are made from what `walk` and `walk_nested` have kept, so there is no second walk here.
Each carries the whole picture: the grid with the cells that were read, the addresses with their
fields, the entry with its bits, and how it ended, if it has. Kind "walk".

With `caches` an earlier access has left something behind. "next door": the paging-structure
caches have the last entry on the way that both accesses share; for a 2-D walk these are combined
mappings, which lead from a linear address straight to a table's host-physical address. "again":
the TLB has the translation itself. Intel SDM vol. 3A, 4.10.2 and 4.10.3; vol. 3C, 29.4.1.

Left out: guest-physical mappings, with which a processor may also shorten the columns; when
something is cached and when it is dropped again.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.memory.nested import NestedWalk, walk_nested
from vmlib.memory.paging import ADDRESS, ERROR_P, ERROR_RSVD, VECTOR_GP, Access
from vmlib.memory.second_stage import Ept, SecondStage, SecondStageExit
from vmlib.memory.walk import Fault, TableMemory, Walk, setting, walk
from vmlib.memory.walk_cause import Cause, exit_cause, page_fault_cause
from vmlib.memory.walk_grid import Cell, Grid
from vmlib.trace import Provenance, Recorder, Trace
from vmlib.units import format_size

Caches = Literal["cold", "next door", "again"]

_ERROR_BITS = ("P", "W", "U", "RSVD", "I", "PK")
_TITLE = "One reference for each level of the tables, and then the data"
_TITLE_NESTED = "Each of the guest's entries lies behind the host's tables"


class Setting(TypedDict, total=False):
    """The keywords of `walk`: registers, and what the access is."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    access: Access
    cpl: int
    pkru: int
    ac: bool
    maxphyaddr: int
    implicit: bool


@names_bad_input
def record_walk(
    memory: TableMemory, gva: int, *, caches: Caches = "cold", **how: Unpack[Setting]
) -> Trace:
    """Return the trace of `walk` for one access; keywords are those of `walk`, but `set_ad`.

    Raises what `walk` raises, and `BadInput` for what is no state of `caches`.
    """
    done = walk(memory, gva, **how)
    cells = [
        Cell(i, 0, False, s.level, s.index, s.gpa, s.gpa, s.entry) for i, s in enumerate(done.steps)
    ]
    return _Recording(gva, done, cells, None, caches, how).run()


@names_bad_input
def record_walk_nested(
    memory: TableMemory,
    gva: int,
    second: SecondStage,
    *,
    caches: Caches = "cold",
    **how: Unpack[Setting],
) -> Trace:
    """Return the trace of `walk_nested` for one access; keywords are those of `walk_nested`.

    Raises what `walk_nested` raises, and `BadInput` for what is no state of `caches`.
    """
    done = walk_nested(memory, gva, second, **how)
    cells = [
        Cell(s.column, s.row, s.space == "host", s.level, s.index, s.gpa, s.hpa, s.entry)
        for s in done.steps
    ]
    return _Recording(gva, done, cells, second, caches, how).run()


@names_bad_input
def opening(trace: Trace) -> int:
    """Return the step before the answer: the first at which an entry of the guest is read.

    Where a cache speaks first it is that step; where nothing of the guest's is read, the start.
    """
    telling = (s.i for s in trace.steps if s.event in ("guest", "cached"))
    return next(telling, 0)


class _Recording:
    """One walk that is over, and what has been told of it so far."""

    def __init__(
        self,
        gva: int,
        done: Walk | NestedWalk,
        cells: Sequence[Cell],
        second: SecondStage | None,
        caches: Caches,
        how: Setting,
    ) -> None:
        if caches not in ("cold", "next door", "again"):
            raise BadInput("caches", f"are 'cold', 'next door' or 'again', not {caches!r}")
        self._gva, self._done, self._cells, self._second = gva, done, cells, second
        self._access: Access = how.get("access", "read")
        mode, self._rules = setting(
            how["cr0"], how["cr4"], how["efer"], how.get("maxphyaddr", 52), self._access,
            how.get("cpl", 0), how.get("ac", False), how.get("implicit", False),
        )  # fmt: skip
        self._grid = Grid(gva, mode, second)
        self._physical = "HPA" if second else "GPA"
        self._guests = [cell for cell in cells if not cell.nested]
        self._final = done.hpa if isinstance(done, NestedWalk) else done.gpa
        self._caches = caches if self._kept(caches) else "cold"
        self.recorder = Recorder("walk", _TITLE_NESTED if second else _TITLE)
        self._lit: list[list[int]] = []
        self._gone: list[list[int]] = []
        self._saved: list[list[int]] = []
        self._gpa = self._hpa = "unknown"

    def run(self) -> Trace:
        """Tell it all."""
        count = self.recorder.count
        self._start()
        for cell in self._cells if self._caches == "cold" else self._from_cache():
            self._reference(cell)
        if self._final is not None:
            self._arrive()
        elif self._done.fault:
            self._fault(self._done.fault)
        else:
            assert isinstance(self._done, NestedWalk)
            assert self._done.exit is not None
            self._exit(self._done.exit)
        count("references", len(self._lit))
        count("of at most", self._grid.possible)
        count("saved by large pages", len(self._gone))
        count("saved by caches", len(self._saved))
        engine = "vmlib.memory.walk" + ("_nested" if self._second else "")
        return self.recorder.finish(Provenance(engine, {}, ""))

    # --- the beginning --------------------------------------------------------------------------

    def _start(self) -> None:
        asks = f"The guest asks for {self._gva:#x}."
        if not self._cells:
            text = asks
        elif not self._grid.guest:
            text = (
                f"Paging is off in the guest: {self._gva:#x} is guest-physical as it is, "
                "32 bits of it."
            )
        else:
            top = f"{self._cells[0].gpa & ~0xFFF:#x}"
            text = f"{asks} CR3 tells where the top table is: at GPA {top}."
            if self._second:
                text = (
                    f"{asks} Its CR3 tells where its top table is: at GPA {top}. Where that is in "
                    "the host's memory, the second stage must say."
                )
        self._note("start", "start", text)

    def _kept(self, caches: Caches) -> bool:
        """Whether an earlier access can have left something that helps this one."""
        if caches == "again":
            return self._final is not None and bool(self._cells)
        return caches == "next door" and len(self._guests) > 1

    def _from_cache(self) -> Sequence[Cell]:
        """Tell what the caches have; return the references that remain."""
        if self._caches == "again":
            self._saved = [cell.place for cell in self._cells]
            self._know_end()
            text = (
                f"The TLB has this page: {self._physical} {self._final:#x}. "
                f"All {len(self._saved)} references are saved."
            )
            self._note("caches", "cached", text)
            return []
        keeper, last = self._guests[-2:]
        keep = list(self._cells).index(last)
        self._saved = [cell.place for cell in self._cells[:keep]]
        self._gpa = f"{last.gpa:#x}"
        self._hpa = f"{last.at:#x}" if self._second else "unknown"
        text = (
            f"An access next door has left the {keeper.name} in the paging-structure caches: "
            f"the next table is at {self._physical} {last.at & ~0xFFF:#x}. "
            f"{_many(keep, 'reference')} saved."
        )
        self._note("caches", "cached", text)
        return self._cells[keep:]

    # --- one reference --------------------------------------------------------------------------

    def _reference(self, cell: Cell) -> None:
        self._lit.append(cell.place)
        self._gpa = f"{cell.gpa:#x}"
        leaf = self._grid.is_leaf(cell)
        stops = cell is self._cells[-1] and self._final is None and not self._judged_late(leaf)
        if cell.nested:
            self._nested(cell, leaf, stops)
        else:
            self._guest(cell, leaf, stops)

    def _nested(self, cell: Cell, leaf: bool, stops: bool) -> None:
        self._hpa = "unknown"
        stage, target = self._grid.stage, self._grid.target(cell.column)
        what = f"{stage} {cell.name} {cell.index:#05x}"
        if stops:
            text = f"On the way to {target}: {what} holds {cell.entry:#x}."
        elif leaf:
            self._hpa = f"{self._grid.leads_to(cell):#x}"
            text = f"{what} maps a page: {target} is at HPA {self._hpa}.{self._large(cell)}"
        else:
            table = cell.entry & ADDRESS
            text = f"On the way to {target}: {what} leads to the table at HPA {table:#x}."
        self._note(f"{stage} {cell.name}, for {target}", "nested", text, cell)

    def _guest(self, cell: Cell, leaf: bool, stops: bool) -> None:
        if self._second:
            self._hpa = f"{cell.at:#x}"
        what = f"The guest's {cell.name} {cell.index:#05x}"
        if stops:
            text = f"{what} holds {cell.entry:#x}."
        elif leaf:
            gpa = self._grid.leads_to(cell)
            text = f"{what} maps a page: the data is at GPA {gpa:#x}.{self._large(cell)}"
        else:
            text = f"{what} leads to the table at GPA {cell.entry & ADDRESS:#x}."
        self._note(f"the guest's {cell.name}", "guest", text, cell)

    def _judged_late(self, leaf: bool) -> bool:
        """Whether the last entry is good in itself, and the rights are what is missing."""
        if not leaf:
            return False
        if fault := self._done.fault:
            return fault.error_code & (ERROR_P | ERROR_RSVD) == ERROR_P
        left = self._done.exit if isinstance(self._done, NestedWalk) else None
        if left is None or left.kind == "misconfiguration":
            return False
        if left.kind == "violation":
            return bool(self._cells[-1].entry & 7)
        return left.qualification & (ERROR_P | ERROR_RSVD) == ERROR_P

    def _large(self, cell: Cell) -> str:
        """Take away the cells that a large page makes needless; return what to say of it."""
        if cell.level == 1:
            return ""
        spared = self._grid.spared(cell)
        self._gone += spared
        size = format_size(1 << 12 + 9 * (cell.level - 1))
        return f" A page of {size}: {_many(len(spared), 'cell')} need not be read."

    # --- the end --------------------------------------------------------------------------------

    def _know_end(self) -> None:
        self._gpa = f"{self._done.gpa:#x}"
        if self._second:
            self._hpa = f"{self._final:#x}"

    def _arrive(self) -> None:
        self._know_end()
        read = len(self._lit)
        instead = f" instead of {read + len(self._saved)}" if self._saved else ""
        where = f"{self._physical} {self._final:#x}"
        text = f"Arrived: the byte is at {where}, after {_many(read, 'reference')}{instead}."
        self._note("the data", "arrived", text, end=self._ending(self._physical, "", None))

    def _fault(self, fault: Fault) -> None:
        code = f"{fault.error_code:#x}"
        mode = self._grid.mode
        assert mode is not None
        if fault.vector == VECTOR_GP:
            text = (
                f"General protection fault: bits 63 to {mode.sign_bit + 1} do not repeat bit "
                f"{mode.sign_bit}, and {len(mode.levels)} levels know no such address."
            )
            end = self._ending("general protection", code, None)
        else:
            passed = [(self._grid.guest[cell.column], cell.entry) for cell in self._guests]
            cause = page_fault_cause(passed, fault, self._rules, "guest's ")
            names = [name for i, name in enumerate(_ERROR_BITS) if fault.error_code >> i & 1]
            text = (
                f"Page fault, error code {code} ({' '.join(names) or 'no bit set'}): "
                f"{cause.says}. It is the guest's own kernel that hears of it."
            )
            end = self._ending("page fault", code, cause, self._guests)
        self._note("the guest's kernel", "fault", text, end=end)

    def _exit(self, left: SecondStageExit) -> None:
        assert self._second is not None
        column = self._cells[-1].column if self._cells else 0
        cells = [c for c in self._cells if c.nested and c.column == column] if left.level else []
        passed = [(cell.level, cell.entry) for cell in cells]
        table = column < len(self._grid.guest)
        cause = exit_cause(self._second, passed, left, self._access, table)
        kind = f"EPT {left.kind}" if isinstance(self._second, Ept) else left.kind
        text = (
            f"{kind[0].upper()}{kind[1:]} at GPA {left.gpa:#x}: {cause.says}. "
            "The guest is left; its kernel hears of nothing."
        )
        end = self._ending(kind, f"{left.qualification:#x}", cause, cells)
        self._note("the hypervisor", "exit", text, end=end)

    def _ending(
        self, kind: str, code: str, cause: Cause | None, cells: Sequence[Cell] = ()
    ) -> dict[str, Any]:
        """Return how it ended: kind, code, the bit that is to blame and the entry that has it."""
        blamed = cells[cause.step] if cause and cause.step >= 0 else None
        return {
            "kind": kind,
            "code": code,
            "bit": cause.bit if cause else "",
            "cell": self._grid.shown(blamed) if blamed else None,
        }

    def _note(
        self,
        where: str,
        event: str,
        text: str,
        cell: Cell | None = None,
        end: dict[str, Any] | None = None,
    ) -> None:
        grid = self._grid
        state: dict[str, Any] = {
            "columns": grid.columns,
            "rows": grid.rows,
            "guest": len(grid.guest),
            "possible": grid.possible,
            "stage": grid.stage,
            "bars": grid.bars(cell),
            "lit": [list(place) for place in self._lit],
            "gone": [list(place) for place in self._gone],
            "saved": [list(place) for place in self._saved],
            "registers": [["GPA", self._gpa], *([["HPA", self._hpa]] if self._second else [])],
            "cell": grid.shown(cell) if cell else None,
            "end": end,
        }
        self.recorder.step(where, event, text, state)


def _many(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
