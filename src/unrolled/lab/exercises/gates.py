"""The exercises of chapter 2: one step of a GRU and what its gates do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from unrolled.gru import PARAMETER_SHAPES
from unrolled.lab.exercises._base import Wrong, exercise, expect_array, expect_close, run

Arrays = dict[str, np.ndarray]


@exercise("2.1", "How long does a unit remember?", "easy")
def half_life(function: Callable[[float], Any]) -> str:
    for b in (-3.0, -1.5, 0.0, 2.0):
        z = _sigmoid(b)
        half = np.log(0.5)
        mistakes = {
            "You used b itself as z. The update gate is z = sigma(b).": (
                half / np.log(1 - b) if b < 0 else np.inf
            ),
            "You used tanh. A gate has the sigmoid: z = sigma(b).": (
                half / np.log(1 - np.tanh(b)) if b else np.inf
            ),
            "You followed z instead of 1 - z. What is left of the state after one step is 1 - z "
            "of it.": half / np.log(z),
            "The sign is wrong: log(1/2) is negative and so is log(1 - z), so n is positive.": (
                -half / np.log(1 - z)
            ),
            "You computed the share that one step leaves. How many such steps make one half?": (
                1 - z
            ),
            "You left out log(1/2): after that many steps 1/e = 37 % is left, not half.": (
                -1 / np.log(1 - z)
            ),
            "You wrote log(1 - z) / log(1/2). Solve n log(1 - z) = log(1/2) for n: it is the other "
            "way up.": np.log(1 - z) / half,
            "You took 1 / z, which is close for small z only. The answer needs a logarithm.": 1 / z,
            "The number of steps need not be whole: leave it as it is, without rounding.": (
                np.ceil(half / np.log(1 - z))
            ),
            "The number of steps need not be whole: leave it as it is, without rounding it.": (
                np.round(half / np.log(1 - z))
            ),
        }
        expect_close(
            run(function, b),
            half / np.log(1 - z),
            name=f"half_life({b})",
            mistakes=mistakes,
            tolerance=1e-4,
            otherwise="Solve (1 - z)^n = 1/2 for n, with z = sigma(b).",
        )
    return "a bias of -3 keeps half of the state for 14 steps, a bias of 0 for one."


@exercise("2.2", "The other way round", "medium")
def to_keeping(function: Callable[[Arrays], Any]) -> str:
    rng = np.random.default_rng(2)
    sizes = {"input_dim": 3, "hidden_dim": 4}
    params = {
        name: rng.normal(size=[sizes[dim] for dim in dims]).astype(np.float32)
        for name, dims in PARAMETER_SHAPES.items()
    }
    given = {name: jnp.asarray(array) for name, array in params.items()}
    params = {name: array.astype(np.float64) for name, array in params.items()}
    answer = _parameters(run(function, given), sizes)
    if any(not np.array_equal(given.get(name), params[name]) for name in params):
        raise Wrong(
            "You changed the dict you were given. Make a new dict, for example with "
            'params | {"name": new_value}.'
        )
    h_prev, x_t = np.tanh(rng.normal(size=(20, 4))), rng.normal(size=(20, 3))

    def states(step: Callable, changed: Arrays) -> np.ndarray:
        return np.array([step(changed, h, x) for h, x in zip(h_prev, x_t)])

    def negated(*names: str) -> np.ndarray:
        return states(_keeping_step, params | {name: -params[name] for name in names})

    def changed(change: Callable) -> np.ndarray:
        names = ("Wz", "Uz", "bz")
        return states(_keeping_step, params | {name: change(params[name]) for name in names})

    other_gate = dict(zip("zr", "rz"))
    exchanged = {kind + gate: params[kind + other_gate[gate]] for kind in "WUb" for gate in "zr"}
    mistakes = {
        "The parameters are as they were, so the gate keeps where it should write.": negated(),
        "bz has kept its sign: the bias is part of a as well.": negated("Wz", "Uz"),
        "Uz has kept its sign: the gate looks at the state, too.": negated("Wz", "bz"),
        "Wz has kept its sign: the gate looks at the input, too.": negated("Uz", "bz"),
        "Only the bias has been negated. Both matrices are part of a as well.": negated("bz"),
        "You turned the reset gate as well. Only the update gate's meaning differs.": negated(
            "Wz", "Uz", "bz", "Wr", "Ur", "br"
        ),
        "You negated the reset gate's arrays. It is the update gate's meaning that "
        "differs.": negated("Wr", "Ur", "br"),
        "You negated the candidate's arrays. It is the update gate's meaning that differs.": (
            negated("Wh", "Uh", "bh")
        ),
        "You exchanged the update gate and the reset gate. Only the update gate changes, and it "
        "stays in its place.": states(_keeping_step, params | exchanged),
        "You negated every array. Only the update gate's meaning differs.": negated(*params),
        "You took 1 minus each array. It is the gate that has to become 1 - z, not its weights: "
        "1 - sigma(a) = sigma(-a).": changed(lambda array: 1 - array),
        "You took 1 / each array. It is a whose sign has to change, for sigma(-a).": changed(
            lambda array: 1 / array
        ),
        "You put the arrays through a sigmoid. It is a, the sum that they make, that goes through "
        "it; a has to become -a.": changed(lambda array: _sigmoid(-array)),
    }
    expect_close(
        states(_keeping_step, answer),
        states(_step, params),
        name="the new state",
        mistakes=mistakes,
        otherwise="Change only what belongs to the update gate, so that its a becomes -a.",
    )
    return "the library's step gives the same 20 states as gru_step, from parameters alone."


@exercise("2.3", "A unit that counts", "hard")
def counter(function: Callable[[], Any]) -> str:
    params = _parameters(run(function), {"input_dim": 1, "hidden_dim": 1})
    after_pulse = _states(params, [1.0])[0]
    idle = _states(params, np.zeros(100))[-1]
    if abs(idle) > 1e-3:
        raise Wrong(
            f"With no pulse at all the state should stay 0, but after 100 quiet steps it is "
            f"{idle:.3f}: the update gate is not closed enough when the input is 0."
        )
    if abs(after_pulse - 0.5) > 2e-3:
        update = _gates(params, 0.0, 1.0)[0]
        if abs(update - 0.5) > 2e-3:
            raise Wrong(
                f"After the first pulse the state is {after_pulse:.3f}; expected 0.5. Your update "
                f"gate is {update:.3f} at a pulse, so it writes that much of the candidate; for "
                "half of the way it must be 0.5."
            )
        raise Wrong(
            f"After the first pulse the state is {after_pulse:.3f}; expected 0.5. The update gate "
            f"is right, {update:.3f}, but the candidate is {after_pulse / update:.3f} where it "
            "should be 1."
        )
    pulses = np.ones(6)
    expected = 1 - 0.5 ** np.arange(1, 7)
    quick = _states(params, pulses)
    if np.abs(quick - expected).max() > 5e-3:
        n = int(np.argmax(np.abs(quick - expected) > 5e-3)) + 1
        update, _, candidate = _gates(params, 0.0, 1.0)
        if abs(update - 0.5) > 2e-3:
            raise Wrong(
                f"After the first pulse the state is 0.5, made of an update gate of {update:.3f} "
                f"times a candidate of {candidate:.3f}, but after {n} pulses it is "
                f"{quick[n - 1]:.3f}; expected {expected[n - 1]:.3f}. To go half of the way to 1 "
                "at every pulse, let the gate be 0.5 and the candidate 1."
            )
        raise Wrong(
            f"The first pulse is counted, but after {n} pulses the state is {quick[n - 1]:.3f}; "
            f"expected {expected[n - 1]:.3f}. The gate and the candidate must be the same at every "
            "pulse, whatever the state is: they should not look at it."
        )
    gaps = np.zeros((6, 101))
    gaps[:, 0] = 1.0
    slow = _states(params, gaps.ravel()).reshape(6, 101)
    drift = np.abs(slow[:, -1] - slow[:, 0]).max()
    if drift > 1e-3:
        raise Wrong(
            f"It counts, but while it waits it forgets: 100 quiet steps between two pulses change "
            f"the state by {drift:.3f}. Close the update gate more tightly when the input is 0."
        )
    return "six pulses give 0.500, 0.750, ... 0.984, and 100 quiet steps between them do no harm."


@exercise("2.4", "The highest value so far", "open")
def highest_so_far(function: Callable[[], Any]) -> str:
    params = _parameters(run(function), {"input_dim": 1, "hidden_dim": 1})
    rng = np.random.default_rng(4)
    jump = np.concatenate([np.zeros(3), [0.3], np.zeros(60)])
    states = _states(params, jump)
    if abs(states[2]) > 0.04:
        raise Wrong(f"With only zeros to read the state should stay 0, but it is {states[2]:.3f}.")
    if abs(states[3] - 0.3) > 0.04:
        update, _, candidate = _gates(params, states[2], 0.3)
        why = (
            f"the update gate is only {update:.2f} although the input is above the state"
            if update < 0.9
            else f"the candidate is {candidate:.3f}, not the input"
        )
        raise Wrong(f"After a first 0.3 the state is {states[3]:.3f}: {why}.")
    if abs(states[-1] - 0.3) > 0.04:
        raise Wrong(
            f"After 0.3 and 60 zeros the state is {states[-1]:.3f}: the highest value fades while "
            "smaller ones come in. The update gate should close when the input is below the state."
        )
    worst, place = 0.0, ""
    for order in ("in rising order", "in falling order", "in mixed order", "that go up and down"):
        inputs = rng.uniform(0, 0.3, 60)
        if order == "in rising order":
            inputs = np.sort(inputs)
        elif order == "in falling order":
            inputs = np.sort(inputs)[::-1]
        elif order == "that go up and down":
            inputs = np.tile([0.05, 0.2, 0.1, 0.3, 0.25], 12)
        error = np.abs(_states(params, inputs) - np.maximum.accumulate(inputs)).max()
        if error > worst:
            worst, place = error, order
    if worst > 0.04:
        raise Wrong(
            f"On 60 values {place} the state is off by up to {worst:.3f}; 0.04 is allowed. Make "
            "the switch between keeping and writing sharper (an input just below the state finds "
            "the gate half open), or the candidate closer to the input."
        )
    worst = max(worst, _off_after_many(params), _off_in_a_slow_fall(params))
    return (
        f"on four kinds of sequences, and while 1000 lower numbers come after the highest, the "
        f"state is never off by more than {worst:.3f}."
    )


def _off_after_many(params: Arrays) -> float:
    """How far the state is off while 1000 equal numbers follow a higher one; `Wrong` if too far."""
    highs, lows = np.meshgrid(np.linspace(0.02, 0.3, 15), np.linspace(0, 0.29, 30), indexing="ij")
    highs, lows = highs[highs > lows + 1e-6], lows[highs > lows + 1e-6]
    states = _states(params, np.concatenate([highs[None], np.tile(lows, (1000, 1))]))
    errors = np.abs(states - highs)
    if errors.max() <= 0.04:
        return float(errors.max())
    step, case = np.unravel_index(errors.argmax(), errors.shape)
    raise Wrong(
        f"After {highs[case]:.2f}, and {lows[case]:.2f} {step} times, the state is "
        f"{states[step, case]:.3f}: off by {errors[step, case]:.3f}; 0.04 is allowed. The gate is "
        "nearly closed, but what it lets in adds up. Make the switch between keeping and writing "
        "sharper."
    )


def _off_in_a_slow_fall(params: Arrays) -> float:
    """How far the state is off while 1000 numbers fall evenly; `Wrong` if too far."""
    highs, ends = np.meshgrid(np.linspace(0.06, 0.3, 9), np.linspace(0, 0.9, 10), indexing="ij")
    highs, ends = highs.ravel(), (highs * ends).ravel()
    falls = np.linspace(highs, ends, 1000)
    states = _states(params, falls)
    errors = np.abs(states - highs)
    if errors.max() <= 0.04:
        return float(errors.max())
    step, case = np.unravel_index(errors.argmax(), errors.shape)
    candidate = _gates(params, highs[case], highs[case])[2]
    why = (
        f"The candidate for {highs[case]:.2f} is {candidate:.4f}, below the input, so the next "
        "number, though lower, is above the state again and is written. Let the candidate be "
        "rather a little too high."
        if candidate < highs[case]
        else "An input just below the state finds the gate half open: make the switch sharper."
    )
    raise Wrong(
        f"While 1000 numbers fall slowly from {highs[case]:.2f} to {ends[case]:.2f}, the state "
        f"falls with them: after {step + 1} of them it is {states[step, case]:.3f}, off by "
        f"{errors[step, case]:.3f}; 0.04 is allowed. {why}"
    )


def _parameters(params: Any, sizes: Mapping[str, int]) -> Arrays:
    """Return the reader's parameters as float64 arrays of the right shapes, or say which is not."""
    if not isinstance(params, Mapping):
        raise Wrong(f"expected a dict of nine arrays, but got a {type(params).__name__}.")
    missing = [name for name in PARAMETER_SHAPES if name not in params]
    if missing:
        raise Wrong(f"The dict lacks {', '.join(missing)}: return all nine parameters.")
    return {
        name: expect_array(params[name], tuple(sizes[dim] for dim in dims), name)
        for name, dims in PARAMETER_SHAPES.items()
    }


