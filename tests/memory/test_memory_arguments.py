"""Every public function, each argument in turn of a wrong kind: only errors of ours come out.

What is no number, negative, huge, empty, an array where one number is asked for: either the
function can do with it, or a `BadInput` (or another error of vmlib's) says what was wrong.
"""

import math
from inspect import isfunction, signature
from pathlib import Path

import numpy as np
import pytest

from vmlib import memory
from vmlib.errors import BadInput, VmlibError
from vmlib.memory import (
    KVM,
    SPLIT,
    CachedMmu,
    Ept,
    GuestRam,
    HostPages,
    Map,
    MemorySlots,
    NestedPager,
    Npt,
    Rulers,
    ShadowGuest,
    ShadowPager,
    Slot,
    SparseMemory,
    Strategy,
    SvmMmu,
    TlbArray,
    TlbShape,
    access_rules,
    batch,
    build_tables,
    example_host,
    flag_names,
    four_addresses,
    four_controls,
    four_opening,
    four_problem,
    four_rulers,
    four_slots,
    host_address,
    host_pages,
    latency_curve,
    paging_mode,
    record_example,
    record_four,
    record_four_example,
    record_shadow,
    record_walk,
    record_walk_nested,
    rulers_of,
    shadow_problem,
    tlb_problem,
    translate,
    translate_gpa,
    walk,
    walk_many,
    walk_nested,
    walk_nested_many,
    walk_opening,
    walk_problem,
)

WRONG = [
    None, "x", "0x1000", b"x", -1, 1 << 64, 1 << 200, math.nan, math.inf, 1.5, np.float64(1.5),
    np.int64(-1), np.uint64(5), [], [1], {}, (1, 2, 3), object(), len, True, 0, 7, np.array([]),
    np.array([1, 2]), np.array([[1]]), np.array([1.5]), np.array(["a"]),
]  # fmt: skip

GVA = 0x40_0000
RAM = GuestRam("4M")
TABLES = build_tables(RAM, at=0x1_0000, mapping=[Map(GVA, 0x9000)])
REGS = TABLES.registers
EPT = Ept(build_tables(RAM, at=0x10_0000, mapping=[Map(0, 0, 4 << 20)], format="ept").eptp)
NPT = Npt(build_tables(RAM, at=0x14_0000, mapping=[Map(0, 0, 4 << 20)]).root)
HOST = HostPages((0x100_0000, 0x200_0000, 0x300_0000), {}, "a host", "2026-01-01")
KEPT = Path(__file__).parents[2] / "book/memory/traces/four-host.json"
NOBODY = Rulers((), (), (), ())
HOW = {"access": "read", "cpl": 0, "pkru": 0, "ac": False, "maxphyaddr": 52, "implicit": False}
WHO = {"access": "read", "cpl": 0}
AND_SET = {**HOW, "set_ad": False}
SLOT = {"number": 0, "gpa": 0, "size": 4096, "hva": 4096, "readonly": False, "log_dirty": True}


def slots():
    some = MemorySlots()
    some.set(Slot(0, 0, 0x10_0000, 0x20_0000, log_dirty=True))
    return some


def room():
    """The guest's memory in a host's, and the slot that says so."""
    host, some = GuestRam("1M"), MemorySlots()
    some.set(Slot(0, 0, 0x8_0000, 0x8_0000))
    host.write(0x8_0000, RAM.read(0, 0x8_0000))
    return {"host": host, "slots": some}


def pager(kind, **how):
    one = kind(**{**room(), "at": 0, "end": 0x4_0000, **REGS, **how})
    one.access(GVA)
    return one


def of_pager(kind, name):
    return lambda **how: getattr(pager(kind), name)(**how)


def of_mmu(name, kind=CachedMmu):
    def act(**how):
        mmu = kind(RAM, **REGS)
        mmu.access(GVA)
        getattr(mmu, name)(**how)
        mmu.access(GVA)

    return act


def of_slots(name):
    return lambda **how: getattr(slots(), name)(**how)


def of_guest(name):
    return lambda **how: getattr(ShadowGuest(KVM), name)(**how)


