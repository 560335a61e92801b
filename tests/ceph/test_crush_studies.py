"""The CRUSH paper's results come out, and pieces of a count make the whole on any machine."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from vmlib.ceph import (
    CrushMap,
    device_counts,
    movement_by_algorithm,
    movement_by_level,
    pieces,
    utilisation,
)


def test_what_a_bucket_moves_is_as_table_2_has_it():
    """Weil et al., SC'06, Table 2: uniform poor; list good at its head; tree good; straw optimal.

    Which end is a list's good one is a matter of where it is walked from: Ceph asks the item
    that was added last first.
    """
    found = {alg: [m.factor for m in rows] for alg, rows in movement_by_algorithm().items()}
    assert min(found["uniform"]) > 10
    assert max(found["list"][0], found["list"][2]) < 1.6
    assert min(found["list"][1], found["list"][3]) > 2
    assert 1.2 < found["tree"][0] < 3
    for alg in ("straw", "straw2"):
        assert found[alg] == pytest.approx([1] * 4, abs=0.45)


def test_movement_is_between_the_share_and_the_height_times_it():
    """SC'06, section 3.3 and Figure 5: from dw/W to h dw/W, h = 4."""
    found = movement_by_level(8000)
    assert len(found) == 5
    for one in found[1:]:  # a single device of 7,290 is lost in the noise of so few inputs
        assert 0.9 < one.factor < 4.5
    assert found[-1].factor == pytest.approx(1, abs=0.05)
    assert found[1].factor > found[3].factor > found[4].factor


def test_devices_fill_as_chance_has_it():
    found = utilisation(16_384)
    assert found.placements == 3 * 16_384
    assert found.deviation == pytest.approx(found.binomial, rel=0.05)
    assert found.fullest > 1.5


@pytest.fixture(scope="module")
def crush():
    return CrushMap.build(racks=3, hosts=4, osds=5)


def test_pieces_are_the_whole():
    assert [x for piece in pieces(10, 4) for x in piece] == list(range(10))


def test_processes_count_as_one_does(crush):
    whole = device_counts(range(3000), crush, 0, 3)
    assert whole.sum() == 9000
    work = partial(device_counts, crush=crush, rule=0, n=3)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert (sum(pool.map(work, pieces(3000, 700))) == whole).all()


def test_the_recipe_for_dask_counts_as_one_process_does(crush):
    from dask.distributed import Client, LocalCluster

    quiet = {"dashboard_address": None, "host": "127.0.0.1", "silence_logs": 50}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster,
        Client(cluster) as client,
    ):
        everywhere = client.scatter(crush, broadcast=True)
        counts = client.map(device_counts, pieces(3000, 300), crush=everywhere, rule=0, n=3)
        while len(counts) > 1:
            counts = client.map(sum, [counts[i : i + 8] for i in range(0, len(counts), 8)])
        total = counts[0].result()
    assert isinstance(total, np.ndarray)
    assert (total == device_counts(range(3000), crush, 0, 3)).all()
