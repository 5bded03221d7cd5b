"""Exercises of chapter 12: a queue, packed sequences, logarithms, and a sweep of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.gru import gru_step, initialize_gru_params
from unrolled.lab.exercises._base import (
    Criterion,
    Wrong,
    describe,
    exercise,
    expect_array,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.exercises._programs import equations, outermost_loops, traced


@exercise("12.1", "A queue as a tree", "easy")
def queue_then(function: Callable) -> str:
    generator = np.random.default_rng(121)
    a1, b1, a2, b2 = generator.normal(size=(4, 3, 5)).astype(np.float32)
    both = _pair(run(function, (a1, b1), (a2, b2)))
    hint = "Rows of the arrays are separate steps: work on them element by element."
    for name, part in zip("ab", both):
        expect_array(part, a1.shape, f"the {name} of the result", hint)
    expect_close(
        both[0],
        a1 + a2,
        name="the a of the result",
        mistakes={
            "Your a is a product, as for affine steps. Here a is *added* to w, and two things that "
            "are added one after the other make a sum.": a1 * a2,
            "The pair is the wrong way round: first a, then b.": np.maximum(b1 + a2, b2),
            "Your a is that of the second step alone: w has also had the first one added.": a2,
            "Your a is that of the first step alone: the second one adds something, too.": a1,
            "Your a is a maximum, but nothing is compared on the way of w: both are added.": (
                np.maximum(a1, a2)
            ),
        },
        otherwise="What has been added to w after both steps, if no maximum has cut it off?",
    )
    expect_close(
        both[1],
        np.maximum(b1 + a2, b2),
        name="the b of the result",
        mistakes={
            "The order is swapped: your pair stands for *second, then first*. What the first step "
            "leaves behind goes through the second one.": np.maximum(b2 + a1, b1),
            "Your b compares b1 and b2 directly. But b1 comes out of the first step and goes "
            "through the second one, which adds a2.": np.maximum(b1, b2),
            "Your b is a sum, as for affine steps. The second step takes a maximum with b2.": (
                a2 + b1 + b2
            ),
            "Your b is the formula for affine steps; here a is added and b is compared.": (
                a2 * b1 + b2
            ),
            "Your b lacks b2: the second step takes a maximum at its end.": b1 + a2,
            "Your b is that of the second step alone. The first one may have left more than "
            "that.": b2,
            "Your b moves b1 by a1. The a of the first step is used up: b1 is what comes *out* of "
            "that step, and goes through the second one.": np.maximum(b1 + a1, b2),
            "Your b adds a2 to b2, not to b1. What does the second step add its a to?": np.maximum(
                b1, b2 + a2
            ),
            "Your b adds a2 to b2 as well. The second step adds first and compares then.": (
                np.maximum(b1, b2) + a2
            ),
            "Your b contains a1. The b of the first step is compared *after* a1 was "
            "added.": np.maximum(b1 + a1 + a2, b2),
            "Your b takes 0 in the place of b2. It is zero at each customer, but the b of a pair "
            "in the tree is another number.": np.maximum(b1 + a2, 0),
            "Your b takes the smaller of the two; a step takes the larger.": (
                np.minimum(b1 + a2, b2)
            ),
        },
        otherwise="Follow b1 through the second step.",
    )
    work, gaps = generator.exponential(size=(2, 200)).astype(np.float32)
    a = np.concatenate([[0.0], work[:-1] - gaps[1:]]).astype(np.float32)
    waits = [0.0]
    for change in a[1:].astype(np.float64):
        waits.append(max(waits[-1] + change, 0.0))
    elements = (jnp.asarray(a), jnp.zeros_like(jnp.asarray(a)))
    so_far = _pair(run(jax.lax.associative_scan, function, elements))
    found = np.maximum(np.asarray(so_far[0]), np.asarray(so_far[1]))  # from a wait of zero
    expect_close(found, waits, name="the waits of 200 customers", tolerance=1e-4)
    return (
        f"200 customers, the longest wait {max(waits):.1f} minutes, in a tree. Nothing here is "
        "linear: it is enough that two steps make one of the same form."
    )


def _pair(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong(
            "Return a pair (a, b), one step like the two that you were given; this is "
            f"{describe(result)}."
        )
    return tuple(result)


@exercise("12.2", "Many sequences in one row", "medium")
def packed_recurrence(function: Callable) -> str:
    generator = np.random.default_rng(122)
    a = generator.uniform(0.5, 1.5, size=(12, 3)).astype(np.float32)
    b = generator.normal(size=(12, 3)).astype(np.float32)
    starts = np.isin(np.arange(12), (0, 3, 4, 9))
    arguments = (jnp.asarray(a), jnp.asarray(b), jnp.asarray(starts))
    result = run(function, *arguments)
    if isinstance(result, tuple | list):
        raise Wrong(
            "You returned a pair. The scan gives you pairs of (a, b); with a state of zero before "
            "the first step, the states are the second half."
        )
    late = np.concatenate([[False], starts[:-1]])
    mask = starts[:, None]
    before_each = np.concatenate([starts[1:], [False]])
    rolled = np.roll(starts, -1)
    cut = np.where(mask, 0, a)
    states = _recurrence(cut, b)
    too_early = (
        "The reset comes one step early: the last step of each sequence has lost its own past."
    )
    swapped = (
        "Your pair stands for *second, then first*: the operands of the tree's operation are "
        "swapped. The first step's b goes through the second step, not the other way round."
    )
    expect_close(
        result,
        states,
        name="the states",
        mistakes={
            "Nothing is reset: every sequence goes on from the state of the one before.": (
                _recurrence(a, b)
            ),
            "The reset comes one step late: the first step of a sequence still has the old state. "
            "It must be forgotten *at* the step where `starts` is true.": _recurrence(
                np.where(late[:, None], 0, a), b
            ),
            too_early: _recurrence(np.where(before_each[:, None], 0, a), b),
            f"{too_early} That goes for the last sequence too: `roll` brings the first start to "
            "the end.": _recurrence(np.where(rolled[:, None], 0, a), b),
            swapped: _swapped_recurrence(cut, b),
            f"{swapped} And nothing is reset.": _swapped_recurrence(a, b),
            "You have also set b to zero where a sequence starts. Only the old state must go; the "
            "first input counts.": _recurrence(np.where(mask, 0, a), np.where(mask, 0, b)),
            "You have set b to zero where a sequence starts, and kept a. It is a that lets the old "
            "state in.": _recurrence(a, np.where(mask, 0, b)),
            "You have set the finished states to zero at the starts. By then the old sequence has "
            "long been carried on into the new one.": np.where(mask, 0, _recurrence(a, b)),
            "You have set the states at the starts to b afterwards. The steps behind them still "
            "contain the old sequence.": np.where(mask, b, _recurrence(a, b)),
            "It is the other way round: you forget everywhere except at the starts.": _recurrence(
                np.where(mask, a, 0), b
            ),
            "Where a sequence starts you have set a to one, which keeps all of the old "
            "state.": _recurrence(np.where(mask, 1, a), b),
            "This is the product of the factors, the first half of what the scan gives you. The "
            "states are the second half.": np.cumprod(np.where(mask, 0, a), axis=0),
        },
        otherwise="Work out by hand which factor makes a step forget everything.",
        tolerance=1e-4,
    )
    _no_loop_over_sequences(function, *arguments)
    return (
        "a factor of zero cuts the row, wherever the tree happens to combine. Four sequences in "
        "one scan, and not one step of padding."
    )


def _no_loop_over_sequences(function: Callable, a: Any, b: Any, starts: Any) -> None:
    """Raise if there is a loop. JAX traces `a` and `b`, and knows `starts`, as an index must be."""
    sizes = []
    for begins in (starts, jnp.arange(len(starts)) == 0):
        try:
            program = traced(lambda a, b, begins=begins: function(a, b, begins), a, b)
        except Wrong:
            raise Wrong(
                "The values are right, but JAX cannot trace the function. Use `jnp` instead of "
                "NumPy, `float()` and `if`; and `jnp.where(starts[:, None], ...)` chooses without "
                "looking for the places where `starts` is true."
            ) from None
        _expect_no_loop(program)
        sizes.append(len(list(equations(program))))
    if sizes[0] != sizes[1]:
        raise Wrong(
            "The values are right, but each sequence has a tree of its own, made by a Python loop: "
            "the program grows with the number of sequences. One tree over the whole row can do it."
        )


def _recurrence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    state, states = np.zeros(np.shape(a)[1:]), []
    for factor, added in zip(a.astype(np.float64), b.astype(np.float64)):
        state = factor * state + added
        states.append(state)
    return np.stack(states)


def _swapped_recurrence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What comes of combining (a1 a2, a1 b2 + b1)."""
    before = np.concatenate([np.ones_like(a[:1]), np.cumprod(a[:-1], axis=0)])
    return np.cumsum(before * b, axis=0)


