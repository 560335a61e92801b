"""The first guest, on the emulator and on three real systems."""

import random
import re
import subprocess
import sys

import pytest
import qemu
from engine_files import EMULATOR_FILES, KVM_FILES

from vmlib.cpu import Halt, IoOut, add_guest, load_guest, probe
from vmlib.cpu.guests import IMAGES
from vmlib.machine import Machine
from vmlib.trace import Trace

GUEST = "vmlib/cpu/images/add.lst"
EMULATOR = [GUEST, *EMULATOR_FILES, "vmlib/machine.py"]
TITLE = "The guest leaves only when the kernel cannot go on alone"
TRACE = "book/cpu/traces/add-kvm.json"

# The page's own, the edges of a byte, one to three digits, and a sample that never changes.
CASES = [(200, 100), (2, 2), (7, 5), (0, 0), (255, 255), (255, 1), (128, 128), (99, 1), (9, 1)]
CASES += [(r.randrange(256), r.randrange(256)) for r in [random.Random(2007)] for _ in range(20)]


def outcome(engine, a, b):
    with Machine(engine) as machine:
        ran = machine.load(add_guest(a, b)).run()
        return ran, machine.vcpu.registers(), machine.ram.read(0, machine.ram.size)


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize(("a", "b"), CASES[:9])
def test_it_prints_the_sum_modulo_256(a, b):
    ran, _, _ = outcome("unicorn", a, b)
    printed = f"{(a + b) % 256}\n".encode()
    assert ran.output == printed
    assert ran.exits == (*(IoOut(0x3F8, 1, bytes([c])) for c in printed), Halt())


@pytest.mark.needs("unicorn")
def test_it_runs_wherever_it_is_loaded():
    for at in (0, 0x1000, 0x7C00, 0xFF00):
        with Machine() as machine:
            assert machine.load(add_guest(200, 100), at=at).run().output == b"44\n"


@pytest.mark.needs("nasm")
def test_the_bytes_are_what_the_assembler_makes(check, tmp_path):
    version = subprocess.run(["nasm", "-v"], capture_output=True, text=True, check=True).stdout
    with check(
        "cpu/add-assembled",
        what="The bytes of the guest against its source, assembled again",
        tool="nasm",
        tool_version=version.split()[2],
        covers=[GUEST, "vmlib/cpu/images/add.asm", "vmlib/cpu/guests.py"],
    ) as record:
        for a, b in CASES:
            out = tmp_path / "add.bin"
            source = IMAGES / "add.asm"
            command = ["nasm", "-f", "bin", f"-DA={a}", f"-DB={b}", str(source), "-o", str(out)]
            subprocess.run(command, check=True)
            record.case(add_guest(a, b).code, out.read_bytes(), f"{a} + {b}")
        record.show("bytes", add_guest().code.hex(" "), load_guest("add").code.hex(" "))
        listing = tmp_path / "add.lst"
        command = ["nasm", "-f", "bin", "add.asm", "-o", str(tmp_path / "x"), "-l", str(listing)]
        subprocess.run(command, check=True, cwd=IMAGES)
        record.case((IMAGES / "add.lst").read_text(), listing.read_text(), "listing")


@pytest.mark.needs("unicorn", "kvm")
def test_same_on_kvm(check):
    with check(
        "cpu/add-kvm",
        what="The guest on the emulator against the same bytes on /dev/kvm: "
        "exits, registers after the halt, all of RAM",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*EMULATOR, *KVM_FILES],
    ) as record:
        for a, b in CASES:
            ours, our_registers, our_ram = outcome("unicorn", a, b)
            real, real_registers, real_ram = outcome("kvm", a, b)
            record.case(ours.exits, real.exits, f"exits of {a} + {b}")
            record.case(our_registers, real_registers, f"registers of {a} + {b}")
            record.case(our_ram, real_ram, f"RAM of {a} + {b}")
        ours, our_registers, _ = outcome("unicorn", 200, 100)
        real, real_registers, _ = outcome("kvm", 200, 100)
        record.show("serial port, 200 + 100", ours.output, real.output)
        record.show("exits", _named(ours), _named(real))
        for name in ("AX", "SP", "IP"):
            record.show(f"{name} after HLT", our_registers.show(name), real_registers.show(name))


