"""Inside a fall: what the processor reads and writes between an instruction and its handler.

`record_delivery` runs `gates.raise_event`, the same code that the emulator's vCPU runs, on memory
that notes each access; the accesses are the steps. The memory they touch stands where a lanes
trace has the guest's code: the gate, the handler's segment, the stack in the TSS, the frame.
One fault from ring 3 in long mode, delivered at the first attempt (Intel SDM vol. 3A, 6.14).
"""

import struct

from vmlib.cpu import events, gates
from vmlib.cpu.engine import Vcpu
from vmlib.cpu.engines import open_vm
from vmlib.cpu.fall_trace import GUEST, USER
from vmlib.cpu.falls import FALLS, RAM, USER_BASE, fall_guest, start_fall, user_address
from vmlib.cpu.guests import Guest
from vmlib.cpu.lanes_state import lanes_state, provenance
from vmlib.cpu.linear import LinearMemory
from vmlib.errors import BadInput
from vmlib.memory import GuestRam
from vmlib.trace import Recorder, Trace

RECORDABLE = ("page", "divide", "undefined", "protection", "int")
"""The ways to fall that one gate answers at the first attempt."""

_FRAME = ("SS", "RSP", "RFLAGS", "CS", "RIP", "error code")
_TITLE = "A fall is three reads and a few pushes, and every byte of it is the guest's own"


def record_delivery(name: str = "page", engine: str = "unicorn") -> Trace:
    """Return how a fall (one of RECORDABLE) is delivered, as a lanes trace; one access a step."""
    if name not in RECORDABLE:
        raise BadInput("fall", f"{name!r} is none of {', '.join(RECORDABLE)}")
    fall, guest = FALLS[name], fall_guest(name)
    vector = fall.vector
    assert vector is not None
    with open_vm(engine, RAM) as vm:
        vcpu = start_fall(vm, guest)
        cause = _run_to_cause(vcpu, guest, name)
        cpu = events.EventCpu.of(vcpu.registers(), vcpu.system())
        event = _event(name, vector)
        after = cause + (2 if event.kind == "software" else 0)
        cpu.rip = after
        if vector == events.PF:
            cpu.cr2 = vcpu.registers().rsi
        memory = _Witness(vm.ram, cpu)
        scribe = _Scribe(cpu, guest, event)
        scribe.before(fall.cause)
        failed = gates.raise_event(cpu, memory, event)
        assert failed is None, failed
        scribe.accesses(memory)
        scribe.entered(cpu)
    return scribe.recorder.finish(provenance(engine, guest))


def _run_to_cause(vcpu: Vcpu, guest: Guest, name: str) -> int:
    """Step to the instruction that falls; return its address."""
    start = user_address(guest, FALLS[name].start)
    for line in guest.listing:
        address = (guest.at or 0) + line.offset + USER_BASE
        if address >= start and line.text == FALLS[name].cause:
            while vcpu.registers().rip != address:
                vcpu.step()
            return address
    raise BadInput("fall", f"{guest.name} has no {FALLS[name].cause!r}")


def _event(name: str, vector: int) -> events.Event:
    if name == "int":
        return events.Event(vector, None, "software")
    code = {events.PF: 4, events.GP: 0}.get(vector)  # a read by ring 3, not present
    return events.Event(vector, code)


class _Witness(LinearMemory):
    """Guest memory that remembers which linear addresses were used, in which order."""

    def __init__(self, ram: GuestRam, cpu: events.EventCpu) -> None:
        super().__init__(ram, cpu)
        self.log: list[tuple[str, int, int, bytes]] = []

    def read(self, linear: int, size: int) -> bytes:
        """Read, and remember it with the guest-physical address."""
        data = super().read(linear, size)
        self.log.append(("read", linear, self.gpa(linear), data))
        return data

    def write(self, linear: int, data: bytes) -> None:
        """Write, and remember it with the guest-physical address."""
        super().write(linear, data)
        self.log.append(("write", linear, self.gpa(linear, "write"), data))


