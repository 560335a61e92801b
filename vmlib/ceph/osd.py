"""One OSD as an OSDMap knows it: up or down, in or out, and how much of each."""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import ONE
from vmlib.given import check_fields
from vmlib.numbers import whole


@dataclass(frozen=True, slots=True)
class Osd:
    """One OSD. `weight` 0 is out; `weight` and `primary_affinity` are 16.16, at most 1.0."""

    osd: int
    up: bool = True
    weight: int = ONE
    primary_affinity: int = ONE

    def __post_init__(self) -> None:
        check_fields(self)
        whole(self.osd, "osd", 0)
        whole(self.weight, "weight", 0, ONE)
        whole(self.primary_affinity, "primary_affinity", 0, ONE)
