"""Faults that guests take, and KVM's own answer to where an address leads, beside `walk`.

`test_walk` asks the emulator's MMU alone. Here a whole guest stands on an engine, with an IDT and
handlers of its own: what it finds on its stack and in CR2, where its loads and stores went, and
what the tables look like afterwards.

Where a KVM differs, it is named here:

* KVM of an AMD processor reserves bit 8 of a PML4E (APM vol. 2, 5.3.3: MBZ). Intel ignores it (SDM
  vol. 3A, table 4-15), and so do QEMU and this library.
* KVM_TRANSLATE asks for a supervisor's read, and no more: `writeable` and `usermode` of its answer
  are constants. It does not look whether the address is canonical. And it sets A, as an access
  would: a debugger's question leaves a trace in the guest's tables.
* 1 GiB pages and 5-level paging exist where the host's KVM gives them to guests. Where it does not,
  the bit is a reserved one, and CR4 refuses LA57.
* kvm_pvm, in ring 0 with SMAP and EFLAGS.AC clear: the second instruction fetched from a user page
  faults. SMAP does not concern fetches (SDM vol. 3A, 4.6.1).
"""

import importlib.metadata
import platform
import random
from collections import Counter

import numpy as np
import pytest
from engine_mmu import DATA, MARK, RAM, ROOT, EngineMmu, Seen, word
from test_walk import TABLES, _kind, emulator_sets_accessed, random_address, random_tables

from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm.calls import call
from vmlib.cpu.kvm.oddities import kvm_modules
from vmlib.errors import BadInput
from vmlib.memory import GuestRam, TableOutsideRam, walk
from vmlib.memory.paging import (
    CR4_SMAP,
    CR4_SMEP,
    ERROR_P,
    ERROR_RSVD,
    NX,
    PS,
    RW,
    US,
    A,
    G,
    P,
    access_rules,
)

COVERS = ["vmlib/memory/paging.py", "vmlib/memory/walk.py"]
# With 51 for the only reserved address bit, every processor below 52 bits has the same tables.
TOP = 51
IMAGES, ACCESSES = 60, 40
NEEDS = {
    "unicorn": pytest.param("unicorn", marks=pytest.mark.needs("unicorn")),
    "kvm": pytest.param("kvm", marks=pytest.mark.needs("kvm")),
}


def tables_for(rng, engine, levels):
    """Random tables; for KVM without what depends on the host's processor."""
    image, indices = random_tables(rng, levels)
    entries = np.frombuffer(image, np.uint64).copy()
    high = np.uint64((1 << 52) - (1 << 40))
    entries[(entries & high) != 0] |= np.uint64(1 << TOP)
    entries &= ~(high & ~np.uint64(1 << TOP))
    if engine == "kvm":
        entries[: 512 * (1 if levels == 4 else 4)] &= ~np.uint64(G)
    return entries.tobytes(), indices


def tables(ram):
    """The random tables as they are now."""
    return ram.read(ROOT, len(TABLES) << 12)


def random_how(rng, levels):
    cr4 = 0x20 | (0x1000 if levels == 5 else 0)
    cr4 |= rng.choice([0, CR4_SMEP]) | rng.choice([0, CR4_SMAP])
    return {
        "cr0": 0x8000_0033 | rng.choice([0, 1 << 16]),
        "cr3": ROOT,
        "cr4": cr4,
        "efer": rng.choice([0xD00, 0xD00, 0xD00, 0x500]),
        "cpl": rng.choice([0, 3]),
        "ac": rng.random() < 0.5,
    }


