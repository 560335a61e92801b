"""Damaged maps for all tests that want some: JSON with odd values in it, text with words astray."""

import copy

from crush_maps import map_text

from vmlib.ceph import CrushMap
from vmlib.errors import BadInput, Unsupported


def dump():
    return CrushMap.from_text(map_text(6, "straw2", "jewel", "positions", classes=True)).to_json()


def put(data, path, value):
    for key in path[:-1]:
        data = data[key]
    if value is None:
        del data[path[-1]]
    else:
        data[path[-1]] = value


ODD = (None, -1, 0, 1, 2, -2, -7, 255, 65536, 1 << 31, 1 << 70, 1.5, float("nan"), "", "straw",
       "tree", "uniform", "list", "osd", "host", True, [], {}, [1], {"id": 1})  # fmt: skip


def places(data, path=()):
    """Yield the path of everything in a JSON value."""
    children = data.items() if isinstance(data, dict) else enumerate(data)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def damage_json(rng, whole):
    data = copy.deepcopy(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        path = rng.choice(list(places(data)))
        value = copy.deepcopy(rng.choice(ODD))  # else the next damage would be done to ODD itself
        if rng.random() < 0.2:
            value = copy.deepcopy(rng.choice(whole["buckets"]))
        put(data, path, value)
    return data


def damage_text(rng, text):
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        way = rng.randrange(4)
        if way == 0:
            words[i] = rng.choice(("{", "}", "[", "]", "-1", "1e9", "9" * 30, "class", "id", "é"))
        elif way == 1:
            words[i] = words[j]
        elif way == 2:
            del words[i]
        else:
            words[i], words[j] = words[j], words[i]
    return " ".join(words)


def damaged_map(rng, whole, text):
    """Return the map that a damaged dump or a damaged text describes, if it describes one."""
    if rng.random() < 0.6:
        return CrushMap.from_json(damage_json(rng, whole))
    return CrushMap.from_text(damage_text(rng, text))


def sort_out(make, use, enough):
    """Make damaged things until `enough(count)`, and use those that are not refused.

    Returns how many were refused, and how many could be used.
    """
    refused = usable = 0
    while not enough(refused + usable):
        try:
            made = make()
        except (BadInput, Unsupported):
            refused += 1
            continue
        use(made)
        usable += 1
    return refused, usable
