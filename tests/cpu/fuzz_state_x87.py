"""The state of x87 that trials of x87 and MMX begin in: control, status, tags, registers.

All exceptions stay masked, as those of SSE do. TOP, the condition codes, precision and rounding are
at random; exceptions may have been before. A register may be empty, but most trials find in use
what they read, and empty what they push to.
"""

import random

import numpy as np
import numpy.typing as npt
from fuzz_guest import ST, WORD, X87

MASKED, SINGLE, DOUBLE, EXTENDED = 0x7F, 0x000, 0x200, 0x300
TOP, CONDITIONS, STICKY = 11, 0x4700, 0x7F
INTEGER_BIT, BIAS, LARGEST = 1 << 63, 0x3FFF, 0x7FFF
STACK_FAULTS = 0.1
"""Trials that take the tags as they come."""

# Sign is added. Zero, denormals, the ends of normal numbers, infinity, NaNs.
_EDGES = [(0, 0), (1, 0), (INTEGER_BIT - 1, 0), (INTEGER_BIT, 1)]
_EDGES += [((1 << 64) - 1, LARGEST - 1), (INTEGER_BIT, LARGEST)]
_EDGES += [(3 << 62, LARGEST), (3 << 62 | 99, LARGEST), (INTEGER_BIT | 7, LARGEST)]
_EDGES += [(0xC90FDAA22168C235, 0x4000), (INTEGER_BIT, BIAS + 63), ((1 << 64) - 1, BIAS + 62)]
# What became of the 8087's unnormals, pseudo-NaNs, pseudo-infinity (Intel SDM vol. 1, 8.2.2).
_UNSUPPORTED = [(1 << 62, 0x4001), (0, LARGEST), (5, LARGEST), (1 << 62, LARGEST), (0, 0x3FFF)]


def number(rng: random.Random) -> tuple[int, int]:
    """A value of 80 bits: its significand, and its sign and exponent."""
    roll, sign = rng.random(), rng.getrandbits(1) << 15
    if roll < 0.35:
        return rng.getrandbits(63) | INTEGER_BIT, sign | BIAS + rng.randrange(-70, 70)
    if roll < 0.6:  # few bits: integers, halves, and other values that are exact
        value = rng.getrandbits(rng.choice((1, 3, 8, 15, 31, 63))) | 1
        size = value.bit_length()
        return value << 64 - size, sign | BIAS + size - 1 - rng.choice((0, 0, 1, 2))
    if roll < 0.85:
        significand, exponent = rng.choice(_EDGES)
    elif roll < 0.95:
        significand, exponent = rng.getrandbits(63) | INTEGER_BIT, rng.randrange(1, LARGEST)
    else:
        significand, exponent = rng.choice(_UNSUPPORTED)
    return significand, sign | exponent


def operand(rng: random.Random, kind: str) -> bytes:
    """An operand in memory of a kind: `f32` to `env`."""
    size = {"i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8, "cw": 2}.get(kind, 10)
    if kind == "f80":
        significand, exponent = number(rng)
        return significand.to_bytes(8, "little") + exponent.to_bytes(2, "little")
    if kind == "bcd":
        digits = "".join(rng.choice(("0", "9", "d"))[0] for _ in range(18)).replace("d", "7")
        if rng.random() < 0.7:
            digits = f"{rng.getrandbits(rng.choice((4, 30, 59))):018d}"
        return bytes.fromhex(digits)[::-1] + bytes([rng.choice((0, 0x80))])
    if kind[0] == "f":
        fraction, exponent = (23, 8) if size == 4 else (52, 11)
        middle, last = (1 << exponent - 1) - 1, (1 << exponent) - 1
        raised = rng.choice((0, 0, 1, last - 1, last, last, middle, middle, middle))
        if raised == middle:
            raised += rng.randrange(-20, 20)
        bits = rng.choice((0, 0, 1, 1 << fraction - 1, rng.getrandbits(fraction)))
        value = rng.getrandbits(1) << size * 8 - 1 | raised << fraction | bits
        return value.to_bytes(size, "little")
    if kind[0] == "i" and rng.random() < 0.5:
        edge = rng.choice((0, 1, -1, 2, -2, (1 << 8 * size - 1) - 1, -(1 << 8 * size - 1)))
        return edge.to_bytes(size, "little", signed=True)
    return rng.randbytes(size)


def control(rng: random.Random) -> int:
    """FCW: a precision that is not reserved, a rounding."""
    precision = rng.choice((SINGLE, DOUBLE, EXTENDED, EXTENDED, EXTENDED))
    return MASKED | precision | rng.randrange(4) << 10


def status(rng: random.Random) -> int:
    """FSW: TOP and condition codes; sometimes exceptions that were."""
    raised = rng.getrandbits(7) if rng.random() < 0.2 else 0
    return rng.getrandbits(3) << TOP | rng.getrandbits(16) & CONDITIONS | raised


def tags(rng: random.Random, top: int, needs: frozenset[str], i: int) -> int:
    """A bit for each register in use, by its own number and not from TOP on."""
    used = rng.getrandbits(8)
    if rng.random() < STACK_FAULTS:
        return used
    for place, word in ((0, "r0"), (1, "r1"), (i, "ri")):
        if word in needs:
            used |= 1 << (top + place) % 8
    if "push" in needs:
        used &= ~(1 << (top + 7) % 8)
    return used


def set_x87(
    seed: int, records: npt.NDArray[np.uint64], trials: list[tuple[int, frozenset[str], int]]
) -> None:
    """Give these trials, by number, words of the row and ST(i), a state of x87 each.

    With `mm` the registers keep their random bits, as MMX takes them.
    """
    rng = random.Random(f"x87 {seed}")
    for where, needs, i in trials:
        now = status(rng)
        used = tags(rng, now >> TOP & 7, needs, i)
        records[where, X87 // WORD] = control(rng) | now << 16 | used << 32
        if "mm" in needs:
            continue
        values = [number(rng) for _ in range(8)]
        if rng.random() < 0.1:
            values[1] = values[i] = values[0]
        records[where, ST // WORD : ST // WORD + 16] = np.array(values, np.uint64).ravel()
