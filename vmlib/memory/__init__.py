"""The memory room: guest RAM, and the walk from a guest's address to it."""

from vmlib.memory.four import (
    FourAddresses,
    HostAddress,
    four_addresses,
    host_address,
)
from vmlib.memory.many import OUTSIDE_RAM, WalkMany, WordMemory, walk_many
from vmlib.memory.nested import NestedStep, NestedWalk, walk_nested
from vmlib.memory.nested_many import NestedMany, walk_nested_many
from vmlib.memory.paging import (
    Access,
    AccessRules,
    Level,
    PagingMode,
    access_rules,
    flag_names,
    paging_mode,
)
from vmlib.memory.ram import GuestRam
from vmlib.memory.second_stage import (
    Ept,
    Npt,
    SecondStage,
    SecondStageExit,
    Translation,
    translate_gpa,
)
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.tables import Map, Tables, build_tables
from vmlib.memory.walk import (
    Fault,
    TableMemory,
    TableOutsideRam,
    Walk,
    WalkStep,
    translate,
    walk,
)

__all__ = [
    "OUTSIDE_RAM",
    "Access",
    "AccessRules",
    "Ept",
    "Fault",
    "FourAddresses",
    "GuestRam",
    "HostAddress",
    "Level",
    "Map",
    "MemorySlots",
    "NestedMany",
    "NestedStep",
    "NestedWalk",
    "Npt",
    "PagingMode",
    "SecondStage",
    "SecondStageExit",
    "Slot",
    "TableMemory",
    "TableOutsideRam",
    "Tables",
    "Translation",
    "Walk",
    "WalkMany",
    "WalkStep",
    "WordMemory",
    "access_rules",
    "build_tables",
    "flag_names",
    "four_addresses",
    "host_address",
    "paging_mode",
    "translate",
    "translate_gpa",
    "walk",
    "walk_many",
    "walk_nested",
    "walk_nested_many",
]
