"""What one write costs on the device: data, journal, and the bytes written twice.

BlueStore writes big data once, straight to free space, and commits by a transaction in RocksDB's
write-ahead log. Data below `prefer_deferred` goes into that log first and to its place later: a
small write is acknowledged after one sequential write and costs two. FileStore, the backend of the
talk's time, wrote everything twice: journal, then file.

Sources: Ceph doc/rados/configuration/storage-devices.rst ("no large double-writes"),
doc/dev/bluestore.rst ("Small write strategies"); options bluestore_prefer_deferred_size_hdd
(64 KiB) and _ssd (0), bluestore_min_alloc_size (4 KiB), crc32c: 4 bytes for each 4 KiB.
`kv` is measured, not derived: 1,024 random 4 KiB writes to an RBD image with three copies (Ceph
16.2.15, OSDs of class hdd) put 5.25 bytes into the WAL for each byte of the client, which is 1.75
a copy, 0.75 of it (3 KiB) not data.

Left out: compaction of RocksDB, allocator and onode caches, compression, the reading of what a
small write does not cover, and whatever an RBD client writes beside its data.
"""

from dataclasses import dataclass

from vmlib.given import check_fields, names_bad_input
from vmlib.numbers import whole
from vmlib.units import KIB


@dataclass(frozen=True, slots=True)
class Backend:
    """The parameters of an object store; sizes in bytes."""

    name: str = "bluestore"
    prefer_deferred: int = 64 * KIB
    min_alloc: int = 4 * KIB
    csum_block: int = 4 * KIB
    kv: int = 3 * KIB

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("prefer_deferred", 0), ("min_alloc", 1), ("csum_block", 0), ("kv", 0)):
            whole(getattr(self, name), name, least)


BLUESTORE_HDD = Backend()
BLUESTORE_SSD = Backend(prefer_deferred=0)
FILESTORE = Backend("filestore", 0, 4 * KIB, 0, 4 * KIB)


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """Bytes written: `data` once to its place, `wal` to the log, `deferred` from log to place."""

    data: int = 0
    wal: int = 0
    deferred: int = 0

    @property
    def total(self) -> int:
        """All bytes that reach a device."""
        return self.data + self.wal + self.deferred

    def __add__(self, other: "DeviceBytes") -> "DeviceBytes":
        return DeviceBytes(
            self.data + other.data, self.wal + other.wal, self.deferred + other.deferred
        )

    def __mul__(self, times: int) -> "DeviceBytes":
        return DeviceBytes(self.data * times, self.wal * times, self.deferred * times)


@names_bad_input
def write_cost(length: int, backend: Backend = BLUESTORE_HDD) -> DeviceBytes:
    """Return what one transaction that writes `length` bytes costs on one device."""
    whole(length, "length", 0)
    filled = -(-length // backend.min_alloc) * backend.min_alloc
    if backend.name == "filestore":
        return DeviceBytes(data=length, wal=length + backend.kv)
    csum = 4 * (filled // backend.csum_block) if backend.csum_block else 0
    if length < backend.prefer_deferred:
        return DeviceBytes(wal=length + backend.kv + csum, deferred=filled)
    return DeviceBytes(data=filled, wal=backend.kv + csum)


@dataclass(frozen=True, slots=True)
class Amplification:
    """Device bytes of one client write for each byte of the client, over all copies."""

    data: float
    wal: float
    deferred: float

    @property
    def total(self) -> float:
        """All device bytes for each byte of the client."""
        return self.data + self.wal + self.deferred


@names_bad_input
def amplification(
    length: int, *, copies: int = 3, k: int = 0, m: int = 0, backend: Backend = BLUESTORE_HDD
) -> Amplification:
    """Return the write amplification of client writes of `length` bytes.

    Replicated with `copies`, or erasure-coded when k is given (full stripes: k divides the write).
    """
    whole(length, "length", 1)
    whole(copies, "copies", 1)
    whole(k, "k", 0)
    whole(m, "m", 0)
    each, shards = (-(-length // k), k + m) if k else (length, copies)
    cost = write_cost(each, backend) * shards
    return Amplification(cost.data / length, cost.wal / length, cost.deferred / length)
