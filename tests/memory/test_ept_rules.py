"""What the manual says of EPT entries, one rule each: violation, misconfiguration, or neither.

No machine here can confirm it in hardware, so the record is *from the specification*: Intel SDM,
vol. 3C, sections 29.3.2 and 29.3.3, as the editions of 2023 count them.
"""

from itertools import product

import pytest

from vmlib.memory import Ept, SparseMemory, translate_gpa

ALL, TYPE_WB, LARGE = 7, 6 << 3, 1 << 7
NAMES = {4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}
READ, WRITE, FETCH = "read", "write", "fetch"
V, M, OK = "violation", "misconfiguration", "translated"


def outcome(changes, access, *, execute_only=True, accessed_dirty=False, table=False):
    """Walk GPA 0 through tables that are good but for `changes`, entries by level."""
    memory = SparseMemory(1 << 20)
    for level in (4, 3, 2, 1):
        good = (5 - level) << 12 | ALL if level > 1 else 0xA000 | TYPE_WB | ALL
        memory.write_u64((4 - level) << 12, changes.get(level, good))
    eptp = 3 << 3 | 6 | accessed_dirty << 6
    done = translate_gpa(memory, Ept(eptp, 48, execute_only), 0, access, table=table)
    return (done.exit.kind, done.exit.qualification) if done.exit else (OK, None)


def good(level, bits=ALL):
    """A good entry of a level, with other rights."""
    return (5 - level) << 12 | bits if level > 1 else 0xA000 | TYPE_WB | bits


LEVELS = (4, 3, 2, 1)
RULES = [
    ("29.3.3.1", "writable and not readable, at any level",
     [({n: good(n, bits)}, a, {}, M) for n, bits, a in product(LEVELS, (2, 6), (READ, FETCH))]),
    ("29.3.3.1", "executable only, where the processor has not that",
     [({n: good(n, 4)}, FETCH, {"execute_only": False}, M) for n in LEVELS]),
    ("29.3.3.1", "an address bit at or above MAXPHYADDR, at any level",
     [({n: good(n) | 1 << b}, READ, {}, M) for n, b in product(LEVELS, (48, 51))]),
    ("29.3.2", "bits 7:3 of a PML4E",
     [({4: good(4) | 1 << b}, READ, {}, M) for b in range(3, 8)]),
    ("29.3.2", "bits 6:3 of a PDPTE or PDE that leads to a table",
     [({n: good(n) | 1 << b}, READ, {}, M) for n, b in product((3, 2), range(3, 7))]),
    ("29.3.2", "address bits below its size in an entry that maps a large page",
     [({3: LARGE | TYPE_WB | ALL | 1 << b}, READ, {}, M) for b in range(12, 30)]
     + [({2: LARGE | TYPE_WB | ALL | 1 << b}, READ, {}, M) for b in range(12, 21)]),
    ("29.3.3.1", "memory type 2, 3 or 7 in an entry that maps a page",
     [({1: 0xA000 | t << 3 | ALL}, READ, {}, M) for t in (2, 3, 7)]
     + [({n: LARGE | t << 3 | ALL}, READ, {}, M) for n, t in product((3, 2), (2, 3, 7))]),
    ("29.3.3.1", "memory types 0, 1, 4, 5 and 6 mean something",
     [({1: 0xA000 | t << 3 | ALL}, READ, {}, OK) for t in (0, 1, 4, 5, 6)]),
    ("29.3.3.1", "ignored bits 62:52 and 11 may be anything",
     [({n: good(n) | 1 << b}, WRITE, {}, OK) for n, b in product(LEVELS, (11, 52, 56))]),
    ("29.3.3.1", "a misconfiguration below comes before a right that is missing above",
     [({n: good(n, 1), 1: 0xA000 | TYPE_WB | 2}, WRITE, {}, M) for n in (4, 3, 2)]),
    ("29.3.3.2", "bits 2:0 are 000b, at any level: not present",
     [({n: 0}, a, {}, V) for n, a in product(LEVELS, (READ, WRITE, FETCH))]),
    ("29.3.3.2", "not present is looked at first: what else is in the entry does not matter",
     [({n: 0xFFF0_0000_0000_0FF8}, READ, {}, V) for n in LEVELS]),
    ("29.3.3.2", "a write needs W at all levels",
     [({n: good(n, 5)}, WRITE, {}, V) for n in LEVELS]),
    ("29.3.3.2", "a fetch needs X at all levels",
     [({n: good(n, 3)}, FETCH, {}, V) for n in LEVELS]),
    ("29.3.3.2", "a read needs R: a page that is executable only grants none",
     [({n: good(n, 4)}, READ, {}, V) for n in LEVELS]),
    ("29.3.3.2", "a page that is executable only grants a fetch",
     [({1: good(1, 4)}, FETCH, {}, OK)]),
    ("29.3.3.2", "the walk of a guest's table reads",
     [({1: good(1, 1)}, READ, {"table": True}, OK)]),
    ("29.3.5", "with accessed and dirty flags it counts as a write",
     [({n: good(n, 5)}, WRITE, {"table": True, "accessed_dirty": True}, V) for n in LEVELS]),
]  # fmt: skip


def test_the_rules(check):
    with check(
        "memory/ept-rules",
        kind="specification",
        what="EPT entries: what is a violation, what a misconfiguration, and what is neither",
        tool="Intel SDM, vol. 3C",
        tool_version="sections 29.3.2, 29.3.3 and 29.3.5, editions of 2023",
        covers=["vmlib/memory/second_stage.py"],
    ) as record:
        for section, says, cases in RULES:
            ours = [outcome(changes, access, **how)[0] for changes, access, how, _ in cases]
            manual = [kind for *_, kind in cases]
            for one, two in zip(ours, manual, strict=True):
                record.case(one, two, says)
            (expected,) = set(manual)
            record.show(
                f"{section}: {says}", f"{len(ours)} × {ours[0]}", f"{len(cases)} × {expected}"
            )


@pytest.mark.parametrize(
    ("access", "bits", "qualification"),
    [(READ, 4, 0b1_1010_0001), (WRITE, 5, 0b1_1010_1010), (FETCH, 3, 0b1_1001_1100)],
)
def test_what_an_exit_tells(access, bits, qualification):
    """Table 28-7: the access in bits 2:0, the rights in 5:3, linear address, final access."""
    assert outcome({2: good(2, bits)}, access) == (V, qualification)
    assert outcome({2: good(2, 2)}, access) == (M, 0), "a misconfiguration has none"
