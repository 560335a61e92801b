"""Where this host's KVM is not what the manual says. An entry that heals fails, to be removed.

Each test asks whether its oddity is here and asserts the odd behaviour then, the manual's if not.
"""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from box import Job
from kvm_guests import CODE, CODE0, IDT, IF, IOPL3, TABLES, TSS, boot, guest, take

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Debug,
    EngineFailure,
    Halt,
    InterruptWindow,
    IoOut,
    Registers,
    Shutdown,
    open_vm,
    probe,
)
from vmlib.cpu.events import TF
from vmlib.cpu.kvm import oddities
from vmlib.cpu.state import CR0_PG
from vmlib.errors import HostUnavailable

# mov ax, 100; aam; hlt: AL = 0, AH = 10.
AAM = "b8 64 00 d4 0a f4"
OUT_HALT = "e6 {:02x} f4"  # a handler that tells its number

CR4_OSFXSR = 1 << 9

kvm = pytest.mark.needs("kvm")


def odd(id):
    assert id in {one.id for one in oddities.ODDITIES}
    return id in oddities.here()


def told(vector):
    return IoOut(vector, 1, b"\0")


def handlers(*vectors):
    return {vector: OUT_HALT.format(vector) for vector in vectors}


def zero_flag(engine):
    with open_vm(engine) as vm:
        vcpu = boot(vm, AAM)
        assert vcpu.run() == Halt()
        assert vcpu.registers().show("AX") == "0x0a00"
        return vcpu.registers().show("ZF")


def test_every_oddity_has_a_test():
    """Exactly one, which names it in ``odd("…")``."""
    named = re.findall(r'^    .*\bodd\("(\w+)"\)', Path(__file__).read_text(), re.M)
    assert sorted(named) == sorted(one.id for one in oddities.ODDITIES)


def test_oddities_belong_to_their_module():
    assert oddities.present("kvm_amd") == oddities.present("kvm built in") == ()
    assert oddities.present("kvm_pvm") == oddities.ODDITIES
    for one in oddities.ODDITIES:
        assert one.what
        assert one.cause
        assert re.search(r"SDM vol\. \d|api\.rst|hypercalls\.rst", one.rule), one


@kvm
def test_the_module_is_the_one_that_probe_names():
    assert oddities.kvm_modules() in probe("kvm").version


@pytest.mark.needs("unicorn")
def test_aam_sets_zf_from_al():
    assert zero_flag("unicorn") == "1"


@kvm
def test_aam():
    assert zero_flag("kvm") == ("0" if odd("aam_zf") else "1")


@kvm
def test_sse_in_ring_0():
    """pcmpeqd xmm0, xmm0; movd eax, xmm0; out 0x10, al"""
    with guest("66 0f 76 c0 66 0f 7e c0 e6 10", bits=64) as vcpu:
        vcpu.set_system(replace(vcpu.system(), cr4=vcpu.system().cr4 | CR4_OSFXSR))
        vcpu.set_registers(Registers(rip=CODE))
        exit = vcpu.run()
    if odd("sse_ring0"):
        assert isinstance(exit, EngineFailure)
        assert "66 0f 76 c0" in exit.why
    else:
        assert exit == IoOut(0x10, 1, b"\xff")


@kvm
@pytest.mark.parametrize("bits", [32, 64])
def test_int3_in_ring_0(bits):
    with guest("cc", bits=bits, gates=handlers(3)) as vcpu:
        exit = vcpu.run()
    if odd("int3_ring0"):
        assert isinstance(exit, EngineFailure)
    else:
        assert exit == told(3)


@kvm
@pytest.mark.parametrize("bits", [32, 64])
def test_int_n_in_ring_0(bits):
    with guest("cd 80", bits=bits, gates=handlers(0x80)) as vcpu:
        exit = vcpu.run()
    if odd("int_n_ring0"):
        assert isinstance(exit, EngineFailure)
    else:
        assert exit == told(0x80)


@kvm
@pytest.mark.parametrize("bits", [32, 64])
def test_int_n_in_ring_3(bits):
    with guest("cd 80", bits=bits, ring=3, gates=handlers(6, 0x80)) as vcpu:
        assert vcpu.run() == told(6 if odd("int_n_ring3") else 0x80)


@kvm
def test_iret_in_protected_mode():
    """UD2; its handler skips it: add dword [esp], 2; iret. Then out 0x10, al"""
    with guest("0f 0b e6 10", bits=32, gates={6: "83 04 24 02 cf"}) as vcpu:
        exit = vcpu.run()
    if odd("iret_protected"):
        assert isinstance(exit, EngineFailure)
    else:
        assert exit == told(0x10)


