"""Entering a guest and leaving it: KVM_RUN, the page shared with the kernel, threads and signals.

`KVM_RUN` is a system call that returns when the kernel cannot finish alone what the guest did
(Linux `Documentation/virt/kvm/api.rst`, section 5). The instruction that made it return may be
half done: IN and reads of devices wait for their answer, and even an OUT is finished only by the
next KVM_RUN. So whoever asks for registers gets them after a KVM_RUN with `immediate_exit` set,
which finishes the instruction and runs nothing else.

Stopping a guest from outside takes both `immediate_exit`, for a vCPU that is about to enter, and a
signal, for one that is inside. The signal is blocked while Python runs and let through only inside
KVM_RUN (KVM_SET_SIGNAL_MASK), so it has no handler and harms nobody; a kick is remembered until a
`run` has returned it.

A vCPU belongs to one thread at a time. Asked for anything while it runs in another one, it
refuses: KVM itself would block until the guest leaves, which may be never.
"""

import errno
import mmap
import os
import signal
import threading
import time

from vmlib.cpu.budget import Budget, Watchdog
from vmlib.cpu.capabilities import require
from vmlib.cpu.engine import BaseVcpu
from vmlib.cpu.exits import BudgetSpent, EngineFailure, Exit, Kicked, MsrRead, MsrWrite
from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm import diagnosis as kvm_diagnosis
from vmlib.cpu.kvm import exits as kvm_exits
from vmlib.cpu.kvm.calls import call, failure, run_ioctl, send_signal
from vmlib.cpu.kvm.file import VcpuFile
from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.memory import GuestRam

KICK_SIGNAL = signal.SIGRTMIN + 5
NOBODY = -1


