"""Checkers for the book's exercises: they say whether you are right and, if not, what is wrong.

Each chapter's exercises live in the module of that chapter's name. A chapter calls only `check`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from unrolled.lab.exercises._base import EXERCISES, Exercise, NotStarted, Wrong, judge

__all__ = ["EXERCISES", "Exercise", "NotStarted", "Wrong", "check", "judge"]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")


def check(number: str, *answer: Any) -> None:
    """Check your answer to exercise `number` and print what the check found.

    The first word says it all: *right*, *not yet* (followed by what is wrong) or *not started*.
    An exception in your own code is caught and told, so the rest of the notebook still runs.

    Args:
      number: the exercise's number as the chapter prints it, such as "2.1".
      *answer: what the exercise asks for, most often one function.

    Raises:
      ValueError: there is no exercise of that number.

    Example:
      >>> check("2.1", ...)
      Exercise 2.1, not started: replace each `...` with your own code and run the cell again.
    """
    if number not in EXERCISES:
        raise ValueError(
            f"There is no exercise {number!r}; the book has {', '.join(sorted(EXERCISES))}."
        )
    verdict, message = judge(EXERCISES[number], *answer)
    print(f"Exercise {number}, {verdict}: {message}")
