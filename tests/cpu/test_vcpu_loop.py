"""The chapter on the two loops: its figure, its problems, and what it says of threads."""

import json
import os
import re
import threading
import time
from itertools import product
from pathlib import Path

import loop_jobs
import pytest
from engine_files import KVM_FILES
from test_box_exits import FIGURE

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    Cpuid,
    Halt,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    open_vm,
    probe,
)
from vmlib.cpu.loop import DOORBELL, loop_guest
from vmlib.errors import BadInput
from vmlib.loop_problems import loop_problem
from vmlib.loop_trace import TRIES, opening, record_loop
from vmlib.machine import Machine
from vmlib.trace import Trace
from vmlib.units import parse_hex

TRACE = "book/cpu/traces/loop-out.json"
SETTINGS = list(product(TRIES, (False, True), (False, True)))


def returned(trace: Trace) -> list[str]:
    """What KVM_RUN returned for, as in `loop_jobs.run_loop`."""
    exits = [step.state["exit"] for step in trace.steps if step.event == "return"]
    return [f"{one['reason']} {one['detail']}".strip() for one in exits]


@pytest.mark.needs("unicorn")
def test_the_page_shows_todays_recording(root, request):
    path = root / TRACE
    if request.config.getoption("--write-checks"):
        record_loop().save(path)
    now, shown = record_loop(), Trace.load(path)
    assert shown.steps == now.steps
    assert shown.counters == now.counters
    assert shown.provenance.guest_sha256 == now.provenance.guest_sha256


@pytest.mark.needs("unicorn")
def test_it_opens_where_the_answer_is_not_given_yet():
    for tries in TRIES:
        trace = record_loop(tries)
        step = trace.steps[opening(trace, tries)]
        listing = loop_guest(tries).guest.listing
        before_the_bell = next(k for k, line in enumerate(listing) if line.label == "ring") - 1
        assert step.text.startswith(listing[before_the_bell].text)
        assert step.state["exit"] is None


@pytest.mark.needs("unicorn")
def test_switches_change_how_deep_an_exit_goes_and_not_how_many_there_are():
    for tries in TRIES:
        leaves, deep = [], []
        for irqchip, ioeventfd in product((False, True), repeat=2):
            events = [step.event for step in record_loop(tries, irqchip, ioeventfd).steps]
            leaves.append(events.count("return") + events.count("handled"))
            deep.append(events.count("return"))
        assert len(set(leaves)) == 1
        assert deep == [deep[0], deep[0] - 1, deep[0] - 2, deep[0] - 3]


@pytest.mark.needs("unicorn", "kvm")
def test_the_same_returns_on_kvm(check):
    """On this host's KVM, but for the hypercall, in which some hosts hang; see the box for it."""
    with check(
        "cpu/loop-kvm",
        what="The guest of the figure on /dev/kvm, at every setting of the switches: what KVM_RUN "
        "returns for, in order, and how often the doorbell rang",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*FIGURE, *KVM_FILES],
    ) as record:
        for tries, irqchip, ioeventfd in SETTINGS:
            if tries == "vmmcall":
                continue
            ours = returned(record_loop(tries, irqchip, ioeventfd))
            real = loop_jobs.run_loop(tries, irqchip, ioeventfd)
            after_firmware = real["exits"][0 if irqchip else 5 :]
            record.case(ours, after_firmware, f"{tries}, {irqchip}, {ioeventfd}")
            record.case(int(ioeventfd), real["rang"], f"rings of {tries}, {irqchip}, {ioeventfd}")
            if tries == "out":
                name = f"irqchip {'on' if irqchip else 'off'}, ioeventfd "
                record.show(
                    name + ("on" if ioeventfd else "off"),
                    ", ".join(one.split()[0] for one in ours),
                    ", ".join(one.split()[0] for one in after_firmware),
                )


@pytest.mark.needs("unicorn")
def test_one_guest_can_try_several_things():
    trace = record_loop(["cpuid", "in", "store"], True, True)
    assert [one.split()[0] for one in returned(trace)] == ["IO", "MMIO", "IO"]
    with pytest.raises(BadInput, match="'halt' is unknown"):
        loop_guest("halt")


