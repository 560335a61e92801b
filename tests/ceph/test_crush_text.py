"""The compiler's language: what we write, the real compiler takes and gives back unchanged."""

import pytest
from crush_maps import ALGS, PROFILES, WEIGHT_SETS, Compiled, map_text, version

from vmlib.ceph import CrushMap
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


def test_what_the_compiler_cannot_take_is_said():
    heavy = CrushMap.build(hosts=2, osds=1, weight=101.0)
    with pytest.raises(Unsupported, match="100"):
        heavy.to_text()
    text = CrushMap.build().to_text().replace("type erasure", "type msr_indep")
    with pytest.raises(Unsupported, match="multi-step"):
        CrushMap.from_text(text).to_text()


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
    import json

    crush = CrushMap.build(hosts=2, osds=2)
    for name, content in (("a", crush.to_text()), ("b", json.dumps(crush.to_json()))):
        (tmp_path / name).write_text(content)
        assert CrushMap.load(tmp_path / name) == crush
    (tmp_path / "c").write_bytes(b"\x00\xff\xfe\x01binary")
    with pytest.raises(BadInput, match="binary"):
        CrushMap.load(tmp_path / "c")
