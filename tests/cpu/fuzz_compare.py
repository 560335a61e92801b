"""The comparer: what an instruction has left on both engines, and in which fields they differ."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from fuzz_guest import (
    ERROR,
    FLAGS,
    GPRS,
    MEMORY,
    MXCSR,
    NONE,
    PAD,
    ST,
    VECTOR,
    WORD,
    X87,
    XMM,
    Batch,
)
from fuzz_trials import Made

Records = npt.NDArray[np.uint64]


@dataclass
class Difference:
    """The fields in which a trial ended differently: masks of flags, sets of what else."""

    flags: int = 0
    mxcsr: int = 0
    gprs: set[int] = field(default_factory=set)
    xmms: set[tuple[int, int]] = field(default_factory=set)
    """Registers with the lanes of 32 bits in them."""
    mmx: set[int] = field(default_factory=set)
    """MMX registers, which are the significands of x87's; by their place above TOP."""
    exponents: set[int] = field(default_factory=set)
    """x87 registers by their sign and exponent."""
    x87: int = 0
    """FCW in the lowest 16 bits, FSW in the next, then a bit for each register in use."""
    memory: bool = False
    fault: bool = False
    """The vector, error code, RIP or CR2 of an exception, or the place that was reached."""

    def __bool__(self) -> bool:
        registers = self.gprs or self.mmx or self.exponents or self.xmms
        masks = self.flags or self.mxcsr or self.x87
        return bool(masks or registers or self.memory or self.fault)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


@dataclass
class Trial:
    """A trial with its record before and after, on the emulator (`ours`) and the CPU (`real`)."""

    made: Made
    before: Records
    ours: Records
    real: Records

    def difference(self) -> Difference:
        """Say where the records differ."""
        out = Difference()
        for word in np.nonzero(self.ours != self.real)[0].tolist():
            offset = WORD * word
            xor = int(self.ours[word] ^ self.real[word])
            if offset < FLAGS:
                out.gprs.add(word)
            elif offset == FLAGS:
                out.flags = xor
            elif offset == MXCSR:
                out.mxcsr = xor
            elif offset >= MEMORY:
                out.memory = True
            elif offset >= XMM:
                first = (offset - XMM) % 16 // 4
                lanes = (first + half for half in (0, 1) if xor >> 32 * half & 0xFFFFFFFF)
                out.xmms.update(((offset - XMM) // 16, lane) for lane in lanes)
            elif offset >= ST:
                half = out.exponents if offset % 16 else out.mmx
                half.add((offset - ST) // 16)
            elif offset == X87:
                out.x87 = xor
            else:
                out.fault = True
        return out

    @property
    def ours_vector(self) -> int:
        return _vector(self.ours)

    @property
    def real_vector(self) -> int:
        return _vector(self.real)

    def gpr(self, number: int) -> int:
        """A general register before the instruction."""
        return int(self.before[number])

    def operand(self, size: int) -> bytes:
        """The first bytes of the operand in ModRM.rm before the instruction."""
        made = self.made
        at = made.at if made.memory else WORD * made.rm
        if not made.memory and made.row.is_fp:
            at = XMM + 16 * made.rm
        return self.before.tobytes()[at : at + size]

    @property
    def same_low_halves(self) -> bool:
        """Whether the XMM registers differ in their upper 64 bits only."""
        low = slice(XMM // WORD, MEMORY // WORD, 2)
        return bool((self.ours[low] == self.real[low]).all())

    @property
    def count(self) -> int:
        """The count of a shift or rotation: an immediate, CL, or one."""
        made = self.made
        if made.row.opcode in (b"\xd0", b"\xd1"):
            raw = 1
        else:
            raw = made.imm[0] if made.imm else self.gpr(1)
        return raw & (63 if made.size == 8 else 31)

    def __str__(self) -> str:
        lines = [str(self.made)]
        for word in range(len(self.before)):
            values = [int(one[word]) for one in (self.before, self.ours, self.real)]
            if values[1] != values[2]:
                shown = "before {:#x}, emulator {:#x}, CPU {:#x}".format(*values)
                lines.append(f"  {_name(WORD * word)}: {shown}")
        return "\n".join(lines)


def _vector(record: Records) -> int:
    """The exception, or -1."""
    value = int(record[VECTOR // WORD])
    return -1 if value == NONE else value


def _name(offset: int) -> str:
    if offset < FLAGS:
        return GPRS[offset // WORD]
    if offset >= MEMORY:
        return f"memory+{offset - MEMORY}"
    if ST <= offset < XMM:
        return f"st{(offset - ST) // 16}+{offset % 16}"
    if offset >= XMM:
        return f"xmm{(offset - XMM) // 16}+{offset % 16}"
    names = {FLAGS: "rflags", VECTOR: "vector", ERROR: "error", PAD: "pad", MXCSR: "mxcsr"}
    names[X87] = "tags, fsw, fcw"
    return names.get(offset, f"+{offset:#x}")


def differing(
    made: list[Made], batch: Batch, ours: Records, real: Records
) -> Iterator[tuple[int, Trial]]:
    """Yield the trials of a batch whose records differ, with their numbers."""
    for number in np.nonzero((ours != real).any(axis=1))[0].tolist():
        yield number, Trial(made[number], batch.records[number], ours[number], real[number])
