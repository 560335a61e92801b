"""One OSD as an OSDMap knows it: up or down, in or out, and how much of each."""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import ONE


@dataclass(frozen=True, slots=True)
class Osd:
    """One OSD. `weight` 0 is out; `weight` and `primary_affinity` are 16.16, at most 1.0."""

    osd: int
    up: bool = True
    weight: int = ONE
    primary_affinity: int = ONE
