"""OSDMaps that `osdmaptool` has made, and what it says of them."""

import json
import re
import subprocess
from pathlib import Path

from crush_maps import Compiled, crushtool, map_text

from vmlib.ceph import NONE, CrushMap, OSDMap

ROW = re.compile(r"^(\d+\.[0-9a-f]+) raw \((.*), p(-?\d+)\) up \((.*), p(-?\d+)\) acting \((.*)\)$")


def osdmaptool(*arguments):
    done = subprocess.run(
        ["osdmaptool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[:500]
    return done.stdout + done.stderr


def between_braces(text):
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def read(file):
    """Return our map of a binary map."""
    crush = Path(f"{file}.crush")
    osdmaptool(file, "--export-crush", crush)
    dump = between_braces(crushtool("-i", crush, "--dump"))
    data = between_braces(osdmaptool(file, "--dump", "json"))
    return OSDMap.from_json(data, crush=CrushMap.from_json(dump))


def groups(file):
    """Return {pgid: (raw, up, up primary, acting, acting primary)}, as the tool maps them."""
    answers = {}
    for line in osdmaptool(file, "--test-map-pgs-dump-all").splitlines():
        if (row := ROW.match(line)) is None:
            continue
        acting, _, acting_primary = row[6].rpartition(", p")
        numbers = (tuple(json.loads(text)) for text in (row[2], row[4], acting))
        raw, up, acting = numbers
        answers[row[1]] = (raw, up, int(row[5]), acting, int(acting_primary))
    return answers


def ours(place):
    return place.raw, place.up, place.up_primary, place.acting, place.acting_primary


def made(folder, seed, weight_set="none", classes=False, pgp_bits=4):
    """Make a map on a random CRUSH map; yield it as it is changed, epoch by epoch."""
    text = map_text(seed, "straw2", "jewel", weight_set, classes)
    crush, file = Compiled(text, folder), Path(folder, "osdmap")
    count = CrushMap.from_text(text).max_devices
    pools = ("--with-default-pool", "--pg-bits", 3, "--pgp-bits", pgp_bits)
    osdmaptool(file, "--createsimple", count, *pools, "--clobber")
    osdmaptool(file, "--import-crush", crush.binary)
    yield file  # no OSD exists
    balance = ("--upmap", Path(folder, "upmaps"), "--upmap-deviation", 1, "--upmap-max", 40)
    for i in range(3):  # out, one after the other, with upmaps that were there before
        first = ("--mark-up-in",) if i == 0 else ()
        osdmaptool(file, *first, "--mark-out", (seed + 5 * i) % count, *balance, "--save")
        yield file


def holes(place):
    return sum(osd == NONE for osd in place.up)
