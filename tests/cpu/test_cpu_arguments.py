"""Whatever is not of the kind that is meant is refused by name, and the vCPU is as it was."""

import inspect
from dataclasses import replace

import pytest

from vmlib.cpu import (
    Budget,
    Guest,
    Mmio,
    Registers,
    SystemRegisters,
    Vcpu,
    Vm,
    add_guest,
    fall_guest,
    gate_problem,
    load_guest,
    loop_guest,
    open_svm,
    open_vm,
    record_delivery,
    record_fall,
    record_vmrun,
    start_fall,
)
from vmlib.cpu.assemble import assemble
from vmlib.devices import Bus, FwCfg, PicPair, Uart
from vmlib.errors import BadInput, VmlibError
from vmlib.machine import Machine, record_loop

NOT_A_NUMBER = (None, 1.5, float("nan"), float("inf"), "", "1", b"x", [], {}, print)
NUMBERS = (-1, 1 << 70)
NOT_BYTES = (None, 1, 1.5, "x", [1], {}, print)
NOT_A_FLAG = (None, 1.5, 2, "", [], print)
NEVER = (None, 1, 1.5, float("nan"), "x", b"x", [], [1], {}, print)
"""Of no kind that is asked for where a whole state, a table or a controller is."""
ENGINES = [
    pytest.param("unicorn", marks=pytest.mark.needs("unicorn")),
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
]
NOTHING = {
    "run",
    "step",
    "refuse",
    "kick",
    "registers",
    "system",
    "save",
    "close",
    "vcpu",
    "reset_irqchip",
}
"""Methods that take nothing, so nothing wrong."""


def states(saved):
    """States of which one part is wrong, and the part's name."""
    for part in ("registers", "system", "xsave", "msrs", "debug"):
        for bad in NEVER:
            # An empty list of MSRs is a list, and not the tuple that is meant.
            yield replace(saved, **{part: bad}), part
    for bad in ((None,), ((),), ((0x174,),), ((0x174, None),), ((1.5, 0),)):
        yield replace(saved, msrs=bad), "msrs"
    for bad in NOT_A_NUMBER:
        yield replace(saved, debug=(bad,) * 6), "debug"
        yield replace(saved, registers=replace(saved.registers, r9=bad)), "r9"
        yield replace(saved, system=replace(saved.system, cr2=bad)), "cr2"
        cs = replace(saved.system.cs, limit=bad)
        yield replace(saved, system=replace(saved.system, cs=cs)), "cs.limit"
        if bad is not None:
            yield replace(saved, interrupt=bad), "interrupt"
    for bad in NOT_A_FLAG:
        yield replace(saved, halted=bad), "halted"
        yield replace(saved, shadow=bad), "shadow"


def vcpu_calls(vcpu, saved):
    """Yield (method, arguments, the field that is wrong)."""
    for bad in NOT_A_NUMBER + NUMBERS:
        yield "start_real_mode", (bad,), "ip"
        yield "start_real_mode", (0, bad), "sp"
        yield "start_protected_mode", (bad,), "eip"
        yield "start_protected_mode", (0, bad), "esp"
        yield "start_long_mode", (bad, 0, 0x1000), "rip"
        yield "start_long_mode", (0, bad, 0x1000), "rsp"
        yield "start_long_mode", (0, 0, bad), "cr3"
        yield "inject", (bad,), "vector"
        yield "breakpoints", ([bad],), "breakpoints"
        yield "set_registers", (replace(Registers(), rip=bad),), "rip"
        for name in ("cr0", "cr8", "efer"):
            yield "set_system", (replace(SystemRegisters(), **{name: bad}),), name
    for bad in (None, 1, 1.5, "", "x", b"", print):
        yield "breakpoints", (bad,), "breakpoints"
    for bad in NOT_BYTES:
        yield "complete", (bad,), "data"
    for bad in NEVER:
        yield "set_budget", (bad,), "budget"
        yield "set_registers", (bad,), "registers"
        yield "set_system", (bad,), "system"
        yield "intercept", (str(bad),), "intercept"
        yield "restore", (bad,), "state"
        for name in ("cs", "ldt", "gdt", "idt"):
            yield "set_system", (replace(SystemRegisters(), **{name: bad}),), name
    for state, field in states(saved):
        yield "restore", (state,), field


