"""A cluster to play with: monitors, OSDs, clients, one clock.

>>> cluster = Cluster(seed=1, osds=4)
>>> cluster.write("greeting", b"hello")
>>> cluster.osds[cluster.primary("greeting")].crash()
>>> cluster.read("greeting")
b'hello'

The same seed gives the same run, event for event. Nothing here decides anything: it starts the
nodes, lets time pass, and adds up what they did.
"""

from collections.abc import Generator, Sequence
from typing import Any

from vmlib.ceph.rados.client import Client, Operation
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
from vmlib.ceph.rados.device import BLUESTORE_HDD, Backend, DeviceBytes
from vmlib.ceph.rados.engine import Engine
from vmlib.ceph.rados.monitor import MonConfig, Monitor
from vmlib.ceph.rados.osd import Osd
from vmlib.ceph.rados.osd_config import LONGEST, SHORTEST, OsdConfig
from vmlib.ceph.rados.pg import PG
from vmlib.ceph.rados.pglog import PgId
from vmlib.ceph.rados.store import Store
from vmlib.errors import BadInput, VmlibError
from vmlib.given import check_one, names_bad_input
from vmlib.numbers import decimal, whole

MOST_NODES = 1000
"""Of a kind: each OSD pings every other."""

MOST_BYTES = 128 << 20
"""Of an object: Ceph's `osd_max_object_size`."""


class NotDone(VmlibError):
    """The cluster did not get there in the time it was given."""


