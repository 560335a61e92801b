"""What a CRUSH map says: devices, types, buckets, rules, tunables and weight-sets, plain facts.

This is the map as the cluster's monitors hold it (`ceph osd crush dump`): a tree whose leaves
are devices (ids from 0) and whose inner nodes are buckets (ids from -1 down). Weights are 16.16
fixed point: 0x10000 is 1.0. A device class has shadow buckets: ordinary buckets called
``name~class`` that hold that class's devices only.

The modules beside this one compute with `MapFacts`; `crush_map.py` puts them together. Not
modelled: hash functions other than rjenkins1 (there is no other), and the straw lengths of a
`straw` bucket as stored in a binary map: they are computed again from the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vmlib.errors import BadInput
from vmlib.given import names_bad_input

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
class MapFacts:
    """A whole map and the look-ups in it. `CrushMap` is this with all that can be done with it."""

    devices: Mapping[int, Device]
    types: Mapping[int, str]
    buckets: Mapping[int, Bucket]
    rules: Mapping[int, Rule]
    tunables: Tunables = Tunables()
    choose_args: Mapping[int, ChooseArgs] = field(default_factory=dict)

    def rule(self, rule: int | str) -> Rule:
        """Return a rule by number or name."""
        for known in self.rules.values():
            if rule in (known.id, known.name) and not isinstance(rule, bool):
                return known
        names = ", ".join(known.name for known in self.rules.values())
        raise BadInput("rule", f"{rule!r} is not in this map; there are {names or 'none'}")

    @names_bad_input
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
