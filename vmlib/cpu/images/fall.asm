; One fall from ring 3 into ring 0, of your choice. Ring 3 begins at USER: build with
; nasm -DUSER=divide, say. Prints a letter that tells who answered, and a newline, and halts.
;
; The kernel's stacks lie above 0x600000, and that is not where they lie in RAM. Ring 3 sees the
; same bytes at 0x400000 as ring 0 sees at 0; at 0x800000 nobody has mapped anything.
%ifndef USER
%define USER page_fault
%endif
org 0x1000
tables  equ 0x8000
kernel_stack equ 0x600000 + 0xc000
spare_stack equ 0x600000 + 0xd000
user_stack equ 0x400000 + 0xe000

%include "protected.inc"
%include "long.inc"
        mov dword [tables + 0x2010], 0x87       ; the third 2 MiB are the first, open to ring 3
        mov dword [tables + 0x2018], 0x83       ; the fourth 2 MiB are the first, for ring 0
        lidt [idtr]             ; who answers what
        mov ax, 0x38            ; the task-state segment
        ltr ax                  ; says where ring 0 has its stacks
        mov ecx, 0xc0000080     ; the register EFER
        rdmsr                   ; has a bit
        or al, 1                ; SCE:
        wrmsr                   ; SYSCALL is an instruction
        inc ecx                 ; STAR
        xor eax, eax            ; has selectors in its upper half:
        mov edx, 0x00230018     ; 0x23 + 8 and + 16 for SYSRET, 0x18 for SYSCALL
        wrmsr                   ; written
        inc ecx                 ; LSTAR
        mov eax, call           ; is where SYSCALL goes
        xor edx, edx            ; below 4 GiB
        wrmsr                   ; written
        mov edx, 0x3f8          ; COM1
        push 0x2b               ; SS: data, ring 3
        push user_stack         ; RSP
        push 0x3002             ; RFLAGS: IOPL 3, so that ring 3 may use ports
        push 0x33               ; CS: 64-bit code, ring 3
        push 0x400000 + USER    ; RIP: the same bytes where ring 3 may read them
drop:   iretq                   ; a return to where we never were

page_fault: mov esi, 0x800000 + letter  ; an address that nobody mapped
        mov al, [rsi]           ; read a letter there
        jmp say                 ; and say it
divide: xor ecx, ecx            ; zero
        div ecx                 ; nothing can be divided by it
        jmp say                 ; who answered?
undefined: ud2                  ; an instruction made to be none
        jmp say                 ; who answered?
privileged: hlt                 ; ring 3 may not stop the processor
        jmp say                 ; who answered?
service: int 0x80               ; ask ring 0 for a service
        jmp say                 ; who answered?
fast:   syscall                 ; ask without the table
say:    out dx, al              ; a port: the way out of the guest
        mov al, 10              ; a newline
        out dx, al              ; for the reader
        hlt                     ; ring 3 may not, so that ring 0 will

on_de:  mov al, '0'             ; divided by zero
        add qword [rsp], 2      ; go on behind the DIV
        iretq                   ; to ring 3
on_ud:  mov al, 'U'             ; undefined
        add qword [rsp], 2      ; go on behind the UD2
        iretq                   ; to ring 3
on_df:  mov al, 'D'             ; a double fault:
        out dx, al              ; says so
        mov al, 10              ; a newline
        out dx, al              ; for the reader
        hlt                     ; there is no way back from it
on_gp:  cmp al, 10              ; was that the end?
        je stop                 ; then stop here
        mov al, 'G'             ; a general-protection fault
        add rsp, 8              ; away with the error code
        inc qword [rsp]         ; go on behind the HLT
        iretq                   ; to ring 3
stop:   hlt                     ; ring 0 may
on_pf:  mov dword [tables + 0x2020], 0x87       ; map the fifth 2 MiB where the first are
        add rsp, 8              ; away with the error code
        iretq                   ; back to the instruction that failed
on_80:  mov al, 'S'             ; a service
        iretq                   ; behind the INT
on_irq: mov al, 'I'             ; an interrupt from outside:
        out dx, al              ; says so
        iretq                   ; as if nothing had happened
call:   mov al, 'C'             ; a call, and RSP is still the caller's
        o64 sysret              ; back to RCX

letter: db 'F'                  ; read at an address that is not its own
gdt:    dq 0                    ; no segment
        dq 0x00cf9b000000ffff   ; 0x08: 32-bit code
        dq 0x00cf93000000ffff   ; 0x10: data
        dq 0x00af9b000000ffff   ; 0x18: 64-bit code
        dq 0x00cf93000000ffff   ; 0x20: data, where SYSCALL looks for it
        dq 0x00cff3000000ffff   ; 0x28: data, ring 3
        dq 0x00affb000000ffff   ; 0x30: 64-bit code, ring 3
        dw 0x67                 ; 0x38: a task-state segment of 104 bytes,
        dw tss - $$ + 0x1000    ; its base,
        dd 0x00008900           ; its kind: available, 64-bit
        dq 0                    ; the base lies below 4 GiB
gdtr:   dw gdtr - gdt - 1       ; limit
        dd gdt                  ; base
tss:    dd 0                    ; reserved
        dq kernel_stack         ; RSP0: the stack of ring 0
        times 24 db 0           ; RSP1 and RSP2 are not used
        dq spare_stack          ; IST1: a stack that is always good
        times 60 db 0           ; nothing else of it is used
idt:
gate_0: dw (on_de - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0      ; 0: an interrupt gate, present
        dq 0                    ; all handlers lie below 4 GiB
        times 5 * 16 db 0       ; no gates for vectors 1 to 5
gate_6: dw (on_ud - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0      ; 6
        dq 0                    ; upper half
        dq 0, 0                 ; no gate for vector 7
gate_8: dw (on_df - $$ + 0x1000) & 0xffff, 0x18, 0x8e01, 0      ; 8: on the stack IST1
        dq 0                    ; upper half
        times 4 * 16 db 0       ; no gates for vectors 9 to 12
gate_13: dw (on_gp - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0     ; 13
        dq 0                    ; upper half
gate_14: dw (on_pf - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0     ; 14
        dq 0                    ; upper half
        times 17 * 16 db 0      ; no gates for vectors 15 to 31
gate_32: dw (on_irq - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0    ; 32
        dq 0                    ; upper half
        times 95 * 16 db 0      ; no gates for vectors 33 to 127
gate_128: dw (on_80 - $$ + 0x1000) & 0xffff, 0x18, 0xee00, 0    ; 128: open to ring 3
        dq 0                    ; upper half
idtr:   dw idtr - idt - 1       ; limit
        dq idt                  ; base
