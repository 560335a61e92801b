"""What is fuzzed: the instructions of ring 3 in 64-bit mode, by opcode; MMX and SSE in
`fuzz_table_sse`.

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
    "fprem, fprem1": "the emulator computes them in double precision, by steps of its own",
    "fscale, fxtract": "the emulator's own results for NaNs, infinities and denormals are not "
    "foreseen",
    "x87 with an exception unmasked in FCW, and with a precision that is reserved": "the emulator "
    "tells of an exception at FWAIT only",
    "pseudo-denormals": "no CPU makes one; the emulator takes their exponent for 0, and not for 1",
    "x87's pointers: FIP, FDP, FOP": "which instructions set them differs from CPU to CPU",
    "xsave, xrstor, fxsave, fxrstor": "store x87's pointers, and more than a trial's memory holds",
    "SSE with an exception unmasked in MXCSR": "the emulator raises no #XM",
    "rdfsbase, wrfsbase, rdpkru, wrpkru, clwb, clzero, monitorx, xabort, xbegin": "depend on what "
    "the host's kernel has enabled",
    "memory that the guest has and the trial does not own": "what a store leaves there would be "
    "another trial's",
    "AVX, AVX2, AVX-512, FMA, F16C, SHA, GFNI, VAES": "the emulator has none of them, and "
    "raises #UD: test_no_avx",
}
"""What is not fuzzed, and why."""


@dataclass(frozen=True)
class Row:
    """One line: a mnemonic, its mandatory prefix, its opcode, and the words for its operands.

    Size: `b` 8 bits, `v` 16, 32 or 64, `y` 32 or 64, `w` 64 or 16 by prefix, none of them fixed.
    ModRM: `rm` any, `/0` to `/7` with that in the middle, `M` memory only, `R` registers only.
    `+r`: a register in the opcode. Immediates: `i1`, `i2`, `iz` 2 or 4, `iv` by size, `m8` moffs.
    What the operands need: `bit` a bit number that may reach far, `str` RSI and RDI in memory,
    `rdi` RDI alone, `stk` RSP in memory, `bp` RBP too, `xlat` RBX and AL, `al` an operand aligned
    to 16 bytes, `ind` a target, `ret` a return address, `rel1`, `rel4` a displacement; `few` a
    short count.
    `vex` takes VEX with `pp` and map in the opcode; `fp` is floating point; `lk` can be locked;
    `mm` works on MMX registers.
    """

    name: str
    prefix: bytes
    opcode: bytes
    words: frozenset[str]

    @property
    def is_fp(self) -> bool:
        """Whether it computes in floating point, and ModRM.rm names an XMM register or memory."""
        return "fp" in self.words

    @property
    def is_mmx(self) -> bool:
        """Whether it works on MMX registers."""
        return "mm" in self.words

    @property
    def is_x87(self) -> bool:
        """Whether it is one of x87's own."""
        return "x" in self.words

    @property
    def digit(self) -> int | None:
        """The middle of ModRM, if it is part of the opcode."""
        return next((int(word[1]) for word in self.words if word[0] == "/"), None)


def rows(text: str) -> list[Row]:
    """Read a table."""
    made = []
    for line in text.strip().splitlines():
        name, code, *words = line.split()
        prefix, _, opcode = code.rpartition(":")
        made.append(Row(name, bytes.fromhex(prefix), bytes.fromhex(opcode), frozenset(words)))
    return made


def words(text: str) -> list[str]:
    """Read a list."""
    return text.split()


_CONDITIONS = words("o no b ae e ne be a s ns p np l ge le g")
_ALU = words("add or adc sbb and sub xor cmp")
_SHIFTS = words("rol ror rcl rcr shl shr sal sar")

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
for _opcode in words("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 62 82 9a ce d4 d5 d6 ea 0f0b 0f0e"):
    _made.append(f"invalid {_opcode}")

INTEGER = rows("\n".join(_made)) + rows("""
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