def cannot_be_asked(found, engine, access, how):
    """Say why this access is not made here, or return an empty string."""
    target = found.gpa
    if target is not None:
        if access == "fetch" and not DATA <= target < RAM:
            return "would run what is no code"
        if access == "write" and target < DATA:
            return "would overwrite tables, which leaves caches stale by right"
    if engine == "kvm":
        if any(step.level == 3 and step.entry & PS for step in found.steps):
            return "1 GiB page: not on every KVM, see test_1_gib_pages"
        user = target is not None and all(step.entry & US for step in found.steps)
        smap = user and how["cpl"] == 0 and how["cr4"] & CR4_SMAP and not how["ac"]
        if access == "fetch" and smap:  # left out on every KVM: so the record is the same
            return "kvm_pvm: SMAP concerns fetches"
    return ""


def one_access(rng, mmu, twin, engine, levels, indices):
    """Execute one access; return what it was, ours and the guest's, or why it was not asked."""
    how, gva = random_how(rng, levels), random_address(rng, levels, indices)
    access = rng.choice(["read", "write", "fetch"])
    try:
        found = walk(twin, gva, **how, access=access, maxphyaddr=TOP)
    except TableOutsideRam:
        return "table outside RAM"
    if why := cannot_be_asked(found, engine, access, how):
        return why
    real = mmu.access(gva, access, **how)
    walk(twin, gva, **how, access=access, maxphyaddr=TOP, set_ad=True)
    if found.fault:
        vector = found.fault.vector
        ours = Seen(vector, found.fault.error_code, gva if vector == 14 else None)
        if engine == "unicorn":
            for step in emulator_sets_accessed(found, levels, how["efer"]):
                twin.write_u64(step.gpa, twin.read_u64(step.gpa) | A)
    elif found.gpa >= RAM:
        ours = Seen(outside=found.gpa)
    elif access == "write":
        ours = Seen(loaded=0)
        assert mmu.ram.read_u64(found.gpa) == MARK or real != ours, "the store went elsewhere"
        mmu.ram.write_u64(found.gpa, word(found.gpa))
    else:
        ours = Seen(loaded=found.gpa if access == "fetch" else twin.read_u64(found.gpa))
    kind = kind_of(found)
    real_kind = _kind(real.vector, real.error_code)
    return (kind, real_kind), ours, real, f"{access} {gva:#x} {how}"


def kind_of(found):
    return _kind(found.fault and found.fault.vector, found.fault and found.fault.error_code)


def canonical(gva):
    """The address with bit 47 in all bits above."""
    low = gva & (1 << 48) - 1
    return low | (0xFFFF << 48 if low >> 47 else 0)


def run(record, engine, levels, seen, real_seen):
    """Guests with one set of tables after another; after each the tables are compared."""
    for seed in range(IMAGES):
        rng = random.Random(f"{levels} {seed}")
        image, indices = tables_for(rng, engine, levels)
        with EngineMmu(engine, levels, image) as mmu:
            twin = GuestRam(RAM)
            twin.write(0, mmu.ram.read(0, RAM))
            for _ in range(ACCESSES):
                done = one_access(rng, mmu, twin, engine, levels, indices)
                if isinstance(done, str):
                    seen["left out", done] += 1
                    continue
                (kind, real_kind), ours, real, name = done
                record(ours, real, name)
                seen[kind] += 1
                real_seen[real_kind] += 1
            record(tables(twin), tables(mmu.ram), f"A and D of tables {seed}")


@pytest.mark.parametrize("engine", NEEDS.values())
def test_faults_that_guests_take(engine, check):
    """Error code on the stack, CR2, where loads and stores went; A and D by executing it."""
    kvm = engine == "kvm"
    with check(
        "memory/guests-kvm" if kvm else "memory/guests-unicorn",
        what="accesses that guests make through random tables: error code on their stack, CR2, "
        "data, A and D of the tables",
        tool="/dev/kvm" if kvm else "Unicorn (its MMU is QEMU's), with our delivery",
        tool_version=f"Linux {platform.release()}, {kvm_modules()}"
        if kvm
        else importlib.metadata.version("unicorn"),
        covers=COVERS,
    ) as held:
        for levels in (4,) if kvm else (4, 5):
            seen, real = Counter(), Counter()
            run(held.case, engine, levels, seen, real)
            kinds = sorted(kind for kind in seen if isinstance(kind, str))
            assert len(kinds) == 5, seen
            assert min(seen[kind] for kind in kinds) > 15, seen
            assert sum(seen[kind] for kind in kinds) > IMAGES * ACCESSES / 2, seen
            for kind in kinds:
                held.show(f"{levels}-level: {kind}", seen[kind], real[kind])


