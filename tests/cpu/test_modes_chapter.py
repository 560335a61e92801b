"""The chapter on modes, exceptions and interrupts: its figures and its claims, held against
KVM in a box, /dev/kvm on this host, and QEMU's emulator."""

import json
from dataclasses import replace

import modes_jobs
import pytest
import qemu
from box import Job
from engine_files import EMULATOR_FILES, KVM_FILES
from modes_jobs import BASELINE, MOVED, NAMES, guest_of, run_fall, trace_of

from vmlib.cpu import Budget, Debug, Guest, IoOut, load_guest, open_vm, probe
from vmlib.cpu.fall_trace import record_fall
from vmlib.cpu.falls import FALLS, RAM, fall_guest, kernel_address, start_fall, user_address
from vmlib.cpu.gate_problems import gate_problem
from vmlib.cpu.gate_trace import RECORDABLE, record_delivery
from vmlib.errors import BadInput
from vmlib.trace import Trace

OURS = [*EMULATOR_FILES, "vmlib/cpu/falls.py"]
GUESTS = [f"vmlib/cpu/images/{name}" for name in ("fall.lst", "modes.lst")]
RF = 1 << 16
TITLES = {name: FALLS[name].title for name in NAMES}

# What the chapter says a fall costs: VM exits of each kind beyond those of the guest that does not
# fall. With nested paging the kernel sees none but #UD, which KVM looks at in case it is an
# instruction of the other vendor's. With shadow paging it sees the fault itself, the handler's
# store to a page table, and the access tried again.
COST = {
    1: {"undefined": {"UD excp": 1}},
    0: {"page": {"PF excp": 3}, "undefined": {"UD excp": 1}},
}
RETURNING = [name for name in NAMES if name not in ("double", "triple")]


# --- the guest and its recordings --------------------------------------------------------------


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("name", NAMES)
def test_each_fall_is_answered_by_its_letter(name):
    ran = run_fall("unicorn", name)
    letter = FALLS[name].answer
    assert ran["printed"] == (f"{letter}\n" if letter else "")
    assert ran["exits"] == (["IO", "IO", "HLT"] if letter else ["SHUTDOWN"])


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_below_the_line_hears_of_a_fall(name):
    """Between the first instruction of ring 3 and its OUT, only guest lanes act."""
    steps = record_fall(name).steps
    first = next(s.i for s in steps if s.where == "guest user")
    fell = [s for s in steps if s.event == "fall"]
    left = next(s for s in steps if s.event == "exit")
    between = {s.where for s in steps[first : left.i]}
    if name == "triple":
        assert not fell
        assert left.state["exit"]["reason"] == "SHUTDOWN"
        return
    assert between == {"guest user", "guest kernel"}
    assert len(fell) == 1
    assert fell[0].state["crossing"] == ["guest user", "guest kernel"]
    assert left.state["exit"]["detail"].endswith(f"'{FALLS[name].answer}'")


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("name", RECORDABLE)
def test_the_inside_of_a_fall_ends_where_the_vcpu_ends(name):
    """`record_delivery` against the step of a real vCPU: registers, and the frame in RAM."""
    trace = record_delivery(name)
    shown = dict(trace.steps[-1].state["registers"])
    with open_vm("unicorn", RAM) as vm:
        vcpu = start_fall(vm, fall_guest(name))
        registers, system = vcpu.registers(), vcpu.system()
        while registers.rip >= 0x400000 or system.ss.dpl == 0:
            before, selectors = registers, system
            vcpu.step()
            registers, system = vcpu.registers(), vcpu.system()
            if selectors.ss.dpl > system.ss.dpl:
                break
        assert shown["RIP"] == hex(registers.rip)
        assert shown["RSP"] == hex(registers.rsp)
        assert shown["CS"] == hex(system.cs.selector)
        assert shown["SS"] == hex(system.ss.selector)
        assert shown["CPL"] == str(system.ss.dpl) == "0"
        assert shown["CR2"] == hex(system.cr2)
        frame = [row for row in trace.steps[-1].state["code"] if row[0].startswith("0x60")]
        assert len(frame) == (6 if name in ("page", "protection") else 5)
        for address, what, value in frame:
            in_ram = vm.ram.read_u64(int(address, 16) - 0x600000)
            assert hex(in_ram) == value, what
        named = {what: value for _, what, value in frame}
        assert named["SS"] == hex(selectors.ss.selector)
        assert named["CS"] == hex(selectors.cs.selector)
        assert named["RSP"] == hex(before.rsp)
        assert named["RIP"] == hex(before.rip + (2 if name == "int" else 0))


