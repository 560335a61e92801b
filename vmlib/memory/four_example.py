"""A small machine for the four rulers: a guest's tables, three memory slots, one of which moves.

Slot 0 is RAM from GPA 0 on and holds the tables; slot 1 is RAM that the reader may put elsewhere
or take away; slot 2 is a ROM. Each is a piece of the process's own memory. `host_pages` records
where the host's kernel has put their pages, as far as it tells: some are left untouched on
purpose, and have none. A page can carry such a recording, since no browser has a page map.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from vmlib.errors import BadInput
from vmlib.given import check_one, names_bad_input
from vmlib.memory.four import HostAddress, host_address
from vmlib.memory.four_trace import Rulers, Segment, record_four, rulers_of
from vmlib.memory.ram import GuestRam
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.sparse import SparseMemory
from vmlib.memory.tables import Map, build_tables
from vmlib.trace import Trace
from vmlib.units import KIB, MIB, PAGE_SIZE

START = 0x7FFF_FFFF_D123
END = MIB
"""The guest-physical addresses that are drawn end here."""
SIZES = (256 * KIB, 128 * KIB, 64 * KIB)
POSITIONS = {"0x80000": "at GPA 0x80000", "0xc0000": "at GPA 0xc0000", "away": "taken away"}
ACCESSES = {"read": "load", "write": "store"}
PLACES = {
    START: "the stack",
    0x40_0678: "the program",
    0x5555_5555_0010: "a device",
    0xFFFF_8000_0008_2123: "the kernel's map",
    0xFFFF_8000_000F_0040: "the ROM",
    0x7FFF_FFFF_E010: "a page never used",
    0x40_4000: "nowhere",
}
UNTOUCHED = tuple(range(48, 52)) + tuple(range(64 + 8, 64 + 12))
"""Pages that nobody has used when the host is asked, counted through slots 0 and 1."""
_TABLES = 0x2_0000
_MAPPED: tuple[Segment, ...] = (
    ("program", 0x40_0000, 0x4000),
    ("device", 0x5555_5555_0000, 0x3000),
    ("stack", 0x7FFF_FFFF_C000, 0x4000),
    ("kernel's map", 0xFFFF_8000_0000_0000, 2 * MIB),
)
_PAGES = {
    "program": (0x1_2000, 0x1_0000, 0x3_0000, 0x1_1000),
    "device": (0xC_0000, 0xC_1000, 0xC_2000),
    "stack": (0x8_3000, 0x8_2000, 0x8_8000, 0x8_0000),
}


class HostPages(NamedTuple):
    """Where the slots are in a process (HVA), and where the host has put their pages (HPA)."""

    hvas: tuple[int, int, int]
    pages: Mapping[int, int]
    host: str
    recorded: str

    def address(self, hva: int) -> HostAddress:
        """Answer as `host_address` does, from the recording."""
        page = self.pages.get(hva & -PAGE_SIZE)
        if page is None:
            return HostAddress(None, "no page yet: the host gives one at the first access")
        return HostAddress(page | hva % PAGE_SIZE, "recorded")

    @classmethod
    @names_bad_input
    def load(cls, path: str | Path) -> Self:
        """Read a recording; `BadInput` names the file where it is none."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            first, second, third = (int(one, 16) for one in plain["hvas"])
            pages = {int(hva, 16): int(hpa, 16) for hva, hpa in plain["pages"]}
            return cls((first, second, third), pages, plain["host"], plain["recorded"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(Path(path).name, f"is no recording of host pages: {error}") from None

    @names_bad_input
    def save(self, path: str | Path) -> None:
        """Write it down."""
        plain = {
            "host": self.host,
            "recorded": self.recorded,
            "hvas": [f"{hva:#x}" for hva in self.hvas],
            "pages": [[f"{hva:#x}", f"{hpa:#x}"] for hva, hpa in sorted(self.pages.items())],
        }
        Path(path).write_text(json.dumps(plain, indent=0) + "\n", encoding="utf-8")


def host_pages(host: str, recorded: str) -> HostPages:
    """Ask this host's kernel, live: three pieces of memory, and the page map. Needs root.

    `pages` is empty where the host hides its page frames.
    """
    check_one(host, str, "host")
    check_one(recorded, str, "recorded")
    pieces = [GuestRam(size) for size in SIZES]
    every = [piece.hva + at for piece in pieces for at in range(0, piece.size, PAGE_SIZE)]
    for number, piece in enumerate(pieces):
        skip = len(every[: sum(SIZES[:number]) // PAGE_SIZE])
        for n in range(piece.size // PAGE_SIZE):
            if skip + n not in UNTOUCHED:
                piece.view[n * PAGE_SIZE] = 1
    found = {hva: host_address(hva).hpa for hva in every}
    pages = {hva: hpa for hva, hpa in found.items() if hpa is not None}
    first, second, third = (piece.hva for piece in pieces)
    for piece in pieces:
        piece.close()
    return HostPages((first, second, third), pages, host, recorded)


@names_bad_input
def four_slots(position: str, hvas: tuple[int, int, int]) -> MemorySlots:
    """Return the three slots, the second of them at one of `POSITIONS`."""
    if position not in POSITIONS:
        raise BadInput("position", f"is one of {', '.join(POSITIONS)}, not {position!r}")
    slots = MemorySlots()
    slots.set(Slot(0, 0, SIZES[0], hvas[0]))
    if position != "away":
        slots.set(Slot(1, int(position, 16), SIZES[1], hvas[1]))
    slots.set(Slot(2, 0xF_0000, SIZES[2], hvas[2], readonly=True))
    return slots


def four_tables() -> tuple[SparseMemory, dict[str, int]]:
    """Return the guest's memory with its tables, and the registers they are walked with."""
    memory = SparseMemory(SIZES[0])
    mapping = [Map(0xFFFF_8000_0000_0000, 0, 2 * MIB, user=False, page=2 * MIB)]
    for name, first, _ in _MAPPED:
        pages = _PAGES.get(name, ())
        mapping += [Map(first + n * PAGE_SIZE, gpa) for n, gpa in enumerate(pages)]
    tables = build_tables(memory, at=_TABLES, mapping=mapping)
    return memory, tables.registers


@names_bad_input
def four_rulers(position: str, host: HostPages) -> Rulers:
    """Return the rulers of the example."""
    return rulers_of(_MAPPED, four_slots(position, host.hvas), host.pages.values(), END)


@names_bad_input
def record_four_example(
    host: HostPages, gva: int = START, position: str = "0x80000", access: str = "read"
) -> Trace:
    """Return the trace of one access; `position` and `access` are keys of the tables above."""
    if access not in ACCESSES:
        raise BadInput("access", f"is one of {', '.join(ACCESSES)}, not {access!r}")
    memory, registers = four_tables()
    return record_four(
        memory,
        four_slots(position, host.hvas),
        gva,
        four_rulers(position, host),
        host=host.address,
        where=f"HVA and HPA recorded on {host.host}",
        recorded=host.recorded,
        access="write" if access == "write" else "read",
        cr0=registers["cr0"],
        cr3=registers["cr3"],
        cr4=registers["cr4"],
        efer=registers["efer"],
    )


@names_bad_input
def four_controls(host: HostPages) -> dict[str, Any]:
    """Return what a player needs to let the reader choose: its model, inputs and tables."""
    memory, registers = four_tables()
    slots = {
        key: [
            [one.number, f"{one.gpa:x}", f"{one.size:x}", f"{one.hva:x}", one.readonly]
            for one in four_slots(key, host.hvas)
        ]
        for key in POSITIONS
    }
    given = {
        "size": f"{memory.size:x}",
        "words": [f"{each:x}" for word in memory.words() for each in word],
        "registers": {name: f"{value:x}" for name, value in registers.items()},
        "slots": list(slots.items()),
        "rulers": [[key, four_rulers(key, host).plain()] for key in POSITIONS],
        "pages": [f"{each:x}" for page in sorted(host.pages.items()) for each in page],
    }
    places = [[label, f"{gva:#x}"] for gva, label in PLACES.items()]
    return {
        "model": "four",
        "given": given,
        "inputs": [
            {"key": "gva", "label": "address", "value": f"{START:#x}", "places": places},
            {
                "key": "position",
                "label": "slot 1 is",
                "value": "0x80000",
                "kind": "select",
                "options": [list(pair) for pair in POSITIONS.items()],
            },
            {
                "key": "access",
                "label": "what happens",
                "value": "read",
                "kind": "select",
                "options": [list(pair) for pair in ACCESSES.items()],
            },
        ],
    }
