"""What has to move between two epochs: which copies or shards are missing where they belong now.

Compares the up sets of all groups of a pool. A copy moves to an OSD that was not in the set
before; a shard also when its OSD was there for another shard. Held against the bytes that a live
cluster's OSDs wrote while they recovered.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import NONE
from vmlib.ceph.osdmap import OSDMap
from vmlib.ceph.placement import PgId
from vmlib.errors import Unsupported
from vmlib.given import names_bad_input


@dataclass(frozen=True, slots=True)
class Move:
    """One copy (`shard` -1) or one shard of a group that `to` must get."""

    pg: PgId
    shard: int
    to: int


@names_bad_input
def moves(before: OSDMap, after: OSDMap, pool: int | str) -> list[Move]:
    """Return what OSDs must get so that every group is where the later map wants it."""
    groups = {osdmap.pool(pool).pg_num for osdmap in (before, after)}
    if len(groups) > 1:
        rule = f"has {sorted(groups)} groups in the two maps; what a split moves is not modelled"
        raise Unsupported(f"pool {pool!r} {rule}")
    found = []
    for old, new in zip(before.pg_table(pool), after.pg_table(pool), strict=True):
        if after.pool(pool).shifts:
            found += [Move(new.pg, -1, osd) for osd in new.up if osd not in old.up]
        else:
            found += [
                Move(new.pg, shard, osd)
                for shard, osd in enumerate(new.up)
                if osd != NONE and (shard >= len(old.up) or osd != old.up[shard])
            ]
    return found
