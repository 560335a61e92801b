"""What a processor has room for: values that no register, port or table can hold are refused.

`BadInput` names the field and the rule before an engine sees the value. Widths are x86-64's (Intel
SDM vol. 1, 3.4, and vol. 3A, 2.4 and 2.5). Left out: whether values make sense together, which an
engine finds out when it is given them.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from operator import index
from typing import Any

from vmlib.cpu.state import (
    REGISTER_NAMES,
    XSAVE_SIZE,
    Registers,
    Segment,
    SystemRegisters,
    Table,
    VcpuState,
)
from vmlib.errors import BadInput
from vmlib.given import check_fields, check_one, shown
from vmlib.numbers import whole
from vmlib.units import PAGE_SIZE

_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_PORTS, _MEMORY = 1 << 16, 1 << 52


def check_vector(vector: int) -> None:
    """Refuse vectors that no external interrupt has (Intel SDM vol. 3A, 6.2: 0 to 255)."""
    if isinstance(vector, bool) or not isinstance(vector, int) or not 0 <= vector <= 255:
        raise BadInput("vector", f"is a number from 0 to 255, not {vector!r}")


def check_ports(first: int, count: int) -> None:
    """Refuse ranges that the 64 KiB of I/O space do not have."""
    first, count = whole(first, "first"), whole(count, "count")
    if first < 0 or count < 1 or first + count > _PORTS:
        raise BadInput("ports", f"{first:#x}+{count} is not within 0x0..0xffff")


def check_pages(gpa: int, size: int, ram_size: int) -> None:
    """Refuse what is not whole pages outside RAM."""
    gpa, size = whole(gpa, "gpa", 0, _MEMORY - 1), whole(size, "size", 1, _MEMORY - 1)
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        raise BadInput("gpa, size", f"must be whole pages of {PAGE_SIZE} bytes")
    if gpa < ram_size:
        raise BadInput("gpa", f"{gpa:#x} lies in RAM, which ends at {ram_size:#x}")
    if gpa + size > _MEMORY:
        raise BadInput("size", f"{size:#x} from {gpa:#x} on goes beyond the address space")


def check_handlers(read: Callable[..., Any], write: Callable[..., Any]) -> None:
    """Refuse what cannot be called when the guest comes."""
    for name, handler in (("read", read), ("write", write)):
        if not callable(handler):
            raise BadInput(name, f"is {shown(handler)}; it must be a function")


def check_doorbell(address: int, size: int, mmio: bool, match: int | None, ram_size: int) -> None:
    """Refuse a doorbell that no write can ring: `size` in bytes, `match` the value it waits for."""
    check_one(mmio, bool, "mmio")
    address, size = whole(address, "address"), whole(size, "size")
    if size not in ((1, 2, 4, 8) if mmio else (1, 2, 4)):
        raise BadInput("size", f"{size} is no width of an {'MMIO' if mmio else 'OUT'} write")
    if not 0 <= address <= (_MEMORY if mmio else _PORTS) - size:
        raise BadInput("address", f"{address:#x} is outside the address space")
    if mmio and address < ram_size:
        raise BadInput("address", f"{address:#x} lies in RAM, where a write does not exit")
    if match is not None and not 0 <= whole(match, "match") < 1 << 8 * size:
        raise BadInput("match", f"{match:#x} does not fit {size} byte(s)")


def distinct_addresses(given: Iterable[int]) -> tuple[int, ...]:
    """Return breakpoints, each once; refuse what is no linear address, and more than four."""
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise BadInput("breakpoints", f"is {shown(given)}; it must be a list of addresses")
    addresses = tuple(dict.fromkeys(_check("breakpoints", one, 64) for one in given))
    if len(addresses) > 4:
        raise BadInput("breakpoints", f"x86 has four address registers, not {len(addresses)}")
    return addresses


def check_registers(registers: Registers) -> None:
    """Refuse general registers that are not 64 bits without a sign."""
    check_one(registers, Registers, "registers")
    for name in REGISTER_NAMES:
        _check(name, getattr(registers, name), 64)


def check_system(system: SystemRegisters) -> None:
    """Refuse selectors, hidden parts, tables and control registers wider than they are."""
    check_one(system, SystemRegisters, "system")
    for one in fields(system):
        value = getattr(system, one.name)
        if isinstance(one.default, Segment | Table):
            check_one(value, type(one.default), one.name)
        if isinstance(value, Segment):
            _check(f"{one.name}.selector", value.selector, 16)
            _check(f"{one.name}.base", value.base, 64)
            _check(f"{one.name}.limit", value.limit, 32)
            _check(f"{one.name}.attributes", value.attributes, 16)
        elif isinstance(value, Table):
            _check(f"{one.name}.base", value.base, 64)
            _check(f"{one.name}.limit", value.limit, 16)
        else:
            _check(one.name, value, 4 if one.name == "cr8" else 64)


def check_state(state: VcpuState) -> None:
    """Refuse a state with a part that does not fit its place."""
    check_one(state, VcpuState, "state")
    check_fields(state)
    check_registers(state.registers)
    check_system(state.system)
    if len(state.xsave) != XSAVE_SIZE:
        raise BadInput("xsave", f"has {XSAVE_SIZE} bytes, not {len(state.xsave)}")
    if len(state.debug) != len(_DEBUG):
        raise BadInput("debug", f"is DR0 to DR3, DR6 and DR7, not {len(state.debug)} values")
    for name, value in zip(_DEBUG, state.debug, strict=True):
        _check(name, value, 64)
    for number, value in state.msrs:
        _check("msrs", number, 32)
        _check(f"MSR {number:#x}", value, 64)
    if state.interrupt is not None:
        check_vector(state.interrupt)


def _check(name: str, value: int, bits: int) -> int:
    try:
        number = index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise BadInput(name, f"has {bits} bits, from 0 on; {value!r} does not fit")
    return number
