"""The book's guests against the same bytes under QEMU's emulator: what they print, how they end."""

import threading

import pytest
import qemu
from engine_files import EMULATOR_FILES

from vmlib.cpu import Halt, load_guest
from vmlib.machine import Machine

OURS = [*EMULATOR_FILES]
OURS += ["vmlib/machine.py", "vmlib/board.py", "vmlib/devices/uart.py", "vmlib/devices/bus.py"]
FLAT = {
    "modes": b"RPLfF\n",
    "rings": b"S3G\n",
    "faults": bytes.fromhex(
        "000000 060000 0d5800 0d0000 0b2000 0c2000 0e0012 0e0234 0e0356 0d0256 030056"
    ),
    "exits": b"OUTS !\n",
    "spin2": b"",
}
"""What each prints. Of `faults`: vector, error code, CR2, as its comments say."""


def to_the_end(machine):
    """Run a guest; where it waits for the timer that QEMU's PC has, send the interrupt."""
    ran = machine.run()
    output = ran.output
    while ran.status is None and ran.last == Halt():
        machine.vcpu.inject(0x20)
        ran = machine.run()
        output += ran.output
    assert ran.status == 0
    return output


def run(name, engine="unicorn"):
    with Machine(engine, open_bus=True) as machine:
        output = to_the_end(machine.load(load_guest(name)))
        return output, machine.vcpu.registers()


@pytest.mark.needs("unicorn")
@pytest.mark.parametrize("name", FLAT)
def test_what_it_prints(name):
    assert run(name)[0] == FLAT[name]


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("name", ["modes", "exits", "spin2"])
def test_what_it_prints_on_kvm(name):
    """`rings` and `faults` need INT n and INT3 in ring 0, which not every KVM can do."""
    assert run(name, "kvm")[0] == FLAT[name]


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
def test_flat_guests_under_qemu(check, tmp_path):
    with check(
        "cpu/flat-qemu",
        what="Each flat guest on the emulator against the same bytes on QEMU's PC: "
        "the serial port, and where the CPU halts",
        tool="qemu-system-x86_64 -accel tcg",
        tool_version=qemu.version(),
        covers=[*OURS, *(f"vmlib/cpu/images/{name}.lst" for name in FLAT)],
    ) as record:
        for name in FLAT:
            ours, registers = run(name)
            folder = tmp_path / name
            folder.mkdir()
            guest = load_guest(name)
            real = qemu.run_flat(guest.code, guest.at, folder)
            record.show(f"{name}: serial port", _shown(ours), _shown(real.serial))
            record.case(registers.rip, real.registers["IP"], f"{name}: RIP after HLT")
            record.case(registers.rax & 0xFF, real.registers["AX"] & 0xFF, f"{name}: AL")


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
def test_the_multiboot_kernel_under_qemu(check, tmp_path):
    guest = load_guest("multiboot")
    devices = ["vmlib/devices/fw_cfg.py", "vmlib/devices/debug_exit.py"]
    with check(
        "cpu/multiboot-qemu",
        what="A Multiboot kernel on the emulator against the same file under QEMU's -kernel: "
        "the serial port and the exit status, with four sizes of RAM",
        tool="qemu-system-x86_64 -accel tcg",
        tool_version=qemu.version(),
        covers=[*OURS, *devices, "vmlib/multiboot.py", "vmlib/cpu/images/multiboot.lst"],
    ) as record:
        for memory in ("64M", "8M", "33M", "200M"):
            folder = tmp_path / memory
            folder.mkdir()
            status, serial = qemu.run_kernel(guest.code, folder, memory)
            with Machine(ram=memory, open_bus=True) as machine:
                ours = machine.load(guest).run()
            record.show(f"{memory}: serial port", _shown(ours.output), _shown(serial))
            record.show(f"{memory}: exit status", ours.status, status)


def typed(engine, text):
    """Run the echo guest, one byte typed whenever the last one has come back."""
    left = list(text)

    def console(data):
        heard.extend(data)
        if left:
            machine.board.receive(bytes([left.pop(0)]))

    heard = bytearray()
    with Machine(engine, irqchip=True, budget="5s", console=console) as machine:
        machine.load(load_guest("echo"))
        first = threading.Timer(0.05, machine.board.receive, [bytes([left.pop(0)])])
        first.start()
        ran = machine.run()
        first.join()
        return ran.status, bytes(heard)


@pytest.mark.needs("kvm")
def test_interrupts_of_the_serial_port_on_kvm():
    assert typed("kvm", b"abc\n") == (33, b"abc\n")


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
def test_interrupts_of_the_serial_port_under_qemu(check, tmp_path):
    guest = load_guest("echo")
    text = b"Who is there?\n"
    with check(
        "cpu/echo-qemu",
        what="A guest that sleeps until the serial port interrupts it, with our UART and our two "
        "8259As on the emulator, against QEMU's",
        tool="qemu-system-x86_64 -accel tcg",
        tool_version=qemu.version(),
        covers=[*OURS, "vmlib/devices/pic.py", "vmlib/cpu/images/echo.lst"],
    ) as record:
        status, heard = typed("unicorn", text)
        real_status, real_heard = qemu.run_typed(guest.code, guest.at, text, tmp_path)
        record.show("what comes back", _shown(heard), _shown(real_heard))
        record.show("exit status", status, real_status)


@pytest.mark.needs("unicorn", "qemu-system-x86_64")
@pytest.mark.parametrize("elf_class", [1, 2])
def test_what_qemu_refuses_we_refuse(tmp_path, elf_class):
    """A 64-bit image, and an x86-64 one in 32-bit clothes."""
    from vmlib.errors import BadInput
    from vmlib.multiboot import parse_kernel

    image = bytearray(load_guest("multiboot").code)
    image[4] = elf_class
    image[18] = 62
    status, _ = qemu.run_kernel(bytes(image), tmp_path)
    assert status == 1
    with pytest.raises(BadInput, match="64-bit"):
        parse_kernel(bytes(image))


def _shown(output):
    return output.hex(" ") if b"\0" in output else output.decode().replace("\n", " ⏎ ").strip()
