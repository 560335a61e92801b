"""The emulator engine: vCPUs on Unicorn, and all of vmlib that needs Unicorn installed.

`vm.py` is the VM and `vcpu.py` the vCPU that a caller sees. `loop.py` runs it from one exit to the
next, `unfinished.py` ends the instruction that an exit left open, `delivery.py` does exceptions
and interrupts; `traps.py` and `intercepts.py` say where it stops, `state.py` moves whole states.
Below them `emulator.py` is one engine, `raw.py` the library, `proof.py` proves where that keeps
its state, and `mends.py` mends what would let a guest end the process. `svm.py` and
`world_switch.py` are its AMD-V.
"""
