"""An OSD: a process with a disk, a cluster map, heartbeats, and its copies of placement groups.

It moves through the map's history one epoch at a time and starts a new interval wherever a PG's
members changed. A message from a later epoch waits until the map is here; one from an interval that
has ended is dropped. Every second it pings the others, reports those silent for longer than
`grace`, and repeats whatever it wants of the monitors.

A process that starts has its journal and its old maps, and serves nothing until a map says that
*this* life of it is up. One that reads in the map that it is down says that it is not.

Ceph: doc/rados/configuration/mon-osd-interaction.rst (`osd_heartbeat_grace` 20 s,
`osd_heartbeat_interval` 6 s), doc/dev/osd_internals/map_message_handling.rst, stale_read.rst
(lease = `osd_pool_default_read_lease_ratio` 0.8 x grace). Left out: trimming of old maps, the
choice of heartbeat peers (here: everybody up), PG creation (a PG exists from epoch 1).
"""

from collections.abc import Callable
from typing import Any

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados import ops
from vmlib.ceph.rados.clustermap import ClusterMap, Placed, Placement, interval_start
from vmlib.ceph.rados.engine import Engine, Node
from vmlib.ceph.rados.osd_config import OsdConfig
from vmlib.ceph.rados.pg import PG
from vmlib.ceph.rados.pglog import PgId
from vmlib.ceph.rados.store import Copy, Key, Store


