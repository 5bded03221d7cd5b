"""Self-checks: after each main section, with one right option, and each option says why."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from tools import notebooks

CHAPTERS = sorted((notebooks.ROOT / "book").glob("[0-9][0-9]_*.ipynb"))
LEAD = "**Check yourself.** "
OPTION = re.compile(
    r'<details class="choice(?P<right> right)?"><summary>(?P<option>.+?)</summary>\n\n'
    r"(?P<why>.+?)\n\n</details>(?:\n\n|$)",
    re.DOTALL,
)
CLOSING = re.compile(r"Exercises|Summary|(Where to r|R)ead more")  # sections with nothing to ask


@cache
def cells(path):
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown"]


def self_checks(path):
    return [source for source in cells(path) if re.search(r"Check yourself|class=.choice", source)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_each_has_one_right_option_and_each_option_explains_itself(path):
    for source in self_checks(path):
        assert source.startswith(LEAD), f"{source[:80]}: begin with {LEAD}in a cell of its own"
        question, choices = re.split(r"(?=<details)", source, maxsplit=1)
        assert "?" in question, question
        options = list(OPTION.finditer(choices))
        assert "".join(option[0] for option in options) == choices, question
        assert 2 <= len(options) <= 4, question
        assert [bool(option["right"]) for option in options].count(True) == 1, question
        for option in options:
            lead = "**Right.** " if option["right"] else "**Not quite.** "
            assert option["why"].startswith(lead), f"{option['option']}: begin with {lead}"
            assert len(option["why"]) > len(lead) + 40, f"{option['option']}: say why"
            # Jupyter, Colab and the book read Markdown inside of HTML each in its own way.
            assert not re.search(r"[$`\n]|\*\w", option["option"]), (
                f"{option['option']}: use <i>, <code>"
            )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_every_main_section_ends_with_one(path):
    """Or the part before its last one does, where that part has an explorer to play with."""
    sections = re.split(r"^## ", "\0\n".join(cells(path)), flags=re.MULTILINE)[1:]
    assert len(sections) > 5
    without = [
        section.partition("\n")[0]
        for section in sections
        if not CLOSING.match(section)
        and not any(
            part.rstrip("\0\n").split("\0\n")[-1].startswith(LEAD)
            for part in (section, section.rpartition("\n### ")[0])
        )
    ]
    assert not without, f"{without}: a self-check is missing, or is not the section's end"


def test_the_right_option_is_now_here_and_now_there():
    places = Counter()
    for path in CHAPTERS:
        for source in self_checks(path):
            places[[bool(option["right"]) for option in OPTION.finditer(source)].index(True)] += 1
    assert max(places.values()) < 0.45 * places.total(), places
