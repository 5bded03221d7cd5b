"""What every checker is made of: running a reader's code safely and naming what went wrong."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled._checks import kind_of


class NotStarted(Exception):
    """The reader's code still holds the `...` of the starter."""


class Wrong(Exception):
    """The answer is wrong; the message says what is wrong and where to look."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: its number in the book, its title, how hard it is, and who judges it.

    `checker` takes the reader's answer. It returns a sentence on what the right answer has shown,
    or raises `Wrong` or `NotStarted`.
    """

    number: str
    title: str
    difficulty: str
    checker: Callable[..., str]


DIFFICULTIES = ("easy", "medium", "hard", "open")
EXERCISES: dict[str, Exercise] = {}


def exercise(number: str, title: str, difficulty: str) -> Callable[[Callable], Callable]:
    """Register the decorated checker as exercise `number`."""
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty is {difficulty!r}; expected one of {DIFFICULTIES}.")
    if number in EXERCISES:
        raise ValueError(f"exercise {number} is registered twice.")

    def register(checker: Callable[..., str]) -> Callable[..., str]:
        EXERCISES[number] = Exercise(number, title, difficulty, checker)
        return checker

    return register


def judge(exercise: Exercise, *answer: Any) -> tuple[str, str]:
    """Return the verdict on `answer`, "right", "not yet" or "not started", and its message.

    Matrix products are computed in full precision, the reader's as well as the check's: left to
    themselves, TPUs and some GPUs round the factors to 8 or 11 bits, and right would look wrong.
    """
    try:
        if not answer or any(_unfinished(part) for part in answer):
            raise NotStarted
        wanted = len(inspect.signature(exercise.checker).parameters)
        if len(answer) != wanted:
            raise Wrong(
                f"check got {len(answer)} answers; exercise {exercise.number} has {wanted}."
            )
        with jax.default_matmul_precision("highest"):
            return "right", exercise.checker(*answer)
    except NotStarted:
        return "not started", "replace each `...` with your own code and run the cell again."
    except Wrong as wrong:
        return "not yet", str(wrong)
    except Exception as error:  # the answer ran, and the check could do nothing with its result
        return "not yet", (
            "what your answer returned cannot be used. Compare its kind and its shape with what "
            f"the exercise asks for. ({type(error).__name__}: {_reason(error)})"
        )


def run(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call the reader's function; turn whatever goes wrong inside it into a `Wrong` that helps."""
    if not callable(function):
        raise Wrong(
            f"expected a function, but got {describe(function)}. Pass the function itself, "
            "without calling it."
        )
    name = getattr(function, "__name__", "your function")
    try:
        result = function(*args, **kwargs)
    except NotImplementedError:
        raise NotStarted from None
    except (Exception, SystemExit) as error:
        if _touches_ellipsis(error):
            raise NotStarted from None
        where = _where(error)
        raise Wrong(
            f"`{name}` stopped with {type(error).__name__}{where}: {_reason(error)}"
        ) from None
    if _unfinished(result):
        raise NotStarted
    if result is None:
        raise Wrong(f"`{name}` returned None. Does it end with `return`?")
    return result


def expect_array(
    value: Any, shape: tuple[int, ...], name: str = "the result", hint: str = ""
) -> np.ndarray:
    """Return `value` as a NumPy array of `shape`, or raise `Wrong` with `hint` added."""
    if _unfinished(value):
        raise NotStarted
    have, contain = ("have", "contain") if _is_plural(name) else ("has", "contains")
    try:
        array = np.asarray(value)
        if value is None or array.dtype.kind in "US":  # NumPy would read NaN, or the text
            raise TypeError
        if np.iscomplexobj(array):
            raise Wrong(
                f"{name} should hold real numbers, like every weight and state in the book, but "
                "yours are complex."
            )
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"{name} should be an array of shape {shape}, not {describe(value)}.") from None
    if array.shape != shape:
        detail = f" {hint}" if hint else ""
        raise Wrong(f"{name} {have} shape {array.shape}; expected {shape}.{detail}")
    if not np.isfinite(array).all():
        raise Wrong(f"{name} {contain} NaN or infinite values.")
    return array


