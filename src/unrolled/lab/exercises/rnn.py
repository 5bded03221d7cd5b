"""Exercises of chapter 8: the layer, and cells that keep its promise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import unrolled
from unrolled.lab.exercises._base import (
    NotStarted,
    Wrong,
    exercise,
    expect_array,
    expect_close,
    run,
)
from unrolled.lab.exercises._cells import BareCell, WatchedRNN
from unrolled.lab.exercises._programs import one_scan


class _Fading(BareCell):
    """A small cell whose carry does not start at zero and is not its output."""

    start = 0.25

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> jax.Array:
        self.shapes.append(tuple(input_shape))
        return jnp.full(input_shape, self.start)

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = 0.5 * carry + inputs
        return carry, 2 * carry + 1


def _fade(inputs: np.ndarray, start: float | np.ndarray = _Fading.start, axis: int = -2):
    """What a loop over `axis` with the fading cell gives: the final carry and the outputs."""
    carry, outputs = start, []
    for x in np.moveaxis(inputs, axis, 0):
        carry = 0.5 * carry + x
        outputs.append(2 * carry + 1)
    return carry, np.moveaxis(np.stack(outputs), 0, axis)


@exercise("8.1", "The heart of the layer", "easy")
def run_over_time(function: Callable) -> str:
    rng = np.random.default_rng(81)
    for shape in [(2, 4, 3), (4, 3), (5, 2, 4, 3)]:
        inputs = rng.normal(size=shape).astype(np.float32)
        cell = _Fading()
        try:
            result = _run_over_time(function, cell, inputs)
        except Wrong as wrong:
            _expect_one_steps_shape(cell, shape, f" ({wrong})")
            raise
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise Wrong("Return the pair `(carry, outputs)`, in this order, as scan does.")
        carry, outputs = result
        final, expected = _fade(inputs)
        if np.shape(outputs) == final.shape and np.shape(carry) != final.shape:
            raise Wrong(
                "The two results are exchanged: the final carry comes first, then the outputs."
            )
        _expect_one_steps_shape(cell, shape)
        time_first = np.moveaxis(expected, -2, 0)
        if np.shape(outputs) == time_first.shape != expected.shape:
            raise Wrong(
                f"For inputs of shape {shape} the outputs have shape {np.shape(outputs)}: time is "
                "still the first axis. Move it back behind the batch after the scan."
            )
        expect_array(
            outputs,
            expected.shape,
            f"the array of outputs for inputs of shape {shape}",
            "Every axis should be where it is in the inputs: count the axis of time from the end.",
        )
        over_batch = _fade(inputs, axis=0)[1] if len(shape) > 2 else expected
        mistakes = {
            "Your scan walks along the batch: it took the first axis for time. Move time, the axis "
            "before the features, to the front first.": over_batch,
            "You took axis 1 for time, but that is so only with one batch axis. Time is the axis "
            "just before the features: count from the end.": _fade(inputs, axis=1)[1],
            "Your carry starts at zero. Ask the cell: `cell.initialize_carry` makes its first "
            "carry, and this cell's is not zero.": _fade(inputs, start=0.0)[1],
            "The carry is not handed on: every step begins with the first one. What a cell "
            "returns first is the carry of the next step.": 2 * (0.5 * cell.start + inputs) + 1,
            "Time runs backwards. Leave out `reverse=True`.": np.flip(
                _fade(np.flip(inputs, -2))[1], -2
            ),
            "Time runs backwards: the scan has been given the last step first.": (
                _fade(np.flip(inputs, -2))[1]
            ),
            "The outputs stand in the wrong order, the last one first. Scan has stacked them in "
            "the order of the inputs.": np.flip(expected, -2),
            "These are the carries, not the outputs. A cell returns `(carry, output)`, and the two "
            "may differ.": (expected - 1) / 2,
        }
        expect_close(
            outputs,
            expected,
            name="the array of outputs",
            mistakes=mistakes,
            otherwise="Compare with a Python loop over time that calls the cell.",
        )
        expect_close(
            carry,
            final,
            name="the carry",
            mistakes={
                "The carry is the one before the first step. Scan's first result is the carry "
                "after the last.": np.full_like(final, _Fading.start),
                "The carry is the last *output*. A cell returns both, and the two may differ.": (
                    2 * final + 1
                ),
            },
            otherwise="It should be the one that the cell returned in the last step.",
        )
        one_scan(partial(function, _Fading()), inputs)
    return (
        "it holds for no batch axis, one and two. Time to the front, a scan, and time back: "
        "everything else in a layer is built around these three moves."
    )


def _expect_one_steps_shape(cell: _Fading, shape: tuple[int, ...], detail: str = "") -> None:
    if cell.shapes[-1:] == [shape]:
        raise Wrong(
            f"`initialize_carry` was given {shape}, the shape of the whole sequence. It wants "
            f"that of one step: all axes but time.{detail}"
        )


def _run_over_time(function: Callable, cell: _Fading, inputs: np.ndarray) -> Any:
    """Run the answer; if it fails with another number of batch axes only, say that this is why."""
    if inputs.ndim == 3:
        return run(function, cell, jnp.asarray(inputs))
    axes = "no batch axis" if inputs.ndim == 2 else "two batch axes"
    try:
        return run(function, cell, jnp.asarray(inputs))
    except Wrong as wrong:
        raise Wrong(
            f"With one batch axis it runs, with {axes} it does not. Time is the axis just before "
            f"the features, wherever that is: count from the end. ({wrong})"
        ) from None


class _FadingModule(unrolled.RNNCellBase):
    """The cell of `_fade`, as a module."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.full(input_shape, _Fading.start)

    def __call__(self, carry, inputs):
        carry = 0.5 * carry + inputs
        return carry, 2 * carry + 1


