"""The same map with one thing changed: a weight, or an item less.

What `ceph osd crush reweight` and `ceph osd crush remove` do to the tree: the item changes in every
bucket that holds it (a device class keeps it in a shadow bucket too), and on the way up to the
root each bucket is weighed anew, as the sum of what it holds. Left out: what these commands do to
rules and weight-sets. A weight-set keeps its numbers, and a bucket at which a rule starts can't be
taken away.
"""

from dataclasses import replace

from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.ceph.crush.facts import ONE, Bucket, Device
from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.numbers import decimal


@names_bad_input
def reweighted(crush: CrushMap, item: int | str, weight: float) -> CrushMap:
    """Return the map with another weight of one device, as a decimal: 1.0 is by custom one TiB."""
    number = find(crush, item)
    if number < 0:
        raise BadInput("item", f"{item!r} is a bucket; its weight is the sum of what it holds")
    decimal(weight, "weight", 0, 65535)
    buckets = dict(crush.buckets)
    for holder in [b for b in crush.buckets.values() if number in b.items]:
        _weigh(buckets, holder.id, number, round(weight * ONE))
    return replace(crush, buckets=buckets)


@names_bad_input
def removed(crush: CrushMap, item: int | str) -> CrushMap:
    """Return the map without a device or a bucket, and without what is in that bucket."""
    number = find(crush, item)
    for rule in crush.rules.values():
        if any(step.op == "take" and step.arg1 == number for step in rule.steps):
            raise BadInput("item", f"rule {rule.name!r} starts at {item!r}")
    gone = below(crush, number)
    buckets = dict(crush.buckets)
    for holder in [b for b in crush.buckets.values() if number in b.items]:
        at = holder.items.index(number)
        _weigh(buckets, holder.id, number, 0)
        old = buckets[holder.id]
        items, weights = (row[:at] + row[at + 1 :] for row in (old.items, old.weights))
        buckets[holder.id] = replace(old, items=items, weights=weights)
    kept = {i: bucket for i, bucket in buckets.items() if i not in gone}
    devices = {i: device for i, device in crush.devices.items() if i not in gone}
    sets = {
        key: {i: args for i, args in one.items() if i in kept and kept[i] == crush.buckets[i]}
        for key, one in crush.choose_args.items()
    }
    return replace(crush, buckets=kept, devices=devices, choose_args=sets)


def find(crush: CrushMap, item: int | str) -> int:
    """Return the id of a device or bucket, given by id or name."""
    named: list[Device | Bucket] = [*crush.devices.values(), *crush.buckets.values()]
    for one in named:
        if item in (one.id, one.name) and not isinstance(item, bool):
            return one.id
    raise BadInput("item", f"{item!r} is neither a device nor a bucket of this map")


def below(crush: CrushMap, item: int) -> set[int]:
    """Return an item and everything under it."""
    bucket = crush.buckets.get(item)
    return {item}.union(*(below(crush, one) for one in bucket.items)) if bucket else {item}


def _weigh(buckets: dict[int, Bucket], holder: int, item: int, weight: int) -> None:
    """Set the weight of an item in a bucket, and of the bucket in all that hold it."""
    bucket = buckets[holder]
    at = bucket.items.index(item)
    weights = list(bucket.weights)
    weights[at] = weight
    buckets[holder] = replace(bucket, weights=tuple(weights))
    for above in [b for b in buckets.values() if holder in b.items]:
        _weigh(buckets, above.id, holder, sum(weights))
