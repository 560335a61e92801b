"""Seeded problems about walks: as many as a reader wants, each the same everywhere."""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.memory.walk_example import (
    ACCESSES,
    GUESTS,
    HOSTS,
    MAXPHYADDR,
    PLACES,
    record_example,
)
from vmlib.problems import checked_seed, marked
from vmlib.trace import Trace

ENDS = {
    "data": "the access arrives",
    "guest": "the guest's kernel gets a fault",
    "host": "the hypervisor gets an exit",
}
_WHO = {"arrived": "data", "fault": "guest", "exit": "host"}


@dataclass(frozen=True)
class WalkProblem:
    """One access of the figure's guest: what does it cost, and who hears of it?"""

    seed: int
    gva: int
    guest: str
    host: str
    access: str

    @property
    def question(self) -> str:
        """The problem in words."""
        what = ACCESSES[self.access][0]
        return (
            f"Problem {self.seed}: the guest has {GUESTS[self.guest]}, the host has "
            f"{HOSTS[self.host]}. At {self.gva:#x} ({PLACES[self.gva]}) {what}. Physical "
            f"addresses have {MAXPHYADDR} bits. How many references to memory does the walk make, "
            "and who hears of it: "
            + ", ".join(f"'{key}' ({words})" for key, words in ENDS.items())
            + "?"
        )

    @cached_property
    def trace(self) -> Trace:
        """The walk itself, which is the answer."""
        return record_example(self.gva, self.guest, self.host, self.access)

    @property
    def answer(self) -> tuple[int, str]:
        """References, and a key of `ENDS`."""
        return self.trace.counters["references"], _WHO[self.trace.steps[-1].event]

    @names_bad_input
    def mark(self, references: int | None = None, who: str | None = None) -> str:
        """Mark an answer by walking; say what is right and give nothing away."""
        if who is not None and who not in ENDS:
            raise BadInput("who", f"is one of {', '.join(map(repr, ENDS))}, not {who!r}")
        count, end = self.answer
        return marked(self.seed, ("references", references, count), ("who", who, end))


def walk_problem(seed: int) -> WalkProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    chance = random.Random(seed)
    guests = [key for key in GUESTS if key != "off"]
    return WalkProblem(
        seed,
        chance.choice(list(PLACES)),
        chance.choice(guests),
        chance.choice(list(HOSTS)),
        chance.choice(list(ACCESSES)),
    )
