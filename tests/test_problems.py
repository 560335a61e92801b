"""What all seeded problems share: seeds, marks, and that a problem is the same everywhere."""

import pytest

from vmlib import ceph, cpu, memory
from vmlib.ceph import rados
from vmlib.errors import BadInput
from vmlib.machine import loop_problem
from vmlib.problems import marked

PROBLEMS = (
    cpu.add_problem,
    cpu.gate_problem,
    cpu.vmrun_problem,
    loop_problem,
    memory.four_problem,
    memory.walk_problem,
    memory.tlb_problem,
    memory.shadow_problem,
    ceph.straw_problem,
    ceph.rbd_problem,
    rados.write_problem,
)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: one.__name__)
def test_a_seed_is_a_whole_number_of_32_bits(problem):
    for seed in (-1, 1 << 32, 1.5, "7", None, True):
        with pytest.raises(BadInput, match="seed"):
            problem(seed)
    assert problem((1 << 32) - 1).question == problem((1 << 32) - 1).question
    assert len({problem(seed).question for seed in range(9)}) == 9
    assert "not answered yet" in problem(1).mark()


def test_a_mark_says_what_is_right_and_gives_nothing_away():
    said = marked(3, ("size", 4, 4), ("place", None, 7), ("who", "cpu", "guest"), wrong="no")
    assert said == "Problem 3: size: right; place: not answered yet; who: no"
    assert marked(3, ("end", " mmio", "MMIO"), ("page", "0X10", 16)).count("right") == 2
