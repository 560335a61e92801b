"""Both pagers against a true KVM in a box, fault by fault, under nested and under shadow paging.

Each script is a guest; the kernel's trace events say what its hypervisor was asked and what it
did. Events before the guest's last exit count: what comes after it is the end of the VM.
"""

import re

import pytest
import shadow_guest
from box import Job
from engine_files import KVM_FILES
from shadow_guest import nested, shadowed
from shadow_scripts import SCRIPTS, WARM

from vmlib.memory import KVM, OUT_OF_SYNC, WRITE_PROTECT

NPT, SHADOW = 1, 0
GUESTS = {name: WARM + script for name, script in SCRIPTS.items()}
NAMES = list(GUESTS)
MAXPHYADDR = 48  # the box's processor; the scripts that set a reserved bit set bit 51
FAULTS = ("filled", "dirty", "emulated", "unsync", "injected", "mmio")
PAGERS = [
    f"vmlib/memory/shadow/{name}.py"
    for name in ("pager", "entry", "pages", "strategy", "tables", "nested_pager")
]
PAGERS += [f"vmlib/memory/{name}.py" for name in ("nested", "second_stage", "walk", "paging")]
PAGERS += ["tests/memory/shadow_guest.py", "tests/memory/shadow_scripts.py"]

# What Linux adds to the strategy, by script: page faults and pages zapped, without it and with it.
# With an entry it fills those of its group of eight that the guest has used before, up to the first
# that cannot be filled; the same in a large page that is split; and with INVLPG, the entry itself.
FILLED_TOGETHER = {
    "an entry changed, and INVLPG": ((10, 0), (9, 0)),
    "INVLPG, and an address space that was left": ((12, 0), (11, 0)),
    "neighbours": ((15, 0), (13, 0)),
    "a large page": ((11, 0), (9, 0)),
    "a table in a large page": ((11, 0), (10, 0)),
}
# The third write in a row to an upper table costs it its shadow page.
GIVEN_UP = {
    "an upper table written again and again": ((13, 0), (14, 1)),
    "an upper table given up, one below it out of sync": ((12, 0), (13, 2)),
}

# By the manual a reserved bit in a present entry is a fault of a present page: bit 0 comes with
# bit 3 of the error code (Intel SDM vol. 3A, 4.7). So says KVM's walker, which is asked under
# shadow paging, and so does ours. Under nested paging nobody asks KVM: the box's processor walks,
# and it leaves bit 0 out. Error codes by the manual, and of that processor. (NX is a reserved bit
# where EFER.NXE is clear, as in these guests.)
AUTHORITIES_DIFFER = {
    "rights": ([9, 11, 3, 3], [8, 10, 3, 3]),
    "a reserved bit": ([9], [8]),
}


def by_guest(lines):
    """Cut the trace where a vCPU comes to be; what was before the first is no guest's."""
    guests = []
    for line in lines:
        if "kvm_track_tsc:" in line:
            guests.append([])
        elif guests:
            guests[-1].append(line)
    return guests


def kernel(lines):
    """What the trace says of one guest."""
    ends = [number for number, line in enumerate(lines) if "kvm_exit:" in line]
    lines = lines[: ends[-1]]
    asked = [
        (int(found[1], 16), int(found[2], 16))
        for line in lines
        if (found := re.search(r"kvm_page_fault: .* address (0x\w+) error_code (0x\w+)", line))
    ]

    def count(text):
        return sum(text in line for line in lines)

    return {
        "asked": asked,
        "intercepts": count("reason PF excp") or count("reason npf"),
        "INVLPG": count("reason invlpg"),
        "CR3": count("reason write_cr3"),
        "injected": _injected(lines),
        "created": sum("kvm_mmu_get_page" in x and x.rstrip().endswith("new") for x in lines),
        "zapped": count("kvm_mmu_prepare_zap_page"),
        "unsync": count("kvm_mmu_unsync_page"),
        # That a page is zapped while it is unsync is told as a sync too (kvm_unlink_unsync_page).
        "synced": count("kvm_mmu_sync_page") - _zapped_unsync(lines),
        "accessed": _accessed(lines),
        "dirty": count("kvm_mmu_set_dirty_bit"),
        "leaves": count("kvm_mmu_set_spte"),
        "walks": count("kvm_mmu_pagetable_walk"),
    }


