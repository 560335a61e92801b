"""The page walk: the rules one by one, then thousands of accesses beside an emulator's MMU.

Section numbers are those of the Intel SDM, vol. 3A, chapter 4, unless APM vol. 2 is named.
"""

import ctypes
import importlib.metadata
import itertools
import random
import struct
from collections import Counter
from dataclasses import dataclass

import pytest

from vmlib.errors import BadInput, GuestError
from vmlib.memory import Fault, GuestRam, TableOutsideRam, paging, translate, walk
from vmlib.memory.paging import NX, PS, RW, US, A, D, G, P

LONG = {"cr0": 0x8001_0011, "cr3": 0x1000, "cr4": 0x20, "efer": 0xD00}
PAE = {"cr0": 0x8001_0011, "cr3": 0x1000, "cr4": 0x20, "efer": 0x800}
TWO = {"cr0": 0x8001_0011, "cr3": 0x1000, "cr4": 0x10, "efer": 0}
SMEP, SMAP, PKE = paging.CR4_SMEP, paging.CR4_SMAP, paging.CR4_PKE
FULL = P | RW | US
GVA = 0x5678  # PTE 5


def tables(levels=4, *, leaf=0xA000 | FULL, upper=FULL, ram="64K"):
    """RAM with one chain of tables from 0x1000 (root) down; index 0 everywhere, PTE 5."""
    memory = GuestRam(ram)
    for n in range(levels - 1):
        memory.write_u64(0x1000 * (n + 1), 0x1000 * (n + 2) | upper)
    memory.write_u64(0x1000 * levels + 5 * 8, leaf)
    return memory


def at(level, levels=4, index=0):
    """Return where the chain's table of this level is."""
    return 0x1000 * (levels - level + 1) + 8 * index


def two_level(pde=0x2000 | FULL, pte=0xA000 | FULL):
    """RAM with 32-bit tables: a directory at 0x1000, its entry 1, and a PTE with odd number 5."""
    memory = GuestRam("64K")
    memory.write(0x1004, struct.pack("<I", pde))
    memory.write(0x2000 + 5 * 4, struct.pack("<I", pte))
    return memory


def fault(memory, gva=GVA, regs=LONG, **more):
    found = walk(memory, gva, **{**regs, **more})
    assert (found.gpa, found.page_size) == (None, 0)
    return found.fault


def gpa(memory, gva=GVA, regs=LONG, **more):
    found = walk(memory, gva, **{**regs, **more})
    assert found.fault is None
    return found.gpa


# ---- Modes and sizes


def test_paging_off():
    """4.1.1: with CR0.PG clear a linear address is a physical one, of 32 bits."""
    found = walk(GuestRam("4K"), 0x1_2345_6789, cr0=0x11, cr3=0x1000, cr4=0x20, efer=0)
    assert (found.gpa, found.page_size, found.fault, found.steps) == (0x2345_6789, 0, None, ())


def test_four_levels_and_its_steps():
    """4.5.4: four references, each table's entry named by nine bits of the address."""
    memory = tables()
    found = walk(memory, GVA, **LONG)
    assert (found.gpa, found.page_size, found.fault) == (0xA678, 4096, None)
    assert [(s.name, s.level, s.index, s.gpa) for s in found.steps] == [
        ("PML4E", 4, 0, 0x1000),
        ("PDPTE", 3, 0, 0x2000),
        ("PDE", 2, 0, 0x3000),
        ("PTE", 1, 5, 0x4028),
    ]
    assert [s.entry for s in found.steps] == [0x2007, 0x3007, 0x4007, 0xA007]
    assert found.steps[0].flags == ("P", "RW", "US")


def test_each_level_takes_its_nine_bits():
    """4.5.4: bits 47:39, 38:30, 29:21, 20:12."""
    memory = GuestRam("64K")
    for n, index in enumerate((0x155, 0x0AA, 0x1FF, 0x101)):
        memory.write_u64(0x1000 * (n + 1) + index * 8, 0x1000 * (n + 2) | FULL)
    gva = 0xFFFF << 48 | 0x155 << 39 | 0x0AA << 30 | 0x1FF << 21 | 0x101 << 12 | 0xFED
    assert gpa(memory, gva) == 0x5FED


