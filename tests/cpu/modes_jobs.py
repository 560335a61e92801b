"""What the tests of the chapter on modes run inside the box, and on the host in the same words."""

from dataclasses import replace

from vmlib.cpu import Budget, Guest, IoOut, open_vm
from vmlib.cpu.fall_trace import record_fall
from vmlib.cpu.falls import FALLS, RAM, fall_guest, user_address

BASELINE = "none"
"""The guest of the falls, made to begin where it prints: it does all they do, and does not fall."""
MOVED = "moved"
"""The page fault, with a handler that maps nothing and changes the address instead: exercise 3."""


def guest_of(name: str) -> Guest:
    """A guest of the falls by name, or the one that does not fall."""
    if name not in (BASELINE, MOVED):
        return fall_guest(name)
    guest = fall_guest("page")
    if name == MOVED:
        handler = guest.line("on_pf")
        address = user_address(guest, "letter").to_bytes(4, "little")
        other = (b"\xbe" + address).ljust(len(handler.code), b"\x90")  # mov esi, address
        return replace(guest, code=guest.code.replace(handler.code, other))
    was, now = (user_address(guest, label).to_bytes(4, "little") for label in ("page_fault", "say"))
    assert guest.code.count(b"\x68" + was) == 1
    return replace(guest, code=guest.code.replace(b"\x68" + was, b"\x68" + now))


def run_fall(engine: str, name: str) -> dict:
    """Run a guest to its end: what it printed, what left it, the registers then."""
    guest = guest_of(name)
    with open_vm(engine, RAM) as vm:
        vm.ram.write(guest.at, guest.code)
        vcpu = vm.vcpu()
        vcpu.set_budget(Budget(seconds=20))
        vcpu.start_real_mode(guest.at)
        exits = [vcpu.run()]
        while isinstance(exits[-1], IoOut):
            exits.append(vcpu.run())
        registers = vcpu.registers()
        return {
            "printed": b"".join(one.data for one in exits if isinstance(one, IoOut)).decode(),
            "exits": [one.reason for one in exits],
            "rip": hex(registers.rip),
            "rsp": hex(registers.rsp),
            "cr2": hex(vcpu.system().cr2),
        }


def trace_of(engine: str, name: str) -> dict:
    """The lanes trace of a fall, as plain data."""
    return record_fall(name, engine, by_steps=engine == "kvm").to_dict()


NAMES = list(FALLS)
