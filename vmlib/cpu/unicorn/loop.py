"""The loop around the emulator: what a vCPU on Unicorn does from one exit to the next.

A round: look whether somebody wants something, start the emulator, and see why it came back: an
exit that a hook has noted, an exception or a call to deliver, a HLT, or nothing, and then round
again. Before the first round the instruction of the last exit is finished.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from vmlib.cpu.budget import Budget, Watchdog
from vmlib.cpu.exits import BudgetSpent, Debug, EngineFailure, Exit, Halt, Kicked
from vmlib.cpu.unicorn.home import Home
from vmlib.cpu.unicorn.traps import IO_BREAKPOINT
from vmlib.cpu.unicorn.unfinished import ROUND, Unfinished

_STOP_AGAIN = 0.0005
_this_thread = threading.get_ident


class EmulatorLoop(Unfinished):
    """One vCPU on Unicorn, as far as running goes."""

    def __init__(self, vm: Home, index: int) -> None:
        super().__init__(vm, index)
        self._breakpoints: dict[int, int] = {}
        self._kicked = self._inside = self._has_turn = False
        self._thread = 0
        self._budget = Budget()
        self._watchdog: Watchdog | None = None
        self._emu.hflags.value |= IO_BREAKPOINT

    @property
    def handled(self) -> Counter[str]:
        """Events that a handler inside finished, by kind; the guest never left for them."""
        traps = self._traps
        counts = {"IO": traps.handled_io, "MMIO": traps.device.handled}
        return +Counter(counts | {"HYPERCALL": self._hypercalls, "IRQ": self._acknowledged})

    def look_up(self) -> None:
        """Make the loop look round without returning: an interrupt came, a turn or time is up."""
        self._slice_over = True
        self._stop_while(lambda: self._slice_over)

    def _stop_while(self, wanted: Callable[[], bool]) -> None:
        self._awake.set()
        while self._inside and wanted():
            if not self._emu.counting:  # else it comes round by itself
                self._emu.stop()
            if _this_thread() == self._thread:
                return
            time.sleep(_STOP_AGAIN)  # a stop that came before the start was forgotten

    def run(self) -> Exit:
        """Run until something happens that the emulator cannot finish."""
        if self._plain:
            # The short way to the exit of an OUT, by far the most frequent. It does what `_loop`
            # does for a guest that is alone and unlimited, and leaves all else to it.
            self._thread = _this_thread()
            self._inside = True
            if not (self._again or self._kicked or self._slice_over):
                traps, emu = self._traps, self._emu
                error = emu.start() if emu.counting else emu.go_on()
                self._inside = False
                ended = traps.exit
                if ended is None or not traps.in_time:
                    ended = self._enter(stepping=False, started=error)
                    assert ended is not None, "only a step ends without an exit"
                    return ended
                traps.exit = None
                traps.restore_debug()
                self._pending = ended
                self.exits["IO"] += 1
                return ended
        ended = self._enter(stepping=False)
        assert ended is not None, "only a step ends without an exit"
        return ended

    def step(self) -> Exit | None:
        """Run one instruction."""
        return self._enter(stepping=True)

    def _enter(self, stepping: bool, started: int | None = None) -> Exit | None:
        self._check_open()
        watchdog = self._watchdog
        self._thread = _this_thread()
        self._take_turn()
        try:
            if watchdog is None:
                ended = self._loop(stepping, started)
            else:
                with watchdog:
                    self._slice_over |= watchdog.expired
                    ended = self._loop(stepping, started)
        finally:
            self._inside = False
            if self._has_turn:
                self._has_turn = False
                self._vm.turns.give()
        asks = not (self._ahead and isinstance(ended, Kicked | BudgetSpent))
        self._pending = ended if asks else None
        self._plain = self._plainly()
        if ended is not None:
            self.exits[ended.reason] += 1
        return ended

    def _loop(self, stepping: bool, started: int | None) -> Exit | None:
        """Run round after round; `started` is what the emulator said, if it has run already."""
        emu, traps = self._emu, self._traps
        self._passing = self._reported if self._reported == traps.linear_rip() else -1
        self._reported = -1
        if started is not None:
            self._pending = None
        elif self._ahead:
            return self._ahead.pop(0)
        elif self._pending is not None and (ended := self._resume(stepping)) is not None:
            return ended
        counting = self._budget.instructions is not None
        while True:
            limit = int(stepping)
            if started is None:
                ended, limit = self._ready(limit)
                if ended is not None:
                    self._reported = self._passing  # the guest has not moved
                    self._finish_first()
                    return ended
                if limit < 0:
                    continue
                error = emu.start(limit)
            else:
                error, started = started, None
            self._inside = False
            if counting:
                self._left -= min(limit, self._executed())
            traps.restore_debug()
            if traps.must_undo:
                self._undo()
            emu.hflags.value |= IO_BREAKPOINT  # a write of DR7 has cleared it
            if traps.exit is not None:
                return self._leave()
            if traps.raised is not None:
                raised, traps.raised = traps.raised, None
                raise raised
            if traps.vector is not None:
                if (ended := self._event()) is not None:
                    return ended
            elif emu.halted.value:
                if self._controller is None:
                    self._waiting = False
                    return Halt()
                self._asleep = True
            elif error:
                return EngineFailure(f"Unicorn gave up at {traps.linear_rip():#x}: error {error}")
            elif limit and emu.executed.value <= limit:
                continue  # stopped early, by somebody who set a flag
            if stepping:
                return None

    def _ready(self, limit: int) -> tuple[Exit | None, int]:
        """Look round before a round; return an exit, or the limit for it, or -1: look again."""
        counting = self._budget.instructions is not None
        self._inside = True  # before the look at the flags: whoever sets one later stops us
        if self._kicked or self._slice_over:
            self._inside = False
            return self._look_round(), -1
        if self._asleep or self._vector is not None or self._controller is not None:
            self._inside = False
            ended, limit = self._interrupts(limit)
            self._inside = True
            if ended is not None or self._kicked or self._slice_over:
                self._inside = False
                return ended, -1
        if counting and self._left <= 0:
            return BudgetSpent(str(self._budget)), -1
        if not limit and (counting or self._breakpoints or self._intercepts.hooks_code):
            limit = min(self._left, ROUND) if counting else ROUND
        return None, limit

    def _plainly(self) -> bool:
        """Whether the short way in `run` is open."""
        return (
            not self._closed
            and self._budget == Budget()
            and not self._breakpoints
            and not self._intercepts.any
            and self._vector is None
            and not self._asleep
            and not self._ahead
            and self._controller is None
            and not self._vm.shared
        )

    def _look_round(self) -> Exit | None:
        """Somebody has set a flag: time is up, a kick, a turn, code written from outside."""
        self._slice_over = False
        self._awake.clear()
        if self._stale:
            self._stale = False
            self._intercepts.forget_code()
        if self._watchdog is not None and self._watchdog.expired:
            return BudgetSpent(str(self._budget))
        if self._kicked:
            self._kicked = False
            return Kicked()
        if self._has_turn and self._vm.turns.wanted:
            self._has_turn = False
            self._vm.turns.give()
        self._take_turn()
        return None

    def _take_turn(self) -> None:
        """Wait for the turn, if there is another vCPU; it may have come since this one entered."""
        if self._vm.shared and not self._vm.parallel and not self._has_turn:
            self._vm.turns.take(self.look_up)
            self._has_turn = True

    def _executed(self) -> int:
        """Instructions of the last start, the unfinished one included."""
        if self._traps.must_undo:
            return self._traps.counted
        return self._emu.executed.value

    def _on_breakpoint(self, _: Any, address: int, __: int, ___: Any) -> None:
        if self._passing == address:
            self._passing = -1
            return
        if self._traps.exit is None:
            self._traps.exit = Debug(address)
            self._emu.stop()
