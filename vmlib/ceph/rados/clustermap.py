"""The cluster map as the monitors publish it, epoch by epoch, and what follows from its history.

An epoch says which OSDs are up and in, since when (`up_from`), until when a primary is known to
have been alive (`up_thru`), and where an acting set differs from what CRUSH says (`pg_temp`).
Where a PG's copies belong is not decided here: a `Placement` is asked, and `RawPlacement` makes
one from any function that gives OSDs in order, CRUSH or the rendezvous hash below.

`past_intervals` cuts the history of one PG into stretches with the same up and acting sets. Only a
stretch that may have accepted writes (`maybe_went_rw`) has to be heard in peering: Ceph
doc/dev/peering.rst (`up_thru`), doc/dev/osd_internals/past_intervals.rst.

Left out: primary affinity, upmaps, changes of pools, dead_epoch, blocklists.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vmlib.ceph.rados.pglog import PgId
from vmlib.errors import BadInput
from vmlib.given import check_one, names_bad_input
from vmlib.numbers import whole

NONE = 0x7FFFFFFF
"""A hole in an erasure-coded set, as CRUSH writes it."""

MOST_PGS = 1 << 16


@dataclass(frozen=True, slots=True)
class OsdState:
    """One OSD in one epoch."""

    up: bool = False
    in_: bool = True
    up_from: int = 0
    up_thru: int = 0
    nonce: int = 0
    """Which of the OSD's lives is up: Ceph has it in the address."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A replicated pool (k = 0) of `size` copies, or an erasure-coded one of k data + m chunks."""

    id: int = 1
    pg_num: int = 1
    size: int = 3
    min_size: int = 2
    k: int = 0

    def __post_init__(self) -> None:
        whole(self.id, "pool.id", 0)
        whole(self.pg_num, "pool.pg_num", 1, MOST_PGS)
        for name, least in (("size", 1), ("min_size", 1), ("k", 0)):
            whole(getattr(self, name), f"pool.{name}", least, 256)
        if not max(self.k, 1) <= self.min_size <= self.size:
            raise BadInput("pool.min_size", f"must be {max(self.k, 1)}..{self.size}")

    @classmethod
    def erasure(cls, k: int, m: int, *, id: int = 1, pg_num: int = 1) -> "Pool":
        """Return an erasure-coded pool; min_size is k+1 (Ceph's default)."""
        whole(k, "k", 1, 256)
        whole(m, "m", 0, 256 - k)
        return cls(id, pg_num, k + m, min(k + 1, k + m), k)

    @property
    def m(self) -> int:
        """Coding chunks (0 in a replicated pool)."""
        return self.size - self.k if self.k else 0

    def shard(self, position: int) -> int:
        """Return the shard number of a position in the acting set: -1 if all copies are alike."""
        return position if self.k else -1


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """One epoch."""

    epoch: int
    osds: tuple[OsdState, ...]
    pools: tuple[Pool, ...]
    pg_temp: Mapping[PgId, tuple[int, ...]] = field(default_factory=dict)
    placed: dict[PgId, "Placed"] = field(default_factory=dict, compare=False, repr=False)
    """Answers of the placement for this epoch, kept."""

    def pool(self, id: int) -> Pool:
        """Return a pool by its id."""
        for pool in self.pools:
            if pool.id == id:
                return pool
        raise BadInput("pool", f"there is no pool {id}")

    def is_up(self, osd: int) -> bool:
        """Whether this OSD is up in this epoch."""
        return 0 <= osd < len(self.osds) and self.osds[osd].up

    @names_bad_input
    def pgs(self) -> list[PgId]:
        """Return every placement group, pool by pool."""
        return [PgId(pool.id, seed) for pool in self.pools for seed in range(pool.pg_num)]

    def successor(
        self,
        osds: Mapping[int, OsdState] | None = None,
        pg_temp: Mapping[PgId, tuple[int, ...]] | None = None,
    ) -> "ClusterMap":
        """Return the next epoch with these OSDs changed; an empty pg_temp entry is a removal."""
        states = tuple((osds or {}).get(i, state) for i, state in enumerate(self.osds))
        temps = {pg: t for pg, t in {**self.pg_temp, **(pg_temp or {})}.items() if t}
        return replace(self, epoch=self.epoch + 1, osds=states, pg_temp=temps, placed={})


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a PG is in an epoch: as the rule says (`up`) and as it is served (`acting`)."""

    up: tuple[int, ...]
    acting: tuple[int, ...]

    @property
    def primary(self) -> int:
        """The first of the acting set, NONE if there is none."""
        return next((osd for osd in self.acting if osd != NONE), NONE)


class Placement(Protocol):
    """What tells where things are: CRUSH behind it, or anything else."""

    def pg_of(self, pool: Pool, name: str) -> PgId:
        """Return the PG of an object."""
        ...

    def place(self, map: ClusterMap, pg: PgId) -> Placed:
        """Return up and acting set of a PG in an epoch. Depends on nothing else."""
        ...


class RawPlacement:
    """A placement from `raw(map, pool, pg) -> OSDs in order`, which need not know who is up.

    Down OSDs leave a replicated set and become holes in an erasure-coded one; pg_temp then
    overrides the acting set, as OSDMap does.
    """

    def __init__(self, raw: Callable[[ClusterMap, Pool, PgId], Sequence[int]]) -> None:
        if not callable(raw):
            raise BadInput("raw", f"is {raw!r}; it must be a function")
        self._raw = raw

    def pg_of(self, pool: Pool, name: str) -> PgId:
        """Return the PG of an object, by a hash of its name."""
        digest = hashlib.blake2b(_bytes(name), digest_size=4).digest()
        return PgId(pool.id, int.from_bytes(digest, "little") % pool.pg_num)

    def place(self, map: ClusterMap, pg: PgId) -> Placed:
        """Return up and acting set, kept with the map after the first time."""
        if (known := map.placed.get(pg)) is not None:
            return known
        pool = map.pool(pg.pool)
        up = _only_up(map, pool, self._raw(map, pool, pg))
        temp = _only_up(map, pool, map.pg_temp.get(pg, ()))
        acting = temp if any(osd != NONE for osd in temp) else up
        map.placed[pg] = placed = Placed(up, acting)
        return placed


def _bytes(name: str) -> bytes:
    check_one(name, str, "name")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise BadInput("name", f"is {name!r}; it must be a string of characters") from None


def _only_up(map: ClusterMap, pool: Pool, osds: Sequence[int]) -> tuple[int, ...]:
    if pool.k:
        return tuple(osd if map.is_up(osd) else NONE for osd in osds)
    return tuple(osd for osd in osds if map.is_up(osd))


@names_bad_input
def rendezvous(map: ClusterMap, pool: Pool, pg: PgId) -> list[int]:
    """Return the OSDs whose hash with the PG is highest: a stand-in where CRUSH is not wanted.

    An OSD that is out is passed over. In an erasure-coded pool every position draws by itself, so
    that one change moves few shards.
    """

    def draw(osd: int, position: int) -> bytes:
        return hashlib.blake2b(f"{pg}/{position}/{osd}".encode(), digest_size=8).digest()

    inside = [i for i, state in enumerate(map.osds) if state.in_]
    if not pool.k:
        return sorted(inside, key=lambda osd: draw(osd, 0), reverse=True)[: pool.size]
    chosen: list[int] = []
    for position in range(pool.size):
        free = [osd for osd in inside if osd not in chosen]
        chosen.append(max(free, key=lambda osd: draw(osd, position)) if free else NONE)
    return chosen


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of epochs, `first` to `last`, with one up and one acting set."""

    first: int
    last: int
    placed: Placed
    maybe_went_rw: bool


