r"""Links from "Figure 2.1" and "equation 2.3" in the text to the figure and the equation.

A chapter numbers them by itself, so that they read the same in Jupyter and in Colab: a caption
begins with **Figure 2.1.**, and a displayed equation ends with \tag{2.3}. A mention of a number
that does not exist stays plain text, and of a number given twice the first place counts; both are
warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)

CAPTION = re.compile(r"Figure (\d+)\.(\d+)\.$")
TAG = re.compile(r"\\tag\{(\d+)\.(\d+)\}")
MENTION = re.compile(r"\b(figure|equation)\s(\d+)\.(\d+)\b", re.IGNORECASE)
NOT_TEXT = (nodes.literal, nodes.literal_block, nodes.reference, nodes.strong, nodes.title)


def numbers(env: BuildEnvironment) -> dict[str, str]:
    """Return the page of each numbered figure and equation, by its anchor, such as figure-2-1."""
    if not hasattr(env, "unrolled_numbers"):
        env.unrolled_numbers = {}
    return env.unrolled_numbers


def numbered(doctree: nodes.document) -> Iterator[tuple[str, nodes.Element]]:
    """Find the captions and the equations of a page that have a number."""
    for strong in doctree.findall(nodes.strong):
        if match := CAPTION.match(strong.astext()):
            yield "-".join(("figure", *match.groups())), strong.parent
    for equation in doctree.findall(nodes.math_block):
        for chapter, number in TAG.findall(equation.astext()):
            yield f"equation-{chapter}-{number}", equation


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Give what is numbered on a page an anchor."""
    known = numbers(app.env)
    for anchor, node in numbered(doctree):
        if anchor in known:
            logger.warning(
                "%s is there twice, here and in %s", anchor, known[anchor], location=node
            )
            continue
        known[anchor] = app.env.docname
        node["ids"].append(anchor)


def forget(app: Sphinx, env: BuildEnvironment, page: str) -> None:
    """Forget the numbers of a page that is read anew."""
    known = numbers(env)
    for anchor in [anchor for anchor, where in known.items() if where == page]:
        del known[anchor]


def lead_to_the_numbers(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make each mention of a number a link."""
    known = numbers(app.env)
    for text in list(doctree.findall(nodes.Text)):
        if not MENTION.search(text) or any(isinstance(n, NOT_TEXT) for n in ancestors(text)):
            continue
        parts, end = [], 0
        for mention in MENTION.finditer(text):
            anchor = "-".join((mention[1].lower(), *mention.groups()[1:]))
            if anchor not in known:
                logger.warning("%r is mentioned and is nowhere", mention[0], location=text)
                continue
            address = f"{app.builder.get_relative_uri(page, known[anchor])}#{anchor}"
            parts.append(nodes.Text(text[end : mention.start()]))
            parts.append(nodes.reference("", mention[0], refuri=address, internal=True))
            end = mention.end()
        text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", forget)
    app.connect("doctree-resolved", lead_to_the_numbers)
    return {"env_version": 1, "parallel_read_safe": False, "parallel_write_safe": True}
