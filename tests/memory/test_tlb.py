"""TLB, paging-structure caches, and what invalidates them: one rule of the manual at a time.

No outside authority here can confirm what VPIDs, INVVPID and INVEPT do: no engine on our machines
lets one see a TLB. So the rules are the manual's: Intel SDM vol. 3A, 4.10, and vol. 3C, 29.4, as
the editions of 2023 count their sections; for AMD the APM, vol. 2, 15.16.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from tlb_world import MIB, PCIDE, PGE, ROOMY, Inside, World, X, Y, Z, dropped, full

from vmlib.errors import BadInput, SpecViolation
from vmlib.memory import (
    UNIFIED,
    CachedMmu,
    Ept,
    GuestRam,
    Map,
    Shortcut,
    TlbArray,
    TlbShape,
    build_tables,
    walk,
    walk_nested,
)

SMEP, SMAP = 1 << 20, 1 << 21
RW, D, A, P = 2, 1 << 6, 1 << 5, 1


@dataclass(frozen=True)
class Rule:
    """What the manual says that an operation drops from full caches, and nothing else."""

    section: str
    says: str
    operation: Any
    goes: Any
    guest: tuple | None = None
    svm: bool = False


def tables(m):
    return m.level > 1


def goes_with_pcid_1(m):
    return m.pcid == 1 and tables(m)


def without_pcids():
    """Registers of a guest that has PCIDs off."""
    regs = World().regs[1, 0]
    return {**regs, "cr4": regs["cr4"] & ~PCIDE}


def with_smep():
    """Registers of a guest that has SMEP on."""
    regs = World().regs[1, 1]
    return {**regs, "cr4": regs["cr4"] | SMEP}


def fault_at(mmu, gva):
    """A fault that the tables have no part in: a user's page to a supervisor, under SMAP."""
    mmu.mov_cr4(World().regs[0, 1]["cr4"] | SMAP)
    assert mmu.access(gva).fault