@exercise("12.3", "Where floats end", "hard")
def log_recurrence(function: Callable) -> str:
    generator = np.random.default_rng(123)
    mild = generator.normal(size=(2, 9)).astype(np.float32)
    wild = (60 * generator.normal(size=(2, 64))).astype(np.float32)
    mild_result = run(function, *map(jnp.asarray, mild))
    if isinstance(mild_result, tuple | list):
        raise Wrong(
            "You returned a pair. The scan gives you pairs of logarithms; with h_0 = 0 the states "
            "are the second half."
        )
    expected = _log_recurrence(*mild)
    log_a, log_b = mild.astype(np.float64)
    products = np.cumsum(log_a)
    expect_close(
        mild_result,
        expected,
        name="log h",
        mistakes={
            "These are the states themselves. Return their logarithms.": np.exp(expected),
            "You have computed h_t = a_t h_(t-1) + b_t with the logarithms as if they were the "
            "numbers. A product becomes a sum, and a sum becomes `jnp.logaddexp`.": _recurrence(
                log_a, log_b
            ),
            "This is the sum of all log a, the first half of what the scan gives you. The states "
            "are the second half.": products,
            "The b of earlier steps are never multiplied by a later a: in the second half of the "
            "pair, add log a of the second step to log b of the first.": np.logaddexp.accumulate(
                log_b
            ),
            "The order is swapped: your pair stands for *second, then first*.": _log_tree(
                log_a, log_b, lambda a1, b1, a2, b2: jnp.logaddexp(a1 + b2, b1)
            ),
            "You have put the logarithm of a product where the logarithm of a sum belongs: "
            "`jnp.logaddexp(p, q)` instead of `p + q`.": _log_tree(
                log_a, log_b, lambda a1, b1, a2, b2: a2 + b1 + b2
            ),
            "In the second half of the pair you add log a of the *first* step to log b of the "
            "first. Which a has that b still to go through?": _log_tree(
                log_a, log_b, lambda a1, b1, a2, b2: jnp.logaddexp(a1 + b1, b2)
            ),
            "The larger of two logarithms is not the logarithm of the sum, only close to it where "
            "one is much larger. Use `jnp.logaddexp`.": _log_recurrence(log_a, log_b, np.maximum),
        },
        otherwise="Compare the first three values with log(b_1), log(a_2 b_1 + b_2), and so on.",
        tolerance=1e-4,
    )
    result = run(function, *map(jnp.asarray, wild))
    if not np.isfinite(np.asarray(result, np.float64)).all():
        raise Wrong(
            "Right for mild numbers, but with logarithms around ±60 your result is not finite: "
            "somewhere you go back to the numbers themselves with `exp`, and they overflow or "
            "vanish. Stay in the logarithms throughout."
        )
    expect_close(
        result,
        _log_recurrence(*wild),
        name="log h for logarithms around ±60",
        tolerance=1e-4,
        otherwise="It was right for mild numbers: somewhere precision is lost.",
    )
    _no_loop(function, *map(jnp.asarray, mild))
    largest = np.abs(_log_recurrence(*wild)).max()
    return (
        f"logarithms up to {largest:.0f} in size, where float32 ends at 88. The pairs now live in "
        "another algebra, and the tree never noticed."
    )


