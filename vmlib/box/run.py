"""Boot the box, give it jobs, bring back what they returned and what the kernel counted.

One boot serves any number of jobs: the box waits on a serial port for the number of the next one.
Jobs and results are files in a temporary folder, the only one the box can write to.
"""

import contextlib
import ctypes
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vmlib.box.image import QEMU, ready
from vmlib.errors import BadInput, VmlibError

ROOT = Path(__file__).resolve().parents[2]
"""The folder in which vmlib lies."""
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
BOOT_SECONDS = 300  # two in peace; a host may be busy
SPARE_SECONDS = 60  # on top of a job's own limit: reloading the module, reading the trace

# The host's files, and over them what belongs to this kernel. `share` is the only way out.
INIT = """#!/busybox sh
b=/busybox
$b mount -t devtmpfs dev /dev
for module in {modules}; do $b insmod /$module.ko; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host
$b mount -t devtmpfs dev /host/dev
$b mount -t proc proc /host/proc
$b mount -t sysfs sys /host/sys
$b mount -t tracefs trace /host/sys/kernel/tracing
$b mkdir -p /host/dev/shm /host/dev/box
$b mount -t tmpfs tmp /host/dev/shm
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /host/dev/box
$b cp /busybox /kvm-amd.ko /host/dev/
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/dev/shm
export LANG=C.UTF-8 HOME=/dev/shm PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1
export OPENBLAS_NUM_THREADS=1
$b chroot /host /bin/sh -c {command}
$b poweroff -f
"""


class BoxError(VmlibError):
    """The box itself failed: it did not boot, or stopped answering. Its last words are in it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A function to call inside the box.

    `call` is ``"module:function"``: of vmlib, of what is installed, or of the box's `path`. `args`
    is a list or a dict of JSON values, and the function returns one. `npt` is 1 for nested paging,
    0 for shadow paging. `seconds` is all the time it gets.

    `trace` False leaves the kernel's events out, for a job that makes millions. `lines` brings the
    trace's lines back too. `trace_kb` is the room for events, at 50 to 150 bytes an event; when it
    does not do, that is an error and the counts are too small.
    """

    name: str
    call: str
    args: Sequence[Any] | dict[str, Any] = ()
    npt: int = 1
    seconds: float = 30
    trace: bool = True
    lines: bool = False
    trace_kb: int = 8192


@dataclass(frozen=True, slots=True)
class Result:
    """What a job came to.

    `error` is a traceback, or why there is no value. `events` counts the kernel's trace events,
    by name and then by kind, in its own words: ``events["kvm_exit"]["hlt"]``. Some of them follow
    the clock (exits of kind ``interrupt``), some tell of this process's own memory
    (`kvm_unmap_hva_range`, `kvm_set_spte_hva`): their numbers differ from run to run.
    """

    value: Any
    error: str | None
    events: dict[str, dict[str, int]]
    lines: list[str]

    def count(self, event: str, kind: str | None = None) -> int:
        """How often an event happened, of one kind or of all."""
        kinds = self.events.get(event, {})
        return sum(kinds.values()) if kind is None else kinds.get(kind, 0)


