"""AMD-V in the emulator, rule by rule. Sections are those of AMD's APM vol. 2 (24593).

The authority is the emulator's own SVM where it decides: intercepts, the 2-D walk and its fault
codes. What we complete (#VMEXIT, consistency checks, delivery) is held against the specification.
"""

import os
import random
import re
import struct
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vmlib.cpu import load_guest
from vmlib.cpu.npt import NestedFault, NestedMemory
from vmlib.cpu.state import Registers, Segment, SystemRegisters
from vmlib.cpu.svm_problems import vmrun_problem
from vmlib.cpu.vmcb import (
    EXIT_CODES,
    INTERCEPTS,
    INVALID,
    NPF,
    V_INTR_MASKING,
    Vmcb,
    why_invalid,
)
from vmlib.errors import BadInput, GuestError, SpecViolation, Unsupported
from vmlib.memory import GuestRam, translate
from vmlib.units import PAGE_SIZE

pytestmark = pytest.mark.needs("unicorn")

PAGES = 64
CODE, STACK, IDT, GDT = 0x8000, 0x9000, 0x6000, 0x7000
HANDLER = 0x8100
LINEAR = 0x220000
MIB = 1 << 20


class Setup:
    """A host with one guest: long mode or real mode, RAM of 64 pages behind nested tables."""

    def __init__(self, code: str, *intercepts: str, real: bool = False) -> None:
        from vmlib.cpu.unicorn.svm import SvmHost

        self.host = SvmHost("4M")
        self.vmcb = self.host.vmcb()
        self.npt = self.host.nested_paging(self.vmcb)
        self.base = self.host.allocate(PAGES)
        self.npt.map(0, self.base, PAGES * PAGE_SIZE)
        self.write(CODE, bytes.fromhex(code))
        if real:
            self.vmcb.set_state(SystemRegisters.real_mode(), rip=CODE, rsp=STACK)
        else:
            for at, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007)):
                self.entry(at, entry)
            for page in range(PAGES):
                self.entry(0x4000 + 8 * page, page * PAGE_SIZE | 7)
            self.vmcb.set_state(SystemRegisters.long_mode(0x1000), rip=CODE, rsp=STACK)
        self.vmcb.intercept("HLT", *intercepts)

    def write(self, gpa: int, data: bytes) -> None:
        self.host.ram.write(self.base + gpa, data)

    def read(self, gpa: int, size: int) -> bytes:
        return self.host.ram.read(self.base + gpa, size)

    def entry(self, gpa: int, value: int) -> None:
        self.host.ram.write_u64(self.base + gpa, value)

    def handlers(self, *vectors: int, ist: int = 0) -> None:
        """Interrupt gates to a HLT at HANDLER, and a GDT with flat 64-bit code."""
        for vector in vectors:
            gate = struct.pack("<HHBBHII", HANDLER, 8, ist, 0x8E, 0, 0, 0)
            self.write(IDT + 16 * vector, gate)
        self.write(HANDLER, b"\xf4")
        self.write(GDT + 8, struct.pack("<QQ", 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        self.vmcb.set_segment("IDTR", Segment(0, IDT, 0xFFF, 0))
        self.vmcb.set_segment("GDTR", Segment(0, GDT, 0x17, 0))

    def run(self, **options):
        return self.host.vmrun(self.vmcb.at, **options)


@pytest.fixture
def setup():
    made = []

    def make(code: str, *intercepts: str, real: bool = False) -> Setup:
        made.append(Setup(code, *intercepts, real=real))
        return made[-1]

    yield make
    for one in made:
        one.host.close()


# --- the layout ---------------------------------------------------------------------------------


def test_exit_codes_are_linux_s(check):
    """Appendix C, as the kernel gives it to programs that read its traces."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/svm.h")
    if not header.is_file():
        missing = "linux-libc-dev is not installed"
        if os.environ.get("VMLIB_REQUIRE") == "all":
            pytest.fail(missing, pytrace=False)
        pytest.skip(f"outside check not run: {missing}")
    text = header.read_text()
    command = ["dpkg-query", "-W", "-f", "${Version}", "linux-libc-dev"]
    version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    theirs = dict(re.findall(r"#define\s+SVM_EXIT_(\w+)\s+(0x[0-9a-f]+|-1)\n", text))
    ours = {name: code for code, name in EXIT_CODES.items()}
    with check(
        "cpu/svm-codes",
        what="Exit codes of AMD-V by name against Linux's header for programs",
        tool="linux-libc-dev, asm/svm.h",
        tool_version=version or "unknown",
        covers=["vmlib/cpu/vmcb.py"],
    ) as record:
        names = {"ERR": "INVALID", "READ_CR": "CR{}_READ", "WRITE_CR": "CR{}_WRITE"}
        names |= {"READ_DR": "DR{}_READ", "WRITE_DR": "DR{}_WRITE"}
        for name, code in theirs.items():
            kind, number = re.fullmatch(r"(.*?)(\d*)", name).groups()
            mine = names[kind].format(number) if kind in names else name
            if mine in ours and "TRAP" not in name:
                record.case(ours[mine], int(code, 16) % (1 << 64), name)
        assert record.cases > 60
        for name in ("CPUID", "VMMCALL", "SHUTDOWN", "NPF"):
            record.show(f"VMEXIT_{name}", hex(ours[name]), hex(int(theirs[name], 16)))


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        ("GUEST_ASID", 0x58),
        ("EXITCODE", 0x70),
        ("EXITINFO2", 0x80),
        ("EVENTINJ", 0xA8),
        ("N_CR3", 0xB0),
        ("nRIP", 0xC8),
        ("CPL", 0x4CB),
        ("EFER", 0x4D0),
        ("RIP", 0x578),
        ("RAX", 0x5F8),
        ("CR2", 0x640),
    ],
)
def test_fields_are_where_appendix_b_has_them(field, offset):
    ram = GuestRam("8K")
    vmcb = Vmcb(ram, 0x1000)
    vmcb[field] = 0x5A
    assert ram.read(0x1000, PAGE_SIZE).index(b"\x5a") == offset
    assert vmcb[field] == 0x5A


def test_a_segment_keeps_all_it_has():
    vmcb = Vmcb(GuestRam("4K"), 0)
    segment = Segment(0x33, 0x123456789A, 0xFFFFF, 0xA0FB)
    vmcb.set_segment("CS", segment)
    assert vmcb.segment("CS") == segment
    state = replace(SystemRegisters.long_mode(0x5000), cs=segment, cr2=0x77)
    vmcb.set_state(state, rip=1)
    assert vmcb.state() == replace(state, efer=state.efer | 1 << 12)


def test_wrong_fields_are_named():
    vmcb = Vmcb(GuestRam("8K"), 0)
    with pytest.raises(BadInput, match="too few"):
        vmcb["TLB_CONTROL"] = 256
    with pytest.raises(BadInput, match="is not one of"):
        vmcb["ASID"]
    with pytest.raises(BadInput, match="is unknown"):
        vmcb.intercept("OUT")
    with pytest.raises(BadInput, match="starts at a page"):
        Vmcb(GuestRam("8K"), 0x800)


# --- intercepts (15.9 to 15.14): the emulator decides, we write down ------------------------------

INSTRUCTIONS = {
    "CR0_READ": "0f20c0",
    "CR3_READ": "0f20d8",
    "CR4_READ": "0f20e0",
    "CR8_READ": "440f20c0",
    "CR0_WRITE": "0f22c0",
    "CR3_WRITE": "0f22d8",
    "CR8_WRITE": "440f22c0",
    "DR7_READ": "0f21f8",
    "DR7_WRITE": "0f23f8",
    "IDTR_READ": "0f010c2500700000",
    "GDTR_WRITE": "0f01142500700000",
    "TR_READ": "0f00c8",
    "LDTR_WRITE": "0f00d0",
    "RDTSC": "0f31",
    "RDPMC": "0f33",
    "PUSHF": "9c",
    "POPF": "9d",
    "CPUID": "0fa2",
    "IRET": "48cf",
    "SWINT": "cd80",
    "PAUSE": "f390",
    "HLT": "f4",
    "INVLPG": "0f013c2500700000",
    "VMRUN": "0f01d8",
    "VMMCALL": "0f01d9",
    "VMLOAD": "0f01da",
    "STGI": "0f01dc",
    "CLGI": "0f01dd",
    "WBINVD": "0f09",
    "MONITOR": "0f01c8",
    "MWAIT": "0f01c9",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_an_intercepted_instruction_has_not_happened(setup, name):
    """15.7.1 and 15.9: EXITCODE, RIP at the instruction, nRIP behind it, nothing executed."""
    code = INSTRUCTIONS[name]
    one = setup(code + "f4", name)
    one.vmcb["RAX"] = 0x1234
    ended = one.run()
    assert (ended.name, ended.code) == (name, INTERCEPTS[name])
    assert (ended.rip, ended.nrip) == (CODE, CODE + len(code) // 2)
    vmcb = one.vmcb
    assert (vmcb["EXITCODE"], vmcb["RIP"], vmcb["nRIP"]) == (ended.code, ended.rip, ended.nrip)
    assert (vmcb["RAX"], vmcb["RSP"]) == (0x1234, STACK)


@pytest.mark.parametrize("name", ["CPUID", "CR0_READ", "CR3_WRITE", "RDTSC", "PUSHF", "PAUSE"])
def test_without_its_bit_the_same_instruction_passes(setup, name):
    code = INSTRUCTIONS[name].replace("0f22d8", "b8001000000f22d8")
    one = setup(code + "f4")
    assert one.run().name == "HLT"


def test_read_and_write_of_an_msr_have_a_bit_each(setup):
    """15.11: two bits an MSR in the permission map, EXITINFO1 is 1 for WRMSR."""
    code = "b9820000c0 0f32 0f30 f4"
    for read, write, expected in ((0, 1, ("MSR", 0)), (1, 0, ("MSR", 1)), (1, 1, ("HLT", 0))):
        one = setup(code, "MSR")
        one.vmcb.permit_msr(0xC0000082, read=bool(read), write=bool(write))
        ended = one.run()
        assert (ended.name, ended.info1) == expected
        one.vmcb.intercept("MSR", on=False)  # then nobody looks at the map
        assert one.run().name == "HLT"


@pytest.mark.parametrize("index", [0x10, 0x1B, 0xC0000080, 0xC0010117])
def test_msrs_of_all_three_ranges(setup, index):
    one = setup(f"b9{index.to_bytes(4, 'little').hex()} 0f32 f4", "MSR")
    assert one.run().name == "HLT"
    one.vmcb["RIP"] = CODE
    one.vmcb.permit_msr(index, read=False, write=True)
    assert one.run().name == "MSR"
    with pytest.raises(BadInput, match="always intercepted"):
        one.vmcb.permit_msr(0x40000000, read=True, write=True)


def test_exceptions_tell_error_code_and_address(setup):
    """15.12: EXITINFO1 the error code; of a page fault EXITINFO2 the address, and CR2 untouched."""
    for code, info1 in (("8a0425 00000500", 0), ("880425 00000500", 2)):
        one = setup(code, "#PF")
        ended = one.run()
        assert (ended.name, ended.info1, ended.info2) == ("EXCP14", info1, 0x50000)
        assert one.vmcb["CR2"] == 0
    assert setup("0f0b", "#UD").run().name == "EXCP6"
    assert setup("31c9 f7f1", "#DE").run().name == "EXCP0"
    selector = setup("b8080000008ed8", "#GP").run()
    assert (selector.name, selector.info1) == ("EXCP13", 8)


def test_an_exception_that_is_not_intercepted_is_the_guest_s_own(setup):
    one = setup("8a0425 00000500")
    one.handlers(14)
    ended = one.run()
    assert (ended.name, ended.rip) == ("HLT", HANDLER)
    assert one.vmcb["CR2"] == 0x50000
    error, rip, cs, _, rsp, _ = struct.unpack("<6Q", one.read(one.vmcb["RSP"], 48))
    assert (error, rip, cs, rsp) == (0, CODE, 8, STACK)


def test_the_second_fault_is_as_good_as_the_first(setup):
    """The emulator remembers faults for ever and would make a double fault of it."""
    one = setup("8a0425 00000500 8a0425 00000500 f4")
    one.handlers(14)
    one.write(HANDLER, bytes.fromhex("4883c408 4883042407 48cf"))  # step over it, and back
    ended = one.run()
    assert (ended.name, ended.rip) == ("HLT", CODE + 14)


def test_shutdown(setup):
    """15.14.3. Not intercepted it would reset the host."""
    one = setup("0f0b", "SHUTDOWN")
    assert one.run().name == "SHUTDOWN"
    with pytest.raises(GuestError, match="resets the host"):
        setup("0f0b").run()


def test_the_timer_brings_the_host_back(setup):
    """15.13.1 and 15.21.1: INTR, and who masks it."""
    loop = setup("ebfe")
    assert loop.run(timer=1000).name == "INTR"
    halted = setup("f4")
    halted.vmcb.intercept("HLT", on=False)
    ended = halted.run()
    assert (ended.name, ended.rip) == ("INTR", CODE + 1)
    halted.vmcb["RIP"] = CODE
    halted.vmcb.intercept("INTR", on=False)
    with pytest.raises(GuestError, match="is halted and keeps the processor: INTR"):
        halted.run()
    loop.vmcb["V_INTR"] = 0  # now the guest's own RFLAGS.IF decides
    with pytest.raises(GuestError, match="runs on and keeps the processor: interrupts are masked"):
        loop.run(timer=1000)
    loop.vmcb["RFLAGS"] |= 0x200
    assert loop.run(timer=1000).name == "INTR"


def test_the_timer_counts_instructions(setup):
    one = setup("48ffc0 ebfb")  # inc rax; jmp back
    assert one.run(timer=1001).name == "INTR"
    assert 499 <= one.vmcb["RAX"] <= 501


@pytest.mark.parametrize("name", ["IOIO", "TASK_SWITCH", "RDTSCP", "INVD", "VINTR"])
def test_an_intercept_that_nobody_checks_is_refused(setup, name):
    with pytest.raises(Unsupported, match=name):
        setup("f4", name).run()


# --- nested paging (15.25) ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mapping", "info1"),
    [
        ("8a0425 00000200", None, 0x4),  # mov al, [0x20000]: not present
        ("880425 00000200", None, 0x6),
        ("880425 00000200", {"write": False}, 0x7),
        ("b8 00000200 ffe0", {"execute": False}, 0x15),
        ("b8 00000200 ffe0", None, 0x14),
    ],
)
def test_nested_faults_tell_address_and_kind(setup, code, mapping, info1):
    """15.25.6: GPA in EXITINFO2; P, W, I in EXITINFO1, and U always: such accesses are a user's."""
    one = setup(code + "f4")
    if mapping is None:
        one.npt.unmap(0x20000)
    else:
        one.npt.map(0x20000, one.base + 0x20000, PAGE_SIZE, **mapping)
    ended = one.run()
    assert (ended.code, ended.info1, ended.info2) == (NPF, info1, 0x20000)
    assert one.vmcb["EXITINFO2"] == 0x20000
    one.npt.map(0x20000, one.base + 0x20000, PAGE_SIZE)
    one.write(0x20000, b"\xf4")
    assert one.run().name == "HLT"  # the same instruction again, and now it passes


def test_a_guest_s_page_table_goes_through_the_second_stage_too(setup):
    one = setup("f4")
    one.npt.unmap(0x3000)
    ended = one.run()
    assert (ended.name, ended.info2 & -PAGE_SIZE) == ("NPF", 0x3000)
    one.npt.map(0x3000, one.base + 0x3000, PAGE_SIZE, write=False)
    ended = one.run()  # reading an entry may set its A bit: it counts as a write
    assert (ended.info1 & 3, ended.info2 & -PAGE_SIZE) == (3, 0x3000)


def test_two_dimensions_to_the_end(setup):
    """A linear address, a guest-physical and a host-physical one, all different; A and D set."""
    one = setup("a1 0050000000000000 f4".replace("a1", "48a1"))
    one.entry(0x4000 + 8 * 5, 0x2A000 | 3)
    elsewhere = one.host.allocate()
    one.npt.map(0x2A000, elsewhere, PAGE_SIZE)
    one.host.ram.write_u64(elsewhere, 0xC0FFEE)
    assert one.run().name == "HLT"
    assert one.vmcb["RAX"] == 0xC0FFEE
    assert one.read(0x4000 + 8 * 5, 1)[0] & 0x60 == 0x20


def _random_pair(rng, one):
    """Random rights on both stages for one page, and on the second for the guest's own table.

    Return the access and what the model says comes of it.
    """
    table = rng.choice([7, 7, 7, 3, 5, 0])
    one.host.ram.write_u64(one.npt.entry(0x5000), one.base + 0x5000 | table)
    guest = rng.choice([0, 1, 3, 5, 7])
    one.entry(0x3008, 0x5007)
    one.entry(0x5000 + 8 * 0x20, 0x21000 | guest)
    at = one.npt.entry(0x21000)
    rights = rng.choice([0, 1, 3, 5, 7]) | rng.choice([0, 1 << 63])
    one.host.ram.write_u64(at, one.base + 0x21000 | rights)
    access = rng.choice(["read", "write", "fetch"])
    memory = NestedMemory(one.host.ram, one.npt.root)
    registers = {"cr0": 0x80010011, "cr3": 0x1000, "cr4": 0x20, "efer": 0xD00}
    try:
        gpa, _, fault = translate(memory, LINEAR, **registers, access=access)
    except NestedFault as nested:
        return access, ("NPF", nested.error_code, nested.gpa)
    if gpa is None:
        return access, ("EXCP14", fault.error_code & 7, LINEAR)
    registers |= {"cr3": one.npt.root}
    hpa, _, fault = translate(one.host.ram, gpa, **registers, access=access, cpl=3)
    if hpa is None:
        return access, ("NPF", fault.error_code, gpa)
    return access, ("HLT", 0, 0)


def test_two_walks_of_ours_are_the_emulator_s_one(setup, check):
    """300 pairs of rights: who faults, with what code and address."""
    from vmlib.cpu.unicorn.raw import VERSION

    codes = {"read": "8a0425 00002200", "write": "880425 00002200", "fetch": "b8 00002200 ffe0"}
    rng = random.Random(3)
    with check(
        "cpu/svm-walk",
        what="Page fault, nested page fault or none, with code and address, for random rights in "
        "both stages",
        tool="Unicorn (QEMU's AMD-V)",
        tool_version=VERSION,
        covers=["vmlib/cpu/npt.py", "vmlib/cpu/unicorn/svm.py", "vmlib/memory/walk.py"],
    ) as record:
        one = setup("", "#PF")
        model, emulator = Counter(), Counter()
        for _ in range(300):
            access, expected = _random_pair(rng, one)
            one.write(CODE, bytes.fromhex(codes[access] + "f4"))
            one.write(0x21000, b"\xf4")
            one.vmcb["RIP"] = CODE
            ended = one.run()
            told = ended.info1 & 7 if ended.name == "EXCP14" else ended.info1
            record.case(expected, (ended.name, told, ended.info2), access)
            model[expected[0]] += 1
            emulator[ended.name] += 1
        for name, what in (("EXCP14", "page faults"), ("NPF", "nested"), ("HLT", "neither")):
            record.show(f"{what}, of 300", model[name], emulator[name])
            assert model[name] > 20


def test_without_nested_paging_guest_physical_is_host_physical(setup):
    one = setup("f4")
    vmcb = one.host.vmcb()
    vmcb.set_state(SystemRegisters.real_mode(), rip=0x0, rsp=0)
    code = one.host.allocate()
    vmcb.set_segment("CS", Segment(0, code, 0xFFFF, 0x9B))
    vmcb.intercept("HLT")
    one.host.ram.write(code, b"\x90\xf4")
    ended = one.host.vmrun(vmcb.at)
    assert (ended.name, ended.rip) == ("HLT", 1)


def test_nested_tables_that_lead_nowhere(setup):
    one = setup("8a0425 00000200 f4")
    one.npt.map(0x20000, 64 * MIB, PAGE_SIZE)
    with pytest.raises(GuestError, match="no memory"):
        one.run()
    with pytest.raises(BadInput, match="whole pages"):
        one.npt.map(0x20010, 0, PAGE_SIZE)
    with pytest.raises(NestedFault, match="0x777000"):
        NestedMemory(one.host.ram, one.npt.root).read(0x777000, 1)


# --- events (15.20) -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "vector", "error"),
    [
        ("interrupt", 0x30, None),
        ("nmi", 2, None),
        ("exception", 6, None),
        ("exception", 14, 2),
        ("software", 0x80, None),
    ],
)
def test_an_injected_event_comes_before_the_first_instruction(setup, kind, vector, error):
    one = setup("90 f4")
    one.handlers(vector)
    one.vmcb.inject(kind, vector, error)
    ended = one.run()
    assert (ended.name, ended.rip) == ("HLT", HANDLER)
    words = struct.unpack("<6Q", one.read(one.vmcb["RSP"], 48))
    if error is not None:
        assert words[0] == error
    assert words[error is not None] == CODE, "the frame returns to the instruction not yet begun"
    assert one.vmcb["EVENTINJ"] == 0


def test_a_nested_fault_while_delivering_names_the_event(setup):
    """15.7.2: EXITINTINFO holds what has to be injected again."""
    one = setup("0f0b")
    one.handlers(6)
    one.npt.unmap(IDT)
    ended = one.run()
    assert (ended.name, ended.info2 & -PAGE_SIZE) == ("NPF", IDT)
    assert one.vmcb["EXITINTINFO"] == 1 << 31 | 3 << 8 | 6
    one.npt.map(IDT, one.base + IDT, PAGE_SIZE)
    assert one.run().rip == HANDLER


@pytest.mark.parametrize("kind", ["interrupt", "nmi", "exception"])
def test_an_event_that_was_not_delivered_is_told(setup, kind):
    one = setup("90 f4")
    vector = {"interrupt": 0x30, "nmi": 2, "exception": 6}[kind]
    one.handlers(vector)
    one.npt.unmap(STACK - PAGE_SIZE)
    one.vmcb.inject(kind, vector)
    event = one.vmcb["EVENTINJ"]
    ended = one.run()
    assert (ended.name, ended.info2 & -PAGE_SIZE) == ("NPF", STACK - PAGE_SIZE)
    assert (ended.rip, one.vmcb["EXITINTINFO"], one.vmcb["EVENTINJ"]) == (CODE, event, 0)


# --- VMRUN refuses (15.5.1) -----------------------------------------------------------------------

REFUSALS = {
    "EFER.SVME is zero": ("EFER", 0x500),
    "CR0.CD is zero and CR0.NW is set": ("CR0", 0xA0010031),
    r"CR0\[63:32\]": ("CR0", 1 << 32 | 0x80010031),
    "of CR3": ("CR3", 1 << 52),
    "of CR4": ("CR4", 1 << 40 | 0x20),
    "DR6": ("DR6", 1 << 32),
    "DR7": ("DR7", 1 << 32),
    "of EFER": ("EFER", 0x1500 | 1 << 30),
    "CR4.PAE is zero": ("CR4", 0),
    "CR0.PE is zero": ("CR0", 0x80010030),
    "GUEST_ASID": ("GUEST_ASID", 0),
    "permission map": ("MSRPM_BASE_PA", 1 << 45),
    "EVENTINJ": ("EVENTINJ", 1 << 31 | 5 << 8 | 3),
    "N_CR3": ("N_CR3", 1 << 60),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_a_wrong_vmcb_is_refused_and_the_guest_untouched(setup, rule):
    one = setup("48ffc0 f4", "MSR")
    assert why_invalid(one.vmcb) is None
    field, value = REFUSALS[rule]
    one.vmcb[field] = value
    ended = one.run()
    assert (ended.code, ended.name) == (INVALID, "INVALID")
    assert re.search(rule, ended.why)
    assert one.vmcb["EXITCODE"] == (1 << 64) - 1
    assert (one.vmcb["RIP"], one.vmcb["RAX"]) == (CODE, 0)
    assert not one.host.in_guest


def test_the_vmrun_intercept_must_be_set_and_cs_make_sense(setup):
    one = setup("f4")
    one.vmcb.intercept("VMRUN", on=False)
    assert "VMRUN intercept" in one.run().why
    one = setup("f4")
    one.vmcb.set_segment("CS", replace(one.vmcb.segment("CS"), attributes=0xE09B))
    assert "CS.L and CS.D" in one.run().why
    with pytest.raises(SpecViolation, match="#GP"):
        one.host.vmrun(one.vmcb.at + 8)
    with pytest.raises(SpecViolation, match="#GP"):
        one.host.vmrun(1 << 30)


# --- #VMEXIT (15.6) -------------------------------------------------------------------------------


def test_the_host_is_what_it_was(setup):
    """A guest that has turned everything round; between two exits the host is the same to the bit.

    15.5.1 lists what is saved. FS, GS, TR and LDTR come back by the stub's VMLOAD.
    """
    one = setup("f4", real=True)
    assert one.run().name == "HLT"
    host = one.host
    before, registers = host.system(), host.now()
    one.vmcb["RIP"] = CODE
    changes = "b83412 8ed8 8ec0 8ee0 8ee8 8ed0 fa fd 0f30 f4"
    one.write(CODE, bytes.fromhex(changes))
    assert one.run().name == "HLT"
    after = host.system()
    assert replace(after, cr2=before.cr2) == before
    assert after.mode == "long"
    assert after.efer >> 12 & 1, "SVME"
    now = host.now()
    assert (now.rsp, now.rflags, now.rip) == (registers.rsp, registers.rflags, registers.rip)
    assert now.rflags & 0x200, "the host had interrupts on"
    assert host.gif, "behind the stub's STGI"
    assert one.vmcb.segment("FS").selector == one.vmcb.segment("DS").selector == 0x1234
    assert not one.vmcb["RFLAGS"] & 0x200


def test_the_host_is_at_the_exit_what_it_was_at_vmrun(setup):
    """All that VMRUN saves (15.5.1): the rest is the guest's, or comes by the stub's VMLOAD."""
    one = setup("0f22d0 f4")  # mov cr2, rax; hlt
    one.vmcb["RAX"] = 0x5000
    states = []
    for _ in range(2):
        seen = []

        def watch(what, _, seen=seen):
            seen.append((what, one.host.in_guest, one.host.system()))

        assert one.run(watch=watch).name == "HLT"
        one.vmcb["RIP"] = CODE
        (into,) = (
            k for k in range(len(seen)) if seen[k][:2] == ("after", True) and not seen[k - 1][1]
        )
        states += [seen[into - 1][2], one.host.system()]
    before = states[0]
    rest = {name: getattr(before, name) for name in ("fs", "gs", "tr", "ldt", "cr2")}
    for state in states[1:]:
        assert replace(state, **rest) == before
    assert states[-1].cr2 == 0x5000


def test_the_host_has_no_breakpoints_after_an_exit(setup):
    """APM vol. 2, 15.6: DR7 disables all. The guest's DR6 and DR7 are in its VMCB (15.5.1)."""
    from vmlib.cpu.unicorn import state

    one = setup("0f23f8 f4")  # mov dr7, rax; hlt
    one.vmcb["RAX"] = 0x405
    assert one.run().name == "HLT"
    *_, dr6, dr7 = state.read_debug(one.host._emu)
    assert (one.vmcb["DR7"], dr7) == (0x405, 0x400)
    assert dr6 == 0xFFFF0FF0


def test_the_way_back_is_what_the_specification_says(setup, check):
    """No outside system confirms our half: this record says so."""
    with check(
        "cpu/svm-vmexit",
        kind="specification",
        what="What VMRUN refuses, and what #VMEXIT leaves in the VMCB and in the host",
        tool="AMD APM vol. 2 (24593), 15.5.1, 15.6, 15.7",
        tool_version="",
        covers=[
            "vmlib/cpu/unicorn/svm.py",
            "vmlib/cpu/unicorn/world_switch.py",
            "vmlib/cpu/vmcb.py",
        ],
    ) as record:
        one = setup("0fa2 f4", "CPUID")
        ended = one.run()
        record.show("RIP after an intercepted CPUID", ended.rip - CODE, 0)
        record.show("nRIP, from RIP", ended.nrip - ended.rip, 2)
        record.show("RFLAGS.IF of the host", one.host.now().rflags >> 9 & 1, 1)
        for rule, (field, value) in REFUSALS.items():
            wrong = setup("f4", "MSR")
            wrong.vmcb[field] = value
            record.case(wrong.run().code, (1 << 64) - 1, rule)
        record.show("EXITCODE of a refused VMCB", hex(wrong.vmcb["EXITCODE"]), "0x" + "f" * 16)


def test_gif_is_clear_between_exit_and_stgi(setup):
    one = setup("f4")
    seen = []
    one.run(watch=lambda what, _: seen.append((what, one.host.in_guest, one.host.gif)))
    left = seen.index(("left", False, False))
    assert seen[left - 1] == ("after", True, True)
    assert seen[-1] == ("after", False, True)


def test_general_registers_are_the_hypervisor_s_business(setup):
    """15.5.1: VMRUN swaps RAX, RSP and RIP alone."""
    one = setup("4801d8 49ffc7 0f01d9 f4", "VMMCALL")  # add rax, rbx; inc r15; vmmcall
    one.host.registers = Registers(rbx=40, r15=6)
    one.vmcb["RAX"] = 2
    ended = one.run()
    assert ended.name == "VMMCALL"
    assert (one.vmcb["RAX"], one.host.registers.rbx, one.host.registers.r15) == (42, 40, 7)


def test_a_guest_changes_modes_and_comes_back_there(setup):
    """Ring 3 in the guest: CPL and CS go into the VMCB and come out of it again."""
    one = setup("6a1b 6800a00000 9c 6a23 6800810000 48cf")
    one.handlers()
    one.write(GDT + 0x18, struct.pack("<QQ", 0x00CFF3000000FFFF, 0x00AFFB000000FFFF))
    one.vmcb.set_segment("GDTR", Segment(0, GDT, 0x27, 0))
    one.write(HANDLER, bytes.fromhex("0f01d9 0f01d9"))
    one.vmcb.intercept("VMMCALL", "#UD")
    ended = one.run()
    assert (ended.name, ended.rip, one.vmcb["CPL"]) == ("VMMCALL", HANDLER, 3)
    one.vmcb["RIP"] = ended.nrip
    assert (one.run().rip, one.vmcb["CPL"]) == (HANDLER + 3, 3)


def test_host_memory_can_run_out(setup):
    with pytest.raises(BadInput, match="give the host more"):
        setup("f4").host.allocate(2000)


# --- the recording --------------------------------------------------------------------------------


def test_the_trace_shows_each_world_switch(setup):
    from vmlib.cpu.svm_trace import record_vmrun

    one = setup("")
    guest = load_guest("vmrun_guest")
    one.npt.unmap(0x10000)
    one.write(0, guest.code)
    one.vmcb.set_state(SystemRegisters.real_mode(), rip=0, rsp=STACK)
    one.vmcb.intercept("CPUID", "VMMCALL")

    def answer(ended):
        if ended.name == "NPF":
            one.npt.map(ended.info2 & -PAGE_SIZE, one.host.allocate(), PAGE_SIZE)
        elif ended.nrip is not None:
            one.vmcb["RIP"] = ended.nrip
        return "" if ended.name == "HLT" else "The hypervisor answers."

    trace = record_vmrun(one.host, one.vmcb, guest, answer)
    exits = [step.state["exit"]["reason"] for step in trace.steps if step.event == "exit"]
    assert exits == ["CPUID", "VMMCALL", "NPF", "HLT"]
    entries = [step for step in trace.steps if step.event == "entry"]
    assert len(entries) == trace.counters["exits"] == 4
    assert {step.where for step in trace.steps} == {"guest kernel", "host kernel"}
    for step in trace.steps:
        lane = "guest" if step.event == "instruction" else "host"
        if step.event in ("instruction", "run", "entry"):
            assert step.state["code"][step.state["line"]][0].startswith(lane), step


def test_code_without_a_listing_is_recorded_all_the_same(setup):
    from vmlib.cpu import Guest
    from vmlib.cpu.svm_trace import record_vmrun

    one = setup("90 f4")
    trace = record_vmrun(one.host, one.vmcb, Guest("bytes", b"\x90\xf4", ()), lambda ended: "")
    steps = [step for step in trace.steps if step.event == "instruction"]
    assert [step.state["line"] for step in steps] == [-1, -1]
    assert steps[0].text == "The instruction at 0x8000."


# --- the lab and its problems ---------------------------------------------------------------------


def test_problems_are_the_same_for_everybody_and_marked_by_running():
    names = set()
    for seed in range(30):
        problem = vmrun_problem(seed)
        assert problem == vmrun_problem(seed)
        assert problem.mark() == f"Problem {seed}: not answered yet"
        answer = list(problem._truth)
        assert problem.mark(answer).endswith("right")
        assert "not what" in problem.mark([*answer[:-1], "SHUTDOWN"])
        names.update(answer)
        assert answer[-1] == "HLT"
        assert set(answer) <= {*problem.intercepts, "NPF"}
    assert {"NPF", "CPUID", "IDTR_READ", "PUSHF"} <= names
    with pytest.raises(BadInput, match="seed"):
        vmrun_problem(-1)


@pytest.mark.parametrize(
    ("name", "code"), [("CR0_READ", "0f20c0"), ("SWINT", "cd80"), ("IDTR_READ", "0f010f")]
)
def test_lab_three_bytes_are_enough(setup, name, code):
    one = setup(code + "f4", name, real=True)
    assert one.run().name == name


def test_lab_the_sum_of_hypercalls(setup):
    one = setup("b80700 0f01d9 b83600 0f01d9 f4", "VMMCALL", real=True)
    total = 0
    while (ended := one.run()).name == "VMMCALL":
        total += one.vmcb["RAX"]
        one.vmcb["RIP"] = ended.nrip
    assert (ended.name, total) == ("HLT", 0x7 + 0x36)


# --- bad input ------------------------------------------------------------------------------------


def test_events_in_virtual_8086_mode_are_refused_and_the_host_lives(setup):
    """IRETD to virtual-8086 mode and INT3 there: random programs got that far."""
    frame = "6a00" * 5 + "6800300000" + "6802000200" + "6a00" + "681c800000"  # VM is set
    guest = setup(frame + "cf" + "cc")
    guest.vmcb.set_state(SystemRegisters.protected_mode(), rip=CODE, rsp=STACK)
    with pytest.raises(Unsupported, match="virtual-8086"):
        guest.run()
    guest.write(CODE, b"\xf4")
    guest.vmcb.set_state(SystemRegisters.protected_mode(), rip=CODE, rsp=STACK)
    assert guest.run().name == "HLT"


def _random_programs(seed: int, count: int) -> dict[str, int]:
    """Random bytes as guest code; RAM around the guest's pages must stay as it is."""
    from vmlib.cpu.unicorn.svm import SvmHost

    rng = random.Random(seed)
    ends: dict[str, int] = {}
    with SvmHost("4M") as host:
        vmcb = host.vmcb()
        tables = host.nested_paging(vmcb)
        low = host.allocate()
        base = host.allocate(4)
        high = host.allocate()
        tables.map(0, base, 4 * PAGE_SIZE)
        canary = rng.randbytes(PAGE_SIZE)
        host.ram.write(low, canary)
        host.ram.write(high, canary)
        for name in ("HLT", "CPUID", "VMMCALL", "SHUTDOWN", "VMLOAD", "VMSAVE", "MSR"):
            vmcb.intercept(name)
        before = None
        for _ in range(count):
            host.ram.write(base, rng.randbytes(4 * PAGE_SIZE))
            vmcb.set_state(SystemRegisters.real_mode(), rip=rng.randrange(0x4000), rsp=0x3000)
            if rng.random() < 0.5:
                state = SystemRegisters.protected_mode()
                vmcb.set_state(state, rip=rng.randrange(0x4000), rsp=0x3000)
            vmcb["EVENTINJ"] = 0
            try:
                name = host.vmrun(vmcb.at, timer=2000).name
            except (GuestError, Unsupported) as error:
                name = type(error).__name__
            ends[name] = ends.get(name, 0) + 1
            if name not in ("GuestError", "Unsupported"):
                before = before or host.system()
                assert replace(host.system(), cr2=0) == replace(before, cr2=0)
        assert host.ram.read(low, PAGE_SIZE) == canary == host.ram.read(high, PAGE_SIZE)
        assert host.ram.read(0x1000, len(host.stub.code)) == host.stub.code
    return ends


def test_random_bytes_never_escape():
    ends = _random_programs(seed=5, count=2000)
    assert sum(ends.values()) == 2000
    assert ends["NPF"] > 100, ends
    assert ends["SHUTDOWN"] > 10, ends


@pytest.mark.soak
def test_random_bytes_for_long(log_soak):
    seed = random.SystemRandom().randrange(1 << 32)
    _random_programs(seed, 100_000)
    log_soak("random guests behind nested tables (VMRUN)", seed, 100_000)


def test_masking_is_what_a_fresh_vmcb_has(setup):
    assert setup("f4").vmcb["V_INTR"] == V_INTR_MASKING
