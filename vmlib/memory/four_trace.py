"""The trace of one address on four rulers: three steps down, each with another owner.

The guest's page tables turn GVA into GPA, the VMM's memory slots GPA into HVA, the host's page
tables HVA into HPA. A step of the trace is one of these, and the last one says how the way ended:
with all four addresses, in a page fault of the guest's, as MMIO, or before a host page exists.
Kind "rulers": every state has the rulers, the addresses known by then, and the bits that stay.

Left out: the walk itself (`walk_trace` has it), and caches, which take several steps at once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

from vmlib.given import check_one, names_bad_input
from vmlib.memory.four import HostAddress, host_address
from vmlib.memory.paging import ERROR_P, VECTOR_GP, check_access
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.walk import Fault, TableMemory, walk
from vmlib.memory.walk_trace import Setting
from vmlib.numbers import whole
from vmlib.trace import Provenance, Recorder, Trace
from vmlib.units import PAGE_SIZE, format_size

SPACES = ("GVA", "GPA", "HVA", "HPA")
_TITLE = "One byte has four addresses, and each step between them has an owner"
Segment = tuple[str, int, int]
"""Label, first address, size in bytes."""


class Rulers(NamedTuple):
    """What is drawn on each ruler; an address outside of all segments is in nobody's."""

    gva: Sequence[Segment]
    gpa: Sequence[Segment]
    hva: Sequence[Segment]
    hpa: Sequence[Segment]

    def plain(self) -> list[list[Any]]:
        """The same for JSON: addresses as text."""
        return [
            [name, [[label, f"{first:#x}", f"{size:#x}"] for label, first, size in segments]]
            for name, segments in zip(SPACES, self, strict=True)
        ]


@names_bad_input
def rulers_of(
    mapped: Iterable[Segment], slots: Iterable[Slot], host: Iterable[int], end: int
) -> Rulers:
    """Make rulers: what the guest maps, slots and holes up to GPA `end`, host pages as one piece.

    `host` are the host-physical pages that are known.
    """
    mapped = list(mapped)
    check_one(mapped, list[Segment], "mapped")
    whole(end, "end", 0)
    gpa: list[Segment] = []
    hva: list[Segment] = []
    at = 0
    for slot in slots:
        if slot.gpa > at:
            gpa.append(("hole", at, slot.gpa - at))
        name = f"slot {slot.number}{', read-only' if slot.readonly else ''}"
        gpa.append((name, slot.gpa, slot.size))
        hva.append((f"slot {slot.number}", slot.hva, slot.size))
        at = slot.end
    if at < end:
        gpa.append(("hole", at, end - at))
    pages = sorted(host)
    hpa = [("pages of this process", pages[0], pages[-1] + PAGE_SIZE - pages[0])] if pages else []
    return Rulers(mapped, gpa, sorted(hva, key=lambda one: one[1]), hpa)


@names_bad_input
def record_four(
    memory: TableMemory,
    slots: MemorySlots,
    gva: int,
    rulers: Rulers,
    *,
    host: Callable[[int], HostAddress] = host_address,
    engine: str = "vmlib.memory.four",
    where: str = "",
    recorded: str | None = None,
    **how: Unpack[Setting],
) -> Trace:
    """Return the trace of one access; keywords are those of `walk`.

    `host` says where an address of the process is in the host's memory: this process's own page
    map, or what one said when it was recorded (`where` and `recorded` then tell where and when).
    Raises `TableOutsideRam` where a table of the guest's is not in `memory`, and `BadInput`.
    """
    recorder = Recorder("rulers", _TITLE)
    known = [f"{gva:#x}", *["unknown"] * 3]
    plain = rulers.plain()
    kept = ""

    def note(place: str, event: str, text: str, end: str = "") -> None:
        registers = [[name, value] for name, value in zip(SPACES, known, strict=True)]
        state = {"rulers": plain, "registers": registers, "kept": kept, "end": end}
        recorder.step(place, event, text, state)

    def finish() -> Trace:
        recorder.count("addresses", 4 - known.count("unknown"))
        origin = Provenance(engine, {}, where)
        return recorder.finish(replace(origin, recorded=recorded) if recorded else origin)

    access = how.get("access", "read")
    check_access(access)
    does = {"read": "loads from", "write": "stores to", "fetch": "fetches from"}[access]
    note("the guest", "start", f"The guest {does} {gva:#x}. It knows no other address.")

    done = walk(memory, gva, **how)
    if done.gpa is None:
        assert done.fault is not None
        note("the guest's page tables", "fault", _fault(done.fault), "page fault")
        return finish()
    known[1] = f"{done.gpa:#x}"
    if done.page_size:
        bits = done.page_size.bit_length() - 1
        kept = str(bits)
        text = (
            f"{len(done.entries)} entries lead to a page of {format_size(done.page_size)}. Its "
            f"address replaces the upper bits, the lower {bits} stay: GPA {known[1]}."
        )
    else:
        text = f"Paging is off in the guest: GPA {known[1]} is the address as it is."
    note("the guest's page tables", "guest", text)

    hva, slot = slots.hva(done.gpa, access), slots.find(done.gpa)
    if hva is None:
        why = (
            f"Slot {slot.number} holds GPA {known[1]} and is read-only: a store there"
            if slot
            else f"No slot holds GPA {known[1]}: an access there"
        )
        text = f"{why} is MMIO. The guest is left, and the VMM plays a device."
        note("the memory slots", "mmio", text, "MMIO")
        return finish()
    assert slot is not None
    known[2] = f"{hva:#x}"
    text = (
        f"Slot {slot.number} begins at GPA {slot.gpa:#x} and at HVA {slot.hva:#x}. One "
        f"subtraction and one addition: HVA {known[2]}."
    )
    note("the memory slots", "slot", text)

    found = host(hva)
    if found.hpa is None:
        text = f"The host's tables give no number: {found.word}."
        note("the host's page tables", "later", text, "no HPA")
        return finish()
    known[3] = f"{found.hpa:#x}"
    text = (
        f"The host's kernel has put this page at HPA {found.hpa // PAGE_SIZE * PAGE_SIZE:#x}; "
        f"the lower 12 bits stay: HPA {known[3]}."
    )
    note("the host's page tables", "arrived", text, "HPA")
    return finish()


def _fault(fault: Fault) -> str:
    if fault.vector == VECTOR_GP:
        return (
            "General protection fault: no address of so many bits. The guest's own kernel hears "
            "of it, and nobody below."
        )
    why = "the entries are there and forbid it" if fault.error_code & ERROR_P else "nothing there"
    return (
        f"Page fault at level {fault.level}, error code {fault.error_code:#x}: {why}. The guest's "
        "own kernel hears of it, and nobody below."
    )


@names_bad_input
def opening(trace: Trace) -> int:
    """Return the step before the last: the one before the answer."""
    return max(0, len(trace.steps) - 2)
