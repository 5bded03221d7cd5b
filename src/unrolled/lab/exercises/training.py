"""Checkers of chapter 5: clipping, a training step for a scan, a loss at every step, adding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.gru import gru_sequence
from unrolled.lab.datasets import adding_problem
from unrolled.lab.exercises._base import (
    Wrong,
    describe,
    exercise,
    expect_array,
    expect_close,
    run,
)


def _map(function: Callable, *trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.asarray(function(*leaves), np.float64), *trees)


def _expect_tree(
    value: Any, expected: Any, name: str, mistakes: dict[str, Any], otherwise: str = ""
) -> None:
    """Compare all arrays of two pytrees at once, so that a mistake is recognised as a whole."""
    if jax.tree.structure(value) != jax.tree.structure(expected):
        raise Wrong(
            f"{name} should hold the same arrays under the same names as the parameters, "
            f"{_names(expected)}; yours holds {_names(value)}. `jax.tree.map` keeps the names."
        )
    paths = jax.tree_util.tree_leaves_with_path(value)
    for (path, leaf), wanted in zip(paths, jax.tree.leaves(expected)):
        expect_array(leaf, wanted.shape, name + jax.tree_util.keystr(path))
    try:
        expect_close(
            _flat(value),
            _flat(expected),
            mistakes={message: _flat(wrong) for message, wrong in mistakes.items()},
        )
    except Wrong as wrong:
        if str(wrong) in mistakes:
            raise
        for (path, leaf), wanted in zip(paths, jax.tree.leaves(expected)):
            expect_close(leaf, wanted, name=name + jax.tree_util.keystr(path), otherwise=otherwise)


def _names(tree: Any) -> str:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ", ".join(path or "a single array" for path in paths) or "nothing"


def _flat(tree: Any) -> np.ndarray:
    arrays = jax.tree.leaves(tree)
    return np.concatenate([np.ravel(np.asarray(array, np.float64)) for array in arrays])


def _as_float32(tree: Any) -> Any:
    """Return a copy with JAX's arrays: whoever gets it may change its dicts in place.

    A list is an array here, not a part of the nesting.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32),
        tree,
        is_leaf=lambda part: isinstance(part, list),
    )


# ---------------------------------------------------------------------------------------- 5.1


def _norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


