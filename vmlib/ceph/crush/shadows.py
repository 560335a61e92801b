"""Device classes: for each class a shadow copy of the tree that holds that class's devices only.

A shadow is an ordinary bucket named ``name~class`` with an id of its own, which straw2 hashes
like any other: two maps with other shadow ids place data otherwise. Child buckets stay in it
even when they are empty, with weight 0. Ids that are given are kept; the others get the first
free negative number, children before parents, roots and classes in order, as the compiler does.

One thing cannot be followed. The shadow of a `tree` bucket is made in Ceph 16.2 by adding item
after item, and the sums of newly made inner nodes start from memory that nobody cleared (seen in
compiled maps: pointers in place of sums). Such a map places data by accident, and its dump does
not say how; here the sums are the sums.
"""

from collections.abc import Mapping

from vmlib.ceph.crush.facts import Bucket, Device
from vmlib.errors import BadInput


def add_shadows(
    devices: Mapping[int, Device],
    buckets: dict[int, Bucket],
    given: Mapping[tuple[int, str], int],
) -> None:
    """Add to `buckets` the shadow trees of all classes. `given` has ids by (bucket, class)."""
    classes = list(dict.fromkeys(d.device_class for d in devices.values() if d.device_class))
    plain = dict(buckets)
    inner = {item for bucket in plain.values() for item in bucket.items}
    roots = sorted(bucket for bucket in plain if bucket not in inner)
    used = {*plain, *given.values()}

    def shadow(number: int, kind: str, above: frozenset[int]) -> Bucket | None:
        """Return the shadow of a bucket, made if need be; None in a loop."""
        original = plain[number]
        name = f"{original.name}~{kind}"
        made = next((b for b in buckets.values() if b.name == name), None)
        if made is not None or number in above:
            return made
        items: list[tuple[int, int]] = []
        for item, weight in zip(original.items, original.weights, strict=True):
            if item >= 0:
                if devices[item].device_class == kind:
                    items.append((item, weight))
            elif child := shadow(item, kind, above | {number}):
                items.append((child.id, child.weight))
        chosen = given.get((number, kind))
        if chosen is None:
            chosen = next(i for i in range(-1, -len(used) - 2, -1) if i not in used)
            used.add(chosen)
        made = Bucket(
            chosen,
            name,
            original.type,
            original.alg,
            tuple(item for item, _ in items),
            tuple(weight for _, weight in items),
        )
        buckets[chosen] = made
        return made

    try:
        for root in roots:
            for kind in classes:
                shadow(root, kind, frozenset())
    except RecursionError:
        raise BadInput("buckets", "are nested too deep") from None