def test_five_levels():
    """4.5.4 with CR4.LA57: one table more, from bits 56:48."""
    found = walk(tables(5), GVA, **{**LONG, "cr4": 0x1020})
    assert found.gpa == 0xA678
    assert [s.name for s in found.steps] == ["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]


def test_la57_means_nothing_outside_long_mode():
    """4.1.1: PAE paging has three levels whatever CR4.LA57 says."""
    memory = tables(3, upper=P)
    memory.write_u64(0x2000, 0x3000 | FULL)
    assert len(walk(memory, GVA, **{**PAE, "cr4": 0x1020}).steps) == 3


def test_pae():
    """4.4.2: four PDPTEs from bits 31:30, in a table aligned to 32 bytes; addresses wrap at 4G."""
    memory = GuestRam("64K")
    memory.write_u64(0x1020 + 3 * 8, 0x2000 | P)
    memory.write_u64(0x2000 + 511 * 8, 0x3000 | FULL)
    memory.write_u64(0x3000 + 511 * 8, 0xB000 | FULL)
    regs = {**PAE, "cr3": 0x1020 | 0x18}
    found = walk(memory, 0x7_FFFF_F123, **regs, access="write", cpl=3)
    assert (found.gpa, [s.name for s in found.steps]) == (0xB123, ["PDPTE", "PDE", "PTE"])
    assert found.steps[0].flags == ("P",)


def test_two_levels():
    """4.3: entries of 4 bytes, ten bits of the address each, on odd and even places."""
    memory = two_level()
    found = walk(memory, 0x0040_5678, **TWO)
    assert (found.gpa, found.page_size) == (0xA678, 4096)
    assert [(s.name, s.index, s.gpa, s.entry) for s in found.steps] == [
        ("PDE", 1, 0x1004, 0x2007),
        ("PTE", 5, 0x2014, 0xA007),
    ]
    memory.write(0x2000 + 4 * 4, struct.pack("<I", 0xB000 | FULL))
    assert gpa(memory, 0x0040_4678, TWO) == 0xB678


@pytest.mark.parametrize(
    ("level", "entry", "size", "expected"),
    [
        (2, 0x0060_0000, 2 << 20, 0x0060_0000),
        (3, 0x8000_0000, 1 << 30, 0x8000_0000),
    ],
)
def test_large_pages(level, entry, size, expected):
    """4.5.4: PS in a PDPTE maps 1 GiB, in a PDE 2 MiB; bit 12 is PAT and not address."""
    memory = tables()
    memory.write_u64(at(level), entry | FULL | PS | 1 << 12)
    found = walk(memory, 0x12345, **LONG)
    assert (found.gpa, found.page_size, len(found.steps)) == (expected | 0x12345, size, 5 - level)
    assert found.steps[-1].flags == ("P", "RW", "US", "PS", "PAT")


def test_pae_large_page_without_pse():
    """4.4.2: with PAE, 2 MiB pages need no CR4.PSE."""
    memory = tables(3, upper=P)
    memory.write_u64(0x2000, 0x60_0000 | FULL | PS)
    assert gpa(memory, 0x12345, PAE) == 0x61_2345


def test_pse36():
    """4.3, table 4-4: bits 20:13 of a 4 MiB PDE are address bits 39:32."""
    pde = 0x0080_0000 | 0xA5 << 13 | FULL | PS
    found = walk(two_level(pde), 0x0041_2345, **TWO)
    assert (found.gpa, found.page_size) == (0xA5_0081_2345, 4 << 20)


@pytest.mark.parametrize(
    ("maxphyaddr", "bit", "reserved"),
    [(52, 21, True), (52, 20, False), (36, 17, True), (36, 16, False), (32, 13, True)],
)
def test_pse36_reserved_bits(maxphyaddr, bit, reserved):
    """4.3, table 4-4: bits 21:(M-19) are reserved, M being MAXPHYADDR, at most 40."""
    memory = two_level(0x0080_0000 | FULL | PS | 1 << bit)
    found = walk(memory, 0x0041_2345, **TWO, maxphyaddr=maxphyaddr)
    assert found.fault == (Fault(14, 9, 2) if reserved else None)


def test_without_pse_bit_7_of_a_pde_means_nothing():
    """4.3: with CR4.PSE clear there are no 4 MiB pages."""
    memory = two_level(0x2000 | FULL | PS)
    assert gpa(memory, 0x0040_5678, {**TWO, "cr4": 0}) == 0xA678


def test_bit_7_of_a_pte_is_pat():
    """Table 4-20: no page is smaller than a PTE's."""
    memory = tables(leaf=0xA000 | FULL | PS | G)
    assert gpa(memory) == 0xA678
    assert walk(memory, GVA, **LONG).steps[-1].flags == ("P", "RW", "US", "PAT", "G")


def test_cr3_low_bits_and_pcid_are_not_address():
    """4.5.2: bits 11:0 of CR3 are cache bits or the PCID."""
    assert gpa(tables(), cr3=0x1FFF) == 0xA678


# ---- Canonical addresses


@pytest.mark.parametrize(
    ("cr4", "bad", "good"),
    [
        (0x20, 1 << 47, (1 << 47) - 1),
        (0x20, (1 << 64) - (1 << 47) - 1, (1 << 64) - (1 << 47)),
        (0x20, 1 << 63, 0),
        (0x1020, 1 << 56, 1 << 47),
        (0x1020, (1 << 64) - (1 << 56) - 1, (1 << 64) - (1 << 56)),
    ],
)
def test_canonical(cr4, bad, good):
    """Vol. 1, 3.3.7.1: bits 63:47 (63:56 with LA57) are equal, else #GP(0) with no table read."""
    found = walk(GuestRam("8K"), bad, **{**LONG, "cr4": cr4})
    assert (found.fault, found.gpa, found.steps) == (Fault(13, 0, 0), None, ())
    assert walk(GuestRam("8K"), good, **{**LONG, "cr4": cr4}).fault.vector == 14


# ---- Not present, reserved


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_not_present_ends_the_walk(level):
    """4.7: P of the error code is clear; no other bit of the entry matters."""
    memory = tables()
    memory.write_u64(at(level, index=5 * (level == 1)), (1 << 64) - 2)
    assert fault(memory) == Fault(14, 0, level)
    assert fault(memory, access="write", cpl=3) == Fault(14, 6, level)
    assert len(walk(memory, GVA, **LONG).steps) == 5 - level


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("bit", [40, 51])
def test_address_bits_beyond_maxphyaddr(level, bit):
    """4.5.4: bits 51:M are reserved; RSVD comes with P."""
    memory = tables()
    where = at(level, index=5 * (level == 1))
    memory.write_u64(where, memory.read_u64(where) | 1 << bit)
    assert fault(memory, maxphyaddr=40) == Fault(14, 9, level)
    assert fault(memory, maxphyaddr=40, access="write", cpl=3) == Fault(14, 15, level)


def test_maxphyaddr_is_the_first_reserved_bit():
    """4.1.4: with MAXPHYADDR 40, bit 39 is still address."""
    assert gpa(tables(leaf=1 << 39 | FULL), maxphyaddr=40) == 1 << 39 | 0x678


@pytest.mark.parametrize(("levels", "level"), [(4, 4), (5, 5), (5, 4)])
def test_ps_is_reserved_high_up(levels, level):
    """Tables 4-14 and 4-15: PML5Es and PML4Es map no pages, their bit 7 must be 0."""
    memory = tables(levels)
    where = at(level, levels)
    memory.write_u64(where, memory.read_u64(where) | PS)
    assert fault(memory, cr4=0x1020 if levels == 5 else 0x20) == Fault(14, 9, level)


@pytest.mark.parametrize(("level", "bits"), [(2, range(13, 21)), (3, range(13, 30))])
def test_low_bits_of_large_pages(level, bits):
    """Tables 4-16 and 4-18: the address of a large page is aligned to its size."""
    for bit in bits:
        memory = tables()
        memory.write_u64(at(level), FULL | PS | 1 << bit)
        assert fault(memory) == Fault(14, 9, level), bit


def test_nx_is_reserved_without_nxe():
    """4.5.4: with EFER.NXE clear bit 63 is reserved, at any level and for any access."""
    for level in (1, 2, 3, 4):
        memory = tables()
        where = at(level, index=5 * (level == 1))
        memory.write_u64(where, memory.read_u64(where) | NX)
        assert fault(memory, efer=0x500) == Fault(14, 9, level)


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 40, 52, 62, 63])
def test_pae_pdpte_reserved_bits(bit):
    """Table 4-8: 2:1, 8:5 and 63:M must be 0. In the walk this is APM 5.5.3's page fault."""
    memory = tables(3, upper=P)
    memory.write_u64(0x1000, 0x2000 | P | 1 << bit)
    assert fault(memory, regs=PAE, maxphyaddr=40) == Fault(14, 9, 3)


