"""The hash that CRUSH draws with: Robert Jenkins' 96-bit mix over one to five 32-bit words.

Every choice in CRUSH is this hash of small whole numbers: an input, an item, a retry. Nothing is
stored and nobody is asked, so every client that has the map finds the same place.

Models `CRUSH_HASH_RJENKINS1` (hash 0, the only one Ceph has). The mix is Jenkins' public-domain
function of 1996 (burtleburtle.net/bob/hash/doobs.html). What Ceph adds is the order in which the
words enter it, a seed and two filler words; those are facts of its wire format. `hash_many` is
the same on numpy arrays.
"""

import math
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vmlib.errors import BadInput
from vmlib.given import names_bad_input

MASK = 0xFFFFFFFF
SEED = 1315423911
FILL_X, FILL_Y = 231232, 1232

LINE = 64
"""Bytes in a line of the processor's cache."""

ROUNDS = {
    1: ("bx", "ya"),
    2: ("ab", "xa", "by"),
    3: ("ab", "cx", "ya", "bx", "yc"),
    4: ("ab", "cd", "ax", "yb", "cx", "yd"),
    5: ("ab", "cd", "ex", "ya", "bx", "yc", "dx", "ye"),
}
"""For each count of words: which two enter the mix in each round, beside the hash itself.

a to e are the words, x and y the fillers. With one word, b starts as a copy of a.
"""

SHIFTS = ((13, 8, 13), (12, 16, 5), (3, 10, 15))
"""Three passes of the mix: right, left, right."""

ARRAY_SHIFTS = tuple(tuple(np.array(n, np.uint32) for n in row) for row in SHIFTS)
"""The same as numpy wants them: a Python number would be converted in each of 45 calls."""


def mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    """Return Jenkins' mix of three 32-bit words."""
    for first, second, third in SHIFTS:
        a = (a - b - c ^ c >> first) & MASK
        b = (b - c - a) & MASK ^ (a << second) & MASK
        c = (c - a - b ^ b >> third) & MASK
    return a, b, c


@names_bad_input
def crush_hash(*words: int) -> int:
    """Return the 32-bit hash of one to five words; each is taken modulo 2^32."""
    if len(words) not in ROUNDS:
        raise BadInput("words", f"are {len(words)}; there must be one to five")
    value = SEED
    for word in words:
        value ^= word & MASK
    slots = dict(zip("abcde", (word & MASK for word in words), strict=False))
    slots |= {"x": FILL_X, "y": FILL_Y}
    slots.setdefault("b", slots["a"])
    for pair in ROUNDS[len(words)]:
        left, right = pair[0], pair[1]
        slots[left], slots[right], value = mix(slots[left], slots[right], value)
    return value


def hash3(a: int, b: int, c: int) -> int:
    """Return `crush_hash(a, b, c)`: the one that straws are drawn with, unrolled for speed."""
    a, b, c = a & MASK, b & MASK, c & MASK
    a, b, h = mix(a, b, SEED ^ a ^ b ^ c)
    c, x, h = mix(c, FILL_X, h)
    y, a, h = mix(FILL_Y, a, h)
    b, x, h = mix(b, x, h)
    return mix(y, c, h)[2]


def aligned(rows: int, cells: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialised table of which each row begins on a cache line.

    A vector that straddles two lines is read twice.
    """
    size = np.dtype(dtype).itemsize
    row = -(-cells * size // LINE) * LINE
    memory = np.empty(rows * row + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + rows * row].view(dtype).reshape(rows, row // size)


class Hasher:
    """`crush_hash` on uint32 arrays of one shape, in buffers that are kept between calls.

    A draw hashes tens of thousands of numbers in one go. Fresh arrays for each of its 180
    operations would cost more than the operations.
    """

    def __init__(self) -> None:
        self._kept = np.empty((9, 0), np.uint32)
        self._tables: list[NDArray[np.uint32]] = []

    def _make_tables(self, shape: tuple[int, ...]) -> None:
        """Lay out the buffers in a shape; often it is that of the call before."""
        if self._tables and self._tables[0].shape == shape:
            return
        count = math.prod(shape)
        if self._kept.shape[1] < count:
            self._kept = aligned(9, count, np.uint32)
        self._tables = [row[:count].reshape(shape) for row in self._kept]

    def __call__(self, *words: Any) -> NDArray[np.uint32]:
        """Return the hash of words that broadcast to one shape. The next call overwrites it."""
        self._make_tables(np.broadcast(*words).shape)
        kept = dict(zip("abcdexy", self._tables, strict=False))
        value, spare = self._tables[7:]
        slots: dict[str, Any] = dict(zip("abcde", words, strict=False))
        slots |= {"x": np.uint32(FILL_X), "y": np.uint32(FILL_Y)}
        slots.setdefault("b", slots["a"])
        by_shape: dict[tuple[int, ...], Any] = {(): np.uint32(SEED)}
        for word in words:  # those of one shape first: only the last step makes a whole table
            size = np.shape(word)
            by_shape[size] = by_shape[size] ^ word if size in by_shape else word
        *narrow, widest = sorted(by_shape.values(), key=np.size)
        np.bitwise_xor(reduce(np.bitwise_xor, narrow, np.uint32(0)), widest, out=value)
        for pair in ROUNDS[len(words)]:
            left, right = pair[0], pair[1]
            a, b = kept[left], kept[right]
            _mix_in_place(slots[left], slots[right], a, b, value, spare)
            slots[left], slots[right] = a, b
        return value


def _mix_in_place(
    a_in: Any,
    b_in: Any,
    a: NDArray[np.uint32],
    b: NDArray[np.uint32],
    c: NDArray[np.uint32],
    spare: NDArray[np.uint32],
) -> None:
    """Mix into `a`, `b` and `c`; `a_in` and `b_in` are what the first two start from."""
    subtract, right, left, xor = np.subtract, np.right_shift, np.left_shift, np.bitwise_xor
    for first, second, third in ARRAY_SHIFTS:
        subtract(a_in, b_in, a)
        subtract(a, c, a)
        xor(a, right(c, first, spare), a)
        subtract(b_in, c, b)
        subtract(b, a, b)
        xor(b, left(a, second, spare), b)
        subtract(c, a, c)
        subtract(c, b, c)
        xor(c, right(b, third, spare), c)
        a_in, b_in = a, b


def hash_many(*words: Any) -> NDArray[np.uint32]:
    """Return `crush_hash` of integer arrays that broadcast to one shape, as uint32."""
    if len(words) not in ROUNDS:
        raise BadInput("words", f"are {len(words)}; there must be one to five")
    try:
        arrays = [np.asarray(word) for word in words]
        np.broadcast(*arrays)
    except ValueError:
        raise BadInput("words", "must be of one shape, or broadcast to one") from None
    if any(array.dtype.kind not in "iu" for array in arrays):
        raise BadInput("words", "must be whole numbers of at most 64 bits")
    return Hasher()(*(array.astype(np.int64).astype(np.uint32) for array in arrays))