@pytest.mark.needs("unicorn")
def test_the_figures_are_what_is_recorded_today(root, request):
    for stem, now in {
        **{f"modes-fall-{name}": record_fall(name) for name in NAMES},
        "modes-gate": record_delivery("page"),
    }.items():
        path = root / "book/cpu/traces" / f"{stem}.json"
        if request.config.getoption("--write-checks"):
            path.parent.mkdir(exist_ok=True)
            now.save(path)
        shown = Trace.load(path)
        assert (shown.title, shown.steps) == (now.title, now.steps), stem
        assert shown.counters == now.counters


def test_unknown_falls_are_refused_by_name():
    with pytest.raises(BadInput, match="known are page, divide"):
        fall_guest("upwards")
    with pytest.raises(BadInput, match="known are page, divide"):
        record_fall("upwards")
    with pytest.raises(BadInput, match="none of page"):
        record_delivery("double")


# --- against the real --------------------------------------------------------------------------


@pytest.mark.needs("unicorn", "box")
def test_a_fall_costs_no_exit_as_the_kernel_counts_them(box, check):
    names = [BASELINE, *NAMES]
    jobs = [
        Job(f"{npt}-{name}", "modes_jobs:run_fall", ["kvm", name], npt=npt)
        for npt in COST
        for name in [*names, MOVED]
    ]
    done = box.run(jobs)
    assert not [one.error for one in done.values() if one.error]
    with check(
        "cpu/modes-box",
        what="The eight falls on the emulator against a true KVM; and what the chapter says each "
        "costs in VM exits, against the kernel's count (less those of a guest that does not fall)",
        tool="KVM in a box (kvm-amd under qemu-system-x86_64 -accel tcg)",
        tool_version=f"Linux {box.version}, QEMU {qemu.version()}",
        covers=[*OURS, GUESTS[0]],
    ) as record:
        for npt in COST:
            for name in names:
                ours, real = run_fall("unicorn", name), done[f"{npt}-{name}"].value
                if name == "double":  # KVM with shadow paging keeps CR2 of the first fault
                    del ours["cr2"], real["cr2"]
                keys = ours if name != "triple" else ("printed", "exits")  # KVM resets the vCPU
                for key in keys:
                    record.case(ours[key], real[key], f"{key} of {name}, npt={npt}")
        for npt, paging in ((1, "nested paging"), (0, "shadow paging")):
            base = exits(done[f"{npt}-{BASELINE}"])
            for name in RETURNING:
                real = exits(done[f"{npt}-{name}"])
                more = {kind: count - base.get(kind, 0) for kind, count in real.items()}
                more = {kind: count for kind, count in more.items() if count}
                said = COST[npt].get(name, {})
                if npt or said:
                    record.show(f"VM exits for {TITLES[name]}, {paging}", words(said), words(more))
                record.case(said, more, f"{name}, npt={npt}")
        moved = {k: n - base.get(k, 0) for k, n in exits(done[f"0-{MOVED}"]).items()}
        record.case({"PF excp": 1}, {k: n for k, n in moved.items() if n}, "exercise 3")
        record.case(done[f"0-{MOVED}"].value["printed"], "F\n", "exercise 3 prints")
        end = done["1-triple"].events["kvm_exit"]
        record.show(f"VM exits for {TITLES['triple']}", 1, end.get("shutdown", 0))


