"""The loop around the emulator: what a vCPU on Unicorn does from one exit to the next.

A round: look whether somebody wants something, start the emulator, and see why it came back: an
exit that a hook has noted, an exception or a call to deliver, a HLT, or nothing, and then round
again. Before the first round the instruction of the last exit is finished.
"""

import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlib.cpu import events
from vmlib.cpu.budget import Budget, Watchdog
from vmlib.cpu.engine import BaseVcpu
from vmlib.cpu.exits import (
    BudgetSpent,
    Debug,
    EngineFailure,
    Exit,
    Halt,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    answer_size,
)
from vmlib.cpu.fast_calls import syscall, sysenter
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn.intercepts import Intercepts
from vmlib.cpu.unicorn.traps import IO_BREAKPOINT, STEPPED, SYSCALL, SYSENTER, Traps
from vmlib.errors import Unsupported

if TYPE_CHECKING:
    from vmlib.cpu.unicorn.vm import UnicornVm

_ROUND = 100_000  # instructions between two looks round when they are counted
_LONGEST = 15  # bytes of an instruction
_STOP_AGAIN = 0.0005
# What the emulator takes for invalid and a processor does not: INT1 calls the handler of #DB, and
# RDPMC finds no counter, for this processor has none (Intel SDM vol. 2A, INT n; vol. 2B, RDPMC).
_INT1, _RDPMC = 0xF1, b"\x0f\x33"
_IF, _TF = events.IF, events.TF


