"""The guest of the two loops, in versions: each tries another thing that may leave the guest.

It comes in three pieces: a firmware that sets up the interrupt controller, one instruction to
try with what it needs, and an ending that is always the same: ring a doorbell, halt until an
interrupt comes, say that it is over.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from vmlib.cpu.guests import Guest, load_guest
from vmlib.errors import BadInput
from vmlib.given import names_bad_input

RAM = "64K"
DOORBELL = 0xC010
"""The port of the doorbell: queue notify, if a legacy virtio device's ports begin at 0xc000."""
ENDING = 0xF4
SERIAL, STATUS, SCREEN = 0x3F8, 0x3FD, 0xB8000
LINE, VECTOR = 0, 0x20

TRIES = {
    "out": "OUT to the serial port",
    "in": "IN from the serial port",
    "store": "a store where no RAM is (MMIO)",
    "load": "a load where no RAM is (MMIO)",
    "cpuid": "CPUID",
    "rdmsr": "RDMSR of EFER",
    "vmmcall": "VMMCALL, unknown number",
    "cr3": "MOV to CR3",
}
"""What the guest can try, by key, in words."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One version: the guest, where its firmware ends, and where things are in it.

    `start` is the address of the first instruction after the firmware, `tried` of the last one
    that is tried, `handler` of the interrupt's handler.
    """

    guest: Guest
    start: int
    tried: int
    handler: int


@names_bad_input
def loop_guest(*tries: str) -> Loop:
    """Return the guest that tries these, in order (keys of TRIES); by default "out"."""
    tries = tries or ("out",)
    for one in tries:
        if one not in TRIES:
            raise BadInput("tries", f"{one!r} is unknown; there are {', '.join(TRIES)}")
    whole = load_guest("loop")
    at = whole.at or 0
    labels = {line.label: k for k, line in enumerate(whole.listing) if line.label}
    starts = [labels[f"try_{one}"] for one in TRIES] + [labels["ring"]]  # as in the source
    pieces = {one: slice(*pair) for one, pair in zip(TRIES, pairwise(starts), strict=True)}
    first = starts[0]
    kept = list(whole.listing[:first])
    for one in tries:
        kept += whole.listing[pieces[one]]
    tried = len(kept) - 1
    kept += whole.listing[starts[-1] :]
    lines, offset = [], 0
    for line in kept:
        lines.append(replace(line, offset=offset))
        offset += len(line.code)
    guest = Guest("loop", b"".join(line.code for line in lines), tuple(lines), at)
    start, last, handler = lines[first].offset, lines[tried].offset, guest.line("handler").offset
    return Loop(guest, at + start, at + last, at + handler)
