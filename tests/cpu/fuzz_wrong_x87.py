"""What the emulator makes of x87 and MMX where it gets them wrong, as in `fuzz_wrong`."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from fuzz_compare import Records, Trial
from fuzz_double import TRIGONOMETRIC, results, to_double
from fuzz_guest import CR2, MEMORY, MXCSR, ST, WORD, X87
from fuzz_wrong import flags, horizontal


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

    def st(self, place: int) -> tuple[int, int]:
        """ST(place): significand, sign and exponent."""
        number = (self.top + place) % 8
        return self.significands[number], self.exponents[number]

    def used(self, place: int) -> bool:
        """Whether ST(place) is in use."""
        return bool(self.tags >> (self.top + place) % 8 & 1)


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


RAISED, C0, C1, C2, C3, ES_B = 0x3F, 0x100, 0x200, 0x400, 0x4000, 0x8080
CONDITIONS = C0 | C1 | C2 | C3
ROUNDING = 3 << 10


def stack_fault(trial: Trial) -> bool:
    """A register that is read is empty, or one in use is pushed to; the CPU reports it."""
    before, words, real = Stack.of(trial.before), trial.made.row.words, Stack.of(trial.real)
    needs = {"r0": 0, "r1": 1, "ri": trial.made.rm % 8}
    empty = any(not before.used(place) for word, place in needs.items() if word in words)
    full = "push" in words and before.used(7)
    return (empty or full) and real.status & 0x41 == 0x41


def no_exceptions(trial: Trial) -> bool:
    """No exception flag is set but ZE, and that by every division by zero, also of a zero."""
    before, ours, _ = _stacks(trial)
    zero = 4 if "div" in trial.made.row.name and _divides_by_zero(trial) else 0
    return ours.status & RAISED == (before.status | zero) & RAISED


def _divides_by_zero(trial: Trial) -> bool:
    before, made = Stack.of(trial.before), trial.made
    if made.row.digit == 7:
        significand, exponent = before.st(0)
    elif not made.memory:
        significand, exponent = before.st(made.rm % 8)
    else:
        size, real = next(kind for word, kind in _KINDS.items() if word in made.row.words)
        value = int.from_bytes(trial.operand(size), "little")
        return not value & ((1 << 8 * size - real) - 1)
    return not significand and not exponent & 0x7FFF


_KINDS = {"f32": (4, 1), "f64": (8, 1), "i32": (4, 0), "i16": (2, 0)}
"""Size in bytes; whether there is a sign that a zero may have."""


def no_c1(trial: Trial) -> bool:
    """C1 stays as it was."""
    before, ours, _ = _stacks(trial)
    return ours.status & C1 == before.status & C1


def fst_tag(trial: Trial) -> bool:
    """The register that is written does not count as in use."""
    before, ours, real = _stacks(trial)
    written = 1 << (before.top + trial.made.rm) % 8
    return real.tags == ours.tags | written != ours.tags


def unsupported(trial: Trial) -> bool:
    """ST(0) is an unnormal, a pseudo-NaN or a pseudo-infinity."""
    return is_unsupported(*Stack.of(trial.before).st(0))


def is_unsupported(significand: int, exponent: int) -> bool:
    """SDM vol. 1, table 8-3: the integer bit is clear though the exponent is not 0."""
    return bool(exponent & 0x7FFF) and not significand >> 63


def constant(trial: Trial) -> bool:
    """It is the nearest value, whatever the rounding: next to that of the CPU."""
    before, ours, real = _stacks(trial)
    next_to_it = abs(ours.st(0)[0] - real.st(0)[0]) == 1
    return bool(before.control & ROUNDING) and next_to_it and ours.st(0)[1] == real.st(0)[1]


def control_as_it_comes(trial: Trial) -> bool:
    """Bits that FCW does not have are kept, and bit 6 is not set."""
    _, ours, real = _stacks(trial)
    return real.control == ours.control & 0x1F3F | 0x40


def summary_as_it_comes(trial: Trial) -> bool:
    """ES and B do not follow from flags and masks: they stay, or are as they were loaded."""
    _, ours, real = _stacks(trial)
    pending = real.status & RAISED & ~real.control
    return (
        real.status & ES_B == (ES_B if pending else 0) and ours.status | ES_B == real.status | ES_B
    )


def environment(trial: Trial) -> bool:
    """The upper halves beside words are 0 and not ones; pointers are the emulator's own."""
    at, width = trial.made.at, 2 if trial.made.size == 2 else 4
    ours, real = (bytearray(one.tobytes()) for one in (trial.ours, trial.real))
    pointers = slice(at + 3 * width, at + 7 * width)
    ours[pointers] = real[pointers]
    for place in range(at, at + 3 * width, width) if width == 4 else ():
        unused = slice(place + 2, place + 4)
        if ours[unused] != b"\0\0" or real[unused] != b"\xff\xff":
            return False
        ours[unused] = b"\xff\xff"
    return ours[MEMORY:] == real[MEMORY:]


