"""A Linux under QEMU's emulator, frozen at its panic, and what QEMU's monitor says of its memory.

The kernel is that of the box. Its first program is a shell that asks for the panic, so the tables
that CR3 points to then have a user's half as well as the kernel's.
"""

import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from vmlib.box import fetch
from vmlib.box.image import newc
from vmlib.memory import GuestRam

RAM = 128 << 20
PANIC = b"---[ end Kernel panic"
BOOT_SECONDS = 240  # ten in peace; a host may be busy
_INIT = b"#!/busybox sh\n/busybox mount -t proc proc /proc\necho c > /proc/sysrq-trigger\n"
_ECHO = "\x1b[K\r\n"  # what the monitor's line editor sends before the answer


class FrozenLinux:
    """One guest; a context manager. It boots from the start, `freeze` waits for it."""

    def __init__(self, cpu: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._at = Path(self._folder.name)
        image = fetch()
        files = {"init": _INIT, "busybox": (image.folder / "busybox").read_bytes()}
        (self._at / "initramfs").write_bytes(newc(["dev", "proc"], files))
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-m", "128M", "-smp", "1"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(image.kernel), "-initrd", str(self._at / "initramfs")]
        # Addresses that do not change from boot to boot, so that the record can name some.
        command += ["-append", "console=ttyS0 quiet nokaslr panic=0"]
        command += ["-serial", f"file:{self._at / 'serial'}"]
        command += ["-monitor", f"unix:{self._at / 'monitor'},server,nowait"]
        self._qemu = subprocess.Popen(command)
        self._line: socket.socket | None = None
        self.kernel = image.version

    @property
    def pagemap(self) -> Path:
        """The page map of the process that is this VM."""
        return Path(f"/proc/{self._qemu.pid}/pagemap")

    def freeze(self) -> None:
        """Wait for the panic and stop the VM."""
        end = time.monotonic() + BOOT_SECONDS
        serial = self._at / "serial"
        while not serial.exists() or PANIC not in serial.read_bytes():
            said = serial.read_bytes()[-500:] if serial.exists() else b""
            assert self._qemu.poll() is None, f"QEMU is gone: {said!r}"
            assert time.monotonic() < end, f"no panic yet: {said!r}"
            time.sleep(0.2)
        self._line = socket.socket(socket.AF_UNIX)
        self._line.settimeout(60)
        self._line.connect(os.fspath(self._at / "monitor"))
        self._hear()
        self.ask("stop")

    def ask(self, question: str) -> str:
        """Ask the monitor."""
        assert self._line is not None
        self._line.sendall(question.encode() + b"\n")
        return self._hear().rpartition(_ECHO)[2].replace("\r\n", "\n")

    def registers(self) -> dict[str, int]:
        """The control registers that say how the guest's addresses are translated."""
        said = self.ask("info registers")
        named = {name: re.search(rf"\b{name} *=([0-9a-f]+)", said) for name in ("CR0", "CR3")}
        named |= {name: re.search(rf"\b{name} *=([0-9a-f]+)", said) for name in ("CR4", "EFER")}
        return {name.lower(): int(found[1], 16) for name, found in named.items()}

    def ram(self) -> GuestRam:
        """A copy of the guest's memory."""
        file = self._at / "ram"
        self.ask(f'pmemsave 0 {RAM:#x} "{file}"')
        ram = GuestRam(RAM)
        ram.write(0, file.read_bytes())
        file.unlink()
        return ram

    def address(self, question: str) -> int | None:
        """The last number of an answer; None where there is no such address."""
        said = self.ask(question)
        if "not RAM" in said or "Unmapped" in said or "No memory" in said:
            return None
        found = re.findall(r"0x[0-9a-f]+", said)
        assert found, said
        return int(found[-1], 16)

    def close(self) -> None:
        """Kill it."""
        if self._line is not None:
            self._line.close()
        self._qemu.kill()
        self._qemu.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear(self) -> str:
        said = bytearray()
        while not said.endswith(b"(qemu) "):
            piece = self._line.recv(1 << 20)
            assert piece, "the monitor is gone"
            said += piece
        return said.removesuffix(b"(qemu) ").decode("latin-1")


def qemu_version() -> str:
    """QEMU's version, as it says it."""
    command = ["qemu-system-x86_64", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"version (\S+)", said)[1]
