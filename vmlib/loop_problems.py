"""Seeded problems about the two loops: as many as a reader wants, each the same everywhere."""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.loop_trace import TRIES, record_loop
from vmlib.problems import checked_seed, marked
from vmlib.trace import Trace


@dataclass(frozen=True)
class LoopProblem:
    """What a guest tries, and what the kernel was given; who finishes what?"""

    seed: int
    tries: tuple[str, ...]
    irqchip: bool
    ioeventfd: bool

    @property
    def question(self) -> str:
        """The problem in words."""
        tried = "; ".join(TRIES[one] for one in self.tries)
        return (
            f"Problem {self.seed}: the guest tries {tried}. Then, as always, it rings the "
            "doorbell, halts until an interrupt comes, ends the interrupt and ends the run. The "
            f"kernel has {'an' if self.irqchip else 'no'} irqchip and "
            f"{'an' if self.ioeventfd else 'no'} ioeventfd. How often is the guest left, and how "
            "often does KVM_RUN return?"
        )

    @cached_property
    def trace(self) -> Trace:
        """The run itself, which is the answer."""
        return record_loop(self.tries, self.irqchip, self.ioeventfd)

    def mark(self, exits: int | None = None, returns: int | None = None) -> str:
        """Mark an answer by running the guest; say what is right and give nothing away."""
        events = [step.event for step in self.trace.steps]
        returned = events.count("return")
        left = returned + events.count("handled")
        return marked(
            self.seed,
            ("exits", exits, left),
            ("returns", returns, returned),
            wrong="not what happens",
        )


def loop_problem(seed: int) -> LoopProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    checked_seed(seed)
    chance = random.Random(seed)
    tries = tuple(chance.choices(list(TRIES), k=chance.randint(2, 5)))
    return LoopProblem(seed, tries, chance.random() < 0.5, chance.random() < 0.5)
