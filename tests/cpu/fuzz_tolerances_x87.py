"""Where the emulator may differ from the CPU in x87 and MMX; `fuzz_tolerances` says how to read it.

Sections are those of the Intel SDM.
"""

from fuzz_judge import Tolerance
from fuzz_wrong_x87 import emms, mmx_entered, mmx_exponents, mmx_not_entered

MMX = (
    Tolerance(
        "MMX bits 64 to 79",
        "bug",
        (),
        "vol. 3A, *Effects of MMX Instructions on x87 FPU State*: bits 64 to 79 are set to ones",
        fields=("x87",),
        when=lambda t: t.made.row.is_mmx and mmx_exponents(t),
        seen_in="paddb",
    ),
    Tolerance(
        "MMX not entered",
        "bug",
        (),
        "vol. 3A, *Effects of MMX Instructions on x87 FPU State*: TOP 0, all tags valid",
        fields=("x87",),
        when=lambda t: (
            t.made.row.is_mmx
            and t.made.row.opcode[:2] in (b"\x0f\x38", b"\x0f\x3a")
            and mmx_not_entered(t)
        ),
        seen_in="pshufb",
    ),
    Tolerance(
        "MMX entered by a fault",
        "bug",
        (),
        "vol. 3A, *Exception Classifications*: a fault leaves the state as it was before",
        fields=("x87",),
        when=lambda t: t.made.row.is_mmx and t.real_vector != -1 and mmx_entered(t),
        seen_in="paddb",
    ),
    Tolerance(
        "MMX entered from memory",
        "bug",
        ("cvtpi2pd", "cvtpi2ps"),
        "CVTPI2PD: with a source in memory x87 stays as it is; CVTPI2PS: so in AMD APM vol. 5",
        fields=("x87",),
        when=lambda t: t.made.memory and mmx_entered(t),
    ),
    Tolerance(
        "emms TOP",
        "bug",
        ("emms",),
        "vol. 3A, *Effects of MMX Instructions on x87 FPU State*: TOP becomes 0",
        fields=("x87",),
        when=emms,
    ),
)
