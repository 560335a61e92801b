"""What is fuzzed: the instructions of ring 3 in 64-bit mode, by opcode.

A line of the tables is a name, an opcode and how its operands are made; the letters are explained
at `Row`. Opcodes and operands are those of the Intel SDM, vol. 2, and appendix A of it.
"""

from dataclasses import dataclass

LEFT_OUT = {
    "cpuid, rdtsc, rdtscp, rdpmc, rdrand, rdseed, rdpid, xgetbv": "answers differ by their nature",
    "syscall, sysenter, int n, int3, icebp": "enter ring 0; the host's KVM is odd there (oddities)",
    "in, out, ins, outs": "exits, and compared as such by test_both_engines",
    "mov to a segment register, lfs, lgs, lss, far jmp, far call, retf, iret": "segments are not "
    "part of a trial's record",
    "sgdt, sidt, sldt, str, smsw, lar, lsl, verr, verw, mov from a segment register": "tell of the "
    "host's tables where ring 3 runs natively",
    "cli, sti, hlt and what else is #GP in ring 3": "compared by test_events and test_both_engines",
    "x87, MMX, 3DNow!": "their state is not part of a trial's record",
    "xsave, xrstor, fxsave, fxrstor": "store state that is not part of a trial's record",
    "SSE with an exception unmasked in MXCSR": "the emulator raises no #XM",
    "rdfsbase, wrfsbase, rdpkru, wrpkru, clwb, clzero, monitorx, xabort, xbegin": "depend on what "
    "the host's kernel has enabled",
    "AVX, AVX2, AVX-512, FMA, F16C, SHA, GFNI, VAES": "the emulator has none of them: #UD there",
}
"""What is not fuzzed, and why."""

CRASHES = {
    "LOCK before BT, BTS, BTR or BTC on a register aborts": ("f0 0f ab c8", {}),
    "PCMPESTRI with a length of -2^31 reads far outside": ("66 0f 3a 61 c1 00", {"rax": 1 << 31}),
    "PCMPESTRM does so too": ("66 0f 3a 60 c1 00", {"rdx": 1 << 31}),
}
"""What ends the process that Unicorn 2.1.4 runs in, as code and registers: not fuzzed either."""


@dataclass(frozen=True)
class Row:
    """One line: a mnemonic, its mandatory prefix, its opcode, and the words for its operands.

    Size: `b` 8 bits, `v` 16, 32 or 64, `y` 32 or 64, `w` 64 or 16 by prefix, none of them fixed.
    ModRM: `rm` any, `/0` to `/7` with that in the middle, `M` memory only, `R` registers only.
    `+r`: a register in the opcode. Immediates: `i1`, `i2`, `iz` 2 or 4, `iv` by size, `m8` moffs.
    What the operands need: `bit` a bit number that may reach far, `str` RSI and RDI in memory,
    `stk` RSP in memory, `bp` RBP too, `xlat` RBX and AL, `al` an operand aligned to 16 bytes,
    `ind` a target, `ret` a return address, `rel1`, `rel4` a displacement; `few` a short count.
    `vex` takes VEX with `pp` and map in the opcode; `fp` is floating point; `lk` can be locked.
    """

    name: str
    prefix: bytes
    opcode: bytes
    words: frozenset[str]

    @property
    def digit(self) -> int | None:
        """The middle of ModRM, if it is part of the opcode."""
        return next((int(word[1]) for word in self.words if word[0] == "/"), None)


def _rows(text: str) -> list[Row]:
    rows = []
    for line in text.strip().splitlines():
        name, code, *words = line.split()
        prefix, _, opcode = code.rpartition(":")
        rows.append(Row(name, bytes.fromhex(prefix), bytes.fromhex(opcode), frozenset(words)))
    return rows


def _words(text: str) -> list[str]:
    return text.split()


_CONDITIONS = _words("o no b ae e ne be a s ns p np l ge le g")
_ALU = _words("add or adc sbb and sub xor cmp")
_SHIFTS = _words("rol ror rcl rcr shl shr sal sar")

