; Faults, one after the other, each through the guest's own table of interrupts in long mode. The
; handler writes three bytes to COM1 (vector, low byte of the error code, low byte of CR2) and goes
; on where R15 says.
org 0x1000
tables  equ 0x8000

%include "protected.inc"
%include "long.inc"
        mov dx, 0x3f8           ; COM1
        lidt [idtr]             ; who answers
        mov dword [tables + 0x2018], 0x81       ; the fourth 2 MiB: read-only

divide: mov r15d, undefined     ; where to go on
        xor ecx, ecx            ; zero
        div ecx                 ; #DE: nothing can be divided by it
undefined: mov r15d, selector   ; where to go on
        ud2                     ; #UD: an instruction made to be none
selector: mov r15d, canonical   ; where to go on
        mov eax, 0x58           ; beyond the GDT's limit
        mov ds, eax             ; #GP, with the selector as error code
canonical: mov r15d, absent     ; where to go on
        mov rsi, 1 << 63        ; bits 47 to 63 are not equal
        mov al, [rsi]           ; #GP: no address at all
absent: mov r15d, stack         ; where to go on
        mov eax, 0x20           ; a descriptor without the bit P
        mov ds, eax             ; #NP, with the selector as error code
stack:  mov r15d, read          ; where to go on
        mov eax, 0x20           ; the same descriptor
        mov ss, eax             ; #SS, for it would be the stack
read:   mov r15d, write         ; where to go on
        mov esi, 0x400012       ; the third 2 MiB, which nobody mapped
        mov al, [rsi]           ; #PF, error code 0: a read, not present
write:  mov r15d, protect       ; where to go on
        mov esi, 0x400034       ; there again
        mov [rsi], al           ; #PF, error code 2: a write, not present
protect: mov r15d, gate         ; where to go on
        mov esi, 0x600056       ; read-only
        mov [rsi], al           ; #PF, error code 3: a write, present
gate:   mov r15d, break         ; where to go on
        int 0x20                ; #GP: the IDT ends before, and the error code says which gate
break:  mov r15d, done          ; where to go on
        int3                    ; #BP: a trap, not a fault
done:   hlt                     ; nothing left to do

on_de:  push 0                  ; no error code: a zero in its place
        push 0                  ; vector 0
        jmp report              ; to the common part
on_bp:  push 0                  ; no error code
        push 3                  ; vector 3
        jmp report              ; to the common part
on_ud:  push 0                  ; no error code
        push 6                  ; vector 6
        jmp report              ; to the common part
on_np:  push 11                 ; vector 11, above its error code
        jmp report              ; to the common part
on_ss:  push 12                 ; vector 12
        jmp report              ; to the common part
on_gp:  push 13                 ; vector 13
        jmp report              ; to the common part
on_pf:  push 14                 ; vector 14
report: pop rax                 ; the vector
        out dx, al              ; out with it
        pop rax                 ; the error code
        out dx, al              ; its low byte
        mov rax, cr2            ; the address of the last page fault
        out dx, al              ; its low byte
        mov [rsp], r15          ; not back, but on
        iretq                   ; to the next fault

gdt:    dq 0                    ; no segment
        dq 0x00cf9b000000ffff   ; 0x08: 32-bit code
        dq 0x00cf93000000ffff   ; 0x10: data
        dq 0x00af9b000000ffff   ; 0x18: 64-bit code
        dq 0x00cf13000000ffff   ; 0x20: data, not present
gdtr:   dw gdtr - gdt - 1       ; limit
        dd gdt                  ; base
idt:    dw (on_de - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 0
        dq 0                    ; all handlers lie below 4 GiB
        times 2 * 16 db 0       ; no gates for vectors 1 and 2
        dw (on_bp - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 3
        dq 0                    ; upper half
        times 2 * 16 db 0       ; no gates for vectors 4 and 5
        dw (on_ud - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 6
        dq 0                    ; upper half
        times 4 * 16 db 0       ; no gates for vectors 7 to 10
        dw (on_np - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 11
        dq 0                    ; upper half
        dw (on_ss - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0        ; 12
        dq 0                    ; upper half
        dw (on_gp - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 13
        dq 0                    ; upper half
        dw (on_pf - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0         ; 14
        dq 0                    ; upper half
idtr:   dw idtr - idt - 1       ; limit
        dq idt                  ; base
