"""Guests: small programs as bytes with their listings.

`images/NAME.asm` is the source and `images/NAME.lst` is what NASM made of it: its own listing,
which carries source line and bytes side by side. Readers need no assembler; `make guests` writes
the listings again and the tests prove that the bytes come from the source. Bytes that a reader
writes are given a listing by Capstone, where it is installed.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vmlib.errors import BadInput

IMAGES = Path(__file__).parent / "images"


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction of a guest: where it is, its bytes, its text and what it is for."""

    offset: int
    code: bytes
    text: str
    comment: str


@dataclass(frozen=True)
class Guest:
    """A program for a flat, real-mode start. The listing may be empty."""

    name: str
    code: bytes
    listing: tuple[Line, ...]

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes, for the provenance of what they did."""
        return hashlib.sha256(self.code).hexdigest()

    @classmethod
    def from_bytes(cls, code: bytes, name: str = "guest") -> "Guest":
        """Wrap any bytes, with a listing of them as far as they read as instructions."""
        if not code:
            raise BadInput("code", "is empty; a guest has at least one byte")
        return cls(name, bytes(code), disassemble(bytes(code)))


def load_guest(name: str) -> Guest:
    """Return a guest of the book by its name."""
    path = IMAGES / f"{name}.lst"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in IMAGES.glob("*.lst")))
        raise BadInput("guest", f"{name!r} is unknown; known are {known}")
    listing = parse_listing(path.read_text(encoding="utf-8"))
    return Guest(name, b"".join(line.code for line in listing), listing)


def add_guest(a: int = 200, b: int = 100) -> Guest:
    """Return the guest that adds two bytes and prints the sum modulo 256 in decimal."""
    for name, value in (("a", a), ("b", b)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
            raise BadInput(name, f"must be a whole number from 0 to 255, not {value!r}")
    operands = {"A": a, "B": b}
    lines = []
    for line in load_guest("add").listing:
        mnemonic, _, last = line.text.rpartition(" ")
        if last in operands:  # the immediate is the instruction's last byte
            value = operands[last]
            line = replace(line, code=line.code[:-1] + bytes([value]), text=f"{mnemonic} {value}")
        lines.append(line)
    return Guest("add", b"".join(line.code for line in lines), tuple(lines))


_LISTING_LINE = re.compile(
    r"\s*\d+ (?P<offset>[0-9A-F]{8}) (?P<code>[0-9A-F]+)\s+(?:\w+:)?\s*(?P<text>[^;]*?)\s*"
    r"(?:;\s*(?P<comment>.*))?$"
)


def parse_listing(text: str) -> tuple[Line, ...]:
    """Return the instructions in a listing that `nasm -l` wrote."""
    lines: list[Line] = []
    for raw in text.splitlines():
        if match := _LISTING_LINE.match(raw):
            lines.append(
                Line(
                    int(match["offset"], 16),
                    bytes.fromhex(match["code"]),
                    match["text"],
                    match["comment"] or "",
                )
            )
    at = 0
    for line in lines:
        if line.offset != at:
            raise BadInput("listing", f"has a gap at offset {at:#x}")
        at += len(line.code)
    return tuple(lines)


def disassemble(code: bytes) -> tuple[Line, ...]:
    """Return 16-bit code as lines, up to the first byte that begins no instruction.

    Empty where Capstone is not installed: everything works without it, and shows less.
    """
    try:
        from capstone import CS_ARCH_X86, CS_MODE_16, Cs
    except ImportError:
        return ()
    found = Cs(CS_ARCH_X86, CS_MODE_16).disasm_lite(code, 0)
    return tuple(
        Line(offset, code[offset : offset + size], f"{mnemonic} {operands}".strip(), "")
        for offset, size, mnemonic, operands in found
    )