def exits(result):
    """VM exits by kind, without those that the clock of the box's host makes."""
    found = result.events["kvm_exit"]
    return {kind: count for kind, count in found.items() if kind != "interrupt"}


def words(kinds):
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "0"


@pytest.mark.needs("unicorn", "box")
def test_single_steps_on_a_true_kvm(box, check):
    """KVM's single step is the trap flag, which a gate clears: handlers are stepped over."""
    names = ("syscall", "page")
    jobs = [
        Job(name, "modes_jobs:trace_of", ["kvm", name], trace=False, seconds=120) for name in names
    ]
    done = box.run(jobs)
    assert not [one.error for one in done.values() if one.error]
    with check(
        "cpu/modes-steps",
        what="The figure's registers after each instruction of ring 3, single-stepped on a true "
        "KVM; SYSCALL with its handler",
        tool="KVM in a box (kvm-amd under qemu-system-x86_64 -accel tcg)",
        tool_version=f"Linux {box.version}, QEMU {qemu.version()}",
        covers=[*OURS, GUESTS[0], "vmlib/cpu/fall_trace.py", "vmlib/cpu/lanes_state.py"],
    ) as record:
        ours, real = trace_of("unicorn", "syscall"), done["syscall"].value
        record.show("steps of SYSCALL", len(ours["steps"]), len(real["steps"]))
        for one, other in zip(ours["steps"], real["steps"], strict=True):
            record.case(one, other, f"step {one['i']}")
        seen = [after_each(trace) for trace in (trace_of("unicorn", "page"), done["page"].value)]
        record.show("instructions of ring 3 around a page fault", len(seen[0]), len(seen[1]))
        record.case(*seen, "registers after each instruction")


def after_each(trace):
    """Registers as ring 3 sees them: after its own instructions, and after a fall is over."""
    found = []
    for step in trace["steps"]:
        registers = dict(step["state"]["registers"])
        if registers["CPL"] == "3" and (not found or registers["RIP"] != found[-1]["RIP"]):
            found.append(registers)
    # The emulator shows the failed attempt as a step of its own; KVM's step ends after it all.
    return [r for k, r in enumerate(found) if k == 0 or r["RIP"] != "0x4010e2" or r["CR2"] != "0x0"]


FALLS_OF_THE_HOST = ("page", "divide", "undefined", "protection")
"""Without INT n from ring 3, SYSCALL and stacks of the double fault, which kvm_pvm gets wrong."""


@pytest.mark.needs("unicorn", "kvm")
def test_the_same_on_this_hosts_kvm(check):
    with check(
        "cpu/modes-kvm",
        what="Modes and faults on the emulator against the same bytes on /dev/kvm: exits, "
        "registers, CR2, all of RAM",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*OURS, *GUESTS, *KVM_FILES],
    ) as record:
        ours, real = (run_modes(engine) for engine in ("unicorn", "kvm"))
        record.show("serial port, real to long mode", ours.pop("printed"), real.pop("printed"))
        for key, value in ours.items():
            record.case(value, real[key], f"{key} of modes")
        for name in FALLS_OF_THE_HOST:
            ours, real = (up_to_say(engine, name) for engine in ("unicorn", "kvm"))
            for key, value in ours.items():
                record.case(value, real[key], f"{key} after {name}")
            record.show(f"AL after {TITLES[name]}", ours["AL"], real["AL"])


def run_modes(engine):
    guest = load_guest("modes")
    with open_vm(engine, RAM) as vm:
        vm.ram.write(guest.at, guest.code)
        vcpu = vm.vcpu()
        vcpu.set_budget(Budget(seconds=20))
        vcpu.start_real_mode(guest.at)
        left = [(vcpu.run(), masked(vcpu.registers()))]
        while isinstance(left[-1][0], IoOut):
            left.append((vcpu.run(), masked(vcpu.registers())))
        return {
            "printed": b"".join(one.data for one, _ in left[:-1]),
            "exits and registers": left,
            **seen(vm, vcpu),
        }