_made = []
for _number, _name in enumerate(_ALU):
    _at, _lock = 8 * _number, "" if _name == "cmp" else "lk"
    _made += [
        f"{_name} {_at:02x} b rm {_lock}",
        f"{_name} {_at + 1:02x} v rm {_lock}",
        f"{_name} {_at + 2:02x} b rm",
        f"{_name} {_at + 3:02x} v rm",
        f"{_name} {_at + 4:02x} b i1",
        f"{_name} {_at + 5:02x} v iz",
        f"{_name} 80 b /{_number} i1 {_lock}",
        f"{_name} 81 v /{_number} iz {_lock}",
        f"{_name} 83 v /{_number} i1 {_lock}",
    ]
for _number, _name in enumerate(_SHIFTS):
    for _opcode, _rest in (("c0", "b i1"), ("c1", "v i1"), ("d0", "b"), ("d1", "v")):
        _made.append(f"{_name} {_opcode} {_rest} /{_number}")
    _made += [f"{_name} d2 b /{_number}", f"{_name} d3 v /{_number}"]
for _number, _name in enumerate(_CONDITIONS):
    _made += [
        f"cmov{_name} 0f{0x40 + _number:02x} v rm",
        f"set{_name} 0f{0x90 + _number:02x} b /0",
        f"j{_name} {0x70 + _number:02x} rel1",
        f"j{_name} 0f{0x80 + _number:02x} rel4",
    ]
for _number, _name in ((4, "bt"), (5, "bts"), (6, "btr"), (7, "btc")):
    _lock = "" if _name == "bt" else "lk"
    _made += [
        f"{_name} 0f{0x83 + 8 * _number:02x} v rm bit {_lock}",
        f"{_name} 0fba v /{_number} i1 {_lock}",
    ]
for _opcode in _words("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 62 82 9a ce d4 d5 d6 ea 0f0b"):
    _made.append(f"invalid {_opcode}")

INTEGER = _rows("\n".join(_made)) + _rows("""
test 84 b rm
test 85 v rm
test a8 b i1
test a9 v iz
test f6 b /0 i1
test f7 v /0 iz
not f6 b /2 lk
not f7 v /2 lk
neg f6 b /3 lk
neg f7 v /3 lk
mul f6 b /4
mul f7 v /4
imul f6 b /5
imul f7 v /5
imul 0faf v rm
imul 69 v rm iz
imul 6b v rm i1
div f6 b /6 quo
div f7 v /6 quo
idiv f6 b /7 quo
idiv f7 v /7 quo
inc fe b /0 lk
inc ff v /0 lk
dec fe b /1 lk
dec ff v /1 lk
shld 0fa4 v rm i1
shld 0fa5 v rm
shrd 0fac v rm i1
shrd 0fad v rm
bsf 0fbc v rm
bsr 0fbd v rm
tzcnt f3:0fbc v rm
lzcnt f3:0fbd v rm
popcnt f3:0fb8 v rm
mov 88 b rm
mov 89 v rm
mov 8a b rm
mov 8b v rm
mov c6 b /0 i1
mov c7 v /0 iz
mov b0 b +r i1
mov b8 v +r iv
mov a0 b m8
mov a1 v m8
mov a2 b m8
mov a3 v m8
xchg 86 b rm lk
xchg 87 v rm lk
xchg 90 v +r
xadd 0fc0 b rm lk
xadd 0fc1 v rm lk
cmpxchg 0fb0 b rm lk eq
cmpxchg 0fb1 v rm lk eq
cmpxchg8b 0fc7 y /1 M lk al eq
movzx 0fb6 v rm
movzx 0fb7 v rm
movsx 0fbe v rm
movsx 0fbf v rm
movsxd 63 v rm
movbe 0f38f0 v rm M
movbe 0f38f1 v rm M
bswap 0fc8 y +r
crc32 f2:0f38f0 y rm
crc32 f2:0f38f1 v rm
adcx 66:0f38f6 y rm
adox f3:0f38f6 y rm
movnti 0fc3 y rm M
lea 8d v rm M
nop 0f1f v /0
pause f3:90
prefetch 0f18 /1 M
prefetchw 0f0d /1 M
clflush 0fae /7 M
lfence 0faee8
mfence 0faef0
sfence 0faef8
cbw 98 v
cwd 99 v
sahf 9e
lahf 9f
clc f8
stc f9
cmc f5
cld fc
std fd
xlat d7 xlat
pushf 9c w stk
popf 9d w stk pf
push 50 w +r stk
pop 58 w +r stk
push 6a w i1 stk
push 68 w iz stk
push ff w /6 stk
pop 8f w /0 stk
enter c8 w i2 i1 stk bp few
leave c9 w stk bp
jmp eb rel1
jmp e9 rel4
call e8 rel4 stk
jmp ff /4 ind
call ff /2 ind stk
ret c3 ret stk
ret c2 ret stk i2
loopne e0 rel1
loope e1 rel1
loop e2 rel1
jrcxz e3 rel1
movs a4 b str
movs a5 v str
cmps a6 b str
cmps a7 v str
stos aa b str
stos ab v str
lods ac b str
lods ad v str
scas ae b str
scas af v str
andn 0002:f2 y rm vex
blsr 0002:f3 y /1 vex
blsmsk 0002:f3 y /2 vex
blsi 0002:f3 y /3 vex
bextr 0002:f7 y rm vex
bzhi 0002:f5 y rm vex
pdep 0302:f5 y rm vex
pext 0202:f5 y rm vex
mulx 0302:f6 y rm vex
shlx 0102:f7 y rm vex
sarx 0202:f7 y rm vex
shrx 0302:f7 y rm vex
rorx 0303:f0 y rm vex i1
""")

