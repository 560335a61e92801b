"""Which files an engine is made of: what a check record covers when it holds that engine."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def _modules(engine: str) -> list[str]:
    """Return all modules of an engine, so that a new one is covered without being named."""
    found = (ROOT / "vmlib/cpu" / engine).glob("[!_]*.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


_VMRUN = ("svm.py", "world_switch.py")  # beside the engine, with records of their own
_SHARED = ["vmlib/cpu/state.py", "vmlib/cpu/engine.py", "vmlib/cpu/exits.py"]
_SHARED += ["vmlib/cpu/limits.py", "vmlib/cpu/doorbell.py"]
EMULATOR_FILES = [
    *(path for path in _modules("unicorn") if not path.endswith(_VMRUN)),
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
