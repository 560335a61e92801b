"""What needs no `/dev/kvm`: the binary interface, packing, and words for what went wrong."""

import random
import subprocess
from dataclasses import replace

import pytest
from kvm_guests import CODE, identity_map, system_with_tables, write_tables

from vmlib.cpu import (
    EngineFailure,
    Registers,
    Segment,
    SystemRegisters,
)
from vmlib.cpu.kvm import abi as kvm_abi
from vmlib.cpu.kvm import diagnosis as kvm_diagnosis
from vmlib.cpu.kvm import exits as kvm_exits
from vmlib.cpu.kvm import state as kvm_state
from vmlib.cpu.state import UNUSABLE
from vmlib.memory import GuestRam

STRUCTS = {
    "MEMORY_REGION": "struct kvm_userspace_memory_region",
    "REGS": "struct kvm_regs",
    "SEGMENT": "struct kvm_segment",
    "DTABLE": "struct kvm_dtable",
    "GUEST_DEBUG": "struct kvm_guest_debug",
    "DEBUGREGS": "struct kvm_debugregs",
    "EVENTS": "struct kvm_vcpu_events",
    "TRANSLATION": "struct kvm_translation",
    "CPUID_HEAD": "struct kvm_cpuid2",
    "CPUID_ENTRY": "struct kvm_cpuid_entry2",
    "IOEVENTFD_ARGS": "struct kvm_ioeventfd",
    "ENABLE_CAP_ARGS": "struct kvm_enable_cap",
    "MSR_RANGE": "struct kvm_msr_filter_range",
    "MSR_FILTER": "struct kvm_msr_filter",
    "IRQ_LEVEL": "struct kvm_irq_level",
    "IRQCHIP": "struct kvm_irqchip",
}
OTHER = {
    "SREGS_SIZE": "sizeof(struct kvm_sregs)",
    "XSAVE_SIZE": "sizeof(struct kvm_xsave)",
    "LAPIC_SIZE": "sizeof(struct kvm_lapic_state)",
    "ONE_MSR.size": "sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)",
    "RUN_REQUEST_INTERRUPT_WINDOW": "offsetof(struct kvm_run, request_interrupt_window)",
    "RUN_IMMEDIATE_EXIT": "offsetof(struct kvm_run, immediate_exit)",
    "RUN_EXIT_REASON": "offsetof(struct kvm_run, exit_reason)",
    "RUN_READY_FOR_INTERRUPT": "offsetof(struct kvm_run, ready_for_interrupt_injection)",
    "RUN_IF_FLAG": "offsetof(struct kvm_run, if_flag)",
    "RUN_UNION": "offsetof(struct kvm_run, io)",
    "RUN_MMIO_DATA": "offsetof(struct kvm_run, mmio.data)",
    "RUN_MSR_ERROR": "offsetof(struct kvm_run, msr.error)",
    "RUN_MSR_DATA": "offsetof(struct kvm_run, msr.data)",
    "IO_IN": "KVM_EXIT_IO_IN",
    "IO_OUT": "KVM_EXIT_IO_OUT",
    "SUBERROR_EMULATION": "KVM_INTERNAL_ERROR_EMULATION",
    "EMULATION_HAS_BYTES": "KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES",
    "MSR_FILTER_DENY": "KVM_MSR_FILTER_DEFAULT_DENY",
    "MSR_RANGES": "KVM_MSR_FILTER_MAX_RANGES",
    "MSR_RANGE_READ": "KVM_MSR_FILTER_READ",
    "MSR_RANGE_WRITE": "KVM_MSR_FILTER_WRITE",
    "MSR_EXIT_INVAL": "KVM_MSR_EXIT_REASON_INVAL",
    "MSR_EXIT_UNKNOWN": "KVM_MSR_EXIT_REASON_UNKNOWN",
    "MSR_EXIT_FILTER": "KVM_MSR_EXIT_REASON_FILTER",
    "IOEVENTFD_DATAMATCH": "KVM_IOEVENTFD_FLAG_DATAMATCH",
    "IOEVENTFD_PIO": "KVM_IOEVENTFD_FLAG_PIO",
}
PARTS = {  # the last member of each part of the union, which the Struct must reach exactly
    "RUN_HEAD_IO.size": "offsetof(struct kvm_run, io.data_offset) + 8 - 8",
    "RUN_MMIO.size": "offsetof(struct kvm_run, mmio.is_write) + 1 - 32",
    "RUN_DEBUG.size": "offsetof(struct kvm_run, debug.arch.dr7) + 8 - 32",
    "RUN_INTERNAL.size": "offsetof(struct kvm_run, emulation_failure.insn_bytes) + 15 - 32",
    "RUN_MSR.size": "offsetof(struct kvm_run, msr.data) + 8 - 32",
}


