"""Check records: what was held against which real system, as `checks/ROOM/ID.json`.

A record is written by the test run and by nothing else (`make checks`). The test run compares
each record with what comes out today; the page build reads it for badges and tables and greys
it when a file it covers is no longer the file that was checked.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CHECKS = ROOT / "checks"

KINDS = ("checked", "recorded", "specification")
FREE = ("date", "host", "tool_version", "timing")
"""Fields that may differ from run to run; everything else must come out the same."""


@dataclass(frozen=True)
class Record:
    """One committed record. `stale` lists covered files that have changed since."""

    id: str
    data: dict[str, Any]
    stale: tuple[str, ...]

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """(quantity, ours, the real system's) for the page's table."""
        real = self.data["real"]
        return [(name, value, real.get(name, "")) for name, value in self.data["ours"].items()]


def digest(path: str) -> str:
    """Return the SHA-256 of a file given relative to the project's root ("" if it is gone)."""
    file = ROOT / path
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def path_of(record_id: str) -> Path:
    """Return where the record of an id such as ``cpu/add-kvm`` is kept."""
    return CHECKS / f"{record_id}.json"


def load(record_id: str) -> Record:
    """Read one record and see whether the files it covers are still the same."""
    data = json.loads(path_of(record_id).read_text(encoding="utf-8"))
    stale = tuple(name for name in data["covers"] if digest(name) != data["sha256"].get(name))
    return Record(record_id, data, stale)


def all_ids() -> list[str]:
    """Return the ids of every committed record."""
    found = CHECKS.glob("*/*.json")
    return sorted(path.relative_to(CHECKS).with_suffix("").as_posix() for path in found)


def write(data: dict[str, Any]) -> None:
    """Write a record. Called by the test run only."""
    path = path_of(data["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def differences(committed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return one sentence per field in which a committed record and today's outcome differ."""
    names = [name for name in (*now, *committed) if name not in FREE]
    return [
        f"{name}: recorded {committed.get(name)!r}, today {now.get(name)!r}"
        for name in dict.fromkeys(names)
        if committed.get(name) != now.get(name)
    ]
