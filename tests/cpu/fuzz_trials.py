"""Trials at random: an instruction from the tables, its operands, and the state it begins in.

A batch depends on its seed alone. Registers and memory are filled at random all at once; then each
trial puts in what its instruction needs: addresses that lie in its own record's memory, a count
that ends, a target that is a pad.
"""

import random
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from fuzz_guest import (
    BATCH,
    DATA_END,
    INSTRUCTION,
    MEMORY,
    NONE,
    PADS,
    PAGE,
    RECORD,
    RECORDS,
    SLOT,
    SLOTS,
    WORD,
    Batch,
)
from fuzz_state import ARITHMETIC, DF, states
from fuzz_state_x87 import operand, set_x87
from fuzz_table import INTEGER, Row
from fuzz_table_sse import MMX, SSE
from fuzz_table_x87 import X87

ROWS = INTEGER + MMX + SSE + X87

MIDDLE = 96  # of the 256 bytes of a record's memory; what a fixed-up address is near
RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(1, 8)
LOCKED, SEGMENT, SHORT_ADDRESS, WILD = 0.06, 0.04, 0.06, 0.04
# Where nobody may go: ring 0's own page, and unmapped ones: behind the data, in each half of the
# address space, and in neither. (Not where the upper half begins: there kvm_pvm lets the error code
# of the host's own tables through.)
BEYOND = (0x1000, DATA_END, DATA_END + PAGE, 1 << 40, (1 << 47) - PAGE)
BEYOND += (1 << 47, 1 << 62, NONE - 0xFFF)
LENGTHS = [*range(20), (1 << 32) - 1, (1 << 32) - 9, (1 << 31) - 1, 1 << 31, (1 << 63) + 5]
OPERANDS = {"f32", "f64", "f80", "i16", "i32", "i64", "bcd", "cw", "env"}
_SEGMENTS = [bytes([byte]) for byte in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)]


@dataclass
class Made:
    """An instruction and what its record must hold: words by offset, bytes of memory by offset."""

    row: Row
    code: bytes
    size: int
    words: dict[int, int]
    memory: bool
    imm: bytes = b""
    rip: bool = False
    aligned: bool = True
    reg: int = 0
    rm: int = 0
    vvvv: int = 0
    at: int = 0
    """Where in the record the operand in memory lies."""
    wild: bool = False
    """Whether its address is one of `BEYOND`."""

    def __str__(self) -> str:
        return f"{self.row.name} {self.size * 8}: {self.code.hex(' ')}"


