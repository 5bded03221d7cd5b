"""What is decided while the book is built: where it leads, what is a link, what can be shown."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import docutils.nodes
import docutils.utils
import nbformat
import pytest

import unrolled

BOOK = Path(__file__).resolve().parents[1] / "book"
EXTENSIONS = BOOK / "_extensions"
CHAPTERS = sorted(BOOK.glob("[0-9]*.ipynb"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def book():
    return load("unrolled_book")


@pytest.fixture
def find_repository(book):
    return book.find_repository


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a declared repository, outside of git and with no variable set."""
    monkeypatch.delenv("BOOK_REPO_URL", raising=False)
    monkeypatch.delenv("BOOK_SITE_URL", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    declare(tmp_path, "https://github.com/declared/book")
    return tmp_path


def declare(folder, address):
    text = f'[project]\nname = "unrolled"\n[project.urls]\nRepository = "{address}"\n'
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def add_remote(folder, address):
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", address], check=True)


def test_declared_repository(folder, find_repository):
    assert find_repository(folder) == "https://github.com/declared/book"


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/alice/gru-book",
        "https://github.com/alice/gru-book.git",
        "git@github.com:alice/gru-book.git",
        "ssh://git@github.com/alice/gru-book.git",
        "https://name:secret@github.com/alice/gru-book.git",
    ],
)
def test_remote_comes_before_the_declared_repository(folder, find_repository, remote):
    add_remote(folder, remote)
    assert find_repository(folder) == "https://github.com/alice/gru-book"


def test_variable_comes_first(folder, find_repository, monkeypatch):
    add_remote(folder, "https://github.com/alice/gru-book")
    monkeypatch.setenv("BOOK_REPO_URL", "https://github.com/bob/book/")
    assert find_repository(folder) == "https://github.com/bob/book"


@pytest.mark.parametrize("remote", ["/srv/git/book.git", "https://example.org/alice/book.git"])
def test_remote_elsewhere_is_passed_over(folder, find_repository, remote):
    add_remote(folder, remote)
    assert find_repository(folder) == "https://github.com/declared/book"


def test_no_repository_at_all(folder, find_repository):
    declare(folder, "")
    assert find_repository(folder) is None


@pytest.mark.parametrize(
    ("remote", "site"),
    [
        ("https://github.com/Alice/gru-book", "https://alice.github.io/gru-book/"),
        ("https://github.com/alice/alice.github.io", "https://alice.github.io/"),
    ],
)
def test_the_site_is_the_repositorys_own(folder, book, monkeypatch, remote, site):
    add_remote(folder, remote)
    assert book.find_site(folder) == site
    monkeypatch.setenv("BOOK_SITE_URL", "https://books.example.org/gru")
    assert book.find_site(folder) == "https://books.example.org/gru/"


def test_no_site_without_a_repository(folder, book):
    declare(folder, "")
    assert book.find_site(folder) is None


def test_equations_become_html_and_mathml_and_a_mistake_in_one_is_told():
    typeset = load("unrolled_math").typeset
    equation = typeset(r"h_t = \tanh(W x_t)")
    assert 'class="katex"' in equation and "<msub><mi>h</mi><mi>t</mi></msub>" in equation
    assert "katex-display" in typeset("z", display=True)
    with pytest.raises(ValueError, match="Undefined control sequence"):
        typeset(r"\tahn(x)")


def test_the_height_of_an_equation_is_known_before_it_is_drawn():
    extension = load("unrolled_math")
    one, two = r"a &= b", r"a &= b \\ c &= d"
    heights = [
        max(
            map(
                float,
                extension.HEIGHT.findall(
                    extension.typeset(rf"\begin{{aligned}}{tex}\end{{aligned}}", True)
                ),
            )
        )
        for tex in (one, two)
    ]
    assert 1 < heights[0] < heights[1]


