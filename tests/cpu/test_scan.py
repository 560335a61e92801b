"""Instruction lengths and places to stop at, against Capstone and against the emulator itself."""

import random
import struct
from collections import Counter
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import get_args

import capstone
import pytest

from vmlib.cpu.scan import MAX_LENGTH, Kind, Site, instruction_length, sites
from vmlib.errors import BadInput

DISASSEMBLERS = {
    16: capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_16),
    32: capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32),
    64: capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64),
}
ALL_BITS = tuple(DISASSEMBLERS)
PREFIXES = bytes.fromhex("26 2E 36 3E 64 65 66 67 F0 F2 F3")
LEGACY = [bytes.fromhex(text) for text in ("", "66", "67", "66 67", "F2", "F3")]
WITH_REX = [bytes.fromhex(text) for text in ("41", "48", "66 48", "67 48", "48 66")]
ESCAPES = [bytes.fromhex(text) for text in ("", "0F", "0F 38", "0F 3A")]
IO = {"in", "out", "insb", "insw", "insd", "outsb", "outsw", "outsd"}
WANTED = ("E4 10", "E7 80", "EC", "EF", "F3 6C", "6F", "0F 30", "0F 32", "0F A2", "0F 22 D8")
WANTED += ("0F 22 C0", "0F 22 E1")

# Where lengths differ, and why. Each entry says of which bytes (`before`, the prefixes; `opcode`,
# two bytes from the opcode on), and what is then true of the lengths, `ours` and `theirs`.
CAPSTONE_DIFFERS = {
    "VEX, EVEX and XOP are not known here": (
        lambda bits, before, opcode: opcode[0] in (0xC4, 0xC5, 0x62, 0x8F),
        lambda before, ours, theirs: ours == 0,
    ),
    "VIA PadLock (0F A6, 0F A7) is not in Intel's maps": (
        lambda bits, before, opcode: opcode in (b"\x0f\xa6", b"\x0f\xa7"),
        lambda before, ours, theirs: ours == 0,
    ),
    "UD0 and UD1 have a ModRM (SDM vol. 2, UD); Capstone stops before it": (
        lambda bits, before, opcode: opcode in (b"\x0f\xff", b"\x0f\xb9"),
        lambda before, ours, theirs: theirs == len(before) + 2 < ours,
    ),
    "66 0F 78 with a register is EXTRQ (AMD APM vol. 4); Capstone has VMREAD in 16-bit code": (
        lambda bits, before, opcode: bits == 16 and opcode == b"\x0f\x78" and 0x66 in before,
        lambda before, ours, theirs: ours == theirs + 2,
    ),
    "66 or F2 0F 78 with memory is nothing; Capstone has VMREAD, as if there were no prefix": (
        lambda bits, before, opcode: opcode == b"\x0f\x78" and set(before) & {0x66, 0xF2},
        lambda before, ours, theirs: ours == 0,
    ),
    "Jcc near after 66 in 64-bit code has four bytes with Intel; Capstone has two, as AMD": (
        lambda bits, before, opcode: (
            bits == 64 and b"\x0f\x80" <= opcode <= b"\x0f\x8f" and 0x66 in before
        ),
        lambda before, ours, theirs: ours == theirs + 2,
    ),
    "RET imm16 after 66 and REX.W: Capstone reads four bytes, the SDM has two": (
        lambda bits, before, opcode: bits == 64 and opcode[0] == 0xC2 and 0x66 in before,
        lambda before, ours, theirs: theirs == ours + 2 and before[-1] >= 0x48,
    ),
}
EMULATOR_DIFFERS = {
    "near branches after 66 in 64-bit code have two bytes, as with AMD; they end a block": (
        lambda bits, before, opcode: (
            bits == 64
            and (opcode[0] in (0xE8, 0xE9) or b"\x0f\x80" <= opcode <= b"\x0f\x8f")
            and 0x66 in before
        ),
        lambda before, ours, theirs: ours == theirs + 2,
    ),
}


def listed(differences, code, bits, ours, theirs):
    """Return the name of the entry that explains why two lengths differ, or None."""
    at = 0
    while code[at] in PREFIXES or (bits == 64 and code[at] & 0xF0 == 0x40):
        at += 1
    for name, (applies, explains) in differences.items():
        if applies(bits, code[:at], code[at : at + 2]) and explains(code[:at], ours, theirs):
            return name
    return None


