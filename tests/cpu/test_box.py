"""KVM in a box: the box itself, and the first guest on a true KVM against the emulator."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import box_jobs
import pytest
from box import Box, BoxError, Image, Job, fetch
from engine_files import KVM_FILES
from test_add_guest import CASES, EMULATOR

from vmlib.box import ready
from vmlib.box.image import newc
from vmlib.box.inside import count_events
from vmlib.errors import HostUnavailable

PAIRS = [list(pair) for pair in CASES]
NPT, SHADOW = 1, 0
AAM = "b8 64 00 d4 0a f4"  # mov ax, 100; aam; hlt: AL = 0, AH = 10

# As the kernel of the box writes it, with its columns and its spaces at the end.
TRACE = """\
          python-124     [000] d..1.    13.738481: kvm_entry: vcpu 0, rip 0x1000
          python-124     [000] .....    13.738985: kvm_exit: vcpu 0 reason npf rip 0x1000 info1 0x14
          python-118     [001] .....    10.564985: kvm_exit: vcpu 0 reason PF excp rip 0x1000 info1
          python-118     [001] .N...    10.565000: kvm_exit: vcpu 0 reason  rip 0x1000 info1 0x10
 CPU 0/KVM x-9         [001] .....    10.740045: kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x 
          python-124     [000] .....    13.742393: kvm_userspace_exit: reason KVM_EXIT_IO (2)
          python-124     [000] .....    13.742399: kvm_userspace_exit: reason restart (4)
          python-124     [000] .....    13.742401: kvm_cr: cr_write 0 = 0x11
          python-124     [000] .....    13.742402: kvm_msr: msr_read 174 = 0x0 (#GP)
          python-124     [000] .....    13.742403: kvm_inj_exception: #PF (0x0) [reinjected]
          python-124     [000] .....    13.742404: kvm_inj_virq: IRQ 0x20
          python-124     [000] .....    13.742405: kvm_mmio: mmio unsatisfied-read len 4 gpa 0xf00
"""  # noqa: W291


def test_the_kernels_words_are_counted_as_they_are():
    assert count_events(TRACE.splitlines()) == {
        "kvm_entry": {"": 1},
        "kvm_exit": {"npf": 1, "PF excp": 1, "": 1},
        "kvm_pio": {"pio_write": 1},
        "kvm_userspace_exit": {"KVM_EXIT_IO": 1, "restart": 1},
        "kvm_cr": {"cr_write 0": 1},
        "kvm_msr": {"msr_read": 1},
        "kvm_inj_exception": {"#PF": 1},
        "kvm_inj_virq": {"0x20": 1},
        "kvm_mmio": {"unsatisfied-read": 1},
    }


def test_the_archive_keeps_every_member_on_four_bytes():
    archive = newc(["d"], {"init": b"#!x", "empty": b""})
    at, seen = 0, {}
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * k : at + 14 + 8 * k], 16) for k in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        data = at + 110 + name_size + -(110 + name_size) % 4
        seen[name] = (mode, archive[data : data + size])
        at = data + size + -size % 4
    assert seen == {
        b"d\0": (0o040755, b""),
        b"init\0": (0o100755, b"#!x"),
        b"empty\0": (0o100755, b""),
        b"TRAILER!!!\0": (0, b""),
    }


def test_without_apt_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostUnavailable, match="apt-get is not there"):
        fetch()


def test_a_box_fetches_nothing_by_itself(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "qemu-system-x86_64").write_text("")
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostUnavailable, match="no kernel for the box") as caught:
        Box()
    assert "fetch()" in caught.value.fix
    (tmp_path / "vmlib-box/6.1.0-9-amd64").mkdir(parents=True)
    assert ready().version == "6.1.0-9-amd64"
    (tmp_path / "qemu-system-x86_64").unlink()
    with pytest.raises(HostUnavailable, match="is not installed"):
        Box()


def test_the_newest_kernel_in_the_cache_is_taken_and_a_half_made_one_never(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("6.1.0-9-amd64", "6.1.0-56-amd64", "new-7.0.0"):
        (tmp_path / "vmlib-box" / name).mkdir(parents=True)
    assert fetch().version == "6.1.0-56-amd64"


@pytest.mark.needs("box")
@pytest.mark.parametrize("npt", [NPT, SHADOW])
def test_a_job_runs_where_it_should(box, npt):
    said = box.run([Job("where", "box_jobs:where", npt=npt)])["where"]
    assert said.error is None
    kvm = f"Linux {box.version} (kvm_amd)"
    assert said.value == {"npt": bool(npt), "kernel": box.version, "kvm": kvm}


@pytest.mark.needs("box")
def test_what_goes_wrong_is_said_and_harms_no_other_job(box):
    outside = Path(__file__).with_name("must-not-appear")
    jobs = [
        Job("module", "no_such_module:f"),
        Job("outside", "box_jobs:write_to", [str(outside)]),
        Job("late", "box_jobs:sleep", [60], seconds=0.5),
        Job("killed", "box_jobs:die", [int(signal.SIGSEGV)]),
        Job("well", "box_jobs:sleep", {"seconds": 0}),
    ]
    done = box.run(jobs)
    assert list(done) == [job.name for job in jobs]
    assert "ModuleNotFoundError" in done["module"].error
    assert "Read-only file system" in done["outside"].error
    assert not outside.exists()
    assert done["late"].error.startswith("no answer within 0.5 s")
    assert done["killed"].error.startswith("ended with status -11")
    assert done["well"].error is None
    with pytest.raises(ValueError, match="name of its own"):
        box.run([jobs[0], jobs[0]])


@pytest.mark.needs("box")
def test_a_box_that_does_not_boot_says_why_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Image, "initramfs", lambda self, init: newc([], {"init": b"#!/none"}))
    with Box() as box, pytest.raises(BoxError, match=r"(?s)the boot: the box is gone.*No working"):
        box.run([Job("any", "box_jobs:where")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("box")
def test_an_interrupt_ends_the_box(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started = []

    def interrupted(box, *_):
        started.append(box._qemu)
        assert started[0].poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(Box, "_wait_for", interrupted)
    box = Box()
    with pytest.raises(KeyboardInterrupt):
        box.run([Job("any", "box_jobs:where")])
    assert started[0].poll() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("box")
def test_the_box_dies_with_its_process(root, tmp_path):
    script = """
import os, signal, sys
sys.path.insert(0, "tests")
from box import Box, Job
def die(box, *_):
    print(box._qemu.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Box._wait_for = die
Box().run([Job("any", "box_jobs:where")])
"""
    died = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert died.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(died.stdout)}/stat")
    for _ in range(100):  # until whoever inherited it has collected it
        if not status.is_file() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("QEMU still runs")


@pytest.mark.needs("box")
def test_the_job_that_runs_bytes(box):
    """mov [0x4000], al; cpuid; mov al, 'A'; out 0x80, al; hlt; out 0xf4, al: as the lab has it."""
    job = Job("bytes", "vmlib.box.jobs:run_flat", ["a2 00 40 0f a2 b0 41 e6 80 f4 e6 f4"])
    for npt, touched in ((NPT, "npf"), (SHADOW, "PF excp")):
        done = box.run([replace(job, npt=npt)])["bytes"]
        assert done.error is None
        assert done.value["exits"] == ["IO OUT 0x80 ← 0x41 'A'", "HLT", "IO OUT 0xf4 ← 0x41 'A'"]
        reasons = {"cpuid": 1, "io": 2, "hlt": 1, touched: 2}
        assert {kind: done.count("kvm_exit", kind) for kind in reasons} == reasons


@pytest.mark.needs("box")
def test_events_that_found_no_room_are_an_error(box):
    job = Job("small", "box_jobs:add_outcomes", ["kvm", PAIRS], trace_kb=8, seconds=60)
    done = box.run([job])["small"]
    assert re.fullmatch(r"\d+ events are lost, the trace has no room", done.error)
    assert len(done.value) == len(PAIRS)


@pytest.mark.needs("unicorn", "box")
def test_same_in_the_box(check, box):
    """On a true KVM, with nested and with shadow paging, the same as on the emulator here."""
    jobs = [
        Job(f"{what}, npt={npt}", "box_jobs:add_outcomes", ["kvm", pairs], npt=npt, seconds=120)
        for npt in (NPT, SHADOW)
        for what, pairs in (("page", PAIRS[:1]), ("all", PAIRS))
    ]
    done = box.run(jobs)
    assert [result.error for result in done.values()] == [None] * len(jobs)
    with check(
        "cpu/box-add",
        what="The guest on the emulator against the same bytes on an unmodified kvm-amd, booted "
        "in a box: exits, registers after the halt, all of RAM, and the kernel's own counts",
        tool="kvm-amd under qemu-system-x86_64 -accel tcg",
        tool_version=f"Linux {box.version}",
        covers=[*EMULATOR, *KVM_FILES],
    ) as record:
        for npt in (NPT, SHADOW):
            ours = box_jobs.add_outcomes("unicorn", PAIRS)
            real = done[f"all, npt={npt}"]
            for pair, one, other in zip(PAIRS, ours, real.value, strict=True):
                for name in one:
                    record.case(one[name], other[name], f"{name} of {pair}, npt={npt}")
            for event, ports, halts in (
                ("kvm_exit", "io", "hlt"),
                ("kvm_userspace_exit", "KVM_EXIT_IO", "KVM_EXIT_HLT"),
            ):
                total = sum(one["counts"]["IO"] for one in ours)
                record.case(total, real.count(event, ports), f"{event} {ports}, npt={npt}")
                record.case(len(ours), real.count(event, halts), f"{event} {halts}, npt={npt}")
        [ours] = box_jobs.add_outcomes("unicorn", PAIRS[:1])
        page = done[f"page, npt={NPT}"]
        [real] = page.value
        record.show("serial port, 200 + 100", ours["output"].encode(), real["output"].encode())
        for name in ours["shown"]:
            record.show(f"{name} after HLT", ours["shown"][name], real["shown"][name])
        counted = {"IO": page.count("kvm_exit", "io"), "HLT": page.count("kvm_exit", "hlt")}
        record.show("exits, as the kernel counts them", _named(ours["counts"]), _named(counted))


def _named(counts):
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())


@pytest.mark.needs("box")
def test_each_kind_of_paging_leaves_its_own_exits(box):
    """Guest RAM is touched for the first time: nested page faults, or page faults intercepted."""
    jobs = [
        Job(f"{npt}", "box_jobs:add_outcomes", ["kvm", PAIRS[:1]], npt=npt, lines=True)
        for npt in (NPT, SHADOW)
    ]
    nested, shadow = box.run(jobs).values()
    # Code and stack lie on two pages.
    assert (nested.count("kvm_exit", "npf"), nested.count("kvm_exit", "PF excp")) == (2, 0)
    assert (shadow.count("kvm_exit", "npf"), shadow.count("kvm_exit", "PF excp")) == (0, 2)
    for result in (nested, shadow):
        assert result.count("kvm_page_fault") == 2
        assert sum("kvm_page_fault" in line for line in result.lines) == 2
        assert result.count("kvm_pio") == result.count("kvm_pio", "pio_write") == 3
        assert result.count("kvm_userspace_exit") == 4


@pytest.mark.needs("box")
def test_a_job_that_is_not_traced_has_no_events(box):
    job = Job("quiet", "box_jobs:add_outcomes", ["kvm", PAIRS[:1]], trace=False)
    done = box.run([job])["quiet"]
    assert (done.error, done.events, done.lines) == (None, {}, [])
    assert done.value[0]["output"] == "44\n"


@pytest.mark.needs("box")
def test_aam_sets_zf_from_al(box):
    """SDM vol. 2A, AAM: a true KVM runs it on the CPU; see test_oddities for one that does not."""
    done = box.run([Job("aam", "box_jobs:registers_after", [AAM, ["AX", "ZF"]])])["aam"]
    assert (done.value, done.error) == (["0x0a00", "1"], None)
