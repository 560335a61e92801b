"""x87 and SSE in a saved state: what a guest has loaded is saved, what is restored it stores.

The guest's own FXRSTOR64 and FXSAVE64, in ring 3 of long mode, hold `save` and `restore` on each
engine, and a state that goes over to the other one. Layout: Intel SDM vol. 1, 10.5.1.
"""

import random
import struct
from dataclasses import replace

import pytest
from kvm_guests import CODE, boot

from vmlib.cpu import ENGINES, Mmio, open_vm

LOAD, STORE = "48 0f ae 0e 88 03", "48 0f ae 07 88 03"
"""fxrstor64 [rsi], or fxsave64 [rdi]; mov [rbx], al, which leaves the guest."""
FROM, TO, OUTSIDE = 0x40000, 0x41000, 0x200000
LEGACY, HEADER = 416, 512
POINTERS = slice(6, 24)
"""FOP, FIP and FDP: an AMD CPU loads and stores them only beside a pending exception."""
OSFXSR = 1 << 9
engines = pytest.mark.parametrize(
    "engine", [pytest.param(one, marks=pytest.mark.needs(one)) for one in ENGINES]
)


def area(seed):
    """A legacy area at random: every other one with an exception that waits to be raised."""
    rng = random.Random(seed)
    raised = 1 << rng.randrange(6) if seed % 2 else 0
    masks = 0x3F & ~raised
    control = masks | 1 << 6 | rng.choice((0, 2, 3)) << 8 | rng.randrange(4) << 10
    status = raised | (0x8080 if raised else 0) | rng.randrange(8) << 11 | rng.getrandbits(1) << 14
    pointers = (
        (rng.getrandbits(11), rng.getrandbits(46), rng.getrandbits(46)) if raised else [0] * 3
    )
    head = struct.pack("<HHBxHQQ", control, status, rng.getrandbits(8), *pointers)
    mxcsr = rng.getrandbits(16)
    head += struct.pack("<II", mxcsr, 0xFFFF)
    stack = b"".join(rng.randbytes(10) + bytes(6) for _ in range(8))
    return head + stack + rng.randbytes(256)


def stands_at(vm, code):
    """A vCPU at that code, with its addresses."""
    vcpu = boot(vm, code, bits=64, ring=3)
    system = vcpu.system()
    vcpu.set_system(replace(system, cr4=system.cr4 | OSFXSR))
    vcpu.set_registers(replace(vcpu.registers(), rsi=FROM, rdi=TO, rbx=OUTSIDE))
    return vcpu


def same(one, other, pointers=True):
    """Compare legacy areas, but for the mask of MXCSR, which tells of the CPU."""
    first, second = bytearray(one[:LEGACY]), bytearray(other[:LEGACY])
    for raw in (first, second):
        raw[28:32] = bytes(4)
        if not pointers:
            raw[POINTERS] = bytes(18)
    return first == second


@engines
@pytest.mark.parametrize("seed", range(8))
def test_what_the_guest_has_loaded_is_saved(engine, seed):
    """On the emulator FXRSTOR leaves the pointers as they are."""
    with open_vm(engine, "1M") as vm:
        vcpu = stands_at(vm, LOAD)
        vm.ram.write(FROM, area(seed))
        assert isinstance(vcpu.run(), Mmio)
        assert same(vcpu.save().xsave, area(seed), pointers=engine == "kvm")


@engines
@pytest.mark.parametrize("seed", range(8))
def test_the_guest_stores_what_was_restored(engine, seed):
    with open_vm(engine, "1M") as vm:
        vcpu = stands_at(vm, STORE)
        state = vcpu.save()
        xsave = area(seed) + bytes(HEADER - LEGACY) + struct.pack("<Q", 3)
        state = replace(state, xsave=xsave.ljust(len(state.xsave), b"\0"))
        vcpu.restore(state)
        assert same(vcpu.save().xsave, area(seed))
        assert isinstance(vcpu.run(), Mmio)
        assert same(vm.ram.read(TO, LEGACY), area(seed), pointers=engine == "kvm")


@engines
@pytest.mark.parametrize("used", range(4))
def test_what_is_not_in_use_is_as_after_reset(engine, used):
    """XSTATE_BV: bit 0 is x87, bit 1 SSE (Intel SDM vol. 1, 13.6); what stands there is nothing."""
    random_area = area(2)
    with open_vm(engine, "1M") as vm:
        vcpu = stands_at(vm, STORE)
        state = vcpu.save()
        xsave = random_area + bytes(HEADER - LEGACY) + struct.pack("<Q", used)
        vcpu.restore(replace(state, xsave=xsave.ljust(len(state.xsave), b"\0")))
        assert isinstance(vcpu.run(), Mmio)
        stored = vm.ram.read(TO, LEGACY)
    x87 = random_area if used & 1 else struct.pack("<H", 0x37F) + bytes(158)
    assert (stored[:5], stored[32:160]) == (x87[:5], x87[32:160])
    assert stored[160:] == (random_area[160:] if used & 2 else bytes(256))
    assert stored[24:28] == (random_area[24:28] if used & 2 else struct.pack("<I", 0x1F80))


@pytest.mark.needs("unicorn", "kvm")
@pytest.mark.parametrize("seed", range(8))
def test_there_and_back(seed):
    """Loaded by a guest on KVM, restored on the emulator, saved there, stored by one on KVM."""
    with open_vm("kvm", "1M") as vm:
        vcpu = stands_at(vm, LOAD + STORE)
        vm.ram.write(FROM, area(seed))
        assert isinstance(vcpu.run(), Mmio)
        loaded = vcpu.save()
        with open_vm("unicorn", "1M") as other:
            emulated = other.vcpu()
            emulated.restore(loaded)
            again = emulated.save()
        assert same(again.xsave, loaded.xsave)
        assert again.registers == loaded.registers
        vcpu.restore(replace(loaded, xsave=bytes(len(loaded.xsave))))
        vcpu.restore(replace(loaded, xsave=again.xsave))
        assert isinstance(vcpu.run(), Mmio)
        assert same(vm.ram.read(TO, LEGACY), area(seed))
        assert vcpu.registers().rip == CODE + 12


@pytest.mark.needs("unicorn")
def test_a_restored_rounding_counts(vm):
    """fld1; fld tbyte [rsi], 2^-64; faddp; fstp tbyte [rdi]; mov [rbx], al: up, then to nearest."""
    results = []
    for control in (0xB7F, 0x37F):
        vcpu = stands_at(vm, "d9 e8 db 2e de c1 db 3f 88 03")
        vm.ram.write(FROM, struct.pack("<QH", 1 << 63, 0x3FFF - 64))
        state = vcpu.save()
        xsave = bytearray(state.xsave)
        struct.pack_into("<H", xsave, 0, control)
        vcpu.restore(replace(state, xsave=bytes(xsave)))
        assert isinstance(vcpu.run(), Mmio)
        results.append(struct.unpack("<QH", vm.ram.read(TO, 10)))
    assert results == [(1 << 63 | 1, 0x3FFF), (1 << 63, 0x3FFF)]