def up_to_say(engine, name):
    """Fall, and come back to the instruction that would print: no port for ring 3 is needed."""
    guest = without_iopl(fall_guest(name))
    with open_vm(engine, RAM) as vm:
        vcpu = start_fall(vm, guest)
        vcpu.set_budget(Budget(seconds=20))
        vcpu.breakpoints([user_address(guest, "say")])
        assert vcpu.run() == Debug(user_address(guest, "say"))
        return {"AL": chr(vcpu.registers().rax & 0xFF), **seen(vm, vcpu)}


def without_iopl(guest: Guest) -> Guest:
    """The guest with RFLAGS 2 for ring 3: there kvm_pvm takes IOPL for 0 (`iopl_ring3`)."""
    lines = tuple(
        replace(line, code=b"\x68\x02\x00\x00\x00") if line.text == "push 0x3002" else line
        for line in guest.listing
    )
    return replace(guest, listing=lines, code=b"".join(line.code for line in lines))


def seen(vm, vcpu):
    """What must be equal. Without DS and ES, which kvm_pvm does not clear on the way outward."""
    system = vcpu.system()
    return {
        "registers": masked(vcpu.registers()),
        "mode": system.mode,
        "selectors": [system.cs.selector, system.ss.selector, system.tr.selector],
        "CR2": system.cr2,
        "CR3": system.cr3,
        "RAM": vm.ram.read(0, vm.ram.size),
    }


def masked(registers):
    """Without RF, of which the engines' tests speak."""
    return replace(registers, rflags=registers.rflags & ~RF)


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
def test_the_same_under_qemu(check, tmp_path):
    with check(
        "cpu/modes-qemu",
        what="Modes and falls on the emulator against the same bytes on QEMU's PC: what they print",
        tool="qemu-system-x86_64 -accel tcg",
        tool_version=qemu.version(),
        covers=[*OURS, *GUESTS],
    ) as record:
        for name in [n for n in NAMES if n != "triple"]:
            guest = guest_of(name)
            folder = tmp_path / name
            folder.mkdir()
            real = qemu.run_flat(guest.code, guest.at, folder)
            ours = run_fall("unicorn", name)
            record.show(TITLES[name], ours["printed"].encode(), real.serial)
            record.case(int(ours["rip"], 16), real.registers["IP"], f"RIP after {name}")


# --- what the chapter and its exercises say ----------------------------------------------------


@pytest.mark.needs("unicorn")
def test_the_kernels_stack_is_not_where_it_is_in_ram():
    trace = record_delivery("page")
    pushed = next(s for s in trace.steps if s.event == "push")
    assert "0x60bff8 lies at 0xbff8" in pushed.text


@pytest.mark.needs("unicorn")
def test_exercise_1_a_handler_that_forgets_the_error_code():
    guest = fall_guest("page")
    with open_vm("unicorn", RAM) as vm:
        vcpu = start_fall(vm, guest)
        forgets = kernel_address(guest, "on_pf") + len(guest.line("on_pf").code)
        vm.ram.write(forgets, b"\x90" * 4)  # in place of: add rsp, 8
        protection = kernel_address(guest, "on_gp") + len(guest.line("on_gp").code)
        vcpu.breakpoints([protection])
        assert vcpu.run() == Debug(protection)
        frame = vcpu.registers().rsp - 0x600000
        error_code, rip, cs = (vm.ram.read_u64(frame + 8 * k) for k in range(3))
    assert rip == forgets + 4, "the IRETQ itself has failed"
    assert cs == 0x18, "in ring 0"
    assert error_code == 0x4010E2 & 0xFFFC, "for RIP is no selector"


