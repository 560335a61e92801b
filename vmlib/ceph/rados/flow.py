"""One write, recorded for the reader's eye: who sends what to whom, and when it is on disk.

`record_write` starts a small cluster in which an object holds A, lets a client write B over it, and
records what happens until the client has its answer, as a trace of kind "flow". A node may be
killed on the way: a replica, with the write in its memory; or the primary, when one replica has it
on disk.

The recorder watches the wire and the journals (`Engine.watch`) and changes nothing. Heartbeats, map
subscriptions, leases and the second time that somebody says a thing are not steps. A state of such
a trace has::

    groups    [[id, name, role, row, mode, [[box, holds, mode], …], [counter, …]], …]
              mode of a group: "" | "down"; of a box: "" | "new" (volatile) | "safe"
    wires     [[from, to, label, mode], …]    mode: "under way" | "arrived" | "lost"
    acks      who has said that it is on disk, in order
    sofar     [[name, number], …]
    time      seconds since the client sent
"""

from importlib.metadata import version
from typing import Any

from vmlib.ceph.rados import flow_words as words
from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.cluster import Cluster, state
from vmlib.ceph.rados.clustermap import NONE, Pool
from vmlib.ceph.rados.engine import Node
from vmlib.ceph.rados.store import Transaction
from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.trace import Provenance, Step, Trace
from vmlib.units import MIB

OBJECT = "image.0"
SIZE = 4 * MIB
KILLS = ("replica", "primary")
LIMIT = 120.0
_LABELS = {
    m.ClientOp: "write",
    m.RepOp: "copy",
    m.RepAck: "on disk",
    m.ClientReply: "ack",
    m.Failure: "silent!",
    m.MapShare: "map",
    m.Query: "what have you?",
    m.Notify: "my log",
    m.Activate: "so be it",
    m.Activated: "written",
}


def record_write(*, erasure: bool = False, kill: str | None = None, seed: int = 1) -> Trace:
    """Return the trace of one write of 4 MiB over an object.

    To three copies, or to 4+2 chunks with `erasure`. `kill`: None, "replica" or "primary"; the node
    loses its power and stays away.
    """
    check_one(erasure, bool, "erasure")
    if kill is not None and kill not in KILLS:
        raise BadInput("kill", f"must be one of {', '.join(KILLS)}, not {kill!r}")
    pool = Pool.erasure(4, 2) if erasure else Pool()
    cluster = Cluster(seed, osds=pool.size + 1, pools=[pool], resend=15.0)
    cluster.write(OBJECT, b"A" * SIZE)
    cluster.run(30.0)
    return _Flow(cluster, kill).record()