RULES = [
    Rule(
        "4.10.4.1",
        "INVLPG: the page of this PCID, and all paging-structure entries of this PCID",
        lambda mmu: mmu.invlpg(X),
        lambda m: m.vpid == 0 and m.pcid == 1 and (m.page == "X" or tables(m)),
    ),
    Rule(
        "4.10.4.1",
        "INVLPG: a global page whatever its PCID",
        lambda mmu: mmu.invlpg(Z + 5),
        lambda m: m.kind == "linear" and m.vpid == 0 and (m.pcid is None or goes_with_pcid_1(m)),
    ),
    Rule(
        "4.10.4.1",
        "INVPCID 0: the address of that PCID, not global",
        lambda mmu: mmu.invpcid(0, 2, X),
        lambda m: (m.vpid, m.pcid, m.page) == (0, 2, "X"),
    ),
    Rule(
        "4.10.4.1",
        "INVPCID 0: not a global page",
        lambda mmu: mmu.invpcid(0, 2, Z),
        lambda m: (m.vpid, m.pcid, m.page) == (0, 2, "Z") and tables(m),
    ),
    Rule(
        "4.10.4.1",
        "INVPCID 1: that PCID, global pages stay",
        lambda mmu: mmu.invpcid(1, 2),
        lambda m: (m.vpid, m.pcid) == (0, 2),
    ),
    Rule(
        "4.10.4.1",
        "INVPCID 2: all PCIDs, global pages too",
        lambda mmu: mmu.invpcid(2),
        lambda m: m.vpid == 0 and m.kind == "linear",
    ),
    Rule(
        "4.10.4.1",
        "INVPCID 3: all PCIDs, global pages stay",
        lambda mmu: mmu.invpcid(3),
        lambda m: m.vpid == 0 and m.kind == "linear" and m.pcid is not None,
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR0, PG from 1 to 0 (in a guest; CR4.PCIDE is clear then): all PCIDs of its VPID",
        lambda mmu: (mmu.vm_entry(**without_pcids(), vpid=1), mmu.mov_cr0(0x11)),
        lambda m: m.vpid == 1,
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR0, PG unchanged: nothing",
        lambda mmu: mmu.mov_cr0(0x8000_0011),
        lambda m: False,
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR3, PCIDE=1, bit 63 clear: the PCID that is loaded, global pages stay",
        lambda mmu: mmu.mov_cr3(0x7000 | 2),
        lambda m: (m.vpid, m.pcid) == (0, 2),
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR3, PCIDE=1, bit 63 set: nothing",
        lambda mmu: mmu.mov_cr3(0x7000 | 2 | 1 << 63),
        lambda m: False,
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR4 that changes PGE: all",
        lambda mmu: mmu.mov_cr4(World().regs[0, 1]["cr4"] & ~PGE),
        lambda m: m.vpid == 0 and m.kind == "linear",
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR4, PCIDE from 1 to 0: all",
        lambda mmu: mmu.mov_cr4(World().regs[0, 1]["cr4"] & ~PCIDE),
        lambda m: m.vpid == 0 and m.kind == "linear",
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR4, SMEP from 0 to 1: this PCID",
        lambda mmu: mmu.mov_cr4(World().regs[0, 1]["cr4"] | SMEP),
        lambda m: m.vpid == 0 and m.pcid in (1, None) and m.kind == "linear",
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR4, SMEP from 1 to 0 (in a guest): nothing",
        lambda mmu: (mmu.vm_entry(**with_smep(), vpid=1), mmu.mov_cr4(with_smep()["cr4"] & ~SMEP)),
        lambda m: False,
    ),
    Rule(
        "4.10.4.1",
        "MOV to CR4 that changes none of these: nothing",
        lambda mmu: mmu.mov_cr4(World().regs[0, 1]["cr4"] | SMAP),
        lambda m: False,
    ),
    Rule(
        "4.10.4.1",
        "a page fault: its page and the tables on its way, of this PCID",
        lambda mmu: fault_at(mmu, X),
        lambda m: (m.vpid, m.pcid, m.page) == (0, 1, "X"),
    ),
    Rule(
        "29.4.3.1",
        "INVLPG in a guest: combined mappings of its VPID, of all EP4TAs, linear ones too",
        lambda mmu: mmu.invlpg(X),
        lambda m: (m.vpid, m.pcid) == (1, 1) and (m.page == "X" or tables(m)),
        guest=(1, 1, "a"),
    ),
    Rule(
        "29.4.3.1",
        "MOV to CR3 in a guest: its VPID only, of all EP4TAs",
        lambda mmu: mmu.mov_cr3(0x7000 | 2),
        lambda m: (m.vpid, m.pcid) == (1, 2),
        guest=(1, 1, "b"),
    ),
    Rule(
        "29.4.3.1",
        "MOV to CR4.PGE in a guest without EPT: its VPID, combined mappings too",
        lambda mmu: mmu.mov_cr4(World().regs[1, 1]["cr4"] & ~PGE),
        lambda m: m.vpid == 1,
        guest=(1, 1, ""),
    ),
    Rule(
        "29.4.3.1",
        "VM entry without VPID: VPID 0, for all PCIDs",
        lambda mmu: mmu.vm_entry(**World().regs[1, 1], vpid=0, second=None),
        lambda m: m.vpid == 0 and m.kind != "guest-physical",
    ),
    Rule(
        "29.4.3.2",
        "VM entry with VPID: nothing",
        lambda mmu: mmu.vm_entry(**World().regs[1, 1], vpid=1, second=None),
        lambda m: False,
    ),
    Rule(
        "29.4.3.2",
        "VM exit with VPID: nothing",
        lambda mmu: mmu.vm_exit(),
        lambda m: False,
        guest=(1, 1, "a"),
    ),
    Rule(
        "29.4.3.1",
        "INVVPID 0: the address of that VPID, for all PCIDs and EP4TAs, global or not",
        lambda mmu: mmu.invvpid(0, 2, Z),
        lambda m: m.vpid == 2 and m.page == "Z",
    ),
    Rule(
        "29.4.3.1",
        "INVVPID 1: that VPID",
        lambda mmu: mmu.invvpid(1, 2),
        lambda m: m.vpid == 2,
    ),
    Rule(
        "29.4.3.1",
        "INVVPID 2: all VPIDs but 0",
        lambda mmu: mmu.invvpid(2),
        lambda m: m.vpid != 0,
    ),
    Rule(
        "29.4.3.1",
        "INVVPID 3: that VPID, global pages stay",
        lambda mmu: mmu.invvpid(3, 2),
        lambda m: m.vpid == 2 and m.pcid is not None,
    ),
    Rule(
        "29.4.3.1",
        "INVEPT 1: guest-physical and combined mappings of that EP4TA, for all VPIDs",
        lambda mmu: mmu.invept(1, 0x20_0000 | 4 << 3 | 6),
        lambda m: m.ep == "b",
    ),
    Rule(
        "29.4.3.1",
        "INVEPT 2: guest-physical and combined mappings of all EP4TAs, no linear ones",
        lambda mmu: mmu.invept(2),
        lambda m: m.kind != "linear",
    ),
    Rule(
        "APM 15.16.1",
        "VMRUN with TLB_CONTROL 0: nothing",
        lambda mmu: mmu.vmrun(**World().regs[1, 1], asid=1),
        lambda m: False,
        svm=True,
    ),
    Rule(
        "APM 15.16.1",
        "VMRUN with TLB_CONTROL 1: all",
        lambda mmu: mmu.vmrun(**World().regs[1, 1], asid=1, tlb_control=1),
        lambda m: True,
        svm=True,
    ),
    Rule(
        "APM 15.16.1",
        "VMRUN with TLB_CONTROL 3: the ASID",
        lambda mmu: mmu.vmrun(**World().regs[1, 1], asid=2, tlb_control=3),
        lambda m: m.vpid == 2,
        svm=True,
    ),
    Rule(
        "APM 15.16.1",
        "VMRUN with TLB_CONTROL 7: the ASID, global pages stay",
        lambda mmu: mmu.vmrun(**World().regs[1, 1], asid=2, tlb_control=7),
        lambda m: m.vpid == 2 and (m.kind == "guest-physical" or m.pcid is not None),
        svm=True,
    ),
    Rule(
        "APM 15.16.2",
        "INVLPGA: the page of that ASID",
        lambda mmu: mmu.invlpga(X, 1),
        lambda m: m.vpid == 1 and m.page == "X",
        svm=True,
    ),
]


