"""What a VMM may call, in any order, on both engines: the same answers, registers and RAM.

The guest leaves in every way that leaves something undone: IN and OUT, single and repeated, loads,
stores and both in one instruction, from and to a device. Left out are single steps (KVM's emulator
takes the end of a repeated instruction for one more), breakpoints on that one (the emulator breaks
at each item) and injected interrupts (`interrupt_window`).
"""

import hashlib
import random
import secrets
from dataclasses import replace

import pytest
from kvm_guests import CODE, boot

from vmlib.cpu import Halt, Shutdown, open_vm
from vmlib.cpu.exits import answer_size
from vmlib.errors import BadInput

# l: in al, 0x60; out 0x61, al; inc dword [0x50000]; mov esi, 0x50010; mov edi, 0x24000; movsb
# movsd; mov ecx, 3; mov edx, 0x80; mov esi, 0x24000; rep outsb; mov edi, 0x24100; insw; insb
# push dword [0x50020]; pop dword [0x50024]; xchg al, [0x50028]; inc ebx; cmp ebx, 4; jne l; hlt
GUEST = """e4 60 e6 61 ff 05 00 00 05 00 be 10 00 05 00 bf 00 40 02 00 a4 a5
b9 03 00 00 00 ba 80 00 00 00 be 00 40 02 00 f3 6e bf 00 41 02 00 66 6d 6c
ff 35 20 00 05 00 8f 05 24 00 05 00 86 05 28 00 05 00 43 83 fb 04 75 b9 f4"""
REPEATED = 37
PLACES = [CODE + at for at in range(len(bytes.fromhex(GUEST))) if at != REPEATED]
CALLS = ["run"] * 6 + ["registers", "save and restore", "set_registers", "set_system"]
CALLS += ["complete", "kick", "breakpoints"]
RAM, RF, FIXED = 0x40000, 1 << 16, 40


def seen(vm, registers):
    """Registers as they are compared: see `test_both_engines.after_rep` for the REP."""
    registers = replace(registers, rflags=registers.rflags & ~RF)
    if vm.ram.read(registers.rip, 1) == b"\xf3" and not registers.rcx:
        return replace(registers, rip=registers.rip + 2)
    return registers


def called(engine, seed):
    """Make calls by a seed's choice; return what came of each."""
    rng, told, last = random.Random(seed), [], None
    with open_vm(engine, RAM) as vm:
        vcpu = boot(vm, GUEST, bits=32)
        while len(told) < 60 and not isinstance(last, Halt | Shutdown):
            call, answers = rng.choice(CALLS), rng.random() < 0.8
            data, at = rng.randbytes(8), rng.choice(PLACES)
            size = answer_size(last) or 1
            match call:
                case "run":
                    last = vcpu.run()
                    told.append(last)
                    if answers and (size := answer_size(last)):
                        vcpu.complete(data[:size])
                case "registers":
                    told.append(seen(vm, vcpu.registers()))
                case "save and restore":
                    state = vcpu.save()
                    vcpu.restore(state)
                    told.append(seen(vm, state.registers))
                case "set_registers":
                    vcpu.set_registers(replace(vcpu.registers(), rdx=0x80))
                case "set_system":
                    vcpu.set_system(vcpu.system())
                case "complete":
                    try:
                        vcpu.complete(data[:size])
                    except BadInput as error:
                        told.append(str(error))
                case "kick":
                    vcpu.kick()
                case "breakpoints":
                    vcpu.breakpoints([at] if answers else [])
        told.append(seen(vm, vcpu.registers()))
        told.append(hashlib.sha256(vm.ram.view).hexdigest())
    return told


@pytest.mark.needs("unicorn", "kvm")
def test_calls_in_any_order():
    """With seeds that stay and some that change."""
    turning = secrets.randbits(32)
    for seed in [*range(FIXED), *range(turning, turning + FIXED)]:
        ours, real = called("unicorn", seed), called("kvm", seed)
        for number, (one, other) in enumerate(zip(ours, real, strict=False)):
            assert one == other, f"seed {seed}, answer {number}"
        assert len(ours) == len(real), f"seed {seed}"


@pytest.mark.needs("unicorn")
def test_the_calls_get_everywhere():
    told = [one for seed in range(FIXED) for one in called("unicorn", seed)]
    kinds = {type(one).__name__ for one in told}
    assert kinds >= {"IoIn", "IoOut", "Mmio", "Kicked", "Debug", "Registers"}