@pytest.mark.needs("unicorn")
def test_problems_are_the_same_for_everybody_and_marked_by_running():
    problem = loop_problem(1)
    assert problem == loop_problem(1) != loop_problem(2)
    events = [step.event for step in problem.trace.steps]
    returns = events.count("return")
    exits = returns + events.count("handled")
    assert problem.mark(exits, returns) == "Problem 1: exits: right; returns: right"
    assert problem.mark(exits + 1, returns) == "Problem 1: exits: not what happens; returns: right"
    assert "returns: not answered yet" in problem.mark(exits)
    assert all(TRIES[one] in problem.question for one in problem.tries)
    with pytest.raises(BadInput, match="seed"):
        loop_problem(-1)


# --- what the chapter says of the two loops -------------------------------------------------


@pytest.mark.needs("unicorn")
def test_a_look_at_the_registers_finishes_the_instruction():
    """The chapter breaks it so: who looks before answering has answered with ones."""
    with open_vm() as vm:
        vm.ram.write(0x1000, bytes.fromhex("ba fd 03 ec f4"))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        assert vcpu.run() == IoIn(0x3FD, 1)
        assert vcpu.registers().show("AX") == "0x00ff"
        with pytest.raises(BadInput, match="no exit is waiting"):
            vcpu.complete(b"\x60")


@pytest.mark.needs("unicorn")
def test_a_doorbell_has_a_width():
    with open_vm() as vm:
        bell = vm.doorbell(DOORBELL, 2)
        vm.ram.write(0x1000, bytes.fromhex("ba 10 c0 ef ee f4"))  # a word, then a byte
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        assert vcpu.run() == IoOut(DOORBELL, 1, b"\0")
        assert bell.take() == 1
        assert vcpu.run() == Halt()


@pytest.mark.needs("unicorn")
def test_what_is_finished_inside_is_counted_apart():
    """The chapter's run with the controller below: three returns, and six words to it."""
    with Machine("unicorn", irqchip=True) as machine:
        machine.load(loop_guest("out").guest)
        alarm = threading.Timer(0.05, machine.set_irq, (0, True))
        alarm.start()
        outcome = machine.run()
        assert outcome.counts == {"IO": 3}
        assert machine.vcpu.handled == {"IO": 6, "IRQ": 1}


@pytest.mark.needs("unicorn")
def test_an_interrupt_waits_for_its_window():
    with open_vm() as vm:
        vm.ram.write(0x1000, bytes.fromhex("fa 90 90 fb 90 90 f4"))
        vm.ram.write(4 * 0x20, (0x2000).to_bytes(4, "little"))
        vm.ram.write(0x2000, bytes.fromhex("b0 21 e6 80 cf"))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        vcpu.inject(0x20)
        assert [vcpu.run() for _ in range(3)] == [
            InterruptWindow(),
            IoOut(0x80, 1, b"!"),
            Halt(),
        ]


def on_thread(vcpu, at, cpu):
    """Start a vCPU in a thread of its own, pinned to a host CPU."""

    def live():
        os.sched_setaffinity(0, {cpu})
        Path("/proc/thread-self/comm").write_text(f"CPU {vcpu.index}")
        vcpu.start_real_mode(at)
        seen.append(vcpu.run())

    seen: list = []
    thread = threading.Thread(target=live)
    thread.start()
    return thread, seen


@pytest.mark.needs("kvm")
def test_a_vcpu_is_a_thread_that_proc_knows():
    cpu = min(os.sched_getaffinity(0))
    with open_vm("kvm") as vm:
        vm.ram.write(0x1000, bytes.fromhex("eb fe"))
        vcpus = [vm.vcpu(), vm.vcpu()]
        lives = [on_thread(vcpu, 0x1000, cpu) for vcpu in vcpus]
        try:
            tasks = [Path(f"/proc/self/task/{thread.native_id}") for thread, _ in lives]
            end = time.monotonic() + 20
            ran = [0, 0]
            while min(ran) < 100_000_000 and time.monotonic() < end:  # ns, each
                time.sleep(0.01)
                ran = [int((task / "schedstat").read_text().split()[0]) for task in tasks]
            waited = [int((task / "schedstat").read_text().split()[1]) for task in tasks]
            names = [(task / "comm").read_text().strip() for task in tasks]
            allowed = [os.sched_getaffinity(thread.native_id) for thread, _ in lives]
        finally:
            for vcpu in vcpus:
                vcpu.kick()
            for thread, _ in lives:
                thread.join()
    assert names == ["CPU 0", "CPU 1"]
    assert allowed == [{cpu}, {cpu}]
    assert min(ran) >= 100_000_000, "both ran, on one CPU"
    assert min(waited) > 0, "and each waited for the other"
    assert [seen for _, seen in lives] == [[Kicked()], [Kicked()]]


