"""The whole book as one PDF, printed by Chromium from the built pages: `make pdf`.

The pages become chapters of one HTML document, so that links between them lead to places in the
PDF and the headings become its bookmarks. It is printed twice: the first time shows on which page
each chapter begins, and the second time the table of contents says so. What was printed is then
checked.
"""

from __future__ import annotations

import argparse
import logging
import posixpath
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import chromium, toc  # noqa: E402

BOOK = ROOT / "_build" / "html"
STYLE = Path(__file__).with_name("pdf.css")
TITLE = "Unrolled"
SUBTITLE = "Recurrent networks in JAX, from four equations to a complete library"
LINES = 60  # of code that fit on one page
WIDTH = 680  # CSS pixels between the margins of A4, as in pdf.css

# Equations that do not fit become smaller; what else sticks out is told.
FIT = """() => {
  for (const math of document.querySelectorAll('div.math')) {
    const wide = math.scrollWidth / math.clientWidth;
    if (wide > 1) math.style.fontSize = `${98 / wide}%`;
  }
  return [...document.querySelectorAll('article *')]
    .filter(e => e.checkVisibility() && e.clientWidth && !e.closest('.katex, span.math, svg'))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 ||
                 (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible'))
    .map(e => `${e.closest('article').id}: <${e.tagName.toLowerCase()} class="${e.className}"> ` +
              e.textContent.trim().slice(0, 60));
}"""
READY = """async () => {
  for (const image of document.images) image.loading = 'eager';
  await Promise.all([...document.images].map(image => image.decode()));
  await document.fonts.ready;
}"""


def anchor(page: str, place: str = "") -> str:
    """Return the id in the merged document of a page, or of a place on it."""
    return f"{page.removeprefix('book/').replace('/', '-')}--{place}" if place else f"page-{page}"


class Merger:
    """Turns pages into the articles of one document."""

    def __init__(self, pages: list[str]) -> None:
        self.pages = pages

    def article(self, page: str) -> Tag:
        """Return what a page says, with ids and addresses that hold in the merged document."""
        soup = BeautifulSoup((BOOK / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
        article = soup.select_one("article.bd-article")
        for extra in article.select(".headerlink, .toctree-wrapper"):
            extra.decompose()
        for element in article.select("[id]"):
            if not element.find_parent("svg"):
                element["id"] = anchor(page, element["id"])
        for link in article.select("a[href]"):
            target = self.target(page, link["href"])
            if target is None:
                link.unwrap()
            else:
                link["href"] = target
        for file in article.select("img[src], script[src]"):
            file["src"] = (BOOK / posixpath.dirname(page) / file["src"]).resolve().as_uri()
        for hint in article.select("details:not(.choice)"):
            hint["open"] = ""
        for code in article.select("code.later"):
            if int(re.search(r"--lines: (\d+)", code["style"])[1]) > LINES:
                code.find_parent(class_="cell_input")["class"].append("long")
        self.answers_at_the_end(soup, article)
        for caption in article.select("p > strong:first-child"):
            if caption.text.startswith("Figure "):
                caption.parent["class"] = "caption"
        article["id"] = anchor(page)
        return article

    def target(self, page: str, link: str) -> str | None:
        """Return where a link leads in the merged document, or None for pages left out of it."""
        if urlsplit(link).scheme:
            return link
        address, place = urldefrag(link)
        file = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(address)))
        name = file.removesuffix(".html") if address else page
        if name in self.pages:
            return f"#{anchor(name, unquote(place))}"
        if (BOOK / file).is_file():
            return None
        raise ValueError(f"{page}: {link} leads nowhere")

    def answers_at_the_end(self, soup: BeautifulSoup, article: Tag) -> None:
        """Number the self-checks; print what their options say after everything else."""
        checks = article.select(".self-check")
        if not checks:
            return
        end = soup.new_tag("section")
        end.append(soup.new_tag("h2", string="Answers to the self-checks"))
        for number, check in enumerate(checks, 1):
            check.find("strong").string = f"Check yourself ({number})."
            listed = soup.new_tag("ul")
            for choice in check.select("details.choice"):
                item = soup.new_tag("li")
                item.extend(list(BeautifulSoup(choice.summary.decode_contents(), "html.parser")))
                item.append(". ")
                for content in list(choice.contents):
                    if content is not choice.summary:
                        item.append(content.extract())
                listed.append(item)
            end.append(soup.new_tag("p", string=f"({number})"))
            end.append(listed)
        (article.section or article).append(end)


def chapters(parts: list[tuple[str, list[str]]]) -> list[tuple[str, list[tuple[str, Tag]]]]:
    """Return the parts, each with its pages as articles of one document."""
    merger = Merger([page for _, pages in parts for page in pages])
    return [(part, [(page, merger.article(page)) for page in pages]) for part, pages in parts]


def document(chapters: list[tuple[str, list[tuple[str, Tag]]]], numbers: dict[str, int]) -> str:
    """Return the merged document; `numbers` says on which page of the PDF each page begins."""
    contents = []
    for caption, articles in chapters:
        contents += [f"<h2>{caption}</h2>"] if caption else []
        contents += [
            f'<p><a href="#{article["id"]}">{article.h1.decode_contents()}</a>'
            f"<span>{numbers.get(page, '')}</span></p>"
            for page, article in articles
        ]
    return TEMPLATE.format(
        style=(BOOK / "_static/unrolled.css").as_uri(),
        print_style=STYLE.as_uri(),
        title=TITLE,
        subtitle=SUBTITLE,
        figure=(ROOT / "book/figures/unrolled.svg").read_text(encoding="utf-8"),
        about=about(),
        contents="\n".join(contents),
        articles="\n".join(str(article) for _, articles in chapters for _, article in articles),
    )


