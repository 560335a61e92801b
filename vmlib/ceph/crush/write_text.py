"""A CRUSH map as text: what `crushtool -d` of Ceph 16.2 prints, written.

The real compiler takes this text, and decompiles it to the same text again. Three decimals do
not hold a 16.16 weight: `to_json` is the exact form. A bucket's weight, which stands in a remark,
is therefore the sum of what the compiler reads, not of what the map has.

What the compiler of 16.2 does not take, or does not give back, is `Unsupported` here:
multi-step-retry rules, weights of devices above 100, sums from 32,768 on (they come back
negative), empty or weightless uniform buckets (it aborts), names that are not of letters, digits,
``_``, ``.`` and ``-``, and steps that the language lacks.
"""

import re
from collections.abc import Iterator, Mapping

from vmlib.ceph.crush.facts import (
    ONE,
    PROFILES,
    RULE_TYPES,
    Bucket,
    BucketArgs,
    MapFacts,
    Rule,
    Step,
    Tunables,
)
from vmlib.ceph.crush.shadows import add_shadows
from vmlib.ceph.crush.text_words import fixed
from vmlib.ceph.crush.validate import CHOICES, SETTERS
from vmlib.errors import Unsupported

DEVICE_LIMIT = 100 * ONE
SUM_LIMIT = 1 << 31
"""A bucket's weight is printed as a signed number of 32 bits."""
NAME = re.compile(r"[A-Za-z0-9_.\-]+")
NOTE = "\t\t# do not change unnecessarily"
ORDER_NOTES = {
    "list": "\t# add new items at the end; do not change order unnecessarily",
    "tree": "\t# do not change pos for existing items unnecessarily",
    "uniform": "\t# do not change bucket size ({size}) unnecessarily",
}


def write_text(crush: MapFacts) -> str:
    """Return the whole text, as the decompiler lays it out."""
    _check_names(crush)
    _check_shadows(crush)
    lines = ["# begin crush map"]
    legacy = PROFILES["legacy"]
    lines += [
        f"tunable {name} {getattr(crush.tunables, name)}"
        for name in Tunables.__dataclass_fields__
        if not name.startswith("msr_") and getattr(crush.tunables, name) != getattr(legacy, name)
    ]
    lines += ["", "# devices"]
    for device in sorted(crush.devices.values(), key=lambda d: d.id):
        kind = f" class {device.device_class}" if device.device_class else ""
        lines.append(f"device {device.id} {device.name}{kind}")
    lines += ["", "# types"]
    lines += [f"type {number} {name}" for number, name in sorted(crush.types.items())]
    lines += ["", "# buckets"]
    for bucket in _children_first(crush):
        lines += _bucket(crush, bucket)
    lines += ["", "# rules"]
    for rule in sorted(crush.rules.values(), key=lambda r: r.id):
        lines += _rule(crush, rule)
    if crush.choose_args:
        lines += ["", "# choose_args"]
        for key in sorted(crush.choose_args):
            lines += _weight_set(crush, key)
    return "\n".join([*lines, "", "# end crush map", ""])


def _check_names(crush: MapFacts) -> None:
    """Refuse names that the compiler cannot read; a shadow has those of its bucket and class."""
    known = {bucket.name for bucket in crush.buckets.values()}
    classes = {device.device_class for device in crush.devices.values()} - {""}
    names = [*known, *classes, *crush.types.values()]
    names += [each.name for table in (crush.devices, crush.rules) for each in table.values()]
    for name in names:
        plain, _, kind = name.partition("~")
        shadow = name in known and plain in known and kind in classes
        if not (shadow or NAME.fullmatch(name)):
            raise Unsupported(f"The compiler cannot read the name {name!r}. Use to_json.")


def _check_shadows(crush: MapFacts) -> None:
    """Refuse trees of device classes other than those that the compiler makes by itself."""
    plain = {bucket.name: bucket.id for bucket in crush.buckets.values() if "~" not in bucket.name}
    made = {number: crush.buckets[number] for number in plain.values()}
    given: dict[tuple[int, str], int] = {}
    for bucket in crush.buckets.values():
        name, shadow, kind = bucket.name.partition("~")
        if shadow:
            given[plain[name], kind] = bucket.id
    held = {item for bucket in made.values() for item in bucket.items if item < 0}
    if crush.rules and held <= made.keys():  # without rules it makes none
        add_shadows(crush.devices, made, given)
    if _items(made) != _items(crush.buckets):
        raise Unsupported("The buckets of device classes are not the compiler's. Use to_json.")


