"""KVM alone: kicks, signals and threads, and nothing lost between them."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kvm_guests import REAL_CODE, boot, guest

from vmlib.cpu import (
    Budget,
    Halt,
    IoOut,
    Kicked,
    open_vm,
)
from vmlib.errors import BadInput

kvm = pytest.mark.needs("kvm")
LOOP = "eb fe"
OUTS = "e6 10 eb fc"  # out 0x10, al, for ever
OUT = IoOut(0x10, 1, b"\0")


@kvm
def test_registers_do_not_swallow_a_kick():
    with guest(OUTS) as vcpu:
        vcpu.run()
        vcpu.kick()
        vcpu.registers()
        assert vcpu.run() == Kicked()
        assert vcpu.run() == OUT


@kvm
def test_a_vcpu_moves_from_thread_to_thread():
    """A new thread often gets the old one's pthread_t: what was set in that one is not set here."""
    with guest(LOOP) as vcpu:
        vcpu.set_budget(Budget())
        for _ in range(20):
            got = []
            thread = threading.Thread(target=lambda got=got: got.append(vcpu.run()))
            thread.start()
            while not vcpu._inside:
                time.sleep(0.0001)
            vcpu.kick()
            thread.join()
            assert got == [Kicked()]


@kvm
def test_other_threads_are_refused_while_it_runs():
    with guest(LOOP) as vcpu:
        thread = threading.Thread(target=vcpu.run)
        thread.start()
        while not vcpu._inside:
            time.sleep(0.0001)
        for ask in (vcpu.run, vcpu.step, vcpu.registers, vcpu.save, lambda: vcpu.inject(1)):
            with pytest.raises(BadInput, match="another thread"):
                ask()
        vcpu.kick()
        thread.join()
        assert vcpu.registers().rip == REAL_CODE


@kvm
@pytest.mark.parametrize("code", [LOOP, OUTS], ids=["inside", "between"])
def test_closing_a_vm_sends_its_threads_home(code):
    with open_vm("kvm", "64K") as vm:
        vcpu = boot(vm, code)
        vcpu.set_budget(Budget())
        ended = []

        def outer():
            try:
                for _ in vcpu:
                    pass
            except BadInput as error:
                ended.append(str(error))

        thread = threading.Thread(target=outer)
        thread.start()
        while (not vcpu.exits and code == OUTS) or (not vcpu._inside and code == LOOP):
            time.sleep(0.0001)
    thread.join(10)
    assert ended == ["vcpu: is closed"]


@kvm
@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt])
def test_what_a_signal_handler_raises_comes_through(error):
    """TimeoutError is an OSError, as what a failing KVM_RUN would be."""

    def raise_it(*_):
        raise error

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with guest(LOOP) as vcpu:
            for budget in (Budget(), Budget(seconds=5)):
                vcpu.set_budget(budget)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(error):
                    vcpu.run()
            vcpu.kick()
            assert vcpu.run() == Kicked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@kvm
def test_a_signal_that_raises_nothing_is_no_exit():
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    try:
        with guest(LOOP) as vcpu:
            vcpu.set_budget(Budget())
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            threading.Timer(0.2, vcpu.kick).start()
            assert vcpu.run() == Kicked()
            assert len(seen) > 3
            assert vcpu.exits == {"INTR": 1}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@kvm
def test_vcpus_share_memory_and_lock_each_other_out():
    """mov cx, 2000; lock inc word [0x3000]; loop; hlt: on two vCPUs at once"""
    with open_vm("kvm", "64K") as vm:
        vcpus = [boot(vm, "b9 d0 07 f0 ff 06 00 30 e2 f9 f4") for _ in range(2)]
        exits = []
        threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in vcpus]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert exits == [Halt(), Halt()]
        assert int.from_bytes(vm.ram.read(0x3000, 2), "little") == 4000


@kvm
def test_the_process_survives_a_kick_after_all_is_done():
    """The signal's default is to end the process: in a child, a kick in every state."""
    script = """
import sys, threading
sys.path[:0] = sys.argv[1:]
from kvm_guests import guest
for _ in range(3):
    with guest("e6 10 eb fc") as vcpu:
        vcpu.kick(); vcpu.run(); vcpu.run(); vcpu.kick(); vcpu.registers(); vcpu.run()
        thread = threading.Thread(target=vcpu.run); thread.start(); thread.join()
        vcpu.kick()
print("alive")
"""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(root), str(root / "tests/cpu")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout) == (0, "alive\n"), told.stderr
