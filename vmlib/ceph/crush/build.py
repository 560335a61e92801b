"""Regular trees, for experiments: so many racks of so many hosts of so many OSDs.

Ids are given as `crushtool --build` would: devices from 0, buckets from -1 in the order root,
racks, hosts. One rule of each kind comes with the map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmlib.ceph.crush.facts import (
    ALGORITHMS,
    ONE,
    PROFILES,
    Bucket,
    Device,
    Rule,
    Step,
    Tunables,
)
from vmlib.errors import BadInput
from vmlib.numbers import decimal, whole

LARGEST = 1_000_000


def regular_tree(
    *,
    racks: int = 0,
    hosts: int = 1,
    osds: int = 1,
    weight: float | Sequence[float] = 1.0,
    alg: str = "straw2",
    tunables: Tunables | str = "jewel",
) -> dict[str, Any]:
    """Return the parts of a `CrushMap`: `racks` racks (0: no such level) of `hosts` of `osds`.

    `weight` is that of every OSD, or one for each OSD in order; 1.0 is by custom one TiB.
    Rules: `replicated` (firstn) and `erasure` (indep), both with one device a host.
    """
    for name, value, least in (("racks", racks, 0), ("hosts", hosts, 1), ("osds", osds, 1)):
        whole(value, name, least)
    if alg not in ALGORITHMS:
        raise BadInput("alg", f"{alg!r} is unknown; known are {', '.join(ALGORITHMS)}")
    if isinstance(tunables, str):
        if tunables not in PROFILES:
            raise BadInput("tunables", f"{tunables!r} is unknown; known are {', '.join(PROFILES)}")
        tunables = PROFILES[tunables]
    many_hosts = max(racks, 1) * hosts
    count = many_hosts * osds
    if count > LARGEST:
        raise BadInput("osds", f"{count} OSDs are more than {LARGEST}")
    each = list(weight) if isinstance(weight, Sequence | np.ndarray) else [weight] * count
    if len(each) != count:
        raise BadInput("weight", f"there are {len(each)} weights for {count} OSDs")
    fixed = [round(decimal(one, f"weight[{i}]", 0, 65535) * ONE) for i, one in enumerate(each)]

    types = {0: "osd", 1: "host"} | ({2: "rack", 3: "root"} if racks else {2: "root"})
    top = max(types)
    buckets: dict[int, Bucket] = {}

    def add(number: int, name: str, kind: int, items: Sequence[int]) -> None:
        weights = [fixed[i] if i >= 0 else buckets[i].weight for i in items]
        buckets[number] = Bucket(number, name, kind, alg, tuple(items), tuple(weights))

    first_host = -2 - racks
    for host in range(many_hosts):
        add(first_host - host, f"host{host}", 1, range(host * osds, (host + 1) * osds))
    for rack in range(racks):
        first = first_host - rack * hosts
        add(-2 - rack, f"rack{rack}", 2, range(first, first - hosts, -1))
    below = range(-2, -2 - racks, -1) if racks else range(-2, -2 - hosts, -1)
    add(-1, "default", top, below)
    take, emit = Step("take", -1), Step("emit")
    return {
        "devices": {i: Device(i, f"osd.{i}") for i in range(count)},
        "types": types,
        "buckets": {number: buckets[number] for number in sorted(buckets, reverse=True)},
        "rules": {
            0: Rule(0, "replicated", 1, (take, Step("chooseleaf_firstn", 0, 1), emit)),
            1: Rule(1, "erasure", 3, (take, Step("chooseleaf_indep", 0, 1), emit)),
        },
        "tunables": tunables,
    }
