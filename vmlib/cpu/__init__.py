"""The CPU room: vCPUs on an emulator or on real KVM, and the exits they make.

`open_vm("unicorn")` needs no privilege; `open_vm("kvm")` needs a `/dev/kvm` that opens. Both give
the same exits for the same guest.
"""

from vmlib.cpu.budget import Budget
from vmlib.cpu.capabilities import CAPABILITIES, Capability
from vmlib.cpu.engine import EngineStatus, InterruptController, Vcpu, Vm
from vmlib.cpu.engines import ENGINES, open_vm, probe
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
from vmlib.cpu.guests import Guest, Line, add_guest, load_guest
from vmlib.cpu.problems import AddProblem, add_problem
from vmlib.cpu.state import Registers, Segment, SystemRegisters, Table, VcpuState

__all__ = [
    "CAPABILITIES",
    "ENGINES",
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
    "Guest",
    "Halt",
    "Hypercall",
    "InterruptController",
    "InterruptWindow",
    "IoIn",
    "IoOut",
    "Kicked",
    "Line",
    "Mmio",
    "MsrRead",
    "MsrWrite",
    "Registers",
    "Segment",
    "Shutdown",
    "SystemRegisters",
    "Table",
    "Vcpu",
    "VcpuState",
    "Vm",
    "add_guest",
    "add_problem",
    "load_guest",
    "open_vm",
    "probe",
]
