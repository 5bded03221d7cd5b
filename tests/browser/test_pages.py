"""Every page of the built book in a real Chromium: quiet, accessible, sufficient to itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, urldefrag

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page

import unrolled
from tests.browser.conftest import BOOK, DESKTOP, PHONE, settle, watch
from tools import toc

pytestmark = pytest.mark.browser

ROOT = BOOK.parents[1]
PAGES = sorted(
    path.relative_to(BOOK).as_posix()
    for path in BOOK.rglob("*.html")
    if "_static" not in path.parts and path != BOOK / "index.html"
)
NOTEBOOKS = [name for name in PAGES if (ROOT / name).with_suffix(".ipynb").exists()]


JUDGED_TWICE = ["book/index.html", "book/02_gates.html", "book/api/layers.html"]

# All tests of a page run in one process, where they share its visit: see tests/conftest.py.
each_page = pytest.mark.parametrize("name", PAGES)
each_theme = pytest.mark.parametrize("theme", ["light", "dark"])

AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
    "preload": False,  # it would fetch style sheets again, from wrong addresses
}
AXE = (
    Axe().axe_script
    + ";axe.configure({rules: [{id: 'color-contrast', selector: '[data-look], [data-look] *'}]});"
)

# The whole page is laid out, also what is far from the window (see book.css): else axe cannot tell
# what lies behind a text there. Axe is slow where a page has many elements. Whether text stands out
# depends on its colour, size and weight and on what lies behind it, so one piece of text of each
# look is marked for that rule (and every explorer, whole). The rest of the code, and words in a
# paragraph that only look special, become plain text. Of an equation axe sees that there is MathML,
# and of a button's icon its title. The shades beside wide code, which axe cannot judge, are gone.
SIMPLIFY = """() => {
  document.documentElement.classList.add('whole');
  const all = selector => [...document.querySelectorAll(selector)];
  for (const e of all('pre, .math')) e.style.backgroundImage = 'none';
  const marked = new Map(), behind = new Map();
  const background = element => {
    if (!element) return '';
    if (!behind.has(element)) {
      const s = getComputedStyle(element);
      const own = s.backgroundImage + s.backgroundColor + s.opacity + s.filter;
      behind.set(element, own + background(element.parentElement));
    }
    return behind.get(element);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest('.katex')) continue;
    if (!element.checkVisibility()) continue;
    const s = getComputedStyle(element);
    const look = [s.color, s.fontSize, s.fontWeight, s.textShadow, background(element)].join();
    if (!marked.has(look)) marked.set(look, element);
  }
  for (const e of marked.values()) e.dataset.look = '';
  for (const e of all('*')) if (e.shadowRoot) e.dataset.look = '';
  for (const e of all('.katex-html, button svg > :not(title)')) e.remove();
  for (const e of all('.katex math')) e.textContent = e.textContent;
  for (const e of all('pre span:not([data-look])')) e.replaceWith(e.textContent);
  for (const e of all('article p :is(strong, em, code, code > span):not([data-look])').reverse())
    if (!e.firstElementChild && e.checkVisibility()) e.replaceWith(e.textContent);
}"""

THEME = "document.documentElement.dataset.theme"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(a => a.href)"

# What sticks out of the window and does not scroll inside something of its own.
TOO_WIDE = """() => {
  const scrollsInside = element => {
    for (let e = element.parentElement; e && e.tagName !== 'MAIN'; e = e.parentElement)
      if (getComputedStyle(e).overflowX !== 'visible') return true;
    return false;
  };
  const found = [...document.querySelectorAll('.bd-article-container *, .bd-footer-content *')]
    .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
    .filter(e => !scrollsInside(e))
    .map(e => `<${e.tagName.toLowerCase()} class="${e.getAttribute('class') ?? ''}"> ` +
              e.textContent.trim().slice(0, 60));
  const width = document.scrollingElement.scrollWidth;
  return width > innerWidth ? [...found, `the page is ${width} px wide`] : found;
}"""

# The name that a screen reader gives each picture, and whether it belongs to the text of the page.
PICTURES = """() => [...document.querySelectorAll('img, svg')]
  .filter(e => !e.closest('[aria-hidden=true], button'))
  .map(e => ({
    name: e.getAttribute('alt') ?? e.getAttribute('aria-label') ??
      document.getElementById(e.getAttribute('aria-labelledby'))?.textContent ?? '',
    source: e.getAttribute('src')?.slice(0, 80) ?? e.outerHTML.slice(0, 80),
    inText: e.closest('article') !== null,
  }))"""

# TeX that a reader would see as TeX.
RAW_MATH = r"""() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); )
    if (/\$|\\\(|\\\[|\\begin\{/.test(node.data) &&
        !node.parentElement.closest('pre, code, script, style, textarea, annotation'))
      found.push('not typeset: ' + node.data.trim().slice(0, 80));
  for (const e of document.querySelectorAll('.math'))
    if (!e.querySelector('.katex')) found.push('not typeset: ' + e.textContent.slice(0, 80));
  return found;
}"""


# Where the Tab key stops, also inside of explorers.
STOPS = """() => {
  const roots = [document, ...[...document.querySelectorAll('*')].map(e => e.shadowRoot)];
  const able = 'a[href], button, input, select, textarea, summary, [tabindex]';
  return roots.filter(root => root).flatMap(root => [...root.querySelectorAll(able)])
    .filter(e => !e.disabled && e.checkVisibility({ visibilityProperty: true }));
}"""

# What the keyboard cannot use: one stop of each look is given the focus, which must be seen, and
# what scrolls sideways is a stop that has a name.
KEYBOARD = f"""() => {{
  const found = [], looks = new Set();
  const told = e => `<${{e.tagName.toLowerCase()}} class="${{e.getAttribute('class') ?? ''}}"> ` +
                    (e.ariaLabel || e.title || e.textContent).trim().slice(0, 40);
  const still = document.head.appendChild(document.createElement('style'));
  still.textContent = '* {{ transition: none !important }}';
  const ring = e => {{
    const s = getComputedStyle(e);
    return s.outlineStyle === 'none' || parseFloat(s.outlineWidth) < 2 ? s.boxShadow : 'outline';
  }};
  for (const e of ({STOPS})()) {{
    if (e.tabIndex > 0 || (e.tabIndex < 0 && !e.hasAttribute('role') && e.tagName !== 'DIV'))
      found.push(`tabindex ${{e.tabIndex}}: ${{told(e)}}`);
    const place = e.closest('.bd-header-article, [class*=bd-sidebar], article');
    const look = [e.tagName, e.className, e.type, place?.className, e.getRootNode().host].join();
    if (e.tabIndex < 0 || looks.has(look)) continue;
    looks.add(look);
    const drawn = e.matches('.bd-sidebar-primary summary') ? e.firstElementChild : e;
    const before = ring(drawn);
    e.focus({{ preventScroll: true }});
    if (e.getRootNode().activeElement !== e) found.push('takes no focus: ' + told(e));
    else if (ring(drawn) === before) found.push('its focus is not seen: ' + told(e));
    e.blur();
  }}
  for (const e of document.querySelectorAll('.bd-article *'))
    if (e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX) &&
        (!e.hasAttribute('tabindex') || !(e.ariaLabel || e.querySelector('caption, th'))))
      found.push('scrolls, has no tabindex or no name: ' + told(e));
  still.remove();
  return found;
}}"""


NARROW = {"light": {"width": 320, "height": 640}, "dark": PHONE}


@dataclass
class Visit:
    """What one look at a page found."""

    problems: list[str] = field(default_factory=list)
    axe: str = ""
    too_wide: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    pictures: list[dict] = field(default_factory=list)
    raw_math: list[str] = field(default_factory=list)
    keyboard: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def visit(browser: Browser, book_server: str) -> Iterator[Callable[[str, str], Visit]]:
    """Look at a page twice, however many tests ask about it.

    Once light, from the server and as on a desktop; once dark, opened as a file and as on a phone,
    where it is turned light for a moment to see whether it fits then, and into 320 pixels, to which
    a desktop comes at 400 %. A page of each kind is judged by axe light on a phone and dark on a
    desktop as well. Like a reader, each goes from page to page in one window.
    """
    opened = {}
    for theme, home, viewport in [
        ("light", book_server, DESKTOP),
        ("dark", BOOK.as_uri(), PHONE),
    ]:
        context = browser.new_context(viewport=viewport, color_scheme=theme)
        opened[theme] = home, context.new_page(), watch(context, home), viewport

    @cache
    def look(name: str) -> dict[str, Visit]:
        visits = {}
        for theme, (home, page, problems, viewport) in opened.items():
            visits[theme] = found = Visit()
            page.goto(f"{home}/{name}")
            settle(page)
            assert page.evaluate(THEME) == theme
            found.links = page.evaluate(LINKS)
            found.pictures = page.evaluate(PICTURES)
            found.raw_math = page.evaluate(RAW_MATH)
            found.keyboard = page.evaluate(KEYBOARD)
            if theme == "dark":
                for other, size in NARROW.items():
                    page.set_viewport_size(size)
                    page.emulate_media(color_scheme=other)
                    page.wait_for_function(f"{THEME} === '{other}'")
                    visits[other].too_wide = page.evaluate(TOO_WIDE)
            found.axe = run_axe(page)
            if name in JUDGED_TWICE:
                page.set_viewport_size(PHONE if viewport == DESKTOP else DESKTOP)
                page.reload()
                settle(page)
                found.axe += run_axe(page)
                page.set_viewport_size(viewport)
            found.problems = problems.copy()
            page.goto("about:blank")  # what the page still asks for when it is left is no problem
            problems.clear()
        return visits

    yield lambda name, theme: look(name)[theme]
    for _, page, *_ in opened.values():
        page.context.close()


def run_axe(page: Page) -> str:
    """Return what axe finds wrong with a page, one line for each element, or nothing."""
    page.evaluate(SIMPLIFY)
    page.evaluate(AXE)
    violations = page.evaluate(
        "options => axe.run(options).then(results => results.violations)", AXE_OPTIONS
    )
    return "\n".join(
        f"{violation['id']} ({violation['help']}): {' '.join(map(str, node['target']))}"
        for violation in violations
        for node in violation["nodes"]
    )


class Anchors(HTMLParser):
    """Collects the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids.update(value for name, value in attrs if name == "id" and value)


@cache
def anchors(path: Path) -> set[str]:
    return Anchors(path.read_text(encoding="utf-8")).ids


def test_every_page_of_the_contents_is_built_and_no_other():
    pages = {f"{name}.html" for name in toc.pages()}
    assert set(PAGES) == pages | {"search.html"}


def test_the_book_was_built_without_a_warning():
    assert not BOOK.with_name("warned").exists(), "make book says what is to be mended"


@pytest.mark.parametrize("name", ["book/index.html"])
def test_home_leads_to_every_chapter(visit, book_server, name):
    links = {urldefrag(link).url for link in visit(name, "light").links}
    chapters = [name for name in toc.pages() if re.fullmatch(r"book/\d\d_\w+", name)]
    missing = [name for name in chapters if f"{book_server}/{name}.html" not in links]
    assert not missing, f"add to the map in book/index.md: {missing}"


def test_api_reference_has_every_public_name():
    found = {name for page in (BOOK / "book/api").glob("*.html") for name in anchors(page)}
    missing = [name for name in unrolled.__all__ if f"unrolled.{name}" not in found]
    assert not missing, f"add to a page in book/api: {missing}"


def test_root_leads_home(page):
    page.goto("/")
    page.wait_for_url("**/book/index.html")


@each_page
@each_theme
def test_nothing_goes_wrong_and_nothing_leaves(visit, name, theme):
    problems = visit(name, theme).problems
    assert not problems, "\n".join(problems)


@each_page
@each_theme
def test_axe_finds_nothing(visit, name, theme):
    violations = visit(name, theme).axe
    assert not violations, violations


@each_page
@each_theme
def test_fits_a_phone(visit, name, theme):
    too_wide = visit(name, theme).too_wide
    width = NARROW[theme]["width"]
    assert not too_wide, f"wider than {width} px:\n" + "\n".join(too_wide)


@each_theme
def test_a_shade_shows_on_a_phone_where_wide_code_goes_on(page, theme):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=theme)
    page.goto("/book/02_gates.html")
    settle(page)
    wide = "pre => pre.scrollWidth > pre.clientWidth + 50"
    code = next(pre for pre in page.locator(".highlight pre").all() if pre.evaluate(wide))

    def shades() -> tuple[int, int]:
        """How far the outermost column on the left and on the right is from the ground's grey."""
        picture = Image.open(BytesIO(code.screenshot())).convert("L")
        row = [picture.getpixel((x, 5)) for x in range(picture.width)]  # above the first line
        ground = max(set(row), key=row.count)
        return abs(row[3] - ground), abs(row[-3] - ground)

    left, right = shades()
    assert left < 5 and right > 10
    code.evaluate("pre => pre.scrollTo({left: pre.scrollWidth, behavior: 'instant'})")
    left, right = shades()
    assert left > 10 and right < 5


