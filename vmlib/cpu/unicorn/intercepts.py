"""Exits for RDMSR, WRMSR, CPUID, MOV to CR3 and hypercalls on the emulator.

Hardware has a bit for each of these. The emulator has a hook for CPUID and an invalid-opcode
exception for VMCALL and VMMCALL; for the others, each newly translated block is read before it
runs (`scan.py`), and a hook laid on the instruction.

So it is done, too, with the writes of control registers that a processor may refuse (`controls.py`)
and the emulator does not. And the same look at new blocks tells which pages hold code, so that a
write from outside that changes some is noticed.
"""

import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

from vmlib.cpu.controls import refuses_cr0, refuses_cr4, refuses_msr
from vmlib.cpu.exits import Cpuid, Cr3Write, Exit, Hypercall, MsrRead, MsrWrite
from vmlib.cpu.linear import Fault, LinearMemory, OutsideRam
from vmlib.cpu.scan import instruction_length, sites
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.unicorn.traps import Traps
from vmlib.errors import Unsupported
from vmlib.units import PAGE_SIZE

_LONGEST = 15
_HYPERCALLS = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")
_ENOSYS, _EPERM = 1000, 1  # KVM's, Linux include/uapi/linux/kvm_para.h
_RAX, _RCX, _RDX, _RBX, _RSI = (raw.GPRS + 8 * i for i in (0, 1, 2, 3, 6))
_MASK32 = 0xFFFFFFFF
_GUARDED = {"mov_cr0", "mov_cr4", "wrmsr"}
_MAY_STOP = re.compile(rb"\x0f[\x22\x30\x32]")
"""What begins an instruction that is guarded or may exit."""


