"""A cache tier: a fast pool in front of a slow one, and what each access moves between them.

The OSDs of the cache pool decide: an access that misses is passed on (proxied) to the base pool,
and the object is copied up (promoted) if it was asked for in enough hit sets lately. An agent
writes dirty objects back (flush) and drops clean ones (evict), by ratios of the pool's target size.
Everything that moves, moves as whole objects.

========== ==================================== ==============================================
mode       read that misses                     write that misses
========== ==================================== ==============================================
writeback  proxied, promoted if recent enough   proxied, promoted if recent enough
readproxy  proxied, never promoted              promoted first, then written in the cache
readonly   promoted, unless the OSD remembers   the client is sent to the base
           the object as absent: sent there
========== ==================================== ==============================================

What is in the cache is read and written there, whatever the mode. So `readonly` is no read-only
cache, and a write of a whole object is like any other; Ceph's documentation says otherwise of both.

Ceph: doc/rados/operations/cache-tiering.rst (deprecated since Reef); defaults of the `osd_tier_…`
options; `PrimaryLogPG::maybe_handle_cache_detail` and `maybe_promote`. Held against a live tier of
Ceph 16.2, step by step. Different here: hit sets are exact (Ceph's default is a Bloom filter, which
errs towards promoting), the agent works at once and in order of coldness, all PGs of a pool count
as one. Left out: omap, whiteouts (a read of what does not exist leaves one), the limit on
promotions a second, a full cache that blocks (the agent is never late), modes that are gone
(`forward`, `proxy`).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from vmlib.ceph.rados.device import BLUESTORE_HDD, BLUESTORE_SSD, Backend, DeviceBytes, write_cost
from vmlib.errors import BadInput
from vmlib.given import check_fields, check_one, names_bad_input
from vmlib.numbers import decimal, whole
from vmlib.units import MIB

MODES = ("writeback", "readproxy", "readonly")
MOST_HIT_SETS = 1000
"""Each access looks through all of them."""


@dataclass(frozen=True, slots=True)
class TierConfig:
    """Ceph's defaults, where it has such an option; sizes in bytes, times in seconds."""

    mode: str = "writeback"
    target_max_bytes: int = 64 * MIB
    object_size: int = 4 * MIB
    min_read_recency: int = 1
    min_write_recency: int = 1
    hit_set_count: int = 4
    hit_set_period: float = 1200.0
    dirty_ratio: float = 0.4
    full_ratio: float = 0.8
    copies: int = 3
    cache_backend: Backend = BLUESTORE_SSD
    base_backend: Backend = BLUESTORE_HDD

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode not in MODES:
            raise BadInput("mode", f"must be one of {', '.join(MODES)}, not {self.mode!r}")
        for field in ("target_max_bytes", "object_size", "copies"):
            whole(getattr(self, field), field, 1)
        for field in ("min_read_recency", "min_write_recency"):
            whole(getattr(self, field), field, 0)
        whole(self.hit_set_count, "hit_set_count", 1, MOST_HIT_SETS)
        if not self.hit_set_period > 0:
            raise BadInput("hit_set_period", f"is {self.hit_set_period!r}; it must be above 0 s")
        if self.target_max_bytes < self.object_size:
            raise BadInput("target_max_bytes", "must have room for one object")
        if not 0 < self.dirty_ratio <= self.full_ratio <= 1:
            raise BadInput("ratios", "need 0 < dirty_ratio <= full_ratio <= 1")


NOTHING = DeviceBytes()


@dataclass(frozen=True, slots=True)
class TierCounts:
    """What a tier did: accesses, objects moved, and bytes. `client` is what was asked for."""

    hits: int = 0
    misses: int = 0
    proxied: int = 0
    promoted: int = 0
    flushed: int = 0
    evicted: int = 0
    client_read: int = 0
    client_written: int = 0
    between: int = 0
    """Bytes on the wire between the two pools."""
    cache: DeviceBytes = NOTHING
    base: DeviceBytes = NOTHING

    @property
    def write_amplification(self) -> float:
        """Device bytes of both pools for each byte that clients wrote."""
        return (self.cache.total + self.base.total) / max(1, self.client_written)


@dataclass(slots=True)
class _Cached:
    version: int
    dirty: bool
    at: float


