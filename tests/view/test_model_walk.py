"""The browser's model of the walk against the Python: traces whole, outcomes by the thousand."""

import json
import random
from collections import Counter
from itertools import product
from typing import Any

import pytest

from vmlib.memory import (
    Ept,
    SparseMemory,
    TableOutsideRam,
    example_controls,
    example_host,
    record_example,
    record_walk,
    record_walk_nested,
    walk_opening,
)
from vmlib.memory.walk_example import ACCESSES, GUESTS, HOSTS, MAXPHYADDR, PLACES
from vmlib.view import player_html

pytestmark = pytest.mark.needs("chromium")
RUN = """list => {
  const { trace, given } = JSON.parse(document.querySelector("#p script").textContent);
  const template = vmView.unpack(trace);
  return list.map(([gva, guest, host, access]) =>
    JSON.stringify(vmView.models.walk.run(template, { gva, guest, host, access }, given)));
}"""


KINDS = list(product(["read", "write", "fetch"], [0, 3], ["cold", "next door", "again"]))
ENDS = ("HPA", "GPA", "page fault", "general protection", "EPT violation", "EPT misconfiguration",
        "nested page fault", "outside")  # fmt: skip


def figure(**options: Any) -> str:
    controls = example_controls()
    return player_html(record_example(), name="p", **{**controls, **options})


def addresses(chance: random.Random, n: int) -> list[int]:
    """Addresses near the places, far from them, and between: one field of a place changed."""
    found = []
    for _ in range(n):
        gva = chance.choice(list(PLACES))
        kind = chance.randrange(8)
        if kind == 0:
            gva = chance.getrandbits(64)
        elif kind < 4:
            gva ^= chance.randrange(512) << 12 + 9 * chance.randrange(5)
            gva = gva & (1 << 48) - 1 | (0xFFFF << 48 if gva >> 47 & 1 else 0)
        elif kind < 6:
            gva += chance.randrange(-4, 5) << 12
        found.append(gva % (1 << 64))
    return found


def test_the_model_equals_the_python(open_page: Any) -> None:
    """Whole traces: every sentence, bit and counter."""
    chance = random.Random(24)
    page = open_page(figure())
    cases = list(product(GUESTS, HOSTS, ACCESSES))
    inputs = [
        (f"{gva:#x}", *case)
        for case in cases
        for gva in [chance.choice(list(PLACES)), *addresses(chance, 2)]
    ]
    for given, text in zip(inputs, page.evaluate(RUN, inputs), strict=True):
        model, trace = json.loads(text), record_example(int(given[0], 16), *given[1:])
        real = trace.to_dict()
        assert model["trace"]["steps"] == real["steps"], given
        assert list(model["trace"]["counters"].items()) == list(real["counters"].items()), given
        assert model["trace"]["title"] == trace.title
        assert model["start"] == walk_opening(trace), given


COMPACT = """([given, list]) => {
  const { trace } = JSON.parse(document.querySelector("#p script").textContent);
  const template = vmView.unpack(trace);
  return list.map(([gva, access]) => {
    let found;
    try {
      found = vmView.models.walk.run(template, { gva, guest: "it", host: "it", access }, given).trace.steps;
    } catch (error) {
      return error.message;
    }
    const last = found[found.length - 1];
    return [last.text, last.state.lit, last.state.gone, last.state.saved, last.state.registers,
      found.map((step) => step.state.cell && step.state.cell.entry), last.state.end.code, last.state.end.bit];
  });
}"""  # noqa: E501


def compact(trace: Any) -> list[Any]:
    last = trace.steps[-1]
    state = json.loads(json.dumps(last.state))
    return [
        last.text,
        *(state[key] for key in ("lit", "gone", "saved", "registers")),
        [step.state["cell"] and step.state["cell"]["entry"] for step in trace.steps],
        state["end"]["code"],
        state["end"]["bit"],
    ]


def spoiled(chance: random.Random) -> tuple[SparseMemory, Any, dict[str, int]]:
    """A host and a guest of the figure with wrong bits here and there, and other registers."""
    host = chance.choice(list(HOSTS))
    at = example_host(host)
    memory = SparseMemory(at.memory.size)
    every = [0, 1, 2, 3, 5, 6, 7, 8, 12, 13, 21, 33, 40, 47, 50, 63]
    wrong = chance.choice([every, every, [63], [5], [1, 2], [40]])
    for where, word in at.memory.words():
        for _ in range(2):
            if chance.random() < 0.05:
                word ^= 1 << chance.choice(wrong)
        memory.write_u64(where, word)
    regs = dict(at.registers[chance.choice(list(GUESTS))])
    if regs["cr0"] >> 31:
        regs["cr0"] ^= chance.choice([0, 1 << 16])
        regs["cr4"] ^= chance.choice([0, 1 << 20]) | chance.choice([0, 1 << 21])
        regs["efer"] ^= chance.choice([0, 0, 0, 1 << 11])
    second = at.second
    if isinstance(second, Ept):
        accessed_dirty = chance.choice([0, 1 << 6])
        second = Ept(second.eptp | accessed_dirty, second.maxphyaddr, chance.random() < 0.5)
    return memory, second, regs


