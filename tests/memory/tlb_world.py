"""A machine whose caches are full, and what of it an instruction drops."""

from dataclasses import dataclass

from test_nested import Inside

from vmlib.memory import (
    CachedMmu,
    Ept,
    GuestRam,
    Map,
    Npt,
    SvmMmu,
    TlbArray,
    TlbShape,
    build_tables,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PGE, PCIDE = 1 << 7, 1 << 17
X, Y, Z = 0x40_0000, 0x80_0040_0000, 0x100_0040_0000
"""Two pages, and a global one: each behind tables of its own, from the PML4E down."""
PAGES = {X: "X", Y: "Y", Z: "Z"}
ROOMY = TlbShape(
    (TlbArray((4 * KIB, 2 * MIB, 4 * MIB, GIB), 64, 64),), {2: 500, 3: 500, 4: 500, 5: 500}
)
MACHINES = {0: 4 * MIB, 1: 8 * MIB, 2: 12 * MIB, 3: 16 * MIB}
"""Where the memory of each stands in the host's. Machine 0 is the host itself, 1 and 2 run with
VPIDs of these numbers, 3 without."""


@dataclass(frozen=True)
class M:
    """A mapping in the caches."""

    kind: str  # "linear", "combined", "guest-physical"
    vpid: int
    pcid: int | None
    ep: str  # "", "a", "b"
    page: str  # "X", "Y", "Z"; "" of guest-physical ones
    level: int  # 1: a translation


class World:
    """20 MiB of host memory, in it four machines of three processes each, and two EPTs."""

    def __init__(self, shape=ROOMY, svm=False, ad=False):
        self.ram = GuestRam("20M")
        # EPT "a" and "b" are two roots of equal content.
        parts = [
            at + pcid * MIB + part
            for at in MACHINES.values()
            for pcid in (0, 1, 2)
            for part in (0, 0x8_0000)
        ]
        guest_memory = [Map(0, 0, 0x1_0000), *(Map(at, at, 0x1_0000) for at in parts)]
        format = "x86" if svm else "ept"
        tables = [
            build_tables(self.ram, at=at, mapping=guest_memory, format=format)
            for at in (0x10_0000, 0x20_0000)
        ]
        if svm:
            self.second = {name: Npt(t.root) for name, t in zip("ab", tables, strict=True)}
        else:
            bits = 1 << 6 if ad else 0
            self.second = {name: Ept(t.eptp | bits) for name, t in zip("ab", tables, strict=True)}
        self.nested = dict(zip("ab", tables, strict=True))
        self.tables, self.regs = {}, {}
        for vpid, at in MACHINES.items():
            for pcid in (0, 1, 2):
                base = at + pcid * MIB
                data = base + 0x8_0000
                mapping = [
                    Map(X, data),
                    Map(Y, data + 0x1000),
                    Map(Z, data + 0x2000, shared=True),
                ]
                tables = build_tables(self.ram, at=base, mapping=mapping)
                regs = tables.registers
                regs = {**regs, "cr3": regs["cr3"] | pcid, "cr4": regs["cr4"] | PGE | PCIDE}
                self.tables[vpid, pcid], self.regs[vpid, pcid] = tables, regs
        self.mmu = (SvmMmu if svm else CachedMmu)(self.ram, **self.regs[0, 1], shape=shape)

    def data(self, vpid, pcid, gva):
        """Where a page leads as the tables were built."""
        return MACHINES[vpid] + pcid * MIB + 0x8_0000 + 0x1000 * "XYZ".index(PAGES[gva])

    def enter(self, vpid, pcid, ep="", machine=None, **more):
        """Enter a guest; `machine` says whose tables, if not those of the VPID's number."""
        regs = self.regs[vpid if machine is None else machine, pcid]
        second = self.second[ep] if ep else None
        if isinstance(self.mmu, SvmMmu):
            self.mmu.vmrun(asid=vpid, second=second, **regs, **more)
        else:
            self.mmu.vm_entry(vpid=vpid, second=second, **regs, **more)

    def touch(self, *pages):
        return [self.mmu.access(page) for page in pages or (X, Y, Z)]

    def entry(self, vpid, pcid, gva, level=1):
        """Where a table entry is."""
        return self.tables[vpid, pcid].entry(self.ram, gva, level)

    def edit(self, change, vpid, pcid, gva, level=1):
        """Change a table entry in memory, and invalidate nothing."""
        at = self.entry(vpid, pcid, gva, level)
        self.ram.write_u64(at, change(self.ram.read_u64(at)))

    def mappings(self):
        """All that is cached."""
        names = {
            second.root if isinstance(second, Ept) else 0: name
            for name, second in self.second.items()
        }
        found = set()
        for cache, physical in ((self.mmu.linear, False), (self.mmu.physical, True)):
            levels = [(1, key) for key, _ in cache]
            levels += [(n, key) for n, one in cache.structures.items() for key, _ in one]
            for level, key in levels:
                kind = "guest-physical" if physical else "combined"
                if key.tag.ep4ta is None:
                    kind = "linear"
                ep = "" if key.tag.ep4ta is None else names[key.tag.ep4ta]
                page = next((n for gva, n in PAGES.items() if gva // key.size == key.number), "")
                where = f"{key.number * key.size:#x}" if physical else page
                found.add(M(kind, key.tag.vpid, key.tag.pcid, ep, where, level))
        return found


def full(svm=False):
    """A world in which every machine and process has run, with and without a second stage."""
    world = World(svm=svm)
    for pcid in (2, 1):
        world.mmu.mov_cr3(world.regs[0, pcid]["cr3"] | 1 << 63)
        world.touch()
    for vpid in (1, 2):
        for ep in ("",) if svm and vpid == 1 else ("a",) if svm else ("", "a", "b"):
            for pcid in (1, 2):
                world.enter(vpid, pcid, ep)
                world.touch()
                world.mmu.vm_exit()
    return world


def dropped(world, operation):
    """What an operation takes out of the caches. It must put nothing in."""
    before = world.mappings()
    operation(world.mmu)
    after = world.mappings()
    assert after <= before
    return before - after


__all__ = ["GIB", "KIB", "MIB", "PCIDE", "PGE", "ROOMY", "Inside", "M", "World", "X", "Y", "Z"]
