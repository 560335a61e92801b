"""Seeded problems about the first guest: as many as a reader wants, each the same everywhere."""

from dataclasses import dataclass
from functools import cached_property

from vmlib.cpu.engines import open_vm
from vmlib.cpu.exits import Exit, IoOut
from vmlib.cpu.guests import Guest, add_guest
from vmlib.given import names_bad_input
from vmlib.problems import checked_seed, marked

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

    @names_bad_input
    def mark(self, output: str | bytes | None = None, exits: int | None = None) -> str:
        """Mark an answer by running the guest; say what is right and give nothing away."""
        printed, returned = self._run()
        return marked(
            self.seed,
            ("output", output, printed),
            ("exits", exits, returned),
            wrong="not what the guest does",
        )

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
    checked_seed(seed)
    mixed = (seed + 1) * _MULTIPLIER & 0xFFFFFFFF
    return AddProblem(seed, mixed >> 24, mixed >> 16 & 0xFF)
