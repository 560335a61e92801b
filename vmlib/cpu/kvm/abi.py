"""KVM's binary interface on x86-64: request numbers and structure layouts, nothing that runs.

From Linux `include/uapi/linux/kvm.h` and `arch/x86/include/uapi/asm/kvm.h`; what the requests
mean stands in `Documentation/virt/kvm/api.rst`. A request number is built as `include/uapi/
asm-generic/ioctl.h` says: direction, size of the argument, type, number. A test compares every
number and size here with what the C compiler makes of the kernel's headers.

Left out: what this book does not use, which is most of it.
"""

import struct

_KVMIO = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | _io(number)


# --- structures -------------------------------------------------------------------------------

# struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
MEMORY_REGION = struct.Struct("=IIQQQ")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
REGS = struct.Struct("=18Q")
# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, pad
SEGMENT = struct.Struct("=QIH9Bx")
# struct kvm_dtable: base, limit, 6 bytes of padding
DTABLE = struct.Struct("=QH6x")
# struct kvm_sregs: cs ds es fs gs ss tr ldt; gdt idt; cr0 cr2 cr3 cr4 cr8 efer apic_base; and one
# bit for each vector that is on its way to the guest
SREGS_TAIL = struct.Struct("=7Q4Q")
SREGS_SIZE = 8 * SEGMENT.size + 2 * DTABLE.size + SREGS_TAIL.size
# struct kvm_guest_debug: control, pad, eight debug registers
GUEST_DEBUG = struct.Struct("=II8Q")
# struct kvm_debugregs: db[4], dr6, dr7, flags, reserved[9]
DEBUGREGS = struct.Struct("=4QQQQ72x")
# struct kvm_vcpu_events, the parts before the ones for SMM: the exception (injected, nr,
# has_error_code, pending, error_code), the interrupt (injected, nr, soft, shadow), the NMI
# (injected, pending, masked, pad), sipi_vector, flags
EVENTS = struct.Struct("=4BI4B3BxII40x")
# struct kvm_signal_mask: len, then the kernel's 8-byte set
SIGNAL_MASK = struct.Struct("=IQ")
# struct kvm_translation: linear_address; physical_address, valid, writeable, usermode
TRANSLATION = struct.Struct("=QQBBB5x")
# struct kvm_msrs with one struct kvm_msr_entry in it: nmsrs, pad; index, reserved, data
ONE_MSR = struct.Struct("=II IIQ")
# struct kvm_cpuid2's head: nent, padding
CPUID_HEAD = struct.Struct("=II")
# struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx, padding[3]
CPUID_ENTRY = struct.Struct("=7I12x")
# struct kvm_ioeventfd: datamatch, addr, len, fd, flags, 36 bytes of padding
IOEVENTFD_ARGS = struct.Struct("=QQIiI36x")
# struct kvm_enable_cap: cap, flags, args[4], 64 bytes of padding
ENABLE_CAP_ARGS = struct.Struct("=II4Q64x")
# struct kvm_msr_filter_range: flags, nmsrs, base, 4 bytes of alignment, pointer to the bitmap
MSR_RANGE = struct.Struct("=III4xQ")
MSR_RANGES = 16
# struct kvm_msr_filter: flags, 4 bytes of alignment, MSR_RANGES of the above
MSR_FILTER = struct.Struct(f"=I4x{MSR_RANGES * MSR_RANGE.size}s")
# struct kvm_irq_level: irq, level
IRQ_LEVEL = struct.Struct("=II")
# struct kvm_irqchip: chip_id, pad, the chip's state
IRQCHIP = struct.Struct("=II512s")
U32 = struct.Struct("=I")
U64 = struct.Struct("=Q")
XSAVE_SIZE = 4096
LAPIC_SIZE = 1024

# --- requests ---------------------------------------------------------------------------------

