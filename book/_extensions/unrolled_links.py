"""Links both ways between a name of the package and the chapter that builds it.

In a chapter, the first `RNN` in the text leads to the API reference; there, each name says which
chapter builds it.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx

# Names of `unrolled` by the chapter that builds them, then the modules that belong to one chapter.
CHAPTERS = {
    "02_gates": ["initialize_gru_params", "gru_step"],
    "03_scan": ["gru_sequence"],
    "06_cells": ["GRUCell", "RNNCellBase", "SimpleCell", "convert", "orthogonal_in_any_dtype"],
    "07_lstm": [
        "LSTMCell",
        "OptimizedLSTMCell",
        "convert.to_lstm",
        "convert.to_optimized_lstm",
        "modified_orthogonal",
        "orthogonal_per_gate",
    ],
    "08_rnn": ["RNN", "RNNBase", "StackedRNN", "LearnedCarry"],
    "09_lengths": [
        "flip_sequences",
        "last_valid_step",
        "mask_padding",
        "pad_sequences",
        "sequence_mask",
        "unpad_sequences",
    ],
    "10_bidirectional": ["Bidirectional"],
    "11_speed": ["scan"],
}
# Modules that no chapter builds, by the chapter that says what they are for.
INTRODUCED = {"lab.finite": "05_training"}
CHAPTER = {name: chapter for chapter, names in CHAPTERS.items() for name in names}


def built_in(name: str) -> str | None:
    """Return the chapter that builds `unrolled.name`, or None for a method or a module."""
    module = name.rpartition(".")[0]
    return CHAPTER.get(name) or (CHAPTER[module] if module in ("convert", "scan") else None)


def name_the_chapter(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Say below the first paragraph of a docstring which chapter builds what it documents."""
    name = name.removeprefix("unrolled.")
    chapter, verb = built_in(name), "Built"
    if chapter is None:
        chapter, verb = INTRODUCED.get(name.rpartition(".")[0]), "Introduced"
    if chapter and what in ("class", "function"):
        end = lines.index("") if "" in lines else len(lines)
        link = f":doc:`chapter {int(chapter[:2])} </book/{chapter}>`"
        lines[end:end] = ["", f"{verb} in {link}."]


def lead_to_the_reference(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make the first mention of each public name on a page a link to the API reference."""
    if page.startswith("book/api"):
        return
    places = {}
    for name, place in app.env.get_domain("py").objects.items():
        if place.objtype in ("class", "function"):
            short = name.rpartition(".")[2]
            places |= dict.fromkeys((name, name.removeprefix("unrolled."), short), place)
    seen = set()
    for code in list(doctree.findall(nodes.literal)):
        place = places.get(code.astext().removesuffix("()"))
        inside = (code.parent, code.parent.parent)
        if place is None or place.node_id in seen:
            continue
        if any(isinstance(node, nodes.reference | nodes.title) for node in inside):
            continue
        seen.add(place.node_id)
        address = f"{app.builder.get_relative_uri(page, place.docname)}#{place.node_id}"
        link = nodes.reference("", "", refuri=address, internal=True)
        code.parent.replace(code, link)
        link += code


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", name_the_chapter, priority=600)  # after napoleon
    app.connect("doctree-resolved", lead_to_the_reference)
    # A new env_version makes all docstrings be read again: count it up when a table changes.
    return {"env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