class Intercepts:
    """What one vCPU intercepts, and the pages from which it has translated code."""

    def __init__(
        self,
        emu: Emulator,
        traps: Traps,
        memory: Callable[[], LinearMemory],
        stale: Callable[[], None],
    ) -> None:
        self._emu = emu
        self._traps = traps
        self._memory = memory
        self._stale = stale
        self._kinds: set[str] = set()
        self._hooked: set[int] = set()
        self._pages: set[int] = set()
        emu.hook(raw.HOOK_NEW_BLOCK, raw.BLOCK_HOOK(self._on_new_block))

    def switch_on(self, kinds: Iterable[str]) -> None:
        """Have these exit from now on."""
        self._kinds.update(kinds)
        if "cpuid" in self._kinds:
            self._traps.cpuid_exits = self._cpuid
        self._emu.forget_code()

    @property
    def any(self) -> bool:
        """Whether anything is intercepted."""
        return bool(self._kinds)

    @property
    def hooks_code(self) -> bool:
        """Whether instructions carry hooks that must be able to stop before them."""
        return bool(self._kinds & {"msr", "cr3"})

    def written(self, gpa: int, length: int) -> None:
        """RAM was written from outside: say so if code was translated from there."""
        pages = self._pages
        for page in range(gpa // PAGE_SIZE, (gpa + length - 1) // PAGE_SIZE + 1):
            if page in pages:
                self._stale()
                return

    def forget_code(self) -> None:
        """Drop all translations."""
        self._pages.clear()
        self._emu.forget_code()

    def hypercall(self) -> Exit | bool:
        """Look at an invalid opcode: an exit, True if it was a hypercall and is done, or False.

        Where nobody asked for it, the answer is KVM's: the kernel does not know this call, or, to
        a guest that is not in ring 0, it may not.
        """
        code = self.code(3)
        if code not in _HYPERCALLS:
            return False
        if "hypercall" in self._kinds:
            number, *args = (self._get(at) for at in (_RAX, _RBX, _RCX, _RDX, _RSI))
            return Hypercall(number, (args[0], args[1], args[2], args[3]))
        refusal = _EPERM if self._emu.hflags.value & 3 else _ENOSYS
        self._set(_RAX, -refusal)
        self._emu.rip.value += 3
        return True

    def finish(self, pending: Exit, answer: bytes | None) -> bool:
        """Do what the instruction of an exit would have done, with the VMM's answer if it gave one.

        Return whether it faults instead: a write that nobody refused may still be refused here.
        """
        match pending:
            case MsrRead(index=index):
                value = self._emu.rdmsr(index).to_bytes(8, "little") if answer is None else answer
                low, high = struct.unpack("<II", value)
                self._set(_RAX, low)
                self._set(_RDX, high)
            case MsrWrite(index=index, value=value):
                if refuses_msr(index, value, state.read_event_cpu(self._emu)):
                    return True
                self._emu.wrmsr(index, value)
            case Cpuid():
                values = struct.unpack("<4I", answer or bytes(16))
                for at, value in zip((_RAX, _RBX, _RCX, _RDX), values, strict=True):
                    self._set(at, value)
            case Hypercall():
                self._set(_RAX, int.from_bytes(answer or bytes(8), "little"))
            case Cr3Write():
                pass
            case _:
                return False
        code = self.code(_LONGEST)
        self._emu.rip.value += instruction_length(code, 0, self._bits())
        return False

    def code(self, size: int) -> bytes:
        """Return up to `size` bytes of code at RIP, fewer where the next page is not mapped."""
        at = self._traps.linear_rip()
        memory = self._memory()
        here, data = min(size, PAGE_SIZE - at % PAGE_SIZE), b""
        try:
            data = memory.read(at, here)
            return data + memory.read(at + here, size - here) if here < size else data
        except (Fault, OutsideRam, Unsupported):
            return data

    # --- called by the emulator ---------------------------------------------------------------

    def _on_new_block(self, _: Any, block: Any, __: Any, ___: Any) -> None:
        at, size = block.contents.pc, block.contents.size
        memory = self._memory()
        try:
            for linear in {at, at + max(size, 1) - 1}:
                self._pages.add(memory.gpa(linear) // PAGE_SIZE)
            code = memory.read(at, size)
        except (Fault, OutsideRam, Unsupported):
            return
        if not _MAY_STOP.search(code):
            return
        wanted = _GUARDED | ({"rdmsr"} if "msr" in self._kinds else set())
        wanted |= {"mov_cr3"} if "cr3" in self._kinds else set()
        found = [at + one.offset for one in sites(code, self._bits()) if one.kind in wanted]
        new = [address for address in found if address not in self._hooked]
        for address in new:
            self._hooked.add(address)
            self._emu.hook(raw.HOOK_CODE, raw.CODE_HOOK(self._on_site), begin=address, end=address)
        if new:  # this block was translated without them: do not run it, translate it again
            self._stale()
            self._emu.stop()

    def _on_site(self, _: Any, address: int, __: int, ___: Any) -> None:
        traps = self._traps
        if traps.exit is not None or traps.vector is not None or self._emu.hflags.value & 3:
            return  # in an outer ring it is a general-protection fault all by itself
        code = self.code(_LONGEST)
        for one in sites(code, self._bits()):
            if one.offset == 0:
                traps.exit = self._exit_of(one.kind, code[: one.length])
                if traps.exit is not None:
                    self._emu.stop()
                elif self._refuses(one.kind, code[: one.length]):
                    traps.fault()
            return

    def _exit_of(self, kind: str, code: bytes) -> Exit | None:
        index = self._get(_RCX) & _MASK32
        if kind == "rdmsr" and "msr" in self._kinds:
            return MsrRead(index)
        if kind == "wrmsr" and "msr" in self._kinds:
            return MsrWrite(index, self._edx_eax())
        if kind == "mov_cr3" and "cr3" in self._kinds:
            value = self._source(code)
            self._emu.write(raw.REG_CR3, value)
            return Cr3Write(value)
        return None

    def _refuses(self, kind: str, code: bytes) -> bool:
        """Say whether a processor would refuse the write that is about to be done."""
        cpu = state.read_event_cpu(self._emu)
        if kind == "wrmsr":
            return refuses_msr(self._get(_RCX) & _MASK32, self._edx_eax(), cpu)
        if kind == "mov_cr0":
            return refuses_cr0(self._source(code), cpu)
        return kind == "mov_cr4" and refuses_cr4(self._source(code), cpu)

    def _source(self, code: bytes) -> int:
        """The register that a MOV to a control register, these bytes, takes its value from."""
        rex_b = code[-4] & 1 if len(code) > 3 and code[-4] & 0xF0 == 0x40 else 0
        value = self._get(raw.GPRS + 8 * (code[-1] & 7 | rex_b << 3))
        return value & ((1 << 64) - 1 if self._bits() == 64 else _MASK32)

    def _edx_eax(self) -> int:
        return self._get(_RDX) << 32 & _MASK32 << 32 | self._get(_RAX) & _MASK32

    def _cpuid(self) -> Exit | None:
        return Cpuid(self._get(_RAX) & _MASK32, self._get(_RCX) & _MASK32)

    def _bits(self) -> Any:
        flags = self._emu.hflags.value
        return 64 if flags & 1 << 15 else 32 if flags & 1 << 4 else 16

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("=Q", self._emu.view, at)[0])

    def _set(self, at: int, value: int) -> None:
        struct.pack_into("=Q", self._emu.view, at, value & (1 << 64) - 1)