class CacheTier:
    """An empty cache pool, set before a base pool that holds the objects `base` already.

    Times are seconds since then, and must not go back.
    """

    @names_bad_input
    def __init__(self, config: TierConfig | None = None, base: Iterable[str] = ()) -> None:
        check_one(config, TierConfig | None, "config")
        self.config = config or TierConfig()
        self.counts = TierCounts()
        self._cached: dict[str, _Cached] = {}
        self._base: dict[str, int] = dict.fromkeys(base, 1)
        self._absent: set[str] = set()
        """Objects that the cache pool's OSDs remember to be elsewhere."""
        self._current: set[str] = set()
        self._since = self._now = 0.0
        self._archive: deque[set[str]] = deque(maxlen=int(self.config.hit_set_count))

    # -- what clients do -----------------------------------------------------------------------

    def read(self, name: str, length: int, now: float) -> int:
        """Read `length` bytes of an object at `now`; return which write (1, 2, …) is seen, or 0."""
        recent = self._note(name, length, now)
        self._account(client_read=length)
        if held := self._cached.get(name):
            self._account(hits=1)
            held.at = now
            return held.version
        self._account(misses=1)
        version = self._base.get(name, 0)
        mode = self.config.mode
        if mode == "readonly":
            if version and name not in self._absent:
                self._promote(name, now)
        elif version:
            self._account(proxied=1, between=length)
            if mode == "writeback" and recent >= self.config.min_read_recency:
                self._promote(name, now)
        return version

    def write(self, name: str, length: int, now: float) -> int:
        """Write `length` bytes of an object at `now`; return the number of this write."""
        recent = self._note(name, length, now)
        self._account(client_written=length)
        if name in self._cached:
            self._account(hits=1)
            return self._write_cache(name, length, now)
        self._account(misses=1)
        if self.config.mode == "readproxy":
            if name in self._base:
                self._promote(name, now)
            return self._write_cache(name, length, now)
        version = self._write_base(name, length)
        if self.config.mode == "readonly":
            self._absent.add(name)
            return version
        self._account(proxied=1, between=length)
        if recent >= self.config.min_write_recency:
            self._promote(name, now)
        return version

    def flush_evict_all(self) -> None:
        """Empty the cache (`rados cache-flush-evict-all`)."""
        for name in list(self._cached):
            self._flush(name)
            self._evict(name)

    # -- looking -------------------------------------------------------------------------------

    def cached(self) -> list[str]:
        """Return the names in the cache pool."""
        return sorted(self._cached)

    def dirty(self) -> list[str]:
        """Return the names of which the cache pool alone has the newest version."""
        return sorted(name for name, held in self._cached.items() if held.dirty)

    # -- what the OSDs do ----------------------------------------------------------------------

    def _note(self, name: str, length: int, now: float) -> int:
        """Enter an access; return in how many hit sets the object is, newest first, without a gap.

        It must have been in the current one before. A set ends with the first access after its
        period, which is still entered there; for this one access it then counts twice.
        """
        check_one(name, str, "name")
        whole(length, "length", 0, self.config.object_size)
        decimal(now, "now", -inf, inf)
        if now < self._now:
            raise BadInput("now", f"is {now:g} s, and it was {self._now:g} s before")
        self._now = now
        here = name in self._current
        self._current.add(name)
        if now >= self._since + self.config.hit_set_period:
            self._archive.appendleft(self._current)
            self._current, self._since = set(), now
        gap = next((i for i, hits in enumerate(self._archive) if name not in hits), None)
        return here * (1 + (len(self._archive) if gap is None else gap))

    def _write_cache(self, name: str, length: int, now: float) -> int:
        held = self._cached.get(name)
        version = max(self._base.get(name, 0), held.version if held else 0) + 1
        self._cached[name] = _Cached(version, True, now)
        self._account(cache=self._cost(length, self.config.cache_backend))
        self._work()
        return version

    def _write_base(self, name: str, length: int) -> int:
        self._base[name] = self._base.get(name, 0) + 1
        self._account(base=self._cost(length, self.config.base_backend))
        return self._base[name]

    def _promote(self, name: str, now: float) -> None:
        size = self.config.object_size
        self._cached[name] = _Cached(self._base[name], False, now)
        cost = self._cost(size, self.config.cache_backend)
        self._account(promoted=1, between=size, cache=cost)
        self._work()

    # -- the agent -----------------------------------------------------------------------------

    def _work(self) -> None:
        room = self.config.target_max_bytes / self.config.object_size
        while len(dirty := self.dirty()) > self.config.dirty_ratio * room:
            self._flush(min(dirty, key=self._warmth))
        while len(self._cached) > self.config.full_ratio * room:
            name = min(self._cached, key=self._warmth)
            self._flush(name)
            self._evict(name)

    def _warmth(self, name: str) -> tuple[int, float]:
        """How many hit sets know the object, and when it was last asked for."""
        return sum(name in hits for hits in (self._current, *self._archive)), self._cached[name].at

    def _flush(self, name: str) -> None:
        held = self._cached[name]
        if held.dirty:
            size = self.config.object_size
            held.dirty, self._base[name] = False, held.version
            cost = self._cost(size, self.config.base_backend)
            self._account(flushed=1, between=size, base=cost)

    def _evict(self, name: str) -> None:
        del self._cached[name]
        self._absent.add(name)
        self._account(evicted=1)

    # -- books ---------------------------------------------------------------------------------

    def _cost(self, length: int, backend: Backend) -> DeviceBytes:
        return write_cost(length, backend) * self.config.copies

    def _account(
        self, cache: DeviceBytes = NOTHING, base: DeviceBytes = NOTHING, **more: int
    ) -> None:
        old = self.counts
        sums = {name: getattr(old, name) + by for name, by in more.items()}
        self.counts = replace(old, cache=old.cache + cache, base=old.base + base, **sums)
