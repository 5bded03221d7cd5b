"""Exercises of chapter 10: both ends, a summary, all but this, time in order, a small reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import unrolled
from unrolled.lab.exercises._base import (
    Criterion,
    Wrong,
    exercise,
    expect_array,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.exercises._cells import WatchedRNN
from unrolled.lab.exercises._networks import Network, accuracy, draw_rows, in_haste, trainer


class Layer:
    """A layer whose states fade by a half in each step; it reads batch-major arrays."""

    start = 0.3

    def __init__(self, features: int, hidden: int, seed: int):
        self.weights = np.random.default_rng(seed).normal(size=(features, hidden))
        self.given: list[tuple[int, ...]] = []

    def states(self, inputs: Any, xp: Any = np) -> Any:
        """The states at each step, in NumPy, or in JAX if `xp` says so."""
        state, states = xp.full((len(inputs), self.weights.shape[1]), self.start), []
        for x in xp.moveaxis(xp.asarray(inputs, float), 1, 0):
            state = 0.5 * state + x @ self.weights.astype(x.dtype)
            states.append(state)
        return xp.stack(states, axis=1)

    def backwards(self, inputs: np.ndarray) -> np.ndarray:
        """The states of a reader that comes from the end, each at the place of its input."""
        return self.states(inputs[:, ::-1])[:, ::-1]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        if options:
            raise TypeError(
                f"this layer understands no options and was called with {', '.join(options)}. "
                "`Bidirectional` and `reverse` are not allowed here: they do what you are to do "
                "by hand, with arrays."
            )
        shape = np.shape(inputs)
        self.given.append(shape)
        if len(shape) != 3 or shape[2] != len(self.weights):
            raise ValueError(
                f"this layer reads arrays of shape (batch, time, {len(self.weights)}), and was "
                f"given one of shape {shape}."
            )
        return self.states(inputs, jnp)


def _join(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    return np.concatenate([forward, backward], axis=-1)


@exercise("10.1", "Both ends by hand", "easy")
def both_ways(function: Callable) -> str:
    for shape, sizes in [((3, 4, 2), (2, 3)), ((2, 5, 3), (2, 2))]:
        inputs = np.random.default_rng(101).normal(size=shape).astype(np.float32)
        first, second = Layer(shape[2], sizes[0], 1), Layer(shape[2], sizes[1], 2)
        result = _run_layers(function, first, second, inputs)
        forward, backward = first.states(inputs), second.backwards(inputs)
        width = sum(sizes)
        if np.shape(result) == (shape[0], 2 * shape[1], sizes[0]):
            raise Wrong(
                "You joined along time. Each step has features of both directions: axis=-1."
            )
        hint = "Concatenate the two along the features, axis=-1."
        for own in set(sizes) - {width / 2}:
            if np.shape(result) == (*shape[:2], 2 * own):
                hint = (
                    "Both halves have the features of the same layer. Each direction has its own."
                )
        expect_array(result, (*shape[:2], width), "the outputs", hint)
        flip_features = second.states(inputs[..., ::-1])
        flip_batch = second.states(inputs[::-1])
        mistakes = {
            "Both layers read forwards. Flip the inputs of the second one in time, axis 1.": _join(
                forward, second.states(inputs)
            ),
            "The backward outputs lie in the order of computing: the one at step 1 has read only "
            "the last input. Turn the outputs round as well.": _join(forward, backward[:, ::-1]),
            "You turned the outputs of the backward layer round, but not its inputs: it has read "
            "forwards.": _join(forward, second.states(inputs)[:, ::-1]),
            "You flipped the features. Time is axis 1.": _join(forward, flip_features),
            "You flipped the features, of the inputs and of the outputs. Time is axis 1.": _join(
                forward, flip_features[..., ::-1]
            ),
            "You flipped the batch. Time is axis 1.": _join(forward, flip_batch),
            "`jnp.flip` without an axis turns all axes round, the batch and the features, too. "
            "Time is axis 1.": _join(forward, second.states(np.flip(inputs))[:, ::-1]),
            "`jnp.flip` without an axis turns all axes round, the batch and the features, too. "
            "Time is axis 1: `axis=1`, here and for the outputs.": _join(
                forward, np.flip(second.states(np.flip(inputs)))
            ),
            "The inputs are flipped along the batch. Time is axis 1.": _join(
                forward, flip_batch[:, ::-1]
            ),
            "The halves are exchanged: forward features come first.": _join(backward, forward),
            "The layers are exchanged: the first one reads forwards.": _join(
                first.backwards(inputs), second.states(inputs)
            ),
            "Also the forward outputs are turned round. Leave them as they come.": _join(
                forward[:, ::-1], backward
            ),
        }
        expect_close(
            result,
            _join(forward, backward),
            name="the result",
            mistakes=mistakes,
            otherwise="Flip the inputs of the backward layer in time, and its outputs again.",
        )
    return (
        "two layers, two flips and one concatenation. Layers of different size are welcome: each "
        "direction keeps its own features."
    )


def _run_layers(
    function: Callable,
    first: Layer,
    second: Layer,
    inputs: np.ndarray,
    disguise: Callable[[Layer], Any] = lambda layer: layer,
) -> np.ndarray:
    result = run(function, disguise(first), disguise(second), jnp.asarray(inputs))
    if isinstance(result, tuple | list):
        raise Wrong("Return one array: both halves side by side, along the features.")
    for layer, name in ((first, "forward"), (second, "backward")):
        if not layer.given and inputs.shape[1] > 1:  # of a single step nothing need be read
            raise Wrong(f"The {name} layer was never called.")
    return result


@exercise("10.2", "A summary of the whole", "medium")
def summary(function: Callable) -> str:
    first, second = Layer(2, 3, 3), Layer(2, 3, 4)
    rng = np.random.default_rng(102)
    for lengths in [np.array([5, 2, 1, 4]), np.array([5, 5, 5, 5])]:
        inputs = rng.normal(size=(4, 5, 2))
        outputs = np.zeros((4, 5, 6))
        expected, last_of_both = np.zeros((4, 6)), np.zeros((4, 6))
        for row, length in enumerate(lengths):
            valid = inputs[row : row + 1, :length]
            outputs[row, :length] = _join(first.states(valid), second.backwards(valid))[0]
            expected[row] = _join(outputs[row, length - 1, :3], outputs[row, 0, 3:])
            last_of_both[row] = outputs[row, length - 1]
        given = jnp.asarray(outputs, jnp.float32), jnp.asarray(lengths, jnp.int32)
        result = run(function, *given)
        full = (lengths == 5).all()
        what = "the summary of full rows" if full else "the summary of short rows"
        hint = "One vector for each row: both halves side by side."
        expect_array(result, (4, 6), what, hint)
        mean = outputs.sum(axis=1) / lengths[:, None]
        mistakes = {
            "You took the last step of the array. Its backward half has read one input at most; "
            "that reader came to its end at step 1.": outputs[:, -1],
            "You took each row's last valid step. For the forward half that is right; the backward "
            "half has read a single input there.": last_of_both,
            "You took step 1. For the backward half that is right, but there the forward half has "
            "read a single input.": outputs[:, 0],
            "Each half is taken at the other's end, where it has read a single input.": _join(
                outputs[:, 0, :3], last_of_both[:, 3:]
            ),
            "The forward half is one step too early: it has not read each row's last valid step. "
            "Steps are counted from 0.": _join(
                outputs[np.arange(4), lengths - 2, :3], outputs[:, 0, 3:]
            ),
            "The forward half is one step too early: it has not read each row's last valid step. "
            "Steps are counted from 0, but there is none before 0.": _join(
                outputs[np.arange(4), np.maximum(lengths - 2, 0), :3], outputs[:, 0, 3:]
            ),
            "The forward half is right. The backward half is taken at the last step of the array, "
            "where that reader began.": _join(expected[:, :3], outputs[:, -1, 3:]),
            "The forward half is right. The backward half is taken at step 2, before that reader "
            "had come to its end.": _join(expected[:, :3], outputs[:, 1, 3:]),
            "The halves are exchanged: the forward state comes first.": _join(
                expected[:, 3:], expected[:, :3]
            ),
            "This is the mean over time. It mixes states that have read everything with some that "
            "have read next to nothing.": mean,
            "This is the mean over all steps of the array, padding included.": outputs.mean(axis=1),
            "This is the largest output of each unit, at whatever step. Wanted are the states at "
            "the end of each reading.": outputs.max(axis=1),
        }
        if not full and np.allclose(result, _join(outputs[:, -1, :3], expected[:, 3:]), atol=1e-5):
            raise Wrong(_which_padding(function, *given))
        expect_close(
            result,
            expected,
            name=what,
            mistakes=mistakes,
            otherwise="At which step has each of the two readers come to its end?",
        )
    return (
        "each half is taken where its reader has come to its end. It is the pair of carries, found "
        "in the outputs."
    )


def _which_padding(function: Callable, outputs: jax.Array, lengths: jax.Array) -> str:
    """Say at which step a reader who takes the forward half from the padding has taken it."""
    steps = jnp.arange(outputs.shape[1])[:, None]
    numbered = jnp.where(steps < lengths[:, None, None], outputs, steps)  # padding says where it is
    found = np.asarray(run(function, numbered, lengths))[1:, 0]  # of the short rows
    if np.array_equal(found, lengths[1:]):
        return (
            "The forward half is one step too late, which is padding in short rows: steps are "
            "counted from 0, so the last valid one is not the one whose number is the length."
        )
    return (
        "The forward half is taken at the last step of the array, which is padding in short rows. "
        "Take each row's last valid step."
    )


@exercise("10.3", "Everything but this", "hard")
def all_but_this(function: Callable) -> str:
    for shape in [(3, 5, 2), (2, 1, 2)]:
        inputs = np.random.default_rng(103).normal(size=shape).astype(np.float32)
        first, second = Layer(2, 3, 5), Layer(2, 3, 6)
        result = _run_layers(function, first, second, inputs, _as_rnn)
        forward, backward = first.states(inputs), second.backwards(inputs)
        right, left = _shift(forward, 1), _shift(backward, -1)
        hint = "As many steps as the inputs have."
        expect_array(result, (*shape[:2], 6), f"the outputs for {shape[1]} steps", hint)
        as_computed = backward[:, ::-1]
        mistakes = {
            "This is the plain bidirectional layer: both states at step t have seen x_t itself, so "
            "the answer is given away. Take the states of the neighbouring steps.": _join(
                forward, backward
            ),
            "The backward state at step t has still seen x_t. It has to move as well: step t gets "
            "what the backward reader knew at step t + 1.": _join(right, backward),
            "The forward state at step t has still seen x_t. It has to move as well: step t gets "
            "what the forward reader knew at step t - 1.": _join(forward, left),
            "Both halves are shifted the wrong way: now they know x_t and one more.": _join(
                _shift(forward, -1), _shift(backward, 1)
            ),
            "The backward half moves the wrong way: its state at t + 1 belongs to step t.": _join(
                right, _shift(backward, 1)
            ),
            "The forward half moves the wrong way: its state at t - 1 belongs to step t.": _join(
                _shift(forward, -1), left
            ),
            "What falls off at one end comes back at the other: `jnp.roll` turns in a circle, so "
            "step 1 knows the whole row. There a state has seen nothing: put zeros.": _join(
                np.roll(forward, 1, axis=1), np.roll(backward, -1, axis=1)
            ),
            "The backward outputs lie in the order of computing. Ask for `keep_order=True`, or "
            "turn them round, before you shift them.": _join(right, _shift(as_computed, -1)),
            "The backward outputs lie in the order of computing, and are shifted there.": _join(
                right, _shift(as_computed, 1)
            ),
            "Both layers read forwards: one needs `reverse=True, keep_order=True`.": _join(
                right, _shift(second.states(inputs), -1)
            ),
            "Both states are moved by one step too many: one neighbour of x_t is missing.": _join(
                _shift(forward, 2), _shift(backward, -2)
            ),
            "The halves are exchanged: the forward state comes first.": _join(left, right),
        }
        expect_close(
            result,
            _join(right, left),
            name=f"the result for {shape[1]} steps",
            mistakes=mistakes if shape[1] > 1 else None,
            otherwise="At each end one half has seen nothing and is zero.",
        )
    return (
        "no output depends on its own input, and together the halves have seen all the others. "
        "This is how both sides of a gap may be used to fill it."
    )


class _FadingModule(unrolled.RNNCellBase):
    """The cell of `Layer`, as a module."""

    def __init__(self, weights: np.ndarray):
        self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.full((*input_shape[:-1], self.weights.shape[1]), Layer.start)

    def __call__(self, carry, inputs):
        state = 0.5 * carry + inputs @ self.weights[...]
        return state, state


def _as_rnn(layer: Layer) -> unrolled.RNN:
    return WatchedRNN(_FadingModule(layer.weights), layer.given.append)


def _shift(states: np.ndarray, steps: int) -> np.ndarray:
    """Move states along time by `steps`, with zeros where nothing comes from."""
    shifted = np.zeros_like(states)
    if steps > 0:
        shifted[:, steps:] = states[:, : states.shape[1] - steps]
    else:
        shifted[:, :steps] = states[:, -steps:]
    return shifted


@exercise("10.4", "Undo the shuffle", "open")
def unshuffle(function: Callable) -> str:
    for seed, num_steps in [(1, 40), (2, 25)]:
        rng = np.random.default_rng((104, seed))
        signals = _smooth(rng, 600, num_steps)
        shuffle = rng.permutation(num_steps)
        result = run(function, signals[:, shuffle].copy())
        order = expect_array(
            result, (num_steps,), "the order", "One index for each column of the inputs."
        )
        if not np.array_equal(np.sort(order), np.arange(num_steps)):
            raise Wrong(
                f"The order must hold each of 0, ..., {num_steps - 1} exactly once; yours holds "
                f"{len(np.unique(order))} different numbers, from {order.min():g} to "
                f"{order.max():g}."
            )
        places = shuffle[order.astype(int)]  # where each column stood before the shuffle
        share = float(np.mean(np.abs(np.diff(places)) == 1))
        of_inverse = float(np.mean(np.abs(np.diff(shuffle[np.argsort(order)])) == 1))
        if share < 1:
            found = f"{100 * share:.0f} % of the neighbours are back together"
            if np.array_equal(order, np.arange(num_steps)):
                raise Wrong("This is the order in which the columns came: still shuffled.")
            if of_inverse > 0.9:
                raise Wrong(
                    "You return where each column belongs; wanted is which column comes first, "
                    "second and so on. That is the inverse: `np.argsort(order)`."
                )
            breaks = int(np.sum(np.abs(np.diff(places)) != 1))
            if breaks <= max(3, num_steps // 6):
                raise Wrong(
                    f"Nearly: {found}, in {breaks + 1} pieces. A chain that begins in the middle "
                    "must be able to grow at both of its ends."
                )
            raise Wrong(
                f"Only {found}. Which columns are most alike? Put those side by side: "
                "`np.corrcoef(inputs.T)`."
            )
    return (
        "all neighbours are back together. The order of time was in the data all along, for "
        "somebody who knows that neighbours are alike."
    )


def _smooth(rng: np.random.Generator, count: int, num_steps: int) -> np.ndarray:
    """Draw signals whose neighbouring steps are alike: noise under a sliding window."""
    noise = rng.normal(size=(count, num_steps + 6))
    window = np.array([1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]) / 6.6
    return sum(weight * noise[:, k : k + num_steps] for k, weight in enumerate(window))


UPDATES, BUDGET = 300, 1500  # updates of the capstone's training, parameters


@exercise("10.5", "A smaller reader", "open")
def make_reader(function: Callable) -> str:
    network = Network(function)
    network.expect_scores((5, 10), np.zeros((5, 40, 1), np.float32))
    facts = _facts(network)
    plain = shuffled = 0.0
    if all(fact.met for fact in facts):
        plain, shuffled = _two_trainings(network)
        found = f"≈ {plain:.1f} %", f"≈ {shuffled:.1f} %"
    else:
        found = 2 * ("trained as soon as the rest is met",)
    return rubric(
        [
            *facts,
            Criterion(
                f"after {UPDATES} updates, 70 % of the curves held out are right",
                plain >= 70,
                "Where do the scores come from? The last output of a layer has forgotten most; a "
                "mean or a maximum over all outputs has not. And what could a cell see at a step "
                "besides one number?",
                found[0],
            ),
            Criterion(
                "with time shuffled, it loses 15 points or more",
                0 < shuffled <= plain - 15,
                "It does as well without the order, so it does not rely on neighbours: it knows "
                "the places, like an MLP.",
                found[1],
            ),
        ],
        extra=[
            Criterion("80 % of them", plain >= 80),
            Criterion(
                "80 % with at most 750 parameters", plain >= 80 and network.size <= BUDGET // 2
            ),
        ],
    )


def _facts(network: Network) -> list[Criterion]:
    """What can be said of a reader before it is trained."""
    curves = np.random.default_rng(105).normal(size=(60, 40, 1)).astype(np.float32)

    @in_haste
    def read(curves):
        """Scores, and how much each input moves those of the first curve, and of them all."""
        scores, pull = jax.vjp(lambda curves: network(network.params, curves), curves)
        of_all = jnp.broadcast_to(jnp.cos(jnp.arange(10)), scores.shape)
        of_first = of_all.at[1:].set(0)
        (slopes,) = jax.vmap(pull)(jnp.stack([of_first, of_all]))
        return scores, jnp.abs(slopes[..., 0])  # (60, 10), (2, 60, 40)

    scores, (of_first, of_all) = map(np.asarray, read(curves))
    blind = np.flatnonzero(~(of_all > 0).any(axis=0)) + 1
    return [
        Criterion(
            f"at most {BUDGET:,} parameters",
            network.size <= BUDGET,
            "In the chapter's network nearly all of them are in the last layer, which has a weight "
            "for each unit at *each of 40 steps*. Sum up the outputs over time first.",
            f"you have {network.size:,}",
        ),
        Criterion(
            "scores and slopes are finite, and each curve is read for itself",
            bool(np.isfinite(scores).all() and np.isfinite(of_all).all())
            and not of_first[1:].any(),
            "Another curve of the batch moves the scores of the first one: which mean or norm runs "
            "over the batch?",
        ),
        Criterion(
            "every step of a curve counts",
            blind.size == 0,
            "Move the input there, and no score of 60 curves moves. Who has read it, and who has "
            "told the last layer?",
            f"nothing sees {_some(blind)}" if blind.size else "all 40 are seen",
        ),
    ]


def _some(steps: np.ndarray) -> str:
    shown = ", ".join(map(str, steps[:3]))
    return f"step {shown}" if steps.size == 1 else f"steps {shown}" + ", ..." * (steps.size > 3)


def _two_trainings(network: Network) -> tuple[float, float]:
    """Accuracies on held-out curves, of training with time in order and with time shuffled."""
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    order = np.random.default_rng(0).permutation(40)
    curves = jnp.asarray(np.stack([data["x"], data["x"][:, order]]), jnp.float32)[..., None]
    labels = jnp.asarray(data["y"])
    known = 3000  # the last thousand are held out; the test set stays out of it
    train = trainer(network, UPDATES, peak=2e-2)
    rows = draw_rows(1, known, UPDATES, 64, seed=105)[0]

    @jax.jit
    @jax.vmap
    def scores(curves):
        params = train(network.params, rows, labels, curves)
        return network(params, curves[known:])

    plain, shuffled = scores(curves)
    return accuracy(plain, labels[known:]), accuracy(shuffled, labels[known:])
