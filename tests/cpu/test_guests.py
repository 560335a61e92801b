import subprocess

import pytest

from vmlib.cpu import Guest, add_guest, load_guest
from vmlib.cpu.guests import IMAGES, parse_listing
from vmlib.errors import BadInput

NAMES = sorted(path.stem for path in IMAGES.glob("*.asm"))
FLAT = 0x1000


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


@pytest.mark.needs("nasm")
def test_every_guest_is_what_the_assembler_makes_of_its_source(check, tmp_path):
    version = subprocess.run(["nasm", "-v"], capture_output=True, text=True, check=True).stdout
    covered = sorted(
        path.name for path in IMAGES.iterdir() if path.suffix in (".asm", ".lst", ".inc")
    )
    with check(
        "cpu/guests-assembled",
        what="The bytes and the listing of every guest against its source, assembled again",
        tool="nasm",
        tool_version=version.split()[2],
        covers=[*(f"vmlib/cpu/images/{name}" for name in covered), "vmlib/cpu/guests.py"],
    ) as record:
        for name in NAMES:
            out, listing = tmp_path / "out", tmp_path / "listing"
            command = ["nasm", "-f", "bin", f"{name}.asm", "-o", str(out), "-l", str(listing)]
            subprocess.run(command, check=True, cwd=IMAGES)
            record.show(f"bytes of {name}", len(load_guest(name).code), len(out.read_bytes()))
            record.case(load_guest(name).code, out.read_bytes(), f"bytes of {name}")
            record.case((IMAGES / f"{name}.lst").read_text(), listing.read_text(), f"{name}.lst")


@pytest.mark.parametrize("name", NAMES)
def test_every_line_says_what_it_is_for(name):
    guest = load_guest(name)
    assert b"".join(line.code for line in guest.listing) == guest.code
    assert all(line.comment for line in guest.listing)
    assert all(len(line.comment) <= 60 for line in guest.listing)
    labels = [line.label for line in guest.listing if line.label]
    assert len(labels) == len(set(labels))


def test_addresses_in_a_listing_get_the_origin():
    """NASM lists `lgdt [gdtr]` before it knows where the program will be."""
    guest = load_guest("modes")
    assert guest.at == FLAT
    (lgdt,) = (line for line in guest.listing if line.text == "lgdt [gdtr]")
    assert int.from_bytes(lgdt.code[-2:], "little") == FLAT + guest.line("gdtr").offset
    limit, base = guest.line("gdtr").code, guest.code[guest.line("gdtr").offset + 2 :][:4]
    assert int.from_bytes(limit, "little") == 31
    assert int.from_bytes(base, "little") == FLAT + guest.line("gdt").offset


def test_one_listing_has_code_of_three_widths_and_data():
    guest = load_guest("modes")
    assert [guest.listing[0].bits, guest.line("protected").bits, guest.line("touch").bits] == [
        16,
        32,
        64,
    ]
    data = [line.label for line in guest.listing if line.data and line.label]
    assert data == ["letter", "gdt", "gdtr", "idt", "idtr"]
    assert guest.line("idt").code == bytes(14 * 16)
    assert not guest.line("touch").data


def test_long_instructions_are_one_line():
    (line,) = (x for x in load_guest("modes").listing if x.text.startswith("mov dword [tables], "))
    assert line.code.hex() == "c7050080000007900000"


def test_labels_are_found_and_unknown_ones_refused():
    guest = load_guest("multiboot")
    assert guest.line("print.wait").text == "in al, dx"
    assert guest.line("halt").code == b"\xf4"
    with pytest.raises(BadInput, match=r"'nowhere' is not in add; there are digit, emit"):
        load_guest("add").line("nowhere")


def test_how_guests_start():
    starts = {name: (load_guest(name).entry, load_guest(name).at) for name in NAMES}
    assert starts["multiboot"] == ("multiboot", 0x100000)
    assert starts["add"] == ("real", None)
    assert starts["modes"] == ("real", FLAT)
    assert {at for entry, at in starts.values() if entry == "real"} <= {FLAT, None}


def test_the_exits_guest_has_one_label_an_exit():
    guest = load_guest("exits")
    texts = {line.label: line.text for line in guest.listing if line.label.startswith("exit_")}
    assert texts == {
        "exit_out": "out dx, al",
        "exit_rep_outs": "rep outsb",
        "exit_in": "in al, dx",
        "exit_mmio_write": "mov [es:0], ax",
        "exit_mmio_read": "mov bx, [es:0]",
        "exit_cpuid": "cpuid",
        "exit_rdmsr": "rdmsr",
        "exit_pic": "out 0x20, al",
        "exit_halt": "hlt",
        "exit_end": "hlt",
    }


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
