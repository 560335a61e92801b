"""The KVM engine: the real thing, through plain ioctls on `/dev/kvm`.

A process is a VM and a thread is a vCPU: the VM is a file descriptor, its RAM a piece of this
process's memory, and `KVM_RUN` a system call (Linux `Documentation/virt/kvm/api.rst`). The vCPU
is in `vcpu.py`; here is what belongs to the VM: memory, interrupt lines, doorbells.

Left out: memory slots beyond the one that is all of RAM, MSI, the timer in the kernel.

This is the only file that opens `/dev/kvm`.
"""

import ctypes
import errno
import mmap
import os
from contextlib import ExitStack

from vmlib.cpu.capabilities import require
from vmlib.cpu.doorbell import EventfdBell
from vmlib.cpu.engine import BaseVm, InterruptController, ReadHandler, WriteHandler
from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm import state as kvm_state
from vmlib.cpu.kvm.calls import call
from vmlib.cpu.kvm.file import VcpuFile
from vmlib.cpu.kvm.vcpu import KvmVcpu
from vmlib.cpu.limits import check_doorbell
from vmlib.errors import BadInput, HostUnavailable
from vmlib.given import check_one
from vmlib.numbers import whole
from vmlib.units import format_size, parse_size

__all__ = ["KvmVcpu", "KvmVm", "open_device"]

DEVICE = "/dev/kvm"
# Three pages for a TSS and one for page tables, which VMX without "unrestricted guest" needs for
# real mode. Just below 4 GiB, where machines have their firmware, as other VMMs do.
IDENTITY_MAP = 0xFFFBC000
TSS = IDENTITY_MAP + 0x1000
IRQ_LINES = 24
IRQCHIPS = (abi.IRQCHIP_PIC_MASTER, abi.IRQCHIP_PIC_SLAVE, abi.IRQCHIP_IOAPIC)


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
    version = call(device, abi.GET_API_VERSION, 0)
    if version != abi.API_VERSION:
        os.close(device)
        raise HostUnavailable(
            f"{DEVICE} speaks API version {version}, not {abi.API_VERSION}", "Use a Linux >= 2.6.22"
        )
    return device