class Box:
    """A box that boots when the first job comes; a context manager, after which it is gone.

    `path`: folders with modules for its jobs. `HostUnavailable` if there is no QEMU or no kernel.
    """

    def __init__(self, path: Sequence[str | Path] = ()) -> None:
        self._image = ready()
        self._path = [str(one) for one in (ROOT, *path)]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._heard = b""

    @property
    def version(self) -> str:
        """The kernel's version, as `uname -r` says inside."""
        return self._image.version

    def run(self, jobs: Sequence[Job]) -> dict[str, Result]:
        """Do the jobs, those of one kind of paging together; return results by name."""
        names = [job.name for job in jobs]
        if len(set(names)) < len(names):
            raise BadInput("jobs", f"every job needs a name of its own: {names}")
        done = {job.name: self._do(job) for job in sorted(jobs, key=lambda job: -job.npt)}
        return {name: done[name] for name in names}

    def close(self) -> None:
        """Kill the box and remove its files."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            for stream in (self._qemu.stdin, self._qemu.stdout):
                if stream is not None:
                    stream.close()
            self._qemu = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, job: Job) -> Result:
        if self._qemu is None:
            self._boot()
        assert self._qemu is not None
        assert self._folder is not None
        assert self._qemu.stdin is not None
        self._number += 1
        folder = Path(self._folder.name) / "share"
        (folder / f"{self._number}.job.json").write_text(json.dumps(asdict(job)))
        try:
            with contextlib.suppress(BrokenPipeError):  # then the wait says what happened
                self._qemu.stdin.write(b"%d\n" % self._number)
            self._wait_for(str(self._number), job.seconds + SPARE_SECONDS, f"job {job.name}")
        except BaseException:  # whatever it was, the next job must not hear this one's answer
            self.close()
            raise
        result = Result(**json.loads((folder / f"{self._number}.result.json").read_text()))
        for path in folder.glob(f"{self._number}.*"):
            path.unlink()
        return result

    def _boot(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmlib-box-")
        folder = Path(self._folder.name)
        share, initramfs = folder / "share", folder / "initramfs"
        share.mkdir()
        initramfs.write_bytes(self._image.initramfs(self._init()))
        # One CPU: with two, on a busy host, the box's kernel now and then locked up in KVM_RUN.
        command = [QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "2048"]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(self._image.kernel), "-initrd", str(initramfs)]
        command += ["-append", "console=ttyS0 panic=-1 quiet"]
        command += ["-serial", f"file:{folder / 'console'}"]
        command += ["-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"]
        for tag, path, more in (("host", "/", ",readonly=on"), ("share", share, "")):
            options = f"path={path},mount_tag={tag},security_model=none,multidevs=remap{more}"
            command += ["-virtfs", f"local,{options}"]
        self._heard = b""
        libc = ctypes.CDLL(None)  # loaded here: in the new process it is too late for that
        with (folder / "qemu").open("wb") as complaints:
            self._qemu = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                # The kernel kills the box when this process is killed and cannot do it itself.
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        try:
            self._wait_for("ready", BOOT_SECONDS, "the boot")
        except BaseException:
            self.close()
            raise

    def _init(self) -> str:
        serve = shlex.join([sys.executable, "-m", "vmlib.box.inside"])
        return INIT.format(
            modules=" ".join(name for name in self._image.modules if name != "kvm-amd"),
            path=shlex.quote(os.pathsep.join(self._path)),
            command=shlex.quote(f"cd {shlex.quote(str(ROOT))} && exec {serve}"),
        )

    def _wait_for(self, word: str, seconds: float, what: str) -> None:
        assert self._qemu is not None
        assert self._qemu.stdout is not None
        end = time.monotonic() + seconds
        line = self._qemu.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([line], [], [], max(0, end - time.monotonic()))[0]:
                raise BoxError(f"{what}: no answer in {seconds} s. {self._last_words()}")
            piece = os.read(line, 4096)
            if not piece:
                raise BoxError(f"{what}: the box is gone. {self._last_words()}")
            self._heard += piece
        said, self._heard = self._heard.split(b"\n", 1)
        if said.decode(errors="replace").strip() != word:
            raise BoxError(f"{what}: expected {word!r}, heard {said!r}. {self._last_words()}")

    def _last_words(self) -> str:
        assert self._folder is not None
        said = ""
        for name in ("qemu", "console"):
            path = Path(self._folder.name) / name
            text = path.read_text(errors="replace") if path.is_file() else ""
            lines = text.splitlines()
            lines = lines if len(lines) < 25 else [*lines[:16], "…", *lines[-8:]]
            said += f"\nIts {name}: " + ("\n".join(lines) or "nothing")
        return said