@pytest.mark.parametrize("bit", [40, 52, 62])
def test_pae_entries_have_no_software_bits_high_up(bit):
    """Tables 4-10 and 4-11: bits 62:M of PAE entries are reserved; in long mode 62:52 are not."""
    memory = tables(3, upper=P)
    memory.write_u64(0x2000, 0x3000 | FULL | 1 << bit)
    assert fault(memory, regs=PAE, maxphyaddr=40) == Fault(14, 9, 2)
    if bit >= 52:
        assert gpa(tables(leaf=0xA000 | FULL | 1 << bit)) == 0xA678


def test_reserved_above_hides_what_is_below():
    """4.7: the walk ends at the first bad entry, and rights are judged after the last."""
    memory = tables(leaf=0)
    memory.write_u64(at(2), 0x4000 | P | 1 << 51)
    assert fault(memory, maxphyaddr=48, access="write", cpl=3) == Fault(14, 15, 2)
    memory.write_u64(at(2), 0x4000 | P)
    assert fault(memory, access="write", cpl=3) == Fault(14, 6, 1)


# ---- Rights


def without(bit, level, levels=4):
    memory = tables(levels)
    where = at(level, levels, index=5 * (level == 1))
    memory.write_u64(where, memory.read_u64(where) & ~bit)
    return memory


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_user_needs_us_at_every_level(level):
    """4.6.1: one entry without US makes the page the supervisor's."""
    memory = without(US, level)
    assert fault(memory, cpl=3) == Fault(14, 5, 1)
    assert gpa(memory, cpl=2) == 0xA678
    assert gpa(memory, cpl=3, implicit=True) == 0xA678


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_writes_need_rw_at_every_level(level):
    """4.6.1: one entry without RW makes the page read-only, for CPL 3 always."""
    memory = without(RW, level)
    assert fault(memory, cpl=3, access="write") == Fault(14, 7, 1)
    assert gpa(memory, cpl=3, access="read") == 0xA678
    assert fault(memory, cpl=3, access="write", cr0=0x8000_0011) == Fault(14, 7, 1)


def test_wp_binds_the_supervisor():
    """4.6.1: with CR0.WP clear the supervisor writes to read-only pages."""
    memory = without(RW, 1)
    assert fault(memory, access="write") == Fault(14, 3, 1)
    assert gpa(memory, access="write", cr0=0x8000_0011) == 0xA678


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_nx_at_any_level(level):
    """4.6.1: NX in one entry is enough, for user and supervisor; reads do not mind."""
    memory = tables()
    where = at(level, index=5 * (level == 1))
    memory.write_u64(where, memory.read_u64(where) | NX)
    assert fault(memory, access="fetch") == Fault(14, 0x11, 1)
    assert fault(memory, access="fetch", cpl=3) == Fault(14, 0x15, 1)
    assert gpa(memory) == 0xA678


def test_nx_in_pae():
    """4.6.1: PAE paging has NX as well."""
    memory = tables(3, upper=P, leaf=0xA000 | FULL | NX)
    memory.write_u64(0x2000, 0x3000 | FULL)
    assert fault(memory, regs=PAE, access="fetch") == Fault(14, 0x11, 1)


def test_smep():
    """4.6.1: with CR4.SMEP the supervisor fetches nothing from user pages."""
    assert fault(tables(), cr4=0x20 | SMEP, access="fetch") == Fault(14, 0x11, 1)
    assert gpa(tables(), cr4=0x20 | SMEP, access="fetch", cpl=3) == 0xA678
    assert gpa(without(US, 3), cr4=0x20 | SMEP, access="fetch") == 0xA678
    assert gpa(tables(), cr4=0x20 | SMEP) == 0xA678


def test_smap():
    """4.6.1: with CR4.SMAP the supervisor touches user pages only with EFLAGS.AC."""
    smap = {"cr4": 0x20 | SMAP}
    assert fault(tables(), **smap) == Fault(14, 1, 1)
    assert fault(tables(), **smap, access="write") == Fault(14, 3, 1)
    assert gpa(tables(), **smap, ac=True) == 0xA678
    assert gpa(tables(), **smap, cpl=3) == 0xA678
    assert gpa(tables(), **smap, access="fetch") == 0xA678
    assert gpa(without(US, 2), **smap) == 0xA678


