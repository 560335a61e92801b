; The world switch of a hypervisor on AMD-V, all of it. RAX holds the VMCB's physical address.
; VMRUN itself swaps what the VMCB's save area and VM_HSAVE_PA hold; FS, GS, TR, LDTR and the MSRs
; of SYSCALL and SYSENTER are left to VMLOAD and VMSAVE (AMD APM vol. 2, 15.5).
bits 64
org 0x1000
enter:  clgi                    ; no interrupt may come between here and stgi
        vmload                  ; the guest's FS, GS, TR, LDTR, KernelGsBase, STAR
vmrun:  vmrun                   ; the host into its save area, the guest out of the VMCB
        vmsave                  ; behind the #VMEXIT: those registers into the VMCB
        mov eax, 0x3000         ; where the host has kept its own
        vmload                  ; FS, GS, TR and the rest of the host
        stgi                    ; interrupts may come again
        hlt                     ; the hypervisor looks at EXITCODE
