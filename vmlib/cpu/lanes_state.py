"""What every lanes trace has in common: the state of a step, and where the trace comes from.

The scene draws four lanes, the registers, the guest's code with one line marked, the exit if there
is one, and what was sent so far. Left out: the sentences, which are each recorder's own.
"""

import platform
from collections.abc import Sequence
from typing import Any

from vmlib.cpu.engines import probe
from vmlib.cpu.guests import Guest
from vmlib.trace import Provenance


def lanes_state(
    crossing: tuple[str, str] | None,
    registers: Sequence[Sequence[str]],
    code: Sequence[Sequence[str]],
    line: int,
    left: tuple[str, str] | None = None,
    output: str = "",
) -> dict[str, Any]:
    """Return the state of one step.

    `crossing`: from one lane to another. `registers`: name and value as shown. `code`: rows of
    address, bytes and text; `line` is the row of the step, below 0 for none. `left`: reason and
    detail of an exit.
    """
    return {
        "crossing": list(crossing) if crossing else None,
        "registers": registers,
        "code": code,
        "line": line,
        "exit": {"reason": left[0], "detail": left[1]} if left else None,
        "output": output,
    }


def provenance(engine: str, guest: Guest, shown_as: str = "") -> Provenance:
    """Return where a trace recorded here and now comes from; `shown_as` renames the engine."""
    return Provenance(
        engine=shown_as or engine,
        versions={"engine": probe(engine).version, "Python": platform.python_version()},
        host=f"{platform.system()} {platform.release()} {platform.machine()}",
        guest_sha256=guest.sha256,
    )
