"""Chapter 1's checkers: the starter, the right answer, wrong ones named, exceptions told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.lab.exercises import EXERCISES, judge


def leaky(update, keep_first=False, before=False):
    """A `leaky_states` that updates by `update(a, h, x_t)`."""

    def leaky_states(a, inputs):
        h, states = 0.0, [0.0] if keep_first else []
        for x_t in np.asarray(inputs):
            if before:
                states.append(h)
            h = update(a, h, x_t)
            if not before:
                states.append(h)
        return np.stack(states)

    return leaky_states


def right_update(a, h, x_t):
    return a * h + x_t


def scan_leaky_states(a, inputs):
    return jax.lax.scan(lambda h, x_t: (a * h + x_t,) * 2, 0.0, inputs)[1]


def reaching(
    back=True,
    earlier_right=True,
    order=2,
    slopes="rows",
    stop=True,
    shift=0,
    exhausted=0,
    below=np.less,
):
    """A `reach` with each of its decisions open to a mistake."""

    def reach(U, states, threshold):
        U, states = np.asarray(U, float), np.asarray(states, float)
        product, norms = np.eye(len(U)), []
        for h_t in states[::-1] if back else states:
            slope = np.diag(1 - h_t**2)
            jacobian = {
                "rows": slope @ U,
                "columns": U @ slope,
                "none": U,
                "no square": np.diag(1 - h_t) @ U,
                "no square on columns": U @ np.diag(1 - h_t),
                "tanh twice": np.diag(1 - np.tanh(h_t) ** 2) @ U,
                "transposed": slope @ U.T,
            }[slopes]
            product = product @ jacobian if earlier_right else jacobian @ product
            norms.append(np.linalg.norm(product, ord=order))
        under = [k for k, norm in enumerate(norms) if below(norm, threshold)]
        if not under:
            return len(states) + exhausted
        return (under[0] if stop else len(norms) - len(under)) + shift

    return reach


def jax_reach(U, states, threshold):
    product = jnp.eye(len(U))
    for k, h_t in enumerate(states[::-1]):
        product = product @ jnp.diag(1 - h_t**2) @ U
        if jnp.linalg.norm(product, ord=2) < threshold:
            return jnp.asarray(k)
    return len(states)


def backward_by_grad(params, z, initial_h, inputs, delta):
    def final(initial_h, z):
        h = initial_h
        for t in range(len(inputs)):
            candidate = jnp.tanh(params["W"] @ inputs[t] + params["U"] @ h + params["b"])
            h = (1 - z) * h + z * candidate
        return h

    return jax.vjp(final, initial_h, z)[1](delta)


def backward(
    slope_of="candidate",
    transposed=True,
    with_z=True,
    direct=True,
    moved_first=False,
    minus_old=True,
    summed=True,
    sign=1,
    counted=True,
    per_unit=False,
    z_forward=lambda z: z,
    z_back=lambda z: z,
    full_direct=False,
    slope_first=True,
    first=0,
    old=0,
):
    """An `additive_backward` by hand with each of its decisions open to a mistake."""

    def additive_backward(params, z, initial_h, inputs, delta):
        W, U, b = (np.asarray(params[name], float) for name in "WUb")
        states, candidates = [np.asarray(initial_h, float)], []
        forward, z = z_forward(z), z_back(z)
        for x_t in np.asarray(inputs):
            candidates.append(np.tanh(W @ x_t + U @ states[-1] + b))
            states.append((1 - forward) * states[-1] + forward * candidates[-1])
        delta, z_gradient = np.asarray(delta, float), 0.0
        for t in reversed(range(first, len(inputs))):
            response = states[t + 1] if slope_of == "state" else candidates[t]
            slope = 1 - response**2 * (slope_of != "nothing")
            later = delta
            matrix = U.T if transposed else U
            through = matrix @ (slope * delta) if slope_first else slope * (matrix @ delta)
            delta = (1 - z * (not full_direct)) * delta * direct + through * (z if with_z else 1)
            moved = delta if moved_first else later
            share = moved * (candidates[t] - states[t + old] * minus_old)
            share = share if per_unit else share.sum()
            z_gradient = z_gradient + share if summed else share
        return delta, sign * z_gradient * counted

    return additive_backward


def other(z):
    return 1 - z


def rotation(turns=1.0, scale=1.0, degrees=False, stretch=1.0):
    """A `clock_weights` whose step is that many `turns` of the right angle."""

    def clock_weights(steps):
        angle = (360 if degrees else 2 * np.pi) * turns / steps
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return scale * np.diag([stretch, 1]) @ turn @ np.diag([1 / stretch, 1])

    return clock_weights


RIGHT = {
    "1.1": [leaky(right_update), scan_leaky_states, jax.jit(scan_leaky_states)],
    "1.2": [reaching(), jax_reach],
    "1.3": [backward(), backward_by_grad],
    "1.4": [rotation(), rotation(turns=-1), lambda steps: rotation(turns=steps - 1)(steps)],
}

STARTERS = {
    "1.1": lambda a, inputs: ...,
    "1.2": lambda U, states, threshold: ...,
    "1.3": lambda params, z, initial_h, inputs, delta: (..., ...),
    "1.4": lambda steps: ...,
}

WRONG = [
    ("1.1", lambda a, inputs: leaky(right_update)(a, inputs)[-1], "a single number"),
    ("1.1", leaky(right_update, keep_first=True), "leave h_0 out"),
    ("1.1", leaky(right_update, before=True), "before updating it"),
    ("1.1", leaky(lambda a, h, x_t: a * (h + x_t)), "Only the old state leaks"),
    ("1.1", leaky(lambda a, h, x_t: h + x_t), "The old state is kept whole"),
    ("1.1", leaky(lambda a, h, x_t: x_t), "Is the old state in your update?"),
    ("1.1", leaky(lambda a, h, x_t: (1 - a) * h + x_t), "(1 - a) where the equation has a"),
    ("1.1", leaky(lambda a, h, x_t: a * h + (1 - a) * x_t), "Here it counts in full"),
    ("1.1", leaky(lambda a, h, x_t: a * h + 2 * x_t), "Compare with h_1 = x_1"),
    ("1.1", leaky(lambda a, h, x_t: a * h - x_t), "is subtracted"),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs)[::-1], "in the reverse order"),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs[::-1]), "from the last to the first."),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs[::-1])[::-1], "turned the states round"),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs.at[0].mul(1 + a)), "counts twice"),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs.at[0].set(0)), "never enters"),
    ("1.1", lambda a, inputs: (inputs[-1], scan_leaky_states(a, inputs)), "returned a pair"),
    ("1.1", lambda a, inputs: {"h": scan_leaky_states(a, inputs)}, "not a dict"),
    ("1.1", lambda a, inputs: (x_t for x_t in inputs), "not a generator"),
    ("1.1", lambda a, inputs: "a word", "not a str"),
    ("1.1", lambda a, inputs: scan_leaky_states(a, inputs)[:, None], "one number for each step"),
    ("1.1", lambda a, inputs: np.einsum("i", np.ones((2, 2))), "stopped with ValueError"),
    ("1.1", lambda a, inputs: np.ones((2, 2))[..., 0, ...], "stopped with IndexError"),
    ("1.2", reaching(back=False, earlier_right=False), "You started at the first step"),
    ("1.2", reaching(earlier_right=False), "the earlier step goes on the right"),
    ("1.2", reaching(order="fro"), "Frobenius"),
    ("1.2", reaching(slopes="none"), "The slopes are missing"),
    ("1.2", reaching(slopes="columns"), "scale the columns"),
    ("1.2", reaching(slopes="no square"), "with the square"),
    ("1.2", reaching(slopes="no square on columns"), "1 - h_t, and they scale the columns"),
    ("1.2", reaching(slopes="tanh twice"), "tanh of the states once more"),
    ("1.2", reaching(slopes="transposed"), "U is transposed"),
    ("1.2", reaching(order=1), "another norm"),
    ("1.2", lambda U, states, t: reaching()(U, states[:-1], t), "lacks the last step"),
    ("1.2", reaching(shift=1), "one too many"),
    ("1.2", reaching(shift=-1), "one too few"),
    ("1.2", reaching(stop=False), "may rise again"),
    ("1.2", reaching(exhausted=1), "return T, here 5"),
    ("1.2", reaching(below=np.less_equal), "Compare with `<`"),
    ("1.2", lambda U, states, threshold: 2, "for the threshold 0.01 you count 2 steps"),
    ("1.2", lambda U, states, threshold: 2.5, "whole number"),
    ("1.2", lambda U, states, threshold: states, "Return one number"),
    ("1.3", backward(slope_of="state"), "You used 1 - h_t²"),
    ("1.3", backward(transposed=False), "must be transposed"),
    ("1.3", backward(with_z=False), "lacks its factor z"),
    ("1.3", backward(direct=False), "direct path is missing"),
    ("1.3", backward(slope_of="nothing"), "are missing"),
    ("1.3", backward(slope_first=False), "meets the tanh first"),
    ("1.3", backward(full_direct=True), "direct path lacks its factor"),
    ("1.3", backward(z_forward=other, z_back=other), "exchanged, forwards and backwards"),
    ("1.3", backward(z_forward=other), "exchanged on the way forward"),
    ("1.3", backward(z_back=other), "exchanged on the way back"),
    ("1.3", backward(first=1), "this is dL/dh_1"),
    ("1.3", backward(old=1), "the state before the step"),
    ("1.3", lambda *args: backward()(*args)[::-1], "in the wrong order"),
    ("1.3", backward(moved_first=True), "before you move it"),
    ("1.3", backward(minus_old=False), "use c_t - h_{t-1}"),
    ("1.3", backward(summed=False), "add the shares of all steps"),
    ("1.3", backward(sign=-1), "wrong sign"),
    ("1.3", backward(counted=False), "still 0"),
    ("1.3", backward(per_unit=True), "sum over the units"),
    ("1.3", lambda p, z, h, x, d: backward()(p, z, 0 * h, x, d), "Start from `initial_h`"),
    ("1.3", lambda *args: (args[-1], 0.0), "carried back inside the loop"),
    ("1.3", lambda *args: args[-1], "return two things"),
    ("1.4", lambda steps: np.eye(2), "does not move at all"),
    ("1.4", rotation(turns=5), "with clock_weights(5) the state does not move"),
    ("1.4", rotation(turns=2), "it should take 12, and not fewer"),
    ("1.4", lambda steps: np.array([[0.0, 1.0], [1.0, 0.0]]), "is back after only 2 steps"),
    ("1.4", rotation(degrees=True), "take radians"),
    ("1.4", rotation(turns=0.5), "at the opposite point"),
    ("1.4", lambda steps: rotation()(12), "the same matrix as for 12"),
    ("1.4", lambda steps: np.diag(np.exp([2j, -2j])), "should hold real numbers"),
    ("1.4", rotation(turns=0.4), "How large is the angle"),
    ("1.4", rotation(scale=0.95), "its gradient vanishes"),
    ("1.4", rotation(scale=1.1), "its gradient explodes"),
    ("1.4", rotation(stretch=1.5), "depending on their direction"),
    ("1.4", lambda steps: np.eye(3), "Two units need a (2, 2) matrix"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_a_starter_is_not_started(number):
    assert judge(EXERCISES[number], STARTERS[number])[0] == "not started"
    assert judge(EXERCISES[number], ...)[0] == "not started"


@pytest.mark.parametrize(
    ("number", "answer"),
    [(number, answer) for number, answers in RIGHT.items() for answer in answers],
)
def test_a_right_answer_is_right(number, answer):
    assert judge(EXERCISES[number], answer)[0] == "right"


@pytest.mark.parametrize(("number", "answer", "named"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(number, answer, named):
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet"
    assert named in message


@pytest.mark.parametrize("number", RIGHT)
def test_an_error_in_the_answer_is_named_with_its_line(number):
    def answer(*args):
        return undefined_name  # noqa: F821

    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet"
    assert "NameError" in message
    assert "return undefined_name" in message


@pytest.mark.parametrize("number", RIGHT)
def test_returning_nothing_is_noticed(number):
    verdict, message = judge(EXERCISES[number], lambda *args: None)
    assert verdict == "not yet"
    assert "returned None" in message
