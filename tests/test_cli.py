"""`python -m vmlib run` as a shell sees it: what is on stdout, on stderr, and the exit status."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from vmlib.__main__ import main
from vmlib.cpu import EngineStatus, add_guest, load_guest
from vmlib.cpu.kvm.oddities import ODDITIES
from vmlib.trace import Trace

pytestmark = pytest.mark.needs("unicorn")

HALT = b"\xfa\xf4"
LOOP = b"\xeb\xfe"
# lidt [0x2000] (limit 0); mov eax, cr0; or al, 1; mov cr0, eax; ud2
CRASH = bytes.fromhex("0f 01 1e 00 20 0f 20 c0 0c 01 0f 22 c0 0f 0b")


def vmlib(*arguments, **more):
    command = [sys.executable, "-m", "vmlib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **more)


@pytest.fixture
def flat(tmp_path):
    def write(code, at="1000"):
        path = tmp_path / "guest.bin"
        path.write_bytes(code)
        return f"{path}@{at}"

    return write


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel.elf"
    path.write_bytes(load_guest("multiboot").code)
    return path


@pytest.mark.parametrize("at", ["0", "1000", "0x7C00", "ff00"])
def test_a_flat_guest_prints_and_halts(flat, at):
    done = vmlib("run", "--engine", "unicorn", "--flat", flat(add_guest(200, 100).code, at))
    assert (done.returncode, done.stdout) == (0, b"44\n")


@pytest.mark.needs("kvm")
def test_the_same_on_kvm(flat, kernel):
    done = vmlib("run", "--engine", "kvm", "--flat", flat(add_guest(200, 100).code))
    assert (done.returncode, done.stdout) == (0, b"44\n")
    done = vmlib("run", "--engine", "kvm", "--multiboot", kernel)
    assert done.returncode == 0x10 << 1 | 1
    assert done.stdout == vmlib("run", "--multiboot", kernel).stdout


def test_the_state_of_a_flat_start(flat):
    """CS base 0, DS=ES=SS=0, SP=0x0f00, interrupts off, general registers zero."""
    code = b""
    for load in ("89e0", "8cd0", "8cd8", "8cc0", "8cc8", "9c58"):  # mov ax, ...; pushf, pop ax
        code += bytes.fromhex(f"{load} baf803 88c3 88e0 ee 88d8 ee")  # high byte, then low byte
    done = vmlib("run", "--quiet", "--flat", flat(code + HALT, "1234"))
    words = [done.stdout[k : k + 2].hex() for k in range(0, 12, 2)]
    assert words == ["0f00", "0000", "0000", "0000", "0000", "0002"]


def test_bytes_reach_stdout_as_they_are(flat):
    code = bytes.fromhex("ba f8 03 b0 00 ee fe c0 75 fb f4")  # out 0, 1, ..., 255
    done = vmlib("run", "--flat", flat(code))
    assert done.stdout == bytes(range(256))


def test_bytes_reach_stdout_at_once(flat):
    """A guest that loops after its first letter has been heard all the same."""
    code = bytes.fromhex("ba f8 03 b0 41 ee") + LOOP
    command = [sys.executable, "-m", "vmlib", "run", "--flat", flat(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout.read(1) == b"A"
        finally:
            running.kill()


def test_a_reader_that_goes_away_ends_the_guest_without_a_word(flat):
    """As `head` does: the guest writes on, and SIGPIPE ends the process."""
    code = bytes.fromhex("ba f8 03 b0 41 ee eb fd")
    command = [sys.executable, "-m", "vmlib", "run", "--budget", "20s", "--flat", flat(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.read(1) == b"A"
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == -signal.SIGPIPE


def test_an_interrupt_from_the_keyboard_ends_a_guest_that_never_leaves(flat):
    code = bytes.fromhex("ba f8 03 b0 41 ee") + LOOP
    command = [sys.executable, "-m", "vmlib", "run", "--budget", "20s", "--flat", flat(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            assert running.stdout.read(1) == b"A"
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, said) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("value", [0, 1, 0x10, 0x7F])
def test_the_debug_exit(flat, value):
    done = vmlib("run", "--flat", flat(bytes([0xB0, value, 0xE6, 0xF4]) + LOOP))
    assert done.returncode == value << 1 | 1


@pytest.mark.parametrize("status", [125, 69])
def test_a_status_that_the_guest_chose_is_not_a_message(flat, status):
    """These are also what a spent budget and a host that cannot are told by."""
    code = bytes([0xB0, status >> 1, 0xE6, 0xF4])
    done = vmlib("run", "--quiet", "--flat", flat(code))
    assert (done.returncode, done.stderr) == (status, b"")


def test_a_debug_exit_of_four_bytes(flat):
    done = vmlib("run", "--flat", flat(bytes.fromhex("66 b8 03 00 00 00 66 e7 f4") + LOOP))
    assert done.returncode == 7


def test_a_multiboot_kernel_asks_the_machine_about_itself(kernel):
    done = vmlib("run", "--multiboot", kernel, "--mem", "32M", "--quiet")
    assert done.returncode == 33
    assert done.stdout.decode().splitlines() == [
        "hello from protected mode",
        "hello from long mode",
        "fw_cfg: QEMU",
        "CPUs: 1",
        "RAM in KiB: 32768",
    ]
    assert done.stderr == b""


def test_a_triple_fault_is_diagnosed(flat):
    done = vmlib("run", "--quiet", "--flat", flat(CRASH))
    assert done.returncode == 124
    assert b"triple fault" in done.stderr
    assert b"#UD" in done.stderr


@pytest.mark.parametrize("budget", ["100ms", "0.1s", "1e5i"])
def test_a_spent_budget(flat, budget):
    done = vmlib("run", "--quiet", "--budget", budget, "--flat", flat(LOOP))
    assert done.returncode == 125
    assert b"used up" in done.stderr


def test_an_empty_file_is_no_guest(flat):
    done = vmlib("run", "--budget", "1s", "--flat", flat(b""))
    assert done.returncode == 2
    assert b"guest.bin: is empty" in done.stderr


def test_a_guest_that_waits_for_nothing(flat):
    done = vmlib("run", "--flat", flat(b"\xfb\xf4"))
    assert done.returncode == 125
    assert b"interrupts on" in done.stderr


def test_memory_where_nobody_is_reads_as_ones(flat):
    # mov ax, 0xb800; mov ds, ax; mov [0], al; mov al, [0]; mov dx, 0x3f8; out dx, al; hlt
    code = bytes.fromhex("b8 00 b8 8e d8 a2 00 00 a0 00 00 ba f8 03 ee f4")
    done = vmlib("run", "--mem", "64K", "--flat", flat(code))
    assert (done.returncode, done.stdout) == (0, b"\xff")


def test_quiet_means_quiet_and_the_other_says_what_happened(flat):
    assert vmlib("run", "--quiet", "--flat", flat(HALT)).stderr == b""
    assert b"status 0; exits: 1 HLT" in vmlib("run", "--flat", flat(HALT)).stderr


def test_a_trace_is_written_and_the_guest_is_none_the_wiser(kernel, tmp_path):
    out = tmp_path / "out.json"
    plain = vmlib("run", "--multiboot", kernel)
    traced = vmlib("run", "--multiboot", kernel, "--trace", out)
    assert (traced.returncode, traced.stdout) == (plain.returncode, plain.stdout)
    trace = Trace.load(out)
    assert trace.kind == "lanes"
    assert trace.steps[-1].event == "end", "a long guest is recorded in part"
    assert json.loads(out.read_text())["provenance"]["engine"] == "unicorn"


def test_a_short_trace_is_whole(flat, tmp_path):
    out = tmp_path / "out.json"
    done = vmlib("run", "--flat", flat(add_guest(2, 2).code), "--trace", out)
    assert (done.returncode, done.stdout) == (0, b"4\n")
    assert Trace.load(out).steps[-1].state["exit"]["reason"] == "HLT"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "required"),
        (("--flat", "nothing"), "must be FILE@HEXADDR"),
        (("--flat", "nothing@1000"), "cannot be read"),
        (("--flat", "nothing@xyz"), "not an address in hex"),
        (("--flat", "nothing@10000"), "out of reach for real mode"),
        (("--multiboot", "nothing"), "cannot be read"),
        (("--multiboot", sys.executable), "Multiboot header"),
        (("--flat", "GUEST", "--multiboot", "GUEST"), "not allowed with"),
        (("--flat", "GUEST", "--engine", "bochs"), "invalid choice"),
        (("--flat", "GUEST", "--mem", "lots"), "not a size"),
        (("--flat", "GUEST", "--mem", "4K"), "outside guest RAM"),
        (("--flat", "GUEST", "--budget", "soon"), "not a budget"),
        (("--flat", "GUEST", "--trace", "/nowhere/x.json"), "cannot be written"),
    ],
)
def test_usage(flat, arguments, said):
    guest = flat(HALT)
    done = vmlib("run", *(guest if word == "GUEST" else word for word in arguments))
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.needs("kvm")
def test_instructions_cannot_be_counted_on_kvm(flat):
    done = vmlib("run", "--engine", "kvm", "--budget", "1e6i", "--flat", flat(HALT))
    assert done.returncode == 2
    assert b"counts no instructions" in done.stderr


def test_a_host_without_the_engine(flat):
    """As where Unicorn is not installed."""
    hide = "import sys; sys.modules['unicorn'] = None; from vmlib.__main__ import main; "
    code = f"{hide}sys.exit(main(['run', '--flat', {flat(HALT)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 69
    assert b"pip install" in done.stderr


def test_doctor_prints_what_each_engine_can():
    done = vmlib("doctor")
    assert done.returncode == 0
    said = done.stdout.decode()
    assert "What an engine can do" in said
    rows = {line.split()[0]: line.split()[1:3] for line in said.splitlines() if line[:2] == "  "}
    assert rows["modes"] == ["yes", "yes"]
    assert rows["instructions"] == ["yes", "no"]
    assert rows["avx"] == ["no", "yes"]
    assert "instructions, kvm: KVM runs the guest on the CPU itself" in said


def test_doctor_prints_the_oddities_of_this_kvm_and_of_no_other(capsys, monkeypatch):
    status = EngineStatus("kvm", True, "Linux 6.1 (kvm_pvm)")
    monkeypatch.setattr("vmlib.__main__.probe", lambda engine: status)
    main(["doctor"])
    said = capsys.readouterr().out
    assert "this host's KVM (kvm_pvm) is not what the manuals say" in said
    assert ODDITIES[0].what in said
    monkeypatch.setattr(
        "vmlib.__main__.probe", lambda engine: replace(status, version="Linux 6.1 (kvm_amd)")
    )
    main(["doctor"])
    assert "manuals" not in capsys.readouterr().out
