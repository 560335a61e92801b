"""What becomes of CRUSH's answer: from the raw set to who is up, who acts, and who is primary.

The order is fixed, and every client and OSD goes through it alike: CRUSH → OSDs that do not
exist go → upmap → OSDs that are down go → primary affinity → `pg_temp` and `primary_temp`. In a
replicated pool the others move up when one goes; in an erasure-coded pool each place is a shard,
so a hole (`NONE`) stays. Checked against `osdmaptool` and a live cluster; the words are those of
docs.ceph.com, "Placement Group Concepts" (up set, acting set).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmlib.ceph.crush.facts import NONE, ONE
from vmlib.ceph.crush.hashing import crush_hash
from vmlib.ceph.pools import Pool

PgId = tuple[int, int]
"""A placement group: (pool, seed)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a placement group, and so an object, is in one epoch."""

    hash: int
    """The hash of the object's name; of a group without an object, its seed."""
    pg: PgId
    raw: tuple[int, ...]
    """What CRUSH says."""
    up: tuple[int, ...]
    """Who should hold it, of those that are up."""
    up_primary: int
    acting: tuple[int, ...]
    """Who serves it now: `up`, or what `pg_temp` says."""
    acting_primary: int
    """-1 where there is none."""
    pps: int
    """The number that CRUSH was asked for."""

    @property
    def pgid(self) -> str:
        """The group's name as Ceph prints it: pool in decimal, seed in hex."""
        return f"{self.pg[0]}.{self.pg[1]:x}"


def keep(pool: Pool, osds: Sequence[int], stays: Callable[[int], bool]) -> tuple[int, ...]:
    """Return `osds` without those that do not stay: moved up, or with holes."""
    if pool.shifts:
        return tuple(osd for osd in osds if stays(osd))
    return tuple(osd if osd != NONE and stays(osd) else NONE for osd in osds)


def first_of(osds: Sequence[int]) -> int:
    """Return the first OSD that is no hole, or -1."""
    return next((osd for osd in osds if osd != NONE), -1)


def prefer(
    pool: Pool, pps: int, osds: tuple[int, ...], affinity: Callable[[int], int]
) -> tuple[tuple[int, ...], int]:
    """Return the set and its primary after primary affinity.

    `affinity` gives an OSD's 16.16 affinity. Below 1.0 an OSD declines by a hash, the same way
    every time for one group; the first that accepts is primary, or the first of all if none does.
    A replicated set puts its primary in front.
    """

    def accepts(osd: int) -> bool:
        wish = affinity(osd)
        return wish >= ONE or crush_hash(pps, osd) >> 16 < wish

    there = [osd for osd in osds if osd != NONE]
    if not there:
        return osds, -1
    primary = next((osd for osd in there if accepts(osd)), there[0])
    if pool.shifts and primary != osds[0]:
        osds = (primary, *(osd for osd in osds if osd != primary))
    return osds, primary
