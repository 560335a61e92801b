"""Holding ours against the real system, and keeping a record of it.

`check(...)` is a context manager. Inside it a test puts ours and the real system's answer side by
side; on the way out the record is compared with the committed one, or written under
`--write-checks`. Only a passing test gets that far, so nothing else can make a record.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pytest
from vmbook import records

from vmlib.machine import host_name


@dataclass
class Check:
    """One comparison in progress."""

    cases: int = 0
    ours: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)

    def case(self, ours: Any, real: Any, name: str = "") -> None:
        """Count one case; fail when the two differ."""
        if ours != real:
            both = (text if len(text := repr(x)) < 200 else f"{text[:200]}…" for x in (ours, real))
            pytest.fail("{}: ours {}, the real system {}".format(name, *both), pytrace=False)
        self.cases += 1

    def show(self, quantity: str, ours: Any, real: Any) -> None:
        """A case that the page's table shows."""
        self.case(ours, real, quantity)
        self.ours[quantity] = str(ours)
        self.real[quantity] = str(real)


@dataclass
class Checker:
    """What the `check` fixture hands out."""

    test: str
    write: bool

    @contextmanager
    def __call__(
        self,
        id: str,
        *,
        what: str,
        tool: str,
        tool_version: str,
        covers: list[str],
        kind: str = "checked",
    ) -> Iterator[Check]:
        """Compare with the committed record of this id, or write it."""
        assert kind in records.KINDS
        done = Check()
        yield done
        assert done.cases, f"{id}: nothing was compared"
        now = {
            "id": id,
            "kind": kind,
            "what": what,
            "ours": done.ours,
            "real": done.real,
            "tool": tool,
            "tool_version": tool_version,
            "date": date.today().isoformat(),
            "host": f"{host_name()}, Python {platform.python_version()}",
            "cases": done.cases,
            "outcome": "equal",
            "test": self.test,
            "covers": covers,
            "sha256": {name: records.digest(name) for name in covers},
        }
        missing = [name for name, sha in now["sha256"].items() if not sha]
        assert not missing, f"{id}: covers files that do not exist: {missing}"
        if self.write:
            records.write(now)
            return
        path = records.path_of(id)
        assert path.is_file(), f"{id}: there is no record yet; `make checks` writes it"
        changed = records.differences(records.load(id).data, now)
        assert not changed, f"{id}: the record is outlived (`make checks`): " + "; ".join(changed)
