"""What the emulator's hooks catch, and how it is made to stop there and nowhere else.

Each method named `_on_…` is called by the emulator in the middle of an instruction. It answers at
once (a device handled inside), or notes why the guest has to leave and asks for a stop. Where the
emulator stops differs:

* A load, an exception: at once, before the instruction.
* IN and OUT: for each, the processor's own I/O breakpoint is set on the port that is being used,
  while it is used. Its trap comes right behind the instruction, and ends the run because for that
  moment nobody is called for exceptions.
* A store to a device, CPUID: at the end of the translated block, many instructions late. The
  registers as they are *now* are kept, stores to RAM are suppressed, and after the stop everything
  since is undone (`undo`).

A guest that left in the middle of an instruction executes it again when it comes back, and finds
the answer waiting. That is KVM's rule too: an IN is finished on re-entry.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from vmlib.cpu.events import GP, UD
from vmlib.cpu.exits import EngineFailure, Exit, Mmio, io_in, io_out
from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.device_memory import DeviceMemory
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.unicorn.home import REFUSED, Inside

SYSCALL, SYSENTER, STEPPED = -1, -2, -3
"""What `vector` says besides exceptions: things that the emulator leaves to us."""

_MASKS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_STRINGS = (b"\x6c", b"\x6d", b"\x6e", b"\x6f")
_CS64 = 1 << 15
IO_BREAKPOINT = 1 << 24
"""The bit of `hflags` that makes I/O instructions look at the breakpoints."""
_BREAK_ON_IO = 0x00020402  # DR7: breakpoint 0, global, one byte, I/O read or write
# Fields of the CPU as indices of 64-bit words.
_RAX, _RIP, _CS = raw.GPRS // 8, raw.RIP // 8, (raw.SEGMENTS + raw.SEGMENT.size) // 8 + 1
_EFLAGS = raw.EFLAGS_RAW // 8
_DR0, _DR6, _DR7 = raw.DR0_RAW // 8, raw.DR6_RAW // 8, raw.DR7_RAW // 8


class Traps:
    """The hooks of one emulator, and what they caught since the last `clear`."""

    def __init__(self, emu: Emulator, ram_size: int, inside: Inside) -> None:
        self.emu = emu
        self.exit: Exit | None = None
        self.vector: int | None = None
        self.raised: BaseException | None = None
        self.redo: tuple[int, int] | None = None
        """RIP and RAX to go back to, so that an IN is executed again with its answer."""
        self.must_undo = False
        self.in_time = False
        """Whether the guest stops at the noted exit and nothing has to be put right then."""
        self.counted = 0
        """Instructions executed when the late stop was asked for."""
        self.answer: int | None = None
        """What the IN or CPUID that is executed again shall find."""
        self.passed = False
        """The OUT that is executed again has been reported: let it pass."""
        self.stepping = False
        self.handled_io = 0
        self.cpuid_exits: Callable[[], Exit | None] | None = None
        self.may_use_ports: Callable[[int, int], bool] = lambda port, size: True
        self.strings: dict[int, bool] = {}
        """By linear address of an I/O instruction that has run: whether it is a string one."""
        self._ram_size = ram_size
        self._inside = inside
        self.device = DeviceMemory(emu, ram_size, inside)
        self._snapshot = ctypes.create_string_buffer(raw.ENV_SIZE)
        self._words = emu.view.cast("Q")
        self._flags = emu.view[raw.HFLAGS : raw.HFLAGS + 4].cast("I")
        self._debug: tuple[int, int, int] | None = None
        self._suppressed = False
        for kind, call, insn in (
            (raw.HOOK_INSN, raw.OUT_HOOK(self._on_out), raw.INSN_OUT),
            (raw.HOOK_INSN, raw.IN_HOOK(self._on_in), raw.INSN_IN),
            (raw.HOOK_INSN, raw.CPUID_HOOK(self._on_cpuid), raw.INSN_CPUID),
            (raw.HOOK_INSN, raw.PLAIN_HOOK(self._on_syscall), raw.INSN_SYSCALL),
            (raw.HOOK_INSN, raw.PLAIN_HOOK(self._on_sysenter), raw.INSN_SYSENTER),
            (raw.HOOK_INVALID, raw.INVALID_HOOK(self._on_invalid), 0),
            (raw.HOOK_MEMORY, raw.MEMORY_HOOK(self._on_memory), 0),
        ):
            emu.hook(kind, call, insn)
        exceptions = emu.hook(raw.HOOK_INTERRUPT, raw.INTERRUPT_HOOK(self._on_interrupt))
        self._deaf = ctypes.c_uint8.from_address(exceptions + raw.HOOK_DELETED)

    def linear_rip(self) -> int:
        """Linear address of the instruction at which the guest stands."""
        return (self._words[_RIP] + self._words[_CS]) & (1 << 64) - 1

    def close(self) -> None:
        """Let go of the CPU's memory."""
        self._words.release()
        self._flags.release()

    def forget(self) -> None:
        """Drop all that is pending."""
        self.exit = self.vector = self.raised = self.redo = self.answer = None
        self.must_undo = self.passed = self.stepping = False
        self.device.forget()

    def fault(self) -> None:
        """Have the instruction that is about to run raise #GP(0) instead."""
        self.vector = GP
        self._stop_late()

    def undo(self) -> None:
        """Take back what ran after the instruction that asked for a stop too late."""
        self.must_undo = False
        ctypes.memmove(self.emu.env, self._snapshot, raw.ENV_SIZE)
        # In the middle of a block the arithmetic flags stand in a lazy form; between two starts
        # the emulator wants them in EFLAGS.
        self._words[_EFLAGS] = self.emu.read(raw.EFLAGS)
        if self._suppressed:
            self._suppressed = False
            self.emu.protect(0, self._ram_size, True)

    def learn(self, code: bytes) -> None:
        """Note whether the I/O instruction at RIP, whose bytes these are, is a string one.

        A string one is always undone and executed again: it may be in the middle of a REP.
        """
        opcode = code.lstrip(_PREFIXES)
        if self.emu.hflags.value & _CS64 and opcode and opcode[0] & 0xF0 == 0x40:
            opcode = opcode[1:]
        self.strings[self._words[_RIP] + self._words[_CS]] = opcode[:1] in _STRINGS

    def restore_debug(self) -> None:
        """Give the guest its debug registers back after a stop by the I/O breakpoint."""
        if self._debug is not None:
            words = self._words
            words[_DR0], words[_DR6], words[_DR7] = self._debug
            self._debug = None
            self._deaf.value = self.in_time = False

    # --- called by the emulator ---------------------------------------------------------------

    def _on_out(self, _: int, port: int, size: int, value: int) -> None:
        if self.exit is not None or self.vector is not None:
            return  # the tail of a block that will be undone
        if self.passed:
            self.passed = False
            return
        if self._flags[0] & 3 and self._forbidden(port, size):
            return
        value &= _MASKS[size]
        handler = self._inside.writes.get(port)
        if handler is not None:
            try:
                if handler(port, size, value) is not REFUSED:
                    self.handled_io += 1
                    return
            except BaseException as error:
                self._fail(error)
                return
        self.exit = io_out(port, size, value)
        if self.strings.get(self._words[_RIP] + self._words[_CS], True):
            self._keep_state()
        self._break_at(port)

    def _on_in(self, _: int, port: int, size: int) -> int:
        if self.exit is not None or self.vector is not None:
            return 0
        if self.answer is not None:
            answer, self.answer = self.answer, None
            return answer
        if self._flags[0] & 3 and self._forbidden(port, size):
            return 0
        handler = self._inside.reads.get(port)
        if handler is not None:
            try:
                value = handler(port, size) & _MASKS[size]
                self.handled_io += 1
                return value
            except BaseException as error:
                self._fail(error)
                return 0
        self.exit = io_in(port, size)
        if self.strings.get(self._words[_RIP] + self._words[_CS], True):
            self._keep_state()
        else:
            self.redo = self._words[_RIP], self._words[_RAX]
        self._break_at(port)
        return 0

    def _on_cpuid(self, _: Any, __: Any) -> int:
        if self.exit is not None or self.vector is not None:
            return 1
        if self.cpuid_exits is None:
            return 0
        try:
            asks = self.cpuid_exits()
        except BaseException as error:
            self._fail(error)
            return 1
        if asks is None:
            return 1
        self.exit = asks
        self._stop_late()
        return 1

    def _on_syscall(self, _: Any, __: Any) -> None:
        self._note(SYSCALL)

    def _on_sysenter(self, _: Any, __: Any) -> None:
        self._note(SYSENTER)

    def _on_interrupt(self, _: Any, vector: int, __: Any) -> None:
        self._note(STEPPED if self.stepping and vector == 1 else vector)

    def _on_invalid(self, _: Any, __: Any) -> bool:
        self._note(UD)
        return False

    def _note(self, vector: int) -> None:
        if self.exit is None and self.vector is None:
            self.vector = vector
        self.emu.stop()

    def _on_memory(self, _: Any, access: int, gpa: int, size: int, value: int, __: Any) -> bool:
        if self.exit is not None or self.vector is not None:
            return False  # suppressed; it will be undone
        if gpa < self._ram_size:
            return False  # a store while `protect` is on: suppressed
        if access not in raw.READS and access not in raw.WRITES:
            self.exit = EngineFailure(f"the guest jumped to GPA {gpa:#x}, where there is no RAM")
            self.emu.stop()
            return False
        try:
            if self.device.settled(access, gpa, size):
                return True
            if self.device.handle(access, gpa, size, value):
                return True
        except BaseException as error:
            self._fail(error)
            return False
        if access in raw.READS:
            self.exit = Mmio(gpa, size, None)
            self.emu.stop()
        else:
            self.exit = Mmio(gpa, size, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
            self._stop_late()
        return False

    # --- small change -------------------------------------------------------------------------

    def _keep_state(self) -> None:
        """Keep the registers as they are: `undo` will bring them back."""
        ctypes.memmove(self._snapshot, self.emu.env, raw.ENV_SIZE)
        self.counted = self.emu.executed.value
        self.must_undo = True

    def _stop_late(self) -> None:
        """Stop at the end of the block, which will be undone: its stores are suppressed."""
        self._keep_state()
        self._suppressed = True
        self.emu.protect(0, self._ram_size, False)
        self.emu.stop()

    def _break_at(self, port: int) -> None:
        """Have the instruction that is using this port trap as soon as it is done."""
        words = self._words
        if self._flags[0] & IO_BREAKPOINT:
            self._debug = words[_DR0], words[_DR6], words[_DR7]
            words[_DR0], words[_DR7] = port, _BREAK_ON_IO
            self._deaf.value = True
            self.in_time = not self.must_undo and self.redo is None
            return
        self.redo = None  # the guest wrote DR7, and the digest lost the bit
        self._stop_late()

    def _fail(self, error: BaseException) -> None:
        self.raised = error
        self._stop_late()

    def _forbidden(self, port: int, size: int) -> bool:
        """Note #GP if the guest, which is not in ring 0, has no right to this port."""
        if self.may_use_ports(port, size):
            return False
        self.fault()
        return True