def _sigmoid(a: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(a)))  # without overflow for large negative a


def _parts(params: Arrays, h_prev: np.ndarray, x_t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (update, reset, candidate), in float64."""
    update = _sigmoid(params["Wz"] @ x_t + params["Uz"] @ h_prev + params["bz"])
    reset = _sigmoid(params["Wr"] @ x_t + params["Ur"] @ h_prev + params["br"])
    candidate = np.tanh(params["Wh"] @ x_t + params["Uh"] @ (reset * h_prev) + params["bh"])
    return update, reset, candidate


def _step(params: Arrays, h_prev: np.ndarray, x_t: np.ndarray) -> np.ndarray:
    update, _, candidate = _parts(params, h_prev, x_t)
    return (1 - update) * h_prev + update * candidate


def _keeping_step(params: Arrays, h_prev: np.ndarray, x_t: np.ndarray) -> np.ndarray:
    keep, _, candidate = _parts(params, h_prev, x_t)
    return keep * h_prev + (1 - keep) * candidate


def _gates(params: Arrays, h_prev: float, x_t: float) -> tuple[float, ...]:
    """Return (update, reset, candidate) of a unit with one input, as plain numbers."""
    parts = _parts(params, np.array([h_prev]), np.array([x_t]))
    return tuple(float(part[0]) for part in parts)


def _states(params: Arrays, inputs: Any) -> np.ndarray:
    """Return the state of a unit with one input after each of `inputs`, started from 0."""
    h, states = np.zeros(1), []
    for x_t in inputs:
        h = _step(params, h, np.array([x_t]))
        states.append(h[0])
    return np.array(states)