_sse = []
_integer_sse = _words("""
60 punpcklbw 61 punpcklwd 62 punpckldq 63 packsswb 64 pcmpgtb 65 pcmpgtw 66 pcmpgtd 67 packuswb
68 punpckhbw 69 punpckhwd 6a punpckhdq 6b packssdw 6c punpcklqdq 6d punpckhqdq 74 pcmpeqb 75
pcmpeqw 76 pcmpeqd d1 psrlw d2 psrld d3 psrlq d4 paddq d5 pmullw d8 psubusb d9 psubusw da pminub
db pand dc paddusb dd paddusw de pmaxub df pandn e0 pavgb e1 psraw e2 psrad e3 pavgw e4 pmulhuw
e5 pmulhw e8 psubsb e9 psubsw ea pminsw eb por ec paddsb ed paddsw ee pmaxsw ef pxor f1 psllw f2
pslld f3 psllq f4 pmuludq f5 pmaddwd f6 psadbw f8 psubb f9 psubw fa psubd fb psubq fc paddb fd
paddw fe paddd 3800 pshufb 3801 phaddw 3802 phaddd 3803 phaddsw 3804 pmaddubsw 3805 phsubw 3806
phsubd 3807 phsubsw 3808 psignb 3809 psignw 380a psignd 380b pmulhrsw 3810 pblendvb 3817 ptest
381c pabsb 381d pabsw 381e pabsd 3828 pmuldq 3829 pcmpeqq 382b packusdw 3837 pcmpgtq 3838 pminsb
3839 pminsd 383a pminuw 383b pminud 383c pmaxsb 383d pmaxsd 383e pmaxuw 383f pmaxud 3840 pmulld
3841 phminposuw 38db aesimc 38dc aesenc 38dd aesenclast 38de aesdec 38df aesdeclast
""")
for _opcode, _name in zip(_integer_sse[::2], _integer_sse[1::2], strict=True):
    _sse.append(f"{_name} 66:0f{_opcode} rm al")
for _number, _name in enumerate(["bw", "bd", "bq", "wd", "wq", "dq"]):
    _sse.append(f"pmovsx{_name} 66:0f38{0x20 + _number:02x} rm")
    _sse.append(f"pmovzx{_name} 66:0f38{0x30 + _number:02x} rm")
for _opcode, _name in zip(
    _words("51 54 55 56 57 58 59 5c 5d 5e 5f 14 15 c2i c6i"),
    _words("sqrt and andn or xor add mul sub min div max unpckl unpckh cmp shuf"),
    strict=True,
):
    _imm = "i1" if _opcode[-1] == "i" else ""
    _kinds = [("ps", ""), ("pd", "66")]
    if _name not in ("and", "andn", "or", "xor", "unpckl", "unpckh", "shuf"):
        _kinds += [("ss", "f3"), ("sd", "f2")]
    for _kind, _prefix in _kinds:
        _align = "al" if _kind[0] == "p" else ""
        _sse.append(f"{_name}{_kind} {_prefix}:0f{_opcode[:2]} rm {_imm} {_align} fp")