@exercise("5.1", "Clip a gradient by its global norm", "easy")
def check_clip(clip_by_global_norm: Callable) -> str:
    gradients = {
        "cell": {"U": np.array([[3.0, -1.0], [0.5, 2.0]]), "b": np.array([0.25, -4.0])},
        "readout": {"c": np.array(1.5), "w": np.array([-2.0, 0.75])},
    }
    norm, largest = _norm(gradients), 2.0
    by_array = sum(np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradients))
    numbers = _flat(gradients)
    root_mean, highest = norm / np.sqrt(numbers.size), np.abs(numbers).max()
    clipped = run(clip_by_global_norm, _as_float32(gradients), largest)
    _expect_tree(
        clipped,
        _map(lambda g: g * largest / norm, gradients),
        "the clipped gradient",
        {
            "Each array is clipped by its own norm, which changes the direction of the step. Take "
            "one norm over all arrays together.": _map(
                lambda g: g * min(1.0, largest / np.linalg.norm(g)), gradients
            ),
            "Each number is clipped by itself, which changes the direction of the step. Multiply "
            "all of them by one and the same factor.": _map(
                lambda g: np.clip(g, -largest, largest), gradients
            ),
            "The result has norm 1: you divide by the norm but do not multiply by "
            "`max_norm`.": _map(lambda g: g / norm, gradients),
            "You divide by the sum of squares. The norm is its square root.": _map(
                lambda g: g * min(1.0, largest / norm**2), gradients
            ),
            "You add up the norms of the arrays. The norm of all numbers together is the root of "
            "the sum of all squares.": _map(lambda g: g * largest / by_array, gradients),
            "You add up absolute values. The norm is the root of the sum of squares.": _map(
                lambda g: g * largest / np.abs(numbers).sum(), gradients
            ),
            "You take the mean of the squares. The norm is the root of their sum.": _map(
                lambda g: g * largest / max(root_mean, largest), gradients
            ),
            "You take the largest number for the norm. The norm is the root of the sum of all "
            "squares.": _map(lambda g: g * largest / highest, gradients),
            "You subtract. The gradient keeps its direction only if it is multiplied.": _map(
                lambda g: g - (norm - largest), gradients
            ),
            "Nothing is clipped: this gradient has a norm of "
            f"{norm:.3f} and `max_norm` is {largest}.": gradients,
            "The gradient has become longer: is the factor upside down?": _map(
                lambda g: g * norm / largest, gradients
            ),
        },
        f"The norm of all numbers is {norm:.4g} here, and `max_norm` is {largest}.",
    )
    _expect_tree(
        run(clip_by_global_norm, _as_float32(gradients), 2 * norm),
        gradients,
        "a gradient that is short enough already",
        {
            "A gradient shorter than `max_norm` must stay as it is; yours is stretched to "
            "`max_norm`.": _map(lambda g: 2 * g, gradients),
        },
    )
    _expect_any_nesting(clip_by_global_norm, gradients, largest)
    nothing = jax.tree.map(jnp.zeros_like, _as_float32(gradients))
    for leaf in jax.tree.leaves(run(clip_by_global_norm, nothing, largest)):
        if not np.isfinite(np.asarray(leaf)).all():
            raise Wrong(
                "a gradient of zeros becomes NaN: 0 times infinity. Let the factor be at most 1, "
                "for example with `jnp.minimum`."
            )
    return "one factor for all arrays, and only when the gradient is too long."


def _expect_any_nesting(clip_by_global_norm: Callable, gradients: dict, largest: float) -> None:
    """Raise `Wrong` unless a gradient with a tuple in it is clipped, too."""
    nested = {"layers": tuple(gradients.values())}
    try:
        _expect_tree(
            run(clip_by_global_norm, _as_float32(nested), largest),
            _map(lambda g: g * largest / _norm(gradients), nested),
            "the clipped gradient",
            {},
        )
    except Wrong as wrong:
        raise Wrong(
            f"{str(wrong).rstrip('.')}. The gradient of this test is a dict that holds a tuple of "
            "dicts, and a pytree may be nested in any way. `jax.tree.leaves` finds its arrays, "
            "whatever it is."
        ) from None


# ---------------------------------------------------------------------------------------- 5.2

RATE, DECAY = 0.1, 0.9


def _line_loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["c"] - y) ** 2)


def _line_gradient(params: dict, batch: tuple) -> tuple[float, dict]:
    x, y = batch
    residual = x @ params["w"] + params["c"] - y
    gradient = {"c": 2 * residual.mean(), "w": 2 * x.T @ residual / len(y)}
    return float(np.mean(residual**2)), gradient


