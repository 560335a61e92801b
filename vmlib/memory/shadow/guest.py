"""A guest small enough to watch: a few pages of its own, and the table that says which they are.

Page n of the guest's is the frame with letter n in the beginning, and the guest may give it
another one by writing an entry of its page table, which it sees in memory as any kernel sees its
own. All of it has been used before the watching starts, so that what traps from then on is what
the guest changes.

    guest = ShadowGuest(OUT_OF_SYNC)
    guest.move(0, "C")      # write the entry of page 0
    guest.read(0)           # "A": nobody has told the processor
    guest.invlpg(0)
    guest.read(0)           # "C"

`NESTED` is nested paging, for comparison. Left out: all that a kernel does besides.
"""

from typing import Literal

from vmlib.errors import BadInput, Unsupported
from vmlib.given import names_bad_input
from vmlib.memory.ram import GuestRam
from vmlib.memory.shadow.nested_pager import NestedPager
from vmlib.memory.shadow.pager import ShadowPager
from vmlib.memory.shadow.strategy import Forget, ShadowAccess, Strategy
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.tables import Map, build_tables
from vmlib.numbers import whole
from vmlib.units import KIB, MIB, PAGE_SIZE

NESTED = Strategy("nested paging")
"""Not a way to keep shadow tables: the processor walks both stages, and there are none."""

PAGES = 64
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
"""The first word of each of the guest's 64 frames."""
_FIRST, _FRAMES, _TABLES, _WINDOW = 0x40_0000, 0x4_0000, 0x1_0000, 0x1000_0000
_GUEST = MIB
_RIGHTS = 0x7  # P, RW, US; A and D clear, as a kernel writes a new entry

Done = tuple[str, ShadowAccess | None]
"""What the guest got (a letter, or a word), and how the access went; None for no access."""


class _Inside:
    """The guest's memory in the host's, for those who build its tables."""

    size = 512 * KIB

    def __init__(self, host: GuestRam) -> None:
        self._host = host

    def read_u64(self, gpa: int) -> int:
        return self._host.read_u64(_GUEST + gpa)

    def write(self, gpa: int, data: bytes) -> None:
        self._host.write(_GUEST + gpa, data)


class ShadowGuest:
    """The guest and its hypervisor's pager. `forget` is that of `ShadowPager`.

    With `used` False nothing has been touched yet, by anybody.
    """

    @names_bad_input
    def __init__(
        self, strategy: Strategy, *, forget: Forget | None = None, used: bool = True
    ) -> None:
        self.strategy = strategy
        self.host = GuestRam(2 * MIB)
        self._inside = _Inside(self.host)
        mapping = [Map(_FIRST, _FRAMES, PAGES * PAGE_SIZE), Map(_WINDOW, 0, self._inside.size)]
        self._tables = build_tables(self._inside, at=_TABLES, mapping=mapping)
        for number, letter in enumerate(LETTERS):
            self.host.write_u64(_GUEST + _FRAMES + number * PAGE_SIZE, ord(letter))
        slots = MemorySlots()
        slots.set(Slot(0, 0, self._inside.size, _GUEST))
        registers = self._tables.registers
        self.pager: ShadowPager | NestedPager
        if strategy is NESTED:
            self.pager = NestedPager(self.host, slots, at=0, end=MIB, **registers)
        else:
            self.pager = ShadowPager(
                self.host, slots, at=0, end=MIB, strategy=strategy, forget=forget, **registers
            )
        if used:
            for number in range(PAGES):
                self.pager.access(_FIRST + number * PAGE_SIZE, "write")
            self.pager.access(self.entry(0))  # seen, and not written yet
            self.pager.traps.clear()

    @property
    def exits(self) -> int:
        """How often the guest was left since the watching started."""
        return sum(self.pager.traps.values())

    def address(self, page: int) -> int:
        """Return the guest's address of one of its pages."""
        return _FIRST + whole(page, "page", 0, PAGES - 1) * PAGE_SIZE

    def entry(self, page: int) -> int:
        """Return the address at which the guest sees the table entry of a page."""
        return _WINDOW + self._tables.entry(self._inside, self.address(page))

    def read(self, page: int) -> str:
        """The guest reads its page: return the letter there, or "page fault"."""
        return self.do("read", page)[0]

    def write(self, page: int, letter: str) -> None:
        """The guest writes a letter to its page."""
        self.do("write", page, letter)

    def move(self, page: int, letter: str) -> None:
        """The guest writes the entry of a page: it shall be the frame of this letter."""
        self.do("move", page, letter)

    def unmap(self, page: int) -> None:
        """The guest writes the entry of a page: it shall not be there."""
        self.do("unmap", page)

    def invlpg(self, page: int) -> None:
        """The guest executes INVLPG for a page."""
        self.do("invlpg", page)

    def load_cr3(self) -> None:
        """The guest loads CR3, with the value that is there."""
        self.do("load cr3")

    @names_bad_input
    def do(
        self,
        what: Literal["read", "write", "move", "unmap", "invlpg", "load cr3"] | str,
        page: int = 0,
        letter: str = "",
    ) -> Done:
        """Do one of these things by its name; return what the guest got, and the access."""
        if what == "load cr3":
            self.pager.load_cr3(self._tables.root)
            return "", None
        gva = self.address(page)
        if what == "invlpg":
            self.pager.invlpg(gva)
            return "", None
        if what == "read":
            done = self.pager.access(gva)
            if done.hpa is None:
                return "page fault", done
            return chr(self.host.read_u64(done.hpa)), done
        if what == "write":
            return "", self.pager.store(gva, ord(self._letter(letter)))
        if what == "move":
            frame = _FRAMES + LETTERS.index(self._letter(letter)) * PAGE_SIZE
            return "", self.pager.store(self.entry(page), frame | _RIGHTS)
        if what == "unmap":
            return "", self.pager.store(self.entry(page), 0)
        raise BadInput("what", f"{what!r} is nothing that this guest does")

    def guest_entry(self, page: int) -> int:
        """Return the entry of a page in the guest's own table, which holds a guest address."""
        return self._inside.read_u64(self.entry(page) - _WINDOW)

    def shadow_entry(self, page: int) -> int:
        """Return the entry of a page in the shadow table, which holds a host address; or 0."""
        if isinstance(self.pager, NestedPager):
            raise Unsupported("under nested paging there is no shadow table")
        entries = self.pager.walk(self.address(page)).entries
        return entries[-1] if len(entries) == len(self._tables.mode.levels) else 0

    def guest_says(self, page: int) -> str:
        """Return what the guest's own entry says: a letter, or "–" where it is not present."""
        entry = self.guest_entry(page)
        if not entry & 1:
            return "–"
        return LETTERS[((entry & (1 << 52) - PAGE_SIZE) - _FRAMES) // PAGE_SIZE]

    def shadow_says(self, page: int) -> str:
        """Return where the processor goes without asking: a letter, or "–" where it must ask."""
        if isinstance(self.pager, NestedPager):
            return self.guest_says(page)
        hpa = self.pager.walk(self.address(page)).gpa
        return "–" if hpa is None else LETTERS[(hpa - _GUEST - _FRAMES) // PAGE_SIZE]

    def table_is_writable(self, page: int = 0) -> bool:
        """Say whether the guest can write to the entry of a page without being seen."""
        if isinstance(self.pager, NestedPager):
            return True
        return self.pager.walk(self.entry(page), access="write").fault is None

    @staticmethod
    def _letter(letter: str) -> str:
        if not isinstance(letter, str) or len(letter) != 1 or letter not in LETTERS:
            raise BadInput("letter", f"is one of {LETTERS}, not {letter!r}")
        return letter