class KvmVm(BaseVm[KvmVcpu]):
    """A VM of the kernel's."""

    engine = "kvm"

    def __init__(self, ram: int | str) -> None:
        if parse_size(ram, "ram") > IDENTITY_MAP:
            raise BadInput("ram", f"ends at {IDENTITY_MAP:#x} at most, where KVM has its pages")
        super().__init__(ram)
        self._irqchip = False
        self._new_chips: list[tuple[int, int, bytes]] = []
        """What puts PIC, IOAPIC and local APICs back: descriptor, request, state when new."""
        self._doorbells: list[EventfdBell] = []
        with ExitStack() as undo:
            undo.callback(self.ram.close)
            self._device = open_device()
            undo.callback(os.close, self._device)
            self._fd = self._ask("create a VM", self._device, abi.CREATE_VM, 0)
            undo.callback(os.close, self._fd)
            self._set_up()
            undo.pop_all()

    def doorbell(
        self, address: int, size: int, *, mmio: bool = False, match: int | None = None
    ) -> EventfdBell:
        """Let writes of `size` bytes (of value `match`, if given) ring instead of exit."""
        self._check_open()
        check_doorbell(address, size, mmio, match, self.ram.size)
        flags = 0 if mmio else abi.IOEVENTFD_PIO
        if match is not None:
            flags |= abi.IOEVENTFD_DATAMATCH
        bell = EventfdBell()
        try:
            asked = abi.IOEVENTFD_ARGS.pack(match or 0, address, size, bell.fileno(), flags)
            call(self._fd, abi.IOEVENTFD, asked)
        except OSError as error:
            bell.close()
            if error.errno == errno.EEXIST:
                raise BadInput("doorbell", f"there is one at {address:#x} already") from None
            raise _cannot("add a doorbell", error) from None
        self._doorbells.append(bell)
        return bell

    def handle_ports(self, first: int, count: int, read: ReadHandler, write: WriteHandler) -> None:
        """Unsupported: a device in Python is outside the kernel."""
        require("kvm", "handlers")

    def handle_memory(self, gpa: int, size: int, read: ReadHandler, write: WriteHandler) -> None:
        """Unsupported: a device in Python is outside the kernel."""
        require("kvm", "handlers")

    def create_irqchip(self, controller: InterruptController | None = None) -> None:
        """Have the kernel's PIC, IOAPIC and local APICs, before the first vCPU is created."""
        self._check_open()
        if controller is not None:
            raise BadInput("controller", "KVM has its own in the kernel and takes none")
        if self.vcpus:
            raise BadInput("create_irqchip", "comes before the first vCPU is created")
        if self._irqchip:
            raise BadInput("create_irqchip", "there is an irqchip already")
        self._ask("create an irqchip", self._fd, abi.CREATE_IRQCHIP, 0)
        self._irqchip = True
        for chip in IRQCHIPS:
            state = bytearray(abi.IRQCHIP.pack(chip, 0, b""))
            self._ask("tell an irqchip's state", self._fd, abi.GET_IRQCHIP, state)
            self._new_chips.append((self._fd, abi.SET_IRQCHIP, bytes(state)))

    def reset_irqchip(self) -> None:
        """Let PIC, IOAPIC and local APICs be as when they were new. No vCPU may run."""
        self._check_open()
        if not self._irqchip:
            raise BadInput(
                "reset_irqchip", "there is no interrupt controller; create_irqchip first"
            )
        for descriptor, request, state in self._new_chips:
            self._ask("reset the irqchip", descriptor, request, state)

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower an input line of PIC and IOAPIC. Callable from any thread."""
        self._check_open()
        if not self._irqchip:
            raise BadInput("set_irq", "there is no interrupt controller; create_irqchip first")
        whole(line, "line", 0, IRQ_LINES - 1)
        check_one(level, bool, "level")
        call(self._fd, abi.IRQ_LINE, abi.IRQ_LEVEL.pack(line, bool(level)))

    def _set_up(self) -> None:
        region = abi.MEMORY_REGION.pack(0, 0, 0, self.ram.size, self.ram.hva)
        self._ask(
            f"map {format_size(self.ram.size)} of RAM", self._fd, abi.SET_USER_MEMORY_REGION, region
        )
        if not call(self._device, abi.CHECK_EXTENSION, abi.CAP_IMMEDIATE_EXIT):
            raise HostUnavailable("this KVM lacks KVM_CAP_IMMEDIATE_EXIT", "Use a Linux >= 4.12")
        self._page_size = call(self._device, abi.GET_VCPU_MMAP_SIZE, 0)
        self._cpuid = self._supported_cpuid()
        self._components = kvm_state.xsave_components(self._cpuid)
        self._ask(
            "set the identity map", self._fd, abi.SET_IDENTITY_MAP_ADDR, abi.U64.pack(IDENTITY_MAP)
        )
        self._ask("set the TSS", self._fd, abi.SET_TSS_ADDR, TSS)

    def _supported_cpuid(self) -> bytes:
        """Return the table of all that this KVM can give to guests: head and entries."""
        room = 128
        while True:
            size = abi.CPUID_HEAD.size + room * abi.CPUID_ENTRY.size
            table = bytearray(size)
            abi.CPUID_HEAD.pack_into(table, 0, room, 0)
            try:
                call(self._device, abi.GET_SUPPORTED_CPUID, table)
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise _cannot("tell its CPUID", error) from None
                room *= 2
                continue
            (count, _) = abi.CPUID_HEAD.unpack_from(table)
            return bytes(table[: abi.CPUID_HEAD.size + count * abi.CPUID_ENTRY.size])

    def _new_vcpu(self, index: int) -> KvmVcpu:
        with ExitStack() as undo:
            fd = self._ask(f"create vCPU {index}", self._fd, abi.CREATE_VCPU, index)
            undo.callback(os.close, fd)
            cpuid = bytearray(kvm_state.number_cpuid(self._cpuid, index))
            self._ask("set CPUID", fd, abi.SET_CPUID2, cpuid)
            if self._irqchip:
                state = bytearray(abi.LAPIC_SIZE)
                self._ask("tell a local APIC's state", fd, abi.GET_LAPIC, state)
                self._new_chips.append((fd, abi.SET_LAPIC, bytes(state)))
            page = mmap.mmap(fd, self._page_size)
            undo.callback(page.close)
            made = KvmVcpu(
                index,
                VcpuFile(fd, self._components),
                page,
                self.ram,
                self._irqchip,
                self._intercept_msrs,
            )
            undo.pop_all()
        return made

    def _intercept_msrs(self) -> None:
        """Have every RDMSR and WRMSR that KVM can filter leave the guest."""
        if not call(self._fd, abi.CHECK_EXTENSION, abi.CAP_X86_USER_SPACE_MSR):
            raise HostUnavailable(
                "this KVM lacks KVM_CAP_X86_USER_SPACE_MSR", "Use a Linux >= 5.10"
            )
        why = abi.MSR_EXIT_FILTER | abi.MSR_EXIT_UNKNOWN | abi.MSR_EXIT_INVAL
        self._ask(
            "let MSRs exit",
            self._fd,
            abi.ENABLE_CAP,
            abi.ENABLE_CAP_ARGS.pack(abi.CAP_X86_USER_SPACE_MSR, 0, why, 0, 0, 0),
        )
        # "Deny by default" needs one range; a bitmap of zeros denies there too.
        bitmap = ctypes.create_string_buffer(8)
        both = abi.MSR_RANGE_READ | abi.MSR_RANGE_WRITE
        one = abi.MSR_RANGE.pack(both, 8, 0, ctypes.addressof(bitmap))
        self._ask(
            "filter MSRs",
            self._fd,
            abi.X86_SET_MSR_FILTER,
            abi.MSR_FILTER.pack(abi.MSR_FILTER_DENY, one),
        )

    def _release(self) -> None:
        for doorbell in self._doorbells:
            doorbell.close()
        os.close(self._fd)
        os.close(self._device)

    def _ask(self, what: str, fd: int, request: int, argument: int | bytes | bytearray) -> int:
        try:
            return call(fd, request, argument)
        except OSError as error:
            raise _cannot(what, error) from None


def _cannot(what: str, error: OSError) -> HostUnavailable:
    return HostUnavailable(
        f"KVM cannot {what}: {error.strerror}",
        "Look into the kernel's log (dmesg), close other VMs, or use engine='unicorn'",
    )
