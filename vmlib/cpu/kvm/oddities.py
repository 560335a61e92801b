"""Where a KVM is not what the manuals say: one list, each entry held by a test.

`kvm_pvm` runs guests without hardware virtualization: a guest's ring 3 runs on the CPU, its ring 0
goes through the kernel's instruction emulator, which was made for the few instructions that touch
devices. VMMs meet such hosts inside other VMs, and this book's own checks run on one.

The causes are what fits all that guests see, and the way Linux's `arch/x86/kvm/emulate.c` works,
which has no entry for some instructions. They are inferred: the module itself is not part of Linux
and was not read. Three of them explain most: `EMULATED`, `REFUSED` and `NATIVE`.

The engine works round an oddity only where it is named here. The tests assert the odd behaviour
where the module is loaded and the manual's elsewhere: when a host heals, a test fails and the
entry goes.
"""

from dataclasses import dataclass
from pathlib import Path

PVM = "kvm_pvm"

EMULATED = "the kernel's instruction emulator runs ring 0, and does not know the instruction"
REFUSED = "the kernel's instruction emulator runs ring 0, and gives up on this case on purpose"
NATIVE = "ring 3 of long mode runs on the CPU under the host's own registers and tables"
UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Oddity:
    """One behaviour of a module: `what` it does, and the `rule` that it breaks, with its place.

    `cause` says why, as far as that can be known from outside.
    """

    id: str
    what: str
    rule: str
    cause: str
    module: str = PVM


