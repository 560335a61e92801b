"""What a caller got wrong is named; what he got right is left alone."""

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol, TypedDict, Unpack

import pytest

from vmlib.errors import BadInput, GuestError
from vmlib.given import fits, names_bad_input, said


class Readable(Protocol):
    def read(self, at: int, /) -> int:
        """Read."""


class Options(TypedDict, total=False):
    depth: int


class Memory:
    def read(self, at):
        return [7][at]


@names_bad_input
def act(
    memory: Readable,
    at: int,
    names: Sequence[str] = (),
    kind: Literal["a", "b"] = "a",
    **how: Unpack[Options],
) -> int:
    return memory.read(at) + len("".join(names)) + how.get("depth", 0) + {"a": 0, "b": 1}[kind]


@pytest.mark.parametrize(
    ("field", "given", "rule"),
    [
        ("memory", {"memory": None}, "is None; it must be an object with read"),
        ("at", {"at": "0"}, "is '0'; it must be a whole number"),
        ("names", {"names": [1]}, "is [1]; it must be a sequence, with text in it"),
        ("kind", {"kind": "c"}, "is 'c'; it must be one of 'a', 'b'"),
        ("depth", {"depth": "1"}, "is '1'; it must be a whole number"),
    ],
)
def test_the_argument_is_named(field, given, rule):
    with pytest.raises(BadInput) as told:
        act(**{"memory": Memory(), "at": 0, **given})
    assert (told.value.field, told.value.rule) == (field, rule)


def test_what_is_packed_for_c_is_named_too():
    @names_bad_input
    def packed(word: int) -> bytes:
        return struct.pack("<I", word)

    assert packed(1) == b"\1\0\0\0"
    with pytest.raises(BadInput, match=r"word: is 1\.5; it must be a whole number"):
        packed(1.5)


def test_an_error_that_is_no_argument_s_goes_on():
    assert act(Memory(), 0, ["x"], depth=1) == 9
    with pytest.raises(IndexError):
        act(Memory(), 1)
    with pytest.raises(TypeError, match="missing"):
        act(Memory())

    @names_bad_input
    def guest(at: int) -> None:
        raise GuestError("the guest did wrong")

    with pytest.raises(GuestError, match="did wrong"):
        guest("x")


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (1, int, True),
        (1.0, int, False),
        (1, float, True),
        (None, int | None, True),
        (2, bool, False),
        (True, bool, True),
        ("abc", Iterable[str], False),
        (["abc"], Iterable[str], True),
        ((1, 2), tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ((1, "2"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        ({1: 2}, dict[int, int], True),
        ([], dict[int, int], False),
        (len, Callable[[str], int], True),
        (3, Callable[[str], int], False),
    ],
)
def test_what_fits(value, hint, does):
    assert fits(value, hint) is does


def test_annotations_in_words():
    assert said(int | None) == "a whole number or None"
    assert said(Callable[[int], int]) == "a function"
    assert said(tuple[int, ...]) == "a tuple, with a whole number in it"
    assert said(bool) == "True or False"
