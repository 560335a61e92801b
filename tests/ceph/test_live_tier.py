"""The model of a cache tier, step by step beside a tier of a running cluster.

Both get the same accesses. After each of them the same objects have to be in the cache pool, in
the base pool, dirty, proxied and promoted, and a read has to show the same write. Pools have one
placement group, so that there is one hit set, and promotion is not slowed down. The agent, which
Ceph lets work by and by, and by estimated temperature, is held to when it begins.
"""

import base64
import random
import time
from collections import Counter

import pytest
from crush_maps import version
from live_cluster import NEEDS, LiveCluster

from vmlib.ceph.rados import CacheTier, TierConfig
from vmlib.units import KIB

pytestmark = pytest.mark.needs(*NEEDS, "rados")

SIZE = 64 * KIB
NAMES = "abcdef"
COVERS = ["vmlib/ceph/rados/tier.py"]


@pytest.fixture(scope="module")
def cluster():
    with LiveCluster(3) as running:
        yield running


class Tier:
    """A tier of the cluster, and the model of it; `old` is in the base before."""

    def __init__(self, cluster, name, old=NAMES, **options):
        self.cluster, self.base, self.cache = cluster, f"{name}-base", f"{name}-cache"
        self.config = TierConfig(object_size=SIZE, **options)
        mon, config = cluster.mon, self.config
        for pool in (self.base, self.cache):
            mon("osd pool create", pool=pool, pg_num=1, pgp_num=1, size=2)
        for each in old:
            cluster.put(self.base, each, b"1".ljust(SIZE))
        mon("osd tier add", pool=self.base, tierpool=self.cache)
        sure = {"yes_i_really_mean_it": True}
        mon("osd tier cache-mode", pool=self.cache, mode=config.mode, **sure)
        for var, value in {
            "target_max_bytes": config.target_max_bytes,
            "cache_target_dirty_ratio": config.dirty_ratio,
            "cache_target_full_ratio": config.full_ratio,
            "hit_set_type": "bloom",
            "hit_set_fpp": 0.001,
            "hit_set_count": config.hit_set_count,
            "hit_set_period": int(config.hit_set_period),
            "min_read_recency_for_promote": config.min_read_recency,
            "min_write_recency_for_promote": config.min_write_recency,
        }.items():
            last = time.monotonic()
            mon("osd pool set", pool=self.cache, var=var, val=str(value))
        mon("osd tier set-overlay", pool=self.base, overlaypool=self.cache)
        self.start = time.monotonic()
        cluster.do("newest_map")
        epoch = cluster.dump()["epoch"]
        osds = [f"osd.{i}" for i in range(cluster.count)]
        cluster.until(lambda: all(cluster.ask(o, "status")["newest_map"] >= epoch for o in osds))
        self.first_set = last - self.start, time.monotonic() - self.start
        """From when to when an OSD has begun the first hit set: each change of a pool does it."""
        self.slowest = 0.0
        """The longest that an access took, in seconds."""
        self.pgid = f"{cluster.osdmap()[0].pool(self.cache).pool}.0"
        self.before = self.counters()
        self.model = CacheTier(config, old)

    def counters(self):
        total = Counter()
        for daemon in self.cluster.counters().values():
            for name, value in daemon["osd"].items():
                if name.startswith("tier_") and isinstance(value, int):
                    total[name] += value
        return total

    def names(self, pool):
        return sorted(name for space, name in self.cluster.do("names", pool=pool) if not space)

    def theirs(self):
        """What the tier holds and has done."""
        done = self.counters() - self.before
        sums = self.cluster.do("group", pgid=self.pgid)["info"]["stats"]["stat_sum"]
        return {
            "cached": self.names(self.cache),
            "base": self.names(self.base),
            "dirty": sums["num_objects_dirty"],
            "proxied": done["tier_proxy_read"] + done["tier_proxy_write"],
            "promoted": done["tier_promote"] - done["tier_whiteout"],
            "flushed": done["tier_flush"] + done["tier_try_flush"],  # by us, by the agent
            "evicted": done["tier_evict"],
        }

    def ours(self):
        model = self.model
        base = sorted(model._base)
        counts = {key: getattr(model.counts, key)
                  for key in ("proxied", "promoted", "flushed", "evicted")}  # fmt: skip
        return {"cached": model.cached(), "base": base, "dirty": len(model.dirty()), **counts}

    def access(self, what, name):
        """Do the same on both; return which write each of them shows."""
        now = time.monotonic() - self.start
        if what == "read":
            seen = self.model.read(name, SIZE, now)
            got = self.cluster.do("get", pool=self.base, name=name, length=SIZE, offset=0)
            self.slowest = max(self.slowest, time.monotonic() - self.start - now)
            return seen, int(base64.b64decode(got).split()[0])
        length = SIZE if what == "write all" else 16
        seen = self.model.write(name, length, now)
        data = base64.b64encode(str(seen).encode().ljust(length)).decode()
        if what == "write all":
            self.cluster.do("put", pool=self.base, name=name, data=data)
        else:
            self.cluster.do("write_at", pool=self.base, name=name, data=data, offset=0)
        return seen, seen

    def step(self, what, name):
        """Do the same on both; return what each shows when the cluster is through with it."""
        seen, real = self.access(what, name)
        return {"seen": seen, **self.ours()}, {"seen": real, **self.settled()}

    def empty(self):
        self.model.flush_evict_all()
        self.cluster.run("rados", "-p", self.cache, "cache-flush-evict-all")
        return self.ours(), self.settled()

    def settled(self):
        """What the tier shows: at once if it is what we say, else when it changes no more."""
        end, last = time.monotonic() + 8, None
        while (now := self.theirs()) != self.ours() and time.monotonic() < end:
            time.sleep(0.05)
        while now != self.ours() and now != last:
            last = now
            time.sleep(0.5)
            now = self.theirs()
        return now


