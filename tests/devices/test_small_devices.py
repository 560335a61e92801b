"""isa-debug-exit and fw_cfg: a rule a test."""

import pytest

from vmlib.devices import Bus, DebugExit, FwCfg
from vmlib.errors import BadInput


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF)])
def test_debug_exit_doubles_and_adds_one(value, status):
    port = DebugExit()
    assert port.status is None
    port.write(0, 1, value)
    assert port.status == status


def test_debug_exit_keeps_the_eight_bits_that_a_parent_sees():
    port = DebugExit()
    port.write(0, 4, 0x12345680)
    assert port.status == 1


def test_debug_exit_counts_the_first_write():
    port = DebugExit()
    port.write(0, 1, 1)
    port.write(0, 1, 2)
    assert port.status == 3
    port.reset()
    assert port.status is None


def test_debug_exit_reads_as_zero_and_does_nothing():
    port = DebugExit()
    assert port.read(0, 4) == 0
    assert port.status is None


def item(port, key, length):
    port.write(0, 2, key)
    return bytes(port.read(1, 1) for _ in range(length))


@pytest.fixture
def fw_cfg():
    return FwCfg(64 << 20, cpus=3)


@pytest.mark.parametrize(
    ("key", "bytes_"),
    [
        (0x0000, b"QEMU"),
        (0x0001, b"\x01\0\0\0"),
        (0x0003, (64 << 20).to_bytes(8, "little")),
        (0x0005, b"\x03\0"),
    ],
)
def test_fw_cfg_items_are_little_endian(fw_cfg, key, bytes_):
    assert item(fw_cfg, key, len(bytes_)) == bytes_


def test_fw_cfg_reads_zeros_past_the_end_and_for_unknown_keys(fw_cfg):
    assert item(fw_cfg, 0x0000, 8) == b"QEMU\0\0\0\0"
    assert item(fw_cfg, 0x7777, 4) == bytes(4)


def test_fw_cfg_selecting_starts_the_item_again(fw_cfg):
    assert item(fw_cfg, 0, 2) == b"QE"
    assert item(fw_cfg, 0, 2) == b"QE"


def test_fw_cfg_takes_only_whole_keys_at_the_selector(fw_cfg):
    item(fw_cfg, 0, 1)
    fw_cfg.write(0, 1, 5)  # half a key
    fw_cfg.write(1, 1, 5)  # data cannot be written
    assert fw_cfg.read(1, 1) == ord("E")


def test_fw_cfg_selector_cannot_be_read(fw_cfg):
    assert fw_cfg.read(0, 2) == 0xFFFF
    assert fw_cfg.read(0, 1) == 0xFF


def test_fw_cfg_gives_bytes_and_nothing_wider(fw_cfg):
    assert fw_cfg.read(1, 2) == 0xFFFF
    assert fw_cfg.read(1, 1) == ord("Q"), "and that read did not count"


def test_fw_cfg_selects_the_signature_after_reset(fw_cfg):
    assert fw_cfg.read(1, 1) == ord("Q")
    item(fw_cfg, 5, 1)
    fw_cfg.reset()
    assert fw_cfg.read(1, 1) == ord("Q")


def test_fw_cfg_more_items():
    assert item(FwCfg(1, items={0x8000: b"kernel"}), 0x8000, 7) == b"kernel\0"
    assert item(FwCfg(1, items={0: b"VMLB"}), 0, 4) == b"VMLB"


@pytest.mark.parametrize(
    ("ram", "cpus", "field"), [(-1, 1, "ram_size"), (1, 0, "cpus"), (1, 0x10000, "cpus")]
)
def test_fw_cfg_refuses_machines_that_are_none(ram, cpus, field):
    with pytest.raises(BadInput, match=f"^{field}: is {ram if field == 'ram_size' else cpus}; "):
        FwCfg(ram, cpus)


def test_fw_cfg_behind_the_bus_a_16_bit_write_selects_in_one_piece(fw_cfg):
    bus = Bus("ports", 0x10000)
    bus.attach(fw_cfg, 0x510, 2)
    bus.write(0x510, 2, 5)
    assert [bus.read(0x511, 1) for _ in range(3)] == [3, 0, 0]
