"""The state that trials begin in, all at random: registers, flags, MXCSR, vectors, memory.

x87 begins as an MMX program finds it, all registers in use and TOP 0; its own trials change that.

Values are random bits, small numbers, or those at the edges of integers and floating point, where
instructions differ. Exceptions of SSE stay masked.
"""

import numpy as np
import numpy.typing as npt
from fuzz_guest import (
    AREA_END,
    FLAGS,
    INSTRUCTION,
    MEMORY,
    MXCSR,
    NONE,
    POINTERS,
    RECORD,
    SLOT,
    SLOTS,
    ST,
    TARGET,
    WORD,
    X87,
    XMM,
)

ARITHMETIC, DF = 0x8D5, 0x400
FCW, ALL_IN_USE = 0x37F, 0xFF << 32
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_INTERESTING = np.array([*_EDGES, (1 << 63) - 1, 1 << 63, NONE, NONE - 1], np.uint64)
# Zeros, infinities, NaNs quiet and signalling, denormals, ones; twice single, and double.
_SINGLE = (0x7F8000007F800000, 0xFF800000FF800000, 0x7FC000017F800001, 0x3F8000003F800000)
_DOUBLE = (0x7FF0000000000000, 0x7FF8000000000001, 0x7FF0000000000001, 0x3FF0000000000000)
_SMALL_AND_LARGE = (0x0000000100000001, 0x000FFFFFFFFFFFFF, 0x4B0000004F000000, 0x43E0000000000000)
_FLOATS = np.array([0, 1 << 63, *_SINGLE, *_DOUBLE, *_SMALL_AND_LARGE], np.uint64)


def states(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """Records at random: registers that are random bits, small, or at an edge; flags; memory."""
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 1 << 64, (count, RECORD // WORD), np.uint64)
    gprs = records[:, :16]
    roll = rng.random(gprs.shape)
    gprs[roll < 0.3] = rng.choice(_INTERESTING, int((roll < 0.3).sum()))
    gprs[(roll >= 0.3) & (roll < 0.4)] &= np.uint64(0xFF)
    vectors = records[:, ST // WORD :]
    roll = rng.random(vectors.shape)
    vectors[roll < 0.4] = rng.choice(_FLOATS, int((roll < 0.4).sum()))
    edges = (roll >= 0.4) & (roll < 0.5)
    vectors[edges] = rng.choice(_INTERESTING, int(edges.sum()))
    flags = records[:, FLAGS // WORD] & np.uint64(ARITHMETIC | DF)
    records[:, FLAGS // WORD] = flags | np.uint64(2)
    records[:, TARGET // WORD] = SLOTS + INSTRUCTION + SLOT * np.arange(count, dtype=np.uint64)
    rounding = rng.integers(0, 4, count, np.uint64) << np.uint64(13)  # MXCSR_MASK beside it is 0
    records[:, MXCSR // WORD] = rounding | np.uint64(0x1F80)
    denormals = rng.random(count) < 0.1  # are zeros, and results are flushed to zero
    records[denormals, MXCSR // WORD] |= np.uint64(0x8040)
    records[:, X87 // WORD] = FCW | ALL_IN_USE
    records[:, POINTERS // WORD : MXCSR // WORD] = 0
    records[:, ST // WORD + 1 : XMM // WORD : 2] &= np.uint64(0xFFFF)  # sign and exponent
    records[:, AREA_END // WORD : MEMORY // WORD] = 0
    return records