class _Thread(threading.local):
    """The thread that asks: its id once it may run vCPUs, and the signals blocked in it."""

    tid = 0
    mask = 0

    def prepare(self) -> None:
        """Block the kick signal in this thread, for good."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
        self.mask = sum(1 << (number - 1) for number in blocked if number != KICK_SIGNAL)
        self.tid = threading.get_native_id()


here = _Thread()


class KvmEntry(BaseVcpu):
    """The half of a vCPU that enters and leaves; `KvmVcpu` decides when, and what comes first."""

    def __init__(self, index: int, file: VcpuFile, page: mmap.mmap, ram: GuestRam) -> None:
        super().__init__(index)
        self._file = file
        self._fd = file.fd
        self._page = page
        self._ram = ram
        self._inside = 0  # id of the thread that is in KVM_RUN
        self._fast = NOBODY  # id of the thread for which `run` has nothing to think about
        self._owner = NOBODY  # id of the thread whose signal mask KVM knows
        self._kicked = False
        self._ahead: Exit | None = None  # came while an instruction was being finished
        self._msr_write: MsrWrite | None = None  # to be done before the next entry
        self._budget = Budget()
        self._watchdog: Watchdog | None = None

    def set_budget(self, budget: Budget) -> None:
        """Limit the time from now on. KVM does not count instructions."""
        self._check_mine()
        check_one(budget, Budget, "budget")
        if budget.instructions is not None:
            require("kvm", "instructions")
        if self._watchdog is not None:
            self._watchdog.close()
        self._budget = budget
        self._watchdog = Watchdog(budget.seconds, self._leave) if budget.seconds else None
        self._tune()

    def kick(self) -> None:
        """Leave the guest soon, or, when it is not running, at the next `run`."""
        self._check_open()
        self._kicked = True
        self._leave()

    def close(self) -> None:
        """Unmap the shared page and close the descriptor; a thread in `run` is kicked out."""
        if self._closed:
            return
        self._closed = True
        self._tune()
        while self._inside not in (0, threading.get_native_id()):
            self._tune()  # again: that thread may just have done so, and not have seen the end
            self._kicked = True
            self._leave()
            time.sleep(0.001)
        if self._watchdog is not None:
            self._watchdog.close()
        self._page.close()
        self._file.close()

    def _tune(self) -> None:
        """Find out whether the next `run` may go straight to KVM_RUN."""
        self._fast = NOBODY if self._thinks() else self._owner

    def _thinks(self) -> bool:
        """Say whether the next entry has more to it than KVM_RUN."""
        return bool(self._watchdog or self._ahead or self._msr_write or self._closed)

    # --- KVM_RUN ------------------------------------------------------------------------------

    def _once(self) -> Exit | None:
        """One KVM_RUN; None where a signal ended it that was not for us."""
        self._do_msr_write()
        self._inside = here.tid
        try:
            if run_ioctl(self._fd, abi.RUN, 0):
                return self._interrupted(failure())
            return self._decode()
        finally:
            self._inside = 0

    def _finish(self) -> None:
        """KVM_RUN with `immediate_exit`: it finishes what is pending and enters no guest.

        An access that crosses a page and a repeated string instruction make one exit after the
        other; then the next exit is here already, and kept for the next `run`.
        """
        self._do_msr_write()
        self._page[abi.RUN_IMMEDIATE_EXIT] = 1
        try:
            if not run_ioctl(self._fd, abi.RUN, 0):
                self._ahead = self._decode()
            elif (number := failure()) not in (errno.EINTR, errno.EAGAIN):
                self._ahead = EngineFailure(f"KVM_RUN failed: {os.strerror(number)}")
        finally:
            self._page[abi.RUN_IMMEDIATE_EXIT] = 0
            if self._kicked:  # looked at after that: `kick` does both the other way round
                self._page[abi.RUN_IMMEDIATE_EXIT] = 1
        self._pending = None
        self._tune()

    def _settle(self) -> None:
        """Finish the pending instruction, if there is one."""
        if kvm_exits.is_unfinished(self._pending):
            self._finish()

    def _decode(self) -> Exit:
        """Make an exit of what the page says, and of the vCPU's state where that tells more."""
        (reason,) = abi.U32.unpack_from(self._page, abi.RUN_EXIT_REASON)
        if reason == abi.EXIT_SHUTDOWN:
            file = self._file
            state = file.registers(), file.system(), file.last_exception()
            return kvm_diagnosis.diagnose(*state, self._ram)
        if reason in (abi.EXIT_INTERNAL_ERROR, abi.EXIT_FAIL_ENTRY):
            return kvm_exits.decode(self._page, self._file.registers().rip)
        made = kvm_exits.decode(self._page)
        if isinstance(made, MsrRead):  # what a VMM that only looks on will answer
            value = self._file.msr(made.index)
            abi.U64.pack_into(self._page, abi.RUN_MSR_DATA, value or 0)
            self._page[abi.RUN_MSR_ERROR] = value is None
        return made

    def _do_msr_write(self) -> None:
        """Do the write that the guest asked for and nobody refused."""
        if (due := self._msr_write) is not None:
            self._msr_write = None
            self._page[abi.RUN_MSR_ERROR] = not self._file.set_msr(due.index, due.value)

    # --- signals and threads ------------------------------------------------------------------

    def _leave(self) -> None:
        """Make KVM_RUN return now, or at once when it is next called. From any thread."""
        self._page[abi.RUN_IMMEDIATE_EXIT] = 1
        if inside := self._inside:
            send_signal(inside, KICK_SIGNAL)

    def _interrupted(self, number: int) -> Exit | None:
        """Look why KVM_RUN failed: a kick, the watchdog, a signal of Python's own, or trouble."""
        self._pending = None
        if number == errno.EAGAIN:
            return None
        if number != errno.EINTR:
            return EngineFailure(f"KVM_RUN failed: {os.strerror(number)}")
        self._page[abi.RUN_IMMEDIATE_EXIT] = 0  # before the look at _kicked: see `_finish`
        while signal.sigtimedwait({KICK_SIGNAL}, 0) is not None:
            pass
        if self._kicked:
            self._kicked = False
            return Kicked()
        return self._spent()

    def _spent(self) -> BudgetSpent | None:
        """Return the exit of a budget that is used up."""
        spent = self._watchdog is not None and self._watchdog.expired
        return BudgetSpent(str(self._budget)) if spent else None

    def _check_mine(self) -> None:
        self._check_open()
        if self._inside not in (0, threading.get_native_id()):
            raise BadInput("vcpu", "runs in another thread just now; kick it and wait till it left")

    def _take(self) -> None:
        """Make this thread the one that runs the vCPU."""
        self._check_mine()
        if not here.tid:
            here.prepare()
        if self._owner != here.tid:
            call(self._fd, abi.SET_SIGNAL_MASK, abi.SIGNAL_MASK.pack(8, here.mask))
            self._owner = here.tid
            self._tune()