def outcome(rule):
    """What goes, and what the rule says should."""
    world = full(svm=rule.svm)
    if rule.guest:
        world.enter(*rule.guest)
    everything = world.mappings()
    return everything, dropped(world, rule.operation)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.section} {rule.says}")
def test_rule(rule):
    """From caches full of three machines' two processes: what goes is what the rule names."""
    everything, gone = outcome(rule)
    assert gone == {m for m in everything if rule.goes(m)}


def test_the_rules_are_kept_as_a_record(check):
    with check(
        "memory/tlb-rules",
        what="which cached mappings each operation drops, from caches of three machines",
        tool="Intel SDM vol. 3A, 4.10, and vol. 3C, 29.4; AMD APM vol. 2, 15.16",
        tool_version="the editions of 2023",
        covers=[
            f"vmlib/memory/caches/{name}.py"
            for name in ("mmu", "vmx_mmu", "svm_mmu", "nested", "walk", "tlb")
        ],
        kind="specification",
    ) as done:
        for rule in RULES:
            everything, gone = outcome(rule)
            named = {m for m in everything if rule.goes(m)}
            done.show(f"{rule.section}: {rule.says}", len(gone), len(named))
            done.case(gone, named, rule.says)


# ---- Stale entries: the architecture allows them until software invalidates


def elsewhere(entry):
    return entry ^ 0x4_0000


def test_a_changed_pte_is_not_seen_before_invlpg():
    """4.10.4: entries may be kept even after the structures have been modified."""
    world = World()
    (first,) = world.touch(X)
    world.edit(elsewhere, 0, 1, X)
    assert world.touch(X)[0].gpa == first.gpa
    assert walk(world.ram, X, **world.regs[0, 1]).gpa == elsewhere(first.gpa)
    world.mmu.invlpg(X)
    assert world.touch(X)[0].gpa == elsewhere(first.gpa)


