"""The VMCB: one page in which AMD-V keeps a guest, and says when to leave it and why it left.

The first 1024 bytes are the *control area*: which instructions and events make the guest leave
(the intercepts), how its memory is translated, what is injected on entry, and after an exit
EXITCODE, EXITINFO1 and EXITINFO2. From 0x400 on lies the *save area*, the guest's state. Field
names and offsets are those of AMD's APM vol. 2 (publication 24593), appendix B; exit codes are of
appendix C. The intercepts are vectors of bits, each bit the exit code that it causes:

    offset    0x000      0x002       0x004      0x006       0x008       0x00C        0x010
    codes     0x00-0x0f  0x10-0x1f   0x20-0x2f  0x30-0x3f   0x40-0x5f   0x60-0x7f    0x80-0x9f
              CR reads   CR writes   DR reads   DR writes   exceptions  the rest     SVM's own

Left out: AVIC, LBR virtualization, encryption (SEV), shadow stacks, MWAIT_CONDITIONAL.
"""

import struct
from dataclasses import dataclass
from operator import index

from vmlib.cpu.events import NAMES
from vmlib.cpu.state import Segment, SystemRegisters, Table
from vmlib.errors import BadInput
from vmlib.given import check_one, names_bad_input, shown
from vmlib.memory import GuestRam
from vmlib.units import PAGE_SIZE

_SAVE = 0x400

CONTROL = {
    "IOPM_BASE_PA": (0x040, 8),
    "MSRPM_BASE_PA": (0x048, 8),
    "TSC_OFFSET": (0x050, 8),
    "GUEST_ASID": (0x058, 4),
    "TLB_CONTROL": (0x05C, 1),
    "V_INTR": (0x060, 4),
    "V_INTR_VECTOR": (0x064, 1),
    "INTERRUPT_SHADOW": (0x068, 8),
    "EXITCODE": (0x070, 8),
    "EXITINFO1": (0x078, 8),
    "EXITINFO2": (0x080, 8),
    "EXITINTINFO": (0x088, 8),
    "NP_ENABLE": (0x090, 8),
    "EVENTINJ": (0x0A8, 8),
    "N_CR3": (0x0B0, 8),
    "VMCB_CLEAN": (0x0C0, 4),
    "nRIP": (0x0C8, 8),
}
"""Fields of the control area: offset in the page and size in bytes. Table B-1."""

SAVE = {"CPL": (0x0CB, 1), "EFER": (0x0D0, 8), "CR4": (0x148, 8), "CR3": (0x150, 8)}
SAVE |= {"CR0": (0x158, 8), "DR7": (0x160, 8), "DR6": (0x168, 8), "RFLAGS": (0x170, 8)}
SAVE |= {"RIP": (0x178, 8), "RSP": (0x1D8, 8), "RAX": (0x1F8, 8), "STAR": (0x200, 8)}
SAVE |= {"LSTAR": (0x208, 8), "CSTAR": (0x210, 8), "SFMASK": (0x218, 8)}
SAVE |= {"KernelGsBase": (0x220, 8), "SYSENTER_CS": (0x228, 8), "SYSENTER_ESP": (0x230, 8)}
SAVE |= {"SYSENTER_EIP": (0x238, 8), "CR2": (0x240, 8), "G_PAT": (0x268, 8)}
"""Fields of the save area: offset from 0x400 and size in bytes. Table B-2."""

SEGMENTS = {"ES": 0x00, "CS": 0x10, "SS": 0x20, "DS": 0x30, "FS": 0x40, "GS": 0x50}
SEGMENTS |= {"GDTR": 0x60, "LDTR": 0x70, "IDTR": 0x80, "TR": 0x90}
"""Segment registers in the save area: selector u16, attributes u16, limit u32, base u64."""

FIELDS = CONTROL | {name: (_SAVE + at, size) for name, (at, size) in SAVE.items()}
_SEGMENT = struct.Struct("<HHIQ")

