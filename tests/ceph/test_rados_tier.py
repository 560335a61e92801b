"""Cache tiers: what is promoted, flushed and evicted, in which mode, and what it costs."""

import random

import pytest

from vmlib.ceph.rados import MODES, CacheTier, TierConfig, ceiling, write_cost
from vmlib.ceph.rados.device import BLUESTORE_HDD, BLUESTORE_SSD
from vmlib.errors import BadInput
from vmlib.units import KIB, MIB

OBJECT = 4 * MIB


def tier(mode="writeback", names="abcdefgh", **options):
    """A tier over a base pool that holds some objects, with an empty cache."""
    return CacheTier(TierConfig(mode, **options), names)


# -- promotion ---------------------------------------------------------------------------------


def test_writeback_promotes_what_is_read_twice_in_a_hit_set():
    cache = tier()
    cache.read("a", 4 * KIB, 0)
    assert cache.cached() == []
    assert (cache.counts.proxied, cache.counts.between) == (1, 4 * KIB)
    cache.read("a", 4 * KIB, 1)
    assert cache.cached() == ["a"]
    assert cache.counts.between == 2 * 4 * KIB + OBJECT
    cache.read("a", 4 * KIB, 2)
    assert (cache.counts.hits, cache.counts.misses, cache.counts.promoted) == (1, 2, 1)


def test_recency_counts_hit_sets_without_a_gap():
    """As on a live cluster: see test_live_tier."""
    cache = tier(min_read_recency=2)
    cache.read("a", 1, 0)
    cache.read("b", 1, 1300)  # the first after the period: the set with both ends here
    assert cache.cached() == []
    cache.read("a", 1, 1301)  # not in the new one yet
    assert cache.cached() == []
    cache.read("a", 1, 1302)
    assert cache.cached() == ["a"]
    for at in (2600, 2601):  # "c" ends a set that "b" is not in
        cache.read("c", 1, at)
    cache.read("b", 1, 2602)
    cache.read("b", 1, 2603)
    assert cache.cached() == ["a"]


def test_an_older_hit_set_alone_promotes_nothing():
    """With a recency of 1 the current set decides (`PrimaryLogPG::maybe_promote`)."""
    cache = tier()
    cache.read("a", 1, 0)
    cache.read("b", 1, 1300)  # ends the set, with both in it
    cache.read("a", 1, 1301)
    assert cache.cached() == []
    cache.read("a", 1, 1302)
    assert cache.cached() == ["a"]


def test_a_hit_set_ends_with_the_access_at_the_end_of_its_period():
    """Ceph: it is persisted when its start + `hit_set_period` <= now."""
    for at, cached in ((1199.9, ["a"]), (1200.0, [])):
        cache = tier()
        cache.read("a", 1, 0)
        cache.read("b", 1, at)
        cache.read("a", 1, at + 0.05)
        assert cache.cached() == cached


def test_a_set_that_nobody_ends_is_still_the_current_one():
    cache = tier()
    cache.read("a", 1, 0)
    cache.read("a", 1, 90_000)  # a day of silence
    assert cache.cached() == ["a"]


def test_recency_zero_promotes_at_once():
    cache = tier(min_read_recency=0)
    cache.read("a", 1, 0)
    assert cache.cached() == ["a"]


def test_readproxy_never_promotes_a_read_and_always_a_write():
    cache = tier("readproxy")
    for at in range(5):
        cache.read("a", 4 * KIB, at)
    assert cache.cached() == []
    assert cache.counts.proxied == 5
    cache.write("b", 4 * KIB, 6)
    assert (cache.cached(), cache.dirty(), cache.counts.promoted) == (["b"], ["b"], 1)


def test_readonly_writes_in_the_cache_what_is_there_and_sends_the_rest_on():
    cache = tier("readonly")
    assert cache.read("a", 1, 0) == 1
    assert cache.cached() == ["a"]
    assert cache.write("a", 1, 1) == 2
    assert (cache.dirty(), cache.read("a", 1, 2)) == (["a"], 2)
    assert cache.write("b", 1, 3) == 2
    assert cache.read("b", 1, 4) == 2
    assert (cache.cached(), cache.counts.between) == (["a"], OBJECT)  # "b" is known to be absent
    cache.flush_evict_all()
    assert cache.read("a", 1, 5) == 2
    assert cache.cached() == []


def test_a_write_of_a_whole_object_is_like_any_other():
    cache = tier()
    cache.write("a", OBJECT, 0)
    cache.write("new", OBJECT, 0)
    assert cache.cached() == []
    assert cache.counts.base == write_cost(OBJECT) * 6
    cache = tier("readproxy")
    cache.write("a", OBJECT, 0)
    cache.write("new", OBJECT, 0)
    assert cache.dirty() == ["a", "new"]
    assert cache.counts.promoted == 1  # and written over at once


# -- flush and eviction ------------------------------------------------------------------------


