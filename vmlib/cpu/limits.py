"""What a processor has room for: values that no register, port or table can hold are refused.

`BadInput` names the field and the rule before an engine sees the value. Widths are x86-64's (Intel
SDM vol. 1, 3.4, and vol. 3A, 2.4 and 2.5). Left out: whether values make sense together, which an
engine finds out when it is given them.
"""

from dataclasses import fields
from operator import index

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

_DEBUG = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_PORTS, _MEMORY = 1 << 16, 1 << 52


def check_vector(vector: int) -> None:
    """Refuse vectors that no external interrupt has (Intel SDM vol. 3A, 7.2: 0 to 255)."""
    if isinstance(vector, bool) or not isinstance(vector, int) or not 0 <= vector <= 255:
        raise BadInput("vector", f"is a number from 0 to 255, not {vector!r}")


def check_ports(first: int, count: int) -> None:
    """Refuse ranges that the 64 KiB of I/O space do not have."""
    if first < 0 or count < 1 or first + count > _PORTS:
        raise BadInput("ports", f"{first:#x}+{count} is not within 0x0..0xffff")


def check_doorbell(address: int, size: int, mmio: bool, match: int | None, ram_size: int) -> None:
    """Refuse a doorbell that no write can ring: `size` in bytes, `match` the value it waits for."""
    if size not in ((1, 2, 4, 8) if mmio else (1, 2, 4)):
        raise BadInput("size", f"{size} is no width of an {'MMIO' if mmio else 'OUT'} write")
    if not 0 <= address <= (_MEMORY if mmio else _PORTS) - size:
        raise BadInput("address", f"{address:#x} is outside the address space")
    if mmio and address < ram_size:
        raise BadInput("address", f"{address:#x} lies in RAM, where a write does not exit")
    if match is not None and not 0 <= match < 1 << 8 * size:
        raise BadInput("match", f"{match:#x} does not fit {size} byte(s)")


def check_addresses(addresses: tuple[int, ...]) -> None:
    """Refuse breakpoints that are no linear addresses, or more of them than DR0 to DR3 hold."""
    if len(addresses) > 4:
        raise BadInput("breakpoints", f"x86 has four address registers, not {len(addresses)}")
    for address in addresses:
        _check("breakpoints", address, 64)


def check_registers(registers: Registers) -> None:
    """Refuse general registers that are not 64 bits without a sign."""
    for name in REGISTER_NAMES:
        _check(name, getattr(registers, name), 64)


def check_system(system: SystemRegisters) -> None:
    """Refuse selectors, hidden parts, tables and control registers wider than they are."""
    for one in fields(system):
        value = getattr(system, one.name)
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
    for name in ("shadow", "halted"):
        if (flag := getattr(state, name)) not in (False, True):
            raise BadInput(name, f"is True or False, not {flag!r}")
    if state.interrupt is not None:
        check_vector(state.interrupt)


def _check(name: str, value: int, bits: int) -> None:
    try:
        fits = 0 <= index(value) < 1 << bits
    except TypeError:
        fits = False
    if not fits:
        raise BadInput(name, f"has {bits} bits, from 0 on; {value!r} does not fit")
