"""The second stage of translation: guest-physical to host-physical, in Intel's and AMD's formats.

AMD's nested tables (`Npt`) are ordinary page tables, walked as a user-mode access (APM vol. 2,
15.25.5). Intel's (`Ept`) have a format of their own, in which an entry is present as soon as it
grants anything (SDM vol. 3C, 29.3.2):

              51..M  M-1..12   10   9  8  7  6     5..3   2  1  0
    EPT PTE   0      address   XU   D  A  -  IPAT  type   X  W  R
    a page    0      address*  XU   D  A  1  IPAT  type   X  W  R
    a table   0      address   -    -  A  0  0     0      X  W  R

(*) from bit 21 or 30; the bits below are 0. The bits of an EPT entry that stop a walk are of two
kinds. What can never be right (writable but not readable, a reserved bit, memory type 2, 3 or 7)
is a *misconfiguration* (29.3.3.1). What is right and does not grant the access is a *violation*
(29.3.3.2). To AMD both are a nested page fault, told apart by its error code (APM 15.25.6).

Left out: memory types as such, mode-based execute control (XU), sub-page permissions, #VE, and
supervisor shadow-stack pages. A guest-physical address beyond the tables' reach is not present.
"""

from dataclasses import dataclass
from typing import Literal

from vmlib.errors import BadInput
from vmlib.given import check_fields, names_bad_input
from vmlib.memory.paging import (
    ADDRESS,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    EFER_LMA,
    EFER_NXE,
    PS,
    Access,
    AccessRules,
    PagingMode,
    access_rules,
    check_access,
    paging_mode,
    word,
)
from vmlib.memory.walk import OUTSIDE, TableMemory, TableOutsideRam, follow
from vmlib.numbers import whole

EPT_R, EPT_W, EPT_X = 1, 2, 4
EPT_A, EPT_D = 1 << 8, 1 << 9
EPT_TYPE_SHIFT = 3
BAD_TYPES = 1 << 2 | 1 << 3 | 1 << 7
"""Memory types that mean nothing, as a set of bits."""
EPT_VIOLATION, EPT_MISCONFIGURATION = 48, 49
"""Basic exit reasons. SDM vol. 3D, appendix C."""
NPF = 0x400
"""VMEXIT_NPF. APM vol. 2, appendix C."""
NPF_FINAL, NPF_TABLE = 1 << 32, 1 << 33
"""EXITINFO1 of a nested page fault: at the final address, or at a guest table's. APM 15.25.6."""
NEED = {"read": EPT_R, "write": EPT_W, "fetch": EPT_X}

Kind = Literal["violation", "misconfiguration", "nested page fault"]


@dataclass(frozen=True, slots=True)
class Ept:
    """An EPT pointer, and what the processor can do. SDM vol. 3C, 25.6.11."""

    eptp: int
    maxphyaddr: int = 52
    execute_only: bool = True
    """Whether an entry may grant X without R (IA32_VMX_EPT_VPID_CAP, bit 0)."""

    def __post_init__(self) -> None:
        check_fields(self)
        word(self.eptp, "eptp")
        if self.eptp >> 3 & 7 not in (3, 4):
            raise BadInput("eptp", "bits 5:3 are the walk length less one: 3 or 4 (SDM 25.6.11)")
        if not 32 <= self.maxphyaddr <= 52:
            raise BadInput("maxphyaddr", f"is 32 to 52 bits, not {self.maxphyaddr}")

    @property
    def levels(self) -> int:
        """4 or 5."""
        return (self.eptp >> 3 & 7) + 1

    @property
    def root(self) -> int:
        """Host-physical address of the top table."""
        return self.eptp & ADDRESS

    @property
    def accessed_dirty(self) -> bool:
        """Whether A and D are kept, and accesses to guest tables count as writes (29.3.5)."""
        return bool(self.eptp & 1 << 6)

    def reserved(self, level: int, leaf: bool) -> int:
        """Bits that must be zero in an entry of `level`. SDM tables 29-1 to 29-6."""
        too_high = (1 << 52) - (1 << self.maxphyaddr)
        if level >= 4:
            return too_high | 0xF8
        if not leaf:
            return too_high | 0x78
        return too_high | (1 << 12 + 9 * (level - 1)) - (1 << 12)


