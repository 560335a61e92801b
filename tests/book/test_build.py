"""The build itself: what it reuses, what it refuses, and what it adds to a page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RECORD = {
    "id": "cpu/sample",
    "kind": "checked",
    "what": "a sum",
    "ours": {"2 + 2": "4"},
    "real": {"2 + 2": "4"},
    "tool": "bc",
    "tool_version": "1.07",
    "date": "2026-11-22",
    "host": "x86_64",
    "cases": 1,
    "outcome": "equal",
    "test": "none",
    "covers": ["requirements.in"],
    "sha256": {"requirements.in": "not its hash"},
}


def test_a_changed_vmlib_changes_the_page(tiny_book):
    tiny_book.page("index", "# Book\n\n```{code-cell}\nimport vmlib\nvmlib.VALUE + 1\n```\n")
    first = tiny_book.build()
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"<span[^>]*>42</span>|>42\n", tiny_book.read("index"))
    caches = tiny_book.root / "_build/.jupyter_cache"
    before = {path.name for path in caches.iterdir()}

    tiny_book.write("vmlib/__init__.py", "VALUE = 1233\n")
    assert tiny_book.build().returncode == 0
    assert "1234" in tiny_book.read("index")
    after = {path.name for path in caches.iterdir()}
    assert len(after) == 1, "the cache of the older vmlib is still there"
    assert not before & after


def test_a_row_of_sentences_names_its_cells_for_a_phone():
    from vmbook.tables import stacked

    head = "<thead><tr><th><p>Says</p></th><th>Verdict</th><th>What <em>is</em></th></tr></thead>"
    long = f"<tr><td>A &amp; B</td><td></td><td><p>{'word ' * 20}</p></td></tr>"
    short = "<tr><td>A</td><td>B</td><td>C</td></tr>"
    table = '<table class="table">{}<tbody>{}</tbody></table>'
    done = stacked("before " + table.format(head, long + short) + table.format(head, short))
    assert done.startswith('before <table class="table vm-stack" role="table">')
    assert done.endswith(table.format(head, short)), "short rows stay side by side"
    assert re.findall(r'data-head="([^"]*)"', done) == ["Says", "Verdict", "What is"] * 2
    assert done.count('role="columnheader"') == 3
    assert done.count('role="cell"') == 6
    assert done.count('role="row"') == 3
    assert done.count('role="rowgroup"') == 2
    assert '<td role="cell" data-head="Says">A &amp; B</td>' in done
    spanning = table.format(head, long.replace("<td>", '<td colspan="2">', 1))
    assert stacked(spanning) == spanning


def test_an_output_of_words_breaks_its_lines_and_one_of_columns_does_not():
    from vmbook.finish import wrap_words

    output = '<div class="output stream"><div class="highlight"><pre><span></span>{}</pre></div>'
    wraps = '<pre class="vm-words"><span></span>'
    for words in ("What does it print?\n", "a:\n    b c\n    d e\n", "at 14  CR2: 0x8\nd e\n"):
        assert wrap_words(output.format(words)).count(wraps) == 1
    for columns in ("a   b\nccc d\nd   e\n", "a\tb\nc\td\n", '<i class="p">0</i>  ms\n1  s\n'):
        assert wrap_words(output.format(columns)) == output.format(columns)
    source = output.format("x = 1\n").replace("output stream", "highlight-python")
    assert wrap_words(source) == source


def test_what_a_page_gets(tiny_book):
    from vmbook import verify

    tiny_book.write("checks/cpu/sample.json", json.dumps(RECORD))
    tiny_book.page(
        "index",
        "# Book\n\n```{checks} cpu/sample\n```\n\nInline $2^9$ and {badge}`cpu/sample`.\n\n"
        "$$\nx = 1\n$$ (eq-one)\n\nSee {eq}`eq-one`.\n\n"
        "```{code-cell}\n:tags: [figure]\nfrom IPython.display import HTML\n"
        'HTML(\'<figure class="vm-player"><span class="vm-checks" data-checks="cpu/sample">'
        "</span></figure>')\n```\n\n"
        "```{fold} Solution\n```\n\n```{code-cell}\n6 * 7\n```\n\n```{endfold}\n```\n",
    )
    tiny_book.page("status", "# Status\n\n```{status}\n```\n")
    built = tiny_book.build()
    assert built.returncode == 0, built.stdout + built.stderr
    page = tiny_book.read("index")

    assert page.count('<math alttext="') == 2
    assert 'alttext="2^9"' in page
    assert not [url for url in verify.read_page(page).loads if "mathjax" in url.lower()]
    badge = 'checked against bc (1.07), <span class="vm-date">2026-11-22</span>'
    assert page.count(badge) == 3
    assert page.count("the code has changed since") == 3
    assert '<th scope="row">2 + 2</th><td>4</td><td>4</td>' in page

    folded = page.partition("<summary>Solution</summary>")[2].partition("</details>")[0]
    assert "42" in folded

    assert 'src="../_static/vm.js"' in page
    assert "vm.js" not in tiny_book.read("status")
    assert "plotly" not in page

    status = tiny_book.read("status")
    assert "cpu/sample" in status
    assert re.search(r"<td>book/index</td><td>\d+\.\d s</td>", status)
    assert "<td>jupyter-book</td><td>1.0.4" in status
    assert "<td>kernel</td>" in status

    for path in tiny_book.html.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        loads = verify.read_page(html).loads
        assert not [url for url in loads if verify.OUTSIDE.match(url)], path
        assert "fa-solid" not in html, path
    left = {path.name for path in (tiny_book.html / "_static").rglob("*")}
    assert not {"fontawesome", "locales", "mathjax"} & left
    assert not [name for name in left if name.endswith((".map", ".woff2"))]


def test_a_build_with_anything_wrong_fails_and_says_so(tiny_book):
    show = "from IPython.display import display\n"
    tiny_book.page("index", "# Book\n\nFine.\n")
    tiny_book.page(
        "mime",
        "# A\n\n```{code-cell}\n"
        + show
        + 'display({"application/x-unheard-of": "?"}, raw=True)\n```\n',
    )
    tiny_book.page(
        "widget",
        "# B\n\n```{code-cell}\n"
        + show
        + 'display({"application/vnd.jupyter.widget-view+json": {"model_id": "1", '
        '"version_major": 2, "version_minor": 0}}, raw=True)\n```\n',
    )
    tiny_book.page("record", "# C\n\n```{checks} cpu/nothing\n```\n")
    tiny_book.page("figure", "# D\n\n```{code-cell}\n:tags: [figure]\n1\n```\n")
    tiny_book.page("tex", "# E\n\nHere $\\notacommand{x}$.\n")
    tiny_book.page("predict", "# F\n\n```{predict} one\nquestion: What?\n```\n")
    tiny_book.page("link", "# G\n\n[nowhere](nothing.md)\n")
    built = tiny_book.build()
    said = re.sub(r"\x1b\[[0-9;]*m", "", built.stdout + built.stderr)
    assert built.returncode != 0, said
    for what in (
        r"mime.*skipping unknown output mime type",
        r"widget.*a widget that needs a kernel",
        r"record.*no usable check record 'cpu/nothing'",
        r"figure.*figure cell 1 shows 0 figures instead of one",
        r"tex.*TeX not understood: \\notacommand",
        r"predict.*predict 'one'",
        r"predict.*shows 0 of its 1 predict directives",
        r"link.*nothing\.md",
    ):
        assert re.search(what, said), f"{what} not in:\n{said}"

    again = tiny_book.build()
    assert again.returncode != 0, "the second build forgot what was wrong"


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<script src="https://example.org/a.js"></script>', "from outside the book"),
        ('<link rel="stylesheet" href="//example.org/a.css"/>', "from outside the book"),
        ("<style>@import 'https://example.org/a.css';</style>", "from outside the book"),
        ('<p style="background: url(http://example.org/a.png)">', "from outside the book"),
        ('<img src="https://example.org/a.png"/>', "from outside the book"),
        ('<i class="fa-solid fa-sun"></i>', "an icon-font element"),
        ('<p id="a"></p><p id="a"></p>', "the id 'a' twice"),
        ('<figure class="vm-player"></figure>', "no tag 'figure'"),
    ],
)
def test_a_page_with_a_fault_is_found(html, problem):
    from vmbook import verify

    assert problem in " ".join(verify.page_problems(html, verify.Promise(0, 0)))


def test_promises_are_read_from_the_source():
    from vmbook import verify

    text = (
        "```{code-cell}\n:tags: [remove-input, figure]\nx\n```\n\n"
        "```{code-cell}\n---\ntags:\n  - figure\n---\nx\n```\n\n"
        "```{code-cell}\n:tags: [figures-of-speech]\nx\n```\n\n"
        ":::{predict} a\nquestion: b\n:::\n"
    )
    assert verify.promised_text(text) == verify.Promise(2, 1)


def test_a_fold_is_closed_again_or_the_page_is_faulty():
    from vmbook import fold

    assert not fold.problems(fold.OPEN.format("Solution") + fold.CLOSE)
    assert fold.problems(fold.OPEN.format("Solution")) == ["opens 1 folds and closes 0"]


def test_an_output_with_html_needs_no_other_form():
    import nbformat
    from vmbook import mime

    both = {"text/html": "<p>", "application/vnd.plotly.v1+json": {}}
    output = nbformat.v4.new_output("display_data", data=both)
    assert list(mime.for_pages(output)["data"]) == ["text/html"]
    alone = nbformat.v4.new_output("display_data", data={"application/vnd.plotly.v1+json": {}})
    assert mime.for_pages(alone) is alone


def test_icons_become_outlines():
    from vmbook import icons

    html = icons.replace('<i class="fa-solid fa-sun theme-switch" data-mode="light"></i>')
    assert html.startswith('<svg class="vm-icon theme-switch"')
    assert 'data-mode="light"' in html
    assert 'aria-hidden="true"' in html
    with pytest.raises(KeyError):
        icons.replace('<i class="fa-solid fa-no-such-icon"></i>')


def test_mathml():
    from vmbook import mathml

    assert 'display="block"' in mathml.to_mathml(r"\frac{a}{b}", block=True)
    with pytest.raises(ValueError, match="not understood"):
        mathml.to_mathml(r"a + \nosuchthing")


def test_notice_is_what_the_installed_packages_say():
    from vmbook import notice

    assert (ROOT / "NOTICE").read_text(encoding="utf-8") == notice.notice(), (
        "run: PYTHONPATH=book/_ext .venv/bin/python -m vmbook.notice"
    )
    assert re.search(r"^unicorn 2\S+ +GPL-2\.0$", notice.notice(), re.M)


def test_the_zip_holds_the_book_and_is_the_same_twice(tmp_path):
    from vmbook import dist

    (tmp_path / "html/_sources").mkdir(parents=True)
    (tmp_path / "html/index.html").write_text("x")
    (tmp_path / "html/_sources/index.md").write_text("y")
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert dist.pack(tmp_path / "html", first) == 1
    dist.pack(tmp_path / "html", second)
    assert first.read_bytes() == second.read_bytes()


def test_an_old_python_gets_a_plain_sentence(tmp_path):
    script = (
        "import sys, runpy; sys.version_info = (3, 9, 0, 'final', 0);"
        "sys.argv = ['environment.py', sys.argv[1]];"
        f"runpy.run_path({str(ROOT / 'book/_ext/vmbook/environment.py')!r}, run_name='__main__')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "v")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "needs Python 3.11 or later" in ran.stderr
    assert "Traceback" not in ran.stderr