@kvm
def test_a_guests_own_step_over_an_out():
    """out 0x10, al; nop; hlt with TF set; the handler of #DB says 1 and goes back."""
    ports = []
    with guest("e6 10 90 f4", bits=64, gates={1: "e6 01 48 cf"}, flags=TF) as vcpu:
        while isinstance(exit := vcpu.run(), IoOut):
            ports.append(exit.port)
    assert exit == Halt()
    assert ports == ([0x10, 1] if odd("trap_after_out") else [0x10, 1, 1])


@kvm
@pytest.mark.parametrize("code", ["fb e6 10", "e6 10"], ids=["sti", "out"])
def test_iopl_in_ring_3(code):
    with guest(code, bits=64, ring=3, gates=handlers(13), flags=IOPL3) as vcpu:
        assert vcpu.run() == told(13 if odd("iopl_ring3") else 0x10)


@kvm
@pytest.mark.parametrize(
    ("code", "known"),
    [
        ("66 0f fc 04 25 08 00 03 00", False),
        ("0f 28 04 25 08 00 03 00", True),
        ("48 b8 00 00 00 00 00 00 00 40 66 0f fc 00", False),
        ("48 b8 00 00 00 00 00 00 00 40 0f 28 00", True),
    ],
    ids=["paddb", "movaps", "paddb, far", "movaps, far"],
)
def test_operands_in_ring_3_that_are_general_protection(code, known):
    """At 0x30008, or at [rax] with RAX = 1 << 62; of the two the kernel's emulator knows MOVAPS."""
    with guest(code, bits=64, ring=3, gates=handlers(6, 13)) as vcpu:
        vcpu.set_system(replace(vcpu.system(), cr4=vcpu.system().cr4 | CR4_OSFXSR))
        assert vcpu.run() == told(6 if odd("unaligned_ring3") and not known else 13)


@kvm
def test_alignment_in_ring_3():
    """mov eax, [rsp + 1]; ud2, with RFLAGS.AC set and CR0.AM clear: is there an alignment check?"""
    load = "8b 44 24 01 0f 0b"
    with guest(load, bits=64, ring=3, gates=handlers(6, 17), flags=1 << 18) as vcpu:
        assert vcpu.run() == told(17 if odd("am_ring3") else 6)


@kvm
def test_idt_limit_in_real_mode():
    """lidt [0x3000] with a limit of 0, then UD2"""
    with guest("0f 01 1e 00 30 0f 0b", gates=handlers(6)) as vcpu:
        exit = vcpu.run()
    if odd("idt_limit_real"):
        assert exit == told(6)
    else:
        assert isinstance(exit, Shutdown)


@kvm
@pytest.mark.parametrize("code", ["0f 01 c1", "0f 01 d9"], ids=["vmcall", "vmmcall"])
def test_hypercalls(code):
    """mov eax, 0x7f; VMCALL; out 0x10, eax: KVM takes either instruction on every host."""
    with guest(f"b8 7f 00 00 00 {code} e7 10", bits=32) as vcpu:
        vcpu.set_budget(Budget(seconds=0.2))
        exit = vcpu.run()
    if odd("vmcall_hangs"):
        assert isinstance(exit, BudgetSpent)
    else:
        assert exit == IoOut(0x10, 4, (-1000 & 0xFFFFFFFF).to_bytes(4, "little"))


@kvm
def test_interrupt_window():
    """sti; nop; nop; out 0x10, al"""
    with guest("fb 90 90 e6 10", gates=handlers(0x20)) as vcpu:
        vcpu.inject(0x20)
        if odd("interrupt_window"):
            assert take(vcpu, 2) == [told(0x10), told(0x20)]
        else:
            assert take(vcpu, 2) == [InterruptWindow(), told(0x20)]


@kvm
def test_a_step_over_hlt():
    """The engine knows and runs HLT without the single step; here it is told to forget that."""
    with guest("90 f4 90 e6 10") as vcpu:
        odd_here = odd("step_over_hlt")
        assert vcpu.step() is None
        assert vcpu.step() == Halt()
        assert vcpu.registers().rip == 0x1002
        assert vcpu.run() == told(0x10)
    with guest("f4 90") as vcpu:
        vcpu._oddities = frozenset()
        assert vcpu.step() == (None if odd_here else Halt())