@pytest.mark.needs("unicorn")
def test_exercise_2_a_gate_by_hand():
    guest = fall_guest("int")
    refused = kernel_address(guest, "on_gp") + len(guest.line("on_gp").code)
    for rights, end in (("ee", IoOut(0x3F8, 1, b"S")), ("8e", Debug(refused))):
        with open_vm("unicorn", RAM) as vm:
            vcpu = start_fall(vm, guest)
            gate = bytes.fromhex(f"0000 1800 00 {rights} 0000 00000000 00000000")
            handler = kernel_address(guest, "on_80").to_bytes(2, "little")
            vm.ram.write(kernel_address(guest, "gate_128"), handler + gate[2:])
            vcpu.breakpoints([refused])
            assert vcpu.run() == end
            if rights == "8e":
                assert vm.ram.read_u64(vcpu.registers().rsp - 0x600000) == 0x80 * 8 + 2


@pytest.mark.needs("unicorn")
def test_exercise_3_a_handler_that_maps_nothing():
    assert run_fall("unicorn", MOVED)["printed"] == "F\n"


@pytest.mark.needs("unicorn")
def test_gate_problems_are_the_same_for_everybody_and_marked_by_delivering():
    problem = gate_problem(1)
    assert problem == gate_problem(1)
    assert problem.mark() == "Problem 1: not answered yet"
    assert problem.mark("#np", 0x80 * 8 + 2 + 1) == (
        "Problem 1: exception: right; error code: right"
    )
    assert problem.mark("NP", 0).endswith("error code: not what the processor pushes")
    assert "not what the processor does" in problem.mark("none")
    found = {gate_problem(seed)._delivered[0] for seed in range(30)}
    assert found == {"none", "#GP", "#NP"}
    with pytest.raises(BadInput, match="seed"):
        gate_problem(-1)


@pytest.mark.needs("unicorn")
def test_the_triple_fault_says_what_happened():
    with open_vm("unicorn", RAM) as vm:
        last = start_fall(vm, fall_guest("triple")).run()
    assert last.reason == "SHUTDOWN"
    assert (last.vector, last.cr2) == (14, 0x801147)
    assert "no gate for vector 8" in last.gate


def test_jobs_are_what_the_box_imports():
    assert modes_jobs.run_fall.__module__ == "modes_jobs"
    assert kernel_address(guest_of(BASELINE), "drop") == kernel_address(guest_of("page"), "drop")


# --- the lab: its exercises have solutions -----------------------------------------------------


def lab_cell(root, start):
    """The source of the lab's cell that defines something."""
    notebook = json.loads((root / "labs/cpu/modes.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (found,) = (cell for cell in cells if start in cell)
    return found


@pytest.fixture
def lab(root):
    """The lab's own functions."""
    names = {}
    exec(lab_cell(root, "friendly_errors()"), names)
    exec(lab_cell(root, "def land("), names)
    exec(lab_cell(root, "everything = {"), names)
    return names


@pytest.mark.needs("unicorn")
def test_the_labs_table_of_spoiled_gates_can_be_answered(lab, root, capsys):
    answers = ["F", "D", "D", "F", "D", "D", "SHUTDOWN", "SHUTDOWN"]
    cell = lab_cell(root, "mine = dict.fromkeys(spoiled)")
    solved = cell.replace("dict.fromkeys(spoiled)", f"dict(zip(spoiled, {answers}))")
    capsys.readouterr()
    exec(solved, lab)
    assert [line.rsplit(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["right"] * 8


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("seed", [1, 2, 25])
def test_the_labs_system_calls_can_be_made(lab, root, capsys, seed):
    lab["SEED"] = seed
    letter = f"{ord('a') + seed * 7 % 26:02x}"
    capsys.readouterr()
    cell = lab_cell(root, "def by_int").replace("48 cf  ", f"b0 {letter} 48 cf  ")
    exec(cell.replace("gate(0x2000)", "gate(0x2000, rights=0xEE)"), lab)
    exec(lab_cell(root, "def by_syscall").replace("48 0f 07", f"b0 {letter} 48 0f 07"), lab)
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["that is it"] * 2
    exec(cell, lab)
    assert "not it yet" in capsys.readouterr().out, "a gate that ring 3 may not use"
