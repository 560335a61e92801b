"""The CPU room: vCPUs on an emulator or on real KVM, and the exits they make.

`open_vm("unicorn")` needs no privilege; `open_vm("kvm")` needs a `/dev/kvm` that opens. Both give
the same exits for the same guest.
"""

from vmlib.cpu.budget import Budget
from vmlib.cpu.engine import EngineStatus, Registers, Vcpu, Vm
from vmlib.cpu.engines import ENGINES, open_vm, probe
from vmlib.cpu.exits import (
    BudgetSpent,
    EngineFailure,
    Exit,
    Halt,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    Shutdown,
)
from vmlib.cpu.guests import Guest, Line, add_guest, load_guest
from vmlib.cpu.problems import AddProblem, add_problem

__all__ = [
    "ENGINES",
    "AddProblem",
    "Budget",
    "BudgetSpent",
    "EngineFailure",
    "EngineStatus",
    "Exit",
    "Guest",
    "Halt",
    "IoIn",
    "IoOut",
    "Kicked",
    "Line",
    "Mmio",
    "Registers",
    "Shutdown",
    "Vcpu",
    "Vm",
    "add_guest",
    "add_problem",
    "load_guest",
    "open_vm",
    "probe",
]
