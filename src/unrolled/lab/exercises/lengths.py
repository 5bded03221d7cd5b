"""Exercises of chapter 9: means, backwards reading, attention, batches, and a whole listener."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.lab.datasets import japanese_vowels
from unrolled.lab.exercises._base import (
    Criterion,
    NotStarted,
    Wrong,
    exercise,
    expect_array,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.exercises._cells import BareCell
from unrolled.lab.exercises._networks import Network, accuracy, draw_rows, in_haste, trainer
from unrolled.lab.exercises._programs import one_scan
from unrolled.sequences import flip_sequences, pad_sequences

LENGTHS = np.array([3, 5, 1, 0], np.int32)
NUM_STEPS = 5
MASK = np.arange(NUM_STEPS) < LENGTHS[:, None]  # (batch, time)
EMPTY = "The row of length zero should give zeros"


def _ragged(seed: int, *features: int, padding: float) -> np.ndarray:
    """Random numbers of shape (4, 5, *features) with `padding` at the padded steps."""
    values = np.random.default_rng(seed).normal(size=(*MASK.shape, *features))
    mask = MASK.reshape(MASK.shape + (1,) * len(features))
    return np.where(mask, values, padding).astype(np.float32)


@exercise("9.1", "The mean of what is there", "easy")
def mean_over_time(function: Callable) -> str:
    outputs = _ragged(91, 3, padding=7.0)
    shape = (4, 3)
    count = np.maximum(LENGTHS, 1)[:, None]
    expected = np.where(MASK[..., None], outputs, 0).sum(axis=1) / count
    result = np.asarray(_numbers(run(function, jnp.asarray(outputs), jnp.asarray(LENGTHS))))
    if result.shape == shape and not np.isfinite(result[3]).all():
        raise Wrong(
            f"{EMPTY}, but it gives {result[3, 0]}: zero divided by zero. Divide by the length, "
            "but at least by 1."
        )
    expect_array(result, shape, hint="One mean per row and feature: the axis of time is 1.")
    last = np.where(LENGTHS[:, None] > 0, outputs[np.arange(4), LENGTHS - 1], 0)
    over_batch = np.where(MASK[..., None], outputs, 0).sum(axis=1) / MASK.sum()
    too_long = np.arange(NUM_STEPS) <= LENGTHS[:, None]
    one_more = np.where(too_long[..., None], outputs, 0).sum(axis=1)
    too_short = np.arange(NUM_STEPS) < LENGTHS[:, None] - 1
    one_less = np.where(too_short[..., None], outputs, 0).sum(axis=1)
    padding = np.where(MASK[..., None], 0, outputs).sum(axis=1)
    expect_close(
        result,
        expected,
        mistakes={
            "This is the mean over all columns, padding included. Put zeros there first, and "
            "divide by the length.": outputs.mean(axis=1),
            "The padding adds nothing any more, but it is still counted: you divide by the number "
            "of columns. Divide by the length of the row.": expected * count / NUM_STEPS,
            "These are the sums. Divide each row by its length.": expected * count,
            "Every row is divided by the same number, that of all valid steps. Divide each row by "
            "its own length.": over_batch,
            "This is the last valid step, not the mean of all of them.": last,
            "This is the last valid step, not the mean of all of them; and in the empty row there "
            "is none: the index -1 finds padding.": outputs[np.arange(4), LENGTHS - 1],
            "This is the largest valid value of each feature, not the mean.": np.where(
                LENGTHS[:, None] > 0,
                np.where(MASK[..., None], outputs, -np.inf).max(axis=1),
                0,
            ),
            "The last valid step of each row is missing from the sum. The steps of a row are "
            "counted from 0: which number has the last one?": one_less / count,
            "The last valid step of each row is missing, from the sum and from the count. The "
            "steps of a row are counted from 0: which number has the last one?": (
                one_less / np.maximum(LENGTHS - 1, 1)[:, None]
            ),
            "One padded step is counted in each row: step t is valid if t < length, not t <= "
            "length.": one_more / count,
            "One padded step is counted in each row: step t is valid if t < length, not t <= "
            "length. ": one_more / (LENGTHS + 1)[:, None],
            "The mask is turned round: this is the sum of the padding, divided by the "
            "length.": padding / count,
            "The mask is turned round: this is the mean of the padding.": (
                padding / np.maximum(NUM_STEPS - LENGTHS, 1)[:, None]
            ),
        },
        otherwise="Compare with a row by hand: outputs[0, :3].mean(axis=0) for the length 3.",
    )
    with_nan = run(function, jnp.asarray(_ragged(91, 3, padding=np.nan)), jnp.asarray(LENGTHS))
    if not np.isfinite(np.asarray(with_nan)).all():
        raise Wrong(
            "With NaN in the padding the mean becomes NaN: NaN times 0 is NaN. Choose with "
            "`jnp.where` instead of multiplying with the mask."
        )
    expect_close(with_nan, expected, name="with NaN in the padding the mean")
    heard = np.array(outputs)
    heard[0, 1, 0] = np.nan
    through = np.asarray(run(function, jnp.asarray(heard), jnp.asarray(LENGTHS)))
    if not np.isnan(through[0, 0]):
        raise Wrong(
            f"With NaN at a *valid* step the mean is {through[0, 0]:.3f}: a number that has never "
            "been measured. A NaN there must come through, else nobody sees that something is "
            "wrong. Choose by the mask what counts, and not by whether it is NaN."
        )
    return (
        "each row is divided by its own length, the empty one gives zero, and NaN in the padding "
        "goes unnoticed. It summarises an utterance in the chapter."
    )


class _Counter(BareCell):
    """A cell that shows what it has read: the carry grows in a known way, and is not its output.

    It has two units and reads the first two features.
    """

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], 2))

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = 0.5 * carry + inputs[..., :2]
        return carry, 2 * carry + 1


def _read(start: np.ndarray, inputs: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Read each row alone, in NumPy, in the named way; outputs stand where their inputs do."""
    carries, outputs = np.array(start, np.float64), np.zeros(inputs.shape)
    for b, length in enumerate(LENGTHS):
        steps = {
            "right": range(length - 1, -1, -1),
            "forwards": range(length),
            "whole": range(NUM_STEPS - 1, -1, -1),
            "plain flip": range(NUM_STEPS - 1, NUM_STEPS - 1 - length, -1),
            "one more": range(min(length, NUM_STEPS - 1), -1, -1),
            "one less": range(length - 2, -1, -1),
            "padding": range(NUM_STEPS - 1, length - 1, -1),
        }[order]
        for t in steps:
            carries[b] = 0.5 * carries[b] + inputs[b, t]
            outputs[b, t] = 2 * carries[b] + 1
    return carries, outputs


