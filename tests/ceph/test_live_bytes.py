"""Bytes of a running cluster: what is written for each byte that a client writes.

Six small OSDs on BlueStore with a manager. What the stores take as object data is counted apart
from what their write-ahead logs take (RocksDB's, on BlueFS), from BlueFS's own journal and from
what is written again when a deferred write is done; the kernel's count of all that each daemon
wrote is beside them. Data are
exact; the rest depends on the moment, so it is kept as it was measured once, with its date, in
book/ceph/live-bytes.json, and here only its bounds are held.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from crush_maps import version
from live_cluster import NEEDS, PLACE, PREFIX, LiveCluster, sweep

from vmlib.ceph import NONE, moves
from vmlib.units import KIB, MIB

pytestmark = pytest.mark.needs(*NEEDS)

FILE = Path(__file__).parents[2] / "book/ceph/live-bytes.json"
COVERS = ["vmlib/ceph/movement.py", "vmlib/ceph/osdmap.py", "vmlib/ceph/placement.py"]
OBJECT = 4 * MIB
POOLS = ("three", "four-two", "two-one")


@pytest.fixture(scope="module")
def cluster():
    with LiveCluster(6, "bluestore", manager=True, device=2 << 30) as running:
        mon = running.mon
        running.until(lambda: mon("mgr dump")["available"])
        mon("osd pool create", pool="three", pg_num=32, pgp_num=32, size=3)
        for name, k, m in (("four-two", 4, 2), ("two-one", 2, 1)):
            profile = [f"k={k}", f"m={m}", "crush-failure-domain=host"]
            mon("osd erasure-code-profile set", name=name, profile=profile)
            coded = {"pool_type": "erasure", "erasure_code_profile": name}
            mon("osd pool create", pool=name, pg_num=32, pgp_num=32, **coded)
            mon("osd pool set", pool=name, var="allow_ec_overwrites", val="true")
        running.until(lambda: settled(running))
        yield running


def settled(cluster):
    """Whether every group is clean and served by whom the newest map wants.

    With five OSDs a 4+2 group has no sixth to go to: `pg_temp` leaves that shard where it is, and
    the group is clean but remapped.
    """
    stats = cluster.mon("pg dump", dumpcontents=["pgs"])["pg_stats"]
    now, real = cluster.osdmap()[0], {one["pgid"]: one for one in stats}

    def done(place):
        one = real.get(place.pgid)
        return (
            one is not None
            and one["state"] in ("active+clean", "active+clean+remapped")
            and all(osd in (NONE, at) for osd, at in zip(place.up, one["acting"], strict=True))
        )

    return all(done(place) for pool in POOLS for place in now.pg_table(pool))


class Written:
    """What all OSDs wrote between two moments, in bytes."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.before = self.now()

    def now(self):
        total = Counter()
        for osd, counters in self.cluster.counters().items():
            store, files = counters["bluestore"], counters["bluefs"]
            total["data"] += (
                store["bluestore_write_big_bytes"] + store["bluestore_write_small_bytes"]
            )
            total["deferred"] += store["deferred_write_bytes"]
            total["wal"] += files["bytes_written_wal"]
            total["journal"] += files["logged_bytes"]
            total["recovery"] += counters["osd"]["recovery_bytes"]
            pid = self.cluster.running[f"osd.{osd}"].pid
            total["device"] += int(
                Path(f"/proc/{pid}/io").read_text().split("\nwrite_bytes: ")[1].split()[0]
            )
        return total

    def since(self):
        now = self.now()
        return {key: now[key] - self.before[key] for key in now}


def per_byte(written, client):
    return {key: round(value / client, 3) for key, value in written.items() if key != "recovery"}


@pytest.fixture(scope="module")
def measured():
    """What is measured, to be kept in the end."""
    return {}


def test_aligned_writes_cost_what_the_pool_says(cluster, check, measured):
    size = 16 * OBJECT
    with check(
        "ceph/live-bytes",
        what="object data that the stores take for each byte that a client writes",
        tool="BlueStore's counters on a running cluster",
        tool_version=version(),
        covers=["tests/ceph/test_live_bytes.py"],
    ) as done:
        cluster.image("three", "image", size)
        written = Written(cluster)
        cluster.do("fill", pool="three", name="image", offset=0, length=size, step=OBJECT)
        measured["three copies, 4 MiB"] = rates = per_byte(written.since(), size)
        done.show("three copies, 4 MiB writes", "3.00", f"{rates['data']:.2f}")
        for pool, ours in (("four-two", "1.50"), ("two-one", "1.50")):
            k, m = (4, 2) if pool == "four-two" else (2, 1)
            assert ours == f"{(k + m) / k:.2f}"
            written = Written(cluster)
            cluster.do("put_many", pool=pool, names=[f"o{i}" for i in range(16)], size=OBJECT)
            rates = per_byte(written.since(), size)
            measured[f"erasure code {k}+{m}, 4 MiB"] = rates
            done.show(f"erasure code {k}+{m}, 4 MiB writes", ours, f"{rates['data']:.2f}")
        for rates in measured.values():
            # Beside the data: names, checksums and logs of groups.
            assert rates["wal"] < 0.1 * rates["data"]
            assert rates["deferred"] < 0.05 * rates["data"]


