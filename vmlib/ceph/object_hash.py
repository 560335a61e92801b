"""From an object's name to its placement group's number: a hash and a modulus that grows gently.

The hash is Robert Jenkins' of 1996 over the bytes of the name, twelve at a time
(burtleburtle.net/bob/hash/doobs.html, public domain); Ceph calls it `rjenkins` and pools name it
as `object_hash` 2. The same mix of three words draws CRUSH's straws. A namespace is hashed in
front of the name, with the byte 0x1f between.

`stable_mod` reduces a hash to a number below `pg_num` so that a pool that grows from n to n + 1
placement groups splits one of them and leaves the others as they are.

Left out: `object_hash` 1 (the old Linux dcache hash) and locator keys, which hash another string
in the name's stead.
"""

from vmlib.ceph.crush.hashing import MASK, mix
from vmlib.errors import BadInput
from vmlib.given import names_bad_input

GOLDEN = 0x9E3779B9
SEPARATOR = b"\x1f"
"""Between a namespace and a name."""


def str_hash(data: bytes) -> int:
    """Return the 32-bit hash of a byte string."""
    a = b = GOLDEN
    c = 0
    whole = len(data) - len(data) % 12
    for start in range(0, whole, 12):
        words = (int.from_bytes(data[start + i : start + i + 4], "little") for i in (0, 4, 8))
        a, b, c = mix(*((x + y) & MASK for x, y in zip((a, b, c), words, strict=True)))
    tail = data[whole:]
    a += int.from_bytes(tail[:4], "little")
    b += int.from_bytes(tail[4:8], "little")
    # The length has the lowest byte of the third word, so the tail starts at its second.
    c += len(data) + (int.from_bytes(tail[8:], "little") << 8)
    return mix(a & MASK, b & MASK, c & MASK)[2]


def object_hash(name: str, namespace: str = "") -> int:
    """Return the hash of an object's name in a namespace, both as UTF-8."""
    front = _bytes(namespace, "namespace") + SEPARATOR if namespace else b""
    return str_hash(front + _bytes(name, "name"))


def _bytes(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise BadInput(field, f"is {text!r}; it must be a string of characters") from None


@names_bad_input
def stable_mod(value: int, count: int) -> int:
    """Return `value` reduced to 0 … count - 1.

    The low bits of the value, as many as `count` needs; where they reach past `count`, one bit
    fewer. With a power of two this is the plain remainder.
    """
    if count < 1:
        raise BadInput("count", f"is {count}; there must be at least one")
    mask = (1 << (count - 1).bit_length()) - 1
    low = value & mask
    return low if low < count else value & (mask >> 1)
