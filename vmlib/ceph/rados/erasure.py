"""Reed-Solomon over GF(256): an object becomes k data chunks and m coding chunks.

The code is systematic: the first k chunks are the object itself, cut into pieces, so a read that
finds them all decodes nothing. Any k of the k+m chunks give the object back.

The field is GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d). The coding rows are those of Ceph's
plugin `jerasure` with its technique `reed_sol_van`: a Vandermonde matrix brought into systematic
form (Plank and Ding, "Note: Correction to the 1997 Tutorial on Reed-Solomon Coding", section 3),
then scaled until the first coding row and the first column are all ones. So the first coding chunk
is the data chunks' exclusive or. Held against Ceph's own tool, byte for byte.

Left out: stripes (`stripe_unit`): an object is one stripe here, its chunks are as long as they need
to be. So a large object's bytes lie elsewhere in Ceph's chunks; how many there are is the same.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.numbers import whole

POLYNOMIAL = 0x11D
Matrix = list[list[int]]


def _tables() -> tuple[list[int], list[int]]:
    exp, log = [0] * 512, [0] * 256
    x = 1
    for power in range(255):
        exp[power] = exp[power + 255] = x
        log[x] = power
        x <<= 1
        if x & 0x100:
            x ^= POLYNOMIAL
    return exp, log


_EXP, _LOG = _tables()


def multiply(a: int, b: int) -> int:
    """Return the product of two field elements, 0..255."""
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def inverse(a: int) -> int:
    """Return the element whose product with `a` is 1; zero has none."""
    if not a:
        raise BadInput("a", "zero has no inverse in GF(256)")
    return _EXP[255 - _LOG[a]]


@cache
def _row_of(factor: int) -> npt.NDArray[np.uint8]:
    """The products of `factor` with all 256 elements: multiplying a chunk is one look-up a byte."""
    return np.array([multiply(factor, b) for b in range(256)], dtype=np.uint8)


def invert(matrix: Matrix) -> Matrix:
    """Return the inverse of a square matrix over GF(256), by Gauss and Jordan."""
    n = len(matrix)
    work = [list(row) + [int(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next((r for r in range(column, n) if work[r][column]), None)
        if pivot is None:
            raise BadInput("matrix", "is singular over GF(256)")
        work[column], work[pivot] = work[pivot], work[column]
        scale = inverse(work[column][column])
        work[column] = [multiply(scale, value) for value in work[column]]
        for r in range(n):
            if r != column and (factor := work[r][column]):
                work[r] = [
                    a ^ multiply(factor, b) for a, b in zip(work[r], work[column], strict=True)
                ]
    return [row[n:] for row in work]


@cache
def generator(k: int, m: int) -> tuple[tuple[int, ...], ...]:
    """Return the (k+m) x k generator: the identity above m coding rows. Every k rows invert.

    Row i of the Vandermonde matrix has the powers of i; the last has only the highest (i endless).
    """
    powers = [[_power(row, column) for column in range(k)] for row in range(k + m - 1)]
    powers.append([0] * (k - 1) + [1])
    top = invert(powers[:k])
    rows = [[_dot(row, [top[i][j] for i in range(k)]) for j in range(k)] for row in powers]
    coding = rows[k:]
    for j in range(k if m else 0):
        scale = inverse(coding[0][j])
        for row in coding:
            row[j] = multiply(row[j], scale)
    for row in coding:
        scale = inverse(row[0])
        row[:] = [multiply(value, scale) for value in row]
    return tuple(map(tuple, rows))


def _check(k: int, m: int) -> None:
    """Refuse numbers of chunks that the field does not have."""
    whole(k, "k", 1, 256)
    whole(m, "m", 0, 256 - k)


def _power(base: int, exponent: int) -> int:
    result = 1
    for _ in range(exponent):
        result = multiply(result, base)
    return result


def _dot(a: list[int], b: list[int]) -> int:
    total = 0
    for x, y in zip(a, b, strict=True):
        total ^= multiply(x, y)
    return total


def chunk_size(length: int, k: int) -> int:
    """Return the bytes of one chunk of an object of `length` bytes."""
    return -(-length // k)


def encode(data: bytes, k: int, m: int) -> list[bytes]:
    """Return the k+m chunks of an object; the last data chunk is padded with zeros."""
    check_one(data, bytes, "data")
    _check(k, m)
    rows = generator(k, m)
    size = chunk_size(len(data), k)
    padded = np.frombuffer(data.ljust(k * size, b"\0"), dtype=np.uint8).reshape(k, size)
    return [_combine(row, padded).tobytes() for row in rows]


def decode(chunks: Mapping[int, bytes], k: int, m: int, length: int) -> bytes:
    """Return the object of `length` bytes from any k of its chunks, keyed by shard number."""
    _check(k, m)
    whole(length, "length", 0)
    if not isinstance(chunks, Mapping) or not all(isinstance(c, bytes) for c in chunks.values()):
        raise BadInput("chunks", "must be a mapping from shard numbers to bytes")
    if len(chunks) < k:
        raise BadInput("chunks", f"{len(chunks)} chunks are here, {k} are needed")
    if not chunks.keys() <= set(range(k + m)):
        raise BadInput("chunks", f"are {list(chunks)}; shards go from 0 to {k + m - 1}")
    if {len(chunk) for chunk in chunks.values()} != {chunk_size(length, k)}:
        raise BadInput("chunks", f"must be of {chunk_size(length, k)} bytes each")
    have = sorted(chunks)[:k]
    stacked = np.array([np.frombuffer(chunks[i], dtype=np.uint8) for i in have], dtype=np.uint8)
    if have == list(range(k)):
        return stacked.tobytes()[:length]
    rows = generator(k, m)
    back = invert([list(rows[i]) for i in have])
    return b"".join(_combine(tuple(row), stacked).tobytes() for row in back)[:length]


def _combine(factors: tuple[int, ...], chunks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    total = np.zeros(chunks.shape[1], dtype=np.uint8)
    for factor, chunk in zip(factors, chunks, strict=True):
        if factor:
            total ^= _row_of(factor)[chunk]
    return total
