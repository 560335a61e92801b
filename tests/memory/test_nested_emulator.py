"""The 2-D walk beside the emulator's AMD-V: random guest tables behind random nested tables.

Compared is what a hypervisor sees: the guest's own page fault (intercepted: error code and
address), a nested page fault (EXITINFO1 and EXITINFO2), or none, and then the host-physical byte
that the guest reached. APM vol. 2, 15.25.5 and 15.25.6. Where the emulator differs:

* It drops bits 63:32 of EXITINFO1, in which hardware tells a guest table's access (bit 33) from
  the final one (bit 32). Compared are bits 31:0. The two bits are from the specification.
* It sets A in the nested entries above the leaf, and in the leaf neither A nor D, which hardware
  sets. A and D of the guest's own tables it sets as hardware does.
* Where an access ends in a fault of either stage, it has set A in entries passed before, and D in
  the guest's leaf where only the final address fails. SDM vol. 3A, 4.8 lets it; this library, as
  KVM, writes nothing then.
* Its processor with AMD-V has no 5-level paging, and the host's is 4-level: so are nested tables.
"""

import importlib.metadata
import random
from collections import Counter

import numpy as np
import pytest
from engine_mmu import MARK, word
from svm_mmu import BASE, GUEST, HOST, NESTED, Left, NestedMmu
from test_walk import MAXPHYADDR, random_address, random_registers, random_tables

from vmlib.errors import BadInput
from vmlib.memory import Npt, TableOutsideRam, walk_nested, walk_nested_many
from vmlib.memory.paging import CR4_PKE, PS, A, D

IMAGES, GROUPS, TOGETHER = 14, 8, 10
LOW = (1 << 32) - 1
KINDS = {"EXCP6": "host addresses", "EXCP14": "page faults of the guest", "NPF": "nested faults"}


class Draft:
    """Memory in which A and D can be set without setting them."""

    def __init__(self, ram):
        self._ram, self.written = ram, {}

    def read_u64(self, at):
        return self.written[at] if at in self.written else self._ram.read_u64(at)

    def write_u64(self, at, value):
        self.written[at] = value


def spoil(rng, mmu):
    """Change nested entries: rights, reserved bits, holes, a large page; not those of the code."""
    for _ in range(rng.randrange(60)):
        page = rng.choice([*range(17, 32)] * 3 + [*range(256, 1024)]) << 12
        level = 2 if page >= 2 << 20 and rng.random() < 0.02 else 1
        try:
            at = mmu.nested.entry(mmu.ram, page, level)
            entry = mmu.ram.read_u64(at)
        except BadInput:  # an entry above leads nowhere by now
            continue
        change = rng.randrange(5)
        if change == 0:
            entry ^= rng.randrange(8)
        elif change == 1:
            entry ^= 1 << rng.choice([*range(13), *range(40, 64), 63])
        elif change == 2:
            entry = entry & ~0x3F | rng.randrange(64)
        elif change == 3 and level == 2:
            entry = BASE | entry & 0xFFF | PS
        else:
            entry &= ~(1 << rng.choice([0, 1, 2]))
        mmu.ram.write_u64(at, entry)


def expected(ram, found, gva, access, width):
    """What the hypervisor should see of a walk."""
    if found.hpa is not None:
        loaded = {"write": 0, "fetch": found.hpa, "read": ram.read_u64(found.hpa) & width}
        return Left("EXCP6", loaded=loaded[access])
    if found.fault:
        address = gva if found.fault.vector == 14 else 0
        return Left(f"EXCP{found.fault.vector}", found.fault.error_code, address)
    return Left("NPF", found.exit.qualification & LOW, found.exit.gpa)


def expected_of_many(ram, many, n, gva, access, width):
    """The same of an element of a walk by the array."""
    hpa, vector = int(many.hpa[n]), int(many.guest.vector[n])
    if many.exit_reason[n]:
        return Left("NPF", int(many.exit_qualification[n]) & LOW, int(many.exit_gpa[n]))
    if vector:
        return Left(f"EXCP{vector}", int(many.guest.error_code[n]), gva if vector == 14 else 0)
    loaded = {"write": 0, "fetch": hpa, "read": ram.read_u64(hpa) & width}
    return Left("EXCP6", loaded=loaded[access])