class _Scribe:
    """Turns the accesses of one delivery into steps."""

    def __init__(self, cpu: events.EventCpu, guest: Guest, event: events.Event) -> None:
        self.recorder = Recorder("lanes", _TITLE)
        self._cpu, self._guest, self._event = cpu, guest, event
        self._rows: list[list[str]] = []
        self._shown = _registers(cpu)
        self._line = -1
        self._was = cpu.cpl

    def before(self, cause: str) -> None:
        """The instruction that falls, and what is known of it."""
        event = self._event
        name = events.NAMES.get(event.vector, f"vector {event.vector}")
        if event.vector == events.PF:
            text = (
                f"{cause} has failed: {name}. CR2 holds the address, {self._cpu.cr2:#x}; the error "
                f"code is {event.error_code}: a read, by ring 3, of a page that is not present."
            )
        elif event.kind == "software":
            text = f"{cause} asks for {name}. RIP is already behind it."
        else:
            text = f"{cause} has failed: {name}. RIP stays at the instruction."
        self._note(USER, "instruction", text)

    def accesses(self, memory: _Witness) -> None:
        """One step a read; one a word of the frame, from the highest address down."""
        for kind, linear, gpa, data in memory.log:
            if kind == "read" and len(data) == 16:
                self._gate(linear, data)
            elif kind == "read" and linear < self._cpu.tr.base + 0x68 <= linear + 0x68:
                self._tss(linear, data)
            elif kind == "read":
                self._descriptor(linear, data)
            elif len(data) > 8:
                self._frame(linear, gpa, data)

    def entered(self, cpu: events.EventCpu) -> None:
        """The registers after it all."""
        self._shown = _registers(cpu)
        text = (
            f"Ring 0, at {cpu.rip:#x}, which the gate named. No exit: all that was read and "
            "written is the guest's own memory. IRETQ at the end of the handler takes back five "
            "of these words and undoes it all."
        )
        self._note(GUEST, "entered", text)

    def _gate(self, linear: int, data: bytes) -> None:
        low, selector, _, kind, middle, high = struct.unpack("<HHBBHI4x", data)
        fields = (
            (0, 2, "offset 0-15"),
            (2, 2, "selector"),
            (4, 1, "IST"),
            (5, 1, "P, DPL, type"),
            (6, 2, "offset 16-31"),
            (8, 4, "offset 32-63"),
        )
        for at, size, what in fields:
            self._rows.append(_row(linear + at, data[at : at + size], what))
        handler = low | middle << 16 | high << 32
        self._line = 0
        self._note(
            USER,
            "gate",
            f"IDTR holds {self._cpu.idt.base:#x}; gate {self._event.vector} lies 16 × "
            f"{self._event.vector} bytes further on, at {linear:#x}. Its four pieces say: handler "
            f"at {handler:#x}, in segment {selector:#x}.",
        )
        self._line = 3
        asked = (
            "The instruction INT may pass because DPL is 3."
            if self._event.kind == "software"
            else "DPL does not matter here, only to INT."
        )
        what = "an interrupt gate, which clears IF" if not kind & 1 else "a trap gate"
        self._note(
            USER, "check", f"Rights {kind:#x}: present, DPL {kind >> 5 & 3}, {what}. {asked}"
        )

    def _descriptor(self, linear: int, data: bytes) -> None:
        self._line = len(self._rows)
        self._rows.append(_row(linear, data, "GDT entry"))
        self._note(
            USER,
            "descriptor",
            "The selector leads to a descriptor in the GDT: 64-bit code for ring 0. We are in ring "
            f"{self._was}: this goes inward, so it needs another stack.",
        )

    def _tss(self, linear: int, data: bytes) -> None:
        self._line = len(self._rows)
        stack = int.from_bytes(data, "little")
        self._rows.append(_row(linear, data, "TSS, RSP0"))
        self._note(
            USER,
            "stack",
            "IST is 0, so the stack is the one for ring 0: RSP0 in the task-state segment, "
            f"{stack:#x}. A stack that ring 3 could choose would be no stack to trust.",
        )

    def _frame(self, linear: int, gpa: int, data: bytes) -> None:
        names = _FRAME if self._event.error_code is not None else _FRAME[:-1]
        count = len(data) // 8
        first = len(self._rows)
        for k in range(count):
            address = linear + 8 * (count - 1 - k)
            self._rows.append([f"{address:#x}", names[k], "…"])
        for k, name in enumerate(names):
            at = 8 * (count - 1 - k)
            word = data[at : at + 8]
            self._rows = [list(row) for row in self._rows]
            self._rows[first + k] = _row(linear + at, word, name)
            self._line = first + k
            value = int.from_bytes(word, "little")
            text = f"Push {name}: {value:#x}."
            if k == 0:
                text += (
                    f" The stack's address is virtual: {linear + at:#x} lies at {gpa + at:#x} in "
                    "the guest's RAM, by the guest's own page tables."
                )
            if name == "error code":
                text += " Some vectors have one and some have none; the handler has to know."
            self._note(GUEST, "push", text, crossing=None if k else (USER, GUEST))

    def _note(
        self, where: str, event: str, text: str, crossing: tuple[str, str] | None = None
    ) -> None:
        state = lanes_state(crossing, self._shown, list(self._rows), self._line)
        self.recorder.step(where, event, text, state)


def _row(address: int, data: bytes, what: str) -> list[str]:
    return [f"{address:#x}", what, f"{int.from_bytes(data, 'little'):#x}"]


def _registers(cpu: events.EventCpu) -> list[list[str]]:
    pairs = (
        ("CPL", str(cpu.cpl)),
        ("RIP", f"{cpu.rip:#x}"),
        ("RSP", f"{cpu.rsp:#x}"),
        ("CS", f"{cpu.cs.selector:#x}"),
        ("SS", f"{cpu.ss.selector:#x}"),
        ("IF", str(cpu.rflags >> 9 & 1)),
        ("CR2", f"{cpu.cr2:#x}"),
    )
    return [list(pair) for pair in pairs]