@exercise("9.2", "Backwards without a flip", "medium")
def read_backwards(function: Callable) -> str:
    rng = np.random.default_rng(92)
    given = _ragged(92, 3, padding=5.0)
    inputs = given[..., :2]  # what the cell reads of them
    start = rng.normal(size=(4, 2)).astype(np.float32)
    result = run(function, _Counter(), *map(jnp.asarray, (start, given, LENGTHS)))
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise Wrong("Return the pair `(carry, outputs)`, as scan does.")
    carry, outputs = (_numbers(part) for part in result)
    if np.shape(outputs) == (4, 2) and np.shape(carry) == inputs.shape:
        raise Wrong("The two results are exchanged: first the carry, then the outputs.")
    expect_array(carry, (4, 2), "the carry")
    if np.shape(outputs) == (NUM_STEPS, 4, 2):
        raise Wrong(
            f"The outputs have shape {np.shape(outputs)}: time is still the first axis. Move it "
            "back behind the batch."
        )
    expect_array(outputs, inputs.shape, "the outputs")
    right_carry, right_outputs = _read(start, inputs, "right")
    whole_carry, _ = _read(start, inputs, "whole")
    zero_carry, _ = _read(np.zeros_like(start), inputs, "right")
    zeroed_carry, _ = _read(np.where(LENGTHS[:, None] < NUM_STEPS, 0, start), inputs, "right")
    expect_close(
        carry,
        right_carry,
        name="the carry",
        mistakes={
            "The carry has gone through the padding before it met the sequence. Keep the old carry "
            "as long as t >= length.": whole_carry,
            "Padded inputs are zero, but the carry has still gone through them, and has faded. "
            "Keep the old carry as long as t >= length.": _read(
                start, np.where(MASK[..., None], inputs, 0), "whole"
            )[0],
            "This carry has read forwards. Use `reverse=True`.": _read(start, inputs, "forwards")[
                0
            ],
            "Your carry takes `length` steps, but from the last column on: these are not the steps "
            "of the sequence. The condition is t < length, where t is the step's own "
            "number.": _read(start, inputs, "plain flip")[0],
            "One padded step is read in each row that has one: the mask is true for one step too "
            "many. Is the step whose number is the length a valid one?": _read(
                start, inputs, "one more"
            )[0],
            "The last valid step of each row is not read: the mask is true for one step too few. "
            "Steps are counted from 0.": _read(start, inputs, "one less")[0],
            "The mask is turned round: the carry has read the padding and waited during the "
            "sequence.": _read(start, inputs, "padding")[0],
            "At padded steps your carry is set to zero, so a row that begins with padding has "
            "lost the carry that was given. It should wait there, not be cleared.": zeroed_carry,
            "Your carry begins at zero. Begin with the carry that is given.": zero_carry,
            "The carry never changes: this is the one that was given. Where the mask is true, take "
            "the new one.": start,
        },
        otherwise="Row 0 has length 3: it should read the steps 2, 1, 0, in this order.",
    )
    mask = MASK[..., None]
    shown = np.where(mask, right_outputs, 0)
    reading_order = np.zeros_like(shown)
    for b, length in enumerate(LENGTHS):
        reading_order[b, :length] = shown[b, :length][::-1]
    leftover = np.where(mask, shown, 2 * (0.5 * start[:, None] + inputs) + 1)
    got = np.asarray(outputs, np.float64)
    if np.allclose(got[MASK], shown[MASK], atol=1e-5) and not np.allclose(got, shown, atol=1e-5):
        what = (
            "what the cell computes there" if np.allclose(got, leftover, atol=1e-4) else "something"
        )
        raise Wrong(
            f"At padded steps the outputs should be zero, but {what} is left over. Mask the output "
            "like the carry."
        )
    expect_close(
        outputs,
        shown,
        name="the outputs",
        mistakes={
            "The outputs come in the order of reading. The output at step t belongs to the input "
            "at step t.": reading_order,
            "The outputs come in the order of reading. The output at step t belongs to the input "
            "at step t. A reversed scan does that by itself: no flip.": np.flip(shown, axis=1),
            "These are the carries, not the outputs of the cell.": np.where(
                mask, (shown - 1) / 2, 0
            ),
            "The carry is right, but every output was computed from the carry that was given: what "
            "a step shows comes from the carry that it has got.": np.where(
                mask, 2 * (0.5 * start[:, None] + inputs) + 1, 0
            ),
            "The mask of the outputs is turned round: they are zero at the valid steps.": np.where(
                mask, 0, leftover
            ),
        },
        otherwise="The carry is right. Are the outputs those of the same calls of the cell?",
    )
    with_nan = run(
        function,
        _Counter(),
        *map(jnp.asarray, (start, _ragged(92, 3, padding=np.nan), LENGTHS)),
    )
    for part, expected in zip(with_nan, (right_carry, shown)):
        if not np.isfinite(np.asarray(part)).all():
            raise Wrong("With NaN in the padding a result becomes NaN. Choose with `jnp.where`.")
        expect_close(part, expected, name="with NaN in the padding a result")
    scan = one_scan(partial(function, _Counter()), *map(jnp.asarray, (start, given, LENGTHS)))
    if not scan.params["reverse"]:
        raise Wrong(
            "The values are right, but your scan reads from the left, so something is turned round "
            "before it or after it. With `reverse=True` nothing has to be."
        )
    return (
        "the carry waits at the end of each row until its sequence begins. No flip, no gather, and "
        "the outputs are where they belong."
    )