def test_smap_and_implicit_accesses():
    """4.6.1: AC does not excuse an implicit access, and CPL 3 makes it no user's."""
    smap = {"cr4": 0x20 | SMAP, "implicit": True}
    assert fault(tables(), **smap, ac=True) == Fault(14, 1, 1)
    assert fault(tables(), **smap, ac=True, cpl=3) == Fault(14, 1, 1)


def test_the_fetch_bit_is_told_only_with_nx_or_smep():
    """4.7: I/D is set if CR4.SMEP, or CR4.PAE and EFER.NXE; else a fetch looks like a read."""
    memory = tables(leaf=0)
    assert fault(memory, access="fetch", efer=0x500) == Fault(14, 0, 1)
    assert fault(memory, access="fetch", efer=0x500, cr4=0x20 | SMEP) == Fault(14, 0x10, 1)
    assert fault(memory, access="fetch") == Fault(14, 0x10, 1)
    two = two_level(pte=0)
    assert fault(two, 0x0040_5678, TWO, access="fetch", efer=0x800) == Fault(14, 0, 1)


# ---- Protection keys

KEYS = {"cr4": 0x20 | PKE}


def keyed(key, rights=FULL):
    return tables(leaf=0xA000 | rights | key << 59)


def test_access_disable():
    """4.6.2: AD of the page's key stops data accesses, of user and supervisor, not fetches."""
    memory, pkru = keyed(9), 1 << 18
    assert fault(memory, **KEYS, pkru=pkru, cpl=3) == Fault(14, 0x25, 1)
    assert fault(memory, **KEYS, pkru=pkru) == Fault(14, 0x21, 1)
    assert gpa(memory, **KEYS, pkru=pkru, access="fetch", cpl=3) == 0xA678
    assert gpa(memory, **KEYS, pkru=0xFFFF_FFFF & ~(3 << 18), access="write", cpl=3) == 0xA678


def test_write_disable():
    """4.6.2: WD stops the user's writes, and the supervisor's if CR0.WP is set."""
    memory, pkru = keyed(15), 2 << 30
    assert gpa(memory, **KEYS, pkru=pkru, cpl=3) == 0xA678
    assert fault(memory, **KEYS, pkru=pkru, cpl=3, access="write") == Fault(14, 0x27, 1)
    assert fault(memory, **KEYS, pkru=pkru, access="write") == Fault(14, 0x23, 1)
    assert gpa(memory, **KEYS, pkru=pkru, access="write", cr0=0x8000_0011) == 0xA678


def test_keys_bind_user_pages_only():
    """4.6.2: a supervisor page has no key."""
    assert gpa(keyed(9, P | RW), **KEYS, pkru=0xFFFF_FFFF, access="write") == 0xA678


def test_keys_need_cr4_pke():
    """4.6.2: with CR4.PKE clear bits 62:59 are ignored, and so is PKRU."""
    assert gpa(keyed(9), pkru=0xFFFF_FFFF, access="write", cpl=3) == 0xA678


def test_keys_exist_in_long_mode_only():
    """4.6.2: other modes have no keys; there PKRU does not even guard key 0."""
    memory = tables(3, upper=P)
    memory.write_u64(0x2000, 0x3000 | FULL)
    assert gpa(memory, regs=PAE, cr4=0x20 | PKE, pkru=0xFFFF_FFFF, access="write") == 0xA678


def test_the_key_bit_is_told_beside_other_reasons():
    """4.7: PK says that the key denies, also where RW alone would have."""
    assert fault(keyed(9, P | US), **KEYS, pkru=3 << 18, access="write", cpl=3).error_code == 0x27
    assert fault(keyed(9, P), **KEYS, pkru=3 << 18, access="write", cpl=3).error_code == 0x07


# ---- Accessed and dirty


def entries(memory, levels=4):
    return [memory.read_u64(at(n, levels, 5 * (n == 1))) for n in range(levels, 0, -1)]


@pytest.mark.parametrize("access", ["read", "write", "fetch"])
def test_accessed_at_every_level_dirty_at_the_leaf(access):
    """4.8: A wherever an entry is used, D where the page is written to."""
    memory = tables()
    before = entries(memory)
    walk(memory, GVA, **LONG, access=access)
    assert entries(memory) == before, "nothing without set_ad"
    found = walk(memory, GVA, **LONG, access=access, set_ad=True)
    leaf = A | D if access == "write" else A
    assert entries(memory) == [before[0] | A, before[1] | A, before[2] | A, before[3] | leaf]
    assert [s.entry for s in found.steps] == before, "steps show what was read"


def test_dirty_on_a_page_already_accessed():
    """4.8: the first write sets D though A is set everywhere."""
    memory = tables(leaf=0xA000 | FULL | A, upper=FULL | A)
    walk(memory, GVA, **LONG, access="write", set_ad=True)
    assert entries(memory)[-1] == 0xA000 | FULL | A | D


def test_dirty_in_a_large_page():
    """4.8: the leaf may be a PDE."""
    memory = tables()
    memory.write_u64(at(2), FULL | PS)
    walk(memory, GVA, **LONG, access="write", set_ad=True)
    assert memory.read_u64(at(2)) == FULL | PS | A | D
    assert memory.read_u64(at(3)) == 0x3000 | FULL | A


def test_nothing_is_set_by_a_fault():
    """4.8 lets hardware set A above a fault; this walk, as KVM's, does not."""
    for leaf in (0, 0xA000 | P | US, 0xA000 | FULL | 1 << 51):
        memory = tables(leaf=leaf)
        before = entries(memory)
        assert fault(memory, access="write", set_ad=True, maxphyaddr=48)
        assert entries(memory) == before