def compare_bits(record, ram, found, draft, narrow, access, name):
    """A and D where the walk passed, after the emulator has passed there."""
    for step in found.steps:
        guest, place = step.space == "guest", step.hpa & ~7
        # What ours left alone is what it was: not what is in RAM, where the emulator has been.
        now, was, meant = ram.read_u64(place), step.entry, draft.written.get(place)
        if guest and narrow:
            now = now >> 8 * (step.hpa & 4) & LOW
            meant = meant and meant >> 8 * (step.hpa & 4) & LOW
        if meant is None:
            meant = was
        if found.hpa is None:
            early = A | D if found.gpa is not None and access == "write" and guest else A
            assert (now ^ was) & ~early == 0, name
        elif guest:
            record.case(meant, now, f"A and D of the guest: {name}")
        elif step.level > 1 and not step.entry & PS:
            record.case(meant, now, f"A of nested tables: {name}")


def one_image(record, levels, seed, seen, real_seen):
    rng = random.Random(f"{levels} {seed}")
    image, indices = random_tables(rng, levels)
    width = (1 << 64) - 1 if levels > 3 else LOW
    with NestedMmu(rng, levels, image) as mmu:
        spoil(rng, mmu)
        ram, second = mmu.ram, Npt(mmu.nested.root, 4, MAXPHYADDR)
        before = ram.read(0, HOST)
        for _ in range(GROUPS):
            how = random_registers(rng, levels) | {"cpl": rng.choice([0, 3])}
            how["cr4"] &= ~CR4_PKE  # this processor has no keys
            how["ac"] = rng.random() < 0.5
            access = rng.choice(["read", "write", "fetch"])
            asked = {**how, "access": access, "maxphyaddr": MAXPHYADDR}
            gvas = [random_address(rng, levels, indices) for _ in range(TOGETHER)]
            many = walk_nested_many(ram, gvas, second, **asked)
            for n, gva in enumerate(gvas):
                name = f"{levels}-level, {seed}: {access} {gva:#x} {how}"
                mmu.forget_accessed()
                draft = Draft(ram)
                try:
                    found = walk_nested(draft, gva, second, **asked, set_ad=True)
                except TableOutsideRam:
                    assert many.guest.vector[n] == 255
                    seen["left out: table outside RAM"] += 1
                    continue
                if found.hpa is not None and not BASE <= found.hpa < BASE + GUEST:
                    seen["left out: leads to the hypervisor's own pages, or nowhere"] += 1
                    continue
                if found.hpa and access != "read" and ram.read_u64(found.hpa) != word(found.hpa):
                    seen["left out: would overwrite tables, or run them"] += 1
                    continue
                ours = expected(ram, found, gva, access, width)
                theirs = expected_of_many(ram, many, n, gva, access, width)
                real = mmu.access(gva, access, **how)
                record.case(ours, real, name)
                record.case(theirs, real, f"by the array, {name}")
                compare_bits(record, ram, found, draft, levels == 2, access, name)
                if found.hpa is not None and access == "write":
                    assert (ram.read_u64(found.hpa) ^ MARK) & width == 0, name
                    ram.write_u64(found.hpa, word(found.hpa))
                seen[ours.name] += 1
                real_seen[real.name] += 1
        # Nothing else has changed, neither in the guest's RAM nor in the nested tables.
        changed = np.frombuffer(before, np.uint64)[NESTED >> 3 :] ^ ram.u64[NESTED >> 3 :]
        both = np.uint64((A | D) << 32 | A | D)
        assert not (changed & ~both).any()


@pytest.mark.needs("unicorn")
def test_beside_the_emulators_nested_paging(check):
    with check(
        "memory/nested-emulator",
        what="accesses of guests through their tables and nested ones: page fault, nested page "
        "fault (EXITINFO1 bits 31:0, EXITINFO2) or host-physical byte; A and D of the guest, A of "
        "nested tables above the leaf",
        tool="Unicorn (QEMU's AMD-V)",
        tool_version=importlib.metadata.version("unicorn"),
        covers=[
            "vmlib/memory/nested.py",
            "vmlib/memory/nested_many.py",
            "vmlib/memory/paging.py",
            "vmlib/memory/second_stage.py",
            "vmlib/memory/usual.py",
            "vmlib/memory/walk.py",
        ],
    ) as record:
        for levels in (4, 3, 2):
            seen, real = Counter(), Counter()
            for seed in range(IMAGES):
                one_image(record, levels, seed, seen, real)
            assert min(seen[name] for name in KINDS) > 100, seen
            assert sum(seen[name] for name in KINDS) > IMAGES * GROUPS * TOGETHER / 2, seen
            for name, words in KINDS.items():
                record.show(f"{levels}-level guest: {words}", seen[name], real[name])