@exercise("8.2", "In pieces", "medium")
def run_in_chunks(function: Callable) -> str:
    rng = np.random.default_rng(82)
    for num_steps, chunk_size in [(6, 3), (7, 2), (2, 5)]:
        inputs = rng.normal(size=(4, num_steps, 2)).astype(np.float32)
        chunks: list[tuple[int, ...]] = []
        layer = WatchedRNN(_FadingModule(), chunks.append)
        result = run(function, layer, jnp.asarray(inputs), chunk_size)
        what = f"{num_steps} steps in chunks of {chunk_size}"
        if isinstance(result, tuple | list):
            raise Wrong(
                "Return the outputs alone, one array. The carry is only for the next chunk; and "
                "the outputs of the chunks belong into one array: `jnp.concatenate`."
            )
        if not chunks:
            raise Wrong("The layer was never called. Call `rnn` once for each chunk.")
        sizes = [chunk[-2] for chunk in chunks]
        longest = max(sizes)
        if longest > chunk_size:
            wrong_batch = [chunk for chunk in chunks if chunk[0] != 4]
            if wrong_batch:
                raise Wrong(
                    f"A chunk has shape {wrong_batch[0]}, but the batch has 4 rows: you cut along "
                    "the batch. Time is axis 1: `inputs[:, start : start + chunk_size]`."
                )
            raise Wrong(
                f"For {what} the layer was given {longest} steps at once; at most {chunk_size} "
                "fit into memory."
            )
        _, expected = _fade(inputs)
        steps = np.shape(result)[1] if np.ndim(result) == 3 else None
        if np.ndim(result) == 3 and np.shape(result)[0] > 4:
            raise Wrong(
                f"The outputs have shape {np.shape(result)}: the chunks were put together along "
                "the batch. Concatenate along time, axis=1."
            )
        if steps is not None and steps < num_steps and longest < min(chunk_size, num_steps):
            raise Wrong(
                f"For {what} the longest chunk has {longest} steps, so some are lost between two "
                "chunks. A slice goes up to its second number and does not include it."
            )
        if steps is not None and steps < num_steps <= sum(sizes):
            raise Wrong(
                f"For {what} the layer has read all of them, but only {steps} come back. Keep the "
                "outputs of every chunk."
            )
        if steps is not None and steps < num_steps:
            raise Wrong(
                f"For {what} only {steps} steps come back. The last chunk may be shorter than the "
                "others, but it counts."
            )
        expect_array(
            result,
            expected.shape,
            f"the array of outputs for {what}",
            "The chunks belong behind each other along time, which is axis 1.",
        )
        pieces = [inputs[:, t : t + chunk_size] for t in range(0, num_steps, chunk_size)]
        forgotten = np.concatenate([_fade(piece)[1] for piece in pieces], axis=1)
        from_output, start = [], _Fading.start
        for piece in pieces:
            from_output.append(_fade(piece, start)[1])
            start = from_output[-1][:, -1]
        from_behind, start = [], _Fading.start
        for piece in pieces:
            start = _fade(piece, start)[0]
            from_behind.append(_fade(piece, start)[1])
        from_first, start = [], _Fading.start
        for piece in pieces:
            from_first.append(_fade(piece, start)[1])
            start = start if len(from_first) > 1 else _fade(piece, start)[0]
        mistakes = {
            "Every chunk starts anew: its carry is not handed to the next. Ask for it with "
            "`return_carry=True` and pass it on as `initial_carry`.": forgotten,
            "You hand on the last *output* as the carry. For this cell they differ; take the carry "
            "that `return_carry=True` gives.": np.concatenate(from_output, axis=1),
            "The third chunk starts where the second one did: the carry is not replaced after "
            "every chunk.": np.concatenate(from_first, axis=1),
            "Every chunk is read with the carry that stands *behind* it. It begins with the carry "
            "that the chunk before has left.": np.concatenate(from_behind, axis=1),
            "The chunks are right, but they stand in the wrong order.": np.concatenate(
                [_fade(inputs)[1][:, t : t + chunk_size] for t in range(0, num_steps, chunk_size)][
                    ::-1
                ],
                axis=1,
            ),
            "The layer has read the chunks from the last to the first, with the carry of what "
            "comes later.": _last_chunk_first(pieces),
            "The first chunk begins with zeros. It begins with the cell's own carry, which is not "
            "zero here: `initial_carry=None` asks for it.": _fade(inputs, 0.0)[1],
        }
        if num_steps <= chunk_size:
            mistakes = {}
        expect_close(
            result,
            expected,
            name=f"the array of outputs for {what}",
            mistakes=mistakes,
            otherwise="Which carry does each chunk begin with?",
        )
    return (
        "the layer never saw more than one chunk, and nobody can tell from the outputs. Long texts "
        "are read this way."
    )


