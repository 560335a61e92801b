"""Seeded problems about straws: as many as a reader wants, each the same everywhere.

Four OSDs in one host draw. Their hashes are CRUSH's own for the problem's input, so the map itself
gives the answer; `mark` asks it and gives nothing away.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.build import regular_tree
from vmlib.ceph.crush.change import reweighted
from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.problems import checked_seed, marked

_MULTIPLIER = 2654435761  # Knuth's: neighbouring seeds give inputs that look unrelated
WEIGHTS = (1, 2, 4, 8)


@dataclass(frozen=True)
class StrawProblem:
    """Four weights and an input; who wins, and who wins when one weight is doubled?"""

    seed: int
    x: int
    weights: tuple[int, int, int, int]
    doubled: int

    @property
    def crush(self) -> CrushMap:
        """The map: one host with the four OSDs."""
        return CrushMap(**regular_tree(hosts=1, osds=4, weight=self.weights))

    @property
    def hashes(self) -> tuple[int, ...]:
        """What each OSD draws, 16 bits."""
        steps = self.crush.explain("replicated", self.x, 1).steps
        drawn = next(s for s in steps if s.event == "draw" and s.where == "host0")
        return tuple(row[2] for row in drawn.state["draws"])

    @property
    def question(self) -> str:
        """The problem in words."""
        weights, hashes = (", ".join(map(str, row)) for row in (self.weights, self.hashes))
        return (
            f"Problem {self.seed}: osd.0 to osd.3 weigh {weights}, and draw the hashes {hashes}. "
            f"Which OSD wins? And which, if osd.{self.doubled} weighed twice as much?"
        )

    def mark(self, winner: int | None = None, then: int | None = None) -> str:
        """Mark an answer by asking the map; say what is right and give nothing away."""
        heavier = reweighted(self.crush, self.doubled, 2 * self.weights[self.doubled])
        truths = [crush.map("replicated", self.x, 1)[0] for crush in (self.crush, heavier)]
        return marked(
            self.seed,
            ("winner", winner, truths[0]),
            ("then", then, truths[1]),
            wrong="not what CRUSH does",
        )


def straw_problem(seed: int) -> StrawProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    mixed = (seed + 1) * _MULTIPLIER & 0xFFFFFFFF
    first, second, third, fourth = (WEIGHTS[mixed >> shift & 3] for shift in (30, 28, 26, 24))
    return StrawProblem(seed, mixed >> 8 & 0xFFFF, (first, second, third, fourth), mixed >> 6 & 3)
