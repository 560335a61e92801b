"""What a caller got wrong, named: which argument it was, and what it must be.

To look at every argument in advance would cost more than a page walk. So a function does its work,
and only where it stumbles are its arguments held against their annotations. The first that does
not fit is named in a `BadInput`; where all of them fit the error is our own, and goes on as it is.

Left out: bounds, which the functions know themselves; a call with an argument too many or too few,
which Python names already; keys and values of a dictionary.
"""

import inspect
import struct
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ctypes import ArgumentError
from functools import cache, wraps
from operator import index
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from vmlib.errors import BadInput, VmlibError

STUMBLES = (
    TypeError,
    AttributeError,
    ValueError,
    LookupError,
    ArithmeticError,
    ArgumentError,
    struct.error,
)
"""What Python raises where a value is not of the kind that is meant."""

P = ParamSpec("P")
R = TypeVar("R")


def names_bad_input(act: Callable[P, R]) -> Callable[P, R]:
    """Let a function name the argument that it stumbles over, in a `BadInput`."""

    @wraps(act)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return act(*args, **kwargs)
        except STUMBLES as error:
            try:
                given = inspect.signature(act).bind(*args, **kwargs).arguments
            except TypeError:  # not one of its calls
                raise error from None
            raise blamed(error, act, given) from None

    return named


def blamed(error: Exception, act: Callable[..., Any], given: Mapping[str, Any]) -> Exception:
    """Return the `BadInput` that names what was wrong of the arguments `given` to `act`.

    Where nothing was, and where `error` is one of ours, that is `error` itself.
    """
    if isinstance(error, VmlibError):
        return error
    hints, values = get_type_hints(act), dict(given)
    for name, hint in list(hints.items()):
        if get_origin(hint) is Unpack:  # **keywords, as a TypedDict says
            hints |= get_type_hints(get_args(hint)[0])
            values |= values.pop(name, {})
    asked = [(name, value, hints[name]) for name, value in values.items() if name in hints]
    for name, value, hint in asked:
        if not fits(value, hint):
            return BadInput(name, f"is {shown(value)}; it must be {said(hint)}")
    for name, value, hint in asked:  # numpy's integers overflow where Python's do not
        if hint is int and not isinstance(value, int):
            return BadInput(name, f"is {shown(value)}; it must be one of Python's own integers")
    return error


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is what an annotation says, as far as can be told."""
    if type(value) is hint:  # most are, and tables of them are long
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float):
        return _is_whole(value) or (hint is float and isinstance(value, float))
    if hint is bool:  # 0 and 1 will do, and numpy's own
        return type(value).__name__ in ("bool", "bool_") or (_is_whole(value) and value in (0, 1))
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if origin in (Iterable, Sequence, list):
        if not isinstance(value, origin) or isinstance(value, str | bytes):
            return False
        return not isinstance(value, Collection) or all(fits(one, inner[0]) for one in value)
    if inspect.isclass(origin):
        return isinstance(value, origin)
    if getattr(hint, "_is_protocol", False):
        return all(hasattr(value, name) for name in _members(hint))
    return not inspect.isclass(hint) or isinstance(value, hint)


def check_fields(fact: Any, at: str = "") -> None:
    """Raise `BadInput` for the first field of a dataclass that its annotation does not allow.

    `at` is the path of the fact itself, for those that stand in a table: ``devices[3]``.
    """
    for name, hint in _fields(fact.__class__):
        check_one(getattr(fact, name), hint, f"{at}.{name}" if at else name)


def check_one(value: Any, hint: Any, field: str) -> None:
    """Raise `BadInput` for a value that an annotation does not allow."""
    if not fits(value, hint):
        raise BadInput(field, f"is {shown(value)}; it must be {said(hint)}")


def octets(value: Any, field: str) -> bytes:
    """Return a copy of bytes, of a bytearray or of a memoryview; `BadInput` for all else."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadInput(field, f"is {shown(value)}; it must be bytes")
    return bytes(value)


@cache
def _fields(kind: type) -> tuple[tuple[str, Any], ...]:
    return tuple(get_type_hints(kind).items())


def said(hint: Any) -> str:
    """Return an annotation in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(said(one) for one in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is Callable:
        return "a function"
    if origin is not None:
        parts = [said(one) for one in inner if one is not ...]
        return f"a {origin.__name__.lower()}, with {', '.join(parts)} in it"
    if getattr(hint, "_is_protocol", False):
        return f"an object with {', '.join(sorted(_members(hint)))}"
    words = {
        int: "a whole number",
        bool: "True or False",
        float: "a number",
        str: "text",
        bytes: "bytes",
    }
    return words.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def shown(value: Any) -> str:
    """Return a value in at most forty characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _is_whole(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return True


def _members(protocol: type) -> set[str]:
    every = [one for one in protocol.__mro__ if getattr(one, "_is_protocol", False)]
    names = {name for one in every for name in (*vars(one), *one.__annotations__)}
    return {name for name in names if not name.startswith("_")}
