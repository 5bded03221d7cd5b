"""Chapter 5's checkers: untouched starters, right answers, and the mistakes they name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from unrolled.gru import gru_sequence
from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


# 5.1 --------------------------------------------------------------------------------------


def global_norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: leaf * factor, tree)


def clip(gradients, max_norm):
    return scaled(gradients, max_norm / jnp.maximum(global_norm(gradients), max_norm))


def clip_not_started(gradients, max_norm):
    norm = ...
    return jax.tree.map(lambda g: g * norm, gradients)


def clip_each_array(gradients, max_norm):
    return jax.tree.map(lambda g: clip({"g": g}, max_norm)["g"], gradients)


def clip_each_number(gradients, max_norm):
    return jax.tree.map(lambda g: jnp.clip(g, -max_norm, max_norm), gradients)


def clip_always(gradients, max_norm):
    return scaled(gradients, max_norm / global_norm(gradients))


def clip_to_one(gradients, max_norm):
    return scaled(gradients, 1 / jnp.maximum(global_norm(gradients), 1))


def clip_without_root(gradients, max_norm):
    return scaled(gradients, jnp.minimum(1.0, max_norm / global_norm(gradients) ** 2))


def clip_by_sum_of_norms(gradients, max_norm):
    total = sum(jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(gradients))
    return scaled(gradients, jnp.minimum(1.0, max_norm / total))


def clip_upside_down(gradients, max_norm):
    return scaled(gradients, global_norm(gradients) / max_norm)


def clip_nothing(gradients, max_norm):
    return gradients


def clip_to_nan(gradients, max_norm):
    norm = global_norm(gradients)
    return scaled(gradients, jnp.where(norm * 0 == 0, clip_factor(norm, max_norm), 1.0))


def clip_factor(norm, max_norm):
    return jnp.where(norm > max_norm, max_norm / norm, norm / norm)


def clip_flat(gradients, max_norm):
    return jax.tree.leaves(clip(gradients, max_norm))


def clip_by(norm):
    def clipped(gradients, max_norm):
        numbers = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
        return scaled(gradients, max_norm / jnp.maximum(norm(numbers), max_norm))

    return clipped


def clip_by_subtracting(gradients, max_norm):
    return jax.tree.map(lambda g: g - (global_norm(gradients) - max_norm), gradients)


def clip_in_place(gradients, max_norm):
    """It changes the dicts that it was given."""
    clipped = clip(gradients, max_norm)
    for name, part in clipped.items():
        gradients[name] = part
    return gradients


def clip_two_levels(gradients, max_norm):
    numbers = [g for part in gradients.values() for g in part.values()]
    return scaled(gradients, max_norm / jnp.maximum(global_norm(numbers), max_norm))


def clip_raises(gradients, max_norm):
    return gradients / max_norm


# 5.2 --------------------------------------------------------------------------------------


def momentum_step(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    params, velocity = carry
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    velocity = jax.tree.map(lambda v, g: decay * v + g, velocity, gradients)
    params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
    return (params, velocity), loss


def momentum_not_started(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    params, velocity = carry
    loss = ...
    return (params, velocity), loss


def momentum(new_velocity=lambda v, g: 0.9 * v + g, move=lambda p, v: p - 0.1 * v):
    def step(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
        params, velocity = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        velocity = jax.tree.map(new_velocity, velocity, gradients)
        return (jax.tree.map(move, params, velocity), velocity), loss

    return step


def momentum_keeps_velocity(loss_fn, carry, batch):
    (params, _), loss = momentum_step(loss_fn, carry, batch)
    return (params, carry[1]), loss


def momentum_uses_old_velocity(loss_fn, carry, batch):
    (_, velocity), loss = momentum_step(loss_fn, carry, batch)
    return (jax.tree.map(lambda p, v: p - 0.1 * v, *carry), velocity), loss


def momentum_exchanged(loss_fn, carry, batch):
    new, loss = momentum_step(loss_fn, carry, batch)
    return new[::-1], loss


def momentum_nesterov(loss_fn, carry, batch):
    (_, velocity), loss = momentum_step(loss_fn, carry, batch)
    (params, _), _ = momentum_step(loss_fn, (carry[0], velocity), batch)
    return (params, velocity), loss


def momentum_params_twice(loss_fn, carry, batch):
    (params, _), loss = momentum_step(loss_fn, carry, batch)
    return (params, params), loss


def momentum_decays_twice(loss_fn, carry, batch):
    (params, velocity), loss = momentum_step(loss_fn, carry, batch)
    return (params, scaled(velocity, 0.9)), loss


def momentum_fixed_rate(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    return momentum_step(loss_fn, carry, batch, 0.1, decay)


def momentum_fixed_decay(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    return momentum_step(loss_fn, carry, batch, learning_rate, 0.9)


def momentum_three_results(loss_fn, carry, batch):
    (params, velocity), loss = momentum_step(loss_fn, carry, batch)
    return params, velocity, loss


def momentum_only_params(loss_fn, carry, batch):
    (params, _), loss = momentum_step(loss_fn, carry, batch)
    return params, loss


def momentum_late_loss(loss_fn, carry, batch):
    new, _ = momentum_step(loss_fn, carry, batch)
    return new, loss_fn(new[0], batch)


def momentum_swapped(loss_fn, carry, batch):
    new, _ = momentum_step(loss_fn, carry, batch)
    return new, jax.grad(loss_fn)(carry[0], batch)


def momentum_not_scannable(loss_fn, carry, batch, **options):
    new, loss = momentum_step(loss_fn, carry, batch, **options)
    return new, float(loss)


def momentum_in_place(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    """It changes the dicts that it was given, which no scan minds."""
    params, velocity = carry
    new, loss = momentum_step(loss_fn, carry, batch, learning_rate, decay)
    params |= new[0]
    velocity |= new[1]
    return (params, velocity), loss


def momentum_one_level(loss_fn, carry, batch, learning_rate=0.1, decay=0.9):
    params, velocity = carry
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    velocity = {name: decay * velocity[name] + gradients[name] for name in params}
    return (
        {name: params[name] - learning_rate * velocity[name] for name in params},
        velocity,
    ), loss


def momentum_raises(loss_fn, carry, batch):
    params, velocity = carry
    return params - velocity, 0.0


# 5.3 --------------------------------------------------------------------------------------


def read(params, inputs):
    gru, readout = params["gru"], params["readout"]
    _, states = jax.vmap(gru_sequence, in_axes=(None, None, 0))(
        gru, jnp.zeros_like(gru["bz"]), inputs
    )
    return states @ readout["w"] + readout["c"]  # (batch, time)


def running_loss(params, inputs):
    targets = jnp.cumsum(inputs[..., 0] * inputs[..., 1], axis=1)
    return jnp.mean((read(params, inputs) - targets) ** 2)


def loss_not_started(params, inputs):
    predictions = ...
    return jnp.mean(predictions**2)


def loss_of(targets, reduce=jnp.mean, measure=jnp.square, predictions=read):
    def loss(params, inputs):
        return reduce(measure(predictions(params, inputs) - targets(inputs)))

    return loss


def marked(inputs):
    return inputs[..., 0] * inputs[..., 1]


def running(inputs):
    return jnp.cumsum(marked(inputs), axis=1)


def loss_last_step(params, inputs):
    return jnp.mean((read(params, inputs) - running(inputs))[:, -1] ** 2)


def read_before(params, inputs):
    """Read each prediction from the state before the step."""
    first = jnp.full((len(inputs), 1), params["readout"]["c"])
    return jnp.concatenate([first, read(params, inputs)[:, :-1]], axis=1)


def loss_stops_gradient(params, inputs):
    return running_loss(jax.lax.stop_gradient(params), inputs)


def loss_stops_at_readout(params, inputs):
    return running_loss(params | {"readout": jax.lax.stop_gradient(params["readout"])}, inputs)


def loss_leaves_jax(params, inputs):
    return float(running_loss(params, inputs))


def loss_raises(params, inputs):
    return params["gru"]["Wq"]


# 5.4 --------------------------------------------------------------------------------------


def accumulator(**changes):
    """One hidden unit that adds value times marker, written down rather than trained."""
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    gru = {
        "Wz": jnp.array([[0.0, 20.0]]),
        "Uz": zero,
        "bz": jnp.array([-20.0]),
        "Wr": jnp.zeros((1, 2)),
        "Ur": zero,
        "br": jnp.array([20.0]),
        "Wh": jnp.array([[0.02, 0.0]]),
        "Uh": one,
        "bh": jnp.zeros(1),
    }
    params = {"gru": gru | changes, "readout": {"w": jnp.array([100.0]), "c": jnp.array(0.0)}}
    return params


def constant_one():
    return accumulator() | {"readout": {"w": jnp.zeros(1), "c": jnp.array(1.0)}}


def only_the_last():
    """It overwrites at a marker, so that the second value is all it knows."""
    params = accumulator(bz=jnp.array([-10.0]), Uh=jnp.zeros((1, 1)), Wh=jnp.array([[0.01, 0.0]]))
    return params | {"readout": {"w": jnp.array([100.0]), "c": jnp.array(0.5)}}


def leaky():
    return accumulator(bz=jnp.array([-7.0]), Wz=jnp.array([[0.0, 7.0]]))


RIGHT = {
    "5.1": [clip, clip_in_place],
    "5.2": [momentum_step, momentum_in_place],
    "5.3": [running_loss],
    "5.4": [accumulator(), jax.tree.map(lambda array: array.tolist(), accumulator())],
}

NOT_STARTED = {
    "5.1": (clip_not_started,),
    "5.2": (momentum_not_started,),
    "5.3": (loss_not_started,),
    "5.4": (...,),
}

WRONG = [
    ("5.1", clip_each_array, "one norm over all arrays together"),
    ("5.1", clip_each_number, "Each number is clipped by itself"),
    ("5.1", clip_always, "must stay as it is"),
    ("5.1", clip_to_one, "do not multiply by `max_norm`"),
    ("5.1", clip_without_root, "The norm is its square root"),
    ("5.1", clip_by_sum_of_norms, "add up the norms of the arrays"),
    ("5.1", clip_upside_down, "upside down"),
    ("5.1", clip_by(lambda numbers: jnp.abs(numbers).sum()), "add up absolute values"),
    ("5.1", clip_by(lambda numbers: jnp.abs(numbers).max()), "the largest number"),
    ("5.1", clip_by(lambda numbers: jnp.sqrt(jnp.mean(numbers**2))), "mean of the squares"),
    ("5.1", clip_by_subtracting, "You subtract"),
    ("5.1", lambda gradients, max_norm: scaled(gradients, 0.3), "`max_norm` is 2.0"),
    ("5.1", clip_nothing, "Nothing is clipped"),
    ("5.1", clip_to_nan, "becomes NaN"),
    ("5.1", clip_two_levels, "'values'. The gradient of this test is a dict that holds a tuple"),
    ("5.1", clip_flat, "the same arrays under the same names"),
    ("5.1", clip_raises, "`clip_raises` stopped with TypeError at line"),
    ("5.1", clip_raises, "return gradients / max_norm"),
    ("5.2", momentum(move=lambda p, v: p + 0.1 * v), "the sign is wrong"),
    ("5.2", momentum(move=lambda p, v: p - v), "The learning rate is missing"),
    ("5.2", momentum(new_velocity=lambda v, g: g), "ignores the old velocity"),
    ("5.2", momentum(new_velocity=lambda v, g: v + g), "without `decay`"),
    ("5.2", momentum(new_velocity=lambda v, g: 0.9 * v + 0.1 * g), "that is an average"),
    ("5.2", momentum(move=lambda p, v: p), "The params have not changed"),
    (
        "5.2",
        momentum(new_velocity=lambda v, g: 0.1 * (0.9 * v + g), move=lambda p, v: p - v),
        "belongs to the step",
    ),
    ("5.2", momentum(new_velocity=lambda v, g: v + 0.9 * g), "not the gradient"),
    ("5.2", momentum(new_velocity=lambda v, g: 0.9 * (v + g)), "Only the old velocity decays"),
    ("5.2", momentum(new_velocity=lambda v, g: 0.1 * v + g), "What is left of it is `decay`"),
    ("5.2", momentum(new_velocity=lambda v, g: 0.9 * v - g), "subtracted from the velocity"),
    (
        "5.2",
        momentum(new_velocity=lambda v, g: 0.9 * v + 0.1 * g, move=lambda p, v: p - v),
        "inside the velocity. In (5.6) it belongs to the step",
    ),
    (
        "5.2",
        momentum(new_velocity=lambda v, g: 0.9 * v - 0.1 * g, move=lambda p, v: p + v),
        "the minus sign are inside the velocity",
    ),
    ("5.2", momentum(new_velocity=lambda v, g: 0.8 * v + g), "the new params['c'] is off by"),
    ("5.2", momentum_nesterov, "Nesterov"),
    ("5.2", momentum_exchanged, "velocity and params exchanged"),
    ("5.2", lambda *args: momentum_step(*args)[::-1], "first the new carry, then the output"),
    ("5.2", momentum_params_twice, "holds the new params"),
    ("5.2", momentum_decays_twice, "decays a second time"),
    ("5.2", momentum(), "not numbers"),
    ("5.2", momentum_fixed_rate, "use the argument `learning_rate`"),
    ("5.2", momentum_fixed_decay, "use the argument `decay`"),
    ("5.2", momentum_keeps_velocity, "still the old one"),
    ("5.2", momentum_uses_old_velocity, "First update the velocity"),
    ("5.2", momentum_three_results, "Yours returns 3 of them"),
    ("5.2", momentum_only_params, r"the pair `(params, velocity)`"),
    ("5.2", momentum_late_loss, "that of the new params"),
    ("5.2", momentum_swapped, "returns the value first"),
    ("5.2", momentum_not_scannable, "jax.lax.scan over your momentum_step"),
    ("5.2", momentum_one_level, "and 'dict'. Here params is a dict of dicts"),
    ("5.2", lambda *args: (momentum_step(*args)[0], None), "an array of shape (), not None"),
    ("5.2", momentum_raises, "return params - velocity, 0.0"),
    ("5.3", loss_last_step, "Only the last step counts"),
    ("5.3", loss_of(lambda inputs: running(inputs)[:, -1:]), "cannot know yet"),
    ("5.3", loss_of(lambda inputs: jnp.cumsum(marked(inputs), axis=0)), "Its axis is time"),
    ("5.3", loss_of(lambda inputs: jnp.cumsum(inputs[..., 0], axis=1)), "by the marker first"),
    ("5.3", loss_of(lambda inputs: running(inputs) - marked(inputs)), "one step late"),
    ("5.3", loss_of(marked), "Add it up over the steps so far"),
    ("5.3", loss_of(running, reduce=jnp.sum), "The squares are added up"),
    ("5.3", loss_of(running, measure=jnp.abs), "absolute differences"),
    ("5.3", loss_of(running, measure=lambda a: a), "not squared"),
    ("5.3", loss_of(running, predictions=read_before), "from the state before the step"),
    ("5.3", loss_of(lambda inputs: jnp.cumsum(inputs[..., 1], axis=1)), "adds the markers"),
    ("5.3", loss_of(lambda x: running(x[:, ::-1])[:, ::-1]), "still to come"),
    ("5.3", loss_of(lambda inputs: running(inputs).T[..., None]), "shapes that broadcast"),
    ("5.3", loss_of(running, reduce=lambda a: jnp.sqrt(a.mean())), "the root of the loss"),
    ("5.3", loss_of(running, reduce=lambda a: a.mean() / 2), "half of the loss"),
    ("5.3", loss_of(running, reduce=lambda a: a.sum(axis=0).mean()), "added over the batch"),
    ("5.3", loss_of(running, reduce=lambda a: (a.mean(), a)), "the loss alone"),
    ("5.3", loss_of(running, reduce=lambda a: a), "Take the mean over the batch"),
    ("5.3", loss_stops_gradient, "The gradient of your loss is zero"),
    ("5.3", loss_stops_at_readout, "on the way to some of the parameters"),
    ("5.3", loss_leaves_jax, "jax.grad of your running_loss"),
    ("5.3", loss_raises, """return params["gru"]["Wq"]"""),
    ("5.4", constant_one(), "does not use what is marked"),
    ("5.4", only_the_last(), "Remembering one of the two values"),
    ("5.4", leaky(), "depends on the length"),
    ("5.4", accumulator, "not a function"),
    ("5.4", {"gru": {}}, 'two entries "gru" and "readout"'),
    ("5.4", accumulator() | {"gru": {}}, "nine arrays of a GRU"),
    ("5.4", accumulator(Uz=jnp.zeros((2, 1))), "Uz has shape (2, 1)"),
    ("5.4", accumulator(Wz=jnp.zeros((1, 1))), "`gru_sequence with your params` stopped"),
    ("5.4", accumulator(bz=-20.0), '["bz"] has shape (); expected (1,). One for each unit'),
    ("5.4", accumulator(bh=jnp.array([jnp.nan])), "is not finite"),
    ("5.4", accumulator() | {"readout": {"w": jnp.ones(3), "c": jnp.array(0.0)}}, "shape (3,)"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_the_right_answer_is_right(number):
    for answer in RIGHT[number]:
        said, message = verdict(number, answer)
        assert said == "right", message


@pytest.mark.parametrize("number", NOT_STARTED)
def test_the_starter_is_not_started(number):
    assert verdict(number, *NOT_STARTED[number])[0] == "not started"


@pytest.mark.parametrize(
    ("number", "answer", "words"), WRONG, ids=[f"{n}-{words[:30]}" for n, _, words in WRONG]
)
def test_a_wrong_answer_is_told_what_is_wrong(number, answer, words):
    said, message = verdict(number, answer)
    assert said == "not yet"
    assert words in message, message
