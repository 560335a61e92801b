"""What is fuzzed of x87, in the words of `fuzz_table.Row` and some of its own.

`x` marks a row of x87. What it needs of the register stack, by which a stack fault is foreseen:
`r0`, `r1`, `ri` read ST(0), ST(1), ST(i); `push` needs ST(7) empty. `f32` to `env` say what its
operand in memory is made of. `p` pops, `pp` twice.
"""

from fuzz_table import rows, words

_made = []
_ARITHMETIC = words("add mul com comp sub subr div divr")
for _opcode, _name, _kind in (
    ("d8", "f", "f32"),
    ("dc", "f", "f64"),
    ("da", "fi", "i32"),
    ("de", "fi", "i16"),
):
    for _number, _what in enumerate(_ARITHMETIC):
        _pop = "p" if _what == "comp" else ""
        _made.append(f"{_name}{_what} {_opcode} M /{_number} {_kind} r0 {_pop}")
for _number, _what in enumerate(_ARITHMETIC):
    _made.append(f"f{_what} d8 R /{_number} r0 ri {'p' if _what == 'comp' else ''}")
# With ST(i) as destination SUB and SUBR have changed places, and so have DIV and DIVR.
for _number, _what in ((0, "add"), (1, "mul"), (4, "subr"), (5, "sub"), (6, "divr"), (7, "div")):
    _made.append(f"f{_what} dc R /{_number} r0 ri to")
    _made.append(f"f{_what}p de R /{_number} r0 ri to p")
for _number, _what in enumerate(words("b e be u")):
    _made.append(f"fcmov{_what} da R /{_number} r0 ri")
    _made.append(f"fcmovn{_what} db R /{_number} r0 ri")
for _number, _what in enumerate(words("fld1 fldl2t fldl2e fldpi fldlg2 fldln2 fldz")):
    _made.append(f"{_what} d9{0xE8 + _number:02x} push")
for _code in words("d9e2 d9e3 d9e6 d9e7 d9ef d9d1 d9d7 dae8 daea daf0 dbe5 dbf8 ddf0 ddf8 ded8"):
    _made.append(f"invalid {_code}")
for _code in words("deda dfe1 dff8"):
    _made.append(f"invalid {_code}")
for _opcode, _number in (("d9", 1), ("db", 4), ("db", 6), ("dd", 5)):
    _made.append(f"invalid {_opcode} M /{_number}")

_text = (
    "\n".join(_made)
    + """
fld d9 M /0 f32 push
fst d9 M /2 r0
fstp d9 M /3 r0 p
fldenv d9 v M /4 env
fldcw d9 M /5 cw
fnstenv d9 v M /6
fnstcw d9 M /7
fld d9 R /0 ri push
fxch d9 R /1 r0 ri
fnop d9d0
fchs d9e0 r0
fabs d9e1 r0
ftst d9e4 r0
fxam d9e5
fdecstp d9f6
fincstp d9f7
fsqrt d9fa r0
f2xm1 d9f0 r0
fyl2x d9f1 r0 r1 p
fptan d9f2 r0 push
fpatan d9f3 r0 r1 p
fyl2xp1 d9f9 r0 r1 p
fsincos d9fb r0 push
fsin d9fe r0
fcos d9ff r0
frndint d9fc r0
fucompp dae9 r0 r1 pp
fild db M /0 i32 push
fisttp db M /1 r0 p
fist db M /2 r0
fistp db M /3 r0 p
fld db M /5 f80 push
fstp db M /7 r0 p
fnclex dbe2
fninit dbe3
fucomi db R /5 r0 ri
fcomi db R /6 r0 ri
fld dd M /0 f64 push
fisttp dd M /1 r0 p
fst dd M /2 r0
fstp dd M /3 r0 p
frstor dd v M /4 env
fnsave dd v M /6
fnstsw dd M /7
ffree dd R /0
fst dd R /2 r0
fstp dd R /3 r0 p
fucom dd R /4 r0 ri
fucomp dd R /5 r0 ri p
fcompp ded9 r0 r1 pp
fild df M /0 i16 push
fisttp df M /1 r0 p
fist df M /2 r0
fistp df M /3 r0 p
fbld df M /4 bcd push
fild df M /5 i64 push
fbstp df M /6 r0 p
fistp df M /7 r0 p
fnstsw dfe0
fucomip df R /5 r0 ri p
fcomip df R /6 r0 ri p
fwait 9b
"""
)
X87 = rows("\n".join(f"{line} x" for line in _text.strip().splitlines()))
