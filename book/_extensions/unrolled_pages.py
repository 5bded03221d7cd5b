"""Light pages: one style sheet with the rules that are used, small icon fonts, sized pictures.

The theme brings 0.45 MB of style sheets and 0.3 MB of icon fonts, of which the book uses a tenth.
When all pages are written, `finish` puts what is used into `_static/unrolled.css` and deletes the
rest. The weights of a large network wait in a file of their own, so that the text above them need
not. Every page also gets a description and, when the book's address is known, a preview for links
to it.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import posixpath
import re
import shutil
from functools import cache, partial
from itertools import count, pairwise
from pathlib import Path

import tinycss2
from docutils import nodes
from fontTools import subset
from PIL import Image
from sphinx.application import Sphinx

STYLE = "unrolled.css"
THEME_STYLES = ["basic.css", "styles/pydata-sphinx-theme.css"]  # named in the theme's templates
NOT_NEEDED = [
    "**/*.map",
    "*webpack-macros.html",
    "locales",
    "scripts/fontawesome.js*",
    "styles",
    "vendor/fontawesome",
]
DESCRIPTION_LENGTH = 160
# What both colour schemes of the code show like plain text: more than half of all its elements.
PLAIN = re.compile(r'<span class="(?:n|nn|nx|p|w)">([^<]*)</span>')
CODE = re.compile(
    r'(?P<start><div class="highlight-python notranslate"><div class="highlight"><pre>)'
    r"(?:<span></span>)?(?P<code>.*?)</pre>",
    re.DOTALL,
)
HIGHLIGHTED = re.compile(r'<div class="([^"]*highlight-[^"]*)"><div class="highlight"><pre>')
PRINTED = re.compile(
    r'<div class="(output stream) ([^"]*"><div class="highlight"><pre.*?)</pre>', re.S
)
COLUMN = re.compile(r"\S {2,}\S")
JAXPR = re.compile(r"^\{ lambda ", re.MULTILINE)
# A measured value with its sign, and a power of ten: text is not wrapped inside them.
NUMBER = re.compile(r"≈ [^\s<]+|[\d.]+e[+-]\d+(?=[^<>]*(?:<|$))")
PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)
INDENTED = re.compile(r"^( +(?:\[.\] )?)\S.*$", re.MULTILINE)
PERCENT = re.compile(r"(?<=\d) (?=%)")
NOT_SEEN = re.compile(r'<span class="katex-mathml">.*?</math></span>|<[^>]*>', re.DOTALL)
# An explorer with more numbers than the rest of its page has text, and the script behind it.
HEAVY_EXPLORER = re.compile(
    r'<(?P<tag>unrolled-\w+)(?P<start>[^>]*) data-measured="(?P<measured>[^"]{100000,})"'
    r"(?P<end>[^>]*>.*?</(?P=tag)>\s*)<script>(?P<script>.*?)</script>",
    re.DOTALL,
)
LONG_NAMES = re.compile(r"<(td|li)>.*?</\1>", re.DOTALL)  # where they are squeezed
LITERAL = re.compile(r'(?<=<span class="pre">)[^<]+')
INSIDE_A_NAME = re.compile(r"(?<=.{4}[._(\[])(?=[\w&].{3})")  # &: a quotation mark
IMAGE = re.compile(r'<img (?=[^>]*\bsrc="(?:\.\./)+(?P<file>_images/[^"]+)")[^>]*>')


def page_context(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Give `layout.html` what it asks for, and the pictures their sizes."""
    styles = [str(style.filename).removeprefix("_static/") for style in context["css_files"]]
    app.builder.unrolled_styles = THEME_STYLES + styles
    context["style"] = STYLE
    context["site"] = app.config.html_baseurl
    context["description"] = describe(doctree)
    context["metatags"] = ""  # the template has the only one it would hold
    if "body" in context:
        numbers = count()
        body = PARAGRAPH.sub(sized_text, CODE.sub(lighter, context["body"]))
        body = IMAGE.sub(lambda img: sized(app, img, next(numbers)), body)
        body = LONG_NAMES.sub(breakable, HIGHLIGHTED.sub(named, PRINTED.sub(columns, body)))
        context["body"] = HEAVY_EXPLORER.sub(partial(later, app, page), body)


