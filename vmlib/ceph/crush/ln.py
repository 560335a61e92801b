"""CRUSH's logarithm: 2^44 log2(u + 1) in whole numbers, as a table that is wrong in 42 places.

A straw2 bucket needs the logarithm of a 16-bit hash. Clients of every age and processor must
agree on it to the bit, so Ceph computes it with two tables instead of floating point: one takes
off the top seven bits of the number, the other looks up the rest.

The comment in Ceph's source says that the second table is 2^48 log2(1 + k/2^15). It is not. From
k = 2 on each entry is too large by 0x147700000 (about 1.9e-5 after scaling), but for 42 entries
that are something else again: 19 of those are, by accident, what the comment says. They were
made so in 2014, data was placed by them, and so they can never be mended.

Provenance: the 42 numbers of `ERRATA` were read out of libceph-common.so.2 of Ceph 16.2.15
(Debian 12) by subtracting the formula; in Ceph's source they stand in src/crush/crush_ln_table.h.
Everything else here comes from the formula.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vmlib.errors import BadInput
from vmlib.given import names_bad_input

TOP = 1 << 48
"""The logarithm of 2^16 in these units: what `crush_ln` is subtracted from."""

OFFSET = 0x147700000
"""By how much the fine table is too large from entry 2 on."""

ERRATA = {
    56: 0x0A2B07F3458,
    127: 0x16DF6CA19BD,
    134: 0x182B07F3458,
    181: 0x209C06E6212,
    184: 0x212B07F3458,
    188: 0x21D6A73A78F,
    193: 0x22C23679B4E,
    198: 0x23A2C3B0EA4,
    199: 0x23D13EE805B,
    200: 0x24035E9221F,
    203: 0x247ED646BFE,
    207: 0x25492644D65,
    210: 0x25D13EE805B,
    212: 0x26296453882,
    216: 0x26D32F798A9,
    222: 0x27E6580AECB,
    225: 0x287BDBF5255,
    227: 0x28D13EE805B,
    228: 0x29035E9221F,
    229: 0x29296453882,
    231: 0x29902A37AAB,
    233: 0x29DEABD1083,
    235: 0x2A4C7605D61,
    236: 0x2A7BDBF5255,
    237: 0x2A96056DAFC,
    238: 0x2AC3DAF14EF,
    239: 0x2AF1B019ECA,
    240: 0x2B296453882,
    241: 0x2B5D022D80F,
    243: 0x2BA9012E713,
    244: 0x2BD6D4901CC,
    245: 0x2C04A796CF6,
    246: 0x2C327A428A6,
    247: 0x2C61A5E8F4C,
    248: 0x2C8E1E891F6,
    249: 0x2CBBF023FC2,
    250: 0x2CE9C163E6E,
    251: 0x2D179248E13,
    252: 0x2D4562D2EC6,
    253: 0x2D73330209D,
    254: 0x2DA102D63B0,
    255: 0x2DCED24F814,
}
"""Entries of the fine table that follow no rule."""


def _scaled_log2(numerator: int, denominator: int) -> int:
    """Return floor(2^48 log2(1 + numerator/denominator)).

    Doubles suffice for all arguments used here; a test holds them against 60 decimal digits.
    """
    return int(math.log2(1 + numerator / denominator) * TOP)


COARSE_INVERSE = tuple(-(-TOP * 128 // (128 + k)) for k in range(129))
"""2^48 / (1 + k/128), rounded up."""

COARSE = (*(_scaled_log2(k, 128) for k in range(128)), 0xFFFF00000000)
"""2^48 log2(1 + k/128), rounded down; the last should be 2^48 and is not."""

FINE = tuple(
    ERRATA.get(k, _scaled_log2(k, 1 << 15) + (OFFSET if k >= 2 else 0)) for k in range(256)
)
"""Meant to be 2^48 log2(1 + k/2^15)."""


@names_bad_input
def crush_ln(u: int) -> int:
    """Return 2^44 log2(u + 1) as CRUSH computes it, for 0 <= u <= 0xffff."""
    if not 0 <= u <= 0xFFFF:
        raise BadInput("u", f"is {u}; it must be a hash of 16 bits")
    number = u + 1
    exponent = min(number.bit_length() - 1, 15)
    normal = number << (15 - exponent)  # 2^15 <= normal <= 2^16
    k = (normal >> 8) - 128
    rest = (normal * COARSE_INVERSE[k] >> 48) & 0xFF
    return (exponent << 44) + (COARSE[k] + FINE[rest] >> 4)


@cache
def negative_ln() -> NDArray[np.int64]:
    """Return 2^48 - crush_ln(u) for every u: 65,536 whole numbers >= 0, read-only."""
    table = np.array([TOP - crush_ln(u) for u in range(1 << 16)], np.int64)
    table.flags.writeable = False
    return table
