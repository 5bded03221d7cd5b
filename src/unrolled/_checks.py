"""Checks of what was given, whose errors say what was expected."""

from __future__ import annotations

import inspect
import math
import operator
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

INITIALIZER = "(key, shape, dtype)", "nnx.initializers.zeros_init()"
"""For `as_function`: how an initialiser is called, and one of them."""


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
        return jnp.broadcast_shapes(shape, wanted) == tuple(wanted)
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


def real_number(name: str, value: Any, expected: str) -> float:
    """Return `value` as a float, or raise TypeError or, unless it is finite, ValueError."""
    number = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} is {describe(value)}; expected {expected}.")
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; expected {expected}.")
    return float(number)


def check_shape(name: str, shape: Any) -> None:
    """Raise TypeError or ValueError unless `shape` is a sequence of sizes."""
    if type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape):
        return  # nearly always; the rest is for lists, NumPy's numbers, and mistakes
    try:
        sequence = isinstance(shape, (Sequence, np.ndarray, jax.Array))
        if not sequence or isinstance(shape, (str, bytes)):  # of which b"ab" holds whole numbers
            raise TypeError
        for size in shape:
            if isinstance(size, bool):
                raise TypeError
            if not export.is_symbolic_dim(size) and operator.index(size) < 0:
                raise ValueError(f"{name} is {describe(shape)}; expected sizes of at least 0.")
    except TypeError:
        mend = " Pass its .shape." if hasattr(shape, "shape") else ""
        raise TypeError(
            f"{name} is {describe(shape)}; expected a tuple of whole numbers, (2, 3) for a batch "
            f"of 2 and 3 features.{mend}"
        ) from None


def as_function(name: str, value: Any, called_with: str, example: str) -> Any:
    """Return `value` if it can be called, or raise TypeError."""
    if not callable(value):
        raise TypeError(
            f"{name} is {describe(value)}; expected a function of {called_with}, such as {example}."
        )
    return value


def check_arguments(name: str, function: Any, called_with: str, example: str) -> None:
    """Raise TypeError unless `function` takes as many arguments as `called_with` has names."""
    try:
        takes = inspect.signature(function)
    except ValueError:
        return  # a builtin that does not tell
    try:
        takes.bind(*called_with.split(","))
    except TypeError:
        raise TypeError(
            f"{name} takes ({', '.join(takes.parameters)}); expected a function of {called_with}, "
            f"such as {example}."
        ) from None


def check_drawn(name: str, drawn: Any, wanted: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError unless an initialiser drew an array of the wanted shape."""
    if not hasattr(drawn, "shape"):
        raise TypeError(
            f"{name} returned {describe(drawn)}; expected an array of shape {wanted}. Are "
            "parentheses missing, as those of nnx.initializers.lecun_normal()?"
        )
    if drawn.shape != wanted:
        raise ValueError(
            f"{name} returned an array of shape {tuple(drawn.shape)}; expected {wanted}, the shape "
            "that it is called with."
        )


def check_metadata(name: str, metadata: Any) -> None:
    """Raise TypeError unless `metadata` is a mapping from names."""
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise TypeError(
            f"{name} is {describe(metadata)}; expected a dict from names to what a parameter is to "
            'carry along, such as {"out_sharding": (None, "model")}.'
        )


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