def _named(ran):
    return ", ".join(f"{count} × {reason}" for reason, count in ran.counts.items())


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
def test_same_under_qemu_as_a_boot_sector(check, tmp_path):
    with check(
        "cpu/add-qemu",
        what="The guest on the emulator against the same bytes as the boot sector of a PC",
        tool="qemu-system-x86_64 -accel tcg",
        tool_version=qemu.version(),
        covers=EMULATOR,
    ) as record:
        for a, b in ((200, 100), (2, 2), (255, 255)):
            guest = add_guest(a, b)
            with Machine() as machine:
                ours = machine.load(guest, at=qemu.BOOT_ADDRESS).run().output
                registers = machine.vcpu.registers()
            folder = tmp_path / f"{a}-{b}"
            folder.mkdir()
            real = qemu.boot(guest.code, folder)
            assert real.halted, "HLT with interrupts off is final"
            show = record.show if (a, b) == (200, 100) else lambda n, x, y: record.case(x, y, n)
            show(f"serial port, {a} + {b}", ours, real.serial)
            show("AL after HLT", hex(registers.rax & 0xFF), hex(real.registers["AX"] & 0xFF))
            show("IP after HLT", hex(registers.rip), hex(real.registers["IP"]))


@pytest.mark.needs("kvm")
def test_the_forty_lines_are_at_most_forty_and_run(root, check):
    script = root / "book/cpu/vm40.py"
    lines = script.read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 78
    quoted = bytes.fromhex("".join(re.findall(r'"([0-9a-f ]+)"', script.read_text())))
    assert quoted == load_guest("add").code
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=20)
    with check(
        "cpu/vm40",
        what="The forty lines of plain ioctls on /dev/kvm against the library on the emulator",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=["book/cpu/vm40.py", GUEST],
    ) as record:
        ours, _, _ = outcome("unicorn", 200, 100)
        said = f"{ours.output.decode()}KVM_RUN returned {len(ours.exits)} times"
        record.show(
            "what it prints", said.replace("\n", " ⏎ "), ran.stdout.strip().replace("\n", " ⏎ ")
        )


@pytest.mark.needs("unicorn", "kvm")
def test_same_trace_step_for_step(root, check, request):
    """Single steps on KVM against single steps on the emulator; the page shows KVM's."""
    traces = {}
    for engine in ("unicorn", "kvm"):
        with Machine(engine) as machine:
            traces[engine] = machine.load(add_guest()).record(TITLE)
    path = root / TRACE
    if request.config.getoption("--write-checks"):
        path.parent.mkdir(exist_ok=True)
        traces["kvm"].save(path)
    recorded = Trace.load(path)
    with check(
        "cpu/add-trace",
        what="Every step of the guest, single-stepped on the emulator and on /dev/kvm",
        tool="/dev/kvm",
        tool_version=probe("kvm").version,
        covers=[*EMULATOR, *KVM_FILES, "vmlib/trace.py"],
    ) as record:
        for ours, real in zip(traces["unicorn"].steps, traces["kvm"].steps, strict=True):
            record.case(ours, real, f"step {ours.i}")
        for a, b in CASES[1:9]:
            both = []
            for engine in ("unicorn", "kvm"):
                with Machine(engine) as machine:
                    both.append(machine.load(add_guest(a, b)).record())
            for ours, real in zip(both[0].steps, both[1].steps, strict=True):
                record.case(ours, real, f"step {ours.i} of {a} + {b}")
            record.case(both[0].counters, both[1].counters, f"counters of {a} + {b}")
        ours, real = traces["unicorn"], traces["kvm"]
        record.show("steps", len(ours.steps), len(real.steps))
        for name in real.counters:
            record.show(name, ours.counters[name], real.counters[name])
        assert recorded.steps == real.steps, "the page shows an older recording"
        assert (recorded.title, recorded.counters) == (TITLE, real.counters)


@pytest.mark.needs("unicorn")
def test_exercise_1_fewest_and_most_exits():
    counts = {(a, b): len(outcome("unicorn", a, b)[0].exits) for a, b in CASES}
    assert min(counts.values()) == counts[2, 2] == counts[255, 1] == 3
    assert max(counts.values()) == counts[255, 255] == 5


@pytest.mark.needs("unicorn")
def test_exercise_2_a_guest_that_wants_to_be_slow():
    code = bytes.fromhex("b9 e8 03 e6 80 e2 fc f4")
    with Machine() as machine:
        assert machine.load(code).run().counts == {"IO": 1000, "HLT": 1}
    assert len(code) == 8


@pytest.mark.needs("kvm")
def test_exercise_3_without_set_sregs(root, tmp_path):
    lines = (root / "book/cpu/vm40.py").read_text().splitlines()
    kept = [line for line in lines if "KVM_SET_SREGS" not in line]
    assert len(kept) == len(lines) - 1
    script = tmp_path / "vm39.py"
    script.write_text("\n".join(kept))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=20)
    assert "exit_reason 17" in ran.stderr


@pytest.mark.soak
@pytest.mark.needs("unicorn", "kvm")
def test_every_pair_of_operands_on_both_engines(log_soak):
    with Machine("unicorn") as ours, Machine("kvm") as real:
        for a in range(256):
            for b in range(256):
                guest = add_guest(a, b)
                assert ours.load(guest).run() == real.load(guest).run(), (a, b)
    log_soak("The first guest on the emulator and on /dev/kvm, every pair of operands", "", 65536)
