"""Falls: one way from ring 3 into ring 0 at a time, on a guest made for it.

The guest `fall` sets up long mode, two stacks, a task-state segment and a table of interrupts,
drops to ring 3, and there does one thing that ring 0 has to answer. Which one, `fall_guest` says;
two of the eight are broken on purpose, so that the answer is a double or a triple fault.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from vmlib.cpu.budget import Budget
from vmlib.cpu.engine import Vcpu, Vm
from vmlib.cpu.exits import Exit
from vmlib.cpu.guests import Guest, Line, load_guest
from vmlib.errors import BadInput, GuestError
from vmlib.given import names_bad_input

RAM = "64K"
USER_BASE = 0x400000
"""Where ring 3 sees what ring 0 sees at 0."""

_UNMAPPED_STACK = 0xA0C000


@dataclass(frozen=True, slots=True)
class Fall:
    """One way to fall: what it is, the label of its first instruction in ring 3, the one that
    falls, the vector that is delivered in the end (None if none is), and the letter that the guest
    prints, if it prints one."""

    title: str
    start: str
    cause: str
    vector: int | None
    answer: str


FALLS: Mapping[str, Fall] = MappingProxyType(
    {
        "page": Fall("a page fault", "page_fault", "mov al, [rsi]", 14, "F"),
        "divide": Fall("a division by zero", "divide", "div ecx", 0, "0"),
        "undefined": Fall("an undefined instruction", "undefined", "ud2", 6, "U"),
        "protection": Fall("a privileged instruction", "privileged", "hlt", 13, "G"),
        "int": Fall("INT 0x80", "service", "int 0x80", 128, "S"),
        "syscall": Fall("SYSCALL", "fast", "syscall", None, "C"),
        "double": Fall("a page fault without a stack", "page_fault", "mov al, [rsi]", 8, "D"),
        "triple": Fall("a page fault without an IDT", "page_fault", "mov al, [rsi]", None, ""),
    }
)
"""The eight ways, by name."""


@names_bad_input
def fall_guest(name: str = "page") -> Guest:
    """Return the guest that falls in this way (a key of FALLS)."""
    if name not in FALLS:
        raise BadInput("fall", f"{name!r} is unknown; known are {', '.join(FALLS)}")
    guest = load_guest("fall")
    start = FALLS[name].start
    entry = (user_address(guest, start)).to_bytes(4, "little")
    patches: dict[str, tuple[bytes, str]] = {
        "push 0x400000 + USER": (entry, f"push 0x400000 + {start}")
    }
    if name == "double":
        stack = _UNMAPPED_STACK.to_bytes(8, "little")
        patches["dq kernel_stack"] = (stack, f"dq {_UNMAPPED_STACK:#x}")
    if name == "triple":
        patches["dw idtr - idt - 1"] = (bytes(2), "dw 0")
    lines = tuple(_patched(line, patches) for line in guest.listing)
    return replace(guest, code=b"".join(line.code for line in lines), listing=lines)


@names_bad_input
def user_address(guest: Guest, label: str) -> int:
    """Return where ring 3 finds the instruction with a label."""
    return USER_BASE + (guest.at or 0) + guest.line(label).offset


@names_bad_input
def kernel_address(guest: Guest, label: str) -> int:
    """Return where ring 0 finds the line with a label."""
    return (guest.at or 0) + guest.line(label).offset


@names_bad_input
def start_fall(vm: Vm, guest: Guest, by_steps: bool = False) -> Vcpu:
    """Load the guest, and run it to the instruction that drops to ring 3, which comes next.

    From there it has two seconds, until `set_budget` says otherwise. `by_steps` gets there by
    single steps, for a KVM on which breakpoints do not break.
    """
    if guest.at is None:
        raise BadInput("guest", f"{guest.name} does not say where it runs")
    vm.ram.write(guest.at, guest.code)
    vcpu = vm.vcpu()
    vcpu.start_real_mode(guest.at)
    there = kernel_address(guest, "drop")
    if by_steps:
        ended: Exit | None = None
        while ended is None and vcpu.registers().rip != there:
            ended = vcpu.step()
    else:
        vcpu.breakpoints([there])
        ended = vcpu.run()
        vcpu.breakpoints([])
    if vcpu.registers().rip != there:
        why = f"{ended.reason} {ended.detail}" if ended else "nothing"
        raise GuestError(f"{guest.name} did not come to its drop to ring 3, but to: {why}")
    vcpu.set_budget(Budget(seconds=2))
    return vcpu


def _patched(line: Line, patches: Mapping[str, tuple[bytes, str]]) -> Line:
    if line.text not in patches:
        return line
    last, text = patches[line.text]
    return replace(line, code=line.code[: -len(last)] + last, text=text)
