"""fw_cfg: how firmware and kernels ask QEMU about the machine they are in.

The guest writes a 16-bit key to the selector port 0x510 and then reads the item byte by byte at
0x511; past its end, and for a key that nobody filled, it finds zeros. QEMU,
`docs/specs/fw_cfg.rst`. Left out: the DMA interface (the id says so), the file directory, writes.
"""

import struct
from collections.abc import Mapping

from vmlib.given import check_one
from vmlib.numbers import whole

SELECTOR, COUNT = 0x510, 2
SIGNATURE, ID, RAM_SIZE, NB_CPUS = 0x0000, 0x0001, 0x0003, 0x0005
_DATA_OFFSET = 1


class FwCfg:
    """Items by key, and the place in the selected one."""

    name = "fw_cfg"
    widest = 2

    def __init__(self, ram_size: int, cpus: int = 1, items: Mapping[int, bytes] = {}) -> None:
        """`ram_size` in bytes. `items` adds keys, or replaces those that are here by default."""
        whole(ram_size, "ram_size", 0, (1 << 64) - 1)
        whole(cpus, "cpus", 1, 0xFFFF)
        check_one(items, Mapping, "items")
        self.items = {
            SIGNATURE: b"QEMU",
            ID: struct.pack("<I", 1),  # bit 0: this interface; bit 1 would be DMA
            RAM_SIZE: struct.pack("<Q", ram_size),
            NB_CPUS: struct.pack("<H", cpus),
            **items,
        }
        self.reset()

    def read(self, offset: int, size: int) -> int:
        """The next byte of the selected item; the selector itself cannot be read."""
        if offset != _DATA_OFFSET or size != 1:
            return (1 << 8 * size) - 1
        item = self.items.get(self._key, b"")
        value = item[self._next] if self._next < len(item) else 0
        self._next += 1
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item and go to its first byte; other writes vanish."""
        if offset == 0 and size == 2:
            self._key, self._next = value, 0

    def reset(self) -> None:
        """Select the signature."""
        self._key, self._next = SIGNATURE, 0
