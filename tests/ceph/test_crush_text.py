"""The compiler's language: what we write, the real compiler takes and gives back unchanged."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from crush_maps import (
    ALGS,
    KNOBS,
    PROFILES,
    WEIGHT_SETS,
    Compiled,
    crushtool,
    map_text,
    seed_of_the_day,
    version,
)
from damage import damaged_map, dump, sort_out

from vmlib.ceph import CrushMap, Step, reweighted
from vmlib.errors import BadInput, Unsupported

COVERS = [
    f"vmlib/ceph/crush/{n}.py"
    for n in ("read_text", "text_words", "shadows", "write_text", "build", "write_json")
]


def texts():
    for seed, profile in enumerate(PROFILES):
        for i, alg in enumerate(ALGS):
            classes = (seed + i) % 2 == 0 and alg not in ("uniform", "tree")
            yield map_text(seed * 7 + i, alg, profile, WEIGHT_SETS[(seed + i) % 4], classes)


@pytest.mark.needs("crushtool")
def test_text_comes_back_unchanged_from_the_compiler(check, tmp_path):
    with check(
        "ceph/crush-language",
        what="maps as text: compiled, decompiled, and read",
        tool="crushtool (Ceph)",
        tool_version=version(),
        covers=COVERS,
    ) as done:
        built = CrushMap.build(racks=2, hosts=3, osds=2, weight=1.5)
        for text in [*texts(), built.to_text()]:
            real = Compiled(text, tmp_path)
            ours = CrushMap.from_text(text)
            done.case(ours.to_text(), real.text(), "decompiled")
            done.case(ours, CrushMap.from_json(real.json()), "read")
            again = Compiled(ours.to_text(), tmp_path)
            done.case(ours.to_text(), again.text(), "compiled and decompiled")
            dump = real.json()
            mine = ours.to_json()
            names = [k for k in mine if k != "tunables"]
            done.case({k: mine[k] for k in names}, {k: dump[k] for k in names}, "JSON")
            tunables = {k: dump["tunables"][k] for k in mine["tunables"]}
            done.case(mine["tunables"], tunables, "tunables")
        for seed in range(4):  # weights that no text can hold
            rng = random.Random(seed)
            weights = [rng.uniform(0, 100) for _ in range(3 * 4 * 6)]
            text = CrushMap.build(racks=3, hosts=4, osds=6, weight=weights).to_text()
            done.case(text, Compiled(text, tmp_path).text(), f"a built map, {seed}")


@pytest.mark.needs("crushtool")
def test_whatever_we_write_comes_back_unchanged(tmp_path):
    """Damaged maps that can be used all the same: their text is refused by us, or is right."""
    rng = random.Random(seed_of_the_day())
    whole, text = dump(), map_text(seed_of_the_day() % 50, classes=True, weight_set="ids")
    ends = Counter()

    def write(crush):
        try:
            ours = crush.to_text()
        except Unsupported:
            ends["refused"] += 1
            return
        assert Compiled(ours, tmp_path).text() == ours
        ends["written"] += 1

    sort_out(lambda: damaged_map(rng, whole, text), write, lambda _: ends["written"] >= 40)
    assert ends["refused"] < ends["written"]


def compiles(text, folder):
    (folder / "map.txt").write_text(text)
    return not crushtool("-c", folder / "map.txt", "-o", folder / "map.bin", check=False)


def with_rule(crush, **changes):
    return replace(crush, rules={0: replace(crush.rules[0], **changes)})


def with_name(crush, name):
    return replace(crush, buckets=crush.buckets | {-2: replace(crush.buckets[-2], name=name)})


TOO_MUCH = {
    "a heavy device": (
        lambda crush: reweighted(crush, 0, 100.001),
        ("item osd.0 weight 1.000", "item osd.0 weight 100.001"),
    ),
    "an MSR rule": (
        lambda crush: with_rule(crush, type=5),
        ("type replicated", "type msr_indep"),
    ),
    "a step that does nothing": (
        lambda crush: with_rule(crush, steps=(Step("noop"),)),
        ("step take default", "step noop"),
    ),
    "a step back": (
        lambda crush: with_rule(crush, steps=(Step("set_choose_tries", -1),)),
        ("step take default", "step set_choose_tries -1"),
    ),
    "no steps": (
        lambda crush: with_rule(crush, steps=()),
        ("\tstep take default\n\tstep chooseleaf firstn 0 type host\n\tstep emit\n", ""),
    ),
    "a space in a name": (lambda crush: with_name(crush, "a b"), ("host0", "a b")),
    "another letter": (lambda crush: with_name(crush, "öl"), ("host0", "öl")),
}


@pytest.mark.needs("crushtool")
@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_we_refuse_to_write_the_compiler_refuses_to_read(name, tmp_path):
    change, (old, new) = TOO_MUCH[name]
    crush = CrushMap.build(hosts=2, osds=2)
    text = crush.to_text()
    assert compiles(text, tmp_path)
    assert compiles(reweighted(crush, 0, 100).to_text(), tmp_path)
    with pytest.raises(Unsupported):
        change(crush).to_text()
    assert old in text
    assert not compiles(text.replace(old, new), tmp_path)


@pytest.mark.needs("crushtool")
def test_sums_that_come_back_negative_are_refused(tmp_path):
    crush = CrushMap.build(hosts=1, osds=329, weight=[99.5] * 329)
    assert 32_700 < crush.buckets[-1].weight / 65536 < 32_768
    assert Compiled(crush.to_text(), tmp_path).text() == crush.to_text()
    with pytest.raises(Unsupported, match="negative"):
        CrushMap.build(hosts=1, osds=330, weight=99.5).to_text()
    more = crush.to_text().replace(
        "osd.0 weight 99.500", "osd.0 weight 99.500\n\titem osd.0 weight 99.500"
    )
    assert "# weight -3" in Compiled(more, tmp_path).text()


@pytest.mark.needs("crushtool")
def test_without_rules_there_are_no_shadows(tmp_path):
    text = map_text(3, classes=True)
    text = text[: text.index("rule leaf")]
    real = CrushMap.from_json(Compiled(text, tmp_path).json())
    assert real == CrushMap.from_text(text)
    assert not any("~" in bucket.name for bucket in real.buckets.values())
    whole = CrushMap.from_text(map_text(3, classes=True))
    with pytest.raises(Unsupported, match="classes"):
        replace(whole, rules={}).to_text()


@pytest.mark.needs("crushtool")
@pytest.mark.parametrize("value", [2, 255, 256, 1000])
def test_tunables_are_cut_as_the_compiler_cuts_them(value, tmp_path):
    lines = CrushMap.build(hosts=2, osds=2).to_text().splitlines()
    lines = [f"tunable {name} {value}" for name in KNOBS] + [
        line for line in lines if not line.startswith("tunable")
    ]
    text = "\n".join([*lines, ""])
    real = CrushMap.from_json(Compiled(text, tmp_path).json()).tunables
    ours = CrushMap.from_text(text).tunables
    assert all(getattr(ours, name) == getattr(real, name) for name in KNOBS)


@pytest.mark.needs("crushtool")
def test_a_rule_may_have_no_name(tmp_path):
    text = CrushMap.build(hosts=2, osds=2).to_text().replace("rule erasure {", "rule {")
    assert CrushMap.from_json(Compiled(text, tmp_path).json()) == CrushMap.from_text(text)


@pytest.mark.needs("crushtool")
def test_shadow_ids_are_given_as_the_compiler_gives_them(tmp_path):
    text = map_text(3, "straw2", "jewel", "none", classes=True)
    assert " class ssd\n" in text
    assert "id -" not in text.split("class ssd")[-1].split("rule")[0].split("\n")[0]
    real = Compiled(text, tmp_path).json()
    shadows = {b["name"]: b["id"] for b in real["buckets"] if "~" in b["name"]}
    ours = {b.name: b.id for b in CrushMap.from_text(text).buckets.values() if "~" in b.name}
    assert ours == shadows
    assert shadows


def test_positions_place_items():
    text = CrushMap.build(hosts=1, osds=3).to_text()
    for i, pos in enumerate((2, 0, 1)):
        text = text.replace(f"item osd.{i} weight 1.000", f"item osd.{i} weight 1.000 pos {pos}")
    assert CrushMap.from_text(text).buckets[-2].items == (1, 2, 0)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("osd.1 weight 1.000", "osd.7 weight 1.000", "'osd.7' is not defined above"),
        ("weight 1.000", "weight -1.000", "is no weight"),
        ("weight 1.000", "weight heavy", "is not a number"),
        ("alg straw2", "alg straw9", "'straw9' is unknown"),
        ("take default", "take nowhere", "'nowhere' is not in this map"),
        ("take default", "take default class ssd", "'default~ssd' is not in this map"),
        ("type host\n", "type shed\n", "'shed' is no type"),
        ("tunable straw_calc_version", "tunable colour", "'colour' is no tunable"),
        ("step emit", "step stay", "'stay' is no step"),
        ("chooseleaf firstn", "chooseleaf thirdn", "'thirdn' is neither"),
        ("hash 0", "hash 9", "there is only rjenkins1"),
        ("device 1 osd.1", "device 0 osd.1", "0 is there twice"),
        ("device 1 osd.1", "device 1 osd.0", "the name of something else"),
        ("type replicated", "type doubled", "is no rule type"),
        ("# end crush map", "root r {", "the text ends too soon"),
        ("# end crush map", "choose_args 0 { { weight_set [ ] } }", "bucket_id is missing"),
        ("# end crush map", "rubbish", "neither a section nor a type"),
        ("chooseleaf firstn 0", "chooseleaf firstn many", "is not a whole number"),
    ],
)
def test_damaged_text_names_the_line(old, new, told):
    text = CrushMap.build(hosts=2, osds=2).to_text()
    assert old in text
    with pytest.raises(BadInput, match=told) as caught:
        CrushMap.from_text(text.replace(old, new, 1))
    number = caught.value.field
    assert number.startswith(("line ", "buckets["))


def test_nothing_is_not_a_map():
    for text in ("", "# only a remark\n"):
        with pytest.raises(BadInput, match="empty"):
            CrushMap.from_text(text)


def test_load_tells_the_forms_apart(tmp_path):
    crush = CrushMap.build(hosts=2, osds=2)
    for name, content in (("a", crush.to_text()), ("b", json.dumps(crush.to_json()))):
        (tmp_path / name).write_text(content)
        assert CrushMap.load(tmp_path / name) == crush
    (tmp_path / "c").write_bytes(b"\x00\xff\xfe\x01binary")
    with pytest.raises(BadInput, match="binary"):
        CrushMap.load(tmp_path / "c")
