"""Unicorn, bare: the emulator as a library of C functions, and the memory of its CPU.

Unicorn is QEMU's translator without QEMU's machine. Its Python binding is made for analysing
code: a register costs a microsecond, a hook two calls. `Emulator` below calls the same library
by ctypes, and reads and writes the CPU's own structure, `CPUX86State`, in place. Where its fields
are is proved when the library is first used, by writing values through the public calls and
finding them there; a library that differs is refused.

What this layer does not know: what an exit is, and what an exception does. See `emulator.py`.

This is the only file that imports Unicorn, which is licensed under the GPL, version 2.
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import unicorn as uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from vmlib.cpu.unicorn.blocks import shorten_blocks
from vmlib.errors import Unsupported

VERSION = uc.__version__
MADE_FOR = "2.1.4"

PROT_NONE, PROT_READ, PROT_WRITE, PROT_ALL = 0, 1, 2, 7
_READ_EXEC = uc.UC_PROT_READ | uc.UC_PROT_EXEC
ENV_SIZE = 5600
"""As much of CPUX86State as an instruction can change, in bytes."""

# Fields of CPUX86State (QEMU 5.0, target/i386/cpu.h), as offsets; `_proven` proves them.
GPRS, RIP, EFLAGS_RAW, HFLAGS = 0, 128, 136, 176  # the arithmetic flags are kept elsewhere
SEGMENTS = 184  # ES, CS, SS, DS, FS, GS: selector u32, base u64, limit u32, flags u32, 24 bytes
LDT, TR, GDT, IDT = 328, 352, 376, 400
CR0, CR2, CR3, CR4 = 424, 440, 448, 456
EFER, ERROR_CODE, IS_INT, OLD_EXCEPTION = 592, 5384, 5388, 5496
# From uc_struct to its CPU and its count of instructions, from the CPU to `halted` and CPUX86State.
_CPU, _COUNTER, _HALTED, _ENV = 440, 1368, 33176, 35408
_CONTEXT_SIZE, _NO_EXIT_REQUEST, _INIT_DONE = 2016, 2034, 2035
DR0_RAW, DR6_RAW, DR7_RAW = 5400, 5448, 5456
SEGMENT = struct.Struct("=I4xQII")

# Registers that only the library's own calls read and write.
EFLAGS, CR8, DR0, MXCSR = (
    getattr(x86, f"UC_X86_REG_{n}") for n in ("EFLAGS", "CR8", "DR0", "MXCSR")
)
FPCW, FPSW, FPTAG = (getattr(x86, f"UC_X86_REG_{n}") for n in ("FPCW", "FPSW", "FPTAG"))
REG_CR3 = x86.UC_X86_REG_CR3
ST0, XMM0 = x86.UC_X86_REG_ST0, x86.UC_X86_REG_XMM0

HOOK_INTERRUPT, HOOK_INSN, HOOK_INVALID = uc.UC_HOOK_INTR, uc.UC_HOOK_INSN, uc.UC_HOOK_INSN_INVALID
HOOK_CODE, HOOK_NEW_BLOCK = uc.UC_HOOK_CODE, uc.UC_HOOK_EDGE_GENERATED
HOOK_MEMORY = uc.UC_HOOK_MEM_UNMAPPED | uc.UC_HOOK_MEM_PROT
INSN_IN, INSN_OUT, INSN_CPUID = x86.UC_X86_INS_IN, x86.UC_X86_INS_OUT, x86.UC_X86_INS_CPUID
INSN_SYSCALL, INSN_SYSENTER = x86.UC_X86_INS_SYSCALL, x86.UC_X86_INS_SYSENTER
READS = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_READ_PROT)
WRITES = (uc.UC_MEM_WRITE_UNMAPPED, uc.UC_MEM_WRITE_PROT)

_u64 = ctypes.c_uint64
_u32 = ctypes.c_uint32
_int = ctypes.c_int
_ptr = ctypes.c_void_p
_size = ctypes.c_size_t

# While the guest runs, other Python threads may: that call gives up the interpreter's lock. The
# short calls keep it, which is quicker.
_emu_start = uclib.uc_emu_start
_short = ctypes.PyDLL(uclib._name)
_ctl = _short.uc_ctl

OUT_HOOK = ctypes.CFUNCTYPE(None, _ptr, _u32, _int, _u32, _ptr)
IN_HOOK = ctypes.CFUNCTYPE(_u32, _ptr, _u32, _int, _ptr)
CPUID_HOOK = ctypes.CFUNCTYPE(_int, _ptr, _ptr)
PLAIN_HOOK = ctypes.CFUNCTYPE(None, _ptr, _ptr)
INVALID_HOOK = ctypes.CFUNCTYPE(ctypes.c_bool, _ptr, _ptr)
INTERRUPT_HOOK = ctypes.CFUNCTYPE(None, _ptr, _u32, _ptr)
MEMORY_HOOK = ctypes.CFUNCTYPE(ctypes.c_bool, _ptr, _int, _u64, _int, _u64, _ptr)
CODE_HOOK = ctypes.CFUNCTYPE(None, _ptr, _u64, _u32, _ptr)
MMIO_READ = ctypes.CFUNCTYPE(_u64, _ptr, _u64, ctypes.c_uint, _ptr)
MMIO_WRITE = ctypes.CFUNCTYPE(None, _ptr, _u64, ctypes.c_uint, _u64, _ptr)


class _Block(ctypes.Structure):
    """`uc_tb`: a translated block, as the hook for new ones gets it."""

    _fields_ = (("pc", _u64), ("icount", ctypes.c_uint16), ("size", ctypes.c_uint16))


BLOCK_HOOK = ctypes.CFUNCTYPE(None, _ptr, ctypes.POINTER(_Block), ctypes.POINTER(_Block), _ptr)


class Emulator:
    """One engine of Unicorn's, in the mode that can become all modes, with an EPYC's features."""

    def __init__(self, model: int = x86.UC_CPU_X86_EPYC_ROME) -> None:
        _proven()
        handle = _open(model)
        self._handle = handle
        self._keep: list[Any] = []  # ctypes callbacks, which C does not keep alive
        self.read(EFLAGS)  # there is a CPU only from the first call on
        cpu = _u64.from_address(handle.value + _CPU).value
        self.env = cpu + _ENV
        """Address of CPUX86State in this process."""
        self.rip = _u64.from_address(self.env + RIP)
        self.hflags = _u32.from_address(self.env + HFLAGS)
        self.error_code = ctypes.c_int32.from_address(self.env + ERROR_CODE)
        self.is_int = ctypes.c_int32.from_address(self.env + IS_INT)
        self.old_exception = ctypes.c_int32.from_address(self.env + OLD_EXCEPTION)
        self.cr2 = _u64.from_address(self.env + CR2)
        self.halted = _u32.from_address(cpu + _HALTED)
        """1 after a HLT."""
        self._unchecked = ctypes.c_uint8.from_address(handle.value + _NO_EXIT_REQUEST)
        self._unchecked.value = 1
        self.executed = _u64.from_address(handle.value + _COUNTER)
        """Instructions of the last `start` that had a limit; the one it stopped at counts too."""
        self.view = memoryview((ctypes.c_char * ENV_SIZE).from_address(self.env)).cast("B")
        """CPUX86State itself, writable."""
        self._prime()

    @property
    def counting(self) -> bool:
        """Whether the last start had a limit."""
        return not self._unchecked.value

    def start(self, limit: int = 0) -> int:
        """Run from RIP until something stops it, at most `limit` instructions; 0 is no limit.

        Return Unicorn's error number. A stop that comes before the start is forgotten.

        Code that was translated for counting looks for a stop also after each load and store. A
        stop from another thread would then be seen behind a store and before the end of its
        instruction, which would store again when it goes on: `inc [mem]` adds two. So code without
        a limit is translated without those looks (`no_exit_request`), and sees a stop only between
        blocks. Changing from one to the other drops all translations.
        """
        if self._unchecked.value == bool(limit):
            self._unchecked.value = not limit
            self.forget_code()
        return int(_emu_start(self._handle, self.rip, 0, 0, limit))

    def stop(self) -> None:
        """Leave soon; without a limit between two blocks. From another thread only then."""
        _short.uc_emu_stop(self._handle)

    def forget_code(self) -> None:
        """Drop all translations, for code has been written where the emulator did not see it."""
        _check("flush", _ctl(self._handle, _control(uc.UC_CTL_TB_FLUSH)))

    def forget_addresses(self) -> None:
        """Empty the TLB, for page tables or control registers were written from outside."""
        _check("flush", _ctl(self._handle, _control(uc.UC_CTL_TLB_FLUSH)))

    def map_ram(self, gpa: int, size: int, hva: int) -> None:
        """Let guest-physical memory be this process's memory."""
        _check(
            "map", _short.uc_mem_map_ptr(self._handle, _u64(gpa), _size(size), _u32(7), _ptr(hva))
        )

    def protect(self, gpa: int, size: int, writable: bool) -> None:
        """Let stores to a whole region through, or suppress them."""
        rights = PROT_ALL if writable else _READ_EXEC
        _check("protect", _short.uc_mem_protect(self._handle, _u64(gpa), _size(size), _u32(rights)))

    def map_device(
        self,
        gpa: int,
        size: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        """Have `read(offset, size)` and `write(offset, size, value)` called for a region.

        The region is protected: the hook for memory is asked first and can stop the access.
        """
        on_read = MMIO_READ(lambda _, offset, size, __: read(offset, size))
        on_write = MMIO_WRITE(lambda _, offset, size, value, __: write(offset, size, value))
        self._keep += (on_read, on_write)
        where = _u64(gpa), _size(size)
        _check("map", _short.uc_mmio_map(self._handle, *where, on_read, None, on_write, None))
        _check("protect", _short.uc_mem_protect(self._handle, *where, _u32(PROT_NONE)))

    def unmap(self, gpa: int, size: int) -> None:
        """Undo `map_device`; the region must be a whole one."""
        _check("unmap", _short.uc_mem_unmap(self._handle, _u64(gpa), _size(size)))

    def hook(self, kind: int, callback: Any, insn: int = 0, begin: int = 1, end: int = 0) -> int:
        """Add a hook, for linear addresses `begin` to `end`; from 1 to 0 is everywhere."""
        self._keep.append(callback)
        number = _size()
        limits = _u64(begin), _u64(end), _int(insn)
        _check(
            "hook",
            _short.uc_hook_add(
                self._handle, ctypes.byref(number), _int(kind), callback, None, *limits
            ),
        )
        return number.value

    def unhook(self, number: int) -> None:
        """Remove a hook."""
        _check("unhook", _short.uc_hook_del(self._handle, _size(number)))

    def read(self, register: int) -> int:
        """Return a register by Unicorn's number for it, up to 64 bits."""
        value = _u64()
        _check("read", _short.uc_reg_read(self._handle, _int(register), ctypes.byref(value)))
        return value.value

    def write(self, register: int, value: int) -> None:
        """Set a register by Unicorn's number for it."""
        wide = _u64(value)
        _check("write", _short.uc_reg_write(self._handle, _int(register), ctypes.byref(wide)))

    def read_wide(self, register: int, size: int) -> bytes:
        """Return a register of 10 or 16 bytes."""
        value = ctypes.create_string_buffer(size)
        _check("read", _short.uc_reg_read(self._handle, _int(register), value))
        return value.raw

    def write_wide(self, register: int, value: bytes) -> None:
        """Set a register of 10 or 16 bytes."""
        wide = ctypes.create_string_buffer(value, len(value))
        _check("write", _short.uc_reg_write(self._handle, _int(register), wide))

    def rdmsr(self, index: int) -> int:
        """Return a model-specific register, 0 for one that the emulator does not have."""
        pair = ctypes.create_string_buffer(struct.pack("=I4xQ", index, 0), 16)
        _check("read", _short.uc_reg_read(self._handle, _int(x86.UC_X86_REG_MSR), pair))
        return int(struct.unpack("=I4xQ", pair.raw)[1])

    def wrmsr(self, index: int, value: int) -> None:
        """Set a model-specific register."""
        pair = ctypes.create_string_buffer(struct.pack("=I4xQ", index, value), 16)
        _check("write", _short.uc_reg_write(self._handle, _int(x86.UC_X86_REG_MSR), pair))

    def close(self) -> None:
        """Free everything."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self.view.release()
            _check("close", uclib.uc_close(handle))
            self._keep.clear()

    def _prime(self) -> None:
        """Run a jump and a HLT: the hook for new blocks is silent until one has run to its end."""
        page = mmap.mmap(-1, mmap.PAGESIZE)
        page[:3] = b"\xeb\x00\xf4"
        hva = ctypes.addressof(ctypes.c_char.from_buffer(page))
        self.map_ram(0, mmap.PAGESIZE, hva)
        self.start()
        self.unmap(0, mmap.PAGESIZE)
        self.forget_code()
        self.rip.value = 0


_NOP = 0x90


@cache
def _proven() -> None:
    """Prove once that the offsets above hold for the library that is installed, or refuse it.

    Nothing is read that may not be there: `_peek` returns less instead.
    """
    if VERSION != MADE_FOR:
        raise Unsupported(f"Unicorn {VERSION} is not the version this was made for, {MADE_FOR}")
    shorten_blocks(uclib)
    handle = _open(x86.UC_CPU_X86_EPYC_ROME)
    try:
        values = [0x1122334455667700 + i for i in range(16)]
        names = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"]
        names += [f"R{number}" for number in range(8, 16)]
        for name, value in zip(names, values, strict=True):
            _poke(handle, getattr(x86, f"UC_X86_REG_{name}"), value)
        cpu = int.from_bytes(_peek(handle.value + _CPU, 8), "little")
        if _peek(cpu + _ENV, 128) != struct.pack("=16Q", *values):
            raise _unknown("its CPUX86State is not where it was")
        size = uclib.uc_context_size(handle)
        if not size - 64 < _u32_at(handle.value + _CONTEXT_SIZE) < size or _peek(
            handle.value + _NO_EXIT_REQUEST, 2
        ) != bytes((0, 1)):
            raise _unknown("no_exit_request is elsewhere")
        _check_env(handle, cpu + _ENV)
        _check_run(handle, cpu)
    finally:
        _check("close", uclib.uc_close(handle))


def _check_env(handle: Any, env: int) -> None:
    """Prove the offsets of the fields above, each by a value written through the library."""

    def holds(offset: int, value: int, size: int = 8) -> bool:
        return _peek(env + offset, size) == value.to_bytes(size, "little")

    _poke(handle, x86.UC_X86_REG_RIP, 0x123456789ABC)
    _poke(handle, x86.UC_X86_REG_CR2, 0x3344556677)
    _poke(handle, x86.UC_X86_REG_CR3, 0x7FFF000)
    tables = {"GDTR": GDT, "IDTR": IDT, "LDTR": LDT, "TR": TR}
    for number, name in enumerate(tables):
        value = ctypes.create_string_buffer(
            struct.pack("=H6xQII", 0, 0xAB000 + number, 0x1230 + number, 0x8B00), 24
        )
        register = _int(getattr(x86, f"UC_X86_REG_{name}"))
        _check("write", _short.uc_reg_write(handle, register, value))
    for number, offset in ((0, DR0_RAW), (6, DR6_RAW), (7, DR7_RAW)):
        _poke(handle, DR0 + number, 0x5500 + number)
        if not holds(offset, 0x5500 + number):
            raise _unknown("its debug registers are elsewhere")
    good = holds(RIP, 0x123456789ABC) and holds(CR2, 0x3344556677) and holds(CR3, 0x7FFF000)
    for number, offset in enumerate(tables.values()):
        good = (
            good and holds(offset + 8, 0xAB000 + number) and holds(offset + 16, 0x1230 + number, 4)
        )
    good = good and holds(CR0, 0x11, 4) and holds(EFER, 1 << 10 | 1 << 8)
    if not good:
        raise _unknown("its CPUX86State is laid out otherwise")


def _check_run(handle: Any, cpu: int) -> None:
    """Run a stop, a HLT and an INT: prove where `halted`, the count and the INT's mark are."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(page))
    where = _u64(0), _size(mmap.PAGESIZE), _u32(7), _ptr(hva)
    _check("map", _short.uc_mem_map_ptr(handle, *where))
    page[:78] = bytes([_NOP]) * 77 + b"\xf4"
    seen = []
    for limit in (9, 1000):
        _emu_start(handle, _u64(0), _u64(0), _u64(0), _size(limit))
        seen.append((_u32_at(cpu + _HALTED), _u32_at(handle.value + _COUNTER)))
    if seen != [(0, 10), (1, 78)]:
        raise _unknown(f"after a stop and a HLT it shows {seen}")
    page[:2] = b"\xcd\x2b"
    _check("flush", _ctl(handle, _control(uc.UC_CTL_TB_FLUSH)))
    _emu_start(handle, _u64(0), _u64(0), _u64(0), _size(0))
    if _u32_at(cpu + _ENV + IS_INT) != 1:
        raise _unknown("exception_is_int is elsewhere")


def _u32_at(address: int) -> int:
    return int.from_bytes(_peek(address, 4), "little")


def _unknown(why: str) -> Unsupported:
    return Unsupported(f"this build of Unicorn {VERSION} keeps its state elsewhere: {why}")


def _open(model: int) -> Any:
    handle = _ptr()
    _check("open", uclib.uc_open(uc.UC_ARCH_X86, uc.UC_MODE_64, ctypes.byref(handle)))
    _check("model", _ctl(handle, _control(uc.UC_CTL_CPU_MODEL), _int(model)))
    # Exits by address are on, and none is listed: `until`, a trap, is ignored.
    _check("exits", _ctl(handle, _control(uc.UC_CTL_UC_USE_EXITS), _int(1)))
    return handle


def _poke(handle: Any, register: int, value: int) -> None:
    wide = _u64(value)
    _check("write", _short.uc_reg_write(handle, _int(register), ctypes.byref(wide)))


def _control(which: int) -> Any:
    """``UC_CTL_WRITE(which, 1)``, as `unicorn.h` builds it."""
    return _int(which | 1 << 26 | uc.UC_CTL_IO_WRITE << 30)


def _check(what: str, error: int) -> None:
    if error:
        _short.uc_strerror.restype = ctypes.c_char_p
        said = _short.uc_strerror(error).decode()
        raise Unsupported(f"Unicorn refuses to {what}: {said}")


class _Piece(ctypes.Structure):
    _fields_ = (("base", _ptr), ("length", _size))


def _peek(address: int, size: int) -> bytes:
    """Return up to `size` bytes of this process's memory, fewer where it ends: never a fault."""
    data = ctypes.create_string_buffer(size)
    here, there = _Piece(ctypes.addressof(data), size), _Piece(address, size)
    read = ctypes.CDLL(None).process_vm_readv
    got = read(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return data.raw[: max(got, 0)]
