"""The same guests on the emulator and on this host's KVM: the same exits, and the same state.

Where KVM is not what the manuals say the difference has a name (`vmlib/cpu/kvm/oddities.py`), and
an oddity that makes no difference any more fails.
"""

import hashlib
import subprocess
from dataclasses import replace

import pytest
from engine_files import EMULATOR_FILES, KVM_FILES
from kvm_guests import CODE, REAL_CODE, boot
from small_guests import PROGRAMS, Program

from vmlib.cpu import (
    Budget,
    BudgetSpent,
    EngineFailure,
    Halt,
    Shutdown,
    load_guest,
    open_vm,
    probe,
)
from vmlib.cpu.exits import answer_size
from vmlib.cpu.kvm import oddities
from vmlib.cpu.state import REGISTER_NAMES

RAM = 0x40000
RF = 1 << 16  # not compared: KVM leaves it as the last fault has left it
REP = b"\xf3"
MOST = 60
VECTOR = 0x20
IMAGES = [f"vmlib/cpu/images/{name}.lst" for name in ("modes", "exits", "spin2")]


def fact(exit):
    """An exit as it is compared: the words about a shutdown are the engine's own."""
    return "SHUTDOWN" if isinstance(exit, Shutdown) else repr(exit)


def run_on(vm, vcpu, looking):
    """Run to a halt or worse; answer what is asked with bytes that depend on their place alone.

    With `looking` the registers are read at every exit, so that its instruction is finished alone.
    """
    exits, between = [], []
    while len(exits) < MOST:
        exits.append(vcpu.run())
        if isinstance(exits[-1], Halt | Shutdown | EngineFailure | BudgetSpent):
            break
        if size := answer_size(exits[-1]):
            vcpu.complete(bytes((17 * len(exits) + 5 * k + 1) & 0xFF for k in range(size)))
        if looking:
            between.append(after_rep(vm, masked(vcpu.registers())))
    return exits, between


def masked(registers):
    return replace(registers, rflags=registers.rflags & ~RF)


def after_rep(vm, registers):
    """Step over a string instruction that has no more items.

    KVM's emulator finds that out when it comes to it again (Linux arch/x86/kvm/emulate.c,
    `x86_emulate_insn`), the other at once, and no guest can tell. The guests here that do I/O with
    REP run where linear addresses are physical ones.
    """
    if vm.ram.read(registers.rip, 1) == REP and not registers.rcx:
        return replace(registers, rip=registers.rip + 2)
    return registers


def outcome(vm, vcpu, exits, between, left_out=()):
    """What must be equal: of a guest that has shut down its exits, for AMD keeps nothing else."""
    seen = {"exits": [fact(one) for one in exits]}
    if between:
        seen["registers at the exits"] = between
    if isinstance(exits[-1], Shutdown):
        return seen
    system, registers = vcpu.system(), masked(vcpu.registers())
    for name in REGISTER_NAMES:
        if name not in left_out:
            seen[name.upper()] = hex(getattr(registers, name))
    for name in ("cs", "ss", "tr", "gdt", "idt", "cr0", "cr2", "cr3", "cr4", "efer"):
        seen[name.upper()] = getattr(system, name)
    seen["RAM"] = hashlib.sha256(vm.ram.view).hexdigest()
    return seen


def small(engine, program, looking, apart=()):
    """What a small guest comes to. Bytes at the addresses `apart` are told apart, not hashed."""
    gates = {vector: code for vector, (_, code) in program.gates.items()}
    with open_vm(engine, RAM) as vm:
        vcpu = boot(vm, program.code, program.bits, program.ring, gates)
        vcpu.set_budget(Budget(seconds=20))
        ran = run_on(vm, vcpu, looking)
        told = {f"byte at {at:#x}": vm.ram.read(at, 1)[0] for at in apart}
        for at in apart:
            vm.ram.write(at, b"\0")
        return outcome(vm, vcpu, *ran) | told


def image(engine, name, looking):
    """A guest of the library's. `exits` is woken from its first HLT; `spin2` runs on two vCPUs."""
    guest = load_guest(name)
    with open_vm(engine, RAM) as vm:
        vm.ram.write(guest.at, guest.code)
        vcpus = [vm.vcpu() for _ in range(2 if name == "spin2" else 1)]
        exits, between = [], []
        for vcpu in vcpus:
            vcpu.set_budget(Budget(seconds=20))
            vcpu.start_real_mode(guest.at)
            for turn in range(2 if name == "exits" else 1):
                if turn:
                    vcpu.inject(VECTOR)
                more = run_on(vm, vcpu, looking)
                exits += more[0]
                between += more[1]
        if name == "exits":  # here CPUID has left what the CPU is called
            between = [replace(one, rbx=0, rdx=0) for one in between]
        return outcome(vm, vcpus[-1], exits, between, ("rbx",) if name == "exits" else ())


