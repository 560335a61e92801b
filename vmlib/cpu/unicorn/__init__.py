"""The emulator engine: vCPUs on Unicorn, and all of vmlib that needs Unicorn installed.

`vm.py` is the VM and `vcpu.py` the vCPU that a caller sees; `loop.py` runs it from one exit to the
next, `traps.py` and `intercepts.py` say where it stops, and `state.py` moves whole CPU states.
`raw.py`, alone, talks to the library, whose blocks `blocks.py` makes shorter. `svm.py` and
`world_switch.py` are the AMD-V inside Unicorn.
"""