class _Flow:
    """The recording of one write."""

    def __init__(self, cluster: Cluster, kill: str | None) -> None:
        self.cluster, self.kill = cluster, kill
        self.acting = [f"osd.{osd}" for osd in cluster.placed(OBJECT).acting]
        self.first = self.acting[0]
        self.erasure = bool(cluster.map.pools[0].k)
        self.start = cluster.engine.now
        self.epoch = cluster.map.epoch
        self.title = words.title(kill, self.erasure)
        self.steps: list[Step] = []
        self.held: dict[str, str] = {}
        self.memory = dict.fromkeys(self.acting, "A")
        self.disk = dict.fromkeys(self.acting, "A")
        self.told = False
        self.dead: set[Node] = set()
        self.acks: list[Node] = []
        self.wires: dict[tuple[Node, Node, str], str] = {}
        self.received: dict[Node, int] = {}
        self.sent: dict[Node, int] = {}
        self.messages = self.wire_bytes = self.disk_bytes = 0
        self.seen: set[tuple[str, Node, Node, str]] = set()
        self.pg_state = ""

    def record(self) -> Trace:
        engine = self.cluster.engine
        self._step("client.0", "start", f"{self._who()} hold A. The client is about to write B.")
        engine.watch = self._watch
        client = self.cluster.clients[0]
        done = engine.env.process(client.write(OBJECT, b"B" * SIZE))
        while not done.processed and engine.now < self.start + LIMIT:
            engine.env.step()
            self._look()
        engine.watch = None
        origin = Provenance("vmlib.ceph.rados", {"SimPy": version("simpy")}, "", recorded="")
        return Trace("flow", self.title, origin, tuple(self.steps), dict(self._sofar()))

    def _who(self) -> str:
        return "The six shards" if self.erasure else "All three copies"

    def _leader(self) -> Any:
        return self.cluster.leader(self.cluster.pg_of(OBJECT))

    # -- what is seen --------------------------------------------------------------------------

    def _watch(self, event: str, source: Node, target: Node, what: Any) -> None:
        if event == "on disk":
            self._on_disk(source, what)
            return
        label = _LABELS.get(type(what))
        if label is None or not self._matters(event, source, target, what):
            return
        if type(what) in (m.ClientOp, m.ClientReply, m.RepOp, m.RepAck):
            self._data(event, source, target, label, what)
        elif event == "arrived":
            self._talk(source, target, label, what)

    def _matters(self, event: str, source: Node, target: Node, what: Any) -> bool:
        """Whether this is news: of this PG, between these nodes, for the first time."""
        if isinstance(what, m.PgMessage) and what.pg != self.cluster.pg_of(OBJECT):
            return False
        if isinstance(what, m.MapShare) and what.maps[-1].epoch == self.epoch:
            return False
        if isinstance(what, m.Failure) and f"osd.{what.target}" not in self.dead:
            return False
        known = {"client.0", *self.acting}
        if {source, target} - known - {mon.name for mon in self.cluster.monitors}:
            return False
        if _place(source) == _place(target):
            return False
        newest = self.cluster.map.epoch
        epoch = newest if isinstance(what, m.MapShare) else getattr(what, "epoch", 0)
        key = (event, _place(source), _place(target), f"{type(what).__name__} {epoch}")
        new = key not in self.seen
        self.seen.add(key)
        return new

    def _data(self, event: str, source: Node, target: Node, label: str, what: Any) -> None:
        key = (source, target, label)
        self._look()
        if event == "sent":
            self.messages += 1
            self.wire_bytes += (size := getattr(what, "payload", 0))
            self.sent[source] = self.sent.get(source, 0) + size
            self.wires[key] = "lost" if target in self.dead else "under way"
        else:
            size = getattr(what, "payload", 0)
            self.received[target] = self.received.get(target, 0) + size
            self.wires[key] = "arrived"
        place = source if event == "sent" else target
        text = self._said(event, source, target, what)
        self._step(place, event, text)
        if self.wires[key] != "under way":
            del self.wires[key]
        first = isinstance(what, m.RepOp) and target == self.acting[1] and not self.dead
        if event == "arrived" and self.kill == "replica" and first:
            self._die(target, "with the write in its memory and not on its disk")

    def _said(self, event: str, source: Node, target: Node, what: Any) -> str:
        """Note what the message does, and return the sentence for it."""
        here = event == "arrived"
        match what:
            case m.ClientOp():
                done = here and self.disk[target] == "B"
                if here:
                    self.memory[target] = "B"
                return words.write(event, target, again=bool(self.dead), done=done)
            case m.RepOp():
                if here:
                    self.memory[target] = "B"
                return words.copy(event, target, "a chunk of B" if self.erasure else "B")
            case m.RepAck():
                if here and source not in self.acks:
                    self.acks.append(source)
                left = len(self._members()) - len(self.acks)
                heard = target not in self.dead
                return words.reported(event, source, target, heard=heard, left=left)
            case _:
                self.told = self.told or here
                return words.ack(event, source)

    def _members(self) -> list[Node]:
        return [f"osd.{osd}" for osd in self.cluster.placed(OBJECT).acting if osd != NONE]

    def _on_disk(self, osd: Node, txn: Transaction) -> None:
        if OBJECT not in txn.puts or osd not in self.acting or self.disk[osd] == "B":
            return
        put = txn.puts[OBJECT]
        self.disk_bytes += len(put.data) if put else 0
        self.disk[osd] = "B"
        self.memory[osd] = "B"
        leads = osd == self._members()[0]
        if leads and osd not in self.acks:
            self.acks.append(osd)
        part = "its chunk of B" if self.erasure else "B"
        self._step(osd, "on disk", words.safe(osd, part, leads=leads))
        if self.kill == "primary" and not self.dead and osd == self.acting[1]:
            self._die(self.first, "before anybody could tell it that the copies are on disk")

    def _die(self, osd: Node, how: str) -> None:
        number = int(osd.split(".")[1])
        self.cluster.osds[number].crash()
        self.dead.add(osd)
        self.memory[osd] = ""
        self.wires = {k: v for k, v in self.wires.items() if osd not in k[:2]}
        self._step(osd, "crash", f"The power of {osd} fails, {how}.")

    def _talk(self, source: Node, target: Node, label: str, what: Any) -> None:
        key = (source, target, label)
        self.wires[key] = "arrived"
        dead = next(iter(self.dead), "")
        if isinstance(what, m.MapShare):
            epoch = what.maps[-1].epoch
            before = self.cluster.monitors[0].maps[epoch - 2]
            first = target == "client.0" or before.is_up(int(dead.split(".")[1]))
            text = words.news(target, epoch, dead, self._members()[0], first=first)
        else:
            text = words.talk(type(what), source, target, dead)
        self._step(target, "talk", text)
        del self.wires[key]

    def _look(self) -> None:
        """Note it when the PG has become active, or has stopped waiting."""
        leader = self._leader()
        now = state(leader) if leader else self.pg_state
        before, self.pg_state = self.pg_state, now
        if not (self.dead and leader and now != before and now.startswith("active")):
            return
        self.acks = [each for each in self._members() if self.disk[each] == "B"]
        text = words.active(now, len(leader.acting))
        self._step(f"osd.{leader.osd.id}", "state", text)

    # -- a step --------------------------------------------------------------------------------

    def _step(self, where: Node, event: str, text: str) -> None:
        groups = self._groups()
        held = {
            f"{name} {box}": str(it) for _, name, *_, boxes, _ in groups for box, it, _ in boxes
        }
        changed = tuple(
            (name, self.held[name], now)
            for name, now in held.items()
            if self.held.get(name, now) != now
        )
        self.held = held
        state = {
            "groups": groups,
            "wires": [
                [_place(a), _place(b), what, mode] for (a, b, what), mode in self.wires.items()
            ],
            "acks": list(self.acks),
            "sofar": [list(pair) for pair in self._sofar()],
            "time": round(self.cluster.engine.now - self.start, 3),
        }
        self.steps.append(Step(len(self.steps), _place(where), event, text, changed, state))

    def _groups(self) -> list[list[Any]]:
        told = "told: done" if self.told else "waits" if self.messages else "writes B"
        safe = "safe" if self.told else ""
        groups: list[list[Any]] = [
            ["client.0", "client", "", 0, "", [["the write", told, safe]], []]
        ]
        if self.kill:
            box = ["map", f"epoch {self.cluster.map.epoch}", ""]
            groups.append(["monitors", "monitors", "a majority decides", 0, "", [box], []])
        members = self._members()
        for place, osd in enumerate(self.acting):
            dead = osd in self.dead
            role = f"shard {place}" if self.erasure else "replica"
            if osd == members[0]:
                role = "primary"
            memory, disk = self.memory[osd], self.disk[osd]
            boxes = [
                ["memory", self._holds(place, memory), "new" if memory == "B" else ""],
                ["disk", self._holds(place, disk), "safe" if disk == "B" else ""],
            ]
            counts = [
                f"in {_size(self.received.get(osd, 0))}",
                f"out {_size(self.sent.get(osd, 0))}",
            ]
            row = 1 if osd == self.first else 2
            groups.append(
                [osd, osd, "no power" if dead else role, row, "down" if dead else "", boxes, counts]
            )
        return groups

    def _holds(self, place: int, letter: str) -> str:
        if not letter:
            return "—"
        return f"{letter}{place}" if self.erasure else letter

    def _sofar(self) -> list[tuple[str, int]]:
        return [
            ("messages", self.messages),
            ("disks that have B", sum(letter == "B" for letter in self.disk.values())),
            ("MiB on the wire", round(self.wire_bytes / MIB)),
            ("MiB to disks", round(self.disk_bytes / MIB)),
        ]


def _place(node: Node) -> str:
    return "monitors" if node.startswith("mon.") else node


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else str(count)
