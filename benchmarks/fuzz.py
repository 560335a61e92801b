"""Single instructions on the emulator and on the CPU: how many a second, all told.

A trial is made, run on both engines, and compared; each share is measured too.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cpu"))

from fuzz_guest import BATCH
from fuzz_run import Fuzz
from fuzz_trials import trials

ROUNDS = 9
TARGET = "must 10 000"
Result = TypeVar("Result")


def rate(work: Callable[[], Result]) -> tuple[float, Result]:
    """Time a batch; return trials a second, and what the work returned."""
    began = time.perf_counter()
    result = work()
    return BATCH / (time.perf_counter() - began), result


def run() -> list[Figure]:
    """Measure batches, each with its own seed."""
    whole, making, emulator, cpu = [], [], [], []
    with Fuzz() as fuzz:
        fuzz.run(0)  # both are warm then
        for seed in range(1, ROUNDS + 1):
            speed, left = rate(lambda seed=seed: fuzz.run(seed))
            if left:
                raise AssertionError("\n".join(left.values()))
            whole.append(speed)
            speed, (_, batch) = rate(lambda seed=seed: trials(seed))
            making.append(speed)
            emulator.append(rate(lambda batch=batch: fuzz.emulator.run(batch))[0])
            cpu.append(rate(lambda batch=batch: fuzz.cpu.run(batch))[0])
    return [
        Figure("trials: made, run on both, compared", tuple(whole), "/s", TARGET),
        Figure("trials made", tuple(making), "/s", ""),
        Figure("trials run on the emulator", tuple(emulator), "/s", ""),
        Figure("trials run on the CPU", tuple(cpu), "/s", ""),
    ]
