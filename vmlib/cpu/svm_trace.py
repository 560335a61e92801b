"""The lanes trace of VMRUN: the hypervisor's own instructions, the guest's, and the two crossings.

Three parties take turns on one processor. The stub that executes VMRUN runs in the host's kernel;
so does the hypervisor that reads EXITCODE and answers, here a Python function. The lane of the
host's user mode stays empty: AMD-V knows of no VMM up there, KVM does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vmlib.cpu.guests import Guest, Line
from vmlib.cpu.lanes_state import lanes_state, provenance
from vmlib.cpu.state import Registers
from vmlib.cpu.vmcb import SvmExit, Vmcb
from vmlib.given import check_one
from vmlib.trace import Recorder, Trace

if TYPE_CHECKING:
    from vmlib.cpu.unicorn.svm import SvmHost

GUEST_USER, GUEST, KERNEL = "guest user", "guest kernel", "host kernel"
_HOST, _GUEST = "host", "guest"

Answer = Callable[[SvmExit], str]
"""Does what the hypervisor does about an exit, and says it in a sentence; "" ends the run."""


def record_vmrun(
    host: "SvmHost",
    vmcb: Vmcb,
    guest: Guest,
    answer: Answer,
    *,
    at: int = 0,
    title: str = "VMRUN enters the guest, an intercept brings the host back",
    registers: tuple[str, ...] = ("RAX", "RBX", "RCX", "RSP", "RIP"),
    limit: int = 400,
) -> Trace:
    """Run a guest, loaded at linear address `at`, until `answer` returns "", and record all of it.

    The recording ends after `limit` steps if the guest does not.
    """
    check_one(vmcb, Vmcb, "vmcb")
    check_one(guest, Guest, "guest")
    check_one(answer, Answer, "answer")
    check_one(at, int, "at")
    scribe = _Scribe(host, guest, at, title, registers)
    while len(scribe.recorder) < limit:
        ended = host.vmrun(vmcb.at, watch=scribe.watch)
        said = answer(ended)
        scribe.note(KERNEL, "handled" if said else "end", said or "The hypervisor ends the run.")
        if not said:
            break
    return scribe.recorder.finish(provenance("unicorn", guest, "emulated AMD-V"))


class _Scribe:
    """Turns instructions and crossings into steps."""

    def __init__(
        self, host: "SvmHost", guest: Guest, at: int, title: str, names: tuple[str, ...]
    ) -> None:
        self.recorder = Recorder("lanes", title)
        self._host = host
        self._names = names
        self._stub = _by_address(host.stub, host.stub.at or 0)
        self._guest = _by_address(guest, at)
        self._code = [
            [f"{who} {address:#06x}", line.code.hex(" "), line.text]
            for who, lines in ((_HOST, self._stub), (_GUEST, self._guest))
            for address, line in lines.items()
        ]
        self._line = -1
        self._before = Registers()
        self._lane = KERNEL

    def watch(self, what: str, left: SvmExit | None) -> None:
        """Hear of an instruction or a #VMEXIT; see `vmlib.cpu.unicorn.svm.Watch`."""
        host = self._host
        if what == "before":
            self._before = host.now()
            self._lane = self._lane_now()
        elif what == "after":
            self._executed()
        elif left is not None:
            self._line = -1
            self.recorder.count("exits")
            self.recorder.count(f"exits {left.name}")
            told = (
                f"#VMEXIT: the guest goes into the VMCB, EXITCODE is {left.code:#x} ({left.name})"
            )
            self.note(KERNEL, "exit", f"{told}, the host goes on.", (self._lane, KERNEL), left)

    def note(
        self,
        where: str,
        event: str,
        text: str,
        crossing: tuple[str, str] | None = None,
        left: SvmExit | None = None,
    ) -> None:
        """Add one step with the whole state."""
        now = self._host.now()
        shown = [[name, now.show(name)] for name in self._names]
        info = f"EXITINFO1 {left.info1:#x}, EXITINFO2 {left.info2:#x}" if left else ""
        why = (left.name, info) if left else None
        state = lanes_state(crossing, shown, self._code, self._line, why)
        self.recorder.step(where, event, text, state)

    def _executed(self) -> None:
        """One instruction: executed, or begun and intercepted."""
        in_host = self._lane == KERNEL
        lines = self._stub if in_host else self._guest
        numbers = {address: i for i, address in enumerate(lines)}
        shift = 0 if in_host else len(self._stub)
        self._line = numbers.get(self._before.rip, -1 - shift) + shift
        line = lines.get(self._before.rip)
        text = f"{line.text}: {line.comment}." if line and line.comment else "."
        if line and not line.comment:
            text = f"{line.text}."
        elif line is None:
            text = f"The instruction at {self._before.rip:#06x}."
        if in_host and self._host.in_guest:
            self.note(KERNEL, "entry", text, (KERNEL, self._lane_now()))
            return
        if not in_host:
            self.recorder.count("instructions")
        self.note(self._lane, "run" if in_host else "instruction", text)

    def _lane_now(self) -> str:
        if not self._host.in_guest:
            return KERNEL
        return GUEST_USER if self._host.system().ss.dpl == 3 else GUEST


def _by_address(guest: Guest, at: int) -> dict[int, Line]:
    return {at + line.offset: line for line in guest.listing if not line.data}
