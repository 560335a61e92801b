"""A vCPU's file descriptor: the requests that read and write its state, typed.

Whoever calls sees to it that no instruction is half done (`KvmVcpu` does). Left out of the saved
state: an exception on its way (its instruction faults again), NMIs, SMM, XCR0, the local APIC.
"""

import os

from vmlib.cpu.kvm import abi
from vmlib.cpu.kvm import state as kvm_state
from vmlib.cpu.kvm.calls import call, read
from vmlib.cpu.state import Registers, SystemRegisters, VcpuState
from vmlib.errors import BadInput, Unsupported
from vmlib.memory import GuestRam

MAX_BREAKPOINTS = 4


class VcpuFile:
    """What KVM_CREATE_VCPU returned."""

    def __init__(self, fd: int, components: dict[int, tuple[int, int]]) -> None:
        self.fd = fd
        self._components = components  # of an XSAVE area

    def registers(self) -> Registers:
        """General registers, RIP, RFLAGS."""
        return kvm_state.unpack_registers(read(self.fd, abi.GET_REGS, abi.REGS.size))

    def set_registers(self, registers: Registers) -> None:
        """Replace them."""
        call(self.fd, abi.SET_REGS, kvm_state.pack_registers(registers))

    def system(self) -> SystemRegisters:
        """Segments, tables, control registers, EFER."""
        return kvm_state.unpack_system(read(self.fd, abi.GET_SREGS, abi.SREGS_SIZE))

    def set_system(self, system: SystemRegisters) -> None:
        """Replace them, the local APIC's address excepted."""
        now = read(self.fd, abi.GET_SREGS, abi.SREGS_SIZE)
        (apic_base,) = abi.U64.unpack_from(now, kvm_state.APIC_BASE_AT)
        try:
            call(self.fd, abi.SET_SREGS, kvm_state.pack_system(system, apic_base))
        except OSError as error:
            raise BadInput(
                "system",
                f"KVM refuses it ({error.strerror}): EFER.LMA must be set exactly where EFER.LME "
                "and CR0.PG are, with CR4.PAE; no reserved bit may be set; this host must have "
                "the features",
            ) from None

    def last_exception(self) -> int | None:
        """The exception that KVM had in hand last."""
        return kvm_state.last_exception(self._events())

    def clear_events(self) -> None:
        """Forget interrupts and exceptions under way, and wake a halted vCPU."""
        call(self.fd, abi.SET_VCPU_EVENTS, kvm_state.pack_events(None, False, 0))
        call(self.fd, abi.SET_MP_STATE, abi.U32.pack(abi.MP_STATE_RUNNABLE))

    def interrupt(self, vector: int) -> None:
        """Deliver an external interrupt on the next entry."""
        call(self.fd, abi.INTERRUPT, abi.U32.pack(vector))

    def msr(self, index: int) -> int | None:
        """Return a model-specific register, None if KVM does not know it."""
        asked = bytearray(abi.ONE_MSR.pack(1, 0, index, 0, 0))
        try:
            known = call(self.fd, abi.GET_MSRS, asked)
        except OSError:
            return None
        return int(abi.ONE_MSR.unpack(asked)[4]) if known else None

    def set_msr(self, index: int, value: int) -> bool:
        """Set one; False if KVM does not take it."""
        try:
            return call(self.fd, abi.SET_MSRS, abi.ONE_MSR.pack(1, 0, index, 0, value)) == 1
        except OSError:
            return False

    def debug(self, control: int, breakpoints: tuple[int, ...] = ()) -> None:
        """Be the guest's debugger: `control` holds GUESTDBG bits, 0 is no debugger.

        DR7 gets a G bit for each breakpoint; length and type 0 mean execution (Intel SDM vol. 3B,
        *Debug Control Register (DR7)*).
        """
        where = (*breakpoints, *[0] * (MAX_BREAKPOINTS - len(breakpoints)))
        enabled = sum(2 << 2 * number for number in range(len(breakpoints)))
        packed = abi.GUEST_DEBUG.pack(control, 0, *where, 0, 0, 0, 0x400 | enabled)
        call(self.fd, abi.SET_GUEST_DEBUG, packed)

    def next_code(self, ram: GuestRam, length: int) -> bytes:
        """Return the bytes at RIP; fewer or none where they are not in RAM."""
        system = self.system()
        base = 0 if system.mode == "long" else system.cs.base
        linear = base + self.registers().rip & (1 << 64) - 1
        asked = bytearray(abi.TRANSLATION.pack(linear, 0, 0, 0, 0))
        call(self.fd, abi.TRANSLATE, asked)
        _, gpa, valid, _, _ = abi.TRANSLATION.unpack(asked)
        return ram.view[gpa : gpa + length].tobytes() if valid else b""

    def save(self) -> VcpuState:
        """All of it."""
        interrupt, shadow = kvm_state.unpack_events(self._events())
        (mp_state,) = abi.U32.unpack(read(self.fd, abi.GET_MP_STATE, abi.U32.size))
        xsave = read(self.fd, abi.GET_XSAVE, abi.XSAVE_SIZE)
        msrs = ((index, self.msr(index)) for index in kvm_state.MSRS)
        return VcpuState(
            registers=self.registers(),
            system=self.system(),
            xsave=kvm_state.forget_initial(xsave, self._components),
            msrs=tuple((index, value) for index, value in msrs if value is not None),
            debug=kvm_state.unpack_debug(read(self.fd, abi.GET_DEBUGREGS, abi.DEBUGREGS.size)),
            interrupt=interrupt,
            shadow=shadow,
            halted=mp_state == abi.MP_STATE_HALTED,
        )

    def restore(self, state: VcpuState) -> None:
        """Become that; `Unsupported` names what this host's KVM does not have."""
        self.set_system(state.system)
        try:
            call(self.fd, abi.SET_XSAVE, state.xsave)
        except OSError:
            raise Unsupported(
                "the state has vector registers that this host's KVM does not give to guests"
            ) from None
        for index, value in state.msrs:
            if not self.set_msr(index, value) and value:
                raise Unsupported(f"this host's KVM does not take MSR {index:#x} = {value:#x}")
        call(self.fd, abi.SET_DEBUGREGS, kvm_state.pack_debug(state.debug))
        self.set_registers(state.registers)
        flags = state.registers.rflags
        events = kvm_state.pack_events(state.interrupt, state.shadow, flags)
        call(self.fd, abi.SET_VCPU_EVENTS, events)
        mp_state = abi.MP_STATE_HALTED if state.halted else abi.MP_STATE_RUNNABLE
        call(self.fd, abi.SET_MP_STATE, abi.U32.pack(mp_state))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def _events(self) -> bytearray:
        return read(self.fd, abi.GET_VCPU_EVENTS, abi.EVENTS.size)