def _last_chunk_first(pieces: list[np.ndarray]) -> np.ndarray:
    outputs, start = [], _Fading.start
    for piece in reversed(pieces):
        start, read = _fade(piece, start)
        outputs.append(read)
    return np.concatenate(outputs[::-1], axis=1)


class _Leap(unrolled.RNNCellBase):
    """A cell whose new state is far from the old one, of which it keeps a quarter."""

    start = 0.5

    def __call__(self, carry, inputs):
        carry = _leap(carry, inputs)
        return carry, carry

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.full(input_shape, self.start)


def _leap(state: Any, inputs: Any) -> Any:
    return 0.25 * state + inputs + 10


@exercise("8.3", "Zoneout", "hard")
def zoneout(make: Callable) -> str:
    if not isinstance(make, type):
        raise Wrong("Pass the class itself, `Zoneout`, without calling it.")
    rate, rng = 0.3, np.random.default_rng(83)
    old, x = (rng.normal(size=(50, 64)).astype(np.float32) for _ in range(2))
    new = _leap(old, x)
    cell = run(make, _Leap(), rate, rngs=nnx.Rngs(0))
    for method in ("__call__", "initialize_carry"):
        if not callable(getattr(cell, method, None)):
            raise Wrong(f"A cell needs the method `{method}`.")
    carry, output = _step(cell, old, x)
    mixed = expect_array(carry, old.shape, "the new carry")
    is_old, is_new = np.isclose(mixed, old, atol=1e-4), np.isclose(mixed, new, atol=1e-4)
    kept = is_old.mean()
    if is_new.all():
        raise Wrong("In training every unit takes its new value. A share `rate` must keep the old.")
    if np.isclose(mixed, 0).mean() > 0.1:
        raise Wrong(
            "Some units become zero. That is dropout; zoneout lets them keep their *old* value."
        )
    if np.isclose(mixed, old + (new - old) / (1 - rate), atol=1e-3).mean() > 0.5:
        raise Wrong(
            "Units that change overshoot their new value: `nnx.Dropout` divides what it keeps by "
            "1 - rate. Multiply by 1 - rate to undo it."
        )
    if np.isclose(mixed, rate * old + (1 - rate) * new, atol=1e-3).all():
        raise Wrong(
            "In training every unit is a mixture of old and new, without any chance in it. The "
            "mixture is for `eval`; in training each unit is either old or new."
        )
    if not (is_old | is_new).all():
        raise Wrong(
            "In training each unit must be exactly its old or exactly its new value. (The new one "
            "is what the cell makes of the whole old carry.)"
        )
    if 0 < kept < 1:
        if (is_old == is_old[0]).all():
            raise Wrong(
                "All rows of the batch share one mask. Each row should have a mask of its own."
            )
        if (is_old == is_old[:, :1]).all():
            raise Wrong(
                "All units of a row keep their old value together, or change together. Each unit "
                "is to be drawn by itself: the mask needs the whole shape of the carry."
            )
    if abs(kept - (1 - rate)) < 0.05:
        raise Wrong(
            f"A share of {kept:.2f} of the units keeps its old value; expected {rate}, the rate. "
            "The two are exchanged."
        )
    if abs(kept - rate) > 0.05:
        raise Wrong(f"A share of {kept:.2f} of the units keeps its old value; expected {rate}.")
    if not np.allclose(np.asarray(output), mixed, atol=1e-5):
        raise Wrong(
            "The output is not the new carry. What the cell shows must be the state that it keeps: "
            "return the mixed state twice."
        )
    again, _ = _step(cell, old, x)
    if np.array_equal(np.asarray(again), mixed):
        raise Wrong(
            "The second step uses the mask of the first. Draw anew in each step, from a stream "
            "that the cell keeps: `nnx.Dropout` does."
        )
    _check_zoneout_in_rnn(cell, x[:6])
    _check_zoneout_in_use(cell, old, x, new, rate)
    return (
        "each unit is old or new in training, the expected mixture in use, and `RNN` runs it. No "
        "memory is lost, so a mask per step is right here."
    )


