"""Small guests of a few instructions, for both engines: each as it is written and as bytes.

Their tables, stacks and handlers come from `kvm_guests.boot`. All flags are defined at the end of
each, or where one is stored (Intel SDM vol. 1, appendix A); what CPUID says stays out.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Program:
    """A guest: instructions separated by semicolons, their bytes, handlers by vector.

    `odd` is the id of the oddity by which a host's KVM ends otherwise.
    """

    name: str
    bits: int
    text: str
    code: str
    gates: dict[int, tuple[str, str]] = field(default_factory=dict)
    ring: int = 0
    odd: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits" + (f", ring {self.ring}" if self.ring else "")


SAY_INVALID = {6: ("mov rbx, [rsp]; out 0x16, al; hlt", "48 8b 1c 24 e6 16 f4")}
"""A handler of #UD that shows where it was."""

REFUSED = {
    32: ("pop ebx; pop ecx; out 0x1d, al; hlt", "5b 59 e6 1d f4"),
    64: (
        "mov rbx, [rsp]; mov rcx, [rsp + 8]; out 0x1d, al; hlt",
        "48 8b 1c 24 48 8b 4c 24 08 e6 1d f4",
    ),
}
"""Handlers of #GP that show the error code and where it was."""

PROGRAMS = [
    Program(
        "arithmetic",
        16,
        "mov ax, 0x7fff; add ax, 1; pushf; sub ax, 0x1234; adc bx, ax; neg bx; pushf; mov "
        "cl, 5; sbb cl, bl; imul dx, ax, 7; cmp dx, ax; pushf; hlt",
        "b8 ff 7f 83 c0 01 9c 2d 34 12 11 c3 f7 db 9c b1 05 18 d9 6b d0 07 39 c2 9c f4",
    ),
    Program(
        "aad",
        16,
        "mov ax, 0x0308; aad; add al, 1; hlt",
        "b8 08 03 d5 0a 04 01 f4",
    ),
    Program(
        "aam",
        16,
        "mov ax, 100; aam; hlt",
        "b8 64 00 d4 0a f4",
        odd="aam_zf",
    ),
    Program(
        "strings",
        16,
        "cld; mov si, 0x1000; mov di, 0x3000; mov cx, 9; rep movsb; std; mov ax, 0xbeef; "
        "mov di, 0x3040; mov cx, 4; rep stosw; cld; mov si, 0x1000; mov di, 0x3000; mov "
        "cx, 20; repe cmpsb; mov di, 0x3000; mov cx, 0x100; mov al, 0xbe; repne scasb; "
        "lodsw; hlt",
        "fc be 00 10 bf 00 30 b9 09 00 f3 a4 fd b8 ef be bf 40 30 b9 04 00 f3 ab fc be 00 "
        "10 bf 00 30 b9 14 00 f3 a6 bf 00 30 b9 00 01 b0 be f2 ae ad f4",
    ),
    Program(
        "stack",
        16,
        "mov bp, sp; push 0x1234; push cs; pusha; popa; enter 8, 0; call below; leave; "
        "add sp, 4; jmp end; below: pop cx; push cx; ret 0; end: hlt",
        "89 e5 68 34 12 0e 60 61 c8 08 00 00 e8 06 00 c9 83 c4 04 eb 05 59 51 c2 00 00 f4",
    ),
    Program(
        "far",
        16,
        "jmp 0x10:0xf05; mov ax, 0x80; mov ds, ax; mov [0], ax; push cs; push second - "
        "0x100; mov es, ax; retf; ud2; second: call 0x0:third; jmp end; third: mov bx, "
        "sp; mov cx, [ss:bx]; retf; end: hlt",
        "ea 05 0f 10 00 b8 80 00 8e d8 a3 00 00 0e 68 16 0f 8e c0 cb 0f 0b 9a 1d 10 00 00 "
        "eb 06 89 e3 36 8b 0f cb f4",
    ),
    Program(
        "ports",
        16,
        "mov dx, 0x510; in al, dx; out 0x61, al; in ax, 0x62; out dx, ax; in eax, dx; out "
        "0x63, eax; hlt",
        "ba 10 05 ec e6 61 e5 62 ef 66 ed 66 e7 63 f4",
    ),
    Program(
        "string ports",
        16,
        "mov dx, 0x60; mov di, 0x3000; insb; insw; mov si, 0x3000; outsb; mov cx, 3; rep "
        "outsw; hlt",
        "ba 60 00 bf 00 30 6c 6d be 00 30 6e b9 03 00 f3 6f f4",
    ),
    Program(
        "interrupt",
        16,
        "int 0x21; stc; int 0x21; pushf; hlt",
        "cd 21 f9 cd 21 9c f4",
        gates={
            0x21: (
                "out 0x21, al; inc bx; iret",
                "e6 21 43 cf",
            ),
        },
    ),
    Program(
        "faults",
        16,
        "mov dx, 0; mov bx, 0; mov ax, 7; div bx; ud2; div bx; hlt",
        "ba 00 00 bb 00 00 b8 07 00 f7 f3 0f 0b f7 f3 f4",
        gates={
            0x0: (
                "inc cx; mov bp, sp; add word [bp], 2; iret",
                "41 89 e5 83 46 00 02 cf",
            ),
            0x6: (
                "inc dx; mov bp, sp; add word [bp], 2; iret",
                "42 89 e5 83 46 00 02 cf",
            ),
        },
    ),
    Program(
        "mmio",
        16,
        "mov ax, 0xb800; mov es, ax; mov [es:0], ax; mov bl, [es:5]; inc word [es:6]; "
        "xchg cx, [es:8]; lock add [es:10], ax; mov si, 0x1000; mov di, 0x20; cld; movsb; "
        "movsw; mov ax, es; mov ds, ax; mov si, 0x30; xor ax, ax; mov es, ax; mov di, "
        "0x3000; movsb; movsw; hlt",
        "b8 00 b8 8e c0 26 a3 00 00 26 8a 1e 05 00 26 ff 06 06 00 26 87 0e 08 00 f0 26 01 "
        "06 0a 00 be 00 10 bf 20 00 fc a4 a5 8c c0 8e d8 be 30 00 31 c0 8e c0 bf 00 30 a4 "
        "a5 f4",
    ),
    Program(
        "arithmetic",
        32,
        "mov eax, 0x12345678; mov ecx, 0x9abcdef; mul ecx; div ecx; cdq; imul ebx, eax, "
        "-3; bsf esi, ebx; bswap ebx; shld edi, ebx, 5; movsx ebp, bl; cmp eax, ecx; setb "
        "dl; cmova esi, ecx; sbb eax, ebx; pushf; hlt",
        "b8 78 56 34 12 b9 ef cd ab 09 f7 e1 f7 f1 99 6b d8 fd 0f bc f3 0f cb 0f a4 df 05 "
        "0f be eb 39 c8 0f 92 c2 0f 47 f1 19 d8 9c f4",
    ),
    Program(
        "strings",
        32,
        "cld; mov esi, 0x10000; mov edi, 0x23ff9; mov ecx, 5; rep movsd; mov al, 0x5a; "
        "mov ecx, 7; rep stosb; mov edi, 0x23ff9; mov ecx, 100; repne scasb; sub ecx, 1; "
        "hlt",
        "fc be 00 00 01 00 bf f9 3f 02 00 b9 05 00 00 00 f3 a5 b0 5a b9 07 00 00 00 f3 aa "
        "bf f9 3f 02 00 b9 64 00 00 00 f2 ae 83 e9 01 f4",
    ),
    Program(
        "stack",
        32,
        "push 0x12345678; push byte -1; pushad; mov eax, esp; add eax, 8; popad; enter "
        "16, 0; mov [ebp - 4], esp; leave; pop dword [0x24000]; pop edx; hlt",
        "68 78 56 34 12 6a ff 60 89 e0 83 c0 08 61 c8 10 00 00 89 65 fc c9 8f 05 00 40 02 00 5a f4",
    ),
    Program(
        "far",
        32,
        "jmp 0x08:first; ud2; first: mov ax, 0x10; mov ds, ax; mov fs, ax; push fs; push "
        "cs; push second; retf; ud2; second: mov eax, ds; mov ebx, fs; hlt",
        "ea 09 00 01 00 08 00 0f 0b 66 b8 10 00 8e d8 8e e0 0f a0 0e 68 1c 00 01 00 cb 0f "
        "0b 8c d8 8c e3 f4",
    ),
    Program(
        "ports",
        32,
        "mov dx, 0x510; in eax, dx; out dx, eax; in ax, dx; out dx, ax; mov edi, 0x24000; "
        "insd; mov esi, edi; outsb; hlt",
        "66 ba 10 05 ed ef 66 ed 66 ef bf 00 40 02 00 6d 89 fe 6e f4",
    ),
    Program(
        "mmio",
        32,
        "mov eax, 0x11223344; mov [0x50000], eax; mov [0x50004], ax; movzx ebx, byte "
        "[0x50008]; movsx ecx, word [0x5000c]; add [0x50010], eax; xchg edx, [0x50014]; "
        "lock xadd [0x50018], eax; or byte [0x5001c], 0x81; cmp [0x50020], eax; mov esi, "
        "0x50030; mov edi, 0x24000; cld; mov ecx, 2; rep movsd; add ecx, 1; hlt",
        "b8 44 33 22 11 a3 00 00 05 00 66 a3 04 00 05 00 0f b6 1d 08 00 05 00 0f bf 0d 0c "
        "00 05 00 01 05 10 00 05 00 87 15 14 00 05 00 f0 0f c1 05 18 00 05 00 80 0d 1c 00 "
        "05 00 81 39 05 20 00 05 00 be 30 00 05 00 bf 00 40 02 00 fc b9 02 00 00 00 f3 a5 "
        "83 c1 01 f4",
    ),
    Program(
        "undefined",
        32,
        "mov ebx, 7; ud2",
        "bb 07 00 00 00 0f 0b",
        gates={
            0x6: (
                "pop eax; pop ecx; out 0x16, al; hlt",
                "58 59 e6 16 f4",
            ),
        },
    ),
    Program(
        "divide",
        32,
        "xor ebx, ebx; mov eax, 1; cdq; idiv ebx",
        "31 db b8 01 00 00 00 99 f7 fb",
        gates={
            0x0: (
                "pop eax; out 0x10, al; hlt",
                "58 e6 10 f4",
            ),
        },
    ),
    Program(
        "return",
        32,
        "ud2; out 0x10, al; hlt",
        "0f 0b e6 10 f4",
        gates={
            0x6: (
                "add dword [esp], 2; iret",
                "83 04 24 02 cf",
            ),
        },
        odd="iret_protected",
    ),
    Program(
        "tables",
        32,
        "sgdt [0x24000]; sidt [0x24010]; str eax; sldt ebx; smsw edx; and dx, 0xffff; "
        "clts; lmsw dx; add ecx, 1; hlt",
        "0f 01 05 00 40 02 00 0f 01 0d 10 40 02 00 0f 00 c8 0f 00 c3 0f 01 e2 66 83 e2 ff "
        "0f 06 0f 01 f2 83 c1 01 f4",
    ),
    Program(
        "ring 3",
        32,
        "mov eax, 77; imul eax, eax, 99; mov ebx, cs; push eax; mov ecx, ss; pop edx; ud2",
        "b8 4d 00 00 00 6b c0 63 8c cb 50 8c d1 5a 0f 0b",
        gates={
            0x6: (
                "mov esi, cs; mov edi, ss; out 0x16, al; hlt",
                "8c ce 8c d7 e6 16 f4",
            ),
        },
        ring=3,
    ),
    Program(
        "arithmetic",
        64,
        "mov rax, 0x123456789abcdef0; mov rcx, 0x0fedcba987654321; mul rcx; div rcx; imul "
        "r8, rax, -3; movsxd r9, ecx; bswap r9; bt r9, 3; adc r10, r9; ror r10, 7; xor "
        "r11d, r10d; cmovs r12, rcx; sbb r13, rax; pushf; hlt",
        "48 b8 f0 de bc 9a 78 56 34 12 48 b9 21 43 65 87 a9 cb ed 0f 48 f7 e1 48 f7 f1 4c "
        "6b c0 fd 4c 63 c9 49 0f c9 49 0f ba e1 03 4d 11 ca 49 c1 ca 07 45 31 d3 4c 0f 48 "
        "e1 49 19 c5 9c f4",
    ),
    Program(
        "strings",
        64,
        "cld; mov esi, 0x10000; mov edi, 0x23ff9; mov ecx, 5; rep movsq; mov rax, "
        "0x5a5a1234deadbeef; mov ecx, 3; rep stosq; mov edi, 0x23ff9; mov ecx, 100; repne "
        "scasb; mov esi, 0x10000; mov edi, 0x23ff9; mov ecx, 90; repe cmpsb; hlt",
        "fc be 00 00 01 00 bf f9 3f 02 00 b9 05 00 00 00 f3 48 a5 48 b8 ef be ad de 34 12 "
        "5a 5a b9 03 00 00 00 f3 48 ab bf f9 3f 02 00 b9 64 00 00 00 f2 ae be 00 00 01 00 "
        "bf f9 3f 02 00 b9 5a 00 00 00 f3 a6 f4",
    ),
    Program(
        "stack",
        64,
        "push -2; push qword [0x10000]; mov rax, rsp; call below; below: enter 32, 0; mov "
        "[rbp - 8], rsp; leave; pop r8; pop r9; pushf; pop r10; hlt",
        "6a fe ff 34 25 00 00 01 00 48 89 e0 e8 00 00 00 00 c8 20 00 00 48 89 65 f8 c9 41 "
        "58 41 59 9c 41 5a f4",
    ),
    Program(
        "far",
        64,
        "push 0x08; push next; o64 retf; ud2; next: mov eax, 0x10; mov ds, eax; mov ss, "
        "eax; mov rbx, rsp; mov ecx, ds; hlt",
        "6a 08 68 0b 00 01 00 48 cb 0f 0b b8 10 00 00 00 8e d8 8e d0 48 89 e3 8c d9 f4",
    ),
    Program(
        "ports",
        64,
        "mov edx, 0x510; mov rax, -1; in eax, dx; out dx, eax; mov rax, -1; in al, dx; "
        "out dx, ax; hlt",
        "ba 10 05 00 00 48 c7 c0 ff ff ff ff ed ef 48 c7 c0 ff ff ff ff ec 66 ef f4",
    ),
    Program(
        "mmio",
        64,
        "mov rax, 0x1122334455667788; mov ebx, 0x50000; mov [rbx], rax; mov rcx, [rbx + "
        "8]; inc qword [rbx + 16]; xchg rdx, [rbx + 24]; lock cmpxchg [rbx + 32], rcx; "
        "add byte [rbx + 40], 0xf0; movzx esi, word [rbx + 42]; mov edi, 0x50040; cld; "
        "mov ecx, 2; rep stosd; push qword [rbx + 48]; pop qword [rbx + 56]; add ecx, 1; "
        "hlt",
        "48 b8 88 77 66 55 44 33 22 11 bb 00 00 05 00 48 89 03 48 8b 4b 08 48 ff 43 10 48 "
        "87 53 18 f0 48 0f b1 4b 20 80 43 28 f0 0f b7 73 2a bf 40 00 05 00 fc b9 02 00 00 "
        "00 f3 ab ff 73 30 8f 43 38 83 c1 01 f4",
    ),
    Program(
        "paging",
        64,
        "mov dword [0x21000], 0x24003; mov dword [0x21008], 0x25003; mov dword [0x4010], "
        "0x21003; mov rax, cr3; mov cr3, rax; mov eax, [0x400010]; mov [0x401010], rsp; "
        "mov r8, [0x21000]; mov r9, [0x21008]; mov r10, [0x4010]; mov dword [0x4018], 0; "
        "invlpg [0x600000]; mov r11, [0x610000]; mov r12, [0x4018]; mov r13, [0x4000]; "
        "hlt",
        "c7 04 25 00 10 02 00 03 40 02 00 c7 04 25 08 10 02 00 03 50 02 00 c7 04 25 10 40 "
        "00 00 03 10 02 00 0f 20 d8 0f 22 d8 8b 04 25 10 00 40 00 48 89 24 25 10 10 40 00 "
        "4c 8b 04 25 00 10 02 00 4c 8b 0c 25 08 10 02 00 4c 8b 14 25 10 40 00 00 c7 04 25 "
        "18 40 00 00 00 00 00 00 0f 01 3c 25 00 00 60 00 4c 8b 1c 25 00 00 61 00 4c 8b 24 "
        "25 18 40 00 00 4c 8b 2c 25 00 40 00 00 f4",
        gates={
            0xE: (
                "mov rbx, [rsp]; mov rcx, cr2; mov dword [0x4018], 0x83; add rsp, 8; iretq",
                "48 8b 1c 24 0f 20 d1 c7 04 25 18 40 00 00 83 00 00 00 48 83 c4 08 48 cf",
            ),
        },
    ),
    Program(
        "registers of the model",
        64,
        "mov ecx, 0xc0000082; mov eax, 0x1234; mov edx, 0xffff8000; wrmsr; xor eax, eax; "
        "xor edx, edx; rdmsr; mov ecx, 0xc0000101; mov ebx, eax; mov eax, 0x10000; xor "
        "edx, edx; wrmsr; mov r8, [gs:0]; inc ecx; wrmsr; swapgs; mov r9, [gs:4]; hlt",
        "b9 82 00 00 c0 b8 34 12 00 00 ba 00 80 ff ff 0f 30 31 c0 31 d2 0f 32 b9 01 01 00 "
        "c0 89 c3 b8 00 00 01 00 31 d2 0f 30 65 4c 8b 04 25 00 00 00 00 ff c1 0f 30 0f 01 "
        "f8 65 4c 8b 0c 25 04 00 00 00 f4",
    ),
    Program(
        "breakpoint",
        64,
        "int3; out 0x10, al; hlt",
        "cc e6 10 f4",
        gates={
            0x3: (
                "out 0x13, al; iretq",
                "e6 13 48 cf",
            ),
        },
        odd="int3_ring0",
    ),
    Program(
        "software interrupt",
        64,
        "int 0x80; out 0x10, al; hlt",
        "cd 80 e6 10 f4",
        gates={
            0x80: (
                "out 0x80, al; iretq",
                "e6 80 48 cf",
            ),
        },
        odd="int_n_ring0",
    ),
    Program(
        "no way out",
        64,
        "mov rax, [0x12345678]; ud2",
        "48 8b 04 25 78 56 34 12 0f 0b",
    ),
    Program(
        "ring 3",
        64,
        "mov eax, 77; imul rax, rax, 99; push rax; xor ecx, ecx; lock cmpxchg [rsp], rcx; "
        "pop rdx; shld rdx, rax, 9; bswap rdx; add rax, rdx; ud2",
        "b8 4d 00 00 00 48 6b c0 63 50 31 c9 f0 48 0f b1 0c 24 5a 48 0f a4 c2 09 48 0f ca "
        "48 01 d0 0f 0b",
        gates={
            0x6: (
                "mov r14d, cs; mov r15d, ss; out 0x16, al; hlt",
                "41 8c ce 41 8c d7 e6 16 f4",
            ),
        },
        ring=3,
    ),
    # Control registers that a processor refuses.
    Program(
        "CR4 without PAE",
        64,
        "xor eax, eax; mov cr4, rax",
        "31 c0 0f 22 e0",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR4 with LA57",
        64,
        "mov eax, 0x1020; mov cr4, rax",
        "b8 20 10 00 00 0f 22 e0",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR4 with PCIDE",
        64,
        "mov rax, cr3; or rax, 8; mov cr3, rax; mov eax, 0x20020; mov cr4, rax",
        "0f 20 d8 48 83 c8 08 0f 22 d8 b8 20 00 02 00 0f 22 e0",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR0 without PG",
        64,
        "mov eax, 0x11; mov cr0, rax",
        "b8 11 00 00 00 0f 22 c0",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR0 without PE",
        64,
        "mov eax, 0x80000010; mov cr0, rax",
        "b8 10 00 00 80 0f 22 c0",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR0 with NW alone",
        64,
        "mov r9, cr0; bts r9, 29; mov cr0, r9",
        "41 0f 20 c1 49 0f ba e9 1d 41 0f 22 c1",
        gates={13: REFUSED[64]},
    ),
    Program(
        "EFER without LME",
        64,
        "mov ecx, 0xc0000080; rdmsr; and eax, ~0x100; wrmsr",
        "b9 80 00 00 c0 0f 32 25 ff fe ff ff 0f 30",
        gates={13: REFUSED[64]},
    ),
    Program(
        "CR0 without PE",
        32,
        "mov eax, 0x80000010; mov cr0, eax",
        "b8 10 00 00 80 0f 22 c0",
        gates={13: REFUSED[32]},
    ),
    Program(
        "CR0 with NW alone",
        32,
        "mov eax, 0x20000011; mov cr0, eax",
        "b8 11 00 00 20 0f 22 c0",
        gates={13: REFUSED[32]},
    ),
    Program(
        "CR4 with PCIDE",
        32,
        "mov eax, 0x20020; mov cr4, eax",
        "b8 20 00 02 00 0f 22 e0",
        gates={13: REFUSED[32]},
    ),
    # Where this project's host differs.
    Program(
        "decimal",
        16,
        "mov al, 0x9b; daa; mov bl, al; mov ax, 0x20b; aaa; mov cx, ax; mov ax, 0x20b; "
        "aas; mov dx, ax; mov al, 0x9b; das; add al, 1; hlt",
        "b0 9b 27 88 c3 b8 0b 02 37 89 c1 b8 0b 02 3f 89 c2 b0 9b 2f 04 01 f4",
        odd="decimal_ring0",
    ),
    Program(
        "decimal",
        32,
        "mov al, 0x9b; daa; mov bl, al; mov ax, 0x20b; aaa; mov cx, ax; mov ax, 0x20b; "
        "aas; mov dx, ax; mov al, 0x9b; das; add al, 1; hlt",
        "b0 9b 27 88 c3 66 b8 0b 02 37 66 89 c1 66 b8 0b 02 3f 66 89 c2 b0 9b 2f 04 01 f4",
        odd="decimal_ring0",
    ),
    Program(
        "nested frames",
        16,
        "mov bp, sp; push 0x1234; enter 8, 1; enter 6, 3; mov [bp - 4], sp; leave; leave; hlt",
        "89 e5 68 34 12 c8 08 00 01 c8 06 00 03 89 66 fc c9 c9 f4",
        odd="enter_nested_ring0",
    ),
    Program(
        "nested frames",
        32,
        "mov ebp, esp; push 0x1234; enter 8, 1; enter 6, 3; mov [ebp - 4], esp; leave; leave; hlt",
        "89 e5 68 34 12 00 00 c8 08 00 01 c8 06 00 03 89 65 fc c9 c9 f4",
        odd="enter_nested_ring0",
    ),
    Program(
        "nested frames",
        64,
        "mov rbp, rsp; push 0x1234; enter 8, 1; enter 8, 3; mov [rbp - 8], rsp; leave; leave; hlt",
        "48 89 e5 68 34 12 00 00 c8 08 00 01 c8 08 00 03 48 89 65 f8 c9 c9 f4",
        odd="enter_nested_ring0",
    ),
    Program(
        "descriptors",
        32,
        "mov eax, 0x10; verw ax; setz bl; mov ecx, 0x08; verw cx; setz bh; verr cx; setz "
        "dl; lar esi, ecx; lsl edi, eax; mov ebp, 0x1b; arpl ax, bp; add ebp, 1; hlt",
        "b8 10 00 00 00 0f 00 e8 0f 94 c3 b9 08 00 00 00 0f 00 e9 0f 94 c7 0f 00 e1 0f 94 "
        "c2 0f 02 f1 0f 03 f8 bd 1b 00 00 00 63 e8 83 c5 01 f4",
        odd="descriptors_ring0",
    ),
    Program(
        "descriptors",
        64,
        "mov eax, 0x10; verw ax; setz bl; mov ecx, 0x08; verw cx; setz bh; verr cx; setz "
        "dl; lar esi, ecx; lsl rdi, eax; add ecx, 1; hlt",
        "b8 10 00 00 00 0f 00 e8 0f 94 c3 b9 08 00 00 00 0f 00 e9 0f 94 c7 0f 00 e1 0f 94 "
        "c2 0f 02 f1 48 0f 03 f8 83 c1 01 f4",
        odd="descriptors_ring0",
    ),
    Program(
        "bounds",
        32,
        "mov dword [0x24000], -5; mov dword [0x24004], 9; mov eax, 9; bound eax, "
        "[0x24000]; mov eax, 10; bound eax, [0x24000]",
        "c7 05 00 40 02 00 fb ff ff ff c7 05 04 40 02 00 09 00 00 00 b8 09 00 00 00 62 05 "
        "00 40 02 00 b8 0a 00 00 00 62 05 00 40 02 00",
        gates={
            0x5: (
                "pop ebx; out 0x15, al; hlt",
                "5b e6 15 f4",
            ),
        },
        odd="bound_ring0",
    ),
    Program(
        "overflow",
        32,
        "mov al, 0x7f; add al, 1; into",
        "b0 7f 04 01 ce",
        gates={
            0x4: (
                "pop ebx; out 0x14, al; hlt",
                "5b e6 14 f4",
            ),
        },
        odd="int_n_ring0",
    ),
    Program(
        "bits",
        64,
        "mov ebx, 0x1238; popcnt eax, ebx; andn ecx, ebx, eax; hlt",
        "bb 38 12 00 00 f3 0f b8 c3 c4 e2 60 f2 c8 f4",
        odd="popcnt_ring0",
    ),
    Program(
        "swapped bytes",
        64,
        "mov dword [0x24000], 0x11223344; movbe eax, [0x24000]; movbe [0x24004], eax; hlt",
        "c7 04 25 00 40 02 00 44 33 22 11 0f 38 f0 04 25 00 40 02 00 0f 38 f1 04 25 04 40 02 00 f4",
        odd="movbe_ring0",
    ),
    Program(
        "paging",
        32,
        "mov edi, 0x2a000; mov eax, 0x83; cld; stosd; mov eax, 0x2a000; mov cr3, eax; mov "
        "eax, cr4; or eax, 0x10; mov cr4, eax; mov eax, cr0; or eax, 0x80000000; mov cr0, "
        "eax; jmp paged; paged: mov ebx, cr0; mov ecx, [0x2a000]; add ecx, 1; hlt",
        "bf 00 a0 02 00 b8 83 00 00 00 fc ab b8 00 a0 02 00 0f 22 d8 0f 20 e0 83 c8 10 0f "
        "22 e0 0f 20 c0 0d 00 00 00 80 0f 22 c0 eb 00 0f 20 c3 8b 0d 00 a0 02 00 83 c1 01 "
        "f4",
        odd="paging_protected",
    ),
    Program(
        "paging with PAE",
        32,
        "mov dword [0x2a000], 0x2b001; mov dword [0x2b000], 0x83; mov eax, 0x2a000; mov "
        "cr3, eax; mov eax, cr4; or eax, 0x20; mov cr4, eax; mov eax, cr0; or eax, "
        "0x80000000; mov cr0, eax; jmp paged; paged: mov ebx, cr0; mov ecx, [0x2b000]; "
        "add ecx, 1; hlt",
        "c7 05 00 a0 02 00 01 b0 02 00 c7 05 00 b0 02 00 83 00 00 00 b8 00 a0 02 00 0f 22 "
        "d8 0f 20 e0 83 c8 20 0f 22 e0 0f 20 c0 0d 00 00 00 80 0f 22 c0 eb 00 0f 20 c3 8b "
        "0d 00 b0 02 00 83 c1 01 f4",
        odd="paging_protected",
    ),
    Program(
        "far return to ring 3",
        64,
        "push 0x1b; push 0x2e000; push 0x23; push outside; o64 retf; outside: ud2",
        "6a 1b 68 00 e0 02 00 6a 23 68 10 00 01 00 48 cb 0f 0b",
        gates={
            0x6: (
                "mov rbx, [rsp + 24]; out 0x16, al; hlt",
                "48 8b 5c 24 18 e6 16 f4",
            ),
        },
        odd="retf_outward",
    ),
    Program(
        "return to ring 3",
        64,
        "push 0x1b; push 0x2e000; push 2; push 0x23; push outside; iretq; outside: mov eax, 7; ud2",
        "6a 1b 68 00 e0 02 00 6a 02 6a 23 68 12 00 01 00 48 cf b8 07 00 00 00 0f 0b",
        gates={
            0x6: (
                "mov rbx, [rsp]; mov ecx, ds; mov edx, es; mov esi, fs; mov edi, gs; out 0x16, "
                "al; hlt",
                "48 8b 1c 24 8c d9 8c c2 8c e6 8c ef e6 16 f4",
            ),
        },
        odd="iret_segments",
    ),
    Program(
        "selectors",
        64,
        "mov ebx, cs; mov ecx, ss; mov edx, ds; mov esi, es; ud2",
        "8c cb 8c d1 8c da 8c c6 0f 0b",
        gates={
            0x6: (
                "out 0x16, al; hlt",
                "e6 16 f4",
            ),
        },
        ring=3,
        odd="selectors_ring3",
    ),
    Program(
        "descriptors",
        64,
        "mov eax, 0x23; lar ebx, ax; lsl ecx, ax; verr ax; setz dl; mov eax, 0x1b; verw "
        "ax; setz dh; ud2",
        "b8 23 00 00 00 0f 02 d8 0f 03 c8 0f 00 e0 0f 94 c2 b8 1b 00 00 00 0f 00 e8 0f 94 c6 0f 0b",
        gates={
            0x6: (
                "out 0x16, al; hlt",
                "e6 16 f4",
            ),
        },
        ring=3,
        odd="descriptors_ring3",
    ),
    Program(
        "flags",
        64,
        "push 0x3a03; popf; pushf; pop rbx; ud2",
        "68 03 3a 00 00 9d 9c 5b 0f 0b",
        gates={
            0x6: (
                "out 0x16, al; hlt",
                "e6 16 f4",
            ),
        },
        ring=3,
        odd="if_ring3",
    ),
    Program(
        "SSE that is off",
        64,
        "xorps xmm0, xmm0; ud2",
        "0f 57 c0 0f 0b",
        gates=SAY_INVALID,
        ring=3,
        odd="controls_ring3",
    ),
    Program(
        "XGETBV that is off",
        64,
        "xor ecx, ecx; xgetbv; ud2",
        "31 c9 0f 01 d0 0f 0b",
        gates=SAY_INVALID,
        ring=3,
        odd="controls_ring3",
    ),
    Program(
        "RDFSBASE that is off",
        64,
        "rdfsbase rax; ud2",
        "f3 48 0f ae c0 0f 0b",
        gates=SAY_INVALID,
        ring=3,
        odd="controls_ring3",
    ),
    Program(
        "SYSCALL that is off",
        64,
        "syscall; ud2",
        "0f 05 0f 0b",
        gates=SAY_INVALID,
        ring=3,
        odd="syscall_off",
    ),
]