def vm_calls(engine):
    """Yield the same for a VM."""
    for bad in NOT_A_NUMBER + NUMBERS:
        yield "doorbell", (bad, 1), {}, "address"
        yield "doorbell", (0x40, bad), {}, "size"
        if bad is not None:
            yield "doorbell", (0x40, 1), {"match": bad}, "match"
        yield "set_irq", (bad, True), {}, "line"
        if engine == "unicorn":
            yield "handle_ports", (bad, 1, int, print), {}, None
            yield "handle_ports", (0x40, bad, int, print), {}, None
            yield "handle_memory", (bad, 4096, int, print), {}, "gpa"
            yield "handle_memory", (1 << 30, bad, int, print), {}, "size"
    for bad in NOT_A_FLAG:
        yield "doorbell", (0x40, 1), {"mmio": bad}, "mmio"
        yield "set_irq", (3, bad), {}, "level"
    for bad in NEVER[:-1]:
        if engine == "unicorn":
            yield "handle_ports", (0x40, 1, bad, print), {}, "read"
            yield "handle_memory", (1 << 30, 4096, int, bad), {}, "write"
        yield "create_irqchip", (bad or 0,), {}, "controller"


def refused(act, field, *args, **kwargs):
    """The call raises a `BadInput` that names the field: no other error, and it doesn't pass."""
    with pytest.raises(BadInput) as told:
        act(*args, **kwargs)
    said = told.value.field
    assert field is None or field in (said, said.partition(" ")[0]), (said, told.value.rule)
    assert told.value.rule


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vcpu_that_refuses_has_lost_nothing(engine):
    """An IN waits for its answer, and a budget and a breakpoint are set; all of that stays."""
    with open_vm(engine) as vm:
        vm.ram.write(0x1000, bytes.fromhex("e4 60 90 90 f4"))  # in al, 0x60; nop; nop; hlt
        vcpu = vm.vcpu()
        saved = vcpu.save()
        seen, asks = set(), 0
        for name, args, field in vcpu_calls(vcpu, saved):
            if name not in seen or asks >= 40:
                vcpu.start_real_mode(0x1000)
                vcpu.set_budget(Budget(seconds=5))
                vcpu.breakpoints([0x1003])
                assert vcpu.run().port == 0x60
                asks = 0
            seen.add(name)
            asks += 1
            refused(getattr(vcpu, name), field, *args)
            if asks == 40 or name == "start_long_mode":
                vcpu.complete(b"\x5a")  # the IN is there still
                before = vcpu.save()
                assert before.registers.rax & 0xFF == 0x5A
                refused(getattr(vcpu, name), field, *args)
                assert vcpu.save() == before
                assert vcpu.run().address == 0x1003
                assert vcpu.run().reason == "HLT"
                asks = 40
        methods = {n for n, _ in inspect.getmembers(Vcpu, inspect.isfunction) if n[0] != "_"}
        assert seen == methods - NOTHING


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vm_names_what_is_wrong(engine):
    with open_vm(engine) as vm, open_vm(engine) as bare:
        vm.create_irqchip(*[PicPair()] * (engine == "unicorn"))
        seen = {"handle_ports", "handle_memory"}  # KVM has none
        for name, args, kwargs, field in vm_calls(engine):
            seen.add(name)
            refused(getattr(bare if name == "create_irqchip" else vm, name), field, *args, **kwargs)
        methods = {n for n, _ in inspect.getmembers(Vm, inspect.isfunction) if n[0] != "_"}
        assert seen == methods - NOTHING
        vm.doorbell(0x40, 1)  # nothing of all that has taken its place
        vm.vcpu()


