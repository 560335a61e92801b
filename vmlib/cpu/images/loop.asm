; The guest of the two loops. It prepares, tries one thing that may leave the guest, rings a doorbell,
; waits for an interrupt, and ends. Of the pieces between `try_out` and `ring` one stays: loop.py cuts
; the others out, so everything from `try_out` on runs wherever it is put. Real mode.
org 0x1000
doorbell equ 0xc010             ; where a legacy virtio device has its queue-notify register
ending equ 0xf4                 ; QEMU's debug exit

bits 16
        cli                     ; no interrupts while there is no handler
        mov word [0x20 * 4], handler    ; vector 0x20: offset
        mov word [0x20 * 4 + 2], 0      ; and segment
        mov al, 0x11            ; ICW1: begin, with a second chip, ICW4 follows
        out 0x20, al            ; to the interrupt controller
        mov al, 0x20            ; ICW2: line 0 is vector 0x20
        out 0x21, al            ; its second port
        mov al, 4               ; ICW3: the second chip is on line 2
        out 0x21, al            ; the same port: the order tells
        mov al, 1               ; ICW4: this is no 8080
        out 0x21, al            ; the last of four
        mov al, 0xfe            ; OCW1: all lines masked but line 0
        out 0x21, al            ; ready
        sti                     ; interrupts on
        jmp short try_out       ; over the handler

handler: mov al, 0x20           ; end of interrupt
        out 0x20, al            ; to the interrupt controller
        iret                    ; back behind the HLT

try_out: mov dx, 0x3f8          ; COM1
        mov al, 'A'             ; a letter
        out dx, al              ; one byte to a port
try_in: mov dx, 0x3fd           ; the line status of COM1
        in al, dx               ; somebody has to answer first
try_store: mov ax, 0xb800       ; a PC's text screen:
        mov es, ax              ; no RAM, but a device's memory
        mov ax, 0x0741          ; an A, light grey on black
        mov [es:0], ax          ; a store where no RAM is
try_load: mov ax, 0xb800        ; a PC's text screen:
        mov es, ax              ; no RAM, but a device's memory
        mov bx, [es:0]          ; a load; somebody has to answer first
try_cpuid: mov eax, 0x40000000  ; the leaf of hypervisors
        cpuid                   ; under whom do I run?
try_rdmsr: mov ecx, 0xc0000080  ; EFER
        rdmsr                   ; a register of this model
try_vmmcall: mov eax, 0x2016    ; a call that no hypervisor knows
        vmmcall                 ; please
try_cr3: mov eax, 0x3000        ; where a page table could be
        mov cr3, eax            ; a new address space

ring:   mov dx, doorbell        ; the doorbell of a virtio queue
        xor ax, ax              ; queue 0
        out dx, ax              ; there is work for you
sleep:  hlt                     ; sleep until an interrupt comes
        out ending, al          ; that was all
