"""An RBD image: a row of bytes that is kept as many objects, each named by its number.

An image of format 2 has an id, and its data lie in ``rbd_data.<id>.<number>`` with the number in
sixteen hex digits; if a `data_pool` is given the name has the id of the image's own pool too, for
the pool of data may serve several. Beside the data there are few objects: who is called what
(`rbd_directory`, ``rbd_id.<name>``), the header, the object map.

By default byte n lies in object n / 2^order. With a stripe unit and a stripe count ("fancy
striping") units go round over `stripe_count` objects until those are full: docs.ceph.com,
"Architecture", Data Striping. Objects that were never written do not exist.

Left out: image format 1, snapshots and clones (an object that is missing in a clone is its
parent's), journals, encryption.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vmlib.errors import BadInput
from vmlib.given import check_one
from vmlib.numbers import whole
from vmlib.units import parse_size

LEAST_ORDER, MOST_ORDER = 12, 25
MOST_BYTES = (1 << 64) - 1
MOST_UNITS = 1 << 22
"""Stripe units looked up at once: 16 TiB at the default size."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of an image: `length` bytes at `offset` of one object, at `image_offset`."""

    name: str
    number: int
    offset: int
    length: int
    image_offset: int


@dataclass(frozen=True, slots=True)
class RbdObjects:
    """How one image lies in objects. Made by `rbd_objects`."""

    prefix: str
    size: int
    order: int
    stripe_unit: int
    stripe_count: int

    def __post_init__(self) -> None:
        check_one(self.prefix, str, "prefix")
        whole(self.size, "size", 1, MOST_BYTES)
        whole(self.order, "order", LEAST_ORDER, MOST_ORDER)
        whole(self.stripe_unit, "stripe_unit", 1)
        whole(self.stripe_count, "stripe_count", 1)
        if self.object_size % self.stripe_unit:
            rule = f"{self.stripe_unit} must divide the object size, {self.object_size}"
            raise BadInput("stripe_unit", rule)

    @property
    def object_size(self) -> int:
        """Bytes in a full object."""
        return 1 << self.order

    @property
    def id(self) -> str:
        """The image's id."""
        return self.prefix.rpartition(".")[2]

    @property
    def header(self) -> str:
        """The object with the image's size, order and features."""
        return f"rbd_header.{self.id}"

    @property
    def object_map(self) -> str:
        """The object that says which data objects exist."""
        return f"rbd_object_map.{self.id}"

    @property
    def count(self) -> int:
        """How many data objects a fully written image has."""
        period = self.object_size * self.stripe_count
        full, rest = divmod(self.size, period)
        return full * self.stripe_count + min(-(-rest // self.stripe_unit), self.stripe_count)

    def name(self, number: int) -> str:
        """Return the name of a data object."""
        return f"{self.prefix}.{whole(number, 'number', 0, MOST_BYTES):016x}"

    def names(self) -> Iterator[str]:
        """Yield the names of all data objects."""
        return (self.name(number) for number in range(self.count))

    def at(self, offset: int, length: int = 1) -> list[Extent]:
        """Return where bytes of the image are, in the image's order.

        Pieces that follow each other in one object are one extent.
        """
        if not 0 <= whole(offset, "offset") <= offset + whole(length, "length") <= self.size:
            raise BadInput("offset", f"{offset} + {length} is not within the {self.size} bytes")
        if length > MOST_UNITS * self.stripe_unit:
            rule = (
                f"{length} bytes are more than {MOST_UNITS:,} stripe units; ask for fewer at once"
            )
            raise BadInput("length", rule)
        found: list[Extent] = []
        units = self.object_size // self.stripe_unit
        place, end = offset, offset + length
        while place < end:
            block, within = divmod(place, self.stripe_unit)
            stripe, column = divmod(block, self.stripe_count)
            row, depth = divmod(stripe, units)
            number = row * self.stripe_count + column
            start = depth * self.stripe_unit + within
            size = min(self.stripe_unit - within, end - place)
            last = found[-1] if found else None
            if last and last.number == number and last.offset + last.length == start:
                grown = last.length + size
                found[-1] = Extent(last.name, number, last.offset, grown, last.image_offset)
            else:
                found.append(Extent(self.name(number), number, start, size, place))
            place += size
        return found


def rbd_objects(
    prefix: str,
    size: int | str,
    order: int = 22,
    stripe_unit: int | str | None = None,
    stripe_count: int = 1,
    *,
    pool: int | None = None,
) -> RbdObjects:
    """Return how an image of `size` bytes lies in objects of 2^order.

    `prefix` is the `block_name_prefix` that `rbd info` shows, or the image's id. Then `pool` is
    the id of the image's own pool if its data lie in another (`rbd create --data-pool`).
    """
    if not isinstance(prefix, str) or not prefix:
        raise BadInput("prefix", "give the block_name_prefix of `rbd info`, or the image's id")
    if not prefix.startswith("rbd_data."):
        prefix = f"rbd_data.{prefix}" if pool is None else f"rbd_data.{pool}.{prefix}"
    whole(order, "order", LEAST_ORDER, MOST_ORDER)
    unit = 1 << order if stripe_unit is None else parse_size(stripe_unit, "stripe_unit")
    if pool is not None:
        whole(pool, "pool", 1)
    return RbdObjects(prefix, parse_size(size), order, unit, stripe_count)
