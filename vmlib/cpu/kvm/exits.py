"""What a vCPU's shared page says after KVM_RUN, as an exit (api.rst, section 5, `struct kvm_run`).

Writing to a port is what guests do most; `KvmVcpu.run` decodes that exit itself, the quickest way,
and the others come here. Where the page alone does not tell (a shutdown says nothing at all), the
vCPU's state is added by the caller.
"""

import mmap

from vmlib.cpu.exits import (
    Debug,
    EngineFailure,
    Exit,
    Halt,
    InterruptWindow,
    IoIn,
    IoOut,
    Mmio,
    MsrRead,
    MsrWrite,
)
from vmlib.cpu.kvm import abi

_HALT, _WINDOW = Halt(), InterruptWindow()


def decode(page: mmap.mmap, rip: int | None = None) -> Exit:
    """Return the exit that the page describes; `rip` is told where it helps a reader.

    An unanswered IN reads ones, as from a port where nothing drives the bus, and so does a read
    of memory that is not there: the page is prepared for that here.
    """
    reason, way, size, port, count, at = abi.RUN_HEAD_IO.unpack_from(page, abi.RUN_EXIT_REASON)
    match reason:
        case abi.EXIT_IO:
            if way == abi.IO_OUT:
                return IoOut(port, size, page[at : at + size * count])
            page[at : at + size * count] = b"\xff" * (size * count)
            return IoIn(port, size, count)
        case abi.EXIT_MMIO:
            gpa, data, size, write = abi.RUN_MMIO.unpack_from(page, abi.RUN_UNION)
            if write:
                return Mmio(gpa, size, data[:size])
            page[abi.RUN_MMIO_DATA : abi.RUN_MMIO_DATA + 8] = b"\xff" * 8
            return Mmio(gpa, size, None)
        case abi.EXIT_HLT:
            return _HALT
        case abi.EXIT_IRQ_WINDOW_OPEN:
            return _WINDOW
        case abi.EXIT_DEBUG:
            _, address, _, _ = abi.RUN_DEBUG.unpack_from(page, abi.RUN_UNION)
            return Debug(address)
        case abi.EXIT_X86_RDMSR:
            return MsrRead(abi.RUN_MSR.unpack_from(page, abi.RUN_UNION)[2])
        case abi.EXIT_X86_WRMSR:
            return MsrWrite(*abi.RUN_MSR.unpack_from(page, abi.RUN_UNION)[2:])
    return EngineFailure(_explain(page, reason, "" if rip is None else f" at {rip:#x}"))


def answer(page: mmap.mmap, pending: Exit | None, data: bytes) -> None:
    """Put the answer to an exit where KVM fetches it on the next entry."""
    match pending:
        case IoIn():
            at = abi.RUN_HEAD_IO.unpack_from(page, abi.RUN_EXIT_REASON)[5]
        case Mmio():
            at = abi.RUN_MMIO_DATA
        case _:
            at = abi.RUN_MSR_DATA
            page[abi.RUN_MSR_ERROR] = 0
    page[at : at + len(data)] = data


def is_unfinished(pending: Exit | None) -> bool:
    """Say whether the instruction that made this exit finishes only on the next KVM_RUN."""
    return isinstance(pending, IoOut | IoIn | Mmio | MsrRead | MsrWrite)


def _explain(page: mmap.mmap, reason: int, where: str) -> str:
    if reason == abi.EXIT_INTERNAL_ERROR:
        suberror, words, flags, size, code = abi.RUN_INTERNAL.unpack_from(page, abi.RUN_UNION)
        if suberror != abi.SUBERROR_EMULATION:
            return f"KVM reports an internal error{where}, suberror {suberror}"
        told = words >= 3 and flags & abi.EMULATION_HAS_BYTES
        code = f" ({code[:size].hex(' ')})" if told else ""
        return f"KVM could not emulate the instruction{where}{code}"
    if reason == abi.EXIT_FAIL_ENTRY:
        (why,) = abi.RUN_FAIL_ENTRY.unpack_from(page, abi.RUN_UNION)
        return f"the CPU refused to enter the guest{where}, hardware reason {why:#x}"
    return f"KVM left the guest{where} for reason {reason}, which is not known here"
