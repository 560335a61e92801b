"""CRUSH on arrays against crushtool: mappings a second on one core, memory, and two processes.

Both map the same inputs with the same map, rule and out-weights, in turns. What is compared is
processor time, for the machine may be busy. The tool counts what it maps and prints only the
sum. From both a run over one input is taken off, for the start.
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import Figure
from vmlib.ceph import CrushMap, device_counts, pieces

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/ceph"))

from crush_maps import Compiled

PAIRS = 9
TEN_MILLION = 10_000_000
SHAPES = {
    "10 hosts of 10": ({"hosts": 10, "osds": 10}, 120_000, False, "must 1.3, aim 1.5"),
    "40 racks of 25 of 10": (
        {"racks": 40, "hosts": 25, "osds": 10},
        40_000,
        False,
        "must 2.0, aim 2.4",
    ),
    "the same, all weights equal": ({"racks": 40, "hosts": 25, "osds": 10}, 40_000, True, "aim 3"),
}


def cluster(shape: dict[str, int], equal: bool) -> tuple[CrushMap, dict[int, int]]:
    """Return a map and its out-weights; unequal ones have a tenth of the devices (half) out."""
    rng = random.Random(5)
    count = shape.get("racks", 1) * shape["hosts"] * shape["osds"]
    if equal:
        return CrushMap.build(**shape), {}
    # In steps of 1/64, so that text holds the weights exactly.
    weights = [rng.randint(32, 256) / 64 for _ in range(count)]
    out = {osd: rng.choice((0, 0x4CCC, 0xCCCC)) for osd in rng.sample(range(count), count // 10)}
    return CrushMap.build(**shape, weight=weights), out


def of_children(work: Callable[[], object]) -> float:
    """Return the processor time that the processes which `work` runs and waits for take."""

    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    began = used()
    work()
    return used() - began


def pairs(name: str) -> list[Figure]:
    """Time both on one shape, each without its start."""
    shape, count, equal, target = SHAPES[name]
    crush, out = cluster(shape, equal)
    ours, theirs, ratios = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        real = Compiled(crush.to_text(), folder)
        crush = CrushMap.from_json(real.json())

        def tool(count: int) -> float:
            return of_children(lambda: real.test(0, 3, range(count), out, "--show-statistics"))

        def numpy(count: int) -> float:
            began = time.process_time()
            crush.map_many(0, range(count), 3, out)
            return time.process_time() - began

        numpy(1000)  # its tables are there then
        for _ in range(PAIRS):
            theirs.append(count / (tool(count) - tool(1)))
            ours.append(count / (numpy(count) - numpy(1)))
            ratios.append(ours[-1] / theirs[-1])
    return [
        Figure(f"{name}: crushtool", tuple(t / 1000 for t in theirs), "k/s", ""),
        Figure(f"{name}: numpy", tuple(o / 1000 for o in ours), "k/s", ""),
        Figure(f"{name}: numpy over crushtool", tuple(ratios), "", target),
    ]


def peak_of_ten_million() -> float:
    """Return the peak memory in MiB of a process that maps ten million inputs to 10,000 OSDs."""
    code = (
        "import resource; from vmlib.ceph import CrushMap\n"
        "crush = CrushMap.build(racks=40, hosts=25, osds=10)\n"
        f"rows = crush.map_many(0, range({TEN_MILLION}), 3)\n"
        f"assert rows.shape == ({TEN_MILLION}, 3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def two_processes() -> tuple[float, ...]:
    """Return how many times faster two processes count than one, by the clock."""
    crush, _ = cluster(SHAPES["40 racks of 25 of 10"][0], equal=False)
    work = partial(device_counts, crush=crush, rule=0, n=3)
    parts = pieces(1 << 18, 1 << 16)
    ratios = []
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(2) as two:

        def seconds(pool: ProcessPoolExecutor) -> float:
            began = time.perf_counter()
            sum(pool.map(work, parts))
            return time.perf_counter() - began

        seconds(one), seconds(two)  # the processes are there then
        for _ in range(PAIRS):
            ratios.append(seconds(one) / seconds(two))
    return tuple(ratios)


def run() -> list[Figure]:
    """Measure all of it."""
    found = [figure for name in SHAPES for figure in pairs(name)]
    memory = (peak_of_ten_million(),)
    return [
        *found,
        Figure("10,000 OSDs, 10 M mappings: peak memory", memory, "MiB", "must 300"),
        Figure("two processes over one, by the clock", two_processes(), "", "aim 1.8"),
    ]
