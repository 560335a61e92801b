"""What a processor remembers of its page walks: TLB and paging-structure caches.

A TLB entry is a translation: a page number, and what the entries on its way to the page said. A
paging-structure cache entry is the upper part of a walk: the high bits of an address, and the
table that they lead to. A walk that finds one begins there.

Entries carry the names of whom they belong to, so that several address spaces and machines can be
in the cache together: the VPID of the virtual processor (on AMD its ASID), the PCID of the
process, and the EP4TA, the root of the second stage: bits 51:12 of EPTP, called EPTRTA in newer
manuals. A page marked global belongs to all PCIDs.

Here an entry keeps the paging-structure entries as they were read. Silicon keeps what they have
in common: the rights that all grant, the address that the last one holds. The verdict is the same.

Intel SDM vol. 3A, 4.10.2 and 4.10.3; vol. 3C, 29.4.1.

Left out: that a processor drops entries on its own, and fills them for accesses it only guesses;
a second level of TLB, and one for instructions; entries shared by hyper-threads. Replacement is by
least recent use: processors use something cheaper. The manuals name no sizes of paging-structure
caches; those below are ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vmlib.errors import BadInput
from vmlib.given import check_fields
from vmlib.numbers import whole
from vmlib.units import GIB, KIB, MIB

SIZES = (4 * KIB, 2 * MIB, 4 * MIB, GIB)
"""The sizes of pages, in bytes, in the order in which a lookup tries them."""


@dataclass(frozen=True, slots=True)
class TlbArray:
    """`sets` times `ways` entries, for pages of the `sizes` named."""

    sizes: tuple[int, ...]
    sets: int
    ways: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sets < 1 or self.ways < 1:
            raise BadInput("sets, ways", f"are at least 1, not {self.sets} and {self.ways}")
        if unknown := set(self.sizes) - set(SIZES):
            raise BadInput("sizes", f"are those of pages, not {sorted(unknown)}")


SPLIT = (
    TlbArray((4 * KIB,), sets=16, ways=4),
    TlbArray((2 * MIB, 4 * MIB), sets=8, ways=4),
    TlbArray((GIB,), sets=1, ways=4),
)
"""One array for each size of page, as in the first-level data TLB of many Intel processors."""
UNIFIED = (TlbArray(SIZES, sets=128, ways=12),)
"""One array for all sizes."""


@dataclass(frozen=True, slots=True)
class TlbShape:
    """How much is remembered."""

    arrays: tuple[TlbArray, ...] = SPLIT
    """Each size of page must be in one of them, to be cached; a size in none is not."""
    structures: dict[int, int] = field(default_factory=lambda: {2: 32, 3: 8, 4: 4, 5: 2})
    """Entries of the cache for each level of table (2 is the PDE cache); fully associative. A
    level that is missing has no cache."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = [size for array in self.arrays for size in array.sizes]
        if len(sizes) != len(set(sizes)):
            raise BadInput("arrays", "hold each size of page once")
        for level, entries in self.structures.items():
            if level not in (2, 3, 4, 5) or whole(entries, "structures") < 1:
                raise BadInput(
                    "structures", f"are of level 2 to 5, 1 entry and more: {level} has not"
                )


class Tag(NamedTuple):
    """Whose a mapping is."""

    vpid: int
    """0 is the host, and a guest without VPIDs. On AMD the ASID."""
    pcid: int | None
    """None: a global page's, which all PCIDs share; and of mappings that have no linear address."""
    ep4ta: int | None
    """None where no second stage is in use: a *linear* mapping, else a *combined* one."""


class Key(NamedTuple):
    """Where a mapping is found: whose, and which part of the address space.

    That part is the `size` bytes from `number` times `size` on.
    """

    tag: Tag
    size: int
    number: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """What is remembered of a walk, or of the upper part of one."""

    entries: tuple[int, ...]
    """The entries passed, from the root down, with A set."""
    behind: tuple[int, ...] = ()
    """Of a combined mapping: the second stage's entries on the way to where the last one leads."""
    saves: int = 0
    """Memory references that a walk without caches makes for the same."""
    page: int = 0
    """Bytes of the page as the tables have it. An entry may cover less: a part of a large page."""


