"""Is the library that is installed the one that this engine was made for? Proved once, by trying.

Values are written through the public calls and must be found in memory where `raw.py` says; a
library that keeps them elsewhere is refused.
"""

import ctypes
import mmap
import os
import struct
from functools import cache
from typing import Any

from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.mends import mend
from vmlib.errors import Unsupported

_NOP = 0x90


@cache
def proven() -> None:
    """Prove once that the offsets above hold for the library that is installed, or refuse it.

    Nothing is read that may not be there: `_peek` returns less instead.
    """
    if raw.VERSION != raw.MADE_FOR:
        raise Unsupported(
            f"Unicorn {raw.VERSION} is not the version this was made for, {raw.MADE_FOR}"
        )
    mend(raw.library)
    handle = raw.open_cpu(raw.MODEL)
    try:
        values = [0x1122334455667700 + i for i in range(16)]
        names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"]
        names += [f"R{number}" for number in range(8, 16)]
        for name, value in zip(names, values, strict=True):
            raw.poke(handle, raw.register(name), value)
        cpu = int.from_bytes(_peek(handle.value + raw.CPU, 8), "little")
        if _peek(cpu + raw.ENV, 128) != struct.pack("=16Q", *values):
            raise _unknown("its CPUX86State is not where it was")
        size = raw.library.uc_context_size(handle)
        if not size - 64 < _u32_at(handle.value + raw.CONTEXT_SIZE) < size or _peek(
            handle.value + raw.NO_EXIT_REQUEST, 2
        ) != bytes((0, 1)):
            raise _unknown("no_exit_request is elsewhere")
        _check_env(handle, cpu + raw.ENV)
        _check_run(handle, cpu)
    finally:
        raw.check("close", raw.library.uc_close(handle))


def _check_env(handle: Any, env: int) -> None:
    """Prove the offsets of the fields above, each by a value written through the library."""

    def holds(offset: int, value: int, size: int = 8) -> bool:
        return _peek(env + offset, size) == value.to_bytes(size, "little")

    raw.poke(handle, raw.REG_RIP, 0x123456789ABC)
    raw.poke(handle, raw.REG_CR2, 0x3344556677)
    raw.poke(handle, raw.REG_CR3, 0x7FFF000)
    tables = {"GDTR": raw.GDT, "IDTR": raw.IDT, "LDTR": raw.LDT, "TR": raw.TR}
    for number, name in enumerate(tables):
        value = ctypes.create_string_buffer(
            struct.pack("=H6xQII", 0, 0xAB000 + number, 0x1230 + number, 0x8B00), 24
        )
        register = raw.INT(raw.register(name))
        raw.check("write", raw.short.uc_reg_write(handle, register, value))
    for number, offset in ((0, raw.DR0_RAW), (6, raw.DR6_RAW), (7, raw.DR7_RAW)):
        raw.poke(handle, raw.DR0 + number, 0x5500 + number)
        if not holds(offset, 0x5500 + number):
            raise _unknown("its debug registers are elsewhere")
    good = (
        holds(raw.RIP, 0x123456789ABC)
        and holds(raw.CR2, 0x3344556677)
        and holds(raw.CR3, 0x7FFF000)
    )
    for number, offset in enumerate(tables.values()):
        good = (
            good and holds(offset + 8, 0xAB000 + number) and holds(offset + 16, 0x1230 + number, 4)
        )
    good = good and holds(raw.CR0, 0x11, 4) and holds(raw.EFER, 1 << 10 | 1 << 8)
    if not good:
        raise _unknown("its CPUX86State is laid out otherwise")