@each_page
@each_theme
def test_the_keyboard_is_enough(visit, name, theme):
    problems = visit(name, theme).keyboard
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "name", ["book/index.html", "book/03_scan.html", "book/api/layers.html", "search.html"]
)
def test_the_tab_key_goes_through_the_whole_page(page, name):
    page.goto(f"/{name}")
    settle(page)
    page.evaluate(f"""() => {{
      window.left = new Set(({STOPS})().filter(e => e.tabIndex === 0));
      for (const e of window.left) e.addEventListener('focus', () => window.left.delete(e));
    }}""")
    for _ in range(page.evaluate("left.size") + 1):
        page.keyboard.press("Tab")
    assert page.evaluate("[...left].map(e => e.outerHTML.slice(0, 200))") == []


@each_page
def test_pictures_are_described(visit, name):
    poor = [
        picture
        for picture in visit(name, "light").pictures
        if len(picture["name"].strip()) < (20 if picture["inText"] else 1)
        or re.search(r"\.(png|svg|jpe?g)$|^[\w./-]*/[\w./-]*$", picture["name"].strip())
    ]
    assert not poor, "\n".join(f"{p['source']}: alt text {p['name']!r}" for p in poor)


@each_page
@each_theme
def test_equations_are_typeset(visit, name, theme):
    raw_math = visit(name, theme).raw_math
    assert not raw_math, "\n".join(raw_math)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_colab_and_binder_open_this_notebook(visit, name):
    links, notebook = visit(name, "light").links, name.removesuffix(".html") + ".ipynb"
    (colab,) = [link for link in links if "//colab.research.google.com/" in link]
    assert colab.endswith(f"/blob/main/{notebook}")
    (binder,) = [link for link in links if "//mybinder.org/" in link]
    assert binder.endswith(f"/main?urlpath=lab/tree/{notebook}")
    assert (
        colab.split("/github/")[1].split("/blob/")[0] == binder.split("/gh/")[1].split("/main")[0]
    )


