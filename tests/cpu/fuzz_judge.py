"""What a tolerance is, and the conditions that tolerances are made of."""

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
from fuzz_compare import Difference, Trial
from fuzz_guest import XMM


def _always(_: Trial) -> bool:
    return True


def _all_lanes(_: Trial) -> Container[int]:
    return range(4)


@dataclass(frozen=True)
class Tolerance:
    """What may differ for `rows` (mnemonics; empty for all) in trials for which `when` holds.

    `flags`, `mxcsr` and `x87` (tags, FSW, FCW) are masks. `fields` names `gpr`, `xmm` or `mm` for
    the destination in ModRM.reg, `rm` for that in ModRM.rm, `rax`, `st0` and others for that
    register, `dest` for the destination of x87, `memory` for all of it, `x87` for all of x87 and
    MMX, which `when` then compares, `all` where nothing of the trial can be compared. `lanes` are
    the lanes of 32 bits that may differ. `seen_in` names a row in which it shows, for an entry
    without rows.
    """

    id: str
    kind: str
    rows: tuple[str, ...]
    manual: str
    flags: int = 0
    mxcsr: int = 0
    x87: int = 0
    fields: tuple[str, ...] = ()
    when: Callable[[Trial], bool] = _always
    lanes: Callable[[Trial], Container[int]] = _all_lanes
    seen_in: str = ""

    def covers(self, trial: Trial, left: Difference) -> bool:
        """Take away from `left` what this entry explains; say whether that was anything."""
        if self.rows and trial.made.row.name not in self.rows:
            return False
        if not self.when(trial):
            return False
        if "all" in self.fields:
            left.clear()
            return True
        found = bool(left.flags & self.flags or left.mxcsr & self.mxcsr)
        if "x87" in self.fields:
            found |= bool(left.x87 or left.mmx or left.exponents)
            left.x87, left.mmx, left.exponents = 0, set(), set()
        found |= bool(left.x87 & self.x87)
        left.x87 &= ~self.x87
        if "memory" in self.fields:
            found |= left.memory
            left.memory = False
        left.flags &= ~self.flags
        left.mxcsr &= ~self.mxcsr
        made = trial.made
        gprs = {"gpr": made.reg, "rm": made.rm, "rax": 0, "rcx": 1, "rsp": 4}
        xmms = {"xmm": made.reg, "xmm rm": made.rm, "xmm0": 0}
        named = {gprs[name] for name in self.fields if name in gprs} & left.gprs
        mmx = {made.reg % 8} & left.mmx if "mm" in self.fields else set()
        left.mmx -= mmx
        lanes = self.lanes(trial)
        vectors = {xmms[name] for name in self.fields if name in xmms}
        parts = {part for part in left.xmms if part[0] in vectors and part[1] in lanes}
        popped = "p" in made.row.words
        places = {"st0": 0, "dest": (made.rm - popped) % 8 if "to" in made.row.words else 0}
        stack = {places[name] for name in self.fields if name in places}
        values = stack & (left.mmx | left.exponents)
        left.mmx -= values
        left.exponents -= values
        left.gprs -= named
        left.xmms -= parts
        return found or bool(named or parts or mmx or values)


def _lanes(trial: Trial) -> np.ndarray:
    at = (XMM + 16 * trial.made.reg) // 8
    return np.stack([one[at : at + 2] for one in (trial.ours, trial.real)])


def _kind(trial: Trial) -> tuple[type[np.unsignedinteger], int, int, int]:
    """Type of the result's lanes by the mnemonic, and its sign bit, exponent, width in 32 bits."""
    if trial.made.row.name[-2:] in ("pd", "sd"):
        return np.uint64, 1 << 63, 0x7FF << 52, 2
    return np.uint32, 1 << 31, 0xFF << 23, 1


def nans(trial: Trial) -> set[int]:
    """Lanes in which both results are NaNs."""
    kind, sign, exponent, width = _kind(trial)
    ours, real = np.ascontiguousarray(_lanes(trial)).view(kind) & kind(sign - 1)
    nan = (ours > kind(exponent)) & (real > kind(exponent))
    nan &= np.array([int(one) in _quieted(trial, kind, exponent, sign) for one in ours])
    return set(np.nonzero(np.repeat(nan, width))[0].tolist())


def _quieted(trial: Trial, kind: type[np.unsignedinteger], exponent: int, sign: int) -> set[int]:
    """The NaNs that an instruction may return: those of its operands, quiet, or the default one."""
    quiet = exponent | (exponent & -exponent) >> 1
    before = trial.before[(XMM + 16 * trial.made.reg) // 8 :][:2].tobytes()
    lanes = np.frombuffer(before + trial.operand(16), kind)
    return {int(lane) & sign - 1 | quiet for lane in lanes} | {quiet}


def flushed(trial: Trial) -> set[int]:
    """Lanes in which the CPU's result is zero and the emulator's a denormal."""
    kind, sign, exponent, width = _kind(trial)
    ours, real = np.ascontiguousarray(_lanes(trial)).view(kind) & kind(sign - 1)
    flushed = (real == 0) & (ours & kind(exponent) == 0)
    return set(np.nonzero(np.repeat(flushed, width))[0].tolist())


def _floats(trial: Trial) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lanes of both results in single precision, and which are the same bits."""
    raw = np.ascontiguousarray(_lanes(trial)).view(np.uint32)
    with np.errstate(all="ignore"):
        ours, real = raw.view(np.float32).astype(np.float64)
    return ours, real, raw[0] == raw[1]


def _near(ours: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Lanes that agree within twice the allowed error."""
    with np.errstate(all="ignore"):
        return np.isfinite(real) & (np.abs(ours - real) <= np.abs(real) * 3 / 4096)


def near(trial: Trial) -> bool:
    """All lanes are near, where a denormal may be zero, and its reciprocal infinite."""
    ours, real, same = _floats(trial)
    tiny = (np.abs(ours) <= 2.0**-126) & (np.abs(real) <= 2.0**-126)
    with np.errstate(invalid="ignore"):
        huge = np.isinf(real) & np.isfinite(ours) & (ours * np.sign(real) >= 2.0**126)
    return bool((_near(ours, real) | tiny | huge | same).all())


def root_of_denormal(trial: Trial) -> bool:
    """Where a lane is not near, the CPU has taken the root of a zero, and the emulator another."""
    ours, real, same = _floats(trial)
    with np.errstate(all="ignore"):
        zero = np.isinf(real) & (np.isnan(ours) | (np.isfinite(ours) & (ours > 2.0**62)))
    return bool((_near(ours, real) | same | zero).all() and zero[~same].any())


def source(trial: Trial) -> int:
    """The low half of the XMM register in ModRM.rm."""
    return int(trial.before[(XMM + 16 * trial.made.rm) // 8])


def bad_lock(trial: Trial) -> bool:
    return b"\xf0" in trial.made.code[:4] and trial.real_vector == 6 and trial.ours_vector != 6


def bits(trial: Trial) -> int:
    return 8 * trial.made.size
