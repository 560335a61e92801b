"""The built book in a real browser: what a reader meets, from a server and from the disk."""

import contextlib
import functools
import gzip
import http.server
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError as TookTooLong
from playwright.sync_api import expect
from vmbook.verify import promised

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build/html"

pytestmark = pytest.mark.needs("chromium")

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
TEXT_PAGE = 300_000  # bytes, gzipped, everything the page loads
PLOT_PAGE = 1_900_000
OURS = 60_000
OURS_NAMED = re.compile(r"(?:vm|vm-.*|book)\.(?:js|css)")


def toc(entry=None):
    """Return the pages of the table of contents, as paths without suffix."""
    if entry is None:
        entry = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [entry[key] for key in ("root", "file") if key in entry]
    for key in ("parts", "chapters", "sections"):
        for each in entry.get(key, []):
            pages += toc(each)
    return pages


PAGES = toc()
# Every page is opened twice. Each time it takes on the other width too, as a window does that is
# dragged or a phone that is turned; so every page is seen in both schemes and in both widths.
WAYS = {"http": ("light", 1280, 390), "file": ("dark", 390, 1280)}


def source(page):
    return next(p for p in (ROOT / f"{page}.md", ROOT / f"{page}.ipynb") if p.is_file())


def figures(page, kind):
    """Return the data of every figure of a kind on a page, from the HTML itself."""
    text = (HTML / f"{page}.html").read_text()
    tag = r'<(?:figure|section)[^>]* ?class="[^"]*\b' + kind + r'\b[^"]*"[^>]*>\s*'
    tag += r"(?:<figcaption>[^<]*</figcaption>)?<script[^>]*>"
    return [json.loads(data) for data in re.findall(tag + r"(.*?)</script>", text, re.S)]


@pytest.fixture(scope="session")
def served():
    """The built book behind a server on loopback, and what was asked of it."""
    assert (HTML / "index.html").is_file(), "there is no built book; run `make book` first"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64  # a browser knocks with six at once, and waits a second if refused

    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def open_page(context, base, page, faults):
    """Open a page of the book in a new tab; what goes wrong on it is added to `faults`."""
    tab = context.new_page()
    tab.asked = []

    def request(asked):
        tab.asked.append(asked.url)
        if not asked.url.startswith((base, "data:", "blob:")):
            faults.append(f"{page} asks for {asked.url}")

    tab.on("request", request)
    tab.on("requestfailed", lambda asked: faults.append(f"{page}: {asked.url} {asked.failure}"))
    tab.on(
        "console",
        lambda said: said.type in ("error", "warning") and faults.append(f"{page}: {said.text}"),
    )
    tab.goto(f"{base}/{page}.html")
    return tab


