"""What the chapter on RBD and cache tiers shows, computed again."""

import json
import random
from pathlib import Path

import pytest

from vmlib.ceph.rados import CacheTier, TierConfig
from vmlib.units import KIB, MIB

FILE = Path(__file__).parents[2] / "book/ceph/tier-curves.json"
OBJECTS, HOT, ACCESSES, SIZE = 256, 16, 20_000, 4 * KIB
SHARES = {"all of it": 1.0, "99 %": 0.99, "90 %": 0.9, "half": 0.5, "no favourites": 0.0}
ROOMS = (8, 16, 24, 32, 48, 64, 128)


def traffic(share, room):
    """Return bytes between the pools per byte of the guest, and the share of hits."""
    draw = random.Random(1)
    config = TierConfig("writeback", target_max_bytes=room * 4 * MIB)
    tier = CacheTier(config, map(str, range(OBJECTS)))
    for i in range(ACCESSES):
        n = draw.randrange(HOT if draw.random() < share else OBJECTS)
        access = tier.read if draw.random() < 0.7 else tier.write
        access(str(n), SIZE, i / 100)
    between = tier.counts.between / (ACCESSES * SIZE)
    return round(between, 2), round(tier.counts.hits / ACCESSES, 4)


def test_the_curves_of_the_cache_tier(request):
    """All of them under --write-checks, else two points."""
    if request.config.getoption("--write-checks"):
        found = {name: [traffic(s, room) for room in ROOMS] for name, s in SHARES.items()}
        FILE.write_text(
            json.dumps(
                {
                    "objects": OBJECTS,
                    "hot": HOT,
                    "accesses": ACCESSES,
                    "rooms": ROOMS,
                    "between": {name: [one[0] for one in row] for name, row in found.items()},
                    "hits": {name: [one[1] for one in row] for name, row in found.items()},
                },
                indent=1,
            )
            + "\n"
        )
    kept = json.loads(FILE.read_text())
    for name, room in (("all of it", 64), ("99 %", 64)):
        at = kept["rooms"].index(room)
        shown = kept["between"][name][at], kept["hits"][name][at]
        assert traffic(SHARES[name], room) == shown


@pytest.mark.parametrize("name", SHARES)
def test_what_the_chapter_says_of_the_curves(name):
    kept = json.loads(FILE.read_text())
    at = kept["rooms"].index
    between, hits = kept["between"][name], kept["hits"][name]
    if name == "all of it":
        assert between[at(32)] > 10  # forty is what sixteen dirty ones need
        assert between[at(48)] < 1
    if name == "99 %":
        assert 2.5 < between[at(64)] < 3.5
        assert 0.985 < hits[at(64)] < 0.992
    if name == "no favourites":
        assert 850 < between[at(32)] < 950
    assert name == "all of it" or min(between) > 1
