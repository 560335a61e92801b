"""KVM_TRANSLATE on the small guests: where their addresses lead when they have stopped."""

import random

import pytest
from kvm_guests import CODE, STACK, boot
from small_guests import PROGRAMS

from vmlib.cpu import IoIn, Mmio, open_vm
from vmlib.cpu.exits import EngineFailure, Halt, Shutdown
from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm.calls import call
from vmlib.memory import GuestRam, walk

LONG = [program for program in PROGRAMS if program.bits == 64]


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("program", LONG, ids=str)
def test_small_guests(program):
    """Identity-mapped 2 MiB pages, and in one of them tables that the guest itself has made."""
    rng = random.Random(str(program))
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(
            vm,
            program.code,
            program.bits,
            program.ring,
            {vector: code for vector, (_, code) in program.gates.items()},
        )
        for _ in range(100):
            match vcpu.run():
                case IoIn(size=size, count=count):
                    vcpu.complete(bytes(size * count))
                case Mmio(size=size, data=None):
                    vcpu.complete(bytes(size))
                case Halt() | Shutdown() | EngineFailure():
                    break
        system = vcpu.system()
        how = {name: getattr(system, name) for name in ("cr0", "cr3", "cr4", "efer")}
        before = GuestRam("1M")
        before.write(0, vm.ram.read(0, vm.ram.size))
        near = [0, CODE, STACK, 0x40_0010, 0x40_1010, 0x60_0000, 1 << 30, (1 << 47) - 1]
        for gva in near + [rng.getrandbits(31) for _ in range(40)]:
            asked = bytearray(abi.TRANSLATION.pack(gva, 0, 0, 0, 0))
            call(vcpu._file.fd, abi.TRANSLATE, asked)
            _, gpa, valid, _, _ = abi.TRANSLATION.unpack(asked)
            found = walk(before, gva, **how)
            assert (gpa if valid else None) == found.gpa, hex(gva)
        assert walk(before, CODE, **how).gpa == CODE