@pytest.fixture
def visit(browser, served):
    """`visit(page, how)` opens a page of the book; what goes wrong on it fails the test."""
    contexts, faults = [], []

    def visit(page, how="file", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        return open_page(context, served if how == "http" else HTML.as_uri(), page, faults)

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


@dataclass
class Opened:
    """A page that stays open for all that is asked of every page, and the widths it takes on."""

    tab: Any
    page: str
    how: str
    theme: str
    widths: tuple[int, int]
    loaded: list[str]  # the addresses it asked for to be whole

    def take_on(self, width):
        """Give the page a width and wait until it has settled in it."""
        self.tab.set_viewport_size({"width": width, "height": 900})
        for settled in (f"{WIDE} <= {width}", DRAWN, STOPS):
            with contextlib.suppress(TookTooLong):  # what is wrong then is told by assertions
                self.tab.wait_for_function(settled, timeout=5000)
        assert self.tab.evaluate(WIDE) <= width, f"it scrolls sideways at {width}"


WIDE = "document.documentElement.scrollWidth"
DRAWN = """() => [...document.querySelectorAll('.vm-plot-place')].every(place => {
  const picture = place.querySelector('.main-svg');
  return picture && Math.abs(picture.clientWidth - place.clientWidth) <= 1; })"""
# The theme's script makes what scrolls reachable by keyboard, 300 ms after a change of width.
STOPS = """() => [...document.querySelectorAll('pre')].every(
  e => (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight) === (e.tabIndex === 0))"""


@pytest.fixture(
    scope="module", params=[(page, how) for page in PAGES for how in WAYS], ids="-".join
)
def opened(request, browser, served):
    """Each page of the book, over HTTP and from the disk; what goes wrong on it is an error."""
    page, how = request.param
    theme, *widths = WAYS[how]
    base, faults = served if how == "http" else HTML.as_uri(), []
    context = browser.new_context(
        viewport={"width": widths[0], "height": 900}, color_scheme=theme, reduced_motion="reduce"
    )
    tab = open_page(context, base, page, faults)
    yield Opened(tab, page, how, theme, tuple(widths), list(tab.asked))
    context.close()
    assert faults == []


def test_a_page_loads_whole_and_alone(opened):
    tab = opened.tab
    assert tab.evaluate("document.documentElement.dataset.theme") == opened.theme
    assert tab.locator("h1").count() == 1
    for kind in ("vm-player", "vm-predict", "vm-plot"):
        assert tab.locator(f".{kind}").count() == len(figures(opened.page, kind))
    assert tab.evaluate("[...document.querySelectorAll('.vm-player')].every(p => p.vmPlayer)")
    assert tab.locator(".vm-refused:visible").count() == 0
    blocks = tab.locator("div.highlight pre").all_text_contents()
    assert [block for block in blocks if block.endswith("\n\n")] == []
    tab.wait_for_function(DRAWN)


def test_a_page_keeps_its_weight(opened, served):
    base = served if opened.how == "http" else HTML.as_uri()
    sizes = {}
    for url in dict.fromkeys(opened.loaded):
        path = HTML / url.removeprefix(base + "/").split("?")[0].split("#")[0]
        sizes[path.name] = len(gzip.compress(path.read_bytes(), 6))
    total = sum(sizes.values())
    ours = sum(size for name, size in sizes.items() if OURS_NAMED.fullmatch(name))
    heaviest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:6])
    plots, players = figures(opened.page, "vm-plot"), figures(opened.page, "vm-player")
    assert total <= (PLOT_PAGE if plots else TEXT_PAGE), heaviest
    assert ours <= OURS, heaviest
    assert ("plotly.min.js" in sizes) == bool(plots), "plotly is loaded where a plot is shown"
    assert ("vm.js" in sizes) == bool(players + figures(opened.page, "vm-predict"))
    scenes = {name for name in sizes if name.startswith("vm-scene_")}
    traces = [one["trace"] for data in players for one in (data, *data.get("choices", ()))]
    assert scenes == {f"vm-scene_{trace['kind']}.js" for trace in traces if trace}


# What a reader on a phone can read of a table: no cell of prose is a narrow strip, and nothing that
# is compared with a real system has to be scrolled to.
STRIPS = """() => [...document.querySelectorAll('article td, article th')].filter(cell => {
  const { width, height } = cell.getBoundingClientRect();
  return cell.checkVisibility() && !cell.closest('.vm-rows') && cell.textContent.length > 60
    && height > 1.5 * width; }).map(cell => cell.textContent)"""
ASIDE = """() => [...document.querySelectorAll('.vm-check-table, .vm-stack')].filter(
  table => table.scrollWidth > table.parentElement.clientWidth).length"""


