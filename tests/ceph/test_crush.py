"""CRUSH held against the real crushtool: every algorithm, rule, tunables profile, weight-set."""

import os
import random
import struct
import time
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np
import pytest
from crush_maps import (
    ALGS,
    PROFILES,
    WEIGHT_SETS,
    Compiled,
    map_text,
    out_weights,
    seed_of_the_day,
    tool_weights,
    version,
)

from vmlib.ceph import CrushMap, crush_hash, crush_ln, hash_many
from vmlib.ceph.crush import ln as tables
from vmlib.ceph.crush.fast import suits

COVERS = [
    f"vmlib/ceph/crush/{name}.py"
    for name in (
        "hashing",
        "ln",
        "crush_map",
        "buckets",
        "knobs",
        "run",
        "firstn",
        "indep",
        "mapper",
        "read_json",
    )
]
TEXT_COVERS = [*COVERS, "vmlib/ceph/crush/read_text.py", "vmlib/ceph/crush/shadows.py"]


def combinations(turn):
    """Every algorithm with every profile; weight-sets take turns, so four turns have it all."""
    for i, alg in enumerate(ALGS):
        for j, profile in enumerate(PROFILES):
            weight_set = WEIGHT_SETS[(i + j + turn) % len(WEIGHT_SETS)]
            # An empty uniform bucket makes the compiler abort, and the shadow of a tree bucket
            # gets sums from memory that it did not clear: neither can be compared.
            classes = (i + j) % 2 == 0 and alg not in ("uniform", "tree")
            yield alg, profile, weight_set, classes, (i + j) % 3 == 0


def both(seed, combination, folder, read):
    """Return the tool's map, ours, and the out-weights for each."""
    alg, profile, weight_set, classes, equal = combination
    text = map_text(seed, alg, profile, weight_set, classes, equal)
    real = Compiled(text, folder)
    crush = read(real, text)
    weights = out_weights(seed, crush.max_devices)
    return real, crush, weights, tool_weights(crush, weights)


def compare(seed, combination, folder, xs, read):
    """Yield (ours, the tool's) for every rule of one random map."""
    real, crush, weights, mine = both(seed, combination, folder, read)
    n = 1 + seed % 6
    for (rule, x), theirs in real.mappings(None, n, xs, weights).items():
        yield crush.map(rule, x, n, mine, "auto"), theirs, f"seed {seed} rule {rule} x {x}"


