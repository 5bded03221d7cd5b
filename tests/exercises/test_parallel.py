"""Chapter 12: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


# 12.1


def queue(first, second):
    (a1, b1), (a2, b2) = first, second
    return a1 + a2, jnp.maximum(b1 + a2, b2)


def queue_starter(first, second):
    return ..., ...


def queue_with(a, b):
    def queue_then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a(a1, a2), b(a1, b1, a2, b2)

    return queue_then


def added(a1, a2):
    return a1 + a2


def right_b(a1, b1, a2, b2):
    return np.maximum(b1 + a2, b2)


@pytest.mark.parametrize(
    "answer, words",
    [
        (queue_with(lambda a1, a2: a1 * a2, right_b), "product, as for affine"),
        (lambda first, second: queue(first, second)[::-1], "pair is the wrong way round"),
        (queue_with(lambda a1, a2: a2, right_b), "second step alone"),
        (queue_with(lambda a1, a2: a1, right_b), "first step alone"),
        (queue_with(np.maximum, right_b), "a is a maximum"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b2 + a1, b1)), "order is swapped"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b1, b2)), "compares b1 and b2"),
        (queue_with(added, lambda a1, b1, a2, b2: a2 + b1 + b2), "takes a maximum with b2"),
        (queue_with(added, lambda a1, b1, a2, b2: a2 * b1 + b2), "formula for affine"),
        (queue_with(added, lambda a1, b1, a2, b2: b1 + a2), "lacks b2"),
        (queue_with(added, lambda a1, b1, a2, b2: b2), "b is that of the second"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b1, b2) + a2), "adds a2 to b2"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(a1 + b1 + a2, b2)), "contains a1"),
        (queue_with(added, lambda a1, b1, a2, b2: np.minimum(b1 + a2, b2)), "smaller"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b1 + a1, b2)), "moves b1 by a1"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b1, b2 + a2)), "a2 to b2, not to b1"),
        (queue_with(added, lambda a1, b1, a2, b2: np.maximum(b1 + a2, 0)), "in the place of b2"),
        (queue_with(added, lambda a1, b1, a2, b2: b1 - a2), "Follow b1"),
        (queue_with(lambda a1, a2: a1.sum() + a2.sum(), right_b), "element by element"),
        (lambda first, second: first[0] + second[0], "Return a pair"),
        (lambda first, second: first["no"], '"no"'),
    ],
)
def test_12_1_names_the_mistake(answer, words):
    found, message = verdict("12.1", answer)
    assert found == "not yet" and words in message


def test_12_1_starter_and_right_answer():
    assert verdict("12.1", queue_starter)[0] == "not started"
    assert verdict("12.1", queue)[0] == "right"


# 12.2


def then(first, second):
    (a1, b1), (a2, b2) = first, second
    return a2 * a1, a2 * b1 + b2


def states(a, b):
    return jax.lax.associative_scan(then, (a, b))[1]


def packed(a, b, starts):
    return states(jnp.where(starts[:, None], 0, a), b)


def packed_starter(a, b, starts):
    return ...


def packed_late(a, b, starts):
    return packed(a, b, jnp.concatenate([starts[:1], starts[:-1]]).at[0].set(False))


def packed_early(a, b, starts):
    return packed(a, b, jnp.concatenate([starts[1:], jnp.array([False])]))


def packed_swapped(a, b, starts):
    elements = jnp.where(starts[:, None], 0, a), b
    return jax.lax.associative_scan(lambda first, second: then(second, first), elements)[1]


def packed_by_index(a, b, starts):
    """Right; but JAX must know `starts` when it traces this."""
    return states(a.at[starts].set(0), b)


def packed_by_found_index(a, b, starts):
    return states(a.at[jnp.flatnonzero(starts)].set(0), b)


def packed_one_by_one(a, b, starts):
    """A tree for each sequence."""
    begins = np.flatnonzero(starts)
    ends = [*begins[1:], len(a)]
    return jnp.concatenate([states(a[i:j], b[i:j]) for i, j in zip(begins, ends)])


def packed_with_a_loop(a, b, starts):
    def step(h, abs_):
        a, b, start = abs_
        h = jnp.where(start, 0, a) * h + b
        return h, h

    return jax.lax.scan(step, jnp.zeros(a.shape[1]), (a, b, starts))[1]


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda a, b, starts: states(a, b), "Nothing is reset"),
        (packed_late, "one step late"),
        (packed_early, "one step early"),
        (lambda a, b, starts: packed(a, b, jnp.roll(starts, -1)), "first start to the end"),
        (packed_swapped, "operands of the tree's operation are swapped"),
        (lambda a, b, starts: packed_swapped(a, b, starts & False), "And nothing is reset"),
        (
            lambda a, b, starts: packed(a, jnp.where(starts[:, None], 0, b), starts),
            "also set b to zero",
        ),
        (lambda a, b, starts: states(a, jnp.where(starts[:, None], 0, b)), "kept a"),
        (lambda a, b, starts: jnp.where(starts[:, None], 0, states(a, b)), "finished states"),
        (lambda a, b, starts: jnp.where(starts[:, None], b, states(a, b)), "afterwards"),
        (lambda a, b, starts: packed(a, b, ~starts), "other way round"),
        (lambda a, b, starts: states(jnp.where(starts[:, None], 1, a), b), "a to one"),
        (
            lambda a, b, starts: jnp.cumprod(jnp.where(starts[:, None], 0, a), axis=0),
            "product of the factors",
        ),
        (
            lambda a, b, starts: jax.lax.associative_scan(then, (a, b)),
            "You returned a pair",
        ),
        (lambda a, b, starts: packed(a, b, starts)[0], "shape"),
        (lambda a, b, starts: packed(a, 2 * b, starts), "forget everything"),
        (packed_with_a_loop, "loop over time"),
        (packed_one_by_one, "a tree of its own"),
        (packed_by_found_index, "without looking for the places"),
        (lambda a, b, starts: a @ "no", '@ "no"'),
    ],
)
def test_12_2_names_the_mistake(answer, words):
    found, message = verdict("12.2", answer)
    assert found == "not yet" and words in message


def test_12_2_starter_and_right_answer():
    assert verdict("12.2", packed_starter)[0] == "not started"
    assert verdict("12.2", packed)[0] == "right"
    assert verdict("12.2", jax.jit(packed))[0] == "right"
    assert verdict("12.2", packed_by_index)[0] == "right"


# 12.3


def logs(then, half=1):
    def log_recurrence(log_a, log_b):
        return jax.lax.associative_scan(then, (log_a, log_b))[half]

    return log_recurrence


def log_then(first, second):
    (a1, b1), (a2, b2) = first, second
    return a1 + a2, jnp.logaddexp(a2 + b1, b2)


def log_starter(log_a, log_b):
    return ...


def log_with(b):
    def then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a1 + a2, b(a1, b1, a2, b2)

    return logs(then)


def log_back_and_forth(log_a, log_b):
    return jnp.log(states(jnp.exp(log_a), jnp.exp(log_b)))


def log_with_a_loop(log_a, log_b):
    def step(h, ab):
        h = jnp.logaddexp(ab[0] + h, ab[1])
        return h, h

    return jax.lax.scan(step, -jnp.inf, (log_a, log_b))[1]


@pytest.mark.parametrize(
    "answer, words",
    [
        (log_back_and_forth, "not finite"),
        (lambda log_a, log_b: states(jnp.exp(log_a), jnp.exp(log_b)), "Return their logarithms"),
        (states, "as if they were the numbers"),
        (logs(log_then, half=0), "first half"),
        (log_with(lambda a1, b1, a2, b2: jnp.logaddexp(b1, b2)), "never multiplied"),
        (log_with(lambda a1, b1, a2, b2: jnp.logaddexp(a1 + b2, b1)), "order is swapped"),
        (log_with(lambda a1, b1, a2, b2: a2 + b1 + b2), "logarithm of a product"),
        (log_with(lambda a1, b1, a2, b2: jnp.logaddexp(a1 + b1, b2)), "log a of the *first* step"),
        (log_with(lambda a1, b1, a2, b2: jnp.maximum(a2 + b1, b2)), "larger of two"),
        (log_with(lambda a1, b1, a2, b2: b2), "first three values"),
        (lambda a, b: jax.lax.associative_scan(log_then, (a, b)), "You returned a pair"),
        (log_with_a_loop, "loop over time"),
        (lambda log_a, log_b: log_a @ "no", '@ "no"'),
    ],
)
def test_12_3_names_the_mistake(answer, words):
    found, message = verdict("12.3", answer)
    assert found == "not yet" and words in message


def test_12_3_starter_and_right_answer():
    assert verdict("12.3", log_starter)[0] == "not started"
    assert verdict("12.3", logs(log_then))[0] == "right"


# 12.4


def matrices_then(first, second):
    (A1, b1), (A2, b2) = first, second
    return A2 @ A1, jnp.einsum("tij,tj->ti", A2, b1) + b2


def parts(step, initial_h, inputs, guess):
    before = jnp.concatenate([initial_h[None], guess[:-1]])
    J = jax.vmap(jax.jacfwd(step))(before, inputs)
    return J, jax.vmap(step)(before, inputs) - guess


def newton(damping=1.0, limit=jnp.inf):
    def improve(step, initial_h, inputs, guess):
        J, e = parts(step, initial_h, inputs, guess)
        _, d = jax.lax.associative_scan(matrices_then, (damping * J, e))
        return jnp.clip(jnp.nan_to_num(guess + d), -limit, limit)

    return improve


def improve_starter(step, initial_h, inputs, guess):
    return ...


def improve_one_per_sweep(step, initial_h, inputs, guess):
    return guess + parts(step, initial_h, inputs, guess)[1]


def improve_diagonal(step, initial_h, inputs, guess):
    J, e = parts(step, initial_h, inputs, guess)
    return guess + jax.lax.associative_scan(then, (jnp.diagonal(J, axis1=1, axis2=2), e))[1]


def improve_keeps_moving(step, initial_h, inputs, guess):
    """Moves on by a little once the residual is small."""
    better = newton(0.93, 1.0)(step, initial_h, inputs, guess)
    solved = jnp.abs(parts(step, initial_h, inputs, guess)[1]).max() < 1e-4
    return jnp.where(solved, better + 0.01, better)


def improve_believes_the_guess(step, initial_h, inputs, guess):
    better = newton(0.93, 1.0)(step, initial_h, inputs, guess)
    return jnp.where(jnp.abs(guess) < 50, better, guess)


def improve_wrong_sign(step, initial_h, inputs, guess):
    return 2 * guess - newton()(step, initial_h, inputs, guess)


def improve_forgets_the_start(step, initial_h, inputs, guess):
    return newton()(step, initial_h + 1, inputs, guess)


def improve_starts_with_zeros(step, initial_h, inputs, guess):
    return newton(0.9, 1.0)(step, jnp.zeros_like(initial_h), inputs, guess)


def improve_not_shifted(step, initial_h, inputs, guess):
    return jax.vmap(step)(guess, inputs)


def improve_with_scan(step, initial_h, inputs, guess):
    return jax.lax.scan(lambda h, x: (step(h, x), step(h, x)), initial_h, inputs)[1]


def improve_with_a_python_loop(step, initial_h, inputs, guess):
    h, found = initial_h, []
    for x in inputs:
        h = step(h, x)
        found.append(h)
    return jnp.stack(found)


def improve_three_at_once(step, initial_h, inputs, guess):
    for _ in range(3):
        guess = newton(0.9, 1.0)(step, initial_h, inputs, guess)
    return guess


def improve_nothing(step, initial_h, inputs, guess):
    return guess


@pytest.mark.parametrize(
    "answer, words",
    [
        (newton(), "Next: the three together in at most 75. The edge and the wild one"),
        (newton(0.3), "Next: the calm GRU in at most 8 sweeps. You pass on too little"),
        (improve_one_per_sweep, "pass on too little"),
        (improve_diagonal, "Next: the edge GRU in at most 40 sweeps. The guess overshoots"),
        (improve_keeps_moving, "Next: what is solved stays solved"),
        (improve_believes_the_guess, "Next: a guess of 100 for every number"),
        (improve_wrong_sign, "own residual"),
        (improve_forgets_the_start, "own residual"),
        (improve_starts_with_zeros, "With another `initial_h`"),
        (improve_with_scan, "loop in your sweep"),
        (improve_with_a_python_loop, "128 times in one sweep"),
        (improve_three_at_once, "a single sweep"),
        (improve_nothing, "never call `step`"),
        (
            lambda step, h, inputs, guess: newton()(step, h, inputs, guess)[:-1],
            "shape of the guess",
        ),
        (lambda step, h, inputs, guess: (guess, guess), "Return one array"),
        (lambda step, h, inputs, guess: guess @ "no", '@ "no"'),
    ],
)
def test_12_4_names_the_mistake(answer, words):
    found, message = verdict("12.4", answer)
    assert found == "not yet" and words in message, message


def test_12_4_starter_and_right_answer():
    assert verdict("12.4", improve_starter)[0] == "not started"
    found, message = verdict("12.4", newton(0.9, 1.0))
    assert found == "right" and "7 of 9 criteria are met" in message, message