@exercise("5.2", "A training step with momentum, ready for a scan", "medium")
def check_momentum_step(momentum_step: Callable) -> str:
    random = np.random.default_rng(5)
    batches = (random.normal(size=(3, 4, 2)), random.normal(size=(3, 4)))
    batch = tuple(part[0] for part in batches)
    params = {"c": np.array(0.3), "w": np.array([1.0, -0.5])}
    velocity = {"c": np.array(-0.2), "w": np.array([0.4, 0.1])}
    loss, gradient = _line_gradient(params, batch)

    def moved(new_velocity, rate=RATE):
        return _map(lambda p, v: p - rate * v, params, new_velocity)

    def turned(change: Callable) -> Any:
        return _map(change, velocity, gradient)

    decayed = turned(lambda v, g: DECAY * v + g)
    start, given = (params, velocity), _as_float32(batch)

    result = run(momentum_step, _line_loss, _as_float32(start), given)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(
            "a scan body returns two things, the new carry and this step's output: "
            f"`(params, velocity), loss`. Yours returns {_said(result)}."
        )
    carry, output = result
    if isinstance(output, tuple | list) and len(output) == 2 and np.shape(carry) == ():
        raise Wrong(
            "the two results are in the wrong order: first the new carry, then the output, here "
            "the loss."
        )
    if not isinstance(carry, tuple | list) or len(carry) != 2:
        raise Wrong(
            "the new carry should be the pair `(params, velocity)`, like the carry that came in; "
            f"yours is {_said(carry)}."
        )
    if jax.tree.structure(output) == jax.tree.structure(params):
        raise Wrong(
            "the output is a dict like the gradient, not the loss. `jax.value_and_grad` returns "
            "the value first."
        )
    if _same(tuple(carry), (decayed, moved(decayed))):
        raise Wrong(
            "The new carry has velocity and params exchanged: they go out in the order in which "
            "they came in, `(params, velocity)`."
        )
    _expect_tree(
        carry[0],
        moved(decayed),
        "the new params",
        {
            "You step up the gradient: the sign is wrong. Subtract the velocity.": moved(
                decayed, -RATE
            ),
            "The learning rate is missing in the step.": moved(decayed, 1.0),
            "The step uses the bare gradient and ignores the old velocity.": moved(gradient),
            "The step uses the old velocity. First update the velocity, then step with the new "
            "one.": moved(velocity),
            "The old velocity is added without `decay`.": moved(turned(lambda v, g: v + g)),
            "It is the old velocity that `decay` multiplies, not the gradient.": moved(
                turned(lambda v, g: v + DECAY * g)
            ),
            "`decay` multiplies the gradient as well. Only the old velocity decays.": moved(
                turned(lambda v, g: DECAY * (v + g))
            ),
            "The old velocity is multiplied by `1 - decay`. What is left of it is `decay`.": moved(
                turned(lambda v, g: (1 - DECAY) * v + g)
            ),
            "The gradient is multiplied by `1 - decay`: that is an average (Adam does it). Here "
            "the whole gradient is added.": moved(turned(lambda v, g: DECAY * v + (1 - DECAY) * g)),
            "The gradient is subtracted from the velocity. It is added, and the velocity is "
            "subtracted from the params.": moved(turned(lambda v, g: DECAY * v - g)),
            "The learning rate multiplies the gradient inside the velocity. In (5.6) it belongs to "
            "the step.": moved(turned(lambda v, g: DECAY * v + RATE * g), 1.0),
            "The learning rate and the minus sign are inside the velocity. In (5.6) they belong to "
            "the step.": moved(turned(lambda v, g: DECAY * v - RATE * g), -1.0),
            "You step with `decay * velocity + gradient`, made from the new velocity: that is "
            "Nesterov's momentum. Here the step uses the new velocity itself.": moved(
                _map(lambda v, g: DECAY * v + g, decayed, gradient)
            ),
            "The params have not changed: return the new ones.": params,
        },
        "Compute (5.6) by hand for one number.",
    )
    _expect_tree(
        carry[1],
        decayed,
        "the new velocity",
        {
            "The velocity in the carry is still the old one, so the scan never builds up "
            "speed.": velocity,
            "The velocity in the carry is the bare gradient.": gradient,
            "The velocity in the carry decays a second time.": _map(lambda v: DECAY * v, decayed),
            "The second entry of the carry holds the new params: it should be the velocity.": moved(
                decayed
            ),
            "The learning rate belongs to the step, not into the velocity.": _map(
                lambda v: RATE * v, decayed
            ),
        },
    )
    after, _ = _line_gradient(moved(decayed), batch)
    expect_close(
        output,
        loss,
        name="the loss",
        mistakes={
            "The loss is that of the new params, which costs a second forward pass. Report the "
            "loss that `jax.value_and_grad` gives you on the way.": after
        },
        otherwise="It is what `loss_fn(params, batch)` gives at the params that came in.",
    )
    _expect_arguments_used(momentum_step, start, given, gradient)

    expected_params, expected_velocity = params, velocity
    for batch in zip(*batches):
        _, gradient = _line_gradient(expected_params, batch)
        expected_velocity = _map(lambda v, g: DECAY * v + g, expected_velocity, gradient)
        expected_params = _map(lambda p, v: p - RATE * v, expected_params, expected_velocity)
    stacked = _as_float32(batches)

    def nested_loss(params, batch):
        return _line_loss(params["line"], batch)

    def scanned():
        nested = tuple({"line": part} for part in _as_float32(start))
        return jax.lax.scan(partial(momentum_step, nested_loss), nested, stacked)

    scanned.__name__ = "jax.lax.scan over your momentum_step"
    try:
        carry, losses = run(scanned)
    except Wrong as wrong:
        if "dict" not in str(wrong):
            raise
        raise Wrong(
            f"{str(wrong).rstrip('.')}. Here params is a dict of dicts, as in this chapter: "
            "`jax.tree.map` reaches the arrays in any nesting."
        ) from None
    expected = {"line": expected_params}
    _expect_tree(carry[0], expected, "the params after a scan over three batches", {})
    expect_array(losses, (3,), "the losses of a scan over three batches")
    return "three batches in one scan: params, velocity and losses are right."


