; Sends back what it receives. It sleeps until the serial port interrupts: line 4 of the interrupt
; controller, vector 0x24. A newline ends it through isa-debug-exit with the value 0x10.
org 0x1000

bits 16
        cli                     ; no interrupts, for now
        mov word [0x24 * 4], handler    ; vector 0x24, offset
        mov word [0x24 * 4 + 2], 0      ; and segment
        mov al, 0x11            ; ICW1: begin, with a second chip, ICW4 follows
        out 0x20, al            ; to the interrupt controller
        mov al, 0x20            ; ICW2: line 0 is vector 0x20, so line 4 is 0x24
        out 0x21, al            ; its second port
        mov al, 4               ; ICW3: the second chip is on line 2
        out 0x21, al            ; the same port: the order tells
        mov al, 1               ; ICW4: this is no 8080
        out 0x21, al            ; the last of four
        mov al, 0xef            ; OCW1: all lines masked but line 4
        out 0x21, al            ; ready
        mov dx, 0x3f9           ; the serial port's interrupt enable register
        mov al, 1               ; when a byte has been received
        out dx, al              ; tell
        mov dx, 0x3fc           ; its modem control register
        mov al, 0x0b            ; DTR and RTS: we are here; OUT2: on a PC, the line's switch
        out dx, al              ; on
sleep:  sti                     ; interrupts on, after the next instruction
        hlt                     ; until one comes
        jmp sleep               ; and again

handler: mov dx, 0x3f8          ; the serial port's data
        in al, dx               ; what was received; its line falls
        out dx, al              ; goes back
        cmp al, 10              ; was it a newline?
        je finish               ; then that was all
        mov al, 0x20            ; end of interrupt
        out 0x20, al            ; to the controller
        iret                    ; back to sleep
finish: mov al, 0x10            ; a value
        out 0xf4, al            ; to isa-debug-exit: status 0x10 * 2 + 1
        cli                     ; where there is no such device:
        hlt                     ; for good
