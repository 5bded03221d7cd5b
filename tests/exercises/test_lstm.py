"""Chapter 7's checkers: the starter, the right answer, wrong ones named, exceptions told."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.lab.exercises import EXERCISES, judge

NAMES = [kind + gate for gate in "ifgo" for kind in "WUb"]


def unit(**numbers):
    """Parameters of an LSTM with one unit and one input; what is not named is zero."""
    zeros = dict.fromkeys(NAMES, 0.0)
    return {
        name: np.full((1,) if name.startswith("b") else (1, 1), value)
        for name, value in (zeros | numbers).items()
    }


def two_inputs(first=None, second=None, **numbers):
    """The same with two inputs: weights of the first and of the second by gate."""
    params = unit(**numbers)
    for gate in "ifgo":
        weights = [(first or {}).get(gate, 0.0), (second or {}).get(gate, 0.0)]
        params["W" + gate] = np.array([weights])
    return params


def memory_after(f, w, c_0, steps):
    c = c_0
    for _ in range(steps):
        c = f * c + w
    return c


def by_formula(f, w, c_0, steps):
    written = steps if f == 1 else (1 - f**steps) / (1 - f)
    return jnp.asarray(f**steps * c_0 + w * written)


def fuse(params, order="ifgo", stack=np.concatenate):
    return tuple(stack([params[kind + gate] for gate in order]) for kind in "WUb")


COUNTER = {"first": {"g": 20}, "second": {"f": -40}, "bi": 20, "bf": 20}
FLIP_FLOP = {"Wi": 40, "bi": -20, "Wf": -40, "bf": 20, "Ug": -20, "bg": 4, "bo": 20}

RIGHT = {
    "7.1": [memory_after, by_formula],
    "7.2": [fuse, lambda params: list(map(jnp.asarray, fuse(params)))],
    "7.3": [
        lambda: two_inputs(**COUNTER),
        lambda: two_inputs(**COUNTER | {"bf": 17.5}),
        lambda: two_inputs({"g": 20, "i": 40}, {"f": -50}, bi=-20, bf=20, bo=3, bg=0),
    ],
    "7.4": [lambda: unit(**FLIP_FLOP), lambda: unit(**FLIP_FLOP | {"Ug": -40, "bg": 9})],
}

STARTERS = {
    "7.1": lambda f, w, c_0, steps: ...,
    "7.2": lambda params: ...,
    "7.3": lambda: dict.fromkeys(NAMES, ...),
    "7.4": lambda: ...,
}


def added_first(f, w, c_0, steps):
    c = c_0
    for _ in range(steps):
        c = f * (c + w)
    return c


def transposed(params, kinds):
    return {name: array.T if name[0] in kinds else array for name, array in params.items()}


def interleaved(arrays):
    return np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def parcels(f, w, c_0, steps, ages):
    return f**steps * c_0 + w * sum(f**age for age in ages)


WRONG = [
    ("7.1", lambda f, w, c_0, steps: memory_after(f, w, 0.0, steps), "start is missing"),
    ("7.1", lambda f, w, c_0, steps: f**steps * c_0, "What is added is missing"),
    ("7.1", lambda f, w, c_0, steps: memory_after(f, w, c_0, steps - 1), "one step too few"),
    ("7.1", lambda f, w, c_0, steps: memory_after(f, w, c_0, steps + 1), "one step too many"),
    ("7.1", lambda f, w, c_0, steps: parcels(f, w, c_0, steps, range(steps + 1)), "too many: in T"),
    ("7.1", lambda f, w, c_0, steps: parcels(f, w, c_0, steps, range(steps - 1)), "too few: in T"),
    ("7.1", lambda f, w, c_0, steps: parcels(f, w, c_0, 0, range(steps)), "does not shrink"),
    ("7.1", lambda f, w, c_0, steps: memory_after(1 - f, w, c_0, steps), "turned round"),
    ("7.1", lambda f, w, c_0, steps: memory_after(w, f, c_0, steps), "exchanged"),
    ("7.1", lambda f, w, c_0, steps: f * c_0 + w, "not with c_0 again"),
    ("7.1", lambda f, w, c_0, steps: f**steps * c_0 + w * (1 - f**steps) / (1 - f), "at f = 1"),
    ("7.1", added_first, "added w first"),
    ("7.1", lambda f, w, c_0, steps: memory_after(f, (1 - f) * w, c_0, steps), "You blended"),
    ("7.1", lambda f, w, c_0, steps: f**steps * c_0 + w, "only once"),
    ("7.1", lambda f, w, c_0, steps: w / (1 - f), "infinitely many"),
    (
        "7.1",
        lambda f, w, c_0, steps: (
            f**steps * c_0 + w * np.float64(1 - f**steps) / (1 - f) if f < 1 else np.nan
        ),
        "divides by zero",
    ),
    ("7.1", lambda f, w, c_0, steps: 17.0, "c = f c + w"),
    ("7.2", lambda params: fuse(params, "ifog"), "order i, f, o, g"),
    ("7.2", lambda params: fuse(params, "figo"), "order f, i, g, o"),
    ("7.2", lambda params: fuse(params)[:2], "tuple of 2"),
    ("7.2", lambda params: tuple(array.T for array in fuse(params)), "transposed"),
    (
        "7.2",
        lambda params: (
            np.concatenate([params["W" + gate] for gate in "ifgo"], axis=1),
            *fuse(params)[1:],
        ),
        "axis=0",
    ),
    ("7.2", lambda params: fuse(params, "gofi"), "order g, o, f, i"),
    ("7.2", lambda params: fuse(transposed(params, "U")), "the four U is transposed"),
    ("7.2", lambda params: fuse(transposed(params, "WU")), "Each of the four is transposed"),
    ("7.2", lambda params: fuse(params, stack=np.stack), "axis of their own"),
    ("7.2", lambda params: fuse(params, stack=interleaved), "interleaved"),
    ("7.2", lambda params: [fuse(params)[place] for place in (0, 2, 1)], "order is W, U, b"),
    ("7.2", lambda params: [fuse(params)[place] for place in (1, 0, 2)], "the shape of U"),
    ("7.2", lambda params: tuple(2 * array for array in fuse(params)), "unchanged"),
    ("7.3", lambda: two_inputs(**COUNTER | {"first": {}}, bg=20), "With no pulse at all"),
    ("7.3", lambda: two_inputs(**COUNTER | {"first": {"g": 1}}), "memory is 0.762; expected 1"),
    ("7.3", lambda: two_inputs(**COUNTER | {"bf": 3}), "quiet steps later"),
    ("7.3", lambda: two_inputs(**COUNTER | {"first": {"g": 20, "f": -18}}), "after 50 in a row"),
    ("7.3", lambda: two_inputs(**COUNTER | {"first": {"g": 4}}), "each pulse adds 0.99933"),
    ("7.3", lambda: two_inputs(**COUNTER, Ug=-5), "a gate or g looks at it"),
    ("7.3", lambda: two_inputs(**COUNTER | {"bf": 3}, Ui=1), "quiet steps later the memory"),
    ("7.3", lambda: two_inputs(**COUNTER | {"bf": 12}), "and 49.217 after 50 pulses"),
    ("7.3", lambda: two_inputs(**COUNTER | {"bf": 15}), "With 100 quiet steps after each pulse"),
    ("7.3", lambda: two_inputs(**COUNTER | {"second": {}}), "and a reset the memory is 50.000"),
    ("7.3", lambda: two_inputs(**COUNTER | {"second": {"f": -20}}), "the memory is 25.000"),
    ("7.3", lambda: unit(bf=20), "Wi has shape (1, 1)"),
    ("7.3", lambda: {"Wi": np.zeros((1, 2))}, "lacks Ui"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"bg": 0}), "After the first pulse h is 0.000"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"bo": 0}), "After the first pulse h is 0.38"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"bf": 2}), "The first pulse works, but after"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"Ug": 0}), "opposite sign"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"Wf": 0}), "must go"),
    ("7.4", lambda: unit(**FLIP_FLOP | {"bf": 5, "Uf": 12}), "whatever the sign of h is"),
    ("7.4", lambda: list(unit().values()), "expected a dict"),
]


@pytest.mark.parametrize("number", STARTERS)
def test_the_starter_is_not_started(number):
    assert judge(EXERCISES[number], STARTERS[number])[0] == "not started"


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_are_right(number):
    for answer in RIGHT[number]:
        assert judge(EXERCISES[number], answer)[0] == "right", judge(EXERCISES[number], answer)


@pytest.mark.parametrize(("number", "answer", "words"), WRONG)
def test_a_wrong_answer_is_named(number, answer, words):
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet", message
    assert words in message, message


@pytest.mark.parametrize("number", RIGHT)
def test_an_exception_is_told_with_its_line(number):
    def broken(*arguments):
        return undefined_name  # noqa: F821

    verdict, message = judge(EXERCISES[number], broken)
    assert verdict == "not yet"
    assert "NameError" in message and "return undefined_name" in message
