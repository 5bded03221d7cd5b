"""Chapter 8: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unrolled import RNN, GRUCell, RNNCellBase
from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


def scan(cell, carry, inputs, **options):
    return jax.lax.scan(lambda carry, x: cell(carry, x), carry, inputs, **options)


# 8.1


def heart(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    carry, outputs = scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    return carry, jnp.moveaxis(outputs, 0, -2)


def heart_starter(cell, inputs):
    inputs = ...
    return inputs, ...


def heart_over_the_batch(cell, inputs):
    return scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)


def heart_leaves_time_first(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    return scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)


def heart_counts_axes_from_the_front(cell, inputs):
    inputs = jnp.swapaxes(inputs, 0, 1)
    carry, outputs = scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    return carry, jnp.swapaxes(outputs, 0, 1)


def heart_starts_at_zero(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    carry, outputs = scan(cell, jnp.zeros(inputs.shape[1:]), inputs)
    return carry, jnp.moveaxis(outputs, 0, -2)


def heart_exchanged(cell, inputs):
    return heart(cell, inputs)[::-1]


def heart_outputs_only(cell, inputs):
    return heart(cell, inputs)[1]


def heart_backwards(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    carry, outputs = scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs, reverse=True)
    return carry, jnp.moveaxis(outputs, 0, -2)


def heart_never_hands_on(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    carry = cell.initialize_carry(inputs.shape[1:])
    carry, outputs = jax.lax.scan(lambda c, x: (c, cell(c, x)[1]), carry, inputs)
    return carry, jnp.moveaxis(outputs, 0, -2)


def heart_outputs_reversed(cell, inputs):
    carry, outputs = heart(cell, inputs)
    return carry, jnp.flip(outputs, -2)


def heart_inputs_reversed(cell, inputs):
    return heart(cell, jnp.flip(inputs, -2))


def heart_carries_the_output(cell, inputs):
    outputs = heart(cell, inputs)[1]
    return outputs[..., -1, :], outputs


def heart_asks_with_all_steps(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    return scan(cell, cell.initialize_carry(jnp.moveaxis(inputs, 0, -2).shape), inputs)


def heart_swaps_the_first_axes(cell, inputs):
    inputs = jnp.swapaxes(inputs, 0, 1)
    carry, outputs = scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    return carry, jnp.moveaxis(outputs, 0, -2)


def heart_is_a_layer(cell, inputs):
    return RNN(cell)(inputs, return_carry=True)


def heart_loops_in_python(cell, inputs):
    inputs = jnp.moveaxis(inputs, -2, 0)
    carry, outputs = cell.initialize_carry(inputs.shape[1:]), []
    for x in inputs:
        carry, output = cell(carry, x)
        outputs.append(output)
    return carry, jnp.stack(outputs, axis=-2)


def heart_scans_twice(cell, inputs):
    return heart(cell, inputs)[0], heart(cell, inputs)[1]


def heart_raises(cell, inputs):
    return cell.initialize_carry(inputs.shape) @ "no"


@pytest.mark.parametrize(
    "answer, words",
    [
        (heart_over_the_batch, "took the first axis for time"),
        (heart_leaves_time_first, "still the first axis"),
        (heart_counts_axes_from_the_front, "count from the end"),
        (heart_starts_at_zero, "Ask the cell"),
        (heart_exchanged, "exchanged"),
        (heart_outputs_only, "pair `(carry, outputs)`"),
        (heart_backwards, "Leave out `reverse=True`"),
        (heart_inputs_reversed, "given the last step first"),
        (heart_outputs_reversed, "the last one first"),
        (heart_never_hands_on, "carry is not handed on"),
        (heart_carries_the_output, "last *output*"),
        (heart_asks_with_all_steps, "shape of the whole sequence"),
        (heart_swaps_the_first_axes, "count the axis of time from the end"),
        (heart_is_a_layer, "not allowed here"),
        (heart_loops_in_python, "there is no scan in it"),
        (heart_scans_twice, "it uses 2 loops"),
        (heart_raises, '@ "no"'),
    ],
)
def test_8_1_names_the_mistake(answer, words):
    found, message = verdict("8.1", answer)
    assert found == "not yet" and words in message


def test_8_1_starter_and_right_answer():
    assert verdict("8.1", heart_starter)[0] == "not started"
    assert verdict("8.1", heart)[0] == "right"


# 8.2


def chunks(rnn, inputs, chunk_size):
    carry, outputs = None, []
    for start in range(0, inputs.shape[1], chunk_size):
        chunk = inputs[:, start : start + chunk_size]
        carry, chunk_outputs = rnn(chunk, initial_carry=carry, return_carry=True)
        outputs.append(chunk_outputs)
    return jnp.concatenate(outputs, axis=1)


def chunks_starter(rnn, inputs, chunk_size):
    return ...


def chunks_forget(rnn, inputs, chunk_size):
    starts = range(0, inputs.shape[1], chunk_size)
    return jnp.concatenate([rnn(inputs[:, t : t + chunk_size]) for t in starts], axis=1)


def chunks_all_at_once(rnn, inputs, chunk_size):
    return rnn(inputs)


def chunks_lose_the_rest(rnn, inputs, chunk_size):
    return chunks(rnn, inputs[:, : max(1, inputs.shape[1] // chunk_size) * chunk_size], chunk_size)


def chunks_of_the_batch(rnn, inputs, chunk_size):
    return jnp.concatenate([rnn(row[None]) for row in inputs])


def chunks_joined_along_the_batch(rnn, inputs, chunk_size):
    starts = range(0, inputs.shape[1], chunk_size)
    return jnp.concatenate([rnn(inputs[:, t : t + chunk_size]) for t in starts], axis=0)


def chunks_hand_on_the_output(rnn, inputs, chunk_size):
    carry, outputs = None, []
    for start in range(0, inputs.shape[1], chunk_size):
        outputs.append(rnn(inputs[:, start : start + chunk_size], initial_carry=carry))
        carry = outputs[-1][:, -1]
    return jnp.concatenate(outputs, axis=1)


def cut(inputs, size, shorter=0):
    return [inputs[:, t : t + size - shorter] for t in range(0, inputs.shape[1], size)]


def chunks_too_short(rnn, inputs, chunk_size):
    outputs = [rnn(chunk) for chunk in cut(inputs, chunk_size, shorter=1)]
    return jnp.concatenate(outputs, axis=1)


def chunks_keep_the_last(rnn, inputs, chunk_size):
    return [rnn(chunk) for chunk in cut(inputs, chunk_size)][-1]


def chunks_stacked(rnn, inputs, chunk_size):
    return jnp.stack([rnn(chunk) for chunk in cut(inputs, chunk_size)], axis=1)


def chunks_read_twice(rnn, inputs, chunk_size):
    carry, outputs = None, []
    for chunk in cut(inputs, chunk_size):
        carry, _ = rnn(chunk, initial_carry=carry, return_carry=True)
        outputs.append(rnn(chunk, initial_carry=carry))
    return jnp.concatenate(outputs, axis=1)


def chunks_keep_the_first_carry(rnn, inputs, chunk_size):
    first, *others = cut(inputs, chunk_size)
    carry, outputs = rnn(first, return_carry=True)
    return jnp.concatenate([outputs, *(rnn(c, initial_carry=carry) for c in others)], axis=1)


def chunks_as_many_as_steps_fit(rnn, inputs, chunk_size):
    carry, outputs = None, []
    for chunk in jnp.array_split(inputs, chunk_size, axis=1):
        carry, read = rnn(chunk, initial_carry=carry, return_carry=True)
        outputs.append(read)
    return jnp.concatenate(outputs, axis=1)


def chunks_from_zero(rnn, inputs, chunk_size):
    carry, outputs = jnp.zeros_like(inputs[:, 0]), []
    for chunk in cut(inputs, chunk_size):
        carry, read = rnn(chunk, initial_carry=carry, return_carry=True)
        outputs.append(read)
    return jnp.concatenate(outputs, axis=1)


def chunks_turned_round(rnn, inputs, chunk_size):
    return jnp.concatenate(cut(chunks(rnn, inputs, chunk_size), chunk_size)[::-1], axis=1)


def chunks_from_the_end(rnn, inputs, chunk_size):
    carry, outputs = None, []
    for chunk in cut(inputs, chunk_size)[::-1]:
        carry, read = rnn(chunk, initial_carry=carry, return_carry=True)
        outputs.insert(0, read)
    return jnp.concatenate(outputs, axis=1)


def chunks_raise(rnn, inputs, chunk_size):
    return rnn(inputs, seq_lengths=chunk_size)


def chunks_with_every_keyword(rnn, inputs, chunk_size):
    carry, outputs = None, []
    options = {"time_major": False, "reverse": False, "keep_order": False, "rngs": None}
    for chunk in cut(inputs, chunk_size):
        lengths = jnp.full(len(chunk), chunk.shape[1])
        options |= {"initial_carry": carry, "seq_lengths": lengths, "return_carry": True}
        carry, read = rnn(chunk, **options)
        outputs.append(read)
    return jnp.concatenate(outputs, axis=1)


def chunks_with_time_first(rnn, inputs, chunk_size):
    inputs, carry, outputs = jnp.swapaxes(inputs, 0, 1), None, []
    for start in range(0, len(inputs), chunk_size):
        chunk = inputs[start : start + chunk_size]
        carry, read = rnn(chunk, initial_carry=carry, return_carry=True, time_major=True)
        outputs.append(read)
    return jnp.swapaxes(jnp.concatenate(outputs), 0, 1)


def chunks_in_a_scan(rnn, inputs, chunk_size):
    batch, steps, features = inputs.shape
    count = steps // chunk_size
    whole = inputs[:, : count * chunk_size].reshape(batch, count, chunk_size, features)
    carry, outputs = jax.lax.scan(
        lambda carry, chunk: rnn(chunk, initial_carry=carry, return_carry=True),
        rnn(inputs[:, :0], return_carry=True)[0],
        jnp.swapaxes(whole, 0, 1),
    )
    outputs = jnp.swapaxes(outputs, 0, 1).reshape(batch, count * chunk_size, features)
    rest = rnn(inputs[:, count * chunk_size :], initial_carry=carry)
    return jnp.concatenate([outputs, rest], axis=1)


def chunks_of_one_row_each(rnn, inputs, chunk_size):
    return jnp.concatenate([chunks(rnn, row[None], chunk_size) for row in inputs])


def chunks_compiled(rnn, inputs, chunk_size):
    return nnx.jit(chunks, static_argnums=2)(rnn, inputs, chunk_size)


@pytest.mark.parametrize(
    "answer",
    [
        chunks_with_every_keyword,
        chunks_with_time_first,
        chunks_in_a_scan,
        chunks_of_one_row_each,
        chunks_compiled,
    ],
)
def test_8_2_accepts_whatever_runs_with_rnn(answer):
    assert verdict("8.2", answer)[0] == "right", verdict("8.2", answer)


@pytest.mark.parametrize(
    "answer, words",
    [
        (chunks_forget, "starts anew"),
        (chunks_all_at_once, "at once"),
        (chunks_as_many_as_steps_fit, "given 4 steps at once"),
        (chunks_from_zero, "begins with zeros"),
        (chunks_lose_the_rest, "last chunk may be shorter"),
        (chunks_too_short, "lost between two chunks"),
        (chunks_keep_the_last, "outputs of every chunk"),
        (chunks_stacked, "along time, which is axis 1"),
        (chunks_read_twice, "stands *behind* it"),
        (chunks_keep_the_first_carry, "not replaced"),
        (chunks_turned_round, "in the wrong order"),
        (chunks_from_the_end, "from the last to the first"),
        (chunks_of_the_batch, "cut along the batch"),
        (chunks_joined_along_the_batch, "along the batch"),
        (chunks_hand_on_the_output, "last *output*"),
        (chunks_raise, "rnn(inputs, seq_lengths=chunk_size)"),
    ],
)
def test_8_2_names_the_mistake(answer, words):
    found, message = verdict("8.2", answer)
    assert found == "not yet" and words in message


def test_8_2_starter_and_right_answer():
    assert verdict("8.2", chunks_starter)[0] == "not started"
    assert verdict("8.2", chunks)[0] == "right"


# 8.3


class Zoneout(RNNCellBase):
    def __init__(self, cell, rate, *, rngs):
        self.cell = cell
        self.rate = rate
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def mix(self, old, new):
        return old + (1 - self.rate) * self.dropout(new - old)

    def __call__(self, carry, inputs):
        mixed = self.mix(carry, self.cell(carry, inputs)[0])
        return mixed, mixed

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.cell.initialize_carry(input_shape, rngs, carry_init)


class ZoneoutStarter(Zoneout):
    def mix(self, old, new):
        return ...


class NeverKeeps(Zoneout):
    def mix(self, old, new):
        return new


class DropsOut(Zoneout):
    def mix(self, old, new):
        return self.dropout(new)


class Overshoots(Zoneout):
    def mix(self, old, new):
        return old + self.dropout(new - old)


class RateTurnedRound(Zoneout):
    def mix(self, old, new):
        return new + (1 - self.rate) * self.dropout(old - new)


class AlwaysAMixture(Zoneout):
    def mix(self, old, new):
        return self.rate * old + (1 - self.rate) * new


class NoMixtureInUse(Zoneout):
    def mix(self, old, new):
        if self.dropout.deterministic:
            return new
        return super().mix(old, new)


class OneMaskForAll(Zoneout):
    def mix(self, old, new):
        keep = jnp.arange(old.shape[-1]) % 10 < 3
        return jnp.where(keep, old, new)


class OneDecisionForARow(Zoneout):
    def __init__(self, cell, rate, *, rngs):
        super().__init__(cell, rate, rngs=rngs)
        self.dropout = nnx.Dropout(rate, broadcast_dims=(-1,), rngs=rngs)


class OneDrawForAColumn(Zoneout):
    """A mask for the units, drawn by chance, for all rows."""

    def __init__(self, cell, rate, *, rngs):
        super().__init__(cell, rate, rngs=rngs)
        self.dropout = nnx.Dropout(rate, broadcast_dims=(0,), rngs=rngs)


class ByComparison(Zoneout):
    """Right, with a mask of its own drawing."""

    def __init__(self, cell, rate, *, rngs):
        super().__init__(cell, rate, rngs=rngs)
        self.rngs = rngs.fork()

    def mix(self, old, new):
        if self.dropout.deterministic:
            return self.rate * old + (1 - self.rate) * new
        keep = jax.random.uniform(self.rngs.default(), old.shape) < self.rate
        return jnp.where(keep, old, new)


class ShowsTheNewState(Zoneout):
    def __call__(self, carry, inputs):
        new, _ = self.cell(carry, inputs)
        return self.mix(carry, new), new


class ChanceInUse(Zoneout):
    def mix(self, old, new):
        return old + (1 - self.rate) * self.dropout(new - old, deterministic=False)


class CountsInPython(ByComparison):
    """In a scan the code of a step runs once, so it counts to one."""

    def __init__(self, cell, rate, *, rngs):
        super().__init__(cell, rate, rngs=rngs)
        self.key, self.steps = rngs.params(), 0

    def mix(self, old, new):
        if self.dropout.deterministic:
            return super().mix(old, new)
        self.steps += 1
        key = jax.random.fold_in(self.key, self.steps)
        return jnp.where(jax.random.uniform(key, old.shape) < self.rate, old, new)


class DropsTheCarryToo(Zoneout):
    def __call__(self, carry, inputs):
        new, _ = self.cell(self.dropout(carry), inputs)
        mixed = self.mix(carry, new)
        return mixed, mixed


class BeginsWithZeros(Zoneout):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros(input_shape)


class Raises(Zoneout):
    def mix(self, old, new):
        return old + self.missing


@pytest.mark.parametrize(
    "answer, words",
    [
        (NeverKeeps, "takes its new value"),
        (DropsOut, "become zero"),
        (Overshoots, "overshoot"),
        (RateTurnedRound, "exchanged"),
        (AlwaysAMixture, "without any chance"),
        (NoMixtureInUse, "what happens on average"),
        (OneMaskForAll, "share one mask"),
        (OneDrawForAColumn, "share one mask"),
        (OneDecisionForARow, "keep their old value together"),
        (ShowsTheNewState, "not the new carry"),
        (ChanceInUse, "two steps still differ"),
        (CountsInPython, "all steps share one mask"),
        (DropsTheCarryToo, "of the whole old carry"),
        (BeginsWithZeros, "should ask `self.cell`"),
        (Raises, "missing"),
    ],
)
def test_8_3_names_the_mistake(answer, words):
    found, message = verdict("8.3", answer)
    assert found == "not yet" and words in message


def test_8_3_starter_and_right_answer():
    assert verdict("8.3", ZoneoutStarter)[0] == "not started"
    assert verdict("8.3", Zoneout)[0] == "right"
    assert verdict("8.3", ByComparison)[0] == "right"


def test_8_3_wants_the_class():
    cell = Zoneout(GRUCell(3, 4, rngs=nnx.Rngs(0)), 0.3, rngs=nnx.Rngs(0))
    assert "the class itself" in verdict("8.3", cell)[1]


# 8.4


class Leaky(RNNCellBase):
    def __init__(self):
        self.read = nnx.Param(jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), "float32"))
        self.leak = nnx.Param(jnp.linspace(1.0, 6.0, 4))

    def new(self, carry, inputs):
        keep = jax.nn.sigmoid(self.leak[...])
        return keep * carry + (1 - keep) * jnp.tanh(inputs @ self.read[...])

    def __call__(self, carry, inputs):
        state = self.new(carry, inputs)
        return state, state

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 4))


class LeakyStarter(Leaky):
    def __call__(self, carry, inputs):
        return ..., ...


class NoMemory(Leaky):
    def new(self, carry, inputs):
        return jnp.tanh(inputs @ self.read[...]) + 0 * carry * self.leak[...]


class Explodes(Leaky):
    def new(self, carry, inputs):
        return 1.5 * carry + inputs @ self.read[...] + self.leak[...]


class ExplodesBehindATanh(Leaky):
    def __call__(self, carry, inputs):
        carry = 1.2 * carry + 1e-3 * (inputs @ self.read[...] + self.leak[...])
        return carry, jnp.tanh(carry)


class ExplodesLater(ExplodesBehindATanh):
    def __call__(self, carry, inputs):
        carry = 1.01 * carry + 1e-2 * (inputs @ self.read[...] + self.leak[...])
        return carry, jnp.tanh(carry)


class GrowsForEver(Leaky):
    def new(self, carry, inputs):
        return carry + jax.nn.softplus(inputs @ self.read[...] + self.leak[...])


class Sums(Leaky):
    def __call__(self, carry, inputs):
        carry = carry + jnp.tanh(inputs @ self.read[...] + self.leak[...])
        return carry, jnp.sin(carry)


class Slow(Leaky):
    """Has a limit, a thousand times what is added in a step, but needs long to come near it."""

    def new(self, carry, inputs):
        return 0.999 * carry + jnp.tanh(inputs @ self.read[...] + self.leak[...])


class Mean(Leaky):
    """Of all steps so far: the carry holds their count, which grows, and may."""

    def __call__(self, carry, inputs):
        mean, count = carry
        count = count + 1
        mean = mean + (jnp.tanh(inputs @ self.read[...] + self.leak[...]) - mean) / count
        return (mean, count), mean

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return super().initialize_carry(input_shape), jnp.zeros((*input_shape[:-1], 1))


class Turns(Leaky):
    """A state that turns and keeps its length, and a tanh at last."""

    def new(self, carry, inputs):
        turned = jnp.roll(carry, 1, axis=-1) * jnp.array([1, 1, 1, -1])
        return jnp.tanh(1.5 * turned + inputs @ self.read[...] + self.leak[...] / 9)


class ShowsADict(Slow):
    """Its outputs are a dict, one number for each row among them."""

    def __call__(self, carry, inputs):
        carry, output = super().__call__(carry, inputs)
        return carry, {"mean": output.mean(axis=-1), "state": output}


class UnusedParameter(Leaky):
    def new(self, carry, inputs):
        return 0.9 * carry + 0.1 * jnp.tanh(inputs @ self.read[...])


class WrongCarryShape(Leaky):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], 1))


class CarryForOneOnly(Leaky):
    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros(4)


class OutputOnly(Leaky):
    def __call__(self, carry, inputs):
        return self.new(carry, inputs)


class MixesTheRows(Leaky):
    def new(self, carry, inputs):
        state = super().new(carry, inputs)
        return state - state.mean(axis=0) if state.ndim > 1 else state


class RaisesInAStep(Leaky):
    def new(self, carry, inputs):
        return carry + self.missing


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda: Leaky, "not its class"),
        (lambda: GRUCell(3, 4, rngs=nnx.Rngs(0)), "written already"),
        (NoMemory, "remembers next to nothing"),
        (Explodes, "grows and grows"),
        (ExplodesBehindATanh, "Within 200 steps a number in the carry reaches"),
        (ExplodesLater, "within 4000 "),
        (GrowsForEver, "within 4000 "),
        (Sums, "a number in the carry reaches"),
        (UnusedParameter, "`leak` is zero"),
        (WrongCarryShape, "same structure and shapes"),
        (CarryForOneOnly, "same structure and shapes"),
        (OutputOnly, "pair `(new_carry, output)`"),
        (MixesTheRows, "influence each other"),
        (RaisesInAStep, "missing"),
    ],
)
def test_8_4_names_the_mistake(answer, words):
    found, message = verdict("8.4", answer())
    assert found == "not yet" and words in message


def test_8_4_starter_and_right_answer():
    assert verdict("8.4", LeakyStarter())[0] == "not started"
    found, message = verdict("8.4", Leaky())
    assert found == "right" and "of 200 steps" in message


@pytest.mark.parametrize("answer", [Slow, Mean, Turns, ShowsADict])
def test_8_4_accepts_what_has_a_limit(answer):
    assert verdict("8.4", answer())[0] == "right", verdict("8.4", answer())