class Maker:
    """Makes instructions, each for its slot and record."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)

    def make(self, number: int, row: Row) -> Made:
        """Return one instruction of a row, as trial `number` of a batch."""
        rng, words = self.rng, row.words
        self.fixed: dict[int, int] = {}
        self.base = RECORDS + RECORD * number + MEMORY + MIDDLE
        self.slot = SLOTS + SLOT * number
        size, legacy, wide = self._size(words)
        self.aligned = 16 if "al" in words and rng.random() < 0.95 else 0
        locked = rng.random() < LOCKED and ("lk" in words or rng.random() < 0.1)
        if rng.random() < SEGMENT:
            legacy = rng.choice(_SEGMENTS) + legacy
        self._needs(row, words, size)
        if "str" in words:
            legacy += rng.choice([b"", b"\xf3", b"\xf2"])
        if row.prefix and "vex" not in words:
            legacy = legacy.replace(b"\x66", b"") if row.prefix == b"\x66" else legacy
            legacy += row.prefix
        imm = self._immediate(words, size)
        head, rex, modrm, memory, short = self._operands(row, words, len(imm))
        if short:
            legacy = b"\x67" + legacy
        if locked and "vex" not in words:
            legacy = b"\xf0" + legacy
        rex |= wide
        if "vex" in words:
            code = legacy.replace(b"\x66", b"") + self._vex(row, rex, size) + modrm + imm
        else:
            if "b" in words and not rex and rng.random() < 0.5:
                rex = 0x40  # SPL, BPL, SIL, DIL in place of AH to BH
            front = bytes([0x40 | rex]) if rex else b""
            code = legacy + front + row.opcode[:-1] + head + modrm + imm
        if self.relative is not None:  # to a slot's pad: relative to the end of the instruction
            end = self.slot + INSTRUCTION + len(code)
            width = 1 if "rel1" in words else 4
            if width == 1 or len(code) + width <= 15:
                code += (self.relative - end - width).to_bytes(width, "little", signed=True)
        if self.rip_at is not None:
            end = self.slot + INSTRUCTION + len(code)
            at = code.rindex(b"RIP!")
            code = code[:at] + struct.pack("<i", self.rip_at - end) + code[at + 4 :]
        rip, regs = self.rip_at is not None, (self.reg, self.rm, self.vvvv)
        return Made(
            row, code, size, self.fixed, memory, imm, rip, not self.stray, *regs, self.at, self.wild
        )

    def _size(self, words: frozenset[str]) -> tuple[int, bytes, int]:
        """Operand size in bytes, the prefix for it, and REX.W."""
        roll = self.rng.random()
        if "b" in words:
            return 1, b"", 0
        if "v" in words:
            if roll < 0.3:
                return 2, b"\x66", 0
            return (4, b"", 0) if roll < 0.65 else (8, b"\x66" if roll > 0.98 else b"", 8)
        if "y" in words:
            return (4, b"", 0) if roll < 0.5 else (8, b"", 8)
        if "w" in words:
            return (2, b"\x66", 0) if roll < 0.2 else (8, b"", 0)
        return 8, b"", 0

    def _needs(self, row: Row, words: frozenset[str], size: int) -> None:
        """Put into registers and memory what the instruction takes without a ModRM."""
        rng, fixed = self.rng, self.fixed
        self.relative = None
        pad = self.slot + rng.choice(PADS)
        if "rel1" in words or "rel4" in words:
            self.relative = pad
            if row.name[:4] in ("loop", "jrcx"):
                fixed[WORD * RCX] = rng.choice([0, 1, 2, rng.getrandbits(64), 1 << 32])
        if "str" in words:
            fixed[WORD * RSI] = self.base + rng.randrange(-8, 8)
            fixed[WORD * RDI] = self.base + rng.randrange(-8, 24)
            fixed[WORD * RCX] = rng.randrange(9)
        if "rdi" in words:
            fixed[WORD * RDI] = self.base + rng.randrange(-8, 8)
        if "stk" in words:
            fixed[WORD * RSP] = self.base + rng.randrange(-8, 8)
        if "bp" in words:
            fixed[WORD * RBP] = self.base + rng.randrange(24)
        if "ret" in words:
            fixed[WORD * RSP] = self.base
            fixed[MEMORY + MIDDLE] = pad
        if "pf" in words:
            fixed[WORD * RSP] = self.base
            fixed[MEMORY + MIDDLE] = rng.getrandbits(16) & (ARITHMETIC | DF)
        if "xlat" in words:
            fixed[WORD * RBX] = self.base - 96
        if "quo" in words and rng.random() < 0.7:
            fixed[WORD * RDX] = rng.choice([0, 1, rng.getrandbits(8), (1 << 64) - 1])
            if size == 1:
                fixed[0] = rng.getrandbits(11)
        if "len" in words:
            fixed[0] = rng.choice(LENGTHS)
            fixed[WORD * RDX] = rng.choice(LENGTHS)
        self.pad = pad

    def _immediate(self, words: frozenset[str], size: int) -> bytes:
        rng = self.rng
        imm = b""
        if "i2" in words:
            imm += struct.pack("<H", rng.randrange(64) if "few" in words else rng.getrandbits(16))
        if "i1" in words:
            imm += bytes([rng.randrange(4) if "few" in words else rng.getrandbits(8)])
        if "imm2" in words:
            imm += rng.randbytes(1)
        if "iz" in words:
            imm += rng.randbytes(min(size, 4)) if rng.random() < 0.7 else b"\xff" * min(size, 4)
        if "iv" in words:
            imm += rng.randbytes(size)
        if "m8" in words:
            imm += struct.pack("<Q", self.base + rng.randrange(-8, 8))
        return imm

    def _operands(
        self, row: Row, words: frozenset[str], imm: int
    ) -> tuple[bytes, int, bytes, bool, bool]:
        """The opcode's last byte, REX bits, ModRM with what follows, memory?, short address?"""
        rng, last = self.rng, row.opcode[-1]
        self.rip_at: int | None = None
        self.reg = self.rm = self.vvvv = self.at = 0
        self.stray = self.wild = False
        if "+r" in words:
            reg = rng.randrange(16)
            return bytes([last + (reg & 7)]), reg >> 3, b"", False, False
        digit = row.digit
        if digit is None and "rm" not in words:
            return bytes([last]), 0, b"", False, False
        reg = rng.randrange(16) if digit is None else digit
        self.reg, self.vvvv = reg, rng.randrange(16)
        rex = (reg >> 3) << 2
        if "M" not in words and ("R" in words or rng.random() < 0.5):
            rm = rng.randrange(16)
            if "ind" in words:
                if rm == RSP:
                    rm = 0
                self.fixed[WORD * rm] = self.pad
            self.rm = rm
            modrm = bytes([0xC0 | (reg & 7) << 3 | rm & 7])
            return bytes([last]), rex | rm >> 3, modrm, False, False
        target = self.base + (0 if self.aligned or "ind" in words else rng.randrange(-16, 16))
        if rng.random() < WILD and not words & {"ind", "stk", "bit"}:
            self.wild, target = (
                True,
                rng.choice(BEYOND) + (0 if self.aligned else rng.randrange(16)),
            )
        if "ind" in words:
            self.fixed[MEMORY + MIDDLE] = self.pad
        if "eq" in words and rng.random() < 0.5:
            self.fixed[MEMORY + MIDDLE] = 0x1122334455667788
            self.fixed[0] = 0x1122334455667788 if len(row.name) == 7 else 0x55667788
            self.fixed[WORD * RDX] = 0x11223344
            target = self.base
        if "bit" in words:  # the bit's number moves the address
            self.fixed[WORD * reg] = rng.randrange(-256, 256) & NONE
        kind = next((word for word in words if word in OPERANDS), None)
        if kind and not self.wild and rng.random() < 0.9:
            target &= -WORD
            raw = operand(rng, kind).ljust(2 * WORD, b"\0")
            at = target - self.base + MEMORY + MIDDLE
            self.fixed[at], self.fixed[at + WORD] = struct.unpack("<QQ", raw)
        self.stray = bool("al" in words and target % 16)
        self.at = MEMORY if self.wild else target - self.base + MEMORY + MIDDLE
        bits, modrm, short = self._address(reg, target, "stk" in words or "bit" in words)
        return bytes([last]), rex | bits, modrm, True, short

    def _address(self, reg: int, target: int, keep: bool) -> tuple[int, bytes, bool]:
        """REX.B and X, ModRM, SIB and displacement for an address; its registers get values."""
        rng, middle = self.rng, (reg & 7) << 3
        form = rng.uniform(0.25, 1) if self.wild else rng.random()
        short = not self.wild and rng.random() < SHORT_ADDRESS
        junk = rng.getrandbits(32) << 32 if short else 0  # 67h: the upper half is not used
        if form < 0.15:
            self.rip_at = target
            return 0, bytes([middle | 5]) + b"RIP!", False
        if form < 0.25:
            return 0, bytes([middle | 4, 0x25]) + struct.pack("<i", target), False
        taken = set(self.fixed) | ({WORD * reg} if keep else set())
        free = [r for r in range(16) if WORD * r not in taken]
        base = rng.choice(free)
        mod = rng.randrange(3)
        if mod == 0 and base & 7 == RBP:
            mod = 1
        shift = {0: 0, 1: rng.randrange(-128, 128), 2: rng.randrange(-(1 << 31), 1 << 31)}[mod]
        if self.aligned and mod == 1:
            shift &= ~15
        displacement = [b"", struct.pack("<b", shift) if mod == 1 else b""][mod & 1]
        if mod == 2:
            displacement = struct.pack("<i", shift)
        index = rng.choice([r for r in free if r not in (RSP, base)] or [RSP])
        if form < 0.6 or index == RSP:
            self._point(base, target - shift, junk, short)
            if base & 7 == RSP:
                return base >> 3, bytes([mod << 6 | middle | 4, 0x24]) + displacement, short
            return base >> 3, bytes([mod << 6 | middle | base & 7]) + displacement, short
        scale, step = rng.randrange(4), rng.randrange(-1000, 1000)
        self._point(index, step, junk, short)
        self._point(base, target - shift - (step << scale), junk, short)
        sib = bytes([mod << 6 | middle | 4, scale << 6 | (index & 7) << 3 | base & 7])
        return base >> 3 | (index >> 3) << 1, sib + displacement, short

    def _point(self, reg: int, value: int, junk: int, short: bool) -> None:
        self.fixed[WORD * reg] = value & 0xFFFFFFFF | junk if short else value & NONE

    def _vex(self, row: Row, rex: int, size: int) -> bytes:
        """Three-byte VEX (Intel SDM vol. 2A, 2.3.5): inverted R, X, B, and vvvv."""
        pp, table = row.prefix
        first = (~rex & 7) << 5 | table
        vvvv = 0 if row.name == "rorx" else self.vvvv
        second = (0x80 if size == 8 else 0) | (~vvvv & 15) << 3 | pp
        return bytes([0xC4, first, second]) + row.opcode


def trials(
    seed: int, count: int = BATCH, rows: list[Row] | None = None
) -> tuple[list[Made], Batch]:
    """Return a batch of trials and what it is made of: without `rows` half of it integers."""
    maker = Maker(f"trials {seed}")
    rng = maker.rng
    made = []
    for number in range(count):
        table = rows or rng.choices((INTEGER, SSE, MMX, X87), (50, 16, 9, 25))[0]
        made.append(maker.make(number, rng.choice(table)))
    records = states(seed, count)
    stacked = [
        (number, one.row.words, one.rm % 8)
        for number, one in enumerate(made)
        if one.row.words & {"x", "mm"}
    ]
    set_x87(seed, records, stacked)
    return made, Batch([one.code for one in made], fill(made, records))


def fill(made: list[Made], records: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Put into the records what each trial's instruction needs there."""
    at = [
        (k, offset // WORD, value)
        for k, one in enumerate(made)
        for offset, value in one.words.items()
    ]
    if at:
        rows, columns, values = zip(*at, strict=True)
        records[list(rows), list(columns)] = np.array(values, np.uint64)
    return records