@pytest.mark.needs("unicorn", "kvm")
def test_the_engines_are_equal(check):
    with check(
        "cpu/engines-equal",
        what="The same guests on the emulator and on /dev/kvm: exits with their data, registers, "
        "all of RAM",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*EMULATOR_FILES, *KVM_FILES, "vmlib/cpu/kvm/oddities.py", *IMAGES],
    ) as record:
        for name in ("modes", "exits", "spin2"):
            ours, real = (image(engine, name, looking=False) for engine in ("unicorn", "kvm"))
            compare(record, ours, real, name)
            record.show(f"exits of {name}", len(ours["exits"]), len(real["exits"]))
        for program in PROGRAMS:
            ours, real = (small(engine, program, looking=False) for engine in ("unicorn", "kvm"))
            if program.odd:
                odd = program.odd in oddities.here()
                record.case(ours == real, not odd, f"{program} and its oddity")
            else:
                compare(record, ours, real, str(program))


def compare(record, ours, real, name):
    assert list(ours) == list(real)
    for what, value in ours.items():
        record.case(value, real[what], f"{what} of {name}")


@pytest.mark.needs("unicorn", "kvm")
@pytest.mark.parametrize("program", [one for one in PROGRAMS if not one.odd], ids=str)
def test_whoever_looks_at_every_exit_changes_nothing(program):
    ours, real = (small(engine, program, looking=True) for engine in ("unicorn", "kvm"))
    assert ours == real
    ours.pop("registers at the exits", None)
    assert ours == small("unicorn", program, looking=False)


@pytest.mark.needs("unicorn", "kvm")
@pytest.mark.parametrize("name", ["modes", "exits", "spin2"])
def test_whoever_looks_at_the_exits_of_an_image_sees_the_same(name):
    ours, real = (image(engine, name, looking=True) for engine in ("unicorn", "kvm"))
    assert ours == real


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_small_guest_gets_to_its_end(program):
    """A guest that stops halfway would be equal too."""
    seen = small("unicorn", program, looking=False)
    if program.text.endswith("hlt"):
        assert seen["exits"][-1] == "Halt()"
        first = REAL_CODE if program.bits == 16 else CODE
        end = first + len(bytes.fromhex(program.code))
        assert seen["CS"].base + int(seen["RIP"], 16) == end
    elif program.gates:  # the handler tells its number, and halts
        (vector,) = program.gates
        assert [f"port={vector | 0x10}," in seen["exits"][0], seen["exits"][1:]] == [
            True,
            ["Halt()"],
        ]
    else:
        assert seen["exits"] == ["Mmio(gpa=305419896, size=8, data=None)", "SHUTDOWN"]


def test_the_small_guests_cover_the_modes_and_name_real_oddities():
    assert {(p.bits, p.ring) for p in PROGRAMS} == {(16, 0), (32, 0), (32, 3), (64, 0), (64, 3)}
    assert len({str(p) for p in PROGRAMS}) == len(PROGRAMS) >= 25
    assert {p.odd for p in PROGRAMS} - {""} <= {one.id for one in oddities.ODDITIES}


@pytest.mark.needs("nasm")
def test_the_bytes_of_the_small_guests_are_what_their_text_says(tmp_path):
    for program in PROGRAMS:
        origin = REAL_CODE if program.bits == 16 else CODE
        pieces = [(program.text, program.code, origin)]
        pieces += [(text, code, 0) for text, code in program.gates.values()]
        for text, code, at in pieces:
            assert assemble(tmp_path, program, text, at).hex(" ") == code, str(program)


def assemble(tmp_path, program: Program, text, at):
    lines = "\n".join(text.split("; "))
    (tmp_path / "in").write_text(f"bits {program.bits}\norg {at:#x}\n{lines}\n")
    subprocess.run(["nasm", "-f", "bin", "-o", "out", "in"], check=True, cwd=tmp_path)
    return (tmp_path / "out").read_bytes()
