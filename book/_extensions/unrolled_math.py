"""Equations typeset while the book is built: KaTeX runs here, and no reader's machine has to.

Each one becomes HTML for the eye and MathML for screen readers. An equation that KaTeX cannot read
is a warning that names its place, and the page shows its TeX.
"""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path

import quickjs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

KATEX = Path(__file__).resolve().parents[1] / "static/vendor/katex/katex.min.js"
TYPESET = """(tex, displayMode) => JSON.stringify(
    katex.renderToString(tex, {displayMode, throwOnError: true, strict: 'error'}))"""
TAG = re.compile(r"\\tag\{(.*?)\}")
BRACKET = re.compile(r"[(\[‘“]+$")
PUNCTUATION = re.compile(r"[,.;:!?)\]’”]+")
HEIGHT = re.compile(r'class="katex-strut" style="height:([\d.]+)em')
# KaTeX writes these, the last beside an equation's number; none is valid.
NOT_HTML = re.compile(r' columnspacing=""|height:-[\d.]+em;|(?<=<mtd) width="50%"')

logger = logging.getLogger(__name__)


@cache
def _katex():
    context = quickjs.Context()
    context.eval(KATEX.read_text(encoding="utf-8"))
    return context.eval(TYPESET)


@cache
def typeset(tex: str, display: bool = False) -> str:
    """Return an equation as HTML.

    Raises:
      ValueError: KaTeX cannot read it; the message says where it stopped.
    """
    try:
        equation = json.loads(_katex()(tex, display))
    except quickjs.JSException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return NOT_HTML.sub("", equation)


def _typeset(node: nodes.math | nodes.math_block, tex: str, display: bool) -> str:
    try:
        return typeset(tex, display)
    except ValueError as error:
        logger.warning("cannot typeset %r: %s", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{_typeset(node, node.astext(), False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    tex = "\n".join(line for line in node.astext().splitlines() if line.strip())
    if r"\\" in tex and not node.get("nowrap") and not tex.startswith(r"\begin"):
        tex = rf"\begin{{split}}{tex}\end{{split}}"
    # The keyboard can scroll what the mouse can; which equations are wide depends on the window.
    equation = _typeset(node, tex, True)
    height = max(map(float, HEIGHT.findall(equation)), default=1)  # book.css tells what it is for
    style = f"--em: {height:.2f}"
    number = TAG.search(tex)
    label = f"Equation {number[1]}" if number else "Equation"
    stop = {"TABINDEX": "0", "ROLE": "group", "ARIA-LABEL": label}
    self.body.append(self.starttag(node, "div", CLASS="math", STYLE=style, **stop))
    self.body.append(equation)
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def keep_punctuation(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let no line break between an equation and the bracket before it, the comma after it."""
    for math in list(doctree.findall(nodes.math)):
        line = math.parent
        # By place: `index` and `replace` look for an equal text, and may find an earlier ", ".
        place = next(i for i, node in enumerate(line.children) if node is math)
        before, _, after = [None, *line.children, None][place : place + 3]
        bracket = isinstance(before, nodes.Text) and BRACKET.search(before)
        mark = isinstance(after, nodes.Text) and PUNCTUATION.match(after)
        if bracket or mark:
            unit = nodes.inline("", "", classes=["no-break"])
            line[place] = unit
            if bracket:
                line[place - 1] = nodes.Text(before[: bracket.start()])
                unit += nodes.Text(bracket[0])
            unit += math
            if mark:
                line[place + 1] = nodes.Text(after[mark.end() :])
                unit += nodes.Text(mark[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("katex", (visit_math, None), (visit_math_block, None))
    app.add_css_file("vendor/katex/katex.min.css")
    app.connect("doctree-resolved", keep_punctuation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
