"""Images in objects: what needs no cluster. Every byte on a real one: test_live_placement."""

import pytest

from vmlib.ceph import rbd_objects, rbd_problem, stable_mod
from vmlib.errors import BadInput


@pytest.mark.parametrize(
    ("order", "unit", "count"), [(12, None, 1), (14, 4096, 3), (13, 1024, 5), (12, 512, 1)]
)
def test_every_byte_has_one_place(order, unit, count):
    image = rbd_objects("5", 100_001, order, unit, count)
    places = {(e.number, e.offset) for at in range(0, image.size, 7) for e in image.at(at)}
    assert len(places) == len(range(0, image.size, 7))
    pieces = image.at(0, image.size)
    assert sum(piece.length for piece in pieces) == image.size
    assert [p.image_offset for p in pieces] == sorted(p.image_offset for p in pieces)
    assert {p.number for p in pieces} == set(range(image.count))
    assert all(p.offset + p.length <= image.object_size for p in pieces)
    for piece in pieces:
        (first,) = image.at(piece.image_offset)
        assert (first.number, first.offset) == (piece.number, piece.offset)


def test_names_are_those_that_rbd_gives():
    image = rbd_objects("10226b8b4567", "1G")
    assert image.name(255) == "rbd_data.10226b8b4567.00000000000000ff"
    assert image.header == "rbd_header.10226b8b4567"
    assert image.object_map == "rbd_object_map.10226b8b4567"
    assert image.count == len(list(image.names())) == 256
    assert rbd_objects("10226b8b4567", "1G", pool=7).prefix == "rbd_data.7.10226b8b4567"
    assert rbd_objects("rbd_data.7.10226b8b4567", "1G").id == "10226b8b4567"


def test_units_go_round():
    image = rbd_objects("5", "64K", 13, 4096, 2)
    assert [(e.number, e.offset) for e in image.at(0, 6 * 4096)] == [
        (0, 0), (1, 0), (0, 4096), (1, 4096), (2, 0), (3, 0),
    ]  # fmt: skip
    plain = rbd_objects("5", "64K", 13)
    assert [e.length for e in plain.at(100, 20_000)] == [8092, 8192, 3716]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", 4096), "prefix"),
        (("5", 0), "size"),
        (("5", 4096, 11), "order"),
        (("5", 4096, 26), "order"),
        (("5", 1 << 22, 22, 3000), "stripe_unit"),
        (("5", 1 << 22, 22, 4096, 0), "stripe_count"),
    ],
)
def test_impossible_images_are_refused(arguments, field):
    with pytest.raises(BadInput) as caught:
        rbd_objects(*arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "place", [(-1, 1), (1 << 20, 1), (0, (1 << 20) + 1), (5, -1), (1.5, 1), ("x", 1)]
)
def test_bytes_outside_the_image_are_refused(place):
    with pytest.raises(BadInput):
        rbd_objects("5", 1 << 20).at(*place)


def test_problems_are_marked_by_the_image():
    for seed in range(60):
        problem = rbd_problem(seed)
        right = problem.answer
        assert problem.mark(right.number, right.offset).count("right") == 2
        assert problem.mark(right.number + 1, right.offset + 1).count("not there") == 2
        assert f"{problem.offset:,}" in problem.question
    assert "not answered" in rbd_problem(1).mark()
    assert rbd_problem(3) == rbd_problem(3)
    with pytest.raises(BadInput):
        rbd_problem(-1)


@pytest.mark.parametrize(
    ("order", "unit", "count"), [(22, 1 << 22, 1), (22, 1 << 16, 4), (20, 1 << 18, 3)]
)
def test_the_lab_s_striping_in_four_lines(order, unit, count):
    """The lab, section 3."""
    image = rbd_objects("5e1f", "1G", order, unit, count)
    for offset in range(0, image.size, 1_234_567):
        block, within = divmod(offset, unit)
        stripe, column = divmod(block, count)
        row, depth = divmod(stripe, image.object_size // unit)
        (piece,) = image.at(offset)
        assert (row * count + column, depth * unit + within) == (piece.number, piece.offset)


def test_the_exercises_of_the_chapter():
    (piece,) = rbd_objects("5", "10G").at(5_000_000_000)
    assert (piece.number, piece.offset) == (1192, 389_632)
    assert piece.name.endswith("00000000000004a8")
    split = sum(stable_mod(h, 100) != stable_mod(h, 128) for h in range(1 << 14)) / (1 << 14)
    assert split == 28 / 128
