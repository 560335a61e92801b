"""The assembler for one-liners: the bytes are NASM's, or there are none."""

import re
import subprocess
import sys

import pytest

from vmlib.cpu import assemble
from vmlib.errors import BadInput

ANY = """
mov al, 0x41 | mov ah, bl | mov cl, [bx] | add al, 5 | cmp al, bl | inc byte [{m}] | out 0x80,
al | out dx, al | in al, dx | in al, 0x60 | hlt | cli | sti | cpuid | rdmsr | wrmsr | rdtsc |
nop | pause | int 0x21 | int3 | ud2 | rep movsb | rep stosb | cld | wbinvd | push {r} |
pop {r} | vmmcall | xor {r}, {r} | mov {r}, {s} | jmp 0x1010 | jz 0x1000 | jnz 0x1080 | jb
0x1004 | loop 0x1000 | test al, 1 | shl {r}, 4 | mov {r}, 0x1234 | lock inc byte [{m}] | rep
outsb | div cl"""
REGISTERS = {16: ("ax", "di", "bx"), 32: ("eax", "edi", "ebx"), 64: ("rax", "rdi", "rbx")}
MORE = {
    16: "mov eax, cr0 | mov cr0, eax | mov ds, ax | mov eax, 0x12345678 | mov al, [0x600]"
    " | mov [0x600], ax | lgdt [0x600] | mov ax, [bx+si+4] | add ax, 1"
    " | dec cx | mov al, -1 | iret",
    32: "mov cr3, eax | mov eax, [ebx*4+8] | mov [0x600], eax | add ax, 1"
    " | call 0x1100 | push 5 | ret | iretd",
    64: "mov cr3, rax | mov rax, 0x1122334455667788 | mov eax, [rbx+8]"
    " | syscall | call 0x1100 | ret | iretq",
}


def lines(bits):
    r, s, m = REGISTERS[bits]
    texts = [" ".join(text.split()) for text in ANY.format(r=r, s=s, m=m).split("|")]
    texts = [text for text in texts if bits == 16 or "[bx]" not in text]
    if bits == 64:  # NASM's is 5 bytes, for it zero-extends; ours keeps the width that was named
        texts = [text for text in texts if text != "mov rax, 0x1234"]
    return texts + [text.strip() for text in MORE[bits].split("|")]


def nasm(text, bits, folder):
    source, out = folder / "one.asm", folder / "one.bin"
    text = re.sub(r"^(j\w+) ", r"\1 short ", text)  # of a bare number, NASM makes a near one
    source.write_text(f"bits {bits}\norg 0x1000\n{text}\n")
    subprocess.run(["nasm", "-f", "bin", "-o", out, source], check=True)
    return out.read_bytes()


@pytest.mark.needs("nasm", "keystone")
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_bytes_are_nasms(bits, tmp_path):
    texts = lines(bits)
    assert len(texts) > 40
    for text in texts:
        ours = assemble(text, bits=bits)
        assert ours.hex(" ") == nasm(text, bits, tmp_path).hex(" "), text


@pytest.mark.needs("nasm", "keystone")
def test_several_and_where_they_stand(tmp_path):
    text = "mov cx, 3\nadd ax, cx; loop 0x1003\nhlt"
    assert assemble(text) == nasm(text.replace(";", "\n"), 16, tmp_path)
    assert assemble("jmp 0x2000", at=0x2000) == b"\xeb\xfe"
    assert assemble("mov al, 'A'") == b"\xb0\x41"


@pytest.mark.needs("keystone")
@pytest.mark.parametrize(
    ("bits", "text", "why"),
    [
        (16, "mov eax, [ebx*4+8]", "not what was asked for"),
        (16, "call 0x1100", "operand size"),
        (16, "push 5", "operand size"),
        (16, "ret", "operand size"),
        (32, "iret", "operand size"),
        (32, "lgdt [0x600]", "operand size"),
        (32, "ljmp 8:0x1000", "not among"),
        (32, "jmp 8:0x1000", "'jmp 8:0x1000'"),
        (64, "lgdt [0x600]", "where it stands"),
        (64, "mov eax, [rip+4]", "where it stands"),
        (64, "mov byte ptr [0x600], 5", "where it stands"),
        (64, "vmrun", "not among"),
        (64, "sysretq", "not among"),
        (16, "db 5", "not among"),
        (16, ".byte 5", "not among"),
        (16, "rep", "not one instruction"),
        (32, "lock", "not one instruction"),
        (16, "mov ax", "'mov ax'"),
        (16, "mov al, nowhere", "'mov al, nowhere'"),
    ],
)
def test_what_it_would_get_wrong_it_refuses(bits, text, why):
    with pytest.raises(BadInput, match="asm: ") as caught:
        assemble(text, bits=bits)
    assert why in str(caught.value)


def test_without_keystone_it_says_what_helps(root):
    code = """
import sys
sys.modules["keystone"] = None
from vmlib.cpu import assemble
from vmlib.errors import HostUnavailable
try:
    assemble("nop")
except HostUnavailable as error:
    assert "keystone" in error.reason and "vmlib[asm]" in error.fix
else:
    raise SystemExit("no word of it")
"""
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
