"""Why a walk ended as it did: the one bit that stopped it, and in which entry.

A fault tells the guest's kernel an error code, and an exit tells the hypervisor a qualification;
neither says which entry was to blame. Whoever debugs page tables has to find it, and does what is
done here: look through the entries of the walk for the first that breaks the rule. Where several
are broken the first in this order is named: present, reserved, US, RW, NX.

Turning the bit that is named mends the walk, or lets it come to its next fault; a test does it.
Intel SDM vol. 3A, 4.6 and 4.7; vol. 3C, 29.3.3; AMD APM vol. 2, 15.25.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vmlib.memory.paging import (
    ERROR_P,
    ERROR_PK,
    ERROR_RSVD,
    NAMES,
    NX,
    PS,
    RW,
    US,
    AccessRules,
    Level,
    P,
)
from vmlib.memory.second_stage import (
    BAD_TYPES,
    EPT_TYPE_SHIFT,
    NEED,
    Ept,
    SecondStage,
    SecondStageExit,
    table_access,
)
from vmlib.memory.walk import Fault

_DOES = {"read": "reads", "write": "writes", "fetch": "fetches"}


@dataclass(frozen=True, slots=True)
class Cause:
    """The bit that stopped a walk."""

    step: int
    """Which of the entries looked at, from 0; -1 where no entry is to blame."""
    bit: str
    """P, RW, US, NX, R, W, X, type, key, or "bit 51"."""
    value: int
    says: str
    """A clause to follow a colon, without a full stop."""


def page_fault_cause(
    passed: Sequence[tuple[Level, int]], fault: Fault, rules: AccessRules, whose: str = ""
) -> Cause:
    """Return the cause of a page fault; `passed` holds level and entry, from the root down.

    `whose` goes before the names of entries: "EPT ", or nothing for the guest's own.
    """
    last = len(passed) - 1
    level, entry = passed[last]
    if not fault.error_code & ERROR_P:
        return Cause(last, "P", 0, f"P is 0 in the {whose}{level.name}")
    if fault.error_code & ERROR_RSVD:
        fixed = level.leaf_fixed if entry & level.leaf else level.fixed
        bit = _bit_name(entry & fixed & ~P)
        return Cause(last, bit, 1, f"{bit} is reserved in this {whose}{level.name}, and it is 1")
    if fault.error_code & ERROR_PK:
        return Cause(last, "key", 1, "the page's protection key is shut")
    for right, name, what in (
        (US, "US", "the access is a user's"),
        (RW, "RW", "the access writes"),
    ):
        for i, (level, entry) in enumerate(passed):
            if rules.needs & right and not (entry | level.grants) & right:
                return Cause(i, name, 0, f"{name} is 0 in the {whose}{level.name}, and {what}")
    for i, (level, entry) in enumerate(passed):
        if rules.bars & entry & NX:
            says = f"NX is 1 in the {whose}{level.name}, and the access fetches"
            return Cause(i, "NX", 1, says)
    name = "SMEP" if rules.error_code & 1 << 4 else "SMAP"
    return Cause(last, "US", 1, f"US is 1 in every entry, and {name} keeps the kernel out")


def exit_cause(
    second: SecondStage, passed: Sequence[tuple[int, int]], left: SecondStageExit, access: str,
    table: bool,
) -> Cause:  # fmt: skip
    """Return the cause of an exit of the second stage; `passed` holds level number and entry.

    `access` is what the guest does to its data; `table` marks that it came from a guest's table.
    """
    if not passed:
        return Cause(-1, "GPA", 1, "the address has more bits than the second stage translates")
    done = table_access(second) if table else access
    if not isinstance(second, Ept):
        mode = second.mode
        levels = [(mode.levels[second.levels - number], entry) for number, entry in passed]
        rules = second.rules(done)  # type: ignore[arg-type]
        code = left.qualification & 0xFFFF_FFFF
        return page_fault_cause(levels, Fault(14, code, left.level), rules, "nested ")
    last = len(passed) - 1
    number, entry = passed[last]
    name = f"EPT {NAMES[number]}"
    granted = entry & 7
    if left.kind == "misconfiguration":
        leaf = number == 1 or (number <= 3 and bool(entry & PS))
        if granted & 3 == 2:
            return Cause(last, "R", 0, f"the {name} says writable and not readable")
        if granted == 4 and not second.execute_only:
            return Cause(last, "R", 0, f"the {name} says executable only, which this CPU has not")
        if reserved := entry & second.reserved(number, leaf):
            bit = _bit_name(reserved)
            return Cause(last, bit, 1, f"{bit} is reserved in this {name}, and it is 1")
        kind = entry >> EPT_TYPE_SHIFT & 7
        assert BAD_TYPES >> kind & 1
        return Cause(last, "type", kind, f"memory type {kind} in the {name} means nothing")
    if not granted:
        return Cause(last, "R", 0, f"R, W and X are 0 in the {name}: nothing is there")
    bit = {1: "R", 2: "W", 4: "X"}[NEED[done]]
    for i, (number, entry) in enumerate(passed):
        if not entry & NEED[done]:
            who = "the walk of a guest's table" if table else "the access"
            says = f"{bit} is 0 in the EPT {NAMES[number]}, and {who} {_DOES[done]}"
            return Cause(i, bit, 0, says)
    raise AssertionError(left)


def _bit_name(bits: int) -> str:
    """Return the name of the lowest of some reserved bits."""
    number = (bits & -bits).bit_length() - 1
    return "NX" if number == 63 else f"bit {number}"