def lighter(block: re.Match[str]) -> str:
    """Return a block of code without marks that colour nothing, and with its size for book.css."""
    code = PLAIN.sub(r"\1", block["code"])
    lines = html.unescape(re.sub("<[^>]*>", "", code)).splitlines()
    size = f"--lines: {len(lines)}; --columns: {max(map(len, lines), default=0)}"
    return f'{block["start"]}<code class="later" style="{size}">{code}</code></pre>'


def named(block: re.Match[str]) -> str:
    """Return the start of a block of code, named: the keyboard stops there where it is wide."""
    name = "Output" if "output" in block[1].split() else "Code"
    return f'{block[0][:-1]} role="group" aria-label="{name}">'


def columns(output: re.Match[str]) -> str:
    """Mark what a cell printed as a table: it keeps its lines on a phone, where text is wrapped."""
    text = html.unescape(re.sub("<[^>]*>", "", output[2].partition(">")[2]))
    table = sum(bool(COLUMN.search(line.strip())) for line in text.splitlines()) > 1
    if table or JAXPR.search(text):
        return f'<div class="{output[1]} columns {output[2]}</pre>'
    return f'<div class="{output[1]} {INDENTED.sub(hanging, NUMBER.sub(unbroken, output[2]))}</pre>'


def hanging(line: re.Match[str]) -> str:
    """Return an indented line that goes on under its own beginning, where it has to be wrapped."""
    return f'<span class="hanging" style="--indent: {len(line[1])}ch">{line[0]}</span>'


def unbroken(number: re.Match[str]) -> str:
    return f'<span class="no-break">{number[0]}</span>'


def breakable(cell: re.Match[str]) -> str:
    """Return a table's cell or a list's item whose long names a phone may break."""
    return LITERAL.sub(lambda name: INSIDE_A_NAME.sub("<wbr>", name[0]), cell[0])


def sized_text(paragraph: re.Match[str]) -> str:
    """Return a paragraph with the number of its characters for book.css, each % by its number."""
    text = html.unescape(NOT_SEEN.sub("", paragraph[1]))
    return f'<p style="--chars: {len(text)}">{PERCENT.sub("&nbsp;", paragraph[1])}</p>'


def later(app: Sphinx, page: str, explorer: re.Match[str]) -> str:
    """Return an explorer whose numbers and script come from a file, once the page has been read."""
    numbers = json.dumps(html.unescape(explorer["measured"]))
    tag = explorer["tag"]
    code = f'document.querySelector("{tag}").dataset.measured = {numbers};\n{explorer["script"]}'
    name = f"_static/explorers/{tag}-{hashlib.sha256(code.encode()).hexdigest()[:8]}.js"
    file = Path(app.outdir) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob(f"{tag}-*.js"):
        old.unlink()
    file.write_text(code, encoding="utf-8")
    source = "../" * page.count("/") + name
    return f'<{tag}{explorer["start"]}{explorer["end"]}<script defer src="{source}"></script>'


