"""The Ceph room: where data goes, computed by everybody and stored by nobody.

`CrushMap` holds a cluster's CRUSH map, maps inputs to devices exactly as Ceph does, and explains
every draw (package `crush`). `OSDMap` goes from an object's name to the OSDs that serve it,
`rbd_objects` from a byte of an image to objects. `rados` is a cluster in motion; it needs SimPy and
is loaded by ``from vmlib.ceph import rados``.
"""

from vmlib.ceph.crush.browser import for_browser
from vmlib.ceph.crush.change import removed, reweighted
from vmlib.ceph.crush.compare import Comparison
from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.ceph.crush.explain import histogram
from vmlib.ceph.crush.facts import NONE, PROFILES, Bucket, BucketArgs, Device, Rule, Step, Tunables
from vmlib.ceph.crush.hashing import crush_hash, hash_many
from vmlib.ceph.crush.ln import crush_ln
from vmlib.ceph.crush.straw_problems import StrawProblem, straw_problem
from vmlib.ceph.crush.studies import (
    Movement,
    Utilisation,
    device_counts,
    movement_by_algorithm,
    movement_by_level,
    pieces,
    utilisation,
)
from vmlib.ceph.movement import Move, moves
from vmlib.ceph.object_hash import object_hash, stable_mod
from vmlib.ceph.osd import Osd
from vmlib.ceph.osdmap import OSDMap
from vmlib.ceph.placement import Placement
from vmlib.ceph.pools import ERASURE, REPLICATED, Pool
from vmlib.ceph.rbd import Extent, RbdObjects, rbd_objects
from vmlib.ceph.rbd_problems import RbdProblem, rbd_problem

__all__ = [
    "ERASURE",
    "NONE",
    "PROFILES",
    "REPLICATED",
    "Bucket",
    "BucketArgs",
    "Comparison",
    "CrushMap",
    "Device",
    "Extent",
    "Move",
    "Movement",
    "OSDMap",
    "Osd",
    "Placement",
    "Pool",
    "RbdObjects",
    "RbdProblem",
    "Rule",
    "Step",
    "StrawProblem",
    "Tunables",
    "Utilisation",
    "crush_hash",
    "crush_ln",
    "device_counts",
    "for_browser",
    "hash_many",
    "histogram",
    "movement_by_algorithm",
    "movement_by_level",
    "moves",
    "object_hash",
    "pieces",
    "rados",
    "rbd_objects",
    "rbd_problem",
    "removed",
    "reweighted",
    "stable_mod",
    "straw_problem",
    "utilisation",
]