def comparison_flags(trial: Trial) -> bool:
    """OF, SF and AF stay as they were."""
    kept = 0x890
    return flags(trial.ours) & kept == flags(trial.before) & kept and not flags(trial.real) & kept


def signalling(trial: Trial) -> bool:
    """A NaN that signals is loaded as it is, and not made quiet."""
    _, ours, real = _stacks(trial)
    mine, right = ours.st(0), real.st(0)
    return right[1] & 0x7FFF == 0x7FFF and mine == (right[0] & ~(1 << 62), right[1])


def root_of_negative(trial: Trial) -> bool:
    """C2 is set, and the other conditions are cleared."""
    before, ours, _ = _stacks(trial)
    return bool(before.st(0)[1] >> 15) and ours.status & CONDITIONS == C2


def _stored(trial: Trial, size: int) -> tuple[int, int] | None:
    """What both have stored in an operand of this size; None if they differ elsewhere in memory."""
    ours, real = (bytearray(one.tobytes()) for one in (trial.ours, trial.real))
    place = slice(trial.made.at, trial.made.at + size)
    values = tuple(int.from_bytes(one[place], "little") for one in (ours, real))
    ours[place] = real[place]
    return (values[0], values[1]) if ours[MEMORY:] == real[MEMORY:] else None


_SIZES = {0xD9: 4, 0xDB: 4, 0xDD: 8, 0xDF: 2}


def stored_nan(trial: Trial) -> bool:
    """A NaN with nothing in the bits that the format has becomes the default one."""
    size = _SIZES[trial.made.row.opcode[0]]
    fraction = 23 if size == 4 else 52
    significand, exponent = Stack.of(trial.before).st(0)
    nan = exponent & 0x7FFF == 0x7FFF and significand << 1 & (1 << 64) - 1 != 0
    default = (1 << 8 * size) - (1 << fraction - 1)
    right = default if exponent >> 15 else default ^ 1 << 8 * size - 1
    empty = not significand << 1 >> 64 - fraction & (1 << fraction) - 1
    return nan and empty and _stored(trial, size) == (default, right)


def truncated(trial: Trial) -> bool:
    """What is too large becomes the largest integer, and not the integer indefinite."""
    size = _SIZES[trial.made.row.opcode[0]]
    indefinite = 1 << 8 * size - 1
    return _stored(trial, size) == (indefinite - 1, indefinite)


def rounded(significand: int, exponent: int, rounding: int) -> int:
    """A value as the emulator rounds it to an integer of 64 bits; what does not fit is an end."""
    sign, shift = exponent >> 15, 0x3FFF + 63 - (exponent & 0x7FFF)
    if is_unsupported(significand, exponent):
        return -(1 << 63)
    if exponent & 0x7FFF == 0x7FFF or shift < 0:
        nan = exponent & 0x7FFF == 0x7FFF and significand << 1 & (1 << 64) - 1
        return -(1 << 63) if sign and not nan else (1 << 63) - 1
    whole, rest = significand >> shift, significand & (1 << shift) - 1
    half = (1 << shift) >> 1
    up = {
        0: rest > half or (rest == half != 0 and whole & 1),
        1: sign and rest,
        2: not sign and rest,
    }
    value = whole + bool(up.get(rounding, False))
    return max(-value, -(1 << 63)) if sign else min(value, (1 << 63) - 1)