def _items(buckets: Mapping[int, Bucket]) -> dict[int, tuple[str, tuple[int, ...]]]:
    return {number: (bucket.name, bucket.items) for number, bucket in buckets.items()}


def _children_first(crush: MapFacts) -> Iterator[Bucket]:
    """Yield the buckets, without shadows, each after what it holds, -1 first."""
    done: set[int] = set()
    for root in sorted(crush.buckets, reverse=True):
        waiting = [root]
        while waiting:
            bucket = crush.buckets[waiting[-1]]
            missing = [i for i in bucket.items if i < 0 and i not in done]
            if missing:
                waiting += reversed(missing)
                continue
            waiting.pop()
            if bucket.id not in done:
                done.add(bucket.id)
                if "~" not in bucket.name:
                    yield bucket


def _weight(value: int) -> str:
    return f"{value / ONE:.3f}"


def _bucket(crush: MapFacts, bucket: Bucket) -> list[str]:
    lines = [f"{crush.types[bucket.type]} {bucket.name} {{", f"\tid {bucket.id}{NOTE}"]
    classes = dict.fromkeys(d.device_class for d in crush.devices.values() if d.device_class)
    by_name = {b.name: b.id for b in crush.buckets.values()}
    for kind in classes:
        if (shadow := by_name.get(f"{bucket.name}~{kind}")) is not None:
            lines.append(f"\tid {shadow} class {kind}{NOTE}")
    note = ORDER_NOTES.get(bucket.alg, "").format(size=len(bucket.items))
    total = sum(fixed(_weight(weight), bucket.name) for weight in bucket.weights)
    if total >= SUM_LIMIT:
        raise Unsupported(f"{bucket.name} weighs 32,768 or more, which comes back negative.")
    if bucket.alg == "uniform" and not total:
        raise Unsupported(f"{bucket.name} is uniform and weighs nothing: the compiler aborts.")
    lines += [f"\t# weight {_weight(total)}", f"\talg {bucket.alg}{note}"]
    lines.append("\thash 0\t# rjenkins1")
    for place, (item, weight) in enumerate(zip(bucket.items, bucket.weights, strict=True)):
        if item >= 0 and weight > DEVICE_LIMIT:
            raise Unsupported(
                f"{crush.name_of(item)} weighs {weight / ONE:g}: the compiler takes up to 100. "
                "Use to_json."
            )
        where = f" pos {place}" if bucket.alg in ("tree", "uniform") else ""
        lines.append(f"\titem {crush.name_of(item)} weight {_weight(weight)}{where}")
    return [*lines, "}"]


def _rule(crush: MapFacts, rule: Rule) -> list[str]:
    if rule.is_msr:
        raise Unsupported("The compiler of Ceph 16.2 has no multi-step-retry rules.")
    if not rule.steps:
        raise Unsupported(f"Rule {rule.name!r} has no steps: the compiler wants one.")
    kinds = {number: name for name, number in RULE_TYPES.items()}
    return [
        f"rule {rule.name} {{",
        f"\tid {rule.id}",
        f"\ttype {kinds[rule.type]}",
        f"\tmin_size {rule.min_size}",
        f"\tmax_size {rule.max_size}",
        *(f"\tstep {_step(crush, step)}" for step in rule.steps),
        "}",
    ]


def _step(crush: MapFacts, step: Step) -> str:
    if step.op == "noop" or "msr" in step.op or (step.op in SETTERS and step.arg1 < 0):
        raise Unsupported(f"The compiler has no step {step.op} {step.arg1}. Use to_json.")
    if step.op == "take":
        name, _, kind = crush.name_of(step.arg1).partition("~")
        return f"take {name} class {kind}" if kind else f"take {name}"
    if step.op in CHOICES:
        return f"{step.op.replace('_', ' ')} {step.arg1} type {crush.types[step.arg2]}"
    return f"{step.op} {step.arg1}" if step.op in SETTERS else step.op


def _weight_set(crush: MapFacts, key: int) -> list[str]:
    lines = [f"choose_args {key % (1 << 64)} {{"]
    for bucket, change in sorted(crush.choose_args[key].items(), reverse=True):
        if crush.buckets[bucket].alg != "straw2" or change == BucketArgs():
            continue  # it changes nothing, and the compiler drops it
        lines += ["  {", f"    bucket_id {bucket}"]
        if change.weight_set:
            lines.append("    weight_set [")
            for row in change.weight_set:
                lines.append(f"      [ {' '.join(map(_weight, row))} ]")
            lines.append("    ]")
        if change.ids:
            lines.append(f"    ids [ {' '.join(map(str, change.ids))} ]")
        lines.append("  }")
    return [*lines, "}"]