def kvm_gives_la57(vm):
    """Whether KVM announces five levels to guests: CPUID leaf 7, ECX bit 16."""
    table = vm._supported_cpuid()[abi.CPUID_HEAD.size :]
    leaves = abi.CPUID_ENTRY.iter_unpack(table)
    return any(one[0] == 7 and one[1] == 0 and one[5] >> 16 & 1 for one in leaves)


@pytest.mark.needs("kvm")
def test_five_levels_on_kvm():
    """The same accesses; where CPUID has no LA57, CR4 must refuse the bit."""
    seen, wrong = Counter(), []

    def record(ours, real, name):
        if ours != real:
            wrong.append((name, ours, real))

    with EngineMmu("kvm", 5, bytes(len(TABLES) << 12)) as mmu:
        if not kvm_gives_la57(mmu._vm):
            with pytest.raises(BadInput):
                mmu.enter(**random_how(random.Random(0), 5))
            mmu.enter(**random_how(random.Random(0), 4))
            return
    run(record, "kvm", 5, seen, Counter())
    assert not wrong
    assert sum(seen.values()) > 1000


def gives_1_gib_pages(vm):
    """Whether guests are told of 1 GiB pages: CPUID 0x80000001, EDX bit 26."""
    if not hasattr(vm, "_supported_cpuid"):
        return True  # the emulator
    table = vm._supported_cpuid()[abi.CPUID_HEAD.size :]
    leaves = abi.CPUID_ENTRY.iter_unpack(table)
    return any(one[0] == 0x8000_0001 and one[6] >> 26 & 1 for one in leaves)


@pytest.mark.parametrize("engine", NEEDS.values())
def test_1_gib_pages(engine):
    """Where CPUID has them, as any page; where it has not, PS of a PDPTE is a reserved bit."""
    rng = random.Random("1 GiB")
    image = np.zeros(512 * len(TABLES), np.uint64)
    image[0] = ROOT + 0x1000 | 7
    leaves = [P | PS, P | PS | RW, P | PS | US, P | PS | RW | US, P | PS | RW | US | NX, PS | RW]
    image[512 : 512 + len(leaves)] = leaves
    seen = Counter()
    with EngineMmu(engine, 4, image.tobytes()) as mmu:
        twin, given = GuestRam(RAM), gives_1_gib_pages(mmu._vm)
        twin.write(0, mmu.ram.read(0, RAM))
        for _ in range(150):
            gva = rng.randrange(len(leaves)) << 30 | rng.randrange(DATA, RAM, 8)
            access, how = rng.choice(["read", "write", "fetch"]), random_how(rng, 4)
            how["cr4"], how["efer"] = how["cr4"] & ~CR4_SMAP, 0xD00
            asked = {**how, "access": access, "maxphyaddr": TOP}
            found = walk(twin, gva, **asked)
            real = mmu.access(gva, access, **how)
            if found.fault is None and given:
                walk(twin, gva, **asked, set_ad=True)
                loaded = {"read": word(found.gpa), "write": 0, "fetch": found.gpa}[access]
                assert real == Seen(loaded=loaded), (gva, asked)
                mmu.ram.write_u64(found.gpa, word(found.gpa))
            else:
                code = found.fault.error_code if found.fault else 0
                if not given and leaves[gva >> 30] & P:
                    ac, cpl = how["ac"], how["cpl"]
                    rules = access_rules(how["cr0"], how["cr4"], 0xD00, access, cpl, ac, False)
                    code = rules.error_code | ERROR_P | ERROR_RSVD
                assert real == Seen(14, code, gva), (gva, asked)
            seen[real.vector] += 1
        if engine == "kvm":  # the emulator may set A where the access faults: SDM vol. 3A, 4.8
            assert tables(twin) == tables(mmu.ram)
    assert seen[14] > 20
    assert given == (seen[None] > 20)


