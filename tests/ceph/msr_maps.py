"""Maps with multi-step-retry rules, and the recording of what a newer crushtool makes of them.

Run by hand where a crushtool of Ceph 19.2 or later is installed, or in a folder it can be
changed into (`chroot FOLDER crushtool`)::

    python tests/ceph/msr_maps.py tests/ceph/msr_vectors.json [FOLDER]

Debian 12 has Ceph 16.2, which does not know these rules; Debian sid has 20.2. A folder is made
by downloading sid's ceph-base with all it depends on (`apt-get install --download-only` with an
empty dpkg status), and unpacking each package there (`dpkg -x`).
"""

import json
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

SHAPES = (
    ((3, "host"), (2, "osd")),
    ((0, "host"), (1, "osd")),
    ((2, "rack"), (2, "host"), (1, "osd")),
    ((0, "osd"),),
    ((2, "rack"), (3, "osd")),
    ((4, "host"), (2, "osd")),
)


def msr_text(seed):
    """Return a random map of racks, hosts and devices, with a rule for each shape and type."""
    rng = random.Random(seed)
    racks, hosts = rng.randint(2, 4), rng.randint(2, 3)
    sizes = [[rng.randint(1, 4) for _ in range(hosts)] for _ in range(racks)]
    sizes[0][0] = 0 if seed % 3 == 0 else sizes[0][0]
    alg = ("straw2", "straw2", "straw2", "list", "straw")[seed % 5]
    lines = [
        "tunable choose_local_tries 0",
        "tunable choose_local_fallback_tries 0",
        "tunable choose_total_tries 50",
        "tunable chooseleaf_descend_once 1",
        "tunable chooseleaf_vary_r 1",
        "tunable chooseleaf_stable 1",
        "tunable straw_calc_version 1",
        "tunable allowed_bucket_algs 54",
    ]
    count = sum(map(sum, sizes))
    lines += [f"device {osd} osd.{osd}" for osd in range(count)]
    lines += ["type 0 osd", "type 1 host", "type 2 rack", "type 3 root"]
    number, osd, rack_names = -2, 0, []
    for rack in range(racks):
        host_names = []
        for host in range(hosts):
            weights = [rng.choice((1, 0.5, rng.uniform(0.2, 3))) for _ in range(sizes[rack][host])]
            name = f"host{rack}_{host}"
            lines += [f"host {name} {{", f" id {number}", f" alg {alg}", " hash 0"]
            for weight in weights:
                lines.append(f" item osd.{osd} weight {weight:.3f}")
                osd += 1
            lines.append("}")
            host_names.append((name, sum(weights)))
            number -= 1
        lines += [f"rack rack{rack} {{", f" id {number}", f" alg {alg}", " hash 0"]
        lines += [f" item {name} weight {weight:.3f}" for name, weight in host_names]
        lines.append("}")
        rack_names.append((f"rack{rack}", sum(weight for _, weight in host_names)))
        number -= 1
    lines += ["root root {", " id -1", f" alg {alg}", " hash 0"]
    lines += [f" item {name} weight {weight:.3f}" for name, weight in rack_names]
    lines.append("}")
    rule = 0
    for kind in ("msr_indep", "msr_firstn"):
        for shape in SHAPES:
            lines += [f"rule r{rule} {{", f" id {rule}", f" type {kind}"]
            if rule % 4 == 1:
                lines += [" step set_msr_descents 7", " step set_msr_collision_tries 3"]
            lines.append(" step take root")
            lines += [f" step choosemsr {num} type {name}" for num, name in shape]
            lines += [" step emit", "}"]
            rule += 1
    if seed % 2:
        lines += [f"choose_args {seed % 4 // 2 * ((1 << 64) - 1)} {{"]
        names = [weight for _, weight in rack_names]
        rows = [" ".join(f"{rng.uniform(0, 3):.3f}" for _ in names) for _ in range(3)]
        lines += [" { bucket_id -1", f" weight_set [ {' '.join(f'[ {r} ]' for r in rows)} ] }}"]
        lines.append("}")
    outs = {o: rng.choice((0, 0.25, 0.75)) for o in rng.sample(range(count), count // 4)}
    return "\n".join(lines) + "\n", outs


def record(path, folder):
    """Write what the real tool answers, for many maps."""
    run = ["chroot", folder, "crushtool"] if folder else ["crushtool"]
    at = Path(folder or "/") / "tmp"
    maps, version = [], ""
    for seed in range(16):
        text, outs = msr_text(seed)
        (at / "msr.txt").write_text(text)
        subprocess.run([*run, "-c", "/tmp/msr.txt", "-o", "/tmp/msr.bin"], check=True)
        dump = subprocess.run(
            [*run, "-i", "/tmp/msr.bin", "--dump"], check=True, capture_output=True, text=True
        ).stdout
        weights = [word for osd, w in outs.items() for word in ("--weight", str(osd), str(w))]
        rows = {}
        for rule in range(2 * len(SHAPES)):
            for n in (3, 5, 8):
                got = subprocess.run(
                    [
                        *run,
                        "-i",
                        "/tmp/msr.bin",
                        "--test",
                        "--show-mappings",
                        "--rule",
                        str(rule),
                        "--num-rep",
                        str(n),
                        "--min-x",
                        "0",
                        "--max-x",
                        "15",
                        *weights,
                    ],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found = re.findall(r"^CRUSH rule \d+ x \d+ \[(.*)\]$", got.stdout, re.MULTILINE)
                rows[f"{rule} {n}"] = [json.loads(f"[{row}]") for row in found]
        maps.append({"seed": seed, "dump": json.loads(dump), "outs": outs, "mappings": rows})
    name = ["dpkg-query", "-W", "-f", "${Version}", "ceph-base"]
    if folder:
        debs = sorted(Path(folder).parent.glob("cache/archives/ceph-base_*.deb"))
        version = debs[0].name.split("_")[1] if debs else "unknown"
    else:
        version = subprocess.run(name, capture_output=True, text=True, check=True).stdout
    head = {
        "tool": "crushtool",
        "version": version,
        "recorded": date.today().isoformat(),
        "recipe": "python tests/ceph/msr_maps.py tests/ceph/msr_vectors.json [FOLDER]",
    }
    body = ",\n  ".join(json.dumps(one, separators=(",", ":")) for one in maps)
    text = json.dumps(head, indent=1)[:-2]
    Path(path).write_text(f'{text},\n "maps": [\n  {body}\n ]\n}}\n')


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
