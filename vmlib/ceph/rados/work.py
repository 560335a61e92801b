"""What a primary has under way: writes that wait for disks, and reads of copies or chunks."""

from collections.abc import Callable
from dataclasses import dataclass, field

from vmlib.ceph.rados.engine import Node
from vmlib.ceph.rados.messages import ClientOp
from vmlib.ceph.rados.pglog import Peer, Version
from vmlib.ceph.rados.store import Stored


@dataclass
class InFlight:
    """A write that not every copy has on disk yet."""

    name: str
    waiting: set[Peer]
    clients: list[tuple[Node, ClientOp]]


@dataclass
class Gather:
    """A read of chunks or copies from others: `got` by shard, `ask` those not asked yet."""

    name: str
    version: Version
    need: int
    ask: list[Peer]
    done: Callable[[dict[int, Stored] | None], None]
    got: dict[int, Stored] = field(default_factory=dict)
    asked: set[Peer] = field(default_factory=set)
