; One of each: the instructions for which a guest may have to leave. The label of each is the name
; under which tests and figures find it. Real mode. It waits at `exit_halt` for interrupt 0x20,
; which is line 0 of an interrupt controller if there is one. Prints "OUTS !" and a newline.
org 0x1000

bits 16
        cli                     ; no interrupts, for now
        cld                     ; strings go upwards
        mov word [0x20 * 4], handler    ; vector 0x20, offset
        mov word [0x20 * 4 + 2], 0      ; and segment
        mov ax, 0xb800          ; a PC's text screen:
        mov es, ax              ; no RAM, but a device's memory
        mov dx, 0x3f8           ; COM1
        mov al, 'O'             ; a letter
exit_out: out dx, al            ; OUT: one byte to a port
        mov si, text            ; what follows
        mov cx, 4               ; four bytes
exit_rep_outs: rep outsb        ; REP OUTS: a string to a port
        mov dx, 0x3fd           ; the line status of COM1
exit_in: in al, dx              ; IN: somebody has to answer before the guest goes on
        mov ax, 0x0741          ; an A, light grey on black
exit_mmio_write: mov [es:0], ax ; MMIO: a store where no RAM is
exit_mmio_read: mov bx, [es:0]  ; MMIO: a load, and somebody has to answer
        xor eax, eax            ; leaf 0
        xor ecx, ecx            ; subleaf 0
exit_cpuid: cpuid               ; CPUID: which processor is this?
        mov ecx, 0xc0000080     ; EFER
exit_rdmsr: rdmsr               ; RDMSR: a register of this model
        mov al, 0x11            ; ICW1: begin, with a second chip, ICW4 follows
exit_pic: out 0x20, al          ; OUT to the interrupt controller
        mov al, 0x20            ; ICW2: line 0 is vector 0x20
        out 0x21, al            ; its second port
        mov al, 4               ; ICW3: the second chip is on line 2
        out 0x21, al            ; the same port: the order tells
        mov al, 1               ; ICW4: this is no 8080
        out 0x21, al            ; the last of four
        mov al, 0xfe            ; OCW1: all lines masked but line 0
        out 0x21, al            ; ready
        sti                     ; interrupts on, after the next instruction
exit_halt: hlt                  ; HLT: until an interrupt comes
        cli                     ; interrupts off
        mov dx, 0x3f8           ; COM1
        mov al, 10              ; a newline
        out dx, al              ; for the reader
exit_end: hlt                   ; HLT with interrupts off: for good

handler: mov dx, 0x3f8          ; an interrupt came
        mov al, '!'             ; it
        out dx, al              ; says so
        mov al, 0x20            ; end of interrupt
        out 0x20, al            ; to the controller
        iret                    ; back behind the HLT

text:   db "UTS "               ; for REP OUTS
