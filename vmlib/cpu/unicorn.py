"""The Unicorn engine: a vCPU that needs no privilege and no hardware, in real mode so far.

Unicorn is QEMU's translator as a library. It executes instructions faithfully but was made for
analysing code, not for being a machine, and four habits of it are mended here:

* After an OUT it would run on to the end of the translated block. Every run therefore carries an
  instruction count, whose check after each instruction makes a stop precise.
* The address at which to stop is a trap when the guest may jump anywhere; it is switched off.
* It never delivers an exception or INT to the guest. `_deliver` does, through the real-mode
  vector table, and finds out when that fails: the triple fault (Intel SDM vol. 3A, 21.1.4, 6.15).
* It remembers the last fault for ever, so the second one looks like a double fault. The memory
  is wiped after each delivery.

This is the only file that imports Unicorn, which is licensed under the GPL, version 2.
"""

import contextlib
import ctypes
import threading
import time
from typing import Any

import unicorn as uc
from unicorn import x86_const as x86

from vmlib.cpu import real_mode
from vmlib.cpu.budget import Budget, Watchdog
from vmlib.cpu.engine import REAL_MODE_SP, BaseVm, Registers, check_real_mode_start
from vmlib.cpu.exits import (
    BudgetSpent,
    EngineFailure,
    Exit,
    Halt,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    Shutdown,
)
from vmlib.errors import BadInput, Unsupported
from vmlib.memory import GuestRam

VERSION = uc.__version__

_NO_LIMIT = 1 << 62
_HLT = 0xF4
_INS = (b"\x6c", b"\x6d")
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"

# Offset of CPUX86State.old_exception in the bytes of a saved context, Unicorn 2.1.4.
# `_forget_fault` refuses to write when the value found there is not the expected one.
_OLD_EXCEPTION = 5536

# The registers that real mode has, by their names in `Registers`.
_REGISTERS = {
    "rax": x86.UC_X86_REG_EAX,
    "rbx": x86.UC_X86_REG_EBX,
    "rcx": x86.UC_X86_REG_ECX,
    "rdx": x86.UC_X86_REG_EDX,
    "rsi": x86.UC_X86_REG_ESI,
    "rdi": x86.UC_X86_REG_EDI,
    "rsp": x86.UC_X86_REG_ESP,
    "rbp": x86.UC_X86_REG_EBP,
    "rip": x86.UC_X86_REG_EIP,
    "rflags": x86.UC_X86_REG_EFLAGS,
}


class UnicornVm(BaseVm["UnicornVcpu"]):
    """A VM whose vCPU is Unicorn."""

    engine = "unicorn"

    def _new_vcpu(self) -> "UnicornVcpu":
        if self.vcpus:
            raise Unsupported("this engine runs one vCPU per VM so far")
        return UnicornVcpu(self.ram)

    def _release(self) -> None:
        pass  # the emulator goes with its vCPU


