"""What is mended in Unicorn's own code, in this process's memory, where no call of it goes round.

Three faults of Unicorn 2.1.4 let a guest kill the process it runs in:

* The translator takes up to 512 instructions into a block, and has room for 512 temporaries in
  one. It forgets to give some back: every x87 instruction keeps one, and so do AAM and MOV from a
  control register. QEMU checks for the end of that room in debug builds only (`tcg_temp_alloc`),
  so some hundred x87 instructions in a row write past it. The limit becomes `LONGEST`.
* PCMPESTRI and PCMPESTRM take the magnitude of a length and cut it off at 16 or 8. The magnitude
  of -2^31 does not fit an int, stays negative, and is not cut off. The comparison that cuts it off
  becomes an unsigned one.
* LOCK before BT, BTS, BTR or BTC needs an operand in memory (SDM vol. 2A, BTS: #UD). Given a
  register the translator uses an address that was never made, and aborts. A few instructions in
  front of that place send it to where it makes #UD.

A fourth lets a guest take the emulator for a processor with AVX, which it is not: behind a VEX
prefix it executes the old instruction of the same opcode, VPXOR as PXOR, and VZEROUPPER as EMMS.
Here too some instructions in front let pass what it has (BMI1, BMI2) and send the rest to #UD.

Each place is found by the bytes around it. Where it cannot be (another processor, another build,
a system that forbids it) a warning says so, and a guest made for one of the three can end this
process.
"""

import ctypes
import mmap
import os
import platform
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

LONGEST = 128
"""Instructions in a block. The worst of those tried keeps three temporaries."""

_READ_EXEC, _ALL = mmap.PROT_READ | mmap.PROT_EXEC, 7
Change = tuple[int, bytes]
"""An offset into a piece of code, and what to write there."""


def mend(library: Any) -> list[str]:
    """Change a loaded Unicorn; return the names of the mends that are in place now.

    Done again it changes nothing. RuntimeWarning for each mend that cannot be made.
    """
    done = []
    for call in (shorten_blocks, cut_off_lengths, refuse_locked_registers, refuse_avx):
        try:
            call(library)
        except _CannotError as why:
            warnings.warn(
                f"{call.__name__} of Unicorn left out: {why}", RuntimeWarning, stacklevel=2
            )
        else:
            done.append(call.__name__)
    return done


def shorten_blocks(library: Any) -> None:
    """Put `LONGEST` where the compiler put 512, at two places of `tb_gen_code`."""
    old, new = ((512).to_bytes(4, "little"), LONGEST.to_bytes(4, "little"))
    _exchange(library, "tb_gen_code", 0, 256, [(b"\x81\xfb", old, new), (b"\xbb", old, new)])


def cut_off_lengths(library: Any) -> None:
    """Make CMOVG of CMOVA and CMOVLE of CMOVBE, where the two helpers cut off the lengths."""
    greater, not_greater = ((b"\x4f", b"\x47"), (b"\x4e", b"\x46"))
    places: list[tuple[bytes, ...]] = [(b"\xb8\x08\0\0\0\x4c\x89\xe7\x44\x0f", *greater, b"\xc8")]
    places += [(b"\xb8\x10\0\0\0\x4c\x89\xe7\x44\x0f", *greater, b"\xc8")]
    places += [(b"\x41\x83\xf8\x08\x44\x0f", *greater, b"\xc0")]
    places += [(b"\x41\x83\xf8\x10\x44\x0f", *greater, b"\xc0")]
    _exchange(library, "helper_pcmpestri_xmm", 0, 192, places)
    places = [(b"\x41\xb8\x08\0\0\0\x45\x0f", *greater, b"\xc8")]
    places += [(b"\x41\xb8\x10\0\0\0\x45\x0f", *greater, b"\xc8")]
    places += [(b"\x83\xf8\x08\x44\x0f", *not_greater, b"\xc0")]
    places += [(b"\x83\xf8\x10\x44\x0f", *not_greater, b"\xc0")]
    _exchange(library, "helper_pcmpestrm_xmm", 0, 192, places)


