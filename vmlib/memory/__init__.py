"""The memory room: guest RAM, and the walk from a guest's address to it.

`ram.py` and `sparse.py` hold memory, `slots.py` says where it is. `paging.py` is the format of
tables, `tables.py` builds them, `walk.py` walks, `many.py` by the array; `second_stage.py`,
`nested.py` and `nested_many.py` (quick where `usual.py` fits) do both stages. `four*.py` follow one
address through four spaces, `walk_*.py` record and explain walks, `latency.py` measures what a miss
costs. `shadow` and `caches` have packages of their own.

Sections of the Intel SDM are counted as in its editions of 2023: paging is chapter 4 of volume 3A,
EPT chapter 29 of 3C. (Newer ones have them as 5 and 31.) AMD's APM, volume 2, is cited as it counts
since it has 5-level paging.
"""

from vmlib.memory.caches.mmu import TlbCounters
from vmlib.memory.caches.problems import TlbProblem, tlb_problem
from vmlib.memory.caches.svm_mmu import SvmMmu
from vmlib.memory.caches.tlb import SPLIT, UNIFIED, Mapping, Tag, TlbArray, TlbShape
from vmlib.memory.caches.vmx_mmu import CachedMmu
from vmlib.memory.caches.walk import CachedWalk, Shortcut
from vmlib.memory.four import (
    FourAddresses,
    HostAddress,
    four_addresses,
    host_address,
)
from vmlib.memory.four_example import (
    HostPages,
    four_controls,
    four_rulers,
    four_slots,
    four_tables,
    host_pages,
    record_four_example,
)
from vmlib.memory.four_problems import FourProblem, four_problem
from vmlib.memory.four_trace import Rulers, record_four, rulers_of
from vmlib.memory.four_trace import opening as four_opening
from vmlib.memory.latency import LatencyCurve, LatencyPoint, latency_curve
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
from vmlib.memory.shadow.guest import NESTED, ShadowGuest
from vmlib.memory.shadow.nested_pager import NestedPager
from vmlib.memory.shadow.pager import ShadowPager
from vmlib.memory.shadow.problems import ShadowProblem, shadow_problem
from vmlib.memory.shadow.strategy import (
    KVM,
    OUT_OF_SYNC,
    TRAPS,
    WRITE_PROTECT,
    ShadowAccess,
    Strategy,
)
from vmlib.memory.shadow.trace import batch, record_shadow
from vmlib.memory.slots import MemorySlots, Slot
from vmlib.memory.sparse import SparseMemory
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
from vmlib.memory.walk_example import example_controls, example_host, record_example
from vmlib.memory.walk_problems import WalkProblem, walk_problem
from vmlib.memory.walk_trace import opening as walk_opening
from vmlib.memory.walk_trace import record_walk, record_walk_nested

__all__ = [
    "KVM",
    "NESTED",
    "OUTSIDE_RAM",
    "OUT_OF_SYNC",
    "SPLIT",
    "TRAPS",
    "UNIFIED",
    "WRITE_PROTECT",
    "Access",
    "AccessRules",
    "CachedMmu",
    "CachedWalk",
    "Ept",
    "Fault",
    "FourAddresses",
    "FourProblem",
    "GuestRam",
    "HostAddress",
    "HostPages",
    "LatencyCurve",
    "LatencyPoint",
    "Level",
    "Map",
    "Mapping",
    "MemorySlots",
    "NestedMany",
    "NestedPager",
    "NestedStep",
    "NestedWalk",
    "Npt",
    "PagingMode",
    "Rulers",
    "SecondStage",
    "SecondStageExit",
    "ShadowAccess",
    "ShadowGuest",
    "ShadowPager",
    "ShadowProblem",
    "Shortcut",
    "Slot",
    "SparseMemory",
    "Strategy",
    "SvmMmu",
    "TableMemory",
    "TableOutsideRam",
    "Tables",
    "Tag",
    "TlbArray",
    "TlbCounters",
    "TlbProblem",
    "TlbShape",
    "Translation",
    "Walk",
    "WalkMany",
    "WalkProblem",
    "WalkStep",
    "WordMemory",
    "access_rules",
    "batch",
    "build_tables",
    "example_controls",
    "example_host",
    "flag_names",
    "four_addresses",
    "four_controls",
    "four_opening",
    "four_problem",
    "four_rulers",
    "four_slots",
    "four_tables",
    "host_address",
    "host_pages",
    "latency_curve",
    "paging_mode",
    "record_example",
    "record_four",
    "record_four_example",
    "record_shadow",
    "record_walk",
    "record_walk_nested",
    "rulers_of",
    "shadow_problem",
    "tlb_problem",
    "translate",
    "translate_gpa",
    "walk",
    "walk_many",
    "walk_nested",
    "walk_nested_many",
    "walk_opening",
    "walk_problem",
]
