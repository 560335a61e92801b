"""The Multiboot loader: every rule of the header, and no byte outside the file."""

import random
import struct

import pytest

from vmlib.errors import BadInput
from vmlib.memory import GuestRam
from vmlib.multiboot import BOOT_MAGIC, HEADER_MAGIC, load, parse_kernel, read_kernel
from vmlib.units import MIB

PHYSICAL = 0x100000
CODE = b"\xfa\xf4\x90\x90"


def header(flags=0, *addresses):
    words = (HEADER_MAGIC, flags, -(HEADER_MAGIC + flags) & 0xFFFFFFFF, *addresses)
    return struct.pack(f"<{len(words)}I", *words)


def elf(
    flags=0,
    *,
    programs=None,
    entry=PHYSICAL + 0x80,
    elf_class=1,
    machine=3,
    phentsize=32,
    phoff=52,
    before=b"",
):
    """An ELF file whose first segment is the file itself: header, table, Multiboot header, code."""
    if programs is None:
        programs = [(1, 0, PHYSICAL, PHYSICAL, 0x84, 0x100, 5)]
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    head = ident + struct.pack(
        "<HHIIIIIHHHHHH",
        *(2, machine, 1, entry, phoff, 0, 0, 52, phentsize, len(programs), 0, 0, 0),
    )
    table = b"".join(struct.pack("<8I", *program, 4) for program in programs)
    start = head + table + before
    return (start + header(flags)).ljust(0x80, b"\0") + CODE


def kludge(flags=0x10000, load_end=0, bss_end=0, skew=0, load=PHYSICAL, entry=PHYSICAL + 32):
    return header(flags, PHYSICAL + skew, load, load_end, bss_end, entry) + CODE


def test_an_elf_kernel_goes_where_its_program_headers_say():
    kernel = parse_kernel(elf(), "k")
    ram = GuestRam(2 * MIB)
    ram.write(PHYSICAL, b"\xee" * 0x200)
    loaded = load(kernel, ram)
    assert loaded.entry == PHYSICAL + 0x80
    assert ram.read(PHYSICAL, 0x84) == elf()
    assert ram.read(PHYSICAL + 0x84, 0x7D) == bytes(0x7C) + b"\xee", "bss is cleared, no more"


def test_addresses_in_the_header_win_over_elf():
    kernel = parse_kernel(kludge(load_end=PHYSICAL + 36, bss_end=PHYSICAL + 64))
    ram = GuestRam(2 * MIB)
    ram.write(PHYSICAL, b"\xee" * 80)
    assert load(kernel, ram).entry == PHYSICAL + 32
    assert ram.read(PHYSICAL + 32, 33) == CODE + bytes(28) + b"\xee"


def test_addresses_may_skip_the_front_of_the_file():
    image = b"skipped!" + header(0x10000, PHYSICAL + 4, PHYSICAL + 4, 0, 0, PHYSICAL + 36) + CODE
    ram = GuestRam(2 * MIB)
    load(parse_kernel(image), ram)
    assert ram.read(PHYSICAL, 8) == bytes(4) + image[8:12]


def test_a_physical_address_differs_from_a_virtual_one():
    virtual = 0xC0000000
    image = elf(programs=[(1, 0, virtual, PHYSICAL, 0x84, 0x84, 5)], entry=virtual + 0x80)
    assert parse_kernel(image).entry == PHYSICAL + 0x80


def test_segments_that_are_not_to_be_loaded_are_not():
    kept = (1, 0, PHYSICAL, PHYSICAL, 0x84, 0x84, 5)
    image = elf(programs=[(4, 0xFFFFFF, 0, 0, 0xFFFFFF, 0, 0), kept])
    assert len(parse_kernel(image).segments) == 1


