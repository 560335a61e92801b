"""A vCPU of KVM's: what happens before an entry and after an exit.

Most entries have nothing before them, and `run` goes straight to KVM_RUN. An interrupt that
waits, a breakpoint to step off, a time budget or an MSR to be written make it think first. How a
guest is entered and left is in `entry.py`.

Left out: the guest's own single-stepping while the debugger's breakpoints are set.
"""

import mmap
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace

from vmlib.cpu.capabilities import require
from vmlib.cpu.engine import INTERCEPTS
from vmlib.cpu.exits import (
    BudgetSpent,
    Debug,
    Exit,
    Halt,
    InterruptWindow,
    IoOut,
    Kicked,
    MsrRead,
    MsrWrite,
)
from vmlib.cpu.kvm import abi, oddities
from vmlib.cpu.kvm import exits as kvm_exits
from vmlib.cpu.kvm.calls import failure, run_ioctl
from vmlib.cpu.kvm.entry import KvmEntry, here
from vmlib.cpu.kvm.file import VcpuFile
from vmlib.cpu.limits import (
    check_registers,
    check_state,
    check_system,
    check_vector,
    distinct_addresses,
)
from vmlib.cpu.state import EFER_LMA, Registers, SystemRegisters, VcpuState
from vmlib.errors import BadInput, HostUnavailable, Unsupported, VmlibError
from vmlib.memory import GuestRam

_HLT = b"\xf4"
_unpack_head = abi.RUN_HEAD_IO.unpack_from


