"""The pair of 8259As, a rule of the data sheet a test."""

import threading

import pytest

from vmlib.devices import Bus, PicPair
from vmlib.devices.pic import Pic8259
from vmlib.errors import BadInput

EOI = 0x20


def initialise(pic, icw4=0x01, bases=(0x20, 0x28)):
    for port, base, wiring in ((0x20, bases[0], 0x04), (0xA0, bases[1], 0x02)):
        pic.write(port, 1, 0x11)
        for word in (base, wiring, icw4):
            pic.write(port + 1, 1, word)


@pytest.fixture
def pic():
    pair = PicPair()
    initialise(pair)
    return pair


def pulse(pic, *lines):
    for line in lines:
        pic.set_irq(line, True)
        pic.set_irq(line, False)


def isr(pic, port=0x20):
    pic.write(port, 1, 0x0B)
    return pic.read(port, 1)


def irr(pic, port=0x20):
    pic.write(port, 1, 0x0A)
    return pic.read(port, 1)


def test_the_vector_is_base_plus_line(pic):
    for line in (0, 1, 7):
        pulse(pic, line)
        assert pic.acknowledge() == 0x20 + line
        pic.write(0x20, 1, EOI)


def test_the_low_bits_of_icw2_are_not_the_base(pic):
    initialise(pic, bases=(0x47, 0x53))
    pulse(pic, 3)
    assert pic.acknowledge() == 0x43


def test_an_edge_is_one_request_however_long_the_line_is_high(pic):
    pic.set_irq(4, True)
    pic.set_irq(4, True)
    assert pic.acknowledge() == 0x24
    pic.set_irq(4, True)
    pic.write(0x20, 1, EOI)
    assert not pic.pending()
    pic.set_irq(4, False)
    pic.set_irq(4, True)
    assert pic.pending()


def test_the_lower_line_is_the_more_urgent(pic):
    pulse(pic, 5, 3)
    assert pic.acknowledge() == 0x23


def test_in_service_holds_back_the_less_urgent_until_eoi(pic):
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 5)
    assert not pic.pending()
    pic.write(0x20, 1, EOI)
    assert pic.acknowledge() == 0x25


def test_the_more_urgent_interrupts_one_in_service(pic):
    pulse(pic, 5)
    pic.acknowledge()
    pulse(pic, 3)
    assert pic.acknowledge() == 0x23
    assert isr(pic) == 0x28


def test_a_non_specific_eoi_ends_the_most_urgent(pic):
    pulse(pic, 5)
    pic.acknowledge()
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0x20


def test_a_specific_eoi_ends_the_line_it_names(pic):
    pulse(pic, 5)
    pic.acknowledge()
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(0x20, 1, 0x60 | 5)
    assert isr(pic) == 0x08


def test_a_masked_line_waits(pic):
    pic.write(0x21, 1, 0x10)
    assert pic.read(0x21, 1) == 0x10
    pulse(pic, 4)
    assert not pic.pending()
    assert irr(pic) == 0x10
    pic.write(0x21, 1, 0)
    assert pic.acknowledge() == 0x24


def test_icw1_forgets_masks_and_requests(pic):
    pic.write(0x21, 1, 0xFF)
    pulse(pic, 4)
    initialise(pic)
    assert (pic.read(0x21, 1), irr(pic), pic.pending()) == (0, 0, False)


def test_without_icw4_the_next_word_is_a_mask(pic):
    pic.write(0x20, 1, 0x10)
    for word in (0x30, 0x04, 0xAA):
        pic.write(0x21, 1, word)
    assert pic.read(0x21, 1) == 0xAA


def test_a_single_chip_expects_no_icw3(pic):
    pic.write(0x20, 1, 0x12)
    for word in (0x30, 0xAA):
        pic.write(0x21, 1, word)
    assert pic.read(0x21, 1) == 0xAA


def test_automatic_eoi_leaves_nothing_in_service(pic):
    initialise(pic, icw4=0x03)
    pulse(pic, 3)
    assert pic.acknowledge() == 0x23
    assert isr(pic) == 0


def test_the_second_chip_comes_through_line_2(pic):
    pulse(pic, 12)
    assert pic.acknowledge() == 0x28 + 4
    assert (isr(pic), isr(pic, 0xA0)) == (0x04, 0x10)


