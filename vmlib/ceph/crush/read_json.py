"""A CRUSH map as JSON: what `ceph osd crush dump` and `crushtool --dump` write, read.

This form is exact: weights are 16.16 whole numbers. Three oddities are Ceph's own. Weights in
`choose_args` are decimal numbers instead (1 means 1.0). Steps that set the older tunables have no
name, only ``{"opcode": 10, "arg1": …}``. Rules name types but buckets have both name and number.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmlib.ceph.crush.facts import (
    ONE,
    Bucket,
    BucketArgs,
    Device,
    Rule,
    Step,
    Tunables,
)
from vmlib.ceph.crush.validate import CHOICES, SETTERS
from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.numbers import decimal, whole

OPCODES = {
    10: "set_choose_local_tries",
    11: "set_choose_local_fallback_tries",
    12: "set_chooseleaf_vary_r",
    13: "set_chooseleaf_stable",
}
"""The step numbers that dumps show bare (`enum crush_opcodes`)."""

ALIASES = {"choose_msr": "choosemsr"}


def read_file(path: str | Path, exporter: str) -> str:
    """Return the text of a map's file; `exporter` makes JSON of a binary one."""
    check_one(path, str | Path, "path")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        rule = f"is a binary map; `{exporter}` makes JSON of it"
        raise BadInput(Path(path).name, rule) from error
    except (OSError, ValueError) as error:  # no such file, no text, or no name that a file has
        raise BadInput("path", f"{str(path)!r} can't be read: {error}") from error


def parse(text: str) -> Any:
    """Return the data in JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput("map", f"is not JSON: {error}") from error


def get(data: Any, key: str, at: str, kind: type, default: Any = None) -> Any:
    """Return `data[key]` after checking its type; `at` is the path of `data`."""
    if not isinstance(data, Mapping):
        raise BadInput(at or "map", f"must be an object, not {type(data).__name__}")
    value = data.get(key, default)
    field = f"{at}.{key}" if at else key
    if value is None:
        raise BadInput(field, "is missing")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadInput(field, f"must be {kind.__name__}, not {type(value).__name__}")
    return value


def unique(table: dict[int, Any], key: int, value: Any, field: str) -> None:
    """Add to a table, and refuse a number that is taken."""
    if key in table:
        raise BadInput(field, f"{key} is there twice")
    table[key] = value


def read_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a `CrushMap`, by name."""
    devices: dict[int, Device] = {}
    for i, raw in enumerate(get(data, "devices", "", list)):
        at = f"devices[{i}]"
        device = Device(
            get(raw, "id", at, int), get(raw, "name", at, str), get(raw, "class", at, str, "")
        )
        unique(devices, device.id, device, f"{at}.id")
    types: dict[int, str] = {}
    for i, raw in enumerate(get(data, "types", "", list)):
        at = f"types[{i}]"
        unique(types, get(raw, "type_id", at, int), get(raw, "name", at, str), f"{at}.type_id")
    buckets: dict[int, Bucket] = {}
    for i, raw in enumerate(get(data, "buckets", "", list)):
        bucket = _bucket(raw, f"buckets[{i}]")
        unique(buckets, bucket.id, bucket, f"buckets[{i}].id")
    numbers = {name: number for number, name in types.items()}
    rules: dict[int, Rule] = {}
    for i, raw in enumerate(get(data, "rules", "", list, [])):
        rule = _rule(raw, f"rules[{i}]", numbers)
        unique(rules, rule.id, rule, f"rules[{i}].rule_id")
    known = Tunables.__dataclass_fields__
    given = get(data, "tunables", "", dict, {})
    tunables = {name: get(given, name, "tunables", int) for name in known if name in given}
    return {
        "devices": devices,
        "types": types,
        "buckets": buckets,
        "rules": rules,
        "tunables": Tunables(**tunables),
        "choose_args": _choose_args(get(data, "choose_args", "", dict, {})),
    }


def _bucket(raw: Any, at: str) -> Bucket:
    items = get(raw, "items", at, list)
    if get(raw, "hash", at, str, "rjenkins1") != "rjenkins1":
        raise BadInput(f"{at}.hash", f"{raw['hash']!r} is unknown; there is only rjenkins1")
    return Bucket(
        id=get(raw, "id", at, int),
        name=get(raw, "name", at, str),
        type=get(raw, "type_id", at, int),
        alg=get(raw, "alg", at, str),
        items=tuple(get(item, "id", f"{at}.items[{j}]", int) for j, item in enumerate(items)),
        weights=tuple(get(item, "weight", f"{at}.items[{j}]", int) for j, item in enumerate(items)),
    )


def _rule(raw: Any, at: str, numbers: Mapping[str, int]) -> Rule:
    steps = [
        _step(step, f"{at}.steps[{j}]", numbers)
        for j, step in enumerate(get(raw, "steps", at, list))
    ]
    return Rule(
        id=get(raw, "rule_id", at, int),
        name=get(raw, "rule_name", at, str, ""),  # a rule may have none
        type=get(raw, "type", at, int),
        steps=tuple(steps),
        min_size=get(raw, "min_size", at, int, 1),
        max_size=get(raw, "max_size", at, int, 10),
    )


def _step(raw: Any, at: str, numbers: Mapping[str, int]) -> Step:
    if isinstance(raw, Mapping) and "op" not in raw and "opcode" in raw:
        opcode = get(raw, "opcode", at, int)
        if opcode not in OPCODES:
            raise BadInput(f"{at}.opcode", f"{opcode} is unknown")
        return Step(OPCODES[opcode], get(raw, "arg1", at, int))
    op = get(raw, "op", at, str)
    op = ALIASES.get(op, op)
    if op == "take":
        return Step(op, get(raw, "item", at, int))
    if op in CHOICES:
        kind = get(raw, "type", at, str)
        if kind not in numbers:
            raise BadInput(f"{at}.type", f"{kind!r} is no type of this map")
        return Step(op, get(raw, "num", at, int), numbers[kind])
    return Step(op, get(raw, "num", at, int) if op in SETTERS else 0)


def _fixed(value: Any, field: str) -> int:
    """Return a decimal weight as 16.16."""
    return round(decimal(value, field, 0, 65536) * ONE)


def _choose_args(raw: Mapping[str, Any]) -> dict[int, dict[int, BucketArgs]]:
    sets: dict[int, dict[int, BucketArgs]] = {}
    for key in raw:
        try:
            number = int(key)
        except ValueError:
            raise BadInput(f"choose_args.{key}", "the key must be a whole number") from None
        table: dict[int, BucketArgs] = {}
        for i, change in enumerate(get(raw, key, "choose_args", list)):
            at = f"choose_args.{key}[{i}]"
            rows = get(change, "weight_set", at, list, [])
            for j, row in enumerate(rows):
                if not isinstance(row, list):
                    raise BadInput(f"{at}.weight_set[{j}]", "must be a list of weights")
            ids = get(change, "ids", at, list, [])
            for j, item in enumerate(ids):
                whole(item, f"{at}.ids[{j}]")
            change_of = BucketArgs(
                tuple(
                    tuple(_fixed(w, f"{at}.weight_set[{j}][{k}]") for k, w in enumerate(row))
                    for j, row in enumerate(rows)
                ),
                tuple(ids),
            )
            unique(table, get(change, "bucket_id", at, int), change_of, f"{at}.bucket_id")
        sets[number] = table
    return sets
