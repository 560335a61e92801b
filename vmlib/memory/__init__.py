"""The memory room: guest RAM, and the walk from a guest's address to it."""

from vmlib.memory.many import OUTSIDE_RAM, WalkMany, WordMemory, walk_many
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
    "Fault",
    "GuestRam",
    "Level",
    "PagingMode",
    "TableMemory",
    "TableOutsideRam",
    "Walk",
    "WalkMany",
    "WalkStep",
    "WordMemory",
    "access_rules",
    "flag_names",
    "paging_mode",
    "translate",
    "walk",
    "walk_many",
]
