"""What the nodes of the RADOS model say to each other.

The names follow Ceph's (`src/messages/`): ClientOp is MOSDOp, RepOp MOSDRepOp, Query MOSDPGQuery,
Notify MOSDPGNotify, LogReply and Activate MOSDPGLog, Lease MOSDPGLease, Boot MOSDBoot, Alive
MOSDAlive, Failure MOSDFailure, SetTemp MOSDPGTemp, MapShare MOSDMap, and Collect to Commit are the
phases of MMonPaxos. `payload` is the object data a message carries, in bytes; headers count
nothing.

A message about a PG names the shard it is for and the shard it comes from (-1 and -1 in a
replicated pool) and the epoch in which it was sent: a receiver drops what belongs to an interval
that has ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vmlib.ceph.rados.clustermap import ClusterMap
from vmlib.ceph.rados.pglog import LogEntry, Peer, PgId, PgInfo, PgMeta, ReqId, Version
from vmlib.ceph.rados.store import Stored


@dataclass(frozen=True, slots=True)
class MapShare:
    """Epochs that the receiver may lack, oldest first."""

    maps: tuple[ClusterMap, ...]


@dataclass(frozen=True, slots=True)
class GetMaps:
    """Asks a monitor or an OSD for the epochs after `have`, and subscribes an OSD at a monitor."""

    have: int


@dataclass(frozen=True, slots=True)
class ClientOp:
    """Read (`data` is None) or write an object; at `offset`, or all of it where that is None."""

    reqid: ReqId
    pg: PgId
    name: str
    data: bytes | None
    epoch: int
    offset: int | None = None
    replica_ok: bool = False

    @property
    def payload(self) -> int:
        """Bytes of object data."""
        return len(self.data or b"")


@dataclass(frozen=True, slots=True)
class ClientReply:
    """Done; or `again`: this replica may not serve the read, ask the primary (EAGAIN)."""

    reqid: ReqId
    data: bytes | None = None
    again: bool = False

    @property
    def payload(self) -> int:
        """Bytes of object data."""
        return len(self.data or b"")


@dataclass(frozen=True, slots=True)
class Ping:
    """A heartbeat, or its answer."""

    answer: bool = False


@dataclass(frozen=True, slots=True)
class PgMessage:
    """What all messages between copies of a PG carry: target, source, and the sender's epoch."""

    pg: PgId
    to: int
    source: Peer
    epoch: int


@dataclass(frozen=True, slots=True)
class Query(PgMessage):
    """The primary asks a copy for its info, or for all of its log and missing set."""

    full: bool = False


@dataclass(frozen=True, slots=True)
class Notify(PgMessage):
    """A copy's info; `full` also has log and missing set."""

    info: PgInfo
    full: PgMeta | None = None


@dataclass(frozen=True, slots=True)
class Activate(PgMessage):
    """The authoritative history, and the start of a new interval in which all will write.

    `backfill`: the receiver's own log does not reach; it takes this one and starts from nothing.
    """

    meta: PgMeta
    lease: float
    backfill: bool


@dataclass(frozen=True, slots=True)
class Activated(PgMessage):
    """The copy has it on disk. `holds`: versions of its objects, if it is to be backfilled."""

    missing: tuple[tuple[str, Version], ...]
    holds: tuple[tuple[str, Version], ...] = ()


@dataclass(frozen=True, slots=True)
class History(PgMessage):
    """What all members have reached: last epoch started, last epoch clean."""

    les: int
    clean: int


@dataclass(frozen=True, slots=True)
class RepOp(PgMessage):
    """One write for one copy. `put` is None where a backfill has not come to that object.

    `put` has the whole object after the write; only the `written` bytes of it travel.
    """

    entry: LogEntry
    put: Stored | None
    written: int
    committed: Version
    trim: Version

    @property
    def payload(self) -> int:
        """Bytes of object data."""
        return self.written if self.put else 0


@dataclass(frozen=True, slots=True)
class RepAck(PgMessage):
    """The copy has this version on disk."""

    version: Version


@dataclass(frozen=True, slots=True)
class Committed(PgMessage):
    """Every copy has everything up to this version on disk."""

    version: Version


@dataclass(frozen=True, slots=True)
class Fetch(PgMessage):
    """Asks a copy for an object or a chunk in one version, for a read or for recovery."""

    name: str
    tid: int
    version: Version


@dataclass(frozen=True, slots=True)
class Fetched(PgMessage):
    """What the copy holds of it (None: not that version)."""

    name: str
    tid: int
    held: Stored | None

    @property
    def payload(self) -> int:
        """Bytes of object data."""
        return len(self.held.data) if self.held else 0


@dataclass(frozen=True, slots=True)
class Push(PgMessage):
    """Recovery: the object as it should be (None: it should not exist), and the new cursor."""

    name: str
    put: Stored | None
    version: Version
    backfilled: str | None = None

    @property
    def payload(self) -> int:
        """Bytes of object data."""
        return len(self.put.data) if self.put else 0


@dataclass(frozen=True, slots=True)
class Pushed(PgMessage):
    """The copy has the pushed object on disk."""

    name: str


@dataclass(frozen=True, slots=True)
class Lease(PgMessage):
    """Nobody will read after `bound` in this interval; the receiver may read until `until`."""

    bound: float
    until: float


@dataclass(frozen=True, slots=True)
class LeaseAck(PgMessage):
    """The copy has seen this bound."""

    bound: float


@dataclass(frozen=True, slots=True)
class Boot:
    """An OSD asks to be marked up; `nonce` tells its lives apart, later ones have larger ones."""

    osd: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An OSD has not heard from another for longer than the grace."""

    reporter: int
    target: int


@dataclass(frozen=True, slots=True)
class Change:
    """An administrator's command: fields of an OSD's state, `up` or `in_`, and their new values."""

    osd: int
    fields: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Alive:
    """A primary wants its up_thru raised before it goes active."""

    osd: int
    epoch: int


@dataclass(frozen=True, slots=True)
class SetTemp:
    """A primary wants another acting set; empty to give it back."""

    osd: int
    pg: PgId
    acting: tuple[int, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Paxos phase 1: who wants to lead asks for promises."""

    pn: int
    committed: int


@dataclass(frozen=True, slots=True)
class Last:
    """A promise, with what the candidate lacks and what was accepted but not committed."""

    pn: int
    maps: tuple[ClusterMap, ...]
    committed: int
    accepted: tuple[int, ClusterMap] | None


@dataclass(frozen=True, slots=True)
class Begin:
    """Paxos phase 2: the leader proposes the next epoch."""

    pn: int
    map: ClusterMap


@dataclass(frozen=True, slots=True)
class Accept:
    """The proposal is on this monitor's disk."""

    pn: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A majority accepted these epochs: they are law. Also the leader's sign of life."""

    pn: int
    maps: tuple[ClusterMap, ...]


@dataclass(frozen=True, slots=True)
class CommitAck:
    """How far this monitor has come."""

    pn: int
    committed: int
