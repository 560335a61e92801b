; From ring 0 to ring 3 and back. The code at `user` runs in ring 3, asks ring 0 for a service by
; INT 0x80, and then tries what only ring 0 may do. Prints S3G and a newline, and halts for good.
;
; The kernel's stack lies at 0x60b000, and that is not where it lies in RAM: who pushes on it has
; to walk the guest's page tables.
org 0x1000
tables  equ 0x8000
kernel_stack equ 0x600000 + 0xc000      ; in the fourth 2 MiB, mapped to the first
user_stack   equ 0x400000 + 0xe000      ; in the third 2 MiB, mapped to the first, for ring 3

%include "protected.inc"
%include "long.inc"
        mov dx, 0x3f8           ; COM1
        mov dword [tables + 0x2010], 0x87       ; the third 2 MiB are the first, open to ring 3
        mov dword [tables + 0x2018], 0x83       ; the fourth 2 MiB are the first, for ring 0
        lidt [idtr]             ; who answers INT 0x80 and faults
        mov ax, 0x30            ; the task-state segment
        ltr ax                  ; says where ring 0 has its stack
        push 0x23               ; SS: data, ring 3
        push user_stack         ; RSP
        push 2                  ; RFLAGS: nothing is allowed
        push 0x2b               ; CS: 64-bit code, ring 3
        push 0x400000 + user    ; RIP: the same bytes where ring 3 may read them
        iretq                   ; a return to where we never were

user:   int 0x80                ; ring 3: asks for a service
        hlt                     ; and does what it may not

service: mov al, 'S'            ; ring 0, called from below:
        out dx, al              ; says so
        mov al, [rsp + 8]       ; the CS that the processor pushed
        and al, 3               ; its lowest bits are
        add al, '0'             ; the ring that called
        out dx, al              ; says which
        iretq                   ; back to it

guard:  mov al, 'G'             ; ring 0, called by a general-protection fault:
        out dx, al              ; says so
        mov al, 10              ; a newline
        out dx, al              ; for the reader
        hlt                     ; ring 0 may

gdt:    dq 0                    ; no segment
        dq 0x00cf9b000000ffff   ; 0x08: 32-bit code
        dq 0x00cf93000000ffff   ; 0x10: data
        dq 0x00af9b000000ffff   ; 0x18: 64-bit code
        dq 0x00cff3000000ffff   ; 0x20: data, ring 3
        dq 0x00affb000000ffff   ; 0x28: 64-bit code, ring 3
        dw 0x67                 ; 0x30: a task-state segment of 104 bytes,
        dw tss - $$ + 0x1000    ; its base,
        dd 0x00008900           ; its kind: available, 64-bit
        dq 0                    ; the base lies below 4 GiB
gdtr:   dw gdtr - gdt - 1       ; limit
        dd gdt                  ; base
tss:    dd 0                    ; reserved
        dq kernel_stack         ; RSP0: the stack of ring 0
        times 92 db 0           ; nothing else of it is used
idt:    times 13 * 16 db 0      ; no gates for vectors 0 to 12
        dw (guard - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0      ; 13: an interrupt gate
        dq 0                    ; its handler lies below 4 GiB
        times (0x80 - 14) * 16 db 0     ; no gates for vectors 14 to 127
        dw (service - $$ + 0x1000) & 0xffff, 0x18, 0xee00, 0    ; 0x80: a gate open to ring 3
        dq 0                    ; its handler lies below 4 GiB
idtr:   dw idtr - idt - 1       ; limit
        dq idt                  ; base
