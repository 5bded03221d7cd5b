"""Chapter 10: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import unrolled
from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


def join(forward, backward):
    return jnp.concatenate([forward, backward], axis=-1)


# 10.1


def both(forward_rnn, backward_rnn, inputs):
    backward = jnp.flip(backward_rnn(jnp.flip(inputs, axis=1)), axis=1)
    return join(forward_rnn(inputs), backward)


def both_starter(forward_rnn, backward_rnn, inputs):
    return ...


def both_forwards(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), backward_rnn(inputs))


def both_as_computed(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), backward_rnn(jnp.flip(inputs, axis=1)))


def both_outputs_only(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), jnp.flip(backward_rnn(inputs), axis=1))


def both_flip_the_batch(forward_rnn, backward_rnn, inputs):
    backward = jnp.flip(backward_rnn(jnp.flip(inputs, axis=0)), axis=0)
    return join(forward_rnn(inputs), backward)


def both_flip_features(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), backward_rnn(jnp.flip(inputs, axis=-1)))


def both_halves_exchanged(forward_rnn, backward_rnn, inputs):
    backward = jnp.flip(backward_rnn(jnp.flip(inputs, axis=1)), axis=1)
    return join(backward, forward_rnn(inputs))


def both_layers_exchanged(forward_rnn, backward_rnn, inputs):
    first = jnp.flip(forward_rnn(jnp.flip(inputs, axis=1)), axis=1)
    return join(first, backward_rnn(inputs))


def both_along_time(forward_rnn, backward_rnn, inputs):
    backward = jnp.flip(forward_rnn(jnp.flip(inputs, axis=1)), axis=1)
    backward_rnn(inputs)
    return jnp.concatenate([forward_rnn(inputs), backward], axis=1)


def both_as_a_pair(forward_rnn, backward_rnn, inputs):
    return forward_rnn(inputs), backward_rnn(inputs)


def both_with_one_layer(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), forward_rnn(jnp.flip(inputs, axis=1)))


def both_flip_features_twice(forward_rnn, backward_rnn, inputs):
    backward = jnp.flip(backward_rnn(jnp.flip(inputs, axis=-1)), axis=-1)
    return join(forward_rnn(inputs), backward)


def both_flip_the_batch_once(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), backward_rnn(jnp.flip(inputs, axis=0)))


def both_flip_everything(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), jnp.flip(backward_rnn(jnp.flip(inputs))))


def both_flip_all_inputs(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), jnp.flip(backward_rnn(jnp.flip(inputs)), axis=1))


def both_by_vmap(forward_rnn, backward_rnn, inputs):
    return jax.vmap(lambda row: both(forward_rnn, backward_rnn, row[None])[0])(inputs)


def both_from_the_first(forward_rnn, backward_rnn, inputs):
    return join(forward_rnn(inputs), 0 * backward_rnn(inputs)[..., :2])


def both_with_options(forward_rnn, backward_rnn, inputs):
    return unrolled.Bidirectional(forward_rnn, backward_rnn)(inputs)


def both_raise(forward_rnn, backward_rnn, inputs):
    return forward_rnn(inputs, reverse=True)


@pytest.mark.parametrize(
    "answer, words",
    [
        (both_forwards, "Both layers read forwards"),
        (both_as_computed, "order of computing"),
        (both_outputs_only, "but not its inputs"),
        (both_flip_the_batch, "Both layers read forwards"),
        (both_flip_features, "flipped the features"),
        (both_halves_exchanged, "halves are exchanged"),
        (both_layers_exchanged, "layers are exchanged"),
        (both_along_time, "joined along time"),
        (both_as_a_pair, "one array"),
        (both_with_one_layer, "backward layer was never called"),
        (both_flip_features_twice, "flipped the features, of the inputs"),
        (both_flip_the_batch_once, "flipped the batch"),
        (both_flip_everything, "here and for the outputs"),
        (both_flip_all_inputs, "turns all axes round"),
        (both_from_the_first, "features of the same layer"),
        (both_with_options, "not allowed here"),
        (lambda f, b, x: f(x[0]), "(batch, time, 2), and was given one of shape (4, 2)"),
        (both_raise, "called with reverse"),
    ],
)
def test_10_1_names_the_mistake(answer, words):
    found, message = verdict("10.1", answer)
    assert found == "not yet" and words in message


def test_10_1_starter_and_right_answer():
    assert verdict("10.1", both_starter)[0] == "not started"
    assert verdict("10.1", both)[0] == "right"
    assert verdict("10.1", jax.jit(both, static_argnums=(0, 1)))[0] == "right"
    assert verdict("10.1", both_by_vmap)[0] == "right"


# 10.2


def summary(outputs, seq_lengths):
    forward, backward = jnp.split(outputs, 2, axis=-1)
    return join(unrolled.last_valid_step(forward, seq_lengths), backward[:, 0])


def summary_starter(outputs, seq_lengths):
    return ...


def summary_last_step(outputs, seq_lengths):
    return outputs[:, -1]


def summary_last_valid_step(outputs, seq_lengths):
    return unrolled.last_valid_step(outputs, seq_lengths)


def summary_first_step(outputs, seq_lengths):
    return outputs[:, 0]


def summary_wrong_ends(outputs, seq_lengths):
    forward, backward = jnp.split(outputs, 2, axis=-1)
    return join(forward[:, 0], unrolled.last_valid_step(backward, seq_lengths))


def summary_ignores_lengths(outputs, seq_lengths):
    forward, backward = jnp.split(outputs, 2, axis=-1)
    return join(forward[:, -1], backward[:, 0])


def summary_exchanged(outputs, seq_lengths):
    forward, backward = jnp.split(summary(outputs, seq_lengths), 2, axis=-1)
    return join(backward, forward)


def summary_mean(outputs, seq_lengths):
    return outputs.sum(axis=1) / seq_lengths[:, None]


def summary_at(forward_step=lambda n: n - 1, backward_step=0):
    def summary(outputs, seq_lengths):
        forward, backward = jnp.split(outputs, 2, axis=-1)
        at = forward_step(seq_lengths)
        return join(forward[jnp.arange(len(outputs)), at], backward[:, backward_step])

    return summary


def summary_largest(outputs, seq_lengths):
    return outputs.max(axis=1)


def summary_one_half(outputs, seq_lengths):
    return summary(outputs, seq_lengths)[:, :3]


def summary_raises(outputs, seq_lengths):
    return outputs[seq_lengths, "no"]


@pytest.mark.parametrize(
    "answer, words",
    [
        (summary_last_step, "last step of the array"),
        (summary_last_valid_step, "last valid step"),
        (summary_first_step, "forward half has read a single input"),
        (summary_wrong_ends, "where it has read a single input"),
        (summary_ignores_lengths, "last step of the array, which is padding in short rows"),
        (summary_at(lambda n: n), "one step too late, which is padding in short rows"),
        (summary_at(lambda n: n - 2), "one step too early"),
        (summary_at(lambda n: jnp.maximum(n - 2, 0)), "none before 0"),
        (summary_at(backward_step=-1), "where that reader began"),
        (summary_at(backward_step=1), "taken at step 2"),
        (summary_largest, "largest output of each unit"),
        (lambda outputs, n: 2 * summary(outputs, n), "each of the two readers"),
        (summary_exchanged, "halves are exchanged"),
        (summary_mean, "mean over"),
        (summary_one_half, "both halves"),
        (summary_raises, '"no"'),
    ],
)
def test_10_2_names_the_mistake(answer, words):
    found, message = verdict("10.2", answer)
    assert found == "not yet" and words in message


def test_10_2_starter_and_right_answer():
    assert verdict("10.2", summary_starter)[0] == "not started"
    assert verdict("10.2", summary)[0] == "right"


# 10.3


def shift(outputs, steps):
    if steps > 0:
        return jnp.pad(outputs, ((0, 0), (steps, 0), (0, 0)))[:, : outputs.shape[1]]
    return jnp.pad(outputs, ((0, 0), (0, -steps), (0, 0)))[:, -steps:]


def gap(forward_steps, backward_steps, **options):
    options = options or {"reverse": True, "keep_order": True}

    def all_but_this(forward_rnn, backward_rnn, inputs):
        forward, backward = forward_rnn(inputs), backward_rnn(inputs, **options)
        return join(shift(forward, forward_steps), shift(backward, backward_steps))

    return all_but_this


def gap_starter(forward_rnn, backward_rnn, inputs):
    return join(..., ...)


def gap_rolls(forward_rnn, backward_rnn, inputs):
    backward = backward_rnn(inputs, reverse=True, keep_order=True)
    return join(jnp.roll(forward_rnn(inputs), 1, axis=1), jnp.roll(backward, -1, axis=1))


def gap_exchanged(forward_rnn, backward_rnn, inputs):
    backward = backward_rnn(inputs, reverse=True, keep_order=True)
    return join(shift(backward, -1), shift(forward_rnn(inputs), 1))


def gap_loses_a_step(forward_rnn, backward_rnn, inputs):
    backward = backward_rnn(inputs, reverse=True, keep_order=True)
    return join(forward_rnn(inputs)[:, :-1], backward[:, 1:])


def gap_leaves_out_a_step(forward_rnn, backward_rnn, inputs):
    forward = forward_rnn(inputs[:, :-1])
    backward = backward_rnn(inputs[:, 1:], reverse=True, keep_order=True)
    return join(shift_in_zeros(forward, 1, 0), shift_in_zeros(backward, 0, 1))


def shift_in_zeros(outputs, before, behind):
    return jnp.pad(outputs, ((0, 0), (before, behind), (0, 0)))


def gap_asks_for_carries(forward_rnn, backward_rnn, inputs):
    options = {"return_carry": True, "time_major": False}
    _, forward = forward_rnn(inputs, **options)
    _, backward = backward_rnn(inputs, reverse=True, keep_order=True, **options)
    return join(shift(forward, 1), shift(backward, -1))


def gap_of_bidirectional(forward_rnn, backward_rnn, inputs):
    outputs = unrolled.Bidirectional(forward_rnn, backward_rnn)(inputs)
    forward, backward = jnp.split(outputs, 2, axis=-1)
    return join(shift(forward, 1), shift(backward, -1))


def gap_compiled(forward_rnn, backward_rnn, inputs):
    return nnx.jit(gap_leaves_out_a_step)(forward_rnn, backward_rnn, inputs)


def gap_reads_what_is_there(forward_rnn, backward_rnn, inputs):
    """Reads the neighbours of each step; of a single one there are none, and no layer is called."""
    nothing, outputs = jnp.zeros((len(inputs), 3)), []
    for t in range(inputs.shape[1]):
        before, behind = inputs[:, :t], inputs[:, t + 1 :]
        forward = forward_rnn(before)[:, -1] if before.size else nothing
        backward = backward_rnn(behind, reverse=True)[:, -1] if behind.size else nothing
        outputs.append(join(forward, backward))
    return jnp.stack(outputs, axis=1)


def test_10_3_accepts_whatever_runs_with_rnn():
    answers = gap_leaves_out_a_step, gap_asks_for_carries, gap_of_bidirectional, gap_compiled
    for answer in (*answers, gap_reads_what_is_there):
        assert verdict("10.3", answer)[0] == "right", verdict("10.3", answer)


def gap_raises(forward_rnn, backward_rnn, inputs):
    return forward_rnn(inputs) @ "no"


@pytest.mark.parametrize(
    "answer, words",
    [
        (gap(0, 0), "given away"),
        (gap(1, 0), "backward state at step t has still seen"),
        (gap(0, -1), "forward state at step t has still seen"),
        (gap(-1, 1), "wrong way"),
        (gap(1, 1), "backward half moves the wrong way"),
        (gap(-1, -1), "forward half moves the wrong way"),
        (gap_rolls, "turns in a circle"),
        (gap(1, -1, reverse=True), "order of computing"),
        (gap(1, -1, keep_order=True), "Both layers read forwards"),
        (gap(2, -2), "one step too many"),
        (gap_exchanged, "halves are exchanged"),
        (gap_loses_a_step, "As many steps as the inputs"),
        (gap_raises, '@ "no"'),
    ],
)
def test_10_3_names_the_mistake(answer, words):
    found, message = verdict("10.3", answer)
    assert found == "not yet" and words in message


def test_10_3_starter_and_right_answer():
    assert verdict("10.3", gap_starter)[0] == "not started"
    assert verdict("10.3", gap(1, -1))[0] == "right"


# 10.4


def unshuffle(inputs):
    alike = np.corrcoef(inputs.T)
    chain, left = [0], set(range(1, len(alike)))
    while left:
        front = max(left, key=lambda column: alike[chain[0], column])
        back = max(left, key=lambda column: alike[chain[-1], column])
        if alike[chain[0], front] > alike[chain[-1], back]:
            chain.insert(0, front)
            left.remove(front)
        else:
            chain.append(back)
            left.remove(back)
    return np.array(chain)


def unshuffle_starter(inputs):
    return ...


def unshuffle_one_way(inputs):
    alike = np.corrcoef(inputs.T)
    chain, left = [0], set(range(1, len(alike)))
    while left:
        chain.append(max(left, key=lambda column: alike[chain[-1], column]))
        left.remove(chain[-1])
    return np.array(chain)


def unshuffle_nothing(inputs):
    return np.arange(inputs.shape[1])


def unshuffle_by_mean(inputs):
    return np.argsort(inputs.mean(axis=0))


def unshuffle_inverse(inputs):
    return np.argsort(unshuffle(inputs))


def unshuffle_repeats(inputs):
    return np.abs(np.corrcoef(inputs.T) - np.eye(inputs.shape[1])).argmax(axis=1)


def unshuffle_returns_the_data(inputs):
    return inputs[:, unshuffle(inputs)]


def unshuffle_raises(inputs):
    return np.corrcoef(inputs.T) @ "no"


@pytest.mark.parametrize(
    "answer, words",
    [
        (unshuffle_one_way, "both of its ends"),
        (unshuffle_nothing, "still shuffled"),
        (unshuffle_by_mean, "most alike"),
        (unshuffle_inverse, "inverse"),
        (unshuffle_repeats, "exactly once"),
        (unshuffle_returns_the_data, "One index for each column"),
        (unshuffle_raises, '@ "no"'),
    ],
)
def test_10_4_names_the_mistake(answer, words):
    found, message = verdict("10.4", answer)
    assert found == "not yet" and words in message


def test_10_4_starter_and_right_answer():
    assert verdict("10.4", unshuffle_starter)[0] == "not started"
    found, message = verdict("10.4", unshuffle)
    assert found == "right" and "all neighbours" in message


# 10.5


class Windows(nnx.Module):
    """Detectors over five neighbouring points, without a recurrence: quick to compile."""

    def __init__(self, rngs, units=16, summary=lambda x: x.max(axis=1), crop=40, scale=1.0):
        self.hidden = nnx.Linear(9, units, rngs=rngs)
        self.readout = nnx.Linear(units, 10, rngs=rngs)
        self.summary, self.crop, self.scale = summary, crop, scale

    def __call__(self, inputs):
        padded = jnp.pad(inputs[:, : self.crop], ((0, 0), (4, 4), (0, 0)))
        shifted = [padded[:, start : start + self.crop] for start in range(9)]
        found = nnx.relu(self.hidden(jnp.concatenate(shifted, axis=-1)))
        return self.readout(self.scale * self.summary(found))


class ByHeart(nnx.Module):
    """One hidden layer that knows every place."""

    def __init__(self, rngs):
        self.hidden, self.readout = nnx.Linear(40, 28, rngs=rngs), nnx.Linear(28, 10, rngs=rngs)

    def __call__(self, inputs):
        return self.readout(nnx.relu(self.hidden(inputs[..., 0])))


def windows(**options):
    return lambda rngs: Windows(rngs, **options)


def batch_mean(found):
    return found.mean(axis=1) - found.mean(axis=(0, 1))


@pytest.mark.parametrize(
    "answer, words",
    [
        (windows(units=200), "Next: at most 1,500 parameters"),
        (windows(summary=batch_mean), "Next: scores and slopes are finite, and each curve"),
        (windows(summary=lambda x: x.mean(axis=1), crop=30), "Next: every step of a curve counts"),
        (ByHeart, "Next: after 300 updates, 70 %"),
        (lambda rngs: {"a": 1}, "Return the network"),
        (lambda rngs: nnx.Linear(1, 10, rngs=rngs), "expected scores of shape (5, 10)"),
    ],
)
def test_10_5_names_what_is_missing(answer, words):
    found, message = verdict("10.5", answer)
    assert found == "not yet" and words in message, message


class Few(Windows):
    """In one curve the largest of few units see some of the steps; in others they see others."""

    def __init__(self, rngs):
        super().__init__(rngs, units=3)
        self.unused = nnx.Param(jnp.zeros(2000))  # too many, so that it is not trained


def test_10_5_looks_for_blind_steps_in_many_curves():
    assert "[x] every step of a curve counts" in verdict("10.5", Few)[1]


def test_10_5_starter():
    assert verdict("10.5", lambda rngs: ...)[0] == "not started"
