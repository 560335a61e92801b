"""Which files an engine is made of: what a check record covers when it holds that engine."""

_SHARED = ["vmlib/cpu/state.py", "vmlib/cpu/engine.py", "vmlib/cpu/exits.py"]
_SHARED += ["vmlib/cpu/limits.py", "vmlib/cpu/doorbell.py"]
_EMULATOR = [
    "raw",
    "proof",
    "mends",
    "emulator",
    "state",
    "traps",
    "intercepts",
    "delivery",
    "unfinished",
    "loop",
    "vcpu",
    "vm",
]
EMULATOR_FILES = [
    *(f"vmlib/cpu/unicorn/{name}.py" for name in _EMULATOR),
    "vmlib/cpu/events.py",
    "vmlib/cpu/gates.py",
    "vmlib/cpu/linear.py",
    "vmlib/cpu/fast_calls.py",
    "vmlib/cpu/controls.py",
    *_SHARED,
]
KVM_FILES = [
    f"vmlib/cpu/kvm/{name}.py"
    for name in ("vm", "abi", "calls", "entry", "exits", "state", "vcpu", "file")
]
