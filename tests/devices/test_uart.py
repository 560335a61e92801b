"""The 16550A, a rule of its data sheet a test."""

import pytest

from vmlib.devices import Uart
from vmlib.devices.uart import (
    IER,
    IIR_FCR,
    LCR,
    LSR,
    LSR_EMPTY,
    LSR_OVERRUN,
    LSR_READY,
    MCR,
    MSR,
    RBR_THR,
    SCR,
)

OUT2, LOOP, DLAB = 0x08, 0x10, 0x80


class Board:
    """A UART with a wire at each end."""

    def __init__(self):
        self.sent = bytearray()
        self.levels = []
        self.uart = Uart(self.sent.extend, self.levels.append)

    def __getitem__(self, register):
        return self.uart.read(register, 1)

    def __setitem__(self, register, value):
        self.uart.write(register, 1, value)


@pytest.fixture
def board():
    return Board()


def test_after_reset(board):
    assert [board[r] for r in (IER, IIR_FCR, LCR, MCR, LSR)] == [0, 0x01, 0, 0, LSR_EMPTY]
    assert board[MSR] == 0xB0  # CTS, DSR, DCD: somebody listens


def test_what_is_written_is_sent_and_the_transmitter_is_empty_again(board):
    for byte in b"hi\n":
        assert board[LSR] & 0x20
        board[RBR_THR] = byte
    assert board.sent == b"hi\n"
    assert board[LSR] == LSR_EMPTY


def test_dlab_swaps_two_registers_for_the_divisor(board):
    board[LCR] = DLAB | 3
    board[RBR_THR], board[IER] = 0x01, 0x02
    assert (board[RBR_THR], board[IER]) == (1, 2)
    board[LCR] = 3
    assert (board[IER], board.sent) == (0, b"")
    board[RBR_THR] = 0x41
    assert board.sent == b"A"
    board[LCR] = DLAB
    assert board[RBR_THR] == 1


def test_dlab_swaps_no_other_register(board):
    board[LCR] = DLAB
    board[IIR_FCR] = 1
    board[SCR] = 0x5A
    assert (board[IIR_FCR], board[SCR]) == (0xC1, 0x5A)
    board[MCR] = LOOP | 0x02
    assert board[MCR] == LOOP | 0x02
    board[LCR] = 3
    assert (board[LCR], board[IIR_FCR]) == (3, 0xC1)


def test_scratch_keeps_a_byte(board):
    board[SCR] = 0xA5
    assert board[SCR] == 0xA5
    board.uart.reset()
    assert board[SCR] == 0


def test_the_upper_half_of_ier_and_top_of_mcr_are_always_zero(board):
    board[IER] = board[MCR] = 0xFF
    assert (board[IER], board[MCR]) == (0x0F, 0x1F)


def test_fifos_show_in_iir_and_can_be_found_out(board):
    board[IIR_FCR] = 0x07
    assert board[IIR_FCR] == 0xC1
    board[IIR_FCR] = 0x00
    assert board[IIR_FCR] == 0x01


def test_received_bytes_come_in_order(board):
    board[IIR_FCR] = 1
    board.uart.receive(b"ab")
    assert board[LSR] == LSR_EMPTY | LSR_READY
    assert (board[RBR_THR], board[RBR_THR]) == (ord("a"), ord("b"))
    assert board[LSR] == LSR_EMPTY
    assert board[RBR_THR] == 0


def test_without_fifos_a_second_byte_overwrites_the_first(board):
    board.uart.receive(b"ab")
    assert board[LSR] & LSR_OVERRUN
    assert not board[LSR] & LSR_OVERRUN, "reading LSR clears it"
    assert board[RBR_THR] == ord("b")


def test_a_full_fifo_keeps_what_it_has(board):
    board[IIR_FCR] = 1
    board.uart.receive(bytes(range(17)))
    assert board[LSR] & LSR_OVERRUN
    assert [board[RBR_THR] for _ in range(16)] == list(range(16))
    assert not board[LSR] & LSR_READY


@pytest.mark.parametrize("command", [0x03, 0x00])
def test_clearing_or_switching_off_the_fifo_empties_it(board, command):
    board[IIR_FCR] = 1
    board.uart.receive(b"ab")
    board[IIR_FCR] = command
    assert not board[LSR] & LSR_READY


