"""A CRUSH map as text: the language of `crushtool -c` and `crushtool -d`, read.

Text is lossy by nature. Weights stand there with three decimals (five since Ceph 20), and the
compiler turns them into 16.16 by way of a 32-bit float, cutting off. This reader does the same,
so a map read here is the map that the compiler makes; it need not be the map that was printed.

Tunables that are not named have their oldest values (`legacy`), as in the compiler. Shadow
buckets of device classes take the ids the text gives; the others get the first free ones. They
are made where the first rule stands, so a map without rules has none.
"""

import re
from collections.abc import Mapping
from typing import Any

from vmlib.ceph.crush.facts import (
    ONE,
    PROFILES,
    RULE_TYPES,
    Bucket,
    BucketArgs,
    Device,
    Rule,
    Step,
    Tunables,
)
from vmlib.ceph.crush.shadows import add_shadows
from vmlib.ceph.crush.text_words import Words
from vmlib.ceph.crush.validate import SETTERS, SMALL_TUNABLES
from vmlib.errors import BadInput

ALIASES = {"pool": "replicated"}


def read_text(text: str) -> dict[str, Any]:
    """Return the parts of a `CrushMap`, by name. Errors give the line."""
    return _Reader(text).read()


class _Reader(Words):
    """The grammar: what is known of the map by the word that it stands at."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tunables: dict[str, int] = {}
        self.devices: dict[int, Device] = {}
        self.types: dict[int, str] = {}
        self.buckets: dict[int, Bucket] = {}
        self.rules: dict[int, Rule] = {}
        self.choose_args: dict[int, Mapping[int, BucketArgs]] = {}
        self.ids: dict[str, int] = {}
        self.shadow_ids: dict[tuple[int, str], int] = {}
        self.takes: list[tuple[int, int, int, str, str]] = []

    def add(self, table: dict[int, Any], key: int, value: Any) -> None:
        if key in table:
            raise self.wrong(f"{key} is there twice")
        table[key] = value

    def read(self) -> dict[str, Any]:
        while word := self.peek():
            if word == "tunable":
                self.tunable()
            elif word == "device":
                self.device()
            elif word == "type":
                self.at += 1
                self.add(self.types, self.number(), self.name())
            elif word == "rule":
                self.rule()
            elif word == "choose_args":
                self.weight_sets()
            elif word in self.types.values():
                self.bucket()
            else:
                raise self.wrong(f"{word!r} is neither a section nor a type of this map")
        if not self.devices and not self.types:
            raise BadInput("map", "is empty")
        self.resolve_takes()
        return {
            "devices": self.devices,
            "types": self.types,
            "buckets": self.buckets,
            "rules": self.rules,
            "tunables": Tunables(**self.known_tunables()),
            "choose_args": self.choose_args,
        }

    def known_tunables(self) -> dict[str, int]:
        oldest = PROFILES["legacy"]
        return {
            name: self.tunables.get(name, getattr(oldest, name))
            for name in Tunables.__dataclass_fields__
        }

    def tunable(self) -> None:
        self.at += 1
        if self.peek() not in Tunables.__dataclass_fields__:
            raise self.wrong(f"{self.peek()!r} is no tunable")
        name = self.next()
        value = self.number()
        if SMALL_TUNABLES.get(name) == 1:  # as the compiler: any number is a yes
            value = min(value, 1)
        elif name in SMALL_TUNABLES and value > 0:
            value &= 0xFF
        self.tunables[name] = value

    def device(self) -> None:
        self.at += 1
        number, name = self.number(), self.name()
        if number < 0:
            raise self.wrong(f"{number} is no device's id; they are from 0")
        kind = self.name() if self.accept("class") else ""
        self.add(self.devices, number, Device(number, name, kind))
        self.own_name(name, number)

    def own_name(self, name: str, number: int) -> None:
        if name in self.ids:
            raise self.wrong(f"{name!r} is the name of something else too")
        self.ids[name] = number

    def bucket(self) -> None:
        kinds = {name: number for number, name in self.types.items()}
        kind, name = kinds[self.next()], self.name()
        self.expect("{")
        number, alg = 0, "straw2"
        shadows: list[tuple[str, int]] = []
        items: list[tuple[int, int, int | None]] = []
        while not self.accept("}"):
            word = self.next()
            if word == "id":
                value = self.number()
                if self.accept("class"):
                    shadows.append((self.name(), value))
                elif value >= 0:
                    raise self.wrong(f"{value} is no bucket's id; they are below 0")
                else:
                    number = value
            elif word == "alg":
                alg = self.next()
            elif word == "hash":
                if (hash_ := self.next()) not in ("0", "rjenkins1"):
                    raise self.wrong(f"hash {hash_!r} is unknown; there is only rjenkins1")
            elif word == "item":
                items.append(self.item())
            else:
                raise self.wrong(f"{word!r} is nothing that a bucket has")
        if number == 0:
            number = min((*self.buckets, 0)) - 1
        for shadow_class, shadow in shadows:
            self.shadow_ids[number, shadow_class] = shadow
        placed = _in_position(items, self)
        self.add(
            self.buckets,
            number,
            Bucket(
                number,
                name,
                kind,
                alg,
                tuple(item for item, _ in placed),
                tuple(weight for _, weight in placed),
            ),
        )
        self.own_name(name, number)

    def item(self) -> tuple[int, int, int | None]:
        name = self.name()
        if name not in self.ids:
            raise self.wrong(f"{name!r} is not defined above")
        number = self.ids[name]
        weight = ONE if number >= 0 else self.buckets[number].weight
        position = None
        while self.peek() in ("weight", "pos"):
            if self.next() == "weight":
                weight = self.weight()
            else:
                position = self.number()
        return number, weight, position

    def rule(self) -> None:
        if not self.rules:  # as the compiler: what is defined behind the first rule has no shadows
            add_shadows(self.devices, self.buckets, self.shadow_ids)
        self.at += 1
        name = "" if self.peek() == "{" else self.name()
        self.expect("{")
        number, kind, sizes = 0, 1, [1, 10]
        steps: list[Step] = []
        while not self.accept("}"):
            word = self.next()
            if word in ("id", "ruleset"):
                number = self.number()
            elif word == "type":
                written = self.next()
                written = ALIASES.get(written, written)
                if re.fullmatch(r"[0-9]{1,3}", written):
                    kind = int(written)
                elif written in RULE_TYPES:
                    kind = RULE_TYPES[written]
                else:
                    raise self.wrong(f"{written!r} is no rule type")
            elif word in ("min_size", "max_size"):
                sizes[word == "max_size"] = self.number()
            elif word == "step":
                steps.append(self.step(number, len(steps)))
            else:
                raise self.wrong(f"{word!r} is nothing that a rule has")
        self.add(self.rules, number, Rule(number, name, kind, tuple(steps), *sizes))

    def step(self, rule: int, place: int) -> Step:
        op = self.next()
        if op == "take":
            line = int(self.here.split()[1])
            name = self.name()
            kind = self.name() if self.accept("class") else ""
            self.takes.append((rule, place, line, name, kind))
            return Step("take", 0)
        if op in ("choose", "chooseleaf", "choosemsr"):
            mode = "" if op == "choosemsr" else f"_{self.next()}"
            if mode not in ("", "_firstn", "_indep"):
                raise self.wrong(f"{mode[1:]!r} is neither firstn nor indep")
            count = self.number()
            self.expect("type")
            kinds = {name: number for number, name in self.types.items()}
            if self.peek() not in kinds:
                raise self.wrong(f"{self.peek()!r} is no type of this map")
            return Step(op + mode, count, kinds[self.next()])
        if op in SETTERS:
            return Step(op, self.number())
        if op in ("emit", "noop"):
            return Step(op)
        raise self.wrong(f"{op!r} is no step")

    def resolve_takes(self) -> None:
        """Put in what the rules take, now that the shadow buckets are there."""
        names = {bucket.name: bucket.id for bucket in self.buckets.values()}
        for rule, place, line, name, kind in self.takes:
            wanted = f"{name}~{kind}" if kind else name
            found = names.get(wanted, None if kind else self.ids.get(name))
            if found is None:
                raise BadInput(f"line {line}", f"{wanted!r} is not in this map")
            old = self.rules[rule]
            steps = (*old.steps[:place], Step("take", found), *old.steps[place + 1 :])
            self.rules[rule] = Rule(old.id, old.name, old.type, steps, old.min_size, old.max_size)

    def weight_sets(self) -> None:
        self.at += 1
        key = self.number()
        key -= (1 << 64) if key >= 1 << 63 else 0  # -1 is written as 2^64 - 1
        self.expect("{")
        table: dict[int, BucketArgs] = {}
        while self.accept("{"):
            bucket, rows, ids = None, [], []
            while not self.accept("}"):
                word = self.next()
                if word == "bucket_id":
                    bucket = self.number()
                elif word == "weight_set":
                    self.expect("[")
                    while self.accept("["):
                        row = []
                        while not self.accept("]"):
                            row.append(self.weight())
                        rows.append(tuple(row))
                    self.expect("]")
                elif word == "ids":
                    self.expect("[")
                    while not self.accept("]"):
                        ids.append(self.number())
                else:
                    raise self.wrong(f"{word!r} is nothing that a weight-set has")
            if bucket is None:
                raise self.wrong("bucket_id is missing")
            if bucket in self.buckets and self.buckets[bucket].alg != "straw2":
                continue  # as the compiler: no other algorithm looks at it
            self.add(table, bucket, BucketArgs(tuple(rows), tuple(ids)))
        self.expect("}")
        if key in self.choose_args:
            raise self.wrong(f"choose_args {key} is there twice")
        self.choose_args[key] = table


def _in_position(
    items: list[tuple[int, int, int | None]], reader: _Reader
) -> list[tuple[int, int]]:
    """Return (item, weight) in order: those with a `pos` there, the others in the gaps."""
    size = len(items)
    places: dict[int, tuple[int, int]] = {}
    for number, weight, position in items:
        if position is not None:
            if not 0 <= position < size or position in places:
                raise reader.wrong(f"position {position} is outside the bucket or taken")
            places[position] = (number, weight)
    free = iter([place for place in range(size) if place not in places])
    for number, weight, position in items:
        if position is None:
            places[next(free)] = (number, weight)
    return [places[place] for place in range(size)]
