"""A small assembler for one-liners: text to bytes, by Keystone, and never bytes that say otherwise.

Keystone (LLVM's assembler as a library; GPL-2.0, optional: ``pip install 'vmlib[asm]'``) gets some
of x86 wrong without a word: in 16-bit code it drops the index of ``[ebx*4+8]`` and makes `call`
push four bytes and `ret` pop as many; in 32-bit code its `lgdt` loads 24 bits of the base; in
64-bit code ``[0x600]`` becomes an address relative to RIP. So each instruction is held against
three rules: its mnemonic is on a list, Capstone reads from the bytes what the text says, and the
bytes have a prefix for another operand size only if the text names such an operand (Intel SDM
vol. 2, 2.1.1).

Left out: labels, directives, far jumps, AMD-V's own instructions, SSE. Whoever needs those writes
bytes, or a source for NASM.
"""

import re
from typing import Any, Final, Literal

from vmlib.errors import BadInput, HostUnavailable
from vmlib.given import names_bad_input

_MNEMONICS = """
mov movzx movsx lea xchg push pop pushf popf add adc sub sbb cmp inc dec neg not and or xor test
shl shr sar rol ror mul imul div idiv cbw cwd cdq jmp call ret loop iret iretd iretq int int3 cli
sti cld std clc stc hlt nop in out insb insw outsb outsw movsb movsw movsd stosb stosw stosd lodsb
lodsw lodsd scasb cmpsb rep repe repne lock cpuid rdtsc rdmsr wrmsr vmmcall vmcall ud2 wbinvd
invlpg lgdt lidt sgdt sidt pause syscall sysret aam aad jo jno jb jae je jne jbe ja js jns jp jnp
jl jge jle jg"""
ALLOWED: Final = frozenset(_MNEMONICS.split())
"""Mnemonics that are assembled, prefixes among them."""

_ALIASES = {"jz": "je", "jnz": "jne", "jc": "jb", "jnc": "jae", "jnae": "jb", "jnb": "jae"}
_ALIASES |= {"jna": "jbe", "jnbe": "ja", "jnge": "jl", "jnl": "jge", "jng": "jle", "jnle": "jg"}
_ALIASES |= {"movabs": "mov", "sal": "shl", "repz": "repe", "repnz": "repne"}
_PREFIXES = {"rep", "repe", "repne", "lock"}
_SIZE_WORDS = re.compile(r"\b(?:byte|word|dword|qword)(?: ptr)?\b|\b(?:short|near|ptr)\b")
_TOKEN = re.compile(r"0x[0-9a-f]+|\d+|[a-z]\w*|\S")
_WIDE = re.compile(r"\b(?:e(?:[abcd]x|[sd]i|[sb]p)|dword|cr\d|\w+d)\b")
_NARROW = re.compile(r"\b(?:[abcd]x|[sd]i|[sb]p|[c-gs]s|word|r\d+w|\w+w|cbw|cwd)\b")


@names_bad_input
def assemble(text: str, *, bits: Literal[16, 32, 64] = 16, at: int = 0x1000) -> bytes:
    """Return the bytes of instructions in Intel's syntax, one a line or divided by ``;``.

    `at` is the address of the first; jumps name addresses. `BadInput` names the instruction and
    what is wrong with it; `HostUnavailable` says that Keystone or Capstone is not installed.
    """
    if bits not in (16, 32, 64):
        raise BadInput("bits", f"is 16, 32 or 64, not {bits!r}")
    if not text.isascii():
        raise BadInput("asm", f"{text!r}: has characters that no instruction has")
    assembler, reader, failure = _tools(bits)
    code = b""
    text = re.sub(r"'(.)'", lambda found: hex(ord(found[1])), text).lower()
    text = re.sub(r"\b(byte|word|dword|qword)\b(?! ptr)", r"\1 ptr", text)
    for one in filter(None, (piece.strip() for piece in re.split(r"[;\n]", text))):
        mnemonic = _canonical(one)[0]
        if mnemonic not in ALLOWED:
            raise BadInput("asm", f"{one!r}: {mnemonic} is not among what is assembled here")
        try:
            made = bytes(assembler.asm(one, at + len(code), True)[0] or b"")
        except failure as error:
            raise BadInput("asm", f"{one!r}: {error}") from None
        read = list(reader.disasm(made, at + len(code)))
        said = "; ".join(f"{each.mnemonic} {each.op_str}".strip() for each in read)
        if wrong := _wrong(one, made, said, bits, len(read)):
            shown = f"Keystone makes {made.hex(' ') or 'nothing'} of it, {said or 'no instruction'}"
            raise BadInput("asm", f"{one!r}: {shown}: {wrong}")
        code += made
    return code


def _wrong(text: str, made: bytes, said: str, bits: int, count: int) -> str:
    """Return what is wrong with the bytes made of an instruction, or an empty string."""
    if count != 1:
        return "not one instruction"
    if "rip" in _TOKEN.findall(said):
        return "it would depend on where it stands"
    if not _same(_canonical(text), _canonical(said)):
        return "not what was asked for"
    prefixes = made[: next(k for k, byte in enumerate(made) if byte not in b"\x66\x67\xf0\xf2\xf3")]
    asked = (_WIDE if bits == 16 else _NARROW).search(text)
    if 0x66 in prefixes and not asked:
        return "an operand size that was not asked for"
    return ""


def _canonical(text: str) -> list[str]:
    """Return the tokens of an instruction: one name for aliases, no size words, numbers decimal."""
    tokens = _TOKEN.findall(_SIZE_WORDS.sub("", text)) or [""]
    tokens = [_ALIASES.get(token, token) for token in tokens]
    return [_number(token) if token[0].isdigit() else token for token in tokens]


def _number(token: str) -> str:
    """Return a number in decimal, also one with a zero before it: 08 is 8."""
    return str(int(token, 16 if token.startswith("0x") else 10))


def _same(asked: list[str], read: list[str]) -> bool:
    """Say whether two instructions are one; an operand that the text leaves out is implied."""
    words = 2 if asked[0] in _PREFIXES else 1
    if asked[:words] != read[:words]:
        return False
    if len(asked) == words or asked == read:
        return True
    if asked[-2:-1] == ["-"] and asked[-3:-2] != ["]"]:  # an immediate below 0, as its bytes
        values = {str((1 << size) - int(asked[-1])) for size in (8, 16, 32, 64)}
        return asked[:-2] == read[:-1] and read[-1] in values
    return False


def _tools(bits: int) -> tuple[Any, Any, type[Exception]]:
    try:
        import capstone
        import keystone
    except ImportError as error:
        raise HostUnavailable(
            f"there is no assembler: {error.name} is not installed", "pip install 'vmlib[asm]'"
        ) from error
    mode = {16: "MODE_16", 32: "MODE_32", 64: "MODE_64"}[bits]
    assembler = keystone.Ks(keystone.KS_ARCH_X86, getattr(keystone, f"KS_{mode}"))
    reader = capstone.Cs(capstone.CS_ARCH_X86, getattr(capstone, f"CS_{mode}"))
    return assembler, reader, keystone.KsError