def test_the_agent_keeps_dirty_and_full_below_their_ratios():
    cache = tier("readproxy", target_max_bytes=10 * OBJECT)
    names = [f"o{i}" for i in range(30)]
    for at, name in enumerate(names):
        cache.write(name, OBJECT, at)
        assert len(cache.dirty()) <= 4
        assert len(cache.cached()) <= 8
    assert cache.cached() == sorted(names[-8:])
    assert cache.dirty() == sorted(names[-4:])
    cache.flush_evict_all()
    assert cache.counts.flushed == 30
    assert cache.counts.evicted == 30


def test_of_objects_as_warm_the_one_asked_for_last_stays():
    cache = tier("readonly", target_max_bytes=3 * OBJECT, full_ratio=0.7)  # two objects
    for at, name in enumerate("abac"):
        cache.read(name, 1, at)
    assert cache.cached() == ["a", "c"]


def test_what_is_warm_stays():
    cache = tier(target_max_bytes=5 * OBJECT, min_read_recency=0)
    for at, name in enumerate("abacadaeafagah"):
        cache.read(name, 1, 1200.0 * at)
    assert "a" in cache.cached()
    assert cache.counts.promoted == 8  # a once, and seven that came and went


@pytest.mark.parametrize("mode", MODES)
def test_no_write_is_ever_lost_or_old(mode):
    """Whatever is cached, flushed or proxied: a read sees the last write."""
    for seed in range(40):
        draw = random.Random(seed)
        cache = tier(mode, names="ab", target_max_bytes=3 * OBJECT, hit_set_period=5.0)
        truth = {"a": 1, "b": 1}
        for at in range(150):
            name = draw.choice("abcdef")
            if draw.random() < 0.4:
                truth[name] = cache.write(name, 4 * KIB, at)
            elif draw.random() < 0.05:
                cache.flush_evict_all()
            assert cache.read(name, 1, at) == truth.get(name, 0)
        numbers = cache.counts
        assert numbers.hits + numbers.misses == 150 + sum(truth.values()) - 2
        assert len(cache.cached()) <= 2


# -- bytes -------------------------------------------------------------------------------------


def test_a_small_write_to_a_cold_object_can_move_the_whole_of_it_twice():
    """4 KiB in: 4 KiB thrice to the base, 4 MiB up, and 4 MiB down again when it is flushed."""
    cache = tier()
    cache.write("a", 4 * KIB, 0)
    assert cache.counts.base == write_cost(4 * KIB, BLUESTORE_HDD) * 3
    assert cache.counts.cache.total == 0
    cache.write("a", 4 * KIB, 1)  # recent: proxied, then promoted
    assert cache.counts.cache == write_cost(OBJECT, BLUESTORE_SSD) * 3
    cache.write("a", 4 * KIB, 2)  # a hit
    cache.flush_evict_all()
    counts = cache.counts
    assert counts.between == 2 * 4 * KIB + 2 * OBJECT
    assert counts.base == write_cost(4 * KIB, BLUESTORE_HDD) * 6 + write_cost(OBJECT) * 3
    assert counts.write_amplification > 2000


def test_writing_one_place_again_and_again_is_what_a_cache_is_for():
    cache = tier()
    for at in range(1000):
        cache.write("a", 4 * KIB, at)
    cache.flush_evict_all()
    without = write_cost(4 * KIB, BLUESTORE_HDD).total * 3 / (4 * KIB)
    assert cache.counts.base.total / cache.counts.client_written < without / 2


def test_ceilings_of_ten_gigabit():
    assert ceiling.iscsi().write == 1.25e9
    assert ceiling.replicated(copies=3).write == 0.625e9
    assert ceiling.replicated(copies=2).write == ceiling.replicated(copies=1).write == 1.25e9
    assert ceiling.cluster(10).write == pytest.approx(10 * 1.25e9 / 3)
    assert ceiling.cluster(10).read == 10 * 1.25e9
    with pytest.raises(BadInput, match="copies"):
        ceiling.cluster(2)


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda: TierConfig("forward"), "mode"),
        (lambda: TierConfig(target_max_bytes=1000), "target_max_bytes"),
        (lambda: TierConfig(dirty_ratio=0.9), "ratios"),
        (lambda: TierConfig(hit_set_count=0), "hit_set_count"),
        (lambda: TierConfig(hit_set_period=0), "hit_set_period"),
        (lambda: TierConfig(object_size=0), "object_size"),
        (lambda: TierConfig(min_read_recency=-1), "min_read_recency"),
        (lambda: tier().read("a", -1, 0), "length"),
        (lambda: tier().write("a", OBJECT + 1, 0), "length"),
        (lambda: tier().read("a", 1, -1), "now"),
    ],
)
def test_bad_input_is_refused(ask, field):
    with pytest.raises(BadInput) as caught:
        ask()
    assert caught.value.field == field
