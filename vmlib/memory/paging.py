"""x86 page-table entries and the four ways of paging: what the bits mean, not how they are walked.

A paging mode is a list of levels, and a level says which bits of the address index its table and
which bits of an entry must be zero. The rules on access are masks too: bits that every entry on
the way must grant, and bits that none may have. Modes and rules follow from registers alone, so
they are worked out once per setting and remembered.

              63  62..59   58..52   51..M  M-1..12   11..9  8  7   6  5   4    3  2   1   0
    PTE       NX  key      ignored  0      address   avail  G  PAT D  A  PCD PWT US  RW   P
    2 MiB     NX  key      ignored  0      address*  avail  G  1   D  A  PCD PWT US  RW   P
    a table   NX  ignored  ignored  0      address   avail  -  0   -  A  PCD PWT US  RW   P

(*) from bit 21; bit 12 is PAT, 20..13 are 0. M is MAXPHYADDR; PAE has 0 in 62..M. Intel
SDM vol. 3A, 4.3 (32-bit), 4.4 (PAE), 4.5 (4- and 5-level), 4.6 (access rights and protection
keys); AMD APM vol. 2, 5.2, 5.3, 5.6.

Left out: memory types (PWT, PCD and PAT change no address), linear-address masking, HLAT, shadow
stacks, supervisor protection keys (PKS). 1 GiB pages and PSE-36 are taken to exist. Bit 8 of a
PML4E or PML5E is ignored, as by Intel; AMD reserves it (APM 5.3.3).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.numbers import whole

Access = Literal["read", "write", "fetch"]

CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_LA57 = 1 << 12
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

P = 1 << 0
"""Present."""
RW = 1 << 1
"""Writes are allowed."""
US = 1 << 2
"""User-mode accesses are allowed."""
PWT = 1 << 3
PCD = 1 << 4
A = 1 << 5
"""Accessed: the processor has used this entry."""
D = 1 << 6
"""Dirty: the processor has written to the page. Leaves only."""
PS = 1 << 7
"""The entry maps a large page. In a PTE this bit is PAT."""
G = 1 << 8
"""Global: survives a load of CR3. Leaves only."""
NX = 1 << 63
"""No instruction fetches, where EFER.NXE is set; else reserved."""

ADDRESS = (1 << 52) - (1 << 12)
"""Bits 51..12: the physical address in a 64-bit entry. 32-bit entries use the low part of it."""
KEY_SHIFT = 59
"""Bits 62..59 of a leaf: the protection key of a user page."""

ERROR_P = 1 << 0
"""The page is present: the access broke a rule. Clear: a not-present entry."""
ERROR_W = 1 << 1
ERROR_U = 1 << 2
ERROR_RSVD = 1 << 3
"""A reserved bit is set in an entry; comes with `ERROR_P`."""
ERROR_I = 1 << 4
"""An instruction fetch; told only where NX or SMEP is on."""
ERROR_PK = 1 << 5
"""The protection key denies the access."""

VECTOR_GP = 13
VECTOR_PF = 14

NAMES = {5: "PML5E", 4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}
"""What the manuals call an entry of each level, in tables of either stage."""
_ERROR_KIND = {"read": 0, "write": ERROR_W, "fetch": ERROR_I}


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables. `number` is 5 to 1; a PTE is at level 1."""

    number: int
    offset_shift: int
    offset_mask: int
    """`gva >> offset_shift & offset_mask` is the byte offset of the entry in its table."""
    entry_bytes: int
    leaf: int
    """The bit that makes an entry a leaf; 0 where none can be. At level 1 it is P itself."""
    fixed: int
    """P and the reserved bits of an entry that points to a table: of these only P may be set."""
    leaf_fixed: int
    """The same of a leaf."""
    grants: int
    """Rights that the entry gives though it has no bit for them: RW, US and A of a PAE PDPTE."""
    page_size: int
    """Bytes that a leaf of this level maps."""
    offset: int
    """The bits of the address that a leaf passes through."""
    frame: int
    """The bits of a leaf that hold the page's address."""
    frame_high: int
    """Bits 20..13 of a 4 MiB PDE: address bits 39..32 (PSE-36), 19 further up. Else 0."""

    @property
    def name(self) -> str:
        """What the manual calls an entry of this level."""
        return NAMES[self.number]

    @names_bad_input
    def index(self, gva: int) -> int:
        """Return which entry of the table `gva` selects."""
        return (gva >> self.offset_shift & self.offset_mask) // self.entry_bytes


