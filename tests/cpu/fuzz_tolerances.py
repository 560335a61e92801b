"""Where the emulator may differ from the CPU: each entry with its opcodes, its fields, its reason.

An entry is `undefined`, where the manual leaves a result open and the two fill it differently; a
`bug`, where Unicorn 2.1.4 is wrong and the manual's page says so; or an `oddity` of the host's KVM.
What is undefined was seen on an AMD Zen 5; another CPU may differ in other fields.
Pages are those of the Intel SDM, vol. 2, by instruction, if nothing else is named.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
from fuzz_compare import Difference, Trial
from fuzz_guest import MXCSR, XMM

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
STATUS = 0x3F


def _always(_: Trial) -> bool:
    return True


def _all_lanes(_: Trial) -> Container[int]:
    return range(4)


@dataclass(frozen=True)
class Tolerance:
    """What may differ for `rows` (mnemonics; empty for all) in trials for which `when` holds.

    `flags` and `mxcsr` are masks; `fields` names `gpr` or `xmm` for the destination in ModRM.reg,
    `rm` for that in ModRM.rm, `rax` and others for that register, `all` where nothing of the trial
    can be compared. `lanes` are the lanes of 32 bits that may differ. `seen_in` names rows in which
    it shows, for an entry without rows.
    """

    id: str
    kind: str
    rows: tuple[str, ...]
    manual: str
    flags: int = 0
    mxcsr: int = 0
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
        left.flags &= ~self.flags
        left.mxcsr &= ~self.mxcsr
        made = trial.made
        gprs = {"gpr": made.reg, "rm": made.rm, "rax": 0, "rcx": 1, "rsp": 4}
        xmms = {"xmm": made.reg, "xmm rm": made.rm, "xmm0": 0}
        named = {gprs[name] for name in self.fields if name in gprs} & left.gprs
        lanes = self.lanes(trial)
        vectors = {xmms[name] for name in self.fields if name in xmms}
        parts = {part for part in left.xmms if part[0] in vectors and part[1] in lanes}
        left.gprs -= named
        left.xmms -= parts
        return found or bool(named) or bool(parts)


def explain(trial: Trial, among: "tuple[Tolerance, ...] | None" = None) -> tuple[list[str], bool]:
    """Return the ids of the entries that explain a trial, and whether they explain all of it."""
    left, used = trial.difference(), []
    for one in TOLERANCES if among is None else among:
        if left and one.covers(trial, left):
            used.append(one.id)
    return used, not left


def _lanes(trial: Trial) -> np.ndarray:
    at = (XMM + 16 * trial.made.reg) // 8
    return np.stack([one[at : at + 2] for one in (trial.ours, trial.real)])


def _kind(trial: Trial) -> tuple[type[np.unsignedinteger], int, int, int]:
    """Type of the result's lanes by the mnemonic, and its sign bit, exponent, width in 32 bits."""
    if trial.made.row.name[-2:] in ("pd", "sd"):
        return np.uint64, 1 << 63, 0x7FF << 52, 2
    return np.uint32, 1 << 31, 0xFF << 23, 1


def _nans(trial: Trial) -> set[int]:
    """Lanes in which both results are NaNs."""
    kind, sign, exponent, width = _kind(trial)
    ours, real = np.ascontiguousarray(_lanes(trial)).view(kind) & kind(sign - 1)
    nan = (ours > kind(exponent)) & (real > kind(exponent))
    return set(np.nonzero(np.repeat(nan, width))[0].tolist())


def _flushed(trial: Trial) -> set[int]:
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


def _near(trial: Trial) -> bool:
    """All lanes agree within twice the allowed error, where a denormal may be zero."""
    ours, real, same = _floats(trial)
    with np.errstate(all="ignore"):
        near = np.abs(ours - real) <= np.abs(real) * 3 / 4096
    tiny = (np.abs(ours) < 2.0**-126) & (np.abs(real) < 2.0**-126)
    return bool((near | tiny | same).all())


def _root_of_denormal(trial: Trial) -> bool:
    """Where a lane is not near, the CPU has taken the root of a zero."""
    ours, real, same = _floats(trial)
    with np.errstate(all="ignore"):
        near = np.abs(ours - real) <= np.abs(real) * 3 / 4096
    return bool((near | same | np.isinf(real)).all() and np.isinf(real[~same]).any())


def _extracts_beyond(trial: Trial) -> bool:
    """The length, 0 for 64, stands in byte 0 of the source, the index in byte 1."""
    if trial.made.imm:
        return False
    return (_source(trial) >> 8 & 63) + (_source(trial) & 63 or 64) > 64