def _log_recurrence(log_a: Any, log_b: Any, add: Callable = np.logaddexp) -> np.ndarray:
    state, states = -np.inf, []
    for factor, added in zip(np.float64(log_a), np.float64(log_b)):
        state = add(factor + state, added)
        states.append(state)
    return np.array(states)


def _log_tree(log_a: np.ndarray, log_b: np.ndarray, combine_b: Callable) -> np.ndarray:
    """Return what a tree makes of pairs whose second halves are combined by `combine_b`."""

    def then(first, second):
        (a1, b1), (a2, b2) = first, second
        return a1 + a2, combine_b(a1, b1, a2, b2)

    elements = (jnp.asarray(log_a, jnp.float32), jnp.asarray(log_b, jnp.float32))
    return np.asarray(jax.lax.associative_scan(then, elements)[1])


STEPS, HIDDEN, GOAL = 128, 8, 75
GRUS = {"calm": 1.0, "edge": 3.0, "wild": 4.0}  # name -> gain of the recurrent weights


@exercise("12.4", "A sweep that keeps its head", "open")
def improve(function: Callable) -> str:
    inputs = jnp.asarray(np.random.default_rng(124).normal(size=(STEPS, 4)), jnp.float32)
    initial_h = jnp.zeros(HIDDEN, jnp.float32)
    calls: list[int] = []

    @jax.jit
    def compiled_sweep(params, initial_h, inputs, guess):
        def step(h, x_t):
            calls.append(1)
            return gru_step(params, h, x_t)[0]

        return run(function, step, initial_h, inputs, guess)

    def sweep(params, guess):
        return compiled_sweep(params, initial_h, inputs, guess)

    @jax.jit
    def residual(params, guess):
        before = jnp.concatenate([initial_h[None], guess[:-1]])
        found = jax.vmap(lambda h, x_t: gru_step(params, h, x_t)[0])(before, inputs)
        size = jnp.abs(found - guess)
        return jnp.where(jnp.isfinite(size), size, jnp.inf).max(axis=1)

    _one_sweep(sweep, calls)

    zeros = jnp.zeros((STEPS, HIDDEN), jnp.float32)

    def solve(name, start):
        """Sweep until all residuals are small: how often, the guess, and what is left."""
        params, guess = _gru(GRUS[name]), start
        for count in range(1, STEPS + 1):
            guess = sweep(params, guess)
            sizes = np.asarray(residual(params, guess))
            if start is zeros and count == 1 and sizes[0] > 1e-4:
                raise Wrong(
                    "After your first sweep the first state is still wrong, though everything it "
                    "needs is known. Its correction must be its own residual: is the state before "
                    "the first step `initial_h`?"
                )
            if sizes.max() < 1e-4:
                return count, guess, sizes
        return math.inf, guess, sizes

    solved = {name: solve(name, zeros) for name in GRUS}
    other_h, params = 0.2 * jnp.cos(jnp.arange(HIDDEN, dtype=jnp.float32)), _gru(GRUS["calm"])
    first = compiled_sweep(params, other_h, inputs, zeros)[0]
    if not jnp.abs(first - gru_step(params, other_h, inputs[0])[0]).max() < 1e-4:
        raise Wrong(
            "With another `initial_h` the first state is wrong. It is zero for the three GRUs, but "
            "need not be: what stands before the first step is `initial_h`, not zeros."
        )
    counts = {name: count for name, (count, _, _) in solved.items()}
    total = sum(counts.values())
    limits = {"calm": 8, "edge": 40, "wild": 80}
    advice = {
        "calm": "You pass on too little: use the whole Jacobian, undamped.",
        "edge": "The guess overshoots: keep it where a GRU's state can be, and trust a long "
        "forecast less.",
    }
    advice["wild"] = advice["edge"]
    each = [
        Criterion(
            f"the {name} GRU in at most {limit} sweeps",
            counts[name] <= limit,
            advice[name] if counts[name] < math.inf else _diagnosis(*solved[name][1:]),
            f"≈ {counts[name]}" if counts[name] < math.inf else f"not in {STEPS}",
        )
        for name, limit in limits.items()
    ]
    once_more = sweep(_gru(GRUS["edge"]), solved["edge"][1]) - solved["edge"][1]
    far, _, _ = solve("edge", zeros + 100)
    lost, _, _ = solve("edge", zeros * np.nan)
    return rubric(
        [
            *each,
            Criterion(
                f"the three together in at most {GOAL}",
                total <= GOAL,
                "The edge and the wild one have most of them. Two calls of `step` are left to "
                "compare candidates.",
                f"≈ {total}" if total < math.inf else "not all are solved",
            ),
            Criterion(
                "what is solved stays solved",
                bool(jnp.abs(once_more).max() < 1e-3),
                "One more sweep moves the solution. Where the residual is zero, the correction "
                "must be zero.",
            ),
            Criterion(
                "a guess of 100 for every number does no harm",
                far <= STEPS // 2,
                "A gate is flat out there, and its Jacobian says nothing. Bring the guess back to "
                "where a state can be, before you use it.",
                f"≈ {far} sweeps for the edge" if far < math.inf else "not solved",
            ),
        ],
        extra=[
            Criterion(
                "even a guess of NaN does none",
                lost <= STEPS // 2,
                found=f"≈ {lost} sweeps" if lost < math.inf else "not solved",
            ),
            Criterion("the three together in at most 50", total <= 50),
            Criterion("the three together in at most 40", total <= 40),
        ],
    )


