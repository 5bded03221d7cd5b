"""A training that meets NaN or infinity stops, and says in which step and in which parameter.

`count_nonfinite` belongs into the compiled update, also inside a scan; `check_finite` comes after
it, where Python can raise an error. JAX has `jax_debug_nans` and `jax.experimental.checkify` for
this. They look at every operation and name the line of code; here one look at the loss, the
gradients and the batch is enough, and what helps is the step and the parameter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._checks import describe, whole_number

SHOWN = 3  # places that an error names of each thing that was counted


def count_nonfinite(**watched: Any) -> dict[str, Any]:
    """Count the NaN and the infinite numbers in whatever is given, in compiled code too.

    Args:
      **watched: arrays, or trees of arrays such as gradients, each by the name that an error shall
        call it. Whole numbers and random keys are finite.

    Returns:
      the same trees with two numbers, (2,) int32, in place of each array: how many of its elements
      are NaN, and how many infinite.

    Raises:
      TypeError: something that is not an array of numbers.

    Example:
      >>> counts = count_nonfinite(inputs=jnp.array([1.0, jnp.nan]), loss=jnp.inf)
      >>> counts["inputs"].tolist(), counts["loss"].tolist()
      ([1, 0], [0, 1])
    """
    places, structure = jax.tree.flatten_with_path(watched)
    return jax.tree.unflatten(structure, [_count(path, leaf) for path, leaf in places])


def _count(path: tuple, leaf: Any) -> jax.Array:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.zeros(2, jnp.int32)
    # JAX would make float32 of 1e39, which is infinite; NumPy looks at the number that it is.
    numpy = jnp if isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__") else np
    try:
        array = numpy.asarray(leaf)
    except (TypeError, ValueError, OverflowError):
        array = np.asarray(None)  # of objects, and refused below
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        raise TypeError(
            f"{_name(path)} is {describe(leaf)}; expected an array of numbers, or a tree of arrays."
        )
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.zeros(2, jnp.int32)
    return jnp.stack([numpy.isnan(array).sum(), numpy.isinf(array).sum()]).astype(jnp.int32)


def check_finite(counts: dict[str, Any], step: int = 0) -> None:
    """Raise an error if anything counted was not finite; it names the first such step and where.

    It waits for the numbers, so on an accelerator call it once for many steps, and always before a
    state is saved.

    Args:
      counts: what `count_nonfinite` returned: of one step, or of several, stacked by a scan:
        (steps, 2) for each array.
      step: the number of the step, or of the first of them.

    Returns:
      nothing, when everything was finite.

    Raises:
      FloatingPointError: something was not finite. Names come in the order of the alphabet, as JAX
        sorts them, and under each the first places in its tree.
      TypeError: counts that did not come from `count_nonfinite`, or a step that is no whole number.
      ValueError: a negative step.

    Example, a training in which the third batch holds a NaN:
      >>> def update(weight, x):
      ...     loss, gradient = jax.value_and_grad(lambda weight: (weight * x).sum())(weight)
      ...     return weight - 0.1 * gradient, count_nonfinite(loss=loss, gradient=gradient, batch=x)
      >>> batches = jnp.ones((5, 2)).at[2, 1].set(jnp.nan)
      >>> weight, counts = jax.jit(lambda weight: jax.lax.scan(update, weight, batches))(1.0)
      >>> check_finite(counts)
      Traceback (most recent call last):
      FloatingPointError: step 2 is not finite: batch: 1 NaN; gradient: 1 NaN; loss: 1 NaN
    """
    step = whole_number("step", step, 0)
    places = [(path, np.asarray(leaf)) for path, leaf in jax.tree.leaves_with_path(counts)]
    if not isinstance(counts, dict) or not all(_is_count(leaf) for _, leaf in places):
        raise TypeError(f"counts is {describe(counts)}; expected what count_nonfinite returns.")
    steps = {leaf.shape[:-1] for _, leaf in places}
    if len(steps) > 1:
        raise TypeError(f"counts are of {sorted(steps)} steps; expected the same for all.")
    places = [(path, np.atleast_2d(leaf)) for path, leaf in places]
    bad = sum(leaf.any(axis=1) for _, leaf in places) if places else np.zeros(1)
    if not bad.any():
        return
    first = int(bad.argmax())
    found: dict[str, list[str]] = {}
    for path, leaf in places:
        nans, infinities = leaf[first]
        amounts = [f"{nans} NaN"] * bool(nans) + [f"{infinities} infinite"] * bool(infinities)
        if amounts:
            found.setdefault(_name(path[:1]), []).append(f"{_name(path)}: {' and '.join(amounts)}")
    told = []
    for name, lines in found.items():
        told += lines[:SHOWN]
        if len(lines) > SHOWN:
            told.append(f"and {len(lines) - SHOWN} more in {name}")
    raise FloatingPointError(f"step {step + first} is not finite: {'; '.join(told)}")


def _is_count(leaf: np.ndarray) -> bool:
    return leaf.dtype == np.int32 and leaf.ndim in (1, 2) and leaf.shape[-1] == 2


def _name(path: tuple) -> str:
    """The place of an array, `gradient.layers.0.cell.bias` for example."""
    if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]  # a Flax variable holds its array there
    return jax.tree_util.keystr(path, simple=True, separator=".")
