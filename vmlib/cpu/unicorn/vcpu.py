"""A vCPU on Unicorn: its state and what a VMM may ask of it. `loop.py` runs it."""

from collections.abc import Iterable

from vmlib.cpu import events
from vmlib.cpu.budget import Budget, Watchdog
from vmlib.cpu.capabilities import require
from vmlib.cpu.engine import INTERCEPTS
from vmlib.cpu.exits import Halt, MsrRead, MsrWrite
from vmlib.cpu.limits import (
    check_registers,
    check_state,
    check_system,
    check_vector,
    distinct_addresses,
)
from vmlib.cpu.state import Registers, SystemRegisters, VcpuState
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn.home import Home
from vmlib.cpu.unicorn.loop import EmulatorLoop
from vmlib.errors import BadInput, Unsupported
from vmlib.given import check_one


class UnicornVcpu(EmulatorLoop):
    """One vCPU on Unicorn; see `vmlib.cpu.engine.Vcpu` for what the methods promise."""

    def __init__(self, vm: Home, index: int) -> None:
        super().__init__(vm, index)
        self.start_real_mode(0)

    # --- state --------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """The registers now, after finishing a pending instruction."""
        self._check_open()
        self._settle()
        return state.read_registers(self._emu)

    def set_registers(self, registers: Registers) -> None:
        """Replace all general registers, RIP and RFLAGS."""
        self._check_open()
        check_registers(registers)
        self._abandon()
        state.write_registers(self._emu, registers)

    def system(self) -> SystemRegisters:
        """Segments, control registers and tables now, after finishing a pending instruction."""
        self._check_open()
        self._settle()
        return state.read_system(self._emu)

    def set_system(self, system: SystemRegisters) -> None:
        """Replace them."""
        self._check_open()
        check_system(system)
        self._abandon()
        state.write_system(self._emu, system)
        self._intercepts.forget_code()

    def save(self) -> VcpuState:
        """The full state, after finishing a pending instruction."""
        self._check_open()
        self._settle()
        return VcpuState(
            registers=state.read_registers(self._emu),
            system=state.read_system(self._emu),
            xsave=state.read_xsave(self._emu),
            msrs=state.read_msrs(self._emu),
            debug=state.read_debug(self._emu),
            interrupt=self._vector,
            shadow=state.shadow(self._emu),
            halted=self._asleep or self._ahead == [Halt()],
        )

    def restore(self, saved: VcpuState) -> None:
        """Become what `save` returned, on this engine or another; a pending exit is forgotten."""
        self._check_open()
        check_state(saved)
        state.write_xsave(self._emu, saved.xsave)  # may refuse: nothing is forgotten before
        self._forget()
        state.write_msrs(self._emu, saved.msrs)
        state.write_debug(self._emu, saved.debug)
        state.write_system(self._emu, saved.system)
        state.write_registers(self._emu, saved.registers)
        state.write_system(self._emu, saved.system)  # once more: its digest needs RFLAGS
        state.set_shadow(self._emu, saved.shadow)
        self._intercepts.forget_code()
        self._vector = saved.interrupt
        if saved.halted and self._controller is None:
            self._ahead = [Halt()]
        else:
            self._asleep = saved.halted
        self._plain = False

    # --- what the VMM asks for ----------------------------------------------------------------

    def set_budget(self, budget: Budget) -> None:
        """Limit time, instructions, or both, counted from now."""
        self._plain = False
        self._check_open()
        check_one(budget, Budget, "budget")
        if self._watchdog is not None:
            self._watchdog.close()
        self._budget = budget
        self._watchdog = None
        self._left = budget.instructions or 0
        if budget.seconds is not None:
            self._watchdog = Watchdog(budget.seconds, self.look_up)

    def inject(self, vector: int) -> None:
        """Have an external interrupt delivered as soon as the guest can take it."""
        self._plain = False
        self._check_open()
        check_vector(vector)
        if self._controller is not None:
            raise Unsupported(
                "with an interrupt controller inside it decides what the vCPU gets; raise one of "
                "its lines with set_irq"
            )
        if self._vector is not None:
            raise BadInput("inject", f"vector {self._vector} is still waiting")
        self._vector = vector

    def kick(self) -> None:
        """Make `run` return soon. Callable from any thread, at any time, and never lost."""
        self._check_open()
        self._kicked = True
        self._stop_while(lambda: self._kicked)

    def breakpoints(self, addresses: Iterable[int]) -> None:
        """Replace the debugger's breakpoints by these linear addresses, four at most."""
        self._plain = False
        self._check_open()
        wanted = distinct_addresses(addresses)
        for number in self._breakpoints.values():
            self._emu.unhook(number)
        self._breakpoints = {
            address: self._emu.hook(
                raw.HOOK_CODE, raw.CODE_HOOK(self._on_breakpoint), begin=address, end=address
            )
            for address in wanted
        }
        self._emu.forget_code()

    def intercept(self, *kinds: str) -> None:
        """Have these exit too."""
        self._plain = False
        self._check_open()
        for kind in kinds:
            if kind not in INTERCEPTS:
                raise BadInput("intercept", f"{kind!r} is unknown; {', '.join(INTERCEPTS)}")
            require("unicorn", kind)
        self._intercepts.switch_on(kinds)

    def refuse(self) -> None:
        """Answer an MsrRead or MsrWrite with a general-protection fault."""
        self._check_open()
        if not isinstance(self._pending, MsrRead | MsrWrite):
            raise BadInput("refuse", "no RDMSR or WRMSR is waiting for an answer")
        self._pending = None
        self._plain = False
        if (failed := self._deliver(events.Event(events.GP, 0))) is not None:
            self._ahead.append(failed)

    def close(self) -> None:
        """Let the emulator go."""
        self._plain = False
        if self._closed:
            return
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._ram.watchers.remove(self._intercepts.written)
        self._traps.close()
        self._emu.close()