ODDITIES = (
    Oddity(
        "aam_zf",
        "AAM in ring 0 sets ZF from AX",
        "SF, ZF and PF are set according to the result in AL (Intel SDM vol. 2A, AAM)",
        "`em_aam` in emulate.c sets the flags from the word that it writes",
    ),
    Oddity(
        "sse_ring0",
        "SSE2 in ring 0 ends the guest with an emulation failure, though CPUID announces it",
        "with CR4.OSFXSR set SSE2 works in every ring (Intel SDM vol. 3A, *Control Registers*)",
        EMULATED,
    ),
    Oddity(
        "int3_ring0",
        "INT3 in ring 0 of protected and long mode ends the guest with an emulation failure",
        "INT3 calls the handler of vector 3 (Intel SDM vol. 2A, INT n/INTO/INT3/INT1)",
        REFUSED,
    ),
    Oddity(
        "int_n_ring0",
        "INT n, and INTO with OF set, in ring 0 of protected and long mode end the guest with an "
        "emulation failure",
        "INT n calls the handler of vector n, INTO that of vector 4 (Intel SDM vol. 2A, INT n/INTO/"
        "INT3/INT1)",
        REFUSED,
    ),
    Oddity(
        "int_n_ring3",
        "INT n in ring 3 raises #UD",
        "INT n calls the handler of vector n if the gate's DPL allows (Intel SDM vol. 2A, INT n)",
        NATIVE,
    ),
    Oddity(
        "iret_protected",
        "IRET in ring 0 of 32-bit protected mode ends the guest with an emulation failure",
        "IRET returns from a handler in every mode (Intel SDM vol. 2A, IRET/IRETD/IRETQ)",
        REFUSED,
    ),
    Oddity(
        "iopl_ring3",
        "in ring 3 of long mode IOPL counts as 0: CLI, STI and I/O raise #GP though it is 3",
        "they are allowed if CPL is not above IOPL (Intel SDM vol. 1, *I/O Privilege Level*)",
        NATIVE,
    ),
    Oddity(
        "am_ring3",
        "in ring 3 of long mode alignment is checked with RFLAGS.AC alone: CR0.AM counts as set",
        "it takes CR0.AM and RFLAGS.AC both (Intel SDM vol. 3A, *Control Registers*)",
        NATIVE,
    ),
    Oddity(
        "idt_limit_real",
        "in real mode the IDT's limit is ignored",
        "a vector beyond the limit is #GP, then #DF, then shutdown (Intel SDM vol. 2A, INT n, and "
        "vol. 3B, *8086 Emulation*)",
        "`emulate_int_real` in emulate.c does not look at it",
    ),
    Oddity(
        "vmcall_hangs",
        "VMCALL and VMMCALL in ring 0 never finish, and only a signal ends KVM_RUN",
        "an unknown hypercall returns -KVM_ENOSYS in RAX (Linux Documentation/virt/kvm/x86/"
        "hypercalls.rst)",
        UNKNOWN,
    ),
    Oddity(
        "interrupt_window",
        "request_interrupt_window ends KVM_RUN too late: other exits come first",
        "KVM_RUN returns as soon as the guest can take an interrupt (Linux Documentation/virt/kvm/"
        "api.rst, section 5)",
        UNKNOWN,
    ),
    Oddity(
        "step_over_hlt",
        "a single step over HLT is reported as a step, and the halt is lost",
        "HLT exits with KVM_EXIT_HLT where the kernel has no irqchip (api.rst, section 5)",
        UNKNOWN,
    ),
    Oddity(
        "debug_ring3",
        "in ring 3 the debugger's single step raises #DB in the guest, and its breakpoints are "
        "passed over",
        "KVM_SET_GUEST_DEBUG makes both exit with KVM_EXIT_DEBUG (api.rst, section 4.87)",
        UNKNOWN,
    ),
    Oddity(
        "trap_after_out",
        "in ring 0 of long mode the trap of a guest that steps itself with TF is lost behind OUT",
        "a #DB follows each instruction that began with TF set (Intel SDM vol. 3B, *Single-Step "
        "Exception Condition*)",
        UNKNOWN,
    ),
    Oddity(
        "decimal_ring0",
        "DAA, AAA and AAS in ring 0 end the guest with an emulation failure",
        "they adjust AL after decimal arithmetic (Intel SDM vol. 2A, DAA, AAA, AAS)",
        EMULATED,
    ),
    Oddity(
        "enter_nested_ring0",
        "ENTER with a nesting level above 0 in ring 0 ends the guest with an emulation failure",
        "it copies the display of the outer frames (Intel SDM vol. 2A, ENTER)",
        REFUSED,
    ),
    Oddity(
        "descriptors_ring0",
        "VERR, VERW, LAR, LSL and ARPL in ring 0 end the guest with an emulation failure",
        "they look a selector up, or adjust it (Intel SDM vol. 2A, ARPL, LAR, LSL; vol. 2D, VERR)",
        EMULATED,
    ),
    Oddity(
        "bound_ring0",
        "BOUND in ring 0 ends the guest with an emulation failure",
        "it raises #BR outside the bounds, and does nothing inside (Intel SDM vol. 2A, BOUND)",
        EMULATED,
    ),
    Oddity(
        "popcnt_ring0",
        "POPCNT, ANDN and CLAC in ring 0 end the guest with an emulation failure, though CPUID "
        "announces them",
        "what CPUID announces works in ring 0 (Intel SDM vol. 2B, POPCNT; vol. 2A, ANDN, CLAC)",
        EMULATED,
    ),
    Oddity(
        "movbe_ring0",
        "MOVBE in ring 0 raises #UD, though CPUID announces it",
        "it raises #UD only where CPUID does not (Intel SDM vol. 2B, MOVBE)",
        UNKNOWN,
    ),
    Oddity(
        "retf_outward",
        "RETF from ring 0 to ring 3 ends the guest with an emulation failure",
        "it returns to an outer ring and its stack (Intel SDM vol. 2B, RET)",
        REFUSED,
    ),
    Oddity(
        "paging_protected",
        "paging without long mode does not exist: a MOV to CR0 that sets PG raises #GP, and a "
        "vCPU set up so shuts down at once",
        "32-bit and PAE paging need no long mode (Intel SDM vol. 3A, *Paging-Mode Enabling*)",
        "the module has tables of long mode for every guest, and refuses CR0.PG without EFER.LME",
    ),
    Oddity(
        "frame_fault",
        "in long mode a page fault while an exception's frame is pushed becomes #DF, and CR2 stays "
        "as it was",
        "#PF during the delivery of #UD is delivered as #PF, with its address in CR2 (Intel SDM "
        "vol. 3A, table 6-5)",
        "the module delivers exceptions by itself, and takes any failure there for a double fault",
    ),
    Oddity(
        "iret_segments",
        "IRETQ to ring 3 leaves DS, ES, FS and GS of ring 0 in the vCPU's registers, and a handler "
        "in ring 0 finds them there again",
        "segments whose DPL is below the new CPL become null (Intel SDM vol. 2A, IRET)",
        "the module returns to ring 3 by itself, and does not go through these segments",
    ),
    Oddity(
        "selectors_ring3",
        "in ring 3 of long mode CS reads as 0x33, SS as 0x2b, and DS and ES as null, whatever the "
        "guest has loaded; frames on the stack hold the guest's own",
        "MOV from a segment register stores its selector (Intel SDM vol. 2B, MOV)",
        NATIVE,
    ),
    Oddity(
        "descriptors_ring3",
        "in ring 3 of long mode LAR, LSL, VERR and VERW find nothing under the guest's selectors",
        "they look into the guest's GDT (Intel SDM vol. 2A, LAR, LSL; vol. 2D, VERR/VERW)",
        NATIVE,
    ),
    Oddity(
        "if_ring3",
        "in ring 3 of long mode PUSHF shows IF set, though it is clear",
        "PUSHF stores IF as it is (Intel SDM vol. 2B, PUSHF/PUSHFD/PUSHFQ)",
        NATIVE,
    ),
    Oddity(
        "controls_ring3",
        "in ring 3 of long mode CR0.TS, EM and AM and CR4.TSD, OSFXSR, OSXSAVE and FSGSBASE count "
        "as the host has them, not the guest",
        "they say whether x87, SSE, RDTSC, XGETBV and RDFSBASE fault, and whether AC does anything "
        "(Intel SDM vol. 3A, 2.5)",
        NATIVE,
    ),
    Oddity(
        "unaligned_ring3",
        "SSE arithmetic in ring 3 raises #UD where its operand in memory is not aligned, or its "
        "address not canonical",
        "either is #GP (Intel SDM vol. 1, 11.4, and *Canonical Addressing*)",
        "on #GP the module looks whether it can emulate the instruction, and cannot",
    ),
    Oddity(
        "syscall_off",
        "though EFER.SCE is clear, SYSCALL goes on at the address in IA32_LSTAR, still in ring 3, "
        "and SYSRET goes to ring 3",
        "both raise #UD without EFER.SCE (Intel SDM vol. 2B, SYSCALL, SYSRET)",
        "SYSCALL is on in the host's EFER, and the module does not look at the guest's",
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