EXIT_CODES: dict[int, str] = {}
"""Name of each exit code, without the prefix ``VMEXIT_``. Appendix C."""
for _i in range(16):
    EXIT_CODES |= {_i: f"CR{_i}_READ", 0x10 + _i: f"CR{_i}_WRITE"}
    EXIT_CODES |= {0x20 + _i: f"DR{_i}_READ", 0x30 + _i: f"DR{_i}_WRITE"}
EXIT_CODES |= {0x40 + vector: f"EXCP{vector}" for vector in range(32)}
_FROM_0X60 = """INTR NMI SMI INIT VINTR CR0_SEL_WRITE IDTR_READ GDTR_READ LDTR_READ TR_READ
IDTR_WRITE GDTR_WRITE LDTR_WRITE TR_WRITE RDTSC RDPMC PUSHF POPF CPUID RSM IRET SWINT INVD PAUSE
HLT INVLPG INVLPGA IOIO MSR TASK_SWITCH FERR_FREEZE SHUTDOWN VMRUN VMMCALL VMLOAD VMSAVE STGI CLGI
SKINIT RDTSCP ICEBP WBINVD MONITOR MWAIT"""
EXIT_CODES |= dict(enumerate(_FROM_0X60.split(), start=0x60))
INTERCEPTS = {name: code for code, name in EXIT_CODES.items()}
"""Exit code of each intercept by its name: each is one bit of the vectors at offset 0."""
INTERCEPTS |= {name: 0x40 + vector for vector, name in NAMES.items()}  # "#PF" for EXCP14

INSTRUCTIONS = frozenset(
    code
    for name, code in INTERCEPTS.items()
    if (code < 0x40 or code >= INTERCEPTS["CR0_SEL_WRITE"])
    and name not in ("SHUTDOWN", "TASK_SWITCH", "FERR_FREEZE")
)
"""Codes of intercepted instructions: those for which nRIP is told (15.7.1)."""
NPF, INVALID, INTR, SHUTDOWN = 0x400, (1 << 64) - 1, 0x60, 0x7F
EXIT_CODES |= {NPF: "NPF", INVALID: "INVALID"}

V_INTR_MASKING = 1 << 24
"""In V_INTR: the host's RFLAGS.IF, not the guest's, decides over physical interrupts."""
EVENT_VALID, EVENT_HAS_ERROR = 1 << 31, 1 << 11
EVENT_TYPES = {"interrupt": 0, "nmi": 2, "exception": 3, "software": 4}
MSRPM_SIZE = 2 * PAGE_SIZE
_MSR_RANGES = ((0, 0), (0xC0000000, 0x800), (0xC0010000, 0x1000))


@dataclass(frozen=True, slots=True)
class SvmExit:
    """A #VMEXIT, as the VMCB tells it. `why` names the broken rule of an INVALID one."""

    code: int
    name: str
    info1: int
    info2: int
    rip: int
    """The guest's RIP: at the instruction that was intercepted, not behind it."""
    nrip: int | None
    """RIP of the next instruction, where an instruction was intercepted."""
    why: str = ""