def decoded(code, bits):
    """Return (length, mnemonic, operands) of the first instruction, or None: as Capstone has it."""
    found = next(DISASSEMBLERS[bits].disasm_lite(code, 0, 1), None)
    return found and found[1:]


def pieces(rng, bits, rounds, more):
    """Yield 24 bytes for each prefix, map and opcode, the rest random; then some all random."""
    for before, escape, opcode in product(LEGACY + WITH_REX * (bits == 64), ESCAPES, range(256)):
        start = before + escape + bytes((opcode,))
        for _ in range(rounds):
            yield start + rng.randbytes(24 - len(start))
    for _ in range(more):
        yield rng.randbytes(24)


def lengths(codes, bits):
    """Yield (ours, Capstone's, text) per piece Capstone knows, or the name of the difference."""
    for code in codes:
        if found := decoded(code, bits):
            theirs, mnemonic, operands = found
            ours = instruction_length(code, 0, bits)
            name = ours != theirs and listed(CAPSTONE_DIFFERS, code, bits, ours, theirs)
            text = f"{bits}-bit {code[:MAX_LENGTH].hex(' ')} ({mnemonic} {operands})"
            yield name or (ours, theirs, text)


def kind_of(mnemonic, operands):
    """Return our kind for an instruction as Capstone prints it, or None."""
    name = mnemonic.split()[-1]
    if name == "mov" and operands.startswith(("cr0,", "cr3,", "cr4,")):
        return f"mov_{operands[:3]}"
    return "io" if name in IO else name if name in ("rdmsr", "wrmsr", "cpuid") else None


def walked(code, bits):
    """Return the sites Capstone meets on its walk, and where that ends.

    At the latest it ends where a listed difference in length leads the two walks apart.
    """
    found, end = [], 0
    for at, length, mnemonic, operands in DISASSEMBLERS[bits].disasm_lite(code, 0):
        ours = instruction_length(code, at, bits)
        if ours and ours != length:
            text = code[at:] + bytes(24)
            assert listed(CAPSTONE_DIFFERS, text, bits, ours, length), text.hex(" ")
            break
        if kind := kind_of(mnemonic, operands):
            found.append(Site(at, length, kind))
        end = at + length
    return found, end


def stream(rng, bits, size):
    """Return random instructions one after the other, a tenth of them of interest."""
    parts = []
    while len(parts) < size:
        start = rng.choice(LEGACY) + rng.choice((b"", b"", b"\x0f"))
        code = start + rng.randbytes(16)
        if rng.random() < 0.1:
            code = rng.choice(LEGACY) + bytes.fromhex(rng.choice(WANTED)) + bytes(16)
        if found := decoded(code, bits):
            ours = instruction_length(code, 0, bits)
            if ours == found[0] or not listed(CAPSTONE_DIFFERS, code, bits, ours, found[0]):
                parts.append(code[: found[0]])
    return b"".join(parts)


@pytest.fixture
def seed():
    """A new seed at each run; a failing test shows it."""
    return random.SystemRandom().randrange(1 << 32)


def test_lengths_and_sites_are_capstones(check):
    met = Counter()
    with check(
        "cpu/scan-capstone",
        what="Lengths of instructions in 16-, 32- and 64-bit code, and the places to stop at",
        tool="Capstone",
        tool_version=capstone.__version__,
        covers=["vmlib/cpu/scan.py"],
    ) as done:
        for bits in ALL_BITS:
            rng = random.Random(bits)
            ours, theirs = [], []
            for compared in lengths(pieces(rng, bits, 8, 20_000), bits):
                if isinstance(compared, str):
                    met[compared] += 1
                else:
                    done.case(*compared)
                    ours.append(compared[0])
                    theirs.append(compared[1])
            done.show(f"{bits}-bit: bytes in {len(theirs):,} instructions", sum(ours), sum(theirs))
            ours, theirs = [], []
            for _ in range(50):
                code = stream(rng, bits, 100)
                found, end = walked(code, bits)
                assert end == len(code)
                done.case(sites(code, bits), found, f"{bits}-bit {code.hex(' ')}")
                ours += sites(code, bits)
                theirs += found
            done.show(f"{bits}-bit: places to stop at in 5,000", len(ours), len(theirs))
            assert {site.kind for site in theirs} == {*get_args(Kind)}
        assert done.cases > 100_000
    assert met.keys() == CAPSTONE_DIFFERS.keys(), "a listed difference no longer occurs"


