; Real mode, protected mode, long mode: a letter from each. Then a page fault that the guest mends
; itself, through its own table of interrupts. Prints RPLfF and a newline, and halts for good.
org 0x1000
tables  equ 0x8000

bits 16
        mov dx, 0x3f8           ; COM1, in all modes
        mov al, 'R'             ; real mode:
        out dx, al              ; says so
%include "protected.inc"
        mov al, 'P'             ; protected mode:
        out dx, al              ; says so
%include "long.inc"
        mov dx, 0x3f8           ; RDMSR has used EDX
        mov al, 'L'             ; long mode:
        out dx, al              ; says so
        lidt [idtr]             ; from here on, faults have a handler
        mov esi, 0x400000 + letter      ; an address in the third 2 MiB: nobody mapped it
touch:  mov al, [rsi]           ; a page fault; when mended, the same again
        out dx, al              ; the letter at the end of this guest
        mov al, 10              ; a newline
        out dx, al              ; for the reader
        hlt                     ; nothing left to do

fault:  push rax                ; the handler of vector 14
        mov al, 'f'             ; a fault:
        out dx, al              ; says so
        mov dword [tables + 0x2010], 0x83       ; maps the third 2 MiB where the first are
        pop rax                 ; as it was
        add rsp, 8              ; away with the error code
        iretq                   ; back to the instruction that failed

letter: db 'F'                  ; read at an address that is not its own
gdt:    dq 0                    ; no segment
        dq 0x00cf9b000000ffff   ; 0x08: 32-bit code
        dq 0x00cf93000000ffff   ; 0x10: data
        dq 0x00af9b000000ffff   ; 0x18: 64-bit code
gdtr:   dw gdtr - gdt - 1       ; limit
        dd gdt                  ; base
idt:    times 14 * 16 db 0      ; no gates for vectors 0 to 13
        dw (fault - $$ + 0x1000) & 0xffff, 0x18, 0x8e00, 0      ; 14: an interrupt gate, present
        dq 0                    ; the handler lies below 4 GiB
idtr:   dw idtr - idt - 1       ; limit
        dq idt                  ; base
