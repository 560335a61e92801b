"""Multiboot 1: loading a kernel that says by a header where it wants to be.

A Multiboot kernel carries three words in its first 8 KiB: a magic number, flags and a checksum.
The loader puts the image where its ELF program headers (or five addresses in the Multiboot header
itself) say, leaves a table of facts about the machine in RAM, and enters the kernel in 32-bit
protected mode with EAX = 0x2BADB002 and EBX pointing at that table. Multiboot Specification
0.6.96, sections 3.1 (header), 3.2 (machine state) and 3.3 (information).

Refused as by QEMU's `-kernel`: 64-bit images. Left out: modules, symbols, video, APM, drives.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import BadInput
from vmlib.given import check_one, octets
from vmlib.memory import GuestRam
from vmlib.units import KIB, MIB, PAGE_SIZE

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002
"""What EAX holds on entry."""
SEARCHED = 8192
INFO_ADDRESS = 0x9000
"""Where the table goes unless the kernel is there itself."""

_PAGE_ALIGN, _MEMORY_INFO, _VIDEO, _ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_HONOURED = _PAGE_ALIGN | _MEMORY_INFO
_PT_LOAD, _PF_X = 1, 1
_EM_X86_64, _ELFCLASS64 = 62, 2
_LOW_END = 640 * KIB
_LOADER_NAME = b"vmlib"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the kernel: `length` bytes of the file from `offset`, zeros up to `size`."""

    address: int
    offset: int
    length: int
    size: int

    @property
    def end(self) -> int:
        """One past its last byte in memory."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a Multiboot image asks for: pieces of memory and where to enter."""

    name: str
    image: bytes
    segments: tuple[Segment, ...]
    entry: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel in RAM: EIP and EBX for the vCPU; EAX is `BOOT_MAGIC`."""

    entry: int
    info: int


def load(kernel: Kernel, ram: GuestRam, command_line: str = "") -> Loaded:
    """Put a kernel and the information table into guest RAM, or raise and write nothing."""
    for number, segment in enumerate(kernel.segments):
        if segment.end > ram.size:
            raise BadInput(
                f"{kernel.name}, segment {number}",
                f"needs memory up to {segment.end:#x}, and RAM ends at {ram.size:#x}",
            )
    address = _room_for_info(kernel)
    info = _information(address, ram.size, kernel.name, command_line)
    if address + len(info) > ram.size:
        raise BadInput(f"{kernel.name}, memory", f"RAM of {ram.size} bytes has no room for both")
    for segment in kernel.segments:
        data = kernel.image[segment.offset : segment.offset + segment.length]
        ram.write(segment.address, data + bytes(segment.size - len(data)))
    ram.write(address, info)
    return Loaded(kernel.entry, address)


def read_kernel(path: str | Path) -> Kernel:
    """Read a Multiboot image from a file."""
    path = Path(path)
    try:
        image = path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero in it
        why = error.strerror if isinstance(error, OSError) else error
        raise BadInput(str(path), f"cannot be read: {why}") from error
    return parse_kernel(image, path.name)


def parse_kernel(image: bytes, name: str = "kernel") -> Kernel:
    """Return what a Multiboot image asks for; `BadInput` names file, field and rule."""
    at = _find_header(image := octets(image, "image"), name)
    (flags,) = struct.unpack_from("<I", image, at + 4)
    for bit in range(16):
        if flags >> bit & 1 and not _HONOURED >> bit & 1:
            what = "a video mode" if 1 << bit == _VIDEO else "a feature without a name"
            raise BadInput(f"{name}, flags", f"bit {bit} requires {what}, which is not here")
    kernel = _by_addresses(image, at, name) if flags & _ADDRESSES else _by_elf(image, name)
    if not any(part.address <= kernel.entry < part.end for part in kernel.segments):
        raise BadInput(f"{name}, entry", f"{kernel.entry:#x} lies in nothing that is loaded")
    return kernel


def _find_header(image: bytes, name: str) -> int:
    for at in range(0, min(len(image), SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", image, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return at
    raise BadInput(
        f"{name}, Multiboot header",
        f"must be a multiple of 4 bytes into the first {SEARCHED}: {HEADER_MAGIC:#x}, flags, and "
        "a checksum that makes their sum zero",
    )


def _by_addresses(image: bytes, header: int, name: str) -> Kernel:
    """The header's own five addresses (3.1.3), which need no executable format."""
    if header + 32 > len(image):
        raise BadInput(f"{name}, addresses", "the file ends within the Multiboot header")
    header_addr, load_addr, load_end, bss_end, entry = struct.unpack_from("<5I", image, header + 12)
    start = header - (header_addr - load_addr)
    if load_addr > header_addr or start < 0:
        raise BadInput(f"{name}, load_addr", "puts the image's start outside the file")
    size = load_end - load_addr if load_end else len(image) - start
    if size < 0 or start + size > len(image):
        raise BadInput(f"{name}, load_end_addr", "asks for more than the file has, or for less")
    total = bss_end - load_addr if bss_end else size
    if total < size:
        raise BadInput(f"{name}, bss_end_addr", "lies before load_end_addr")
    return Kernel(name, image, (Segment(load_addr, start, size, total),), entry)