@exercise("9.3", "Attention", "hard")
def attend(function: Callable) -> str:
    scores, outputs = _ragged(931, padding=3.0), _ragged(932, 3, padding=-4.0)
    result = np.asarray(_numbers(run(function, *map(jnp.asarray, (scores, outputs, LENGTHS)))))
    if result.shape == (4, 3) and not np.isfinite(result[3]).all():
        raise Wrong(
            f"{EMPTY}, but it gives {result[3, 0]}. Are all its scores minus infinity? Then the "
            "softmax is 0/0; a finite number such as -1e30 will do."
        )
    expect_array(result, (4, 3), hint="One vector of features per row: sum over time, axis 1.")
    everywhere = _softmax(scores)
    cleaned = np.where(MASK[..., None], outputs, 0)
    expected = _attention(scores, outputs)
    zero_scores = _softmax(np.where(MASK, scores, 0))
    mean = cleaned.sum(axis=1) / np.maximum(LENGTHS, 1)[:, None]
    unnormalised = (np.where(MASK, np.exp(scores), 0)[..., None] * outputs).sum(axis=1)
    over_batch = np.where(MASK, np.exp(scores), 0)
    over_batch = over_batch / over_batch.sum(axis=0, keepdims=True)
    over_batch = (over_batch[..., None] * cleaned).sum(axis=1)
    empty_row = (everywhere[..., None] * outputs).sum(axis=1)
    empty_filled = np.where(LENGTHS[:, None] > 0, expected, outputs.mean(axis=1))
    one_more, one_less = (_attention(scores, outputs, LENGTHS + by) for by in (1, -1))
    too_many = (
        "One padded step has a weight in each row that has one: the mask is true for one step too "
        "many. Is the step whose number is the length a valid one?"
    )
    padding = _softmax(np.where(MASK, -1e30, scores))[..., None]
    turned_round = "The mask is turned round: the weights are those of the padding."
    expect_close(
        result,
        expected,
        mistakes={
            too_many: one_more,
            f"{too_many} (The outputs are cleaned rightly; the scores are not.)": _attention(
                scores, cleaned, LENGTHS + 1
            ),
            "The last valid step of each row has no weight: the mask is true for one step too few. "
            "Steps are counted from 0.": one_less,
            turned_round: (padding * np.where(MASK[..., None], 0, outputs)).sum(axis=1),
            f"{turned_round} (In a full row, and where the outputs are cleaned, nothing is "
            "left.)": (padding * cleaned).sum(axis=1),
            "This is a mean over time of the weighted outputs. The weights add up to one already: "
            "take the sum.": expected / NUM_STEPS,
            "The weighted sum is divided by the length once more. The weights add up to one "
            "already.": expected / np.maximum(LENGTHS, 1)[:, None],
            "The softmax runs over all columns, padding included. Give padded steps a score with "
            "no weight before the softmax.": empty_row,
            "The softmax still counts the padding: its weights are cut off afterwards, and what is "
            "left does not add up to one. Mask the *scores*, before the softmax.": (
                (np.where(MASK, everywhere, 0)[..., None] * outputs).sum(axis=1)
            ),
            "Padded scores are set to 0, but a score of 0 has the weight e^0 = 1. Set them to "
            "something very negative.": (zero_scores[..., None] * cleaned).sum(axis=1),
            "Padded scores are set to 0, but a score of 0 has the weight e^0 = 1. Set them to "
            "something very negative. ": (zero_scores[..., None] * outputs).sum(axis=1),
            "The weights do not add up to one. Divide by their sum over the valid steps.": (
                unnormalised
            ),
            "All valid steps have the same weight: the scores are not used.": mean,
            "The softmax runs over the batch. It should run over time, the last axis of the "
            "scores.": over_batch,
            f"{EMPTY}, but its padding shows: with all scores equal, the softmax spreads its "
            "weight over the padded outputs. Clean the outputs, too.": empty_filled,
        },
        tolerance=1e-4,
        otherwise="Row 2 has one valid step, so its result is outputs[2, 0]. Begin there.",
    )
    large = np.where(MASK, scores * 500, 1e6).astype(np.float32)
    large[2, 0] = -1000.0  # the only valid step of its row
    answer = np.asarray(run(function, *map(jnp.asarray, (large, outputs, LENGTHS))))
    if not np.isfinite(answer).all():
        raise Wrong(
            "Scores of about 1000 give NaN or infinity: e^1000 is too large for any float. Use "
            "`jax.nn.softmax`, which subtracts the largest score first."
        )
    if not np.allclose(answer[2], outputs[2, 0], rtol=1e-3):
        raise Wrong(
            "Where the only valid step of a row has a score of -1000, padded steps take its weight "
            "away: the score that you give to padding is not small enough beside it."
        )
    expect_close(
        answer,
        _attention(large, outputs),
        name="the result for scores of about 1000",
        otherwise="It was right for small ones.",
    )
    _check_attention_gradients(function, expected)
    return (
        "weights add up to one over the valid steps, large scores do no harm, and NaN in the "
        "padding reaches neither the result nor a gradient."
    )


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _attention(
    scores: np.ndarray, outputs: np.ndarray, lengths: np.ndarray = LENGTHS
) -> np.ndarray:
    """What the exercise asks for, row by row."""
    result = np.zeros((4, outputs.shape[2]))
    for b, length in enumerate(np.clip(lengths, 0, NUM_STEPS)):
        if length:
            result[b] = _softmax(scores[b : b + 1, :length])[0] @ outputs[b, :length]
    return result