@pytest.mark.parametrize(
    ("image", "field", "rule"),
    [
        (b"", "Multiboot header", "first 8192"),
        (b"\0" * 2 + kludge(), "Multiboot header", "multiple of 4"),
        (bytes(8184) + kludge(), "Multiboot header", "first 8192"),
        (elf().replace(header(), header()[:8] + b"\0\0\0\0"), "Multiboot header", "sum zero"),
        (elf(1 << 2), "flags", "bit 2 requires a video mode"),
        (elf(1 << 9), "flags", "bit 9 requires a feature"),
        (elf(elf_class=2), "ELF class", "64-bit.*give a 32-bit image"),
        (elf(machine=62), "ELF class", "64-bit.*give a 32-bit image"),
        (b"JUNK" + header(), "format", "is no ELF file"),
        (elf(elf_class=3), "ELF header", "little-endian"),
        (b"\x7fELF\x01\x01" + bytes(14) + header(), "ELF header", "all there"),
        (elf(phentsize=31), "e_phentsize", "is 31"),
        (elf(phoff=0x84 - 31), "e_phoff", "outside the file"),
        (elf(programs=[]), "program headers", "nothing to load"),
        (elf(programs=[(1, 0, 0, 0, 9, 8, 5)]), "program header 0", "more bytes in the file"),
        (elf(programs=[(1, 1, 0, 0, 0x84, 0x84, 5)]), "program header 0", "ends at 0x85"),
        (elf(entry=PHYSICAL + 0x100), "entry", "nothing that is loaded"),
        (header(0x10000, 1, 2, 3), "addresses", "ends within"),
        (kludge(skew=-4), "load_addr", "outside the file"),
        (kludge(skew=4), "load_addr", "outside the file"),
        (kludge(load_end=PHYSICAL + 37), "load_end_addr", "more than the file has"),
        (kludge(load_end=PHYSICAL - 1), "load_end_addr", "more than the file has, or for less"),
        (kludge(bss_end=PHYSICAL + 1), "bss_end_addr", "before load_end_addr"),
        (kludge(entry=0), "entry", "nothing that is loaded"),
    ],
)
def test_what_is_wrong_is_named(image, field, rule):
    with pytest.raises(BadInput, match=rule) as caught:
        parse_kernel(image, "my.elf")
    assert caught.value.field.startswith("my.elf, ")
    assert field in caught.value.field


def test_optional_flags_are_left_alone():
    assert parse_kernel(elf(0xFFFE0003))


def test_the_header_is_found_at_the_last_place_it_may_have():
    image = bytes(8180) + header(0x10000, 8180, 0, 0, 0, 8212) + CODE
    assert parse_kernel(image).entry == 8212


def test_a_kernel_larger_than_ram_is_refused_before_a_byte_is_written():
    ram = GuestRam(MIB)
    with pytest.raises(BadInput, match=r"needs memory up to 0x100100, and RAM ends at 0x100000"):
        load(parse_kernel(elf()), ram)
    assert not ram.array.any()


def test_the_information_table():
    ram = GuestRam(64 * MIB)
    loaded = load(parse_kernel(elf(), "kernel.elf"), ram, "root=none quiet")
    flags, lower, upper = struct.unpack("<3I", ram.read(loaded.info, 12))
    assert loaded.info == 0x9000, "as QEMU has it, for a kernel that lies elsewhere"
    assert flags == 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9
    assert (lower, upper) == (640, 63 * 1024)

    def string(field):
        at = int.from_bytes(ram.read(loaded.info + field, 4), "little")
        return ram.read(at, 80).split(b"\0")[0]

    assert string(16) == b"kernel.elf root=none quiet"
    assert string(64) == b"vmlib"
    length, at = struct.unpack("<II", ram.read(loaded.info + 44, 8))
    entries = [struct.unpack("<IQQI", ram.read(at + k, 24)) for k in range(0, length, 24)]
    assert entries == [(20, 0, 640 << 10, 1), (20, MIB, 63 * MIB, 1)]


def test_the_table_gives_way_to_a_kernel_that_is_there_itself():
    low = (1, 0, 0x9080, 0x9080, 0x84, 0x84, 5)
    ram = GuestRam("64K")
    loaded = load(parse_kernel(elf(programs=[low], entry=0x9080)), ram)
    assert loaded.info == 0xA000
    assert ram.read(0x9080, 4) == b"\x7fELF"


def test_no_room_for_the_table():
    everywhere = (1, 0, 0, 0, 0x84, 0x10000, 5)
    with pytest.raises(BadInput, match="no room for both"):
        load(parse_kernel(elf(programs=[everywhere], entry=0)), GuestRam("64K"))


def test_a_command_line_that_is_too_long():
    with pytest.raises(BadInput, match="longer than there is room for"):
        load(parse_kernel(elf()), GuestRam(2 * MIB), "x" * 4000)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_kernel(tmp_path / "nothing")
    with pytest.raises(BadInput, match="cannot be read"):
        read_kernel(tmp_path)


def test_the_magic_of_the_specification():
    assert (HEADER_MAGIC, BOOT_MAGIC) == (0x1BADB002, 0x2BADB002)


@pytest.mark.parametrize("make", [elf, kludge])
def test_damaged_images_are_refused_or_loaded_and_nothing_else(make):
    """Any one to four bytes changed, and any end cut off: a kernel within its file, or BadInput."""
    chance = random.Random(1995)
    good = make()
    refused = 0
    for _ in range(5000):
        image = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            image[chance.randrange(len(image))] = chance.choice((0, 1, 0x7F, 0xFF, 0x80))
        image = bytes(image[: chance.choice((len(image), chance.randrange(len(image))))])
        try:
            kernel = parse_kernel(image)
            for part in kernel.segments:
                assert 0 <= part.offset <= part.offset + part.length <= len(image)
                assert part.length <= part.size
            load(kernel, GuestRam(2 * MIB))
        except BadInput:
            refused += 1
    assert 1000 < refused < 5000