class Vmcb:
    """The VMCB at host-physical address `at` in `ram`; ``vmcb["CR3"]`` reads and writes a field.

    Nothing is checked on the way in: VMRUN checks, as it does on hardware.
    """

    @names_bad_input
    def __init__(self, ram: GuestRam, at: int) -> None:
        if at % PAGE_SIZE:
            raise BadInput("vmcb", f"starts at a page, not at {at:#x} (APM vol. 2, 15.5.1)")
        self._ram = ram
        self.at = at

    @names_bad_input
    def __getitem__(self, field: str) -> int:
        at, size = _place(field)
        return int.from_bytes(self._ram.read(self.at + at, size), "little")

    @names_bad_input
    def __setitem__(self, field: str, value: int) -> None:
        at, size = _place(field)
        try:
            data = index(value).to_bytes(size, "little")
        except TypeError:
            raise BadInput(field, f"is {shown(value)}; it must be a whole number") from None
        except OverflowError:
            raise BadInput(field, f"has {size} byte(s), too few for {value:#x}") from None
        self._ram.write(self.at + at, data)

    @names_bad_input
    def segment(self, name: str) -> Segment:
        """Return a segment register of the save area."""
        selector, packed, limit, base = _SEGMENT.unpack(self._ram.read(self._segment_at(name), 16))
        return Segment(selector, base, limit, packed & 0xFF | (packed & 0xF00) << 4)

    @names_bad_input
    def set_segment(self, name: str, segment: Segment) -> None:
        """Store one. The save area packs the attributes: bits 15..12 stand in 11..8."""
        packed = segment.attributes & 0xFF | segment.attributes >> 4 & 0xF00
        data = _SEGMENT.pack(segment.selector, packed, segment.limit, segment.base)
        self._ram.write(self._segment_at(name), data)

    @names_bad_input
    def set_state(self, system: SystemRegisters, rip: int, rsp: int = 0, rflags: int = 2) -> None:
        """Fill the save area with a whole state. EFER.SVME is set, as VMRUN demands of a guest."""
        for name in ("ES", "CS", "SS", "DS", "FS", "GS", "TR"):
            self.set_segment(name, getattr(system, name.lower()))
        self.set_segment("LDTR", system.ldt)
        for name, table in (("GDTR", system.gdt), ("IDTR", system.idt)):
            self.set_segment(name, Segment(0, table.base, table.limit, 0))
        for name in ("CR0", "CR2", "CR3", "CR4"):
            self[name] = getattr(system, name.lower())
        self["EFER"] = system.efer | EFER_SVME
        self["CPL"] = system.ss.dpl
        self["RIP"], self["RSP"], self["RFLAGS"] = rip, rsp, rflags
        self["DR6"], self["DR7"], self["G_PAT"] = 0xFFFF0FF0, 0x400, 0x0007040600070406

    def state(self) -> SystemRegisters:
        """Return segments, tables and control registers of the save area."""
        gdt, idt = self.segment("GDTR"), self.segment("IDTR")
        return SystemRegisters(
            cs=self.segment("CS"),
            ds=self.segment("DS"),
            es=self.segment("ES"),
            fs=self.segment("FS"),
            gs=self.segment("GS"),
            ss=self.segment("SS"),
            tr=self.segment("TR"),
            ldt=self.segment("LDTR"),
            gdt=Table(gdt.base, gdt.limit),
            idt=Table(idt.base, idt.limit),
            cr0=self["CR0"],
            cr2=self["CR2"],
            cr3=self["CR3"],
            cr4=self["CR4"],
            efer=self["EFER"],
        )

    @names_bad_input
    def intercept(self, *names: str, on: bool = True) -> None:
        """Set intercept bits by the names of their exits: ``"CPUID"``, ``"CR3_WRITE"``, ``"#UD"``.

        With ``on=False`` clear them.
        """
        for name in names:
            code = _intercept(name)
            at = self.at + code // 32 * 4
            vector = int.from_bytes(self._ram.read(at, 4), "little")
            bit = 1 << code % 32
            self._ram.write(at, (vector | bit if on else vector & ~bit).to_bytes(4, "little"))

    @names_bad_input
    def intercepts(self, name: str) -> bool:
        """Say whether an intercept bit is set."""
        code = _intercept(name)
        return bool(self._ram.read(self.at + code // 8, 1)[0] >> code % 8 & 1)

    @names_bad_input
    def inject(self, kind: str, vector: int, error_code: int | None = None) -> None:
        """Have the next VMRUN deliver an event first. `kind` is a key of `EVENT_TYPES`; 15.20."""
        if kind not in EVENT_TYPES:
            raise BadInput("kind", f"{kind!r} is not one of {', '.join(EVENT_TYPES)}")
        event = EVENT_VALID | EVENT_TYPES[kind] << 8 | vector & 0xFF
        if error_code is not None:
            event |= EVENT_HAS_ERROR | error_code << 32
        self["EVENTINJ"] = event

    @names_bad_input
    def permit_msr(self, index: int, *, read: bool, write: bool) -> None:
        """Write the two bits of an MSR in the permission map at MSRPM_BASE_PA; 15.11.

        A bit that is set intercepts; with the "MSR" intercept off the map is not looked at.
        """
        check_one(index, int, "index")
        for first, offset in _MSR_RANGES:
            if first <= index < first + 0x2000:
                at = self["MSRPM_BASE_PA"] + offset + (index - first) // 4
                shift = (index - first) % 4 * 2
                byte = self._ram.read(at, 1)[0] & ~(3 << shift)
                byte |= (not read) << shift | (not write) << shift + 1
                self._ram.write(at, bytes([byte]))
                return
        raise BadInput("msr", f"{index:#x} has no bit in the map: it is always intercepted")

    def _segment_at(self, name: str) -> int:
        if name not in SEGMENTS:
            raise BadInput("segment", f"{name!r} is not one of {', '.join(SEGMENTS)}")
        return self.at + _SAVE + SEGMENTS[name]


EFER_SVME = 1 << 12
_EFER_DEFINED = 0x1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15
_CR4_DEFINED = 0x7FF | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 20 | 1 << 21 | 1 << 22
_PHYSICAL = 1 << 40  # as far as the emulated processor's addresses reach
_PE, _NW, _CD, _PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31


@names_bad_input
def why_invalid(vmcb: Vmcb) -> str | None:
    """Return the rule that makes VMRUN refuse this VMCB with VMEXIT_INVALID, or None.

    APM vol. 2, 15.5.1, *Canonicalization and Consistency Checks*, and 15.20 for EVENTINJ.
    """
    cr0, cr4, efer, cs = vmcb["CR0"], vmcb["CR4"], vmcb["EFER"], vmcb.segment("CS")
    long = bool(efer & 1 << 8 and cr0 & _PG)
    event = vmcb["EVENTINJ"]
    kind, vector = event >> 8 & 7, event & 0xFF
    rules = {
        "EFER.SVME is zero": not efer & EFER_SVME,
        "CR0.CD is zero and CR0.NW is set": not cr0 & _CD and cr0 & _NW,
        "CR0[63:32] are not zero": cr0 >> 32,
        "a bit of CR3 that must be zero is set": long and vmcb["CR3"] >> 52,
        "a bit of CR4 that must be zero is set": cr4 & ~_CR4_DEFINED,
        "DR6[63:32] are not zero": vmcb["DR6"] >> 32,
        "DR7[63:32] are not zero": vmcb["DR7"] >> 32,
        "a bit of EFER that must be zero is set": efer & ~_EFER_DEFINED,
        "EFER.LME and CR0.PG are set and CR4.PAE is zero": long and not cr4 & 1 << 5,
        "EFER.LME and CR0.PG are set and CR0.PE is zero": long and not cr0 & _PE,
        "EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D are all set": long and cs.long and cs.big,
        "the VMRUN intercept bit is clear": not vmcb.intercepts("VMRUN"),
        "a permission map lies beyond the physical address space": max(
            vmcb["MSRPM_BASE_PA"] + MSRPM_SIZE if vmcb.intercepts("MSR") else 0,
            vmcb["IOPM_BASE_PA"] + 3 * PAGE_SIZE if vmcb.intercepts("IOIO") else 0,
        )
        > _PHYSICAL,
        "EVENTINJ holds a type or a vector that does not exist": event & EVENT_VALID
        and (kind not in EVENT_TYPES.values() or (kind == 3 and (vector == 2 or vector > 31))),
        "GUEST_ASID is zero": not vmcb["GUEST_ASID"],
        "a bit of N_CR3 that must be zero is set": vmcb["NP_ENABLE"] & 1 and vmcb["N_CR3"] >> 52,
    }
    return next((rule for rule, broken in rules.items() if broken), None)


@names_bad_input
def exit_name(code: int) -> str:
    """Return the name of an exit code, or its number if it has none here."""
    return EXIT_CODES.get(code, hex(code))


def _place(field: str) -> tuple[int, int]:
    if field not in FIELDS:
        raise BadInput("field", f"{field!r} is not one of {', '.join(FIELDS)}")
    return FIELDS[field]


def _intercept(name: str) -> int:
    if name not in INTERCEPTS:
        raise BadInput("intercept", f"{name!r} is unknown; HLT, CPUID, CR3_WRITE or #PF are known")
    return INTERCEPTS[name]