def _gru(gain: float) -> dict[str, jax.Array]:
    params = initialize_gru_params(jax.random.key(4), 4, HIDDEN, scale=1.0)
    factors = {"U": gain / np.sqrt(HIDDEN), "W": 0.5, "b": 0.0}
    shifts = {"bz": -1.0, "br": 0.1, "bh": 0.1}
    return {
        name: (factors[name[0]] * leaf + shifts.get(name, 0.0)).astype(jnp.float32)
        for name, leaf in params.items()
    }


def _one_sweep(sweep: Callable, calls: list) -> None:
    """Raise unless one call is one sweep: right shape, no loop, few calls of `step`."""
    shapes = jax.eval_shape(_gru, 1.0), jax.ShapeDtypeStruct((STEPS, HIDDEN), jnp.float32)
    jaxpr, result = jax.make_jaxpr(sweep, return_shape=True)(*shapes)
    if getattr(result, "shape", None) != (STEPS, HIDDEN):
        hint = "A better guess has the shape of the guess."
        if not hasattr(result, "shape"):
            raise Wrong(f"Return one array, not {describe(result)}. {hint}")
        raise Wrong(f"The new guess has shape {result.shape}; expected {(STEPS, HIDDEN)}. {hint}")
    if len(calls) > 4:
        raise Wrong(
            f"You call `step` {len(calls)} times in one sweep; four are allowed. Use `jax.vmap` to "
            "call it for all steps at once, and make a single sweep: the check repeats it."
        )
    if any(outermost_loops(jaxpr.jaxpr)):
        raise Wrong("There is a loop in your sweep, over time or over sweeps. Do without.")
    if not calls:
        raise Wrong("You never call `step`, so your guess cannot know what the GRU does.")


def _diagnosis(sizes: np.ndarray, guess: Any) -> str:
    if not np.isfinite(np.asarray(guess)).all():
        return (
            "The guess has become infinite or NaN on the way, and stays so: `jnp.nan_to_num` or "
            "`jnp.clip` can bring it back."
        )
    done = int(np.argmax(sizes > 1e-4))
    return f"From the start {done} states are right. Does a right state stay right in your sweep?"


def _no_loop(function: Callable, *args: Any) -> None:
    _expect_no_loop(traced(function, *args))


def _expect_no_loop(program: Any) -> None:
    if any(outermost_loops(program)):
        raise Wrong(
            "The values are right, but there is a loop over time in your code. Let "
            "`jax.lax.associative_scan` do it."
        )
