"""What the emulator makes of x87 and MMX where it gets them wrong, as in `fuzz_wrong`."""

from dataclasses import dataclass
from typing import Self

from fuzz_compare import Records, Trial
from fuzz_guest import ST, WORD, X87
from fuzz_wrong import horizontal


@dataclass(frozen=True)
class Stack:
    """x87 as a record has it; registers by their own numbers, as MMX names them."""

    control: int
    status: int
    top: int
    tags: int
    significands: tuple[int, ...]
    exponents: tuple[int, ...]

    @classmethod
    def of(cls, record: Records) -> Self:
        """Read a record, whose registers stand from TOP on."""
        word = int(record[X87 // WORD])
        status = word >> 16 & 0xFFFF
        top = status >> 11 & 7
        halves = record[ST // WORD : ST // WORD + 16].tolist()
        order = [2 * ((number - top) % 8) for number in range(8)]
        significands = tuple(halves[at] for at in order)
        exponents = tuple(halves[at + 1] for at in order)
        return cls(word & 0xFFFF, status & ~0x3800, top, word >> 32, significands, exponents)


def _mmx(trial: Trial, top: int, tags: int, before: Stack, ours: Stack, real: Stack) -> bool:
    """The emulator has this TOP and these tags, the CPU's values, and bits 64 to 79 as before."""
    values = list(real.significands)
    if trial.made.row.name[:3] in ("pha", "phs") and horizontal(trial):
        values[trial.made.reg % 8] = ours.significands[trial.made.reg % 8]
    right = (ours.control, ours.status, ours.top, ours.tags)
    right_values = ours.significands == tuple(values) and ours.exponents == before.exponents
    return right == (real.control, real.status, top, tags) and right_values


def _stacks(trial: Trial) -> tuple[Stack, Stack, Stack]:
    before, ours, real = (Stack.of(one) for one in (trial.before, trial.ours, trial.real))
    return before, ours, real


def mmx_exponents(trial: Trial) -> bool:
    """Bits 64 to 79 of the register that is written stay."""
    stacks = before, _, real = _stacks(trial)
    pairs = zip(before.exponents, real.exponents, strict=True)
    written = {new for old, new in pairs if new != old}
    return written == {0xFFFF} and _mmx(trial, 0, 0xFF, *stacks)


def mmx_not_entered(trial: Trial) -> bool:
    """TOP and tags stay too."""
    before, ours, real = _stacks(trial)
    entered = (real.top, real.tags) == (0, 0xFF)
    return entered and _mmx(trial, before.top, before.tags, before, ours, real)


def mmx_entered(trial: Trial) -> bool:
    """TOP and tags are changed where the CPU leaves x87 as it is."""
    before, ours, real = _stacks(trial)
    return real == before and _mmx(trial, 0, 0xFF, before, ours, real)


def emms(trial: Trial) -> bool:
    """TOP stays."""
    before, ours, real = _stacks(trial)
    return (real.top, real.tags) == (0, 0) and _mmx(trial, before.top, 0, before, ours, real)
