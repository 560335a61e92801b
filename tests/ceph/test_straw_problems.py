"""Problems about straws: the same for everybody, and marked by the map itself."""

from math import log

import pytest

from vmlib.ceph import straw_problem
from vmlib.errors import BadInput


@pytest.mark.parametrize("seed", [*range(30), 2**32 - 1])
def test_a_reader_with_a_calculator_finds_the_answers(seed):
    problem = straw_problem(seed)

    def winner(weights):
        straws = [log((u + 1) / 65536) / w for u, w in zip(problem.hashes, weights, strict=True)]
        return straws.index(max(straws))

    doubled = [w * (1 + (i == problem.doubled)) for i, w in enumerate(problem.weights)]
    first, then = winner(problem.weights), winner(doubled)
    assert problem.mark(first, then) == f"Problem {seed}: winner: right; then: right"
    wrong = problem.mark((first + 1) % 4, (then + 1) % 4)
    assert wrong.count("not what CRUSH does") == 2
    assert problem.mark().count("not answered yet") == 2
    assert then in (first, problem.doubled), "only what grew can win what it had not"


def test_problems_differ_and_now_and_then_the_winner_changes():
    problems = [straw_problem(seed) for seed in range(60)]
    assert len({(p.x, p.weights) for p in problems}) == 60
    assert problems[1].question == straw_problem(1).question
    moved = 0
    for problem in problems:
        marks = [problem.mark(osd, osd) for osd in range(4)]
        moved += not any(mark.count("right") == 2 for mark in marks)
    assert 5 <= moved <= 40
    with pytest.raises(BadInput, match="seed"):
        straw_problem(-1)
