"""Which files an engine is made of: what a check record covers when it holds that engine."""

EMULATOR_FILES = [
    f"vmlib/cpu/{name}.py"
    for name in (
        "unicorn",
        "traps",
        "intercepts",
        "emulator_state",
        "emulator_loop",
        "emulator_vcpu",
        "emulator",
        "events",
        "fast_calls",
        "state",
        "engine",
        "exits",
    )
]
KVM_FILES = [
    f"vmlib/cpu/{name}.py"
    for name in ("kvm", "kvm_abi", "kvm_calls", "kvm_entry", "kvm_exits", "kvm_state", "kvm_vcpu")
]