API_VERSION = 12
# to /dev/kvm
GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _iowr(0x05, CPUID_HEAD.size)
# to a VM
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
CREATE_IRQCHIP = _io(0x60)
IRQ_LINE = _iow(0x61, IRQ_LEVEL.size)
GET_IRQCHIP = _iowr(0x62, IRQCHIP.size)
SET_IRQCHIP = _ior(0x63, IRQCHIP.size)
IOEVENTFD = _iow(0x79, IOEVENTFD_ARGS.size)
ENABLE_CAP = _iow(0xA3, ENABLE_CAP_ARGS.size)
X86_SET_MSR_FILTER = _iow(0xC6, MSR_FILTER.size)
# to a vCPU
RUN = _io(0x80)
GET_REGS = _ior(0x81, REGS.size)
SET_REGS = _iow(0x82, REGS.size)
GET_SREGS = _ior(0x83, SREGS_SIZE)
SET_SREGS = _iow(0x84, SREGS_SIZE)
TRANSLATE = _iowr(0x85, TRANSLATION.size)
INTERRUPT = _iow(0x86, 4)
GET_MSRS = _iowr(0x88, 8)
SET_MSRS = _iow(0x89, 8)
SET_SIGNAL_MASK = _iow(0x8B, 4)
GET_LAPIC = _ior(0x8E, LAPIC_SIZE)
SET_LAPIC = _iow(0x8F, LAPIC_SIZE)
SET_CPUID2 = _iow(0x90, CPUID_HEAD.size)
GET_MP_STATE = _ior(0x98, 4)
SET_MP_STATE = _iow(0x99, 4)
SET_GUEST_DEBUG = _iow(0x9B, GUEST_DEBUG.size)
GET_VCPU_EVENTS = _ior(0x9F, EVENTS.size)
SET_VCPU_EVENTS = _iow(0xA0, EVENTS.size)
GET_DEBUGREGS = _ior(0xA1, DEBUGREGS.size)
SET_DEBUGREGS = _iow(0xA2, DEBUGREGS.size)
GET_XSAVE = _ior(0xA4, XSAVE_SIZE)
SET_XSAVE = _iow(0xA5, XSAVE_SIZE)

# --- constants that go with them --------------------------------------------------------------

CAP_IMMEDIATE_EXIT, CAP_X86_USER_SPACE_MSR = 136, 188
GUESTDBG_ENABLE, GUESTDBG_SINGLESTEP, GUESTDBG_USE_HW_BP = 1, 2, 0x20000
IOEVENTFD_DATAMATCH, IOEVENTFD_PIO = 1, 2
IRQCHIP_PIC_MASTER, IRQCHIP_PIC_SLAVE, IRQCHIP_IOAPIC = 0, 1, 2
MP_STATE_RUNNABLE, MP_STATE_HALTED = 0, 3
MSR_EXIT_INVAL, MSR_EXIT_UNKNOWN, MSR_EXIT_FILTER = 1, 2, 4
MSR_FILTER_DENY = 1  # for what lies in no range
MSR_RANGE_READ, MSR_RANGE_WRITE = 1, 2
VCPUEVENT_VALID_NMI_PENDING, VCPUEVENT_VALID_SHADOW = 1, 4

# --- struct kvm_run, the page shared with the kernel ------------------------------------------

RUN_REQUEST_INTERRUPT_WINDOW = 0
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_READY_FOR_INTERRUPT = 12
RUN_IF_FLAG = 13
RUN_UNION = 32
# The head and the member of the union that comes most often, from RUN_EXIT_REASON on:
# exit_reason; direction, size, port, count, data_offset
RUN_HEAD_IO = struct.Struct("=I20xBBHIQ")
# The union's other members, from RUN_UNION on
RUN_MMIO = struct.Struct("=Q8sIB")  # phys_addr, data, len, is_write
RUN_MMIO_DATA = RUN_UNION + 8
RUN_DEBUG = struct.Struct("=I4xQQQ")  # exception, pc, dr6, dr7
RUN_FAIL_ENTRY = struct.Struct("=Q")  # hardware_entry_failure_reason
RUN_INTERNAL = struct.Struct("=IIQB15s")  # suberror, ndata, flags, insn_size, insn_bytes
RUN_MSR = struct.Struct("=B7xIIQ")  # error, reason, index, data
RUN_MSR_ERROR, RUN_MSR_DATA = RUN_UNION, RUN_UNION + 16

EXIT_IO, EXIT_DEBUG, EXIT_HLT, EXIT_MMIO = 2, 4, 5, 6
EXIT_IRQ_WINDOW_OPEN, EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTR = 7, 8, 9, 10
EXIT_INTERNAL_ERROR, EXIT_X86_RDMSR, EXIT_X86_WRMSR = 17, 29, 30
IO_IN, IO_OUT = 0, 1
SUBERROR_EMULATION = 1
EMULATION_HAS_BYTES = 1  # a flag of RUN_INTERNAL