def test_a_changed_pde_is_not_seen_by_a_page_that_was_never_touched():
    """4.10.3.1: the PDE cache is used in place of the PDE in memory, for all its 2 MiB."""
    world = World()
    world.touch(X)
    at = world.entry(0, 1, X + 0x1000)
    world.ram.write_u64(at, 0x7000 | 7)
    world.edit(lambda entry: 0, 0, 1, X, level=2)
    (found,) = world.touch(X + 0x1000)
    assert (found.gpa, found.saved) == (0x7000, 3)
    assert found.shortcuts == (Shortcut("PDE cache", 3, 0),)
    world.mmu.invlpg(Y)  # 4.10.4.1: whatever the address, all paging-structure entries go
    assert world.touch(X + 0x2000)[0].fault.level == 2


def test_a_pte_made_present_needs_no_invalidation():
    """4.10.4.3: nothing is cached from an entry whose P is 0."""
    world = World()
    world.edit(lambda entry: entry & ~P, 0, 1, X)
    assert world.touch(X)[0].fault.error_code == 0
    world.edit(lambda entry: entry | P, 0, 1, X)
    assert world.touch(X)[0].gpa == world.data(0, 1, X)


def test_a_spurious_fault_comes_once():
    """4.10.4.3: R/W from 0 to 1 without invalidation may fault, at most once for an address."""
    world = World()
    world.edit(lambda entry: entry & ~RW, 0, 1, X)
    world.touch(X)
    # A clear D would make the write walk anyway: let it be set as if by an earlier write.
    world.edit(lambda entry: entry | D, 0, 1, X)
    world.mmu.invlpg(X)
    world.touch(X)
    world.edit(lambda entry: entry | RW, 0, 1, X)
    assert world.mmu.access(X, "write").fault.error_code == 3
    assert world.mmu.access(X, "write").gpa == world.data(0, 1, X)


def test_rights_of_upper_levels_are_cached_with_the_page():
    """4.10.2.2: access rights in a TLB entry are those of all entries used."""
    world = World()
    world.mmu.access(X, "write")
    world.edit(lambda entry: entry & ~RW, 0, 1, X, level=4)
    assert world.mmu.access(X, "write").fault is None
    world.mmu.mov_cr3(world.regs[0, 1]["cr3"])
    fault = world.mmu.access(X, "write").fault
    assert (fault.error_code, fault.level) == (3, 1)


def test_a_write_through_a_clean_entry_walks_and_sets_d():
    """4.10.2.2: the dirty flag is cached; a write that finds it clear sets it in memory."""
    world = World()
    world.touch(X)
    assert not world.ram.read_u64(world.entry(0, 1, X)) & D
    found = world.mmu.access(X, "write")
    assert (found.hit, found.saved, len(found.steps)) == (False, 3, 1)
    assert world.ram.read_u64(world.entry(0, 1, X)) & D
    assert world.mmu.access(X, "write").hit


def test_a_cleared_without_invalidation_is_not_set_again():
    """4.10.4.3: the processor may not set A for a translation that it has cached."""
    world = World()
    world.touch(X)
    world.edit(lambda entry: entry & ~A, 0, 1, X)
    world.touch(X)
    assert not world.ram.read_u64(world.entry(0, 1, X)) & A
    world.mmu.invlpg(X)
    world.touch(X)
    assert world.ram.read_u64(world.entry(0, 1, X)) & A


def test_a_is_set_before_an_entry_is_cached():
    """4.10.2.3, 4.10.3.1: nothing is cached unless A is 1 in each entry used."""
    world = World()
    for gva in (X, Y, Z):
        world.touch(gva)
        for level in (4, 3, 2, 1):
            assert world.ram.read_u64(world.entry(0, 1, gva, level)) & A
    for key, mapping in world.mmu.linear:
        assert all(entry & A for entry in mapping.entries), key


def test_a_global_page_serves_every_pcid():
    """4.10.2.4: a global TLB entry may be used though it was made under another PCID."""
    world = World()
    world.touch(Z)
    world.mmu.mov_cr3(world.regs[0, 2]["cr3"])
    (found,) = world.touch(Z)
    assert found.hit
    assert found.gpa == world.data(0, 1, Z), "the other process's page: software's mistake"


