"""The board of a machine: two buses and what is plugged into them.

It carries an exit of the vCPU to the device at that port or address, and the answer back. On it
are a serial port at 0x3f8 (COM1), QEMU's debug exit at 0xf4 and its fw_cfg at 0x510; a reader may
attach more: ``machine.board.memory.attach(screen, 0xb8000, 4000)``.

This is where vCPUs and devices meet: neither knows of the other.
"""

import threading
from collections.abc import Callable

from vmlib.cpu import Exit, IoIn, IoOut, Mmio
from vmlib.devices import Bus, Claim, DebugExit, FwCfg, Uart, debug_exit, fw_cfg, uart

COM1, COM1_LINE = uart.PORT, 4


class Board:
    """Ports, memory outside RAM, and the devices there. `console` takes what COM1 sends."""

    def __init__(self, ram_size: int, console: Callable[[bytes], object]) -> None:
        self._lock = threading.RLock()
        self.ports = Bus("ports", 1 << 16)
        self.memory = Bus("memory", 1 << 52)
        self.uart = Uart(console)
        self.debug_exit = DebugExit()
        self.fw_cfg = FwCfg(ram_size)
        self.ports.attach(self.uart, uart.PORT, uart.COUNT)
        self.ports.attach(self.debug_exit, debug_exit.PORT, debug_exit.COUNT)
        self.ports.attach(self.fw_cfg, fw_cfg.SELECTOR, fw_cfg.COUNT)

    def reset(self) -> None:
        """Reset every device."""
        self.ports.reset()
        self.memory.reset()

    def serve(self, request: IoOut | IoIn | Mmio) -> bytes | None:
        """Let the device take or answer; return the answer, None to a write."""
        with self._lock:
            return self._serve(request)

    def receive(self, data: bytes) -> None:
        """Let bytes arrive at COM1. Callable from any thread, while the guest runs too."""
        with self._lock:
            self.uart.receive(data)

    def device(self, request: Exit) -> str:
        """The name of the device that an exit is for, or an empty string."""
        claim: Claim | None = None
        if isinstance(request, IoOut | IoIn):
            claim = self.ports.find(request.port)
        elif isinstance(request, Mmio):
            claim = self.memory.find(request.gpa)
        return claim.device.name if claim else ""

    def _serve(self, request: IoOut | IoIn | Mmio) -> bytes | None:
        match request:
            case IoOut(port, size, data):
                for k in range(0, len(data), size):  # REP OUTS may come as one exit
                    self.ports.write(port, size, int.from_bytes(data[k : k + size], "little"))
                return None
            case IoIn(port, size, count):
                items = (self.ports.read(port, size) for _ in range(count))
                return b"".join(item.to_bytes(size, "little") for item in items)
            case Mmio(gpa, size, None):
                return self.memory.read(gpa, size).to_bytes(size, "little")
            case Mmio(gpa, size, bytes() as data):
                self.memory.write(gpa, size, int.from_bytes(data, "little"))
        return None
