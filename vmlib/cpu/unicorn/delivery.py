"""Events on the emulator: what comes of an exception, a fast call or a waiting interrupt.

Unicorn notes them and does nothing. Here the guest's registers are taken out of it, `gates.py` and
`fast_calls.py` do what a processor does, and what comes of it is put back.
"""

import struct
import threading
from abc import abstractmethod

from vmlib.cpu import events, gates
from vmlib.cpu.engine import BaseVcpu
from vmlib.cpu.exits import EngineFailure, Exit, InterruptWindow
from vmlib.cpu.fast_calls import syscall, sysenter
from vmlib.cpu.linear import LinearMemory
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.unicorn.home import Home
from vmlib.cpu.unicorn.intercepts import Intercepts
from vmlib.cpu.unicorn.traps import SYSCALL, SYSENTER, Traps
from vmlib.errors import Unsupported

# What the emulator takes for invalid and a processor does not: INT1 calls the handler of #DB, and
# RDPMC finds no counter, for this processor has none (Intel SDM vol. 2A, INT n; vol. 2B, RDPMC).
_INT1, _RDPMC = 0xF1, b"\x0f\x33"


class Delivery(BaseVcpu):
    """One vCPU on Unicorn, as far as events go."""

    def __init__(self, vm: Home, index: int) -> None:
        super().__init__(index)
        self._vm = vm
        self._ram = vm.ram
        self._emu = Emulator()
        self._emu.map_ram(0, vm.ram.size, vm.ram.hva)
        self._traps = Traps(self._emu, vm.ram.size, vm)
        self._traps.may_use_ports = self._may_use_ports
        self._intercepts = Intercepts(self._emu, self._traps, self._memory, self._code_written)
        vm.ram.watchers.append(self._intercepts.written)
        self._controller = vm.controller if index == 0 else None
        self._vector: int | None = None
        self._hypercalls = self._acknowledged = 0
        self._asleep = self._waiting = self._slice_over = self._stale = False
        self._awake = threading.Event()

    @abstractmethod
    def look_up(self) -> None:
        """Make the loop look round without returning."""

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
            failed = gates.raise_event(cpu, LinearMemory(self._ram, cpu), event)
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
        takes = self._emu.read(raw.EFLAGS) & events.IF and not state.shadow(self._emu)
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

    def _memory(self) -> LinearMemory:
        return LinearMemory(self._ram, state.read_event_cpu(self._emu))

    def _may_use_ports(self, port: int, size: int) -> bool:
        return state.may_use_ports(self._emu, self._memory(), port, size)

    def _code_written(self) -> None:
        self._stale = True
        self.look_up()
