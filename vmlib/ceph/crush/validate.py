"""What must hold in a CRUSH map before it is used: every fault is named by its field's path.

The paths are those of the JSON form, ``buckets[3].items[0].id``, counted in the map's order. A
map that passes can be mapped with any rule, and the mapping ends. Where the real compiler takes
a map that can do no good (a weight-set of the wrong length, a loop of buckets), it is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vmlib.ceph.crush.facts import (
    ALGORITHMS,
    RULE_TYPES,
    Bucket,
    BucketArgs,
    Device,
    MapFacts,
    Rule,
    Tunables,
)
from vmlib.errors import BadInput
from vmlib.given import check_fields, check_one
from vmlib.numbers import whole

MAX_WEIGHT = 0xFFFFFFFF
MAX_TRIES = 10_000
"""Ceph sets no bound to tries, and a mapping may take as long as it likes. Ours ends."""

SMALL_TUNABLES = {
    "chooseleaf_descend_once": 1,
    "chooseleaf_vary_r": 255,
    "chooseleaf_stable": 255,
    "straw_calc_version": 255,
}
"""Tunables that a map keeps as a yes or no, or in a byte, and their largest values."""

CHOICES = ("choose_firstn", "choose_indep", "chooseleaf_firstn", "chooseleaf_indep", "choosemsr")
SETTERS = (
    "set_choose_tries",
    "set_chooseleaf_tries",
    "set_choose_local_tries",
    "set_choose_local_fallback_tries",
    "set_chooseleaf_vary_r",
    "set_chooseleaf_stable",
    "set_msr_descents",
    "set_msr_collision_tries",
)
OPS = ("noop", "take", "emit", *CHOICES, *SETTERS)


def validate(crush: MapFacts) -> None:
    """Raise `BadInput` for the first fault found."""
    _check_kinds(crush)
    _check_devices(crush)
    _check_buckets(crush)
    _check_loops(crush)
    _check_rules(crush)
    for name in crush.tunables.__dataclass_fields__:
        most = SMALL_TUNABLES.get(name, MAX_TRIES)
        whole(getattr(crush.tunables, name), f"tunables.{name}", 0, most)
    _check_choose_args(crush)


def _check_kinds(crush: MapFacts) -> None:
    """Refuse what is not of the kind that is meant. A map from a file has none of it."""
    check_one(crush.tunables, Tunables, "tunables")
    for name in ("devices", "types", "buckets", "rules", "choose_args"):
        check_one(getattr(crush, name), Mapping[int, Any], name)
    for i, (number, type_name) in enumerate(crush.types.items()):
        whole(number, f"types[{i}].type_id")
        check_one(type_name, str, f"types[{i}].name")
    check_table(crush.devices, "devices", Device, "id")
    check_table(crush.buckets, "buckets", Bucket, "id")
    check_table(crush.rules, "rules", Rule, "id")
    for i, rule in enumerate(crush.rules.values()):
        for j, step in enumerate(rule.steps):
            check_fields(step, f"rules[{i}].steps[{j}]")


def check_table(table: Mapping[int, Any], name: str, kind: type, key: str) -> None:
    """Refuse entries of another kind, and those that do not stand under their own number."""
    for i, (number, entry) in enumerate(table.items()):
        at = f"{name}[{i}]"
        check_one(entry, kind, at)
        check_fields(entry, at)
        if whole(number, at) != getattr(entry, key):
            raise BadInput(f"{at}.{key}", f"is {getattr(entry, key)}, and stands under {number}")


def _check_names(table: str, key: str, names: Iterable[str]) -> None:
    """Refuse a name that another entry of the table has; a rule may have none."""
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name and first.setdefault(name, i) != i:
            raise BadInput(
                f"{table}[{i}].{key}", f"{name!r} is the name of {table}[{first[name]}] too"
            )


def _check_devices(crush: MapFacts) -> None:
    for i, device in enumerate(crush.devices.values()):
        whole(device.id, f"devices[{i}].id", 0, 1 << 20)
    if not crush.types or crush.types.get(0) is None:
        raise BadInput("types", "lacks type 0, the type of devices")
    for i, number in enumerate(crush.types):
        whole(number, f"types[{i}].type_id", 0, 0xFFFF)
    _check_names("types", "name", crush.types.values())
    _check_names("rules", "rule_name", [rule.name for rule in crush.rules.values()])


def _check_buckets(crush: MapFacts) -> None:
    names = {device.name: f"devices[{i}]" for i, device in enumerate(crush.devices.values())}
    for i, bucket in enumerate(crush.buckets.values()):
        at = f"buckets[{i}]"
        whole(bucket.id, f"{at}.id", -(1 << 20), -1)
        if bucket.name in names:
            rule = f"{bucket.name!r} is the name of {names[bucket.name]} too"
            raise BadInput(f"{at}.name", rule)
        names[bucket.name] = at
        if bucket.type not in crush.types or bucket.type == 0:
            raise BadInput(f"{at}.type_id", f"{bucket.type} is no bucket type of this map")
        if bucket.alg not in ALGORITHMS:
            rule = f"{bucket.alg!r} is unknown; known are {', '.join(ALGORITHMS)}"
            raise BadInput(f"{at}.alg", rule)
        if len(bucket.items) != len(bucket.weights):
            raise BadInput(f"{at}.items", "there must be one weight for each item")
        for j, (item, weight) in enumerate(zip(bucket.items, bucket.weights, strict=True)):
            if item not in (crush.devices if item >= 0 else crush.buckets):
                kind = "device" if item >= 0 else "bucket"
                raise BadInput(f"{at}.items[{j}].id", f"{item} is no {kind} of this map")
            whole(weight, f"{at}.items[{j}].weight", 0, MAX_WEIGHT)
        if bucket.weight > MAX_WEIGHT:
            raise BadInput(f"{at}.weight", "the items' weights together exceed 65,535")
        if bucket.alg == "uniform" and len(set(bucket.weights)) > 1:
            raise BadInput(f"{at}.items", "the items of a uniform bucket have one weight")


def _check_loops(crush: MapFacts) -> None:
    """Walk the tree from each bucket; a bucket met below itself closes a loop."""
    place = {bucket: i for i, bucket in enumerate(crush.buckets)}
    done: set[int] = set()
    for root in crush.buckets:
        path: list[tuple[int, int]] = [(root, 0)]
        above = {root}
        while path:
            bucket, j = path.pop()
            items = crush.buckets[bucket].items
            if j == len(items) or bucket in done:
                done.add(bucket)
                above.discard(bucket)
                continue
            path.append((bucket, j + 1))
            item = items[j]
            if item in above:
                field = f"buckets[{place[bucket]}].items[{j}].id"
                raise BadInput(field, f"{item} contains this bucket: the map has a loop")
            if item < 0 and item not in done:
                path.append((item, 0))
                above.add(item)


def _check_rules(crush: MapFacts) -> None:
    for i, rule in enumerate(crush.rules.values()):
        at = f"rules[{i}]"
        whole(rule.id, f"{at}.rule_id", 0, 255)
        if rule.type not in RULE_TYPES.values():
            raise BadInput(f"{at}.type", f"{rule.type!r} is no rule type")
        whole(rule.min_size, f"{at}.min_size", 0, 255)
        whole(rule.max_size, f"{at}.max_size", 0, 255)
        for j, step in enumerate(rule.steps):
            where = f"{at}.steps[{j}]"
            if step.op not in OPS:
                raise BadInput(f"{where}.op", f"{step.op!r} is unknown")
            if step.op == "take":
                if step.arg1 not in (crush.devices if step.arg1 >= 0 else crush.buckets):
                    raise BadInput(f"{where}.item", f"{step.arg1} is not in this map")
            elif step.op in CHOICES:
                whole(step.arg1, f"{where}.num", -MAX_TRIES, MAX_TRIES)
                if step.arg2 not in crush.types:
                    raise BadInput(f"{where}.type", f"{step.arg2} is no type of this map")
            elif step.op in SETTERS:
                whole(step.arg1, f"{where}.num", -MAX_TRIES, MAX_TRIES)


def _check_choose_args(crush: MapFacts) -> None:
    for key, args in crush.choose_args.items():
        whole(key, f"choose_args.{key}")
        if not isinstance(args, Mapping):
            raise BadInput(f"choose_args.{key}", "must give what changes by bucket")
        for i, (bucket_id, change) in enumerate(args.items()):
            at = f"choose_args.{key}[{i}]"
            check_one(change, BucketArgs, at)
            check_fields(change, at)
            bucket = crush.buckets.get(bucket_id)
            if bucket is None:
                raise BadInput(f"{at}.bucket_id", f"{bucket_id} is no bucket of this map")
            size = len(bucket.items)
            if change.ids and len(change.ids) != size:
                raise BadInput(f"{at}.ids", f"must have {size} ids, as the bucket has items")
            for j, row in enumerate(change.weight_set):
                if len(row) != size:
                    rule = f"must have {size} weights, as the bucket has items"
                    raise BadInput(f"{at}.weight_set[{j}]", rule)
                for k, weight in enumerate(row):
                    whole(weight, f"{at}.weight_set[{j}][{k}]", 0, MAX_WEIGHT)