def as_given(memory: SparseMemory, second: Any, regs: dict[str, int]) -> dict[str, Any]:
    words = [f"{each:x}" for word in memory.words() for each in word]
    told = None
    if isinstance(second, Ept):
        told = {"kind": "EPT", "pointer": f"{second.eptp:x}", "levels": second.levels,
                "executeOnly": second.execute_only}  # fmt: skip
    elif second:
        told = {"kind": "NPT", "pointer": f"{second.n_cr3:x}", "levels": second.levels}
    return {
        "hosts": [["it", {"second": told, "size": f"{memory.size:x}", "words": words}]],
        "guests": [["it", {name: f"{value:x}" for name, value in regs.items()}]],
        "accesses": [[f"{a} {cpl} {c}", [a, cpl, c]] for a, cpl, c in KINDS],
        "maxphyaddr": MAXPHYADDR,
    }


def test_outcomes_on_spoiled_tables(open_page: Any) -> None:
    """Every fault, exit, bit and reference of walks through tables with random errors."""
    chance = random.Random(1969)
    page = open_page(figure())
    ends: Counter[str] = Counter()
    for _ in range(40):
        memory, second, regs = spoiled(chance)
        list_ = [(gva, chance.choice(KINDS)) for gva in addresses(chance, 75)]
        inputs = [(f"{gva:#x}", f"{a} {cpl} {c}") for gva, (a, cpl, c) in list_]
        models = page.evaluate(COMPACT, [as_given(memory, second, regs), inputs])
        for model, (gva, (access, cpl, caches)) in zip(models, list_, strict=True):
            how = {**regs, "access": access, "cpl": cpl, "maxphyaddr": MAXPHYADDR}
            try:
                trace = (
                    record_walk_nested(memory, gva, second, caches=caches, **how)
                    if second
                    else record_walk(memory, gva, caches=caches, **how)
                )
            except TableOutsideRam as error:
                told = str(error)
                trace = None
            if trace is None:
                assert model == told
                ends["outside"] += 1
                continue
            assert model == compact(trace), (f"{gva:#x}", regs, second, access, cpl, caches)
            ends[trace.steps[-1].state["end"]["kind"]] += 1
    assert len(ends) >= 8, ends
    assert all(ends[kind] >= 10 for kind in ENDS), ends


BITS = """([given, list]) => {
  const { trace } = JSON.parse(document.querySelector("#p script").textContent);
  const template = vmView.unpack(trace), [[name, host]] = given.hosts;
  return list.map(([at, mask, gva, access]) => {
    const words = host.words.slice(), i = 2 * words.filter((_, n) => n % 2 === 0).indexOf(at) + 1;
    words[i] = (BigInt(`0x${words[i]}`) ^ BigInt(`0x${mask}`)).toString(16);
    const mended = { ...given, hosts: [[name, { ...host, words }]] };
    try {
      const found = vmView.models.walk.run(template, { gva, guest: "it", host: "it", access }, mended);
      const end = found.trace.steps[found.trace.steps.length - 1];
      return [end.text, end.state.end.code, end.state.end.bit];
    } catch (error) {
      return error.message;
    }
  });
}"""  # noqa: E501
MASKS = [1 << n for n in range(64)] + [3 << 3, 5 << 3, 6 << 3, 7 << 3]


@pytest.mark.parametrize(
    ("host", "guest"),
    [("none", "4K"), ("none", "2M"), ("none", "five"), ("ept", "4K"), ("ept-2M", "2M"),
     ("ept-1G", "1G"), ("ept-five", "4K"), ("npt", "2M")],
)  # fmt: skip
def test_each_bit_of_each_entry_on_the_way(open_page: Any, host: str, guest: str) -> None:
    """One bit wrong at a time, and each memory type: what is said of it is the same."""
    at, page = example_host(host), open_page(figure())
    memory, second, regs = at.memory, at.second, at.registers[guest]
    gva, access, cpl = next(iter(PLACES)), "write", 3
    how = {**regs, "access": access, "cpl": cpl, "maxphyaddr": MAXPHYADDR}

    def record() -> Any:
        return record_walk_nested(memory, gva, second, **how) if second else record_walk(
            memory, gva, **how
        )  # fmt: skip

    shown = [step.state["cell"] for step in record().steps]
    places = sorted({int(cell["at"], 16) for cell in shown if cell})
    assert len(places) >= 3
    inputs, real = [], []
    for place in places:
        for mask in MASKS:
            inputs.append((f"{place:x}", f"{mask:x}", f"{gva:#x}", f"{access} {cpl} cold"))
            word = memory.read_u64(place)
            memory.write_u64(place, word ^ mask)
            try:
                last = record().steps[-1]
                end = last.state["end"]
                real.append([last.text, end["code"], end["bit"]])
            except TableOutsideRam as error:
                real.append(str(error))
            memory.write_u64(place, word)
    models = page.evaluate(BITS, [as_given(memory, second, regs), inputs])
    for given, model, truth in zip(inputs, models, real, strict=True):
        assert model == truth, given
    assert len({str(one) for one in real}) > 8
