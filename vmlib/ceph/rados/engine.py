"""Time, randomness and the wire of the RADOS model, on SimPy's event queue.

Every pair of nodes that talks has a connection that keeps order, as TCP does: a message may be
late, never early. Between OSDs and among monitors a cut delays what was sent until it heals (Ceph's
messenger reconnects and sends again: `lossless_peer`); to and from clients it is lost (`lossy`), so
clients send again and OSDs must tell a second copy from a second request. A node that restarts has
new connections: what was under way to its earlier life is gone.

Ceph: doc/dev/msgr2.rst, policies in src/msg/Policy.h. Left out: bandwidth, sizes of headers, and
clocks that differ: every node reads the same clock.
"""

import random
from collections.abc import Callable
from typing import Any, Protocol

import simpy

Node = str
"""``"osd.3"``, ``"mon.0"``, ``"client.1"``."""


class Receiver(Protocol):
    """A node on the wire."""

    def receive(self, source: Node, message: Any) -> None:
        """Take one message."""
        ...


Watcher = Callable[[str, Node, Node, Any], None]
"""Called with ("sent" | "arrived", source, target, message), and with ("on disk", OSD, OSD,
transaction) when a journal has one."""


class Engine:
    """The event queue, one seeded source of randomness, and the wire."""

    def __init__(self, seed: int, *, delay: float = 0.001, jitter: float = 0.001) -> None:
        self.env = simpy.Environment()
        self.random = random.Random(seed)
        self.delay, self.jitter = delay, jitter
        self.echo = 0.0
        """How likely a client's message arrives a second time, up to 5 s later, as one does that
        was left in a connection which the client has given up."""
        self.watch: Watcher | None = None
        self.bytes_sent: dict[str, int] = {}
        """Payload bytes by kind of message."""
        self._nodes: dict[Node, Receiver] = {}
        self._life: dict[Node, int] = {}
        self._last: dict[tuple[Node, Node], float] = {}
        self._cut: dict[tuple[Node, Node], int] = {}
        self._held: dict[tuple[Node, Node], list[tuple[int, int, int, Any]]] = {}
        self._count = 0

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.env.now

    def at(self, delay: float, call: Callable[[], None]) -> None:
        """Call after a delay (s)."""
        callbacks = self.env.timeout(delay).callbacks
        assert callbacks is not None  # only None once the event has happened
        callbacks.append(lambda _: call())

    def run(self, until: float) -> None:
        """Let time pass until then."""
        self.env.run(until)

    def tell(self, event: str, source: Node, target: Node, what: Any) -> None:
        """Tell whoever watches."""
        if self.watch:
            self.watch(event, source, target, what)

    def attach(self, name: Node, receiver: Receiver) -> None:
        """Put a node on the wire, or put its next life there."""
        self._nodes[name] = receiver
        self._life[name] = self._life.get(name, 0) + 1

    def detach(self, name: Node) -> None:
        """Take a node off: it died."""
        self._nodes.pop(name, None)
        self._life[name] = self._life.get(name, 0) + 1

    def send(self, source: Node, target: Node, message: Any) -> None:
        """Send a message; it arrives later, or never if somebody dies first."""
        size = getattr(message, "payload", 0)
        if size:
            kind = type(message).__name__
            self.bytes_sent[kind] = self.bytes_sent.get(kind, 0) + size
        self.tell("sent", source, target, message)
        self._count += 1
        lives = self._life.get(source, 0), self._life.get(target, 0)
        if not self._stopped(source, target, self._count, *lives, message):
            self._post(source, target, self._count, *lives, message)
        if self.echo and source.startswith("client.") and self.random.random() < self.echo:
            self.at(5 * self.random.random(), lambda: self._deliver(source, target, lives, message))

    def _stopped(
        self, source: Node, target: Node, count: int, ours: int, theirs: int, message: Any
    ) -> bool:
        """Whether the wire is cut here; the message is then kept for later, or lost."""
        pair = source, target
        if not self._cut.get(pair):
            return False
        if not _lossy(source, target):
            self._held.setdefault(pair, []).append((count, ours, theirs, message))
        return True

    def _post(
        self, source: Node, target: Node, count: int, ours: int, theirs: int, message: Any
    ) -> None:
        pair = source, target
        due = self.now + self.delay + self.random.random() * self.jitter
        due = self._last[pair] = max(due, self._last.get(pair, 0.0) + 1e-9)

        def arrive() -> None:
            if not self._stopped(source, target, count, ours, theirs, message):
                self._deliver(source, target, (ours, theirs), message)

        self.at(due - self.now, arrive)

    def _deliver(self, source: Node, target: Node, lives: tuple[int, int], message: Any) -> None:
        node = self._nodes.get(target)
        if node and lives == (self._life.get(source, 0), self._life.get(target, 0)):
            self.tell("arrived", source, target, message)
            node.receive(source, message)

    def cut(self, a: Node, b: Node) -> None:
        """Cut the wire between two nodes, both ways. Cuts add up: each wants its own `heal`."""
        for pair in ((a, b), (b, a)):
            self._cut[pair] = self._cut.get(pair, 0) + 1

    def heal(self, a: Node, b: Node) -> None:
        """Undo one cut; what was held back sets out, in order."""
        for pair in ((a, b), (b, a)):
            self._cut[pair] -= 1
            if not self._cut[pair]:
                for held in sorted(self._held.pop(pair, []), key=lambda held: held[0]):
                    self._post(*pair, *held)


def _lossy(source: Node, target: Node) -> bool:
    kinds = {source.split(".")[0], target.split(".")[0]}
    return kinds not in ({"osd"}, {"mon"})
