"""Checks of what was given, whose errors say what was expected."""

from __future__ import annotations

import operator
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(name: str, value: Any) -> jax.Array:
    """Return `value` as a JAX array of numbers, or raise TypeError."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{name} is {describe(value)}; expected an array of numbers, all rows equally long."
        ) from None


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of what can become one, or raise TypeError."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return as_array(name, value).shape
    try:
        return np.shape(value)
    except ValueError:
        raise TypeError(
            f"{name} is {describe(value)}; expected an array of numbers, all rows equally long."
        ) from None


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array of this shape broadcasts to the wanted one."""
    try:
        return np.broadcast_shapes(shape, wanted) == tuple(wanted)
    except ValueError:
        return False


def whole_number(name: str, value: Any, least: int) -> int:
    """Return `value` as an int of at least `least`, or raise TypeError or ValueError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {describe(value)}; expected a whole number.") from None
    if number < least:
        raise ValueError(f"{name} is {number}; expected at least {least}.")
    return number


def check_key(key: Any) -> None:
    """Raise TypeError unless `key` is one random key."""
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
    elif dtype == np.uint32 and shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
        return
    raise TypeError(
        f"key is {describe(key)}; expected one random key, jax.random.key(0) for example."
    )


def floating_dtype(name: str, dtype: Any) -> Any:
    """Return `dtype` as a dtype of real numbers, or raise TypeError."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(
            f"{name} is {dtype!r}; expected a floating dtype: jnp.float32, jnp.bfloat16, "
            "jnp.float16 or jnp.float64."
        )
    return found


def describe(value: Any) -> str:
    """What to call a value in an error: its shape and dtype, or itself, if that is short."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and dtype {value.dtype}"
    shown = repr(value)
    return shown if len(shown) <= 40 else kind_of(value)


def kind_of(value: Any) -> str:
    """What sort of thing a value is, in words: "a GRUCell", "an int", "an RNN"."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return "a single array"
    name = type(value).__name__
    spelled_out = name[:2].isupper() and name[0] in "FHLMNRSX"  # an R-N-N, but a GRU
    return f"an {name}" if spelled_out or name[0] in "AEIOaeio" else f"a {name}"


def warn(message: str) -> None:
    """Warn, and point at the first line outside this package and Flax."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("unrolled", "flax"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
