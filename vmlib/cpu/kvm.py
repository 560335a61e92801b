"""The KVM engine: the real thing, through plain ioctls on `/dev/kvm`.

A process is a VM and a thread is a vCPU: the VM is a file descriptor, its RAM a piece of this
process's memory, and `KVM_RUN` a system call that returns when the kernel cannot finish alone
what the guest did (Linux `Documentation/virt/kvm/api.rst`).

Stopping a guest from outside takes a signal, and a signal can arrive one instruction too early.
So it is kept blocked while Python runs and let through only inside KVM_RUN (section 4.21,
KVM_SET_SIGNAL_MASK): one that comes early stays pending and makes the next KVM_RUN return at once.

This is the only file that opens `/dev/kvm`.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
import threading

from vmlib.cpu import kvm_abi as abi
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
from vmlib.errors import BadInput, HostUnavailable, Unsupported
from vmlib.memory import GuestRam

DEVICE = "/dev/kvm"
KICK_SIGNAL = signal.SIGRTMIN + 5
_HLT = 0xF4


def open_device() -> int:
    """Open `/dev/kvm` and return the descriptor; HostUnavailable says why not and what helps."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostUnavailable(
            f"{DEVICE} does not exist",
            "Load the module (modprobe kvm_intel or kvm_amd); in a VM, turn nested virtualization "
            "on; in a container, pass --device /dev/kvm. Or use engine='unicorn'",
        ) from None
    except PermissionError:
        raise HostUnavailable(
            f"{DEVICE} may not be opened by this user",
            "Join the group that owns it (sudo usermod -aG kvm $USER, then log in again). "
            "Or use engine='unicorn'",
        ) from None
    except OSError as error:
        raise HostUnavailable(
            f"{DEVICE} cannot be opened: {error.strerror}",
            "Turn virtualization (VT-x or AMD-V) on in the firmware, or nested virtualization in "
            "the hypervisor below. Or use engine='unicorn'",
        ) from None
    version = fcntl.ioctl(device, abi.GET_API_VERSION, 0)
    if version != abi.API_VERSION:
        os.close(device)
        raise HostUnavailable(
            f"{DEVICE} speaks API version {version}, not {abi.API_VERSION}", "Use a Linux >= 2.6.22"
        )
    return device


class KvmVm(BaseVm["KvmVcpu"]):
    """A VM of the kernel's."""

    engine = "kvm"

    def __init__(self, ram: int | str) -> None:
        super().__init__(ram)
        self._device = open_device()
        self._fd = fcntl.ioctl(self._device, abi.CREATE_VM, 0)
        region = abi.MEMORY_REGION.pack(0, 0, 0, self.ram.size, self.ram.hva)
        fcntl.ioctl(self._fd, abi.SET_USER_MEMORY_REGION, region)

    def _new_vcpu(self) -> "KvmVcpu":
        fd = fcntl.ioctl(self._fd, abi.CREATE_VCPU, len(self.vcpus))
        return KvmVcpu(fd, fcntl.ioctl(self._device, abi.GET_VCPU_MMAP_SIZE, 0), self.ram)

    def _release(self) -> None:
        os.close(self._fd)
        os.close(self._device)


