"""A PDF of two pages: its links, bookmarks and text. `make pdf` checks the whole book like this."""

from __future__ import annotations

import pytest
from pypdf import PdfReader

from tools import pdf

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def printed(browser, tmp_path_factory):
    output = tmp_path_factory.mktemp("pdf") / "two.pdf"
    pages = ["book/notation", "book/solutions/03_scan"]
    assert pdf.print_pdf(browser, [("", pages)], output) == []
    return PdfReader(output)


def test_pages_follow_each_other_and_the_contents_say_where(printed):
    text = [page.extract_text() for page in printed.pages]
    begins = dict(pdf.destinations(printed))
    assert "Contents" in text[1] and "Notation" in text[begins["page-book/notation"] - 1]
    last = begins["page-book/solutions/03_scan"]
    assert f"Solutions to chapter 3 {last}" in " ".join(text[1].split())
    assert "Solutions to chapter 3" in text[last - 1]


def test_bookmarks_are_the_headings_with_their_equations(printed):
    titles = [str(item.title) for item in printed.outline if not isinstance(item, list)]
    assert titles == ["Contents", "Notation", "Solutions to chapter 3"]


def test_every_line_of_code_is_there(printed):
    text = "".join("".join(page.extract_text() for page in printed.pages).split())
    solutions = pdf.BeautifulSoup(
        (pdf.BOOK / "book/solutions/03_scan.html").read_text(encoding="utf-8"), "html.parser"
    )
    lines = [line for pre in solutions.select(".cell_input pre") for line in pre.text.splitlines()]
    missing = [line for line in lines if "".join(line.split()) not in text]
    assert lines and not missing


def test_a_link_that_leads_nowhere_is_noticed(printed):
    merger = pdf.Merger(["book/notation"])
    assert merger.target("book/notation", "index.html") is None
    assert merger.target("book/api/gru", "../notation.html#sizes") == "#notation--sizes"
    with pytest.raises(ValueError, match="nowhere"):
        merger.target("book/notation", "gone.html")


def test_pictures_and_scripts_are_found_from_where_the_merged_document_lies():
    article = pdf.Merger(["book/14_language"]).article("book/14_language")
    sources = [element["src"] for element in article.select("[src]")]
    assert any(source.endswith(".js") for source in sources)
    assert all(source.startswith("file:") for source in sources)
