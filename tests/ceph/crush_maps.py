"""Random CRUSH maps in the compiler's language, and what `crushtool` makes of them.

A map has three or four levels, hosts of unequal size, one empty host, all device classes or none.
`map_text(seed, ...)` gives text only: what the maps mean is left to the two sides of a check.
"""

import json
import os
import random
import re
import subprocess
from datetime import date
from pathlib import Path

ALGS = ("uniform", "list", "tree", "straw", "straw2")
PROFILES = {
    "legacy": {},
    "bobtail": (0, 0, 50, 1, 0, 0, 0),
    "firefly": (0, 0, 50, 1, 1, 0, 0),
    "hammer": (0, 0, 50, 1, 1, 0, 1),
    "jewel": (0, 0, 50, 1, 1, 1, 1),
    "odd": (1, 3, 12, 1, 3, 1, 0),
    "local": (3, 0, 30, 0, 4, 1, 1),
}
KNOBS = (
    "choose_local_tries",
    "choose_local_fallback_tries",
    "choose_total_tries",
    "chooseleaf_descend_once",
    "chooseleaf_vary_r",
    "chooseleaf_stable",
    "straw_calc_version",
)
WEIGHT_SETS = ("none", "compat", "positions", "ids")

RULES = """
rule leaf { id 0
 type replicated
 min_size 1
 max_size 10
 step take root
 step chooseleaf firstn 0 type host
 step emit
}
rule devices { id 1
 type replicated
 min_size 1
 max_size 10
 step take root
 step choose firstn 0 type osd
 step emit
}
rule steps { id 2
 type replicated
 min_size 1
 max_size 10
 step take root
 step choose firstn 2 type rack
 step choose firstn 2 type host
 step choose firstn 1 type osd
 step emit
}
rule ec { id 3
 type erasure
 min_size 1
 max_size 10
 step set_chooseleaf_tries 5
 step set_choose_tries 100
 step take root
 step chooseleaf indep 0 type host
 step emit
}
rule ecsteps { id 4
 type erasure
 min_size 1
 max_size 10
 step take root
 step choose indep 2 type rack
 step chooseleaf indep 2 type host
 step emit
}
rule ecdevices { id 5
 type erasure
 min_size 1
 max_size 10
 step take root
 step choose indep -1 type osd
 step emit
 step take rack0
 step choose firstn 1 type osd
 step emit
}
rule knobs { id 6
 type replicated
 min_size 1
 max_size 10
 step set_choose_local_tries 2
 step set_choose_local_fallback_tries 1
 step set_chooseleaf_vary_r 2
 step set_chooseleaf_stable 0
 step set_choose_tries 9
 step set_chooseleaf_tries 3
 step take root
 step chooseleaf firstn -1 type rack
 step emit
 step take root
 step chooseleaf firstn 1 type host
 step emit
}
rule wrong { id 7
 type replicated
 min_size 1
 max_size 10
 step take rack0
 step choose firstn 0 type root
 step emit
 step take host0
 step chooseleaf indep 2 type osd
 step emit
 step take rack0
 step choose indep 2 type root
 step emit
}
"""
CLASS_RULES = """
rule fast { id 8
 type replicated
 min_size 1
 max_size 10
 step take root class ssd
 step chooseleaf firstn 0 type host
 step emit
}
rule slow { id 9
 type erasure
 min_size 1
 max_size 10
 step take root class hdd
 step chooseleaf indep 0 type rack
 step emit
}
"""


def seed_of_the_day():
    """Return what picks today's slice of a long count: VMLIB_SEED, or the number of the day."""
    return int(os.environ.get("VMLIB_SEED") or date.today().toordinal())


