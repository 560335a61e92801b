"""A CRUSH map: devices, types, buckets, rules, tunables and weight-sets, as plain facts.

This is the map as the cluster's monitors hold it (`ceph osd crush dump`): a tree whose leaves
are devices (ids from 0) and whose inner nodes are buckets (ids from -1 down). Weights are 16.16
fixed point: 0x10000 is 1.0. A device class has shadow buckets: ordinary buckets called
``name~class`` that hold that class's devices only.

`CrushMap` is what users of vmlib see. The methods that compute hand over to the modules beside
this one; this one only holds and checks. Not modelled: hash functions other than rjenkins1
(there is no other), and the straw lengths of a `straw` bucket as stored in a binary map: they
are computed again from the weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vmlib.errors import BadInput

if TYPE_CHECKING:
    from vmlib.ceph.crush.compare import Comparison
    from vmlib.trace import Trace

NONE = 0x7FFFFFFF
"""A hole in the answer of an `indep` rule: no device was found for that place."""

ONE = 0x10000
"""The weight 1.0."""

ALGORITHMS = ("uniform", "list", "tree", "straw", "straw2")
RULE_TYPES = {"replicated": 1, "erasure": 3, "msr_firstn": 4, "msr_indep": 5}

Weights = Mapping[int, int] | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Device:
    """A leaf: an OSD, with its device class ("" for none)."""

    id: int
    name: str
    device_class: str = ""


@dataclass(frozen=True, slots=True)
class Bucket:
    """An inner node: its items in order, and the 16.16 weight of each."""

    id: int
    name: str
    type: int
    alg: str
    items: tuple[int, ...]
    weights: tuple[int, ...]

    @property
    def weight(self) -> int:
        """The sum of the items' weights, 16.16."""
        return sum(self.weights)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a rule. For a choice, `arg1` is how many and `arg2` the type's number."""

    op: str
    arg1: int = 0
    arg2: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A named list of steps. `type` is one of the numbers in RULE_TYPES."""

    id: int
    name: str
    type: int
    steps: tuple[Step, ...]
    min_size: int = 1
    max_size: int = 10

    @property
    def is_msr(self) -> bool:
        """Whether this is a multi-step-retry rule (Ceph 19.2 and later)."""
        return self.type in (RULE_TYPES["msr_firstn"], RULE_TYPES["msr_indep"])


@dataclass(frozen=True, slots=True)
class Tunables:
    """The knobs that changed over the years; the defaults are the profile `jewel`, today's."""

    choose_local_tries: int = 0
    choose_local_fallback_tries: int = 0
    choose_total_tries: int = 50
    chooseleaf_descend_once: int = 1
    chooseleaf_vary_r: int = 1
    chooseleaf_stable: int = 1
    straw_calc_version: int = 1
    allowed_bucket_algs: int = 54
    msr_descents: int = 100
    msr_collision_tries: int = 100


PROFILES = {
    "legacy": Tunables(2, 5, 19, 0, 0, 0, 0, 22),
    "bobtail": Tunables(0, 0, 50, 1, 0, 0, 0, 22),
    "firefly": Tunables(0, 0, 50, 1, 1, 0, 0, 22),
    "hammer": Tunables(0, 0, 50, 1, 1, 0, 1, 54),
    "jewel": Tunables(),
}
"""Named sets of tunables (docs.ceph.com, "CRUSH maps", Tunables). `argonaut` is `legacy`."""


@dataclass(frozen=True, slots=True)
class BucketArgs:
    """What a weight-set changes in one bucket: weights by position, and the ids hashed."""

    weight_set: tuple[tuple[int, ...], ...] = ()
    ids: tuple[int, ...] = ()


ChooseArgs = Mapping[int, BucketArgs]
"""A weight-set: what it changes, by bucket id."""


