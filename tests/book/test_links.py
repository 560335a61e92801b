"""Every link inside the built book leads somewhere: to a file, a place, or a figure's step."""

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HTML = Path(__file__).resolve().parents[2] / "_build/html"
STEP = re.compile(r"(.+)-step-(\d+)")


class Page(HTMLParser):
    """The places that a page has, where it points, and how many steps its figures have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.steps: dict[str, int] = {}
        self.is_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.is_data = given.get("class") == "vm-data"

    def handle_endtag(self, tag):
        self.is_data = False

    def handle_data(self, data):
        if not self.is_data:
            return
        figure = json.loads(data)
        if figure.get("type") == "player":
            self.steps[figure["name"]] = len(figure["trace"]["steps"])
        if jump := figure.get("jump"):
            self.links.append(f"#{jump[0]}-step-{jump[1]}")


@cache
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def leads_nowhere(at: Path, link: str) -> str:
    """Return what is missing where a link of the page at `at` points, or an empty string."""
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return ""
    target = (at.parent / unquote(url.path)).resolve() if url.path else at
    if not target.is_file():
        return "no such file"
    place = unquote(url.fragment)
    if target.suffix != ".html" or not place or place in page(target).places:
        return ""
    step = STEP.fullmatch(place)
    if not step or step[1] not in page(target).steps:
        return "no such place"
    return "" if int(step[2]) < page(target).steps[step[1]] else "no such step"


def test_every_link_inside_the_book_leads_somewhere():
    pages = sorted(HTML.resolve().rglob("*.html"))
    assert pages, "there is no built book; run `make book` first"
    links = [(at, link) for at in pages for link in page(at).links]
    assert any(STEP.search(link) for _, link in links)
    missing = ((at, link, leads_nowhere(at, link)) for at, link in links)
    assert [f"{at.relative_to(HTML)}: {link}: {why}" for at, link, why in missing if why] == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    trace = {"type": "player", "name": "f", "trace": {"steps": [1, 2]}}
    (tmp_path / "a.html").write_text(
        f'<p id="x"></p><script class="vm-data">{json.dumps(trace)}</script>'
    )
    for link in ("a.html", "#x", "a.html#f-step-1", "https://example.org/"):
        assert leads_nowhere(tmp_path / "a.html", link) == ""
    for link, why in (
        ("b.html", "file"),
        ("#y", "place"),
        ("#f-step-2", "step"),
        ("#g-step-0", "place"),
    ):
        assert why in leads_nowhere(tmp_path / "a.html", link)