@kvm
def test_debugging_ring_3():
    """nop; nop; ud2: a breakpoint on the second NOP, and a step, each in a guest of its own."""

    def nops():
        return guest("90 90 0f 0b", bits=64, ring=3, gates=handlers(1, 6))

    with nops() as vcpu:
        vcpu.breakpoints([0x10001])
        assert vcpu.run() == (told(6) if odd("debug_ring3") else Debug(0x10001))
    with nops() as vcpu:
        odd_here, vcpu._oddities = "debug_ring3" in vcpu._oddities, frozenset()
        assert vcpu.step() == (told(1) if odd_here else None)
    with nops() as vcpu:
        if odd_here:  # the engine knows
            with pytest.raises(HostUnavailable, match="ring 3"):
                vcpu.step()
            assert vcpu.run() == told(6)
        else:
            assert [vcpu.step(), vcpu.step(), vcpu.run()] == [None, None, told(6)]


HOLE = 0x201000


@kvm
@pytest.mark.parametrize("top", [HOLE, HOLE + 0x10, HOLE + 0x20])
def test_a_page_fault_on_a_frame(top):
    """UD2 with a stack of its own (IST1) at `top`; below HOLE there is no page.

    The handlers of #PF and #DF: mov eax, cr2; out 14 or 8, eax. Of the frame's words the one at
    HOLE - 8 is the first that has no place.
    """
    told_cr2 = {vector: f"0f 20 d0 e7 {vector:02x} f4" for vector in (8, 14)}
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(vm, "0f 0b", bits=64, gates={6: "f4", **told_cr2})
        vm.ram.write(IDT + 16 * 6 + 4, b"\1")
        vm.ram.write_u64(TSS + 0x24, top)
        vm.ram.write_u64(TABLES + 0x2000 + 8, 0x50003)  # 4 KiB pages for the second 2 MiB
        vm.ram.write_u64(0x50000 + 8, 0x40003)
        exit = vcpu.run()
    if odd("frame_fault"):
        assert exit == IoOut(8, 4, bytes(4))
    else:
        assert exit == IoOut(14, 4, (HOLE - 8).to_bytes(4, "little"))


# --- ring 0 goes through the kernel's emulator ----------------------------------------------------


def fails_or_halts(code, fails, **options):
    """Run to a HLT; `fails` says whether the instruction is one that the host cannot emulate."""
    with guest(code, **options) as vcpu:
        exit = vcpu.run()
    if fails:
        assert isinstance(exit, EngineFailure)
        assert "could not emulate the instruction" in exit.why
    else:
        assert exit == Halt()


@kvm
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("code", ["27 f4", "37 f4", "3f f4"], ids=["daa", "aaa", "aas"])
def test_decimal_arithmetic(bits, code):
    fails_or_halts(code, odd("decimal_ring0"), bits=bits)


@kvm
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_enter_with_a_nesting_level(bits):
    """enter 8, 1; hlt, with BP at the top of the stack. Without a level it works."""
    at = {16: "89 e5", 32: "89 e5", 64: "48 89 e5"}[bits]
    fails_or_halts(f"{at} c8 08 00 01 f4", odd("enter_nested_ring0"), bits=bits)
    fails_or_halts(f"{at} c8 08 00 00 f4", False, bits=bits)


@kvm
@pytest.mark.parametrize(
    ("bits", "code"),
    [
        *((bits, code) for bits in (32, 64) for code in ("0f 00 e0", "0f 00 e8", "0f 02 d8")),
        *((bits, "0f 03 d8") for bits in (32, 64)),
        (32, "63 d8"),
    ],
)
def test_instructions_that_look_selectors_up(bits, code):
    """mov eax, 0x10; then verr ax, verw ax, lar ebx, ax, lsl ebx, ax, or arpl ax, bx; hlt"""
    fails_or_halts(f"b8 10 00 00 00 {code} f4", odd("descriptors_ring0"), bits=bits)


@kvm
def test_bound():
    """bound eax, [0x24000] with zeros there; hlt"""
    fails_or_halts("62 05 00 40 02 00 f4", odd("bound_ring0"), bits=32)


@kvm
@pytest.mark.parametrize(
    "code", ["f3 0f b8 c0", "c4 e2 60 f2 c8", "0f 01 ca"], ids=["popcnt", "andn", "clac"]
)
def test_instructions_that_came_late(code):
    fails_or_halts(f"{code} f4", odd("popcnt_ring0"), bits=64)


@kvm
def test_movbe():
    """mov eax, 1; cpuid; then movbe eax, [0x24000]; out 0x10, al, if CPUID announces it"""
    with guest("b8 01 00 00 00 0f a2 f4", bits=64) as vcpu:
        assert vcpu.run() == Halt()
        assert vcpu.registers().rcx >> 22 & 1
    with guest("0f 38 f0 04 25 00 40 02 00 e6 10", bits=64, gates=handlers(6)) as vcpu:
        assert vcpu.run() == told(6 if odd("movbe_ring0") else 0x10)


