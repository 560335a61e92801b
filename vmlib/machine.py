"""A machine: a VM, one vCPU, a serial port, and the outer of the two loops.

The inner loop is `vcpu.run()`, the guest's. The outer one is here: run, look why the guest came
back, do what a device would have done, run again. `record()` runs the same loop one instruction
at a time and writes down who acted, which makes the *lanes* trace.

Left out so far: every device but the transmitter of a serial port at 0x3f8, and interrupts.
"""

import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

from vmlib.cpu import Budget, Exit, Guest, Halt, IoIn, IoOut, Registers, Vcpu, Vm, open_vm, probe
from vmlib.cpu.exits import show_bytes
from vmlib.errors import BadInput
from vmlib.trace import Provenance, Recorder, Trace

COM1 = 0x3F8
LOAD_ADDRESS = 0x1000
DEFAULT_BUDGET = "2s"
SHOWN_REGISTERS = ("AX", "DX", "SP", "IP")

GUEST, KERNEL, VMM = "guest kernel", "host kernel", "host user"
_CONTINUES = (IoOut, IoIn)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the bytes on the serial port, every exit in order, and the last one."""

    output: bytes
    exits: tuple[Exit, ...]

    @property
    def last(self) -> Exit:
        """The exit that ended the run."""
        return self.exits[-1]

    @property
    def counts(self) -> dict[str, int]:
        """How many exits of each reason."""
        return dict(Counter(one.reason for one in self.exits))


class Machine:
    """A machine with `ram` of memory whose vCPU is `engine`; a context manager.

    `budget` limits the guest's time, or on the emulator its instructions: ``"2s"``, ``"1e6i"``,
    or None for no limit.
    """

    def __init__(
        self,
        engine: str = "unicorn",
        ram: int | str = "64K",
        budget: str | Budget | None = DEFAULT_BUDGET,
    ) -> None:
        self.engine = engine
        self._budget = Budget.parse(budget)
        self._vm: Vm = open_vm(engine, ram)
        self.ram = self._vm.ram
        self.vcpu: Vcpu = self._vm.vcpu()
        self.guest: Guest | None = None
        self._at = LOAD_ADDRESS

    def load(self, guest: Guest | bytes, at: int = LOAD_ADDRESS) -> Self:
        """Put a guest's bytes into RAM at `at` and point the vCPU there, in real mode."""
        self.guest = guest if isinstance(guest, Guest) else Guest.from_bytes(guest)
        self._at = at
        self.ram.write(at, self.guest.code)
        self.vcpu.start_real_mode(at)
        self.vcpu.set_budget(self._budget)
        return self

    def run(self) -> Outcome:
        """Run the guest to its end, standing in for the devices; return what came out."""
        self._loaded()
        output = bytearray()
        exits: list[Exit] = []
        while True:
            exits.append(self.vcpu.run())
            if not isinstance(exits[-1], _CONTINUES):
                return Outcome(bytes(output), tuple(exits))
            self._device(exits[-1], output)

    def record(
        self,
        title: str = "Who runs, and what makes it leave",
        registers: tuple[str, ...] = SHOWN_REGISTERS,
        limit: int = 2000,
    ) -> Trace:
        """Run the guest one instruction at a time and return the lanes trace of it.

        A guest that is not over after `limit` steps is left there, and the last step says so.
        """
        guest = self._loaded()
        scribe = _Scribe(guest, self._at, title, registers)
        output = bytearray()
        scribe.note(VMM, "run", "The VMM calls KVM_RUN.", self.vcpu.registers())
        scribe.enter(self.vcpu.registers())
        while len(scribe.recorder) < limit:
            before = self.vcpu.registers()
            came_back = self.vcpu.step()
            if isinstance(came_back, Halt | IoOut | IoIn) or came_back is None:
                scribe.instruction(before, self.vcpu.registers(), came_back)
            if came_back is None:
                continue
            scribe.leave(came_back, self.vcpu.registers())
            if not isinstance(came_back, _CONTINUES):
                break
            self._device(came_back, output)
            scribe.device(came_back, output, self.vcpu.registers())
            scribe.enter(self.vcpu.registers())
        else:
            scribe.note(VMM, "end", f"The recording ends after {limit} steps.", before)
        return scribe.recorder.finish(self._provenance(guest))

    def close(self) -> None:
        """Give everything back."""
        self._vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loaded(self) -> Guest:
        if self.guest is None:
            raise BadInput("machine", "has no guest yet; call load() first")
        return self.guest

    def _device(self, request: Exit, output: bytearray) -> None:
        if isinstance(request, IoOut) and request.port == COM1:
            output += request.data
        # A port where nobody lives: writes vanish, and a read that is not answered finds ones.

    def _provenance(self, guest: Guest) -> Provenance:
        return Provenance(
            engine=self.engine,
            versions={"engine": probe(self.engine).version, "Python": platform.python_version()},
            host=host_name(),
            guest_sha256=guest.sha256,
        )


