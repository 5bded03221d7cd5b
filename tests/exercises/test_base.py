"""What all checkers share: a reader's code is run safely and every verdict says why."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core.primitives import dot_general_p

import unrolled
from tools import notebooks
from unrolled.lab import exercises
from unrolled.lab.exercises import Exercise, NotStarted, Wrong, judge
from unrolled.lab.exercises._base import (
    Criterion,
    exercise,
    expect_array,
    expect_close,
    rubric,
    run,
)


def double(x):
    return 2 * x


def judged(checker, *answer):
    return judge(Exercise("0.1", "A test", "easy", checker), *answer)


def test_a_right_answer_is_praised_with_what_it_shows():
    assert judged(lambda answer: f"it gave {run(answer, 2)}.", double) == ("right", "it gave 4.")


def starter_value(x):
    return ...


def starter_expression(x):
    y = ...
    return y + x


def starter_scan(x):
    return jax.lax.scan(lambda carry, x: ..., x, jnp.arange(3.0))


def starter_raises(x):
    raise NotImplementedError


@pytest.mark.parametrize(
    "starter",
    [
        starter_value,
        starter_expression,
        starter_scan,
        starter_raises,
        jax.jit(starter_expression),
        lambda x: math.sqrt(...),
        lambda x: max(*...),
        lambda x: [*x] + ...,
        lambda x: (lambda a, b: b)(*starter_value(x)),
        lambda x: jnp.tanh(...),
        lambda x: np.tanh(...),
        lambda x: jnp.zeros((3, ...)),
        lambda x: jax.vmap(lambda row: ...)(x),
        lambda x: jax.tree.map(jnp.add, {"x": x}, ...),
    ],
)
def test_a_starter_is_told_apart_from_a_wrong_answer(starter):
    verdict, message = judged(lambda answer: str(run(answer, jnp.ones(3))), starter)
    assert verdict == "not started" and "..." in message


@pytest.mark.parametrize(
    "finished",
    [
        lambda x: np.einsum("i", np.ones((2, 2))),
        lambda x: np.ones((2, 2))[..., 0, ...],
        lambda x: x[..., 0, ...],
        lambda x: {"h": x}[..., 0],
        lambda x: operator.getitem([x], ...),
    ],
)
def test_an_error_that_speaks_of_an_ellipsis_is_no_sign_of_a_starter(finished):
    verdict, message = judged(lambda answer: str(run(answer, jnp.ones(3))), finished)
    assert verdict == "not yet" and "stopped with" in message


def test_an_unfilled_value_is_not_started():
    assert judged(lambda answer: "fine", ...)[0] == "not started"
    assert judged(lambda answer: "fine", {"a": ...})[0] == "not started"
    assert judged(lambda answer: "fine")[0] == "not started"


def test_an_exception_in_the_readers_code_is_named_with_its_line():
    def divides(x):
        return x / 0

    verdict, message = judged(lambda answer: str(run(answer, 1)), divides)
    assert verdict == "not yet"
    assert "`divides` stopped with ZeroDivisionError" in message and "return x / 0" in message


def test_an_error_under_jit_is_told_in_its_first_line():
    def adds(x):
        return x + jnp.ones(7)

    with pytest.raises(Wrong, match="`adds` stopped with TypeError") as caught:
        run(jax.jit(adds), jnp.ones(3))
    assert "\n" not in str(caught.value)


def test_the_place_of_an_error_is_the_readers_own_line_or_none():
    with pytest.raises(Wrong, match="`gru_sequence` stopped with ValueError: vmap"):
        run(jax.vmap(unrolled.gru_sequence), {"bz": jnp.ones(3)}, jnp.ones(2), jnp.ones(4))
    with pytest.raises(Wrong, match=r"TypeError at line \d+, `return 1 \+ None`"):
        run(functools.partial(lambda answer: answer(), helper))


def helper():
    return 1 + None


def test_returning_nothing_is_named():
    with pytest.raises(Wrong, match="returned None"):
        run(lambda x: None, 1)


def test_a_called_function_is_named():
    with pytest.raises(Wrong, match="expected a function, but got a float"):
        run(2.0)


def test_shapes_dtypes_and_nan_are_named():
    with pytest.raises(Wrong, match=r"has shape \(2,\); expected \(3,\). Time comes first"):
        expect_array(np.ones(2), (3,), hint="Time comes first.")
    with pytest.raises(Wrong, match="should be an array"):
        expect_array({"a": 1}, (3,))
    with pytest.raises(Wrong, match="NaN"):
        expect_array([np.nan], (1,))
    with pytest.raises(Wrong, match="should hold real numbers"):
        expect_array(jnp.ones(3) * 1j, (3,))
    with pytest.raises(Wrong, match=r"should be an array of shape \(\), not None"):
        expect_array(None, ())
    with pytest.raises(Wrong, match=r"should be an array of shape \(2,\), not a list"):
        expect_array(["12", "8"], (2,))
    with pytest.raises(NotStarted):
        expect_array(..., (1,))
    np.testing.assert_array_equal(expect_array(jnp.ones(2, jnp.bfloat16), (2,)), np.ones(2))


def test_a_known_mistake_is_named_and_an_unknown_one_is_located():
    mistakes = {"you forgot the square": np.array([1.0, 2.0])}
    expect_close([1.0, 4.0], np.array([1.0, 4.0]), mistakes=mistakes)
    with pytest.raises(Wrong, match="you forgot the square"):
        expect_close([1.0, 2.0], np.array([1.0, 4.0]), mistakes=mistakes)
    with pytest.raises(Wrong, match=r"off by up to 1 at index \(1,\). Look at the second"):
        expect_close(
            [1.0, 3.0], np.array([1.0, 4.0]), mistakes=mistakes, otherwise="Look at the second."
        )


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("the outputs", "are"),
        ("the states of both layers", "are"),
        ("the new params", "are"),
        ("the bits per character", "are"),
        ("the loss", "is"),
        ("the losses of a scan over three batches", "are"),
        ("the list of sizes", "is"),
        ("dense_i.bias", "is"),
        ("what the steps return", "is"),
        ("with NaN in the padding the result", "is"),
    ],
)
def test_a_message_fits_names_of_one_thing_and_of_many(name, verb):
    with pytest.raises(Wrong, match=f"^{name} {verb} off by up to 1 at index"):
        expect_close([1.0], [0.0], name=name)
    have, contain = ("have", "contain") if verb == "are" else ("has", "contains")
    with pytest.raises(Wrong, match=f"^{name} {have} shape"):
        expect_array(0.0, (1,), name)
    with pytest.raises(Wrong, match=f"^{name} {contain} NaN"):
        expect_array([np.nan], (1,), name)


def solution(number: str) -> list[str]:
    """Return the code of the book's solution to an exercise, from its imports to its check."""
    chapter = int(number.split(".")[0])
    (path,) = (notebooks.ROOT / "book/solutions").glob(f"{chapter:02d}_*.ipynb")
    cells = [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    check = f'check("{number}", '
    answer = next(cell for cell in cells if check in cell)
    head, tail = answer.split(check, 1)
    return [cells[1], head + check + tail.splitlines()[0]]


@pytest.mark.parametrize("number", ["1.3", "3.3", "5.2", "6.2"])
def test_the_solutions_are_right_where_matrix_products_are_rounded(number, capsys, monkeypatch):
    """As on a TPU, or on a GPU with TF32, a product that asks for no precision rounds its factors.

    The precision around the check stands for that default; programs compiled for other tests, at
    another precision, are then not used again.
    """
    exact = dot_general_p.bind

    def rounded(*factors, precision, **options):
        if precision is None or set(precision) != {jax.lax.Precision.HIGHEST}:
            factors = [jax.lax.reduce_precision(factor, 8, 10) for factor in factors]
        return exact(*factors, precision=precision, **options)

    monkeypatch.setattr(dot_general_p, "bind", rounded)
    with jax.default_matmul_precision("bfloat16"):
        third = jnp.full((2, 2), 1 / 3)
        assert not jnp.allclose(third @ third, 2 / 9, rtol=1e-5), "the rounding is at work"
        namespace = {}
        for code in solution(number):
            exec(code, namespace)
    assert f"Exercise {number}, right: " in capsys.readouterr().out


def test_an_unknown_number_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no exercise '99.9'; the book has .*2\.1"):
        exercises.check("99.9", double)


def test_registering_twice_or_with_an_unknown_difficulty_is_refused():
    number = next(iter(exercises.EXERCISES))
    with pytest.raises(ValueError, match="registered twice"):
        exercise(number, "again", "easy")
    with pytest.raises(ValueError, match="difficulty is 'brutal'"):
        exercise("0.2", "new", "brutal")


def test_a_rubric_lists_what_is_met_and_advises_on_the_first_criterion_that_is_not():
    fast = Criterion("fast", True, found="3 steps")
    small = Criterion("small", False, "Leave something out.", "9 kB")
    score = rubric([fast], extra=[small])
    assert score.splitlines() == [
        "1 of 2 criteria are met.",
        "    [x] fast (3 steps)",
        "    [ ] extra: small (9 kB)",
    ]
    with pytest.raises(Wrong, match=r"1 of 2(?s:.*)\[ \] small(?s:.*)Next: small. Leave some"):
        rubric([fast, small])


@pytest.mark.parametrize("number", sorted(exercises.EXERCISES))
def test_no_answer_escapes_the_check(number, capsys):
    checker = exercises.EXERCISES[number].checker
    count = len(inspect.signature(checker).parameters)
    for answer in (lambda *args, **options: "a word", lambda *args, **options: sys.exit(2), 5):
        exercises.check(number, *[answer] * count)
        assert capsys.readouterr().out.startswith(f"Exercise {number}, not yet: ")
    exercises.check(number, *[max] * (count + 1))
    assert f"check got {count + 1} answers" in capsys.readouterr().out


def test_a_result_that_the_check_cannot_use_is_the_answers_fault():
    verdict, message = judged(lambda answer: str(run(answer, 1) + 1), lambda x: "a word")
    assert verdict == "not yet"
    assert "cannot be used" in message and "(TypeError: " in message
