"""An OSD's object store: transactions go through a journal in order, and a crash keeps only those.

What a copy of a PG does is done in memory at once and handed to the journal; it counts when the
journal has it (`on_commit`). A crash throws memory away; a restart reads what was committed.
Commit time is the disk's latency plus bytes over bandwidth, one transaction after the other; a
slow disk multiplies it. The bytes are those of `vmlib.ceph.rados.device`.

Reads that clients make are answered from the cache; recovery reads the disk.

Left out: what is inside the journal (a transaction is there or not, never torn) and damage at
rest: no scrub, no checksum error.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmlib.ceph.rados.device import BLUESTORE_HDD, Backend, DeviceBytes, write_cost
from vmlib.ceph.rados.engine import Engine
from vmlib.ceph.rados.pglog import ZERO, PgId, PgMeta, Version

Key = tuple[PgId, int]
"""A copy of a PG on one OSD: the PG and the shard, -1 in a replicated pool."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, or a chunk of one, as one OSD holds it. `length` is the whole object's."""

    version: Version
    data: bytes
    length: int


@dataclass
class Copy:
    """One copy of a PG. `undo` has what later entries replaced, so that they can be rolled back."""

    meta: PgMeta = field(default_factory=PgMeta)
    objects: dict[str, Stored] = field(default_factory=dict)
    undo: dict[Version, tuple[str, Stored | None]] = field(default_factory=dict)

    def clone(self) -> "Copy":
        """Return a copy that shares nothing that can change."""
        return Copy(self.meta, dict(self.objects), dict(self.undo))

    def held(self, name: str, version: Version) -> Stored | None:
        """Return an object in this version: as it is, or as entries that can be undone found it."""
        now = self.objects.get(name)
        before = [old for other, old in self.undo.values() if other == name]
        return next((one for one in (now, *before) if one and one.version == version), None)

    def version_of(self, name: str) -> Version:
        """Return the version held of an object, ZERO if there is none."""
        held = self.objects.get(name)
        return held.version if held else ZERO


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a copy writes in one piece: its meta data, objects put (None: removed), undo records."""

    meta: PgMeta
    puts: Mapping[str, Stored | None] = field(default_factory=dict)
    undo: Mapping[Version, tuple[str, Stored | None]] = field(default_factory=dict)
    forget: Version = ZERO
    """Undo records up to this version are no longer needed."""
    written: int | None = None
    """Bytes that the write touches, where that is not all of the objects put."""

    def apply(self, copy: Copy) -> None:
        """Change a copy as the transaction says."""
        copy.meta = self.meta
        for name, put in self.puts.items():
            if put is None:
                copy.objects.pop(name, None)
            else:
                copy.objects[name] = put
        copy.undo.update(self.undo)
        for version in [v for v in copy.undo if v <= self.forget]:
            del copy.undo[version]
        head = self.meta.log.head
        for version in [v for v in copy.undo if v > head]:
            del copy.undo[version]


class Store:
    """The disk of one OSD. It outlives its OSD's crashes."""

    def __init__(
        self,
        engine: Engine,
        *,
        latency: float = 0.005,
        bandwidth: float = 200e6,
        backend: Backend = BLUESTORE_HDD,
    ) -> None:
        self._engine = engine
        self.latency, self.bandwidth, self.backend = latency, bandwidth, backend
        self.slow = 1.0
        self.written = DeviceBytes()
        self._on_disk: dict[Key, Copy] = {}
        self._queue: deque[tuple[Key, Transaction, DeviceBytes, Callable[[], None]]] = deque()
        self._life = 0

    def mount(self) -> dict[Key, Copy]:
        """Return the copies as the disk has them, for a process that starts."""
        return {key: copy.clone() for key, copy in self._on_disk.items()}

    def crash(self) -> None:
        """Lose every transaction that is not committed."""
        self._life += 1
        self._queue.clear()

    def read_time(self, size: int) -> float:
        """Return how long reading an object takes (s); reads do not queue behind the journal."""
        return (self.latency + size / self.bandwidth) * self.slow

    def submit(self, key: Key, txn: Transaction, on_commit: Callable[[], None]) -> None:
        """Journal a transaction; call back when it would survive a crash. Order is kept."""
        size = txn.written
        if size is None:
            size = sum(len(put.data) for put in txn.puts.values() if put)
        self._queue.append((key, txn, write_cost(size, self.backend), on_commit))
        if len(self._queue) == 1:
            self._write_first()

    def _write_first(self) -> None:
        """Write the transaction at the head of the queue, at the speed that the disk has now."""
        key, txn, cost, on_commit = self._queue[0]
        life = self._life

        def commit() -> None:
            if life != self._life:
                return
            self._queue.popleft()
            txn.apply(self._on_disk.setdefault(key, Copy()))
            self.written += cost
            if self._queue:
                self._write_first()
            on_commit()

        self._engine.at(
            (self.latency + (cost.data + cost.wal) / self.bandwidth) * self.slow, commit
        )
