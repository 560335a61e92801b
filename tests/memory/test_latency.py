"""The latency curve: its loop does what its listing says. No test looks at a time."""

import ctypes
import math
import subprocess

import numpy as np
import pytest

from vmlib.errors import BadInput, HostUnavailable
from vmlib.memory import latency, latency_curve
from vmlib.memory.latency import LISTING, chase_routine, lay_out


@pytest.mark.needs("nasm")
def test_the_bytes_are_what_the_listing_says(tmp_path):
    source, image = tmp_path / "chase.asm", tmp_path / "chase.bin"
    source.write_text("\n".join(["bits 64", *(text for _, text in LISTING)]))
    subprocess.run(["nasm", "-f", "bin", "-o", image, source], check=True)
    # NASM may choose the other of two encodings of a move between registers; here it does not.
    assert image.read_bytes().hex() == "".join(digits for digits, _ in LISTING).replace(" ", "")


@pytest.mark.parametrize("pages", [1, 2, 7, 300])
def test_the_cycle_passes_each_page_once(pages):
    words = np.zeros(pages * 512, np.uint64)
    at = first = lay_out(words, 0x1000_0000, pages, seed=3)
    seen = []
    for _ in range(pages):
        seen.append((at - 0x1000_0000) // 4096)
        at = int(words[(at - 0x1000_0000) // 8])
    assert at == first
    assert sorted(seen) == list(range(pages))


def test_the_loop_follows_the_addresses():
    """As many loads as asked for, and it ends where Python ends."""
    chase = chase_routine()
    room = np.zeros(50 * 512, np.uint64)
    base = room.ctypes.data
    first = lay_out(room, base, 50, seed=1)
    at = first
    for loads in range(1, 120):
        at = int(ctypes.c_uint64.from_address(at).value)
        assert chase(first, loads) == at


def test_a_curve_has_a_point_for_each_size_and_kind_of_page():
    curve = latency_curve(["64K", "4M", "16K"], repeats=3, loads=1000)
    assert [(p.huge, p.size) for p in curve.points] == [
        (huge, size) for huge in (False, True) for size in (16 << 10, 64 << 10, 4 << 20)
    ]
    for point in curve.points:
        assert 0 < point.low <= point.nanoseconds <= point.high
        assert math.isnan(point.huge_share) or 0 <= point.huge_share <= 1
    assert all(point.huge_share == 0 for point in curve.of(huge=False))
    assert len(curve.of(huge=True)) == 3


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(latency, "_available", lambda: 1 << 20)
    curve = latency_curve(["64K", "2M"], repeats=1, loads=10)
    assert {point.size for point in curve.points} == {64 << 10}
    assert curve.notes == ("from 2M on left out: the host has 1 MiB free",)


def test_a_host_without_huge_pages_is_named(monkeypatch):
    monkeypatch.setattr(latency, "_huge_bytes", lambda address: 0)
    curve = latency_curve(["4M"], repeats=1, loads=10)
    assert "no huge pages" in curve.notes[0]


def test_another_processor_is_told_honestly(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(HostUnavailable, match="aarch64"):
        latency_curve(["64K"])


@pytest.mark.parametrize("bad", [{"sizes": []}, {"sizes": [5000]}, {"sizes": ["64K"], "loads": 0}])
def test_bad_input(bad):
    with pytest.raises(BadInput):
        latency_curve(**bad)