# Nor does a word end at an edge: what hides what doesn't fit, or is told to break lines, holds it.
CUT = """() => [...document.querySelectorAll('main *')].filter(one =>
  one.checkVisibility() && !one.matches('.vm-hidden') && one.clientWidth > 10
    && (one.matches('.vm-words') || ['hidden', 'clip'].includes(getComputedStyle(one).overflowX))
    && one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("page", PAGES)
def test_what_is_written_can_be_read_on_a_phone(browser, page):
    with contextlib.closing(browser.new_page(viewport={"width": 390, "height": 900})) as tab:
        tab.goto(f"{HTML.as_uri()}/{page}.html")
        tab.wait_for_function(DRAWN)
        assert tab.evaluate(CUT) == []
        assert tab.evaluate(STRIPS) == []
        assert tab.evaluate(ASIDE) == 0


SMALL = """() => [...document.querySelectorAll(`button, select, summary, [role=slider],
  article input:not([type=hidden])`)].filter(one => {
  if (!one.checkVisibility() || one.closest('.copybtn, .bd-sidebar-primary')) return false;
  const label = one.type === 'radio' || one.type === 'checkbox' ? one.labels[0] : null;
  const { width, height } = (label || one).getBoundingClientRect();
  return Math.min(height, Math.max(width, height)) < (one.matches('.vm-hand') ? 24 : 40)
    || (one.matches('.vm-button, .btn') && width < 40);
}).map(one => one.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("page", PAGES)
def test_a_finger_finds_every_control(browser, page):
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    with contextlib.closing(context):
        tab = context.new_page()
        tab.goto(f"{HTML.as_uri()}/{page}.html")
        tab.wait_for_function(DRAWN)
        assert tab.evaluate("matchMedia('(pointer: coarse)').matches")
        assert tab.evaluate(SMALL) == []
        assert tab.evaluate(WIDE) <= 390


# Contrast is what takes axe longest. In another width it looks again at the words that were not
# there before, or that have other colours, grounds or another size class now, and at no others.
MARK_NEW_WORDS = """() => {
  const known = (window.wordsSeen ??= new WeakMap()), look = e => getComputedStyle(e);
  let marked = 0;
  for (const e of document.body.querySelectorAll('*')) {
    const words = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!words || !e.checkVisibility()) continue;
    const { color, fill, fontSize, fontWeight } = look(e), size = parseFloat(fontSize);
    const key = [color, fill, size >= 24 || (size >= 18.66 && fontWeight >= 700)];
    for (let at = e; at; at = at.parentElement) {
      key.push(look(at).backgroundColor, look(at).opacity);
    }
    e.toggleAttribute('data-new-words', known.get(e) !== key.join());
    marked += known.get(e) !== key.join();
    known.set(e, key.join());
  }
  return marked;
}"""


def violations(tab, context=None, **options):
    """Return what axe finds wrong, in a few words."""
    # preload would fetch the style sheets again, which file:// refuses and no rule here needs
    options |= {"preload": False, "resultTypes": ["violations"]}
    found = Axe().run(tab, context=context, options=options).response["violations"]
    return [(one["id"], one["help"], [node["target"] for node in one["nodes"]]) for one in found]


def test_a_page_fits_and_has_no_accessibility_fault_of_level_a_or_aa(opened):
    tab = opened.tab
    level = {"type": "tag", "values": WCAG}
    own, other = opened.widths
    opened.take_on(own)
    assert tab.evaluate(MARK_NEW_WORDS) > 10
    assert violations(tab, runOnly=level) == []
    opened.take_on(other)
    assert violations(tab, runOnly=level, rules={"color-contrast": {"enabled": False}}) == []
    if tab.evaluate(MARK_NEW_WORDS):
        only_new = {"include": [["[data-new-words]"]]}
        assert violations(tab, only_new, runOnly=["color-contrast"]) == []


PAINTED = """() => [...document.querySelectorAll('.vm-plot-place')].every(place => {
  const ink = getComputedStyle(document.documentElement).getPropertyValue('--pst-color-text-base');
  return place._fullLayout.font.color === ink.trim(); })"""


def test_the_switch_changes_the_scheme_and_plots_follow(opened):
    tab = opened.tab
    switch = tab.locator(".theme-switch-button:visible").first
    seen = set()
    for _ in range(3):  # light, dark, and what the reader's system prefers
        switch.click()
        tab.wait_for_function(PAINTED)
        seen.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
    assert tab.evaluate("document.documentElement.dataset.theme") == opened.theme


def test_the_book_has_what_its_table_of_contents_promises():
    chapters = [page for page in PAGES if page.startswith("book/") and page.count("/") == 2]
    labs = [page for page in PAGES if page.startswith("labs/")]
    written = {p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.glob("book/*/*.md")}
    assert set(chapters) == {p for p in written if not p.startswith("book/_")}
    found = {p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.glob("labs/*/*.ipynb")}
    assert set(labs) == found
    # Each chapter has its lab; a lab may also stand alone, as that on VMRUN does.
    assert {one.removeprefix("book/") for one in chapters} <= {
        one.removeprefix("labs/") for one in labs
    }
    for page in PAGES:
        promise = promised(source(page))
        shown = sum(len(figures(page, kind)) for kind in ("vm-player", "vm-predict", "vm-plot"))
        assert shown == promise.figures + promise.predicts, page


# How the lanes are called in words, by engine: an emulator has no host kernel in the way.
SAME = {lane: lane for lane in ("guest user", "guest kernel", "host kernel", "host user")}
LANES = {"kvm": SAME, "unicorn": {**SAME, "host kernel": "emulator (in the kernel's place)"}}
LANES["emulated AMD-V"] = SAME  # there the host's kernel is a guest's, and executes the VMRUN
LANES["vmlib.memory"] = SAME  # a model of both

READ_LANES = """name => {
  const figure = document.getElementById(name), scene = figure.querySelector('svg[data-lane]');
  const of = (sel, key) => figure.querySelector(sel)?.dataset[key] ?? null;
  return {
    where: scene.dataset.lane,
    crossing: scene.dataset.crossing,
    line: Number(of('[data-line]', 'line')),
    exit: of('[data-exit]', 'exit') || '',
    output: of('[data-output]', 'output') || '',
    registers: [...figure.querySelectorAll('[data-register]')].map(
      e => [e.dataset.register, e.textContent]),
    sentence: figure.querySelector('.vm-sentence').textContent,
  };
}"""

READ_WALK = """name => {
  const figure = document.getElementById(name), grid = figure.querySelector('.vm-grid').dataset;
  return { cell: grid.cell, lit: grid.lit, end: grid.end,
    fields: [...figure.querySelectorAll('.vm-index')].map(e => e.textContent),
    registers: [...figure.querySelectorAll('[data-register]')].map(
      e => [e.dataset.register, e.textContent]),
    sentence: figure.querySelector('.vm-sentence').textContent };
}"""

READ_MAP = """name => {
  const figure = document.getElementById(name);
  const { where, path, reason, result, straws } = figure.querySelector('.vm-map').dataset;
  return { where, path, reason, result, straws,
    sentence: figure.querySelector('.vm-sentence').textContent };
}"""

READ_RULERS = """name => {
  const figure = document.getElementById(name);
  return { ended: figure.querySelector('.vm-rulers').dataset.end,
    registers: [...figure.querySelectorAll('[data-register]')].map(
      e => [e.dataset.register, e.textContent]),
    sentence: figure.querySelector('.vm-sentence').textContent };
}"""


READ_FLOW = """name => {
  const figure = document.getElementById(name), all = s => [...figure.querySelectorAll(s)];
  return {
    where: figure.querySelector('[data-where]').dataset.where,
    sentence: figure.querySelector('.vm-sentence').textContent,
    boxes: all('[data-box]').map(
      b => [b.dataset.box, b.querySelector('.vm-holds').textContent, b.dataset.mode]),
    wires: all('[data-wire]').map(w => w.dataset.wire).sort(),
    acks: figure.querySelector('[data-acks]').dataset.acks,
  };
}"""


def lanes(step, state, trace):
    """Return what a lanes figure shows of a step, and the words that the table has of it."""
    left, crossing = state["exit"], state["crossing"]
    seen = {
        "where": step["where"],
        "crossing": ">".join(crossing) if crossing else "",
        "line": state["line"],
        "exit": f"{left['reason']} {left['detail']}".strip() if left else "",
        "output": state["output"],
        "registers": state["registers"],
        "sentence": step["text"],
    }
    lane = LANES[trace["provenance"]["engine"]][step["where"]]
    return seen, [lane, step["text"], *(new for _, _, new in step["changed"])]


def cells(step, state, trace):
    """Return what a walk figure shows of a step, and the words that the table has of it."""
    cell = state["cell"]
    seen = {
        "cell": ",".join(map(str, cell["place"])) if cell else "",
        "lit": str(len(state["lit"])),
        "end": state["end"]["kind"] if state["end"] else "",
        "fields": [field[3] for field in state["bars"][0][2]],
        "registers": [pair for pair in state["registers"] if pair[1] != "unknown"],
        "sentence": step["text"],
    }
    words = [step["where"], step["text"], *(new for _, _, new in step["changed"])]
    return seen, [*words, *([cell["at"], cell["entry"]] if cell else [])]


def straws(step, state, trace):
    """Return what a map figure shows of a step, and the words that the table has of it."""
    seen = {
        "where": step["where"],
        "path": " ".join(state["path"]),
        "reason": state["reason"] or "",
        "result": " ".join(state["result"]),
        "straws": str(len(state["draws"])),
        "sentence": step["text"],
    }
    return seen, [step["where"], step["text"], *(row[5] for row in state["draws"])]


def messages(step, state, trace):
    """Return what a flow figure shows of a step, and the words that the table has of it."""
    groups = state["groups"]
    seen = {
        "where": step["where"],
        "sentence": step["text"].replace("`", ""),
        "boxes": [[f"{g[0]}/{box}", held, mode] for g in groups for box, held, mode in g[5]],
        "wires": sorted("|".join(wire) for wire in state["wires"]),
        "acks": " ".join(state["acks"]),
    }
    return seen, [step["text"], *(f"{a} → {b}: {what}" for a, b, what, _ in state["wires"])]


def rulers(step, state, _):
    """Return what a rulers figure shows of a step, and the words that the table has of it."""
    known = [pair for pair in state["registers"] if pair[1] != "unknown"]
    seen = {"registers": known, "sentence": step["text"], "ended": state["end"]}
    return seen, [step["where"], step["text"], *(value for _, value in known)]


SCENES = {
    "lanes": (READ_LANES, lanes),
    "walk": (READ_WALK, cells),
    "map": (READ_MAP, straws),
    "flow": (READ_FLOW, messages),
    "rulers": (READ_RULERS, rulers),
}


WALK_THROUGH = """(name, read) => {
  const { vmPlayer } = document.getElementById(name);
  return Array.from({ length: vmPlayer.length }, (_, i) => (vmPlayer.go(i), read(name)));
}"""


def unpacked(trace):
    """Return the states of a page's trace, with what was left out as unchanged put back."""
    last, states = {}, []
    for step in trace["steps"]:
        last.update({k: v for k, v in step["state"].items() if k in trace.get("packed", [])})
        states.append({**last, **step["state"]})
    return states


def test_every_step_of_every_player_shows_the_trace(opened):
    tab = opened.tab
    for data in figures(opened.page, "vm-player"):
        name, trace = data["name"], data["trace"]
        read, describe = SCENES[trace["kind"]]
        tab.evaluate(f"document.querySelector('#{name} details').open = true")
        rows = tab.locator(f"#{name} [data-row]")
        expect(rows).to_have_count(len(trace["steps"]))  # they are written as the table opens
        table = rows.evaluate_all("rows => rows.map(r => r.textContent)")
        stepped = tab.evaluate(f"name => ({WALK_THROUGH})(name, {read})", name)
        states = unpacked(trace)
        for step, state, seen in zip(trace["steps"], states, stepped, strict=True):
            shown, words = describe(step, state, trace)
            assert {key: seen[key] for key in shown} == shown, (name, step["i"])
            for word in words:
                assert word.strip() in table[step["i"]], (name, step["i"], word)


@pytest.mark.parametrize("how", ["http", "file"])
def test_search_finds_a_title(visit, how):
    tab = visit("search", how)
    box = tab.locator("input[name=q]:visible").first
    box.fill("lines")
    box.press("Enter")
    # The results come one by one.
    expect(tab.locator("#search-results ul")).to_contain_text("Run a VM in 40 lines")
    tab.wait_for_load_state("networkidle")  # each result's summary is read from its page
    with tab.expect_navigation():
        tab.locator("#search-results li a").first.click()
    assert "search.html" not in tab.url


@pytest.mark.parametrize("how", ["http", "file"])
def test_the_front_door_leads_in(browser, served, how):
    base = served if how == "http" else HTML.as_uri()
    with contextlib.closing(browser.new_page()) as tab:
        tab.goto(f"{base}/index.html")
        tab.wait_for_url("**/book/index.html")
        tab.get_by_role("link", name="a VM in 40 lines").first.click()
        tab.wait_for_url("**/cpu/run-a-vm.html")


@pytest.mark.parametrize("how", ["http", "file"])
def test_predict_then_see(visit, how):
    """The reader's way through chapter 1: guess, verdict, and the figure moves to the reason."""
    tab = visit("book/cpu/run-a-vm", how)
    first = tab.locator(".vm-predict").first
    verdict = first.locator(".vm-verdict")
    assert not verdict.is_visible() or not verdict.inner_text().strip()
    first.get_by_label("300", exact=True).check()
    first.get_by_role("button", name="Commit").click()
    assert "44" in verdict.inner_text()
    assert "300" in verdict.inner_text()
    assert tab.evaluate("document.getElementById('add').vmPlayer.index") == 45
    for _ in range(20):  # Chromium's next process may not have the storage of the last one yet
        tab.wait_for_load_state("networkidle")  # nothing is under way that leaving would cut off
        tab.reload()
        if told := tab.locator(".vm-predict").first.locator(".vm-verdict").inner_text():
            break
        tab.wait_for_timeout(250)
    assert "300" in told


@pytest.mark.parametrize("how", ["http", "file"])
def test_the_reader_changes_the_operands(visit, how):
    tab = visit("book/cpu/run-a-vm", how, width=390)
    figure = tab.locator("#add")
    figure.get_by_label("first operand").fill("99")
    figure.get_by_label("second operand").fill("1")
    figure.get_by_label("What does it print?").fill("100")
    figure.get_by_label("How many times does KVM_RUN return?").fill("4")
    figure.get_by_role("button", name="Commit").click()
    said = figure.inner_text()
    assert "100" in said
    answers = tab.evaluate("document.getElementById('add').vmPlayer.trace.counters")
    assert answers["exits to user space"] == 5
    figure.get_by_label("first operand").fill("300")
    figure.get_by_role("button", name="Commit").click()
    assert "255" in figure.inner_text(), "a sentence that names the bound"


def test_deep_link_from_another_page(visit):
    tab = visit("book/cpu/run-a-vm")
    tab.goto(tab.url + "#add-step-22")
    tab.wait_for_function("document.getElementById('add').vmPlayer.index === 22")
    assert "exit_reason = IO" in tab.locator("#add .vm-sentence").inner_text()


def test_storage_refused_is_no_harm(visit):
    tab = visit("book/index")
    tab.context.add_init_script(
        "Object.defineProperty(window, 'localStorage', "
        "{get() { throw new Error('refused'); }, configurable: true});"
    )
    tab.wait_for_load_state("networkidle")  # nothing is under way that leaving would cut off
    tab.goto(f"{HTML.as_uri()}/book/cpu/run-a-vm.html")
    first = tab.locator(".vm-predict").first
    first.get_by_label("44", exact=True).check()
    first.get_by_role("button", name="Commit").click()
    assert "44" in first.locator(".vm-verdict").inner_text()


def test_print_shows_the_verdicts_at_the_end_and_no_chrome(visit):
    tab = visit("book/cpu/run-a-vm")
    assert not tab.locator(".vm-print").is_visible()
    tab.emulate_media(media="print")
    assert tab.locator(".vm-print").is_visible()
    assert "44" in tab.locator(".vm-print").inner_text()
    assert not tab.locator(".bd-sidebar-primary").first.is_visible()


READS_AS = """() => [...document.querySelectorAll('.highlight pre, .highlight span')].map(
  one => getComputedStyle(one).color)"""


def test_a_dark_page_is_printed_in_the_inks_of_a_light_one(browser):
    inks = []
    for theme in ("light", "dark"):
        with contextlib.closing(browser.new_page(color_scheme=theme)) as tab:
            tab.goto(f"{HTML.as_uri()}/book/memory/shadow-page-tables.html")
            tab.wait_for_function(DRAWN)
            tab.emulate_media(media="print")
            tab.evaluate("dispatchEvent(new Event('beforeprint'))")
            tab.wait_for_function(PAINTED)
            inks.append(tab.evaluate(READS_AS))
            # What is folded is open, and what fades in as it opens is there at once.
            hidden = tab.locator("details.hide .output").first
            assert hidden.evaluate("e => e.closest('details').open")
            assert hidden.evaluate("e => getComputedStyle(e.parentElement).animationName") == "none"
            tab.evaluate("dispatchEvent(new Event('afterprint'))")
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
    assert inks[0] == inks[1]
    assert len(inks[0]) > 100


def test_without_a_script_the_figure_still_says_what_happens(browser):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{HTML.as_uri()}/book/cpu/run-a-vm.html")
    said = tab.locator("#add").inner_text()
    assert "out dx, al" in said
    context.close()
