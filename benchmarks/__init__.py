"""Measurements, run by hand with `make bench`; never part of the tests.

A module here has `run() -> list[Figure]`. Where there is a real system to compare with, both are
timed in the same run and the figure is a ratio: the median of paired runs, with its spread.
"""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """One measured quantity with its target, as it is printed."""

    name: str
    values: tuple[float, ...]
    unit: str
    target: str

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        middle = median(self.values)
        spread = f"{low:.3g} to {high:.3g}, {len(self.values)} runs"
        return f"{self.name:44} {middle:8.3g} {self.unit:3}  ({spread})   {self.target}"
