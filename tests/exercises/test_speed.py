"""Chapter 11: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import unrolled
from tests.programs import needs_the_fast_scan
from unrolled.lab.exercises import EXERCISES, judge
from unrolled.scan import Recurrence, Weights


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


# 11.1


def lstm_gate(c, projected, recurrent):
    i, f, g, o = (from_input + from_state for from_input, from_state in zip(projected, recurrent))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def four(array):
    return jnp.split(array, 4, axis=-1)


def lstm(
    weights, carry, inputs, *, bias=True, recur_from=1, output=1, permute=(0, 1, 2, 3), keep="ch",
    reverse=False,
):  # fmt: skip
    first = carry
    pairs = list(zip(four(weights["W"]), four(weights["b"])))
    projected = tuple(inputs @ pairs[k][0] + bias * pairs[k][1] for k in permute)

    def step(carry, projected):
        recurrent = four(carry[recur_from] @ weights["U"])
        carry = lstm_gate(carry[0], projected, [recurrent[k] for k in permute])
        kept = [new if name in keep else old for name, new, old in zip("ch", carry, first)]
        return tuple(kept), carry[output]

    return jax.lax.scan(step, carry, projected, reverse=reverse)


def lstm_with(**options):
    return lambda weights, carry, inputs: lstm(weights, carry, inputs, **options)


def lstm_starter(weights, carry, inputs):
    projected = ...

    def step(carry, projected): ...

    return jax.lax.scan(step, carry, projected)


def lstm_not_hoisted(weights, carry, inputs):
    def step(carry, x):
        projected = four(x @ weights["W"] + weights["b"])
        carry = lstm_gate(carry[0], projected, four(carry[1] @ weights["U"]))
        return carry, carry[1]

    return jax.lax.scan(step, carry, inputs)


def lstm_one_array(weights, carry, inputs):
    def step(carry, projected):
        carry = lstm_gate(carry[0], four(projected), four(carry[1] @ weights["U"]))
        return carry, carry[1]

    return jax.lax.scan(step, carry, inputs @ weights["W"] + weights["b"])


def lstm_stacked(weights, carry, inputs):
    def step(carry, projected):
        carry = lstm_gate(carry[0], projected, four(carry[1] @ weights["U"]))
        return carry, carry[1]

    return jax.lax.scan(step, carry, jnp.stack(four(inputs @ weights["W"] + weights["b"]), 1))


def lstm_start_exchanged(weights, carry, inputs):
    return lstm(weights, carry[::-1], inputs)


def lstm_carry_exchanged(weights, carry, inputs):
    (c, h), states = lstm(weights, carry, inputs)
    return (h, c), states


def lstm_transposed(weights, carry, inputs):
    turned = jnp.concatenate([square.T for square in four(weights["U"])], axis=1)
    return lstm(weights | {"U": turned}, carry, inputs)


def lstm_memory_twice(weights, carry, inputs):
    (c, _), states = lstm(weights, carry, inputs)
    return (c, c), states


def lstm_multiplies_by_each_square(weights, carry, inputs):
    squares = four(weights["U"])

    def step(carry, projected):
        carry = lstm_gate(carry[0], projected, [carry[1] @ square for square in squares])
        return carry, carry[1]

    return jax.lax.scan(step, carry, tuple(four(inputs @ weights["W"] + weights["b"])))


def lstm_from_zero(weights, carry, inputs):
    return lstm(weights, jax.tree.map(jnp.zeros_like, carry), inputs)


def lstm_python_loop(weights, carry, inputs):
    states = []
    for x in inputs:
        carry, state = lstm(weights, carry, x[None])
        states.append(state)
    return carry, jnp.concatenate(states)


def lstm_states_only(weights, carry, inputs):
    return lstm(weights, carry, inputs)[1]


def lstm_raises(weights, carry, inputs):
    return weights["no"]


@pytest.mark.parametrize(
    "answer, words",
    [
        (lstm_with(bias=False), "bias is missing"),
        (lstm_with(recur_from=0), "takes the memory c"),
        (lstm_with(output=0), "memories c"),
        (lstm_with(permute=(1, 0, 2, 3)), "order f, i, g, o"),
        (lstm_with(permute=(3, 2, 1, 0)), "order o, g, f, i"),
        (lstm_with(keep=""), "carry is not handed on"),
        (lstm_with(keep="h"), "and c is not"),
        (lstm_with(keep="c"), "and h is not"),
        (lstm_with(reverse=True), "backwards through time"),
        (lstm_transposed, "squares in U are transposed"),
        (lambda weights, carry, inputs: (carry, lstm(weights, carry, inputs)[1]), "before the"),
        (lstm_memory_twice, "(c, c)"),
        (lstm_start_exchanged, "exchanged"),
        (lstm_carry_exchanged, "(h, c)"),
        (lstm_from_zero, "start with zeros"),
        (lstm_not_hoisted, "loop holds 2 products. The inputs' products do not wait"),
        (lstm_multiplies_by_each_square, "4 products. One does: multiply h by all of U"),
        (lstm_one_array, "cuts one array"),
        (lstm_stacked, "one for each gate"),
        (lstm_python_loop, "5 loops"),
        (lambda *arguments: lstm(*arguments)[::-1], "two results are exchanged"),
        (lstm_states_only, "Return the pair"),
        (lstm_raises, "'no'"),
    ],
)
def test_11_1_names_the_mistake(answer, words):
    found, message = verdict("11.1", answer)
    assert found == "not yet" and words in message


def test_11_1_starter_and_right_answer():
    assert verdict("11.1", lstm_starter)[0] == "not started"
    assert verdict("11.1", lstm)[0] == "right"


# 11.2


def smallest(hidden, gates, peak, bandwidth, *, read=1, written=1, operations=2, size=4):
    ratio = peak / bandwidth
    slope = operations * gates * hidden - size * ratio * (read + gates * written)
    return math.ceil(size * ratio * gates * hidden / slope) if slope > 0 else math.inf


def smallest_with(**options):
    return lambda *machine: smallest(*machine, **options)


def smallest_starter(hidden, gates, peak, bandwidth):
    return ...


def smallest_rounded_down(*machine):
    return smallest(*machine) - 1 if smallest(*machine) < math.inf else math.inf


def smallest_next_above(hidden, gates, peak, bandwidth):
    """The next whole number *above* the bound."""
    ratio = peak / bandwidth
    slope = 2 * gates * hidden - 4 * ratio * (1 + gates)
    return math.floor(4 * ratio * gates * hidden / slope) + 1 if slope > 0 else math.inf


def smallest_approximate(hidden, gates, peak, bandwidth):
    return math.ceil(2 * peak / bandwidth)


def smallest_ratio_upside_down(hidden, gates, peak, bandwidth):
    return smallest(hidden, gates, bandwidth, peak)


def smallest_never_infinite(*machine):
    found = smallest(*machine)
    return found if found < math.inf else 10_000


def smallest_divides_by_nothing(hidden, gates, peak, bandwidth):
    """Forgets the batch for which the intensity would have to be infinite."""
    ratio = peak / bandwidth
    slope = 2 * gates * hidden - 4 * ratio * (1 + gates)
    return math.inf if slope < 0 else math.ceil(4 * ratio * gates * hidden / slope)


def smallest_below_the_limit(hidden, gates, peak, bandwidth):
    limit = gates * hidden / (2 * (1 + gates))
    return smallest(hidden, gates, peak, bandwidth) if limit != peak / bandwidth else 10_000


def smallest_array(*machine):
    return [1, 2]


def smallest_raises(*machine):
    return math.ceil("no")


@pytest.mark.parametrize(
    "answer, words",
    [
        (smallest_rounded_down, "Round up"),
        (smallest_next_above, "One row fewer"),
        (lambda *machine: smallest(*machine) + 1, "One row fewer"),
        (smallest_approximate, "approximation"),
        (smallest_with(operations=1), "two operations"),
        (smallest_with(size=1), "4 bytes"),
        (smallest_with(written=0), "written is missing"),
        (smallest_with(read=0), "read is missing"),
        (smallest_ratio_upside_down, "divided bandwidth by peak"),
        (smallest_never_infinite, "math.inf"),
        (lambda *machine: 7, "intensity is"),
        (smallest_divides_by_nothing, "and never reaches it. Expected math.inf. (`smallest_div"),
        (smallest_below_the_limit, "comes close to 16 and never reaches it. You say 10000"),
        (smallest_array, "one number"),
        (smallest_raises, "TypeError"),
    ],
)
def test_11_2_names_the_mistake(answer, words):
    found, message = verdict("11.2", answer)
    assert found == "not yet" and words in message


def test_11_2_starter_and_right_answer():
    assert verdict("11.2", smallest_starter)[0] == "not started"
    assert verdict("11.2", smallest)[0] == "right"


# 11.3


def tangents_of(
    weights, states, initial_h, inputs, tangents, *, without=None, after=False, slope=None,
    transpose=False, late=False, hand_on=True, reverse=False, alone=False,
):  # fmt: skip
    W, _, U = weights
    tangents = [0 * t if index == without else t for index, t in enumerate(tangents)]
    dW, db, dU, d_h, d_inputs = tangents
    before = states if after else jnp.concatenate([initial_h[None], states[:-1]])
    drive = d_inputs @ W + inputs @ dW + db + before @ dU
    slopes = 1 - states**2 if slope is None else slope(states)

    def step(d_h, known):
        slope, drive = known
        moved = (d_h if hand_on else tangents[3]) @ (U.T if transpose else U) * (not alone)
        d_h = slope * moved + drive if late else slope * (moved + drive)
        return d_h, d_h

    return jax.lax.scan(step, d_h, (slopes, drive), reverse=reverse)[1]


def tangents_with(**options):
    return lambda *arguments: tangents_of(*arguments, **options)


def tangents_starter(weights, states, initial_h, inputs, tangents):
    drive = ...

    def step(d_h, known): ...

    return jax.lax.scan(step, tangents[3], (1 - states**2, drive))[1]


def states_of(W, b, U, h, inputs):
    def step(h, x):
        h = jnp.tanh(x @ W + b + h @ U)
        return h, h

    return jax.lax.scan(step, h, inputs)[1]


def tangents_by_jvp(weights, states, initial_h, inputs, tangents):
    return jax.jvp(states_of, (*weights, initial_h, inputs), tuple(tangents))[1]


def tangents_not_hoisted(weights, states, initial_h, inputs, tangents):
    W, _, U = weights
    dW, db, dU, d_h, d_inputs = tangents
    before = jnp.concatenate([initial_h[None], states[:-1]])

    def step(d_h, known):
        h, h_before, x, dx = known
        d_h = (1 - h**2) * (d_h @ U + dx @ W + x @ dW + db + h_before @ dU)
        return d_h, d_h

    return jax.lax.scan(step, d_h, (states, before, inputs, d_inputs))[1]


def tangents_last_only(*arguments):
    return tangents_of(*arguments)[-1]


def tangents_raise(*arguments):
    return arguments["no"]


@pytest.mark.parametrize(
    "answer, words",
    [
        (tangents_with(without=0), "tangent dW"),
        (tangents_with(without=1), "tangent db"),
        (tangents_with(without=2), "tangent dU"),
        (tangents_with(without=3), "tangent d_initial_h"),
        (tangents_with(without=4), "tangent d_inputs"),
        (tangents_with(after=True), "those before"),
        (tangents_with(slope=jnp.ones_like), "derivative of tanh is missing"),
        (tangents_with(slope=lambda h: 1 - h), "with the square"),
        (tangents_with(late=True), "not to the drive"),
        (tangents_with(transpose=True), "transpose of U"),
        (tangents_with(hand_on=False), "is not handed on"),
        (tangents_with(reverse=True), "backwards through time"),
        (tangents_with(alone=True), "drives alone"),
        (lambda *arguments: 2 * tangents_of(*arguments), "first step by hand"),
        (tangents_by_jvp, "compute tanh again"),
        (tangents_not_hoisted, "loop holds 4 products"),
        (tangents_last_only, "One tangent for each state"),
        (tangents_raise, "TypeError"),
    ],
)
def test_11_3_names_the_mistake(answer, words):
    found, message = verdict("11.3", answer)
    assert found == "not yet" and words in message


def test_11_3_starter_and_right_answer():
    assert verdict("11.3", tangents_starter)[0] == "not started"
    assert verdict("11.3", tangents_of)[0] == "right"


# 11.4: what is faster depends on the machine, and not even that is fixed where JAX compiles without
# optimising; so the clock is replaced.


def loop_of(steps=1000, unroll=4):
    def worth_unrolling():
        def step(h, x):
            return jnp.tanh(0.9 * h + x), None

        return step, jnp.ones(8), jnp.ones((steps, 8)), unroll

    return worth_unrolling


def loop_starter():
    step = ...
    return step, ..., ..., ...


def loop_raises():
    def step(h, x):
        return h @ x, None

    return step, jnp.ones(3), jnp.ones((1000, 4)), 2


@pytest.fixture
def clock(monkeypatch):
    """Let the loops take these times in turn: the plain one, then the unrolled one."""

    def set_times(*seconds):
        calls = iter(range(10_000))
        monkeypatch.setattr(
            "unrolled.lab.exercises.speed._seconds", lambda *_: seconds[next(calls) % 2]
        )

    return set_times


@pytest.mark.parametrize(
    "answer, times, words",
    [
        (loop_of(), (1.0, 2.0), "got slower"),
        (loop_of(), (1.0, 0.95), "at least 1.15 is wanted"),
        (loop_of(steps=100), (2.0, 1.0), "100 steps"),
        (loop_of(unroll=1), (2.0, 1.0), "at least 2"),
        (loop_of(unroll=True), (2.0, 1.0), "whole number"),
        (loop_of(unroll=900), (2.0, 1.0), "nothing is left of the loop"),
        (lambda: loop_of()()[:3], (2.0, 1.0), "four things"),
        (lambda: (1, *loop_of()()[1:]), (2.0, 1.0), "should be the step"),
        (lambda: (loop_of()()[0], 1.0, 2.0, 4), (2.0, 1.0), "first axis is time"),
        (loop_raises, (2.0, 1.0), "the step of"),
    ],
)
def test_11_4_names_the_mistake(answer, times, words, clock):
    clock(*times)
    found, message = verdict("11.4", answer)
    assert found == "not yet" and words in message


def test_11_4_starter_and_right_answer(clock):
    clock(2.0, 1.0)
    assert verdict("11.4", loop_starter)[0] == "not started"
    assert verdict("11.4", loop_of())[0] == "right"


def test_11_4_measures_slow_loops_less_often(monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr("unrolled.lab.exercises.speed.time.perf_counter", lambda: next(now))
    assert "1.00 times the speed" in verdict("11.4", loop_of())[1]
    assert next(now) < 60


def test_11_4_measures():
    assert verdict("11.4", loop_of())[0] in ("right", "not yet")


# 11.5


class Minimal(unrolled.RNNCellBase):
    """A gated unit with one gate; the mistakes below change one line of it."""

    order = (0, 1)
    biases = None

    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        self.from_input = nnx.Linear(in_features, 2 * hidden_features, rngs=rngs)
        self.from_state = nnx.Linear(
            hidden_features, 2 * hidden_features, use_bias=False, rngs=rngs
        )

    def gate(self, carry, projected, recurrent):
        (h,) = carry
        f = jax.nn.sigmoid(projected[0] + recurrent[0])
        return ((1 - f) * h + f * jnp.tanh(projected[1] + f * recurrent[1]),)

    def __call__(self, carry, inputs):
        shares = self.from_input(inputs), self.from_state(carry)
        (h,) = self.gate((carry,), *(jnp.split(share, 2, -1) for share in shares))
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))

    def recurrence(self):
        parameters = self.from_input.kernel, self.from_input.bias, self.from_state.kernel
        kernels, biases, recurrent = (jnp.split(each[...], 2, -1) for each in parameters)
        return Recurrence(
            self.gate,
            Weights(
                tuple(kernels),
                self.biases or tuple(biases),
                tuple(recurrent[i] for i in self.order),
                (None, None),
            ),
        )


class Mixes(Minimal):
    def gate(self, carry, projected, recurrent):
        (h,) = super().gate(carry, projected, recurrent)
        return (h - h.mean(axis=-1, keepdims=True),)


class NoBiases(Minimal):
    biases = (None, None)


class Swapped(Minimal):
    order = (1, 0)


class OtherOutput(Minimal):
    def __call__(self, carry, inputs):
        h, _ = super().__call__(carry, inputs)
        return h, 2 * h


class Grows(Minimal):
    def gate(self, carry, projected, recurrent):
        return (carry[0] + jax.nn.relu(projected[0] + jnp.tanh(recurrent[1])),)


class ForgetsUntold(Minimal):
    """Its steps count, which the recurrence knows nothing of."""

    def recurrence(self):
        return None


class WrongShapes(Minimal):
    def recurrence(self):
        recurrence = super().recurrence()
        return recurrence._replace(
            weights=recurrence.weights._replace(kernels=(self.from_input.kernel[...],) * 2)
        )


class OnePart(Minimal):
    def gate(self, carry, projected, recurrent):
        return super().gate(carry, projected, recurrent)[0]

    def __call__(self, carry, inputs):
        return carry, carry


class Both(Minimal):
    def gate(self, carry, projected, recurrent):
        return 2 * super().gate(carry, projected, recurrent)

    def __call__(self, carry, inputs):
        return carry, carry


class TooFew(Minimal):
    biases = (None,)


@needs_the_fast_scan
@pytest.mark.parametrize(
    "answer, words",
    [
        (Mixes, "Next: the gate treats every number by itself"),
        (NoBiases, "They differ even for a carry and an input of zero"),
        (Swapped, "From a carry of zero they agree"),
        (OtherOutput, "Next: the output of a step is its hidden state"),
        (Grows, "Next: the state stays below 10"),
        (ForgetsUntold, "`recurrence` returned None"),
        (WrongShapes, "a kernel has shape (3, 10); expected (3, 5)"),
        (TooFew, "as many of each as there are gates"),
        (OnePart, "shape (2, 5); expected a tuple with an array for each part of the carry"),
        (Both, "returned 2 parts; expected a tuple"),
        (nnx.Linear, "`__call__`, `initialize_carry` and `recurrence`"),
        (lambda *sizes, rngs: sizes[7], "IndexError"),
    ],
)
def test_11_5_names_what_is_missing(answer, words):
    found, message = verdict("11.5", answer)
    assert found == "not yet" and words in message, message


class Started(Minimal):
    def recurrence(self):
        return ...


class StartedGate(Minimal):
    def gate(self, carry, projected, recurrent):
        return ...


@needs_the_fast_scan
def test_11_5_starters_and_an_answer():
    assert verdict("11.5", Started)[0] == "not started"
    assert verdict("11.5", StartedGate)[0] == "not started"
    found, message = verdict("11.5", Minimal)
    assert found == "right" and "9 of 9 criteria are met" in message, message