def _check_zoneout_in_rnn(cell, x) -> None:
    outputs = run(unrolled.RNN(cell), jnp.asarray(x[None]))
    states = expect_array(outputs, (1, *x.shape), "the outputs of `RNN` over your cell")[0]
    before = np.concatenate([np.full_like(states[:1], _Leap.start), states[:-1]])
    is_old = np.isclose(states, before, atol=1e-4)
    if not (is_old | np.isclose(states, _leap(before, x), atol=1e-4))[0].all():
        raise Wrong(
            "With `RNN` the first step begins with another carry than that of the cell inside: "
            "`initialize_carry` should ask `self.cell`."
        )
    if (is_old == is_old[0]).all():
        raise Wrong(
            "With `RNN` all steps share one mask: a scan runs the code of a step only once, and "
            "what Python or NumPy draws or counts there is the same in every step. Draw from a "
            "stream that the cell keeps as a variable: `nnx.Dropout` does."
        )


def _check_zoneout_in_use(cell, old, x, new, rate) -> None:
    cell.eval()
    first, _ = _step(cell, old, x)
    second, _ = _step(cell, old, x)
    if not np.array_equal(np.asarray(first), np.asarray(second)):
        raise Wrong(
            "After `cell.eval()` two steps still differ. In use there must be no chance: "
            "`nnx.Dropout` inside of the cell is switched off by `eval`."
        )
    expect_close(
        first,
        rate * old + (1 - rate) * new,
        name="the carry after `eval`",
        tolerance=1e-4,
        mistakes={
            "After `eval` every unit takes its new value. It should be what happens on average in "
            "training: rate * old + (1 - rate) * new.": new,
            "After `eval` no unit changes. It should be what happens on average in training: "
            "rate * old + (1 - rate) * new.": old,
            "After `eval` the mixture is the wrong way round: old has the weight `rate`.": (
                (1 - rate) * old + rate * new
            ),
        },
        otherwise="It should be what a unit takes on average in training.",
    )


@exercise("8.4", "A cell that nobody has written", "open")
def own_cell(cell: Any) -> str:
    if isinstance(cell, type):
        raise Wrong("Pass a cell, not its class: make one, for 3 input features.")
    if type(cell).__module__.startswith(("unrolled", "flax")):
        raise Wrong(f"{type(cell).__name__} has been written already. Write one of your own.")
    for method in ("__call__", "initialize_carry"):
        if not callable(getattr(cell, method, None)):
            raise Wrong(f"A cell needs the method `{method}`.")
    if not isinstance(cell, nnx.Module):
        raise Wrong("Make your cell a module: `class MyCell(RNNCellBase)`.")
    cell.eval()
    rng = np.random.default_rng(84)
    inputs = rng.normal(size=(2, 200, 3)).astype(np.float32)
    for batch_shape in [(), (2,), (2, 4)]:
        _check_one_step(cell, batch_shape)

    layer = unrolled.RNN(cell)
    outputs = _expect_limits(layer, inputs)
    alone = _finite(run(layer, jnp.asarray(inputs[1])), "an output")
    if not np.allclose(alone, outputs[1], atol=1e-4):
        raise Wrong(
            "A sequence alone gives other outputs than the same sequence in a batch: the rows of "
            "the batch influence each other."
        )
    changed = inputs.copy()
    changed[:, 0] += 1.0
    change = np.abs(_finite(layer(jnp.asarray(changed)), "an output") - outputs)
    effect = change.reshape(*inputs.shape[:2], -1).max(axis=(0, 2))
    later = effect[5]
    if later < 1e-4:
        raise Wrong(
            "Another first input makes no difference to the sixth output (less than 0.0001): the "
            "cell remembers next to nothing. What in the new carry comes from the old one?"
        )
    _check_gradients(layer, inputs[:, :20])
    steps = int((effect > 1e-3).sum())
    return (
        "it keeps the promise of a cell, for any batch, and every parameter of it can learn. The "
        f"first input is felt (by more than 0.001) at {steps} of 200 steps."
    )


