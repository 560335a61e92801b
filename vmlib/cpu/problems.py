"""Seeded problems about the first guest: as many as a reader wants, each the same everywhere."""

from dataclasses import dataclass
from functools import cached_property

from vmlib.cpu.engines import open_vm
from vmlib.cpu.exits import Exit, IoOut
from vmlib.cpu.guests import Guest, add_guest
from vmlib.errors import BadInput

# Knuth's multiplicative hash: neighbouring seeds give operands that look unrelated, and it is
# short enough for the page's script to compute the same.
_MULTIPLIER = 2654435761


@dataclass(frozen=True)
class AddProblem:
    """Two operands; what does the guest print, and how often does KVM_RUN return?"""

    seed: int
    a: int
    b: int

    @property
    def question(self) -> str:
        """The problem in words."""
        return (
            f"Problem {self.seed}: the guest adds {self.a} and {self.b}. "
            "What does it print, and how many times does KVM_RUN return?"
        )

    @cached_property
    def guest(self) -> Guest:
        """The guest itself; running it gives the answer."""
        return add_guest(self.a, self.b)

    def mark(self, output: str | None = None, exits: int | None = None) -> str:
        """Mark an answer by running the guest; say what is right and give nothing away."""
        printed, returned = self._run()
        marks = []
        for name, given, truth in (("output", output, printed), ("exits", exits, returned)):
            if given is None:
                marks.append(f"{name}: not answered yet")
            else:
                same = str(given).strip() == str(truth)
                marks.append(f"{name}: {'right' if same else 'not what the guest does'}")
        return f"Problem {self.seed}: " + "; ".join(marks)

    def _run(self) -> tuple[str, int]:
        exits: list[Exit] = []
        with open_vm("unicorn") as vm:
            vm.ram.write(0, self.guest.code)
            vcpu = vm.vcpu()
            vcpu.start_real_mode(0)
            while not exits or isinstance(exits[-1], IoOut):
                exits.append(vcpu.run())
        printed = b"".join(one.data for one in exits if isinstance(one, IoOut))
        return printed.decode().strip(), len(exits)


def add_problem(seed: int) -> AddProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise BadInput("seed", f"must be a whole number from 0 to 2^32 - 1, not {seed!r}")
    mixed = (seed + 1) * _MULTIPLIER & 0xFFFFFFFF
    return AddProblem(seed, mixed >> 24, mixed >> 16 & 0xFF)
