"""Networks that a reader's code makes: taken apart, trained in one program, and judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from flax import nnx

from unrolled.lab.exercises._base import Wrong, run


class Network:
    """A network as a function of its parameters: `network(params, *arguments)`."""

    def __init__(self, make: Callable, seed: int = 0):
        module = run(make, nnx.Rngs(seed))
        if not isinstance(module, nnx.Module):
            raise Wrong(
                f"Return the network, an object of a class of yours that is an nnx.Module; this is "
                f"a {type(module).__name__}."
            )
        self.kind = type(module)
        self.name = self.kind.__name__
        self.structure, self.params, self.rest = nnx.split(module, nnx.Param, ...)
        if not jax.tree.leaves(self.params):
            raise Wrong(f"A {self.name} has no parameters: there is nothing to train.")

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def __call__(self, params: Any, *arguments: Any) -> Any:
        return nnx.merge(self.structure, params, self.rest)(*arguments)

    def expect_scores(self, shape: tuple[int, int], *arguments: Any) -> None:
        """Trace a call, and raise unless it returns one array of this shape."""

        @wraps(self.kind.__call__)
        def call(*arguments):
            return jax.eval_shape(lambda *given: self(self.params, *given), *arguments)

        found = getattr(run(call, *arguments), "shape", None)
        if found != shape:
            given = " and ".join(str(np.shape(array)) for array in arguments)
            what = "no single array" if found is None else f"an array of shape {found}"
            raise Wrong(
                f"Called with arrays of shape {given}, a {self.name} returns {what}; expected "
                f"scores of shape {shape}."
            )


def in_haste(function: Callable) -> Callable:
    """Compile for a few calls: less time for the compiler, more for each call."""
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(
        function, compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None
    )


def trainer(network: Network, updates: int, peak: float) -> Callable:
    """Return a function `(params, rows, labels, *arguments) -> params` that trains a classifier.

    rows, of shape (updates, batch), says which examples an update sees. The optimiser is Adam with
    a rate that falls from `peak` along a cosine, and gradients are clipped to a norm of 1.
    """
    import optax  # here, since most chapters' checks do without it

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(peak, updates))
    )

    def train(params, rows, labels, *arguments):
        def update(state, rows):
            def loss_of(params):
                scores = network(params, *(array[rows] for array in arguments))
                return optax.softmax_cross_entropy_with_integer_labels(scores, labels[rows]).mean()

            params, memory = state
            changes, memory = optimizer.update(jax.grad(loss_of)(params), memory)
            return (optax.apply_updates(params, changes), memory), None

        return jax.lax.scan(update, (params, optimizer.init(params)), rows)[0][0]

    return train


def draw_rows(runs: int, count: int, updates: int, batch: int, seed: int) -> np.ndarray:
    """Which of `count` examples each update of each run sees: all in random order, over and over.

    The shape is (runs, updates, batch).
    """
    rng, epochs = np.random.default_rng(seed), updates * batch // count + 1
    order = rng.permuted(np.tile(np.arange(count), (runs, epochs, 1)), axis=2)
    return order.reshape(runs, -1)[:, : updates * batch].reshape(runs, updates, batch)


def accuracy(scores: Any, labels: Any) -> float:
    """The share of examples, in percent, whose largest score is that of their label."""
    return 100 * float((np.asarray(scores).argmax(axis=-1) == np.asarray(labels)).mean())
