"""Unicorn, bare: the emulator as a library of C functions, and where its CPU keeps its state.

Unicorn is QEMU's translator without QEMU's machine. Its Python binding is made for analysing
code: a register costs a microsecond, a hook two calls. Here are the same library's functions by
ctypes, the types of its hooks, and the offsets of the fields of `CPUX86State`, which `proof.py`
proves. What they are good for is in `emulator.py`.

This is the only file that imports Unicorn, which is licensed under the GPL, version 2.
"""

import ctypes
import struct
from typing import Any

import unicorn as uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from vmlib.errors import Unsupported

VERSION = uc.__version__
MADE_FOR = "2.1.4"

PROT_NONE, PROT_READ, PROT_WRITE, PROT_ALL = 0, 1, 2, 7
PROT_READ_EXEC = uc.UC_PROT_READ | uc.UC_PROT_EXEC
ENV_SIZE = 5600
"""As much of CPUX86State as an instruction can change, in bytes."""

# Fields of CPUX86State (QEMU 5.0, target/i386/cpu.h), as offsets; `proof.py` proves them.
GPRS, RIP, EFLAGS_RAW, HFLAGS = 0, 128, 136, 176  # the arithmetic flags are kept elsewhere
SEGMENTS = 184  # ES, CS, SS, DS, FS, GS: selector u32, base u64, limit u32, flags u32, 24 bytes
LDT, TR, GDT, IDT = 328, 352, 376, 400
CR0, CR2, CR3, CR4 = 424, 440, 448, 456
EFER, ERROR_CODE, IS_INT, OLD_EXCEPTION = 592, 5384, 5388, 5496
# From uc_struct to its CPU and its count of instructions, from the CPU to `halted` and CPUX86State.
CPU, COUNTER, HALTED, ENV = 440, 1368, 33176, 35408
CONTEXT_SIZE, NO_EXIT_REQUEST = 2016, 2034
DR0_RAW, DR6_RAW, DR7_RAW = 5400, 5448, 5456
XSAVE_COMPONENTS = 5800
"""Which parts of the state XSAVE knows, as CPUID leaf 0xd tells and XSETBV allows; 64 bits."""
HOOK = struct.Struct("=5iB3x3Q")
"""A hook: kind, instruction, references, operation, its flags, whether it is about to be deleted,
first and last address, callback. `uc_hook_add` returns its address."""
HOOK_DELETED = 20
"""The offset of the flag in it. While it is set nobody is called."""
SEGMENT = struct.Struct("=I4xQII")

# Registers that only the library's own calls read and write.
EFLAGS, CR8, DR0, MXCSR = (
    getattr(x86, f"UC_X86_REG_{n}") for n in ("EFLAGS", "CR8", "DR0", "MXCSR")
)
FPCW, FPSW, FPTAG = (getattr(x86, f"UC_X86_REG_{n}") for n in ("FPCW", "FPSW", "FPTAG"))
FOP, FIP, FDP = (getattr(x86, f"UC_X86_REG_{n}") for n in ("FOP", "FIP", "FDP"))
REG_CR3 = x86.UC_X86_REG_CR3
REG_MSR, REG_CR2, REG_RIP = x86.UC_X86_REG_MSR, x86.UC_X86_REG_CR2, x86.UC_X86_REG_RIP
ST0, XMM0 = x86.UC_X86_REG_ST0, x86.UC_X86_REG_XMM0

HOOK_INTERRUPT, HOOK_INSN, HOOK_INVALID = uc.UC_HOOK_INTR, uc.UC_HOOK_INSN, uc.UC_HOOK_INSN_INVALID
HOOK_CODE, HOOK_NEW_BLOCK = uc.UC_HOOK_CODE, uc.UC_HOOK_EDGE_GENERATED
HOOK_MEMORY = uc.UC_HOOK_MEM_UNMAPPED | uc.UC_HOOK_MEM_PROT
INSN_IN, INSN_OUT, INSN_CPUID = x86.UC_X86_INS_IN, x86.UC_X86_INS_OUT, x86.UC_X86_INS_CPUID
INSN_SYSCALL, INSN_SYSENTER = x86.UC_X86_INS_SYSCALL, x86.UC_X86_INS_SYSENTER
FLUSH_CODE, FLUSH_ADDRESSES = uc.UC_CTL_TB_FLUSH, uc.UC_CTL_TLB_FLUSH
MODEL = x86.UC_CPU_X86_EPYC_ROME
READS = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_READ_PROT)
WRITES = (uc.UC_MEM_WRITE_UNMAPPED, uc.UC_MEM_WRITE_PROT)

