"""Where the emulator may differ from the CPU: each entry with its opcodes, its fields, its reason.

An entry is `undefined`, where the manual leaves a result open and the two fill it differently; a
`bug`, where Unicorn 2.1.4 is wrong and the manual's page says so; or an `oddity` of the CPU itself.
What is undefined was seen on an AMD Zen 5; another CPU may differ in other fields.
Pages are those of the Intel SDM, vol. 2, by instruction, if nothing else is named.
"""

from fuzz_compare import Trial
from fuzz_guest import MXCSR
from fuzz_judge import (
    Tolerance,
    bad_lock,
    bits,
    flushed,
    nans,
    near,
    root_of_denormal,
    source,
)
from fuzz_tolerances_x87 import MMX, X87
from fuzz_wrong import (
    bextr,
    bzhi,
    dot_product,
    equal_ordered,
    extrq_immediate,
    extrq_length,
    horizontal,
    insertq,
    mmx_beside,
    mxcsr_untouched,
    pdep,
    popcnt,
    reads_before_it_writes,
    rsp_a_segment_below,
    zero_extended,
)

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
STATUS = 0x3F


def explain(trial: Trial) -> tuple[list[str], bool]:
    """Return the ids of the entries that explain a trial, and whether they explain all of it."""
    left, used = trial.difference(), []
    for one in TOLERANCES:
        if left and one.covers(trial, left):
            used.append(one.id)
    return used, not left


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
        when=lambda t: t.count > bits(t) and -1 == t.real_vector == t.ours_vector,
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
        when=near,
    ),
    Tolerance(
        "lock",
        "bug",
        (),
        "LOCK: #UD for every other instruction, and for a register as destination",
        fields=("all",),
        when=bad_lock,
        seen_in="bsf",
    ),
    Tolerance(
        "unaligned",  # kvm_pvm: see oddity unaligned_ring3
        "bug",
        (),
        "vol. 1, 10.4.1.1 and 11.4: #GP where 16 bytes are not aligned",
        fields=("all",),
        when=lambda t: (
            not t.made.aligned and t.real_vector in (6, 13) and t.ours_vector in (-1, 14)
        ),
        seen_in="paddb",
    ),
    Tolerance(
        "write intent",
        "bug",
        (),
        "vol. 3A, *Page-Fault Exceptions*: W/R, of an instruction that reads and writes",
        fields=("all",),
        when=reads_before_it_writes,
        seen_in="inc",
    ),
    Tolerance(
        "stack fault",
        "bug",
        (),
        "vol. 1, *Canonical Addressing*: #SS, not #GP, by way of RSP or RBP",
        fields=("all",),
        when=lambda t: t.made.wild and (t.ours_vector, t.real_vector) == (13, 12),
        seen_in="movups",
    ),
    Tolerance(
        "clflush",
        "bug",
        ("clflush",),
        "CLFLUSH: the exceptions of a read of one byte",
        fields=("all",),
        when=lambda t: t.made.wild and t.ours_vector == -1 and t.real_vector in (12, 13, 14),
    ),
    Tolerance(
        "non-canonical",
        "oddity",  # kvm_pvm: see oddity unaligned_ring3
        (),
        "vol. 1, *Canonical Addressing*: #GP for an address that is not canonical",
        fields=("all",),
        when=lambda t: t.made.wild and (t.ours_vector, t.real_vector) == (13, 6),
        seen_in="paddb",
    ),
    Tolerance(
        "mxcsr",
        "bug",
        (),
        "vol. 1, 10.2.3.1: MXCSR's exception flags",
        mxcsr=STATUS,
        when=lambda t: "fp" in t.made.row.words and mxcsr_untouched(t),
        seen_in="divps",
    ),
    Tolerance(
        "nan",
        "bug",
        (),
        "vol. 1, table 4-7: which of two NaNs is the result",
        fields=("xmm",),
        when=lambda t: "fp" in t.made.row.words,
        lanes=nans,
        seen_in="addps",
    ),
    Tolerance(
        "cmpxchg upper half",
        "bug",
        ("cmpxchg",),
        "CMPXCHG: AMD APM vol. 3: the destination is not written when it fails",
        fields=("rm",),
        when=lambda t: (
            t.made.size == 4 and not t.made.memory and zero_extended(lambda t: t.made.rm)(t)
        ),
    ),
    Tolerance(
        "bit scan of zero",
        "bug",
        ("bsf", "bsr"),
        "AMD APM vol. 3, BSF, BSR: with source 0 the destination is unchanged",
        fields=("gpr",),
        when=lambda t: t.made.size == 4 and zero_extended(lambda t: t.made.reg)(t),
    ),
    Tolerance("blsi CF", "bug", ("blsi",), "BLSI: CF is set if the source is not 0", CF),
    Tolerance(
        "bzhi index",
        "bug",
        ("bzhi",),
        "BZHI: an index beyond the operand's size leaves the source, and sets CF",
        CF | ZF | SF,
        fields=("gpr",),
        when=lambda t: t.gpr(t.made.vvvv) & 0xFF >= bits(t) - 1 and bzhi(t),
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
        when=lambda t: t.made.imm[-1:] >= b"\x80" and rsp_a_segment_below(t),
    ),
    Tolerance(
        "popcnt 66 REX.W",
        "bug",
        ("popcnt",),
        "vol. 2A, 2.2.1.2: REX.W goes before 66",
        ZF,
        fields=("gpr",),
        when=lambda t: t.made.size == 8 and b"\x66" in t.made.code[:3] and popcnt(t),
    ),
    Tolerance("lzcnt", "undefined", ("lzcnt",), "LZCNT: OF SF PF AF", OF),
    Tolerance(
        "extract upper half",
        "undefined",
        ("extrq", "insertq"),
        "AMD APM vol. 4, EXTRQ, INSERTQ: the upper 64 bits of the destination",
        fields=("xmm",),
        when=lambda t: t.same_low_halves,
    ),
    Tolerance(
        "extrq length",
        "bug",
        ("extrq",),
        "AMD APM vol. 4, EXTRQ: of the length 6 bits count, and 0 is 64",
        fields=("xmm",),
        when=lambda t: (
            not t.made.imm and source(t) & 63 == 0 != source(t) & 0xFF and extrq_length(t)
        ),
    ),
    Tolerance(
        "extrq immediate",
        "bug",
        ("extrq",),
        "AMD APM vol. 4, EXTRQ: with immediates the destination is ModRM.rm",
        fields=("xmm", "xmm rm"),
        when=lambda t: bool(t.made.imm) and extrq_immediate(t),
    ),
    Tolerance(
        "insertq",
        "bug",
        ("insertq",),
        "AMD APM vol. 4, INSERTQ: the other bits of the destination stay",
        fields=("xmm",),
        when=insertq,
    ),
    Tolerance(
        "flush to zero",
        "bug",
        (),
        "vol. 1, 10.2.3.3 and 10.2.3.4: MXCSR.FZ and DAZ",
        fields=("xmm",),
        when=lambda t: "fp" in t.made.row.words and bool(int(t.before[MXCSR // 8]) & 0x8040),
        lanes=flushed,
        seen_in="maxps",
    ),
    Tolerance(
        "root of a denormal",
        "bug",
        ("rsqrtps", "rsqrtss"),
        "RSQRTPS, RSQRTSS: a denormal source is taken for a zero",
        fields=("xmm",),
        when=root_of_denormal,
    ),
    Tolerance(
        "dot product",
        "bug",
        ("dpps", "dppd"),
        "DPPS, DPPD: the order of the sums, and the sign of zero",
        fields=("xmm",),
        lanes=dot_product,
    ),
    Tolerance(
        "bextr width",
        "bug",
        ("bextr",),
        "BEXTR: a source of 32 bits; lengths from the operand's size on take all of it",
        ZF | PF,
        fields=("gpr",),
        when=bextr,
    ),
    Tolerance(
        "pdep upper half",
        "bug",
        ("pdep",),
        "vol. 1, 3.4.1.1: a result of 32 bits is zero-extended",
        fields=("gpr",),
        when=lambda t: t.made.size == 4 and pdep(t),
    ),
    Tolerance(
        "cmpxchg rax",
        "bug",
        ("cmpxchg",),
        "CMPXCHG: AMD APM vol. 3: RAX is not written when it succeeds",
        fields=("rax",),
        when=lambda t: (
            t.made.size == 4 and bool(int(t.real[16]) & ZF) and zero_extended(lambda _: 0)(t)
        ),
    ),
    Tolerance(
        "lock neg",
        "bug",
        ("neg",),
        "NEG: SF and PF follow the result",
        PF | SF,
        when=lambda t: b"\xf0" in t.made.code[:3],
    ),
    Tolerance(
        "horizontal, twice the same",
        "bug",
        ("phaddw", "phaddd", "phaddsw", "phsubw", "phsubd", "phsubsw"),
        "PHADDW and others: with the destination as source too",
        fields=("xmm", "mm"),
        when=lambda t: not t.made.memory and horizontal(t),
    ),
    Tolerance(
        "MMX and REX.R",
        "bug",
        (),
        "vol. 2A, 2.2.1.2: REX.R and REX.B are ignored where MMX registers are named",
        fields=("all",),
        when=mmx_beside,
        seen_in="phaddw",
    ),
    Tolerance(
        "equal ordered",
        "bug",
        ("pcmpestri", "pcmpestrm", "pcmpistri", "pcmpistrm"),
        "vol. 2B, 4.1.3 and 4.1.6: in *equal ordered* what ends with the register matches so far",
        CF,
        fields=("xmm0", "rcx"),
        when=lambda t: t.made.imm[0] & 0xC == 0xC and equal_ordered(t),
    ),
    Tolerance(
        "lock fence",
        "oddity",
        ("lfence", "sfence", "mfence"),
        "LOCK: #UD says the manual; this CPU lets it pass",
        fields=("all",),
        when=lambda t: b"\xf0" in t.made.code[:3] and (t.ours_vector, t.real_vector) == (6, -1),
    ),
    *MMX,
    *X87,
)