def _injected(lines):
    """Page faults given to the guest. What an interrupt of the host's put off comes once more."""
    told = [line for line in lines if "kvm_inj_exception: #PF" in line]
    return sum("[reinjected]" not in line for line in told)


def _zapped_unsync(lines):
    return sum("kvm_mmu_prepare_zap_page" in x and bool(re.search(r"\bunsync", x)) for x in lines)


def _accessed(lines):
    """Accessed bits set. An entry that serves two levels is told twice for one walk, set once."""
    walk, seen = 0, set()
    for line in lines:
        walk += "kvm_page_fault:" in line
        if found := re.search(r"kvm_mmu_set_accessed_bit: gpa (\w+)", line):
            seen.add((walk, found[1]))
    return len(seen)


def ours(pager, faults):
    """The same of our pager.

    KVM walks the guest's tables once for each page fault, and its emulator once to fetch an
    instruction that it carries out (INVLPG and MOV to CR3 too: this processor does not decode
    them for it), and once more for the address of an emulated write.
    """
    traps, counts = pager.traps, pager.counts
    asked = sum(traps[kind] for kind in FAULTS)
    return {
        "asked": pager.asked,
        "intercepts": asked,
        "INVLPG": traps["invlpg"],
        "CR3": traps["cr3"],
        "injected": len(faults),
        "created": counts["pages created"],
        "zapped": counts["pages zapped"],
        "unsync": counts["pages unsynced"],
        "synced": counts["pages synced"],
        "accessed": counts["accessed set"],
        "dirty": counts["dirty set"],
        "leaves": counts["leaves set"],
        "walks": asked + 2 * traps["emulated"] + traps["invlpg"] + traps["cr3"],
    }


def in_words(told):
    """The line of the page's table."""
    names = ("intercepts", "injected", "created", "zapped", "unsync", "synced")
    return ", ".join(f"{told[name]} {name}" for name in names if told[name])


def test_the_listing_is_what_the_accesses_say():
    """Capstone reads from the bytes the addresses that the scripts give to the pagers."""
    import capstone

    reader = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    done = 0
    for script in GUESTS.values():
        steps = shadow_guest.parse(script)
        code, places, end = shadow_guest.assemble(steps)
        read = {
            at: (size, f"{name} {text}")
            for at, size, name, text in reader.disasm_lite(code, shadow_guest.CODE)
        }
        for (what, *values), here in zip(steps, places, strict=True):
            for at, size in here:
                assert read[at][0] == size
            text = [read[at][1] for at, _ in here]
            at = f"{values[0]:#x}" if values[0] > 9 else str(values[0])
            number = values[-1]
            last = f"{number:#x}" if number > 9 else str(number)
            assert (
                text
                == {
                    "read": [f"movabs rax, qword ptr [{at}]"],
                    "write": [f"movabs rax, {last}", f"movabs qword ptr [{at}], rax"],
                    "invlpg": [f"movabs rax, {at}", "invlpg byte ptr [rax]"],
                    "cr3": [f"movabs rax, {at}", "mov cr3, rax"],
                }[what]
            ), script
            done += 1
        assert read[end[0]] == (2, "out 0xf4, al")
    assert done > 100


@pytest.mark.needs("unicorn")
def test_the_emulator_leaves_the_same_tables():
    """Ours of every strategy, and the processor of the emulator: tables and error codes."""
    for script in GUESTS.values():
        real = shadow_guest.run("unicorn", script)
        assert real["ended"] == "done"
        for strategy in (WRITE_PROTECT, OUT_OF_SYNC, KVM):
            _, faults, tables = shadowed(script, strategy, maxphyaddr=MAXPHYADDR)
            assert (faults, tables) == (real["faults"], real["tables"])


