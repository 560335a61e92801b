; Counts. Each vCPU that runs it adds one to a shared counter, `count` times, and halts. The lock
; prefix makes each addition one step for all vCPUs; so the sum is exact.
org 0x1000
counter equ 0x2000              ; four bytes that all vCPUs share

bits 16
        cli                     ; no interrupts: the HLT below shall be final
        mov ecx, [count]        ; how often
again:  lock inc dword [counter]        ; read, add, write; nobody else in between
        dec ecx                 ; one less
        jnz again               ; until it is none
        hlt                     ; nothing left to do

        align 4, db 0           ; a whole word
count:  dd 10000                ; write here before the start to change it
