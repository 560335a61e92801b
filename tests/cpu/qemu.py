"""Run a flat guest under QEMU's own emulator, as the boot sector of a PC."""

import re
import socket
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
    serial, monitor = folder / "serial", folder / "monitor"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none"]
    command += ["-no-reboot", "-drive", f"format=raw,file={image}", "-serial", f"file:{serial}"]
    command += ["-monitor", f"unix:{monitor},server,nowait"]
    with subprocess.Popen(command) as machine:
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.05)
                said = _ask(monitor, "info registers") if monitor.exists() else ""
                ip = _number(said, "EIP")
                # Inside the boot sector, halted, and with interrupts off: nothing wakes it.
                if "HLT=1" in said and BOOT_ADDRESS <= ip < BOOT_ADDRESS + 512:
                    registers = {name: _number(said, f"E{name}") for name in ("AX", "DX", "IP")}
                    interruptible = _number(said, "EFL") & 0x200
                    return Boot(serial.read_bytes(), registers, not interruptible)
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