def interval_start(maps: Mapping[int, ClusterMap], place: Placement, pg: PgId, epoch: int) -> int:
    """Return the first epoch of the interval that `epoch` is in, as far as `maps` go back."""
    now = place.place(maps[epoch], pg)
    while epoch - 1 in maps and place.place(maps[epoch - 1], pg) == now:
        epoch -= 1
    return epoch


def past_intervals(
    maps: Mapping[int, ClusterMap], place: Placement, pg: PgId, since: int, before: int
) -> list[Interval]:
    """Return the intervals that end at epoch `since` or later and before epoch `before`."""
    found: list[Interval] = []
    last = before - 1
    while last >= max(since, 1) and last in maps:
        first = interval_start(maps, place, pg, last)
        placed = place.place(maps[last], pg)
        found.append(Interval(first, last, placed, _maybe_went_rw(maps[last], pg, placed, first)))
        last = first - 1
    return found[::-1]


def _maybe_went_rw(end: ClusterMap, pg: PgId, placed: Placed, first: int) -> bool:
    """Whether the interval that ended with this map can have accepted writes.

    It needs min_size members, and a primary that the monitors knew alive inside the interval.
    """
    members = [osd for osd in placed.acting if osd != NONE]
    if len(members) < end.pool(pg.pool).min_size:
        return False
    primary = end.osds[placed.primary]
    return primary.up_from <= first <= primary.up_thru
