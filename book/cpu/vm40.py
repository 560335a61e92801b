import ctypes, fcntl, mmap, os, struct

GUEST = bytes.fromhex("fa b0 c8 04 64 ba f8 03 6a 0a d4 0a 04 30 50"
                      "88 e0 84 c0 75 f5 58 ee 3c 0a 75 fa f4")

# A VM is a file descriptor of this process ...
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)                       # KVM_CREATE_VM

# ... its memory is memory of this process ...
ram = mmap.mmap(-1, 0x10000)
ram[0x1000:0x1000 + len(GUEST)] = GUEST
hva = ctypes.addressof(ctypes.c_char.from_buffer(ram))
slot = struct.pack("IIQQQ", 0, 0, 0, len(ram), hva)    # id, flags, GPA, size
fcntl.ioctl(vm, 0x4020AE46, slot)                 # KVM_SET_USER_MEMORY_REGION

# ... and a vCPU is whichever thread of it calls KVM_RUN.
vcpu = fcntl.ioctl(vm, 0xAE41, 0)                      # KVM_CREATE_VCPU
run = mmap.mmap(vcpu, fcntl.ioctl(kvm, 0xAE04, 0))    # KVM_GET_VCPU_MMAP_SIZE

# Point it at the guest: code segment base 0, instruction pointer 0x1000.
sregs = bytearray(312)
fcntl.ioctl(vcpu, 0x8138AE83, sregs)                   # KVM_GET_SREGS
struct.pack_into("QIH", sregs, 0, 0, 0xFFFF, 0)        # CS base and limit
fcntl.ioctl(vcpu, 0x4138AE84, sregs)                   # KVM_SET_SREGS
regs = [0] * 6 + [0x0F00] + [0] * 9 + [0x1000, 2]      # RSP, RIP, RFLAGS
fcntl.ioctl(vcpu, 0x4090AE82, struct.pack("18Q", *regs))    # KVM_SET_REGS

exit_reason, exits = None, 0
while exit_reason != 5:                                # KVM_EXIT_HLT
    fcntl.ioctl(vcpu, 0xAE80, 0)                       # KVM_RUN
    exits += 1
    exit_reason, = struct.unpack_from("I", run, 8)
    if exit_reason == 2:                               # KVM_EXIT_IO
        way, size, port, n, at = struct.unpack_from("BBHIQ", run, 32)
        print(run[at:at + size].decode(), end="")      # the serial port is us
    elif exit_reason != 5:
        raise SystemExit(f"the guest left with exit_reason {exit_reason}")
print(f"KVM_RUN returned {exits} times")
