"""The lanes trace of a machine: who runs, who stops it, and who finishes what it wanted.

Four lanes: the guest's user and kernel mode, the host's kernel, the VMM in the host's user mode.
A machine tells the scribe what happens, one instruction at a time, and the scribe writes it down
in sentences. Left out: what the host's kernel does without telling; only a tracer sees that.
"""

from collections.abc import Mapping
from typing import Any

from vmlib.cpu import (
    BudgetSpent,
    Debug,
    EngineFailure,
    Exit,
    Guest,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    Registers,
    Shutdown,
)
from vmlib.cpu.exits import show_bytes
from vmlib.trace import Recorder

GUEST_USER, GUEST, KERNEL, VMM = "guest user", "guest kernel", "host kernel", "host user"

BETWEEN_INSTRUCTIONS = (Shutdown, BudgetSpent, Kicked, EngineFailure, Debug, InterruptWindow)
"""Exits that no instruction of the guest makes, or none that it finishes."""


class Scribe:
    """Turns what happens into steps of a lanes trace."""

    def __init__(self, guest: Guest, at: int, title: str, registers: tuple[str, ...]) -> None:
        self.recorder = Recorder("lanes", title, watch=("output",))
        self._names = registers
        self._listing = [line for line in guest.listing if not line.data]
        self._lines = {at + line.offset: k for k, line in enumerate(self._listing)}
        self._code = [
            [f"0x{at + line.offset:04x}", line.code.hex(" "), line.text] for line in self._listing
        ]
        self._line = -1
        self._guest_lane = GUEST
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

    def enter(self, registers: Registers, ring: int) -> None:
        """The kernel enters the guest, in this ring."""
        self._line = -1
        self._guest_lane = GUEST_USER if ring == 3 else GUEST
        text = f"The kernel enters the guest at {registers.rip:#06x}."
        self.note(KERNEL, "entry", text, registers, (KERNEL, self._guest_lane))

    def instruction(self, before: Registers, after: Registers, ring: int) -> None:
        """One instruction of the guest, finished or not, begun in this ring."""
        self.recorder.count("instructions")
        self._guest_lane = GUEST_USER if ring == 3 else GUEST
        self._line = self._lines.get(before.rip, -1)
        if self._line >= 0:
            line = self._listing[self._line]
            text = f"{line.text}: {line.comment}" if line.comment else line.text
            text += "" if text.endswith(("?", ".")) else "."
        else:
            text = f"The guest executes the instruction at {before.rip:#06x}."
        self.note(self._guest_lane, "instruction", text, after)

    def handled(self, what: Mapping[str, int], registers: Registers, ring: int) -> None:
        """Something was finished without the VMM: by the kernel, or in its place."""
        for kind, count in what.items():
            self.recorder.count("finished in the kernel", count)
            text = f"VM exit: the kernel finishes this itself ({kind}). The VMM never hears of it."
            self.note(KERNEL, "handled", text, registers, (self._guest_lane, KERNEL))
        self.enter(registers, ring)

    def leave(self, why: Exit, registers: Registers) -> None:
        """A VM exit that the kernel hands up to the VMM."""
        self.recorder.count("exits to user space")
        self.recorder.count(f"exits {why.reason}")
        text = {
            "IO": "VM exit: a port is no business of this kernel, there is no device behind it.",
            "HLT": "VM exit: the guest halts with interrupts off, and nobody here can wake it.",
        }.get(why.reason, f"VM exit: the kernel cannot finish this ({why.detail or why.reason}).")
        if why.reason == "HLT" and registers.rflags & 0x200:
            text = "VM exit: the guest waits for an interrupt, and nobody here can send it one."
        self.note(KERNEL, "exit", text, registers, (self._guest_lane, KERNEL), why)
        detail = f": {why.detail}" if why.detail else ""
        text = f"KVM_RUN returns, exit_reason = {why.reason}{detail}."
        self.note(VMM, "return", text, registers, (KERNEL, VMM), why)

    def device(
        self, request: Exit, device: str, answer: bytes | None, output: bytes, registers: Registers
    ) -> None:
        """The VMM does what the device would have done, and calls KVM_RUN again.

        `device` is its name, or empty where there is none; `output` all that was sent so far.
        """
        sent = len(output) - len(self._output)
        self._output = output.decode("latin-1")
        if sent:
            self.recorder.count("bytes on the serial port", sent)
        if not isinstance(request, IoOut | IoIn | Mmio):
            text = "The VMM has seen it"
        elif not device:
            text = "The VMM finds no device at this " + (
                "address" if isinstance(request, Mmio) else "port"
            )
        elif answer is not None:
            text = f"The VMM plays {device}: it answers {show_bytes(answer)}"
        else:
            data = getattr(request, "data", b"")
            text = f"The VMM plays {device}: it takes {show_bytes(data)}"
        self.note(VMM, "device", f"{text} and calls KVM_RUN.", registers, (VMM, KERNEL), request)
