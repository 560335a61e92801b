"""The lanes trace of the two loops: which exits reach the VMM, and which the kernel finishes.

`record_loop` runs the guest of `vmlib.cpu.loop` on the emulator, one instruction at a time. Here
the emulator stands in the kernel's place: what KVM finishes by itself is finished below the VMM's
loop, by the interrupt controller and the doorbell inside, or by the few lines of `_finish`. That
KVM does finish these, and only these, is held against the kernel's own account by a test.

An instruction that leaves the guest changes no register until it is finished: by the kernel on
the spot, or on the next entry (Linux `Documentation/virt/kvm/api.rst`, section 5).

Left out: exits that follow the clock (the host's own interrupts) and the first touch of each page
of RAM.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from vmlib.cpu import (
    Budget,
    Cpuid,
    Debug,
    Exit,
    Guest,
    Halt,
    Hypercall,
    IoIn,
    IoOut,
    Mmio,
    MsrRead,
    open_vm,
)
from vmlib.cpu.exits import show_bytes
from vmlib.cpu.lanes_state import lanes_state, provenance
from vmlib.cpu.loop import (
    DOORBELL,
    ENDING,
    LINE,
    RAM,
    SCREEN,
    SERIAL,
    STATUS,
    TRIES,
    VECTOR,
    Loop,
    loop_guest,
)
from vmlib.devices import PicPair, pic
from vmlib.given import names_bad_input
from vmlib.trace import Recorder, Trace

__all__ = ["TRIES", "opening", "record_loop"]

GUEST, KERNEL, VMM = "guest kernel", "host kernel", "host user"
SHOWN = ("EAX", "EBX", "ECX", "EDX", "IP")
TITLE = "An exit goes down as far as somebody can finish it"
READY, BLANK = b"\x60", b"\x20\x07"
"""What the VMM answers: a serial port that is ready to send, a blank character cell."""
_BUDGET = Budget(seconds=5)
_LIMIT = 100
_SIGNATURE = (0x40000001).to_bytes(4, "little") + b"KVMKVMKVM\0\0\0"  # x86/cpuid.rst
_NO_SUCH_CALL = (-1000 & 0xFFFFFFFF).to_bytes(8, "little")  # -KVM_ENOSYS, linux/kvm_para.h
_PIC_PORTS = (pic.PRIMARY, pic.PRIMARY + 1)
_PLAYS = {
    SERIAL: "the serial port",
    STATUS: "the serial port",
    SCREEN: "the text screen",
    DOORBELL: "the virtio device",
} | dict.fromkeys(_PIC_PORTS, "the interrupt controller")


@names_bad_input
def record_loop(
    tries: str | Sequence[str] = "out", irqchip: bool = False, ioeventfd: bool = False
) -> Trace:
    """Return the trace of the guest that tries this (keys of TRIES), from its firmware's end on.

    With `irqchip` the interrupt controller is below the VMM's loop, with `ioeventfd` a doorbell.
    """
    with ExitStack() as stack:
        loop = loop_guest(tries) if isinstance(tries, str) else loop_guest(*tries)
        return _Recording(stack, loop, irqchip, ioeventfd).run()


@names_bad_input
def opening(trace: Trace, tries: str = "out") -> int:
    """Return the step at which the guest tries what it is there to try, and nobody has acted."""
    tried = f"{loop_guest(tries).tried:#06x}"
    return next(
        step.i
        for step in trace.steps
        if step.event == "instruction" and step.state["code"][step.state["line"]][0] == tried
    )


class _Recording:
    """One run: the VMM above, the emulator below, and what they did so far."""

    def __init__(self, stack: ExitStack, loop: Loop, irqchip: bool, ioeventfd: bool) -> None:
        self.recorder = Recorder("lanes", TITLE, watch=("output",))
        self._loop = loop
        self._guest: Guest = loop.guest
        self._pic = PicPair()
        self._inside: list[str] = []
        """What the interrupt controller inside has finished since the last look."""
        self._vm = stack.enter_context(open_vm("unicorn", RAM))
        if irqchip:
            self._vm.create_irqchip(self._pic)
            for base in (pic.PRIMARY, pic.SECONDARY):
                self._vm.handle_ports(base, pic.COUNT, self._pic.read, self._pic_inside)
        self._bell = self._vm.doorbell(DOORBELL, 2) if ioeventfd else None
        self._vcpu = self._vm.vcpu()
        self._vcpu.set_budget(_BUDGET)
        self._irqchip = irqchip
        at = self._guest.at or 0
        self._listing = {
            at + line.offset: line
            for line in self._guest.listing
            if at + line.offset >= loop.handler and not line.data
        }
        self._code = [
            [f"{address:#06x}", line.code.hex(" "), line.text]
            for address, line in self._listing.items()
        ]
        self._lines = {address: k for k, address in enumerate(self._listing)}
        self._line = -1
        self._output = ""
        self._rang = 0
        self._interrupted = False
        """An interrupt goes in with the next entry."""

    def run(self) -> Trace:
        """Run the firmware unseen, then the rest step by step."""
        self._run_firmware()
        self._shown = self._look()
        self._note(VMM, "run", "The VMM calls KVM_RUN.")
        self._enter()
        while len(self.recorder) < _LIMIT and self._step():
            pass
        return self.recorder.finish(provenance("unicorn", self._guest))

    def _run_firmware(self) -> None:
        vcpu = self._vcpu
        self._vm.ram.write(self._guest.at or 0, self._guest.code)
        vcpu.start_real_mode(self._guest.at or 0)
        vcpu.breakpoints([self._loop.start])
        while not isinstance(left := vcpu.run(), Debug):
            assert isinstance(left, IoOut), left
            self._pic.write(left.port, left.size, left.data[0])
        vcpu.breakpoints([])
        vcpu.intercept("cpuid", "msr", "hypercall")
        self._inside.clear()

    def _step(self) -> bool:
        """One instruction of the guest and all that follows from it; False at the end."""
        vcpu = self._vcpu
        at = self._loop.handler if self._interrupted else vcpu.registers().rip
        self._interrupted = False
        line = self._listing[at]
        self._line = self._lines[at]
        left = vcpu.step()
        finished = "" if left is None else self._finish(left)
        if left is not None and not finished:
            return self._leave(line.text, line.comment, left)
        finished = finished or self._finished_inside(line.text)
        if not finished:
            self._shown = self._look()
        self.recorder.count("instructions")
        self._note(GUEST, "instruction", _sentence(line.text, line.comment))
        if finished:
            self.recorder.count("finished in the kernel")
            self._shown = self._look()
            text = f"VM exit: {finished}"
            self._note(KERNEL, "handled", text, (GUEST, KERNEL))
            if line.text == "hlt":
                self._vm.set_irq(LINE, True)
                text = f"Another thread of the VMM raises line {LINE} (KVM_IRQ_LINE)."
                self._note(VMM, "device", text, (VMM, KERNEL))
                self._interrupted = True
            self._enter()
            if self._rang:
                text = (
                    f"Another thread of the VMM wakes up and reads the counter: {self._rang}. The "
                    "vCPU has not waited for it."
                )
                self._note(VMM, "device", text)
                self._rang = 0
        return True

    # --- in the kernel's place ------------------------------------------------------------------

    def _finish(self, left: Exit) -> str:
        """Finish what KVM finishes by itself, and say how; an empty string if it cannot."""
        match left:
            case Cpuid():
                self._vcpu.complete(_SIGNATURE)
                return "the kernel answers, from the table it was given (KVM_SET_CPUID2)."
            case MsrRead():
                self._vcpu.complete(bytes(8))
                return "the kernel keeps this register, and answers 0."
            case Hypercall(number=number):
                self._vcpu.complete(_NO_SUCH_CALL)
                return f"the kernel knows no call {number:#x}, and answers -KVM_ENOSYS, -1000."
        return ""

    def _finished_inside(self, text: str) -> str:
        """Look what was finished inside `step`, without an exit."""
        if self._inside:
            port = self._inside.pop()
            return f"port {port} leads to the interrupt controller in here. It takes the byte."
        if self._bell is not None and (rang := self._bell.take()):
            self._rang = rang
            return f"a doorbell (ioeventfd) hangs at port {DOORBELL:#x}; its counter goes up by 1."
        if text == "hlt" and self._irqchip:
            return (
                "here is an interrupt controller that can wake this vCPU. Its thread sleeps, "
                "inside KVM_RUN."
            )
        return ""

    def _pic_inside(self, port: int, size: int, value: int) -> None:
        self._inside.append(f"{port:#x}")
        self._pic.write(port, size, value)

    # --- the VMM's loop -------------------------------------------------------------------------

    def _leave(self, text: str, comment: str, left: Exit) -> bool:
        """An exit that reaches the VMM, and what the VMM does about it."""
        count = self.recorder.count
        count("instructions")
        self._note(GUEST, "instruction", _sentence(text, comment))
        count("exits to user space")
        count(f"exits {left.reason}")
        why = {
            "IO": "a port is no business of this kernel, there is no device behind it.",
            "MMIO": "there is no RAM at this address, and no device of the kernel's.",
            "HLT": "the guest waits for an interrupt, and nobody here can send it one.",
        }[left.reason]
        self._note(KERNEL, "exit", f"VM exit: {why}", (GUEST, KERNEL), left)
        detail = f": {left.detail}" if left.detail else ""
        text = f"KVM_RUN returns, exit_reason = {left.reason}{detail}."
        self._note(VMM, "return", text, (KERNEL, VMM), left)
        if isinstance(left, IoOut) and left.port == ENDING:
            self._note(VMM, "end", "The VMM takes this as the end, and calls KVM_RUN no more.")
            return False
        self._note(VMM, "device", f"{self._serve(left)} and calls KVM_RUN.", (VMM, KERNEL), left)
        self._enter()
        return True

    def _serve(self, left: Exit) -> str:
        match left:
            case IoOut(port=port, data=data):
                if port == SERIAL:
                    self._output += data.decode("latin-1")
                    self.recorder.count("bytes on the serial port", len(data))
                elif port in _PIC_PORTS:
                    self._pic.write(port, 1, data[0])
                return f"The VMM plays {_PLAYS[port]}: it takes {show_bytes(data)}"
            case Mmio(gpa=gpa, data=bytes() as data):
                return f"The VMM plays {_PLAYS[gpa]}: it takes {show_bytes(data)}"
            case IoIn(port=port):
                self._vcpu.complete(READY)
                return f"The VMM plays {_PLAYS[port]}: it answers {show_bytes(READY)}"
            case Mmio(gpa=gpa):
                self._vcpu.complete(BLANK)
                return f"The VMM plays {_PLAYS[gpa]}: it answers {show_bytes(BLANK)}"
            case Halt():
                self._pic.set_irq(LINE, True)
                vector = self._pic.acknowledge()
                self._vcpu.inject(vector)
                self._interrupted = True
                return f"The VMM has an interrupt for it by now, hands down vector {vector:#x}"
        raise AssertionError(left)

    def _enter(self) -> None:
        """The kernel enters the guest; what was pending is finished by that."""
        self._shown = self._look()
        self._line = -1
        text = f"The kernel enters the guest at {dict(self._shown)['IP']}"
        text += f", with vector {VECTOR:#x}: the handler comes first." if self._interrupted else "."
        self._note(KERNEL, "entry", text, (KERNEL, GUEST))

    # --- writing down ---------------------------------------------------------------------------

    def _look(self) -> list[list[str]]:
        registers = self._vcpu.registers()
        return [[name, registers.show(name)] for name in SHOWN]

    def _note(
        self,
        where: str,
        event: str,
        text: str,
        crossing: tuple[str, str] | None = None,
        left: Exit | None = None,
    ) -> None:
        why = (left.reason, left.detail) if left else None
        state = lanes_state(crossing, self._shown, self._code, self._line, why, self._output)
        self.recorder.step(where, event, text, state)


def _sentence(text: str, comment: str) -> str:
    said = f"{text}: {comment.rstrip(':')}"
    return said if said.endswith("?") else f"{said}."
