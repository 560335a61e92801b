"""RADOS in motion: a write becomes three, nodes die, and nothing acknowledged is lost.

A model of the paths of a Ceph cluster on a clock of events (SimPy): monitors that agree on maps,
OSDs that peer, journal, replicate, decode and recover, clients with old maps, and faults. Start
with `Cluster`. What a placement group's copies do stands in `pg`, `peering`, `ops`, `recovery`,
and what they know in `pg_state`; what one write costs on a device in `device`; cache tiers in
`tier`.

Not a performance model: latencies are parameters, and what a real cluster takes is not claimed.
"""

from vmlib.ceph.rados import ceiling
from vmlib.ceph.rados.client import POLICIES, Client, ClientDied, Operation
from vmlib.ceph.rados.cluster import Cluster, NotDone, state
from vmlib.ceph.rados.clustermap import (
    NONE,
    ClusterMap,
    OsdState,
    Placed,
    Placement,
    Pool,
    RawPlacement,
    rendezvous,
)
from vmlib.ceph.rados.device import (
    BLUESTORE_HDD,
    BLUESTORE_SSD,
    FILESTORE,
    Amplification,
    Backend,
    DeviceBytes,
    amplification,
    write_cost,
)
from vmlib.ceph.rados.erasure import decode, encode
from vmlib.ceph.rados.faults import KINDS, Fault, inject, random_faults
from vmlib.ceph.rados.flow import record_write
from vmlib.ceph.rados.linearizability import linearizable, wrong_objects
from vmlib.ceph.rados.monitor import MonConfig
from vmlib.ceph.rados.osd_config import OsdConfig
from vmlib.ceph.rados.pglog import PgId
from vmlib.ceph.rados.problems import WriteProblem, write_problem
from vmlib.ceph.rados.tier import MODES, CacheTier, TierConfig, TierCounts

__all__ = [
    "BLUESTORE_HDD",
    "BLUESTORE_SSD",
    "FILESTORE",
    "KINDS",
    "MODES",
    "NONE",
    "POLICIES",
    "Amplification",
    "Backend",
    "CacheTier",
    "Client",
    "ClientDied",
    "Cluster",
    "ClusterMap",
    "DeviceBytes",
    "Fault",
    "MonConfig",
    "NotDone",
    "Operation",
    "OsdConfig",
    "OsdState",
    "PgId",
    "Placed",
    "Placement",
    "Pool",
    "RawPlacement",
    "TierConfig",
    "TierCounts",
    "WriteProblem",
    "amplification",
    "ceiling",
    "decode",
    "encode",
    "inject",
    "linearizable",
    "random_faults",
    "record_write",
    "rendezvous",
    "state",
    "write_cost",
    "write_problem",
    "wrong_objects",
]
