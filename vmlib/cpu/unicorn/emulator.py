"""One engine of Unicorn's: running and stopping it, its memory, its hooks, its registers.

The CPU's own structure, `CPUX86State`, is read and written in place. What this layer does not
know: what an exit is, and what an exception does. See `loop.py`.
"""

import ctypes
import mmap
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from vmlib.cpu.unicorn import raw
from vmlib.cpu.unicorn.proof import proven

_emu_start = raw.emu_start
_X87_SSE = 3


class Emulator:
    """One engine of Unicorn's, in the mode that can become all modes, with an EPYC's features."""

    def __init__(self, model: int = raw.MODEL) -> None:
        proven()
        handle = raw.open_cpu(model)
        self._handle = handle
        self._keep: list[Any] = []  # ctypes callbacks, which C does not keep alive
        self.read(raw.EFLAGS)  # there is a CPU only from the first call on
        cpu = raw.U64.from_address(handle.value + raw.CPU).value
        self.env = cpu + raw.ENV
        """Address of CPUX86State in this process."""
        self.rip = raw.U64.from_address(self.env + raw.RIP)
        self.hflags = raw.U32.from_address(self.env + raw.HFLAGS)
        self.error_code = ctypes.c_int32.from_address(self.env + raw.ERROR_CODE)
        self.is_int = ctypes.c_int32.from_address(self.env + raw.IS_INT)
        self.old_exception = ctypes.c_int32.from_address(self.env + raw.OLD_EXCEPTION)
        self.cr2 = raw.U64.from_address(self.env + raw.CR2)
        self.halted = raw.U32.from_address(cpu + raw.HALTED)
        """1 after a HLT."""
        self._unchecked = ctypes.c_uint8.from_address(handle.value + raw.NO_EXIT_REQUEST)
        self._unchecked.value = True
        self.counting = False
        """Whether the last start had a limit."""
        self.go_on = partial(_emu_start, handle, self.rip, 0, 0, 0)
        """`start()`, quicker, where the last start had no limit either."""
        self.executed = raw.U64.from_address(handle.value + raw.COUNTER)
        """Instructions of the last `start` that had a limit; the one it stopped at counts too."""
        self.view = memoryview((ctypes.c_char * raw.ENV_SIZE).from_address(self.env)).cast("B")
        """CPUX86State itself, writable."""
        # The emulator has no AVX. CPUID does not announce it, but for its state in an XSAVE area.
        raw.U64.from_address(self.env + raw.XSAVE_COMPONENTS).value = _X87_SSE
        self._prime()

    def start(self, limit: int = 0) -> int:
        """Run from raw.RIP until something stops it, at most `limit` instructions; 0 is no limit.

        Return Unicorn's error number. A stop that comes before the start is forgotten.

        Code that was translated for counting looks for a stop also after each load and store. A
        stop from another thread would then be seen behind a store and before the end of its
        instruction, which would store again when it goes on: `inc [mem]` adds two. So code without
        a limit is translated without those looks (`no_exit_request`), and sees a stop only between
        blocks. Changing from one to the other drops all translations.
        """
        if self.counting != bool(limit):
            self.counting = bool(limit)
            self._unchecked.value = not limit
            self.forget_code()
        error: int = _emu_start(self._handle, self.rip, 0, 0, limit)
        return error

    def stop(self) -> None:
        """Leave soon; without a limit between two blocks. From another thread only then."""
        raw.short.uc_emu_stop(self._handle)

    def forget_code(self) -> None:
        """Drop all translations, for code has been written where the emulator did not see it."""
        raw.check("flush", raw.ctl(self._handle, raw.control(raw.FLUSH_CODE)))

    def forget_addresses(self) -> None:
        """Empty the TLB, for page tables or control registers were written from outside."""
        raw.check("flush", raw.ctl(self._handle, raw.control(raw.FLUSH_ADDRESSES)))

    def map_ram(self, gpa: int, size: int, hva: int) -> None:
        """Let guest-physical memory be this process's memory."""
        raw.check(
            "map",
            raw.short.uc_mem_map_ptr(
                self._handle, raw.U64(gpa), raw.SIZE(size), raw.U32(7), raw.POINTER(hva)
            ),
        )

    def protect(self, gpa: int, size: int, writable: bool) -> None:
        """Let stores to a whole region through, or suppress them."""
        rights = raw.PROT_ALL if writable else raw.PROT_READ_EXEC
        raw.check(
            "protect",
            raw.short.uc_mem_protect(self._handle, raw.U64(gpa), raw.SIZE(size), raw.U32(rights)),
        )

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
        on_read = raw.MMIO_READ(lambda _, offset, size, __: read(offset, size))
        on_write = raw.MMIO_WRITE(lambda _, offset, size, value, __: write(offset, size, value))
        self._keep += (on_read, on_write)
        where = raw.U64(gpa), raw.SIZE(size)
        raw.check("map", raw.short.uc_mmio_map(self._handle, *where, on_read, None, on_write, None))
        raw.check("protect", raw.short.uc_mem_protect(self._handle, *where, raw.U32(raw.PROT_NONE)))

    def unmap(self, gpa: int, size: int) -> None:
        """Undo `map_device`; the region must be a whole one."""
        raw.check("unmap", raw.short.uc_mem_unmap(self._handle, raw.U64(gpa), raw.SIZE(size)))

    def hook(self, kind: int, callback: Any, insn: int = 0, begin: int = 1, end: int = 0) -> int:
        """Add a hook, for linear addresses `begin` to `end`; from 1 to 0 is everywhere."""
        self._keep.append(callback)
        number = raw.SIZE()
        limits = raw.U64(begin), raw.U64(end), raw.INT(insn)
        raw.check(
            "hook",
            raw.short.uc_hook_add(
                self._handle, ctypes.byref(number), raw.INT(kind), callback, None, *limits
            ),
        )
        return number.value

    def unhook(self, number: int) -> None:
        """Remove a hook."""
        raw.check("unhook", raw.short.uc_hook_del(self._handle, raw.SIZE(number)))

    def read(self, register: int) -> int:
        """Return a register by Unicorn's number for it, up to 64 bits."""
        value = raw.U64()
        raw.check(
            "read", raw.short.uc_reg_read(self._handle, raw.INT(register), ctypes.byref(value))
        )
        return value.value

    def write(self, register: int, value: int) -> None:
        """Set a register by Unicorn's number for it."""
        wide = raw.U64(value)
        raw.check(
            "write", raw.short.uc_reg_write(self._handle, raw.INT(register), ctypes.byref(wide))
        )

    def read_wide(self, register: int, size: int) -> bytes:
        """Return a register of 10 or 16 bytes."""
        value = ctypes.create_string_buffer(size)
        raw.check("read", raw.short.uc_reg_read(self._handle, raw.INT(register), value))
        return value.raw

    def write_wide(self, register: int, value: bytes) -> None:
        """Set a register of 10 or 16 bytes."""
        wide = ctypes.create_string_buffer(value, len(value))
        raw.check("write", raw.short.uc_reg_write(self._handle, raw.INT(register), wide))

    def rdmsr(self, index: int) -> int:
        """Return a model-specific register, 0 for one that the emulator does not have."""
        pair = ctypes.create_string_buffer(struct.pack("=I4xQ", index, 0), 16)
        raw.check("read", raw.short.uc_reg_read(self._handle, raw.INT(raw.REG_MSR), pair))
        return int(struct.unpack("=I4xQ", pair.raw)[1])

    def wrmsr(self, index: int, value: int) -> None:
        """Set a model-specific register."""
        pair = ctypes.create_string_buffer(struct.pack("=I4xQ", index, value), 16)
        raw.check("write", raw.short.uc_reg_write(self._handle, raw.INT(raw.REG_MSR), pair))

    def close(self) -> None:
        """Free everything."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self.view.release()
            raw.check("close", raw.library.uc_close(handle))
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
