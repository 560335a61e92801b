"""Problems about the TLB: their answers are those of a second, much smaller model too."""

from collections import Counter

import pytest

from vmlib.errors import BadInput
from vmlib.memory import tlb_problem
from vmlib.memory.caches.problems import WORDS


def by_hand(problem):
    """The story with pencil and paper: what leads where, and who remembers what.

    A place is (process, page, half); `host` says where it stands in the host's memory.
    """
    leads = {(process, page): 0 for process in (1, 2) for page in (1, 2, 3)}
    host = Counter()
    remembered, remembered_host, running, misses, old = {}, {}, 1, 0, 0

    def name():
        return running if problem.pcid else 0

    for kind, page, process in problem.story:
        place = running, page, leads.get((running, page))
        if kind == "use":
            if (name(), page) not in remembered:
                misses += 1
                where = remembered_host.setdefault(place, host[place])
                remembered[name(), page] = place, where
            old += remembered[name(), page] != (place, host[place])
        elif kind == "switch":
            running = process
            remembered = {key: value for key, value in remembered.items() if key[0] != name()}
        elif kind == "keep":
            running = process
        elif kind == "invlpg":
            remembered.pop((name(), page), None)
        elif kind == "move":
            leads[running, page] ^= 1
        else:
            if kind != "exit":
                host[place] ^= 1
            if not problem.vpid:
                remembered = {}
            if kind == "move invept":
                remembered, remembered_host = {}, {}
    return misses, old


def test_the_answers_are_those_of_pencil_and_paper():
    answers = Counter()
    kinds = Counter()
    for seed in range(200):
        problem = tlb_problem(seed)
        assert problem.answer == by_hand(problem), problem.question
        answers[problem.answer] += 1
        kinds.update(event.kind for event in problem.story)
    assert kinds.keys() == WORDS.keys()
    assert len(answers) > 10, "answers that cannot be guessed"
    assert max(answers.values()) < 60
    assert sum(n for (_, old), n in answers.items() if old) > 50


def test_a_problem_is_the_same_everywhere_and_says_all():
    problem = tlb_problem(7)
    assert problem == tlb_problem(7) != tlb_problem(8)
    assert problem.question.startswith("Problem 7: a guest runs behind EPT")
    assert problem.question.count(" is read") == len(problem.reads)
    assert "{" not in problem.question


def test_marks_give_nothing_away():
    problem = tlb_problem(3)
    misses, old = problem.answer
    assert problem.mark() == "Problem 3: misses: not answered yet; old: not answered yet"
    assert problem.mark(misses, old + 1) == "Problem 3: misses: right; old: not so"
    for bad in (-1, True, "1"):
        with pytest.raises(BadInput, match="seed"):
            tlb_problem(bad)
