"""Exceptions to CRUSH, by placement group: `pg_upmap` and `pg_upmap_items`.

The balancer and operators pin single placement groups with these (docs.ceph.com, "Using
pg-upmap"). An upmap names the whole set, an item exchanges one OSD for another. Neither may send
data to an OSD that is out: such an exception is skipped, and CRUSH's answer stands.
"""

from collections.abc import Callable, Sequence

Exchange = tuple[int, int]
"""(from, to)."""


def apply_upmap(
    raw: Sequence[int],
    whole: Sequence[int] | None,
    exchanges: Sequence[Exchange],
    is_out: Callable[[int], bool],
) -> tuple[int, ...]:
    """Return the set of OSDs after the exceptions of a placement group.

    `is_out` tells which OSDs must not get data. A whole set that names one of them is ignored, and
    the group's exchanges with it. Exchanges are made in order, each in the result of the one
    before; one that would name an OSD twice is skipped.
    """
    osds = list(raw)
    if whole is not None:
        if any(is_out(osd) for osd in whole):
            return tuple(osds)
        osds = list(whole)
    for old, new in exchanges:
        if old in osds and new not in osds and not is_out(new):
            osds[osds.index(old)] = new
    return tuple(osds)