# In `disas_insn`, which stands before `gen_intermediate_code`: the look at LOCK, twelve bytes, and
# what follows it; and, before that, where an instruction that is none is given #UD.
_BEFORE = 0x11000
_LOOK = re.compile(
    rb"\x41\xf6\x44\x24\x2c\x04\x0f\x84(?P<plain>....)"  # test byte [r12+0x2c], 4; je plain
    rb"(?=\x83\xfd\x01\x0f\x84....\x83\xfd\x02\x0f\x84)",  # cmp ebp, 1; je; cmp ebp, 2; je
    re.DOTALL,
)
_MENDED = re.compile(rb"\x48\xb8.{8}\xff\xe0(?=\x83\xfd\x01\x0f\x84....\x83\xfd\x02)", re.DOTALL)
_UD = re.compile(rb"\x48\x8b\x1c\x24\xbe\x06\0\0\0\x48\x8b\x53\x38\x48\x89\xdf\x48\x2b\x53\x48")
_UD_TO_LOOK = 0x42C


def refuse_locked_registers(library: Any) -> None:
    """Send a locked bit test whose ModRM names a register (EBX is 3 there) to #UD."""
    start, code = _code(library, "gen_intermediate_code", -_BEFORE, _BEFORE)
    if len(_MENDED.findall(code)) == 1:
        return
    found = list(_LOOK.finditer(code))
    if len(found) != 1:
        raise _CannotError("its look at LOCK is not where it was")
    at = found[0].start()
    if not _UD.match(code, at - _UD_TO_LOOK):
        raise _CannotError("its #UD is not where it was")
    after = start + found[0].end()
    plain = after + struct.unpack("<i", found[0]["plain"])[0]
    stub = b"\x41\xf6\x44\x24\x2c\x04\x75\x0c" + _jump(plain)  # test …; jne over the jump
    stub += b"\x83\xfb\x03\x74\x0c" + _jump(after)  # cmp ebx, 3; je over the jump
    stub += _jump(start + at - _UD_TO_LOOK)
    _write(start + at, [(0, _jump(_keep_code(stub)))])


# Also in `disas_insn`: the look whether VEX has two bytes, and at the map of a VEX of three bytes;
# and how it reads the opcode behind it, with two registers kept in its frame.
_TWO_BYTES = b"\x41\x81\xfa\xc5\0\0\0\x0f\x84"  # cmp r10d, 0xc5; je
_MAPS = re.compile(
    rb"(?<=\x44\x89\xc0\x44\x89\xc9\x83\xe0\x1f\xc1\xf9\x07)"  # mov eax, r8d; …; and eax, 0x1f; …
    rb"\x3c\x02\x0f\x84(?P<map2>....)"  # cmp al, 2; je
    rb"\x3c\x03\x0f\x84(?P<map3>....)"  # cmp al, 3; je
    rb"\x3c\x01\x0f\x85(?P<none>....)"  # cmp al, 1; jne
    rb"(?P<keep>\x48\x8b\x34\x24\x48\x8b\x7c\x24\x08"  # mov rsi, [rsp]; mov rdi, [rsp + 8]
    rb"\x44\x89\x8c\x24....\x89\x8c\x24....)"  # mov [rsp + .], r9d; mov [rsp + .], ecx
    rb"\xe8(?P<read>....)"  # call: the next byte of code
    rb"(?P<back>\x8b\x8c\x24....\x44\x8b\x8c\x24....)",  # mov ecx, [rsp + .]; mov r9d, [rsp + .]
    re.DOTALL,
)
_MAPS_MENDED = re.compile(
    rb"\x48\xb8.{8}\xff\xe0.{4}\x3c\x01\x0f\x85....\x48\x8b\x34\x24\x48\x8b\x7c\x24\x08", re.DOTALL
)


