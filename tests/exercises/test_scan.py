"""Chapter 3's checkers: untouched, right, and wrong in ways that readers are wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unrolled import gru_step
from unrolled.lab.exercises import EXERCISES, judge

scan = jax.lax.scan


def running_max(start=-jnp.inf, output="new", choose=jnp.maximum, part=1, carry="new", **options):
    def function(xs):
        def step(highest, x):
            new = choose(highest, x)
            kinds = {"new": new, "old": highest, "x": x, "nothing": None}
            return kinds[carry], kinds[output]

        first = xs[0] if start == "first" else jnp.float32(start)
        result = scan(step, first, xs, **options)
        return result if part is None else result[part]

    return function


def with_gate(gate="z", state="h_prev", carry="h", outputs=None, invert=False, bias=True):
    def function(params, initial_h, inputs):
        def step(h_prev, x_t):
            h_t, _ = gru_step(params, h_prev, x_t)
            h = {"h_prev": h_prev, "h_t": h_t}[state]
            total = params["W" + gate] @ x_t + params["U" + gate] @ h + bias * params["b" + gate]
            update = jax.nn.sigmoid(total)
            update = 1 - update if invert else update
            out = {"h": h_t, "update": update}
            if outputs is not None:
                out = outputs(out, h_prev, total)
            return {"h": h_t, "update": update, "h_prev": h_prev}[carry], out

        return scan(step, initial_h, inputs)

    return function


def own_gru(turn=jnp.transpose, reset_after=False):
    """A GRU written anew, with a mistake in it."""

    def function(params, initial_h, inputs):
        def step(h, x):
            p = params | {name: turn(params[name]) for name in ("Uz", "Ur", "Uh")}
            update = jax.nn.sigmoid(p["Wz"] @ x + p["Uz"] @ h + p["bz"])
            reset = jax.nn.sigmoid(p["Wr"] @ x + p["Ur"] @ h + p["br"])
            recurrent = reset * (p["Uh"] @ h) if reset_after else p["Uh"] @ (reset * h)
            candidate = jnp.tanh(p["Wh"] @ x + recurrent + p["bh"])
            h = (1 - update) * h + update * candidate
            return h, {"h": h, "update": update}

        return scan(step, initial_h, inputs)

    return function


def turned_gate(params, initial_h, inputs):
    final_h, outputs = with_gate()(params, initial_h, inputs)
    h_prev = jnp.concatenate([initial_h[None], outputs["h"][:-1]])
    total = inputs @ params["Wz"].T + h_prev @ params["Uz"] + params["bz"]
    return final_h, outputs | {"update": jax.nn.sigmoid(total)}


def gate_of_the_start(params, initial_h, inputs):
    final_h, outputs = with_gate()(params, initial_h, inputs)
    total = inputs @ params["Wz"].T + params["Uz"] @ initial_h + params["bz"]
    return final_h, outputs | {"update": jax.nn.sigmoid(total)}


def keeping_gate(params, initial_h, inputs):
    """Turn the update gate the other way in the state."""
    flipped = {**params, **{name: -params[name] for name in ("Wz", "Uz", "bz")}}
    return with_gate(invert=True)(flipped, initial_h, inputs)


def both(
    inputs_back="flipped",
    turn=slice(None, None, -1),
    swap=False,
    same=False,
    axis=1,
    carry=lambda old, new: new,
):
    def function(forward_params, backward_params, initial_h, inputs):
        second = forward_params if same else backward_params

        def step(old, x):
            a, _ = gru_step(forward_params, old[0], x[0])
            b, _ = gru_step(second, old[1], x[1])
            return carry(old, (a, b)), (a, b)

        xs = (inputs, inputs[::-1] if inputs_back == "flipped" else inputs)
        _, (a, b) = scan(step, (initial_h, initial_h), xs)
        halves = [a, b[turn]]
        return jnp.concatenate(halves[::-1] if swap else halves, axis=axis)

    return function


def two_scans(forward_params, backward_params, initial_h, inputs):
    def run(params, reverse):
        return scan(lambda h, x: gru_step(params, h, x), initial_h, inputs, reverse=reverse)[1]

    return jnp.concatenate([run(forward_params, False), run(backward_params, True)], axis=1)


def average(z, **options):
    def function(xs):
        def step(estimate, x):
            estimate = (1 - z) * estimate + z * x
            return estimate, estimate

        return jax.lax.scan(step, xs[0], xs, **options)[1]

    return function


def whole_history(xs):
    def step(memory, x):
        memory = jnp.roll(memory, 1).at[0].set(x)
        return memory, memory[:3].mean()

    return scan(step, jnp.full(20, xs[0]), xs)[1]


def window_as_input(xs):
    padded = jnp.concatenate([jnp.full(4, xs[0]), xs])
    windows = jnp.stack([padded[i : i + len(xs)] for i in range(5)], axis=1)
    return scan(lambda carry, window: (carry, window.mean()), jnp.float32(0), windows)[1]


def windows_looked_up(size):
    def function(xs):
        padded = jnp.concatenate([jnp.full(size, xs[0]), xs])

        def step(t, _):
            return t + 1, jax.lax.dynamic_slice(padded, (t + 1,), (size,)).mean()

        return jax.lax.scan(step, 0, None, length=len(xs))[1]

    return function


def shifted_copies(xs):
    padded = jnp.concatenate([jnp.full(3, xs[0]), xs])
    copies = tuple(padded[i : i + len(xs)] for i in range(4))
    return jax.lax.scan(lambda c, x: (c, sum(x) / 4), jnp.float32(0), copies)[1]


def weights(xs):
    age = jnp.arange(len(xs))[:, None] - jnp.arange(len(xs))
    matrix = jnp.where(age >= 0, 0.7 ** jnp.maximum(age, 0), 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def smoothed_before_the_scan(xs):
    return jax.lax.scan(lambda c, x: (c, x), 0.0, weights(xs) @ xs)[1]


def smoothed_behind_the_scan(xs):
    return weights(xs) @ jax.lax.scan(lambda c, x: (c, x), 0.0, xs)[1]


def smoothed_beside_the_scan(xs):
    return weights(xs) @ xs + jax.lax.scan(lambda c, x: (c, 0 * x), 0.0, xs)[1]


def one_reading_looked_up(xs):
    def step(carry, t):
        estimate = 0.7 * carry["estimate"] + 0.3 * xs[t]
        return {"estimate": estimate}, {"estimate": estimate}

    return jax.lax.scan(step, {"estimate": xs[0]}, jnp.arange(len(xs)))[1]["estimate"]


def from_the_second_on(xs):
    """With a pair of inputs, a counter in the carry, a step of its own, and a readout behind."""

    @jax.jit
    def step(carry, inputs):
        estimate, count = carry
        gain = jnp.maximum(inputs["gain"], 0.3)
        estimate = estimate + gain * (inputs["x"] - estimate)
        return (estimate, count + 1), jnp.stack([estimate, inputs["x"]])

    inputs = {"x": xs[1:] - xs[0], "gain": 1 / jnp.arange(2.0, len(xs) + 1)}
    ys = jax.lax.scan(step, (jnp.zeros_like(xs[0]), 0), inputs, unroll=4)[1]
    return jnp.concatenate([xs[:1], xs[0] + ys @ jnp.array([1.0, 0.0])])


def nnx_scan(xs):
    def step(estimate, x):
        estimate = 0.7 * estimate + 0.3 * x
        return estimate, estimate

    axes = (nnx.Carry, 0)
    return nnx.scan(step, in_axes=axes, out_axes=axes)(xs[0], xs)[1]


def scan_under_another_name(xs):
    return scan(lambda c, x: (0.7 * c + 0.3 * x,) * 2, xs[0], xs)[1]


def turned_twice(xs):
    return jax.lax.scan(
        lambda c, x: (0.7 * c + 0.3 * x,) * 2, xs[0], xs[::-1, None][:, 0], reverse=True
    )[1][::-1]


def not_an_average(xs):
    return scan(lambda total, x: (total + x, total + x), jnp.float32(0), xs)[1]


def one_number_at_a_time(xs):
    def body(t, highest):
        return highest.at[t].set(jnp.maximum(xs[t], highest[jnp.maximum(t - 1, 0)]))

    return jax.lax.fori_loop(0, len(xs), body, jnp.full(len(xs), -jnp.inf))


def scan_without_sequences(xs):
    """All is in the carry: the numbers that are read and the maxima that come out."""

    def step(carry, _):
        t, highest, maxima = carry
        highest = jnp.maximum(highest, xs[t])
        return (t + 1, highest, maxima.at[t].set(highest)), None

    return jax.lax.scan(step, (0, xs[0], xs), None, length=len(xs))[0][2]


def raises(*arguments):
    return undefined_name  # noqa: F821


RIGHT = {
    "3.1": [
        running_max(),
        jax.jit(running_max()),
        lambda xs: scan(lambda m, x: (jnp.maximum(m, x),) * 2, xs[0], xs)[1],
    ],
    "3.2": [with_gate(), jax.jit(with_gate())],
    "3.3": [both(), jax.jit(both())],
    "3.4": [
        average(0.3),
        jax.jit(average(0.4)),
        scan_under_another_name,
        one_reading_looked_up,
        jax.jit(one_reading_looked_up),
        from_the_second_on,
        turned_twice,
        nnx_scan,
        lambda xs: 0.9 * average(0.3)(xs) + 0.1 * xs,
    ],
}

STARTERS = {
    "3.1": [lambda xs: ..., running_max(part=None, choose=lambda a, b: ...)],
    "3.2": [lambda params, initial_h, inputs: ...],
    "3.3": [lambda a, b, initial_h, inputs: ...],
    "3.4": [lambda xs: ..., ...],
}

WRONG = {
    "3.1": [
        (running_max(start=0), "must not start at zero"),
        (running_max(output="old"), "outputs the carry it was given"),
        (running_max(start=0, output="old"), "comes one step late"),
        (running_max(output="x"), "the numbers themselves"),
        (running_max(carry="old"), "that never changes"),
        (running_max(start="first", carry="old"), "the larger of that number and the start"),
        (running_max(start=0, carry="old"), "never changes, and it starts at zero"),
        (running_max(start="first", carry="x"), "looks back one step only"),
        (running_max(start=-1), "Your first maximum is -1,"),
        (running_max(start=-100), "they lie below your start"),
        (running_max(start=-1e9), "they lie below your start"),
        (running_max(output="nothing"), "is that None?"),
        (running_max(start=jnp.inf, choose=jnp.minimum), "running minimum"),
        (running_max(start=0, choose=jnp.add), "running sum"),
        (running_max(reverse=True), "reverse=True"),
        (running_max(part=0), "the final carry"),
        (running_max(part=None), "return only the outputs"),
        (lambda xs: jnp.cumsum(xs) * 0.5, "after each of -3, -5 and -1"),
        (lambda xs: jax.lax.cummax(xs), "there is no scan in it"),
        (one_number_at_a_time, "nor stacks outputs, which is what a scan is for"),
        (scan_without_sequences, "hand in what each step reads as its third argument"),
        (lambda xs: np.maximum.accumulate(np.asarray(xs)), "cannot trace"),
        (lambda xs: None, "returned None"),
        (lambda xs: xs[:3], "There is one for each number"),
        (running_max()(jnp.ones(3)), "Pass the function itself"),
    ],
    "3.2": [
        (with_gate(state="h_t"), "computed from the new state"),
        (with_gate(gate="r"), "reset gate"),
        (with_gate(invert=True), "1 - z"),
        (with_gate(bias=False), "lacks the bias"),
        (keeping_gate, "turns the other way"),
        (with_gate(carry="h_prev"), "the carry is not updated"),
        (
            with_gate(carry="h_prev", outputs=lambda out, h, total: {**out, "h": h}),
            "is initial_h at every step",
        ),
        (own_gru(), "recurrent matrices are transposed"),
        (own_gru(jnp.asarray, reset_after=True), "acts after the matrix"),
        (lambda p, h, xs: with_gate()(p, 0 * h, xs), "the states from zeros"),
        (lambda p, h, xs: (with_gate()(p, h, xs)[1], h), "in the wrong order"),
        (lambda p, h, xs: (h, with_gate()(p, h, xs)[1]), "final_h is the initial state"),
        (turned_gate, "with Uz transposed"),
        (gate_of_the_start, "always looks at initial_h"),
        (
            with_gate(outputs=lambda out, h, total: {**out, "update": jnp.tanh(total)}),
            "went through tanh",
        ),
        (with_gate(outputs=lambda out, h, total: (out["h"], out["update"])), "should be a dict"),
        (with_gate(outputs=lambda out, h, total: {"h": out["h"]}), "lacks `update`"),
        (with_gate(outputs=lambda out, h, total: {**out, "h": h}), "one step late"),
        (with_gate(outputs=lambda out, h, total: {**out, "update": total}), "before the sigmoid"),
        (with_gate(outputs=lambda out, h, total: {**out, "update": out["h"]}), "hidden states"),
        (
            with_gate(
                outputs=lambda out, h, total: {"h": out["update"], "update": out["h"]},
            ),
            "swapped",
        ),
        (lambda p, h, xs: with_gate()(p, h, xs)[1], "should return the pair"),
        (
            lambda p, h, xs: (with_gate()(p, h, xs)[1]["update"][-1], with_gate()(p, h, xs)[1]),
            "last update gate",
        ),
        (
            lambda p, h, xs: (h, jax.tree.map(lambda a: a[-1], with_gate()(p, h, xs)[1])),
            "scan stacks them",
        ),
    ],
    "3.3": [
        (both(turn=slice(None)), "order in which it was computed"),
        (both(inputs_back="forward", turn=slice(None)), "read the inputs forwards. Scan over"),
        (both(inputs_back="forward"), "It is the inputs that must be turned first"),
        (both(swap=True), "swapped: the forward states come first"),
        (both(same=True), "Both halves use forward_params"),
        (both(turn=(slice(None), slice(None, None, -1))), "along the features and not along time"),
        (both(axis=0), "axis=1"),
        (lambda a, b, h, xs: both()(b, a, h, xs), "parameters are swapped"),
        (
            lambda a, b, h, xs: both(turn=slice(None))(a, b, h, xs[::-1])[
                :, [4, 5, 6, 7, 0, 1, 2, 3]
            ],
            "Compare each half",
        ),
        (lambda a, b, h, xs: (h, both()(a, b, h, xs)), "returned a pair"),
        (two_scans, "2 loops"),
        (both(carry=lambda old, new: old), "Every state was computed from initial_h"),
        (both(carry=lambda old, new: (old[0], new[1])), "Every forward state was computed from"),
        (both(carry=lambda old, new: (new[0], old[1])), "Every backward state was computed from"),
        (both(carry=lambda old, new: new[::-1]), "with its halves exchanged"),
        (lambda a, b, h, xs: both()(a, b, 0 * h, xs), "Both GRUs start from zeros"),
    ],
    "3.4": [
        (average(1.0), "follows the readings too closely"),
        (average(0.02), "lags too far behind"),
        (average(0.3, reverse=True), "seen the future"),
        (lambda xs: 0.8 * average(0.3)(xs) + 0.2 * xs.mean(), "seen the future"),
        (whole_history, "holds 20 numbers"),
        (window_as_input, "handed 5 numbers"),
        (windows_looked_up(4), "when the reading at index 100 changes, 4 steps"),
        (jax.jit(windows_looked_up(6)), "when the reading at index 100 changes, 6 steps"),
        (shifted_copies, "4 steps do something else"),
        (smoothed_before_the_scan, "although the carry of each is held as it was"),
        (jax.jit(smoothed_behind_the_scan), "one step does something else, but"),
        (smoothed_beside_the_scan, "estimates do. What is known of earlier readings"),
        (not_an_average, "lags too far behind"),
        (lambda xs: jnp.convolve(xs, jnp.ones(4) / 4)[: len(xs)], "there is no scan in it"),
        (lambda xs: scan(lambda c, x: (c, c), xs[0], xs), "return only the outputs"),
        (lambda xs: scan(lambda c, x: (c, None), xs[0], xs)[1], "is that None?"),
        (lambda xs: average(0.3)(xs)[1:], "one estimate for every reading"),
        (lambda xs: xs / 0, "infinite"),
    ],
}


def cases(table):
    return [
        pytest.param(number, answer, id=f"{number}-{index}")
        for number, answers in table.items()
        for index, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("number, answer", cases(RIGHT))
def test_right(number, answer):
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "right", message


@pytest.mark.parametrize("number, answer", cases(STARTERS))
def test_starter_is_not_started(number, answer):
    assert judge(EXERCISES[number], answer)[0] == "not started"


@pytest.mark.parametrize("number, case", cases(WRONG))
def test_wrong_answers_are_told_what_is_wrong(number, case):
    answer, words = case
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet"
    assert words in message


@pytest.mark.parametrize("number", ["3.1", "3.2", "3.3", "3.4"])
def test_an_exception_is_told_with_its_line(number):
    verdict, message = judge(EXERCISES[number], raises)
    assert verdict == "not yet"
    assert "NameError at line" in message
    assert "return undefined_name" in message
