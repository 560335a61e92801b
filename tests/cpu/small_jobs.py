"""The small guests for the box: what they come to, as JSON values."""

from small_guests import PROGRAMS
from test_both_engines import small


def outcomes(
    engine: str, names: list[str], looking: bool, apart: dict[str, int]
) -> list[dict[str, str]]:
    """What these guests come to on an engine; `looking` reads the registers at every exit.

    `apart` gives the address of a byte, by the guest's name, that is told by itself.
    """
    programs = {str(program): program for program in PROGRAMS}
    return [
        {
            what: repr(value)
            for what, value in small(
                engine, programs[name], looking, [apart[name]] if name in apart else []
            ).items()
        }
        for name in names
    ]
