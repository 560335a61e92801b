"""What Python costs on the emulator: the same loops in Python and on Unicorn's C API.

The program in emulator.c is compiled here and now against the headers and the library of the
installed package. Python and C take turns, and a ratio is that of two neighbours: C's time over
Python's, so that 1 is no cost.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import unicorn

from benchmarks import Figure
from vmlib.cpu import Halt, IoOut, Vcpu, open_vm

PAIRS = 9
TIGHT = "66 49 75 fc f4"  # again: dec ecx; jnz again; hlt
MEMORY = "66 a1 00 20 66 40 66 a3 00 20 66 49 75 f3 f4"  # load, inc, store, dec ecx; jnz; hlt
LEAVING = "40 e6 10 eb fb"  # again: inc ax; out 0x10, al; jmp again
INSIDE = "e6 10 66 49 75 fa f4"  # again: out 0x10, al; dec ecx; jnz again; hlt
FAULTS = "cd 20 66 49 75 fa f4"  # again: int 0x20; dec ecx; jnz again; hlt
LONG, MANY, FEW = 60_000_000, 300_000, 30_000
LONGER = 10
"""So many times more rounds in C where Python takes as long as that for one: 30 ms prove little."""


def start(code: str, count: int) -> Vcpu:
    """Return a vCPU at `code`, with ECX set; its VM closes with the interpreter."""
    vm = open_vm("unicorn", "64K")
    vm.ram.write(0x1000, bytes.fromhex(code))
    vm.ram.write(4 * 0x20, bytes.fromhex("00 30 00 00"))
    vm.ram.write(0x3000, b"\xcf")  # iret
    vm.handle_ports(0x11, 1, lambda port, size: 0, lambda port, size, value: None)
    vcpu = vm.vcpu()
    vcpu.start_real_mode(0x1000)
    registers = vcpu.registers()
    registers.rcx = count
    vcpu.set_registers(registers)
    return vcpu


def to_the_end(code: str, count: int) -> float:
    """Seconds for a guest that runs to its HLT."""
    vcpu = start(code, count)
    began = time.perf_counter()
    assert vcpu.run() == Halt()
    return time.perf_counter() - began


def exits(code: str, count: int) -> float:
    """Seconds for that many exits, each looked at."""
    vcpu = start(code, 0)
    vcpu.run()
    began = time.perf_counter()
    for _ in range(count):
        exit = vcpu.run()
        if not isinstance(exit, IoOut) or exit.port != 0x10:
            raise AssertionError(f"an exit that should not be: {exit}")
    return time.perf_counter() - began


def run() -> list[Figure]:
    """Measure pairs."""
    package = Path(unicorn.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "emulator"
        build = ["gcc", "-O2", f"-I{package}/include", "-o", str(program)]
        library = next((package / "lib").glob("libunicorn.so.2*"))
        build += [str(Path(__file__).with_suffix(".c")), str(library)]
        subprocess.run([*build, f"-Wl,-rpath,{package}/lib"], check=True)

        def in_c(what: str, rounds: int, code: str, times: int = 1) -> float:
            command = [str(program), what, str(times * rounds), code.replace(" ", "")]
            done = subprocess.run(command, capture_output=True, check=True)
            return float(done.stdout) / times

        def pairs(theirs: Callable[[], float], ours: Callable[[], float]) -> tuple[float, ...]:
            return tuple(theirs() / ours() for _ in range(PAIRS))

        return [
            Figure(
                "free run, a tight loop, of C's",
                pairs(lambda: in_c("free", LONG, TIGHT), lambda: to_the_end(TIGHT, LONG)),
                "",
                "must 0.90, aim 0.97",
            ),
            Figure(
                "free run with load and store, of C's",
                pairs(
                    lambda: in_c("free", LONG // 10, MEMORY), lambda: to_the_end(MEMORY, LONG // 10)
                ),
                "",
                "precise stops are always on: must 0.50, aim 0.80",
            ),
            Figure(
                "run() with an exit, of C's stop and return",
                pairs(lambda: in_c("stop", MANY, LEAVING, LONGER), lambda: exits(LEAVING, MANY)),
                "",
                "must 0.03, aim 0.04",
            ),
            Figure(
                "a device handled inside, of C's callback",
                pairs(
                    lambda: in_c("inside", MANY, INSIDE, LONGER),
                    lambda: to_the_end(INSIDE.replace("10", "11"), MANY),
                ),
                "",
                "must 0.04, aim 0.08",
            ),
            Figure(
                "an exception through the IDT, of one exit",
                pairs(lambda: exits(LEAVING, FEW), lambda: to_the_end(FAULTS, FEW)),
                "",
                "must 0.10, aim 0.20",
            ),
        ]
