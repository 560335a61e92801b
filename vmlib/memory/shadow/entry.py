"""What a shadow entry may grant: the rights of the guest's whole way to a page, in one number.

The rights are three bits, in places of their own: RW and US as in an entry, and X where NX is not
set. A way grants what all of its entries grant. Then two things are held back. A page that the
guest's leaf calls clean may not be written until the first write is seen, so that D can be set in
the guest's table. And where CR0.WP is clear a supervisor may write to a page that is read-only:
the processor, under which WP is always set, is given a writable *supervisor's* page for it, which
must then not be run by the supervisor where SMEP is on.

Linux Documentation/virt/kvm/x86/mmu.rst, "Emulating cr0.wp"; Intel SDM vol. 3A, 4.6 and 4.8.
"""

from collections.abc import Sequence

from vmlib.memory.paging import (
    ADDRESS,
    CR0_WP,
    CR4_SMEP,
    EFER_NXE,
    NX,
    PS,
    RW,
    US,
    A,
    Access,
    D,
    P,
)

X = 1 << 0
"""Instructions may be fetched."""
ALL = RW | US | X


def rights_of(entry: int, efer: int) -> int:
    """Return what one guest entry grants."""
    return entry & (RW | US) | (0 if entry & NX and efer & EFER_NXE else X)


def rights_above(entries: Sequence[int], efer: int) -> list[int]:
    """Return, for each entry of a way, what it and those above it grant in common."""
    rights, common = ALL, []
    for entry in entries:
        rights &= rights_of(entry, efer)
        common.append(rights)
    return common


def leaf_rights(rights: int, leaf: int, access: Access, user: bool, *, cr0: int, cr4: int) -> int:
    """Return what the shadow leaf grants for an access that the guest's tables allow.

    `rights` are those of the whole way, `leaf` the guest's leaf after D was set.
    """
    if not leaf & D:
        rights &= ~RW
    if access == "write" and not rights & RW and not user and not cr0 & CR0_WP:
        rights = (rights | RW) & ~US
        if cr4 & CR4_SMEP:
            rights &= ~X
    return rights


def leaf_entry(hpa: int, rights: int, level: int) -> int:
    """Return a shadow leaf. Its own A and D are set: nobody asks for them, the guest's count."""
    bits = P | A | rights & (RW | US) | (0 if rights & X else NX)
    return hpa & ADDRESS | bits | (D if rights & RW else 0) | (PS if level > 1 else 0)