def names_in_abi():
    """Every number of kvm_abi.py with its name in C."""
    table = {f"{name}.size": f"sizeof({c})" for name, c in STRUCTS.items()} | OTHER | PARTS
    for name, value in vars(kvm_abi).items():
        if isinstance(value, int) and not name.startswith("_") and name not in table:
            table[name] = f"KVM_{name}"
    return table


@pytest.mark.needs("gcc")
def test_the_abi_is_the_kernel_headers(tmp_path):
    table = names_in_abi()
    assert len(table) > 80
    body = "".join(f'printf("%lld\\n", (long long)({c}));\n' for c in table.values())
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n"
        f"int main(void) {{\n{body}return 0; }}\n"
    )
    subprocess.run(["gcc", "-w", "-o", tmp_path / "abi", source], check=True)
    told = subprocess.run([tmp_path / "abi"], capture_output=True, text=True, check=True).stdout
    for name, line in zip(table, told.split(), strict=True):
        ours = kvm_abi
        for part in name.split("."):
            ours = getattr(ours, part)
        assert ours & 0xFFFFFFFF == int(line) & 0xFFFFFFFF, name


def test_packing_and_unpacking_are_inverse():
    rng = random.Random(3)

    def segment():
        attributes = rng.getrandbits(16) & 0xF0FF
        return Segment(rng.getrandbits(16), rng.getrandbits(64), rng.getrandbits(32), attributes)

    for _ in range(500):
        registers = Registers(*(rng.getrandbits(64) for _ in range(18)))
        assert kvm_state.unpack_registers(kvm_state.pack_registers(registers)) == registers
        one = segment()
        assert kvm_state.unpack_segment(kvm_state.pack_segment(one)) == one
        system = SystemRegisters(cs=one, ldt=segment(), cr3=rng.getrandbits(64), efer=0x500)
        assert kvm_state.unpack_system(kvm_state.pack_system(system, 0)) == system
        vector, shadow = rng.choice([None, *range(256)]), rng.random() < 0.5
        events = kvm_state.pack_events(vector, shadow, 0)
        assert kvm_state.unpack_events(events) == (vector, shadow)


@pytest.mark.parametrize(("rflags", "kind"), [(0x2, 1), (0x202, 2)])
def test_a_shadow_is_that_of_sti_where_interrupts_are_on(rflags, kind):
    """KVM_X86_SHADOW_INT_MOV_SS is 1 and _STI 2 (Linux arch/x86/include/uapi/asm/kvm.h)."""
    events = kvm_state.pack_events(None, True, rflags)
    assert kvm_abi.EVENTS.unpack(events)[8] == kind
    assert kvm_state.pack_segment(UNUSABLE)[-2:] == b"\1\0"
    marked = kvm_state.pack_segment(Segment())[:-2] + b"\1\0"  # present, and yet unusable
    assert not kvm_state.unpack_segment(marked).present


