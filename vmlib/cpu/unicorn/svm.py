"""AMD-V without hardware: a host that executes VMRUN, and the way back that we complete.

The emulator contains QEMU's AMD-V, and almost all of it works: VMRUN saves the host's state in
the page at VM_HSAVE_PA, loads the guest's from the VMCB and enters it; intercepts are checked;
nested tables are walked in two dimensions. One function is cut out of the library, the #VMEXIT.
An intercept therefore stops the emulator with the guest still in it. `SvmHost` does what is
missing, as AMD's APM vol. 2 (24593), 15.6, says: save the guest in the VMCB, write EXITCODE,
EXITINFO1 and EXITINFO2, load the host again, clear GIF. Then the host goes on behind its VMRUN.

Ours as well: the consistency checks (15.5.1; the emulator has none), nRIP (15.7.1), and the
delivery of exceptions that are not intercepted, through the guest's IDT and both page tables.
The host's timer is a count of instructions: it is the physical interrupt of VMEXIT_INTR.

Left out: IOIO and task-switch intercepts, which the emulator does not check; bits 63:32 of
EXITINFO1, which it drops; decode assists, AVIC, encryption. Its TLB has no ASIDs: it is flushed on
every exit, so that TLB_CONTROL changes nothing and an ASID must only not be zero. General
registers but RAX and RSP, and x87 and SSE, are the hypervisor's own business (15.5.1).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

from vmlib.cpu import events
from vmlib.cpu.guests import Guest, load_guest
from vmlib.cpu.npt import NestedFault, NestedTables
from vmlib.cpu.state import Registers, SystemRegisters
from vmlib.cpu.unicorn import raw, state
from vmlib.cpu.unicorn import world_switch as world
from vmlib.cpu.unicorn.emulator import Emulator
from vmlib.cpu.vmcb import (
    EFER_SVME,
    EVENT_VALID,
    INSTRUCTIONS,
    INTR,
    INVALID,
    MSRPM_SIZE,
    NPF,
    SHUTDOWN,
    V_INTR_MASKING,
    SvmExit,
    Vmcb,
    exit_name,
    why_invalid,
)
from vmlib.errors import BadInput, GuestError, SpecViolation, Unsupported
from vmlib.given import check_one
from vmlib.memory import GuestRam
from vmlib.numbers import whole
from vmlib.units import PAGE_SIZE

TIMER = 100_000
"""Instructions after which the host's timer interrupts, unless another number is asked for."""

STUB, _HSAVE, _HOST_SAVE, _PML4, _PDPT, _PD, _FIRST_FREE = (n * PAGE_SIZE for n in range(1, 8))
_VM_HSAVE_PA, _EFER_NXE, _EPYC, _VMRUN_LENGTH = 0xC0010117, 1 << 11, 35, 3
_FIRST_EXIT, _EVENT = 0x100, EVENT_VALID | 7 << 8  # an event's type is in bits 10..8
_UNCHECKED = ("IOIO", "CR0_SEL_WRITE", "INVD", "RDTSCP", "ICEBP", "TASK_SWITCH", "FERR_FREEZE")
_NEVER = ("RSM", "NMI", "SMI", "INIT", "VINTR")  # nothing in this host raises them
Watch = Callable[[str, SvmExit | None], None]
"""Called with "before" and "after" for each instruction, and "left" after each #VMEXIT."""