CALLS = {
    "walk": (walk, {"memory": RAM, "gva": GVA, **REGS, **AND_SET}),
    "translate": (translate, {"memory": RAM, "gva": GVA, **REGS, **AND_SET}),
    "walk_many": (walk_many, {"memory": RAM, "gvas": [GVA], **REGS, **AND_SET}),
    "walk_nested": (walk_nested, {"memory": RAM, "gva": GVA, "second": EPT, **REGS, **AND_SET}),
    "walk_nested, NPT": (walk_nested, {"memory": RAM, "gva": GVA, "second": NPT, **REGS}),
    "walk_nested_many": (
        walk_nested_many, {"memory": RAM, "gvas": [GVA], "second": EPT, **REGS, **HOW}
    ),
    "record_walk": (record_walk, {"memory": RAM, "gva": GVA, "caches": "cold", **REGS, **HOW}),
    "record_walk_nested": (
        record_walk_nested,
        {"memory": RAM, "gva": GVA, "second": EPT, "caches": "cold", **REGS, **HOW},
    ),
    "translate_gpa": (
        translate_gpa, {"memory": RAM, "second": EPT, "gpa": 0, "access": "read", "table": False}
    ),
    "Ept": (Ept, {"eptp": EPT.eptp, "maxphyaddr": 52, "execute_only": True}),
    "Npt": (lambda **how: Npt(**how).mode, {"n_cr3": 0, "levels": 4, "maxphyaddr": 52, "nx": True}),
    "paging_mode": (paging_mode, {"cr0": 0, "cr4": 0, "efer": 0, "maxphyaddr": 52}),
    "access_rules": (
        access_rules,
        {"cr0": 0, "cr4": 0, "efer": 0, "access": "read", "cpl": 0, "ac": False, "implicit": False},
    ),
    "flag_names": (flag_names, {"entry": 7, "level": TABLES.mode.levels[0]}),
    "GuestRam": (GuestRam, {"size": "64K"}),
    "GuestRam.read": (RAM.read, {"gpa": 0, "length": 8}),
    "GuestRam.write": (GuestRam("64K").write, {"gpa": 0, "data": b"x"}),
    "GuestRam.read_u64": (RAM.read_u64, {"gpa": 0}),
    "GuestRam.write_u64": (GuestRam("64K").write_u64, {"gpa": 0, "value": 0}),
    "SparseMemory": (SparseMemory, {"size": 4096}),
    "SparseMemory.write_u64": (SparseMemory(4096).write_u64, {"at": 0, "value": 1}),
    "SparseMemory.write": (SparseMemory(4096).write, {"at": 0, "data": bytes(8)}),
    "Slot": (lambda **how: MemorySlots().set(Slot(**how)), SLOT),
    "Slot in words": (lambda **how: str(Slot(**how)), SLOT),
    "slots.set": (of_slots("set"), {"slot": Slot(3, 0x30_0000, 4096, 0)}),
    "slots.find": (of_slots("find"), {"gpa": 0}),
    "slots.hva": (of_slots("hva"), {"gpa": 0, "access": "write"}),
    "slots.remove": (of_slots("remove"), {"number": 0}),
    "slots.dirty_log": (of_slots("dirty_log"), {"number": 0}),
    "Map": (
        lambda **how: build_tables(GuestRam("1M"), at=0, mapping=[Map(**how)]),
        {"gva": 0, "gpa": 0, "size": 4096, "nx": False, "key": 0, "page": 4096},
    ),
    "build_tables": (
        build_tables,
        {"ram": GuestRam("1M"), "at": 0, "mapping": [Map(0, 0)], "levels": 4, "format": "x86"},
    ),
    "Tables.entry": (TABLES.entry, {"ram": RAM, "gva": GVA, "level": 1}),
    "host_address": (host_address, {"hva": 4096}),
    "four_addresses": (
        four_addresses,
        {"memory": RAM, "slots": slots(), "gva": GVA, **REGS, "access": "read", "cpl": 0},
    ),
    "four_slots": (four_slots, {"position": "away", "hvas": (0, 0x10_0000, 0x20_0000)}),
    "four_rulers": (four_rulers, {"position": "away", "host": HOST}),
    "four_controls": (four_controls, {"host": HOST}),
    "record_four": (
        record_four, {"memory": RAM, "slots": slots(), "gva": GVA, "rulers": NOBODY, **REGS}
    ),
    "record_four_example": (
        record_four_example, {"host": HOST, "gva": GVA, "position": "away", "access": "read"}
    ),
    "rulers_of": (rulers_of, {"mapped": [], "slots": slots(), "host": [], "end": 4096}),
    "host_pages": (host_pages, {"host": "a host", "recorded": "2026-01-01"}),
    "HostPages.save": (HOST.save, {"path": "/dev/null"}),
    "four_opening": (four_opening, {"trace": record_example()}),
    "Level.index": (TABLES.mode.levels[0].index, {"gva": GVA}),
    "WalkMany.part": (walk_many(RAM, [GVA], **REGS).part, {"piece": slice(1)}),
    "NestedMany.part": (walk_nested_many(RAM, [GVA], EPT, **REGS).part, {"piece": slice(1)}),
    "HostPages.load": (HostPages.load, {"path": KEPT}),
    "four_problem": (four_problem, {"seed": 1}),
    "walk_problem": (walk_problem, {"seed": 1}),
    "shadow_problem": (shadow_problem, {"seed": 1}),
    "tlb_problem": (tlb_problem, {"seed": 1}),
    "four mark": (four_problem(1).mark, {"gpa": 1, "hva": 1}),
    "walk mark": (walk_problem(1).mark, {"references": 1, "who": "data"}),
    "shadow mark": (shadow_problem(1).mark, {"letters": "A", "exits": 1}),
    "tlb mark": (tlb_problem(1).mark, {"misses": 1, "old": 1}),
    "batch": (batch, {"pages": 2, "each": False}),
    "record_shadow": (record_shadow, {"strategy": KVM, "deeds": batch(2), "forget": None}),
    "a deed": (
        lambda **how: record_shadow(KVM, [tuple(how.values())]),
        {"what": "move", "page": 0, "letter": "C"},
    ),
    "ShadowGuest": (ShadowGuest, {"strategy": KVM, "forget": None}),
    "guest.do": (of_guest("do"), {"what": "move", "page": 0, "letter": "C"}),
    "guest.write": (of_guest("write"), {"page": 0, "letter": "C"}),
    **{
        f"guest.{name}": (of_guest(name), {"page": 0})
        for name in (
            "address", "entry", "read", "unmap", "invlpg", "guest_entry", "shadow_entry",
            "guest_says", "shadow_says", "table_is_writable",
        )
    },
    "guest.move": (of_guest("move"), {"page": 0, "letter": "C"}),
    "ShadowPager": (
        lambda **how: pager(ShadowPager, **how),
        {**room(), "at": 0, "end": 0x4_0000, **REGS,
         "strategy": KVM, "host_page": 4096, "maxphyaddr": 52, "forget": None},
    ),
    "NestedPager": (
        lambda **how: pager(NestedPager, **how),
        {**room(), "at": 0, "end": 0x4_0000, **REGS, "levels": 4, "maxphyaddr": 52},
    ),
    "pager.walk": (of_pager(ShadowPager, "walk"), {"gva": GVA, **WHO}),
    "pager.set_registers": (
        of_pager(ShadowPager, "set_registers"), {n: REGS[n] for n in ("cr0", "cr4", "efer")}
    ),
    "pager.set_slot": (of_pager(ShadowPager, "set_slot"), {"slot": Slot(5, 0x20_0000, 4096, 0)}),
    "pager.remove_slot": (of_pager(ShadowPager, "remove_slot"), {"number": 0}),
    **{
        f"{kind.__name__}.{name}": (of_pager(kind, name), how)
        for kind in (ShadowPager, NestedPager)
        for name, how in {
            "access": {"gva": GVA, "access": "read", "cpl": 0, "ac": False},
            "load": {"gva": GVA, "cpl": 0},
            "store": {"gva": GVA, "value": 1, "cpl": 0},
            "invlpg": {"gva": GVA},
            "load_cr3": {"cr3": REGS["cr3"]},
        }.items()
    },
    "Strategy": (
        lambda **how: pager(ShadowPager, strategy=Strategy(**how)),
        {"name": "mine", "out_of_sync": False, "prefetch": 1, "flood": 0},
    ),
    "TlbArray": (TlbArray, {"sizes": (4096,), "sets": 1, "ways": 1}),
    "TlbShape": (TlbShape, {"arrays": SPLIT, "structures": {2: 4}}),
    "a TlbShape": (lambda **how: TlbShape(structures={2: how["entries"]}), {"entries": 4}),
    "CachedMmu": (
        lambda **how: CachedMmu(**how).access(GVA),
        {"memory": RAM, **REGS, "shape": None, "maxphyaddr": 52},
    ),
    "mmu.access": (CachedMmu(RAM, **REGS).access, {"gva": GVA, **WHO}),
    "mov_cr0": (of_mmu("mov_cr0"), {"value": REGS["cr0"]}),
    "mov_cr3": (of_mmu("mov_cr3"), {"value": REGS["cr3"]}),
    "mov_cr4": (of_mmu("mov_cr4"), {"value": REGS["cr4"]}),
    "invlpg": (of_mmu("invlpg"), {"gva": GVA}),
    **{f"invpcid {n}": (of_mmu("invpcid"), {"type": n, "pcid": 0, "gva": GVA}) for n in range(4)},
    **{f"invvpid {n}": (of_mmu("invvpid"), {"type": n, "vpid": 1, "gva": GVA}) for n in range(4)},
    "invept": (of_mmu("invept"), {"type": 1, "eptp": EPT.eptp}),
    "vm_entry": (of_mmu("vm_entry"), {**REGS, "vpid": 1, "second": EPT}),
    "vmrun": (of_mmu("vmrun", SvmMmu), {"asid": 1, **REGS, "tlb_control": 0, "second": NPT}),
    "invlpga": (of_mmu("invlpga", SvmMmu), {"gva": GVA, "asid": 1}),
    "latency_curve": (
        latency_curve, {"sizes": ["16K"], "repeats": 1, "loads": 64, "seed": 1},
    ),
    "example_host": (example_host, {"host": "ept"}),
    "record_example": (
        record_example, {"gva": GVA, "guest": "4K", "host": "ept", "access": "kernel"}
    ),
    "walk_opening": (walk_opening, {"trace": record_example()}),
}  # fmt: skip


