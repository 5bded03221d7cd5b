"""Chapter 2's checkers: the starter, the right answer, wrong ones named, exceptions told."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.lab.exercises import EXERCISES, judge


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def unit(**numbers):
    """Parameters of a GRU with one unit and one input; what is not named is zero."""
    zeros = {kind + gate: 0.0 for gate in "zrh" for kind in "WUb"}
    return {
        name: np.full((1,) if name.startswith("b") else (1, 1), value)
        for name, value in (zeros | numbers).items()
    }


def half_life(b):
    return np.log(0.5) / np.log(1 - sigmoid(b))


def to_keeping(params):
    return params | {name: -params[name] for name in ("Wz", "Uz", "bz")}


COUNTER = {"Wz": 20, "bz": -20, "bh": 20}
HIGHEST = {"Wz": 10_000, "Uz": -10_000, "Wh": 1.05}


def negate(*names):
    return lambda params: params | {name: -params[name] for name in names}


def negate_in_place(params):
    for name in ("Wz", "Uz", "bz"):
        params[name] *= -1
    return params


RIGHT = {
    "2.1": [half_life, lambda b: jnp.log(0.5) / jnp.log(1 - 1 / (1 + jnp.exp(-b)))],
    "2.2": [
        to_keeping,
        lambda params: {n: np.asarray(v) for n, v in to_keeping(params).items()},
        lambda params: {n: v.at[:].multiply(-1 if "z" in n else 1) for n, v in params.items()},
    ],
    "2.3": [lambda: unit(**COUNTER), lambda: unit(**COUNTER, Wh=3, Wr=1)],
    "2.4": [
        lambda: unit(**HIGHEST),
        lambda: unit(Wz=3000, Uz=-3000, Wh=1.04),
        lambda: unit(Wz=2000, Uz=-1990, bz=-1, Wh=1.05),
    ],
}

STARTERS = {
    "2.1": lambda b: ...,
    "2.2": lambda params: ...,
    "2.3": lambda: dict.fromkeys(unit(), ...),
    "2.4": lambda: ...,
}

WRONG = [
    ("2.1", lambda b: np.log(0.5) / np.log(sigmoid(b)), "followed z instead of 1 - z"),
    ("2.1", lambda b: np.log(2) / np.log(1 - sigmoid(b)), "sign is wrong"),
    ("2.1", lambda b: np.log(1 - sigmoid(b)) / np.log(0.5), "other way up"),
    ("2.1", lambda b: np.log(0.5) / np.log(1 - b), "used b itself as z"),
    ("2.1", lambda b: 1 - sigmoid(b), "share that one step leaves"),
    ("2.1", lambda b: -1 / np.log(1 - sigmoid(b)), "left out log"),
    ("2.1", lambda b: 1 / sigmoid(b), "took 1 / z"),
    ("2.1", lambda b: np.ceil(half_life(b)), "without rounding"),
    ("2.1", lambda b: np.log(0.5) / np.log(1 - np.tanh(b)), "You used tanh"),
    ("2.1", lambda b: int(half_life(b)), "without rounding"),
    ("2.1", lambda b: 5.0, "Solve"),
    ("2.1", lambda b: None, "returned None"),
    ("2.2", lambda params: params, "as they were"),
    ("2.2", negate("Wz", "Uz"), "bz has kept its sign"),
    ("2.2", negate("Wz", "bz"), "Uz has kept its sign"),
    ("2.2", negate("Uz", "bz"), "Wz has kept its sign"),
    ("2.2", negate("bz"), "Only the bias"),
    ("2.2", negate("Wz", "Uz", "bz", "Wr", "Ur", "br"), "reset gate as well"),
    ("2.2", negate("Wr", "Ur", "br"), "the reset gate's arrays"),
    ("2.2", negate("Wh", "Uh", "bh"), "the candidate's arrays"),
    ("2.2", lambda p: {n: p[n.translate({114: "z", 122: "r"})] for n in p}, "You exchanged"),
    ("2.2", lambda p: p | {n: 1 / p[n] for n in ("Wz", "Uz", "bz")}, "1 / each array"),
    ("2.2", lambda p: p | {n: sigmoid(-p[n]) for n in ("Wz", "Uz", "bz")}, "through a sigmoid"),
    ("2.2", lambda params: {n: -v for n, v in params.items()}, "negated every array"),
    (
        "2.2",
        lambda params: params | {n: 1 - params[n] for n in ("Wz", "Uz", "bz")},
        "1 minus each array",
    ),
    ("2.2", negate_in_place, "changed the dict"),
    ("2.2", lambda params: {"Wz": -params["Wz"]}, "lacks"),
    ("2.2", lambda params: params | {"Wz": params["Wz"].T}, "Wz has shape"),
    ("2.2", lambda params: list(params.values()), "expected a dict"),
    ("2.3", lambda: unit(Wz=20, bh=20), "With no pulse at all"),
    ("2.3", lambda: unit(Wz=40, bz=-20, bh=20), "update gate is 1.000 at a pulse"),
    ("2.3", lambda: unit(Wz=20, bz=-20, bh=0.5), "candidate is 0.462"),
    ("2.3", lambda: unit(**COUNTER, Uz=2), "The first pulse is counted, but after 2 pulses"),
    ("2.3", lambda: unit(Wz=40, bz=-20, bh=np.arctanh(0.5)), "let the gate be 0.5 and the"),
    ("2.3", lambda: unit(Wz=8, bz=-8, Wh=20), "while it waits it forgets"),
    ("2.3", lambda: unit(**COUNTER) | {"Wz": 20.0}, "Wz has shape ()"),
    ("2.4", lambda: unit(bz=20, Wh=1), "the highest value fades"),
    ("2.4", lambda: unit(Wz=100, Uz=-100, Wh=3), "the candidate is 0.716, not the input"),
    ("2.4", lambda: unit(bz=-20, Wh=1), "the update gate is only 0.00"),
    ("2.4", lambda: unit(bh=1), "With only zeros"),
    ("2.4", lambda: unit(Wz=25, Uz=-25, Wh=1), "sharper"),
    ("2.4", lambda: unit(Wz=100, Uz=-100, Wh=1.05), "what it lets in adds up"),
    ("2.4", lambda: unit(Wz=150, Uz=-150, Wh=1.05), "After 0.06, and 0.01 479 times"),
    ("2.4", lambda: unit(Wz=1e4, Uz=-1e4, Wh=1), "for 0.30 is 0.2913, below the input"),
    ("2.4", lambda: unit(Wz=500, Uz=-500, Wh=1.05), "falls with them: after 1000 of them"),
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


@pytest.mark.parametrize("number", ["2.1", "2.2", "2.3", "2.4"])
def test_an_exception_is_told_with_its_line(number):
    def broken(*arguments):
        return undefined_name  # noqa: F821

    verdict, message = judge(EXERCISES[number], broken)
    assert verdict == "not yet"
    assert "NameError" in message and "return undefined_name" in message