def test_pae_pdptes_have_no_accessed_bit():
    """Table 4-8: A would be a reserved bit there."""
    memory = tables(3, upper=P)
    memory.write_u64(0x2000, 0x3000 | FULL)
    walk(memory, GVA, **PAE, access="write", set_ad=True)
    assert entries(memory, 3) == [0x2000 | P, 0x3000 | FULL | A, 0xA000 | FULL | A | D]


def test_accessed_and_dirty_in_four_byte_entries():
    """4.8 in 32-bit tables: the other half of the word is left alone."""
    memory = two_level()
    walk(memory, 0x0040_5678, **TWO, access="write", set_ad=True)
    assert memory.read(0x1000, 8) == struct.pack("<II", 0, 0x2000 | FULL | A)
    assert memory.read(0x2010, 8) == struct.pack("<II", 0, 0xA000 | FULL | A | D)


def test_a_table_that_points_to_itself():
    """An entry may serve all four levels, and is then its own page: hardware does not mind."""
    memory = GuestRam("8K")
    memory.write_u64(0x1000 + 511 * 8, 0x1000 | FULL)
    found = walk(memory, (1 << 64) - 8, **LONG, access="write", set_ad=True)
    assert (found.gpa, [s.gpa for s in found.steps]) == (0x1FF8, [0x1FF8] * 4)
    assert memory.read_u64(0x1FF8) == 0x1000 | FULL | A | D


def test_neighbours_in_one_word_both_get_their_bit():
    """A 32-bit directory that is its own table: PDE 0 and PTE 1 share eight bytes."""
    memory = GuestRam("8K")
    memory.write(0x1000, struct.pack("<II", 0x1000 | FULL, 0x1000 | FULL))
    assert gpa(memory, 0x1004, TWO, access="write", set_ad=True) == 0x1004
    expected = struct.pack("<II", 0x1000 | FULL | A, 0x1000 | FULL | A | D)
    assert memory.read(0x1000, 8) == expected


# ---- Trouble


@pytest.mark.parametrize(("level", "where"), [(4, 0x1_0000), (3, 0x2_0000), (2, 1 << 45)])
def test_a_table_outside_ram_is_named(level, where):
    """x86 defines nothing for it: the error says which table and where."""
    memory = tables()
    cr3 = where if level == 4 else 0x1000
    if level < 4:
        memory.write_u64(at(level + 1), where | FULL)
    with pytest.raises(TableOutsideRam, match="outside guest RAM") as caught:
        walk(memory, GVA, **{**LONG, "cr3": cr3})
    assert (caught.value.level, caught.value.gpa) == (level, where)
    assert isinstance(caught.value, GuestError)


@pytest.mark.parametrize("level", [4, 3, 2, 1])
def test_each_bit_of_a_tables_address_counts(level):
    """Bits 51:12 of CR3 and of each upper entry; from 17 on they lead out of this RAM."""
    for bit in range(17, 52):
        memory, cr3 = tables(), 1 << bit if level == 4 else 0x1000
        if level < 4:
            memory.write_u64(at(level + 1), 1 << bit | FULL)
        with pytest.raises(TableOutsideRam) as caught:
            walk(memory, GVA, **{**LONG, "cr3": cr3})
        assert caught.value.gpa & -0x1000 == 1 << bit


def test_a_32_bit_table_outside_ram_is_named():
    with pytest.raises(TableOutsideRam):
        walk(two_level(pde=0x10_0000 | FULL), 0x0040_5678, **TWO)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("access", {"access": "execute"}),
        ("cpl", {"cpl": 4}),
        ("maxphyaddr", {"maxphyaddr": 53}),
        ("maxphyaddr", {"maxphyaddr": 31}),
        ("gva", {"gva": 1 << 64}),
        ("gva", {"gva": -1}),
        ("cr4", {"cr4": 0}),
    ],
)
def test_bad_input_is_named(field, change):
    with pytest.raises(BadInput) as caught:
        walk(tables(), **{"gva": GVA, **LONG, **change})
    assert caught.value.field == field


def test_translate_is_the_same_walk():
    """The lean form says what `walk` says, and sets the same bits."""
    for leaf, access, cpl in itertools.product(
        (0, 0xA000 | P, 0xA000 | FULL), ("read", "write"), (0, 3)
    ):
        one, two = tables(leaf=leaf), tables(leaf=leaf)
        regs = {**LONG, "access": access, "cpl": cpl, "set_ad": True}
        found = walk(one, GVA, **regs)
        assert translate(two, GVA, **regs) == (found.gpa, found.page_size, found.fault)
        assert one.view == two.view


def test_random_tables_give_no_other_exception():
    """Whatever is in RAM and in the registers: an address, a fault, or one of our errors."""
    rng = random.Random(4)
    memory, seen = GuestRam("64K"), Counter()
    for _ in range(20):
        memory.write(0, rng.randbytes(1 << 16))
        for _ in range(200):
            gva = rng.getrandbits(64) if rng.random() < 0.3 else rng.getrandbits(47)
            regs = {"cr0": 0x8000_0011 | rng.getrandbits(1) << 16, "cr3": rng.getrandbits(16)}
            regs |= {"cr4": rng.getrandbits(23), "efer": rng.getrandbits(12)}
            ask = {"access": rng.choice(["read", "write", "fetch"]), "cpl": rng.randrange(4)}
            try:
                found = walk(memory, gva, **regs, **ask, pkru=rng.getrandbits(32), set_ad=True)
                seen["fault" if found.fault else "address"] += 1
            except (TableOutsideRam, BadInput) as error:
                seen[type(error).__name__] += 1
    assert seen.keys() == {"address", "fault", "TableOutsideRam", "BadInput"}