@pytest.mark.parametrize("bits", ALL_BITS)
def test_lengths_on_a_new_seed(bits, seed):
    rng = random.Random(seed)
    for compared in lengths(pieces(rng, bits, 1, 10_000), bits):
        if not isinstance(compared, str):
            ours, theirs, text = compared
            assert ours == theirs, f"{text}, seed {seed}"


@pytest.mark.parametrize("bits", ALL_BITS)
def test_nothing_is_missed_in_random_bytes(bits, seed):
    rng = random.Random(seed)
    total = lost = 0
    for _ in range(3000):
        code = bytearray(rng.randbytes(64))
        for at in rng.sample(range(0, 60, 4), 5):
            wanted = rng.choice(LEGACY) + bytes.fromhex(rng.choice(WANTED))
            code[at : at + len(wanted)] = wanted
        code = bytes(code[:64])
        found, _ = walked(code, bits)
        missed = set(found) - set(sites(code, bits))
        assert not missed, f"{bits}-bit {code.hex(' ')}, seed {seed}"
        total += len(found)
        lost += len(sites(code, bits)) > len(found)
    assert total > 1000
    assert lost > 100


def sections(path):
    """Yield the bytes of each executable section of a 64-bit ELF file (System V ABI, ELF-64)."""
    image = path.read_bytes()
    if image[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count = struct.unpack_from("<HH", image, 58)
    for header in range(table, table + size * count, size):
        kind, flags, _, offset, length = struct.unpack_from("<IQQQQ", image, header + 4)
        if kind == 1 and flags & 4:  # SHT_PROGBITS, SHF_EXECINSTR
            yield image[offset : offset + length]


def real_files():
    """Return /bin/true, and the C library and the loader that this Python runs on."""
    mapped = {Path(word) for word in Path("/proc/self/maps").read_text().split()}
    names = ("libc.so.6", "ld-linux-x86-64.so.2")
    return [Path("/bin/true"), *sorted(path for path in mapped if path.name in names)]


@pytest.mark.needs("x86-64 programs")
def test_real_programs():
    counted, found = 0, set()
    for path in real_files():
        for code in sections(path):
            for at, length, mnemonic, operands in DISASSEMBLERS[64].disasm_lite(code, 0):
                ours = instruction_length(code, at, 64)
                if ours != length:
                    piece = code[at : at + 24]
                    assert listed(CAPSTONE_DIFFERS, piece, 64, ours, length), piece.hex(" ")
                elif kind := kind_of(mnemonic, operands):
                    assert Site(0, length, kind) in sites(code[at : at + 32], 64)
                    found.add(kind)
                counted += 1
    assert counted > 50_000
    assert "cpuid" in found


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_emulator_reads_the_same_lengths(bits, seed):
    """What it executes, it may read otherwise than Capstone or the manual: it is asked itself."""
    import unicorn
    from unicorn import x86_const as x86

    mode = {16: unicorn.UC_MODE_16, 32: unicorn.UC_MODE_32, 64: unicorn.UC_MODE_64}[bits]
    emulator = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
    emulator.mem_map(0, 0x10000)
    met, refused = [], []

    def refuse(engine, *details):
        refused.append(details)
        engine.emu_stop()

    emulator.hook_add(unicorn.UC_HOOK_CODE, lambda _, at, size, __: met.append((at, size)))
    emulator.hook_add(unicorn.UC_HOOK_INSN_INVALID, refuse)
    emulator.hook_add(unicorn.UC_HOOK_INTR, refuse)
    sse = 3 << 9  # CR4.OSFXSR and OSXMMEXCPT
    emulator.reg_write(x86.UC_X86_REG_CR4, emulator.reg_read(x86.UC_X86_REG_CR4) | sse)
    fresh = emulator.context_save()
    rng = random.Random(seed)
    compared = 0
    for code in rng.sample([*pieces(rng, bits, 1, 0)], 5000):
        emulator.mem_write(0x1000, code)
        emulator.ctl_remove_cache(0x1000, 0x1020)
        emulator.context_restore(fresh)
        met.clear()
        refused.clear()
        with suppress(unicorn.UcError):  # an access outside its memory, say: the length was read
            emulator.emu_start(0x1000, 0x1018, count=1)
        ours = instruction_length(code, 0, bits)
        if ours and met and met[0][1] <= MAX_LENGTH and not refused:
            theirs = met[0][1]
            if ours != theirs:
                explained = listed(EMULATOR_DIFFERS, code, bits, ours, theirs)
                assert explained, f"{bits}-bit {code.hex(' ')}: {ours}, {theirs}, seed {seed}"
            compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    ("bits", "code", "length"),
    [
        (16, "90", 1),
        (16, "B8 3412", 3),
        (32, "B8 78563412", 5),
        (64, "48 B8 8877665544332211", 10),
        (16, "66 B8 78563412", 6),
        (32, "66 B8 3412", 4),
        (64, "66 48 B8 8877665544332211", 11),  # REX.W outdoes 66
        (64, "48 66 B8 3412", 5),  # a REX that another prefix follows is ignored
        (32, "48", 1),  # DEC
        (32, "F0 2E 26 36 3E 64 65 F2 F3 90", 10),
        (16, "8B 06 3412", 4),
        (16, "8B 46 12", 3),
        (16, "8B 86 3412", 4),
        (16, "8B C6", 2),
        (16, "67 8B 04 24", 4),
        (32, "67 8B 06 3412", 5),
        (32, "8B 05 78563412", 6),
        (32, "8B 45 12", 3),
        (32, "8B 85 78563412", 6),
        (32, "8B 04 24", 3),
        (32, "8B 04 25 78563412", 7),
        (32, "8B 44 25 12", 4),
        (32, "8B 84 25 78563412", 7),
        (64, "48 8B 05 78563412", 7),
        (64, "67 8B 04 24", 4),
        (16, "A0 3412", 3),
        (32, "A0 78563412", 5),
        (32, "67 A0 3412", 4),
        (64, "A0 8877665544332211", 9),
        (64, "67 A0 78563412", 6),
        (32, "C8 3412 01", 4),
        (16, "EA 3412 7856", 5),
        (32, "9A 78563412 7856", 7),
        (64, "EA 78563412 7856", 0),
        (32, "F6 C0 12", 3),
        (32, "F6 C8 12", 3),
        (32, "F6 D0", 2),
        (32, "F7 C0 78563412", 6),
        (32, "F7 04 24 78563412", 7),
        (32, "66 F7 C0 3412", 5),
        (64, "48 F7 C0 78563412", 7),
        (64, "48 F7 D8", 3),
        (16, "E8 3412", 3),
        (16, "66 E8 78563412", 6),
        (64, "E8 78563412", 5),
        (64, "66 E8 78563412", 6),
        (32, "66 0F 84 3412", 5),
        (64, "66 0F 84 78563412", 7),
        (64, "74 12", 2),
        (64, "C2 3412", 3),
        (32, "69 C0 78563412", 6),
        (32, "6B C0 12", 3),
        (32, "68 78563412", 5),
        (32, "6A 12", 2),
        (32, "C4 06", 2),  # LES
        (16, "C5 06 3412", 4),  # LDS
        (32, "C4 C1 78 10 C0", 0),  # VEX
        (32, "62 06", 2),  # BOUND
        (64, "62 06", 0),
        (64, "C5 F8 77", 0),
        (32, "8F C0", 2),
        (32, "8F E8 78 C0 C1 00", 0),  # XOP
        (32, "06", 1),
        (64, "06", 0),
        (32, "82 C0 12", 3),
        (64, "82 C0 12", 0),
        (64, "63 C0", 2),
        (32, "0F 20 05", 3),  # MOV from CR0, whatever mod says
        (64, "44 0F 22 C0", 4),
        (32, "0F 38 00 05 78563412", 8),
        (32, "66 0F 3A 0F C1 08", 6),
        (32, "0F 0F C1 9E", 4),  # 3DNow!: the opcode comes last
        (32, "0F 70 C1 1B", 4),
        (32, "0F 71 D1 04", 4),
        (32, "0F 71 11 04", 0),
        (32, "0F 50 C1", 3),
        (32, "0F 50 01", 0),
        (32, "0F C5 01 00", 0),
        (32, "0F D7 01", 0),
        (32, "0F F7 01", 0),
        (32, "66 0F D6 01", 4),
        (32, "F2 0F D6 C1", 4),
        (32, "F2 0F D6 01", 0),
        (32, "0F 78 01", 3),
        (32, "F2 0F 78 C1 0102", 6),
        (32, "66 0F 78 C1 0102", 6),
        (32, "66 0F 78 01 0102", 0),
        (32, "0F 04", 0),
        (32, "66 " * 14 + "90", 15),
        (32, "66 " * 15 + "90", 0),
    ],
)
def test_one_rule_at_a_time(bits, code, length):
    assert instruction_length(bytes.fromhex(code) + bytes(8 * (length == 0)), 0, bits) == length
    assert instruction_length(bytes.fromhex("90" + code), 1, bits) == length