def test_a_long_name_in_a_table_may_go_on_in_the_next_line():
    pages = load("unrolled_pages")
    cell = '<td><p><code><span class="pre">{}</span></code> at h_t.x</p></td>'
    table = cell.format("jax.lax.while_loop") + cell.format("params[&quot;Wz&quot;]")
    table += cell.format("jax.jit(f)") + cell.format("outputs_h")  # no piece is too short
    broken = cell.format("jax.lax.<wbr>while_<wbr>loop")
    broken += cell.format("params[<wbr>&quot;Wz&quot;]")
    broken += cell.format("jax.jit(f)") + cell.format("outputs_h")
    assert pages.LONG_NAMES.sub(pages.breakable, table) == broken


HANGING = '<span class="hanging" style="--indent: {}ch">'


@pytest.mark.parametrize(
    "printed, shown, table",
    [
        ("error: &lt; 1e-6", 'error: &lt; <span class="no-break">1e-6</span>', False),
        ("loss ≈ 0.88, done", 'loss <span class="no-break">≈ 0.88,</span> done', False),
        ("see layers.py, e-mail 3-4", "see layers.py, e-mail 3-4", False),
        ("a  1\nb  2e-3", "a  1\nb  2e-3", True),
        ("ok\n  [x] one", f"ok\n{HANGING.format(6)}  [x] one</span>", False),
        ("so:\n    an error\n", f"so:\n{HANGING.format(4)}    an error</span>\n", False),
        (
            "{ lambda ; a:f32[]. let\n    b = sin a\n",
            "{ lambda ; a:f32[]. let\n    b = sin a\n",
            True,
        ),
    ],
)
def test_what_is_printed_is_not_wrapped_inside_a_number_a_table_or_a_program(printed, shown, table):
    pages = load("unrolled_pages")
    start = (
        '<div class="output stream highlight-myst-ansi notranslate"><div class="highlight"><pre>'
    )
    marked = start.replace("stream ", "stream columns ") if table else start
    body = pages.PRINTED.sub(pages.columns, f"{start}{printed}</pre>")
    assert body == f"{marked}{shown}</pre>"


