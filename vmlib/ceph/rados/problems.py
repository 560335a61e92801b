"""Seeded problems about one write: as many as a reader wants, each the same everywhere.

The answer is what a cluster of the model does with the write, not a formula.
"""

import random
from dataclasses import dataclass
from functools import cached_property

from vmlib.ceph.rados.cluster import Cluster
from vmlib.ceph.rados.clustermap import Pool
from vmlib.ceph.rados.device import DeviceBytes
from vmlib.given import names_bad_input
from vmlib.problems import checked_seed, marked
from vmlib.units import MIB

KINDS = ("ClientOp", "ClientReply", "RepOp", "RepAck")


@dataclass(frozen=True)
class WriteProblem:
    """A client writes a whole object of `mib` MiB to a pool in peace. What does it take?"""

    seed: int
    pool: Pool
    mib: int

    @property
    def question(self) -> str:
        """The problem in words."""
        pool = self.pool
        kind = f"erasure-coded {pool.k}+{pool.m}" if pool.k else f"replicated, size {pool.size}"
        return (
            f"Problem {self.seed}: a pool is {kind}. A client writes a whole object of {self.mib} "
            "MiB. From its first message to its ack: how many messages are there (the write, what "
            "the primary sends on, their answers, the ack), how many MiB cross the wire, and how "
            "many MiB of object data do disks take?"
        )

    @cached_property
    def answer(self) -> tuple[int, float, float]:
        """(messages, MiB on the wire, MiB to disks), by doing it."""
        cluster = Cluster(self.seed, osds=self.pool.size + 1, pools=[self.pool])
        cluster.write("x", b"")
        cluster.run(1.0)
        sent: list[int] = []

        def watch(event: str, source: str, target: str, message: object) -> None:
            if event == "sent" and type(message).__name__ in KINDS:
                sent.append(getattr(message, "payload", 0))

        before: DeviceBytes = cluster.device_bytes()
        cluster.engine.watch = watch
        cluster.write("x", bytes(self.mib * MIB))
        cluster.engine.watch = None
        disks = cluster.device_bytes().data - before.data
        return len(sent), sum(sent) / MIB, disks / MIB

    @names_bad_input
    def mark(
        self, messages: int | None = None, wire: float | None = None, disks: float | None = None
    ) -> str:
        """Mark an answer by doing the write; say what is right and give nothing away."""
        names = ("messages", "MiB on the wire", "MiB to disks")
        parts = [
            # A reader rounds to one place behind the point.
            (name, truth if given is not None and abs(given - truth) < 0.05 else given, truth)
            for name, given, truth in zip(names, (messages, wire, disks), self.answer, strict=True)
        ]
        return marked(self.seed, *parts, wrong="not what happens")


def write_problem(seed: int) -> WriteProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    draw = random.Random(seed)
    if draw.random() < 0.4:
        size = draw.choice((2, 3, 4))
        return WriteProblem(seed, Pool(size=size, min_size=min(2, size)), draw.choice((2, 4, 6, 8)))
    k, m = draw.choice(((2, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 3), (8, 4)))
    return WriteProblem(seed, Pool.erasure(k, m), k * draw.choice((1, 2)))
