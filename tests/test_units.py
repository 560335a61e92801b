import doctest

import pytest

import vmlib.units
from vmlib.errors import BadInput
from vmlib.units import format_size, parse_hex, parse_size


@pytest.mark.parametrize(
    ("text", "size"), [("64K", 65536), ("16M", 1 << 24), ("1GiB", 1 << 30), (" 512 ", 512), (7, 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "64X", "-1K", "0", 0, -4096, "1.5M", None, True, "٤K"])
def test_bad_sizes(text):
    with pytest.raises(BadInput, match="ram"):
        parse_size(text, "ram")


@pytest.mark.parametrize("size", [1, 1000, 4096, 1 << 20, 3 << 30])
def test_format_is_the_inverse(size):
    assert parse_size(format_size(size)) == size


def test_hex_as_readers_write_it():
    assert parse_hex("b0 02\n0x04, 0x02 ; add\n; nothing\n f4") == bytes.fromhex("b0020402f4")
    assert parse_hex("B002") == b"\xb0\x02"
    assert parse_hex("") == b""


@pytest.mark.parametrize(
    ("text", "says"),
    [("b0 zz", "line 1: 'z' is not a hex digit"), ("b0\n0", "line 2: '0' has an odd number")],
)
def test_bad_hex_says_where(text, says):
    with pytest.raises(BadInput, match=says):
        parse_hex(text)


def test_docstring():
    assert doctest.testmod(vmlib.units).failed == 0
