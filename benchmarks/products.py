"""What nobody can be faster than: the matrix products of a recurrence, and nothing else.

Every implementation has to multiply the inputs by one matrix and, step after step, the state by
another; its gradient does the same backwards, and multiplies once more for each matrix. These
products alone, without a gate, without a sum over losses, tell how much of a rival's time could be
saved at all: `theirs / products` is the ratio that a perfect implementation would reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import GATES, Shape


def products_alone(cell: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """Return functions that run the products of a cell, for each of `contenders.TASKS`."""
    functions, arguments = programs(cell, shape)

    def run(function):
        return lambda: jax.block_until_ready(function(*arguments))

    return {task: run(function) for task, function in functions.items()}


def programs(cell: str, shape: Shape) -> tuple[dict[str, Any], tuple[jax.Array, ...]]:
    """Return these programs, not yet compiled, and the arrays that they take.

    The inputs are multiplied at once, before the loop, as one matrix; so are both gradients after
    it. Between two products there is only what keeps XLA from leaving one out.
    """
    gates, keys = GATES[cell], jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (shape.features, gates * shape.hidden))
    recurrent = jax.random.normal(keys[1], (shape.hidden, gates * shape.hidden))
    recurrent = recurrent / np.sqrt(4 * gates * shape.hidden)  # so that no state grows
    inputs = jax.random.normal(keys[2], (shape.time, shape.batch, shape.features))
    start = jnp.ones((shape.batch, shape.hidden))

    def flat(array):  # (time, batch, size) -> (time * batch, size)
        return array.reshape(-1, array.shape[-1])

    @jax.jit
    def forward(inputs, kernel, recurrent):
        def step(h, _):
            h = start + sum(jnp.split(h @ recurrent, gates, -1))
            return h, h

        projected = flat(inputs) @ kernel
        return projected, jax.lax.scan(step, start, length=shape.time)[1]

    @jax.jit
    def training(inputs, kernel, recurrent):
        def step(dh, _):
            changes = jnp.concatenate([dh * (1 + gate) for gate in range(gates)], -1)
            return start + 0.1 / gates * (changes @ recurrent.T), changes

        projected, states = forward(inputs, kernel, recurrent)
        changes = flat(jax.lax.scan(step, start, length=shape.time, reverse=True)[1])
        return projected, flat(inputs).T @ changes, flat(states).T @ changes

    return {"forward": forward, "training": training}, (inputs, kernel, recurrent)
