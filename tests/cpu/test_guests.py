import pytest

from vmlib.cpu import Guest, add_guest, load_guest
from vmlib.cpu.guests import IMAGES, parse_listing
from vmlib.errors import BadInput


def test_listing_and_bytes_are_one():
    guest = add_guest(7, 5)
    assert b"".join(line.code for line in guest.listing) == guest.code
    assert [line.text for line in guest.listing[1:3]] == ["mov al, 7", "add al, 5"]
    assert len(guest.code) == 28
    assert all(line.comment for line in guest.listing)
    assert add_guest().code == load_guest("add").code


@pytest.mark.parametrize(("a", "b"), [(-1, 0), (0, 256), ("2", 2), (True, 1), (1.0, 1)])
def test_operands_are_bytes(a, b):
    with pytest.raises(BadInput, match="from 0 to 255"):
        add_guest(a, b)


def test_unknown_guests_and_empty_ones():
    with pytest.raises(BadInput, match="known are add"):
        load_guest("nobody")
    with pytest.raises(BadInput, match="at least one byte"):
        Guest.from_bytes(b"")


def test_every_source_has_a_listing():
    assert {p.stem for p in IMAGES.glob("*.asm")} == {p.stem for p in IMAGES.glob("*.lst")}


def test_a_listing_with_a_gap_is_refused():
    text = (IMAGES / "add.lst").read_text()
    with pytest.raises(BadInput, match="gap"):
        parse_listing("".join(line for line in text.splitlines(True) if "B0C8" not in line))


def test_a_readers_bytes_get_a_listing():
    guest = Guest.from_bytes(bytes.fromhex("b0 41 e6 10 f4"))
    assert [(line.offset, line.text) for line in guest.listing] == [
        (0, "mov al, 0x41"),
        (2, "out 0x10, al"),
        (4, "hlt"),
    ]


def test_without_capstone_there_is_no_listing_and_no_harm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "capstone", None)
    assert Guest.from_bytes(b"\xf4").listing == ()