def test_the_second_chip_is_more_urgent_than_line_3_and_less_than_line_1(pic):
    pulse(pic, 3, 8, 1)
    vectors = []
    for ends in ([0x20], [0xA0, 0x20], [0x20]):
        vectors.append(pic.acknowledge())
        for port in ends:
            pic.write(port, 1, EOI)
    assert vectors == [0x21, 0x28, 0x23]


def test_both_chips_need_their_eoi(pic):
    pulse(pic, 8)
    pic.acknowledge()
    pulse(pic, 9)
    pic.write(0x20, 1, EOI)
    assert not pic.pending()
    pic.write(0xA0, 1, EOI)
    assert pic.acknowledge() == 0x29


def test_two_of_the_second_chip_in_a_row_with_automatic_eoi(pic):
    initialise(pic, icw4=0x03)
    pulse(pic, 8, 9)
    assert (pic.acknowledge(), pic.acknowledge()) == (0x28, 0x29)
    assert not pic.pending()


def test_masking_line_2_silences_the_second_chip(pic):
    pic.write(0x21, 1, 0x04)
    pulse(pic, 8)
    assert not pic.pending()


def test_special_fully_nested_mode_lets_the_second_chip_interrupt_itself(pic):
    initialise(pic, icw4=0x11)
    pulse(pic, 12)
    pic.acknowledge()
    pulse(pic, 8)
    assert pic.pending()
    initialise(pic)
    pulse(pic, 12)
    pic.acknowledge()
    pulse(pic, 8)
    assert not pic.pending(), "in the ordinary mode line 2 of the first chip is in service"


def test_an_acknowledge_with_no_request_is_spurious(pic):
    assert pic.acknowledge() == 0x27
    assert isr(pic) == 0


def test_a_request_of_the_second_chip_that_is_masked_too_late_is_spurious_there(pic):
    pulse(pic, 8)
    pic.write(0xA1, 1, 0xFF)
    assert pic.acknowledge() == 0x2F
    assert (isr(pic), isr(pic, 0xA0)) == (0x04, 0)


def test_rotation_on_eoi_makes_the_served_one_last(pic):
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(0x20, 1, 0xA0)
    pulse(pic, 3, 4)
    assert pic.acknowledge() == 0x24


def test_rotation_on_a_specific_eoi(pic):
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(0x20, 1, 0xE0 | 3)
    pulse(pic, 0, 4)
    assert pic.acknowledge() == 0x24


def test_set_priority_names_the_last(pic):
    pic.write(0x20, 1, 0xC0 | 4)
    pulse(pic, 0, 5)
    assert pic.acknowledge() == 0x25


def test_rotation_with_automatic_eoi(pic):
    initialise(pic, icw4=0x03)
    pic.write(0x20, 1, 0x80)
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 3, 4)
    assert pic.acknowledge() == 0x24
    pic.write(0x20, 1, 0x00)  # no more
    pic.acknowledge()
    pulse(pic, 3, 5)
    assert pic.acknowledge() == 0x25, "line 4 is still the last, 5 the first"


def test_special_mask_mode_lets_all_but_the_masked_through(pic):
    pulse(pic, 1)
    pic.acknowledge()
    pic.write(0x21, 1, 0x02)
    pulse(pic, 6)
    assert not pic.pending()
    pic.write(0x20, 1, 0x68)
    assert pic.acknowledge() == 0x26
    pic.write(0x20, 1, 0x48)
    assert isr(pic) == 0x42


def test_in_special_mask_mode_a_non_specific_eoi_passes_over_a_masked_line(pic):
    """Data sheet, *End of Interrupt*: an IS bit that IMR masks is not cleared by it then."""
    pulse(pic, 1)
    pic.acknowledge()
    pic.write(0x21, 1, 0x02)
    pic.write(0x20, 1, 0x68)
    pulse(pic, 6)
    pic.acknowledge()
    for _ in range(2):
        pic.write(0x20, 1, EOI)
        assert isr(pic) == 0x02, "line 6 ends, line 1 stays"
    pic.write(0x20, 1, 0x48)
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0


