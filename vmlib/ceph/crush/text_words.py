"""The words of a CRUSH map's text, one after the other, and where each stands.

What a map says is in `read_text`; here are words, numbers, names and weights, and errors that name
the line. A weight is 16.16 by way of a 32-bit float, cut off, as in the compiler.
"""

import re

import numpy as np

from vmlib.ceph.crush.facts import ONE
from vmlib.errors import BadInput

TOKEN = re.compile(r"#[^\n]*|[{}\[\]]|[^\s{}\[\]#]+")
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?")
NAME = re.compile(r"[A-Za-z0-9_~.\-]+")


def fixed(text: str, field: str) -> int:
    """Return a written weight as 16.16: through a 32-bit float, cut off."""
    if not NUMBER.fullmatch(text):
        raise BadInput(field, f"{text!r} is not a number")
    value = np.float32(min(float(text), 1e9))
    if not 0 <= value < 65536:
        raise BadInput(field, f"{text} is no weight; it must be from 0 to 65,535")
    return int(value * np.float32(ONE))


class Words:
    """A walk over the words of the text, with one word of look-ahead."""

    def __init__(self, text: str) -> None:
        self.words: list[tuple[str, int]] = []
        for number, line in enumerate(text.splitlines(), 1):
            found = TOKEN.findall(line)
            self.words += [(word, number) for word in found if not word.startswith("#")]
        self.at = 0

    @property
    def here(self) -> str:
        """Where the word stands, for errors: "line 3"."""
        line = self.words[min(self.at, len(self.words) - 1)][1] if self.words else 1
        return f"line {line}"

    def wrong(self, rule: str) -> BadInput:
        """Return an error about the word that is next."""
        return BadInput(self.here, rule)

    def peek(self) -> str:
        """Return the next word, empty at the end."""
        return self.words[self.at][0] if self.at < len(self.words) else ""

    def next(self) -> str:
        """Take the next word; an error at the end."""
        word = self.peek()
        if not word:
            raise self.wrong("the text ends too soon")
        self.at += 1
        return word

    def expect(self, wanted: str) -> None:
        """Take the next word, which must be this one."""
        if self.peek() != wanted:
            raise self.wrong(f"expected {wanted!r}, found {self.peek()!r}")
        self.at += 1

    def accept(self, wanted: str) -> bool:
        """Take the next word if it is this one; return whether it was."""
        found = self.peek() == wanted
        self.at += found
        return found

    def number(self) -> int:
        """Take a whole number."""
        word = self.peek()
        if not re.fullmatch(r"-?[0-9]{1,20}", word):
            raise self.wrong(f"{word!r} is not a whole number")
        self.at += 1
        return int(word)

    def name(self) -> str:
        """Take a name."""
        word = self.peek()
        if not NAME.fullmatch(word):
            raise self.wrong(f"{word!r} is not a name")
        self.at += 1
        return word

    def weight(self) -> int:
        """Take a weight, and return it as 16.16."""
        value = fixed(self.peek(), self.here)
        self.at += 1
        return value
