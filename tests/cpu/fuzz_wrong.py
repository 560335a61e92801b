"""What the emulator makes of an instruction that it gets wrong: its own value, and no other.

Each function says whether a trial ended as the emulator's mistake would have it. So a tolerance is
as wide as the mistake, and a second one beside it is found.
"""

from collections.abc import Callable

import numpy as np
from fuzz_compare import Records, Trial
from fuzz_guest import ERROR, FLAGS, MXCSR, ST, WORD, X87, XMM

CF, ZF, SF = 1, 0x40, 0x80
STATUS = 0x3F
_32 = (1 << 32) - 1
_64 = (1 << 64) - 1


def bits(trial: Trial) -> int:
    """Size of the operand."""
    return 8 * trial.made.size


def flags(record: Records) -> int:
    """RFLAGS of a record."""
    return int(record[FLAGS // WORD])


def xmm(record: Records, number: int) -> bytes:
    """An XMM register of a record, 16 bytes."""
    at = (XMM + 16 * number) // WORD
    return record[at : at + 2].tobytes()


def mmx(record: Records, number: int) -> bytes:
    """An MMX register of a record, 8 bytes; there are eight of them, whatever REX says."""
    top = int(record[X87 // WORD]) >> 27
    return record[ST // WORD + 2 * ((number - top) % 8)].tobytes()


def low(record: Records, number: int) -> int:
    """The low half of an XMM register."""
    return int.from_bytes(xmm(record, number)[:8], "little")


def mxcsr_untouched(trial: Trial) -> bool:
    """The emulator sets no exception flag in MXCSR."""
    ours, before = (int(one[MXCSR // WORD]) for one in (trial.ours, trial.before))
    return ours & STATUS == before & STATUS


def reads_before_it_writes(trial: Trial) -> bool:
    """A page fault of what reads and then writes an operand is told as that of a read."""
    others = np.nonzero(trial.ours != trial.real)[0].tolist()
    ours, real = (int(one[ERROR // WORD]) for one in (trial.ours, trial.real))
    return others == [ERROR // WORD] and trial.real_vector == 14 and real == ours | 2


def zero_extended(which: Callable[[Trial], int]) -> Callable[[Trial], bool]:
    """A register that is not written at all loses its upper half."""

    def wrong(trial: Trial) -> bool:
        number = which(trial)
        before, ours, real = (int(one[number]) for one in (trial.before, trial.ours, trial.real))
        return real == before and ours == before & _32

    return wrong


def pdep(trial: Trial) -> bool:
    """A mask of 32 bits in a register counts with all 64, and so does the result."""
    made = trial.made
    source, mask = trial.gpr(made.vvvv) & _32, trial.operand(4 if made.memory else 8)
    places = [bit for bit in range(64) if int.from_bytes(mask, "little") >> bit & 1]
    ours = sum(1 << place for bit, place in enumerate(places) if source >> bit & 1)
    return int(trial.ours[made.reg]) == ours


def rsp_a_segment_below(trial: Trial) -> bool:
    """An immediate of 16 bits is taken with its sign."""
    return (int(trial.real[4]) - int(trial.ours[4])) & _64 == 1 << 16


def bzhi(trial: Trial) -> bool:
    """An index from the last bit on clears that bit and sets CF, and the other flags follow."""
    number, top = trial.made.reg, 1 << bits(trial) - 1
    ours = int(trial.ours[number])
    right = bool(flags(trial.ours) & ZF) == (not ours) and not flags(trial.ours) & SF
    return ours == int(trial.real[number]) & ~top and bool(flags(trial.ours) & CF) and right


def popcnt(trial: Trial) -> bool:
    """The operand has 16 bits."""
    number = trial.made.reg
    count = int.from_bytes(trial.operand(2), "little").bit_count()
    ours = int(trial.before[number]) & ~0xFFFF | count
    return int(trial.ours[number]) == ours and bool(flags(trial.ours) & ZF) == (not count)


def bextr(trial: Trial) -> bool:
    """The source has 64 bits, and a length is at most one less than the operand's."""
    control, last = trial.gpr(trial.made.vvvv), bits(trial) - 1
    start, length = control & 0xFF, min(control >> 8 & 0xFF, last)
    source = int.from_bytes(trial.operand(trial.made.size if trial.made.memory else 8), "little")
    ours = (source >> start if start <= last else 0) & (1 << length) - 1
    result = int(trial.ours[trial.made.reg])
    # ZF follows the 64 bits of it, of which the register gets fewer.
    return result == ours and bool(flags(trial.ours) & ZF) == (not result)


def _extract(value: int, length: int, start: int) -> int:
    mask = (1 << length % 64) - 1 if length else _64
    return value >> start % 64 & mask


def extrq_length(trial: Trial) -> bool:
    """A length of 64 or a multiple extracts nothing."""
    made = trial.made
    source = low(trial.before, made.rm)
    length, start = source & 0xFF, source >> 8 & 0xFF
    return low(trial.ours, made.reg) == _extract(low(trial.before, made.reg), length, start)


def extrq_immediate(trial: Trial) -> bool:
    """The register in ModRM.reg is the one that changes, and that in ModRM.rm stays."""
    made = trial.made
    length, start = made.imm[0] & 0x3F, made.imm[1] & 0x3F
    mine = low(trial.ours, made.reg) == _extract(low(trial.before, made.reg), length, start)
    stays = made.rm == made.reg or low(trial.ours, made.rm) == low(trial.before, made.rm)
    return mine and stays


def insertq(trial: Trial) -> bool:
    """The other bits come from the source too."""
    made = trial.made
    source, control = low(trial.before, made.rm), xmm(trial.before, made.rm)[8:10]
    length, start = control[0], control[1]
    mask = (1 << length % 64) - 1 if length else _64
    start %= 64
    ours = source & ~(mask << start) | (source & mask) << start
    return low(trial.ours, made.reg) == ours & _64


def horizontal(trial: Trial) -> bool:
    """The upper half adds or subtracts what the lower half has become by then."""
    name, register = trial.made.row.name, mmx if trial.made.row.is_mmx else xmm
    kind, limit = (np.int32, 0) if name.endswith("d") else (np.int16, 1 << 15)
    lanes = np.frombuffer(register(trial.before, trial.made.reg), kind).astype(np.int64)
    half = len(lanes) // 2
    for to in range(len(lanes)):
        pair = lanes[2 * (to % half) : 2 * (to % half) + 2]
        value = pair[0] - pair[1] if "sub" in name else pair[0] + pair[1]
        if name.endswith("sw"):
            value = min(max(value, -limit), limit - 1)
        lanes[to] = np.array(value).astype(kind)
    return lanes.astype(kind).tobytes() == register(trial.ours, trial.made.reg)


def mmx_beside(trial: Trial) -> bool:
    """REX.R counts in the maps of three bytes, and another register than the one named is written.

    It lies behind the last MMX register, in the emulator's own fields: part of XMM0, or MXCSR.
    """
    made = trial.made
    named = made.row.is_mmx and made.row.opcode[:2] in (b"\x0f\x38", b"\x0f\x3a") and made.reg > 7
    return named and mmx(trial.ours, made.reg) == mmx(trial.before, made.reg)


def dot_product(trial: Trial) -> set[int]:
    """Lanes of 32 bits in which both results are one sum, but for the order of its roundings."""
    made, imm = trial.made, trial.made.imm[0]
    kind, width = (np.float64, 2) if made.row.name == "dppd" else (np.float32, 1)
    first, second, ours, real = (
        np.frombuffer(raw, kind).astype(np.longdouble)
        for raw in (
            xmm(trial.before, made.reg),
            trial.operand(16),
            xmm(trial.ours, made.reg),
            xmm(trial.real, made.reg),
        )
    )
    summed, stored = (
        np.array([bool(imm >> (first_bit + lane) & 1) for lane in range(len(ours))])
        for first_bit in (4, 0)
    )
    with np.errstate(all="ignore"):
        products = np.minimum(np.abs(first * second), np.finfo(kind).max)  # rounded downwards
        bound = products[summed].sum() * 8 * np.finfo(kind).eps
        near = np.abs(ours - real) <= bound + 8 * np.finfo(kind).tiny
    near |= ~(np.isfinite(ours) | np.isfinite(real))
    return set(np.nonzero(np.repeat(near & stored, width))[0].tolist())


def equal_ordered(trial: Trial) -> bool:
    """In a string that fills its register, a match that its end cuts short is missed."""
    made, imm = trial.made, trial.made.imm[0]
    kind, full = (np.uint16, 8) if imm & 1 else (np.uint8, 16)
    raw = trial.before.tobytes()[made.at :][:16] if made.memory else xmm(trial.before, made.rm)
    string, needle = np.frombuffer(raw, kind), np.frombuffer(xmm(trial.before, made.reg), kind)
    if "len" in made.row.words:  # EDX and EAX with their signs, of which the magnitude counts
        signed = ((trial.gpr(number) & _32 ^ 1 << 31) - (1 << 31) for number in (2, 0))
        length, needed = (min(abs(one), full) for one in signed)
    else:
        length, needed = (int(np.argmin([*one, 0])) for one in (string, needle))
    result = 0
    for at in range(length - needed + 1 if needed else full):
        result |= int((string[at : at + needed] == needle[:needed]).all()) << at
    result ^= {1: (1 << full) - 1, 3: (1 << length) - 1}.get(imm >> 4 & 3, 0)
    if bool(flags(trial.ours) & CF) != bool(result):
        return False
    if made.row.name.endswith("m"):
        lanes = np.array([-(result >> lane & 1) for lane in range(full)]).astype(kind)
        mask = lanes.tobytes() if imm & 0x40 else result.to_bytes(16, "little")
        return mask == xmm(trial.ours, 0)
    first_or_last = (result.bit_length() if imm & 0x40 else (result & -result).bit_length()) - 1
    return int(trial.ours[1]) == (first_or_last if result else full)
