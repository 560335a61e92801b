"""Trace: what a mechanism did, as a list of steps that can each be drawn alone.

Every room records into this one format and one player draws it. A step carries the whole state
after it, so a view can show step *k* without looking at its neighbours; `changed` says what is
new in it. JSON, schema 1::

    {"schema": 1, "kind": "lanes", "title": …, "provenance": {…}, "steps": […], "counters": {…}}

Addresses and 64-bit values are strings, because JavaScript's numbers are exact only up to 2^53.
Order that matters is a list, never the order of a dict. Recording costs nothing when off: a
mechanism takes `recorder: Recorder | None` and tests it once per event.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Self

from vmlib.errors import BadInput

SCHEMA = 1
KINDS = ("lanes", "walk", "ring", "flow", "map", "rulers")

Change = tuple[str, str, str]
"""(name, old, new), all as the reader sees them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event, and the whole state after it."""

    i: int
    where: str
    event: str
    text: str
    changed: tuple[Change, ...]
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace comes from: what ran it, in which versions, where, on what and when."""

    engine: str
    versions: Mapping[str, str]
    host: str
    guest_sha256: str | None = None
    recorded: str = field(default_factory=lambda: date.today().isoformat())


@dataclass(frozen=True, slots=True)
class Trace:
    """A finished recording: `kind` names the scene that draws it."""

    kind: str
    title: str
    provenance: Provenance
    steps: tuple[Step, ...]
    counters: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput("trace.kind", f"{self.kind!r} is unknown; known are {', '.join(KINDS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain JSON-ready data, keys in schema order."""
        plain = asdict(self)
        for step in plain["steps"]:
            step["changed"] = [list(change) for change in step["changed"]]
        return {"schema": SCHEMA, **plain, "steps": list(plain["steps"])}

    def to_json(self, indent: int | None = None) -> str:
        """Return the trace as JSON text (schema 1)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_dict(cls, data: object, source: str = "trace") -> Self:
        """Return the trace that plain JSON data describes; refuse anything else by name."""
        top = _fields(
            data,
            source,
            schema=int,
            kind=str,
            title=str,
            provenance=dict,
            steps=list,
            counters=dict,
        )
        if top["schema"] != SCHEMA:
            raise BadInput(f"{source}.schema", f"is {top['schema']}; this vmlib reads {SCHEMA}")
        where = f"{source}.provenance"
        origin = _fields(
            top["provenance"], where, engine=str, versions=dict, host=str, recorded=str
        )
        sha = origin.get("guest_sha256")
        if sha is not None and not isinstance(sha, str):
            raise BadInput(f"{where}.guest_sha256", "must be a string or null")
        steps = tuple(_step(raw, i, source) for i, raw in enumerate(top["steps"]))
        for name, value in top["counters"].items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise BadInput(f"{source}.counters.{name}", "must be a whole number")
        return cls(
            kind=top["kind"],
            title=top["title"],
            provenance=Provenance(
                origin["engine"], origin["versions"], origin["host"], sha, origin["recorded"]
            ),
            steps=steps,
            counters=top["counters"],
        )

    @classmethod
    def from_json(cls, text: str, source: str = "trace") -> Self:
        """Return the trace in JSON text; `source` names it in errors."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BadInput(source, f"is not JSON: {error}") from error
        return cls.from_dict(data, source)

    def save(self, path: str | Path) -> None:
        """Write the trace to a file, one step a line so that differences can be read."""
        head = self.to_dict()
        steps = ",\n  ".join(json.dumps(s, ensure_ascii=False) for s in head.pop("steps"))
        rest = json.dumps(head, ensure_ascii=False, indent=1)
        body = f'{rest[:-2]},\n "steps": [\n  {steps}\n ]\n}}\n'
        Path(path).write_text(body, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a trace file; a damaged one raises `BadInput` that names file, field and rule."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(path.name, f"is not UTF-8 text: {error}") from error
        return cls.from_json(text, path.name)


class Recorder:
    """Collects steps while a mechanism runs.

    `step` takes the state after an event and works out what changed in it since the step before,
    so that a mechanism states only facts. Lists of ``[name, value]`` pairs in a state (registers,
    say) are compared name by name; other keys are compared whole if listed in `watch`.
    """

    def __init__(self, kind: str, title: str, *, watch: tuple[str, ...] = ()) -> None:
        if kind not in KINDS:
            raise BadInput("kind", f"{kind!r} is unknown; known are {', '.join(KINDS)}")
        self.kind = kind
        self.title = title
        self.counters: dict[str, int] = {}
        self._watch = watch
        self._steps: list[Step] = []
        self._seen: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter; counters keep the order in which they first appear."""
        self.counters[name] = self.counters.get(name, 0) + by

    def step(self, where: str, event: str, text: str, state: Mapping[str, Any]) -> None:
        """Add one step. The state is kept by reference: hand over fresh lists."""
        now = dict(self._named_values(state))
        changed = tuple(
            (name, self._seen[name], value)
            for name, value in now.items()
            if name in self._seen and self._seen[name] != value
        )
        self._seen = now
        self._steps.append(Step(len(self._steps), where, event, text, changed, state))

    def finish(self, provenance: Provenance) -> Trace:
        """Return everything recorded so far as a Trace."""
        return Trace(self.kind, self.title, provenance, tuple(self._steps), dict(self.counters))

    def _named_values(self, state: Mapping[str, Any]) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        for key, value in state.items():
            if key in self._watch:
                pairs.append((key, str(value)))
            elif key == "registers":
                pairs.extend((str(name), str(shown)) for name, shown in value)
        return pairs


def _fields(data: object, source: str, **types: type) -> dict[str, Any]:
    """Return `data` as a dict after checking that each named field has its type."""
    if not isinstance(data, dict):
        raise BadInput(source, f"must be an object, not {type(data).__name__}")
    for name, wanted in types.items():
        if name not in data:
            raise BadInput(f"{source}.{name}", "is missing")
        value = data[name]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise BadInput(
                f"{source}.{name}", f"must be {wanted.__name__}, not {type(value).__name__}"
            )
    return data


def _step(raw: object, i: int, source: str) -> Step:
    where = f"{source}.steps[{i}]"
    got = _fields(raw, where, i=int, where=str, event=str, text=str, changed=list, state=dict)
    if got["i"] != i:
        raise BadInput(f"{where}.i", f"is {got['i']}; steps are numbered from 0 without gaps")
    for change in got["changed"]:
        if not (
            isinstance(change, list)
            and len(change) == 3
            and all(isinstance(part, str) for part in change)
        ):
            raise BadInput(f"{where}.changed", "each entry must be [name, old, new], all strings")
    changed = tuple((c[0], c[1], c[2]) for c in got["changed"])
    return Step(i, got["where"], got["event"], got["text"], changed, got["state"])
