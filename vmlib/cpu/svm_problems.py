"""Seeded problems about AMD-V's intercepts: which of a guest's instructions bring the host back?"""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.cpu.engines import open_svm
from vmlib.cpu.state import SystemRegisters
from vmlib.given import names_bad_input
from vmlib.problems import checked_seed
from vmlib.units import PAGE_SIZE

# Text, bytes in 16-bit code, and the exit that it causes if its intercept bit is set.
_CHOICE = (
    ("cpuid", "0fa2", "CPUID"),
    ("rdtsc", "0f31", "RDTSC"),
    ("pause", "f390", "PAUSE"),
    ("pushf", "9c", "PUSHF"),
    ("mov eax, cr0", "0f20c0", "CR0_READ"),
    ("sidt [0x700]", "0f010e0007", "IDTR_READ"),
    ("wbinvd", "0f09", "WBINVD"),
    ("nop", "90", ""),
    ("mov al, [0x8000]", "a00080", "NPF"),
)
_MAPPED = 0x4000


@dataclass(frozen=True)
class VmrunProblem:
    """A guest in real mode, GPA 0 to 0x3fff mapped, and some intercept bits."""

    seed: int
    instructions: tuple[str, ...]
    intercepts: tuple[str, ...]

    @property
    def question(self) -> str:
        """The problem in words."""
        return (
            f"Problem {self.seed}: the guest executes {'; '.join(self.instructions)}. Intercepted: "
            f"{', '.join(self.intercepts)}. Nested tables map GPA 0 to 0x3fff; the hypervisor maps "
            "what is missing and steps over what is intercepted. Which exits, in which order?"
        )

    @names_bad_input
    def mark(self, exits: list[str] | None = None) -> str:
        """Mark an answer, names of exits in order, by running; give nothing away."""
        if exits is None:
            return f"Problem {self.seed}: not answered yet"
        right = list(exits) == list(self._truth)
        return f"Problem {self.seed}: {'right' if right else 'not what the processor does'}"

    @cached_property
    def _truth(self) -> tuple[str, ...]:
        code = {text: data for text, data, _ in _CHOICE} | {"hlt": "f4"}
        names: list[str] = []
        with open_svm("1M") as host:
            vmcb = host.vmcb()
            tables = host.nested_paging(vmcb)
            ram = host.allocate(_MAPPED // PAGE_SIZE)
            tables.map(0, ram, _MAPPED)
            host.ram.write(ram, bytes.fromhex("".join(code[one] for one in self.instructions)))
            vmcb.set_state(SystemRegisters.real_mode(), rip=0, rsp=0x2000)
            vmcb.intercept(*self.intercepts)
            while "HLT" not in names:
                ended = host.vmrun(vmcb.at)
                names.append(ended.name)
                if ended.name == "NPF":
                    tables.map(ended.info2 & -PAGE_SIZE, host.allocate(), PAGE_SIZE)
                elif ended.nrip is not None:
                    vmcb["RIP"] = ended.nrip
        return tuple(names)


def vmrun_problem(seed: int) -> VmrunProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    checked_seed(seed)
    rng = random.Random(seed)
    chosen = rng.choices(_CHOICE, k=6)
    used = {name for _, _, name in chosen}
    there = [name for _, _, name in _CHOICE if name in used - {"", "NPF"}]
    others = [name for _, _, name in _CHOICE if name not in used | {"", "NPF"}]
    intercepts = rng.sample(there, min(2, len(there))) + rng.sample(others, min(2, len(others)))
    rng.shuffle(intercepts)
    return VmrunProblem(seed, (*(text for text, _, _ in chosen), "hlt"), (*intercepts, "HLT"))
