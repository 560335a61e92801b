/* The same loop as benchmarks/kvm_exits.py, with nothing of Python: KVM_RUN, and a look at the exit.
 * Argument: how many exits. Prints nanoseconds per exit. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { RAM = 0x10000, START = 0x1000 };

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 10000, sum = 0;
	int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(device, KVM_CREATE_VM, 0);
	unsigned char *ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.memory_size = RAM,
		.userspace_addr = (unsigned long)ram,
	};
	struct kvm_regs regs = { .rip = START, .rflags = 2 };
	struct kvm_sregs sregs;
	struct timespec from, to;

	memcpy(ram + START, "\xe6\x10\xeb\xfc", 4); /* again: out 0x10, al; jmp again */
	ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
	int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (cpu < 0 || run == MAP_FAILED || ioctl(cpu, KVM_GET_SREGS, &sregs))
		return 1;
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(cpu, KVM_SET_SREGS, &sregs) || ioctl(cpu, KVM_SET_REGS, &regs))
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (long i = 0; i < count; i++) {
		if (ioctl(cpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_IO)
			return 2;
		sum += run->io.port + ((unsigned char *)run)[run->io.data_offset];
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	if (sum != 0x10 * count)
		return 3;
	printf("%.1f\n", ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / count);
	return 0;
}