@dataclass(frozen=True, slots=True)
class Npt:
    """AMD's nested tables: `n_cr3`, and the host's paging mode, which they share. APM 15.25.3."""

    n_cr3: int
    levels: int = 4
    maxphyaddr: int = 52
    nx: bool = True
    """The host's EFER.NXE."""

    def __post_init__(self) -> None:
        check_fields(self)
        word(self.n_cr3, "n_cr3")
        if self.levels not in (4, 5):
            raise BadInput("levels", f"of nested tables are 4 or 5 here, not {self.levels}")
        whole(self.maxphyaddr, "maxphyaddr", 32, 52)

    @property
    def mode(self) -> PagingMode:
        """The paging mode of the nested tables."""
        cr4 = CR4_PAE | (CR4_LA57 if self.levels == 5 else 0)
        efer = EFER_LMA | (EFER_NXE if self.nx else 0)
        mode = paging_mode(CR0_PG, cr4, efer, self.maxphyaddr)
        assert mode is not None
        return mode

    def rules(self, access: Access) -> AccessRules:
        """What an access asks of nested entries: always a user's (15.25.5)."""
        efer = EFER_LMA | (EFER_NXE if self.nx else 0)
        return access_rules(CR0_PG | CR0_WP, CR4_PAE, efer, access, 3, False, False)


SecondStage = Ept | Npt


@dataclass(frozen=True, slots=True)
class SecondStageExit:
    """Why the second stage made the guest leave.

    `qualification` is the exit qualification of an EPT violation (SDM table 28-7), EXITINFO1 of a
    nested page fault, and 0 for a misconfiguration, which has none.
    """

    kind: Kind
    gpa: int
    qualification: int
    level: int
    """Of the nested entry at which the walk stopped; 0 where none was read."""

    @property
    def reason(self) -> int:
        """The exit reason: 48 or 49 in VMX, 0x400 in SVM."""
        reasons = {"violation": EPT_VIOLATION, "misconfiguration": EPT_MISCONFIGURATION}
        return reasons.get(self.kind, NPF)


@dataclass(frozen=True, slots=True)
class Translation:
    """One guest-physical address through the second stage. `passed`: level, address, entry."""

    gpa: int
    hpa: int | None
    page_size: int
    exit: SecondStageExit | None
    passed: tuple[tuple[int, int, int], ...]


def table_access(second: SecondStage) -> Access:
    """Return as what the processor's accesses to guest tables count in the second stage."""
    return "write" if isinstance(second, Npt) or second.accessed_dirty else "read"


@names_bad_input
def translate_gpa(
    memory: TableMemory, second: SecondStage, gpa: int, access: Access, *, table: bool = False
) -> Translation:
    """Walk the second stage for one guest-physical address.

    `table` marks the access to a guest's paging structure. Raises `TableOutsideRam`, and `BadInput`
    for what is no access.
    """
    check_access(access)
    if gpa >> 64:
        raise BadInput("gpa", f"has 64 bits, not {gpa:#x}")
    return through(memory, second, gpa, access, table)


def through(
    memory: TableMemory, second: SecondStage, gpa: int, access: Access, table: bool
) -> Translation:
    """Walk the second stage: the core of `translate_gpa`."""
    if isinstance(second, Npt):
        return _through_npt(memory, second, gpa, access, table)
    return _through_ept(memory, second, gpa, access, table)