def test_words_of_ram():
    """Little-endian, on any address; outside, closed and too big are named."""
    ram = GuestRam("4K")
    ram.write(0, bytes(range(16)))
    assert ram.read_u64(8) == 0x0F0E_0D0C_0B0A_0908
    assert ram.read_u64(1) == 0x0807_0605_0403_0201
    ram.write_u64(0xFF8, (1 << 64) - 2)
    assert ram.read(0xFF8, 8) == b"\xfe" + b"\xff" * 7
    for where in (-8, -1, 0xFF9, 0x1000, 1 << 63):
        with pytest.raises(BadInput, match="outside guest RAM"):
            ram.read_u64(where)
        with pytest.raises(BadInput, match="outside guest RAM"):
            ram.write_u64(where, 0)
    for value in (-1, 1 << 64):
        with pytest.raises(BadInput, match="64 bits"):
            ram.write_u64(0, value)
    held = ram.array
    ram.close()
    assert ram.read_u64(8) == held[8:16].view("<u8")[0]
    del held
    ram = GuestRam("4K")
    ram.close()
    with pytest.raises(BadInput, match="closed"):
        ram.read_u64(0)


# ---- Beside an emulator's MMU

MAXPHYADDR = 40  # of every model QEMU translates
RAM = 4 << 20
ROOT = 0x10000
TABLES = range(0x10000, 0x20000, 0x1000)
DATA = 0x100000
MARK = 0x1122_3344_5566_7788

# Offsets in the bytes of a saved context of Unicorn 2.1.4.
_HFLAGS, _CR2, _ERROR_CODE, _OLD_EXCEPTION = 216, 480, 5424, 5536

_CODE = 0x9000
_STUBS = {  # access: code, in 64-bit and in 32-bit mode; each ends where it is
    "read": ("488b3b ebfe", "8b3b ebfe"),
    "write": ("488933 ebfe", "8933 ebfe"),
    "fetch": ("ffe3", "ffe3"),
}
_WRPKRU = bytes.fromhex("0f01ef")


@dataclass
class Verdict:
    """What the emulator did with one access."""

    vector: int | None = None
    error_code: int | None = None
    cr2: int | None = None
    outside: int | None = None
    """The physical address, where the access was allowed and no RAM is there."""
    loaded: int | None = None


def _word(gpa):
    """Return 8 bytes that tell their address, read or run: `mov edi, gpa; jmp $`."""
    return 0xBF | gpa << 8 | 0xFEEB << 40


class Mmu:
    """One engine, one paging mode, its RAM filled with words that tell their address."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.ram = GuestRam(RAM)
        self._long = levels >= 4
        import unicorn as uc
        from unicorn import x86_const as x86

        self._names, self._error = x86, uc.UcError
        self._uc = uc.Uc(uc.UC_ARCH_X86, uc.UC_MODE_64 if self._long else uc.UC_MODE_32)
        self._uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)
        self._uc.ctl_exits_enabled(True)
        self._uc.mem_map_ptr(0, RAM, uc.UC_PROT_ALL, self.ram.hva)
        self._uc.hook_add(uc.UC_HOOK_INTR, self._on_exception)
        self._uc.hook_add(uc.UC_HOOK_MEM_UNMAPPED, self._on_unmapped)
        self._verdict = Verdict()
        for gpa in range(DATA, RAM, 8):
            self.ram.write_u64(gpa, _word(gpa))
        self._entry = {}
        at = _CODE
        for access, stubs in _STUBS.items():
            stub = _WRPKRU + bytes.fromhex(stubs[0 if self._long else 1])
            self.ram.write(at, stub)
            self._entry[access] = at - _CODE
            at += 16
        self.code = self._map_code()

    def _map_code(self) -> dict[bool, int]:
        """Build the tables of the code page; return its addresses by user=False, True."""
        put = self.ram.write_u64
        if self.levels == 2:
            put(0x1000, (_CODE | 0x27) << 32 | _CODE | 0x27)
            self._fixed = [(0xC00, 0x1023), (0x800, 0x1027)]
            return {False: 0xC000_0000, True: 0x8000_0000}
        put(0x1000, _CODE | 0x27)
        put(0x2000, 0x1027)
        if self.levels == 3:
            put(0x3000, 0x1023)
            self._fixed = [(3 * 8, 0x3001), (2 * 8, 0x2001)]
            return {False: 0xC000_0000, True: 0x8000_0000}
        put(0x3000, 0x2027)
        if self.levels == 4:
            self._fixed = [(255 * 8, 0x3023), (254 * 8, 0x3027)]
            return {False: 255 << 39, True: 254 << 39}
        put(0x4000 + 8, 0x3023)
        put(0x4000 + 16, 0x3027)
        self._fixed = [(8, 0x4027)]
        return {False: 1 << 48 | 1 << 39, True: 1 << 48 | 2 << 39}

    def load_tables(self, image: bytes) -> None:
        """Put `image` at the tables' place and map the code in the root."""
        self.ram.write(ROOT, image)
        for offset, entry in self._fixed:
            if self.levels == 2:
                self.ram.write(ROOT + offset, struct.pack("<I", entry))
            else:
                self.ram.write_u64(ROOT + offset, entry)

    def access(self, gva, access, *, cr0, cr3, cr4, efer, cpl, pkru, ac) -> Verdict:
        """Execute one access and return what came of it."""
        engine, x86, verdict = self._uc, self._names, Verdict()
        self._verdict = verdict
        engine.reg_write(x86.UC_X86_REG_MSR, (0xC000_0080, efer))
        engine.reg_write(x86.UC_X86_REG_CR4, cr4)
        engine.reg_write(x86.UC_X86_REG_CR3, cr3)
        engine.reg_write(x86.UC_X86_REG_CR0, cr0)
        engine.reg_write(self._register("AX"), pkru)
        for register in (self._register("CX"), self._register("DX"), self._register("DI")):
            engine.reg_write(register, 0)
        engine.reg_write(self._register("BX"), gva)
        engine.reg_write(self._register("SI"), MARK)
        engine.reg_write(x86.UC_X86_REG_EFLAGS, 2 | int(ac) << 18)
        self._patch(cpl)
        engine.reg_write(x86.UC_X86_REG_CR3, cr3)  # empties the TLB
        keys = self._long and bool(cr4 & paging.CR4_PKE)
        start = self.code[cpl == 3] + self._entry[access] + (0 if keys else len(_WRPKRU))
        try:
            engine.emu_start(start, 0, count=2 + keys)
        except self._error:
            assert verdict.outside is not None, "the engine itself failed"
        context = engine.context_save()
        raw = bytes(context)
        if verdict.vector is not None:
            verdict.error_code = struct.unpack_from("<i", raw, _ERROR_CODE)[0]
            verdict.cr2 = struct.unpack_from("<Q", raw, _CR2)[0]
        elif access != "write":
            verdict.loaded = engine.reg_read(self._register("DI"))
        return verdict

    def _register(self, name: str) -> int:
        return getattr(self._names, f"UC_X86_REG_{'R' if self._long else 'E'}{name}")

    def _patch(self, cpl: int) -> None:
        """Set the privilege level, and forget the last fault, in the hidden state."""
        context = self._uc.context_save()
        at = ctypes.cast(context.context, ctypes.c_void_p).value
        hflags = ctypes.c_uint32.from_address(at + _HFLAGS)
        hflags.value = hflags.value & ~3 | cpl
        ctypes.c_int32.from_address(at + _OLD_EXCEPTION).value = -1
        self._uc.context_restore(context)

    def _on_exception(self, engine, vector, _):
        self._verdict.vector = vector
        engine.emu_stop()

    def _on_unmapped(self, engine, kind, address, size, value, _):
        self._verdict.outside = address
        return False


