"""Batches on both engines, and what is left of their differences after the table.

``python tests/cpu/fuzz_run.py SEED`` runs one batch and shows what is unexplained.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_compare import Trial, differing
from fuzz_guest import BATCH, Batch, Runner
from fuzz_table import Row
from fuzz_tolerances import explain
from fuzz_trials import Made, trials

from vmlib.cpu.kvm.oddities import PVM, kvm_modules

EMULATED = "emulated by KVM"
"""An oddity of kvm_pvm: now and then, mostly at the first instruction on a page or the first access
to one, it does not let the CPU execute the instruction but emulates it, and raises #UD if its
emulator does not know it; TZCNT and LZCNT it takes for BSF and BSR. The same batch run again tells;
what comes again is a finding."""
_TAKEN_FOR_OTHERS = ("tzcnt", "lzcnt")


class Fuzz:
    """Both engines, and counts of the tolerances that were needed."""

    def __init__(self) -> None:
        self.emulator = Runner("unicorn")
        self.cpu = Runner("kvm")
        self.used: Counter[str] = Counter()
        self.count = 0
        self.repeats = PVM in kvm_modules()

    def run(self, seed: int, count: int = BATCH, rows: list[Row] | None = None) -> dict[int, str]:
        """Run a batch; return what is unexplained, by the number of the trial."""
        return self.compare(*trials(seed, count, rows), f"seed {seed}")

    def compare(self, made: list[Made], batch: Batch, name: str) -> dict[int, str]:
        """Run trials that are made already."""
        ours, real = self.emulator.run(batch), self.cpu.run(batch)
        self.count += len(made)
        again, left = None, {}
        for number, trial in differing(made, batch, ours, real):
            used, explained = explain(trial)
            emulated = trial.real_vector == 6 != trial.ours_vector
            emulated |= trial.made.row.name in _TAKEN_FOR_OTHERS
            if self.repeats and not explained and emulated:
                again = self.cpu.run(batch) if again is None else again
                trial = Trial(trial.made, trial.before, trial.ours, again[number])
                used, explained = explain(trial)
                used.append(EMULATED)
            if explained:
                self.used.update(used)
            else:
                left[number] = f"{name}, trial {number}: {trial}"
        return left

    def close(self) -> None:
        self.emulator.close()
        self.cpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    with Fuzz() as fuzz:
        for text in fuzz.run(int(sys.argv[1])).values():
            sys.stdout.write(text + "\n")
        sys.stdout.write(f"{fuzz.count} trials, tolerated: {dict(fuzz.used)}\n")
