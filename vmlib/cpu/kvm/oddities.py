"""Where a KVM is not what the manuals say: one list, each entry held by a test.

`kvm_pvm` runs guests without hardware virtualization: a guest's ring 3 runs on the CPU, its ring 0
goes through the kernel's instruction emulator, which was made for the few instructions that touch
devices. VMMs meet such hosts inside other VMs, and this book's own checks run on one.

The engine works round an oddity only where it is named here. The tests assert the odd behaviour
where the module is loaded and the manual's elsewhere: when a host heals, a test fails and the
entry goes.
"""

from dataclasses import dataclass
from pathlib import Path

PVM = "kvm_pvm"


@dataclass(frozen=True, slots=True)
class Oddity:
    """One behaviour of a module: `what` it does, and the `rule` that it breaks, with its place."""

    id: str
    what: str
    rule: str
    module: str = PVM


ODDITIES = (
    Oddity(
        "aam_zf",
        "AAM in ring 0 sets ZF from AX",
        "SF, ZF and PF are set according to the result in AL (Intel SDM vol. 2A, AAM)",
    ),
    Oddity(
        "sse_ring0",
        "SSE2 in ring 0 ends the guest with an emulation failure, though CPUID announces it",
        "with CR4.OSFXSR set SSE2 works in every ring (Intel SDM vol. 3A, 15.1)",
    ),
    Oddity(
        "int3_ring0",
        "INT3 in ring 0 of protected and long mode ends the guest with an emulation failure",
        "INT3 calls the handler of vector 3 (Intel SDM vol. 2A, INT n/INTO/INT3/INT1)",
    ),
    Oddity(
        "int_n_ring0",
        "INT n in ring 0 of protected and long mode ends the guest with an emulation failure",
        "INT n calls the handler of vector n (Intel SDM vol. 2A, INT n/INTO/INT3/INT1)",
    ),
    Oddity(
        "int_n_ring3",
        "INT n in ring 3 raises #UD",
        "INT n calls the handler of vector n if the gate's DPL allows (Intel SDM vol. 2A, INT n)",
    ),
    Oddity(
        "iret_protected",
        "IRET in ring 0 of 32-bit protected mode ends the guest with an emulation failure",
        "IRET returns from a handler in every mode (Intel SDM vol. 2A, IRET/IRETD/IRETQ)",
    ),
    Oddity(
        "iopl_ring3",
        "in ring 3 of long mode IOPL counts as 0: CLI, STI and I/O raise #GP though it is 3",
        "they are allowed if CPL is not above IOPL (Intel SDM vol. 1, 19.5.1)",
    ),
    Oddity(
        "idt_limit_real",
        "in real mode the IDT's limit is ignored",
        "a vector beyond the limit is #GP, then #DF, then shutdown (Intel SDM vol. 3A, 21.1.4)",
    ),
    Oddity(
        "vmcall_hangs",
        "VMCALL and VMMCALL in ring 0 never finish, and only a signal ends KVM_RUN",
        "an unknown hypercall returns -KVM_ENOSYS in RAX (Linux Documentation/virt/kvm/x86/"
        "hypercalls.rst)",
    ),
    Oddity(
        "interrupt_window",
        "request_interrupt_window ends KVM_RUN too late: other exits come first",
        "KVM_RUN returns as soon as the guest can take an interrupt (Linux Documentation/virt/kvm/"
        "api.rst, section 5)",
    ),
    Oddity(
        "step_over_hlt",
        "a single step over HLT is reported as a step, and the halt is lost",
        "HLT exits with KVM_EXIT_HLT where the kernel has no irqchip (api.rst, section 5)",
    ),
    Oddity(
        "debug_ring3",
        "in ring 3 the debugger's single step raises #DB in the guest, and its breakpoints are "
        "passed over",
        "KVM_SET_GUEST_DEBUG makes both exit with KVM_EXIT_DEBUG (api.rst, section 4.87)",
    ),
)


def present(module: str) -> tuple[Oddity, ...]:
    """Return the oddities of a host whose KVM modules are named in `module`, in any order."""
    return tuple(one for one in ODDITIES if one.module in module)


def kvm_modules() -> str:
    """Name this host's KVM modules, ``"kvm_amd"`` for one, or say that KVM is built in."""
    names = (path.name for path in Path("/sys/module").glob("kvm_*"))
    return ", ".join(sorted(names)) or "kvm built in"


def here() -> frozenset[str]:
    """Return the ids of this host's oddities."""
    return frozenset(one.id for one in present(kvm_modules()))
