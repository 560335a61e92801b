"""Sizes, budgets and byte strings as people write them, read strictly.

`"64M"` is 64 MiB (powers of two, as QEMU's `-m` reads it), `"2s"` two seconds, `"1e6i"` a million
instructions, `"b0 02"` two bytes. Whatever else is written raises `BadInput` naming field and rule.
"""

import re

from vmlib.errors import BadInput

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_SIZE = 4 * KIB

_SUFFIX = {"": 1, "K": KIB, "M": MIB, "G": GIB}


def parse_size(value: int | str, field: str = "size") -> int:
    """Return a size in bytes from an int or from a string such as ``"64K"`` or ``"1G"``."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadInput(field, "give bytes as an int, or a string such as '64K'")
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d+)\s*([KMG]?)(?:i?B)?\s*", value, re.IGNORECASE | re.ASCII)
        if match is None:
            raise BadInput(field, f"{value!r} is not a size; write bytes, or '64K', '16M', '1G'")
        size = int(match[1]) * _SUFFIX[match[2].upper()]
    if size <= 0:
        raise BadInput(field, f"must be more than zero, not {size}")
    return size


def format_size(size: int) -> str:
    """Return the shortest exact spelling of a size: ``65536`` becomes ``"64K"``."""
    for suffix, unit in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def parse_hex(text: str, field: str = "bytes") -> bytes:
    """Return the bytes that a reader wrote as hex digits, in any grouping.

    Spaces, commas, line breaks and ``0x`` before a byte are allowed; ``; comments`` end a line.

    >>> parse_hex("b0 02, 0x04 02 ; add al, 2").hex()
    'b0020402'
    """
    digits = ""
    for number, line in enumerate(text.splitlines(), start=1):
        for word in re.split(r"[\s,]+", line.split(";")[0].strip()):
            word = re.sub(r"^0[xX]", "", word)
            if bad := re.search(r"[^0-9a-fA-F]", word):
                raise BadInput(field, f"line {number}: {bad[0]!r} is not a hex digit (0-9, a-f)")
            if len(word) % 2:
                raise BadInput(
                    field, f"line {number}: {word!r} has an odd number of digits; a byte has two"
                )
            digits += word
    return bytes.fromhex(digits)
