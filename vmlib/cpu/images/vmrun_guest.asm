; A guest for a hypervisor of a few lines: it asks CPUID who its processor is, hands the answer to
; the hypervisor with VMMCALL, reads where nested tables may say no, and halts. Real mode, at 0.
bits 16
org 0
start:  xor eax, eax            ; CPUID leaf 0: highest leaf, and the maker's name
ask:    cpuid                   ; leaves the guest, if the hypervisor wants to answer
        mov eax, ebx            ; the name's first four letters
call:   vmmcall                 ; hypercall: "look at RAX"
        mov ds, [place]       ; a segment that begins at GPA 0x10000
touch:  mov al, [0x123]         ; a nested page fault, if nothing is mapped there
done:   hlt                     ; leaves the guest, if HLT is intercepted
place:  dw 0x1000               ; a selector: base 0x10000
