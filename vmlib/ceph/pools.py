"""A pool: how many placement groups, how many copies, by which rule; and its two hashes.

An object's hash gives its placement group (`seed`, reduced to `pg_num`); the seed gives the
number that CRUSH places (`pps`, reduced to `pg_placement_num`, then hashed with the pool's id so
that the groups of two pools do not lie on top of each other). The names of the fields are those
of `ceph osd dump -f json`. docs.ceph.com, "Placement Groups".

Left out: quotas, snapshots, cache-tier settings, everything that does not place.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.hashing import MASK, crush_hash
from vmlib.ceph.object_hash import stable_mod
from vmlib.errors import BadInput
from vmlib.given import check_one, names_bad_input
from vmlib.numbers import whole

REPLICATED, ERASURE = 1, 3
"""Pool types."""

HASHPSPOOL = 1
"""The flag of every pool since 2013: mix the pool's id in by a hash, not by a sum."""

MOST_PGS = 1 << 20
BOUNDS = {
    "pool": (0, (1 << 63) - 1),
    "size": (1, 255),
    "min_size": (0, 255),
    "pg_num": (1, MOST_PGS),
    "pg_placement_num": (0, MOST_PGS),
    "crush_rule": (0, 255),
    "flags": (0, (1 << 64) - 1),
}
"""The least and the most of each field, as wide as a dump has them."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool of a cluster."""

    pool: int
    pool_name: str
    size: int = 3
    min_size: int = 2
    pg_num: int = 32
    pg_placement_num: int = 0
    """0 means the same as `pg_num`."""
    crush_rule: int = 0
    type: int = REPLICATED
    flags: int = HASHPSPOOL

    def __post_init__(self) -> None:
        check_one(self.pool_name, str, "pool_name")
        at = f"pool {self.pool_name!r}: "
        for field, (least, most) in BOUNDS.items():
            whole(getattr(self, field), at + field, least, most)
        if self.type not in (REPLICATED, ERASURE):
            rule = f"is {self.type!r}; pools are replicated (1) or erasure-coded (3)"
            raise BadInput(at + "type", rule)

    @property
    def pgp_num(self) -> int:
        """Into how many numbers for CRUSH the groups are reduced."""
        return self.pg_placement_num or self.pg_num

    @property
    def shifts(self) -> bool:
        """Whether OSDs move up when one before them is missing.

        Copies are all alike, so they do; shards are not, so a hole stays.
        """
        return self.type == REPLICATED

    @names_bad_input
    def seed_of(self, hash: int) -> int:
        """Return the number of the placement group that a hash falls in."""
        return stable_mod(hash, self.pg_num)

    @names_bad_input
    def pps(self, seed: int) -> int:
        """Return the input that CRUSH gets for a placement group."""
        reduced = stable_mod(seed, self.pgp_num)
        if self.flags & HASHPSPOOL:
            return crush_hash(reduced, self.pool)
        return (reduced + self.pool) & MASK
