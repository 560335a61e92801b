"""What goes wrong in a run, when: settings of clusters and schedules of faults, all from the seed.

Of every four seeds two have the faults of nodes, wires and disks, one half of them at random and
the others random within a shape that is known to hurt: a relay, in which those who were away come
back when those who were there die; a primary that is cut off from everybody but its clients;
members that come back and lack a little; power that fails for all while disks are slow.

The other two seeds add people and minorities: operators who replace whole acting sets, or have
somebody marked down who lives and serves; monitors that hear no other monitor while maps change;
clients that die in the middle of a write; disks of which some are so slow that what the others
have is all there is. Half of these pools are erasure-coded.
"""

from dataclasses import dataclass

from vmlib.ceph.rados import KINDS, Fault, Pool, random_faults

OBJECTS = "abcdefgh"
SIMPLE = KINDS[: KINDS.index("echo") + 1]
"""Faults of nodes, wires and disks; those of people and minorities come after them."""
THEMES = (
    (SIMPLE, 7),
    (SIMPLE, 14),
    (("crash", "crash", "crash", "power", "slow disk"), 14),
    (("backend", "node", "link", "slow wire"), 8),
    (("crash", "backend", "monitor", "echo", "slow disk"), 10),
)
"""Kinds of faults and how many of them."""


@dataclass(frozen=True)
class Setting:
    """A cluster and its clients; `writers` of the clients write, the others read."""

    pool: Pool
    policy: str
    osds: int
    log_length: int
    jitter: float
    latency: float
    clients: int = 4
    writers: int = 2
    names: str = OBJECTS
    grace: float = 4.0
    """Seconds; the lease is 0.8 of it."""


