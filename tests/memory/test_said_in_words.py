"""Numbers that the chapters say in words, held against what they count."""

import pytest
from shadow_scripts import SCRIPTS
from test_box_shadow import FILLED_TOGETHER
from test_shadow_law import MUTANTS

WORDS = {2: "two", 15: "fifteen", 20: "twenty"}
(PLAIN, _), (TOGETHER, _) = FILLED_TOGETHER["neighbours"]


@pytest.mark.parametrize(
    ("page", "sentence", "counts"),
    [
        ("shadow-page-tables", "break the pager in {} such ways", [len(MUTANTS)]),
        ("shadow-page-tables", "one of the {} mutants", [len(MUTANTS)]),
        ("shadow-page-tables", "saves {} page faults of {}", [PLAIN - TOGETHER, PLAIN]),
        ("two-dimensional-walk", "for {} small guests", [len(SCRIPTS)]),
    ],
)
def test_a_number_in_words(root, page, sentence, counts):
    text = (root / f"book/memory/{page}.md").read_text()
    assert sentence.format(*(WORDS[count] for count in counts)) in text