@kvm
@pytest.mark.parametrize("bits", [32, 64])
def test_a_far_return_outward(bits):
    """push 0x1b; push 0x2e000; push 0x23; push u; retf; u: ud2"""
    code = "6a 1b 68 00 e0 02 00 6a 23 68 {:02x} 00 01 00 {} cb 0f 0b"
    code = code.format(0x10 if bits == 64 else 0x0F, "48" if bits == 64 else "")
    with guest(code, bits=bits, gates=handlers(6)) as vcpu:
        exit = vcpu.run()
    if odd("retf_outward"):
        assert isinstance(exit, EngineFailure)
    else:
        assert exit == told(6)


TABLES_OF_PROTECTED_MODE = {
    "32 bits": (0x10, [(0x2A000, 0x83)]),  # one page of 4 MiB (CR4.PSE)
    "PAE": (0x20, [(0x2A000, 0x2B001), (0x2B000, 0x83)]),  # one of 2 MiB
}
SET_PG = "0f 20 c0 0d 00 00 00 80 0f 22 c0 e6 10"


@kvm
@pytest.mark.parametrize("tables", TABLES_OF_PROTECTED_MODE)
@pytest.mark.parametrize("who", ["the guest", "the VMM"])
def test_paging_without_long_mode(tables, who):
    """mov eax, cr0; or eax, 0x80000000; mov cr0, eax; out 0x10, al"""
    cr4, entries = TABLES_OF_PROTECTED_MODE[tables]
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(vm, SET_PG, bits=32, gates=handlers(13))
        for at, entry in entries:
            vm.ram.write_u64(at, entry)
        system = replace(vcpu.system(), cr3=0x2A000, cr4=cr4)
        if who == "the VMM":
            system = replace(system, cr0=system.cr0 | CR0_PG)
        vcpu.set_system(system)
        exit = vcpu.run()
    if not odd("paging_protected"):
        assert exit == IoOut(0x10, 1, b"\x31")
    elif who == "the guest":
        assert exit == IoOut(13, 1, b"\x31")
    else:
        assert isinstance(exit, Shutdown)


# --- ring 3 of long mode runs under the host's registers ------------------------------------------


def told_by_ring_3(code, flags=0):
    """Run `code` in ring 3, then UD2; return EBX, which its handler tells."""
    tell = {6: "89 d8 e7 06 f4"}  # mov eax, ebx; out 6, eax
    with guest(f"{code} 0f 0b", bits=64, ring=3, gates=tell, flags=flags) as vcpu:
        exit = vcpu.run()
    assert isinstance(exit, IoOut)
    return int.from_bytes(exit.data, "little")


@kvm
def test_segments_after_iret():
    """push 0x1b; push 0x2e000; push 2; push 0x23; push u; iretq; u: ud2

    Ring 3 itself reads them as null. The handler: mov eax, ds or another; out 6, eax.
    """
    code = "6a 1b 68 00 e0 02 00 6a 02 6a 23 68 12 00 01 00 48 cf 0f 0b"
    for segment in ("d8", "c0", "e0", "e8"):  # DS, ES, FS, GS
        with guest(code, bits=64, gates={6: f"8c {segment} e7 06 f4"}) as vcpu:
            left = 0x10 if odd("iret_segments") else 0
            assert vcpu.run() == IoOut(6, 4, left.to_bytes(4, "little"))
            for name in ("ds", "es", "fs", "gs"):
                assert getattr(vcpu.system(), name).selector == left


@kvm
@pytest.mark.parametrize(
    ("code", "real", "native"),
    [
        ("8c cb", 0x23, 0x33),
        ("8c d3", 0x1B, 0x2B),
        ("8c db", 0x1B, 0),
        ("8c c3", 0x1B, 0),
        ("b8 1b 00 00 00 8e e0 8c e3", 0x1B, 0),
    ],
    ids=["cs", "ss", "ds", "es", "fs, loaded"],
)
def test_selectors_in_ring_3(code, real, native):
    """mov ebx, cs or another"""
    assert told_by_ring_3(code) == (native if odd("selectors_ring3") else real)


@kvm
@pytest.mark.parametrize(
    ("code", "real"),
    [
        ("0f 02 d8", 0xA0FB00),
        ("0f 03 d8", 0xFFFFFFFF),
        ("0f 00 e0 0f 94 c3", 1),
        ("b8 1b 00 00 00 0f 00 e8 0f 94 c3", 1),
    ],
    ids=["lar", "lsl", "verr", "verw"],
)
def test_descriptors_in_ring_3(code, real):
    """mov eax, 0x23; then lar ebx, ax; lsl ebx, ax; or verr ax or verw ax with 0x1b, setz bl"""
    seen = told_by_ring_3(f"b8 23 00 00 00 {code}")
    assert seen == (0 if odd("descriptors_ring3") else real)