def test_small_writes_are_written_twice_and_logged(cluster, check, measured):
    """Random 4 KiB in an image that is there: into the log first, onto the place later."""
    places = random.Random(4).sample(range(16 * OBJECT // (4 * KIB)), 512)
    client = len(places) * 4 * KIB
    written = Written(cluster)
    offsets = [place * 4 * KIB for place in places]
    cluster.do("overwrite", pool="three", name="image", offsets=offsets, size=4 * KIB)
    cluster.until(lambda: written.since()["deferred"] >= 3 * client)
    measured["three copies, 4 KiB at random"] = rates = per_byte(written.since(), client)
    with check(
        "ceph/live-small-bytes",
        what="object data and rewritten data of random 4 KiB writes for each byte, three copies",
        tool="BlueStore's counters on a running cluster",
        tool_version=version(),
        covers=["tests/ceph/test_live_bytes.py"],
    ) as done:
        done.show("taken as data", "3", f"{rates['data']:.0f}")
        done.show("written to its place later", "3", f"{rates['deferred']:.0f}")
    assert rates["wal"] > 3  # the log has the data too, and more
    assert rates["device"] >= 0.9 * (rates["wal"] + rates["deferred"])


def test_recovery_moves_the_bytes_that_we_predict(cluster, check, measured):
    """An OSD goes out; what its groups' new members lack is all that is written."""
    cluster.do("put_many", pool="three", names=[f"o{i}" for i in range(48)], size=OBJECT)
    before = cluster.osdmap()[0]
    after = before.mark(2, in_=False)
    share = {"three": OBJECT, "four-two": OBJECT // 4, "two-one": OBJECT // 2}
    held = {
        pool: Counter(
            before.pg_of(pool, name)
            for _, name in cluster.do("names", pool=pool)
            if name.startswith(("o", "rbd_data"))
        )
        for pool in POOLS
    }
    coming = {
        pool: sum(held[pool][move.pg] for move in moves(before, after, pool)) * share[pool]
        for pool in POOLS
    }
    cluster.until(lambda: settled(cluster))
    written = Written(cluster)
    cluster.mon("osd out", ids=["2"])
    cluster.until(lambda: settled(cluster), seconds=60)
    found = written.since()
    with check(
        "ceph/live-recovery",
        what="bytes that move when an OSD of six goes out, in percent of the prediction",
        tool="BlueStore's counters on a running cluster",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        total = sum(coming.values())
        done.show("object data of three pools", "100 %", f"{100 * found['data'] / total:.0f} %")
        counted = 100 * found["recovery"] / coming["three"]
        done.show("copies, as the OSDs count them", "100 %", f"{counted:.0f} %")
    measured["recovery"] = {
        "predicted": total,
        **found,
        "error": round(found["data"] / total - 1, 5),
        "pools": coming,
    }


def test_what_was_measured_is_kept(cluster, measured, request):
    """The page's numbers: of the run that wrote the records."""
    assert set(measured) >= {"three copies, 4 MiB", "three copies, 4 KiB at random", "recovery"}
    if request.config.getoption("--write-checks"):
        kept = {"date": date.today().isoformat(), "ceph": version(), **measured}
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(kept, indent=1) + "\n")
    kept = json.loads(FILE.read_text())
    for name, rates in measured.items():
        assert set(kept[name]) == set(rates)
        if name != "recovery":
            assert kept[name]["data"] == pytest.approx(rates["data"], rel=0.01)


def test_nothing_outlives_a_test_that_is_killed():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from live_cluster import LiveCluster
with LiveCluster(1) as cluster:
    print(*(process.pid for process in [cluster.client, *cluster.running.values()]), flush=True)
    sys.stdin.read()
"""
    folder = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        daemons = [int(word) for word in test.stdout.readline().split()]
        assert len(daemons) == 3
        assert all(Path(f"/proc/{pid}").exists() for pid in daemons)
        os.kill(test.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while left := [pid for pid in daemons if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, f"{left} are left"
        time.sleep(0.1)
    folders = list(PLACE.glob(f"{PREFIX}{test.pid}-*"))
    assert len(folders) == 1
    sweep()
    assert not folders[0].exists()
