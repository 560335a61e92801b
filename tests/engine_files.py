"""Which files an engine is made of: what a check record covers when it holds that engine."""

_SHARED = ["vmlib/cpu/state.py", "vmlib/cpu/engine.py", "vmlib/cpu/exits.py"]
EMULATOR_FILES = [
    *(
        f"vmlib/cpu/unicorn/{name}.py"
        for name in ("raw", "blocks", "traps", "intercepts", "state", "loop", "vcpu", "vm")
    ),
    "vmlib/cpu/events.py",
    "vmlib/cpu/fast_calls.py",
    *_SHARED,
]
KVM_FILES = [
    f"vmlib/cpu/kvm/{name}.py"
    for name in ("vm", "abi", "calls", "entry", "exits", "state", "vcpu", "file")
]
