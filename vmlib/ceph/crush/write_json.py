"""A CRUSH map as JSON: what `ceph osd crush dump` and `crushtool --dump` write, written.

The exact form: read by `read_json` again it gives the same map. Everything stands in the dump's
order: buckets from -1 down, everything else from 0 up.
"""

from typing import Any

from vmlib.ceph.crush.facts import ONE, BucketArgs, MapFacts, Step, Tunables
from vmlib.ceph.crush.read_json import OPCODES
from vmlib.ceph.crush.validate import CHOICES, SETTERS


def write_json(crush: MapFacts) -> dict[str, Any]:
    """Return the map as plain data, everything in the order of the dump."""
    devices = [
        {"id": d.id, "name": d.name} | ({"class": d.device_class} if d.device_class else {})
        for _, d in sorted(crush.devices.items())
    ]
    buckets = [
        {
            "id": bucket.id,
            "name": bucket.name,
            "type_id": bucket.type,
            "type_name": crush.types[bucket.type],
            "weight": bucket.weight,
            "alg": bucket.alg,
            "hash": "rjenkins1",
            "items": [
                {"id": item, "weight": weight, "pos": i}
                for i, (item, weight) in enumerate(zip(bucket.items, bucket.weights, strict=True))
            ],
        }
        for _, bucket in sorted(crush.buckets.items(), reverse=True)
    ]
    rules = [
        {
            "rule_id": rule.id,
            "rule_name": rule.name,
            "ruleset": rule.id,
            "type": rule.type,
            "min_size": rule.min_size,
            "max_size": rule.max_size,
            "steps": [_step_json(crush, step) for step in rule.steps],
        }
        for _, rule in sorted(crush.rules.items())
    ]
    names = [name for name in Tunables.__dataclass_fields__ if not name.startswith("msr_")]
    if any(rule.is_msr for rule in crush.rules.values()):
        names = list(Tunables.__dataclass_fields__)
    return {
        "devices": devices,
        "types": [
            {"type_id": number, "name": name} for number, name in sorted(crush.types.items())
        ],
        "buckets": buckets,
        "rules": rules,
        "tunables": {name: getattr(crush.tunables, name) for name in names},
        "choose_args": {
            str(key): [_args_json(*one) for one in sorted(args.items(), reverse=True)]
            for key, args in sorted(crush.choose_args.items())
        },
    }


def _step_json(crush: MapFacts, step: Step) -> dict[str, Any]:
    for opcode, op in OPCODES.items():
        if step.op == op:
            return {"opcode": opcode, "arg1": step.arg1, "arg2": 0}
    if step.op == "take":
        return {"op": "take", "item": step.arg1, "item_name": crush.name_of(step.arg1)}
    if step.op in CHOICES:
        return {"op": step.op, "num": step.arg1, "type": crush.types[step.arg2]}
    return {"op": step.op} | ({"num": step.arg1} if step.op in SETTERS else {})


def _args_json(bucket: int, change: BucketArgs) -> dict[str, Any]:
    rows: dict[str, Any] = {"bucket_id": bucket}
    if change.weight_set:
        rows["weight_set"] = [
            [w // ONE if w % ONE == 0 else w / ONE for w in row] for row in change.weight_set
        ]
    if change.ids:
        rows["ids"] = list(change.ids)
    return rows