def _check_one_step(cell: Any, batch_shape: tuple[int, ...]) -> None:
    x = jnp.ones((*batch_shape, 3))
    carry = run(cell.initialize_carry, x.shape)
    new_carry, output = _step(cell, carry, x)
    before, after = (jax.tree.map(jnp.shape, value) for value in (carry, new_carry))
    if before != after:
        raise Wrong(
            f"For inputs of shape {x.shape} the carry goes in as {before} and comes out as {after}."
            " A scan wants the same structure and shapes in every step."
        )
    dtypes = [
        [jnp.result_type(leaf) for leaf in jax.tree.leaves(value)] for value in (carry, new_carry)
    ]
    if dtypes[0] != dtypes[1]:
        raise Wrong(
            f"The carry goes in with dtypes {[str(d) for d in dtypes[0]]} and comes out with "
            f"{[str(d) for d in dtypes[1]]}. Let `initialize_carry` make the dtype of the step."
        )
    for leaf in jax.tree.leaves(output):
        if np.shape(leaf)[: len(batch_shape)] != batch_shape:
            raise Wrong(
                f"For inputs of shape {x.shape} an output has shape {np.shape(leaf)}; it should "
                f"begin with the batch, {batch_shape}."
            )


def _expect_limits(layer: unrolled.RNN, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs; neither they nor the carry may grow without limit.

    The layer reads the same steps 20 times in a row. What grows for ever is at least twice as large
    after the second ten; what has a limit has come near it, or is small.
    """
    first, carry = None, None
    sizes: dict[str, list[float]] = {"an output": [], "a number in the carry": []}
    for part in range(1, 21):
        given = {"initial_carry": carry, "return_carry": True}
        carry, outputs = run(layer, jnp.asarray(inputs), **given)
        steps = part * inputs.shape[1]
        for what, value in zip(sizes, (outputs, carry)):
            sizes[what].append(_size(value, f"after {steps} steps {what}"))
            if part == 1 and sizes[what][0] > 1e4:
                raise Wrong(
                    f"Within {steps} steps {what} reaches {sizes[what][0]:.2g}: something grows "
                    "and grows. What limits the carry?"
                )
        first = outputs if part == 1 else first
    for what, size in sizes.items():
        before, after = max(size[:10]), max(size[10:])
        if after > 10 and after > 1.9 * before:
            raise Wrong(
                f"Within {steps // 2} steps {what} reaches {before:.2g}, and within {steps} "
                f"{after:.2g}: something grows and grows. What limits the carry?"
            )
    return _finite(first, "an output")


def _size(value: Any, what: str) -> float:
    """How large a number in `value` is; a count, which is the same for every row, is left out."""
    numbers = [leaf for leaf in jax.tree.leaves(value) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    rows = [np.atleast_1d(_finite(leaf, what)) for leaf in numbers]
    return max((np.abs(leaf).max() for leaf in rows if np.ptp(leaf, axis=0).any()), default=0.0)


def _check_gradients(layer: Any, inputs: np.ndarray) -> None:
    if not jax.tree.leaves(nnx.state(layer, nnx.Param)):
        raise Wrong("The cell has no parameters, so there is nothing to learn: use `nnx.Param`.")

    def total(layer):
        leaves = jax.tree.leaves(layer(jnp.asarray(inputs)))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

    gradients = run(nnx.grad(total), layer)
    for path, gradient in nnx.to_flat_state(gradients):
        name = ".".join(map(str, path[1:]))
        value = _finite(gradient[...], f"the gradient of `{name}`")
        if not np.any(value):
            raise Wrong(
                f"The gradient of `{name}` is zero: the outputs do not depend on it, so it can "
                "never learn."
            )


def _step(cell: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    """One step of the reader's cell, checked to be a finished pair."""
    result = run(cell.__call__, jax.tree.map(jnp.asarray, carry), jnp.asarray(x))
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise Wrong("A cell returns the pair `(new_carry, output)`.")
    if any(part is None for part in result):
        raise NotStarted
    return result[0], result[1]


def _finite(value: Any, what: str) -> np.ndarray:
    array = np.asarray(jax.tree.leaves(value)[0], np.float64)
    if not np.isfinite(array).all():
        raise Wrong(f"{what} is infinite or not a number.")
    return array