def refuse_avx(library: Any) -> None:
    """Let pass after VEX what works on general registers, and send the rest to #UD.

    That is ANDN, BLSR and its like, BZHI, MULX, BEXTR (map 2, opcodes F2, F3, F5 to F7) and RORX
    (map 3, F0): Intel SDM vol. 2, appendix A, tables A-4 and A-5.
    """
    start, code = _code(library, "gen_intermediate_code", -_BEFORE, _BEFORE)
    two = code.find(_TWO_BYTES) + len(_TWO_BYTES)
    if two < len(_TWO_BYTES) or code.count(_TWO_BYTES) != 1:
        raise _CannotError("its look at VEX is not where it was")
    near = code[two : two + 256]
    found = _MAPS.search(near)
    if found is None:
        if _MAPS_MENDED.search(near):
            return
        raise _CannotError("its look at the map of a VEX is not where it was")

    def target(group: str | int) -> int:
        (distance,) = struct.unpack("<i", found[group])
        return start + two + found.end(group) + int(distance)

    at, none = two + found.start(), target("none")
    read = b"\x48\xb8" + target("read").to_bytes(8, "little") + b"\xff\xd0"  # call it
    # mov rsi, [rsp]; dec qword [rsi + 0x40]: the place in the code, which the call moved on
    peek = found["keep"] + read + b"\x48\x8b\x34\x24\x48\xff\x4e\x40" + found["back"]
    map3 = peek + b"\x3c\xf0\x75\x0c" + _jump(target("map3"))  # cmp al, 0xf0; jne refuse
    refuse = _jump(none)
    # sub al, 0xf2; cmp al, 5; ja refuse; movzx eax, al; mov edx, 0x3b; bt edx, eax; jnc refuse
    map2 = peek + b"\x2c\xf2\x3c\x05\x77" + _back(peek + bytes(6) + refuse)
    map2 += b"\x0f\xb6\xc0\xba\x3b\0\0\0\x0f\xa3\xc2\x73" + _back(map2 + bytes(13) + refuse)
    map2 += _jump(target("map2"))
    # mov eax, r8d; and eax, 0x1f: the map again, RAX is gone; cmp al, 2; je; cmp al, 3; jne
    stub = b"\x44\x89\xc0\x83\xe0\x1f\x3c\x02\x74" + bytes([4 + len(map3 + refuse)])
    stub += b"\x3c\x03\x75" + bytes([len(map3)]) + map3 + refuse + map2
    _write(start + at, [(0, _jump(_keep_code(stub)))])
    _write(start + two, [(0, struct.pack("<i", none - (start + two + 4)))])


def _back(code: bytes) -> bytes:
    """The distance of a short jump back over this code, of which its own two bytes are part."""
    return bytes([256 - len(code)])


def _jump(address: int) -> bytes:
    """``mov rax, address; jmp rax``: twelve bytes that reach everywhere; RAX is free there."""
    return b"\x48\xb8" + address.to_bytes(8, "little") + b"\xff\xe0"


class _CannotError(Exception):
    """Why a mend is left out."""


def _code(library: Any, name: str, first: int, size: int) -> tuple[int, bytes]:
    """Return where a piece of code starts, given from a function of the library's, and the code."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise _CannotError("this is no x86-64 host")
    function = getattr(library, f"{name}_x86_64", None)
    if function is None:
        raise _CannotError(f"it has no {name}")
    start = (ctypes.cast(function, ctypes.c_void_p).value or 0) + first
    return start, ctypes.string_at(start, size)


def _exchange(
    library: Any, name: str, first: int, size: int, places: list[tuple[bytes, ...]]
) -> None:
    """Exchange bytes in a function: at each place what stands before, old, new, what follows."""
    start, code = _code(library, name, first, size)
    changes: list[Change] = []
    for before, old, new, *rest in places:
        after = b"".join(rest)
        if code.count(before + new + after) == 1:
            continue
        if code.count(before + old + after) != 1:
            raise _CannotError(f"{name} is not what it was")
        changes.append((code.index(before + old + after) + len(before), new))
    if changes:
        _write(start, changes)


def _write(start: int, changes: list[Change]) -> None:
    """Write into code of the library's, which is made writable for as long as that takes."""
    first = start & -mmap.PAGESIZE
    end = start + max(offset + len(new) for offset, new in changes)
    size = -(-(end - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    protect: Callable[..., int] = ctypes.CDLL(None, use_errno=True).mprotect
    area = ctypes.c_void_p(first), ctypes.c_size_t(size)
    if protect(*area, _ALL):
        raise _CannotError(os.strerror(ctypes.get_errno()))
    for offset, new in changes:
        ctypes.memmove(start + offset, new, len(new))
    protect(*area, _READ_EXEC)


_kept: list[mmap.mmap] = []
"""Code that the library jumps to, for as long as the process lives."""


def _keep_code(code: bytes) -> int:
    """Put code in memory of its own, never freed, and return its address."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=_ALL)
    except OSError as error:
        raise _CannotError(os.strerror(error.errno or 0)) from None
    page[: len(code)] = code
    _kept.append(page)
    return ctypes.addressof(ctypes.c_char.from_buffer(page))
