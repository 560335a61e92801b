"""Problems without end: what the seeded problems of all rooms share.

A problem has a `seed`, a `question` in words, and `mark`, which finds the answer by doing what the
question says and gives nothing away. The same seed gives the same problem everywhere.
"""

from vmlib.numbers import whole

SEEDS = 1 << 32
"""How many there are; a page computes with the same numbers, in 32 bits."""


def checked_seed(seed: int) -> int:
    """Return a seed, 0 to 2^32 - 1. Raises `BadInput` for anything else."""
    return whole(seed, "seed", 0, SEEDS - 1)


def marked(seed: int, *parts: tuple[str, object, object], wrong: str = "not so") -> str:
    """Return the mark of an answer: ``(name, given, truth)`` for each part of the question.

    A part that is None is not answered yet. `wrong` is said of one that is not the truth.
    """
    marks = []
    for name, given, truth in parts:
        if given is None:
            marks.append(f"{name}: not answered yet")
        else:
            marks.append(f"{name}: {'right' if _means(given, truth) else wrong}")
    return f"Problem {seed}: " + "; ".join(marks)


def _means(given: object, truth: object) -> bool:
    """Say whether an answer is the truth: bytes are as good as text, ``"5"`` is 5, case is none."""
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    if not isinstance(given, str):
        return bool(given == truth or str(given) == truth)
    if isinstance(truth, str):
        return given.strip().casefold() == truth.casefold()
    try:
        return int(given, 0) == truth
    except ValueError:
        return False