TRUTHS = {"ac", "implicit", "set_ad", "table", "each"}
"""Yes or no, as Python takes anything for one."""
NAMED = {
    ("GuestRam", "size"): "ram",
    ("a deed", "what"): "deeds",
    ("a TlbShape", "entries"): "structures",
}
FIELDS = [
    (name, field)
    for name, (_, good) in CALLS.items()
    for field in good
    if field not in TRUTHS and not name.endswith(" mark")  # an answer may be anything: it is wrong
]


def test_every_function_stands_here():
    public = {name: getattr(memory, name) for name in memory.__all__}
    asked = {name for name, one in public.items() if isfunction(one) and signature(one).parameters}
    assert asked <= CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_call_is_good_before_one_of_its_arguments_is_not(name):
    act, good = CALLS[name]
    act(**good)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_can_be_no_argument_is_named(name, field):
    act, good = CALLS[name]
    with pytest.raises(BadInput) as told:
        act(**{**good, field: object()})
    assert told.value.field == NAMED.get((name, field), field)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CALLS)
def test_only_our_errors_come_out(name):
    act, good = CALLS[name]
    for field in good:
        for wrong in WRONG:
            try:
                act(**{**good, field: wrong})
            except VmlibError:
                continue
            except Exception as error:
                pytest.fail(f"{field}={wrong!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("field", "wrong", "rule"),
    [
        ("gva", None, "it must be a whole number"),
        ("gva", math.nan, "it must be a whole number"),
        ("gva", -1, "has 64 bits, not -0x1"),
        ("gva", 1 << 64, "has 64 bits, not 0x1"),
        ("cr3", 1 << 64, "has 64 bits, not 0x1"),
        ("cr3", "0x1000", "is '0x1000'; it must be a whole number"),
        ("pkru", 1 << 32, "has 32 bits, not 0x1"),
        ("cr0", -1, "it must be from 0 to"),
        ("cpl", 1.5, "it must be a whole number"),
        ("memory", None, "it must be an object with read_u64, write_u64"),
    ],
)
@pytest.mark.parametrize("act", [walk, translate, walk_nested])
def test_the_field_and_the_rule_are_named(act, field, wrong, rule):
    given = {"memory": RAM, "gva": GVA, **REGS, field: wrong}
    if act is walk_nested:
        given["second"] = EPT
    with pytest.raises(BadInput) as told:
        act(**given)
    assert told.value.field == field
    assert rule in told.value.rule


def test_an_address_may_be_one_of_numpys():
    for levels in (2, 3, 4, 5):
        ram = GuestRam("1M")
        tables = build_tables(ram, at=0x1_0000, mapping=[Map(GVA, 0x9000)], levels=levels)
        for kind in (np.uint64, np.int64):
            assert walk(ram, kind(GVA + 5), **tables.registers).gpa == 0x9005