@dataclass(frozen=True, slots=True)
class PagingMode:
    """A way of paging: "2-level" (32-bit), "3-level" (PAE), "4-level" or "5-level"."""

    name: str
    levels: tuple[Level, ...]
    """From the root down."""
    root: int
    """The bits of CR3 that hold the root table's address."""
    sign_bit: int
    """Canonical addresses repeat this bit up to bit 63; 0 where addresses have 32 bits."""
    address: int
    """The bits of an entry that hold an address."""
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What one kind of access asks of the entries it passes.

    An address grants what all entries on its way grant (RW, US), and is barred to fetches where
    any of them says so (NX). The access is refused where a bit of `needs` is not granted, one of
    `refuses` is (US, by SMEP or SMAP), one of `bars` is set, or the protection key denies it.
    """

    needs: int
    refuses: int
    bars: int
    key_denies: int
    """Bits of a PKRU pair (access-disable 1, write-disable 2) that refuse it; 0: keys are off."""
    error_code: int
    """The bits W, U and I of a page fault's error code."""


@names_bad_input
@lru_cache(maxsize=256)
def paging_mode(cr0: int, cr4: int, efer: int, maxphyaddr: int = 52) -> PagingMode | None:
    """Return the mode that the control registers select, or None where paging is off.

    EFER.LME or EFER.LMA selects long mode: with paging on, hardware keeps them equal.
    Raises `BadInput` for a MAXPHYADDR outside 32..52, and for long mode without CR4.PAE, a state
    that MOV to CR0 refuses. SDM vol. 3A, 4.1.1.
    """
    _check_registers(cr0, cr4, efer)
    if not 32 <= maxphyaddr <= 52:
        raise BadInput("maxphyaddr", f"is 32 to 52 bits, not {maxphyaddr}")
    if not cr0 & CR0_PG:
        return None
    long = bool(efer & (EFER_LME | EFER_LMA))
    if not cr4 & CR4_PAE:
        if long:
            raise BadInput("cr4", "long mode with paging needs CR4.PAE")
        return _two_level(bool(cr4 & CR4_PSE), maxphyaddr)
    too_high = (1 << 52) - (1 << maxphyaddr)
    nx_reserved = 0 if efer & EFER_NXE else NX
    if not long:
        return _pae(too_high | (1 << 63) - (1 << 52) | nx_reserved)
    five = bool(cr4 & CR4_LA57)
    reserved = too_high | nx_reserved
    levels = tuple(_wide(number, reserved) for number in range(5 if five else 4, 0, -1))
    name, sign_bit = ("5-level", 56) if five else ("4-level", 47)
    return PagingMode(name, levels, ADDRESS, sign_bit, ADDRESS, 8)


@names_bad_input
@lru_cache(maxsize=256)
def access_rules(
    cr0: int, cr4: int, efer: int, access: Access, cpl: int, ac: bool, implicit: bool
) -> AccessRules:
    """Return what `access` at privilege level `cpl` asks. SDM vol. 3A, 4.6 and 4.7.

    An implicit access (a descriptor, the TSS, an event's frame) is a supervisor access at any
    CPL, and EFLAGS.AC does not help it past SMAP.
    """
    check_access(access)
    _check_registers(cr0, cr4, efer)
    whole(cpl, "cpl", 0, 3)
    user = cpl == 3 and not implicit
    write, fetch = access == "write", access == "fetch"
    nx_on = bool(efer & EFER_NXE and cr4 & CR4_PAE)

    bars = NX if fetch and nx_on else 0
    needs = RW if write and (user or cr0 & CR0_WP) else 0
    if user:
        needs |= US
        refuses = 0
    elif fetch:
        refuses = US if cr4 & CR4_SMEP else 0
    else:
        refuses = US if cr4 & CR4_SMAP and (implicit or not ac) else 0

    key_denies = 0
    if cr4 & CR4_PKE and efer & (EFER_LME | EFER_LMA) and not fetch:
        key_denies = 3 if write and (user or cr0 & CR0_WP) else 1

    error_code = _ERROR_KIND[access] | (ERROR_U if user else 0)
    if not (nx_on or cr4 & CR4_SMEP):
        error_code &= ~ERROR_I
    return AccessRules(needs, refuses, bars, key_denies, error_code)