class KvmVcpu(KvmEntry):
    """One vCPU; see `vmlib.cpu.engine.Vcpu` for what the methods promise.

    `handled` stays empty: what the kernel finishes, it does not report. An interrupt that was
    injected is delivered by `run`, not by `step`.
    """

    def __init__(
        self,
        index: int,
        file: VcpuFile,
        page: mmap.mmap,
        ram: GuestRam,
        irqchip: bool,
        intercept_msrs: Callable[[], None],
    ) -> None:
        super().__init__(index, file, page, ram)
        self._irqchip = irqchip
        self._intercept_msrs = intercept_msrs
        self._oddities = oddities.here()
        self._waiting: int | None = None  # an interrupt
        self._breakpoints: tuple[int, ...] = ()
        self._at_breakpoint = False
        self.start_real_mode(0)

    # --- running ------------------------------------------------------------------------------

    def run(self) -> Exit:
        """KVM_RUN until it returns with something to say."""
        me = here.tid
        if self._fast != me:
            return self._run_carefully()
        made: Exit | None
        self._inside = me
        try:
            if run_ioctl(self._fd, abi.RUN, 0):
                made = self._interrupted(failure())
            else:
                page = self._page
                reason, way, size, port, count, at = _unpack_head(page, abi.RUN_EXIT_REASON)
                if reason == abi.EXIT_IO and way:
                    self._pending = made = IoOut(port, size, page[at : at + size * count])
                    self.exits["IO"] += 1
                    return made
                made = self._decode()
        finally:
            self._inside = 0
        return self._run_carefully() if made is None else self._left(made)

    def step(self) -> Exit | None:
        """Run one instruction; None if it finished inside the guest."""
        self._take()
        self._settle()
        made, self._ahead = self._ahead or self._spent(), None
        if made is None:
            with self._watchdog or nullcontext():
                made = self._single_step()
        if made is not None:
            return self._left(made)
        self._at_breakpoint = False
        self._tune()
        return None

    # --- what the VMM answers and asks for ----------------------------------------------------

    def refuse(self) -> None:
        """Answer an MsrRead or MsrWrite with a general-protection fault."""
        self._check_mine()
        if not isinstance(self._pending, MsrRead | MsrWrite):
            raise BadInput("refuse", "no RDMSR or WRMSR is waiting for an answer")
        self._msr_write = None
        self._page[abi.RUN_MSR_ERROR] = 1

    def inject(self, vector: int) -> None:
        """Have an external interrupt delivered as soon as the guest can take it."""
        self._check_mine()
        if self._irqchip:
            raise Unsupported(
                "with an irqchip the kernel's interrupt controller decides what the vCPU gets; "
                "raise one of its lines with set_irq"
            )
        check_vector(vector)
        if self._waiting is not None:
            raise BadInput("inject", f"vector {self._waiting} is still waiting")
        self._waiting = vector
        self._tune()

    def breakpoints(self, addresses: Iterable[int]) -> None:
        """Replace the debugger's breakpoints by these linear addresses, four at most."""
        self._check_mine()
        self._breakpoints = distinct_addresses(addresses)
        self._arm()

    def intercept(self, *kinds: str) -> None:
        """Have RDMSR and WRMSR exit too: all of them but the x2APIC's, on all vCPUs of the VM.

        KVM's filter belongs to the VM. An exit that is not answered changes nothing: a read gets
        the value that KVM has, a write is done, and an index that KVM does not know faults.
        """
        self._check_mine()
        for kind in kinds:
            if kind not in INTERCEPTS:
                raise BadInput("intercept", f"{kind!r} is none of {', '.join(INTERCEPTS)}")
            require("kvm", kind)
        if kinds:
            self._intercept_msrs()

    # --- state --------------------------------------------------------------------------------

    def registers(self) -> Registers:
        """The registers, after the instruction that caused the last exit has finished."""
        self._check_mine()
        self._settle()
        return self._file.registers()

    def set_registers(self, registers: Registers) -> None:
        """Replace all general registers, RIP and RFLAGS."""
        self._check_mine()
        check_registers(registers)
        self._settle()
        self._at_breakpoint &= registers.rip == self._file.registers().rip
        self._abandon()
        self._file.set_registers(registers)

    def system(self) -> SystemRegisters:
        """Segments, control registers and tables now, after finishing a pending instruction."""
        self._check_mine()
        self._settle()
        return self._file.system()

    def set_system(self, system: SystemRegisters) -> None:
        """Replace them; `BadInput` where KVM finds that they contradict each other."""
        self._check_mine()
        check_system(system)
        self._settle()
        kept = self._file.registers()  # a string instruction in its midst goes on where it was
        if kvm_exits.is_unfinished(self._ahead):  # would KVM refuse it? then all is as it was
            now = self._file.system()
            self._file.set_system(system)
            self._file.set_system(now)
            self._abandon()
        self._file.set_system(system)
        self._ahead = None
        self._tune()
        self._file.set_registers(kept)

    def save(self) -> VcpuState:
        """The full state, after finishing a pending instruction."""
        self._check_mine()
        self._settle()
        state = self._file.save()
        if self._waiting is not None:
            state = replace(state, interrupt=self._waiting)
        return replace(state, halted=True) if isinstance(self._ahead, Halt) else state

    def restore(self, state: VcpuState) -> None:
        """Become what `save` returned; `Unsupported` names what this host's KVM does not have."""
        self._check_mine()
        check_state(state)
        before = self.save()
        try:
            self._become(state)
        except VmlibError:  # KVM has taken some of it, and not the rest
            self._become(before)
            raise

    def _become(self, state: VcpuState) -> None:
        self._forget()
        if self._irqchip:
            self._file.restore(state)
            return
        # Without an irqchip an interrupt waits here, and nobody in the kernel ends a halt.
        self._file.restore(replace(state, interrupt=None, halted=False))
        self._waiting = state.interrupt
        self._ahead = Halt() if state.halted else None
        self._tune()

    # --- before an entry, and after an exit -----------------------------------------------------

    def _thinks(self) -> bool:
        return super()._thinks() or self._at_breakpoint or self._waiting is not None

    def _run_carefully(self) -> Exit:
        self._take()
        made, self._ahead = self._ahead, None
        if made is None:
            with self._watchdog or nullcontext():
                made = self._enter()
        return self._left(made)

    def _enter(self) -> Exit:
        """Run until there is an exit to show, with whatever has to be done before."""
        made: Exit | None
        if (made := self._spent()) is not None:
            return made
        if self._at_breakpoint and (made := self._single_step()) is not None:
            return made
        while (made := self._spent()) is None:
            if self._waiting is not None and (made := self._offer_interrupt()) is not None:
                break
            made = self._once()
            if isinstance(made, InterruptWindow):
                self._page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = 0
                if self._waiting is None:
                    continue
            if made is not None:
                break
        return made

    def _offer_interrupt(self) -> Exit | None:
        """Hand the waiting interrupt to KVM if the guest can take it now, else ask for a window."""
        self._finish()  # also where nothing is pending: it brings the page's flags up to date
        if self._ahead is not None:
            made, self._ahead = self._ahead, None
            return made
        can = self._page[abi.RUN_READY_FOR_INTERRUPT] and self._page[abi.RUN_IF_FLAG]
        if can and self._waiting is not None:
            self._file.interrupt(self._waiting)
            self._waiting = None
        self._page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = not can
        return None

    def _single_step(self) -> Exit | None:
        """Run one instruction, breakpoints off; None if it finished inside the guest."""
        self._file.debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
        self._mind_oddities()
        try:
            while (made := self._once() or self._spent()) is None:
                pass
        finally:
            self._arm()
        return None if isinstance(made, Debug) else made

    def _mind_oddities(self) -> None:
        """Step otherwise, or not, where this host cannot."""
        if "debug_ring3" in self._oddities:
            system = self._file.system()
            if system.ss.dpl == 3 and system.efer & EFER_LMA:
                self._arm()
                raise HostUnavailable(
                    "this host's KVM gives the debug exception of a step in ring 3 to the guest",
                    "Use engine='unicorn', or a KVM on VT-x or AMD-V",
                )
        if "step_over_hlt" in self._oddities and self._file.next_code(self._ram, 1) == _HLT:
            self._file.debug(0)

    def _left(self, made: Exit) -> Exit:
        """Note an exit before the caller sees it."""
        self._pending = made
        if isinstance(made, Debug):
            self._at_breakpoint = True
        elif not isinstance(made, Kicked | BudgetSpent):
            self._at_breakpoint = False
        if isinstance(made, MsrWrite):
            self._msr_write = made
        self.exits[made.reason] += 1
        self._tune()
        return made

    # --- the pending instruction ----------------------------------------------------------------

    def _answer(self, data: bytes) -> None:
        self._check_mine()
        kvm_exits.answer(self._page, self._pending, data)

    def _abandon(self) -> None:
        """Get rid of the pending instruction: other registers are about to replace its results."""
        self._settle()
        while kvm_exits.is_unfinished(self._ahead):
            self._ahead = None
            # A string instruction in its midst: let this be its last item.
            self._file.set_registers(replace(self._file.registers(), rcx=1))
            self._finish()
        self._ahead = None
        self._tune()

    def _forget(self) -> None:
        self._check_mine()
        self._abandon()
        self._at_breakpoint = False
        self._waiting = None
        self._page[abi.RUN_REQUEST_INTERRUPT_WINDOW] = 0
        self._file.clear_events()
        self._tune()

    def _arm(self) -> None:
        """Give KVM the breakpoints, or take the debugger away."""
        control = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP if self._breakpoints else 0
        self._file.debug(control, self._breakpoints)