def _source(trial: Trial) -> int:
    """The low half of the XMM register in ModRM.rm."""
    return int(trial.before[(XMM + 16 * trial.made.rm) // 8])


def _bad_lock(trial: Trial) -> bool:
    return b"\xf0" in trial.made.code[:4] and trial.real_vector == 6 and trial.ours_vector != 6


def _bits(trial: Trial) -> int:
    return 8 * trial.made.size


TOLERANCES: tuple[Tolerance, ...] = (
    Tolerance("shift AF", "undefined", ("shl", "sal", "shr", "sar"), "SAL/SAR/SHL/SHR: AF", AF),
    Tolerance(
        "rotate OF",
        "undefined",
        ("rcl", "rcr"),
        "RCL/RCR/ROL/ROR: OF for counts other than 1",
        OF,
        when=lambda t: t.count != 1,
    ),
    Tolerance("double shift AF", "undefined", ("shld", "shrd"), "SHLD, SHRD: AF", AF),
    Tolerance(
        "double shift OF",
        "undefined",
        ("shld", "shrd"),
        "SHLD, SHRD: OF for counts above 1",
        OF,
        when=lambda t: t.count > 1,
    ),
    Tolerance(
        "double shift too far",
        "undefined",
        ("shld", "shrd"),
        "SHLD, SHRD: all, for counts above the operand's size",
        fields=("all",),
        when=lambda t: t.count > _bits(t) and -1 == t.real_vector == t.ours_vector,
    ),
    Tolerance(
        "multiply", "undefined", ("mul", "imul"), "MUL, IMUL: SF ZF AF PF", SF | ZF | AF | PF
    ),
    Tolerance("divide", "undefined", ("div", "idiv"), "DIV, IDIV: all flags", SF | ZF | AF | PF),
    Tolerance("bit scan", "undefined", ("bsf", "bsr"), "BSF, BSR: CF OF SF AF PF", SF | PF),
    Tolerance("count zeros", "undefined", ("tzcnt",), "TZCNT: OF SF PF AF", OF),
    Tolerance("bextr", "undefined", ("bextr",), "BEXTR: AF SF PF", AF),
    Tolerance("bls PF", "undefined", ("blsi", "blsmsk", "blsr"), "BLSI, BLSMSK, BLSR: AF PF", PF),
    Tolerance("bzhi PF", "undefined", ("bzhi",), "BZHI: AF PF", PF),
    Tolerance(
        "cmp predicate",
        "undefined",
        ("cmpps", "cmppd", "cmpss", "cmpsd"),
        "CMPPS: bits 7:3 of the immediate are reserved",
        fields=("all",),
        when=lambda t: t.made.imm[0] > 7 and t.ours_vector == 6,
    ),
    Tolerance(
        "approximation",
        "undefined",
        ("rcpps", "rcpss", "rsqrtps", "rsqrtss"),
        "RCPPS, RSQRTPS: a relative error up to 1.5 * 2^-12",
        fields=("xmm",),
        when=_near,
    ),
    Tolerance(
        "lock",
        "bug",
        (),
        "LOCK: #UD for every other instruction, and for a register as destination",
        fields=("all",),
        when=_bad_lock,
        seen_in="bsf",
    ),
    Tolerance(
        "unaligned",
        "bug",
        (),
        "vol. 1, 10.4.1.1 and 11.4: #GP where 16 bytes are not aligned",
        fields=("all",),
        when=lambda t: not t.made.aligned and t.real_vector in (6, 13) and t.ours_vector == -1,
        seen_in="paddb",
    ),
    Tolerance(
        "mxcsr",
        "bug",
        (),
        "vol. 1, 10.2.3.1: MXCSR's exception flags",
        mxcsr=STATUS,
        when=lambda t: "fp" in t.made.row.words,
        seen_in="divps",
    ),
    Tolerance(
        "nan",
        "bug",
        (),
        "vol. 1, table 4-7: which of two NaNs is the result",
        fields=("xmm",),
        when=lambda t: "fp" in t.made.row.words,
        lanes=_nans,
        seen_in="addps",
    ),
    Tolerance(
        "cmpxchg upper half",
        "bug",
        ("cmpxchg",),
        "CMPXCHG: AMD APM vol. 3: the destination is not written when it fails",
        fields=("rm",),
        when=lambda t: t.made.size == 4 and not t.made.memory,
    ),
    Tolerance(
        "bit scan of zero",
        "bug",
        ("bsf", "bsr"),
        "AMD APM vol. 3, BSF, BSR: with source 0 the destination is unchanged",
        fields=("gpr",),
        when=lambda t: t.made.size == 4 and bool(t.real[16] & np.uint64(ZF)),
    ),
    Tolerance("blsi CF", "bug", ("blsi",), "BLSI: CF is set if the source is not 0", CF),
    Tolerance(
        "bzhi index",
        "bug",
        ("bzhi",),
        "BZHI: an index beyond the operand's size leaves the source, and sets CF",
        CF | PF | ZF | SF,
        fields=("gpr",),
        when=lambda t: t.gpr(t.made.vvvv) & 0xFF >= _bits(t) - 1,
    ),
    Tolerance(
        "rip-relative",
        "bug",
        ("shld", "shrd", "rorx"),
        "vol. 2A, 2.2.1.6: relative to the end of the instruction, immediate included",
        fields=("all",),
        when=lambda t: t.made.rip and bool(t.made.imm),
    ),
    Tolerance(
        "ret imm16",
        "bug",
        ("ret",),
        "RET: the immediate is unsigned",
        fields=("rsp",),
        when=lambda t: t.made.imm[-1:] >= b"\x80",
    ),
    Tolerance(
        "popcnt 66 REX.W",
        "bug",
        ("popcnt",),
        "vol. 2A, 2.2.1.2: REX.W goes before 66",
        ZF,
        fields=("gpr",),
        when=lambda t: t.made.size == 8 and b"\x66" in t.made.code[:3],
    ),
    Tolerance("lzcnt", "undefined", ("lzcnt",), "LZCNT: OF SF PF AF", OF),
    Tolerance(
        "extract upper half",
        "undefined",
        ("extrq", "insertq"),
        "AMD APM vol. 4, EXTRQ, INSERTQ: the upper 64 bits of the destination",
        fields=("xmm", "xmm rm"),
        when=lambda t: t.same_low_halves,
    ),
    Tolerance(
        "extract beyond",
        "undefined",
        ("extrq",),
        "AMD APM vol. 4, EXTRQ: an index and a length that add up to more than 64",
        fields=("xmm",),
        when=_extracts_beyond,
    ),
    Tolerance(
        "extrq length",
        "bug",
        ("extrq",),
        "AMD APM vol. 4, EXTRQ: of the length 6 bits count, and 0 is 64",
        fields=("xmm",),
        when=lambda t: not t.made.imm and _source(t) & 63 == 0 != _source(t) & 0xFF,
    ),
    Tolerance(
        "extrq immediate",
        "bug",
        ("extrq",),
        "AMD APM vol. 4, EXTRQ: with immediates the destination is ModRM.rm",
        fields=("xmm", "xmm rm"),
        when=lambda t: bool(t.made.imm),
    ),
    Tolerance(
        "insertq",
        "bug",
        ("insertq",),
        "AMD APM vol. 4, INSERTQ: the other bits of the destination stay",
        fields=("xmm",),
    ),
    Tolerance(
        "flush to zero",
        "bug",
        (),
        "vol. 1, 10.2.3.3 and 10.2.3.4: MXCSR.FZ and DAZ",
        fields=("xmm",),
        when=lambda t: "fp" in t.made.row.words and bool(int(t.before[MXCSR // 8]) & 0x8040),
        lanes=_flushed,
        seen_in="maxps",
    ),
    Tolerance(
        "root of a denormal",
        "bug",
        ("rsqrtps", "rsqrtss"),
        "RSQRTPS, RSQRTSS: a denormal source is taken for a zero",
        fields=("xmm",),
        when=_root_of_denormal,
    ),
    Tolerance(
        "dot product",
        "bug",
        ("dpps", "dppd"),
        "DPPS, DPPD: the order of the sums, and the sign of zero",
        fields=("xmm",),
    ),
    Tolerance(
        "bextr width",
        "bug",
        ("bextr",),
        "BEXTR: a source of 32 bits; lengths from the operand's size on take all of it",
        SF | ZF | PF,
        fields=("gpr",),
        when=lambda t: (
            (t.made.size == 4 and not t.made.memory) or t.gpr(t.made.vvvv) >> 8 & 0xFF >= _bits(t)
        ),
    ),
    Tolerance(
        "pdep upper half",
        "bug",
        ("pdep",),
        "vol. 1, 3.4.1.1: a result of 32 bits is zero-extended",
        fields=("gpr",),
        when=lambda t: t.made.size == 4,
    ),
    Tolerance(
        "cmpxchg rax",
        "bug",
        ("cmpxchg",),
        "CMPXCHG: AMD APM vol. 3: RAX is not written when it succeeds",
        fields=("rax",),
        when=lambda t: t.made.size == 4 and bool(int(t.real[16]) & ZF),
    ),
    Tolerance(
        "lock neg",
        "bug",
        ("neg",),
        "NEG: CF is set unless the operand is 0; the other flags follow the result",
        CF | PF | AF | ZF | SF | OF,
        when=lambda t: b"\xf0" in t.made.code[:3],
    ),
    Tolerance(
        "horizontal, twice the same",
        "bug",
        ("phaddw", "phaddd", "phaddsw", "phsubw", "phsubd", "phsubsw"),
        "PHADDW and others: with the destination as source too",
        fields=("xmm",),
        when=lambda t: not t.made.memory and t.made.reg == t.made.rm,
    ),
    Tolerance(
        "equal ordered",
        "bug",
        ("pcmpestri", "pcmpestrm", "pcmpistri", "pcmpistrm"),
        "vol. 2B, 4.1: aggregation mode 11",
        CF | ZF | SF | OF,
        fields=("xmm0", "rcx"),
        when=lambda t: t.made.imm[0] & 0xC == 0xC,
    ),
    Tolerance(
        "lock fence",
        "oddity",
        ("lfence", "sfence", "mfence"),
        "LOCK: #UD says the manual; this CPU lets it pass",
        fields=("all",),
        when=lambda t: b"\xf0" in t.made.code[:3] and (t.ours_vector, t.real_vector) == (6, -1),
    ),
)
