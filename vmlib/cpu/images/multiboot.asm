; A kernel for any Multiboot 1 loader: an ELF file whose every byte is in this source. It prints
; from protected mode, switches to long mode, asks fw_cfg about the machine it is in, and ends it
; through isa-debug-exit with the value 0x10.
org 0x100000
tables  equ 0x110000            ; three pages for page tables
memory  equ 0x20000             ; how much RAM the file asks for

bits 32
file:   db 0x7f, "ELF"          ; ELF header (System V ABI, chapter 4)
        db 1, 1, 1, 0           ; 32 bits, little-endian, version 1, no special ABI
        dq 0                    ; padding
        dw 2, 3                 ; an executable, for the 80386
        dd 1                    ; version
        dd start                ; the entry point
        dd program - file       ; where the program headers are in the file
        dd 0, 0                 ; no section headers, no flags
        dw program - file       ; size of this header
        dw 32, 1                ; size and number of program headers
        dw 0, 0, 0              ; no section headers
program: dd 1                   ; load
        dd 0                    ; the file from its first byte
        dd file, file           ; to this address, virtual and physical
        dd end - file           ; the bytes it has,
        dd memory               ; and zeros up to here
        dd 7, 4                 ; read, write, execute; aligned to 4

        dd 0x1badb002           ; Multiboot header (3.1): magic,
        dd 0                    ; flags: nothing is asked for,
        dd -0x1badb002          ; checksum: their sum is zero

start:  cli                     ; the loader did so already; the HLT at the end relies on it
        cmp eax, 0x2badb002     ; was it a Multiboot loader?
        jne halt                ; if not, this machine is unknown
        mov esp, file + memory  ; a stack at the top of ours
        lgdt [gdtr]             ; the loader's segments cannot be relied on
        jmp 0x08:reload         ; CS from our own table
reload: mov ax, 0x10            ; and the others:
        mov ds, ax              ; data,
        mov es, ax              ; strings,
        mov ss, ax              ; stack
        mov esi, hello32        ; a greeting
.next:  lodsb                   ; its next character
        test al, al             ; a zero ends it
        jz .done                ; then on
        mov bl, al              ; keep it
        mov dx, 0x3fd           ; the line status of COM1
.wait:  in al, dx               ; is the transmitter
        test al, 0x20           ; empty?
        jz .wait                ; not yet
        mov al, bl              ; the character
        mov dx, 0x3f8           ; to COM1
        out dx, al              ; is sent
        jmp .next               ; and the next one
.done:
%include "long.inc"
        mov esi, hello64        ; another greeting,
        call print              ; from 64-bit code

        mov esi, cfg            ; "fw_cfg: "
        call print              ; what follows is
        xor eax, eax            ; key 0:
        mov ecx, 4              ; a signature of four bytes
        call select             ; RAX holds them
        mov [number], rax       ; as characters
        mov esi, number         ; with zeros behind them
        call print              ; QEMU, or who says so

        mov esi, cpus           ; "CPUs: "
        call print              ; what follows is
        mov eax, 5              ; key 5:
        mov ecx, 2              ; the number of CPUs, 16 bits
        call select             ; RAX holds it
        call decimal            ; in digits

        mov esi, ram            ; "RAM in KiB: "
        call print              ; what follows is
        mov eax, 3              ; key 3:
        mov ecx, 8              ; the size of RAM, 64 bits
        call select             ; RAX holds it
        shr rax, 10             ; in KiB
        call decimal            ; in digits

        mov esi, newline        ; the line ends
        call print              ; here
        mov eax, 0x10           ; a value
        out 0xf4, eax           ; to isa-debug-exit: status 0x10 * 2 + 1
halt:   hlt                     ; only where there is no such device

select: mov dx, 0x510           ; fw_cfg's selector
        out dx, ax              ; takes the key
        inc edx                 ; its data port
        xor ebx, ebx            ; the item, of ECX bytes
        xor r8d, r8d            ; the place of a byte in it
.byte:  in al, dx               ; the next byte
        movzx eax, al           ; alone
        xchg ecx, r8d           ; CL counts places,
        shl rax, cl             ; the byte goes to its own,
        or rbx, rax             ; and into the item
        add ecx, 8              ; little-endian: the next is higher
        xchg ecx, r8d           ; ECX counts bytes
        dec ecx                 ; one less
        jnz .byte               ; until all are there
        mov rax, rbx            ; the item
        ret                     ; is the answer

decimal: mov esi, number + 24   ; digits are written from the last to the first
        mov byte [rsi], 0       ; a zero ends them
        mov ebx, 10             ; the base
.digit: xor edx, edx            ; RDX:RAX is divided
        div rbx                 ; by ten
        add dl, '0'             ; the remainder is a digit
        dec esi                 ; one place to the left
        mov [rsi], dl           ; there
        test rax, rax           ; anything left?
        jnz .digit              ; then the next digit
print:  lodsb                   ; the next character
        test al, al             ; a zero ends it
        jz .done                ; then back
        mov bl, al              ; keep it
        mov dx, 0x3fd           ; the line status of COM1
.wait:  in al, dx               ; is the transmitter
        test al, 0x20           ; empty?
        jz .wait                ; not yet
        mov al, bl              ; the character
        mov dx, 0x3f8           ; to COM1
        out dx, al              ; is sent
        jmp print               ; and the next one
.done:  ret                     ; back to the caller

hello32: db "hello from protected mode", 10, 0  ; printed by 32-bit code
hello64: db "hello from long mode", 10, 0       ; printed by 64-bit code
cfg:    db "fw_cfg: ", 0        ; who made this machine
cpus:   db 10, "CPUs: ", 0      ; how many
ram:    db 10, "RAM in KiB: ", 0        ; how much
newline: db 10, 0               ; the last line ends too
        align 8, db 0           ; for speed alone
gdt:    dq 0                    ; no segment
        dq 0x00cf9b000000ffff   ; 0x08: 32-bit code
        dq 0x00cf93000000ffff   ; 0x10: data
        dq 0x00af9b000000ffff   ; 0x18: 64-bit code
gdtr:   dw gdtr - gdt - 1       ; limit
        dd gdt                  ; base
end:
number  equ end + 16            ; digits and characters, in the zeros behind the file
