"""Is a history of reads and writes one that a single register could have had?

For each object by itself (linearizability is local: Herlihy and Wing 1990, section 3.1), search
for an order of its operations that respects time and in which each read returns the last write
(Wing and Gong 1993), remembering every (operations done, value) that led nowhere (Lowe 2017).
An operation without an answer may have happened at any time after its start, or never.

The search is exponential in the number of operations under way at one time. Clients that wait
for each answer keep that number small.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf

from vmlib.ceph.rados.client import Operation
from vmlib.given import check_fields, names_bad_input


@names_bad_input
def wrong_objects(history: Iterable[Operation]) -> list[str]:
    """Return the names of objects whose operations no register explains."""
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for op in history:
        check_fields(op)
        by_name[op.name].append(op)
    return sorted(name for name, ops in by_name.items() if not linearizable(ops))


@names_bad_input
def linearizable(ops: Sequence[Operation]) -> bool:
    """Return whether one register, empty at first, can have had these operations."""
    for op in ops:
        check_fields(op)
    counted = [op for op in ops if op.kind == "write" or op.end is not None]
    counted.sort(key=lambda op: op.start)
    ends = [inf if op.end is None else op.end for op in counted]
    must = sum(1 << i for i, op in enumerate(counted) if op.end is not None)
    seen: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done & must == must:
            return True
        first_end = min(end for i, end in enumerate(ends) if not done >> i & 1)
        for i, op in enumerate(counted):
            if op.start > first_end:
                break
            if done >> i & 1 or (op.kind == "read" and op.value != value):
                continue
            after = (done | 1 << i, op.value if op.kind == "write" else value)
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return False
