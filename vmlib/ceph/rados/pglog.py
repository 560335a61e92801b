"""The PG log: what each copy of a placement group knows about its own past.

Every write gets a version (epoch, v): the map epoch in which the primary ordered it, and a number
that grows by one. A copy keeps its last writes as a log, and the objects that it knows of but does
not hold as its missing set. From the logs alone peering finds out whose history is the right one
(`find_best_info`) and what every other copy has to forget or to fetch (`merge`).

Sources: Ceph doc/dev/osd_internals/log_based_pg.rst, last_epoch_started.rst, doc/dev/peering.rst
("Authoritative History"); the order of the rules in `find_best_info` is that of
`PeeringState::find_best_info`.

Left out: deletes, snapshots, clones; entries for lost objects.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

Version = tuple[int, int]
ZERO: Version = (0, 0)
MAX_NAME = "\U0010ffff"
"""`last_backfill` of a copy that lacks nothing."""


class PgId(NamedTuple):
    """A placement group: its pool and its seed, printed as Ceph does (``1.3``)."""

    pool: int
    seed: int

    def __str__(self) -> str:
        return f"{self.pool}.{self.seed:x}"


class ReqId(NamedTuple):
    """What makes a request one and the same, however often it is sent."""

    client: str
    tid: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One write: the object's version before it was `prior` (ZERO: it did not exist)."""

    version: Version
    name: str
    prior: Version
    reqid: ReqId


@dataclass(frozen=True, slots=True)
class PgLog:
    """The entries after `tail` (exclusive), oldest first, and the requests of those cut off."""

    tail: Version = ZERO
    entries: tuple[LogEntry, ...] = ()
    dups: Mapping[ReqId, Version] = field(default_factory=dict)

    @property
    def head(self) -> Version:
        """The version of the newest entry."""
        return self.entries[-1].version if self.entries else self.tail

    def append(self, entry: LogEntry) -> "PgLog":
        """Return the log with one more entry."""
        return replace(self, entries=(*self.entries, entry))

    def trim(self, to: Version) -> "PgLog":
        """Return the log without the entries up to `to`; their requests stay known."""
        cut = [entry for entry in self.entries if entry.version <= to]
        if not cut:
            return self
        dups = {**self.dups, **{entry.reqid: entry.version for entry in cut}}
        return PgLog(cut[-1].version, self.entries[len(cut) :], dups)

    def find(self, reqid: ReqId) -> Version | None:
        """Return the version that this request was given, None if it is not known."""
        for entry in reversed(self.entries):
            if entry.reqid == reqid:
                return entry.version
        return self.dups.get(reqid)


@dataclass(frozen=True, slots=True)
class PgInfo:
    """What one copy says of itself in peering.

    `last_epoch_started` is the epoch of the last activation that this copy took part in;
    `history_les` the last one of which it knows that every member of the acting set did;
    `last_epoch_clean` the last in which nothing was missing anywhere. `readable_until_ub` is the
    time (s) until which somebody of an earlier interval may still serve reads. Objects with names
    after `last_backfill` were not copied here yet.
    """

    last_update: Version = ZERO
    log_tail: Version = ZERO
    last_backfill: str = MAX_NAME
    last_epoch_started: int = 0
    history_les: int = 0
    last_epoch_clean: int = 0
    readable_until_ub: float = 0.0

    @property
    def incomplete(self) -> bool:
        """The copy is in the middle of a backfill."""
        return self.last_backfill != MAX_NAME


@dataclass(frozen=True, slots=True)
class PgMeta:
    """All that a copy keeps on disk beside the objects."""

    info: PgInfo = PgInfo()
    log: PgLog = PgLog()
    missing: Mapping[str, Version] = field(default_factory=dict)


Peer = tuple[int, int]
"""(OSD, shard); the shard is -1 in a replicated pool."""


def find_best_info(
    infos: Mapping[Peer, PgInfo], *, erasure: bool, prefer: Peer | None = None
) -> Peer | None:
    """Return the copy whose log is authoritative, or None if no copy will do.

    A replicated pool takes the longest history, an erasure-coded one the shortest: what only
    some shards have may be too little to decode, and every acknowledged write is in all of them.
    """
    les = max((info.history_les for info in infos.values()), default=0)
    complete = {peer: info for peer, info in infos.items() if not info.incomplete}
    les = max([les, *(info.last_epoch_started for info in complete.values())])
    started = [info.last_update for info in infos.values() if info.last_epoch_started >= les]
    if not started:
        return None
    acceptable = min(started)
    best: Peer | None = None
    for peer, info in sorted(complete.items()):
        if info.last_epoch_started < les or info.last_update < acceptable:
            continue
        if best is None:
            best = peer
            continue
        other = complete[best]
        if info.last_update != other.last_update:
            if (info.last_update < other.last_update) == erasure:
                best = peer
        elif info.log_tail != other.log_tail:
            if info.log_tail < other.log_tail:
                best = peer
        elif peer == prefer:
            best = peer
    return best


@dataclass(frozen=True, slots=True)
class Merge:
    """What a copy has to do to agree with the authoritative log.

    `undo` are the divergent entries, newest first: nobody acknowledged them. `missing` is the
    missing set afterwards, `remove` the objects that only divergent writes made.
    """

    log: PgLog
    missing: Mapping[str, Version]
    undo: tuple[LogEntry, ...]
    remove: tuple[str, ...]


def overlaps(info: PgInfo, log: PgLog) -> bool:
    """Whether a copy can catch up by the log alone; if not, it takes a backfill."""
    return info.last_update >= log.tail


def merge(meta: PgMeta, auth: PgLog, *, rollback: bool) -> Merge:
    """Bring a copy's log into line with the authoritative one, which overlaps it.

    With `rollback` (erasure-coded pools) the copy can restore what a divergent write replaced; a
    replicated copy drops the object and fetches the version that it should have.
    """
    known = {entry.version for entry in auth.entries}
    common = max(
        (e.version for e in meta.log.entries if e.version in known),
        default=max(auth.tail, meta.log.tail),
    )
    divergent = [entry for entry in meta.log.entries if entry.version > common]
    missing = dict(meta.missing)
    remove: list[str] = []
    for entry in reversed(divergent):
        name = entry.name
        if name > meta.info.last_backfill:
            continue
        if name in missing:
            if entry.prior == ZERO:
                del missing[name]
            else:
                missing[name] = entry.prior
        elif not rollback and entry.prior != ZERO:
            missing[name] = entry.prior
        if entry.prior == ZERO:
            remove.append(name)
    for entry in auth.entries:
        if entry.version > common and entry.name <= meta.info.last_backfill:
            missing[entry.name] = entry.version
    gone = tuple(name for name in remove if name not in missing)
    return Merge(auth, missing, tuple(reversed(divergent)), gone)


def newest(entries: Iterable[LogEntry], name: str) -> LogEntry | None:
    """Return the newest entry that wrote the object."""
    found = None
    for entry in entries:
        if entry.name == name:
            found = entry
    return found