@pytest.mark.needs("kvm")
def test_a_halted_vcpu_with_an_irqchip_sleeps_in_the_kernel():
    with open_vm("kvm") as vm:
        vm.create_irqchip()
        vm.ram.write(0x1000, bytes.fromhex("fa f4"))  # and nothing can wake it: cli
        vcpu = vm.vcpu()
        thread, seen = on_thread(vcpu, 0x1000, min(os.sched_getaffinity(0)))
        try:
            end = time.monotonic() + 20
            while not loop_jobs.sleeps(thread.native_id) and time.monotonic() < end:
                time.sleep(0.01)
            assert loop_jobs.sleeps(thread.native_id)
            stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            assert stat.rsplit(")", 1)[1].split()[0] == "S"
            assert seen == []
        finally:
            vcpu.kick()
            thread.join()
    assert seen == [Kicked()]


@pytest.mark.needs("unicorn")
def test_a_kick_before_the_run_is_not_lost():
    with open_vm() as vm:
        vm.ram.write(0x1000, bytes.fromhex("eb fe"))
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        vcpu.kick()
        assert vcpu.run() == Kicked()


@pytest.mark.needs("unicorn")
def test_exercise_2_leaves_a_thousand_times():
    code = bytes.fromhex("be e8 03  0f a2  4e  75 fb  f4")
    assert len(code) == 9
    with open_vm() as vm:
        vm.ram.write(0x1000, code)
        vcpu = vm.vcpu()
        vcpu.intercept("cpuid")
        vcpu.start_real_mode(0x1000)
        while not isinstance(left := vcpu.run(), Halt):
            assert isinstance(left, Cpuid)
            vcpu.complete(b"\xff" * 16)
        assert vcpu.exits == {"CPUID": 1000, "HLT": 1}
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        assert vcpu.run() == Halt()
        assert vcpu.exits == {"HLT": 1}


@pytest.mark.needs("unicorn")
def test_the_labs_loop_can_be_written(root):
    """The outer loop of section 2, with its three cases filled in."""
    cells = json.loads((root / "labs/cpu/vcpu-loop.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if "def outer_loop" in "".join(c["source"]))
    hole = "            # ✎ IoIn(port=…), Mmio(gpa=…, data=None), Mmio(gpa=…, data=data)\n"
    assert hole in source
    solution = """\
            case IoIn():
                vcpu.complete(b"\\x20")
            case Mmio(gpa=gpa, data=None):
                vcpu.complete(bytes([screen[gpa]]))
            case Mmio(gpa=gpa, data=data):
                screen[gpa] = data[0]
"""
    names = {"SEED": 3, "ENGINE": "unicorn", "parse_hex": parse_hex, "open_vm": open_vm}
    names |= {"Budget": Budget, "BudgetSpent": BudgetSpent}
    names |= {"IoIn": IoIn, "IoOut": IoOut, "Mmio": Mmio, "Halt": Halt, "print": lambda *_: None}
    exec(source.replace(hole, solution), names)
    assert names["sent"] == names["letter"].encode()
    assert names["screen"][0xB8002] == ord(names["letter"])


def test_the_table_of_the_chapter_is_the_kernels(root):
    """The rows of the page's table come from a record, and it has one for each claim."""
    data = json.loads((root / "checks/cpu/box-exits.json").read_text())
    assert data["real"].keys() >= loop_jobs.INSTRUCTIONS.keys()
    form = re.compile(r"(0|\d+ × [\w ]+(, \d+ × [\w ]+)*); (0|\d+ × [A-Z_]+)")
    assert all(form.fullmatch(row) for row in data["real"].values())