def test_poll_acknowledges_by_a_read(pic):
    pic.write(0x20, 1, 0x0C)
    assert pic.read(0x20, 1) == 0
    pulse(pic, 6)
    pic.write(0x20, 1, 0x0C)
    assert pic.read(0x20, 1) == 0x86
    assert not pic.pending(), "a poll is an acknowledge: INT falls"
    assert isr(pic) == 0x40


def test_irr_or_isr_stays_chosen(pic):
    pulse(pic, 1)
    pic.acknowledge()
    pulse(pic, 6)
    assert [irr(pic), pic.read(0x20, 1), isr(pic), pic.read(0x20, 1)] == [0x40, 0x40, 2, 2]
    irr(pic)
    pic.write(0x20, 1, 0x09)  # RIS without RR chooses nothing
    assert pic.read(0x20, 1) == 0x40


def test_eoi_with_nothing_in_service_does_nothing(pic):
    pic.write(0x20, 1, EOI)
    assert isr(pic) == 0


def test_it_wakes_once_for_each_time_int_rises(pic):
    rang = []
    pic.notify(lambda: rang.append(pic.pending()))
    pulse(pic, 4)
    pulse(pic, 5)
    assert rang == [True]
    pic.acknowledge()
    pic.write(0x20, 1, EOI)
    assert rang == [True, True]


@pytest.mark.parametrize(
    ("line", "rule"),
    [(-1, "from 0 to 15"), (2, "is not 2, which is the cascade"), (16, "from 0 to 15")],
)
def test_lines_that_no_device_has(pic, line, rule):
    with pytest.raises(BadInput, match=f"^line: .*{rule}"):
        pic.set_irq(line, True)


def test_reset_is_power_on(pic):
    pulse(pic, 4)
    pic.reset()
    assert not pic.pending()
    pulse(pic, 4)
    assert pic.acknowledge() == 4, "base 0 until the guest says otherwise"


def test_who_is_woken_may_use_the_controller_from_another_thread(pic):
    """A wake that waits for the vCPU must not hold what the vCPU needs."""
    read = []

    def wake():
        other = threading.Thread(target=lambda: read.append(pic.read(0x21, 1)))
        other.start()
        other.join(5)

    pic.notify(wake)
    pulse(pic, 4)
    assert read == [0]


def test_a_guests_access_waits_until_a_line_is_raised(pic, monkeypatch):
    """Raising a line reads and writes IRR, and so does an acknowledge."""
    set_line, waits = Pic8259.set_line, []
    reading = threading.Thread(target=pic.read, args=(0x20, 1))

    def while_another_reads(chip, line, level):
        if line == 4:
            reading.start()
            reading.join(0.2)  # as long as it could take: it has to wait for this
            waits.append(reading.is_alive())
        set_line(chip, line, level)

    monkeypatch.setattr(Pic8259, "set_line", while_another_reads)
    pic.set_irq(4, True)
    reading.join()
    assert waits == [True]


def test_the_pair_is_two_devices_of_a_bus(pic):
    bus = Bus("ports", 0x10000)
    bus.attach(pic.ports(0x20), 0x20, 2)
    bus.attach(pic.ports(0xA0), 0xA0, 2)
    bus.write(0x21, 1, 0x12)
    bus.write(0xA1, 1, 0x34)
    assert (bus.read(0x21, 1), bus.read(0xA1, 1)) == (0x12, 0x34)
    bus.reset()
    assert (pic.read(0x21, 1), pic.read(0xA1, 1)) == (0, 0)


def test_edges_from_many_threads_are_all_seen(pic):
    """Each thread raises its line only when the last edge was served: none may be lost."""
    lines = (0, 1, 3, 4, 8, 15)
    served = dict.fromkeys(lines, 0)
    turns = {line: threading.Semaphore(1) for line in lines}

    def raise_often(line):
        for _ in range(200):
            turns[line].acquire()
            pulse(pic, line)

    threads = [threading.Thread(target=raise_often, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or pic.pending():
        if pic.pending():
            line = pic.acknowledge() - 0x20
            served[line] += 1
            if line >= 8:
                pic.write(0xA0, 1, EOI)
            pic.write(0x20, 1, EOI)
            turns[line].release()
    assert set(served.values()) == {200}
