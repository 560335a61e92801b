"""KVM's binary interface on x86-64: request numbers and structure layouts, nothing that runs.

From Linux `include/uapi/linux/kvm.h` and `arch/x86/include/uapi/asm/kvm.h`. A request number is
built as `include/uapi/asm-generic/ioctl.h` says: direction, size of the argument, type, number.
"""

import struct

_KVMIO = 0xAE


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _io(number)


# struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
MEMORY_REGION = struct.Struct("=IIQQQ")
# struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags
REGS = struct.Struct("=18Q")
# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, pad
SEGMENT = struct.Struct("=QIH10B")
# struct kvm_dtable: base, limit, 6 bytes of padding
DTABLE = struct.Struct("=QH6x")
# struct kvm_sregs: cs ds es fs gs ss tr ldt, gdt idt, cr0 cr2 cr3 cr4 cr8 efer apic_base, bitmap
SREGS_SIZE = 8 * SEGMENT.size + 2 * DTABLE.size + 7 * 8 + 4 * 8
CS, DS, ES, FS, GS, SS = (i * SEGMENT.size for i in range(6))
IDT = 8 * SEGMENT.size + DTABLE.size
CR0 = IDT + DTABLE.size
# struct kvm_guest_debug: control, pad, eight debug registers
GUEST_DEBUG = struct.Struct("=II8Q")
GUEST_DEBUG_ENABLE, GUEST_DEBUG_SINGLESTEP = 1, 2
# struct kvm_signal_mask: len, then the kernel's 8-byte set
SIGNAL_MASK = struct.Struct("=IQ")

API_VERSION = 12
GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
GET_VCPU_MMAP_SIZE = _io(0x04)
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
RUN = _io(0x80)
GET_REGS = _ior(0x81, REGS.size)
SET_REGS = _iow(0x82, REGS.size)
GET_SREGS = _ior(0x83, SREGS_SIZE)
SET_SREGS = _iow(0x84, SREGS_SIZE)
SET_SIGNAL_MASK = _iow(0x8B, 4)
SET_GUEST_DEBUG = _iow(0x9B, GUEST_DEBUG.size)

# struct kvm_run, the page shared with the kernel: where things are in it
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_UNION = 32
# its union, by exit reason
RUN_IO = struct.Struct("=BBHIQ")  # direction, size, port, count, data_offset
RUN_MMIO = struct.Struct("=Q8sIB")  # phys_addr, data, len, is_write
RUN_HARDWARE = struct.Struct("=Q")  # hardware_entry_failure_reason
RUN_INTERNAL = struct.Struct("=I")  # suberror

EXIT_IO, EXIT_DEBUG, EXIT_HLT, EXIT_MMIO = 2, 4, 5, 6
EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTR, EXIT_INTERNAL_ERROR = 8, 9, 10, 17
IO_IN, IO_OUT = 0, 1
SUBERROR_EMULATION = 1
