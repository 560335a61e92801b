"""The interrupt controller of a PC: two 8259As, the second on line 2 of the first.

A device raises a line; the chip notes the edge (IRR), drops what is masked (IMR), compares with
what is being served (ISR), and asserts INT. The processor acknowledges and gets a vector: base
plus line. The line stays in service, and holds back those less urgent, until the guest writes an
*end of interrupt*.

Intel 8259A data sheet (order number 231468): initialisation by ICW1-ICW4, operation by
OCW1-OCW3. A latched edge stays latched until it is acknowledged, as in KVM's and QEMU's models;
a real chip forgets it when the line falls too soon. Left out: the 8080 call mode, buffered mode,
and level triggering (ICW1's LTIM and the ELCR registers).
"""

import threading
from collections.abc import Callable

from vmlib.errors import BadInput
from vmlib.numbers import whole

PRIMARY, SECONDARY, COUNT = 0x20, 0xA0, 2
LINES = 16
CASCADE = 2
SPURIOUS = 7
_ICW1, _ICW1_SINGLE, _ICW1_NEEDS_4 = 0x10, 0x02, 0x01
_ICW4_AUTO_EOI, _ICW4_NESTED = 0x02, 0x10
_OCW3 = 0x08


class Pic8259:
    """One chip; offsets 0 and 1 are its two ports. `cascade`: another one is on its line 2."""

    name = "the interrupt controller"
    widest = 1

    def __init__(self, cascade: bool = False) -> None:
        self._cascade = 1 << CASCADE if cascade else 0
        self.reset()

    def reset(self) -> None:
        """Power-on: nothing masked, base 0, and no ICW seen."""
        self.irr = self.isr = self.imr = 0
        self.base = 0
        self.lowest = 7
        """The least urgent line; the one after it, round the circle, is the most urgent."""
        self._levels = 0
        self._expects: list[int] = []
        self._icw4 = 0
        self._rotate_on_auto_eoi = self._special_mask = self._poll = self._read_isr = False

    def set_line(self, line: int, level: bool) -> None:
        """Raise or lower an input; a rising edge is a request."""
        bit = 1 << line
        if level and not self._levels & bit:
            self.irr |= bit
        self._levels = self._levels | bit if level else self._levels & ~bit

    def request(self) -> int | None:
        """The line for which INT is asserted, or None."""
        serving = self.isr
        if self._special_mask:
            serving &= ~self.imr
        if self._icw4 & _ICW4_NESTED:  # more urgent lines of the second chip may interrupt
            serving &= ~self._cascade
        waiting = self.irr & ~self.imr
        for line in self._by_urgency():
            if serving >> line & 1:
                return None
            if waiting >> line & 1:
                return line
        return None

    def acknowledge(self) -> int:
        """Put the most urgent request in service; with none, answer line 7 (spurious)."""
        line = self.request()
        if line is None:
            return SPURIOUS
        self.irr &= ~(1 << line)
        if not self._icw4 & _ICW4_AUTO_EOI:
            self.isr |= 1 << line
        elif self._rotate_on_auto_eoi:
            self.lowest = line
        return line

    def read(self, offset: int, size: int) -> int:
        """Port 0: IRR, ISR or, once after a poll command, who asks. Port 1: IMR."""
        if self._poll:
            self._poll = False
            asks = self.request() is not None
            return self.acknowledge() | 0x80 if asks else 0
        if offset == 1:
            return self.imr
        return self.isr if self._read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """A command word: which one, the port, two bits, and the order of ICWs tell."""
        if offset == 0:
            if value & _ICW1:
                self._initialise(value)
            elif value & _OCW3:
                self._ocw3(value)
            else:
                self._ocw2(value)
        elif self._expects:
            self._icw(self._expects.pop(0), value)
        else:
            self.imr = value

    def _initialise(self, icw1: int) -> None:
        self.irr = self.isr = self.imr = 0
        self.lowest = 7
        self._icw4 = 0
        self._rotate_on_auto_eoi = self._special_mask = self._poll = self._read_isr = False
        self._expects = [2]
        if not icw1 & _ICW1_SINGLE:
            self._expects.append(3)
        if icw1 & _ICW1_NEEDS_4:
            self._expects.append(4)

    def _icw(self, number: int, value: int) -> None:
        if number == 2:
            self.base = value & 0xF8
        elif number == 4:
            self._icw4 = value
        # ICW3 says where the other chip is: the PC's wiring, which is fixed here.

    def _ocw2(self, value: int) -> None:
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        if not eoi and not specific:
            self._rotate_on_auto_eoi = bool(rotate)
            return
        line: int | None = value & 7
        if not specific:  # non-specific: the most urgent one in service
            line = self._most_urgent_in_service()
        if line is None:
            return
        if eoi:
            self.isr &= ~(1 << line)
        if rotate:
            self.lowest = line

    def _ocw3(self, value: int) -> None:
        if value & 0x40:
            self._special_mask = bool(value & 0x20)
        if value & 0x04:
            self._poll = True
        elif value & 0x02:
            self._read_isr = bool(value & 0x01)

    def _most_urgent_in_service(self) -> int | None:
        serving = self.isr & ~self.imr if self._special_mask else self.isr
        for line in self._by_urgency():
            if serving >> line & 1:
                return line
        return None

    def _by_urgency(self) -> list[int]:
        return [(self.lowest + k) & 7 for k in range(1, 9)]