def _check_attention_gradients(function: Callable, expected: np.ndarray) -> None:
    scores, outputs = _ragged(931, padding=np.nan), _ragged(932, 3, padding=np.nan)
    weights = np.random.default_rng(933).normal(size=(4, 3)).astype(np.float32)
    lengths = jnp.asarray(LENGTHS)
    answer = run(function, jnp.asarray(scores), jnp.asarray(outputs), lengths)
    if not np.isfinite(np.asarray(answer)).all():
        raise Wrong(
            "With NaN in the padding the result becomes NaN: a weight of 0 times NaN is NaN. Clean "
            "the outputs with `jnp.where`, and the scores as well."
        )
    expect_close(answer, expected, name="with NaN in the padding the result", tolerance=1e-4)

    def total(scores, outputs):
        return jnp.sum(weights * function(scores, outputs, lengths))

    gradients = run(jax.grad(total, argnums=(0, 1)), jnp.asarray(scores), jnp.asarray(outputs))
    right = _attention_gradients(scores, outputs, weights)
    for name, gradient, expected in zip(("scores", "outputs"), gradients, right):
        gradient = np.asarray(gradient)
        if not np.isfinite(gradient).all():
            raise Wrong(
                f"The result is right, but the gradient by the {name} is NaN. A `where` at the end "
                "is too late: replace padded scores and outputs before anything is computed with "
                "them."
            )
        if np.any(gradient[~MASK]):
            raise Wrong(f"The gradient by the {name} is not zero in the padding.")
        if not np.any(gradient[MASK]):
            raise Wrong(f"The gradient by the {name} is zero everywhere: nothing can be learned.")
        expect_close(
            gradient,
            expected,
            name=f"the gradient with respect to the {name}",
            tolerance=1e-4,
            otherwise="The result is right: what keeps a part of it out of the gradient? "
            "`stop_gradient` may stand around the largest score, and around nothing else.",
        )


