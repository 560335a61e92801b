"""The table of engines: which there are, which work here, and how to open one.

Engines are imported when they are opened, so that the book works without Unicorn and on systems
that have no `/dev/kvm` at all.
"""

import importlib
import os
import platform
from types import ModuleType
from typing import TYPE_CHECKING

from vmlib.cpu.engine import EngineStatus, Vm
from vmlib.cpu.kvm.oddities import kvm_modules
from vmlib.errors import BadInput, HostUnavailable

if TYPE_CHECKING:
    from vmlib.cpu.unicorn.svm import SvmHost

ENGINES = ("unicorn", "kvm")


def open_vm(engine: str = "unicorn", ram: int | str = "64K", *, parallel: bool = False) -> Vm:
    """Create a VM with `ram` bytes (or ``"64K"``) of guest RAM on an engine.

    `parallel` lets the emulator's vCPUs run at the same moment, without the lock that makes locked
    instructions atomic between them; KVM's always do, and need none.
    """
    if engine == "unicorn":
        vm: Vm = _emulator("vm").UnicornVm(ram, parallel)
    elif engine == "kvm":
        vm = _kvm().KvmVm(ram)
    else:
        raise BadInput("engine", f"{engine!r} is unknown; there are {' and '.join(ENGINES)}")
    return vm


def open_svm(ram: int | str = "4M") -> "SvmHost":
    """Create a host with an emulated AMD-V and `ram` bytes (or ``"4M"``) of physical memory.

    It needs the emulator (`HostUnavailable` without it); see `vmlib.cpu.unicorn.svm`.
    """
    host: SvmHost = _emulator("svm").SvmHost(ram)
    return host


def probe(engine: str) -> EngineStatus:
    """Say whether an engine can be opened on this host, and if not, why and what helps."""
    try:
        if engine == "unicorn":
            return EngineStatus(engine, True, f"Unicorn {_emulator('vm').VERSION}")
        os.close(_kvm().open_device())
        return EngineStatus(engine, True, f"Linux {platform.release()} ({kvm_modules()})")
    except HostUnavailable as error:
        return EngineStatus(engine, False, "", error.reason, error.fix)


def _emulator(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"vmlib.cpu.unicorn.{module}")
    except ImportError as error:
        raise HostUnavailable(
            f"Unicorn is not installed ({error.name})", "pip install 'vmlib[emulator]'"
        ) from error


def _kvm() -> ModuleType:
    try:
        from vmlib.cpu.kvm import vm as kvm
    except (ImportError, AttributeError) as error:
        raise HostUnavailable(
            f"this system has no KVM: it is {platform.system()}", "Use engine='unicorn'"
        ) from error
    return kvm
