"""Seeded problems about shadow paging: what a guest reads, and how often it is left."""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.given import names_bad_input
from vmlib.memory.shadow.guest import ShadowGuest
from vmlib.memory.shadow.strategy import OUT_OF_SYNC, WRITE_PROTECT, Strategy
from vmlib.memory.shadow.trace import Deed
from vmlib.problems import checked_seed, marked

_WORDS = {
    "read": "read page {page}",
    "write": "write Z to page {page}",
    "move": "set entry {page} to frame {letter}",
    "invlpg": "INVLPG page {page}",
    "load cr3": "load CR3",
}


@dataclass(frozen=True)
class ShadowProblem:
    """A guest's deeds, and the strategy of its hypervisor."""

    seed: int
    strategy: Strategy
    deeds: tuple[Deed, ...]

    @property
    def question(self) -> str:
        """The problem in words."""
        said = "; ".join(_WORDS[what].format(page=page, letter=x) for what, page, x in self.deeds)
        return (
            f"Problem {self.seed}, {self.strategy.name}: page 0 is frame A, page 1 is B, page 2 is "
            f"C; all have been used, and written. The guest does this: {said}. Which letters does "
            "it read, and how often is it left?"
        )

    @cached_property
    def answer(self) -> tuple[str, int]:
        """The letters read, and the number of exits, found by doing it."""
        guest = ShadowGuest(self.strategy)
        letters = "".join(guest.do(*deed)[0] for deed in self.deeds)
        return letters, guest.exits

    @names_bad_input
    def mark(self, letters: str | None = None, exits: int | None = None) -> str:
        """Mark an answer, letters in one string; say what is right and give nothing away."""
        if isinstance(letters, str):
            letters = letters.replace(",", "").replace(" ", "")
        read, left = self.answer
        return marked(self.seed, ("letters", letters, read), ("exits", exits, left))


def shadow_problem(seed: int) -> ShadowProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    rng = random.Random(seed)
    deeds: list[Deed] = [("move", rng.randrange(3), rng.choice("DEF"))]
    while len(deeds) < 8:
        what = rng.choice(("read", "read", "write", "move", "move", "invlpg", "load cr3"))
        page = 0 if what == "load cr3" else rng.randrange(3)
        letter = rng.choice("DEFGH") if what in ("move", "write") else ""
        deeds.append((what, page, letter))
    deeds = [
        ("write", page, "Z") if what == "write" else (what, page, x) for what, page, x in deeds
    ]
    deeds.append(("read", rng.randrange(3), ""))
    return ShadowProblem(seed, rng.choice((WRITE_PROTECT, OUT_OF_SYNC)), tuple(deeds))
