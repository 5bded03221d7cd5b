"""Exercises of chapter 14: bits, a nucleus, the gradient across a cut, and a model of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.lab.exercises._base import (
    Criterion,
    NotStarted,
    Wrong,
    describe,
    exercise,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.language import ngram_bits


@exercise("14.1", "Bits per character", "easy")
def bits_per_character(function: Callable) -> str:
    rng = np.random.default_rng(141)
    for rows, size in ((5, 4), (40, 96)):
        scores = rng.normal(size=(rows, size)).astype(np.float32)
        codes = rng.integers(0, size, rows)
        logs = np.asarray(jax.nn.log_softmax(scores), np.float64)
        nats = -logs[np.arange(rows), codes]
        along_time = np.asarray(jax.nn.log_softmax(scores, axis=0))
        bits = np.asarray(nats, np.float64) / np.log(2)
        probabilities = np.asarray(jax.nn.softmax(scores))[np.arange(rows), codes]
        total = scores.max(axis=1)
        expect_close(
            run(function, jnp.asarray(scores), jnp.asarray(codes)),
            bits.mean(),
            name="the bits per character",
            tolerance=1e-4,
            mistakes={
                "These are nats: `jnp.log` and `log_softmax` have base e. Divide by "
                "`jnp.log(2)`.": nats.mean(),
                "The sign: a probability below one has a negative logarithm, and a cost is "
                "positive.": -bits.mean(),
                "This is the sum over the text; divide by its length.": bits.sum(),
                "You multiply by log 2 where you should divide.": np.mean(nats) * np.log(2),
                "This is the perplexity, 2 to the power of the bits.": 2 ** bits.mean(),
                "You take the mean of the probabilities, then the logarithm. It goes the other way "
                "round: every character has a cost, and the mean is of these.": (
                    -np.log2(probabilities.mean())
                ),
                "This is the cost of the likeliest character, not of the one that came.": np.mean(
                    jax.nn.logsumexp(scores, axis=1) - total
                )
                / np.log(2),
                "You take the column of every character at *every* place, `[:, codes]`: a square "
                "of numbers. From each row one is needed.": -logs[:, codes].mean() / np.log(2),
                "The softmax runs along time. At each place the probabilities of all characters "
                "sum to one: the last axis.": -along_time[np.arange(rows), codes].mean()
                / np.log(2),
                "Scores and characters are shifted against each other. Row t is about the "
                "character at place t already.": -logs[np.arange(rows - 1), codes[1:]].mean()
                / np.log(2),
                "This is the mean of all logarithms: the characters that came are not used.": (
                    -logs.mean() / np.log(2)
                ),
                "These are logarithms of scores, which are no probabilities yet: "
                "`jax.nn.log_softmax` makes them so.": -np.mean(scores[np.arange(rows), codes])
                / np.log(2),
            },
            otherwise="Mean over the text of -log2 of the probability of the character that came.",
        )
    return (
        "a fair coin costs one bit, certainty costs none, and equal shares for 96 characters cost "
        f"{np.log2(96):.2f}."
    )


@exercise("14.2", "Leave out the tail", "medium")
def nucleus(function: Callable) -> str:
    cases = [
        ([0.4, 0.3, 0.2, 0.1], 0.55),
        ([0.05, 0.4, 0.1, 0.25, 0.2], 0.6),
        ([0.1, 0.9], 0.5),
        ([0.2, 0.1, 0.4, 0.3], 1.0),
        ([0.02, 0.6, 0.08, 0.3], 0.65),
        ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.75),  # two reach it exactly
    ]
    for numbers, mass in cases:
        given = np.array(numbers)
        call = f"nucleus({numbers}, {mass})"
        order = np.argsort(-given)
        before = np.cumsum(given[order]) - given[order]

        def keeping(kept, given=given, order=order):
            result = np.zeros_like(given)
            result[order[kept]] = given[order[kept]]
            return result

        right = keeping(before < mass - 1e-9)
        short = keeping(np.cumsum(given[order]) <= mass + 1e-9)
        more = keeping(before <= mass + 1e-9)
        with np.errstate(invalid="ignore"):
            mistakes = {
                "Nothing is left out.": given,
                "The one that carries the sum beyond `mass` is missing. A character stays if those "
                "before it have *less* than `mass` together.": short / short.sum(),
                "What is kept has to sum to one again: divide by its sum.": right,
                "These are in order of size. Put each probability back where it came from.": (
                    np.sort(right)[::-1] / right.sum()
                ),
                "You undo the sorting in the wrong direction: what stands k-th in the sorted array "
                "belongs to the place that `order[k]` names.": (
                    _normalised(np.where(before < mass - 1e-9, given[order], 0)[order])
                ),
                "One too many is kept: where the sum reaches `mass` exactly, that is "
                "enough.": _normalised(more),
                "This keeps the *first* characters, not the likeliest ones: sort before you "
                "add up.": _normalised(np.where(np.cumsum(given) - given < mass, given, 0)),
                "This keeps the least likely: sort from large to small.": _normalised(
                    _keeping_smallest(given, mass)
                ),
            }
        result = run(function, jnp.asarray(given), mass)
        if np.isnan(np.asarray(result, np.float64)).any():
            raise Wrong(
                f"{call} holds NaN: nothing was kept, and 0 / 0 is NaN. The likeliest character "
                "always stays, since there is nothing before it."
            )
        expect_close(
            result,
            right / right.sum(),
            name=call,
            mistakes={m: wrong for m, wrong in mistakes.items() if np.isfinite(wrong).all()},
            tolerance=1e-4,
            otherwise="Keep the likeliest characters until they have `mass` together.",
        )
    result = np.asarray(run(function, jnp.full(4, 0.25), 0.5), np.float64)
    kept = int((result > 0).sum())
    if kept != 2 or not np.allclose(result[result > 0], 0.5, atol=1e-4):
        raise Wrong(
            f"nucleus([0.25, 0.25, 0.25, 0.25], 0.5) keeps {kept} of the four and gives "
            f"{np.round(result, 3).tolist()}; expected 0.5 for two of them, whichever they are. "
            "Two equals have `mass` together, and no more are kept: choose by the place in the "
            "order. Whoever keeps all that are as large as the last one keeps too many."
        )
    return (
        "where the network is sure, one character is left; where it is not, many are. Temperature "
        "cannot do that: it treats every place alike."
    )


def _normalised(numbers: np.ndarray) -> np.ndarray:
    return numbers / numbers.sum() if numbers.any() else np.full_like(numbers, np.nan)


def _keeping_smallest(given: np.ndarray, mass: float) -> np.ndarray:
    """The probabilities of the least likely that have `mass` together; the others zero."""
    order = np.argsort(given)
    kept = order[np.cumsum(given[order]) - given[order] < mass]
    result = np.zeros_like(given)
    result[kept] = given[kept]
    return result


@cache
def _segments() -> tuple[tuple, dict]:
    """The arguments of exercise 14.3, and the gradients of the right answer and of wrong ones."""
    rng = np.random.default_rng(143)
    U, W = (jnp.asarray(0.6 * rng.normal(size=shape), jnp.float32) for shape in ((3, 3), (3, 2)))
    params = {"U": U, "W": W}
    first, second = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (4, 3))
    carry = jnp.asarray(rng.normal(size=3), jnp.float32)

    def whole(params, cut=False, forgotten=False, of_last=0.0):
        loss, middle = _segment_loss(params, carry, first)
        middle = jax.lax.stop_gradient(middle) if cut else middle
        middle = carry if forgotten else middle
        of_second, last = _segment_loss(params, middle, second)
        return loss + of_second + of_last * jnp.sum(last)

    middle = _segment_loss(params, carry, first)[1]
    gradients = {
        "right": jax.grad(whole)(params),
        "cut": jax.grad(lambda p: whole(p, cut=True))(params),
        "forgotten": jax.grad(lambda p: whole(p, forgotten=True))(params),
        "of last": jax.grad(lambda p: whole(p, of_last=1.0))(params),
        "first": jax.grad(lambda p: _segment_loss(p, carry, first)[0])(params),
        "second": jax.grad(lambda p: _segment_loss(p, middle, second)[0])(params),
    }
    return (params, carry, first, second), gradients


def _segment_loss(params: dict, carry: jax.Array, segment: jax.Array) -> tuple:
    total = 0.0
    for x in segment:
        carry = jnp.tanh(params["U"] @ carry + params["W"] @ x)
        total = total + jnp.sum(carry**2)
    return total, carry


@exercise("14.3", "The gradient across a cut", "hard")
def across_the_cut(function: Callable) -> str:
    (params, carry, first, second), gradients = _segments()
    calls: list[tuple[int, object]] = []  # how many steps, and with which U

    def loss_of(params, carry, segment):
        calls.append((len(segment), params["U"]))
        return _segment_loss(params, carry, segment)

    result = run(function, loss_of, dict(params), carry, first, second)
    if not isinstance(result, dict) or set(result) != {"U", "W"}:
        what = describe(result)
        raise Wrong(f"Return the gradient, a dict like `params` with U and W, not {what}.")
    for name in ("U", "W"):
        if result[name] is Ellipsis:
            raise NotStarted
        right, cut, forgotten, of_last, *only = (leaf[name] for leaf in gradients.values())
        across = right - cut
        expect_close(
            result[name],
            right,
            name=f"the gradient of {name}",
            tolerance=1e-4,
            mistakes={
                "This is the truncated gradient: what the second segment wants of the carry never "
                "reaches the first. It must be the `carry` part of what `pull_first` "
                "gets.": cut,
                "The second segment begins with the carry of the first one's *beginning*. Hand the "
                "new carry on.": forgotten,
                "Here the carry of the first segment is followed back, but the loss of the first "
                "segment has no say: its cotangent is 1.": across + only[1],
                "This is the first segment's share alone; the second one's is missing.": (
                    only[0] + across
                ),
                "This is the second segment's share alone.": only[1],
                "This is the first segment's own gradient alone.": only[0],
                "This is the mean of two shares. The loss is the *sum* of both losses, and so is "
                "the gradient.": right / 2,
                "What the second segment leaves behind counts as if it were a loss: nobody reads "
                "that carry, so its cotangent is 0.": of_last,
            },
            otherwise="Go backwards: the second segment first, then the first.",
        )
    if any(steps > len(first) for steps, _ in calls):
        raise Wrong(
            "The values are right, but you have run both segments in one call. Take one segment at "
            "a time: only then does the memory of one segment do for both."
        )
    traced = [U for _, U in calls if isinstance(U, jax.core.Tracer)]
    if len(traced) > 1 and all(U is traced[0] for U in traced):
        raise Wrong(
            "The values are right, but both segments are differentiated at once: JAX carries the "
            "gradient across the cut for you, and keeps all steps of both for it. Differentiate "
            "each call of `loss_of` by itself, and hand the gradient of the carry back yourself."
        )
    return (
        "what truncation leaves out is one product with a vector: the gradient of the carry. With "
        "it, a training in segments has the exact gradient, but it must keep every carry and go "
        "through the segments backwards."
    )


# The capstone: a small language whose entropy is known.

NAMES, OPEN, CLOSE = "abcdef", "([{<", ")]}>"
LETTERS = "\n" + NAMES + OPEN + CLOSE  # the codes are places in this string
DEEPEST, NESTED, ENDING = 3, 0.35, 0.4
FOLLOWERS = {c: NAMES[(2 * i + 1) % 6] + NAMES[(i + 3) % 6] for i, c in enumerate(NAMES)}
TRAIN, TEST, SECONDS = 300_000, 6_000, 120
CUTS = 2999, 3001, 4507  # primes
SHORT = 997  # one more


@cache
def brackets(length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a text of nested brackets; return its codes and what each costs who knows the rules.

    At each place a bracket of four kinds may open (with probability 0.35, at most 3 deep), the last
    open one may close, or a name of three letters follows, whose two last letters are decided by
    its first. Each line ends when nothing is open any more, with probability 0.4.
    """
    rng = np.random.default_rng(seed)
    codes: list[int] = []
    bits: list[float] = []

    def write(letter: str, probability: float) -> None:
        codes.append(LETTERS.index(letter))
        bits.append(-np.log2(probability))

    open_now: list[str] = []
    while len(codes) < length:
        opening = NESTED if len(open_now) < DEEPEST else 0.0
        draw = rng.random()
        if draw < opening:
            kind = int(rng.integers(4))
            write(OPEN[kind], opening / 4)
            open_now.append(CLOSE[kind])
        elif draw < opening + (1 - opening) * ENDING:
            write(open_now.pop() if open_now else "\n", (1 - opening) * ENDING)
        else:
            letter = NAMES[rng.integers(6)]
            write(letter, (1 - opening) * (1 - ENDING) / 6)
            for follower in FOLLOWERS[letter]:
                write(follower, 1.0)
    return np.array(codes[:length], np.int32), np.array(bits[:length])


