"""How often an OSD does what it does by itself, and how long it waits.

Ceph: doc/rados/configuration/mon-osd-interaction.rst and osd-config-ref.rst.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OsdConfig:
    """Times in seconds; defaults are Ceph's."""

    tick: float = 1.0
    heartbeat: float = 6.0
    grace: float = 20.0
    lease: float = 16.0
    recovery_active: int = 3
    log_length: int = 3000