def map_text(seed, alg="straw2", profile="jewel", weight_set="none", classes=False, equal=False):
    """Return a random map as text for the compiler."""
    rng = random.Random(seed)
    lines = (
        []
        if profile == "legacy"
        else [
            f"tunable {name} {value}" for name, value in zip(KNOBS, PROFILES[profile], strict=True)
        ]
    )
    racks, hosts = rng.randint(3, 5), rng.randint(2, 4)
    sizes = [[rng.randint(1, 6) for _ in range(hosts)] for _ in range(racks)]
    sizes[rng.randrange(racks)][rng.randrange(hosts)] = 0
    count = sum(map(sum, sizes))
    for osd in range(count):
        kind = rng.choice((" class ssd", " class hdd", "")) if classes else ""
        lines.append(f"device {osd} osd.{osd}{kind}")
    lines += ["type 0 osd", "type 1 host", "type 2 rack", "type 3 root"]
    ids = rng.sample(range(-200, 0), racks * (hosts + 1) + 1)
    table, buckets, osd, host = iter(ids), [], 0, 0
    same = rng.uniform(0.5, 3)

    def bucket(kind, name, items):
        mine = next(table)
        empty = alg == "uniform" and not items  # the compiler aborts on an empty uniform bucket
        alg_here = "straw2" if empty else alg
        rows = [f"{kind} {name} {{", f" id {mine}", f" alg {alg_here}", " hash 0"]
        if alg_here == "uniform":  # one weight for all, and not 0: the compiler aborts on that too
            items = [(item, same) for item, _ in items]
        rows += [f" item {item} weight {weight:.3f}" for item, weight in items]
        lines.extend([*rows, "}"])
        buckets.append((mine, len(items)))
        return sum(weight for _, weight in items)

    rack_items = []
    for rack in range(racks):
        host_items = []
        for size in sizes[rack]:
            some = (0, 0.05, 1, rng.uniform(0.1, 4), rng.uniform(0.1, 4))
            weights = [same if equal else rng.choice(some) for _ in range(size)]
            items = [(f"osd.{osd + i}", weight) for i, weight in enumerate(weights)]
            osd += size
            host_items.append((f"host{host}", bucket("host", f"host{host}", items)))
            host += 1
        rack_items.append((f"rack{rack}", bucket("rack", f"rack{rack}", host_items)))
    bucket("root", "root", rack_items)
    lines += [RULES, CLASS_RULES if classes else ""]
    if weight_set != "none":
        lines.append(f"choose_args {(1 << 64) - 1 if weight_set == 'compat' else 0} {{")
        for mine, size in rng.sample(buckets, len(buckets) * 2 // 3):
            if not size:
                continue
            lines.append(f" {{ bucket_id {mine}")
            rows = 1 if weight_set == "compat" else 3
            made = [" ".join(f"{rng.uniform(0, 3):.3f}" for _ in range(size)) for _ in range(rows)]
            lines.append(f"  weight_set [ {' '.join(f'[ {row} ]' for row in made)} ]")
            if weight_set == "ids":
                lines.append(
                    f"  ids [ {' '.join(str(rng.randint(-99, 99)) for _ in range(size))} ]"
                )
            lines.append(" }")
        lines.append("}")
    return "\n".join(lines) + "\n"


def crushtool(*arguments, check=True):
    """Run crushtool; return what it printed on both outputs."""
    done = subprocess.run(
        ["crushtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if check:
        assert done.returncode == 0, (done.stdout + done.stderr)[:300]
    return done.stdout + done.stderr


def version():
    """Return the version of Debian's crushtool, from its package."""
    command = ["dpkg-query", "-W", "-f", "${Version}", "ceph-base"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Compiled:
    """A map that the real compiler has made of a text."""

    def __init__(self, text, folder):
        folder = Path(folder)
        self.source, self.binary = folder / "map.txt", folder / "map.bin"
        self.source.write_text(text)
        crushtool("-c", self.source, "-o", self.binary, "--enable-unsafe-tunables")

    def json(self):
        out = crushtool("-i", self.binary, "--dump")
        return json.loads(out[out.index("{") :])

    def text(self):
        return crushtool("-d", self.binary)

    def test(self, rule, n, xs, weights, *more):
        """Run --test over a range of inputs; `weights` are 16.16 by device. No rule: all rules."""
        outs = [word for osd, w in weights.items() for word in ("--weight", osd, w / 65536)]
        span = ["--min-x", xs[0], "--max-x", xs[-1]]
        one = [] if rule is None else ["--rule", rule]
        return crushtool("-i", self.binary, "--test", *one, "--num-rep", n, *span, *outs, *more)

    def mappings(self, rule, n, xs, weights):
        """Return {(rule, x): devices}, for one rule or, without, for all."""
        out = self.test(rule, n, xs, weights, "--show-mappings")
        found = re.findall(r"^CRUSH rule (\d+) x (\d+) \[(.*)\]$", out, re.MULTILINE)
        rows = {(int(r), int(x)): [int(d) for d in row.split(",") if d] for r, x, row in found}
        assert len(rows) == len({r for r, _ in rows}) * len(xs) > 0, out[-300:]
        return rows

    def tries(self, rule, n, xs, weights):
        """Return the histogram of tries, {failed: count} without zeros."""
        out = self.test(rule, n, xs, weights, "--show-choose-tries")
        rows = re.findall(r"^\s*(\d+):\s+(\d+)$", out, re.MULTILINE)
        return {int(k): int(v) for k, v in rows if int(v)}


def out_weights(seed, devices):
    """Return random 16.16 out-weights for a third of the devices."""
    rng = random.Random(seed)
    return {
        osd: round(rng.choice((0, 0.25, 0.75)) * 65536)
        for osd in rng.sample(range(devices), devices // 3)
    }


def tool_weights(crush, weights):
    """Return the out-weights that `crushtool --test` uses: 0 for devices in no bucket."""
    placed = {item for bucket in crush.buckets.values() for item in bucket.items}
    return weights | {osd: 0 for osd in range(crush.max_devices) if osd not in placed}
