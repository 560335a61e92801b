"""The instruction that an exit has left unfinished, on the emulator.

An IN, a load or a store from a device ends when the guest goes on, with the VMM's answer; looking
at the registers before that ends it too. What ran behind an exit is taken back first.
"""

import struct

from vmlib.cpu import events
from vmlib.cpu.exits import Debug, Exit, IoIn, IoOut, Mmio, answer_size
from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.delivery import Delivery
from vmlib.cpu.unicorn.home import Home
from vmlib.cpu.unicorn.traps import STEPPED

ROUND = 100_000  # instructions between two looks round when they are counted
_LONGEST = 15  # bytes of an instruction
_TF = events.TF


class Unfinished(Delivery):
    """One vCPU on Unicorn, as far as ending an instruction goes."""

    def __init__(self, vm: Home, index: int) -> None:
        super().__init__(vm, index)
        self._data: bytes | None = None
        self._again = self._plain = False
        self._reported = -1
        self._left = 0
        self._ahead: list[Exit] = []  # came while an instruction was being finished
        self._passing = -1  # address of a breakpoint that has been passed already

    def _answer(self, data: bytes) -> None:
        self._data = data

    def _forget(self) -> None:
        self._traps.forget()
        self._pending = self._data = self._vector = None
        self._ahead.clear()
        self._again = self._asleep = self._waiting = False
        self._reported = -1

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
            if pending is not None and self._intercepts.finish(pending, data):
                return self._deliver(events.Event(events.GP, 0))
            return None
        if isinstance(pending, IoOut):
            traps.passed = True
        elif isinstance(pending, IoIn):
            traps.answer = int.from_bytes(data or b"\xff" * pending.size, "little")
        elif isinstance(pending, Mmio):
            if pending.data is None:
                bytes_read = data or b"\xff" * pending.size
                traps.device.known.update(enumerate(bytes_read, pending.gpa))
            else:
                traps.device.written.update(range(pending.gpa, pending.gpa + pending.size))
            stepping = True
        self._again = False
        if stepping or self._vector is not None or self._controller is not None:
            return self._step_over()
        self._left += 1  # it was counted when it stopped, and will be once more
        self._passing = traps.linear_rip()  # it was begun before any breakpoint there
        return None

    def _finish_first(self) -> None:
        """Execute the IN or OUT that was to be part of what follows, for `run` ends before that.

        Else whoever looks, saves or moves the vCPU now would see it undone, and do it twice.
        """
        if self._traps.passed or self._traps.answer is not None:
            self._left -= 1  # what `_resume` has added
            if (ended := self._step_over()) is not None:
                self._ahead.append(ended)

    def _step_over(self) -> Exit | None:
        """Execute one instruction that is known to be plain I/O, by the trap flag.

        Not by an instruction limit: setting one drops all translations.
        """
        emu, traps = self._emu, self._traps
        rflags, dr6 = emu.read(raw.EFLAGS), emu.read(raw.DR0 + 6)
        self._passing = traps.linear_rip()
        emu.write(raw.EFLAGS, rflags | _TF)
        traps.stepping = True
        while traps.vector is None and traps.exit is None and traps.raised is None:
            if (
                emu.start(ROUND if emu.counting else 0)
                and traps.exit is None
                and traps.vector is None
            ):
                break
        traps.stepping = False
        self._passing = -1
        traps.restore_debug()
        if traps.must_undo:
            traps.undo()
        emu.write(raw.EFLAGS, emu.read(raw.EFLAGS) & ~_TF | rflags & _TF)
        if traps.exit is not None:
            return self._leave()
        traps.device.forget()
        if traps.vector == STEPPED:
            traps.vector = None
            emu.old_exception.value = -1
            if rflags & _TF:
                return self._deliver(events.Event(events.DB))
            emu.write(raw.DR0 + 6, dr6)
        elif traps.vector is not None:
            return self._event()
        return None

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
