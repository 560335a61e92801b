"""Who is told how a mapping comes about: the one door between the mapper and an explanation."""

from collections.abc import Sequence
from typing import Protocol

from vmlib.ceph.crush.buckets import Draw
from vmlib.ceph.crush.facts import Bucket, Step


class Watch(Protocol):
    """Whoever wants to know how a mapping came about."""

    def begin(self, step: Step) -> None:
        """A rule's step begins."""

    def ran(self, step: Step, working: Sequence[int], result: Sequence[int]) -> None:
        """It was run; `working` is what it left to go on with, `result` the answer so far."""

    def drew(
        self, bucket: Bucket, rep: int, r: int, draws: Sequence[Draw], item: int, leaf: bool
    ) -> None:
        """A bucket picked an item."""

    def refused(
        self, bucket: Bucket, rep: int, item: int | None, why: str, then: str, leaf: bool
    ) -> None:
        """An item was turned down, and what happens then."""

    def placed(self, rep: int, item: int, failed: int, leaf: bool) -> None:
        """An item was taken, after so many failed attempts."""

    def tried(self, failed: int) -> None:
        """A choice ended after so many failed attempts (what `--show-choose-tries` counts)."""
