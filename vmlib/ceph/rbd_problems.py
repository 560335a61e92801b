"""Seeded problems about images: which object, and where in it? As many as a reader wants."""

import random
from dataclasses import dataclass

from vmlib.ceph.rbd import Extent, RbdObjects, rbd_objects
from vmlib.problems import checked_seed, marked
from vmlib.units import GIB, KIB, format_size


@dataclass(frozen=True)
class RbdProblem:
    """A byte of a striped image is asked for."""

    seed: int
    image: RbdObjects
    offset: int

    @property
    def question(self) -> str:
        """The problem in words."""
        image = self.image
        return (
            f"Problem {self.seed}: an image of {format_size(image.size)} lies in objects of "
            f"{format_size(image.object_size)}, stripe unit {format_size(image.stripe_unit)}, "
            f"stripe count {image.stripe_count}. Byte {self.offset:,} of it: in which object "
            "(by number) is it, and at which offset?"
        )

    @property
    def answer(self) -> Extent:
        """Where the byte is."""
        (extent,) = self.image.at(self.offset)
        return extent

    def mark(self, number: int | None = None, offset: int | None = None) -> str:
        """Mark an answer; say what is right and give nothing away."""
        truth = self.answer
        return marked(
            self.seed,
            ("object", number, truth.number),
            ("offset", offset, truth.offset),
            wrong="not there",
        )


def rbd_problem(seed: int) -> RbdProblem:
    """Return the problem of a seed (a whole number, 0 to 2^32 - 1)."""
    seed = checked_seed(seed)
    chance = random.Random(seed)
    order = chance.randint(20, 23)
    unit = (1 << order) >> chance.randint(0, 4)
    count = 1 if unit == 1 << order else chance.choice((2, 3, 4, 5))
    image = rbd_objects(f"{chance.getrandbits(48):x}", chance.choice((1, 2, 10)) * GIB, order,
                        unit, count)  # fmt: skip
    return RbdProblem(seed, image, chance.randrange(image.size // (4 * KIB)) * 4 * KIB)
