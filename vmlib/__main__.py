"""The command line: ``run`` starts a guest, ``doctor`` says what this host can do."""

import argparse
import os
import platform
import shutil
import signal
import sys
import textwrap
from pathlib import Path

from vmlib.cpu import CAPABILITIES, ENGINES, Budget, Guest, Halt, probe
from vmlib.cpu.kvm import oddities
from vmlib.errors import BadInput, HostUnavailable, Unsupported
from vmlib.machine import CRASHED, FAILED, SPENT, Machine
from vmlib.units import parse_size

OUTSIDE_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "nasm": "nasm",
    "gcc": "gcc",
    "chromium": "chromium",
}
"""Tools that the outside checks run against, and the Debian package that brings each."""

USAGE = 2
EXIT_STATUS = """\
exit status:
  0    HLT with interrupts off
  N    the guest wrote to port 0xf4: (value << 1) | 1, as QEMU's isa-debug-exit
  2    the command line is wrong, or the image is
  69   this host cannot, or its engine gave up
  124  triple fault; the diagnosis is on stderr
  125  the budget is spent, or the guest waits for an interrupt that nothing here sends
"""


def run(options: argparse.Namespace) -> int:
    """Run a guest with its serial port on stdout; return the exit status (see EXIT_STATUS)."""
    try:
        guest, at = _flat(options.flat) if options.flat else (None, None)
        budget = Budget.parse(options.budget)
        with Machine(
            options.engine, parse_size(options.mem, "--mem"), budget, open_bus=True, console=_send
        ) as machine:
            if guest is not None:
                machine.load(guest, at)
            else:
                machine.load_multiboot(options.multiboot)
            return _to_the_end(machine, options)
    except HostUnavailable as error:
        return _say(FAILED, str(error))
    except (BadInput, Unsupported) as error:
        return _say(USAGE, str(error))


def _to_the_end(machine: Machine, options: argparse.Namespace) -> int:
    if options.trace:
        try:
            machine.record().save(options.trace)
        except OSError as error:
            return _say(USAGE, f"{options.trace}: cannot be written: {error.strerror}")
    if machine.last is None:  # no trace is wanted, or its recording ended before the guest
        for _ in machine.exits():
            pass
    last = machine.last
    assert last is not None
    status = machine.status_of(last)
    if status in (CRASHED, FAILED, SPENT) and machine.debug_exit.status is None:
        return _say(status, last.detail)
    if status is None:
        why = "halts with interrupts on, and nothing here sends one"
        return _say(SPENT, f"the guest {why}" if isinstance(last, Halt) else last.detail)
    if not options.quiet:
        exits = ", ".join(f"{count} {reason}" for reason, count in machine.vcpu.exits.items())
        _say(status, f"ended with status {status}; exits: {exits}")
    return status


def _flat(argument: str) -> tuple[Guest, int]:
    """Read FILE@HEXADDR."""
    name, at, address = argument.rpartition("@")
    if not at or not name:
        raise BadInput("--flat", f"{argument!r} must be FILE@HEXADDR, as in guest.bin@1000")
    try:
        start = int(address, 16)
    except ValueError:
        raise BadInput("--flat", f"{address!r} is not an address in hex") from None
    if not 0 <= start <= 0xFFFF:
        raise BadInput("--flat", f"{start:#x} is out of reach for real mode: 0 to ffff")
    try:
        code = Path(name).read_bytes()
    except OSError as error:
        raise BadInput(name, f"cannot be read: {error.strerror}") from error
    if not code:
        raise BadInput(name, "is empty; a guest has at least one byte")
    return Guest(Path(name).name, code, ()), start


def _send(data: bytes) -> None:
    """Give the serial port's bytes to stdout as they are, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _say(status: int, message: str) -> int:
    print(f"vmlib: {message}", file=sys.stderr)
    return status


def doctor() -> int:
    """Print what works here, what does not, and how to get it."""
    print(f"Host: {platform.system()} {platform.release()} {platform.machine()}")
    print(f"Python: {platform.python_version()} (3.11 is tried; later versions are untested)")
    print(f"User: {'root' if os.geteuid() == 0 else 'not root; nothing so far needs it'}")
    print("\nEngines")
    for engine in ENGINES:
        status = probe(engine)
        print(f"  {engine:8} {'yes' if status.usable else 'no':4} {status.version}".rstrip())
        if not status.usable:
            print(f"           {status.reason}.\n           {status.fix}.")
    _capabilities()
    _oddities(probe("kvm").version)
    print("\nTools for outside checks")
    for tool, package in OUTSIDE_TOOLS.items():
        found = shutil.which(tool)
        print(f"  {tool:20} {found or f'missing: apt-get install {package}'}")
    return 0


def _capabilities() -> None:
    """Print the table of what each engine can do, and below it why not."""
    print("\nWhat an engine can do" + "".join(f"{engine:>10}" for engine in ENGINES))
    reasons = []
    for one in CAPABILITIES:
        answers = ""
        for engine in ENGINES:
            if reason := one.reason(engine):
                reasons.append(f"{one.name}, {engine}: {reason}.")
            answers += f"{'no' if reason else 'yes':>10}"
        print(f"  {one.name:19}{answers}   {one.what}")
    for reason in reasons:
        print(textwrap.fill(reason, 98, initial_indent="  ", subsequent_indent="    "))


def _oddities(kvm: str) -> None:
    """Print where this host's KVM is not what the manuals say, if it is not."""
    if found := oddities.present(kvm):
        print(f"\nWhere this host's KVM ({found[0].module}) is not what the manuals say")
    for one in found:
        text = f"{one.what}; the rule: {one.rule}. Why: {one.cause}."
        print(textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="    "))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, do it, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vmlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this host can do, and how to get the rest")
    runs = commands.add_parser(
        "run",
        help="run a guest, with its serial port on stdout",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    runs.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    image = runs.add_mutually_exclusive_group(required=True)
    image.add_argument(
        "--flat", metavar="FILE@HEXADDR", help="raw bytes, started at that address in real mode"
    )
    image.add_argument("--multiboot", metavar="FILE", help="a Multiboot 1 kernel, ELF of 32 bits")
    runs.add_argument("--mem", default="64M", help="guest RAM (64M)")
    runs.add_argument("--budget", help="a limit: 2s, 500ms, or on the emulator 1e6i instructions")
    runs.add_argument("--trace", metavar="OUT.json", help="write down the first 2000 steps")
    runs.add_argument("--quiet", action="store_true", help="say nothing when all is well")
    options = parser.parse_args(argv)
    return run(options) if options.command == "run" else doctor()


if __name__ == "__main__":
    # The emulator hears of Python's signal handlers only at its next exit: let the system act.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