def _expect_arguments_used(
    momentum_step: Callable, start: tuple, batch: tuple, gradient: dict
) -> None:
    """Raise `Wrong` unless the step follows a learning rate and a decay that it is given."""
    rate, decay = 0.25, 0.5
    given = _as_float32(start)
    result = run(momentum_step, _line_loss, given, batch, learning_rate=rate, decay=decay)

    def moved(rate: float, decay: float) -> dict:
        return _map(lambda p, v, g: p - rate * (decay * v + g), *start, gradient)

    _expect_tree(
        result[0][0],
        moved(rate, decay),
        f"with learning_rate={rate} and decay={decay} the new params",
        {
            "With another learning rate and another decay the step stays the same: use the "
            "arguments `learning_rate` and `decay`, not numbers.": moved(RATE, DECAY),
            "With another learning rate the step stays the same: use the argument "
            "`learning_rate`.": moved(RATE, decay),
            "With another decay the step stays the same: use the argument `decay`.": moved(
                rate, DECAY
            ),
        },
    )


def _same(value: Any, expected: Any) -> bool:
    return jax.tree.structure(value) == jax.tree.structure(expected) and all(
        np.shape(leaf) == np.shape(wanted) and np.allclose(leaf, wanted, atol=1e-5)
        for leaf, wanted in zip(jax.tree.leaves(value), jax.tree.leaves(expected))
    )


def _said(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, tuple | list) else describe(value)


# ---------------------------------------------------------------------------------------- 5.3


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def _states(gru: dict, sequence: np.ndarray) -> np.ndarray:
    """Return the hidden states of a GRU after every step, by a plain loop in float64."""
    h, states = np.zeros(len(gru["bz"])), []
    for x in sequence:
        z = _sigmoid(gru["Wz"] @ x + gru["Uz"] @ h + gru["bz"])
        r = _sigmoid(gru["Wr"] @ x + gru["Ur"] @ h + gru["br"])
        h = (1 - z) * h + z * np.tanh(gru["Wh"] @ x + gru["Uh"] @ (r * h) + gru["bh"])
        states.append(h)
    return np.stack(states)


def _adder(random: np.random.Generator, hidden_dim: int) -> dict:
    shapes = {"W": (hidden_dim, 2), "U": (hidden_dim, hidden_dim), "b": (hidden_dim,)}
    gru = {
        letter + gate: random.normal(size=shape) * 0.7
        for gate in "zrh"
        for letter, shape in shapes.items()
    }
    return {"gru": gru, "readout": {"w": random.normal(size=hidden_dim), "c": np.array(0.4)}}