SSE = _rows("\n".join(_sse)) + _rows("""
pslldq 66:0f73 /7 R i1
psrldq 66:0f73 /3 R i1
psrlw 66:0f71 /2 R i1
psraw 66:0f71 /4 R i1
psllw 66:0f71 /6 R i1
psrld 66:0f72 /2 R i1
psrad 66:0f72 /4 R i1
pslld 66:0f72 /6 R i1
psrlq 66:0f73 /2 R i1
psllq 66:0f73 /6 R i1
pshufd 66:0f70 rm i1 al
pshufhw f3:0f70 rm i1 al
pshuflw f2:0f70 rm i1 al
palignr 66:0f3a0f rm i1 al
pblendw 66:0f3a0e rm i1 al
blendps 66:0f3a0c rm i1 al
blendpd 66:0f3a0d rm i1 al
insertps 66:0f3a21 rm i1
pclmulqdq 66:0f3a44 rm i1 al
aeskeygenassist 66:0f3adf rm i1 al
mpsadbw 66:0f3a42 rm i1 al
pcmpestrm 66:0f3a60 rm i1 len
pcmpestri 66:0f3a61 rm i1 len
pcmpistrm 66:0f3a62 rm i1
pcmpistri 66:0f3a63 rm i1
pextrb 66:0f3a14 rm i1
pextrd 66:0f3a16 y rm i1
pinsrb 66:0f3a20 rm i1
pinsrd 66:0f3a22 y rm i1
pinsrw 66:0fc4 rm i1
pextrw 66:0fc5 rm R i1
movd 66:0f6e y rm
movd 66:0f7e y rm
movq f3:0f7e rm
movq 66:0fd6 rm
movaps 0f28 rm al
movaps 0f29 rm al
movapd 66:0f28 rm al
movdqa 66:0f6f rm al
movdqa 66:0f7f rm al
movups 0f10 rm
movups 0f11 rm
movdqu f3:0f6f rm
movdqu f3:0f7f rm
movss f3:0f10 rm
movss f3:0f11 rm
movsd f2:0f10 rm
movsd f2:0f11 rm
movhlps 0f12 rm
movlhps 0f16 rm
movlpd 66:0f12 rm M
movhpd 66:0f16 rm M
movddup f2:0f12 rm
movsldup f3:0f12 rm al
movshdup f3:0f16 rm al
movntdqa 66:0f382a rm M al
movntdq 66:0fe7 rm M al
lddqu f2:0ff0 rm M
movmskps 0f50 rm R
movmskpd 66:0f50 rm R
pmovmskb 66:0fd7 rm R
blendvps 66:0f3814 rm al
blendvpd 66:0f3815 rm al
haddps f2:0f7c rm al fp
haddpd 66:0f7c rm al fp
addsubps f2:0fd0 rm al fp
addsubpd 66:0fd0 rm al fp
dpps 66:0f3a40 rm i1 al fp
dppd 66:0f3a41 rm i1 al fp
roundps 66:0f3a08 rm i1 al fp
roundpd 66:0f3a09 rm i1 al fp
roundss 66:0f3a0a rm i1 fp
roundsd 66:0f3a0b rm i1 fp
rsqrtps 0f52 rm al fp
rsqrtss f3:0f52 rm fp
rcpps 0f53 rm al fp
rcpss f3:0f53 rm fp
ucomiss 0f2e rm fp
ucomisd 66:0f2e rm fp
comiss 0f2f rm fp
comisd 66:0f2f rm fp
cvtps2pd 0f5a rm fp
cvtpd2ps 66:0f5a rm al fp
cvtss2sd f3:0f5a rm fp
cvtsd2ss f2:0f5a rm fp
cvtdq2ps 0f5b rm al fp
cvtps2dq 66:0f5b rm al fp
cvttps2dq f3:0f5b rm al fp
cvttpd2dq 66:0fe6 rm al fp
cvtpd2dq f2:0fe6 rm al fp
cvtdq2pd f3:0fe6 rm fp
cvtsi2ss f3:0f2a y rm fp
cvtsi2sd f2:0f2a y rm fp
cvttss2si f3:0f2c y rm fp
cvttsd2si f2:0f2c y rm fp
cvtss2si f3:0f2d y rm fp
cvtsd2si f2:0f2d y rm fp
extractps 66:0f3a17 rm i1
extrq 66:0f78 /0 R i1 imm2
extrq 66:0f79 rm R
insertq f2:0f79 rm R
movntsd f2:0f2b rm M
""")

ROWS = INTEGER + SSE
