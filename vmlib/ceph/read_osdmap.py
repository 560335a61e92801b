"""An OSDMap as JSON: what `ceph osd dump -f json` and `osdmaptool --dump json` write.

Weights and affinities are decimal here, but stand for 16.16 fixed point, so they are rounded to
that. A group is named ``pool.seed`` with the seed in hex. One oddity is Ceph's own: the list
`primary_temp` has no objects in it but names and numbers in turn. Every fault names its field's
path.
"""

import re
from collections.abc import Mapping
from typing import Any

from vmlib.ceph.crush.facts import NONE, ONE
from vmlib.ceph.crush.read_json import get, unique
from vmlib.ceph.osd import Osd
from vmlib.ceph.placement import PgId
from vmlib.ceph.pools import ERASURE, MOST_PGS, REPLICATED, Pool
from vmlib.ceph.upmap import Exchange
from vmlib.errors import BadInput, Unsupported
from vmlib.numbers import decimal, whole

MASKED = ("unknown", "luminous", "mimic", "nautilus", "octopus", "pacific")
"""Releases in which a rule's `min_size` and `max_size` count; Quincy took them away."""

RJENKINS = 2
MOST_OSDS = 1 << 20


def read_pgid(text: Any, field: str) -> PgId:
    """Return (pool, seed) of a group's name."""
    match = re.fullmatch(r"(\d{1,18})\.([0-9a-f]{1,8})", text) if isinstance(text, str) else None
    if match is None:
        raise BadInput(field, f"{text!r} is no placement group; write pool.seed, as in 1.2f")
    return int(match[1]), int(match[2], 16)


def read_osdmap(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an `OSDMap` but its CRUSH map, by name."""
    pools: dict[int, Pool] = {}
    for i, raw in enumerate(get(data, "pools", "", list)):
        pool = _pool(raw, f"pools[{i}]")
        unique(pools, pool.pool, pool, f"pools[{i}].pool")
    max_osd = _between(data, "max_osd", "", 0, MOST_OSDS)
    osds: dict[int, Osd] = {}
    for i, raw in enumerate(get(data, "osds", "", list)):
        at = f"osds[{i}]"
        number = _between(raw, "osd", at, 0, max_osd - 1)
        up = bool(_between(raw, "up", at, 0, 1))
        weights = (_fixed(raw, name, at) for name in ("weight", "primary_affinity"))
        unique(osds, number, Osd(number, up, *weights), f"{at}.osd")
    if get(data, "pg_upmap_primaries", "", list, []):
        raise Unsupported("pg_upmap_primaries (Ceph 18 and later) are not modelled.")
    release = get(data, "require_osd_release", "", str, "unknown")
    return {
        "epoch": _between(data, "epoch", "", 0, (1 << 32) - 1),
        "osds": osds,
        "pools": pools,
        "max_osd": max_osd,
        "pg_upmap": _by_pg(data, "pg_upmap", "osds"),
        "pg_upmap_items": _by_pg(data, "pg_upmap_items", "mappings"),
        "pg_temp": _by_pg(data, "pg_temp", "osds"),
        "primary_temp": _primary_temp(get(data, "primary_temp", "", list, [])),
        "rule_masks": release in MASKED,
    }


def _between(raw: Any, key: str, at: str, low: int, high: int) -> int:
    field = f"{at}.{key}" if at else key
    return whole(get(raw, key, at, int), field, low, high)


def _fixed(raw: Any, key: str, at: str) -> int:
    """Return a decimal number from 0 to 1 as 16.16."""
    return round(decimal(raw.get(key), f"{at}.{key}", 0, 1) * ONE)


def _pool(raw: Any, at: str) -> Pool:
    kind = get(raw, "type", at, int)
    if kind not in (REPLICATED, ERASURE):
        raise BadInput(f"{at}.type", f"is {kind}; pools are replicated (1) or erasure-coded (3)")
    if get(raw, "object_hash", at, int, RJENKINS) != RJENKINS:
        raise BadInput(f"{at}.object_hash", f"is {raw['object_hash']}; only rjenkins (2) is known")
    return Pool(
        pool=_between(raw, "pool", at, 0, (1 << 63) - 1),
        pool_name=get(raw, "pool_name", at, str),
        size=_between(raw, "size", at, 1, 255),
        min_size=_between(raw, "min_size", at, 0, 255),
        pg_num=_between(raw, "pg_num", at, 1, MOST_PGS),
        pg_placement_num=_between(raw, "pg_placement_num", at, 1, MOST_PGS),
        crush_rule=_between(raw, "crush_rule", at, 0, 255),
        type=kind,
        flags=get(raw, "flags", at, int),
    )


def _by_pg(data: Mapping[str, Any], key: str, inner: str) -> dict[PgId, Any]:
    """Return one of the tables of exceptions by group."""
    table: dict[PgId, Any] = {}
    for i, raw in enumerate(get(data, key, "", list, [])):
        at = f"{key}[{i}]"
        pg = read_pgid(get(raw, "pgid", at, str), f"{at}.pgid")
        if pg in table:
            raise BadInput(f"{at}.pgid", f"{raw['pgid']} is there twice")
        rows, field = get(raw, inner, at, list), f"{at}.{inner}"
        if inner == "mappings":
            table[pg] = tuple(_exchange(row, f"{field}[{j}]") for j, row in enumerate(rows))
        else:
            table[pg] = tuple(whole(row, f"{field}[{j}]", 0, NONE) for j, row in enumerate(rows))
    return table


def _primary_temp(rows: list[Any]) -> dict[PgId, int]:
    if len(rows) % 2:
        raise BadInput("primary_temp", "must have an OSD after each group")
    return {
        read_pgid(rows[i], f"primary_temp[{i}]"): whole(
            rows[i + 1], f"primary_temp[{i + 1}]", 0, NONE
        )
        for i in range(0, len(rows), 2)
    }


def _exchange(raw: Any, at: str) -> Exchange:
    return _between(raw, "from", at, 0, NONE), _between(raw, "to", at, 0, NONE)
