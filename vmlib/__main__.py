"""The command line: ``python -m vmlib doctor`` says what this host can do."""

import argparse
import os
import platform
import shutil
import sys

from vmlib.cpu import ENGINES, probe

OUTSIDE_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "nasm": "nasm",
    "gcc": "gcc",
    "chromium": "chromium",
}
"""Tools that the outside checks run against, and the Debian package that brings each."""


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
    if "kvm_pvm" in probe("kvm").version:
        print("           kvm_pvm runs ring 0 of a guest in a software emulator: slow, same exits.")
    print("\nTools for outside checks")
    for tool, package in OUTSIDE_TOOLS.items():
        found = shutil.which(tool)
        print(f"  {tool:20} {found or f'missing: apt-get install {package}'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, do it, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vmlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this host can do, and how to get the rest")
    parser.parse_args(argv)
    return doctor()


if __name__ == "__main__":
    sys.exit(main())
