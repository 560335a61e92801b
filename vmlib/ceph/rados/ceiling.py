"""How fast replication can be at the very most: what a network card lets through.

The primary takes each byte of a client in once and sends it out once for every other copy. Cards
send and receive at the same time, so the busier direction decides. An iSCSI target with a cache of
its own sends nothing on. Disks, processors, headers and all queues are left out: these are bounds
that no cluster exceeds, and no prediction of what one reaches.
"""

from dataclasses import dataclass
from math import inf

from vmlib.errors import BadInput
from vmlib.numbers import decimal, whole

TEN_GIGABIT = 1_250_000_000
"""Bytes a second, each way, of a 10 Gbit/s link."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Bytes a second that clients can at most write through one primary, and read from it."""

    write: float
    read: float


def replicated(link: float = TEN_GIGABIT, copies: int = 3) -> Ceiling:
    """Return the ceiling of one primary's node, which is no other PG's replica."""
    whole(copies, "copies", 1)
    decimal(link, "link", 0, inf)
    return Ceiling(link / max(1, copies - 1), link)


def cluster(nodes: int, link: float = TEN_GIGABIT, copies: int = 3) -> Ceiling:
    """Return the ceiling of many nodes that all are primaries of their share.

    Of every `copies` bytes that come to disks somewhere, all came in over some node's card.
    """
    decimal(link, "link", 0, inf)
    if whole(copies, "copies", 1) > whole(nodes, "nodes", 1):
        raise BadInput("nodes", f"{nodes} cannot hold {copies} copies apart")
    received, sent = copies, copies - 1
    return Ceiling(nodes * link / max(received, sent), nodes * link)


def iscsi(link: float = TEN_GIGABIT) -> Ceiling:
    """Return the ceiling of one iSCSI target: the link, both ways."""
    decimal(link, "link", 0, inf)
    return Ceiling(link, link)
