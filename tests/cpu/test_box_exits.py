"""Which exits reach user space and which the kernel finishes: the kernel's own account of it.

Everything here runs on an unmodified kvm-amd in the box, under the kernel's trace events.
"""

import re
from itertools import product

import loop_jobs
import pytest
from box import Job
from engine_files import EMULATOR_FILES, KVM_FILES

from vmlib.cpu.loop import RAM, loop_guest
from vmlib.loop_trace import TRIES, record_loop
from vmlib.units import parse_size

TOOL = "kvm-amd under qemu-system-x86_64 -accel tcg"
SETTINGS = list(product(TRIES, (False, True), (False, True)))
FIGURE = [
    "vmlib/cpu/loop.py",
    "vmlib/cpu/images/loop.lst",
    "vmlib/cpu/lanes_state.py",
    "vmlib/loop_trace.py",
]
FIGURE += ["vmlib/devices/pic.py", *EMULATOR_FILES]

# What the chapter says of each instruction: for what it leaves the guest, for what KVM_RUN returns.
CLAIMS = {
    "OUT to a port": ("1 × io", "1 × IO"),
    "IN from a port": ("1 × io", "1 × IO"),
    "REP OUTSB of three bytes": ("4 × io", "3 × IO"),
    "store where no RAM is (MMIO)": ("1 × npf", "1 × MMIO"),
    "load where no RAM is (MMIO)": ("1 × npf", "1 × MMIO"),
    "HLT, no irqchip": ("1 × hlt", "1 × HLT"),
    "HLT, irqchip": ("1 × hlt", "0"),
    "OUT to the interrupt controller, irqchip": ("1 × io", "0"),
    "OUT to a doorbell (ioeventfd)": ("1 × io", "0"),
    "CPUID": ("1 × cpuid", "0"),
    "RDMSR of EFER": ("1 × msr", "0"),
    "WRMSR of EFER": ("1 × msr", "0"),
    "VMMCALL, unknown number": ("1 × hypercall", "0"),
    "first store to a page of RAM": ("1 × npf", "0"),
    "UD2, handled by the guest": ("1 × UD excp", "0"),
    "INT 0x21, handled by the guest": ("0", "0"),
    "page fault, handled by the guest": ("0", "0"),
    "MOV to CR3": ("0", "0"),
    "store to RAM": ("0", "0"),
}
FAULT = "page fault, handled by the guest"


def difference(more, less, event, times):
    """How often an event happened for each time, in words; the clock's own are left out."""
    said = []
    for kind in sorted(more.events.get(event, {}).keys() | less.events.get(event, {}).keys()):
        if kind in ("interrupt", "restart"):
            continue
        each, rest = divmod(more.count(event, kind) - less.count(event, kind), times)
        assert not rest, f"{kind}: {more.events[event]} and {less.events[event]}"
        if each:
            said.append(f"{each} × {kind.removeprefix('KVM_EXIT_')}")
    return ", ".join(said) or "0"


@pytest.mark.needs("unicorn", "box")
def test_which_exits_reach_user_space(check, box):
    """Each instruction many times and not at all: what is more, is its own."""
    times = loop_jobs.TIMES
    jobs = [
        Job(f"{name}, {n}", "loop_jobs:repeat", ["kvm", name, n])
        for name, n in product(loop_jobs.INSTRUCTIONS, (0, times))
    ]
    jobs += [Job(f"fall {name}", "modes_jobs:run_fall", ["kvm", name]) for name in ("none", "page")]
    done = box.run(jobs)
    assert [result.error for result in done.values()] == [None] * len(jobs)
    with check(
        "cpu/box-exits",
        what="What each instruction costs: how often it leaves the guest and why, and how often "
        "KVM_RUN returns, in the kernel's own count",
        tool=TOOL,
        tool_version=f"Linux {box.version}",
        covers=[*KVM_FILES, "tests/cpu/loop_jobs.py"],
    ) as record:
        assert CLAIMS.keys() - {FAULT} == loop_jobs.INSTRUCTIONS.keys()
        for name, (leaves, returns) in CLAIMS.items():
            if name == FAULT:
                more, less, by = done["fall page"], done["fall none"], 1
                assert (more.value["cr2"], less.value["cr2"]) == ("0x801147", "0x0")
            else:
                more, less, by = done[f"{name}, {times}"], done[f"{name}, 0"], times
                reached = more.count("kvm_userspace_exit") - more.count(
                    "kvm_userspace_exit", "restart"
                )
                record.case(len(more.value) + 1, reached, f"exits our engine saw of {name}")
            real = [difference(more, less, e, by) for e in ("kvm_exit", "kvm_userspace_exit")]
            record.show(name, f"{leaves}; {returns}", "; ".join(real))