def test_opcodes_that_64_bit_code_lacks():
    gone = "06 07 0E 16 17 1E 1F 27 2F 37 3F 60 61 62 82 9A C4 C5 CE D4 D5 D6 EA"
    missing = [
        opcode
        for opcode in set(range(256)) - {0x0F, *PREFIXES, *range(0x40, 0x50)}
        if instruction_length(bytes((opcode,)) + bytes(14), 0, 64) == 0
    ]
    assert bytes(sorted(missing)) == bytes.fromhex(gone)
    for opcode in missing:
        assert instruction_length(bytes((opcode,)) + bytes(14), 0, 32)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_what_is_cut_off_has_no_length(bits):
    for code in ("B8 12345678", "66", "0F", "0F 38", "8B", "8B 85 0000", "E4", "C8 00 00", ""):
        piece = bytes.fromhex(code)
        for end in range(min(len(piece), 3)):
            assert instruction_length(piece[:end], 0, bits) == 0
    assert instruction_length(b"\x90", 1, bits) == 0


@pytest.mark.parametrize(
    ("bits", "code", "expected"),
    [
        (16, "", []),
        (16, "E4 10", [(0, 2, "io")]),
        (16, "90 EE F4", [(1, 1, "io")]),
        (16, "F3 6C 66 EF", [(0, 2, "io"), (2, 2, "io")]),
        (32, "0F 30 0F 32 0F A2", [(0, 2, "wrmsr"), (2, 2, "rdmsr"), (4, 2, "cpuid")]),
        (32, "0F 22 D8", [(0, 3, "mov_cr3")]),
        (32, "0F 22 1A", [(0, 3, "mov_cr3")]),
        (32, "0F 22 C0 0F 22 D0 0F 22 E0", [(0, 3, "mov_cr0"), (6, 3, "mov_cr4")]),
        (32, "0F 20 D8 0F 20 C0 0F 20 E0", []),
        (64, "44 0F 22 C0 41 0F 22 C0 45 0F 22 E0", [(4, 4, "mov_cr0")]),
        (64, "44 E4 22", [(0, 3, "io")]),
        (64, "41 0F 22 D9", [(0, 4, "mov_cr3")]),
        (64, "44 0F 22 D8", []),
        (64, "44 66 0F 22 D8", [(0, 5, "mov_cr3")]),
        (32, "44 0F 22 D8", [(1, 3, "mov_cr3")]),
        (64, "48 EC", [(0, 2, "io")]),
        (32, "B8 0FA20F30 83 EC 10 8B EC 0F EE C1", []),
        (32, "22 88 66 67 0F 22 E4 10", [(6, 2, "io")]),  # AND, with 0F 22 in its displacement
        (32, "E4 EC EC", [(0, 2, "io"), (2, 1, "io")]),
        (16, "90 E4", []),
        (32, "0F 04 90 EE", [(3, 1, "io")]),
        (32, "EE 0F 04 B8 EC000000", [(0, 1, "io"), (4, 1, "io")]),
        (32, "0F 04 F3 66 6D", [(2, 3, "io"), (3, 2, "io"), (4, 1, "io")]),
        (32, "0F 04 E4 EC 0F A2 E5", [(2, 2, "io"), (3, 1, "io"), (4, 2, "cpuid")]),
        (64, "C5 F8 77 49 0F 22 DB", [(3, 4, "mov_cr3"), (4, 3, "mov_cr3")]),
    ],
)
def test_sites(bits, code, expected):
    assert sites(bytes.fromhex(code), bits) == [Site(*fields) for fields in expected]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_modrm_of_mov_to_a_control_register(bits):
    for modrm in range(256):
        code = b"\x0f\x22" + bytes((modrm,))
        number = modrm >> 3 & 7
        expected = [Site(0, 3, f"mov_cr{number}")] if number in (0, 3, 4) else []
        assert sites(code, bits) == expected


def test_too_many_prefixes():
    """The first of 15 can be none of it: with the opcode it would be 16 bytes long."""
    code = bytes.fromhex("B0 66" + "F3" * 15 + "EC")
    assert sites(code, 32) == [Site(at, 18 - at, "io") for at in range(3, 18)]


def test_wrong_arguments_name_the_rule():
    with pytest.raises(BadInput, match="bits: must be 16, 32 or 64"):
        sites(b"", 8)
    with pytest.raises(BadInput, match="bits"):
        instruction_length(b"\x90", 0, 128)
    with pytest.raises(BadInput, match="offset"):
        instruction_length(b"\x90", -1, 32)
