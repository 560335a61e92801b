"""The emulator's transcendental functions of x87: by way of double precision and the C library.

That library is the one of this process too, so that the emulator's own value can be computed to the
bit. Rounding to double is as FCW says, and with `flush` what is denormal is zero; the functions
round to nearest.
"""

import ctypes
import math
import struct
from collections.abc import Callable

_LIBRARY = ctypes.CDLL("libm.so.6")
Value = tuple[int, int]
"""Significand; sign and exponent."""
TOO_LARGE = 2.0**63
_DEFAULT_NAN = 0xFFF << 51 | 1 << 63
TRIGONOMETRIC = ("fsin", "fcos", "fsincos", "fptan")


def _function(name: str, arguments: int) -> Callable[..., float]:
    function = getattr(_LIBRARY, name)
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * arguments
    return function  # type: ignore[no-any-return]


sin, cos, tan, log = (_function(name, 1) for name in ("sin", "cos", "tan", "log"))
atan2, power = _function("atan2", 2), _function("pow", 2)


def to_double(value: Value, rounding: int, flush: bool) -> float:
    """Round a value of 80 bits to 53 bits; NaNs keep what fits of them, and become quiet.

    One of which nothing fits becomes the default one; see `fuzz_wrong_x87.stored_nan`.
    """
    significand, exponent = value
    sign, exponent = exponent >> 15 << 63, exponent & 0x7FFF
    if exponent and not significand >> 63:  # not a supported format
        return _double(_DEFAULT_NAN)
    if exponent == 0x7FFF and significand << 1 & (1 << 64) - 1:
        fraction = significand >> 11 & (1 << 52) - 1
        return _double(sign | 0xFFF << 51 | fraction if fraction else _DEFAULT_NAN)
    if exponent == 0x7FFF:
        return _double(sign | 0x7FF << 52)
    if not significand:
        return _double(sign)
    power2 = max(exponent, 1) - 0x3FFF - 63  # of the significand's lowest bit
    top = power2 + significand.bit_length() - 1
    if flush and top < -1022:
        return _double(sign)
    shift = max(top - 52, -1074) - power2
    if shift > 0:
        whole, rest = significand >> shift, significand & (1 << shift) - 1
        half = 1 << shift - 1
        nearest = rest > half or (rest == half and whole & 1)
        whole += bool((nearest, sign and rest, not sign and rest, False)[rounding])
        power2 += shift
    else:
        whole = significand
    if whole.bit_length() + power2 > 1024:
        away = rounding == 0 or (rounding == 1 and sign) or (rounding == 2 and not sign)
        return _double(sign | (0x7FF << 52 if away else (0x7FF << 52) - 1))
    return math.ldexp(-float(whole) if sign else float(whole), power2)


def from_double(value: float) -> Value:
    """The same value of 80 bits."""
    (raw,) = struct.unpack("<Q", struct.pack("<d", value))
    sign, exponent, fraction = raw >> 63 << 15, raw >> 52 & 0x7FF, raw & (1 << 52) - 1
    if exponent == 0x7FF:
        return 1 << 63 | fraction << 11, sign | 0x7FFF
    if not exponent and not fraction:
        return 0, sign
    if not exponent:
        size = fraction.bit_length()
        return fraction << 64 - size, sign | 0x3FFF - 1074 + size - 1
    return 1 << 63 | fraction << 11, sign | exponent - 1023 + 0x3FFF


def _double(raw: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", raw))[0])


def results(name: str, x: float, y: float) -> list[Value] | None:
    """What is left of ST(0), ST(1) from ST(0) on; None where the emulator gives up and sets C2."""
    if name in TRIGONOMETRIC and abs(x) > TOO_LARGE:
        return None
    if name == "fsin":
        out = [sin(x)]
    elif name == "fcos":
        out = [cos(x)]
    elif name == "fsincos":
        out = [cos(x), sin(x)]
    elif name == "fptan":
        out = [1.0, tan(x)]
    elif name == "fpatan":
        out = [atan2(y, x)]
    elif name == "f2xm1":
        out = [power(2.0, x) - 1.0]
    else:
        x += 1.0 if name == "fyl2xp1" else 0.0
        if not x > 0.0:
            return None
        out = [log(x) / log(2.0) * y]
    return [from_double(one) for one in out]
