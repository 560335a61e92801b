"""A client: it keeps the map it has, computes where an object is, and asks that OSD directly.

The map may be old. An OSD that is not the right one answers with newer maps and the client sends
again; where nobody answers it asks a monitor and sends again, the same request with the same id.
So one write may arrive twice, and it is the OSDs' business to do it once.

Reads go to the primary, to a member drawn at random (`balance`), or to the member nearest to the
client (`localize`); a member that may not serve says so, and the primary is asked.

Ceph: doc/architecture.rst, Objecter; `rados_replica_read_policy`. Different here: Ceph resends on
a broken connection or a new map; here also after `resend` seconds of silence, which stands for the
break. Left out: watch, linger, throttles, more than one operation at a time for one client.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import simpy

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.clustermap import NONE, ClusterMap, Placement
from vmlib.ceph.rados.engine import Engine, Node
from vmlib.ceph.rados.pglog import ReqId
from vmlib.errors import BadInput, VmlibError

POLICIES = ("default", "balance", "localize")


class ClientDied(VmlibError):
    """The client died in the middle of an operation, or is dead."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as its client saw it. `end` is None while there is no answer, or for ever.

    `value` is what was written, or what a read returned (None: there is no such object).
    """

    client: str
    name: str
    kind: str
    value: bytes | None
    start: float
    end: float | None = None


class Client:
    """One client. `history` has its operations in the order in which it began them."""

    def __init__(
        self,
        engine: Engine,
        id: int,
        monitors: list[Node],
        first: ClusterMap,
        place: Placement,
        *,
        pool: int = 1,
        policy: str = "default",
        nearest: Sequence[int] = (),
        resend: float = 3.0,
    ) -> None:
        if policy not in POLICIES:
            raise BadInput("policy", f"must be one of {', '.join(POLICIES)}, not {policy!r}")
        self.name = f"client.{id}"
        self.map = first
        self.pool, self.policy, self.nearest, self.resend = pool, policy, nearest, resend
        self.history: list[Operation] = []
        self.sent = 0
        self._engine, self._place, self._monitors = engine, place, monitors
        self._tid = 0
        self._op: m.ClientOp | None = None
        self._target = NONE
        self._reply: simpy.Event = engine.env.event()
        self.alive = True
        engine.attach(self.name, self)

    def crash(self) -> None:
        """Die. What is on its way may still arrive, and happen; nobody will hear the answer.

        A process that is in an operation ends with `ClientDied`, as does one that begins one.
        """
        self.alive = False
        if self._op and not self._reply.triggered:
            self._reply.succeed(None)
        self._op = None

    def start(self) -> None:
        """Live again. Requests go on being counted, so nobody takes a new one for an old one."""
        self.alive = True

    def receive(self, source: Node, message: Any) -> None:
        """Take one message."""
        match message:
            case m.MapShare(maps):
                newer = [map for map in maps if map.epoch > self.map.epoch]
                if newer:
                    self.map = newer[-1]
                    if self._op and self._choose(self._op) != self._target:
                        self._send()
            case m.ClientReply() if self._op and message.reqid == self._op.reqid:
                if message.again:
                    self._op = replace(self._op, replica_ok=False)
                    self._send()
                elif not self._reply.triggered:
                    self._reply.succeed(message)

    def write(
        self, name: str, data: bytes, offset: int | None = None
    ) -> Generator[simpy.Event, Any, None]:
        """Write a whole object, or `data` at an offset. A SimPy process: `yield from` it."""
        yield from self._do(name, "write", data, offset)

    def read(self, name: str) -> Generator[simpy.Event, Any, bytes | None]:
        """Read a whole object; None if it does not exist. A SimPy process: `yield from` it."""
        reply = yield from self._do(name, "read", None, None)
        return reply.data

    def _do(
        self, name: str, kind: str, data: bytes | None, offset: int | None
    ) -> Generator[simpy.Event, Any, m.ClientReply]:
        if not self.alive:
            raise ClientDied(self.name)
        self._tid += 1
        pg = self._place.pg_of(self.map.pool(self.pool), name)
        replica_ok = kind == "read" and self.policy != "default"
        reqid = ReqId(self.name, self._tid)
        self._op = m.ClientOp(reqid, pg, name, data, self.map.epoch, offset, replica_ok)
        self._reply = self._engine.env.event()
        at = len(self.history)
        self.history.append(Operation(self.name, name, kind, data, self._engine.now))
        self._send()
        while not self._reply.triggered:
            yield self._reply | self._engine.env.timeout(self.resend)
            if not self._reply.triggered:
                self._ask_for_maps()
                self._op = replace(self._op, replica_ok=False)
                self._send()
        reply = self._reply.value
        if reply is None:
            raise ClientDied(self.name)
        assert isinstance(reply, m.ClientReply)
        self._op = None
        value = data if kind == "write" else reply.data
        done = replace(self.history[at], value=value, end=self._engine.now)
        self.history[at] = done
        return reply

    def _choose(self, op: m.ClientOp) -> int:
        placed = self._place.place(self.map, op.pg)
        members = [osd for osd in placed.acting if osd != NONE]
        if not op.replica_ok or not members:
            return placed.primary
        if self.policy == "localize":
            ranks = {osd: rank for rank, osd in enumerate(self.nearest)}
            return min(members, key=lambda osd: ranks.get(osd, len(ranks)))
        return self._engine.random.choice(members)

    def _send(self) -> None:
        assert self._op
        self._op = replace(self._op, epoch=self.map.epoch)
        self._target = self._choose(self._op)
        if self._target == NONE:
            self._ask_for_maps()
        else:
            self.sent += 1
            self._engine.send(self.name, f"osd.{self._target}", self._op)

    def _ask_for_maps(self) -> None:
        monitor = self._engine.random.choice(self._monitors)
        self._engine.send(self.name, monitor, m.GetMaps(self.map.epoch))
