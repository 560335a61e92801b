"""The CPU room: vCPUs on an emulator or on real KVM, and the exits they make.

`open_vm("unicorn")` needs no privilege; `open_vm("kvm")` needs a `/dev/kvm` that opens. Both give
the same exits for the same guest. `open_svm()` shows the other side: a host that executes VMRUN,
on an emulated AMD-V.

Guests that are made to be watched come with what records them: `fall_guest` (ring 3 falls into ring
0), `loop_guest` (what leaves a guest, and how far), `record_fall`, `record_delivery`,
`record_vmrun`; problems come by seed.

Sections of the Intel SDM are counted as in its editions of 2023: interrupts are chapter 6 of volume
3A. (Newer ones have them as 7.)
"""

from vmlib.cpu.assemble import assemble
from vmlib.cpu.budget import Budget
from vmlib.cpu.capabilities import CAPABILITIES, Capability
from vmlib.cpu.engine import EngineStatus, InterruptController, Vcpu, Vm
from vmlib.cpu.engines import ENGINES, open_svm, open_vm, probe
from vmlib.cpu.exits import (
    BudgetSpent,
    Cpuid,
    Cr3Write,
    Debug,
    EngineFailure,
    Exit,
    Halt,
    Hypercall,
    InterruptWindow,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    MsrRead,
    MsrWrite,
    Shutdown,
)
from vmlib.cpu.fall_trace import record_fall
from vmlib.cpu.falls import FALLS, Fall, fall_guest, kernel_address, start_fall, user_address
from vmlib.cpu.falls import RAM as FALL_RAM
from vmlib.cpu.gate_problems import GateProblem, gate_problem
from vmlib.cpu.gate_trace import record_delivery
from vmlib.cpu.guests import Guest, Line, add_guest, load_guest
from vmlib.cpu.loop import Loop, loop_guest
from vmlib.cpu.npt import NestedTables
from vmlib.cpu.problems import AddProblem, add_problem
from vmlib.cpu.state import Registers, Segment, SystemRegisters, Table, VcpuState
from vmlib.cpu.svm_problems import VmrunProblem, vmrun_problem
from vmlib.cpu.svm_trace import record_vmrun
from vmlib.cpu.vmcb import FIELDS as VMCB_FIELDS
from vmlib.cpu.vmcb import SvmExit, Vmcb, why_invalid

__all__ = [
    "CAPABILITIES",
    "ENGINES",
    "FALLS",
    "FALL_RAM",
    "VMCB_FIELDS",
    "AddProblem",
    "Budget",
    "BudgetSpent",
    "Capability",
    "Cpuid",
    "Cr3Write",
    "Debug",
    "EngineFailure",
    "EngineStatus",
    "Exit",
    "Fall",
    "GateProblem",
    "Guest",
    "Halt",
    "Hypercall",
    "InterruptController",
    "InterruptWindow",
    "IoIn",
    "IoOut",
    "Kicked",
    "Line",
    "Loop",
    "Mmio",
    "MsrRead",
    "MsrWrite",
    "NestedTables",
    "Registers",
    "Segment",
    "Shutdown",
    "SvmExit",
    "SystemRegisters",
    "Table",
    "Vcpu",
    "VcpuState",
    "Vm",
    "Vmcb",
    "VmrunProblem",
    "add_guest",
    "add_problem",
    "assemble",
    "fall_guest",
    "gate_problem",
    "kernel_address",
    "load_guest",
    "loop_guest",
    "open_svm",
    "open_vm",
    "probe",
    "record_delivery",
    "record_fall",
    "record_vmrun",
    "start_fall",
    "user_address",
    "vmrun_problem",
    "why_invalid",
]
