"""Reading from other copies: enough chunks, or one copy, of exactly one version of an object.

Whoever may have it is asked, as many as are needed at a time; where an answer disappoints the next
one is asked. What comes back is decoded and written elsewhere (`ops`, `recovery`).
"""

from collections.abc import Callable

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.pg_state import Gather, PgState
from vmlib.ceph.rados.pglog import Peer, Version
from vmlib.ceph.rados.store import Stored


def start(
    pg: PgState,
    name: str,
    version: Version,
    need: int,
    done: Callable[[dict[int, Stored] | None], None],
) -> None:
    """Read `need` chunks (or one copy) of exactly this version; `done(None)` if there are not.

    Whoever may have it is asked, one after the other where an answer disappoints.
    """
    here = pg.copy.objects.get(name)
    got: dict[int, Stored] = {}
    if here and here.version == version and name not in pg.copy.meta.missing:
        got[pg.shard] = here
    work = Gather(name, version, need, _holders(pg, name), done, got)
    pg.osd.tids += 1
    pg.gathers[pg.osd.tids] = work
    _ask_more(pg, pg.osd.tids)


def _holders(pg: PgState, name: str) -> list[Peer]:
    """Members first, then strays whose log we have seen and who do not lack the object."""
    members = [p for p in pg.acting if p != pg.me and name not in pg.missing.get(p, {})]
    up = pg.osd.map.is_up
    strays = [
        peer
        for peer, meta in sorted(pg.metas.items())
        if peer not in pg.acting and up(peer[0]) and name not in meta.missing
    ]
    return members + strays


def _ask_more(pg: PgState, tid: int) -> None:
    work = pg.gathers[tid]
    shards = {peer[1] for peer in work.asked} | work.got.keys()
    while len(work.got) + len(work.asked) < work.need:
        peer = next((p for p in work.ask if p[1] not in shards), None)
        if peer is None:
            break
        work.ask.remove(peer)
        work.asked.add(peer)
        shards.add(peer[1])
        pg.send(peer, m.Fetch, work.name, tid, work.version)
    if len(work.got) >= work.need or not work.asked:
        del pg.gathers[tid]
        work.done(work.got if len(work.got) >= work.need else None)


def got(pg: PgState, source: Peer, message: m.Fetched) -> None:
    """An answer: right, or of another version and of no use."""
    work = pg.gathers.get(message.tid)
    if work is None or source not in work.asked:
        return
    work.asked.discard(source)
    if message.held and message.held.version == work.version:
        work.got[source[1]] = message.held
    _ask_more(pg, message.tid)


def give_up_on_dead(pg: PgState) -> None:
    """A new epoch: whoever was asked and is down now will not answer."""
    for tid in list(pg.gathers):
        work = pg.gathers[tid]
        dead = {peer for peer in work.asked if not pg.osd.map.is_up(peer[0])}
        if dead:
            work.asked -= dead
            _ask_more(pg, tid)
