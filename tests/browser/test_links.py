"""Every link, picture, script and preview of the built book leads somewhere. No browser needed."""

from __future__ import annotations

import html
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.browser.conftest import BOOK

pytestmark = pytest.mark.browser  # it reads the book that make test-browser builds

CODE = re.compile(r"(<script\b[^>]*>).*?</script>", re.DOTALL)  # what explorers write later
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
ATTRIBUTE = re.compile(r'\s(id|href|src)="([^"]*)"')
META = re.compile(r'<meta (?:name|property)="([^"]+)" content="([^"]*)"')


@dataclass
class Page:
    ids: Counter
    addresses: list[str]
    meta: dict[str, str]
    title: str
    canonical: str | None
    top_headings: int


def read(text: str) -> Page:
    text = CODE.sub(r"\1", COMMENT.sub("", text))
    found = [(name, html.unescape(value)) for name, value in ATTRIBUTE.findall(text)]
    canonical = re.search(r'<link rel="canonical" href="([^"]*)"', text)
    return Page(
        ids=Counter(value for name, value in found if name == "id"),
        addresses=[value for name, value in found if name != "id"],
        meta={name: html.unescape(content) for name, content in META.findall(text)},
        title=re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1],
        canonical=canonical and canonical[1],
        top_headings=len(re.findall(r"<h1\b", text)),
    )


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    """Every page of the book by its path, but not the one that only leads to the home page."""
    return {
        path.relative_to(BOOK).as_posix(): read(path.read_text(encoding="utf-8"))
        for path in sorted([*BOOK.glob("book/**/*.html"), BOOK / "search.html"])
    }


def test_links_anchors_pictures_and_scripts_lead_somewhere(pages):
    broken = []
    for name, page in pages.items():
        for address in sorted(set(page.addresses)):
            if urlsplit(address).scheme:
                continue
            file, anchor = urldefrag(address)
            path = posixpath.join(posixpath.dirname(name), unquote(file.split("?")[0]))
            target = posixpath.normpath(path) if file else name
            if not (BOOK / target).is_file():
                broken.append(f"{name}: {address}: no such file")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                broken.append(f"{name}: {address}: no such place on the page")
    assert len(pages) > 20 and not broken, "\n".join(broken)


def test_the_reference_leads_to_the_chapters_and_they_lead_back(pages):
    for name in [name for name in pages if name.startswith("book/api/")]:
        text = (BOOK / name).read_text(encoding="utf-8")
        chapters = set(re.findall(r'(?:Built|Introduced) in <a [^>]*href="\.\./(\w+\.html)"', text))
        assert chapters, f"{name} leads to no chapter: see unrolled_links.py"
        for chapter in chapters:
            back = f"{name.removeprefix('book/')}#unrolled."
            assert any(a.startswith(back) for a in pages[f"book/{chapter}"].addresses), chapter


def test_no_id_is_there_twice(pages):
    twice = [f"{n}: {i}" for n, page in pages.items() for i, times in page.ids.items() if times > 1]
    assert not twice, "\n".join(twice)


def test_every_page_says_what_it_is_and_no_two_the_same(pages):
    chapters = {name: page for name, page in pages.items() if name.startswith("book/")}
    for what in ("title", "description"):
        told = {n: p.title if what == "title" else p.meta.get(what) for n, p in chapters.items()}
        assert all(told.values()), [name for name in told if not told[name]]
        twice = [text for text, times in Counter(told.values()).items() if times > 1]
        assert not twice, twice
    assert {page.top_headings for page in chapters.values()} == {1}


def test_previews_show_the_cover_and_the_pages_own_address(pages):
    for name, page in pages.items():
        if page.canonical is not None and name != "search.html":
            assert page.canonical == page.meta["og:url"] and page.canonical.endswith(f"/{name}")
            site = page.canonical.removesuffix(name)
            assert page.meta["og:image"] == f"{site}_static/cover.png"
    assert (BOOK / "_static/cover.png").is_file()
    root, home = read((BOOK / "index.html").read_text(encoding="utf-8")), pages["book/index.html"]
    previewed = {name: text for name, text in home.meta.items() if not name.startswith("viewport")}
    assert root.meta.items() >= previewed.items() and root.canonical == home.canonical