def test_what_linux_adds_is_named():
    added = FILLED_TOGETHER | GIVEN_UP
    for name, script in GUESTS.items():
        plain, linux = (
            (sum(pager.traps[kind] for kind in FAULTS), pager.counts["pages zapped"])
            for pager, _, _ in (
                shadowed(script, strategy, maxphyaddr=MAXPHYADDR) for strategy in (OUT_OF_SYNC, KVM)
            )
        )
        assert (plain, linux) == added.get(name, (plain, plain)), name


def test_a_fault_that_is_given_twice_counts_once():
    at = "python-124 [000] ..... 13.74: "
    given = at + "kvm_inj_exception: #PF (0x2)"
    ends = at + "kvm_exit: vcpu 0 reason io"
    assert kernel([given, given + " [reinjected]", ends])["injected"] == 1
    assert kernel([given, given, ends])["injected"] == 2


@pytest.mark.needs("box")
def test_both_pagers_are_asked_what_kvm_is_asked(check, box):
    jobs = [
        Job(f"{npt}", "shadow_guest:run_all", ["kvm", list(GUESTS.values())], npt=npt, lines=True)
        for npt in (NPT, SHADOW)
    ]
    done = box.run(jobs)
    assert [result.error for result in done.values()] == [None] * len(jobs)
    told = {
        (name, npt): (value, kernel(lines))
        for npt in (NPT, SHADOW)
        for name, value, lines in zip(
            NAMES, done[f"{npt}"].value, by_guest(done[f"{npt}"].lines), strict=True
        )
    }
    assert {value["ended"] for value, _ in told.values()} == {"done"}
    with check(
        "memory/box-shadow",
        what="Fault by fault, what a hypervisor is asked by the same guests under shadow and under "
        "nested paging, and what it does then: our pagers against KVM's own trace events",
        tool="kvm-amd under qemu-system-x86_64 -accel tcg",
        tool_version=f"Linux {box.version}",
        covers=[*PAGERS, *KVM_FILES],
    ) as record:
        for name, script in GUESTS.items():
            value, kvm = told[name, SHADOW]
            ran, faults, tables = shadowed(script, KVM, maxphyaddr=MAXPHYADDR)
            one = ours(ran, faults)
            assert one.keys() == kvm.keys()
            for what in one:
                record.case(one[what], kvm[what], f"{what} of {name!r}, npt=0")
            record.case(faults, value["faults"], f"error codes of {name!r}, npt=0")
            record.case(tables, value["tables"], f"guest tables after {name!r}, npt=0")
            record.show(f"shadow: {name}", in_words(one), in_words(kvm))
        for name, script in GUESTS.items():
            value, kvm = told[name, NPT]
            # The kernel in the box runs on a processor with five levels, and so do its tables.
            guest, faults, tables = nested(script, levels=5, maxphyaddr=MAXPHYADDR)
            made = guest.counts["tables made"]
            record.case(guest.asked, kvm["asked"], f"nested page faults of {name!r}")
            record.case(made, kvm["created"], f"nested tables made by {name!r}")
            record.case(0, kvm["injected"], f"exceptions injected into {name!r}, npt=1")
            record.case(tables, value["tables"], f"guest tables after {name!r}, npt=1")
            manual, theirs = AUTHORITIES_DIFFER.get(name, (faults, faults))
            record.case(manual, faults, f"error codes of {name!r}, by the manual")
            record.case(theirs, value["faults"], f"error codes of {name!r}, npt=1")
            asked = f"{len(guest.asked)} nested page faults, {made} tables"
            real = f"{kvm['intercepts']} nested page faults, {kvm['created']} tables"
            record.show(f"nested: {name}", asked, real)
