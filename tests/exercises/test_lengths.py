"""Chapter 9: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import unrolled
from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, answer):
    return judge(EXERCISES[number], answer)


def mask_of(lengths, array):
    mask = jnp.arange(array.shape[1]) < lengths[:, None]
    return mask.reshape(mask.shape + (1,) * (array.ndim - 2))


def clean(array, lengths):
    return jnp.where(mask_of(lengths, array), array, 0.0)


# 9.1


def mean(outputs, lengths):
    return clean(outputs, lengths).sum(axis=1) / jnp.maximum(lengths, 1)[:, None]


def mean_starter(outputs, lengths):
    return ...


def mean_of_all(outputs, lengths):
    return outputs.mean(axis=1)


def mean_counts_padding(outputs, lengths):
    return clean(outputs, lengths).mean(axis=1)


def mean_is_a_sum(outputs, lengths):
    return clean(outputs, lengths).sum(axis=1)


def mean_by_the_batch(outputs, lengths):
    return clean(outputs, lengths).sum(axis=1) / lengths.sum()


def mean_divides_by_zero(outputs, lengths):
    return clean(outputs, lengths).sum(axis=1) / lengths[:, None]


def mean_takes_the_last(outputs, lengths):
    last = outputs[jnp.arange(len(lengths)), lengths - 1]
    return jnp.where(lengths[:, None] > 0, last, 0)


def mean_one_too_many(outputs, lengths):
    mask = jnp.arange(outputs.shape[1]) <= lengths[:, None]
    return jnp.where(mask[..., None], outputs, 0).sum(axis=1) / jnp.maximum(lengths, 1)[:, None]


def mean_one_too_few(outputs, lengths, by=lambda lengths: lengths):
    total = clean(outputs, lengths - 1).sum(axis=1)
    return total / jnp.maximum(by(lengths), 1)[:, None]


def mean_is_the_largest(outputs, lengths):
    valid = jnp.where(mask_of(lengths, outputs), outputs, -jnp.inf).max(axis=1)
    return jnp.where(lengths[:, None] > 0, valid, 0)


def mean_of_the_padding(outputs, lengths):
    rest = jnp.where(mask_of(lengths, outputs), 0, outputs)
    return rest.sum(axis=1) / jnp.maximum(lengths, 1)[:, None]


def mean_multiplies(outputs, lengths):
    total = (outputs * mask_of(lengths, outputs)).sum(axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def mean_hides_nan(outputs, lengths):
    total = jnp.nan_to_num(outputs * mask_of(lengths, outputs)).sum(axis=1)
    return total / jnp.maximum(lengths, 1)[:, None]


def mean_leaves_nan_out(outputs, lengths):
    valid = jnp.where(mask_of(lengths, outputs), outputs, jnp.nan)
    return jnp.where(lengths[:, None] > 0, jnp.nanmean(valid, axis=1), 0)


def mean_over_the_batch(outputs, lengths):
    return clean(outputs, lengths).mean(axis=0)


def mean_raises(outputs, lengths):
    return outputs[lengths::"no"]


@pytest.mark.parametrize(
    "answer, words",
    [
        (mean_of_all, "padding included"),
        (mean_hides_nan, "NaN at a *valid* step"),
        (mean_leaves_nan_out, "NaN at a *valid* step"),
        (mean_counts_padding, "still counted"),
        (mean_is_a_sum, "These are the sums"),
        (mean_by_the_batch, "its own length"),
        (mean_divides_by_zero, "zero divided by zero"),
        (mean_takes_the_last, "last valid step"),
        (lambda outputs, lengths: outputs[jnp.arange(4), lengths - 1], "index -1 finds padding"),
        (mean_is_the_largest, "largest valid value"),
        (mean_one_too_many, "not t <= length"),
        (mean_one_too_few, "missing from the sum."),
        (lambda *given: mean_one_too_few(*given, lambda lengths: lengths - 1), "from the count"),
        (mean_of_the_padding, "turned round"),
        (
            lambda outputs, lengths: (
                jnp.where(mask_of(lengths, outputs), 0, outputs).sum(axis=1)
                / jnp.maximum(5 - lengths, 1)[:, None]
            ),
            "the mean of the padding",
        ),
        (mean_multiplies, "NaN times 0"),
        (mean_over_the_batch, "axis of time is 1"),
        (mean_raises, '"no"'),
        (lambda outputs, lengths: None, "returned None"),
    ],
)
def test_9_1_names_the_mistake(answer, words):
    found, message = verdict("9.1", answer)
    assert found == "not yet" and words in message


def test_9_1_starter_and_right_answer():
    assert verdict("9.1", mean_starter)[0] == "not started"
    assert verdict("9.1", mean)[0] == "right"


# 9.2


def backwards(cell, carry, inputs, lengths, hold=True, show=True, reverse=True, valid_at=jnp.less):
    def step(carry, scanned):
        t, x_t = scanned
        valid = valid_at(t, lengths)[:, None]
        new_carry, output = cell(carry, x_t)
        carry = jnp.where(valid, new_carry, carry) if hold else new_carry
        return carry, jnp.where(valid, output, 0.0) if show else output

    scanned = (jnp.arange(inputs.shape[1]), inputs.swapaxes(0, 1))
    carry, outputs = jax.lax.scan(step, carry, scanned, reverse=reverse)
    return carry, outputs.swapaxes(0, 1)


def backwards_if(valid_at):
    return lambda *args: backwards(*args, valid_at=valid_at)


def backwards_clears(cell, carry, inputs, lengths):
    short = (lengths < inputs.shape[1])[:, None]
    return backwards(cell, jnp.where(short, 0, carry), inputs, lengths)


def backwards_shows_single_steps(cell, carry, inputs, lengths):
    shown = clean(cell(carry[:, None], inputs)[1], lengths)
    return backwards(cell, carry, inputs, lengths)[0], shown


def backwards_shows_the_padding(cell, carry, inputs, lengths):
    shown = cell(carry[:, None], inputs)[1]
    hidden = jnp.where(mask_of(lengths, inputs), 0, shown)
    return backwards(cell, carry, inputs, lengths)[0], hidden


def backwards_doubles(*args):
    carry, outputs = backwards(*args)
    return carry, 2 * outputs


def backwards_is_a_layer(cell, carry, inputs, lengths):
    return unrolled.RNN(cell, reverse=True)(inputs, initial_carry=carry, seq_lengths=lengths)


def backwards_starter(cell, carry, inputs, lengths):
    return ..., ...


def backwards_through_padding(*args):
    return backwards(*args, hold=False)


def backwards_forwards(*args):
    return backwards(*args, reverse=False)


def backwards_leftover(*args):
    return backwards(*args, show=False)


def backwards_fades_through_zeros(cell, carry, inputs, lengths):
    return backwards(cell, carry, clean(inputs, lengths), lengths, hold=False)


def backwards_fills_with_zero_inputs(cell, carry, inputs, lengths):
    """Works only where a step has as many outputs as inputs."""

    def step(carry, scanned):
        t, x_t = scanned
        valid = (t < lengths)[:, None]
        new_carry, output = cell(carry, x_t)
        return jnp.where(valid, new_carry, carry), jnp.where(valid, output, jnp.zeros_like(x_t))

    scanned = (jnp.arange(inputs.shape[1]), inputs.swapaxes(0, 1))
    carry, outputs = jax.lax.scan(step, carry, scanned, reverse=True)
    return carry, outputs.swapaxes(0, 1)


def backwards_plain_flip(cell, carry, inputs, lengths):
    carry, outputs = backwards(cell, carry, inputs[:, ::-1], lengths, reverse=False)
    return carry, outputs[:, ::-1]


def backwards_in_reading_order(*args):
    carry, outputs = backwards(*args)
    return carry, outputs[:, ::-1]


def backwards_from_zero(cell, carry, inputs, lengths):
    return backwards(cell, jnp.zeros_like(carry), inputs, lengths)


def backwards_keeps_the_old(cell, carry, inputs, lengths):
    return carry, backwards(cell, carry, inputs, lengths)[1]


def backwards_time_first(*args):
    carry, outputs = backwards(*args)
    return carry, outputs.swapaxes(0, 1)


def backwards_exchanged(*args):
    return backwards(*args)[::-1]


def backwards_outputs_only(*args):
    return backwards(*args)[1]


def backwards_multiplies(cell, carry, inputs, lengths):
    mask = mask_of(lengths, inputs)
    return backwards(cell, carry, inputs * mask, lengths)


def backwards_flips(cell, carry, inputs, lengths):
    def last_first(t, lengths):
        return inputs.shape[1] - 1 - t < lengths

    turned = (cell, carry, inputs[:, ::-1], lengths)
    carry, outputs = backwards(*turned, reverse=False, valid_at=last_first)
    return carry, outputs[:, ::-1]


def backwards_loops_in_python(cell, carry, inputs, lengths):
    outputs = []
    for t in reversed(range(inputs.shape[1])):
        valid = (t < lengths)[:, None]
        new_carry, output = cell(carry, inputs[:, t])
        carry = jnp.where(valid, new_carry, carry)
        outputs.append(jnp.where(valid, output, 0.0))
    return carry, jnp.stack(outputs[::-1], axis=1)


def backwards_raises(cell, carry, inputs, lengths):
    return jax.lax.scan(cell, carry, inputs, reverse="no" + 1)


@pytest.mark.parametrize(
    "answer, words",
    [
        (backwards_through_padding, "gone through the padding"),
        (backwards_fades_through_zeros, "has faded"),
        (backwards_fills_with_zero_inputs, "(4, 2), (4, 3)"),
        (backwards_forwards, "read forwards"),
        (backwards_leftover, "left over"),
        (backwards_plain_flip, "from the last column on"),
        (backwards_in_reading_order, "order of reading"),
        (backwards_from_zero, "begins at zero"),
        (backwards_clears, "not be cleared"),
        (backwards_if(lambda t, lengths: t <= lengths), "one step too many"),
        (backwards_if(lambda t, lengths: t < lengths - 1), "one step too few"),
        (backwards_if(lambda t, lengths: t >= lengths), "turned round"),
        (backwards_shows_single_steps, "from the carry that was given"),
        (backwards_shows_the_padding, "mask of the outputs is turned round"),
        (backwards_doubles, "same calls of the cell"),
        (backwards_is_a_layer, "not allowed here"),
        (backwards_keeps_the_old, "never changes"),
        (backwards_time_first, "time is still the first axis"),
        (backwards_exchanged, "exchanged"),
        (backwards_outputs_only, "pair `(carry, outputs)`"),
        (backwards_flips, "your scan reads from the left"),
        (backwards_loops_in_python, "there is no scan in it"),
        (backwards_raises, '"no" + 1'),
    ],
)
def test_9_2_names_the_mistake(answer, words):
    found, message = verdict("9.2", answer)
    assert found == "not yet" and words in message


def test_9_2_starter_and_right_answer():
    assert verdict("9.2", backwards_starter)[0] == "not started"
    assert verdict("9.2", backwards)[0] == "right"
    assert verdict("9.2", backwards_multiplies)[0] == "right"  # what `where` hides does not matter


# 9.3


def weigh(weights, outputs):
    return (weights[..., None] * outputs).sum(axis=1)


def attention(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, -1e30)
    return weigh(jax.nn.softmax(scores, axis=1), clean(outputs, lengths))


def attention_with(
    valid_at=jnp.less, fill=-1e30, clean=True, finish=lambda result, lengths: result
):
    def attend(scores, outputs, lengths):
        valid = valid_at(jnp.arange(scores.shape[1]), lengths[:, None])
        weights = jax.nn.softmax(jnp.where(valid, scores, fill), axis=1)
        mask = valid if clean == "the same" else mask_of(lengths, scores)
        return finish(weigh(weights, jnp.where(mask[..., None], outputs, 0)), lengths)

    return attend


def attention_starter(scores, outputs, lengths):
    return ...


def attention_everywhere(scores, outputs, lengths):
    return weigh(jax.nn.softmax(scores, axis=1), outputs)


def attention_masked_too_late(scores, outputs, lengths):
    weights = jnp.where(mask_of(lengths, scores), jax.nn.softmax(scores, axis=1), 0)
    return weigh(weights, outputs)


def attention_scores_zero(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, 0.0)
    return weigh(jax.nn.softmax(scores, axis=1), clean(outputs, lengths))


def attention_minus_infinity(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, -jnp.inf)
    return weigh(jax.nn.softmax(scores, axis=1), clean(outputs, lengths))


def attention_not_normalised(scores, outputs, lengths):
    return weigh(jnp.where(mask_of(lengths, scores), jnp.exp(scores), 0), clean(outputs, lengths))


def attention_is_a_mean(scores, outputs, lengths):
    return mean(outputs, lengths)


def attention_over_the_batch(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, -1e30)
    weights = jax.nn.softmax(scores, axis=0)
    return weigh(jnp.where(mask_of(lengths, scores), weights, 0), clean(outputs, lengths))


def attention_dirty_outputs(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, -1e30)
    return weigh(jax.nn.softmax(scores, axis=1), outputs)


def attention_overflows(scores, outputs, lengths):
    powers = jnp.where(mask_of(lengths, scores), jnp.exp(scores), 0)
    total = powers.sum(axis=1, keepdims=True)
    weights = powers / jnp.where(total > 0, total, 1)
    return weigh(weights, clean(outputs, lengths))


def attention_zero_times_nan(scores, outputs, lengths):
    scores = jnp.where(mask_of(lengths, scores), scores, -1e30)
    result = weigh(jax.nn.softmax(scores, axis=1), outputs)
    return jnp.where(lengths[:, None] > 0, result, 0)


def attention_cleans_too_late(scores, outputs, lengths):
    valid = mask_of(lengths, scores)
    scores = jnp.where(valid, scores, -1e30)
    products = jax.nn.softmax(scores, axis=1)[..., None] * outputs
    return jnp.where(valid[..., None], products, 0).sum(axis=1)


def attention_divides_by_a_constant(scores, outputs, lengths):
    valid = mask_of(lengths, scores)
    scores = jnp.where(valid, scores, -1e30)
    powers = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    total = jax.lax.stop_gradient(powers.sum(axis=1, keepdims=True))
    return weigh(powers / total, clean(outputs, lengths))


def attention_by_hand(scores, outputs, lengths):
    """Right, and the largest score is a constant for its gradient, as in `jax.nn.softmax`."""
    valid = mask_of(lengths, scores)
    scores = jnp.where(valid, scores, -1e30)
    largest = jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))
    powers = jnp.where(valid, jnp.exp(scores - largest), 0)
    total = jnp.maximum(powers.sum(axis=1, keepdims=True), 1e-9)
    return weigh(powers / total, clean(outputs, lengths))


def attention_raises(scores, outputs, lengths):
    return scores @ "no"


@pytest.mark.parametrize(
    "answer, words",
    [
        (attention_everywhere, "over all columns"),
        (attention_masked_too_late, "cut off afterwards"),
        (attention_scores_zero, "e^0 = 1"),
        (attention_minus_infinity, "minus infinity"),
        (attention_not_normalised, "do not add up to one"),
        (attention_is_a_mean, "scores are not used"),
        (attention_over_the_batch, "over the batch"),
        (attention_dirty_outputs, "its padding shows"),
        (attention_with(lambda t, n: t <= n, clean="the same"), "one step too many"),
        (attention_with(lambda t, n: t <= n), "cleaned rightly"),
        (attention_with(lambda t, n: t < n - 1, clean="the same"), "one step too few"),
        (attention_with(lambda t, n: t >= n, clean="the same"), "mask is turned round"),
        (attention_with(lambda t, n: t >= n), "mask is turned round"),
        (attention_with(finish=lambda result, n: result / 5), "take the sum"),
        (attention_with(finish=lambda result, n: result / jnp.maximum(n, 1)[:, None]), "once more"),
        (attention_with(fill=-100.0), "not small enough"),
        (attention_with(fill=-1000.0), "not small enough"),
        (attention_with(finish=lambda result, n: 2 * result), "Row 2 has one valid step"),
        (attention_overflows, "too large for any float"),
        (attention_zero_times_nan, "0 times NaN"),
        (attention_cleans_too_late, "too late"),
        (attention_divides_by_a_constant, "out of the gradient"),
        (attention_raises, '"no"'),
    ],
)
def test_9_3_names_the_mistake(answer, words):
    found, message = verdict("9.3", answer)
    assert found == "not yet" and words in message


def test_9_3_starter_and_right_answer():
    assert verdict("9.3", attention_starter)[0] == "not started"
    assert verdict("9.3", attention)[0] == "right"
    assert verdict("9.3", attention_by_hand)[0] == "right"


# 9.4


def batches(lengths, rng, chance=2.0):
    order = np.argsort(lengths + rng.uniform(0, chance, len(lengths)), kind="stable")
    cut = [order[start : start + 30] for start in range(0, len(order), 30)]
    return [cut[index] for index in rng.permutation(len(cut))]


def batches_starter(lengths, rng):
    return ...


def batches_at_random(lengths, rng):
    return np.array_split(rng.permutation(len(lengths)), 9)


def batches_without_chance(lengths, rng):
    order = np.argsort(lengths, kind="stable")
    cut = [order[start : start + 30] for start in range(0, len(order), 30)]
    return [cut[index] for index in rng.permutation(len(cut))]


def batches_in_order(lengths, rng):
    order = np.argsort(lengths + rng.uniform(0, 2, len(lengths)))
    return np.array_split(order, 9)


def batches_lose_rows(lengths, rng):
    return batches(lengths, rng)[:-1]


def batches_repeat_rows(lengths, rng):
    result = batches(lengths, rng)
    return [*result, result[0][:3]]


def batches_too_large(lengths, rng):
    return np.array_split(np.argsort(lengths + rng.uniform(0, 2, len(lengths))), 5)


def batches_of_one(lengths, rng):
    return np.array_split(rng.permutation(len(lengths)), len(lengths))


def batches_of_lengths(lengths, rng):
    return [lengths[batch] / 1 for batch in batches(lengths, rng)]


def batches_beyond(lengths, rng):
    return [batch + 1 for batch in batches(lengths, rng)]


def batches_raise(lengths, rng):
    return rng.missing


@pytest.mark.parametrize(
    "answer, words",
    [
        (batches_at_random, "similar length"),
        (batches_without_chance, "same rows always meet"),
        (batches_in_order, "Permute the batches"),
        (batches_lose_rows, "in no batch"),
        (batches_repeat_rows, "more than one batch"),
        (batches_too_large, "at most 30"),
        (batches_of_one, "at most 18"),
        (batches_of_lengths, "whole numbers"),
        (batches_beyond, "there are 270 rows"),
        (lambda lengths, rng: rng.permutation(270), "list of arrays"),
        (batches_raise, "missing"),
    ],
)
def test_9_4_names_the_mistake(answer, words):
    found, message = verdict("9.4", answer)
    assert found == "not yet" and words in message


def test_9_4_starter_and_right_answer():
    assert verdict("9.4", batches_starter)[0] == "not started"
    found, message = verdict("9.4", batches)
    assert found == "right" and "% of the computed steps" in message


# 9.5


class PerFrame(nnx.Module):
    """A sum over frames, with one feature of the frame before: order counts, nothing is a loop."""

    def __init__(self, rngs, clean=True, divide=lambda lengths, _: jnp.maximum(lengths, 1), **more):
        self.hidden = nnx.Linear(24, 16, rngs=rngs)
        self.readout = nnx.Linear(16, 9, rngs=rngs)
        self.clean, self.divide, self.more = clean, divide, more

    def __call__(self, inputs, lengths):
        mask = (jnp.arange(inputs.shape[1]) < lengths[:, None])[..., None]
        if self.clean:
            inputs = jnp.where(mask, inputs, 0)
        before = jnp.pad(inputs, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        if self.more.get("no order"):
            before = jnp.zeros_like(before)
        if self.more.get("first frames"):
            mask = mask & (jnp.arange(inputs.shape[1]) < 20)[:, None]
        frames = jnp.tanh(self.hidden(jnp.concatenate([inputs, before], axis=-1)))
        if self.more.get("multiplies"):
            frames = frames * mask
        elif not self.more.get("sums all"):
            frames = jnp.where(mask, frames, 0)
        mean = frames.sum(axis=1) / self.divide(lengths, inputs)[:, None]
        if self.more.get("over the batch"):
            mean = mean - mean.mean(axis=0)
        return self.readout(mean)


def per_frame(**options):
    return lambda rngs: PerFrame(rngs, **options)


class Weighted(PerFrame):
    """One weight for each of 29 places."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.places = nnx.Param(jnp.ones(29))

    def __call__(self, inputs, lengths):
        return super().__call__(inputs * self.places[: inputs.shape[1], None], lengths)