def test_only_state_in_use_is_marked():
    """Components 2 (AVX) and 9 of a made-up CPUID; 11 is for XSAVES alone."""
    table = kvm_abi.CPUID_HEAD.pack(4, 0)
    for number, size, offset, ecx in [(2, 256, 576, 0), (9, 8, 2688, 0), (11, 16, 0, 1)]:
        table += kvm_abi.CPUID_ENTRY.pack(0xD, number, 1, size, offset, ecx, 0)
    table += kvm_abi.CPUID_ENTRY.pack(0xB, 2, 1, 8, 600, 0, 0)
    places = kvm_state.xsave_components(table)
    assert places == {2: (576, 256), 9: (2688, 8)}
    area = bytearray(4096)
    area[512:514] = b"\x07\x02"  # XSTATE_BV: x87, SSE, AVX, component 9
    assert kvm_state.forget_initial(area[:], places)[512:514] == b"\x03\0"
    area[831] = 1
    assert kvm_state.forget_initial(area[:], places)[512:514] == b"\x07\0"
    area[2688] = 1
    assert kvm_state.forget_initial(area[:], places) == area


def test_diagnosis_changes_nothing():
    """Delivering on paper: RAM, A bits included, is as before."""
    ram = GuestRam("1M")
    identity_map(ram)
    write_tables(ram, 64, {8: CODE})
    before = bytes(ram.view)
    system, registers = system_with_tables(64, 3), Registers(rip=CODE, rsp=0x5000)
    exit = kvm_diagnosis.diagnose(registers, system, 8, ram)
    assert (exit.vector, exit.gate) == (None, ""), "gate 8 is good: nothing is known"
    exit = kvm_diagnosis.diagnose(registers, system, 6, ram)
    assert exit.vector == 6
    assert "#UD could not be delivered" in exit.why
    assert bytes(ram.view) == before
    ram.close()


def test_an_old_exception_is_not_blamed():
    """KVM's last exception was #UD, but the guest had a gate for it."""
    ram = GuestRam("1M")
    identity_map(ram)
    write_tables(ram, 64, {6: CODE})
    registers = Registers(rip=CODE, rsp=0x5000)
    exit = kvm_diagnosis.diagnose(registers, system_with_tables(64, 0), 6, ram)
    assert exit.vector is None
    assert exit.gate == "the gate of vector 8 has type 0x0"
    ram.close()


def test_a_vcpu_that_was_reset_is_not_diagnosed():
    ram = GuestRam("64K")
    reset = replace(SystemRegisters(), cs=Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B))
    assert "KVM reset" in kvm_diagnosis.diagnose(Registers(rip=0xFFF0), reset, 6, ram).why
    ram.close()


def test_engine_failures_are_explained():
    page = bytearray(0x3000)
    kvm_abi.U32.pack_into(page, kvm_abi.RUN_EXIT_REASON, kvm_abi.EXIT_INTERNAL_ERROR)
    kvm_abi.RUN_INTERNAL.pack_into(page, kvm_abi.RUN_UNION, 1, 4, 1, 2, b"\x0f\x0b")
    exit = kvm_exits.decode(page, 0x1234)
    assert exit == EngineFailure("KVM could not emulate the instruction at 0x1234 (0f 0b)")
    kvm_abi.RUN_INTERNAL.pack_into(page, kvm_abi.RUN_UNION, 3, 0, 0, 0, b"")
    assert "suberror 3" in kvm_exits.decode(page).why
    kvm_abi.U32.pack_into(page, kvm_abi.RUN_EXIT_REASON, kvm_abi.EXIT_FAIL_ENTRY)
    kvm_abi.RUN_FAIL_ENTRY.pack_into(page, kvm_abi.RUN_UNION, 0x80000021)
    assert "0x80000021" in kvm_exits.decode(page).why
    kvm_abi.U32.pack_into(page, kvm_abi.RUN_EXIT_REASON, 77)
    assert "reason 77" in kvm_exits.decode(page).why