def check_access(access: str) -> None:
    """Raise `BadInput` for what is no access."""
    if not isinstance(access, str) or access not in _ERROR_KIND:
        raise BadInput("access", f"is 'read', 'write' or 'fetch', not {access!r}")


@names_bad_input
def flag_names(entry: int, level: Level) -> tuple[str, ...]:
    """Return the names of the flags set in an entry read at `level`, lowest first."""
    entry = word(entry, "entry")
    bits = {"P": P, "RW": RW, "US": US, "PWT": PWT, "PCD": PCD, "A": A & ~level.grants}
    if level.number == 1:
        bits |= {"D": D, "PAT": PS, "G": G}
    elif entry & level.leaf:
        bits |= {"D": D, "PS": PS, "G": G, "PAT": 1 << 12}
    if level.entry_bytes == 8:
        bits["NX"] = NX
    return tuple(name for name, bit in bits.items() if entry & bit)


def word(value: int, field: str) -> int:
    """Return a number of 64 bits; `BadInput` names the field of what is none."""
    return whole(value, field, 0, (1 << 64) - 1)


def _check_registers(cr0: int, cr4: int, efer: int) -> None:
    for name, value in (("cr0", cr0), ("cr4", cr4), ("efer", efer)):
        word(value, name)


def _wide(number: int, reserved: int) -> Level:
    """Return a level of 512 entries of 8 bytes, as PAE and long mode have them."""
    shift = 12 + 9 * (number - 1)
    # A large page's address starts at its own size; bit 12 below it is PAT, the rest reserved.
    low = (1 << shift) - (1 << 13) if 2 <= number <= 3 else 0
    return Level(
        number=number,
        offset_shift=shift - 3,
        offset_mask=511 << 3,
        entry_bytes=8,
        leaf=P if number == 1 else PS if number <= 3 else 0,
        fixed=P | reserved | (PS if number >= 4 else 0),
        leaf_fixed=P | reserved | low,
        grants=0,
        page_size=1 << shift,
        offset=(1 << shift) - 1,
        frame=ADDRESS & -(1 << shift),
        frame_high=0,
    )


def _pae(reserved: int) -> PagingMode:
    """PAE paging: four PDPTEs of their own format, then two levels as in long mode. SDM 4.4."""
    pdpt = Level(
        number=3,
        offset_shift=27,
        offset_mask=3 << 3,
        entry_bytes=8,
        leaf=0,
        fixed=P | reserved | NX | RW | US | A | D | PS | G,
        leaf_fixed=0,
        grants=RW | US | A,
        page_size=1 << 30,
        offset=(1 << 30) - 1,
        frame=0,
        frame_high=0,
    )
    levels = (pdpt, _wide(2, reserved), _wide(1, reserved))
    return PagingMode("3-level", levels, (1 << 32) - (1 << 5), 0, ADDRESS, 8)


def _two_level(pse: bool, maxphyaddr: int) -> PagingMode:
    """32-bit paging; with CR4.PSE 4 MiB pages, placed up to 2**40 by PSE-36. SDM 4.3."""
    low = (1 << 32) - (1 << 12)
    pde, pte = (
        Level(
            number=number,
            offset_shift=shift - 2,
            offset_mask=1023 << 2,
            entry_bytes=4,
            leaf=leaf,
            fixed=P,
            leaf_fixed=leaf_fixed,
            grants=0,
            page_size=1 << shift,
            offset=(1 << shift) - 1,
            frame=low & -(1 << shift),
            frame_high=0x1F_E000 if number == 2 else 0,
        )
        for number, shift, leaf, leaf_fixed in (
            (2, 22, PS if pse else 0, P | (1 << 22) - (1 << min(40, maxphyaddr) - 19)),
            (1, 12, P, P),
        )
    )
    return PagingMode("2-level", (pde, pte), low, 0, low, 4)
