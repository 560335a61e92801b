"""The OSDMap: which OSDs there are, which are up and in, the pools, and every exception.

With the CRUSH map inside it this is all that a client needs to find an object, and all that it
ever asks a monitor for. `OSDMap.locate` goes from a name to OSDs; `pg_table` does it for all
groups of a pool at once. A map is never changed: what would change it returns the next epoch.

Models what decides placement, as `ceph osd dump -f json` shows it. Left out: addresses,
blocklists, snapshots, stretch mode, and what a monitor does by itself when a map changes (it
takes back upmaps that have become pointless, and asks for `pg_temp` while data move). An OSD that
was removed but is still in the CRUSH map keeps its weight in the cluster, and a dump does not show
it: it is taken to have been out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.ceph.crush.facts import NONE, ONE, RULE_TYPES, Rule
from vmlib.ceph.crush.read_json import parse, read_file, unique
from vmlib.ceph.crush.validate import check_table
from vmlib.ceph.object_hash import object_hash
from vmlib.ceph.osd import Osd
from vmlib.ceph.placement import PgId, Placement, first_of, keep, prefer
from vmlib.ceph.pools import ERASURE, REPLICATED, Pool
from vmlib.ceph.read_osdmap import read_osdmap, read_pgid
from vmlib.ceph.upmap import Exchange, apply_upmap
from vmlib.errors import BadInput
from vmlib.given import check_fields, check_one, names_bad_input
from vmlib.numbers import decimal, whole

RULE_FOR = {RULE_TYPES["msr_firstn"]: REPLICATED, RULE_TYPES["msr_indep"]: ERASURE}
"""Which type of pool a multi-step-retry rule is for."""

EXCEPTIONS = {
    "pg_upmap": tuple[int, ...],
    "pg_upmap_items": tuple[Exchange, ...],
    "pg_temp": tuple[int, ...],
    "primary_temp": int,
}
"""The tables by group, and what stands in them."""


@dataclass(frozen=True)
class OSDMap:
    """One epoch of a cluster's map."""

    epoch: int
    crush: CrushMap
    osds: Mapping[int, Osd]
    pools: Mapping[int, Pool]
    max_osd: int
    pg_upmap: Mapping[PgId, tuple[int, ...]] = field(default_factory=dict)
    pg_upmap_items: Mapping[PgId, tuple[Exchange, ...]] = field(default_factory=dict)
    pg_temp: Mapping[PgId, tuple[int, ...]] = field(default_factory=dict)
    primary_temp: Mapping[PgId, int] = field(default_factory=dict)
    rule_masks: bool = False
    """Whether rules hold for pools of `min_size` to `max_size` only (until Ceph 16)."""

    def __post_init__(self) -> None:
        check_fields(self)
        whole(self.epoch, "epoch", 0, (1 << 32) - 1)
        check_table(self.osds, "osds", Osd, "osd")
        check_table(self.pools, "pools", Pool, "pool")
        for name, kind in EXCEPTIONS.items():
            for pg, value in getattr(self, name).items():
                check_one(pg, PgId, name)
                check_one(value, kind, f"{name}[{pg}]")

    @classmethod
    def load(cls, path: str | Path, *, crush: CrushMap) -> Self:
        """Read what `ceph osd dump -f json` (or `osdmaptool --dump json`) wrote to a file."""
        text = read_file(path, "osdmaptool FILE --dump json")
        return cls.from_json(parse(text), crush=crush)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, crush: CrushMap) -> Self:
        """Return the map that a dump describes; errors name the field's path."""
        return cls(crush=crush, **read_osdmap(data))

    @classmethod
    @names_bad_input
    def build(cls, crush: CrushMap, pools: Iterable[Pool], *, epoch: int = 1) -> Self:
        """Return a map in which every device of a CRUSH map is up and in."""
        table: dict[int, Pool] = {}
        for i, pool in enumerate(pools):
            unique(table, pool.pool, pool, f"pools[{i}].pool")
        osds = {osd: Osd(osd) for osd in crush.devices}
        return cls(epoch, crush, osds, table, crush.max_devices)

    # Asking

    def pool(self, pool: int | str) -> Pool:
        """Return a pool by id or name."""
        for known in self.pools.values():
            if pool in (known.pool, known.pool_name) and not isinstance(pool, bool):
                return known
        names = ", ".join(known.pool_name for known in self.pools.values())
        raise BadInput("pool", f"{pool!r} is not in this map; there are {names or 'none'}")

    @names_bad_input
    def exists(self, osd: int) -> bool:
        """Whether an OSD of this number exists."""
        return osd in self.osds

    @names_bad_input
    def is_up(self, osd: int) -> bool:
        """Whether an OSD exists and is up."""
        return osd in self.osds and self.osds[osd].up

    @names_bad_input
    def is_out(self, osd: int) -> bool:
        """Whether an OSD exists and gets no data."""
        return osd in self.osds and self.osds[osd].weight == 0

    def pg_of(self, pool: int | str, name: str, namespace: str = "") -> PgId:
        """Return the placement group of an object: cheap, and independent of every OSD."""
        known = self.pool(pool)
        return known.pool, known.seed_of(object_hash(name, namespace))

    def locate(self, pool: int | str, name: str, namespace: str = "") -> Placement:
        """Return where an object is, or would be: whether it exists is not known here."""
        known = self.pool(pool)
        hash = object_hash(name, namespace)
        return self._placed(known, hash, self._crush_one(known, known.seed_of(hash)))

    def pg(self, pgid: str | PgId) -> Placement:
        """Return where a placement group is; ``"1.2f"`` or (1, 0x2f)."""
        pool, seed = self._pg(pgid)
        return self._placed(self.pools[pool], seed, self._crush_one(self.pools[pool], seed))

    def pg_table(self, pool: int | str) -> tuple[Placement, ...]:
        """Return the placements of all groups of a pool, by seed; CRUSH runs on arrays."""
        known = self.pool(pool)
        inputs = [known.pps(seed) for seed in range(known.pg_num)]
        if (rule := self._rule_of(known)) is None:
            rows: list[list[int]] = [[] for _ in inputs]
        else:
            args = self._args_key(known)
            found = self.crush.map_many(rule.id, inputs, known.size, self._weights(), args)
            rows = [[osd for osd in row if osd != -1] for row in found.tolist()]
        return tuple(self._placed(known, seed, row) for seed, row in enumerate(rows))

    # Changing: each returns the next epoch

    def without(self, osd: int | Iterable[int]) -> Self:
        """Return the next epoch with OSDs down and out."""
        return self.mark(osd, up=False, in_=False)

    def mark(
        self, osd: int | Iterable[int], *, up: bool | None = None, in_: bool | None = None
    ) -> Self:
        """Return the next epoch with OSDs marked; `in_` sets the weight to 1.0 or 0."""
        check_one(up, bool | None, "up")
        check_one(in_, bool | None, "in_")
        osds = dict(self.osds)
        for one in osd if isinstance(osd, Iterable) else [osd]:
            was = self._osd(one)
            weight = was.weight if in_ is None else ONE * in_
            osds[one] = replace(was, up=was.up if up is None else bool(up), weight=weight)
        return self._next(osds=osds)

    def reweight(self, osd: int, weight: float) -> Self:
        """Return the next epoch with an OSD's weight, 0 to 1 (`ceph osd reweight`)."""
        changed = replace(self._osd(osd), weight=_part(weight, "weight"))
        return self._next(osds={**self.osds, osd: changed})

    def affinity(self, osd: int, affinity: float) -> Self:
        """Return the next epoch with an OSD's primary affinity, 0 to 1."""
        changed = replace(self._osd(osd), primary_affinity=_part(affinity, "affinity"))
        return self._next(osds={**self.osds, osd: changed})

    def upmap(self, pgid: str | PgId, osds: Sequence[int]) -> Self:
        """Return the next epoch with a group's whole set given; none takes it back."""
        changed = _changed(self.pg_upmap, self._pg(pgid), self._osds(osds))
        return self._next(pg_upmap=changed)

    @names_bad_input
    def upmap_items(self, pgid: str | PgId, exchanges: Sequence[Exchange]) -> Self:
        """Return the next epoch with a group's (from, to) exchanges; none takes them back."""
        pairs = []
        for i, pair in enumerate(exchanges):
            known = self._osds(pair, f"exchanges[{i}]")
            if len(known) != 2:
                raise BadInput(f"exchanges[{i}]", f"is {pair!r}; it must be (from, to)")
            pairs.append((known[0], known[1]))
        changed = _changed(self.pg_upmap_items, self._pg(pgid), tuple(pairs))
        return self._next(pg_upmap_items=changed)

    def temp(
        self, pgid: str | PgId, osds: Sequence[int] = (), *, primary: int | None = None
    ) -> Self:
        """Return the next epoch with a group's acting set, primary or both, for the time being."""
        pg = self._pg(pgid)
        if primary is not None:
            self._osd(primary)
        return self._next(
            pg_temp=_changed(self.pg_temp, pg, self._osds(osds)),
            primary_temp=_changed(self.primary_temp, pg, primary),
        )

    def with_crush(self, crush: CrushMap) -> Self:
        """Return the next epoch with another CRUSH map."""
        return self._next(crush=crush)

    # Inside

    def _next(self, **changes: Any) -> Self:
        return replace(self, epoch=self.epoch + 1, **changes)

    def _osd(self, osd: int, field: str = "osd") -> Osd:
        if whole(osd, field) not in self.osds:
            raise BadInput(field, f"{osd} does not exist in this map")
        return self.osds[osd]

    def _osds(self, osds: Sequence[int], field: str = "osds") -> tuple[int, ...]:
        """Return a set of OSDs that exist, in which there may be holes."""
        if not isinstance(osds, Sequence):
            raise BadInput(field, f"is {osds!r}; it must be a sequence of OSDs")
        for i, osd in enumerate(osds):
            if osd != NONE:
                self._osd(osd, f"{field}[{i}]")
        return tuple(osds)

    def _pg(self, pgid: str | PgId) -> PgId:
        if isinstance(pgid, str):
            pgid = read_pgid(pgid, "pgid")
        elif not isinstance(pgid, tuple) or len(pgid) != 2:
            raise BadInput("pgid", f"is {pgid!r}; it must be as '1.2f' or (1, 0x2f)")
        pool, seed = pgid
        known = self.pool(pool)
        if not 0 <= whole(seed, "pgid[1]") < known.pg_num:
            raise BadInput(
                "pgid", f"pool {pool} has the groups {pool}.0 to {pool}.{known.pg_num - 1:x}"
            )
        return pool, seed

    def _rule_of(self, pool: Pool) -> Rule | None:
        """Return the pool's rule, if there is one that fits it."""
        rule = self.crush.rules.get(pool.crush_rule)
        if rule is None or RULE_FOR.get(rule.type, rule.type) != pool.type:
            return None
        fits = rule.min_size <= pool.size <= rule.max_size or not self.rule_masks
        return rule if fits else None

    def _args_key(self, pool: Pool) -> int | None:
        """A pool may have its own weight-set; else the one for all (-1), if there is one."""
        return next((key for key in (pool.pool, -1) if key in self.crush.choose_args), None)

    def _weights(self) -> dict[int, int]:
        """Return the out-weights for CRUSH; a device that is no OSD of this map is out."""
        gone = {device: 0 for device in self.crush.devices if device not in self.osds}
        return gone | {osd.osd: osd.weight for osd in self.osds.values()}

    def _crush_one(self, pool: Pool, seed: int) -> list[int]:
        if (rule := self._rule_of(pool)) is None:
            return []
        args = self._args_key(pool)
        return self.crush.map(rule.id, pool.pps(seed), pool.size, self._weights(), args)

    def _placed(self, pool: Pool, hash: int, found: Sequence[int]) -> Placement:
        seed = pool.seed_of(hash)
        pg, pps = (pool.pool, seed), pool.pps(seed)
        raw = keep(pool, found, self.exists)
        mapped = apply_upmap(
            raw, self.pg_upmap.get(pg), self.pg_upmap_items.get(pg, ()), self.is_out
        )
        there = keep(pool, mapped, self.is_up)
        up, up_primary = prefer(pool, pps, there, lambda osd: self.osds[osd].primary_affinity)
        acting = keep(pool, self.pg_temp.get(pg, ()), self.is_up)
        primary = self.primary_temp.get(pg, first_of(acting))
        if not acting:
            acting = up
            primary = up_primary if primary == -1 else primary
        return Placement(hash, pg, raw, up, up_primary, acting, primary, pps)


def _changed(table: Mapping[PgId, Any], pg: PgId, value: Any) -> dict[PgId, Any]:
    """Return the table with one entry set, or gone where the value is empty."""
    kept = {key: one for key, one in table.items() if key != pg}
    return kept if value is None or (isinstance(value, tuple) and not value) else kept | {pg: value}


def _part(value: float, field: str) -> int:
    """Return a number from 0 to 1 as 16.16."""
    return int(decimal(value, field, 0, 1) * ONE)
