"""Guests made of random bytes, run in a process of their own: what it dies of is a finding.

``python tests/cpu/bad_guests.py ENGINE SEED FIRST COUNT`` runs that many programs and prints what
they ended in. A program depends on the seed and its number alone, so that
``... ENGINE SEED NUMBER 1`` runs one again.

Guest RAM has a neighbour on each side. For the emulator, which reads and writes in this process,
it is memory that nobody may touch; for KVM, where the kernel would answer with an error, memory
with a pattern that has to stay. The RAM of another VM has to stay as well.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kvm_guests import CODE, HANDLERS, REAL_CODE, boot

from vmlib.cpu import Budget, BudgetSpent, EngineFailure, Exit, Registers, Shutdown, engine, open_vm
from vmlib.cpu.exits import answer_size
from vmlib.cpu.state import REGISTER_NAMES
from vmlib.memory import GuestRam

RAM = 0x40000
GUARD = 0x10000
SECONDS = 0.02
EXITS = 20
LIMIT = 30  # seconds for one program, of which it may use SECONDS in the guest: else it hangs
PATTERN = b"\xa5" * GUARD
NO_REPLACE = 0x100000  # MAP_FIXED_NOREPLACE, Linux asm-generic/mman-common.h
NO_ACCESS, READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE

# Bytes with which instructions begin that do more than compute: prefixes, string operations, ports,
# far control transfers, segment loads, system instructions. Operands follow at random.
_STARTS = (
    "f0 f2 f3 66 67 2e 64 65 6c 6d 6e 6f a4 a5 a6 ab ac ae e4 e5 e6 e7 ec ed ee ef 06 07 17 1f 60",
    "61 62 63 8c 8e 8f 9a 9b 9c 9d c2 c4 c5 c8 c9 ca cb cc cd ce cf d6 d8 d9 dd e2 e3 e8 e9 ea eb",
    "f1 f4 f6 f7 fa fb fc fd fe ff 0f00 0f01 0f02 0f03 0f05 0f06 0f07 0f08 0f09 0f0b 0f0d 0f18",
    "0f20 0f21 0f22 0f23 0f30 0f31 0f32 0f33 0f34 0f35 0fa0 0fa1 0fa2 0fa9 0faa 0fae 0fb0 0fb2",
    "0fb4 0fc0 0fc3 0fc7 0fff 0f38 0f3a 0f01d0 0f01d1 0f01d8 0f01d9 0f01c1 0f01f8 0f01f9 480f07",
    "48cf 48cb f3a4 f2ae f36c f36e f3ab f00fb1 f00fc7 660f6f f30f6f 0f28 0f6f 0f77 c5f8 c4e2 62f1",
)
STARTS = [bytes.fromhex(text) for line in _STARTS for text in line.split()]


class GuardedRam(GuestRam):
    """Guest RAM between two guards."""

    protection = NO_ACCESS

    def __init__(self, size: int | str) -> None:
        self.guards: list[int] = []
        for _ in range(16):
            above = _map(0, self.protection)
            super().__init__(size)
            below = _map(self.hva - GUARD, self.protection) if self.hva + self.size == above else 0
            if below:
                self.guards = [below, above]
                break
            super().close()  # somebody else is the neighbour; the guard stays and fills the gap
        assert self.guards, "no room for guards"
        for at in self.guards if self.protection else []:
            ctypes.memmove(at, PATTERN, GUARD)

    def close(self) -> None:
        """Look whether the guards are as they were, and give everything back."""
        if self.protection:
            for at in self.guards:
                assert ctypes.string_at(at, GUARD) == PATTERN, "the guest wrote beside its RAM"
        super().close()
        for at in self.guards:
            _libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(GUARD))
        self.guards = []


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def _map(at: int, protection: int) -> int:
    """Map a guard, anywhere or there; 0 if something is there."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (NO_REPLACE if at else 0)
    found = _libc.mmap(at, GUARD, protection, flags, -1, 0)
    return 0 if found in (None, ctypes.c_void_p(-1).value) else found


@dataclass(frozen=True)
class Program:
    """A guest: where the bytes run, and with what."""

    bits: int
    ring: int
    code: bytes
    registers: Registers
    gates: dict[int, str]

    def __str__(self) -> str:
        return f"{self.bits} bits, ring {self.ring}, gates {self.gates}: {self.code.hex(' ')}"