def test_copy_button_copies_the_code(page, book_server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=book_server)
    page.goto("/book/colab.html")
    block = page.locator("div.highlight", has=page.locator("button.copybtn")).first
    block.hover()
    block.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip() != ""


def test_contents_open_and_close_on_a_phone(page):
    page.set_viewport_size(PHONE)
    page.goto("/book/index.html")
    link = page.get_by_role("navigation", name="Main").get_by_role("link", name="Notation")
    assert not link.is_visible()
    page.locator("button.primary-toggle").click()
    link.wait_for(state="visible")
    page.keyboard.press("Escape")
    link.wait_for(state="hidden")
    page.locator("button.primary-toggle").click()
    link.click()
    page.wait_for_url("**/book/notation.html")


def test_theme_switch_changes_the_colours_and_is_remembered(page):
    page.goto("/book/index.html")
    seen = {page.evaluate(THEME)}
    for _ in range(2):
        page.locator(".theme-switch-button:visible").first.click()
        seen.add(page.evaluate(THEME))
    assert seen == {"light", "dark"}
    chosen = page.evaluate(THEME)
    page.goto("/book/notation.html")
    assert page.evaluate(THEME) == chosen


def test_keyboard_skips_to_the_text_and_answers_a_self_check(page):
    page.goto("/book/02_gates.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")

    in_check = "document.activeElement.closest('.self-check') !== null"
    while not page.evaluate(in_check):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement !== document.body"), "no self-check is reached"
    check = page.get_by_role("group", name="Check yourself", exact=True).first
    sign = "element => getComputedStyle(element.firstElementChild, '::before').content"
    for option in check.locator("details.choice").all():
        assert "○" in option.evaluate(sign)
        page.keyboard.press("Enter")
        right = "right" in option.get_attribute("class")
        verdict, mark = ("Right", "✓") if right else ("Not quite", "✗")
        assert option.get_by_text(f"{verdict}.", exact=True).is_visible()
        page.keyboard.press("Space")
        assert not option.get_by_text(f"{verdict}.", exact=True).is_visible()
        assert option.evaluate(sign) == f'"{mark}" / "{verdict}:"', "it keeps its sign when closed"
        page.keyboard.press("Tab")


SEARCHES = {  # what is searched for, and what the first results must name
    "candidate": "Notation",
    "σ": "Notation",
    "W_z": "Notation",
    "gru_step": "unrolled.gru_step",
    "from_torch": "unrolled.convert.from_torch",
    "check_finite": "unrolled.lab.finite.check_finite",
    "seq_lengths": "9. Lengths",
}


@pytest.mark.parametrize("how", ["http", "file"])
def test_search_finds_words_symbols_and_names_without_a_network(browser, book_server, how):
    home = book_server if how == "http" else BOOK.as_uri()
    context = browser.new_context(viewport=DESKTOP)
    problems = watch(context, home)
    page = context.new_page()
    for query, first in SEARCHES.items() if how == "http" else [("σ", "Notation")]:
        page.goto(f"{home}/search.html?q={quote(query)}")
        page.locator("#search-results .search-summary", has_text="finished").wait_for()
        found = page.locator("#search-results ul.search > li > a").all_inner_texts()
        assert any(title.startswith(first) for title in found[:8]), (query, found)
        page.wait_for_load_state("networkidle")  # it still fetches pages to quote from
    context.close()
    assert not problems, "\n".join(problems)