class Cluster:
    """Monitors, OSDs and clients on one engine, running from the start."""

    def __init__(
        self,
        seed: int = 0,
        *,
        osds: int = 4,
        monitors: int = 3,
        clients: int = 1,
        pools: Sequence[Pool] = (Pool(),),
        place: Placement | None = None,
        osd_config: OsdConfig | None = None,
        mon_config: MonConfig | None = None,
        backend: Backend = BLUESTORE_HDD,
        policy: str = "default",
        resend: float = 3.0,
        settle: bool = True,
    ) -> None:
        for what, count in (("osds", osds), ("monitors", monitors), ("clients", clients)):
            whole(count, what, 1, MOST_NODES)
        seed = whole(seed, "seed")
        check_one(pools, Sequence[Pool], "pools")
        if not pools:
            raise BadInput("pools", "are none; there must be one at least")
        check_one(place, Placement | None, "place")
        check_one(osd_config, OsdConfig | None, "osd_config")
        check_one(mon_config, MonConfig | None, "mon_config")
        check_one(backend, Backend, "backend")
        decimal(resend, "resend", SHORTEST, LONGEST)
        self.engine = Engine(seed)
        self.place = place or RawPlacement(rendezvous)
        first = ClusterMap(1, tuple(OsdState() for _ in range(osds)), tuple(pools))
        names = [f"mon.{rank}" for rank in range(monitors)]
        self.monitors = [
            Monitor(self.engine, rank, monitors, first, mon_config or MonConfig())
            for rank in range(monitors)
        ]
        self.osds = [
            Osd(
                self.engine,
                id,
                names,
                first,
                self.place,
                Store(self.engine, backend=backend),
                osd_config or OsdConfig(),
            )
            for id in range(osds)
        ]
        self.clients = [
            Client(
                self.engine,
                id,
                names,
                first,
                self.place,
                pool=pools[0].id,
                policy=policy,
                nearest=[(id + i) % osds for i in range(osds)],
                resend=resend,
            )
            for id in range(clients)
        ]
        for monitor in self.monitors:
            monitor.start()
        for osd in self.osds:
            osd.start()
        if settle:
            self.settle()

    # -- letting time pass ---------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.engine.now + decimal(seconds, "seconds", 0, LONGEST)
        if end > self.engine.now:  # SimPy wants that some time passes
            self.engine.run(end)

    def settle(self, limit: float = 1000.0) -> float:
        """Run until every PG is active and clean; return the seconds it took."""
        decimal(limit, "limit", 0, LONGEST)
        start = self.engine.now
        while not self.clean():
            if self.engine.now - start > limit:
                raise NotDone(f"after {limit:g} s: {self.states()}")
            self.run(0.5)
        return self.engine.now - start

    def write(self, name: str, data: bytes, offset: int | None = None, *, client: int = 0) -> None:
        """Write as a client and wait for the acknowledgement."""
        if not isinstance(data, bytes):
            raise BadInput("data", f"must be bytes, not {type(data).__name__}")
        if len(data) > MOST_BYTES:
            raise BadInput("data", f"is longer than an object may be, {MOST_BYTES} bytes")
        if offset is not None:
            whole(offset, "offset", 0, MOST_BYTES - len(data))
        self._wait(self._client(client, name).write(name, data, offset))

    def read(self, name: str, *, client: int = 0) -> bytes | None:
        """Read as a client."""
        data: bytes | None = self._wait(self._client(client, name).read(name))
        return data

    def _client(self, client: int, name: str) -> Client:
        """Return a client; an object's name that is none is refused before it has begun."""
        self.pg_of(name)
        return self.clients[whole(client, "client", 0, len(self.clients) - 1)]

    def _wait(self, process: Generator[Any, Any, Any], limit: float = 1000.0) -> Any:
        done = self.engine.env.process(process)
        end = self.engine.now + limit
        while not done.processed:
            if self.engine.now > end:
                raise NotDone(f"no answer after {limit:g} s: {self.states()}")
            self.engine.env.step()
        return done.value

    # -- looking -------------------------------------------------------------------------------

    @property
    def map(self) -> ClusterMap:
        """The newest map that any monitor knows to be decided."""
        return max((mon.maps[-1] for mon in self.monitors), key=lambda map: map.epoch)

    def placed(self, name: str, pool: int | None = None) -> Placed:
        """Return where an object is, by the newest map."""
        return self.place.place(self.map, self.pg_of(name, pool))

    def pg_of(self, name: str, pool: int | None = None) -> PgId:
        """Return the PG of an object."""
        pools = self.map.pools
        return self.place.pg_of(self.map.pool(pools[0].id if pool is None else pool), name)

    def primary(self, name: str) -> int:
        """Return the OSD that leads an object's PG, by the newest map."""
        return self.placed(name).primary

    @names_bad_input
    def leader(self, pg: PgId) -> PG | None:
        """Return the copy that leads a PG now, if its OSD lives and knows it."""
        placed = self.place.place(self.map, pg)
        if placed.primary == NONE:
            return None
        osd = self.osds[placed.primary]
        shard = self.map.pool(pg.pool).shard(placed.acting.index(placed.primary))
        copy = osd.pgs.get((pg, shard))
        return copy if copy and osd.epoch == self.map.epoch and copy.is_primary else None

    def states(self) -> dict[str, str]:
        """Return each PG's state, as its primary sees it."""
        found = {}
        for pg in self.map.pgs():
            copy = self.leader(pg)
            found[str(pg)] = "unknown" if copy is None else state(copy)
        return found

    def clean(self) -> bool:
        """Whether every PG is active with nothing missing anywhere, where its map wants it."""
        return all(said == "active+clean" for said in self.states().values())

    def history(self) -> list[Operation]:
        """Return what all clients did, in the order in which they began it."""
        return sorted((op for client in self.clients for op in client.history), key=_start)

    def device_bytes(self) -> DeviceBytes:
        """Return what all journals and disks have written so far, data and logs."""
        total = DeviceBytes()
        for osd in self.osds:
            total += osd.store.written
        return total

    def set_in(self, osd: int, in_: bool) -> None:
        """Mark an OSD in or out, as `ceph osd out` does. Needs a leader among the monitors."""
        check_one(in_, bool, "in_")
        self._change(osd, in_=in_)

    def set_down(self, osd: int) -> None:
        """Mark an OSD down, as `ceph osd down` does. If it lives it says so and comes back."""
        self._change(osd, up=False)

    def _change(self, osd: int, **fields: bool) -> None:
        whole(osd, "osd", 0, len(self.osds) - 1)
        for monitor in self.monitors:
            if monitor.leading:
                monitor.change(osd, fields)


@names_bad_input
def state(pg: PG) -> str:
    """Return a PG's state as `ceph pg stat` would print it."""
    words = [pg.state]
    if pg.active:
        if pg.osd.now < pg.prior_bound:
            words.append("wait")
        if pg.copy.meta.missing or any(pg.missing.values()):
            words.append("recovering")
        if pg.unfound:
            words.append("unfound")
        if pg.backfill:
            words.append("backfilling")
        if len(pg.acting) < pg.pool.size:
            words.append("undersized+degraded")
        if pg.clean and words == ["active"]:
            words.append("clean")
    return "+".join(words)


def _start(op: Operation) -> float:
    return op.start
