"""The lanes trace of a fall: a guest in ring 3 that falls into its own kernel, step by step.

`record_fall` runs the guest of `falls.py` one instruction at a time, from the one that drops to
ring 3 to the first exit, and notes in which ring each was executed. An instruction that faults
makes two steps: the attempt, and the fall. What happens within the fall is in `gate_trace.py`.
"""

from vmlib.cpu.engine import Vcpu
from vmlib.cpu.engines import open_vm
from vmlib.cpu.events import WITH_ERROR_CODE
from vmlib.cpu.exits import Exit, IoOut, show_bytes
from vmlib.cpu.falls import FALLS, RAM, USER_BASE, Fall, fall_guest, start_fall
from vmlib.cpu.guests import Guest
from vmlib.cpu.lanes_state import lanes_state, provenance
from vmlib.trace import Recorder, Trace

USER, GUEST, KERNEL, VMM = "guest user", "guest kernel", "host kernel", "host user"
_LIMIT = 100


def record_fall(
    name: str = "page",
    engine: str = "unicorn",
    guest: Guest | None = None,
    by_steps: bool = False,
) -> Trace:
    """Return the trace of a way to fall (a key of FALLS), up to what the VMM hears of it.

    `guest` takes the place of `fall_guest(name)`: the same guest, broken in another way.
    `by_steps` is that of `start_fall`.
    """
    made = fall_guest(name)
    fall, guest = FALLS[name], guest or made
    with open_vm(engine, RAM) as vm:
        vcpu = start_fall(vm, guest, by_steps)
        scribe = _Scribe(guest, _title(name, fall), vcpu)
        scribe.note(VMM, "run", "The VMM calls KVM_RUN.")
        text = "The kernel enters the guest, which is about to leave its ring 0 for its ring 3."
        scribe.note(KERNEL, "entry", text, crossing=(KERNEL, GUEST))
        while len(scribe.recorder) < _LIMIT:
            rip, ring = vcpu.registers().rip, scribe.ring()
            left = vcpu.step()
            if left is not None:
                scribe.leave(rip, ring, left)
                break
            scribe.instruction(rip, ring, fall)
        return scribe.recorder.finish(provenance(engine, guest))


def _title(name: str, fall: Fall) -> str:
    if name == "triple":
        return "A fault that nobody can take ends the guest, and now the VMM hears of it"
    if name == "double":
        return "A page fault that finds no stack becomes a double fault, and stays in the guest"
    first = fall.title[0].upper() + fall.title[1:]
    return f"{first} falls into the guest's own kernel, and nobody below the line hears of it"


