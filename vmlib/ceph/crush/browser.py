"""What a page hands to the model of CRUSH that runs in the reader's browser.

The model (`view/js/model_crush.js`) maps as `mapper` does, for the maps of today: straw2 buckets,
tunables of the profile `jewel`, rules of take, choose, chooseleaf, emit and the numbers of tries.
Map, tables of the logarithm and the words of refusals travel with the page, so that each is
written once, here in vmlib. Whatever else a map has is refused by the name of the field.
"""

from typing import Any

from vmlib.ceph.crush.crush_map import CrushMap
from vmlib.ceph.crush.explain import REASONS, THEN
from vmlib.ceph.crush.facts import PROFILES
from vmlib.ceph.crush.ln import COARSE, COARSE_INVERSE, FINE
from vmlib.ceph.crush.mapper import check_count
from vmlib.errors import Unsupported
from vmlib.given import names_bad_input

STEPS = ("take", "emit", "set_choose_tries", "set_chooseleaf_tries", "choose_firstn",
         "choose_indep", "chooseleaf_firstn", "chooseleaf_indep")  # fmt: skip


@names_bad_input
def for_browser(crush: CrushMap, rule: int | str, n: int, inputs: int = 1024) -> dict[str, Any]:
    """Return the map and a rule as JSON-ready data; `inputs` are mapped to see what moves.

    A bucket is ``[id, name, type, items, weights]``, where one number for the weights stands for
    as many equal ones. Names of devices are carried where they are not "osd." and the id. All
    numbers are below 2^53, which is where JavaScript's stop being exact.
    """
    wanted = crush.rule(rule)
    check_count(n)
    if crush.tunables != PROFILES["jewel"]:
        raise Unsupported("tunables: the page's model knows the profile jewel only")
    for i, step in enumerate(wanted.steps):
        if step.op not in STEPS:
            raise Unsupported(f"rules[{wanted.name}].steps[{i}].op: {step.op!r} on a page")
    for bucket in crush.buckets.values():
        if bucket.alg != "straw2":
            raise Unsupported(f"buckets[{bucket.name}].alg: {bucket.alg!r} on a page")
    return {
        "types": [[number, name] for number, name in crush.types.items()],
        "buckets": [
            [b.id, b.name, b.type, list(b.items), _short(b.weights)] for b in crush.buckets.values()
        ],
        "names": [[d.id, d.name] for d in crush.devices.values() if d.name != f"osd.{d.id}"],
        "rule": [wanted.name, [[step.op, step.arg1, step.arg2] for step in wanted.steps]],
        "n": n,
        "inputs": inputs,
        "tries": crush.tunables.choose_total_tries + 1,
        "ln": [list(COARSE_INVERSE), list(COARSE), list(FINE)],
        "reasons": dict(REASONS),
        "then": dict(THEN),
    }


def _short(weights: tuple[int, ...]) -> list[int] | int:
    return weights[0] if len(set(weights)) == 1 else list(weights)
