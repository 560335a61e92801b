"""Who may go on after everybody died: the model's stories, lived by a running cluster.

Three OSDs, one group in each pool, the same deaths in the same order on both. What is held against
the cluster is whether the group serves in the end, and what is read then.
"""

import base64
import time

import pytest
from crush_maps import version
from live_cluster import NEEDS, LiveCluster

from vmlib.ceph import rados

pytestmark = pytest.mark.needs(*NEEDS)


class Live:
    """A pool of the running cluster, with the verbs of the stories."""

    def __init__(self, cluster, min_size):
        self.cluster, self.pool = cluster, f"min-size-{min_size}"
        cluster.mon("osd pool create", pool=self.pool, pg_num=1, pgp_num=1, size=3)
        settings = {"min_size": min_size, "read_lease_interval": 1}  # as short as the story
        for name, value in settings.items():
            cluster.mon("osd pool set", pool=self.pool, var=name, val=str(value))
        self.write("before")

    @property
    def place(self):
        return self.cluster.osdmap()[0].pg_table(self.pool)[0]

    def members(self):
        return list(self.place.acting)

    def die(self, *osds):
        for osd in osds:
            self.cluster.kill(f"osd.{osd}")
        self.cluster.mon("osd down", ids=[str(osd) for osd in osds])
        self.cluster.do("newest_map")

    def rise(self, *osds):
        for osd in osds:
            self.cluster.daemon(f"osd.{osd}")
        up = self.cluster.osdmap
        self.cluster.until(lambda: all(up()[0].is_up(osd) for osd in osds))
        self.cluster.do("newest_map")

    def write(self, text):
        self.cluster.put(self.pool, "x", text.encode())

    def read(self):
        got = self.cluster.do("get", pool=self.pool, name="x", length=100, offset=0)
        return base64.b64decode(got).decode()

    def states(self, wanted):
        """Return in which of these states the group is for eight seconds on end."""

        def now():
            place = self.place
            if place.acting_primary == -1:
                return None
            said = self.cluster.ask(f"osd.{place.acting_primary}", "query", pgid=place.pgid)
            words = said.get("state", "").split("+")
            return next((state for state in wanted if state in words), None)

        last, since, end = None, time.monotonic(), time.monotonic() + 90
        while last is None or time.monotonic() < since + 8:
            assert time.monotonic() < end, f"neither for long; {last} in the end"
            time.sleep(0.2)
            if (state := now()) != last:
                last, since = state, time.monotonic()
        return last


class Model:
    """The same pool in the model."""

    def __init__(self, min_size):
        pool = rados.Pool(size=3, min_size=min_size)
        self.cluster = rados.Cluster(seed=1, osds=3, pools=[pool])
        self.write("before")

    def members(self):
        return list(self.cluster.placed("x").acting)

    def die(self, *osds):
        for osd in osds:
            self.cluster.osds[osd].crash()
            self.cluster.set_down(osd)
        self.cluster.run(60)

    def rise(self, *osds):
        for osd in osds:
            self.cluster.osds[osd].start()
        self.cluster.run(60)

    def write(self, text):
        self.cluster.write("x", text.encode())

    def read(self):
        return self.cluster.read("x").decode()

    def states(self, wanted):
        (now,) = self.cluster.states().values()
        return next(state for state in wanted if state in now.split("+"))


def last_witness_gone(pool):
    """With min_size 1 one writes alone and dies; the others come back without it."""
    *others, last = pool.members()
    pool.die(*others)
    pool.write("on one disk only")
    pool.die(last)
    pool.rise(*others)
    yield pool.states(("active", "down"))
    pool.rise(last)
    yield pool.states(("active", "down"))
    yield pool.read()


def one_witness_left(pool):
    """With min_size 2 two write and die; one of them comes back with the one who missed it."""
    first, second, third = pool.members()
    pool.die(first)
    pool.write("by two")
    pool.die(second, third)
    pool.rise(first)
    yield pool.states(("active", "down"))
    pool.rise(second)
    yield pool.states(("active", "down"))
    yield pool.read()
    pool.rise(third)


def test_who_may_go_on_after_everybody_died(check):
    with (
        LiveCluster(3, "bluestore") as cluster,
        check(
            "ceph/live-peering",
            what="whether a group serves after its members died in turn, and what is read then",
            tool="a running cluster of three OSDs",
            tool_version=version(),
            covers=["vmlib/ceph/rados/peering.py", "vmlib/ceph/rados/clustermap.py"],
        ) as done,
    ):
        stories = ((1, last_witness_gone), (2, one_witness_left))
        for min_size, story in stories:
            theirs, ours = list(story(Live(cluster, min_size))), list(story(Model(min_size)))
            for i, (mine, real) in enumerate(zip(ours, theirs, strict=True)):
                done.case(mine, real, f"{story.__name__}, {i}")
