"""The tunables in force while a rule runs: the map's, until a `set_*` step changes one.

What each does, and why it was added, is in docs.ceph.com, "CRUSH maps", Tunables.
"""

from dataclasses import dataclass

from vmlib.ceph.crush.facts import Step, Tunables


@dataclass(slots=True)
class Knobs:
    """The tunables in force, which `set_*` steps change for the rest of the rule."""

    tries: int
    leaf_tries: int
    local_tries: int
    local_fallback_tries: int
    vary_r: int
    stable: int


def knobs_of(tunables: Tunables) -> Knobs:
    """Return the knobs as a map sets them."""
    return Knobs(
        tries=int(tunables.choose_total_tries) + 1,  # it once counted retries; the off-by-one stays
        leaf_tries=0,
        local_tries=tunables.choose_local_tries,
        local_fallback_tries=tunables.choose_local_fallback_tries,
        vary_r=tunables.chooseleaf_vary_r,
        stable=tunables.chooseleaf_stable,
    )


KNOBS = {
    "set_choose_tries": "tries",
    "set_chooseleaf_tries": "leaf_tries",
    "set_choose_local_tries": "local_tries",
    "set_choose_local_fallback_tries": "local_fallback_tries",
    "set_chooseleaf_vary_r": "vary_r",
    "set_chooseleaf_stable": "stable",
}


def set_knob(knobs: Knobs, step: Step) -> None:
    """Set a knob for the rest of the rule; no step can set a number of tries to 0."""
    name = KNOBS.get(step.op)
    least = 1 if name in ("tries", "leaf_tries") else 0
    if name and step.arg1 >= least:
        setattr(knobs, name, int(step.arg1))
