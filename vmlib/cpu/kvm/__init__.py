"""The KVM engine: vCPUs on `/dev/kvm`, by ioctls from Python, with no helper in between.

`vm.py` is the VM and `vcpu.py` the vCPU that a caller sees; `entry.py` goes into KVM_RUN and out,
`exits.py` reads what came of it, `file.py` is the vCPU's state by ioctl and `state.py` its layout,
`abi.py` has the numbers and `calls.py` makes the calls. `diagnosis.py` says why a guest shut down,
`oddities.py` where a host's KVM is not what the manuals say.
"""