class FromTheEnd(nnx.Module):
    """The last state of a GRU that reads backwards: of the last frame it knows next to nothing."""

    def __init__(self, rngs, units=16):
        self.layer = unrolled.RNN(unrolled.GRUCell(12, units, rngs=rngs), reverse=True)
        self.readout = nnx.Linear(units, 9, rngs=rngs)

    def __call__(self, inputs, lengths):
        return self.readout(self.layer(inputs, seq_lengths=lengths, return_carry=True)[0])


class Lazy(nnx.Module):
    """Right in all facts but one: it looks at the first two frames only."""

    def __init__(self, rngs):
        self.readout = nnx.Linear(24, 9, rngs=rngs)

    def __call__(self, inputs, lengths):
        mask = (jnp.arange(2) < lengths[:, None])[..., None]
        return self.readout(jnp.where(mask, inputs[:, :2], 0).reshape(len(inputs), 24) / 100)


@pytest.mark.parametrize(
    "answer, words",
    [
        (per_frame(divide=lambda lengths, x: jnp.full(len(x), x.shape[1])), "Next: forty more"),
        (per_frame(clean=False, multiplies=True), "Next: NaN in the padding changes no score"),
        (per_frame(clean=False), "Next: NaN in the padding reaches no gradient"),
        (per_frame(divide=lambda lengths, _: lengths), "Next: an utterance without frames"),
        (per_frame(**{"over the batch": True}), "Next: who else is in the batch"),
        (per_frame(**{"no order": True}), "Next: the order of the frames counts"),
        (per_frame(**{"first frames": True}), "Next: what is said after 50 frames counts"),
        (Lazy, "Next: what is said after 50 frames counts"),
        (Weighted, "With 20 columns the network works, with 60 it does not: `__call__` stopped"),
        (lambda rngs: FromTheEnd(rngs, units=1), "Next: after 100 updates"),
        (lambda rngs: 3, "Return the network"),
        (lambda rngs: nnx.Linear(12, 9, rngs=rngs), "TypeError"),
        (lambda rngs: nnx.Dropout(0.5, rngs=rngs), "nothing to train"),
    ],
)
def test_9_5_names_what_is_missing(answer, words):
    found, message = verdict("9.5", answer)
    assert found == "not yet" and words in message, message


class Unfinished(nnx.Module):
    def __init__(self, rngs):
        self.readout = nnx.Linear(12, 9, rngs=rngs)

    def __call__(self, inputs, lengths):
        return ...


def test_9_5_starters_and_an_answer():
    assert verdict("9.5", lambda rngs: ...)[0] == "not started"
    assert verdict("9.5", Unfinished)[0] == "not started"
    found, message = verdict("9.5", per_frame())
    assert found == "right" and "of 10 criteria are met" in message, message
