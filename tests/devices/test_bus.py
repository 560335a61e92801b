import pytest

from vmlib.devices import Bus
from vmlib.errors import BadInput


class Memo:
    """Remembers what it was asked, and answers with the offset in each byte."""

    def __init__(self, name="memo", widest=1):
        self.name, self.widest, self.log, self.resets = name, widest, [], 0

    def read(self, offset, size):
        self.log.append(("read", offset, size))
        return int.from_bytes(bytes(offset + k for k in range(size)), "little")

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value))

    def reset(self):
        self.resets += 1


@pytest.fixture
def bus():
    return Bus("ports", 0x10000)


def test_a_device_sees_offsets(bus):
    device = Memo()
    bus.attach(device, 0x3F8, 8)
    assert bus.read(0x3FD, 1) == 5
    bus.write(0x3F9, 1, 0x42)
    assert device.log == [("read", 5, 1), ("write", 1, 1, 0x42)]


def test_nobody_answers_with_ones_and_writes_vanish_and_both_are_counted(bus):
    assert [bus.read(0x80, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    bus.write(0x80, 1, 0)
    assert (bus.stray_reads, bus.stray_writes) == (3, 1)


def test_an_access_wider_than_the_device_is_split_low_part_first(bus):
    narrow, wide = Memo(widest=1), Memo(widest=2)
    bus.attach(narrow, 0x10, 4)
    bus.attach(wide, 0x20, 4)
    bus.write(0x10, 4, 0x44332211)
    assert narrow.log == [("write", k, 1, 0x11 * (k + 1)) for k in range(4)]
    bus.write(0x20, 4, 0x44332211)
    assert wide.log == [("write", 0, 2, 0x2211), ("write", 2, 2, 0x4433)]
    assert bus.read(0x10, 4) == 0x03020100


def test_an_access_over_a_border_is_split_into_bytes_for_each_owner(bus):
    left, right = Memo("left", 4), Memo("right", 4)
    bus.attach(left, 0x100, 2)
    bus.attach(right, 0x103, 1)
    bus.write(0x101, 4, 0x44332211)
    assert left.log == [("write", 1, 1, 0x11)]
    assert right.log == [("write", 0, 1, 0x33)]
    assert bus.stray_writes == 2
    assert bus.read(0x100, 4) == 0x00FF0100


def test_an_access_that_begins_with_nobody_reaches_its_neighbour(bus):
    right = Memo("right", 4)
    bus.attach(right, 0x102, 1)
    bus.write(0x100, 4, 0x44332211)
    assert right.log == [("write", 0, 1, 0x33)]
    assert bus.stray_writes == 3


def test_the_last_address_is_one(bus):
    bus.attach(Memo(), 0xFFFF, 1)
    assert bus.read(0xFFFF, 1) == 0


def test_a_device_cannot_answer_wider_than_it_was_asked(bus):
    device = Memo()
    device.read = lambda offset, size: 0x1FF
    bus.attach(device, 0, 1)
    assert bus.read(0, 1) == 0xFF


@pytest.mark.parametrize(("first", "count"), [(0x3F0, 9), (0x3FF, 1), (0x3F8, 8), (0x300, 0x200)])
def test_an_overlap_names_both(bus, first, count):
    bus.attach(Memo("the serial port"), 0x3F8, 8)
    with pytest.raises(
        BadInput,
        match=f"ports of intruder: {first:#x}..{first + count - 1:#x} overlaps the serial port at "
        "0x3f8..0x3ff",
    ):
        bus.attach(Memo("intruder"), first, count)
    assert len(bus.claims) == 1


def test_neighbours_do_not_overlap(bus):
    bus.attach(Memo("b"), 0x400, 1)
    bus.attach(Memo("a"), 0x3F8, 8)
    bus.attach(Memo("c"), 0x401, 1)
    assert [claim.device.name for claim in bus.claims] == ["a", "b", "c"]
    assert bus.find(0x400).device.name == "b"
    assert bus.find(0x402) is None


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0xFFFF, 2), (0, 0), (0x10000, 1)])
def test_a_range_outside_the_bus_is_refused(bus, first, count):
    with pytest.raises(BadInput, match=r"is not within 0x0\.\.0xffff"):
        bus.attach(Memo(), first, count)


def test_reset_reaches_each_device_once(bus):
    device = Memo()
    bus.attach(device, 0, 1)
    bus.attach(device, 8, 1)
    bus.read(0x99, 1)
    bus.reset()
    assert device.resets == 1
    assert bus.stray_reads == 0