@dataclass(frozen=True)
class CrushMap:
    """A whole map. Read-only: to change it make another, with `dataclasses.replace`."""

    devices: Mapping[int, Device]
    types: Mapping[int, str]
    buckets: Mapping[int, Bucket]
    rules: Mapping[int, Rule]
    tunables: Tunables = Tunables()
    choose_args: Mapping[int, ChooseArgs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from vmlib.ceph.crush.validate import validate

        validate(self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a map file: JSON (`ceph osd crush dump`) or decompiled text, told by content."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            rule = "is a binary map; `crushtool -i FILE --dump` makes JSON of it"
            raise BadInput(path.name, rule) from error
        return cls.from_text(text)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the map that a JSON object describes; errors name the field's path."""
        from vmlib.ceph.crush.read_json import read_json

        return cls(**read_json(data))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the map in a string: JSON if it starts with a brace, else decompiled text."""
        from vmlib.ceph.crush.read_json import parse
        from vmlib.ceph.crush.read_text import read_text

        return cls.from_json(parse(text)) if text.lstrip()[:1] == "{" else cls(**read_text(text))

    @classmethod
    def build(
        cls,
        *,
        racks: int = 0,
        hosts: int = 1,
        osds: int = 1,
        weight: float | Sequence[float] = 1.0,
        alg: str = "straw2",
        tunables: Tunables | str = "jewel",
    ) -> Self:
        """Return a regular tree; see `vmlib.ceph.crush.build.regular_tree`."""
        from vmlib.ceph.crush.build import regular_tree

        return cls(
            **regular_tree(
                racks=racks, hosts=hosts, osds=osds, weight=weight, alg=alg, tunables=tunables
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return the map as `ceph osd crush dump` gives it, as plain data."""
        from vmlib.ceph.crush.write_json import write_json

        return write_json(self)

    def to_text(self) -> str:
        """Return the map in the compiler's language, as `crushtool -d` (16.2) writes it."""
        from vmlib.ceph.crush.write_text import write_text

        return write_text(self)

    def rule(self, rule: int | str) -> Rule:
        """Return a rule by number or name."""
        for known in self.rules.values():
            if rule in (known.id, known.name) and not isinstance(rule, bool):
                return known
        names = ", ".join(known.name for known in self.rules.values())
        raise BadInput("rule", f"{rule!r} is not in this map; there are {names or 'none'}")

    def name_of(self, item: int) -> str:
        """Return the name of a device or bucket, or its number where it has none."""
        named = self.devices.get(item) if item >= 0 else self.buckets.get(item)
        return named.name if named else str(item)

    @property
    def max_devices(self) -> int:
        """One more than the largest device id."""
        return max(self.devices, default=-1) + 1

    def args(self, key: int | str | None) -> ChooseArgs:
        """Return a weight-set: None for none, a key, or "auto" (0, else -1, as crushtool)."""
        if key is None:
            return {}
        if key == "auto":
            return self.choose_args.get(0, self.choose_args.get(-1, {}))
        if not isinstance(key, int) or key not in self.choose_args:
            keys = ", ".join(str(k) for k in self.choose_args) or "none"
            raise BadInput("choose_args", f"{key!r} is not in this map; there are {keys}")
        return self.choose_args[key]

    def map(
        self,
        rule: int | str,
        x: int,
        n: int,
        weights: Weights = None,
        choose_args: int | str | None = None,
    ) -> list[int]:
        """Return the devices for input `x`: up to `n`, best first; holes are `NONE`.

        `weights` are 16.16 out-weights by device id, missing ones 1.0: 0 is out, 0x8000 keeps
        half of what the device would get.
        """
        from vmlib.ceph.crush.mapper import do_rule

        return do_rule(self, self.rule(rule), x, n, weights, self.args(choose_args))

    def map_many(
        self,
        rule: int | str,
        xs: Iterable[int] | NDArray[Any],
        n: int,
        weights: Weights = None,
        choose_args: int | str | None = None,
        engine: str = "numpy",
    ) -> NDArray[np.int32]:
        """Return `map` of many inputs: int32, shape (len(xs), n), short rows padded with -1.

        `engine` is "numpy", or "python" for the reference.
        """
        from vmlib.ceph.crush.fast import map_many

        return map_many(self, self.rule(rule), xs, n, weights, self.args(choose_args), engine)

    def explain(
        self,
        rule: int | str,
        x: int,
        n: int,
        weights: Weights = None,
        choose_args: int | str | None = None,
    ) -> "Trace":
        """Return every draw and every retry of one mapping, as a Trace of kind "map"."""
        from vmlib.ceph.crush.explain import explain

        return explain(self, self.rule(rule), x, n, weights, self.args(choose_args))

    def compare(
        self,
        other: "CrushMap",
        rule: int | str,
        n: int,
        xs: Iterable[int] = range(1024),
        weights: Weights = None,
    ) -> "Comparison":
        """Return what moves between this map and another; see `Comparison`."""
        from vmlib.ceph.crush.compare import compare

        return compare(self, other, rule, n, xs, weights)