def setting(seed, draw):
    """Return the setting of a run; `draw` is the run's, and goes on to make its schedule."""
    policy = ("default", "balance", "localize")[seed // 3 % 3]
    if is_newer(seed):
        erasure = draw.random() < 0.5
        groups = draw.choice((1, 2))
        pool = Pool.erasure(2, 2, pg_num=groups) if erasure else Pool(pg_num=groups)
        clients = draw.choice((4, 8))
        return Setting(
            pool,
            policy,
            draw.choice((5, 6, 8)) if erasure else draw.choice((4, 5, 6)),
            draw.choice((3, 12, 200)),
            draw.choice((0.001, 0.03)),
            draw.choice((0.03, 0.2)),
            clients,
            draw.choice((2, clients // 2, clients)),
            draw.choice((OBJECTS[:2], OBJECTS)),
            draw.choice((4.0, 10.0)),
        )
    erasure = seed % 3 == 2
    pool = Pool.erasure(2, 2, pg_num=2) if erasure else Pool(pg_num=2)
    return Setting(
        pool,
        policy,
        draw.choice((5, 6)) if erasure else draw.choice((3, 4, 5)),
        draw.choice((12, 200)),
        draw.choice((0.001, 0.03)),
        draw.choice((0.03, 0.2)),
    )


def is_newer(seed):
    """Whether this seed's schedule has people and minorities in it."""
    return seed % 4 < 2


def schedule(seed, draw, cluster, end):
    """Return the faults of a run."""
    begin = cluster.engine.now
    if is_newer(seed):
        return draw.choice(NEWER)(draw, cluster, begin, end)
    if draw.random() < 0.4:
        kinds, count = draw.choice(THEMES)
        return random_faults(seed, cluster, until=end, count=count, kinds=kinds)
    return draw.choice((relay, relay, cut_off, late_return, blackout))(draw, cluster, begin, end)


# -- nodes, wires and disks --------------------------------------------------------------------


def relay(draw, cluster, begin, end):
    """Some OSDs die; later the others die and the first come back: who knows what was written?"""
    osds = list(range(len(cluster.osds)))
    draw.shuffle(osds)
    first = osds[: draw.randint(1, len(osds) - 1)]
    change = begin + draw.uniform(12, 25)
    faults = [Fault("crash", begin + draw.uniform(0, 3), change - begin, o) for o in first]
    for osd in osds[len(first) :]:
        faults.append(Fault("crash", change - draw.uniform(0, 2), end - change - 5, osd))
    return faults


def cut_off(draw, cluster, begin, end):
    """A primary loses everybody but its clients, and comes back; twice."""
    faults = []
    for start in (begin, begin + 28):
        osd = cluster.primary(draw.choice(OBJECTS))
        faults.append(Fault("backend", start + draw.uniform(0, 5), draw.uniform(8, 18), osd))
    return faults


def late_return(draw, cluster, begin, end):
    """A member is away for some writes and returns, again and again."""
    starts = (begin, begin + 14, begin + 28, begin + 42)
    osds = range(len(cluster.osds))
    return [Fault("crash", at, draw.uniform(0.5, 8), draw.choice(osds)) for at in starts]


def blackout(draw, cluster, begin, end):
    """The power fails for everybody while the disks are slow."""
    faults = []
    for start in (begin, begin + 20, begin + 40):
        off = start + draw.uniform(4, 10)
        faults.append(Fault("power", off, draw.uniform(0.3, 4), 0))
        for osd in draw.sample(range(len(cluster.osds)), 2):
            faults.append(Fault("slow disk", off - 3, 4, osd))
    return faults


# -- people and minorities ---------------------------------------------------------------------


def swap(draw, cluster, begin, end):
    """An operator moves everything from some OSDs to the others at one time, and back.

    Those who gave their PGs away, or those who got them, may crash about then.
    """
    osds = list(range(len(cluster.osds)))
    draw.shuffle(osds)
    half = min(cluster.map.pools[0].size, len(osds) - 1)
    first, second = osds[:half], osds[half:]
    there, back = begin + draw.uniform(10, 20), begin + draw.uniform(30, 40)
    faults = [Fault("out", begin, there - begin, osd) for osd in second]
    faults += [Fault("out", there, back - there, osd) for osd in first]
    for at in (there, back):
        victims = draw.sample(osds, draw.randint(0, 3))
        faults += [
            Fault("crash", at + draw.uniform(-1, 4), draw.uniform(0.5, 12), o) for o in victims
        ]
    return faults


def marked_down(draw, cluster, begin, end):
    """A primary serves its clients, cut off, when the others are told at once that it is down.

    The others may have lost their memory just then: who knows how long it goes on reading?
    """
    faults = []
    for start in (begin, begin + 20, begin + 40):
        osd = cluster.primary(draw.choice(OBJECTS[:2]))
        start += draw.uniform(2, 6)
        faults.append(Fault("down", start, draw.uniform(4, 12), osd))
        if draw.random() < 0.5:
            at = start + draw.uniform(-1, 1)
            others = [other for other in range(len(cluster.osds)) if other != osd]
            faults += [Fault("crash", at, 0.3, other) for other in others]
    return faults


def minorities(draw, cluster, begin, end):
    """Monitors lose each other and die, at about the same time, while maps change all the time."""
    faults = [Fault("slow wire", begin, end - begin - 10, 0)] if draw.random() < 0.7 else []
    at = begin
    while at < end - 14:
        at += draw.uniform(0.5, 5)
        first, second = draw.sample(range(len(cluster.monitors)), 2)
        faults.append(Fault("split", at, draw.choice((0.2, 3.0, 10.0)), first))
        if draw.random() < 0.7:
            faults.append(Fault("monitor", at - draw.uniform(0, 0.3), 0.2, second))
        for _ in range(2):
            osd = draw.randrange(len(cluster.osds))
            kind = draw.choice(("out", "out", "crash", "down"))
            faults.append(Fault(kind, at - draw.uniform(0, 0.4), draw.uniform(0.5, 8), osd))
    return faults


def half_done(draw, cluster, begin, end):
    """Clients die in mid-write, some of whose messages come late, and so do some OSDs."""
    faults = [Fault("echo", begin, end - begin - 10, 0)]
    for _ in range(5):
        at = draw.uniform(begin + 1, end - 15)
        client = draw.randrange(len(cluster.clients))
        faults.append(Fault("client", at, draw.uniform(0.3, 3), client))
        faults += [
            Fault("crash", at + draw.uniform(-0.3, 0.3), draw.uniform(0.5, 8), osd)
            for osd in draw.sample(range(len(cluster.osds)), draw.randint(0, 2))
        ]
        faults.append(Fault("slow disk", at - 1, 2, draw.randrange(len(cluster.osds))))
    return faults


def uneven(draw, cluster, begin, end):
    """The power fails for everybody while some disks are slow: a few copies have what others lack.

    It may fail again while they agree on that.
    """
    faults = []
    count = len(cluster.osds)
    for start in (begin, begin + 20, begin + 40):
        off = start + draw.uniform(3, 6)
        faults.append(Fault("power", off, draw.uniform(0.3, 2), 0))
        for osd in draw.sample(range(count), draw.randint(1, count - 1)):
            faults.append(Fault("slow disk", off - 2, draw.choice((2.5, 8)), osd))
        if draw.random() < 0.5:
            faults.append(Fault("power", off + draw.uniform(2, 6), 0.3, 0))
    return faults


def one_ahead(draw, cluster, begin, end):
    """One disk is fast. Those with slow ones die with what they had in memory, and return.

    Later, while they still write down what they agreed on, the fast one dies or is marked down.
    """
    faults = []
    slow = 40 * cluster.osds[0].store.latency
    for start in (begin, begin + 25):
        ahead = cluster.primary(draw.choice(OBJECTS[:2]))
        at = start + draw.uniform(2, 4)
        for osd in range(len(cluster.osds)):
            if osd != ahead:
                faults.append(Fault("slow disk", at - 1.5, 18, osd))
                faults.append(Fault("crash", at, 0.3, osd))
        later = at + 1.5 + draw.uniform(0, min(6 * slow, 14))
        faults.append(Fault(draw.choice(("crash", "down")), later, 6, ahead))
    return faults


def everything(draw, cluster, begin, end):
    """Any fault at any time."""
    count = draw.choice((8, 16))
    return random_faults(draw.randrange(1 << 30), cluster, until=end, count=count)


NEWER = (swap, marked_down, minorities, half_done, uneven, one_ahead, everything)
