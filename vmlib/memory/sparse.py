"""Memory of which little is written: a dictionary of words.

Page tables of a few mappings are some hundred words, scattered over gigabytes. `SparseMemory`
holds them as just that, so that they can be built with `build_tables`, walked, and written down.
Unlike `GuestRam` it has no pages that an engine could map.
"""

from vmlib.errors import BadInput
from vmlib.given import names_bad_input, octets
from vmlib.memory.paging import word
from vmlib.numbers import whole


class SparseMemory:
    """`size` bytes from address 0, all of them zero until written; whole aligned words only."""

    def __init__(self, size: int) -> None:
        self.size = whole(size, "size", 1)
        self._words: dict[int, int] = {}

    @names_bad_input
    def read_u64(self, at: int) -> int:
        """Return the word at `at`; `BadInput` outside the memory or off an 8-byte boundary."""
        if not 0 <= at < self.size or at & 7:
            raise BadInput("at", f"{at:#x} is no aligned word below {self.size:#x}")
        return self._words.get(at, 0)

    @names_bad_input
    def write_u64(self, at: int, value: int) -> None:
        """Store a word, 0 to 2**64 - 1; errors as in `read_u64`."""
        value = word(value, "value")
        self.read_u64(at)
        if value:
            self._words[at] = value
        else:
            self._words.pop(at, None)

    @names_bad_input
    def write(self, at: int, data: bytes) -> None:
        """Store bytes, a multiple of 8."""
        data = octets(data, "data")
        if len(data) % 8:
            raise BadInput("data", f"is whole words, not {len(data)} bytes")
        for offset in range(0, len(data), 8):
            self.write_u64(at + offset, int.from_bytes(data[offset : offset + 8], "little"))

    def words(self) -> list[tuple[int, int]]:
        """Return address and value of every word that is not zero, in order."""
        return sorted(self._words.items())