U64 = ctypes.c_uint64
U32 = ctypes.c_uint32
INT = ctypes.c_int
POINTER = ctypes.c_void_p
SIZE = ctypes.c_size_t

library = uclib
# While the guest runs, other Python threads may: that call gives up the interpreter's lock. The
# short calls keep it, which is quicker.
emu_start = uclib.uc_emu_start
short = ctypes.PyDLL(uclib._name)
ctl = short.uc_ctl

# The two that are called most take the engine's handle as one byte and leave the last argument,
# which is NULL, where it is: what is passed in registers need not be made into Python's integers.
OUT_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int8, U32, INT, U32)
IN_HOOK = ctypes.CFUNCTYPE(U32, ctypes.c_int8, U32, INT)
CPUID_HOOK = ctypes.CFUNCTYPE(INT, POINTER, POINTER)
PLAIN_HOOK = ctypes.CFUNCTYPE(None, POINTER, POINTER)
INVALID_HOOK = ctypes.CFUNCTYPE(ctypes.c_bool, POINTER, POINTER)
INTERRUPT_HOOK = ctypes.CFUNCTYPE(None, POINTER, U32, POINTER)
MEMORY_HOOK = ctypes.CFUNCTYPE(ctypes.c_bool, POINTER, INT, U64, INT, U64, POINTER)
CODE_HOOK = ctypes.CFUNCTYPE(None, POINTER, U64, U32, POINTER)
MMIO_READ = ctypes.CFUNCTYPE(U64, POINTER, U64, ctypes.c_uint, POINTER)
MMIO_WRITE = ctypes.CFUNCTYPE(None, POINTER, U64, ctypes.c_uint, U64, POINTER)


class _Block(ctypes.Structure):
    """`uc_tb`: a translated block, as the hook for new ones gets it."""

    _fields_ = (("pc", U64), ("icount", ctypes.c_uint16), ("size", ctypes.c_uint16))


BLOCK_HOOK = ctypes.CFUNCTYPE(
    None, POINTER, ctypes.POINTER(_Block), ctypes.POINTER(_Block), POINTER
)


def register(name: str) -> int:
    """Return Unicorn's number for a register."""
    return int(getattr(x86, f"UC_X86_REG_{name}"))


def open_cpu(model: int = MODEL) -> Any:
    """Open an engine that ignores `until`, and return its handle."""
    handle = POINTER()
    check("open", uclib.uc_open(uc.UC_ARCH_X86, uc.UC_MODE_64, ctypes.byref(handle)))
    check("model", ctl(handle, control(uc.UC_CTL_CPU_MODEL), INT(model)))
    # Exits by address are on, and none is listed: `until`, a trap, is ignored.
    check("exits", ctl(handle, control(uc.UC_CTL_UC_USE_EXITS), INT(1)))
    return handle


def poke(handle: Any, register: int, value: int) -> None:
    """Write a register through the library."""
    wide = U64(value)
    check("write", short.uc_reg_write(handle, INT(register), ctypes.byref(wide)))


def control(which: int) -> Any:
    """``UC_CTL_WRITE(which, 1)``, as `unicorn.h` builds it."""
    return INT(which | 1 << 26 | uc.UC_CTL_IO_WRITE << 30)


def check(what: str, error: int) -> None:
    """Raise `Unsupported` for an error number of the library's."""
    if error:
        short.uc_strerror.restype = ctypes.c_char_p
        said = short.uc_strerror(error).decode()
        raise Unsupported(f"Unicorn refuses to {what}: {said}")