class PicPair:
    """The PC's two chips as one controller of 15 lines. Safe to use from several threads.

    `pending`, `acknowledge`, `set_irq` and `notify` are what a vCPU needs; `read` and `write` take
    port numbers, and `ports(PRIMARY)` and `ports(SECONDARY)` are the same for a bus.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first = Pic8259(cascade=True)
        self._second = Pic8259()
        self._asserted = False
        self._wakes: list[Callable[[], None]] = []

    def reset(self) -> None:
        """Reset both chips."""
        with self._lock:
            self._second.reset()
            self._first.reset()
            self._cascade()

    def pending(self) -> bool:
        """Say whether INT of the first chip is asserted."""
        return self._asserted

    def acknowledge(self) -> int:
        """Return the vector of the most urgent request, now in service."""
        with self._lock:
            line = self._first.acknowledge()
            if line != CASCADE:
                vector = self._first.base + line
            else:
                vector = self._second.base + self._second.acknowledge()
                self._first.set_line(CASCADE, False)  # INT of the second falls during INTA
            rose = self._cascade()
        self._wake(rose)
        return vector

    def set_irq(self, line: int, level: bool) -> None:
        """Raise or lower line 0 to 15; line 2 is taken by the second chip."""
        if whole(line, "line", 0, LINES - 1) == CASCADE:
            raise BadInput("line", f"is not {CASCADE}, which is the cascade")
        with self._lock:
            chip = self._first if line < 8 else self._second
            chip.set_line(line & 7, level)
            rose = self._cascade()
        self._wake(rose)

    def notify(self, wake: Callable[[], None]) -> None:
        """Have `wake()` called whenever INT becomes asserted."""
        self._wakes.append(wake)

    def read(self, port: int, size: int) -> int:
        """Read one of the four ports by its number."""
        with self._lock:
            value = self._chip(port).read(port & 1, size)
            rose = self._cascade()  # a poll is an acknowledge
        self._wake(rose)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        """Write one of the four ports by its number."""
        with self._lock:
            self._chip(port).write(port & 1, size, value & 0xFF)
            rose = self._cascade()
        self._wake(rose)

    def ports(self, base: int) -> "PicPorts":
        """The two ports of one chip, for a bus."""
        return PicPorts(self, base)

    def _chip(self, port: int) -> Pic8259:
        return self._first if port & ~1 == PRIMARY else self._second

    def _cascade(self) -> bool:
        """Carry INT from chip to chip; return whether the processor's has become asserted."""
        self._first.set_line(CASCADE, self._second.request() is not None)
        before, self._asserted = self._asserted, self._first.request() is not None
        return self._asserted and not before

    def _wake(self, rose: bool) -> None:
        # Never under the lock: who is woken may be waiting for it in a handler of its own.
        if rose:
            for wake in self._wakes:
                wake()


class PicPorts:
    """The two ports of one chip of a pair, as a device of a bus."""

    name = "the interrupt controller"
    widest = 1

    def __init__(self, pair: PicPair, base: int) -> None:
        self._pair = pair
        self._base = base

    def read(self, offset: int, size: int) -> int:
        """Read a port."""
        return self._pair.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a port."""
        self._pair.write(self._base + offset, size, value)

    def reset(self) -> None:
        """Reset the pair, which does no harm twice."""
        self._pair.reset()
