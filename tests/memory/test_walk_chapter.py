"""What the chapter on the 2-D walk says in words, held against the model."""

import re

from vmlib.memory import CachedMmu, Ept, example_host, record_example, walk_nested
from vmlib.memory.walk_example import PLACES, START

PAGE = "book/memory/two-dimensional-walk.md"
HOST = {"cr0": 0x8001_0011, "cr3": 0, "cr4": 0x20, "efer": 0xD00}
PAGES = (0x5555_5555_4000, 0x5555_5555_5000, 0x5555_5555_6000, 0x5555_5575_8000,
         0x5555_5575_9000, 0x7F3C_2A40_1000, 0x7FFF_FFFF_D000, 0x7FFF_FFFF_E000)  # fmt: skip


def inside(at, vpid):
    cpu = CachedMmu(at.memory, maxphyaddr=48, **HOST)
    cpu.vm_entry(vpid=vpid, second=at.second, **at.registers["4K"])
    return cpu


def test_the_predictions():
    assert record_example().counters["references"] == 24
    assert record_example(host="ept-1G").counters["references"] == 14
    assert len(record_example().steps) - 1 == 25, "where the verdict jumps to"


def test_what_to_look_for():
    for guest, host, gone in (("2M", "ept", 5), ("4K", "ept-2M", 5), ("2M", "ept-2M", 9)):
        assert record_example(guest=guest, host=host).counters["saved by large pages"] == gone
    addresses = {name: gva for gva, name in PLACES.items()}
    for name, access in (
        ("swapped page", "read"), ("swapped table", "read"), ("watched page", "write"),
    ):  # fmt: skip
        with_small, with_large = (
            record_example(addresses[name], host=host, access=access).steps[-1].event
            for host in ("ept", "ept-2M")
        )
        assert (with_small, with_large) == ("exit", "arrived"), name
    warm = record_example(access="next")
    assert (warm.counters["saved by caches"], warm.counters["references"]) == (19, 5)
    tables = record_example(addresses["the tables"], access="kernel")
    own = {s.state["cell"]["entry"] for s in tables.steps if s.event == "guest"}
    assert len(own) == 1


def test_the_caches_of_the_text():
    cpu = inside(example_host("ept"), 1)
    cost = [len(cpu.access(gva, cpl=3).steps) for gva in
            (START, START + 1, 0x5555_5555_5000, 0x5555_5575_8010, 0x7FFF_FFFF_D008)]  # fmt: skip
    assert cost[:4] == [24, 0, 2, 5]
    assert cost[4] < 24, "the stack is helped too"


def test_a_hundred_times_left_with_a_vpid_and_without(root):
    text = (root / PAGE).read_text()
    misses, references = {}, {}
    for vpid in (0, 1):
        at = example_host("ept")
        cpu = inside(at, vpid)
        for _ in range(100):
            for gva in PAGES:
                cpu.access(gva, cpl=3)
            cpu.vm_exit()
            cpu.vm_entry(vpid=vpid, second=at.second, **at.registers["4K"])
        misses[vpid], references[vpid] = cpu.counters.misses, cpu.counters.references
    assert f"{misses[0]} misses against {misses[1]}" in text
    said = re.search(r"only some ([\d,]+) references and not ([\d,]+)", text)
    assert int(said[1].replace(",", "")) == round(references[0], -2)
    assert int(said[2].replace(",", "")) == misses[0] * 24


def test_four_pages_become_dirty_by_reading():
    at = example_host("ept")
    before = dict(at.memory.words())
    second = Ept(at.second.eptp | 1 << 6, 48)
    how = {"cpl": 3, "maxphyaddr": 48, **at.registers["4K"]}
    walk_nested(at.memory, START, second, set_ad=True, **how)
    dirty = [a for a, v in at.memory.words() if (v ^ before[a]) & 1 << 9]
    accessed = [a for a, v in at.memory.words() if v ^ before[a] == 1 << 5]
    assert (len(dirty), len(accessed)) == (4, 4)


def test_entering_again_mends_no_forgotten_invept():
    for vpid in (0, 1):
        at = example_host("ept")
        how = {"cpl": 3, "maxphyaddr": 48, **at.registers["4K"]}
        cpu = inside(at, vpid)
        old = cpu.access(START, cpl=3).hpa
        leaf = walk_nested(at.memory, START, at.second, **how).steps[-1].hpa
        at.memory.write_u64(leaf, 0x1_7777_7000 | 0x37)
        cpu.vm_exit()
        cpu.vm_entry(vpid=vpid, second=at.second, **at.registers["4K"])
        assert cpu.access(START, cpl=3).hpa == old
        cpu.vm_exit()
        cpu.invept(1, at.second.eptp)
        cpu.vm_entry(vpid=vpid, second=at.second, **at.registers["4K"])
        assert cpu.access(START, cpl=3).hpa == 0x1_7777_7123


def test_the_exit_of_a_watched_table_says_read_and_write_and_a_table():
    at = example_host("ept")
    how = {"cpl": 3, "maxphyaddr": 48, **at.registers["4K"]}
    table = walk_nested(at.memory, START, at.second, **how).steps[18]
    at.memory.write_u64(table.hpa, table.entry & ~2)
    assert walk_nested(at.memory, START, at.second, **how).hpa
    left = walk_nested(at.memory, START, Ept(at.second.eptp | 1 << 6, 48), **how).exit
    assert left.qualification & 0x103 == 3
