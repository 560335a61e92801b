"""What moves between two maps: how much, between whom, and how much had to.

The least that must move is what the shares of weight say: each device gains or loses the
difference of its share of all placements, and what is gained must come from somewhere. Shares
here are counted, not computed from weights: rules that spread over hosts do not follow weights
exactly, so the difference of two counts is the fair measure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vmlib.ceph.crush.facts import NONE, MapFacts, Weights
from vmlib.ceph.crush.fast import as_inputs, map_many


@dataclass(frozen=True, slots=True)
class Comparison:
    """What moved. All counts are of placements (an input on a device), order not regarded."""

    placements: int
    moved: int
    needed: int
    moves: Mapping[tuple[int, int], int]
    """(from, to) -> how many; NONE where a placement came from or went to nowhere."""

    @property
    def fraction(self) -> float:
        """The share of placements that moved."""
        return self.moved / self.placements if self.placements else 0.0

    @property
    def optimum(self) -> float:
        """The share that any placement with the new counts would have had to move."""
        return self.needed / self.placements if self.placements else 0.0

    @property
    def factor(self) -> float:
        """How many times the optimum moved; 1 is perfect, and also what no movement gives."""
        return self.moved / self.needed if self.needed else (1.0 if not self.moved else np.inf)

    def __str__(self) -> str:
        return (
            f"{self.moved} of {self.placements} placements move ({self.fraction:.2%}); "
            f"{self.needed} had to ({self.optimum:.2%})"
        )


def compare(
    old: MapFacts,
    new: MapFacts,
    rule: int | str,
    n: int,
    xs: Iterable[int],
    weights: Weights,
) -> Comparison:
    """Map every input with both maps and count what differs.

    A device that leaves a row is paired with the one that came at the same place if there is
    one, else in order.
    """
    inputs = as_inputs(xs)
    rows = [
        map_many(crush, crush.rule(rule), inputs, n, weights, {}, "numpy") for crush in (old, new)
    ]
    before, after = (np.where(row == -1, NONE, row) for row in rows)
    moves: Counter[tuple[int, int]] = Counter()
    for i in np.flatnonzero((before != after).any(axis=1)):
        left = [d for d in before[i] if d not in after[i] or d == NONE]
        came = [d for d in after[i] if d not in before[i] or d == NONE]
        for gone, new_one in zip(left, came, strict=False):
            if gone != new_one:
                moves[int(gone), int(new_one)] += 1
        # With holes on one side, the rows differ in how many devices they have.
        longer = left[len(came) :] or came[len(left) :]
        for device in longer:
            if device != NONE:
                moves[(int(device), NONE) if len(left) > len(came) else (NONE, int(device))] += 1
    counts = [Counter(row.ravel().tolist()) for row in (before, after)]
    gains = sum((counts[1] - counts[0]).values())
    return Comparison(int((before != NONE).sum()), sum(moves.values()), gains, dict(moves))