def set_second_stage_bits(
    memory: TableMemory, second: SecondStage, done: Translation, access: Access
) -> None:
    """Set A in the entries that a translation passed, and D in its leaf for a write. 29.3.5."""
    if isinstance(second, Ept) and not second.accessed_dirty:
        return
    accessed, dirty = (EPT_A, EPT_D) if isinstance(second, Ept) else (1 << 5, 1 << 6)
    for number, (_, at, entry) in enumerate(done.passed, start=1):
        leaf = number == len(done.passed)
        bits = accessed | (dirty if leaf and access == "write" else 0)
        if bits & ~entry:
            memory.write_u64(at, memory.read_u64(at) | bits)


def _through_npt(
    memory: TableMemory, npt: Npt, gpa: int, access: Access, table: bool
) -> Translation:
    mode, rules = npt.mode, npt.rules(access)
    where = NPF_TABLE if table else NPF_FINAL
    if gpa >> mode.sign_bit + 1:
        code = rules.error_code | where
        return Translation(gpa, None, 0, SecondStageExit("nested page fault", gpa, code, 0), ())
    # The walk takes addresses sign-extended; in a guest-physical one the top bit is like the rest.
    extended = gpa | (-1 << 48 + (npt.levels - 4) * 9 if gpa >> mode.sign_bit else 0)
    entries: list[int] = []
    hpa, size, fault = follow(
        memory, extended & (1 << 64) - 1, npt.n_cr3, mode, rules, 0, False, entries
    )
    passed, root = [], npt.n_cr3 & mode.root
    for level, entry in zip(mode.levels, entries, strict=False):
        passed.append((level.number, root + (gpa >> level.offset_shift & level.offset_mask), entry))
        root = entry & mode.address
    left = None
    if fault:
        code = fault.error_code | where
        left = SecondStageExit("nested page fault", gpa, code, fault.level)
    return Translation(gpa, hpa, size, left, tuple(passed))


def _through_ept(
    memory: TableMemory, ept: Ept, gpa: int, access: Access, table: bool
) -> Translation:
    rights, at_table = 7, ept.root
    passed: list[tuple[int, int, int]] = []

    def left(kind: Kind, level: int) -> Translation:
        told = SecondStageExit(
            kind,
            gpa,
            0 if kind == "misconfiguration" else qualification(ept, access, rights, table),
            level,
        )
        return Translation(gpa, None, 0, told, tuple(passed))

    if gpa >> 12 + 9 * ept.levels:
        rights = 0
        return left("violation", 0)
    for level in range(ept.levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        at = at_table + (gpa >> shift - 3 & 0xFF8)
        try:
            entry = memory.read_u64(at)
        except OUTSIDE:
            raise TableOutsideRam(level, at) from None
        passed.append((level, at, entry))
        rights &= entry
        granted = entry & 7
        if not granted:
            return left("violation", level)
        leaf = level == 1 or (level <= 3 and bool(entry & PS))
        if (
            granted & 3 == EPT_W
            or (granted == EPT_X and not ept.execute_only)
            or entry & ept.reserved(level, leaf)
            or (leaf and BAD_TYPES >> (entry >> EPT_TYPE_SHIFT & 7) & 1)
        ):
            return left("misconfiguration", level)
        if leaf:
            break
        at_table = entry & ADDRESS
    if not rights & NEED[access]:
        return left("violation", level)
    size = 1 << shift
    return Translation(gpa, entry & ADDRESS & -size | gpa & size - 1, size, None, tuple(passed))


def qualification(ept: Ept, access: Access, rights: int, table: bool) -> int:
    """Return the exit qualification of a violation whose entries have `rights` in common.

    Bits 2..0 the access, 5..3 the rights, 7 a linear address is known, 8 it is the final access.
    With A and D on, an access to a guest table sets both bit 0 and bit 1. SDM table 28-7.
    """
    asked = NEED[access]
    if table and ept.accessed_dirty:
        asked |= EPT_R
    return asked | (rights & 7) << 3 | 1 << 7 | (0 if table else 1 << 8)
