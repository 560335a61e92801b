"""Shadow pages: the tables that the processor walks in place of the guest's, and who points where.

A shadow page is a real table of 512 entries in host RAM. It stands for one guest table, seen with
the rights that the entries above it grant: a table reached by two ways with different rights has
two shadow pages. A *direct* one stands for no table: it splits a large guest page into smaller
pieces. Upper entries grant everything, leaves hold the rights of the whole way.

Beside the entries stands what is needed to take them back: of each page its parents, of each
guest page the leaves that map it (the reverse map). Names and structure follow Linux
Documentation/virt/kvm/x86/mmu.rst.

Left out: the processor's TLB. A change to an entry holds from the next walk on; who has a TLB
must flush it with each entry that is dropped or loses a right.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Protocol

from vmlib.errors import BadInput
from vmlib.memory.paging import RW, US, A, P
from vmlib.memory.walk import TableMemory
from vmlib.units import PAGE_SIZE

Key = tuple[int, int, int, bool]
_TABLE = P | RW | US | A
_ENTRIES = 512


class HostMemory(TableMemory, Protocol):
    """Where shadow tables are kept: `GuestRam` is one."""

    size: int

    def write(self, gpa: int, data: bytes, /) -> None:
        """Store bytes."""


def page_bytes(level: int) -> int:
    """Return how many bytes a leaf of `level` maps: 4 KiB, 2 MiB, 1 GiB."""
    return 1 << 12 + 9 * (level - 1)


def aligned(gva: int) -> int:
    """Return the address of a word; `BadInput` where it is not a multiple of 8."""
    if gva % 8:
        raise BadInput("gva", f"is a multiple of 8 here, not {gva:#x}")
    return gva


class ShadowPage:
    """One shadow table. Its entries themselves are in host RAM at `hpa`."""

    __slots__ = (
        "children",
        "direct",
        "hpa",
        "leaves",
        "level",
        "parents",
        "rights",
        "table",
        "unsync",
        "writes",
    )

    def __init__(self, hpa: int, key: Key) -> None:
        self.hpa = hpa
        self.table, self.level, self.rights, self.direct = key
        self.unsync = False
        """The guest may write to its table unseen: the leaves may be out of date."""
        self.writes = 0
        """Writes to its table since the page was last of use."""
        self.parents: set[tuple[ShadowPage, int]] = set()
        self.children: dict[int, ShadowPage] = {}
        self.leaves: dict[int, int] = {}
        """Index of each leaf entry, and the guest-physical address that it maps."""

    @property
    def key(self) -> Key:
        """What it stands for."""
        return self.table, self.level, self.rights, self.direct

    def index(self, gva: int) -> int:
        """Return which of its entries `gva` selects."""
        return gva >> 12 + 9 * (self.level - 1) & _ENTRIES - 1

    def __repr__(self) -> str:
        kind = "direct" if self.direct else "unsync" if self.unsync else "sync"
        return f"ShadowPage(table={self.table:#x}, level={self.level}, {kind})"


class ShadowPages:
    """All shadow pages of one VM, in host RAM from `at` to `end`."""

    def __init__(self, host: HostMemory, at: int, end: int, counts: Counter[str]) -> None:
        if at % PAGE_SIZE or not 0 <= at < end <= host.size or end - at < 16 * PAGE_SIZE:
            raise BadInput("at", f"{at:#x}..{end - 1:#x} is no room for 16 pages in host RAM")
        self._host = host
        self._free = list(range(at, end - PAGE_SIZE + 1, PAGE_SIZE))[::-1]
        self._counts = counts
        self._pages: dict[Key, ShadowPage] = {}
        self._of: defaultdict[int, list[ShadowPage]] = defaultdict(list)
        # By level and guest-physical address: the leaves that map it.
        self._maps: defaultdict[tuple[int, int], set[tuple[ShadowPage, int]]]
        self._maps = defaultdict(set)

    def __iter__(self) -> Iterator[ShadowPage]:
        return iter(self._pages.values())

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def room(self) -> int:
        """How many more pages there can be."""
        return len(self._free)

    def of(self, gpa: int) -> list[ShadowPage]:
        """Return the shadow pages of the guest table in the page at `gpa`; most have none."""
        return list(self._of.get(gpa & -PAGE_SIZE, ()))

    def tables_in(self, gpa: int, size: int) -> bool:
        """Say whether any guest table in these bytes has a shadow page."""
        return any(gpa <= table < gpa + size for table, pages in self._of.items() if pages)

    def find(self, key: Key) -> ShadowPage | None:
        """Return the shadow page of this key, if there is one."""
        return self._pages.get(key)

    def create(self, key: Key) -> ShadowPage:
        """Return a new, empty shadow page."""
        page = ShadowPage(self._free.pop(), key)
        self._host.write(page.hpa, bytes(PAGE_SIZE))
        self._pages[key] = page
        if not page.direct:
            self._of[page.table].append(page)
        self._counts["pages created"] += 1
        return page

    def link(self, page: ShadowPage, index: int, child: ShadowPage) -> None:
        """Let an upper entry point to a shadow page."""
        self.drop(page, index)
        page.children[index] = child
        child.parents.add((page, index))
        self._host.write_u64(page.hpa + 8 * index, child.hpa | _TABLE)

    def entry(self, page: ShadowPage, index: int) -> int:
        """Return an entry as the processor reads it."""
        return self._host.read_u64(page.hpa + 8 * index)

    def set_leaf(self, page: ShadowPage, index: int, gpa: int, entry: int) -> bool:
        """Let an entry map the guest page at `gpa`; return whether that is new."""
        if page.leaves.get(index) != gpa:
            self.drop(page, index)
        page.leaves[index] = gpa
        self._maps[page.level, gpa].add((page, index))
        at = page.hpa + 8 * index
        new = self._host.read_u64(at) != entry
        self._host.write_u64(at, entry)
        return new

    def drop(self, page: ShadowPage, index: int) -> None:
        """Let an entry be not present. What it pointed to stays, and may be used again."""
        if child := page.children.pop(index, None):
            child.parents.remove((page, index))
        elif index in page.leaves:
            gpa = page.leaves.pop(index)
            self._maps[page.level, gpa].remove((page, index))
        else:
            return
        self._host.write_u64(page.hpa + 8 * index, 0)

    def protect(self, gpa: int) -> None:
        """Take the right to write from every leaf that maps the guest page at `gpa`."""
        for level in (1, 2, 3):
            for page, index in self._maps.get((level, gpa & -page_bytes(level)), ()):
                at = page.hpa + 8 * index
                self._host.write_u64(at, self._host.read_u64(at) & ~RW)

    def path(self, root: ShadowPage, gva: int) -> list[ShadowPage]:
        """Return the shadow pages that a walk of `gva` from `root` passes."""
        passed = [root]
        while child := passed[-1].children.get(passed[-1].index(gva)):
            passed.append(child)
        return passed

    def unsync_below(self, page: ShadowPage) -> list[ShadowPage]:
        """Return the pages below this one that may be out of date."""
        found: dict[ShadowPage, None] = {}
        seen: set[ShadowPage] = set()
        open_ = [page]
        while open_:
            for child in open_.pop().children.values():
                if child not in seen:
                    seen.add(child)
                    open_.append(child)
                    if child.unsync:
                        found[child] = None
        return list(found)

    def zap(self, page: ShadowPage) -> None:
        """Throw a shadow page away, and with it those below that are out of date."""
        below = self.unsync_below(page)
        for one in (*below, page):
            if self._pages.get(one.key) is not one:
                continue
            for index in (*one.children, *one.leaves):
                self.drop(one, index)
            for parent, index in list(one.parents):
                self.drop(parent, index)
            del self._pages[one.key]
            if not one.direct:
                self._of[one.table].remove(one)
            self._free.append(one.hpa)
            self._counts["pages zapped"] += 1

    def zap_all(self) -> None:
        """Throw all away."""
        for page in list(self._pages.values()):
            if self._pages.get(page.key) is page:
                self.zap(page)