def describe(doctree: nodes.document | None) -> str:
    """Return the first paragraph of a page, cut at a word."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(paragraph.astext().split())
        if len(text) > 40 and not any(paragraph.findall(nodes.math)):
            if len(text) <= DESCRIPTION_LENGTH:
                return text
            return text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:–") + " …"
    return ""


def sized(app: Sphinx, img: re.Match[str], number: int) -> str:
    """Say how large a picture is before it arrives; all but the first load when they come near."""
    source = Path(app.outdir) / img["file"]
    for original, name in app.builder.images.items():
        if name == source.name:
            source = Path(app.srcdir) / original
    size = picture_size(source)
    if size is None:
        return img[0]
    width, height = size
    lazy = ' loading="lazy"' if number else ""
    return f'<img width="{width}" height="{height}" decoding="async"{lazy} {img[0][5:]}'


@cache
def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height, or None for what has none in pixels, as an SVG, or is no picture."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, Image.DecompressionBombError):
        return None


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Write the style sheet and the icon fonts, and delete what no page asks for."""
    styles = getattr(app.builder, "unrolled_styles", None)
    if exception is not None or app.builder.name != "html" or styles is None:
        return
    static = Path(app.outdir) / "_static"
    pages = "".join(path.read_text(encoding="utf-8") for path in Path(app.outdir).rglob("*.html"))
    scripts = set(re.findall(r'<script[^>]* src="(?:\.\./)*(_static/[^"?]+)', pages))
    code = [(Path(app.outdir) / name).read_text(encoding="utf-8") for name in sorted(scripts)]
    used = set(re.findall(r"[\w-]+", " ".join([pages, *code])))
    style = "\n".join(only_used(read_rules(static, name), used) for name in styles)
    (static / STYLE).write_text(shrink_icons(static, style), encoding="utf-8")
    for pattern in NOT_NEEDED:
        for path in list(static.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_rules(static: Path, name: str) -> list:
    """Return the rules of a style sheet as they have to read in `_static`, fonts as woff2 only."""
    text = (static / name).read_text(encoding="utf-8")
    text = re.sub(r",\s*url\([^)]*\)\s*format\([\"'](?:woff|truetype)[\"']\)", "", text)
    relative = re.compile(r"url\(([\"']?)(?!data:|#)([^)\"']+)")

    def from_static(url: re.Match[str]) -> str:
        return f"url({url[1]}{posixpath.normpath(posixpath.join(posixpath.dirname(name), url[2]))}"

    return tinycss2.parse_stylesheet(relative.sub(from_static, text), True, True)


def only_used(rules: list, used: set[str]) -> str:
    """Return the rules that can match something: whose classes and ids are named somewhere."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = [s for s in split_at_commas(rule.prelude) if names(s) <= used]
            if selectors:
                prelude = ",".join(tinycss2.serialize(selector).strip() for selector in selectors)
                kept.append(f"{prelude}{{{tinycss2.serialize(rule.content).strip()}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = only_used(tinycss2.parse_rule_list(rule.content, True, True), used)
            if inner:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword not in ("charset", "import"):
            kept.append(rule.serialize())
        elif rule.type == "error":
            raise ValueError(f"a style sheet cannot be read: {rule.message}")
    return "".join(kept)


def split_at_commas(tokens: list) -> list[list]:
    selectors: list[list] = [[]]
    for token in tokens:
        if token == ",":
            selectors.append([])
        else:
            selectors[-1].append(token)
    return selectors


def names(selector: list) -> set[str]:
    """Return the classes and ids that an element must have to match, :not() and :is() aside."""
    found = {token.value for token in selector if token.type == "hash"}
    for dot, token in pairwise(selector):
        if dot == "." and token.type == "ident":
            found.add(token.value)
    return found


def shrink_icons(static: Path, style: str) -> str:
    """Keep the icons that the style sheet names, as small fonts beside it.

    The fonts' licence reserves their name for the whole ones.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    icons = {ord(icon) for icon in re.findall("[\ue000-\uf8ff]", style)}
    icons |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", style)}
    for font in re.findall(r"url\((vendor/fontawesome/[^)]+)\.woff2\)", style):
        small = f"{Path(font).name}.woff"
        glyphs = subset.load_font(str(static / f"{font}.ttf"), subset.Options())
        subsetter = subset.Subsetter(
            subset.Options(flavor="woff", layout_features=[], hinting=False)
        )
        subsetter.populate(unicodes=icons)
        subsetter.subset(glyphs)
        for record in glyphs["name"].names:
            if record.nameID in (1, 3, 4, 6):
                record.string = f"UnrolledIcons-{Path(font).name}"
        glyphs.flavor = "woff"
        glyphs.save(static / small)
        style = style.replace(f'url({font}.woff2) format("woff2")', f'url({small}) format("woff")')
    return style


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", page_context, priority=900)  # when all style sheets are known
    app.connect("build-finished", finish, priority=900)  # when all pages are written
    return {"parallel_read_safe": True, "parallel_write_safe": True}