def test_setting_the_trigger_again_keeps_what_was_received(board):
    board[IIR_FCR] = 1
    board.uart.receive(b"ab")
    board[IIR_FCR] = 0x81
    assert (board[RBR_THR], board[RBR_THR]) == (ord("a"), ord("b"))


def test_what_is_not_enabled_does_not_interrupt(board):
    board[MCR] = LOOP | OUT2  # modem deltas, and then each of the other causes
    board[RBR_THR] = 1
    board[RBR_THR] = 2
    assert board[LSR] & LSR_OVERRUN
    assert (board.levels, board[IIR_FCR]) == ([], 0x01)


@pytest.mark.parametrize(("command", "level"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_the_four_trigger_levels(board, command, level):
    board[IER] = 0x01
    board[IIR_FCR] = command
    board.uart.receive(bytes(level - 1))
    assert board[IIR_FCR] & 0x0F == (0x0C if level > 1 else 0x01)
    board.uart.receive(b"x")
    assert board[IIR_FCR] & 0x0F == 0x04


def test_modem_lines_that_do_not_move_make_no_delta(board):
    board[MCR] = 0x03  # without loopback the outputs reach nobody here
    assert board[MSR] == 0xB0
    board[MCR] = LOOP | 0x02
    board[MSR]
    board[MCR] = LOOP | 0x02
    assert board[MSR] == 0x10


def test_loopback_turns_bytes_round_and_nothing_leaves(board):
    board[MCR] = LOOP
    board[RBR_THR] = 0x5A
    assert board[RBR_THR] == 0x5A
    assert board.sent == b""


@pytest.mark.parametrize(
    ("driven", "seen"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0A, 0x90)]
)
def test_loopback_wires_modem_outputs_to_inputs(board, driven, seen):
    """0x0a is how Linux finds out whether there is a UART (`autoconfig`, 8250 driver)."""
    board[MCR] = LOOP | driven
    assert board[MSR] & 0xF0 == seen


def test_modem_deltas_are_cleared_by_reading(board):
    board[MCR] = LOOP
    assert board[MSR] == 0x0B, "CTS, DSR and DCD have gone"
    assert board[MSR] == 0x00


def test_only_the_end_of_a_ring_is_noted(board):
    board[MCR] = LOOP | 0x04
    assert board[MSR] & 0x04 == 0
    board[MCR] = LOOP
    assert board[MSR] & 0x04


def test_no_interrupt_without_out2(board):
    board[IER] = 0x01
    board.uart.receive(b"a")
    assert board.levels == []
    assert board[IIR_FCR] == 0x04, "IIR shows the cause all the same"
    board[MCR] = OUT2
    assert board.levels == [True]


def test_received_data_interrupts_until_it_is_read(board):
    board[MCR], board[IER] = OUT2, 0x01
    board.uart.receive(b"a")
    assert (board.levels, board[IIR_FCR]) == ([True], 0x04)
    board[RBR_THR]
    assert (board.levels, board[IIR_FCR]) == ([True, False], 0x01)


def test_below_the_trigger_level_it_is_the_timeout_that_interrupts(board):
    board[MCR], board[IER] = OUT2, 0x01
    board[IIR_FCR] = 0x41  # trigger at four
    board.uart.receive(b"abc")
    assert board[IIR_FCR] == 0xCC
    board.uart.receive(b"d")
    assert board[IIR_FCR] == 0xC4


def test_an_empty_transmitter_interrupts_when_enabled_and_iir_takes_it_back(board):
    board[MCR] = OUT2
    board[IER] = 0x02
    assert board.levels == [True]
    assert board[IIR_FCR] == 0x02
    assert (board.levels, board[IIR_FCR]) == ([True, False], 0x01)
    board[RBR_THR] = 1
    assert board[IIR_FCR] == 0x02


def test_the_most_urgent_cause_shows_first(board):
    board[IER] = 0x0F
    board[MCR] = LOOP | OUT2  # modem deltas
    board[RBR_THR] = 1
    board[RBR_THR] = 2  # overrun, data, empty transmitter
    causes = [board[IIR_FCR]]
    board[LSR]
    causes.append(board[IIR_FCR])
    board[RBR_THR]
    causes += [board[IIR_FCR], board[IIR_FCR]]
    board[MSR]
    causes.append(board[IIR_FCR])
    assert causes == [0x06, 0x04, 0x02, 0x00, 0x01]