def test_g_means_nothing_without_pge():
    """4.10.2.4: entries are global only if CR4.PGE is 1."""
    world = World()
    world.mmu.mov_cr4(world.regs[0, 1]["cr4"] & ~PGE)
    world.touch(Z)
    world.mmu.mov_cr3(world.regs[0, 2]["cr3"])
    assert world.touch(Z)[0].gpa == world.data(0, 2, Z)


def test_pcids_keep_processes_apart_without_flushing():
    """4.10.1: entries made under one PCID are not used under another, and are there later."""
    world = World()
    world.touch(X)
    world.mmu.mov_cr3(world.regs[0, 2]["cr3"])
    (other,) = world.touch(X)
    assert (other.hit, other.gpa) == (False, world.data(0, 2, X))
    world.mmu.mov_cr3(world.regs[0, 1]["cr3"] | 1 << 63)
    (again,) = world.touch(X)
    assert (again.hit, again.gpa) == (True, world.data(0, 1, X))


def test_without_pcids_a_load_of_cr3_drops_all_but_global_pages():
    """4.10.4.1: CR4.PCIDE = 0: PCID 000H goes, except global pages."""
    world = World()
    regs = {**world.regs[0, 0], "cr4": world.regs[0, 0]["cr4"] & ~PCIDE}
    mmu = CachedMmu(world.ram, **regs, shape=ROOMY)
    for gva in (X, Z):
        mmu.access(gva)
    mmu.mov_cr3(regs["cr3"])
    assert [mmu.access(gva).hit for gva in (Z, X)] == [True, False]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("cr0", "CR0.PG is not cleared while CR4.PCIDE is set"),
        ("cr4", "bits 11:0"),
        ("cr3", "bit 63"),
        ("invpcid", "needs CR4.PCIDE"),
        ("type", "no such"),
    ],
)
def test_what_the_processor_refuses(value, rule):
    """4.10.1; vol. 2A, INVPCID."""
    world = World()
    plain = world.regs[0, 1]["cr4"] & ~PCIDE
    mmu = CachedMmu(world.ram, **{**world.regs[0, 1], "cr4": plain})
    act = {
        "cr0": lambda: world.mmu.mov_cr0(0x11),
        "cr4": lambda: mmu.mov_cr4(plain | PCIDE),
        "cr3": lambda: mmu.mov_cr3(1 << 63),
        "invpcid": lambda: mmu.invpcid(1, 3),
        "type": lambda: mmu.invpcid(4),
    }[value]
    with pytest.raises(SpecViolation, match=rule):
        act()


# ---- With a second stage


def test_vpids_keep_what_a_machine_has_cached():
    """29.4.3.2: with VPIDs neither VM exit nor VM entry costs a walk; without, all is walked."""
    for vpid, hit in ((1, True), (0, False)):
        world = World()
        for expected in (False, hit):
            world.enter(vpid, 1, "a", machine=1)
            assert [f.hit for f in world.touch()] == [expected] * 3
            world.mmu.vm_exit()


def test_without_vpid_the_host_loses_its_own_too():
    """29.4.3.1: VM exits drop VPID 0000H, and that is the host's."""
    world = World()
    world.touch()
    world.enter(0, 1, "a", machine=1)
    world.touch()
    world.mmu.vm_exit()
    assert not any(m.vpid == 0 and m.kind != "guest-physical" for m in world.mappings())


def test_no_linear_mapping_is_used_or_made_while_ept_is_in_use():
    """29.4.2. And no combined one without EPT: the same VPID has both, apart."""
    world = World()
    world.enter(1, 1)
    assert [f.gpa for f in world.touch(X)] == [world.data(1, 1, X)]
    world.mmu.vm_exit()
    linear = world.mappings()
    world.enter(1, 1, "a")
    (found,) = world.touch(X)
    assert not found.hit
    new = world.mappings() - linear
    assert {m.kind for m in new} == {"combined", "guest-physical"}
    world.mmu.vm_exit()
    world.enter(1, 1, "b")
    assert not world.touch(X)[0].hit, "another EP4TA"