class _Scribe:
    """Writes down what the guest does, with the registers that a fall changes."""

    def __init__(self, guest: Guest, title: str, vcpu: Vcpu) -> None:
        self.recorder = Recorder("lanes", title, watch=("output",))
        self._vcpu = vcpu
        self._shown = self._look()
        self._lines: dict[int, int] = {}
        self._listing = []
        self._code: list[list[str]] = []
        first, kernel = guest.line("drop").offset, guest.line("on_de").offset
        for line in guest.listing:
            if line.data or line.offset < first:
                continue
            user = first < line.offset < kernel
            address = (guest.at or 0) + line.offset + (USER_BASE if user else 0)
            self._lines[address] = len(self._code)
            self._listing.append(line)
            self._code.append([f"{address:#x}", "", line.text])  # room for the text: no bytes
        self._line = -1
        self._output = ""

    def ring(self) -> int:
        """The current privilege level, which is that of the stack segment."""
        return self._vcpu.system().ss.dpl

    def instruction(self, rip: int, ring: int, fall: Fall) -> None:
        """What a step did that did not leave the guest: an instruction, or a fall."""
        here = USER if ring == 3 else GUEST
        self.recorder.count("instructions")
        now = self.ring()
        self._line = self._lines.get(rip, -1)
        text = self._sentence(rip)
        if now < ring:
            tried = text if fall.vector in (None, 128) else f"{text} It fails."
            self.note(USER, "instruction", tried)
            self.recorder.count("falls into the guest's kernel")
            self._shown = self._look()
            self._line = self._lines.get(self._vcpu.registers().rip, -1)
            self.note(GUEST, "fall", _fell(fall), crossing=(USER, GUEST))
            return
        self._shown = self._look()
        self.note(here, "instruction", text, crossing=(GUEST, USER) if now > ring else None)

    def leave(self, rip: int, ring: int, why: Exit) -> None:
        """The instruction that leaves the guest, and the VMM's answer."""
        here = USER if ring == 3 else GUEST
        self._line = self._lines.get(rip, -1)
        self.recorder.count("instructions")
        self.recorder.count("exits to user space")
        self.recorder.count(f"exits {why.reason}")
        is_out = isinstance(why, IoOut)
        text = self._sentence(rip)
        # The registers stay as they were: what they are is settled by the next entry only.
        self.note(here, "instruction", text if is_out else f"{text} It fails.")
        text = "VM exit: a port is no business of this kernel, there is no device behind it."
        if not is_out:
            text = (
                "VM exit: a fault, no gate for it, no gate for the double fault either. The "
                "processor shuts down, and that is the host's affair."
            )
        self.note(KERNEL, "exit", text, (here, KERNEL), why)
        detail = f": {why.detail}" if is_out else ", and here the engine adds a diagnosis"
        said = f"KVM_RUN returns, exit_reason = {why.reason}{detail}."
        self.note(VMM, "return", said, (KERNEL, VMM), why)
        if isinstance(why, IoOut):
            self._output += why.data.decode("latin-1")
            self.recorder.count("bytes on the serial port", len(why.data))
            said = f"The VMM plays the serial port: it takes {show_bytes(why.data)}."
            self.note(VMM, "device", said, None, why)

    def note(
        self,
        where: str,
        event: str,
        text: str,
        crossing: tuple[str, str] | None = None,
        left: Exit | None = None,
    ) -> None:
        """Add one step with the whole state."""
        why = (left.reason, left.detail) if left else None
        state = lanes_state(crossing, self._shown, self._code, self._line, why, self._output)
        self.recorder.step(where, event, text, state)

    def _look(self) -> list[list[str]]:
        registers, system = self._vcpu.registers(), self._vcpu.system()
        pairs = [
            ("CPL", str(system.ss.dpl)),
            ("RIP", f"{registers.rip:#x}"),
            ("RSP", f"{registers.rsp:#x}"),
            ("CS", f"{system.cs.selector:#x}"),
            ("SS", f"{system.ss.selector:#x}"),
            ("AL", f"{registers.rax & 0xFF:#04x}"),
            ("CR2", f"{system.cr2:#x}"),
        ]
        return [list(pair) for pair in pairs]

    def _sentence(self, rip: int) -> str:
        index = self._lines.get(rip, -1)
        if index < 0:
            return f"The guest executes the instruction at {rip:#x}."
        line = self._listing[index]
        text = f"{line.text}: {line.comment.rstrip(':')}" if line.comment else line.text
        return text if text.endswith(("?", ".")) else f"{text}."


def _fell(fall: Fall) -> str:
    if fall.vector is None:
        return (
            "No table and no stack are needed: RIP comes from the register LSTAR, the old one goes "
            "to RCX, the flags to R11. RSP is still the caller's. The VMM is not asked."
        )
    if fall.vector == 8:
        return (
            "The frame finds no stack where RSP0 points, a second page fault: double fault. Gate 8 "
            "of the guest's own table names a spare stack, IST1, and that one is good."
        )
    words = "six" if fall.vector in WITH_ERROR_CODE else "five"
    return (
        f"The processor reads gate {fall.vector} of the guest's own table, takes the stack from "
        f"the TSS, pushes {words} words there and goes on in ring 0. Nobody outside is asked."
    )