@pytest.mark.needs("crushtool")
def test_maps_from_json_place_as_crushtool(check, tmp_path):
    with check(
        "ceph/crush-json",
        what="where random CRUSH maps, read from JSON, put random inputs",
        tool="crushtool (Ceph)",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        for seed, one in enumerate(combinations(seed_of_the_day()), seed_of_the_day() * 100):
            read = lambda real, text: CrushMap.from_json(real.json())  # noqa: E731
            for case in compare(seed, one, tmp_path, range(10), read):
                done.case(*case)


@pytest.mark.needs("crushtool")
def test_maps_from_text_place_as_crushtool(check, tmp_path):
    with check(
        "ceph/crush-text",
        what="where random CRUSH maps, read from text, put random inputs",
        tool="crushtool (Ceph)",
        tool_version=version(),
        covers=TEXT_COVERS,
    ) as done:
        for seed, one in enumerate(
            combinations(seed_of_the_day() + 2), seed_of_the_day() * 100 + 50
        ):
            read = lambda real, text: CrushMap.from_text(text)  # noqa: E731
            for case in compare(seed, one, tmp_path, range(8), read):
                done.case(*case)


def compare_arrays(seed, combination, folder, xs, read):
    """Hold the numpy path against the tool, for the rules that it takes; return how many."""
    real, crush, weights, mine = both(seed, combination, folder, read)
    n, count = 1 + seed % 6, 0
    for rule in crush.rules:
        if suits(crush, crush.rule(rule)):
            ours = crush.map_many(rule, xs, n, mine, "auto")
            for (_, x), theirs in real.mappings(rule, n, xs, weights).items():
                row = ours[x - xs[0]].tolist()
                assert row == theirs + [-1] * (n - len(theirs)), f"seed {seed} rule {rule} x {x}"
            count += len(xs)
    return count


@pytest.mark.soak
@pytest.mark.needs("crushtool")
def test_half_a_million_mappings(tmp_path, log_soak):
    """Eight turns have every weight-set in both forms, and half a million for the reference alone.

    numpy, which takes straw2 with the tunables of today, does as many again and more.
    """
    base = int(os.environ.get("VMLIB_SEED", time.time()))
    plain = fast = turn = 0
    seed = base
    read = (
        lambda real, text: CrushMap.from_json(real.json()),
        lambda real, text: CrushMap.from_text(text),
    )
    while turn < 8 or plain < 500_000:
        for one in combinations(turn):
            seed += 1
            how = read[turn // 4 % 2]
            for ours, theirs, what in compare(seed, one, tmp_path, range(200), how):
                assert ours == theirs, what
                plain += 1
            fast += compare_arrays(seed, one, tmp_path, range(1000, 3000), how)
        turn += 1
    log_soak("CRUSH mappings against crushtool, on the reference", base, plain)
    log_soak("CRUSH mappings against crushtool, on numpy", base, fast)


def test_the_table_of_logarithms_is_the_formula_but_for_its_errata():
    getcontext().prec = 60
    two = Decimal(2).ln()

    def exact(k, of):
        return int((1 + Decimal(k) / of).ln() / two * tables.TOP)

    assert tables.COARSE[:128] == tuple(exact(k, 128) for k in range(128))
    wrong = {
        k
        for k in range(256)
        if tables.FINE[k] != exact(k, 1 << 15) + (tables.OFFSET if k >= 2 else 0)
    }
    assert wrong == set(tables.ERRATA)
    assert len(tables.ERRATA) == 42
    right_by_accident = {k for k in wrong if tables.FINE[k] == exact(k, 1 << 15)}
    assert len(right_by_accident) == 19


@pytest.mark.needs("crushtool")
def test_the_tables_of_logarithms_stand_in_the_real_library(check):
    (library,) = Path("/usr/lib").glob("*/ceph/libceph-common.so.2")
    real = library.read_bytes()
    with check(
        "ceph/crush-ln",
        what="the two tables of logarithms, byte for byte",
        tool="libceph-common (Ceph)",
        tool_version=version(),
        covers=["vmlib/ceph/crush/ln.py"],
    ) as done:
        coarse = [
            n for pair in zip(tables.COARSE_INVERSE, tables.COARSE, strict=True) for n in pair
        ]
        for name, table in (("coarse", coarse), ("fine", tables.FINE)):
            done.show(
                f"{name} table of {len(table)} numbers",
                struct.pack(f"<{len(table)}Q", *table) in real,
                True,
            )


def test_the_logarithm_has_one_inversion():
    values = [crush_ln(u) for u in range(1 << 16)]
    assert [u for u in range(65535) if values[u + 1] < values[u]] == [65534]
    assert len(set(values)) == 55_529
    assert values[0] == 0


@pytest.mark.parametrize("count", range(1, 6))
def test_the_hash_on_arrays_is_the_hash(count):
    rng = np.random.default_rng(count)
    words = [rng.integers(-(1 << 31), 1 << 32, 500) for _ in range(count)]
    ours = [crush_hash(*(int(word[i]) for word in words)) for i in range(500)]
    assert hash_many(*words).tolist() == ours


def test_a_built_map_spreads_by_weight():
    crush = CrushMap.build(hosts=6, osds=1, weight=[1, 1, 1, 1, 1, 3])
    found = np.bincount(crush.map_many(0, range(40_000), 1)[:, 0], minlength=6) / 40_000
    assert found == pytest.approx([0.125] * 5 + [0.375], abs=0.01)


def test_a_map_is_the_same_after_json_and_back():
    crush = CrushMap.from_text(map_text(5, "straw2", "jewel", "ids", classes=True))
    assert CrushMap.from_json(crush.to_json()) == crush


def test_compare_counts_what_moves():
    old = CrushMap.build(hosts=10, osds=1)
    new = CrushMap.build(hosts=10, osds=1, weight=[2] + [1] * 9)
    moved = old.compare(new, 0, 1, range(20_000))
    assert moved.placements == 20_000
    # straw2's promise: only the changed item's straws change, so everything goes to it.
    assert {to for _, to in moved.moves} == {0}
    assert moved.moved == moved.needed
    assert moved.fraction == pytest.approx(2 / 11 - 1 / 10, abs=0.01)
    assert old.compare(old, 0, 3).moved == 0
    straw = [
        CrushMap.build(hosts=10, osds=1, weight=[w, *range(1, 10)], alg="list") for w in (1, 2)
    ]
    assert straw[0].compare(straw[1], 0, 1, range(5000)).factor >= 1


def test_compare_counts_holes():
    crush = CrushMap.build(hosts=3, osds=1)
    one = crush.compare(CrushMap.build(hosts=2, osds=1), 1, 3, range(500))
    assert one.placements == 1500
    assert sum(one.moves.values()) == one.moved
    assert one.moved >= 500  # the third has nowhere to go


def test_random_inputs_of_any_size_are_taken():
    crush = CrushMap.build(hosts=5, osds=2)
    rng = random.Random(1)
    xs = [rng.randrange(1 << 32) for _ in range(200)]
    rows = crush.map_many(0, xs, 3)
    assert rows.tolist() == [crush.map(0, x, 3) for x in xs]