class SvmHost:
    """A processor with AMD-V in 64-bit mode, and `ram` of host-physical memory.

    `registers` are the guest's general registers, which VMRUN and #VMEXIT leave to the hypervisor:
    loaded before each VMRUN, kept after each exit. RAX, RSP, RIP and RFLAGS are in the VMCB.
    """

    def __init__(self, ram: int | str = "4M") -> None:
        self.ram = GuestRam(ram)
        self.registers = Registers()
        self.stub: Guest = load_guest("vmrun")
        self._next_page = _FIRST_FREE
        self._vector: int | None = None
        self._injected: int | None = None
        self._outside: int | None = None
        self._stale = True
        self._emu = Emulator(model=_EPYC)
        self._emu.map_ram(0, self.ram.size, self.ram.hva)
        for kind, call in (
            (raw.HOOK_INTERRUPT, raw.INTERRUPT_HOOK(self._on_interrupt)),
            (raw.HOOK_INVALID, raw.INVALID_HOOK(self._on_invalid)),
            (raw.HOOK_MEMORY, raw.MEMORY_HOOK(self._on_memory)),
        ):
            self._emu.hook(kind, call)
        self.ram.watchers.append(self._written)
        self._build()

    # --- what a hypervisor prepares -----------------------------------------------------------

    def allocate(self, pages: int = 1) -> int:
        """Return the host-physical address of fresh pages, zeroed."""
        whole(pages, "pages", 1)
        at = self._next_page
        if at + pages * PAGE_SIZE > self.ram.size:
            raise BadInput("ram", f"has no {pages} page(s) left; give the host more")
        self._next_page += pages * PAGE_SIZE
        return at

    def vmcb(self) -> Vmcb:
        """Return a fresh VMCB with what VMRUN insists on: an ASID, and the VMRUN intercept.

        INTR is intercepted as well, so that the host gets its processor back.
        """
        vmcb = Vmcb(self.ram, self.allocate())
        vmcb["GUEST_ASID"] = 1
        vmcb["V_INTR"] = V_INTR_MASKING
        vmcb["MSRPM_BASE_PA"] = self.allocate(MSRPM_SIZE // PAGE_SIZE)
        vmcb.intercept("VMRUN", "INTR")
        return vmcb

    def nested_paging(self, vmcb: Vmcb) -> NestedTables:
        """Switch nested paging on for a VMCB and return its tables, empty."""
        check_one(vmcb, Vmcb, "vmcb")
        tables = NestedTables(self.ram, self.allocate)
        vmcb["NP_ENABLE"], vmcb["N_CR3"] = 1, tables.root
        return tables

    # --- VMRUN --------------------------------------------------------------------------------

    def vmrun(self, vmcb_pa: int, timer: int = TIMER, watch: Watch | None = None) -> SvmExit:
        """Let the host execute VMRUN and return after its #VMEXIT.

        The host's timer fires after `timer` instructions. `SpecViolation` for a VMCB address on
        which VMRUN faults, `GuestError` if the guest never gives the processor back or touches
        host memory that is not there, `Unsupported` for intercepts that nobody here checks and
        for a guest's exception in virtual-8086 mode. The host can go on after each of them.
        """
        whole(timer, "timer", 1)
        if whole(vmcb_pa, "vmcb_pa") % PAGE_SIZE or not 0 <= vmcb_pa <= self.ram.size - PAGE_SIZE:
            rule = f"the VMCB at {vmcb_pa:#x} is not a page of memory: VMRUN raises #GP"
            raise SpecViolation("APM vol. 2, 15.5.1", rule)
        vmcb = Vmcb(self.ram, vmcb_pa)
        for name in _UNCHECKED + _NEVER:
            if vmcb.intercepts(name):
                raise Unsupported(f"the emulator does not check the {name} intercept")
        event = vmcb["EVENTINJ"]
        self._injected = event & 0xFF if event & _EVENT == EVENT_VALID else None
        self._load_host(vmcb_pa)
        why = why_invalid(vmcb)
        ended: SvmExit | None = None
        left = timer
        while not self._emu.halted.value:
            if why and self._emu.rip.value == self._vmrun:
                self._emu.rip.value += _VMRUN_LENGTH
                ended, why = self._exit(vmcb, INVALID, why=why), None
                continue
            inside = self.in_guest
            self._start(left if inside and watch is None else 1, watch)
            if self.in_guest:
                left -= self._emu.executed.value - 1 if inside else 0
                came = self._came_back(vmcb, left)
                ended = came or ended
                if came is not None and watch is not None:
                    watch("left", came)
            elif self._vector is not None:
                what = events.NAMES.get(self._vector, hex(self._vector))
                raise SpecViolation("APM vol. 2, 15.4", f"the host faults with {what} at its VMRUN")
        assert ended is not None, "the host's HLT stands behind its VMRUN"
        return ended

    def _start(self, limit: int, watch: Watch | None) -> None:
        if self._stale:
            self._stale = False
            self._emu.forget_code()
        if watch is not None:
            watch("before", None)
        self._vector = self._outside = None
        self._emu.start(limit)
        if watch is not None:
            watch("after", None)

    @property
    def in_guest(self) -> bool:
        """Whether the processor is in guest mode."""
        return bool(self._emu.hflags.value & world.GUEST_MODE)

    @property
    def gif(self) -> bool:
        """The global interrupt flag: clear from CLGI, or #VMEXIT, to STGI."""
        return bool(world.hflags2(self._emu) & world.GIF)

    def now(self) -> Registers:
        """General registers of whoever runs."""
        return state.read_registers(self._emu)

    def system(self) -> SystemRegisters:
        """Segments and control registers of whoever runs; between VMRUNs, the host's."""
        return state.read_system(self._emu)

    def close(self) -> None:
        """Give everything back."""
        self._emu.close()
        self.ram.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the way back, which the emulator lacks -----------------------------------------------

    def _came_back(self, vmcb: Vmcb, left: int) -> SvmExit | None:
        """Say why the guest stopped: None if it goes on."""
        vector, emu = self._vector, self._emu
        if self._outside is not None:
            raise GuestError(f"the guest reached HPA {self._outside:#x}, where there is no memory")
        try:
            if vector is None:
                return self._timer(vmcb) if emu.halted.value or left <= 0 else None
            if vector >= _FIRST_EXIT:
                return self._exit(vmcb, vector - _FIRST_EXIT, emu.error_code.value & 0xFFFFFFFF)
            return self._deliver(vmcb, vector)
        except NestedFault as fault:
            vmcb["EXITINFO2"] = fault.gpa
            event = 1 << 31 | 3 << 8 | (vector or 0)
            return self._exit(vmcb, NPF, fault.error_code, during=event)

    def _timer(self, vmcb: Vmcb) -> SvmExit:
        """The host's timer interrupts, if the guest has not shut it out (15.13.1, 15.21.1)."""
        masking = vmcb["V_INTR"] & V_INTR_MASKING
        flags = Vmcb(self.ram, _HSAVE)["RFLAGS"] if masking else self._emu.read(raw.EFLAGS)
        if vmcb.intercepts("INTR") and flags & events.IF:
            return self._exit(vmcb, INTR)
        what = "is halted" if self._emu.halted.value else "runs on"
        why = "INTR is not intercepted" if not vmcb.intercepts("INTR") else "interrupts are masked"
        raise GuestError(f"the guest {what} and keeps the processor: {why}")

    def _deliver(self, vmcb: Vmcb, vector: int) -> SvmExit | None:
        """An exception that is not intercepted is the guest's own affair.

        An injected interrupt is the one event that the emulator has delivered by itself.
        """
        done, self._injected = vector == self._injected, None
        shut = None if done else world.deliver(self._emu, self.ram, vmcb, vector)
        vmcb["EVENTINJ"] = 0
        if shut is None:
            return None
        if vmcb.intercepts("SHUTDOWN"):
            return self._exit(vmcb, SHUTDOWN)
        raise GuestError(f"shutdown, which is not intercepted, resets the host: {shut.detail}")

    def _exit(
        self, vmcb: Vmcb, code: int, info1: int = 0, during: int = 0, why: str = ""
    ) -> SvmExit:
        """Switch the world back and write down the reason; see `world_switch.py`."""
        emu, nrip, info2 = self._emu, None, 0
        if self.in_guest:  # not where VMRUN refused
            if code in INSTRUCTIONS and (nrip := world.next_rip(emu, self.ram, vmcb)) is not None:
                vmcb["nRIP"] = nrip
            info2 = vmcb["EXITINFO2"]
            if vmcb["EVENTINJ"] & EVENT_VALID:  # it was not delivered
                during = vmcb["EVENTINJ"]
            self.registers = world.save_guest(emu, vmcb)
            world.load_host(emu, Vmcb(self.ram, _HSAVE))
        vmcb["EXITCODE"], vmcb["EXITINFO1"], vmcb["EXITINFO2"] = code, info1, info2
        vmcb["EXITINTINFO"], vmcb["EVENTINJ"] = during, 0
        world.set_hflags2(emu, world.hflags2(emu) & ~world.GIF)
        return SvmExit(code, exit_name(code), info1, info2, vmcb["RIP"], nrip, why)

    # --- the host -----------------------------------------------------------------------------

    def _build(self) -> None:
        """Identity-mapped page tables, the stub, and the pages that VMRUN and VMSAVE write to."""
        self.ram.write(STUB, self.stub.code)
        self._vmrun = STUB + self.stub.line("vmrun").offset
        self.ram.write_u64(_PML4, _PDPT | 3)
        self.ram.write_u64(_PDPT, _PD | 3)
        for i in range(512):
            self.ram.write_u64(_PD + 8 * i, i << 21 | 0x83)
        self._emu.wrmsr(_VM_HSAVE_PA, _HSAVE)
        saved = Vmcb(self.ram, _HOST_SAVE)  # what VMLOAD gives the host back
        saved.set_segment("TR", SystemRegisters.real_mode().tr)
        saved.set_segment("LDTR", SystemRegisters.real_mode().ldt)

    def _load_host(self, vmcb_pa: int) -> None:
        """The hypervisor is about to enter: interrupts on, the guest's registers loaded."""
        emu, host = self._emu, SystemRegisters.long_mode(_PML4)
        world.leave_guest_mode(emu)
        world.set_hflags2(emu, world.hflags2(emu) | world.GIF)
        mine = replace(self.registers, rax=vmcb_pa, rsp=STUB, rip=STUB, rflags=2 | events.IF)
        state.write_registers(emu, mine)
        state.write_system(emu, replace(host, efer=host.efer | EFER_SVME | _EFER_NXE))
        state.write_debug(emu, world.NO_BREAKPOINTS)

    # --- small change -------------------------------------------------------------------------

    def _on_interrupt(self, _: Any, number: int, __: Any) -> None:
        self._vector = number
        self._emu.stop()

    def _on_invalid(self, _: Any, __: Any) -> bool:
        self._vector = events.UD
        self._emu.stop()
        return False

    def _on_memory(self, _: Any, __: int, address: int, *___: Any) -> bool:
        self._outside = address
        self._emu.stop()
        return False

    def _written(self, _: int, __: int) -> None:
        self._stale = True
