"""Jobs for the box that need no module of the reader's own.

A job is a function from JSON values to JSON values; this one runs on any engine, in the box or not.
Left out: devices. Ports and memory that is not RAM read as zeros.
"""

from typing import Any

from vmlib.cpu import Budget, IoIn, IoOut, Mmio, open_vm
from vmlib.cpu.exits import BudgetSpent, EngineFailure, Shutdown
from vmlib.units import parse_hex

START, END = 0x1000, 0xF4
MOST_EXITS = 1000


def run_flat(code: str, engine: str = "kvm", ram: str = "64K") -> dict[str, Any]:
    """Run bytes, in hex, in real mode from 0x1000 until they write to port 0xf4.

    Return every exit that the VMM saw, in words, and the registers then. A HLT does not end it: the
    next entry goes on behind it. What else ends it: a shutdown, ten seconds, a thousand exits.
    """
    with open_vm(engine, ram) as vm:
        vm.ram.write(START, parse_hex(code))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(START)
        vcpu.set_budget(Budget(seconds=10))
        exits: list[str] = []
        while len(exits) < MOST_EXITS:
            left = vcpu.run()
            exits.append(f"{left.reason} {left.detail}".strip())
            match left:
                case IoIn(size=size, count=count):
                    vcpu.complete(bytes(size * count))
                case Mmio(size=size, data=None):
                    vcpu.complete(bytes(size))
                case IoOut(port=port) if port == END:
                    break
                case Shutdown() | BudgetSpent() | EngineFailure():
                    break
        registers = vcpu.registers()
    shown = ("EAX", "EBX", "ECX", "EDX", "IP")
    return {"exits": exits, "registers": {name: registers.show(name) for name in shown}}
