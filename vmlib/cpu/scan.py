"""Where in a piece of x86 code stand the instructions at which the emulator may have to stop?

The emulator translates a block at a time and runs on to its end unless it is told to look up
after an instruction. `sites` finds those instructions: port I/O, RDMSR, WRMSR, CPUID and MOV to
CR0, CR3 and CR4. For that it needs only how long each instruction is, which `instruction_length`
answers for 16-, 32- and 64-bit code: prefixes, opcode, ModRM, SIB, displacement, immediate (Intel
SDM vol. 2, chapter 2, *Instruction Format*; the grids below are the opcode maps of its appendix A).

Left out: what an instruction does, whether the CPU has it, and whether the form that ModRM picks
within a group is defined. VEX, EVEX and XOP are not known. Where the walk meets bytes it does not
know it is lost, and `sites` reports from there on everything that could be such an instruction.
A near branch after 66 in 64-bit code is taken as Intel has it, with four bytes; AMD and the
emulator read two. It ends its block, so nothing that runs stands behind it.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, NamedTuple, cast

from vmlib.errors import BadInput

Kind = Literal["io", "rdmsr", "wrmsr", "cpuid", "mov_cr0", "mov_cr3", "mov_cr4"]

MAX_LENGTH: Final = 15
"""Bytes of the longest instruction (SDM vol. 2, section 2.3.11)."""


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction of interest: its offset in the code and its length, prefixes included."""

    offset: int
    length: int
    kind: Kind


# What follows each opcode, sixteen to a row.
#   .  nothing             b  1 byte    w  2 bytes   e  3 bytes (ENTER)
#   z  2 or 4 bytes by operand size     v  2, 4 or 8 bytes by operand size (MOV to a register)
#   j  a near branch: as z, but always 4 bytes in 64-bit code
#   f  a far pointer       o  an offset as wide as an address
#   M  ModRM               B  ModRM and 1 byte       Z  ModRM and 2 or 4 bytes
#   T  U  as B and Z, the immediate for /0 and /1 only (TEST in group 3)
#   L  ModRM that names memory (with a register it opens a VEX or EVEX prefix)
#   P  ModRM /0 only (POP; with another it opens an XOP prefix)
#   R  S  ModRM that names a register, S with 1 byte (no form with memory is defined, and the
#         emulator, which runs some of them all the same, reads no displacement then)
#   D  ModRM, a register only when F2 or F3 stands before (MOVDQ2Q, MOVQ2DQ)
#   X  ModRM, and 2 bytes when 66 or F2 stands before (EXTRQ, INSERTQ; registers only)
#   >  a prefix or an escape: see _State.moves                   ?  no instruction known
_ONE_BYTE = (
    "MMMMbz..MMMMbz.>"  # 00
    "MMMMbz..MMMMbz.."  # 10
    "MMMMbz>.MMMMbz>."  # 20
    "MMMMbz>.MMMMbz>."  # 30
    "................"  # 40
    "................"  # 50
    "..LM>>>>zZbB...."  # 60
    "bbbbbbbbbbbbbbbb"  # 70
    "BZBBMMMMMMMMMMMP"  # 80
    "..........f....."  # 90
    "oooo....bz......"  # A0
    "bbbbbbbbvvvvvvvv"  # B0
    "BBw.LLBZe.w..b.."  # C0
    "MMMMbb..MMMMMMMM"  # D0
    "bbbbbbbbjjfb...."  # E0
    ">.>>..TU......MM"  # F0
)
_TWO_BYTE = (
    "MMMM?.....?.?M.B"  # 0F 00
    "MMMMMMMMMMMMMMMM"  # 0F 10
    "bbbb????MMMMMMMM"  # 0F 20: MOV to and from CR and DR reads ModRM as two registers
    "......?.>?>?????"  # 0F 30
    "MMMMMMMMMMMMMMMM"  # 0F 40
    "RMMMMMMMMMMMMMMM"  # 0F 50
    "MMMMMMMMMMMMMMMM"  # 0F 60
    "BSSSMMM.XM??MMMM"  # 0F 70
    "jjjjjjjjjjjjjjjj"  # 0F 80
    "MMMMMMMMMMMMMMMM"  # 0F 90
    "...MBM??...MBMMM"  # 0F A0
    "MMMMMMMMMMBMMMMM"  # 0F B0
    "MMBMBSBM........"  # 0F C0
    "MMMMMMDRMMMMMMMM"  # 0F D0
    "MMMMMMMMMMMMMMMM"  # 0F E0
    "MMMMMMMRMMMMMMMM"  # 0F F0
)
_MAPS = {"": _ONE_BYTE, "0F": _TWO_BYTE, "0F38": "M" * 256, "0F3A": "B" * 256}
_NOT_IN_64 = bytes.fromhex("06 07 0E 16 17 1E 1F 27 2F 37 3F 60 61 62 82 9A C4 C5 CE D4 D5 D6 EA")
_PREFIXES = bytes.fromhex("26 2E 36 3E 64 65 66 67 F0 F2 F3")
_REX = bytes(range(0x40, 0x50))