def random_tables(rng: random.Random, levels: int) -> tuple[bytes, list[list[int]]]:
    """Return an image of tables at `ROOT`, and the indices per level that lead somewhere.

    Three tables a level (the root is one), a few entries each, with every kind of trouble: holes,
    reserved bits, large pages askew, entries that point back into the tables, A and D at random.
    """
    image = bytearray(len(TABLES) * 0x1000)
    wide = levels > 2
    pages, place = {levels: [ROOT]}, 1
    for level in range(levels - 1, 0, -1):
        pages[level] = [TABLES[place + i] for i in range(3)]
        place += 3
    indices = []
    for level in range(levels, 0, -1):
        pdpte = levels == 3 and level == 3
        slots = 512 if wide else 1024
        picks = [0, 1] if level == levels else [0, 1, rng.randrange(slots), slots - 1]
        if level == levels and levels == 4:
            picks = [0, 5, 511]
        if level == levels and levels == 5:
            picks = [0, 511]
        indices.append(picks)
        for page in pages[level]:
            for index in picks:
                entry = _random_entry(rng, level, levels, pages, pdpte)
                at = page - ROOT + index * (8 if wide else 4)
                struct.pack_into("<Q" if wide else "<I", image, at, entry)
    return bytes(image), indices


def _random_entry(rng, level, levels, pages, pdpte):
    def chance(percent):
        return rng.random() * 100 < percent

    large = level in (2, 3) and not pdpte and chance(25) and not (levels == 2 and level == 3)
    shift = {1: 12, 2: 21 if levels > 2 else 22, 3: 30}.get(level, 12)
    if level > 1 and not large:
        target = rng.choice(TABLES) if chance(8) else rng.choice(pages[level - 1])
    elif large:
        target = rng.choice([0, 0, 1, 2, 5]) << shift & 0xFFFF_FFFF
        if chance(12):  # one bit at a time: each but bit 12 is reserved, or an address's in PSE-36
            target |= 1 << rng.randrange(12, shift)
    else:
        target = rng.choice(TABLES) if chance(8) else rng.randrange(DATA, RAM, 0x1000)
    entry = target | int(chance(98))
    if pdpte:  # bits 2:1 and 8:5 are reserved there, which this emulator does not look at
        return entry | (1 << rng.randrange(40, 64) if chance(5) else 0)
    entry |= 2 * chance(88) | 4 * chance(88) | 0x20 * chance(50) | 0x40 * chance(50)
    entry |= 0x80 * (large or chance(2)) | 0x100 * chance(20) | rng.randrange(8) << 9
    entry |= rng.randrange(4) << 3
    if levels > 2:
        entry |= (1 << 63) * chance(6)
        if chance(2):
            entry |= 1 << rng.randrange(MAXPHYADDR, 52)
        if levels > 3:
            entry |= rng.randrange(2048) << 52
        elif chance(2):
            entry |= 1 << rng.randrange(52, 63)
    elif large:
        entry |= (1 << rng.choice([13, 17, 20, 21, 21])) * chance(30)
    return entry


def random_address(rng: random.Random, levels: int, indices: list[list[int]]) -> int:
    """Return an address, 8-aligned, most of the time one that the tables lead somewhere."""
    gva = 0
    for level, picks in zip(range(levels, 0, -1), indices, strict=True):
        bits = 10 if levels == 2 else 9
        gva |= rng.choice(picks) << 12 + bits * (level - 1)
    gva |= rng.randrange(0, 0xF00, 8)
    if levels < 4:
        return gva & 0xFFFF_FFFF
    top = 12 + 9 * levels
    if gva >> top - 1:
        gva |= (1 << 64) - (1 << top)
    if rng.random() < 0.03:
        gva ^= 1 << rng.randrange(top - 1, 64)
    return gva


