"""The monitors: a majority decides which map comes next, and no epoch is ever decided twice.

Paxos with a stable leader. Who wants to lead picks a proposal number that nobody has seen, and
asks for promises (Collect, Last); from a majority of promises it learns every epoch that was
committed and the one that may have been, which it finishes first. Then it proposes one epoch at a
time (Begin, Accept) and tells all when a majority has it (Commit). Monitors with lower rank wait
less before they stand, so the lowest that lives usually leads.

The leader turns what OSDs ask for into epochs: boot, failure (two reporters, as
`mon_osd_min_down_reporters`), up_thru, pg_temp, and out after `down_out` seconds of being down.

Ceph: doc/dev/mon-elections.rst, doc/rados/configuration/mon-osd-interaction.rst, src/mon/Paxos.h.
Different here: Ceph first elects a leader by rank, then collects; here the collecting is the
election, and a proposal that nobody answers is sent again. A monitor's disk takes no time. Left
out: stretch mode, laggy estimates of the grace, the `min_up_ratio` and `min_in_ratio` limits,
trimming of old epochs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmlib.ceph.rados.clustermap import ClusterMap, OsdState
from vmlib.ceph.rados.engine import Engine, Node
from vmlib.ceph.rados.messages import (
    Accept,
    Alive,
    Begin,
    Boot,
    Change,
    Collect,
    Commit,
    CommitAck,
    Failure,
    GetMaps,
    Last,
    MapShare,
    SetTemp,
)
from vmlib.ceph.rados.osd_config import LONGEST, SHORTEST
from vmlib.ceph.rados.pglog import PgId
from vmlib.numbers import decimal, whole


@dataclass(frozen=True, slots=True)
class MonConfig:
    """Times in seconds; the defaults of Ceph where it has such an option."""

    tick: float = 1.0
    lease: float = 5.0
    propose: float = 0.05
    down_out: float = 600.0
    min_reporters: int = 2

    def __post_init__(self) -> None:
        for name in ("tick", "lease", "propose"):
            decimal(getattr(self, name), name, SHORTEST, LONGEST)
        decimal(self.down_out, "down_out", 0, LONGEST)
        whole(self.min_reporters, "min_reporters", 1)


class Monitor:
    """One monitor. `start` and `crash` end and begin its lives; what it promised outlives them."""

    def __init__(self, engine: Engine, rank: int, count: int, first: ClusterMap, config: MonConfig):
        self.name = f"mon.{rank}"
        self.rank = rank
        self.config = config
        self.alive = False
        self.promised = 0
        self.accepted: tuple[int, ClusterMap] | None = None
        self.maps: list[ClusterMap] = [first]
        """Committed epochs; ``maps[i]`` has epoch i+1."""
        self._engine = engine
        self._count = count
        self._others = [f"mon.{r}" for r in range(count) if r != rank]
        self._life = 0

    @property
    def epoch(self) -> int:
        """The last epoch that this monitor knows to be committed."""
        return self.maps[-1].epoch

    def start(self) -> None:
        """Begin a life with nothing but what is on disk."""
        self.alive = True
        self._life += 1
        self.leading = False
        self.leader: Node | None = None
        self._heard = self._engine.now - self.config.lease + 0.2 * (self.rank + 1)
        self._promises: dict[Node, Last] = {}
        self._accepts: set[Node] = set()
        self._behind: dict[Node, int] = {}
        self._answered: dict[Node, float] = {}
        self._proposing = False
        self._waiting: list[Any] = []
        self._osds: dict[int, OsdState] = {}
        self._temps: dict[PgId, tuple[int, ...]] = {}
        self._reports: dict[int, dict[int, float]] = {}
        self._down_since: dict[int, float] = {}
        self._subscribers: dict[Node, int] = {}
        self._engine.attach(self.name, self)
        self._repeat(self._life)

    def crash(self) -> None:
        """End this life."""
        self.alive = False
        self._life += 1
        self._engine.detach(self.name)

    def receive(self, source: Node, message: Any) -> None:
        """Take one message."""
        match message:
            case Collect():
                self._collect(source, message)
            case Last():
                self._last(source, message)
            case Begin():
                self._begin(source, message)
            case Accept():
                self._accept(source, message)
            case Commit():
                self._commit(source, message)
            case CommitAck():
                if message.pn == self.promised and self.leading:
                    self._behind[source] = message.committed
                    self._answered[source] = self._engine.now
            case GetMaps():
                self._subscribers[source] = message.have
                self._publish(source)
                if not source.startswith("osd."):
                    del self._subscribers[source]  # a client asks once, and keeps an old map
            case _ if self.leading:
                self._request(message)
            case _ if self.leader and source.startswith("osd."):
                self._engine.send(self.name, self.leader, message)

    def _send(self, target: Node, message: Any) -> None:
        self._engine.send(self.name, target, message)

    def _repeat(self, life: int) -> None:
        if life != self._life:
            return
        now, config = self._engine.now, self.config
        if self.leading:
            fresh = [t for t in self._answered.values() if now - t < config.lease]
            if 2 * (len(fresh) + 1) <= self._count:
                self.leading = False  # nobody follows: let another try
                self._heard = now
            else:
                self._mark_out()
                for other in self._others:
                    self._send(other, Commit(self.promised, self._maps_after(other)))
                self._begin_again()
        elif now - self._heard > config.lease + 0.4 * self.rank:
            self._stand()
        self._engine.at(config.tick, lambda: self._repeat(life))

    # -- becoming leader -----------------------------------------------------------------------

    def _stand(self) -> None:
        self._heard = self._engine.now
        self.promised = (self.promised // self._count + 1) * self._count + self.rank
        mine = Last(self.promised, (), self.epoch, self.accepted)
        self._promises = {self.name: mine}
        for other in self._others:
            self._send(other, Collect(self.promised, self.epoch))
        self._maybe_lead()

    def _collect(self, source: Node, message: Collect) -> None:
        if message.pn <= self.promised:
            return
        self.promised = message.pn
        self.leading, self.leader = False, None
        self._heard = self._engine.now
        news = tuple(self.maps[message.committed :])
        self._send(source, Last(message.pn, news, self.epoch, self.accepted))

    def _last(self, source: Node, message: Last) -> None:
        if message.pn == self.promised and not self.leading:
            self._learn(message.maps)
            self._promises[source] = message
            self._maybe_lead()

    def _maybe_lead(self) -> None:
        if 2 * len(self._promises) <= self._count:
            return
        self.leading, self.leader = True, self.name
        now = self._engine.now
        self._answered = {mon: now for mon in self._promises if mon != self.name}
        self._behind = {mon: last.committed for mon, last in self._promises.items()}
        self._proposing = False
        self._osds, self._temps, self._reports, self._down_since = {}, {}, {}, {}
        self._waiting = []
        open_ = [last.accepted for last in self._promises.values() if last.accepted]
        open_ = [(pn, map) for pn, map in open_ if map.epoch == self.epoch + 1]
        if open_:
            self._propose(max(open_, key=lambda pair: pair[0])[1])

    # -- deciding an epoch ---------------------------------------------------------------------

    def _propose(self, map: ClusterMap) -> None:
        self._proposing = True
        self.accepted = (self.promised, map)
        self._accepts = {self.name}
        self._begin_again()
        self._maybe_commit()

    def _begin_again(self) -> None:
        """Ask those who have not accepted the open proposal; who died since does not know of it."""
        if self._proposing and self.accepted:
            for other in self._others:
                if other not in self._accepts:
                    self._send(other, Begin(self.promised, self.accepted[1]))

    def _begin(self, source: Node, message: Begin) -> None:
        if message.pn < self.promised:
            return
        self._follow(source, message.pn)
        if message.map.epoch > self.epoch:
            self.accepted = (message.pn, message.map)
            self._send(source, Accept(message.pn, message.map.epoch))

    def _accept(self, source: Node, message: Accept) -> None:
        if self.leading and message.pn == self.promised and message.epoch == self.epoch + 1:
            self._accepts.add(source)
            self._maybe_commit()

    def _maybe_commit(self) -> None:
        if not self._proposing or 2 * len(self._accepts) <= self._count or not self.accepted:
            return
        self._proposing = False
        self._learn((self.accepted[1],))
        for other in self._others:
            self._send(other, Commit(self.promised, self._maps_after(other)))
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._request(message)

    def _commit(self, source: Node, message: Commit) -> None:
        if message.pn < self.promised:
            return
        self._follow(source, message.pn)
        self._learn(message.maps)
        self._send(source, CommitAck(message.pn, self.epoch))

    def _follow(self, leader: Node, pn: int) -> None:
        self.promised = pn
        self.leading, self.leader = False, leader
        self._heard = self._engine.now

    def _learn(self, maps: tuple[ClusterMap, ...]) -> None:
        before = self.epoch
        for map in maps:
            if map.epoch == self.epoch + 1:
                self.maps.append(map)
        if self.epoch > before:
            for node in self._subscribers:
                self._publish(node)

    def _publish(self, node: Node) -> None:
        have = self._subscribers[node]
        if have < self.epoch:
            self._send(node, MapShare(tuple(self.maps[have:])))
            self._subscribers[node] = self.epoch

    def _maps_after(self, mon: Node) -> tuple[ClusterMap, ...]:
        return tuple(self.maps[self._behind.get(mon, 0) :])

    # -- what OSDs ask for ---------------------------------------------------------------------

    def _request(self, message: Any) -> None:
        if self._proposing:  # answered by the map that is coming, not by the one that goes
            self._waiting.append(message)
            return
        map = self.maps[-1]
        match message:
            case Boot(osd, nonce):
                state = map.osds[osd]
                if not state.up:
                    self._osds[osd] = OsdState(True, True, map.epoch + 1, state.up_thru, nonce)
                    self._reports.pop(osd, None)
                elif nonce > state.nonce:
                    self._osds[osd] = replace(state, up=False)  # its earlier life ends first
            case Alive(osd, epoch):
                state = map.osds[osd]
                if state.up and osd not in self._osds and state.up_thru < epoch:
                    self._osds[osd] = replace(state, up_thru=map.epoch)
            case SetTemp(osd, pg, acting, epoch):
                current = map.is_up(osd) and epoch >= map.osds[osd].up_from
                if current and map.pg_temp.get(pg, ()) != acting:
                    self._temps[pg] = acting
            case Failure(reporter, target):
                self._failure(map, reporter, target)
            case Change(osd, fields):
                self._osds[osd] = replace(self._osds.get(osd, map.osds[osd]), **fields)
        if self._osds or self._temps:
            self._propose_soon()

    def change(self, osd: int, fields: Mapping[str, bool]) -> None:
        """Take an administrator's change of an OSD's state, at the leader."""
        self._request(Change(osd, fields))

    def _failure(self, map: ClusterMap, reporter: int, target: int) -> None:
        if not (map.is_up(reporter) and map.is_up(target)) or target in self._osds:
            return
        now = self._engine.now
        reports = self._reports.setdefault(target, {})
        reports[reporter] = now
        recent = [o for o, t in reports.items() if map.is_up(o) and now - t < 3 * self.config.tick]
        if len(recent) >= self.config.min_reporters:
            self._osds[target] = replace(map.osds[target], up=False)

    def _mark_out(self) -> None:
        if self._proposing:
            return  # the map that is coming may have the OSD up again
        map, now = self.maps[-1], self._engine.now
        for osd, state in enumerate(map.osds):
            if state.up:
                self._down_since.pop(osd, None)
            elif state.in_ and osd not in self._osds:
                since = self._down_since.setdefault(osd, now)
                if now - since > self.config.down_out:
                    self._osds[osd] = replace(state, in_=False)
                    self._propose_soon()

    def _propose_soon(self) -> None:
        """Propose what has gathered, a moment later, so that changes share an epoch."""
        if self._proposing:
            return
        life, pn = self._life, self.promised

        def propose() -> None:
            mine = life == self._life and self.leading and pn == self.promised
            if mine and not self._proposing and (self._osds or self._temps):
                osds, temps, self._osds, self._temps = self._osds, self._temps, {}, {}
                self._propose(self.maps[-1].successor(osds, temps))

        self._engine.at(self.config.propose, propose)
