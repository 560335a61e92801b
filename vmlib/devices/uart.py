"""A serial port: the 16550A UART, as software sees it.

Eight registers (National Semiconductor PC16550D data sheet, *Registers*)::

    offset  DLAB=0 read   DLAB=0 write   DLAB=1
       0    RBR received  THR to send    DLL divisor, low
       1    IER           IER            DLM divisor, high
       2    IIR           FCR            (the same)
       3    LCR; bit 7 is DLAB       4    MCR        5    LSR
       6    MSR                      7    SCR, a byte to keep

There is no line: a byte is sent the moment it is written, so the transmitter is always empty, and
four character times of silence pass at once. The divisor is kept and means nothing. Left out:
breaks, parity and framing errors, and the DMA signals of the FIFOs.
"""

from collections import deque
from collections.abc import Callable

from vmlib.given import octets

PORT, COUNT = 0x3F8, 8
FIFO_DEPTH = 16

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)
IER_RECEIVED, IER_EMPTY, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_EMPTY, IIR_RECEIVED, IIR_LINE, IIR_TIMEOUT = 0x1, 0x0, 0x2, 0x4, 0x6, 0xC
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER = 1, 2
LCR_DLAB = 0x80
MCR_OUT2, MCR_LOOP = 0x08, 0x10
LSR_READY, LSR_OVERRUN, LSR_EMPTY = 0x01, 0x02, 0x60  # THRE and TEMT
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
_TRIGGERS = (1, 4, 8, 14)
_PEER = MSR_CTS | MSR_DSR | MSR_DCD  # whoever is at the other end is there and listens


class Uart:
    """One 16550A. `sink` gets what the guest sends; `receive` is the other direction.

    `irq` is told the level of the interrupt line whenever it changes.
    """

    name = "the serial port"
    widest = 1

    def __init__(
        self, sink: Callable[[bytes], object], irq: Callable[[bool], object] | None = None
    ) -> None:
        self._sink = sink
        self.irq = irq
        self._level = False
        self._fifo: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Master reset (data sheet, *UART Reset Configuration*)."""
        self._fifo.clear()
        self._divisor = [0, 0]
        self._ier = self._fcr = self._lcr = self._mcr = self._scratch = 0
        self._overrun = self._empty_pending = False
        self._lines, self._deltas = _PEER, 0
        self._update()

    def receive(self, data: bytes) -> None:
        """Let bytes arrive. What does not fit is lost, and LSR says so."""
        for byte in octets(data, "data"):
            self._arrive(byte)
        self._update()

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        value = self._read(offset)
        self._update()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        if self._lcr & LCR_DLAB and offset in (0, 1):
            self._divisor[offset] = value
        elif offset == RBR_THR:
            self._send(value)
        elif offset == IER:
            # Enabling the interrupt of an empty transmitter raises it.
            self._empty_pending |= bool(value & ~self._ier & IER_EMPTY)
            self._ier = value & 0x0F
        elif offset == IIR_FCR:
            self._control_fifos(value)
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._mcr = value & 0x1F
            self._set_modem_lines()
        elif offset == SCR:
            self._scratch = value
        self._update()

    def _read(self, offset: int) -> int:
        if self._lcr & LCR_DLAB and offset in (0, 1):
            return self._divisor[offset]
        match offset:
            case 0:
                return self._fifo.popleft() if self._fifo else 0
            case 1:
                return self._ier
            case 2:
                cause = self._cause()
                if cause == IIR_EMPTY:
                    self._empty_pending = False
                return cause | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                value = LSR_EMPTY | (LSR_READY if self._fifo else 0)
                value |= LSR_OVERRUN if self._overrun else 0
                self._overrun = False
                return value
            case 6:
                value, self._deltas = self._lines | self._deltas, 0
                return value
        return self._scratch

    def _send(self, byte: int) -> None:
        if self._mcr & MCR_LOOP:
            self._arrive(byte)
        else:
            self._sink(bytes([byte]))
        self._empty_pending = True

    def _arrive(self, byte: int) -> None:
        if self._fcr & FCR_ENABLE:
            if len(self._fifo) == FIFO_DEPTH:  # the FIFO keeps what it has
                self._overrun = True
                return
        elif self._fifo:  # the one register is overwritten
            self._overrun = True
            self._fifo.clear()
        self._fifo.append(byte)

    def _control_fifos(self, value: int) -> None:
        switched = (value ^ self._fcr) & FCR_ENABLE
        if switched or (value & FCR_ENABLE and value & FCR_CLEAR_RECEIVER):
            self._fifo.clear()
        # The other bits can be set only together with the enabling one (*FIFO Control Register*).
        self._fcr = value & 0xC1 if value & FCR_ENABLE else 0

    def _set_modem_lines(self) -> None:
        """In loopback the four outputs come back as the four inputs (*Modem Control Register*)."""
        lines = _PEER
        if self._mcr & MCR_LOOP:
            pairs = ((0x01, MSR_DSR), (0x02, MSR_CTS), (0x04, MSR_RI), (MCR_OUT2, MSR_DCD))
            lines = sum(seen for driven, seen in pairs if self._mcr & driven)
        changed = (lines ^ self._lines) >> 4
        if not (self._lines & MSR_RI and not lines & MSR_RI):
            changed &= ~0x4  # TERI notes only the trailing edge of the ring
        self._deltas |= changed
        self._lines = lines

    def _cause(self) -> int:
        """The most urgent enabled cause of an interrupt (*Interrupt Identification Register*)."""
        if self._ier & IER_LINE and self._overrun:
            return IIR_LINE
        if self._ier & IER_RECEIVED and self._fifo:
            trigger = _TRIGGERS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1
            return IIR_RECEIVED if len(self._fifo) >= trigger else IIR_TIMEOUT
        if self._ier & IER_EMPTY and self._empty_pending:
            return IIR_EMPTY
        if self._ier & IER_MODEM and self._deltas:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        # On a PC the output OUT2 gates the interrupt line.
        level = self._cause() != IIR_NONE and bool(self._mcr & MCR_OUT2)
        if level != self._level:
            self._level = level
            if self.irq is not None:
                self.irq(level)