def test_a_changed_ept_entry_is_not_seen_before_invept():
    """29.4.3.4: after a change of an EPT entry's address software uses INVEPT."""
    world = World()
    world.enter(1, 1, "a")
    (first,) = world.touch(X)
    at = world.nested["a"].entry(world.ram, first.gpa, 1)
    world.ram.write_u64(at, elsewhere(world.ram.read_u64(at)))
    assert world.touch(X)[0].hpa == first.hpa
    world.mmu.invlpg(X)  # 29.4.3.2: no guest-physical mapping need go
    (again,) = world.touch(X)
    assert (again.hit, again.hpa) == (False, first.hpa)
    world.mmu.vm_exit()
    world.mmu.invvpid(1, 1)  # 29.4.3.2: nor here
    world.enter(1, 1, "a")
    assert world.touch(X)[0].hpa == first.hpa
    world.mmu.vm_exit()
    world.mmu.invept(1, world.second["a"].eptp)
    world.enter(1, 1, "a")
    assert world.touch(X)[0].hpa == elsewhere(first.hpa)


def test_an_ept_violation_from_a_stale_entry_comes_once():
    """29.4.3.1: it drops the guest-physical and combined mappings that led to it."""
    world = World()
    at = world.nested["a"].entry(world.ram, world.data(1, 1, X), 1)
    world.ram.write_u64(at, world.ram.read_u64(at) & ~2)
    world.enter(1, 1, "a")
    world.edit(lambda entry: entry | D, 1, 1, X)
    world.touch(X)
    world.ram.write_u64(at, world.ram.read_u64(at) | 2)
    found = world.mmu.access(X, "write")
    assert (found.exit.kind, found.exit.gpa) == ("violation", world.data(1, 1, X))
    assert world.mmu.access(X, "write").hpa == world.data(1, 1, X)


def test_an_ept_entry_made_present_needs_no_invept():
    """29.4.2: nothing is cached from an EPT entry that is not present or misconfigured."""
    for bad, kind in ((0, "violation"), (2, "misconfiguration")):
        world = World()
        at = world.nested["a"].entry(world.ram, world.data(1, 1, X), 1)
        good = world.ram.read_u64(at)
        world.ram.write_u64(at, good & ~7 | bad)
        world.enter(1, 1, "a")
        assert world.touch(X)[0].exit.kind == kind
        world.ram.write_u64(at, good)
        assert world.touch(X)[0].hpa == world.data(1, 1, X)


def test_the_dirty_flag_of_ept_is_cached_too():
    """29.3.5: a write whose cached EPT entry is clean walks, and sets D in the EPT entry."""
    world = World(ad=True)
    world.enter(1, 1, "a")
    world.edit(lambda entry: entry | D, 1, 1, X)
    at = world.nested["a"].entry(world.ram, world.data(1, 1, X), 1)
    world.touch(X)
    assert world.ram.read_u64(at) >> 8 & 3 == 1
    assert not world.mmu.access(X, "write").hit
    assert world.ram.read_u64(at) >> 8 & 3 == 3
    assert world.mmu.access(X, "write").hit


def test_the_ep4ta_is_bits_51_to_12_of_eptp():
    """29.4.2: EPTPs that differ below bit 12 have their mappings in common."""
    world = World()
    world.enter(1, 1, "a")
    world.touch(X)
    world.mmu.vm_exit()
    world.second["a"] = Ept(world.second["a"].eptp | 6)
    world.enter(1, 1, "a")
    assert world.touch(X)[0].hit


def test_with_paging_off_in_the_guest_guest_physical_mappings_serve():
    """29.4.2: no combined paging-structure entries with CR0.PG clear."""
    world = World()
    regs = {**world.regs[1, 1], "cr0": 0x11, "efer": 0, "cr4": 0}
    world.mmu.vm_entry(**regs, vpid=1, second=world.second["a"])
    costs = [(len(f.steps), f.saved) for f in (world.mmu.access(0x3456) for _ in range(2))]
    assert costs == [(4, 0), (0, 4)]
    assert {m.kind for m in world.mappings()} == {"guest-physical"}