class EmulatorLoop(BaseVcpu):
    """One vCPU on Unicorn, as far as running goes."""

    def __init__(self, vm: "UnicornVm", index: int) -> None:
        super().__init__(index)
        self._vm = vm
        self._ram = vm.ram
        self._emu = raw.Emulator()
        self._emu.map_ram(0, vm.ram.size, vm.ram.hva)
        self._traps = Traps(self._emu, vm.ram.size, vm)
        self._traps.may_use_ports = self._may_use_ports
        self._intercepts = Intercepts(self._emu, self._traps, self._memory, self._code_written)
        vm.ram.watchers.append(self._intercepts.written)
        self._controller = vm.controller if index == 0 else None
        self._plain = False
        self._passing = self._reported = -1
        self._hypercalls = self._acknowledged = 0
        self._breakpoints: dict[int, int] = {}
        self._vector: int | None = None
        self._data: bytes | None = None
        self._kicked = self._slice_over = self._inside = self._stale = False
        self._again = self._asleep = self._waiting = False
        self._thread = 0
        self._awake = threading.Event()
        self._budget = Budget()
        self._watchdog: Watchdog | None = None
        self._left = 0
        self._ahead: list[Exit] = []  # came while an instruction was being finished
        self._emu.hflags.value |= IO_BREAKPOINT

    @property
    def handled(self) -> Counter[str]:
        """Events that a handler inside finished, by kind; the guest never left for them."""
        traps = self._traps
        counts = {"IO": traps.handled_io, "MMIO": traps.handled_mmio}
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
            if threading.get_ident() == self._thread:
                return
            time.sleep(_STOP_AGAIN)  # a stop that came before the start was forgotten

    def run(self) -> Exit:
        """Run until something happens that the emulator cannot finish."""
        if self._plain:
            # The short way to the exit of an OUT, by far the most frequent. It does what `_loop`
            # does for a guest that is alone and unlimited, and leaves all else to it.
            self._inside = True
            if not (self._again or self._kicked or self._slice_over):
                traps = self._traps
                error = self._emu.start()
                self._inside = False
                ended = traps.exit
                if ended is None or not traps.stopped_in_time:
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
        vm, watchdog = self._vm, self._watchdog
        self._thread = threading.get_ident()
        shared = len(vm.vcpus) > 1 and not vm.parallel
        if shared:
            vm.turns.take(self.look_up)
        try:
            if watchdog is None:
                ended = self._loop(stepping, started)
            else:
                with watchdog:
                    self._slice_over |= watchdog.expired
                    ended = self._loop(stepping, started)
        finally:
            self._inside = False
            if shared:
                vm.turns.give()
        self._pending = ended
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
            emu.hflags.value |= IO_BREAKPOINT
            if traps.must_undo:
                self._undo()
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
            limit = min(self._left, _ROUND) if counting else _ROUND
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
            and self._controller is None
            and len(self._vm.vcpus) <= 1
        )

    def _leave(self) -> Exit:
        """Put the registers where they belong for the exit that a hook has noted."""
        traps = self._traps
        ended, traps.exit = traps.exit, None
        assert ended is not None
        if traps.redo is not None:  # an IN: stopped in time, but its zero is in RAX
            rip, rax = traps.redo
            traps.redo = None
            struct.pack_into("=Q", self._emu.view, raw.GPRS, rax)
            self._emu.rip.value = rip
            self._again = True
        elif isinstance(ended, Mmio):
            self._again = True
        elif isinstance(ended, Debug):
            self._reported = ended.address
        return ended

    def _undo(self) -> None:
        """Take back what ran too long, and have it stop in time from the next time on."""
        traps = self._traps
        traps.undo()
        if isinstance(traps.exit, IoIn | IoOut):
            traps.learn(self._intercepts.code(_LONGEST))
            self._again = True
        elif traps.vector is not None:  # a port that is closed to the guest
            self._emu.error_code.value = self._emu.is_int.value = 0

    # --- finishing what an exit has left unfinished ---------------------------------------------

    def _answer(self, data: bytes) -> None:
        self._data = data

    def _forget(self) -> None:
        self._traps.forget()
        self._pending = self._data = self._vector = None
        self._ahead.clear()
        self._again = self._asleep = self._waiting = False

    def _abandon(self) -> None:
        """Finish the pending instruction, but not the exits it has yet to make: other registers
        are about to replace its results."""
        self._settle()
        if self._ahead:
            self._ahead.clear()
            self._traps.forget()
            self._again = False

    def _settle(self) -> None:
        """Finish the pending instruction, so that the registers are those after it.

        One that reads a device and then writes it makes its second exit now, for the next `run`.
        As in KVM a store waits for nobody: only a second load leaves the instruction unfinished.
        """
        while self._pending is not None and not self._ahead_of_a_load():
            if (ended := self._resume(stepping=True)) is not None:
                self._plain = False
                self._ahead.append(ended)
                if isinstance(ended, Mmio) and ended.data is not None:
                    self._pending = ended

    def _ahead_of_a_load(self) -> bool:
        return bool(self._ahead) and answer_size(self._ahead[-1]) is not None

    def _resume(self, stepping: bool) -> Exit | None:
        """Make ready to go on after an exit; return the next one if its instruction makes another.

        An IN or OUT is executed again as part of what follows, unless something must come after it
        and before the next instruction; a load or store from a device is always stepped over.
        """
        pending, data = self._pending, self._data
        self._pending = self._data = None
        traps = self._traps
        if not self._again:
            if pending is not None:
                self._intercepts.finish(pending, data)
            return None
        if isinstance(pending, IoOut):
            traps.passed = True
        elif isinstance(pending, IoIn):
            traps.answer = int.from_bytes(data or b"\xff" * pending.size, "little")
        elif isinstance(pending, Mmio):
            if pending.data is None:
                bytes_read = data or b"\xff" * pending.size
                traps.known.update(enumerate(bytes_read, pending.gpa))
            else:
                traps.written.update(range(pending.gpa, pending.gpa + pending.size))
            stepping = True
        self._again = False
        if stepping or self._vector is not None or self._controller is not None:
            return self._step_over()
        self._left += 1  # it was counted when it stopped, and will be once more
        return None

    def _step_over(self) -> Exit | None:
        """Execute one instruction that is known to be plain I/O, by the trap flag.

        Not by an instruction limit: setting one drops all translations.
        """
        emu, traps = self._emu, self._traps
        rflags, dr6 = emu.read(raw.EFLAGS), emu.read(raw.DR0 + 6)
        emu.write(raw.EFLAGS, rflags | _TF)
        traps.stepping = True
        while traps.vector is None and traps.exit is None and traps.raised is None:
            if (
                emu.start(_ROUND if emu.counting else 0)
                and traps.exit is None
                and traps.vector is None
            ):
                break
        traps.stepping = False
        traps.restore_debug()
        if traps.must_undo:
            traps.undo()
        emu.write(raw.EFLAGS, emu.read(raw.EFLAGS) & ~_TF | rflags & _TF)
        if traps.exit is not None:
            return self._leave()
        traps.known.clear()
        traps.written.clear()
        if traps.vector == STEPPED:
            traps.vector = None
            emu.old_exception.value = -1
            if rflags & _TF:
                return self._deliver(events.Event(events.DB))
            emu.write(raw.DR0 + 6, dr6)
        elif traps.vector is not None:
            return self._event()
        return None

    # --- events -------------------------------------------------------------------------------

    def _event(self) -> Exit | None:
        """Do what the processor does with the exception or call that a hook has noted."""
        emu, traps = self._emu, self._traps
        vector, traps.vector = traps.vector, None
        assert vector is not None
        emu.old_exception.value = -1
        if vector in (SYSCALL, SYSENTER):
            return self._fast_call(vector)
        if vector == events.UD and (call := self._intercepts.hypercall()):
            if isinstance(call, Exit):
                return call
            self._hypercalls += 1
            return None
        if vector == events.UD and (opcode := self._intercepts.code(2)):
            if opcode[0] == _INT1:
                emu.rip.value += 1
                return self._deliver(events.Event(events.DB, None, "external"))
            if opcode == _RDPMC:
                return self._deliver(events.Event(events.GP, 0))
        code = emu.error_code.value if vector in events.WITH_ERROR_CODE else None
        kind: events.Kind = "software" if emu.is_int.value else "fault"
        emu.is_int.value = 0
        return self._deliver(events.Event(vector, None if kind == "software" else code, kind))

    def _deliver(self, event: events.Event) -> Exit | None:
        cpu = state.read_event_cpu(self._emu)
        try:
            failed = events.raise_event(cpu, events.LinearMemory(self._ram, cpu), event)
        except Unsupported as error:
            return EngineFailure(str(error))
        if failed is None:
            state.write_event_cpu(self._emu, cpu)
        return failed

    def _fast_call(self, which: int) -> Exit | None:
        emu = self._emu
        cpu = state.read_event_cpu(emu)
        back = cpu.rip
        done = syscall(cpu, emu.rdmsr, back) if which == SYSCALL else sysenter(cpu, emu.rdmsr)
        if isinstance(done, events.Event):
            emu.rip.value -= 2  # the emulator stands behind the two bytes already
            return self._deliver(done)
        if done is not None:
            back, rflags = done
            struct.pack_into("=Q", emu.view, raw.GPRS + 8, back)
            if rflags >= 0:
                struct.pack_into("=Q", emu.view, raw.GPRS + 88, rflags)
        state.write_event_cpu(emu, cpu)
        return None

    def _interrupts(self, limit: int) -> tuple[Exit | None, int]:
        """Deliver a waiting interrupt if the guest can take it; else return a limit of one
        instruction, after which to look again. A guest that sleeps is woken, or slept for."""
        controller = self._controller
        waiting = self._vector is not None or (controller is not None and controller.pending())
        takes = self._emu.read(raw.EFLAGS) & _IF and not state.shadow(self._emu)
        if self._asleep:
            if not (waiting and takes):
                self._awake.wait()
                self._awake.clear()
                self._slice_over = True  # look round before sleeping on
                return None, limit
            self._asleep = False
        if not waiting:
            return None, limit
        if not takes:
            self._waiting = True
            return None, 1
        if self._waiting and controller is None:
            self._waiting = False
            return InterruptWindow(), limit
        vector, self._vector = self._vector, None
        if vector is None:
            assert controller is not None
            vector = controller.acknowledge()
            self._acknowledged += 1
        return self._deliver(events.Event(vector, None, "external")), limit

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
        turns = self._vm.turns
        if turns.wanted and not self._vm.parallel:
            turns.give()
            turns.take(self.look_up)
        return None

    # --- small change -------------------------------------------------------------------------

    def _executed(self) -> int:
        """Instructions of the last start, the unfinished one included."""
        if self._traps.must_undo:
            return self._traps.counted
        return self._emu.executed.value

    def _code_written(self) -> None:
        self._stale = True
        self.look_up()

    def _memory(self) -> events.LinearMemory:
        return events.LinearMemory(self._ram, state.read_event_cpu(self._emu))

    def _may_use_ports(self, port: int, size: int) -> bool:
        return state.may_use_ports(self._emu, self._memory(), port, size)

    def _on_breakpoint(self, _: Any, address: int, __: int, ___: Any) -> None:
        if self._passing == address:
            self._passing = -1
            return
        if self._traps.exit is None:
            self._traps.exit = Debug(address)
            self._emu.stop()
