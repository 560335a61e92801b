"""The system call ioctl, as KVM needs it.

Not `fcntl.ioctl`: that takes the argument for a signed int, in which some addresses of KVM's have
no room; and an exception that a Python signal handler raises comes out of it like an error of the
call's own, both being OSErrors. Here handlers run after the call.
"""

import ctypes
import os

_u64 = ctypes.c_ulong
_libc = ctypes.CDLL(None, use_errno=True)

run_ioctl = _libc.ioctl
"""The bare call, for KVM_RUN alone: ``run_ioctl(fd, RUN, 0)`` is -1 for an error, see `failure`.

Other threads of Python's run meanwhile.
"""
failure = ctypes.get_errno
"""The error number of this thread's last call."""

_SYS_TGKILL = 234  # arch/x86/entry/syscalls/syscall_64.tbl


def call(fd: int, request: int, argument: int | bytes | bytearray = 0) -> int:
    """Make a request of KVM's; what it writes is in the bytearray then. OSError if it fails."""
    given: object = argument
    if isinstance(argument, int):
        given = _u64(argument)
    elif isinstance(argument, bytearray):
        given = (ctypes.c_char * len(argument)).from_buffer(argument)
    result = int(_libc.ioctl(fd, _u64(request), given))
    if result < 0:
        raise OSError(failure(), os.strerror(failure()))
    return result


def read(fd: int, request: int, size: int) -> bytearray:
    """Return the `size` bytes that a request fills."""
    buffer = bytearray(size)
    call(fd, request, buffer)
    return buffer


def send_signal(thread: int, number: int) -> None:
    """Send a signal to one thread of this process, by its native id; nothing if it has ended."""
    _libc.syscall(_SYS_TGKILL, os.getpid(), thread, number)
