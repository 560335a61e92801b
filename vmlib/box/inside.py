"""The part that runs inside the box: it takes jobs from a line, traces them, answers.

Started by the box's first script. A number on the second serial port names a job, `N.job.json` in
the shared folder; the same number comes back when `N.result.json` is there.

Each job is a process of its own, so that one that hangs or dies harms no other. It is forked, not
started: here an import takes seconds, and the library is imported once, before the first job.
"""

import contextlib
import importlib
import json
import os
import re
import select
import signal
import subprocess
import time
import traceback
import tty
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

SHARE = Path("/dev/box")
BUSYBOX = "/dev/busybox"
TRACING = Path("/sys/kernel/tracing")
LINE = "/dev/ttyS1"
IDLE_SECONDS = 900  # with nobody left to give jobs, the box goes by itself

EVENT = re.compile(r"\[\d+\] \S+ +[\d.]+: (\w+): (.*)")
# What tells the kinds of an event apart, in the kernel's own words. Others have one kind: "".
KINDS = {
    "kvm_exit": r"reason (.*?) ?rip ",
    "kvm_nested_vmexit": r"reason (.*?) ?rip ",
    "kvm_userspace_exit": r"reason (\w+)",
    "kvm_pio": r"(pio_\w+)",
    "kvm_mmio": r"mmio ([\w-]+)",
    "kvm_msr": r"(msr_\w+)",
    "kvm_cr": r"(cr_\w+ \w+)",
    "kvm_inj_exception": r"(#\w+)",
    "kvm_inj_virq": r"(?:IRQ )?(0x\w+|\d+)",
}


def count_events(lines: list[str]) -> dict[str, dict[str, int]]:
    """Count trace lines by event and kind."""
    events: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if found := EVENT.search(line):
            name, text = found.groups()
            kind = re.search(KINDS[name], text) if name in KINDS else None
            events[name][kind[1].strip() if kind else ""] += 1
    return {name: dict(kinds) for name, kinds in events.items()}


def prepare_tracing() -> None:
    """Switch KVM's events on, but nothing is written until `tracing_on`."""
    (TRACING / "tracing_on").write_text("0")
    for group in ("kvm", "kvmmmu"):
        (TRACING / "events" / group / "enable").write_text("1")


def lost_events() -> int:
    """Return how many events found no room since the trace was cleared."""
    return sum(
        int(number)
        for path in TRACING.glob("per_cpu/cpu*/stats")
        for number in re.findall(r"(?:overrun|dropped events): (\d+)", path.read_text())
    )


def load_kvm(npt: int) -> None:
    """See that kvm-amd is loaded with nested paging on (1) or off (0)."""
    setting = Path("/sys/module/kvm_amd/parameters/npt")
    if setting.is_file():
        if setting.read_text().strip() in (str(npt), "NY"[npt]):
            return
        for _ in range(50):  # the last job's process may still be on its way out
            if not subprocess.run([BUSYBOX, "rmmod", "kvm_amd"], capture_output=True).returncode:
                break
            time.sleep(0.1)
    subprocess.run([BUSYBOX, "insmod", "/dev/kvm-amd.ko", f"npt={npt}"], check=True)
    prepare_tracing()


def run_job(number: str) -> dict[str, Any]:
    """Run one job in a process of its own, under the kernel's trace; return its result."""
    job = json.loads((SHARE / f"{number}.job.json").read_text())
    load_kvm(job["npt"])
    (TRACING / "buffer_size_kb").write_text(str(job["trace_kb"]))
    (TRACING / "trace").write_text("")
    (TRACING / "tracing_on").write_text("1" if job["trace"] else "0")
    ended = _in_a_process(number, job)
    (TRACING / "tracing_on").write_text("0")
    lines = (TRACING / "trace").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    answer, said = SHARE / f"{number}.answer.json", SHARE / f"{number}.said"
    errors = [f"{lost} events are lost, the trace has no room"] if (lost := lost_events()) else []
    if ended:
        errors += [ended, said.read_text(errors="replace").strip()]
    return {
        "value": None if ended else json.loads(answer.read_text()),
        "error": "\n".join(errors) or None,
        "events": count_events(lines),
        "lines": lines if job["lines"] else [],
    }


def _in_a_process(number: str, job: dict[str, Any]) -> str:
    """Fork a process that does the job; return an empty string, or how it ended otherwise."""
    child = os.fork()
    if child == 0:
        os._exit(_do(number, job))
    ending = os.pidfd_open(child)
    in_time = select.select([ending], [], [], job["seconds"])[0]
    os.close(ending)
    if not in_time:
        with contextlib.suppress(ProcessLookupError):  # not its own group's leader yet
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time:
        return f"no answer within {job['seconds']} s"
    return f"ended with status {status}" if status else ""


def _do(number: str, job: dict[str, Any]) -> int:
    """In the new process: call the function, leave its answer in a file; return a status."""
    try:
        os.setsid()
        said = os.open(SHARE / f"{number}.said", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(said, stream)
        module, _, name = job["call"].partition(":")
        function = getattr(importlib.import_module(module), name)
        args = job["args"]
        value = function(**args) if isinstance(args, dict) else function(*args)
        (SHARE / f"{number}.answer.json").write_text(json.dumps(value))
        return 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1


def serve() -> None:
    """Do jobs until the line says nothing for long."""
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    with contextlib.suppress(Exception):  # a broken library is the jobs' business, not the box's
        importlib.import_module("vmlib.machine")
    os.write(line, b"ready\n")
    asked = b""
    while select.select([line], [], [], IDLE_SECONDS)[0]:
        asked += os.read(line, 64)
        while b"\n" in asked:
            number, asked = asked.split(b"\n", 1)
            result = run_job(number.decode())
            (SHARE / f"{number.decode()}.result.json").write_text(json.dumps(result))
            os.write(line, number + b"\n")


if __name__ == "__main__":
    serve()