class Osd:
    """One OSD. Its `store` and the maps it has seen outlive its crashes."""

    def __init__(
        self,
        engine: Engine,
        id: int,
        monitors: list[Node],
        first: ClusterMap,
        place: Placement,
        store: Store,
        config: OsdConfig,
    ) -> None:
        self.id, self.name = id, f"osd.{id}"
        self.engine, self.place, self.store, self.config = engine, place, store, config
        self.maps = {first.epoch: first}
        self.epoch = first.epoch
        self.alive = False
        self.life = 0
        self.tids = 0
        self.pgs: dict[Key, PG] = {}
        self._monitors = monitors

    @property
    def map(self) -> ClusterMap:
        """The newest map that this OSD has."""
        return self.maps[self.epoch]

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.engine.now

    @property
    def serving(self) -> bool:
        """Whether the map says that this life of this OSD is up."""
        state = self.map.osds[self.id]
        return self.alive and state.up and state.nonce == self.life

    def start(self) -> None:
        """Begin a life with what is on disk."""
        self.alive = True
        self.life += 1
        self._served = False
        """Was up in the epoch before this one."""
        self._early: list[tuple[Node, Any]] = []
        self._heard: dict[int, float] = {}
        self._asked_at = -1.0
        self.pgs = {}
        for (pg, shard), copy in self.store.mount().items():
            self._instance(pg, shard, copy).bound = self.now + self.config.lease
        self.engine.attach(self.name, self)
        self._repeat(self.life, self._tick, self.config.tick)
        self._repeat(self.life, self._heartbeat, self.config.heartbeat)

    def crash(self) -> None:
        """End this life: memory is lost, and so is what the journal has not written."""
        self.alive = False
        self.life += 1
        self.store.crash()
        self.engine.detach(self.name)

    def send(self, target: Node, message: Any) -> None:
        """Send a message."""
        self.engine.send(self.name, target, message)

    def _instance(self, pg: PgId, shard: int, copy: Copy | None = None) -> PG:
        key = (pg, shard)
        if key not in self.pgs:
            self.pgs[key] = made = PG(self, pg, shard, copy or Copy())
            if self.serving:
                made.placed = self.place.place(self.map, pg)
                made.since = interval_start(self.maps, self.place, pg, self.epoch)
        return self.pgs[key]

    # -- what comes by itself ------------------------------------------------------------------

    def _repeat(self, life: int, call: Callable[[], None], every: float) -> None:
        if life == self.life:
            call()
            self.engine.at(every, lambda: self._repeat(life, call, every))

    def _tick(self) -> None:
        self._to_monitor(m.GetMaps(self.epoch))
        if not self.serving:
            self._to_monitor(m.Boot(self.id, self.life))
        self._wants()
        if self.serving:
            for osd, heard in self._heard.items():
                if self.now - heard > self.config.grace:
                    self._to_monitor(m.Failure(self.id, osd))

    def ask_monitors(self) -> None:
        """Tell the monitors what PGs here want, once at this moment and with every tick."""
        if self._asked_at != self.now:
            self._asked_at = self.now
            self._wants()

    def _wants(self) -> None:
        for pg in self.pgs.values():
            if not pg.is_primary:
                continue
            if pg.state == "wait_up_thru":
                self._to_monitor(m.Alive(self.id, pg.since))
            if pg.want is not None:
                self._to_monitor(m.SetTemp(self.id, pg.id, pg.want, self.epoch))

    def _to_monitor(self, message: Any) -> None:
        self.send(self.engine.random.choice(self._monitors), message)

    def _heartbeat(self) -> None:
        for osd, state in enumerate(self.map.osds):
            if osd == self.id:
                continue
            if state.up and self.serving:
                self._heard.setdefault(osd, self.now)
                self.send(f"osd.{osd}", m.Ping())
            else:
                self._heard.pop(osd, None)

    # -- messages ------------------------------------------------------------------------------

    def receive(self, source: Node, message: Any) -> None:
        """Take one message."""
        match message:
            case m.Ping(answer=True):
                self._heard[int(source.split(".")[1])] = self.now
            case m.Ping():
                self.send(source, m.Ping(True))
            case m.MapShare():
                self._learn(message.maps)
            case m.GetMaps():
                news = tuple(self.maps[e] for e in range(message.have + 1, self.epoch + 1))
                if news:
                    self.send(source, m.MapShare(news))
            case m.ClientOp() | m.PgMessage():
                if message.epoch > self.epoch:
                    self._early.append((source, message))
                    if source.startswith("osd."):
                        self.send(source, m.GetMaps(self.epoch))
                    else:
                        self._to_monitor(m.GetMaps(self.epoch))
                elif isinstance(message, m.ClientOp):
                    self._client_op(source, message)
                elif self.serving:
                    self._instance(message.pg, message.to).receive(message)

    def _client_op(self, source: Node, op: m.ClientOp) -> None:
        placed = self.place.place(self.map, op.pg)
        shard = placed.acting.index(self.id) if self.id in placed.acting else -1
        if not self.serving or shard < 0:
            if op.epoch < self.epoch:
                news = tuple(self.maps[e] for e in range(op.epoch + 1, self.epoch + 1))
                self.send(source, m.MapShare(news))
            return
        pg = self._instance(op.pg, self.map.pool(op.pg.pool).shard(shard))
        if pg.is_primary:
            ops.client_op(pg, source, op)
        elif op.data is None and op.replica_ok:
            ops.replica_read(pg, source, op)
        elif op.epoch < self.epoch:
            news = tuple(self.maps[e] for e in range(op.epoch + 1, self.epoch + 1))
            self.send(source, m.MapShare(news))

    # -- maps ----------------------------------------------------------------------------------

    def _learn(self, maps: tuple[ClusterMap, ...]) -> None:
        before = self.epoch
        for map in maps:
            if map.epoch == self.epoch + 1:
                self.maps[map.epoch] = map
                self.epoch = map.epoch
                self._advance(map)
        if self.epoch > before and self._early:
            early, self._early = self._early, []
            for source, message in early:
                self.receive(source, message)

    def _advance(self, map: ClusterMap) -> None:
        for osd in list(self._heard):
            if not map.is_up(osd):
                del self._heard[osd]
        starts, ends = self.serving and not self._served, self._served and not self.serving
        self._served = self.serving
        if not (self.serving or ends):
            return
        for pg in map.pgs():
            placed = self.place.place(map, pg)
            for osds in (placed.acting, placed.up):
                if self.id in osds:
                    self._instance(pg, map.pool(pg.pool).shard(osds.index(self.id)))
        for copy in list(self.pgs.values()):
            self._advance_pg(copy, self.place.place(map, copy.id), starts)

    def _advance_pg(self, pg: PG, placed: Placed, starts: bool) -> None:
        since = interval_start(self.maps, self.place, pg.id, self.epoch)
        if starts or pg.since != since or pg.placed != placed or pg.state == "new":
            pg.start_interval(since, placed)
        else:
            pg.new_map()
