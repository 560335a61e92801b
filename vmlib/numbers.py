"""Numbers that callers and files give, checked: whoever gives a wrong one hears which it was.

`field` is the name of an argument or the path of a field in a file, as in ``pools[0].size``.
"""

from math import isfinite
from operator import index
from typing import Any

from vmlib.errors import BadInput


def whole(value: Any, field: str, low: int | None = None, high: int | None = None) -> int:
    """Return a whole number from `low` to `high`; one of numpy's will do, True and False not."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise BadInput(field, f"is {value!r}; it must be a whole number")
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"from {low}" if high is None else f"from {low} to {high}"
        raise BadInput(field, f"is {number}; it must be {bounds}")
    return number


def decimal(value: Any, field: str, low: float, high: float) -> float:
    """Return a number from `low` to `high`; not a number is none of them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(field, f"is {value!r}; it must be a number")
    if not (isfinite(value) and low <= value <= high):
        raise BadInput(field, f"is {value}; it must be from {low:g} to {high:g}")
    return value