def expect_close(
    value: Any,
    expected: Any,
    *,
    name: str = "the result",
    mistakes: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
    otherwise: str = "",
) -> None:
    """Compare `value` with `expected`; a wrong value that matches a known mistake is named.

    Args:
      value: what the reader computed.
      expected: the right value, an array.
      name: how to speak of the value in a message.
      mistakes: message -> the value that this mistake leads to.
      tolerance: largest difference that still counts as equal, relative to values above one.
      otherwise: what to add when no known mistake matches: where to look.
    """
    expected = np.asarray(expected, dtype=np.float64)
    got = expect_array(value, expected.shape, name)
    allowed = tolerance * np.maximum(1.0, np.abs(expected))
    if (np.abs(got - expected) <= allowed).all():
        return
    for message, wrong in (mistakes or {}).items():
        wrong = np.asarray(wrong, dtype=np.float64)
        if wrong.shape == got.shape and (np.abs(got - wrong) <= allowed).all():
            raise Wrong(message)
    difference = np.abs(got - expected)
    where = np.unravel_index(int(difference.argmax()), difference.shape)
    place = f" at index {tuple(int(i) for i in where)}" if difference.ndim else ""
    detail = f" {otherwise}" if otherwise else ""
    be, up_to = "are" if _is_plural(name) else "is", "up to " * bool(difference.ndim)
    raise Wrong(f"{name} {be} off by {up_to}{difference.max():.2g}{place}.{detail}")


class Criterion(NamedTuple):
    """One line of a rubric: what is wanted, whether it is met, what was found, what may help."""

    wanted: str
    met: bool
    advice: str = ""
    found: str = ""


def rubric(needed: Sequence[Criterion], extra: Sequence[Criterion] = ()) -> str:
    """Judge an open exercise: list which criteria are met, and why; all of `needed` have to be.

    Returns:
      The list, one criterion a line.

    Raises:
      Wrong: a needed criterion is not met; the message is the list, and the first one's advice.
    """
    every = [*needed, *(one._replace(wanted=f"extra: {one.wanted}") for one in extra)]
    lines = [
        f"\n    [{'x' if one.met else ' '}] {one.wanted}" + f" ({one.found})" * bool(one.found)
        for one in every
    ]
    score = f"{sum(one.met for one in every)} of {len(every)} criteria are met.{''.join(lines)}"
    for one in needed:
        if not one.met:
            raise Wrong(f"{score}\n    Next: {one.wanted}. {one.advice}")
    return score


def _unfinished(value: Any) -> bool:
    return any(
        leaf is Ellipsis or leaf is NotImplemented
        for leaf in jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, Iterator))
    )


def _touches_ellipsis(error: BaseException) -> bool:
    """Say whether `error` arose because a `...` was used as if it were a value.

    An error about indices or an einsum may speak of an ellipsis too, and come of finished code.
    """
    text = str(error)
    if isinstance(error, ValueError):
        return "'ellipsis'" in text or bool(re.search(r"(?:\bgot|:) Ellipsis\b", text))
    return (
        isinstance(error, (TypeError, AttributeError))
        and bool(re.search(r"\bellipsis\b|EllipsisType|\bgot\b.*\bEllipsis\b", text))
        and "indices must be" not in text
    )


def _reason(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def describe(value: Any) -> str:
    """What the reader's code gave, in words: None, an array by its shape, "a dict"."""
    if value is None:
        return "None"
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"an array of shape {value.shape}"
    return kind_of(value)


def _is_plural(name: str) -> bool:
    """Say whether a name such as "the outputs of the cell" wants a plural verb.

    A single word is the reader's own name for one thing, such as `dense_i.bias`.
    """
    noun = re.split(r" (?:after|at|for|from|in|of|on|over|per|with|without)\b", name)[0]
    return " " in noun and noun.endswith("s") and not noun.endswith(("ss", "axis", "bias"))


PACKAGE = Path(__file__).parents[2]
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


def _where(error: BaseException) -> str:
    """Name the line of the reader's own code in which `error` arose, if it can be told."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f" at line {own[-1].lineno}, `{own[-1].line}`" if own and own[-1].line else ""


def _is_own(filename: str) -> bool:
    path = Path(filename)
    libraries = {"site-packages", "dist-packages"}.intersection(path.parts)
    return not (libraries or path.is_relative_to(PACKAGE) or path.is_relative_to(STANDARD_LIBRARY))
