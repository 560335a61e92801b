"""`CrushMap`: a CRUSH map and what can be done with it, as users of vmlib see it.

The facts are in `facts.py`; each method hands over to the module that does the work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmlib.ceph.crush.build import regular_tree
from vmlib.ceph.crush.compare import Comparison, compare
from vmlib.ceph.crush.explain import explain
from vmlib.ceph.crush.facts import MapFacts, Tunables, Weights
from vmlib.ceph.crush.fast import map_many
from vmlib.ceph.crush.mapper import do_rule
from vmlib.ceph.crush.read_json import parse, read_file, read_json
from vmlib.ceph.crush.read_text import read_text
from vmlib.ceph.crush.run import check_weights
from vmlib.ceph.crush.validate import validate
from vmlib.ceph.crush.write_json import write_json
from vmlib.ceph.crush.write_text import write_text
from vmlib.given import names_bad_input
from vmlib.trace import Trace


@dataclass(frozen=True)
class CrushMap(MapFacts):
    """A whole map. Read-only: to change it make another, with `dataclasses.replace`."""

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a map file: JSON (`ceph osd crush dump`) or decompiled text, told by content."""
        return cls.from_text(read_file(path, "crushtool -i FILE --dump"))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the map that a JSON object describes; errors name the field's path."""
        return cls(**read_json(data))

    @classmethod
    @names_bad_input
    def from_text(cls, text: str) -> Self:
        """Return the map in a string: JSON if it starts with a brace, else decompiled text."""
        return cls.from_json(parse(text)) if text.lstrip()[:1] == "{" else cls(**read_text(text))

    @classmethod
    @names_bad_input
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
        return cls(
            **regular_tree(
                racks=racks, hosts=hosts, osds=osds, weight=weight, alg=alg, tunables=tunables
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return the map as `ceph osd crush dump` gives it, as plain data."""
        return write_json(self)

    def to_text(self) -> str:
        """Return the map in the compiler's language, as `crushtool -d` (16.2) writes it."""
        return write_text(self)

    @names_bad_input
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
        half of what the device would get. `BadInput` names the argument that is wrong.
        """
        check_weights(weights)
        return do_rule(self, self.rule(rule), x, n, weights, self.args(choose_args))

    @names_bad_input
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
        return map_many(self, self.rule(rule), xs, n, weights, self.args(choose_args), engine)

    @names_bad_input
    def explain(
        self,
        rule: int | str,
        x: int,
        n: int,
        weights: Weights = None,
        choose_args: int | str | None = None,
    ) -> Trace:
        """Return every draw and every retry of one mapping, as a Trace of kind "map"."""
        check_weights(weights)
        return explain(self, self.rule(rule), x, n, weights, self.args(choose_args))

    @names_bad_input
    def compare(
        self,
        other: "CrushMap",
        rule: int | str,
        n: int,
        xs: Iterable[int] = range(1024),
        weights: Weights = None,
    ) -> Comparison:
        """Return what moves between this map and another; see `Comparison`."""
        return compare(self, other, rule, n, xs, weights)
