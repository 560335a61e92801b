"""Chapters keep to the plan: their headings, the length of a listing, the words we don't use."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(ROOT.glob("book/*/*.md"))
HEADINGS = [
    "Predict", "The smallest thing that works", "Step by step", "See it", "Break it",
    "Check it against the real system", "What the model leaves out", "The talk, checked",
    "What you learned", "Exercises", "Problems without end", "Sources",
]  # fmt: skip
CELL = re.compile(r"^```\{code-cell\}.*?\n(.*?)^```", re.M | re.S)


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return request.param.read_text()


def test_every_heading_in_its_place(chapter):
    assert re.findall(r"^## (.+)$", chapter, re.M) == HEADINGS
    question = re.search(r"^# .+\n\n\*(.+\?)\*\n", chapter, re.M)
    assert question, "the title is followed by the chapter's question"
    for verb in re.findall(r"be able to (.+)", chapter)[:1]:
        assert len(re.findall(r"\*\*\w+\*\*", verb)) == 3


def test_listings_are_short_and_narrow(chapter):
    cells = [cell for cell in CELL.findall(chapter) if "remove-input" not in cell]
    assert cells
    for cell in cells:
        lines = [line for line in cell.splitlines() if not line.startswith(":tags:")]
        assert len(lines) <= 25, cell
        assert max(map(len, lines)) <= 78, max(lines, key=len)
    smallest = chapter.split("## The smallest thing that works")[1]
    assert len([line for line in CELL.search(smallest)[1].splitlines() if line.strip()]) <= 12


def test_length_and_words(chapter):
    words = len(chapter.split())
    assert 1500 <= words <= 4500
    prose = re.sub(r"```.*?```", "", chapter, flags=re.S)
    for filler in ("simply", "obviously", "of course", "just "):
        assert not re.search(rf"\b{filler}", prose, re.I), filler


def test_an_exercise_has_its_solution(chapter):
    exercises = chapter.split("## Exercises")[1].split("\n## ")[0]
    asked = re.findall(r"^\*\*(\d) \((★+)\)\*\*", exercises, re.M)
    assert len(asked) >= 3
    assert {stars for _, stars in asked} == {"★", "★★", "★★★"}
    assert len(re.findall(r"\{(?:dropdown|fold)\} Solution", exercises)) == len(asked)


def test_at_most_five_things_to_learn(chapter):
    learned = chapter.split("## What you learned")[1].split("\n## ")[0]
    assert 1 <= len(re.findall(r"^- ", learned, re.M)) <= 5


def test_the_readme_runs_as_it_says(capsys):
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    exec(compile(code, "README.md", "exec"), {})
    promised = code.splitlines()[-1].split("# ")[1]
    assert capsys.readouterr().out.strip() == promised
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target