class SetAssociative:
    """One cache: a key selects a set by its number, and a set keeps the `ways` last used."""

    def __init__(self, sets: int, ways: int) -> None:
        self._ways = ways
        self._sets: list[dict[Key, Mapping]] = [{} for _ in range(sets)]

    def __len__(self) -> int:
        return sum(map(len, self._sets))

    def __iter__(self) -> Iterator[tuple[Key, Mapping]]:
        for one in self._sets:
            yield from one.items()

    def find(self, key: Key) -> Mapping | None:
        """Return what is there, and count it as used."""
        one = self._sets[key.number % len(self._sets)]
        found = one.pop(key, None)
        if found is not None:
            one[key] = found  # a dict keeps its order: the last is the most recent
        return found

    def keep(self, key: Key, mapping: Mapping) -> None:
        """Put a mapping in, in the place of the least recently used where the set is full."""
        one = self._sets[key.number % len(self._sets)]
        one.pop(key, None)
        if len(one) == self._ways:
            del one[next(iter(one))]
        one[key] = mapping

    def drop(self, doomed: Callable[[Key, Mapping], bool]) -> int:
        """Invalidate what is doomed; return how many there were."""
        gone = 0
        for one in self._sets:
            for key in [key for key, mapping in one.items() if doomed(key, mapping)]:
                del one[key]
                gone += 1
        return gone


class TranslationCache:
    """Translations and paging-structure entries of one kind of address."""

    def __init__(self, shape: TlbShape) -> None:
        arrays = [(array.sizes, SetAssociative(array.sets, array.ways)) for array in shape.arrays]
        self._arrays = {size: one for sizes, one in arrays for size in sizes}
        self._all = [one for _, one in arrays]
        self.structures = {
            level: SetAssociative(1, entries) for level, entries in shape.structures.items()
        }

    def __len__(self) -> int:
        """Return how many translations are cached."""
        return sum(map(len, self._all))

    def __iter__(self) -> Iterator[tuple[Key, Mapping]]:
        """Yield the translations."""
        for one in self._all:
            yield from one

    def translation(self, tag: Tag, address: int) -> Mapping | None:
        """Return the translation of the page that holds `address`: the tag's own or a global."""
        for size in SIZES:
            if (array := self._arrays.get(size)) is not None:
                for owner in (tag, tag._replace(pcid=None)):
                    if found := array.find(Key(owner, size, address // size)):
                        return found
        return None

    def structure(
        self, tag: Tag, address: int, sizes: dict[int, int]
    ) -> tuple[int, Mapping] | None:
        """Return the lowest level that is cached for `address`, and its mapping. SDM 4.10.3.2.

        `sizes` has the bytes that one entry of each level spans.
        """
        for level in sorted(sizes):
            if (cache := self.structures.get(level)) is not None:
                size = sizes[level]
                if found := cache.find(Key(tag, size, address // size)):
                    return level, found
        return None

    def keep_translation(self, tag: Tag, address: int, size: int, mapping: Mapping) -> None:
        """Cache a translation of `size` bytes around `address`."""
        if (array := self._arrays.get(size)) is not None:
            array.keep(Key(tag, size, address // size), mapping)

    def keep_structure(self, tag: Tag, level: int, address: int, size: int, what: Mapping) -> None:
        """Cache the upper part of a walk, down to an entry of `level` that spans `size` bytes."""
        if (cache := self.structures.get(level)) is not None:
            cache.keep(Key(tag, size, address // size), what)

    def drop(
        self,
        whose: Callable[[Tag], bool],
        address: int | None = None,
        *,
        all_structures: bool = False,
    ) -> int:
        """Invalidate: all of `whose`, or only what would translate `address`. Return how many.

        `all_structures` drops, in spite of an address, all paging-structure entries of `whose`.
        """

        def translates(key: Key, mapping: Mapping) -> bool:
            if not whose(key.tag):
                return False
            if address is None:
                return True
            # The page as the tables have it: a part of it is invalidated with the whole.
            span = max(key.size, mapping.page)
            return key.number * key.size // span == address // span

        def leads(key: Key, mapping: Mapping) -> bool:
            if not whose(key.tag):
                return False
            return address is None or all_structures or key.number == address // key.size

        gone = sum(one.drop(translates) for one in self._all)
        return gone + sum(one.drop(leads) for one in self.structures.values())
