"""What is fuzzed of MMX, SSE to SSE4.2, SSE4A, AES, PCLMULQDQ, in the words of `fuzz_table.Row`.

3DNow! is here to be refused, in two of its instructions.
"""

from fuzz_table import rows, words

_sse = []
_integer_sse = words("""
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
    words("51 54 55 56 57 58 59 5c 5d 5e 5f 14 15 c2i c6i"),
    words("sqrt and andn or xor add mul sub min div max unpckl unpckh cmp shuf"),
    strict=True,
):
    _imm = "i1" if _opcode[-1] == "i" else ""
    _kinds = [("ps", ""), ("pd", "66")]
    if _name not in ("and", "andn", "or", "xor", "unpckl", "unpckh", "shuf"):
        _kinds += [("ss", "f3"), ("sd", "f2")]
    for _kind, _prefix in _kinds:
        _align = "al" if _kind[0] == "p" else ""
        _sse.append(f"{_name}{_kind} {_prefix}:0f{_opcode[:2]} rm {_imm} {_align} fp")

SSE = rows("\n".join(_sse)) + rows("""
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
maskmovdqu 66:0ff7 rm R rdi
movntsd f2:0f2b rm M
""")

# Without the prefix 66 the same opcodes work on MMX registers, but for those that came later, for
# XMM alone.
_XMM_ALONE = words(
    "6c 6d 3810 3817 3828 3829 382b 3837 3838 3839 383a 383b 383c 383d 383e 383f 3840"
)
_XMM_ALONE += words("3841 38db 38dc 38dd 38de 38df")
_mmx = [
    f"{_name} 0f{_opcode} rm mm"
    for _opcode, _name in zip(_integer_sse[::2], _integer_sse[1::2], strict=True)
    if _opcode not in _XMM_ALONE
]
MMX = rows("\n".join(_mmx)) + rows("""
psrlw 0f71 /2 R i1 mm
psraw 0f71 /4 R i1 mm
psllw 0f71 /6 R i1 mm
psrld 0f72 /2 R i1 mm
psrad 0f72 /4 R i1 mm
pslld 0f72 /6 R i1 mm
psrlq 0f73 /2 R i1 mm
psllq 0f73 /6 R i1 mm
pshufw 0f70 rm i1 mm
palignr 0f3a0f rm i1 mm
pinsrw 0fc4 rm i1 mm
pextrw 0fc5 rm R i1 mm
pmovmskb 0fd7 rm R mm
movd 0f6e y rm mm
movd 0f7e y rm mm
movq 0f6f rm mm
movq 0f7f rm mm
movntq 0fe7 rm M mm
movdq2q f2:0fd6 rm R mm
movq2dq f3:0fd6 rm R mm
emms 0f77 mm
maskmovq 0ff7 rm R mm rdi
pfadd 0f0f rm R i1
cvtpi2ps 0f2a rm mm fp
cvtps2pi 0f2d rm mm fp
cvttps2pi 0f2c rm mm fp
cvtpi2pd 66:0f2a rm mm fp
cvtpd2pi 66:0f2d rm al mm fp
cvttpd2pi 66:0f2c rm al mm fp
""")