def test_a_large_page_over_small_ones_is_cached_in_parts_and_dropped_as_one():
    """4.10.4.1: INVLPG drops all TLB entries of the translation that the structures specify."""
    ram = GuestRam("16M")
    ept = build_tables(ram, at=0, mapping=[Map(0, 8 * MIB, 8 * MIB)], format="ept")
    inside = Inside(ram, 8 * MIB, 8 * MIB)
    guest = build_tables(inside, at=MIB, mapping=[Map(0x40_0000, 0x20_0000, 2 * MIB, page=2 * MIB)])
    mmu = CachedMmu(ram, **guest.registers)
    mmu.vm_entry(**guest.registers, vpid=1, second=Ept(ept.eptp))
    for offset in (0, 0x5000):
        found = mmu.access(0x40_0000 + offset)
        assert (found.page_size, found.hpa) == (4096, 10 * MIB + offset)
    assert len(mmu.linear) == 2
    mmu.invlpg(0x40_9000)
    assert len(mmu.linear) == 0


def test_instructions_of_the_host_in_a_guest_are_exits():
    """26.1.2: INVEPT and INVVPID cause VM exits unconditionally; and so does VM entry."""
    world = World()
    world.enter(1, 1)
    for act in (
        lambda: world.mmu.invept(2),
        lambda: world.mmu.invvpid(2),
        lambda: world.enter(1, 1),
    ):
        with pytest.raises(SpecViolation, match="is a VM exit"):
            act()
    world.mmu.vm_exit()
    with pytest.raises(BadInput, match="no guest runs"):
        world.mmu.vm_exit()
    for act in (lambda: world.mmu.invvpid(1, 0), lambda: world.mmu.invept(0)):
        with pytest.raises(SpecViolation, match="VMfailValid"):
            act()


def test_asids_keep_guests_apart_and_their_nested_tables_with_them():
    """APM 15.16: nested translations are the ASID's, whatever nCR3 is: a change wants a flush."""
    world = World(svm=True)
    world.enter(1, 1, "a")
    (first,) = world.touch(X)
    world.mmu.vm_exit()
    at = world.nested["b"].entry(world.ram, first.gpa, 1)
    world.ram.write_u64(at, elsewhere(world.ram.read_u64(at)))
    world.enter(1, 1, "b")
    assert world.touch(X)[0].hpa == first.hpa
    world.mmu.vm_exit()
    world.enter(2, 1, "b", machine=1)
    assert world.touch(X)[0].hpa == elsewhere(first.hpa)
    world.mmu.vm_exit()
    world.enter(1, 1, "b", tlb_control=3)
    assert world.touch(X)[0].hpa == elsewhere(first.hpa)
    world.mmu.vm_exit()
    with pytest.raises(SpecViolation, match="ASID 0"):
        world.enter(0, 1)
    with pytest.raises(SpecViolation, match="reserved"):
        world.enter(1, 1, tlb_control=2)
    world.enter(1, 1)
    with pytest.raises(SpecViolation, match=r"VMRUN in a guest is a VM exit \(AMD APM"):
        world.enter(2, 1)
    assert not any(hasattr(world.mmu, name) for name in ("vm_entry", "invept", "invvpid"))


# ---- What is counted, and what is drawn


@pytest.mark.parametrize("ep", ["", "a"])
def test_made_and_saved_references_are_those_of_the_whole_walk(ep):
    """A walk from a cache and the rest add up, whichever cache it was."""
    world = World()
    if ep:
        world.enter(1, 1, ep)
    whole = 24 if ep else 4
    for gva in (X, X + 1, Y, Z, X):
        found = world.mmu.access(gva, "write")
        assert (len(found.steps) + found.saved, found.fault) == (whole, None)
    for gva, first in ((X, 3), (Y, 2), (Z, 1)):  # drop translations, and lower tables
        world.mmu.linear._all[0].drop(lambda key, mapping: True)
        for level in range(2, 5 - first):
            world.mmu.linear.structures[level].drop(lambda key, mapping: True)
        found = world.mmu.access(gva)
        assert found.shortcuts[0].column == first
        assert len(found.steps) + found.saved == whole
    count = world.mmu.counters
    assert (count.accesses, count.hits, count.structure_hits) == (8, 2, 3)
    assert count.references + count.saved == 8 * whole