def accesses(rng, tier, count):
    """Return random accesses; nothing is read that does not exist."""
    made = set(NAMES)
    for _ in range(count):
        what = rng.choice(("read", "read", "write", "write all"))
        name = rng.choice(sorted(made) if what == "read" else NAMES + "xyz")
        made.add(name)
        yield what, name


TIERS = {
    "writeback": {},
    "at-once": {"min_read_recency": 0, "min_write_recency": 0},
    "reads-only": {"min_write_recency": 2},
    "readproxy": {"mode": "readproxy"},
    "readonly": {"mode": "readonly"},
}


def test_every_access_does_what_the_model_says(cluster, check):
    with check(
        "ceph/live-tier",
        what="what each access to a tier promotes, passes on, dirties and shows, in three modes",
        tool="cache tiers of a running cluster",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        for seed, (name, options) in enumerate(TIERS.items()):
            tier = Tier(cluster, name, **options)
            for i, (what, which) in enumerate(accesses(random.Random(seed), tier, 40)):
                done.case(*tier.step(what, which), f"{name} {i}: {what} {which}")
                if i == 25:
                    done.case(*tier.empty(), f"{name}: emptied")


ASKED = [(1.5, "a"), (2.5, "b"), (5.5, "a"), (6.2, "a"), (7, "a"), (10.5, "b"), (11.2, "b")]
ASKED += [(12, "b"), (21, "b"), (21.5, "c"), (22, "c"), (22.5, "c")]


def through_hit_sets(cluster, name):
    """Ask for objects over hit sets of 4 s, until both differ; return both, or None if too late.

    No access stands nearer than 1 s to where a set may end. So it says nothing only where that is
    not sure: where an OSD may have begun its first set 1.4 s beside ours, or we are late by 0.4 s.
    """
    tier = Tier(cluster, name, min_read_recency=2, hit_set_period=4.0)
    ours = theirs = {}
    late = max(map(abs, tier.first_set)) > 1.4
    for at, which in ASKED:
        time.sleep(max(0.0, tier.start + at - time.monotonic()))
        late |= time.monotonic() - tier.start - at > 0.4
        ours, theirs = ({"at": at, **seen} for seen in tier.step("read", which))
        late |= tier.slowest > 0.4
        if late:
            return None
        if ours != theirs:
            break
    return ours, theirs


def test_hit_sets_end_when_the_model_says(cluster):
    """Two hit sets of 4 s: an object must be in both, and a set ends with an access, not alone.

    Where the machine was too busy to tell, it is asked again; a difference is one at once.
    """
    tries = (through_hit_sets(cluster, f"recency{i}") for i in range(6))
    seen = next((one for one in tries if one is not None), None)
    assert seen, "the machine is too busy to tell which access came in which hit set"
    ours, theirs = seen
    assert ours == theirs
    assert ours["at"] == ASKED[-1][0]
    assert ours["cached"] == ["a", "b"]


def sizes(state):
    return len(state["cached"]), state["dirty"]


def no_later(tier):
    """Whether the tier has at most one object more than the model, and two more that are dirty."""
    (cached, dirty), (most, most_dirty) = sizes(tier.theirs()), sizes(tier.ours())
    return cached <= most + 1 and dirty <= most_dirty + 2


def test_the_agent_begins_where_the_ratios_say(cluster):
    """Room for 11: above 4.4 dirty objects it flushes, above 8.8 objects it evicts.

    The model's agent does so at once and no more than it must. Ceph's looks when an access comes,
    so it begins one access later; it works on several objects at a time and takes some too many.
    """
    room = 11
    tier = Tier(
        cluster,
        "agent",
        "",
        target_max_bytes=room * SIZE,
        min_read_recency=0,
        min_write_recency=0,
    )
    began = {}
    for i in range(16):
        for _ in range(2):  # passed on and promoted, then dirty
            tier.access("write all", f"o{i}")
        time.sleep(0.5)
        ours = tier.ours()
        assert len(ours["cached"]) <= 0.8 * room
        assert ours["dirty"] <= 0.4 * room
        cluster.until(lambda: no_later(tier), seconds=30)
        theirs = tier.theirs()
        for who, state in (("ours", ours), ("theirs", theirs)):
            for what in ("flushed", "evicted"):
                if state[what]:
                    began.setdefault((who, what), i)
    assert (began["ours", "flushed"], began["ours", "evicted"]) == (4, 8)
    assert began["theirs", "flushed"] >= 4
    assert began["theirs", "evicted"] >= 8
    for i in range(16):  # and nothing is lost on the way
        got = cluster.do("get", pool=tier.base, name=f"o{i}", length=16, offset=0)
        assert int(base64.b64decode(got).split()[0]) == 2
