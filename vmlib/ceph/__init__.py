"""The Ceph room: where data goes, computed by everybody and stored by nobody.

`CrushMap` holds a cluster's CRUSH map, maps inputs to devices exactly as Ceph does, and explains
every draw. `rados` is a cluster in motion; it needs SimPy and is loaded by
``from vmlib.ceph import rados``.
"""

from vmlib.ceph.compare import Comparison
from vmlib.ceph.crush_map import (
    NONE,
    PROFILES,
    Bucket,
    BucketArgs,
    CrushMap,
    Device,
    Rule,
    Step,
    Tunables,
)
from vmlib.ceph.explain import histogram
from vmlib.ceph.hashing import crush_hash, hash_many
from vmlib.ceph.ln import crush_ln

__all__ = [
    "NONE",
    "PROFILES",
    "Bucket",
    "BucketArgs",
    "Comparison",
    "CrushMap",
    "Device",
    "Rule",
    "Step",
    "Tunables",
    "crush_hash",
    "crush_ln",
    "hash_many",
    "histogram",
    "rados",
]