class KvmVcpu:
    """One vCPU; see `vmlib.cpu.engine.Vcpu` for what the methods promise."""

    def __init__(self, fd: int, run_size: int, ram: GuestRam) -> None:
        self._fd = fd
        self._ram = ram
        self._run = mmap.mmap(fd, run_size)
        self._closed = False
        self._pending: Exit | None = None
        self._thread = 0
        self._kicked = threading.Event()
        self._inside = False
        self._budget = Budget()
        self._watchdog: Watchdog | None = None
        self.start_real_mode(0)

    def start_real_mode(self, ip: int, sp: int = REAL_MODE_SP) -> None:
        """Real mode, every segment base 0, as after reset but for CS."""
        self._open()
        check_real_mode_start(ip, sp)
        self._settle()
        sregs = self._ioctl_read(abi.GET_SREGS, abi.SREGS_SIZE)
        for segment in (abi.CS, abi.DS, abi.ES, abi.FS, abi.GS, abi.SS):
            struct.pack_into("=QIH", sregs, segment, 0, 0xFFFF, 0)  # base, limit, selector
        abi.DTABLE.pack_into(sregs, abi.IDT, 0, 0xFFFF)
        fcntl.ioctl(self._fd, abi.SET_SREGS, bytes(sregs))
        values = Registers(rsp=sp, rip=ip)
        fcntl.ioctl(self._fd, abi.SET_REGS, abi.REGS.pack(*_values(values)))

    def set_budget(self, budget: Budget) -> None:
        """Limit the time from now on. KVM does not count instructions."""
        self._open()
        if budget.instructions is not None:
            raise Unsupported(
                "KVM runs the guest on the CPU itself and counts no instructions; "
                "give a time, or use engine='unicorn'"
            )
        if self._watchdog is not None:
            self._watchdog.close()
        self._budget = budget
        self._watchdog = None
        if budget.seconds is not None:
            self._watchdog = Watchdog(budget.seconds, self._signal)

    def run(self) -> Exit:
        """KVM_RUN until it returns with something to say."""
        self._open()
        if self._budget.seconds is None and self._thread == threading.get_ident():
            return self._loop()
        self._take_thread()
        with self._watchdog or contextlib.nullcontext():
            return self._loop()

    def step(self) -> Exit | None:
        """Run one instruction by the single-step of KVM_SET_GUEST_DEBUG.

        HLT is run without it: a step that ends in a halt is reported by some hosts as a step
        and the halt is lost.
        """
        self._open()
        before = self.registers()
        at = self._code_base() + before.rip
        halting = at < self._ram.size and self._ram.read(at, 1)[0] == _HLT
        if not halting:
            self._debug(abi.GUEST_DEBUG_ENABLE | abi.GUEST_DEBUG_SINGLESTEP)
        try:
            ended = self.run()
        finally:
            if not halting:
                self._debug(0)
        return None if isinstance(ended, _Stepped) else ended

    def complete(self, data: bytes) -> None:
        """Answer the pending IN or MMIO read; KVM stores it on re-entry."""
        pending = self._pending
        if isinstance(pending, IoIn):
            size, at = pending.size * pending.count, self._io_data
        elif isinstance(pending, Mmio) and pending.data is None:
            size, at = pending.size, abi.RUN_UNION + 8
        else:
            raise BadInput("complete", "no IN or MMIO read is waiting for an answer")
        if len(data) != size:
            raise BadInput("complete", f"the guest reads {size} byte(s), not {len(data)}")
        self._run[at : at + size] = data

    def kick(self) -> None:
        """Leave the guest soon, or, when it is not running, at the next `run`."""
        self._kicked.set()
        self._signal()

    def registers(self) -> Registers:
        """The registers, after the instruction that caused the last exit has finished."""
        self._open()
        self._settle()
        return Registers(*abi.REGS.unpack(self._ioctl_read(abi.GET_REGS, abi.REGS.size)))

    def close(self) -> None:
        """Unmap the shared page and close the descriptor."""
        if self._closed:
            return
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._run.close()
        os.close(self._fd)

    # --- KVM_RUN and what it says -------------------------------------------------------------

    def _loop(self) -> Exit:
        self._inside = True  # before the look at _kicked: a later kick sends a signal
        try:
            while True:
                if self._watchdog is not None and self._watchdog.expired:
                    return BudgetSpent(str(self._budget))
                if self._kicked.is_set():
                    self._kicked.clear()
                    return Kicked()
                try:
                    fcntl.ioctl(self._fd, abi.RUN, 0)
                except InterruptedError:
                    # Ours, or a signal of Python's own, whose handler has just run.
                    self._pending = None
                    self._drain()
                    continue
                except OSError as error:
                    return EngineFailure(f"KVM_RUN failed: {error.strerror}")
                self._pending = self._decode()
                return self._pending
        finally:
            self._inside = False

    def _decode(self) -> Exit:
        (reason,) = struct.unpack_from("=I", self._run, abi.RUN_EXIT_REASON)
        if reason == abi.EXIT_IO:
            way, size, port, count, at = abi.RUN_IO.unpack_from(self._run, abi.RUN_UNION)
            if way == abi.IO_OUT:
                return IoOut(port, size, self._run[at : at + size * count])
            self._io_data = at
            self._run[at : at + size * count] = b"\xff" * (size * count)  # undriven: floats high
            return IoIn(port, size, count)
        if reason == abi.EXIT_HLT:
            return Halt()
        if reason == abi.EXIT_MMIO:
            gpa, data, size, write = abi.RUN_MMIO.unpack_from(self._run, abi.RUN_UNION)
            return Mmio(gpa, size, data[:size] if write else None)
        if reason == abi.EXIT_DEBUG:
            return _Stepped()
        if reason == abi.EXIT_SHUTDOWN:
            return Shutdown(self._diagnose())
        return EngineFailure(self._explain(reason))

    def _diagnose(self) -> str:
        sregs = self._ioctl_read(abi.GET_SREGS, abi.SREGS_SIZE)
        regs = Registers(*abi.REGS.unpack(self._ioctl_read(abi.GET_REGS, abi.REGS.size)))
        base, limit = abi.DTABLE.unpack_from(sregs, abi.IDT)
        return (
            f"triple fault near {regs.rip:#x}: no gate for a fault, "
            f"nor for the double fault (IDT at {base:#x}, limit {limit:#x})"
        )

    def _explain(self, reason: int) -> str:
        if reason == abi.EXIT_INTERNAL_ERROR:
            (suberror,) = abi.RUN_INTERNAL.unpack_from(self._run, abi.RUN_UNION)
            regs = Registers(*abi.REGS.unpack(self._ioctl_read(abi.GET_REGS, abi.REGS.size)))
            what = "KVM could not emulate the instruction" if suberror == 1 else "internal error"
            return f"{what} at {regs.rip:#x} (suberror {suberror})"
        if reason == abi.EXIT_FAIL_ENTRY:
            (why,) = abi.RUN_HARDWARE.unpack_from(self._run, abi.RUN_UNION)
            return f"the CPU refused to enter the guest, hardware reason {why:#x}"
        return f"exit reason {reason} is not known here"

    def _settle(self) -> None:
        """Finish a pending OUT, IN or MMIO without running on (api.rst, section 5)."""
        if not isinstance(self._pending, IoOut | IoIn | Mmio):
            return
        self._run[abi.RUN_IMMEDIATE_EXIT] = 1
        try:
            fcntl.ioctl(self._fd, abi.RUN, 0)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
        finally:
            self._run[abi.RUN_IMMEDIATE_EXIT] = 0
        self._pending = None

    # --- threads and signals ------------------------------------------------------------------

    def _take_thread(self) -> None:
        """Block the kick signal in this thread and let KVM_RUN, and only it, unblock it."""
        me = threading.get_ident()
        if self._thread == me:
            return
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
        inside = sum(1 << (number - 1) for number in blocked if number != KICK_SIGNAL)
        mask = ctypes.create_string_buffer(abi.SIGNAL_MASK.pack(8, inside), 12)
        fcntl.ioctl(self._fd, abi.SET_SIGNAL_MASK, mask)
        self._thread = me

    def _signal(self) -> None:
        if self._inside:
            signal.pthread_kill(self._thread, KICK_SIGNAL)

    def _drain(self) -> None:
        while signal.sigtimedwait({KICK_SIGNAL}, 0) is not None:
            pass

    # --- small change -------------------------------------------------------------------------

    def _debug(self, control: int) -> None:
        packed = abi.GUEST_DEBUG.pack(control, 0, *[0] * 8)
        fcntl.ioctl(self._fd, abi.SET_GUEST_DEBUG, packed)

    def _code_base(self) -> int:
        sregs = self._ioctl_read(abi.GET_SREGS, abi.SREGS_SIZE)
        base: int = struct.unpack_from("=Q", sregs, abi.CS)[0]
        return base

    def _ioctl_read(self, request: int, size: int) -> bytearray:
        buffer = bytearray(size)
        fcntl.ioctl(self._fd, request, buffer)
        return buffer

    def _open(self) -> None:
        if self._closed:
            raise BadInput("vcpu", "is closed")


class _Stepped(Exit):
    """KVM_EXIT_DEBUG after a single step: for `step` alone."""

    reason = "DEBUG"


def _values(registers: Registers) -> tuple[int, ...]:
    return tuple(getattr(registers, name) for name in Registers.__slots__)