@kvm
@pytest.mark.parametrize("flag", [0, IF])
def test_the_interrupt_flag_in_ring_3(flag):
    """pushf; pop rbx"""
    assert told_by_ring_3("9c 5b", flags=flag) & IF == (IF if odd("if_ring3") else flag)


CONTROLS = {
    "CR0.TS": ({"cr0": 1 << 3}, "d9 e8", 7),  # fld1
    "CR0.EM": ({"cr0": 1 << 2}, "d9 e8", 7),
    "CR4.TSD": ({"cr4": 1 << 2}, "0f 31", 13),  # rdtsc
    "CR4.OSFXSR": ({}, "0f 57 c0", 6),  # xorps xmm0, xmm0
    "CR4.OSXSAVE": ({}, "0f 01 d0", 6),  # xgetbv, ECX = 0
    "CR4.FSGSBASE": ({}, "f3 48 0f ae c0", 6),  # rdfsbase rax
    # push 0x40002; popf; mov eax, [0x24001]: AC does nothing without CR0.AM
    "CR0.AM": ({}, "68 02 00 04 00 9d 8b 04 25 01 40 02 00", 0),
}


@kvm
@pytest.mark.parametrize("control", CONTROLS)
def test_control_registers_in_ring_3(control):
    """The instruction; mov bl, 0x77; ud2. Vector and EBX tell whether it has faulted."""
    bits, code, vector = CONTROLS[control]
    gates = {at: f"88 d8 e6 {at:02x} f4" for at in (6, 7, 13, 17)}
    with guest(f"{code} b3 77 0f 0b", bits=64, ring=3, gates=gates) as vcpu:
        system = vcpu.system()
        registers = {name: getattr(system, name) | value for name, value in bits.items()}
        vcpu.set_system(replace(system, **registers))
        exit = vcpu.run()
    faulted, ran = IoOut(vector, 1, b"\0"), IoOut(6, 1, b"\x77")
    if odd("controls_ring3"):
        assert exit == (ran if vector else IoOut(17, 1, b"\0"))
    else:
        assert exit == (faulted if vector else ran)


LSTAR, RETURN = 0x101C0, 0x10180


@kvm
@pytest.mark.parametrize(
    ("code", "ring", "at", "odd_end"),
    [
        ("0f 05", 3, 0, IoOut(6, 1, b"\xc0")),
        ("b9 80 01 01 00 48 0f 07", 0, 5, IoOut(6, 1, b"\x80")),
    ],
    ids=["syscall", "sysret"],
)
def test_syscall_that_is_off(code, ring, at, odd_end):
    """SYSCALL in ring 3, or mov ecx, RETURN; SYSRET in ring 0, though EFER.SCE is clear.

    At LSTAR and RETURN there is UD2, whose handler tells where: mov al, [rsp]; out 6, al.
    """
    with open_vm("kvm", "1M") as vm:
        vcpu = boot(vm, code, bits=64, ring=ring, gates={6: "8a 04 24 e6 06 f4"})
        for place in (LSTAR, RETURN):
            vm.ram.write(place, bytes.fromhex("0f 0b"))
        state = vcpu.save()
        msrs = {**dict(state.msrs), 0xC0000081: 0x10 << 48 | CODE0 << 32, 0xC0000082: LSTAR}
        vcpu.restore(replace(state, msrs=tuple(msrs.items())))
        assert not vcpu.system().efer & 1
        exit = vcpu.run()
    assert exit == (odd_end if odd("syscall_off") else IoOut(6, 1, bytes((at,))))


# What the box cannot show: its emulator knows no debug registers under VMRUN, and aborts when a
# 32-bit guest goes inward through a busy TSS, which is what the manual asks for.
NOT_IN_THE_BOX = (
    "not box and not debugging_ring_3 and not (int_n_in_ring_3 and 32)"
    " and not (far_return_outward and 32)"
)


@pytest.mark.needs("box")
def test_a_true_kvm_has_none_of_them(box):
    """This file's own tests inside: the box has no kvm_pvm, so each asserts the manual's rule."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += [__file__, "-m", "needs", "-k", NOT_IN_THE_BOX.replace("box", "true_kvm")]
    job = Job("oddities", "subprocess:getoutput", [shlex.join(command)], seconds=400, trace=False)
    told = box.run([job])["oddities"].value
    assert re.search(r"^[78][0-9] passed, \d+ deselected in", told, re.M), told