def ask_kvm(mmu, gva):
    """KVM_TRANSLATE: the GPA, or None, and what else it says."""
    asked = bytearray(abi.TRANSLATION.pack(gva, 0, 0, 0, 0))
    call(mmu.vcpu._file.fd, abi.TRANSLATE, asked)
    _, gpa, valid, writable, user = abi.TRANSLATION.unpack(asked)
    return gpa if valid else None, (writable, user)


@pytest.mark.needs("kvm")
def test_kvm_translates_as_a_supervisor_reads(check):
    """Address and validity for random tables, with and without SMAP and AC; and the A bits."""
    with check(
        "memory/kvm-translate",
        what="where addresses lead, by KVM's own walker: address, validity, A of the tables",
        tool="KVM_TRANSLATE of /dev/kvm",
        tool_version=f"Linux {platform.release()}, {kvm_modules()}",
        covers=COVERS,
    ) as held:
        seen, real = Counter(), Counter()
        for seed in range(30):
            rng = random.Random(f"translate {seed}")
            image, indices = tables_for(rng, "kvm", 4)
            with EngineMmu("kvm", 4, image) as mmu:
                twin = GuestRam(RAM)
                twin.write(0, mmu.ram.read(0, RAM))
                for _ in range(160):
                    how = random_how(rng, 4) | {"cpl": 0, "efer": 0xD00}
                    gva = random_address(rng, 4, indices)
                    try:
                        found = walk(twin, gva, **how, maxphyaddr=TOP)
                    except TableOutsideRam:
                        continue
                    if cannot_be_asked(found, "kvm", "read", how):
                        continue
                    mmu.enter(**how)
                    gpa, rest = ask_kvm(mmu, gva)
                    kind = kind_of(found)
                    if kind == "#GP":  # not canonical: KVM walks as if it were
                        found = walk(twin, canonical(gva), **how, maxphyaddr=TOP)
                        if cannot_be_asked(found, "kvm", "read", how):
                            continue
                    held.case(found.gpa, gpa, f"{gva:#x} {how}")
                    held.case((1, 0), rest, "writeable and usermode are constants")
                    walk(twin, canonical(gva), **how, maxphyaddr=TOP, set_ad=True)
                    seen[kind] += 1
                    real[kind] += (gpa is None) == (found.gpa is None)
                held.case(tables(twin), tables(mmu.ram), f"A of tables {seed}")
        for kind in sorted(seen):
            held.show(f"4-level: {kind}", seen[kind], real[kind])
        assert min(seen.values()) > 50, seen


@pytest.mark.needs("kvm")
def test_bit_8_of_a_pml4e():
    """The processor's maker decides, by the vendor that CPUID names; ours is Intel's rule."""
    image = np.zeros(512 * 4, np.uint64)
    for level, entry in enumerate((ROOT + 0x1000 | 7 | G, ROOT + 0x2000 | 7, ROOT + 0x3000 | 7)):
        image[512 * level] = entry
    image[512 * 3] = DATA | 7
    how = {"cr0": 0x8001_0033, "cr3": ROOT, "cr4": 0x20, "efer": 0xD00, "cpl": 0, "ac": False}
    with EngineMmu("kvm", 4, image.tobytes()) as mmu:
        assert walk(mmu.ram, 0, **how).gpa == DATA
        seen = mmu.access(0, "read", **how)
    with open("/proc/cpuinfo") as file:
        amd = any("AuthenticAMD" in line or "HygonGenuine" in line for line in file)
    assert seen == (Seen(14, 9, 0) if amd else Seen(loaded=word(DATA)))
