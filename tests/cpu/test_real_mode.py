"""Delivery of events in real mode, one rule a test."""

import pytest

from vmlib.cpu.exits import Shutdown
from vmlib.cpu.real_mode import DOUBLE_FAULT, State, deliver, find_gate
from vmlib.memory import GuestRam

STATE = State(cs=0x100, ip=0x0234, flags=0x0302, ss=0x200, sp=0x0F00)


@pytest.fixture
def ram():
    ram = GuestRam("64K")
    ram.write(4 * 6, bytes.fromhex("11 22 33 04"))  # vector 6: 0433:2211
    return ram


def test_the_frame_is_flags_cs_ip(ram):
    after = deliver(ram, 6, 0, STATE)
    assert (after.cs, after.ip, after.sp) == (0x0433, 0x2211, 0x0EFA)
    assert ram.read(0x2000 + 0x0EFA, 6) == bytes.fromhex("3402 0001 0203")


def test_trap_and_interrupt_flags_go_off(ram):
    assert deliver(ram, 6, 0, STATE).flags == 0x0002


def test_the_stack_wraps_at_64_k(ram):
    state = State(cs=0, ip=0, flags=2, ss=0, sp=2)
    assert deliver(ram, 6, 0, state).sp == 0xFFFC


def test_a_table_or_a_stack_outside_ram_is_a_shutdown(ram):
    assert "table" in deliver(ram, 6, 0x10000, STATE).why
    high = State(cs=0, ip=0, flags=2, ss=0xF000, sp=0xFFFF)
    assert "stack" in deliver(ram, 6, 0, high).why


@pytest.mark.parametrize(
    ("vector", "limit", "size", "gate"),
    [(6, 0x3FF, 4, 6), (6, 27, 4, 6), (33, 35, 4, DOUBLE_FAULT), (6, 55, 8, 6), (14, 71, 8, 8)],
)
def test_a_gate_must_lie_within_the_limit(vector, limit, size, gate):
    assert find_gate(vector, limit, 0x1000, size) == gate


@pytest.mark.parametrize(("vector", "limit", "size"), [(6, 0, 4), (9, 34, 4), (6, 54, 8)])
def test_no_gate_for_the_double_fault_is_a_triple_fault(vector, limit, size):
    found = find_gate(vector, limit, 0x1000, size)
    assert isinstance(found, Shutdown)
    assert "triple fault at 0x1000" in found.why
