; Adds two bytes and prints the sum in decimal on COM1, then halts for good.
; Position-independent: it runs wherever it is loaded, as a boot sector too.
; Build with other operands: nasm -DA=7 -DB=5.
%ifndef A
%define A 200
%endif
%ifndef B
%define B 100
%endif
bits 16
        cli                 ; no interrupts: the HLT below shall be final
        mov al, A           ; the first operand
        add al, B           ; the sum, modulo 256: AL has eight bits
        mov dx, 0x3f8       ; the data port of COM1
        push 10             ; a newline, to be printed last
digit:  aam                 ; AH = AL / 10, AL = AL % 10
        add al, '0'         ; the last digit, as a character
        push ax             ; the stack turns the digits round
        mov al, ah          ; what is left of the number
        test al, al         ; anything left?
        jnz digit           ; then the next digit
emit:   pop ax              ; the digits again, the first one first
        out dx, al          ; the only way out of the guest: a port
        cmp al, 10          ; was that the newline?
        jne emit            ; not yet
        hlt                 ; nothing left to do