@pytest.mark.needs("kvm")
def test_what_kvm_itself_refuses_changes_nothing():
    """A state that fits and contradicts itself is found out in the midst of taking it over."""
    with open_vm("kvm") as vm:
        # mov ax, 0xb800; mov ds, ax; mov es, ax; mov cx, 3; rep movsb; hlt
        vm.ram.write(0x1000, bytes.fromhex("b8 00 b8 8e d8 8e c0 b9 03 00 f3 a4 f4"))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        assert vcpu.run() == Mmio(0xB8000, 1, None)
        vcpu.complete(b"a")
        wrong = replace(vcpu.system(), efer=1 << 10)  # LMA without LME
        vcpu.inject(0x20)
        before = vcpu.save()
        refused(vcpu.set_system, "system", wrong)
        assert vcpu.save() == before
        assert vcpu.run() == Mmio(0xB8000, 1, b"a")  # the store that was still to come
        before = vcpu.save()
        refused(vcpu.restore, "system", replace(before, system=wrong))
        assert vcpu.save() == before
        for unknown in ({"msrs": ((0x123456, 1),)}, {"xsave": b"\xff" * 4096}):
            with pytest.raises(VmlibError):
                vcpu.restore(replace(before, registers=Registers(rax=7), **unknown))
            assert vcpu.save() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_machine_names_what_is_wrong_and_keeps_its_guest(engine):
    with Machine(engine, ram="2M") as machine:
        machine.load(add_guest(1, 2))
        for bad in (None, -1, 1 << 70, 1.5, "", "x", b"", {}, print):
            refused(machine.load, "code", bad)
        for bad in (*NOT_A_NUMBER[1:], *NUMBERS, 0x10000):
            refused(machine.load, "at", b"\xf4", bad)
        refused(machine.load, "gpa", Guest("big", bytes(1 << 21), ()), 0x1000)
        for bad in (None, 1, 1.5, [], {}, print):
            refused(machine.load_multiboot, "image", bad)
        refused(machine.load_multiboot, None, "\0")
        for bad in (None, 1, b"x", "\0", "\ud800"):
            refused(machine.load_multiboot, "command_line", load_guest("multiboot"), bad)
        assert not any(machine.ram.view[1 << 20 :])  # the kernel isn't there either
        for bad in (None, 1, "AX", (None,), ([],), (b"",), b"x", print):
            refused(machine.record, "registers", "title", bad)
        refused(machine.record, "register", "title", ("XX",))
        refused(machine.record, "title", None)
        for bad in NOT_A_NUMBER:
            refused(machine.record, "limit", "title", ("AX",), bad)
        for bad in NOT_BYTES:
            refused(machine.board.receive, "data", bad)
        assert machine.run().output == b"3\n"
    for bad in NEVER[1:-1]:
        refused(Machine, "console", engine, console=bad)
    for name, bad in (("ram", None), ("ram", 1.5), ("budget", 1.5), ("budget", [])):
        refused(Machine, name, engine, **{name: bad})


@pytest.mark.needs("unicorn")
def test_svm_names_what_is_wrong():
    with open_svm("1M") as host:
        vmcb = host.vmcb()
        tables = host.nested_paging(vmcb)
        kept, free = host.ram.read(vmcb.at, 4096), host.allocate()
        for bad in NOT_A_NUMBER:
            refused(host.allocate, "pages", bad)
            refused(host.vmrun, "vmcb_pa", bad)
            refused(host.vmrun, "timer", vmcb.at, bad)
            refused(vmcb.__setitem__, "RIP", "RIP", bad)
            refused(vmcb.set_state, "RIP", SystemRegisters(), bad)
            refused(vmcb.permit_msr, "index", bad, read=True, write=True)
            refused(tables.map, None, bad, 0, 4096)
            refused(tables.unmap, "gpa", bad)
            host.ram.write(vmcb.at, kept)  # of a whole state some fields were set
        for bad in NEVER:
            refused(vmcb.__getitem__, "field", bad)
            refused(vmcb.intercept, None, bad)
            refused(vmcb.set_segment, "segment", "CS", bad)
            refused(vmcb.set_state, "system", bad, 0)
            refused(host.nested_paging, "vmcb", bad)
            refused(record_vmrun, "vmcb", host, bad, load_guest("vmrun_guest"), str)
        assert host.allocate() == free + 4096


def test_problems_and_guests_name_what_is_wrong():
    for bad in (1, 1.5, [], {}, b"x"):
        refused(gate_problem(1).mark, "exception", bad)
        refused(loop_guest, "tries" if bad.__hash__ is None else None, bad)
        refused(fall_guest, None, bad)
    for bad in (None, 1, [1], print):
        refused(record_loop, "tries", bad)
    refused(assemble, "text", None)
    refused(assemble, "at", "nop", at=1.5)
    for text in ("mov al, 08", "mov al, ٣", "mov al, 'é'"):
        refused(assemble, "asm", text)
    for bad in NOT_A_NUMBER[4:]:
        refused(Budget, "seconds", bad)
    for bad in NOT_A_NUMBER[1:]:
        refused(Budget, "instructions", None, bad)


@pytest.mark.needs("unicorn")
def test_recordings_name_what_is_wrong():
    for bad in (1, None, [], "x"):
        refused(record_fall, None, bad)
        refused(record_delivery, None, bad)
    with open_vm() as vm:
        refused(start_fall, "guest", vm, None)


def test_devices_name_what_is_wrong():
    bus = Bus("ports", 1 << 16)
    for bad in NOT_A_NUMBER:
        refused(bus.attach, "first", Uart(print), bad, 1)
        refused(bus.attach, "count", Uart(print), 0, bad)
        refused(FwCfg, "ram_size", bad)
        refused(FwCfg, "cpus", 1, bad)
        refused(PicPair().set_irq, "line", bad, True)
    for bad in NEVER[:-1]:
        refused(bus.attach, "device", bad, 0, 1)
    assert bus.claims == ()