def program(seed: int, number: int) -> Program:
    """Return a program, the same for the same numbers."""
    rng = random.Random(f"{seed} {number}")
    bits = (16, 32, 64)[number % 3]
    code = b""
    if rng.random() < 0.5:
        while len(code) < 48:
            code += rng.choice(STARTS) + rng.randbytes(rng.randrange(6))
    code = code or rng.randbytes(64)

    def value() -> int:
        near = rng.choice([0, 0x1000, CODE, HANDLERS, RAM - 8, RAM, 0xB8000, 1 << 31])
        return rng.choice([near + rng.randrange(64), rng.getrandbits(64), rng.getrandbits(16)])

    registers = Registers(**{name: value() for name in REGISTER_NAMES[:16]})
    flags = rng.getrandbits(12) & ~0x100 | rng.choice([0, 0, 0x100, 0x3000, 0x40000])
    registers = replace(registers, rflags=flags & ~0x28 | 2)
    if rng.random() < 0.7:
        registers = replace(registers, rsp=0xF00 if bits == 16 else 0x2F000)
    gates = {}
    if rng.random() < 0.7:
        # A handler says which it is and halts, or goes back, or is at random.
        ends = ["f4", "cf", "48 cf", "83 04 24 02 cf", rng.randbytes(8).hex(" ")]
        gates = {vector: f"e6 {vector:02x} {rng.choice(ends)}" for vector in range(20)}
    ring = 0 if bits == 16 else rng.choice([0, 3])
    return Program(bits, ring, code, registers, gates)


def run(name: str, made: Program, rng: random.Random) -> list[Exit]:
    """Run a program to its end or its twentieth exit, with answers at random."""
    exits: list[Exit] = []
    with open_vm(name, RAM) as vm:
        vcpu = boot(vm, made.code.hex(), bits=made.bits, ring=made.ring, gates=made.gates)
        first = REAL_CODE if made.bits == 16 else CODE
        vcpu.set_registers(replace(made.registers, rip=first))
        vcpu.set_budget(Budget(seconds=SECONDS))
        while len(exits) < EXITS:
            exits.append(vcpu.run())
            if isinstance(exits[-1], BudgetSpent | Shutdown | EngineFailure):
                break
            size = answer_size(exits[-1])
            if size is not None and rng.random() < 0.9:
                vcpu.complete(rng.randbytes(size))
            if rng.random() < 0.1:
                vcpu.registers()
        assert all(type(one).__module__ == Exit.__module__ for one in exits), exits
        assert sum(vcpu.exits.values()) == len(exits)
        vcpu.save()
    return exits


def spoil(how: str, other: GuestRam) -> None:
    """Do what an engine must never do: the tests ask whether it is noticed."""
    vm = open_vm("unicorn", RAM)
    match how:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "below":
            ctypes.memset(vm.ram.hva - 1, 0, 1)
        case "above":
            ctypes.memset(vm.ram.hva + RAM, 0, 1)
        case "hang":
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 1, "nothing would end a hang"
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            signal.pause()
        case "other":
            other.write(5, b"\0")
        case "raise":
            raise OverflowError("spoilt")
        case "callback":
            ctypes.CFUNCTYPE(None)(lambda: 1 // 0)()
    vm.close()


def _end(lost: "sys.UnraisableHookArgs") -> None:
    """What a callback from C raises would be told and forgotten: here it ends the process."""
    traceback.print_exception(lost.exc_type, lost.exc_value, lost.exc_traceback)
    os._exit(70)


def main(name: str, seed: int, first: int, count: int, how: str = "") -> None:
    """Run programs; the last line of the output is the sum of it, those before a finding."""
    sys.unraisablehook = _end
    GuardedRam.protection = NO_ACCESS if name == "unicorn" else READ_WRITE
    if how.startswith("kvm-"):
        GuardedRam.protection, how = READ_WRITE, how[4:]
    engine.GuestRam = GuardedRam  # type: ignore[misc]
    ends: Counter[str] = Counter()
    with open_vm(name, GUARD) as other:
        other.ram.write(0, PATTERN)
        for number in range(first, first + count):
            made = program(seed, number)
            os.pwrite(1, f"{number} {made}".ljust(2000).encode() + b"\n", 0)
            signal.setitimer(signal.ITIMER_REAL, LIMIT)
            if how:
                spoil(how, other.ram)
            exits = run(name, made, random.Random(f"answers {seed} {number}"))
            ends[exits[-1].reason] += 1
            ends["exits"] += len(exits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert other.ram.read(0, GUARD) == PATTERN, "a guest wrote into the RAM of another VM"
    ends["programs"] = count
    os.ftruncate(1, 0)
    os.pwrite(1, json.dumps(ends).encode(), 0)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