@exercise("14.4", "A language model of your own", "open")
def own_model(function: Callable) -> str:
    train, _ = brackets(TRAIN, 144)
    test, entropy = brackets(TEST, 145)
    start = time.perf_counter()
    predict = run(function, jnp.asarray(train), len(LETTERS))
    seconds = time.perf_counter() - start
    if not callable(predict):
        raise Wrong(
            f"`learn` should return a function, `predict(codes)`, not a {type(predict).__name__}."
        )
    logs = _predictions(predict, test)
    bits = -logs[np.arange(TEST), test] / np.log(2)
    mean, optimum = float(bits.mean()), float(entropy.mean())
    sums = np.abs(np.exp(logs).sum(axis=1) - 1).max()
    peek = _look_ahead(predict, test, logs)
    if not peek and sums < 1e-3 and mean < optimum - 0.05:
        peek = f"{mean:.3f} bits; whoever knows the rules, but not the answer, pays {optimum:.3f}"
    grams = {order: float(ngram_bits(train, test, order, 15).mean()) for order in range(1, 9)}
    best = min(grams, key=grams.get)
    far = _far_closings(test)
    kinds = [LETTERS.index(c) for c in CLOSE]
    among = jax.nn.log_softmax(logs[far][:, kinds], axis=1)
    sure = float(np.exp(among)[np.arange(len(far)), [kinds.index(c) for c in test[far]]].mean())
    return rubric(
        [
            Criterion(
                "every row is a distribution",
                bool(sums < 1e-3),
                "Return logarithms of probabilities: `jax.nn.log_softmax` of the scores.",
            ),
            Criterion(
                "no row knows what comes later",
                not peek,
                "Row t is about `codes[t]` and may depend on `codes[:t]` only. Did you forget to "
                "shift? The first row is what the model says before it has read anything. And a "
                "layer that reads backwards, if only within a segment, has seen the answer.",
                peek,
            ),
            Criterion(
                f"better than the letters' frequencies, {grams[1]:.2f} bits",
                mean < grams[1] - 0.05,
                "Does the loss fall while it trains? Are inputs and targets one letter apart?",
            ),
            Criterion(
                f"better than pairs of letters, {grams[2]:.2f} bits",
                mean < grams[2] - 0.02,
                "The model knows little more than its last input: is the state used at all?",
            ),
            Criterion(
                f"better than the best of 1- to 8-grams, {grams[best]:.2f} bits",
                mean < grams[best],
                "The state must bridge what lies between two brackets: hand the carry on from "
                "segment to segment, and give it a few hundred updates.",
                f"≈ {mean:.3f} bits",
            ),
            Criterion(
                f"learned within {SECONDS} s",
                seconds < SECONDS,
                "Compile the whole training as one scan; fewer updates or units may do.",
                f"≈ {seconds:.0f} s",
            ),
        ],
        [
            Criterion(
                "60 % sure which bracket closes after 8 letters and more",
                sure > 0.6,
                found=f"≈ {100 * sure:.0f} %",
            ),
            Criterion(f"within 0.1 bits of the source, {optimum:.2f} bits", mean < optimum + 0.1),
        ],
    )