def _check_run(handle: Any, cpu: int) -> None:
    """Run a stop, a HLT and an INT: prove where `halted`, the count and the INT's mark are."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(page))
    where = raw.U64(0), raw.SIZE(mmap.PAGESIZE), raw.U32(7), raw.POINTER(hva)
    raw.check("map", raw.short.uc_mem_map_ptr(handle, *where))
    page[:78] = bytes([_NOP]) * 77 + b"\xf4"
    seen = []
    for limit in (9, 1000):
        raw.emu_start(handle, raw.U64(0), raw.U64(0), raw.U64(0), raw.SIZE(limit))
        seen.append((_u32_at(cpu + raw.HALTED), _u32_at(handle.value + raw.COUNTER)))
    if seen != [(0, 10), (1, 78)]:
        raise _unknown(f"after a stop and a HLT it shows {seen}")
    # mov eax, 0xd; xor ecx, ecx; cpuid; hlt: what XSAVE knows, as the model has it, and changed
    page[:10] = bytes.fromhex("b8 0d 00 00 00 31 c9 0f a2 f4")
    raw.check("flush", raw.ctl(handle, raw.control(raw.FLUSH_CODE)))
    if _peek(cpu + raw.ENV + raw.XSAVE_COMPONENTS, 8) != (7).to_bytes(8, "little"):
        raise _unknown("the components of XSAVE are elsewhere")
    raw.U64.from_address(cpu + raw.ENV + raw.XSAVE_COMPONENTS).value = 3
    raw.emu_start(handle, raw.U64(0), raw.U64(0), raw.U64(0), raw.SIZE(0))
    if _u32_at(cpu + raw.ENV) != 3:
        raise _unknown("CPUID takes the components of XSAVE from elsewhere")
    page[:2] = b"\xcd\x2b"
    raw.check("flush", raw.ctl(handle, raw.control(raw.FLUSH_CODE)))
    raw.emu_start(handle, raw.U64(0), raw.U64(0), raw.U64(0), raw.SIZE(0))
    if _u32_at(cpu + raw.ENV + raw.IS_INT) != 1:
        raise _unknown("exception_is_int is elsewhere")
    _check_hook(handle)


def _check_hook(handle: Any) -> None:
    """Prove where a hook keeps that it is about to be deleted: the INT is told, and then not."""
    seen: list[int] = []
    callback = raw.INTERRUPT_HOOK(lambda _, vector, __: seen.append(vector))
    address = ctypes.cast(callback, raw.POINTER).value
    number = raw.SIZE()
    everywhere = raw.U64(1), raw.U64(0), raw.INT(0)
    kind = raw.INT(raw.HOOK_INTERRUPT)
    raw.check(
        "hook",
        raw.short.uc_hook_add(handle, ctypes.byref(number), kind, callback, None, *everywhere),
    )
    there = _peek(number.value, raw.HOOK.size)
    if there != raw.HOOK.pack(raw.HOOK_INTERRUPT, 0, 1, 0, 0, 0, 1, 0, address):
        raise _unknown("a hook is laid out otherwise")
    for deleted in (0, 1):
        ctypes.c_uint8.from_address(number.value + raw.HOOK_DELETED).value = deleted
        raw.emu_start(handle, raw.U64(0), raw.U64(0), raw.U64(0), raw.SIZE(0))
    if seen != [0x2B]:
        raise _unknown(f"of an INT 0x2b a hook that was there and one that was not say {seen}")


def _u32_at(address: int) -> int:
    return int.from_bytes(_peek(address, 4), "little")


def _unknown(why: str) -> Unsupported:
    return Unsupported(f"this build of Unicorn {raw.VERSION} keeps its state elsewhere: {why}")


class _Piece(ctypes.Structure):
    _fields_ = (("base", raw.POINTER), ("length", raw.SIZE))


def _peek(address: int, size: int) -> bytes:
    """Return up to `size` bytes of this process's memory, fewer where it ends: never a fault."""
    data = ctypes.create_string_buffer(size)
    here, there = _Piece(ctypes.addressof(data), size), _Piece(address, size)
    read = ctypes.CDLL(None).process_vm_readv
    got = read(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return data.raw[: max(got, 0)]