@exercise("5.3", "A loss at every step", "hard")
def check_running_loss(running_loss: Callable) -> str:
    random = np.random.default_rng(53)
    params, (batch_size, length) = _adder(random, 3), (2, 6)
    inputs = random.uniform(size=(batch_size, length, 2))
    inputs[..., 1] = [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]]
    marked = inputs[..., 0] * inputs[..., 1]
    running = np.cumsum(marked, axis=1)

    def predictions(params):
        readout = params["readout"]
        return np.stack(
            [_states(params["gru"], x) @ readout["w"] + readout["c"] for x in inputs]
        )  # (batch, time)

    predicted = predictions(params)
    before = np.concatenate([np.full((batch_size, 1), params["readout"]["c"]), predicted], axis=1)
    squares = (predicted - running) ** 2
    given = _as_float32((params, inputs))
    loss = run(running_loss, *given)
    if isinstance(loss, tuple | list):
        raise Wrong("return the loss alone: one number.")
    expect_array(loss, (), "the loss", "Take the mean over the batch and over the steps.")
    total = running[:, -1:]
    expect_close(
        loss,
        squares.mean(),
        name="the loss",
        mistakes={
            "Only the last step counts in your loss. Read a prediction from every state in "
            "`outputs_h`.": squares[:, -1].mean(),
            "You compare every step with the final sum, which the network cannot know yet. The "
            "target at step t is the sum of what was marked up to t.": np.mean(
                (predicted - total) ** 2
            ),
            "The running sum goes over the batch. Its axis is time.": np.mean(
                (predicted - np.cumsum(marked, axis=0)) ** 2
            ),
            "The running sum adds every value. Multiply by the marker first.": np.mean(
                (predicted - np.cumsum(inputs[..., 0], axis=1)) ** 2
            ),
            "The target at a marked step already contains that step's value; yours comes one "
            "step late.": np.mean((predicted - (running - marked)) ** 2),
            "The target is what is marked at this one step. Add it up over the steps so "
            "far.": np.mean((predicted - marked) ** 2),
            "Each prediction is read from the state before the step. Use `outputs_h`, where row t "
            "holds the state after step t.": np.mean((before[:, :-1] - running) ** 2),
            "The running sum adds the markers. Multiply them by the values first.": np.mean(
                (predicted - np.cumsum(inputs[..., 1], axis=1)) ** 2
            ),
            "The target is the sum of what is still to come. At step t it is the sum of the steps "
            "up to t.": np.mean((predicted - np.cumsum(marked[:, ::-1], axis=1)[:, ::-1]) ** 2),
            "Each prediction is compared with the targets of all steps: the two have shapes that "
            "broadcast. Both should have shape (batch, time).": np.mean(
                (predicted[:, :, None] - running[:, None, :]) ** 2
            ),
            "This is the root of the loss. Leave the mean of squares as it is.": np.sqrt(
                squares.mean()
            ),
            "This is half of the loss. Leave the mean of squares as it is.": squares.mean() / 2,
            "The squares are added over the batch. Take the mean over it as well.": (
                squares.sum(axis=0).mean()
            ),
            "The squares are added over the steps. Take the mean, so that the loss does not grow "
            "with the length.": squares.sum(axis=1).mean(),
            "The squares are added up. Take the mean over batch and steps.": squares.sum(),
            "The differences are not squared.": (predicted - running).mean(),
            "These are absolute differences; square them.": np.abs(predicted - running).mean(),
            "The readout's constant `c` is missing.": np.mean(
                (predicted - params["readout"]["c"] - running) ** 2
            ),
        },
        otherwise="Compare one example by hand: predictions and targets both have shape "
        "(batch, time).",
    )

    def differentiated(params, inputs):
        return jax.grad(running_loss)(params, inputs)

    differentiated.__name__ = "jax.grad of your running_loss"
    gradient = run(differentiated, *given)
    direction = jax.tree.map(lambda leaf: random.normal(size=np.shape(leaf)), params)

    def loss_at(distance):
        moved = _map(lambda p, d: p + distance * d, params, direction)
        return np.mean((predictions(moved) - running) ** 2)

    slope = float(
        sum(
            np.sum(np.asarray(g) * d)
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
        )
    )
    expect_close(
        slope,
        (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5,
        name="the slope of your loss along a direction",
        tolerance=1e-3,
        mistakes={
            "The gradient of your loss is zero: something stops it on its way, such as "
            "`jax.lax.stop_gradient` or a detour through NumPy.": 0.0
        },
        otherwise="The loss itself is right, so on the way to some of the parameters something "
        "stops the gradient or changes it.",
    )
    return "every step has its target, and the gradient flows."


# ---------------------------------------------------------------------------------------- 5.4

LENGTHS, GOAL = (50, 100, 400), 0.01


@exercise("5.4", "A sum that holds at any length", "open")
def check_any_length(params: dict) -> str:
    if callable(params):
        raise Wrong("hand in the parameters themselves, a dict, not a function.")
    if not isinstance(params, dict) or set(params) != {"gru", "readout"}:
        raise Wrong('params should be a dict with the two entries "gru" and "readout".')
    readout = params["readout"]
    if not isinstance(readout, dict) or set(readout) != {"w", "c"}:
        raise Wrong('params["readout"] should be a dict with the entries "w" and "c".')
    expect_array(readout["c"], (), 'params["readout"]["c"]')
    if not isinstance(params["gru"], dict) or "bz" not in params["gru"]:
        raise Wrong('params["gru"] should hold the nine arrays of a GRU, "bz" among them.')
    hidden_dim = np.size(params["gru"]["bz"])
    expect_array(params["gru"]["bz"], (hidden_dim,), 'params["gru"]["bz"]', "One for each unit.")
    expect_array(readout["w"], (hidden_dim,), 'params["readout"]["w"]')
    params = run(_as_float32, params)

    def network(length):
        return float(_mean_squared_error(params, length))

    network.__name__ = "gru_sequence with your params"
    errors = {length: run(network, length) for length in LENGTHS}
    said = ", ".join(f"{error:.2g} at length {length}" for length, error in errors.items())
    if not all(np.isfinite(error) for error in errors.values()):
        raise Wrong(f"the mean squared error on fresh sequences is not finite: {said}.")
    good = [length for length, error in errors.items() if error < GOAL]
    if len(good) == len(LENGTHS):
        return "at 50, 100 and 400 steps alike, on sequences your network has never seen."
    if good:
        raise Wrong(
            f"the mean squared error is {said}; the goal is {GOAL} at all of them. What the "
            "network learned depends on the length. It has to hold its sum at every step, not "
            "only at the last step of the length it was trained on."
        )
    if min(errors.values()) > 0.13:
        raise Wrong(
            f"the mean squared error is {said}. Always guessing 1 gives 0.167: this network does "
            "not use what is marked."
        )
    if min(errors.values()) > 0.06:
        raise Wrong(
            f"the mean squared error is {said}. Remembering one of the two values perfectly gives "
            "0.083: is the first one lost on the way?"
        )
    raise Wrong(f"the mean squared error is {said}: close. The goal is {GOAL} at every length.")


@partial(jax.jit, static_argnums=1)
def _mean_squared_error(params: dict, length: int) -> jax.Array:
    inputs, targets = adding_problem(jax.random.key(54), 500, length)
    gru, readout = params["gru"], params["readout"]
    initial_h = jnp.zeros_like(gru["bz"])
    final_h, _ = jax.vmap(gru_sequence, in_axes=(None, None, 0))(gru, initial_h, inputs)
    return jnp.mean((final_h @ readout["w"] + readout["c"] - targets) ** 2)
