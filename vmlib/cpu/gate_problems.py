"""Seeded problems about gates: sixteen bytes, and what the processor makes of them.

The answer is computed by delivering the event on a real guest (`gates.deliver` on the tables of
the guest `fall`), never looked up.
"""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.cpu import events, gates
from vmlib.cpu.engines import open_vm
from vmlib.cpu.falls import RAM, fall_guest, kernel_address, start_fall
from vmlib.cpu.linear import Fault, LinearMemory
from vmlib.given import names_bad_input
from vmlib.problems import checked_seed

_VECTOR = 0x80
_SELECTORS = (0x18, 0x18, 0x18, 0x10, 0x08, 0x60)
_KINDS = (0x8E, 0xEE, 0xEF, 0x8F, 0x6E, 0xE5)


@dataclass(frozen=True)
class GateProblem:
    """INT 0x80 or an interrupt of that vector in ring 3, and gate 128 of the table."""

    seed: int
    gate: bytes
    software: bool

    @property
    def question(self) -> str:
        """The problem in words."""
        what = "executes INT 0x80" if self.software else "is interrupted from outside, vector 0x80"
        return (
            f"Problem {self.seed}: ring 3 {what}. Gate 128 holds {self.gate[:8].hex(' ')} and "
            "eight zero bytes. The GDT is that of the guest `fall`. Which exception is raised, "
            "'none' if the handler runs, and with which error code?"
        )

    @names_bad_input
    def mark(self, exception: str | None = None, error_code: int | None = None) -> str:
        """Mark an answer by delivering the event; say what is right and give nothing away.

        `exception` is ``"none"``, ``"#GP"`` or ``"#NP"``; `error_code` counts only if there is one.
        """
        truth, code = self._delivered
        if exception is None:
            return f"Problem {self.seed}: not answered yet"
        same = exception.strip().upper().lstrip("#") == truth.upper().lstrip("#")
        marks = [f"exception: {'right' if same else 'not what the processor does'}"]
        if same and code is not None:
            if error_code is None:
                marks.append("error code: not answered yet")
            else:
                ours = "right" if error_code == code else "not what the processor pushes"
                marks.append(f"error code: {ours}")
        return f"Problem {self.seed}: " + "; ".join(marks)

    @cached_property
    def _delivered(self) -> tuple[str, int | None]:
        guest = fall_guest("int")
        with open_vm("unicorn", RAM) as vm:
            vcpu = start_fall(vm, guest)
            vcpu.step()  # into ring 3
            vm.ram.write(kernel_address(guest, "gate_128"), self.gate)
            cpu = events.EventCpu.of(vcpu.registers(), vcpu.system())
            event = events.Event(_VECTOR, None, "software" if self.software else "external")
            try:
                gates.deliver(cpu, LinearMemory(vm.ram, cpu), event)
            except Fault as fault:
                return events.NAMES[fault.vector], fault.error_code
        return "none", None


def gate_problem(seed: int) -> GateProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    checked_seed(seed)
    chance = random.Random(seed)
    handler = kernel_address(fall_guest("int"), "on_80")
    selector, kind = chance.choice(_SELECTORS), chance.choice(_KINDS)
    gate = handler.to_bytes(2, "little") + selector.to_bytes(2, "little") + bytes([0, kind])
    return GateProblem(seed, gate.ljust(16, b"\0"), chance.random() < 0.6)
