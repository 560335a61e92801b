"""Run a guest under QEMU's own emulator: as a boot sector, as a PC's firmware, as a kernel."""

import re
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

BOOT_ADDRESS = 0x7C00  # where a PC's firmware loads the boot sector


@dataclass(frozen=True)
class Boot:
    """What the PC's serial port received, and where its CPU stood in the end."""

    serial: bytes
    registers: dict[str, int]
    halted: bool


def version() -> str:
    """Return QEMU's version, as it says it."""
    said = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"version (\S+)", said)[1]


def boot(code: bytes, folder: Path, seconds: float = 20) -> Boot:
    """Boot `code` and wait until its CPU halts for good."""
    image = folder / "boot.img"
    image.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa")
    disk = ["-drive", f"format=raw,file={image}"]
    return _until_halt(disk, folder, range(BOOT_ADDRESS, BOOT_ADDRESS + 512), seconds)


def run_flat(code: bytes, at: int, folder: Path, seconds: float = 20) -> Boot:
    """Start `code` at `at` in real mode, registers zero and SP 0x0f00, on a PC without firmware.

    In the firmware's place is a ROM that copies the guest into RAM and jumps there.
    """
    rom = folder / "guest.rom"
    rom.write_bytes(_rom(code, at))
    # Without firmware nobody lets the 8259's interrupts through the local APIC: leave that out.
    return _until_halt(
        ["-bios", str(rom), "-cpu", "qemu64,-apic"], folder, range(at, at + len(code)), seconds
    )


def run_kernel(
    image: bytes, folder: Path, memory: str = "64M", *more: str, seconds: float = 20
) -> tuple[int, bytes]:
    """Start a Multiboot kernel; return QEMU's exit status and the bytes on the serial port."""
    kernel, serial = folder / "kernel", folder / "serial"
    kernel.write_bytes(image)
    command = [*_PC, "-kernel", str(kernel), "-serial", f"file:{serial}", "-m", memory, *more]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
    status = subprocess.run(command, timeout=seconds, check=False).returncode
    return status, serial.read_bytes()


def run_typed(
    code: bytes, at: int, typed: bytes, folder: Path, seconds: float = 20
) -> tuple[int, bytes]:
    """As `run_flat`, with bytes that arrive at the serial port; until the debug exit."""
    rom = folder / "guest.rom"
    rom.write_bytes(_rom(code, at))
    command = [*_PC, "-bios", str(rom), "-cpu", "qemu64,-apic", "-serial", "stdio"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
    done = subprocess.run(command, input=typed, capture_output=True, timeout=seconds, check=False)
    return done.returncode, done.stdout


_PC = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"]


def _rom(code: bytes, at: int) -> bytes:
    """Sixty-four KiB that a PC sees at 0xf0000 and, after reset, at the end of 4 GiB."""
    start = 0x100
    copy = b"\xfa\xfc\x8c\xc8\x8e\xd8"  # cli; cld; mov ax, cs; mov ds, ax
    copy += struct.pack("<BHBHBH", 0xBE, start, 0xBF, at, 0xB9, len(code))  # mov si, di, cx
    copy += b"\xf3\xa4"  # rep movsb
    copy += b"\xb0\x34\xe6\x43\xb0\x00\xe6\x40\xe6\x40"  # the timer at its slowest, 18.2 Hz
    copy += b"\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x0f\x31\xf6\x31\xff"  # ax, ds, ss, sp, si, di
    copy += b"\x31\xd2"  # xor dx, dx: reset leaves the processor's model there
    copy += b"\xea" + struct.pack("<HH", at, 0)  # jmp 0:at
    reset = b"\xea" + struct.pack("<HH", 0, 0xF000)  # jmp 0xf000:0
    image = copy.ljust(start, b"\0") + code
    return image.ljust(0xFFF0, b"\0") + reset.ljust(16, b"\0")


def _until_halt(how: list[str], folder: Path, inside: range, seconds: float) -> Boot:
    serial, monitor = folder / "serial", folder / "monitor"
    command = [*_PC, *how, "-serial", f"file:{serial}"]
    command += ["-monitor", f"unix:{monitor},server,nowait"]
    with subprocess.Popen(command) as machine:
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and machine.poll() is None:
                time.sleep(0.05)
                said = _ask(monitor, "info registers") if monitor.exists() else ""
                ip = max(_number(said, "EIP"), _number(said, "RIP"))
                flags = max(_number(said, "EFL"), _number(said, "RFL"))
                # Inside the guest, halted, and with interrupts off: nothing wakes it.
                if "HLT=1" in said and ip - 1 in inside and not flags & 0x200:
                    registers = {
                        name: max(_number(said, f"E{name}"), _number(said, f"R{name}"))
                        for name in ("AX", "DX", "IP")
                    }
                    return Boot(serial.read_bytes(), registers, halted=True)
            raise TimeoutError(f"the guest did not halt within {seconds} s: {said}")
        finally:
            machine.kill()


def _ask(monitor: Path, question: str) -> str:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        try:
            line.connect(str(monitor))
            said = _until_prompt(line)
            line.sendall(question.encode() + b"\n")
            return said + _until_prompt(line)
        except OSError:
            return ""


def _until_prompt(line: socket.socket) -> str:
    said = b""
    while not said.endswith(b"(qemu) "):
        piece = line.recv(4096)
        if not piece:
            break
        said += piece
    return said.decode("latin-1")


def _number(said: str, name: str) -> int:
    match = re.search(rf"\b{name}=([0-9a-f]+)", said)
    return int(match[1], 16) if match else -1