def random_registers(rng, levels):
    """Return control registers with every switch that matters thrown at random."""
    cr4 = rng.choice([0, SMEP]) | rng.choice([0, SMAP])
    cr4 |= 0x20 if levels > 2 else rng.choice([0, 0x10, 0x10])
    cr4 |= 0x1000 if levels == 5 else 0
    cr4 |= rng.choice([0, PKE]) if levels > 3 else 0
    efer = 0x500 if levels > 3 else 0
    efer |= rng.choice([0, 0x800, 0x800, 0x800]) if levels > 2 else 0
    return {"cr0": 0x8000_0011 | rng.choice([0, 1 << 16]), "cr3": ROOT, "cr4": cr4, "efer": efer}


def emulator_sets_accessed(found, levels, efer):
    """Return the steps in which QEMU's MMU sets A though the access faults: SDM 4.8 lets it.

    Those above the one that stops the walk; and a 1 GiB leaf whose address bits and NX are good,
    for there it sets A before it looks at rights and low bits. 2 MiB and 4 KiB leaves are left
    as they were. (KVM and this library write nothing when an access faults.)
    """
    marked = [step for step in found.steps[:-1] if not (levels == 3 and step.level == 3)]
    last = found.steps[-1] if found.steps else None
    if levels > 3 and last and last.level == 3 and last.entry & PS and last.entry & P:
        bad = (1 << 52) - (1 << MAXPHYADDR) | (0 if efer & paging.EFER_NXE else NX)
        if not last.entry & bad:
            marked.append(last)
    return marked


def _kind(vector, error_code):
    if vector is None:
        return "addresses"
    if vector == 14 and error_code & 8:
        return "#PF reserved bit"
    if vector == 14 and error_code & 0x20:
        return "#PF protection key"
    if vector == 14:
        return "#PF protection" if error_code & 1 else "#PF not present"
    return "#GP" if vector == 13 else f"vector {vector}"


def one_access(rng, mmu, twin, indices):
    """Do one random access on the emulator and walk it on `twin`; return both as plain tuples."""
    levels = mmu.levels
    regs = random_registers(rng, levels)
    gva = random_address(rng, levels, indices)
    access = rng.choice(["read", "write", "fetch"])
    who = {"cpl": rng.choice([0, 3, 3]), "ac": rng.random() < 0.5}
    who["pkru"] = rng.getrandbits(32) & rng.getrandbits(32)
    try:
        found = walk(twin, gva, **regs, **who, access=access, maxphyaddr=MAXPHYADDR, set_ad=True)
    except TableOutsideRam:
        return None  # no rule to compare with
    target = found.gpa
    inside = target is not None and target < RAM
    if inside and (target < ROOT or (access == "fetch" and target < DATA)):
        return None  # it would overwrite the harness, or run a table as code
    real = mmu.access(gva, access, **regs, **who)

    if found.fault:
        ours = (found.fault.vector, found.fault.error_code, gva if found.fault.vector == 14 else 0)
        theirs = (real.vector, real.error_code, real.cr2 if real.vector == 14 else 0)
        for step in emulator_sets_accessed(found, levels, regs["efer"]):
            word = twin.read_u64(step.gpa & ~7)
            twin.write_u64(step.gpa & ~7, word | A << (step.gpa & 4) * 8)
    elif not inside:
        ours, theirs = target, real.outside
    else:
        ours, theirs = None, real.vector
        if access == "fetch":
            ours, theirs = target, real.loaded
        elif access == "read":
            width = (1 << 64) - 1 if levels > 3 else (1 << 32) - 1
            ours, theirs = twin.read_u64(target) & width, real.loaded
        elif access == "write":
            twin.write(target, MARK.to_bytes(8, "little")[: 8 if levels > 3 else 4])
            ours = twin.read_u64(target)
            theirs = real.vector or mmu.ram.read_u64(target)
            if target >= DATA:
                for memory in (twin, mmu.ram):
                    memory.write_u64(target, _word(target))
    size = len(TABLES) << 12
    same = twin.read(ROOT, size) == mmu.ram.read(ROOT, size)
    kinds = _kind(found.fault and found.fault.vector, found.fault and found.fault.error_code)
    kinds = kinds, _kind(real.vector, real.error_code)
    return kinds, (ours, True), (theirs, same), f"{levels}-level {access} {gva:#x} {regs} {who}"


@pytest.mark.needs("unicorn")
def test_beside_the_emulators_mmu(check):
    """Addresses, faults, error codes, CR2, A and D of random accesses to random tables."""
    with check(
        "memory/walk-emulator",
        what="page walks of random accesses to random tables: address, fault, error code, A and D",
        tool="Unicorn (its MMU is QEMU's)",
        tool_version=importlib.metadata.version("unicorn"),
        covers=["vmlib/memory/paging.py", "vmlib/memory/walk.py"],
    ) as held:
        for levels in (2, 3, 4, 5):
            rng = random.Random(f"walk {levels}")
            mmu, twin = Mmu(levels), GuestRam(RAM)
            twin.write(0, mmu.ram.read(0, RAM))
            ours, real = Counter(), Counter()
            for _ in range(60):
                image, indices = random_tables(rng, levels)
                for _ in range(50):
                    mmu.load_tables(image)
                    twin.write(ROOT, mmu.ram.read(ROOT, len(image)))
                    done = one_access(rng, mmu, twin, indices)
                    if done:
                        (kind, real_kind), mine, theirs, name = done
                        held.case(mine, theirs, name)
                        ours[kind] += 1
                        real[real_kind] += 1
            assert twin.view == mmu.ram.view, "a store went somewhere else"
            assert ours["addresses"] > 500, ours
            assert min(ours.values()) >= 20, ours
            assert len(ours) == {2: 4, 3: 4, 4: 6, 5: 6}[levels], ours
            for kind in sorted(ours):
                held.show(f"{levels}-level: {kind}", ours[kind], real[kind])