def _attention_gradients(
    scores: np.ndarray, outputs: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the sum of `weights` times the right result, row by row."""
    by_scores, by_outputs = np.zeros(scores.shape), np.zeros(outputs.shape)
    for b, length in enumerate(LENGTHS):
        if length:
            shares = _softmax(scores[b : b + 1, :length])[0]
            worth = outputs[b, :length].astype(np.float64) @ weights[b]
            by_scores[b, :length] = shares * (worth - shares @ worth)
            by_outputs[b, :length] = shares[:, None] * weights[b]
    return by_scores, by_outputs


@exercise("9.4", "Less padding", "open")
def make_batches(function: Callable) -> str:
    lengths = np.random.default_rng(94).integers(7, 27, size=270).astype(np.int32)
    batches = _batches(function, lengths, seed=1)
    rows = np.concatenate(batches)
    missing = sorted(set(range(270)) - set(rows.tolist()))
    if missing:
        raise Wrong(f"Row {missing[0]} is in no batch ({len(missing)} rows are missing).")
    if len(rows) > 270:
        twice = int(np.flatnonzero(np.bincount(rows, minlength=270) > 1)[0])
        raise Wrong(f"Row {twice} is in more than one batch.")
    largest = max(len(batch) for batch in batches)
    if largest > 30:
        raise Wrong(f"A batch has {largest} rows; at most 30 are allowed.")
    if len(batches) > 18:
        raise Wrong(
            f"These are {len(batches)} batches. Small ones have little padding, but each is an "
            "update of its own: use at most 18 (9 would be enough)."
        )
    steps = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    padding = 100 * (1 - lengths.sum() / steps)
    if padding > 15:
        raise Wrong(
            f"{padding:.0f} % of the computed steps are padding; at most 15 % are allowed. Put "
            "sequences of similar length into the same batch."
        )
    again = _batches(function, lengths, seed=2)
    if _same_sets(batches, again):
        raise Wrong(
            "Another random generator gives the same batches: the same rows always meet. Add "
            "something random to the lengths before you sort."
        )
    means = [lengths[batch].mean() for batch in batches]
    if means == sorted(means) or means == sorted(means, reverse=True):
        raise Wrong(
            "The batches come in the order of their lengths, so every epoch begins with short ones "
            "and ends with long ones (or the other way round). Permute the batches."
        )
    together = _pairs(batches) & _pairs(again)
    share = 100 * len(together) / len(_pairs(batches))
    return (
        f"{padding:.1f} % of the computed steps are padding, instead of a third in batches at "
        f"random; {share:.0f} % of the pairs of rows that meet in one call meet again in the next. "
        "Sorting by the length alone has the least padding and the least chance."
    )


def _batches(function: Callable, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
    result = run(function, lengths, np.random.default_rng(seed))
    if not isinstance(result, list | tuple) or not result:
        raise Wrong("Return a list of arrays of row numbers, one array for each batch.")
    batches = []
    for batch in result:
        rows = np.asarray(batch)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise Wrong(
                f"A batch has shape {rows.shape} and dtype {rows.dtype}; expected row numbers: one "
                "axis of whole numbers."
            )
        if rows.size and (rows.min() < 0 or rows.max() >= len(lengths)):
            raise Wrong(
                f"A batch holds the row number {rows.max()}, but there are {len(lengths)} rows, "
                "from 0 on."
            )
        if rows.size:
            batches.append(rows)
    return batches


def _same_sets(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return {frozenset(b.tolist()) for b in first} == {frozenset(b.tolist()) for b in second}


def _pairs(batches: list[np.ndarray]) -> set[tuple[int, int]]:
    return {(a, b) for batch in batches for a in batch.tolist() for b in batch.tolist() if a < b}


UPDATES = 100  # of the capstone's training
SPEAKERS = 9
LONG = 60  # frames; no utterance has half as many
HALF = 2900  # parameters, half of the chapter's network


@exercise("9.5", "A listener you can trust", "open")
def make_listener(function: Callable) -> str:
    network = Network(function)
    utterances, speakers = japanese_vowels("train")
    frames = np.concatenate(utterances)
    utterances = [(u - frames.mean(axis=0)) / frames.std(axis=0) for u in utterances]
    facts = _facts(network, utterances)
    if all(fact.met for fact in facts):
        share = _held_out(network, utterances, speakers)
        found = f"≈ {share:.1f} %"
    else:
        share, found = 0.0, "trained as soon as the rest is met"
    return rubric(
        [
            *facts,
            Criterion(
                f"after {UPDATES} updates, 88 % of the utterances held out are right",
                share >= 88,
                "What do the scores depend on: one state, or what was heard in all frames? The "
                "chapter's network takes the mean of the outputs of two directions.",
                found,
            ),
        ],
        extra=[
            Criterion("94 % of them", share >= 94),
            Criterion(
                f"94 % with at most {HALF:,} parameters, half of the chapter's",
                share >= 94 and network.size <= HALF,
                found=f"you have {network.size:,}",
            ),
        ],
    )


def _facts(network: Network, utterances: list[np.ndarray]) -> list[Criterion]:
    """What must hold for any network that is told the lengths, trained or not."""
    few = [utterances[row][:18] for row in (0, 40, 80, 160)]
    given, lengths = pad_sequences(few, num_steps=20)
    valid = (np.arange(20) < lengths[:, None])[..., None]
    wide, _ = pad_sequences(few, num_steps=LONG)
    network.expect_scores((4, SPEAKERS), given, lengths)
    try:
        network.expect_scores((4, SPEAKERS), wide, lengths)
    except Wrong as wrong:
        raise Wrong(
            f"With 20 columns the network works, with {LONG} it does not: {wrong} Recordings may "
            "be longer than those that you have seen, so nothing in it may have their length."
        ) from None
    probe = np.random.default_rng(95).normal(size=(4, SPEAKERS)).astype(np.float32)

    @in_haste
    def listen(inputs, lengths):
        """Scores, and the gradients of a mixture of them by parameters and by inputs."""

        def mixture(params, inputs):
            scores = network(params, inputs, lengths)
            return (scores * probe).sum(), scores

        gradient = jax.grad(mixture, argnums=(0, 1), has_aux=True)
        (by_params, by_inputs), scores = gradient(network.params, inputs)
        return scores, by_params, by_inputs

    def finite(tree):
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))

    def same(scores, others):
        return bool(np.allclose(scores, others, atol=1e-4))  # NaN is like nothing

    scores, by_params, by_inputs = listen(given, lengths)
    with_nan, *nan_gradients = listen(np.where(valid, given, np.nan), lengths)
    in_padding = np.where(valid, 0, nan_gradients[1])
    company = [few[0], *(utterances[row][:20] for row in (100, 200, 260))]
    beside, *_ = listen(*pad_sequences(company, num_steps=20))
    empty, *empty_gradients = listen(given, np.where(np.arange(4) < 3, lengths, 0))
    backwards, *_ = listen(flip_sequences(given, lengths, 1, False), lengths)
    moved = float(np.abs(np.asarray(backwards) - np.asarray(scores)).max())
    glance = in_haste(network)
    return [
        Criterion(
            "forty more columns of padding change no score",
            same(glance(network.params, wide, lengths), scores),
            "What reads all columns, or counts them? A mean divides by the number of valid steps, "
            "and the last column is not the last step.",
        ),
        Criterion(
            "NaN in the padding changes no score",
            same(with_nan, scores),
            "NaN times 0 is NaN: choose with `jnp.where`, or let a layer with `seq_lengths` do it. "
            "What touches the inputs before, or beside, such a layer?",
        ),
        Criterion(
            "NaN in the padding reaches no gradient",
            finite((by_params, by_inputs, nan_gradients)) and not in_padding.any(),
            "A `where` at the end stops the values, but on the way back 0 times NaN is NaN again. "
            "Clean the inputs before anything is computed with them.",
        ),
        Criterion(
            "an utterance without frames has finite scores and gradients",
            finite((empty, empty_gradients)),
            "Its length is 0, and somewhere you divide by it, or look for its last step: "
            "`jnp.maximum(lengths, 1)`, `unrolled.last_valid_step`.",
        ),
        Criterion(
            "who else is in the batch changes no score",
            same(beside[0], scores[0]),
            "A mean or a norm over the batch mixes the utterances. Each row stands for itself.",
        ),
        Criterion(
            "the order of the frames counts",
            moved > 1e-4,
            "Read backwards, each utterance has the same scores. A mean of the frames does not "
            "listen; where is the recurrence?",
        ),
        Criterion(
            "what is said after 50 frames counts",
            _hears_the_end(network, glance, utterances),
            f"In an utterance of {LONG} frames the last ten have changed, and no score has. What "
            "cuts the inputs, or the lengths? No utterance here has 30 frames, but others have.",
        ),
    ]


def _hears_the_end(network: Network, glance: Callable, utterances: list[np.ndarray]) -> bool:
    """Whether the scores of long utterances depend on their last ten frames.

    A network that reads backwards may have nearly forgotten them: a gradient shows it all the same.
    """
    frames = np.concatenate(utterances)[: 5 * LONG].reshape(5, LONG, -1)
    inputs, lengths = frames[:4], np.full(4, LONG, np.int32)
    changed = np.concatenate([inputs[:, :50], frames[1:, 50:]], axis=1)
    scores, others = (np.asarray(glance(network.params, x, lengths)) for x in (inputs, changed))
    if np.abs(scores - others).max() > 1e-6:
        return True
    by_inputs = in_haste(jax.grad(lambda x: network(network.params, x, lengths).sum()))(inputs)
    return bool(np.asarray(by_inputs)[:, 50:].any())


def _held_out(network: Network, utterances: list[np.ndarray], speakers: np.ndarray) -> float:
    """Train three times on two thirds of each speaker's utterances; the share of the rest that is
    right."""
    inputs, lengths = map(jnp.asarray, pad_sequences(utterances))
    train = trainer(network, UPDATES, peak=1e-2)
    fold = np.arange(len(speakers)) % 3
    known = np.stack([np.flatnonzero(fold != k) for k in range(3)])  # (folds, 180)
    rows = known[np.arange(3)[:, None, None], draw_rows(3, known.shape[1], UPDATES, 30, seed=95)]

    @jax.jit
    def scores(rows):
        params = jax.vmap(train, (None, 0, None, None, None))(
            network.params, rows, jnp.asarray(speakers), inputs, lengths
        )
        return jax.vmap(network, (0, None, None))(params, inputs, lengths)  # (folds, 270, 9)

    return accuracy(np.asarray(scores(rows))[fold, np.arange(len(speakers))], speakers)


def _numbers(value: Any) -> Any:
    """Raise `NotStarted` for an unfinished part, `Wrong` for what is no array at all."""
    if value is Ellipsis or value is None:
        raise NotStarted
    if not hasattr(value, "shape"):
        raise Wrong(f"expected an array, not a {type(value).__name__}.")
    return value