def host_name() -> str:
    """Return the host's facts that a reader needs to judge a recording: kernel and CPU kind."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


class _Scribe:
    """Turns what happens into steps of a lanes trace."""

    def __init__(self, guest: Guest, at: int, title: str, registers: tuple[str, ...]) -> None:
        self.recorder = Recorder("lanes", title, watch=("output",))
        self._names = registers
        self._at = at
        self._lines = {at + line.offset: k for k, line in enumerate(guest.listing)}
        self._guest = guest
        self._code = [
            [f"0x{at + line.offset:04x}", line.code.hex(" "), line.text] for line in guest.listing
        ]
        self._line = -1
        self._output = ""

    def note(
        self,
        where: str,
        event: str,
        text: str,
        registers: Registers,
        crossing: tuple[str, str] | None = None,
        left: Exit | None = None,
    ) -> None:
        """Add one step with the whole state."""
        state: dict[str, Any] = {
            "crossing": list(crossing) if crossing else None,
            "registers": [[name, registers.show(name)] for name in self._names],
            "code": self._code,
            "line": self._line,
            "exit": {"reason": left.reason, "detail": left.detail} if left else None,
            "output": self._output,
        }
        self.recorder.step(where, event, text, state)

    def enter(self, registers: Registers) -> None:
        """The kernel enters the guest."""
        self._line = -1
        text = f"The kernel enters the guest at {registers.show('IP')}."
        self.note(KERNEL, "entry", text, registers, (KERNEL, GUEST))

    def instruction(self, before: Registers, after: Registers, left: Exit | None) -> None:
        """One instruction of the guest, finished or not."""
        self.recorder.count("instructions")
        self._line = self._lines.get(before.rip, -1)
        if self._line >= 0:
            line = self._guest.listing[self._line]
            text = f"{line.text}: {line.comment}" if line.comment else line.text
            text += "" if text.endswith("?") else "."
        else:
            text = f"The guest executes the instruction at {before.show('IP')}."
        self.note(GUEST, "instruction", text, after)

    def leave(self, why: Exit, registers: Registers) -> None:
        """A VM exit that the kernel hands up to the VMM."""
        self.recorder.count("exits to user space")
        self.recorder.count(f"exits {why.reason}")
        text = {
            "IO": "VM exit: a port is no business of this kernel, there is no device behind it.",
            "HLT": "VM exit: the guest halts with interrupts off, and nobody here can wake it.",
        }.get(why.reason, f"VM exit: the kernel cannot finish this ({why.detail}).")
        self.note(KERNEL, "exit", text, registers, (GUEST, KERNEL), why)
        detail = f": {why.detail}" if why.detail else ""
        text = f"KVM_RUN returns, exit_reason = {why.reason}{detail}."
        self.note(VMM, "return", text, registers, (KERNEL, VMM), why)

    def device(self, request: Exit, output: bytearray, registers: Registers) -> None:
        """The VMM does what the device would have done, and calls KVM_RUN again."""
        self._output = output.decode("latin-1")
        if isinstance(request, IoOut) and request.port == COM1:
            self.recorder.count("bytes on the serial port", len(request.data))
            text = f"The VMM plays the serial port: it takes {show_bytes(request.data)}"
        else:
            text = "The VMM finds no device at this port"
        self.note(VMM, "device", f"{text} and calls KVM_RUN.", registers, (VMM, KERNEL), request)