# --- the figure -------------------------------------------------------------------------------

REASONS = {
    "out": "io",
    "in": "io",
    "mov": "npf",
    "hlt": "hlt",
    "cpuid": "cpuid",
    "rdmsr": "msr",
    "vmmcall": "hypercall",
}


def account(lines, first):
    """The kernel's account: (address, reason, whether KVM_RUN returned) of each exit from `first`.

    Left out are the host's own interrupts and the first touch of a page of RAM.
    """
    exits, faults = [], {}
    for line in lines:
        if left := re.search(r"kvm_exit: vcpu 0 reason (.*?) ?rip (0x\w+)", line):
            exits.append([left[2], left[1], False])
        elif fault := re.search(r"kvm_page_fault: .* address (0x\w+)", line):
            faults[len(exits) - 1] = int(fault[1], 16)
        elif "kvm_userspace_exit: reason KVM_EXIT" in line:
            exits[-1][2] = True
    return [
        tuple(left)
        for k, left in enumerate(exits)
        if left[1] != "interrupt" and faults.get(k, 1 << 40) >= parse_size(RAM)
        if int(left[0], 16) >= first
    ]


def told(trace):
    """The same account, as the figure tells it."""
    exits = []
    for step in trace.steps:
        if step.event == "instruction":
            address, _, text = step.state["code"][step.state["line"]]
        elif step.event in ("exit", "handled"):
            reason = REASONS[text.split()[0]]
            exits.append((f"{int(address, 16):#x}", reason, step.event == "exit"))
    return exits


@pytest.mark.needs("unicorn", "box")
def test_the_figure_tells_what_the_kernel_did(check, box):
    """All settings of the figure's switches: every exit, in order, and how deep it went."""
    names = {setting: " ".join(map(str, setting)) for setting in SETTINGS}
    jobs = [Job(names[setting], "loop_jobs:run_loop", setting, lines=True) for setting in SETTINGS]
    done = box.run(jobs)
    assert [result.error for result in done.values()] == [None] * len(jobs)
    with check(
        "cpu/loop-kernel",
        what="The figure at every setting of its switches against the kernel's own account of "
        "the same guest: each exit, its address, its reason, and whether KVM_RUN returned",
        tool=TOOL,
        tool_version=f"Linux {box.version}",
        covers=[*FIGURE, *KVM_FILES],
    ) as record:
        for setting in SETTINGS:
            tries, irqchip, ioeventfd = setting
            trace, real = record_loop(*setting), done[names[setting]]
            ours, kernel = told(trace), account(real.lines, loop_guest(tries).handler)
            for one, other in zip(ours, kernel, strict=True):
                record.case(one, other, names[setting])
            record.case(int(ioeventfd), real.value["rang"], f"rings, {names[setting]}")
            # The last OUT is not finished in the figure, so its IP still stands there.
            record.case(
                dict(trace.steps[-1].state["registers"]) | {"IP": real.value["registers"]["IP"]},
                real.value["registers"],
                f"registers, {names[setting]}",
            )
            if tries == "out":
                off = [text for on, text in ((irqchip, "irqchip"), (ioeventfd, "ioeventfd")) if on]
                name = f"exits / returns, {' and '.join(off) or 'both switches off'}"
                counts = (f"{len(x)} / {sum(one[2] for one in x)}" for x in (ours, kernel))
                record.show(name, *counts)