def _by_elf(image: bytes, name: str) -> Kernel:
    """The program headers of a 32-bit ELF file (System V ABI, chapters 4 and 5)."""
    if image[:4] != b"\x7fELF" or len(image) < 20:
        raise BadInput(f"{name}, format", "is no ELF file, and its header gives no addresses")
    machine = struct.unpack_from("<H", image, 18)[0]
    if image[4] == _ELFCLASS64 or machine == _EM_X86_64:
        raise BadInput(
            f"{name}, ELF class",
            "is 64-bit, and Multiboot enters 32-bit code: give a 32-bit image (objcopy -O "
            "elf32-i386)",
        )
    if image[4:6] != b"\1\1" or len(image) < 52:
        raise BadInput(f"{name}, ELF header", "must be 32-bit, little-endian, and all there")
    (entry,) = struct.unpack_from("<I", image, 24)
    segments: list[Segment] = []
    virtual_entry = entry
    for kind, offset, vaddr, paddr, filesz, memsz, flags in _program_headers(image, name):
        if kind != _PT_LOAD or not memsz:
            continue
        field = f"{name}, program header {len(segments)}"
        if filesz > memsz:
            raise BadInput(field, f"has more bytes in the file ({filesz}) than in memory ({memsz})")
        if offset + filesz > len(image):
            raise BadInput(field, f"ends at {offset + filesz:#x}, the file at {len(image):#x}")
        segments.append(Segment(paddr, offset, filesz, memsz))
        if flags & _PF_X and vaddr <= virtual_entry < vaddr + filesz:
            entry = virtual_entry - vaddr + paddr  # paging is off: the entry is physical
    if not segments:
        raise BadInput(f"{name}, program headers", "name nothing to load")
    return Kernel(name, image, tuple(segments), entry)


def _program_headers(image: bytes, name: str) -> Iterator[tuple[int, ...]]:
    """Yield (type, offset, vaddr, paddr, filesz, memsz, flags)."""
    (table,) = struct.unpack_from("<I", image, 28)
    size, count = struct.unpack_from("<HH", image, 42)
    if count and size < 32:
        raise BadInput(f"{name}, e_phentsize", f"is {size}; an entry of ELF32 has 32 bytes")
    if table + size * count > len(image):
        raise BadInput(f"{name}, e_phoff", "the program headers lie outside the file")
    for number in range(count):
        yield struct.unpack_from("<7I", image, table + size * number)


def _room_for_info(kernel: Kernel) -> int:
    """The usual place, or the first page behind the kernel if the kernel is there itself."""
    usual = INFO_ADDRESS, INFO_ADDRESS + PAGE_SIZE
    if all(part.end <= usual[0] or part.address >= usual[1] for part in kernel.segments):
        return INFO_ADDRESS
    return -(-max(part.end for part in kernel.segments) // PAGE_SIZE) * PAGE_SIZE


def _information(address: int, ram: int, name: str, command_line: str) -> bytes:
    """The table of section 3.3: memory sizes, command line, memory map, the loader's name.

    Strings and map follow the table's 88 bytes.
    """
    usable = [(0, min(ram, _LOW_END))]
    if ram > MIB:
        usable.append((MIB, ram - MIB))
    entries = b"".join(struct.pack("<IQQI", 20, base, size, 1) for base, size in usable)
    check_one(command_line, str, "command_line")
    try:
        line = f"{name} {command_line}".strip().encode() + b"\0"
    except UnicodeEncodeError:
        raise BadInput("command_line", "has characters that UTF-8 has not") from None
    if b"\0" in line[:-1]:
        raise BadInput("command_line", "has a zero in it, where the kernel would take it to end")
    if 88 + len(entries) + len(line) > PAGE_SIZE // 2:
        raise BadInput("command line", f"of {len(line)} bytes is longer than there is room for")
    map_at = address + 88
    line_at = map_at + len(entries)
    name_at = line_at + len(line)
    info = bytearray(88)
    has = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9
    struct.pack_into("<3I", info, 0, has, usable[0][1] // KIB, max(0, ram - MIB) // KIB)
    struct.pack_into("<I", info, 16, line_at)
    struct.pack_into("<II", info, 44, len(entries), map_at)
    struct.pack_into("<I", info, 64, name_at)
    return bytes(info) + entries + line + _LOADER_NAME + b"\0"