def about() -> str:
    """Return what the title page says about the edition."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/unrolled/__init__.py").read_text())[1]
    return (
        f"<p>{project['authors'][0]['name']}</p><p>Version {version}</p>"
        "<p>Text and figures: CC BY 4.0. Code: Apache License 2.0.</p>"
    )


TEMPLATE = """\
<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light" class="whole">
<head>
<meta charset="utf-8">
<title>{title}</title>
<link rel="stylesheet" href="{style}">
<link rel="stylesheet" href="{print_style}">
</head>
<body>
<header class="cover"><p class="title">{title}</p><p>{subtitle}</p>{figure}{about}</header>
<nav class="pages"><h1>Contents</h1>
{contents}
</nav>
<main class="bd-content"><div class="bd-article-container">
{articles}
</div></main>
</body>
</html>
"""


def print_pdf(browser: Browser, parts: list[tuple[str, list[str]]], output: Path) -> list[str]:
    """Write the PDF of some pages; return what sticks out of the paper."""
    output.parent.mkdir(parents=True, exist_ok=True)
    merged = output.with_suffix(".html")
    context = browser.new_context(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(f"exception: {error.error}"))
    context.on("requestfailed", lambda request: problems.append(f"missing: {request.url}"))
    numbers: dict[str, int] = {}
    pages = [page for _, pages in parts for page in pages]
    articles = chapters(parts)
    for _ in range(2):
        merged.write_text(document(articles, numbers), encoding="utf-8")
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.emulate_media(media="print")
        page.goto(merged.as_uri())
        page.evaluate(READY)
        problems += page.evaluate(FIT)
        page.pdf(
            path=output, prefer_css_page_size=True, outline=True, tagged=True, print_background=True
        )
        page.close()
        reader = PdfReader(output)
        places = dict(destinations(reader))
        numbers = {name: places[anchor(name)] for name in pages if anchor(name) in places}
    context.close()
    titles = headings(merged.read_text(encoding="utf-8"))
    merged.unlink()
    name_bookmarks(output, titles)
    return sorted(set(problems)) + check(output, pages)


def headings(merged: str) -> list[str]:
    """Return the text of every heading, equations as their TeX."""
    soup = BeautifulSoup(merged, "html.parser")
    for equation in soup.select(".katex-html, semantics > :not(annotation)"):
        equation.decompose()
    return [" ".join(h.text.split()) for h in soup.find_all(re.compile("h[1-6]"))]


def name_bookmarks(output: Path, titles: list[str]) -> None:
    """Write the headings into the bookmarks that Chromium made of them.

    By itself it leaves out equations, and doubles the first line of a heading that begins a page.
    """
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium miscounts its objects by one
    writer = PdfWriter(clone_from=output)
    bookmarks = list(walk(writer.root_object["/Outlines"]))
    assert len(bookmarks) == len(titles), "Chromium made other bookmarks than there are headings"
    for bookmark, title in zip(bookmarks, titles):
        bookmark[NameObject("/Title")] = TextStringObject(title)
    writer.add_metadata({"/Title": TITLE, "/Subject": SUBTITLE, "/Author": f"The {TITLE} authors"})
    writer.write(output)


def walk(item: DictionaryObject) -> Iterator[DictionaryObject]:
    """Yield the bookmarks below one, in the order of the text."""
    child = item.get("/First")
    while child is not None:
        yield child.get_object()
        yield from walk(child.get_object())
        child = child.get_object().get("/Next")


def check(output: Path, pages: list[str]) -> list[str]:
    """Return what is wrong with the PDF: pages, links or text that are missing."""
    reader = PdfReader(output)
    places = {name for name, _ in destinations(reader)}
    problems = [f"{page} is missing" for page in pages if anchor(page) not in places]
    for number, page in enumerate(reader.pages, 1):
        pieces = re.findall(rb"T[jJ]\b", page.get_contents().get_data())
        if len(pieces) < 8 and page.extract_text().strip() in ("", str(number)):
            problems.append(f"page {number} is empty")
        for link in page.get("/Annots") or []:
            target = link.get_object().get("/Dest")
            if target is not None and str(target).lstrip("/") not in places:
                problems.append(f"page {number}: a link to {target} leads nowhere")
            action = link.get_object().get("/A", {})
            if str(action.get("/URI", "")).startswith("file:"):
                problems.append(f"page {number}: a link to {action['/URI']}")
    return problems


def destinations(reader: PdfReader) -> Iterator[tuple[str, int]]:
    """Yield the named places of a PDF, each with its page number, from 1."""
    for name, place in reader.named_destinations.items():
        yield name.lstrip("/"), reader.get_destination_page_number(place) + 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the built book as a PDF.")
    parser.add_argument("--pages", nargs="+", metavar="NAME", help="such as 02_gates or api/gru")
    parser.add_argument("--output", type=Path, default=ROOT / "_build/unrolled.pdf")
    arguments = parser.parse_args()
    chosen = (
        [("", [f"book/{page}" for page in arguments.pages])] if arguments.pages else toc.parts()
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find())
        problems = print_pdf(browser, chosen, arguments.output.absolute())
        browser.close()
    length = len(PdfReader(arguments.output).pages)
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {length} pages, {size:.1f} MB", *problems, sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
