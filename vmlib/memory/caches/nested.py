"""A 2-D walk that begins where the caches leave off.

The walk is that of `walk_nested`, over caches as `walk` has it. A linear address is looked
for among the *combined* mappings, which know the guest's entries and where they stand in the
host's memory, and so save the nested references too. Each guest-physical address that is then
still to be translated is looked for among the *guest-physical* mappings.

Intel SDM vol. 3C, 29.4.2. Left out: with paging off in the guest no combined mapping is made.
"""

from vmlib.memory.caches.tlb import Mapping
from vmlib.memory.caches.walk import (
    CachedWalk,
    Caches,
    Known,
    Shortcut,
    keep_page,
    keep_structure,
    linear_address,
    look_up,
    marked,
    second_dirty,
    second_marks,
    words,
)
from vmlib.memory.nested import GuestMemory, follow_nested
from vmlib.memory.paging import ERROR_W, NAMES, Access, AccessRules, D, PagingMode
from vmlib.memory.second_stage import SecondStage, Translation, through
from vmlib.memory.walk import TableMemory

PHYSICAL_TLB = "guest-physical TLB"


class _CachedGuest(GuestMemory):
    """Guest-physical memory of which the caches know a part."""

    def __init__(
        self,
        memory: TableMemory,
        second: SecondStage,
        mode: PagingMode | None,
        gva: int,
        known: Mapping,
        caches: Caches,
    ) -> None:
        super().__init__(memory, second, mode, gva)
        self._ready = words(known.entries, gva, mode)
        self._behind = known.behind
        self._caches = caches
        self._sizes = {n: 1 << 12 + 9 * (n - 1) for n in range(2, second.levels + 1)}
        self._passed: dict[int, tuple[int, ...]] = {}
        self.saved = known.saves
        self.shortcuts: list[Shortcut] = []

    def read_u64(self, gpa: int) -> int:
        """Return the word around the guest entry at `gpa`, or what is known of it."""
        if self._column < len(self._ready):
            self._column += 1
            return self._ready[self._column - 1]
        return super().read_u64(gpa)

    def second_stage(self, gpa: int, access: Access, table: bool) -> tuple[Translation, int]:
        """Translate, with as little reading as the caches allow."""
        if self._behind:  # a combined mapping knows this way to its end
            rows, self._behind = self._behind, ()
        else:
            rows = self._physical(gpa, access)
            self.saved += len(rows)
        seen = Known(self.host, rows)
        done = through(seen, self.second, gpa, access, table)
        self._passed[gpa >> 12] = tuple(entry for _, _, entry in done.passed)
        return done, len(rows)

    def again(self, gpa: int, access: Access) -> Translation:
        """Translate as it was done on the way, though tables may have changed since."""
        seen = Known(self.host, self._passed[gpa >> 12])
        return through(seen, self.second, gpa, access, True)

    def _physical(self, gpa: int, access: Access) -> tuple[int, ...]:
        """Return the nested entries that guest-physical mappings know for an address."""
        cache, tag = self._caches.physical, self._caches.physical_tag
        found = cache.translation(tag, gpa)
        if found and (access != "write" or second_dirty(found.entries, self.second)):
            self.shortcuts.append(Shortcut(PHYSICAL_TLB, self._column, self.second.levels))
            return found.entries
        if upper := cache.structure(tag, gpa, self._sizes):
            number, mapping = upper
            name = f"guest-physical {NAMES[number]} cache"
            self.shortcuts.append(Shortcut(name, self._column, len(mapping.entries)))
            return mapping.entries
        return ()


def walk_nested_cached(
    memory: TableMemory,
    caches: Caches,
    gva: int,
    second: SecondStage,
    cr3: int,
    mode: PagingMode | None,
    rules: AccessRules,
    pkru: int,
    access: Access,
) -> CachedWalk:
    """Translate one access through the caches and both stages; fill the caches on success."""
    address = linear_address(gva, mode)
    known, shortcuts = look_up(caches, address, second, mode, rules)
    seen = _CachedGuest(memory, second, mode, gva, known, caches)
    found = follow_nested(seen, cr3, rules, pkru, access, set_ad=True)
    if found.hpa is not None:
        dirty = D if rules.error_code & ERROR_W else 0
        _fill(caches, address, known, seen, dirty, found.page_size)
    return CachedWalk(
        gva,
        found.gpa,
        found.hpa,
        found.page_size,
        found.fault,
        found.exit,
        found.steps,
        seen.saved,
        (*shortcuts, *seen.shortcuts),
    )


def _fill(
    caches: Caches, address: int, known: Mapping, seen: _CachedGuest, dirty: int, size: int
) -> None:
    """Cache what a walk has read: `size` bytes are the smaller page of both stages."""
    rows = [_second_marked(done, seen.second, kind) for done, kind in seen.done]
    for (done, _), entries in zip(seen.done, rows, strict=True):
        _keep_physical(caches, done, entries)
    mode, first = seen.mode, len(known.entries)
    if mode is None or first == len(seen.entries):
        return
    passed = marked(seen.entries, mode, dirty)
    page = mode.levels[len(passed) - 1].page_size
    # `cost` covers the entries so far, and the way to the table that the last one points to.
    cost = known.saves or len(rows[0])
    for count, behind in enumerate(rows[1:], start=first + 1):
        cost += 1 + len(behind)
        if count < len(passed):
            keep_structure(caches, address, mode, Mapping(passed[:count], behind, cost))
        else:
            keep_page(caches, address, size, Mapping(passed, behind, cost, page))


def _second_marked(done: Translation, second: SecondStage, access: Access) -> tuple[int, ...]:
    """Return nested entries as they stand in memory once their A and D are set."""
    accessed, dirty = second_marks(second)
    *upper, leaf = (entry | accessed for _, _, entry in done.passed)
    return (*upper, leaf | (dirty if access == "write" else 0))


def _keep_physical(caches: Caches, done: Translation, entries: tuple[int, ...]) -> None:
    """Cache a guest-physical translation, and the tables on its way."""
    cache, tag = caches.physical, caches.physical_tag
    for count, (level, _, _) in enumerate(done.passed[:-1], start=1):
        size = 1 << 12 + 9 * (level - 1)
        cache.keep_structure(tag, level, done.gpa, size, Mapping(entries[:count], (), count))
    whole = Mapping(entries, (), len(entries), done.page_size)
    cache.keep_translation(tag, done.gpa, done.page_size, whole)
