"""How many instructions the emulator translates at once: few enough that none runs out of room.

Unicorn's translator takes up to 512 instructions into a block, and has room for 512 temporaries
in one. It forgets to give some back: every x87 instruction keeps one, and so do AAM and MOV from a
control register. QEMU checks for the end of that room in debug builds only (`tcg_temp_alloc`), so
some hundred x87 instructions in a row write past it, and the process dies.

The limit is a constant in the library's `tb_gen_code`, and no call changes it. So it is changed
there, in this process's memory: the two places where the compiler put 512 get `LONGEST`.
"""

import ctypes
import mmap
import os
import platform
import warnings
from typing import Any

LONGEST = 128
"""Instructions in a block. The worst of those tried keeps three temporaries."""
_COMPARE, _MOVE = b"\x81\xfb", b"\xbb"  # cmp ebx, imm32; mov ebx, imm32
_OLD, _NEW = (number.to_bytes(4, "little") for number in (512, LONGEST))
_LOOK = 256  # bytes of the function in which both places are
_READ_EXEC, _ALL = mmap.PROT_READ | mmap.PROT_EXEC, 7


def shorten_blocks(library: Any) -> bool:
    """Change the limit in a loaded Unicorn; return whether it is changed now.

    Where it cannot be (another processor, another build, a system that forbids it) a warning says
    so, and a guest made for it can end this process.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return _left("this is no x86-64 host")
    function = getattr(library, "tb_gen_code_x86_64", None)
    if function is None:
        return _left("it has no tb_gen_code_x86_64")
    start = ctypes.cast(function, ctypes.c_void_p).value or 0
    code = ctypes.string_at(start, _LOOK)
    if code.count(_COMPARE + _NEW) == 1 and code.count(_MOVE + _NEW) == 1:
        return True
    if code.count(_COMPARE + _OLD) != 1 or code.count(_MOVE + _OLD) != 1:
        return _left("its limit is not where it was")
    first = start & -mmap.PAGESIZE
    size = -(-(start + _LOOK - first) // mmap.PAGESIZE) * mmap.PAGESIZE
    if not _protect(first, size, _ALL):
        return _left(os.strerror(ctypes.get_errno()))
    for place in (_COMPARE, _MOVE):
        ctypes.memmove(start + code.index(place + _OLD) + len(place), _NEW, len(_NEW))
    _protect(first, size, _READ_EXEC)
    return True


def _protect(first: int, size: int, rights: int) -> bool:
    call = ctypes.CDLL(None, use_errno=True).mprotect
    return bool(call(ctypes.c_void_p(first), ctypes.c_size_t(size), rights) == 0)


def _left(why: str) -> bool:
    warnings.warn(f"Unicorn's blocks stay as long as they are: {why}", RuntimeWarning, stacklevel=3)
    return False