def test_brackets_and_commas_stay_with_their_own_equation_where_the_same_comma_stands_before():
    nodes = docutils.nodes
    page = docutils.utils.new_document("page")
    parts = [nodes.literal("", "W"), nodes.Text(", "), nodes.literal("", "U"), nodes.Text(" are ")]
    parts += [nodes.math("", "4H"), nodes.Text(", "), nodes.math("", "D"), nodes.Text(" (")]
    parts += [nodes.math("", "H"), nodes.Text(" is one)")]
    page += nodes.paragraph("", "", *parts)
    load("unrolled_math").keep_punctuation(None, page, "page")
    assert page.astext() == "W, U are 4H, D (H is one)"
    assert [unit.astext() for unit in page.findall(nodes.inline)] == ["4H,", "(H"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapters_equations_and_figures_are_numbered_in_order(chapter):
    number = int(chapter.name[:2])
    cells = nbformat.read(chapter, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    equations = re.findall(r"\$\$.+?\$\$", text, re.DOTALL)
    tags = [re.findall(r"\\tag\{(.*?)\}", equation) for equation in equations]
    assert tags == [[f"{number}.{k}"] for k in range(1, len(equations) + 1)], "end with \\tag{n.k}"
    figures = re.findall(r"\*\*Figure (\d+\.\d+)\.\*\*", text)
    assert figures == [f"{number}.{k}" for k in range(1, len(figures) + 1)]


def test_a_mention_leads_to_what_is_numbered_and_a_wrong_one_is_passed_over():
    extension = load("unrolled_numbers")
    page = docutils.utils.new_document("page")
    strong = docutils.nodes.strong("", "Figure 2.1.")
    caption = docutils.nodes.paragraph("", "", strong, docutils.nodes.Text(" A gate."))
    mention = docutils.nodes.paragraph(
        "", "As Figure 2.1 and equation 2.3 show, unlike figure 2.9."
    )
    equation = docutils.nodes.math_block(r"z \tag{2.3}", r"z \tag{2.3}")
    page += [caption, equation, mention]

    app = SimpleNamespace(env=SimpleNamespace(docname="02"), builder=SimpleNamespace())
    app.builder.get_relative_uri = lambda here, there: f"{there}.html"
    extension.collect(app, page)
    assert caption["ids"] == ["figure-2-1"] and equation["ids"] == ["equation-2-3"]
    extension.lead_to_the_numbers(app, page, "03")
    links = [(link.astext(), link["refuri"]) for link in page.findall(docutils.nodes.reference)]
    assert links == [
        ("Figure 2.1", "02.html#figure-2-1"),
        ("equation 2.3", "02.html#equation-2-3"),
    ]
    assert mention.astext() == "As Figure 2.1 and equation 2.3 show, unlike figure 2.9."
    extension.forget(app, app.env, "02")
    assert extension.numbers(app.env) == {}


def output(kind, **what):
    return nbformat.v4.new_output(kind, **what)


def shown(**data):
    return output(
        "display_data", data={kind.replace("_", "/"): text for kind, text in data.items()}
    )


TINY_BOOK = """\
format: jb-book
root: book/index
parts: [{caption: Chapters, chapters: [file: book/02_gates]}]
"""
# Cells that a reader may add to a chapter: code with what it has put out, and text.
OWN_CODE = {
    "import warnings; warnings.warn('look')": output("stream", name="stderr", text="UserWarning"),
    "1 / 0": output("error", ename="ZeroDivisionError", evalue="no", traceback=["traceback"]),
    "%time what???": shown(application_unknown="x"),
    "": shown(image_png="bm90IGEgcGljdHVyZQ=="),
    "drawing": shown(**{"image_svg+xml": '<svg xmlns="http://www.w3.org/2000/svg"/>'}),
    "formula": shown(text_latex=r"$\frca{1}{2}$"),
    "words": shown(text_markdown="# Heading\n\n[dead](gone.md)"),
    "markup": shown(text_html="<unrolled-gates><script>bad(</script><div>"),
}
OWN_TEXT = [
    "",
    "See Figure 99.1 and equation 7.9, and Figure 2.1.",
    "**Figure 2.1.** Mine.\n\n$$y \\tag{2.1}$$",
    "# A title\n\n###### And at once a small one\n\n# 2. Gates",
    r"$\frca{1}{2}$ for $5 or \(x\), $$\begin{x} 1$$ and one more $$",
    "$$z$$ (label)\n\n$$z$$ (label)",
    "[one](gone.md) [two](#gone) ![three](gone.png) ![four](attachment:gone.png) [^five]",
    "{cite}`nobody` {what}`is` {doc}`gone`\n\n```{what}\n```\n\n:::{note}",
    "(place)=\n## A\n\n(place)=\n## A\n\n| a |\n|---|---|\n<table><tr> & <",
    "**Check yourself.** Why?",
    '- **Check yourself.** Why?\n\n<details class="choice"><summary>a</summary>',
]


def test_whatever_cells_a_reader_adds_the_book_is_built(tmp_path):
    """Warnings do not stop it, and the page shows what can be shown."""
    for name in ["_config.yml", "pyproject.toml", "src", "book/static", "book/references.bib"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(BOOK.parent / name)
    for name in ["_extensions", "_templates"]:
        (tmp_path / "book" / name).symlink_to(BOOK / name)
    (tmp_path / "_toc.yml").write_text(TINY_BOOK, encoding="utf-8")
    (tmp_path / "book/index.md").write_text("# A book\n\nWords.\n", encoding="utf-8")
    cell = nbformat.v4.new_markdown_cell
    chapter = nbformat.v4.new_notebook(
        cells=[
            cell("# 2. Gates\n\n**Figure 2.1.** A gate.\n\n$$x \\tag{2.1}$$"),
            *(nbformat.v4.new_code_cell(c, outputs=[put_out]) for c, put_out in OWN_CODE.items()),
            *map(cell, OWN_TEXT),
            nbformat.v4.new_raw_cell("<b>raw"),
            cell("## The end\n\nIs reached, after `RNN`."),
        ]
    )
    (tmp_path / "book/02_gates.ipynb").write_text(json.dumps(chapter), encoding="utf-8")

    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-n", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "_build/warned").is_file()
    page = (tmp_path / "_build/html/book/02_gates.html").read_text(encoding="utf-8")
    for words in (
        "UserWarning",
        ">traceback<",
        "See Figure 99.1 and",
        r"\frca{1}{2}",
        "Is reached",
    ):
        assert words in page, words
    assert page.count('id="figure-2-1"') == page.count('id="equation-2-1"') == 1
    assert '<a class="reference internal" href="#figure-2-1">Figure 2.1</a>' in page


def test_only_the_rules_that_can_match_are_published():
    pages = load("unrolled_pages")
    rules = """
        p, .gone > a { color: red }
        .here:not(.gone):is(.gone, b) { color: green }
        .here.gone, #gone { color: blue }
        @media print { .gone { color: red } }
        @media (width < 9em) { .here { color: red } .gone { color: red } }
        @font-face { font-family: X }
    """
    kept = pages.only_used(pages.tinycss2.parse_stylesheet(rules, True, True), {"here"})
    assert kept == (
        "p{color: red}.here:not(.gone):is(.gone, b){color: green}"
        "@media (width < 9em) {.here{color: red}}@font-face { font-family: X }"
    )


def test_every_public_name_belongs_to_a_chapter_that_exists():
    links = load("unrolled_links")
    for name in unrolled.__all__:
        assert links.built_in(name), f"which chapter builds {name}? Say so in unrolled_links.py"
    assert links.built_in("convert.from_torch") == "06_cells"
    assert links.built_in("convert.to_lstm") == "07_lstm"
    assert links.built_in("scan.Weights") == "11_speed"
    assert links.built_in("RNN.__call__") is None and links.built_in("gru") is None
    for chapter in [*links.CHAPTERS, *links.INTRODUCED.values()]:
        assert (EXTENSIONS.parent / f"{chapter}.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gru_step", "Built in :doc:`chapter 2 </book/02_gates>`."),
        ("lab.finite.check_finite", "Introduced in :doc:`chapter 5 </book/05_training>`."),
    ],
)
def test_the_reference_says_where_a_name_comes_from(name, said):
    lines = ["What it does.", "", "Args:"]
    load("unrolled_links").name_the_chapter(None, "function", f"unrolled.{name}", None, None, lines)
    assert lines == ["What it does.", "", said, "", "Args:"]


def test_an_explorer_heavier_than_its_page_waits_in_a_file(tmp_path):
    pages = load("unrolled_pages")
    app = SimpleNamespace(outdir=tmp_path)
    explorer = (
        '<unrolled-x class="c" data-measured="{}"><p>words</p></unrolled-x>\n<script>{}</script>'
    )
    light = explorer.format("[&quot;1&quot;]", "code()")
    assert not pages.HEAVY_EXPLORER.search(light)
    for numbers in ("1" * 100_000, f"[&quot;{'2' * 100_000}&quot;]"):
        (heavy,) = pages.HEAVY_EXPLORER.finditer(light + explorer.format(numbers, "more()"))
        page = pages.later(app, "book/page", heavy)
        (file,) = (tmp_path / "_static/explorers").iterdir()  # an old one is gone
        assert page == (
            '<unrolled-x class="c"><p>words</p></unrolled-x>\n'
            f'<script defer src="../_static/explorers/{file.name}"></script>'
        )
        first, rest = file.read_text(encoding="utf-8").split("\n")
        start = 'document.querySelector("unrolled-x").dataset.measured = '
        numbers = numbers.replace("&quot;", '"')
        assert json.loads(first.removeprefix(start).removesuffix(";")) == numbers
        assert rest == "more()"