def _predictions(predict: Callable, codes: np.ndarray) -> np.ndarray:
    logs = run(predict, jnp.asarray(codes))
    shape = len(codes), len(LETTERS)
    if np.shape(logs) != shape:
        raise Wrong(
            f"`predict(codes)` for {len(codes)} codes returned shape {np.shape(logs)}; expected "
            f"{shape}: row t holds the log-probabilities of what stands at place t."
        )
    logs = np.asarray(logs, np.float64)
    if np.isnan(logs).any():
        raise Wrong("`predict` returned NaN. Has the training diverged? Clip the gradient.")
    return logs


def _look_ahead(predict: Callable, codes: np.ndarray, logs: np.ndarray) -> str:
    """Say which row of `logs` knows what comes later; nothing if none does.

    The text is changed from a place on, and that must not move the rows up to this place. The
    places are primes: whoever reads ahead within segments of any length is in the middle of one.
    """
    for place in CUTS:
        changed = np.concatenate([codes[:place], (codes[place:] + 1) % len(LETTERS)])
        same = np.isclose(_predictions(predict, changed), logs, rtol=0, atol=1e-3).all(axis=1)
        moved = np.flatnonzero(~same[: place + 1])
        if moved.size:
            if not np.allclose(_predictions(predict, codes), logs, rtol=0, atol=1e-3):
                raise Wrong(
                    "`predict` says something else when it gets the same text again. Is dropout "
                    "still on, or does a carry stay behind from the call before?"
                )
            return f"row {moved[-1]:,} changes with the letters from place {place:,} on"
    try:
        alone = _predictions(predict, codes[:SHORT])
    except Wrong as wrong:
        raise Wrong(
            f"With {len(codes):,} letters `predict` works, with {SHORT} it does not: {wrong} A "
            "text may have any length, also one that cannot be cut into equal segments."
        ) from None
    moved = np.flatnonzero(~np.isclose(alone, logs[:SHORT], rtol=0, atol=1e-3).all(axis=1))
    return f"row {moved[0]:,} changes if the text ends after {SHORT} letters" if moved.size else ""


def _far_closings(codes: np.ndarray) -> np.ndarray:
    """The places of brackets that close what was opened 8 letters before or more."""
    places, open_now = [], []
    for place, code in enumerate(codes):
        letter = LETTERS[code]
        if letter in OPEN:
            open_now.append(place)
        elif letter in CLOSE and open_now and place - open_now.pop() >= 8:
            places.append(place)
    return np.array(places)
