"""What the chapters say of the emulator: these pass there, and fault on KVM, or come out wrong.

If one is refused by the emulator, too, or right, this fails, and a chapter says too much.
"""

import struct
from dataclasses import replace

import pytest
from kvm_guests import TABLES, boot

from vmlib.cpu import ENGINES, Halt, IoIn, Mmio, open_vm

AM, AC, UMIP = 1 << 18, 1 << 18, 1 << 11
UD, GP, AC_CHECK = 6, 13, 17
DONE = 0x77
GATES = {UD: "e6 06 f4", GP: "e6 0d f4", AC_CHECK: "e6 11 f4"}
"""Each handler says its number on a port."""
BOTH = [pytest.param(one, marks=pytest.mark.needs(one)) for one in ENGINES]


def fault_in_ring_3(engine, code, flags=0, **control):
    """The fault that this instruction raises, or #UD, if it passes: a UD2 comes next."""
    with open_vm(engine, "256K") as vm:
        vcpu = boot(vm, f"{code} 0f 0b", 64, 3, GATES, flags)
        system = vcpu.system()
        more = {name: getattr(system, name) | bits for name, bits in control.items()}
        vcpu.set_system(replace(system, **more))
        return vcpu.run().port


@pytest.mark.parametrize("engine", BOTH)
def test_alignment_is_checked_by_kvm_alone(engine):
    load = "8b 44 24 01"  # mov eax, [rsp + 1]
    assert fault_in_ring_3(engine, load, cr0=AM) == UD
    seen = fault_in_ring_3(engine, load, AC, cr0=AM)
    assert seen == (AC_CHECK if engine == "kvm" else UD)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("unicorn", marks=pytest.mark.needs("unicorn")),
        pytest.param("kvm", marks=pytest.mark.needs("kvm", "UMIP")),
    ],
)
@pytest.mark.parametrize(
    "code",
    ["0f 01 04 24", "0f 01 0c 24", "0f 00 c0", "0f 00 c8", "0f 01 e0"],
    ids=["sgdt", "sidt", "sldt", "str", "smsw"],
)
def test_tables_are_hidden_from_ring_3_by_kvm_alone(engine, code):
    assert fault_in_ring_3(engine, code) == UD
    seen = fault_in_ring_3(engine, code, cr4=UMIP)
    assert seen == (GP if engine == "kvm" else UD)


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(
    ("move", "good", "bad"),
    [
        ("0f 22 d8", TABLES, 1 << 52),
        ("0f 22 e0", 1 << 5, 1 << 15),
        ("44 0f 22 c0", 15, 1 << 4),
        ("0f 23 f0", 0, 1 << 32),
        ("0f 23 f8", 0, 1 << 32),
    ],
    ids=["cr3", "cr4", "cr8", "dr6", "dr7"],
)
def test_reserved_bits_are_refused_by_kvm_alone(engine, move, good, bad):
    """mov rax, value; mov to the register; out 0x77, al"""
    for value, faults in ((good, False), (good | bad, engine == "kvm")):
        code = f"48 b8 {struct.pack('<Q', value).hex()} {move} e6 77 f4"
        with open_vm(engine, "256K") as vm:
            assert boot(vm, code, 64, 0, GATES).run().port == (GP if faults else DONE)


@pytest.mark.parametrize("engine", BOTH)
def test_ins_into_a_device_stores_what_the_port_said_on_kvm_alone(engine):
    """mov ax, 0xf000; mov es, ax; cld; mov dx, 0x10; mov di, 0; insb; hlt"""
    with open_vm(engine, "256K") as vm:
        vcpu = boot(vm, "b8 00 f0 8e c0 fc ba 10 00 bf 00 00 6c f4")
        ended = []
        while not ended or not isinstance(ended[-1], Halt):
            ended.append(vcpu.run())
            if isinstance(ended[-1], IoIn):
                vcpu.complete(b"\x5a")
    port = IoIn(0x10, 1)
    if engine == "kvm":
        assert ended == [port, Mmio(0xF0000, 1, b"\x5a"), Halt()]
    else:
        assert ended == [Mmio(0xF0000, 1, b"\0"), port, port, Halt()]
