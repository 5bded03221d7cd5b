"""Every exercise stands in its chapter, untouched, and its solution is found right."""

from __future__ import annotations

import re

import pytest

from tools import notebooks
from unrolled.lab.exercises import EXERCISES

CHAPTERS = sorted((notebooks.ROOT / "book").glob("[0-9][0-9]_*.ipynb"))
CHECKED = re.compile(r'^check\("(\d+\.\d+)"', re.MULTILINE)


def outputs_by_exercise(path) -> dict[str, str]:
    """Return what each cell that checks an exercise has stored as printed output."""
    printed = {}
    for cell in notebooks.read(path).cells:
        numbers = CHECKED.findall(cell.source) if cell.cell_type == "code" else []
        for number in numbers:
            printed[number] = "".join(output.get("text", "") for output in cell.outputs)
    return printed


def task(path, number: str) -> str:
    """Return the text under an exercise's heading."""
    text = "\n".join(cell.source for cell in notebooks.read(path).cells)
    return text.split(f"### Exercise {number} ")[1].partition("\n")[2].strip()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_sets_its_exercises_and_its_solutions_are_right(path):
    chapter = str(int(path.stem[:2]))
    registered = {number for number in EXERCISES if number.split(".")[0] == chapter}
    starters = outputs_by_exercise(path)
    solutions = outputs_by_exercise(path.parent / "solutions" / path.name)
    capstones = [number for number in registered if task(path, number).startswith("The capstone ")]
    assert 2 <= len(registered) - len(capstones) <= 4
    assert len(capstones) == (int(chapter) >= 9), "chapters 9 to 14 end with a capstone each"
    for number in capstones:
        assert EXERCISES[number].difficulty == "open"
        assert number == max(registered), "a capstone comes last"
    assert set(starters) == set(solutions) == registered
    for number in registered:
        assert starters[number].startswith(f"Exercise {number}, not started: ")
        assert f"Exercise {number}, right: " in solutions[number]
        assert "not yet" not in solutions[number]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_headings_name_number_difficulty_and_title_and_hints_open_one_at_a_time(path):
    text = "\n".join(
        cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown"
    )
    chapter = str(int(path.stem[:2]))
    for number, exercise in EXERCISES.items():
        if number.split(".")[0] != chapter:
            continue
        heading = f"### Exercise {number} ({exercise.difficulty}): {exercise.title}"
        assert heading in text, f"{path.name} lacks {heading!r}"
        section = text.split(heading)[1].split("### Exercise")[0].split("\n## ")[0]
        assert section.count("<summary>Hint") >= 2, f"exercise {number} has fewer than two hints"
        assert f"solutions/{path.name}" in section, f"exercise {number} does not name its solution"


def test_exercises_belong_to_chapters_and_run_from_easy_to_hard():
    chapters = {str(int(path.stem[:2])) for path in CHAPTERS}
    assert {number.split(".")[0] for number in EXERCISES} == chapters
    order = ["easy", "medium", "hard", "open"]
    for chapter in chapters:
        numbers = sorted(number for number in EXERCISES if number.split(".")[0] == chapter)
        ranks = [order.index(EXERCISES[number].difficulty) for number in numbers]
        assert ranks == sorted(ranks), f"chapter {chapter}"
        assert ranks[0] == 0, f"chapter {chapter} starts with nothing easy"
