"""How often an OSD does what it does by itself, and how long it waits.

Ceph: doc/rados/configuration/mon-osd-interaction.rst and osd-config-ref.rst.
"""

from dataclasses import dataclass

from vmlib.numbers import decimal, whole

SHORTEST, LONGEST = 0.01, 1e6
"""Bounds of whatever a node does again and again, in seconds: below, time hardly passes."""


@dataclass(frozen=True, slots=True)
class OsdConfig:
    """Times in seconds; defaults are Ceph's."""

    tick: float = 1.0
    heartbeat: float = 6.0
    grace: float = 20.0
    lease: float = 16.0
    recovery_active: int = 3
    log_length: int = 3000

    def __post_init__(self) -> None:
        for name in ("tick", "heartbeat", "grace", "lease"):
            decimal(getattr(self, name), name, SHORTEST, LONGEST)
        whole(self.recovery_active, "recovery_active", 0)
        whole(self.log_length, "log_length", 0)
