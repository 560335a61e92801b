"""What Python costs on KVM: `run()` with a decoded exit, against the same loop in C.

The guest is ``again: out 0x10, al; jmp again`` in real mode. The program in kvm_exits.c is
compiled here and now; Python and C take turns, and a ratio is that of two neighbours. It is C's
time over Python's: 1 would be no cost.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import Figure
from vmlib.cpu import Budget, IoOut, Vcpu, open_vm

EXITS, PAIRS = 40_000, 9
TARGET = "must 0.50, aim 0.60"
GUEST = bytes.fromhex("e6 10 eb fc")


def nanoseconds(vcpu: Vcpu) -> float:
    """Time an exit: the loop that a reader would write, every exit looked at."""
    began = time.perf_counter_ns()
    for _ in range(EXITS):
        exit = vcpu.run()
        if not isinstance(exit, IoOut) or exit.port != 0x10:
            raise AssertionError(f"an exit that should not be: {exit}")
    return (time.perf_counter_ns() - began) / EXITS


def run() -> list[Figure]:
    """Measure pairs, with and without a time budget."""
    plain, limited, ours, theirs = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, open_vm("kvm") as vm:
        program = Path(folder) / "kvm_exits"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)

        def in_c() -> float:
            command = [str(program), str(EXITS)]
            return float(subprocess.run(command, capture_output=True, check=True).stdout)

        vm.ram.write(0x1000, GUEST)
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        nanoseconds(vcpu)  # both are warm then
        in_c()
        for _ in range(PAIRS):
            vcpu.set_budget(Budget())
            theirs.append(in_c())
            ours.append(nanoseconds(vcpu))
            plain.append(theirs[-1] / ours[-1])
            vcpu.set_budget(Budget(seconds=3600))
            limited.append(in_c() / nanoseconds(vcpu))
    return [
        Figure("KVM exit in C", tuple(t / 1000 for t in theirs), "µs", ""),
        Figure("KVM run() with a decoded exit", tuple(t / 1000 for t in ours), "µs", ""),
        Figure("KVM run() with a decoded exit, of C's loop", tuple(plain), "", TARGET),
        Figure("the same with a time budget, of C's loop", tuple(limited), "", ""),
    ]