def packed(trial: Trial) -> bool:
    """An integer of 64 bits is written with 18 digits: no -0, and no indefinite if it has more."""
    before = Stack.of(trial.before)
    value = rounded(*before.st(0), before.control >> 10 & 3)
    digits, left = bytearray(9), abs(value) if value != -(1 << 63) else value
    for at in range(9):
        part = abs(left) % 100
        left = abs(left) // 100 * (1 if left > 0 else -1)
        tens, ones = part // 10, part % 10
        if value == -(1 << 63):  # has no positive: its digits are negative
            tens, ones = -tens << 4, -ones
            digits[at] = (tens | ones) & 0xFF
        else:
            digits[at] = tens << 4 | ones
    stored = _stored(trial, 10)
    mine = bytes(digits) + (b"\x80" if value < 0 else b"\0")
    return stored is not None and stored[0] == int.from_bytes(mine, "little")


def other_byte(trial: Trial) -> bool:
    """Of ten bytes on a page that is not there it is the last or the last but one that faults."""
    others = np.nonzero(trial.ours != trial.real)[0].tolist()
    ours, real = (int(one[CR2 // WORD]) for one in (trial.ours, trial.real))
    return others == [CR2 // WORD] and ours - real == (8 if trial.made.row.name == "fbld" else 9)


def flushes(trial: Trial) -> bool:
    """Whether MXCSR.FZ is set, which the emulator obeys in x87."""
    return bool(int(trial.before[MXCSR // WORD]) & 0x8000)


def underflow(trial: Trial) -> bool:
    """A denormal becomes zero, also one that rounding makes the least normal number."""
    _, ours, real = _stacks(trial)
    words = trial.made.row.words
    place = (trial.made.rm - ("p" in words)) % 8 if "to" in words else 0
    mine, right = ours.st(place), real.st(place)
    tiny = not right[1] & 0x7FFF or (right[0], right[1] & 0x7FFF) == (1 << 63, 1)
    return flushes(trial) and tiny and mine == (0, right[1] & 0x8000)


def stored_underflow(trial: Trial) -> bool:
    """So it is when a value is stored in a format that is shorter."""
    size, fraction = (4, 23) if trial.made.row.opcode == b"\xd9" else (8, 52)
    sign = Stack.of(trial.before).st(0)[1] >> 15 << 8 * size - 1
    stored = _stored(trial, size)
    tiny = stored is not None and stored[0] == sign and stored[1] & ~sign <= 1 << fraction
    return flushes(trial) and tiny


def in_double(trial: Trial) -> bool:
    """All of x87 is what double precision and the C library make of it; C2 is the only flag."""
    before, ours, _ = _stacks(trial)
    name, words = trial.made.row.name, trial.made.row.words
    rounding, flush = before.control >> 10 & 3, flushes(trial)
    values = results(name, *(to_double(before.st(place), rounding, flush) for place in (0, 1)))
    status, top, used = before.status, before.top, before.tags
    registers = [before.st(place) for place in range(8)]
    if values is None:
        status = (status if name in TRIGONOMETRIC else status & ~CONDITIONS) | C2
    else:
        status &= ~C2 if name in TRIGONOMETRIC else -1
        if "push" in words:
            registers, top = [registers[7], *registers[:7]], (top - 1) % 8
            used |= 1 << top
        elif "p" in words:
            used &= ~(1 << top)
            registers, top = [*registers[1:], registers[0]], (top + 1) % 8
        registers[: len(values)] = values
    right = (before.control, status, top, used, registers)
    mine = [ours.st(place) for place in range(8)]
    return right == (ours.control, ours.status, ours.top, ours.tags, mine)