def test_a_shortcut_leads_to_the_cell_where_the_walk_goes_on():
    """Every cell of the uncached grid is either read, or in front of a shortcut's end."""
    world = World()
    world.enter(1, 1, "a")
    grid = [(s.column, s.row) for s in whole_walk(world, X).steps]
    world.touch(X)
    for prepare in (
        lambda: None,
        lambda: world.mmu.linear._all[0].drop(lambda key, mapping: True),
        lambda: world.mmu.invlpg(X),
        lambda: (world.mmu.invlpg(X), world.mmu.physical._all[0].drop(lambda k, m: True)),
    ):
        prepare()
        found = world.mmu.access(X)
        read, cells = {(s.column, s.row) for s in found.steps}, iter(grid)
        saved, jumps = set(), list(found.shortcuts)
        for cell in cells:
            if cell in read:
                continue
            while jumps and (jumps[0].column, jumps[0].row) <= cell:
                jumps.pop(0)
            assert jumps, f"nothing saves {cell}"
            saved.add(cell)
        assert len(saved) == found.saved
        assert read | saved == set(grid)


def whole_walk(world, gva):
    return walk_nested(world.ram, gva, world.second["a"], **world.regs[1, 1])


# ---- The shape of the caches


def test_a_set_keeps_what_was_last_used():
    """Pages whose numbers fall into one set push out the least recently used of its ways."""
    world = World(TlbShape((TlbArray((4096,), sets=4, ways=2),)))
    at = world.entry(0, 1, X)
    for n in range(0, 16):
        world.ram.write_u64(at + 8 * n, world.data(0, 1, X) | 7)
    pages = [X + 0x4000 * n for n in range(3)]  # four sets: each fourth page
    world.touch(pages[0], pages[1], pages[0], pages[2])
    assert [world.mmu.access(page).hit for page in (pages[0], pages[2])] == [True, True]
    assert not world.mmu.access(pages[1]).hit
    world.touch(*(X + 0x1000 * n for n in range(1, 4)))
    assert [world.mmu.access(page).hit for page in (pages[1], pages[2])] == [True, True]


def test_large_pages_have_an_array_of_their_own_or_not():
    """A 2 MiB page is one entry; and a size with no array is not cached, but walked well."""
    ram = GuestRam("8M")
    tables = build_tables(ram, at=0, mapping=[Map(0, 0, 4 * MIB, page=2 * MIB)])
    for arrays, hits in ((TlbShape().arrays, 3), (UNIFIED, 3), ((TlbArray((4096,), 4, 4),), 0)):
        mmu = CachedMmu(ram, **tables.registers, shape=TlbShape(arrays))
        found = [mmu.access(gva) for gva in (0, 0x1000, 0x1F_F000, 0x10)]
        assert [f.page_size for f in found] == [2 * MIB] * 4
        assert sum(f.hit for f in found) == hits == mmu.counters.hits
        assert mmu.counters.misses == 4 - hits


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_all_ways_of_paging(levels):
    """The references that the deepest table saves. The PDPTEs of PAE are no cache (4.10.3.1)."""
    ram = GuestRam("8M")
    mapping = [Map(0x40_0000, 0x1000), Map(0x40_1000, 0x2000), Map(0x80_0000, 0x3000)]
    tables = build_tables(ram, at=MIB, mapping=mapping, levels=levels)
    mmu = CachedMmu(ram, **tables.registers)
    found = [mmu.access(0x40_0000 + 0x1000 * (n % 2), "write", cpl=3) for n in range(3)]
    assert [f.gpa for f in found] == [0x1000, 0x2000, 0x1000]
    assert [len(f.steps) for f in found] == [levels, 1, 0]
    far = mmu.access(0x80_0000)
    assert (far.gpa, len(far.steps)) == (0x3000, {2: 2, 3: 3, 4: 2, 5: 2}[levels])


def test_shapes_that_are_none():
    with pytest.raises(BadInput, match="at least 1"):
        TlbArray((4096,), 0, 1)
    with pytest.raises(BadInput, match="sizes"):
        TlbArray((5000,), 1, 1)
    with pytest.raises(BadInput, match="once"):
        TlbShape((TlbArray((4096,), 1, 1), TlbArray((4096,), 2, 1)))