# A shape tells how an instruction goes on from its opcode. The low four bits count the opcode
# and the immediate, 0 for no instruction known; flags add to that. From _STATE on it is no shape
# but the number of the state in which to read the next byte.
_MODRM, _MODRM_16, _GROUP_3, _MEMORY, _REGISTER, _SLASH_0, _0F_D6, _0F_78, _STATE = (
    1 << bit for bit in range(4, 13)
)
# Letter by letter: the bytes of immediate after ModRM (None: by operand size), and the flag.
_WITH_MODRM: Final[dict[str, tuple[int | None, int]]] = {
    "M": (0, 0),
    "B": (1, 0),
    "Z": (None, 0),
    "T": (1, _GROUP_3),
    "U": (None, _GROUP_3),
    "L": (0, _MEMORY),
    "R": (0, _REGISTER),
    "S": (1, _REGISTER),
    "P": (0, _SLASH_0),
    "D": (0, _0F_D6),
    "X": (2, _0F_78),
}


class _State(NamedTuple):
    """What the bytes before have settled: all that the length of an instruction hangs on."""

    bits: int
    has_66: bool = False
    has_67: bool = False
    rex_w: bool = False
    opcode_map: str = ""

    def moves(self) -> dict[int, "_State"]:
        """Return the bytes that settle more, and the state each leads to."""
        if self.opcode_map:
            escapes = (0x38, 0x3A) if self.opcode_map == "0F" else ()
            return {byte: self._replace(opcode_map=f"0F{byte:02X}") for byte in escapes}
        rest = self._replace(rex_w=False)  # a REX counts only right before the opcode (2.2.1)
        moves = dict.fromkeys(_PREFIXES, rest)
        moves |= {0x66: rest._replace(has_66=True), 0x67: rest._replace(has_67=True)}
        moves[0x0F] = self._replace(opcode_map="0F")
        if self.bits == 64:
            moves |= {byte: self._replace(rex_w=byte >= 0x48) for byte in _REX}
        return moves

    def table(self) -> list[int]:
        """Return, for each value of the next byte, a shape or the number of the next state."""
        operand = 8 if self.rex_w else 2 if self.has_66 != (self.bits == 16) else 4
        z = min(operand, 4)
        address = (self.bits // 8, {16: 4, 32: 2, 64: 4}[self.bits])[self.has_67]
        modrm = _MODRM_16 if address == 2 else _MODRM
        follow = {".": 0, "b": 1, "w": 2, "e": 3, "z": z, "v": operand, "f": 2 + z, "o": address}
        follow["j"] = 4 if self.bits == 64 else z
        shapes = {letter: 1 + size for letter, size in follow.items()} | {"?": 0, ">": 0}
        for letter, (size, flag) in _WITH_MODRM.items():
            shapes[letter] = 1 + (z if size is None else size) | modrm | flag
        table = [shapes[letter] for letter in _MAPS[self.opcode_map]]
        if self.bits == 64 and not self.opcode_map:
            for opcode in _NOT_IN_64:
                table[opcode] = 0
        for byte, state in self.moves().items():
            table[byte] = _STATE + _NUMBERS[state]
        return table


_NUMBERS: Final = {
    _State(*fields): number
    for number, fields in enumerate(
        product((16, 32, 64), (False, True), (False, True), (False, True), _MAPS)
    )
}
_TABLES: Final = [state.table() for state in _NUMBERS]
_START: Final = {bits: _TABLES[_NUMBERS[_State(bits)]] for bits in (16, 32, 64)}

# Bytes of ModRM, displacement and SIB for each value of ModRM (SDM vol. 2, tables 2-1 and 2-2).
# A SIB whose base is 5 has four bytes more when mod is 0; that is seen only in the SIB itself.
_FORMS: Final = bytes(
    1 + (0, 1, 4, 0)[m >> 6] + 4 * (m & 0xC7 == 5) + (m < 0xC0 and m & 7 == 4) for m in range(256)
)
_FORMS_16: Final = bytes(1 + (0, 1, 2, 0)[m >> 6] + 2 * (m & 0xC7 == 6) for m in range(256))


def _end(code: bytes, start: int, table: list[int]) -> int:
    """Return where the instruction at `start` ends, 0 when it is not known or not all there."""
    at = start
    try:
        shape = table[code[at]]
        while shape >= _STATE:
            at += 1
            shape = _TABLES[shape - _STATE][code[at]]
        if shape < _MODRM:
            end = at + shape if shape else 0
        else:
            modrm = code[at + 1]
            end = at + (shape & 15)
            if shape & _MODRM_16:
                end += _FORMS_16[modrm]
            else:
                end += _FORMS[modrm]
                if modrm & 0xC7 == 4 and code[at + 2] & 7 == 5:
                    end += 4
            if shape >= _GROUP_3:
                end = _picked_by_modrm(code[start:at], shape, modrm, end)
    except IndexError:
        return 0
    return end if end <= len(code) and end - start <= MAX_LENGTH else 0


def _picked_by_modrm(prefixes: bytes, shape: int, modrm: int, end: int) -> int:
    """Correct `end` for the few opcodes whose ModRM or prefix decides what follows, or whether."""
    register, slash = modrm >= 0xC0, modrm >> 3 & 7
    if shape & _MEMORY:
        known = not register
    elif shape & _REGISTER:
        known = register
    elif shape & _SLASH_0:
        known = slash == 0
    elif shape & _GROUP_3:
        return end if slash <= 1 else end - (shape & 15) + 1
    elif shape & _0F_D6:
        known = register or (0xF2 not in prefixes and 0xF3 not in prefixes)
    elif 0x66 in prefixes or 0xF2 in prefixes:
        known = register
    else:  # 0F 78 is VMREAD
        return end - 2
    return end if known else 0


def _start_table(bits: int) -> list[int]:
    if bits not in _START:
        raise BadInput("bits", "must be 16, 32 or 64")
    return _START[bits]


def instruction_length(code: bytes, offset: int, bits: int) -> int:
    """Return the length in bytes of the instruction at `offset`, prefixes included.

    0 means that it is no instruction known here, is longer than 15 bytes, or is not all there.
    `bits` is the width of the code segment: 16, 32 or 64. BadInput for another, or for an offset
    below 0.
    """
    if offset < 0:
        raise BadInput("offset", "must not be below 0")
    end = _end(code, offset, _start_table(bits))
    return end - offset if end else 0


# The opcodes of interest; the group that matches names the kind. A match is one byte and looks
# ahead, so that none hides another: the E4 of 0F 22 E4 may be an IN, if the rest is data.
_OPCODES: Final = re.compile(
    rb"(?P<io>[\xe4-\xe7\xec-\xef\x6c-\x6f])"
    rb"|(?P<wrmsr>\x0f(?=\x30))|(?P<rdmsr>\x0f(?=\x32))|(?P<cpuid>\x0f(?=\xa2))"
    rb"|(?P<mov_cr0>\x0f(?=\x22[\x00-\x07\x40-\x47\x80-\x87\xc0-\xc7]))"
    rb"|(?P<mov_cr3>\x0f(?=\x22[\x18-\x1f\x58-\x5f\x98-\x9f\xd8-\xdf]))"
    rb"|(?P<mov_cr4>\x0f(?=\x22[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]))"
)
_REX_R: Final = bytes(byte for byte in _REX if byte & 4)


def sites(code: bytes, bits: int) -> list[Site]:
    """Return every port I/O, RDMSR, WRMSR, CPUID and MOV to CR0, CR3 and CR4 in `code`, in order.

    The walk goes instruction by instruction from offset 0. Where it meets one whose length it
    does not know, it stops, and every place from there on at which such an instruction could
    start is reported: then there may be too many, never too few. One that is cut off by the end
    of `code` is not reported. `bits` as in `instruction_length`.
    """
    table = _start_table(bits)
    prefixes = _PREFIXES + _REX if bits == 64 else _PREFIXES
    found: list[Site] = []
    start = at = 0
    for match in _OPCODES.finditer(code):  # most code has none, and is not walked at all
        opcode = match.start()
        while at <= opcode:
            start, at = at, _end(code, at, table)
            if not at:
                return found + _anywhere(code, start, table, prefixes)
        before = code[start:opcode]
        if before.strip(prefixes):
            continue  # the bytes lie within another instruction
        kind = cast(Kind, match.lastgroup)
        if kind.startswith("mov_cr") and before and before[-1] in _REX_R:
            continue  # CR8, or one that does not exist
        found.append(Site(start, at - start, kind))
    return found


def _anywhere(code: bytes, start: int, table: list[int], prefixes: bytes) -> list[Site]:
    """Return what could be an instruction of interest at any offset from `start` on."""
    found: list[Site] = []
    for match in _OPCODES.finditer(code, start):
        first = opcode = match.start()
        while first > start and code[first - 1] in prefixes:
            first -= 1
        if end := _end(code, opcode, table):
            first = max(first, end - MAX_LENGTH)
            kind = cast(Kind, match.lastgroup)
            found += [Site(offset, end - offset, kind) for offset in range(first, opcode + 1)]
    return found
