"""Guests: small programs as bytes with their listings.

`images/NAME.asm` is the source and `images/NAME.lst` is what NASM made of it: its own listing,
which carries source line and bytes side by side. Readers need no assembler; `make guests` writes
the listings again and the tests prove that the bytes come from the source. Bytes that a reader
writes are given a listing by Capstone, where it is installed.

Of NASM's listings this reads what our guests use: 16-, 32- and 64-bit code in one file, data,
`%include`, and one section. No macros, and no references relative to another section.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vmlib.errors import BadInput
from vmlib.given import octets

IMAGES = Path(__file__).parent / "images"


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction of a guest: where it is, its bytes, its text and what it is for.

    `label` is the name that the source gives to the place, or empty; `bits` the width of the code.
    `data` marks bytes that are not there to be executed.
    """

    offset: int
    code: bytes
    text: str
    comment: str
    label: str = ""
    bits: int = 16
    data: bool = False


@dataclass(frozen=True)
class Guest:
    """A program. The listing may be empty.

    `at` is the only address where it runs, None if it runs anywhere. `entry` says how it starts:
    ``"real"`` in real mode at its first byte, ``"multiboot"`` as a Multiboot loader starts it.
    """

    name: str
    code: bytes
    listing: tuple[Line, ...]
    at: int | None = None

    @property
    def entry(self) -> str:
        """How it starts: an ELF file is for a Multiboot loader."""
        return "multiboot" if self.code.startswith(b"\x7fELF") else "real"

    def line(self, label: str) -> Line:
        """Return the line that has a label."""
        for line in self.listing:
            if line.label == label:
                return line
        known = ", ".join(line.label for line in self.listing if line.label)
        raise BadInput("label", f"{label!r} is not in {self.name}; there are {known or 'none'}")

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes, for the provenance of what they did."""
        return hashlib.sha256(self.code).hexdigest()

    @classmethod
    def from_bytes(cls, code: bytes, name: str = "guest") -> "Guest":
        """Wrap any bytes, with a listing of them as far as they read as instructions."""
        if not (code := octets(code, "code")):
            raise BadInput("code", "is empty; a guest has at least one byte")
        return cls(name, code, disassemble(code))


def load_guest(name: str) -> Guest:
    """Return a guest of the book by its name."""
    path = IMAGES / f"{name}.lst"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in IMAGES.glob("*.lst")))
        raise BadInput("guest", f"{name!r} is unknown; known are {known}")
    text = path.read_text(encoding="utf-8")
    listing = parse_listing(text)
    return Guest(name, b"".join(line.code for line in listing), listing, _origin(text))


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


# Line number, offset and bytes if the line has any, depth of %include, source. A "-" goes on in
# the next line; "<rep 1Fh>" stands for repetition.
_LISTED = re.compile(
    r"\s*\d+ (?:(?P<offset>[0-9A-F]{8}) (?P<code>[][0-9A-F]+)(?:<rep (?P<rep>[0-9A-F]+)h>)?"
    r"(?P<more>-)?)?\s*(?:<\d+>)?\s*(?P<source>.*)"
)
_SOURCE = re.compile(
    r"""(?:(?P<label>[.\w]+):)?\s*(?P<text>(?:"[^"]*"|'[^']*'|[^;"'])*?)\s*(?:;\s*(?P<comment>.*))?$"""
)
_DATA = re.compile(r"(times|align|d[bwdq])\b")
_ORIGIN = re.compile(r"^\s*\d+\s+org (0x[0-9a-f]+)", re.MULTILINE)


def parse_listing(text: str) -> tuple[Line, ...]:
    """Return the instructions and data in a listing that `nasm -l` wrote."""
    origin = _origin(text) or 0
    lines: list[Line] = []
    at, bits, label, scope, goes_on = 0, 16, "", "", False
    for raw in text.splitlines():
        if not (listed := _LISTED.match(raw)):
            continue
        if not goes_on:
            source = _SOURCE.match(listed["source"])
            if source is None:
                raise BadInput("listing", f"cannot be read: {raw!r}")
            if name := source["label"]:
                scope = scope if name[0] == "." else name
                label = scope + name if name[0] == "." else name
            if source["text"].startswith("bits "):
                bits = int(source["text"][5:])
        if not listed["offset"]:
            continue
        if int(listed["offset"], 16) != at:
            raise BadInput("listing", f"has a gap at offset {at:#x}")
        code = _bytes(listed["code"], origin) * int(listed["rep"] or "1", 16)
        if goes_on:
            lines[-1] = replace(lines[-1], code=lines[-1].code + code)
        else:
            assert source is not None
            what, why = source["text"], source["comment"] or ""
            lines.append(Line(at, code, what, why, label, bits, bool(_DATA.match(what))))
            label = ""
        goes_on = bool(listed["more"])
        at += len(code)
    return tuple(lines)


def _bytes(listed: str, origin: int) -> bytes:
    """Return the bytes of a listing's column. Addresses stand in it in brackets, without origin."""
    code = b""
    for piece in re.findall(r"\[[0-9A-F]+\]|[0-9A-F]+", listed):
        if piece[0] == "[":
            address = bytes.fromhex(piece[1:-1])
            value = int.from_bytes(address, "little") + origin
            code += value.to_bytes(len(address), "little")
        else:
            code += bytes.fromhex(piece)
    return code


def _origin(text: str) -> int | None:
    """Return the address after the source's `org`, or None if it has none."""
    found = _ORIGIN.search(text)
    return int(found[1], 16) if found else None


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
