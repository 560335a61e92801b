"""What tests let run inside the box: functions from JSON values to JSON values."""

import hashlib
import os
import time
from pathlib import Path

from vmlib.cpu import add_guest, open_vm, probe
from vmlib.machine import Machine


def add_outcomes(engine: str, pairs: list[list[int]]) -> list[dict]:
    """What the first guest comes to, for each pair of operands."""
    return [_add_outcome(engine, a, b) for a, b in pairs]


def _add_outcome(engine: str, a: int, b: int) -> dict:
    with Machine(engine, budget="10s") as machine:
        ran = machine.load(add_guest(a, b)).run()
        registers = machine.vcpu.registers()
        ram = machine.ram.read(0, machine.ram.size)
    return {
        "output": ran.output.decode("latin-1"),
        "exits": [repr(one) for one in ran.exits],
        "counts": ran.counts,
        "registers": repr(registers),
        "shown": {name: registers.show(name) for name in ("AX", "SP", "IP")},
        "RAM, SHA-256": hashlib.sha256(ram).hexdigest(),
    }


def registers_after(code: str, names: list[str]) -> list[str]:
    """Registers after a flat guest, given in hex, has run to its first exit."""
    with open_vm("kvm") as vm:
        vm.ram.write(0x1000, bytes.fromhex(code))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        vcpu.run()
        return [vcpu.registers().show(name) for name in names]


def where() -> dict:
    """What this place says of itself."""
    npt = Path("/sys/module/kvm_amd/parameters/npt").read_text().strip()
    return {"npt": npt in ("1", "Y"), "kernel": os.uname().release, "kvm": probe("kvm").version}


def write_to(path: str) -> None:
    """Create a file."""
    Path(path).write_text("")


def sleep(seconds: float) -> None:
    """Take long."""
    time.sleep(seconds)


def die(signal: int) -> None:
    """End by a signal."""
    os.kill(os.getpid(), signal)