class UnicornVcpu:
    """One vCPU on Unicorn; see `vmlib.cpu.engine.Vcpu` for what the methods promise."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._uc: Any = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_16)
        self._uc.ctl_exits_enabled(True)  # and no exit listed: `until` is ignored
        self._uc.mem_map_ptr(0, ram.size, uc.UC_PROT_ALL, ram.hva)
        for hook, call in (
            (uc.UC_HOOK_INTR, self._on_interrupt),
            (uc.UC_HOOK_INSN_INVALID, self._on_invalid),
            (uc.UC_HOOK_MEM_UNMAPPED, self._on_unmapped),
        ):
            self._uc.hook_add(hook, call)
        self._uc.hook_add(uc.UC_HOOK_INSN, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        self._uc.hook_add(uc.UC_HOOK_INSN, self._on_in, None, 1, 0, x86.UC_X86_INS_IN)
        self._exit: Exit | None = None
        self._vector: int | None = None
        self._answer: bytes | None = None
        self._string_input = False
        self._kicked = threading.Event()
        self._running = False
        self._thread = 0
        self._closed = False
        self._budget = Budget()
        self._watchdog: Watchdog | None = None
        self._counter: int | None = None
        self._left = 0
        self.start_real_mode(0)

    def start_real_mode(self, ip: int, sp: int = REAL_MODE_SP) -> None:
        """Real mode, every segment base 0, IDT limit 0xffff at 0 as after reset."""
        self._open()
        check_real_mode_start(ip, sp)
        for register in _REGISTERS.values():
            self._uc.reg_write(register, 0)
        for name in ("CS", "DS", "ES", "SS", "FS", "GS"):
            self._uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), 0)
        self._uc.reg_write(x86.UC_X86_REG_IDTR, (0, 0, 0xFFFF, 0))
        self._uc.reg_write(x86.UC_X86_REG_EFLAGS, 2)
        self._uc.reg_write(x86.UC_X86_REG_SP, sp)
        self._uc.reg_write(x86.UC_X86_REG_EIP, ip)
        # The guest's code was written by Python, which the translator does not see.
        self._uc.ctl_flush_tb()
        self._exit = self._answer = None

    def set_budget(self, budget: Budget) -> None:
        """Limit time, instructions, or both, counted from now."""
        self._open()
        if self._watchdog is not None:
            self._watchdog.close()
        if self._counter is not None:
            self._uc.hook_del(self._counter)
            self._counter = None
        self._budget = budget
        self._watchdog = None
        if budget.seconds is not None:
            self._watchdog = Watchdog(budget.seconds, self._stop_now)
        if budget.instructions is not None:
            self._left = budget.instructions
            self._counter = self._uc.hook_add(uc.UC_HOOK_CODE, self._on_instruction)

    def run(self) -> Exit:
        """Run until something happens that the emulator cannot finish."""
        ended = self._go(_NO_LIMIT)
        assert ended is not None, "without a step limit the emulator stops for a reason"
        return ended

    def step(self) -> Exit | None:
        """Run one instruction."""
        return self._go(1)

    def complete(self, data: bytes) -> None:
        """Answer the pending IN."""
        pending = self._exit
        if not isinstance(pending, IoIn):
            raise BadInput("complete", "no IN is waiting for an answer")
        if len(data) != pending.size:
            raise BadInput("complete", f"the guest reads {pending.size} byte(s), not {len(data)}")
        self._answer = bytes(data)

    def kick(self) -> None:
        """Leave the guest soon, or, when it is not running, at the next `run`."""
        self._kicked.set()
        # A stop that arrives before the emulator has started is forgotten: repeat it.
        while self._running and self._kicked.is_set():
            self._stop_now()
            if threading.get_ident() == self._thread:
                return
            time.sleep(0.0005)

    def registers(self) -> Registers:
        """The registers now."""
        self._open()
        self._finish_in()
        return Registers(**{name: self._uc.reg_read(where) for name, where in _REGISTERS.items()})

    def close(self) -> None:
        """Let the emulator go."""
        if self._closed:
            return
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._uc = None

    # --- the loop around the emulator ---------------------------------------------------------

    def _go(self, count: int) -> Exit | None:
        self._open()
        if isinstance(self._exit, Mmio):
            raise Unsupported("this engine cannot go on after an MMIO exit so far")
        if self._budget.instructions is not None and self._left <= 0:
            return BudgetSpent(str(self._budget))
        if isinstance(self._exit, IoIn):
            undriven = b"\xff" * self._exit.size  # a bus that nobody drives floats high
            self._answer = self._answer or undriven
            self._finish_in()
        self._exit = None
        with self._watchdog or contextlib.nullcontext():
            while True:
                ended = self._emulate(count)
                if ended is not None or self._vector is None:
                    self._exit = ended
                    return ended
                vector, self._vector = self._vector, None
                if (failed := self._deliver(vector)) is not None:
                    self._exit = failed
                    return failed
                if count == 1:
                    return None

    def _emulate(self, count: int) -> Exit | None:
        """Enter the emulator once; None with `_vector` set if an event must be delivered."""
        self._running = True  # before the look at _kicked: a later kick stops the emulator
        if self._kicked.is_set() or (self._watchdog is not None and self._watchdog.expired):
            self._running = False
            return self._interrupted()
        self._exit = None
        self._thread = threading.get_ident()
        eip = self._uc.reg_read(x86.UC_X86_REG_EIP)
        start = (self._uc.reg_read(x86.UC_X86_REG_CS) << 4) + (eip & 0xFFFF)
        try:
            self._uc.emu_start(start, 0, count=count)
        except uc.UcError as error:
            if self._exit is None and self._vector is None:
                return EngineFailure(f"Unicorn gave up at {start:#x}: {error}")
        finally:
            self._running = False
        if self._exit is not None or self._vector is not None:
            return self._exit
        if self._budget.instructions is not None and self._left < 0:
            self._left = 0
            return BudgetSpent(str(self._budget))
        if self._kicked.is_set() or (self._watchdog is not None and self._watchdog.expired):
            return self._interrupted()
        return self._halted(count)

    def _finish_in(self) -> None:
        """Put the device's answer into AL, AX or EAX: the emulator has moved on with a zero there.

        An INS has not moved on. It runs again and takes the answer in `_on_in`.
        """
        if self._answer is None or self._string_input:
            return
        keep = -1 << 8 * len(self._answer)
        eax = self._uc.reg_read(x86.UC_X86_REG_EAX) & keep & 0xFFFFFFFF
        eax |= int.from_bytes(self._answer, "little")
        self._uc.reg_write(x86.UC_X86_REG_EAX, eax)
        self._answer = self._exit = None

    def _halted(self, count: int) -> Exit | None:
        """Unicorn returns from HLT and from a used-up count alike: look at what it executed."""
        last = self._linear_ip() - 1
        if 0 <= last < self._ram.size and self._ram.read(last, 1)[0] == _HLT:
            return Halt()
        return None if count == 1 else EngineFailure("Unicorn stopped and did not say why")

    def _interrupted(self) -> Exit:
        if self._watchdog is not None and self._watchdog.expired:
            return BudgetSpent(str(self._budget))
        self._kicked.clear()
        return Kicked()

    def _deliver(self, vector: int) -> Exit | None:
        """Send the guest to its handler; return an exit where it has none."""
        self._forget_fault(vector)
        read, write = self._uc.reg_read, self._uc.reg_write
        _, base, limit, _ = read(x86.UC_X86_REG_IDTR)
        protected = read(x86.UC_X86_REG_CR0) & 1
        size = real_mode.PROTECTED_ENTRY_SIZE if protected else real_mode.ENTRY_SIZE
        gate = real_mode.find_gate(vector, limit, self._linear_ip(), size)
        if isinstance(gate, Shutdown):
            return gate
        if protected:
            return EngineFailure("this engine delivers events in real mode only, so far")
        state = real_mode.State(
            cs=read(x86.UC_X86_REG_CS),
            ip=read(x86.UC_X86_REG_EIP) & 0xFFFF,
            flags=read(x86.UC_X86_REG_EFLAGS) & 0xFFFF,
            ss=read(x86.UC_X86_REG_SS),
            sp=read(x86.UC_X86_REG_SP),
        )
        at_handler = real_mode.deliver(self._ram, gate, base, state)
        if isinstance(at_handler, Shutdown):
            return at_handler
        write(x86.UC_X86_REG_SP, at_handler.sp)
        write(x86.UC_X86_REG_EFLAGS, at_handler.flags)
        write(x86.UC_X86_REG_CS, at_handler.cs)
        write(x86.UC_X86_REG_EIP, at_handler.ip)
        return None

    def _forget_fault(self, vector: int) -> None:
        context = self._uc.context_save()
        address = ctypes.cast(context.context, ctypes.c_void_p).value
        assert address is not None
        old = ctypes.c_int32.from_address(address + _OLD_EXCEPTION)
        if old.value == -1:
            return
        if old.value != vector:
            raise Unsupported(f"Unicorn {VERSION} keeps its state elsewhere than 2.1.4 does")
        old.value = -1
        self._uc.context_restore(context)

    def _linear_ip(self) -> int:
        cs = int(self._uc.reg_read(x86.UC_X86_REG_CS))
        return (cs << 4) + int(self._uc.reg_read(x86.UC_X86_REG_EIP) & 0xFFFF)

    def _open(self) -> None:
        if self._closed:
            raise BadInput("vcpu", "is closed")

    def _stop_now(self) -> None:
        engine = self._uc
        if engine is not None and self._running:
            engine.emu_stop()

    # --- hooks: called by the emulator in the middle of an instruction -------------------------

    def _on_out(self, engine: Any, port: int, size: int, value: int, _: object) -> None:
        self._exit = IoOut(port, size, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        engine.emu_stop()

    def _on_in(self, engine: Any, port: int, size: int, _: object) -> int:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            return int.from_bytes(answer, "little")
        self._exit = IoIn(port, size)
        at = self._linear_ip()
        code = self._ram.read(at, min(15, self._ram.size - at)).lstrip(_PREFIXES)
        self._string_input = code[:1] in _INS
        engine.emu_stop()
        return 0

    def _on_interrupt(self, engine: Any, vector: int, _: object) -> None:
        self._vector = vector
        engine.emu_stop()

    def _on_invalid(self, engine: Any, _: object) -> bool:
        self._vector = real_mode.INVALID_OPCODE
        engine.emu_stop()
        return False

    def _on_unmapped(
        self, engine: Any, access: int, gpa: int, size: int, value: int, _: object
    ) -> bool:
        if access == uc.UC_MEM_FETCH_UNMAPPED:
            self._exit = EngineFailure(f"the guest jumped to {gpa:#x}, where there is no RAM")
        else:
            wrote = access == uc.UC_MEM_WRITE_UNMAPPED
            data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little") if wrote else None
            self._exit = Mmio(gpa, size, data)
        engine.emu_stop()
        return False

    def _on_instruction(self, engine: Any, address: int, size: int, _: object) -> None:
        self._left -= 1
        if self._left < 0:
            engine.emu_stop()
