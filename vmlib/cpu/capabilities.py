"""What each engine can do, as one table: ``make doctor`` prints it, the engines refuse by it.

An empty string means yes. Anything else is the reason why not, in the words of the error.
"""

from dataclasses import dataclass

from vmlib.errors import BadInput, Unsupported


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing a reader may ask of an engine, and what each engine says."""

    name: str
    what: str
    unicorn: str = ""
    kvm: str = ""

    def reason(self, engine: str) -> str:
        """Why the engine cannot, or an empty string."""
        return str(getattr(self, engine))


CAPABILITIES = (
    Capability("modes", "real, protected and long mode with the guest's own page tables"),
    Capability("exits", "port I/O, MMIO, HLT, shutdown, kick, time budget"),
    Capability("interrupts", "injected interrupts and the interrupt window"),
    Capability("step", "single steps and four breakpoints"),
    Capability("state", "save and restore of the full state, also across engines"),
    Capability("vcpus", "several vCPUs in threads"),
    Capability(
        "instructions",
        "a budget in instructions",
        kvm="KVM runs the guest on the CPU itself and counts no instructions; give a time, or use "
        "engine='unicorn'",
    ),
    Capability("doorbell", "writes that ring an eventfd without an exit (ioeventfd)"),
    Capability(
        "handlers",
        "a device in Python handled inside run()",
        kvm="KVM handles inside only what the kernel has a model of: its irqchip, its timer and "
        "ioeventfds; a device in Python is reached by an exit",
    ),
    Capability("irqchip", "an interrupt controller inside, which wakes a halted vCPU"),
    Capability("msr", "exits for RDMSR and WRMSR"),
    Capability(
        "cpuid",
        "exits for CPUID",
        kvm="KVM answers CPUID in the kernel, from the table that KVM_SET_CPUID2 gave it",
    ),
    Capability(
        "cr3",
        "exits for MOV to CR3",
        kvm="KVM finishes a write of CR3 in the kernel, or never sees it with nested paging",
    ),
    Capability(
        "hypercall",
        "exits for VMCALL and VMMCALL",
        kvm="KVM answers hypercalls in the kernel; only KVM_HC_MAP_GPA_RANGE can be passed up",
    ),
    Capability(
        "avx",
        "AVX and later vector extensions",
        unicorn="the emulator has x87, SSE to SSE4 and no AVX",
    ),
    Capability(
        "alignment",
        "#AC where CR0.AM and RFLAGS.AC ask for it, #GP for SSE's sixteen bytes",
        unicorn="the emulator lets every access pass, aligned or not",
    ),
    Capability(
        "atomics",
        "locked instructions that are atomic between vCPUs running at the same moment",
        unicorn="two emulators do not lock against each other, so vCPUs of a VM take turns "
        "(parallel=True lets them run at once, and shows what is lost)",
    ),
)


def require(engine: str, name: str) -> None:
    """Raise `Unsupported` with the reason if the engine cannot do this."""
    for capability in CAPABILITIES:
        if capability.name == name:
            if reason := capability.reason(engine):
                raise Unsupported(reason)
            return
    raise BadInput("capability", f"{name!r} is unknown")
