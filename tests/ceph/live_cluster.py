"""A real Ceph cluster on this machine, for as long as a test needs it.

One monitor, a few OSDs, a manager where it is wanted, from Debian's packages; everything in one
folder, on ports of 127.0.0.1 that are free, with authentication off. Needs no root. Every daemon
dies with the test: it runs in the foreground as a child that asks the kernel for SIGKILL when its
parent is gone (`setpriv --pdeathsig`), so none outlives it even when the test itself is killed.
The folder that is left then goes when the next cluster is made.
"""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from vmlib.ceph import CrushMap, OSDMap

SYSTEM_PYTHON = "/usr/bin/python3"
NEEDS = ("ceph-mon", "ceph-osd", "ceph-mgr", "osdmaptool", "setpriv", "python3-rados")
"""What a test that starts one is marked with."""

PLACE, PREFIX = Path("/var/tmp"), "vmlib-ceph-"
"""Not /tmp, which may be memory: block devices want files that can be opened with O_DIRECT."""

CONF = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}/0]
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
crash_dir = {folder}
log_to_stderr = false
err_to_stderr = true
debug_rocksdb = 0
ms_bind_ipv6 = false
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 1

[mon]
mon_data = {folder}/$name
mon_allow_pool_delete = true
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 4000
mon_data_avail_crit = 0
mon_data_avail_warn = 0
mon_osd_down_out_interval = 0
mgr_initial_modules =
paxos_propose_interval = 0.05
paxos_min_wait = 0.01

[mgr]
mgr_data = {folder}/$name

[osd]
osd_data = {folder}/$name
osd_objectstore = {store}
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_memory_target = 939524096
bluestore_block_size = {device}
bluestore_block_wal_size = 0
bluestore_block_db_size = 0
bluestore_min_alloc_size = 4096
bluestore_prefer_deferred_size = 65536
memstore_device_bytes = {device}
osd_max_pg_per_osd_hard_ratio = 20
osd_recovery_sleep = 0
osd_max_backfills = 8
osd_tier_promote_max_objects_sec = 1000000
osd_tier_promote_max_bytes_sec = 1000000000000
osd_agent_delay_time = 0.2
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def sweep():
    """Remove the folders of tests that were killed."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        maker = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", maker).exists():
            shutil.rmtree(folder, ignore_errors=True)


class LiveCluster:
    """A running cluster. Use as a context manager."""

    def __init__(self, osds, store="memstore", manager=False, device=1 << 30):
        self.count, self.manager = osds, manager
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=PLACE))
        self.conf = self.folder / "ceph.conf"
        self.fsid, self.port = str(uuid.uuid4()), free_port()
        words = {
            "fsid": self.fsid,
            "port": self.port,
            "folder": self.folder,
            "store": store,
            "device": device,
        }
        self.conf.write_text(CONF.format(**words))
        self.running = {}
        self.client = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        monmap = self.folder / "monmap"
        address = f"[v2:127.0.0.1:{self.port}/0]"
        self.run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", address, monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self.daemon("mon.a")
        self.connect()
        if self.manager:
            (self.folder / "mgr.x").mkdir()
            self.daemon("mgr.x")
        keys = {}
        for i in range(self.count):
            keys[i] = str(uuid.uuid4())
            self.mon("osd new", uuid=keys[i], id=i)
            self.place(i)
            (self.folder / f"osd.{i}").mkdir()
        making = [
            subprocess.Popen(
                self.command("ceph-osd", "-i", i, "--mkfs", "--osd-uuid", keys[i]),
                stderr=(self.folder / f"mkfs.{i}").open("w"),
                stdout=subprocess.DEVNULL,
            )
            for i in keys
        ]
        for one in making:
            assert one.wait() == 0, "ceph-osd --mkfs failed"
        for i in keys:
            self.daemon(f"osd.{i}")
        self.until(lambda: sum(osd["up"] for osd in self.dump()["osds"]) == self.count)

    def place(self, osd, weight=1.0, host=None):
        """Put an OSD into the CRUSH map: as its host's only one, if nothing else is said."""
        where = ["root=default", f"host=host{osd if host is None else host}"]
        self.mon("osd crush add", id=osd, weight=weight, args=where)

    def stop(self):
        for process in [self.client, *self.running.values()]:
            if process is not None:
                process.kill()
                process.wait()
        self.running = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words):
        return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, words), "-c", str(self.conf)]

    def run(self, *words):
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def daemon(self, name):
        """Start a daemon, in the foreground of a child of ours."""
        kind, _, number = name.partition(".")
        with (self.folder / f"{name}.out").open("w") as out:
            self.running[name] = subprocess.Popen(
                self.command(f"ceph-{kind}", "-i", number, "-f"), stdout=out, stderr=out
            )

    def kill(self, name):
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def connect(self):
        words = ["setpriv", "--pdeathsig", "KILL", "--", SYSTEM_PYTHON]
        self.client = subprocess.Popen(
            [*words, Path(__file__).with_name("live_client.py"), self.conf],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "client.out").open("w"),
            text=True,
        )
        self.answer()

    def answer(self):
        line = self.client.stdout.readline()
        assert line, (self.folder / "client.out").read_text()[-2000:]
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def do(self, what, **arguments):
        """Have the client do something."""
        self.client.stdin.write(json.dumps({"do": what, "with": arguments}) + "\n")
        self.client.stdin.flush()
        return self.answer()

    def mon(self, prefix, data=b"", fails=False, **arguments):
        """Run a monitor's command; return its answer, read as JSON where it is that."""
        command = {"prefix": prefix, "format": "json", **arguments}
        out = self.mon_bytes(command, data, fails)
        try:
            return json.loads(out)
        except ValueError:
            return out.decode(errors="replace")

    def mon_bytes(self, command, data=b"", fails=False):
        code, out, error = self.do("mon", command=command, data=base64.b64encode(data).decode())
        assert fails or code == 0, f"{command}: {code} {error}"
        return base64.b64decode(out)

    def dump(self):
        return self.mon("osd dump")

    def osdmap(self):
        """Return the cluster's map as ours, and a file with the same epoch in its own form."""
        while True:
            crush = CrushMap.from_json(self.mon("osd crush dump"))
            ours = OSDMap.from_json(self.dump(), crush=crush)
            binary = self.mon_bytes({"prefix": "osd getmap"})
            if self.dump()["epoch"] == ours.epoch:  # nothing happened in between
                file = self.folder / "osdmap"
                file.write_bytes(binary)
                return ours, file

    def ask(self, name, *command, **arguments):
        """Ask a daemon on its socket."""
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(self.folder / f"{name}.asok"))
            words = {"prefix": " ".join(command), "format": "json", **arguments}
            one.sendall(json.dumps(words).encode() + b"\0")
            with one.makefile("rb") as answer:
                (length,) = struct.unpack(">I", answer.read(4))
                return json.loads(answer.read(length))

    def counters(self):
        """Return the counters of all OSDs that run."""
        return {i: self.ask(f"osd.{i}", "perf dump") for i in range(self.count)
                if f"osd.{i}" in self.running}  # fmt: skip

    def until(self, true, seconds=120):
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not true():
            for name, process in self.running.items():
                assert process.poll() is None, (self.folder / f"{name}.out").read_text()[-2000:]
            assert time.monotonic() < end, f"not so after {seconds} s"
            time.sleep(0.2)

    def image(self, pool, name, size, **more):
        return self.do("create", pool=pool, name=name, size=size, **more)

    def put(self, pool, name, data=b"x", namespace=""):
        coded = base64.b64encode(data).decode()
        self.do("put", pool=pool, name=name, data=coded, namespace=namespace)
