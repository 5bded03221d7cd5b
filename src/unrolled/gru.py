"""The gated recurrent unit as three pure functions on a dict of arrays (chapters 2 to 5).

Nothing here knows about batches, layers or training: one example, one unit of code per idea.
`jax.jit`, `jax.vmap` and `jax.grad` add the rest from the outside, which is what chapter 4 shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._checks import check_key, describe, kind_of

Params = Mapping[str, jax.Array]

PARAMETER_SHAPES = {
    name + gate: shape
    for gate in "zrh"  # z: update gate, r: reset gate, h: candidate state
    for name, shape in {
        "W": ("hidden_dim", "input_dim"),
        "U": ("hidden_dim", "hidden_dim"),
        "b": ("hidden_dim",),
    }.items()
}


def initialize_gru_params(
    key: jax.Array,
    input_dim: int,
    hidden_dim: int,
    *,
    scale: float = 0.01,
    dtype: jnp.dtype = jnp.float32,
) -> dict[str, jax.Array]:
    """Draw the nine parameters of a GRU: small normal weights, zero biases.

    Each weight is drawn from a normal distribution with standard deviation `scale`, so that every
    gate starts close to one half and the candidate close to zero.

    Args:
      key: a JAX random key.
      input_dim: number of input features.
      hidden_dim: number of hidden units.
      scale: standard deviation of the weights. 0.01 keeps the first steps easy to read; training
        on long sequences wants recurrent weights closer to 1 / sqrt(hidden_dim) (chapter 5).
      dtype: floating dtype of all parameters.

    Returns:
      A dict with `Wz, Wr, Wh` of shape (hidden_dim, input_dim), `Uz, Ur, Uh` of shape
      (hidden_dim, hidden_dim) and `bz, br, bh` of shape (hidden_dim,). `z` is the update gate,
      `r` the reset gate, `h` the candidate state.

    Raises:
      TypeError: something else than a random key, a size that is not an integer, a scale that is
        not one number, or a dtype that is not floating.
      ValueError: a size below one.

    Example:
      >>> import jax
      >>> params = initialize_gru_params(jax.random.key(0), input_dim=5, hidden_dim=8)
      >>> sorted(params)
      ['Uh', 'Ur', 'Uz', 'Wh', 'Wr', 'Wz', 'bh', 'br', 'bz']
      >>> params["Wz"].shape, params["Uz"].shape, params["bz"].shape
      ((8, 5), (8, 8), (8,))
    """
    check_key(key)
    if np.ndim(scale) or not isinstance(scale, (float, int, np.generic, jax.Array)):
        raise TypeError(f"scale is {describe(scale)}; expected one number, such as 0.01.")
    for name, size in {"input_dim": input_dim, "hidden_dim": hidden_dim}.items():
        if isinstance(size, bool) or not hasattr(size, "__index__") or np.ndim(size):
            raise TypeError(f"{name} is {size!r}; expected a whole number of features, such as 8.")
        if size < 1:
            raise ValueError(f"{name} is {size}; expected at least 1.")
    try:
        dtype_name, is_floating = jnp.dtype(dtype).name, jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        dtype_name, is_floating = repr(dtype), False
    if not is_floating:
        raise TypeError(
            f"dtype is {dtype_name}; a GRU's parameters are real numbers: "
            "use jnp.float32, jnp.bfloat16 or jnp.float64."
        )
    sizes = {"input_dim": input_dim, "hidden_dim": hidden_dim}
    keys = iter(jax.random.split(key, 6))  # one for each of the six weight matrices
    params = {}
    for name, dims in PARAMETER_SHAPES.items():
        shape = tuple(sizes[dim] for dim in dims)
        if name.startswith("b"):
            params[name] = jnp.zeros(shape, dtype)
        else:
            params[name] = (scale * jax.random.normal(next(keys), shape)).astype(dtype)
    return params


def gru_step(params: Params, h_prev: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Advance a GRU by one time step.

    With σ the logistic sigmoid and ⊙ the product element by element::

        z_t = σ(Wz x_t + Uz h_prev + bz)                     update gate
        r_t = σ(Wr x_t + Ur h_prev + br)                     reset gate
        candidate = tanh(Wh x_t + Uh (r_t ⊙ h_prev) + bh)    candidate state
        h_t = (1 - z_t) ⊙ h_prev + z_t ⊙ candidate           new hidden state

    The reset gate acts *before* the matrix product and the update gate *writes*: z_t = 0 keeps
    the old state. Other libraries choose otherwise; chapter 6 and `unrolled.convert` translate.

    Args:
      params: the nine arrays of `initialize_gru_params`; other entries are ignored.
      h_prev: previous hidden state, shape (hidden_dim,), floating.
      x_t: input at this step, shape (input_dim,), floating.

    Returns:
      `(h_t, h_t)`, each of shape (hidden_dim,): the first is the carry for the next step, the
      second is this step's output, as `jax.lax.scan` wants them.

    Raises:
      TypeError: something that is not an array, or whose dtype is not floating.
      ValueError: a missing parameter or a shape that does not fit.

    From:
      Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014; the
      update gate is oriented as in Chung et al., "Empirical Evaluation of Gated Recurrent Neural
      Networks on Sequence Modeling", 2014.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = initialize_gru_params(jax.random.key(0), input_dim=5, hidden_dim=8)
      >>> h_t, output = gru_step(params, jnp.zeros(8), jnp.ones(5))
      >>> h_t.shape, bool((h_t == output).all())
      ((8,), True)
    """
    hidden_dim, input_dim = _check_params(params)
    _check_array(
        "h_prev", h_prev, ("hidden_dim",), (hidden_dim,), "jax.vmap(gru_step, in_axes=(None, 0, 0))"
    )
    _check_array(
        "x_t", x_t, ("input_dim",), (input_dim,), "jax.vmap(gru_step, in_axes=(None, 0, 0))"
    )

    update = jax.nn.sigmoid(
        jnp.dot(params["Wz"], x_t) + jnp.dot(params["Uz"], h_prev) + params["bz"]
    )  # (hidden_dim,)
    reset = jax.nn.sigmoid(
        jnp.dot(params["Wr"], x_t) + jnp.dot(params["Ur"], h_prev) + params["br"]
    )  # (hidden_dim,)
    candidate = jnp.tanh(
        jnp.dot(params["Wh"], x_t) + jnp.dot(params["Uh"], reset * h_prev) + params["bh"]
    )  # (hidden_dim,)
    h_t = (1 - update) * h_prev + update * candidate
    return h_t, h_t


def gru_sequence(
    params: Params, initial_h: jax.Array, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Run a GRU over one sequence: `gru_step` inside a single `jax.lax.scan`.

    It computes what this loop computes, but compiles one step however long the sequence is::

        h, outputs = initial_h, []
        for x_t in inputs:
            h, output = gru_step(params, h, x_t)
            outputs.append(output)
        return h, jnp.stack(outputs)

    Args:
      params: the nine arrays of `initialize_gru_params`; other entries are ignored.
      initial_h: hidden state before the first step, shape (hidden_dim,), floating.
      inputs: one sequence, shape (time, input_dim), floating. For a batch, map over it:
        `jax.vmap(gru_sequence, in_axes=(None, 0, 0))`.

    Returns:
      `(final_h, outputs_h)`: the last hidden state, shape (hidden_dim,), and the hidden state
      after every step, shape (time, hidden_dim). With no steps at all, `final_h` is `initial_h`.

    Raises:
      TypeError: something that is not an array, whose dtype is not floating, or an `initial_h`
        whose dtype is not the dtype that a step returns (a scan's carry must keep its dtype).
      ValueError: a missing parameter or a shape that does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = initialize_gru_params(jax.random.key(0), input_dim=5, hidden_dim=8)
      >>> inputs = jax.random.normal(jax.random.key(1), (10, 5))
      >>> final_h, outputs_h = gru_sequence(params, jnp.zeros(8), inputs)
      >>> final_h.shape, outputs_h.shape
      ((8,), (10, 8))
    """
    hidden_dim, input_dim = _check_params(params)
    batched = "jax.vmap(gru_sequence, in_axes=(None, 0, 0))"
    _check_array("initial_h", initial_h, ("hidden_dim",), (hidden_dim,), batched)
    _check_array("inputs", inputs, ("time", "input_dim"), (None, input_dim), batched)
    step_dtype = jnp.result_type(initial_h, inputs, *(params[name] for name in PARAMETER_SHAPES))
    if step_dtype != jnp.result_type(initial_h):
        raise TypeError(
            f"initial_h has dtype {jnp.result_type(initial_h)}, but with these parameters and "
            f"inputs a step returns {step_dtype}, and the carry of a scan must keep its dtype. "
            f"Use initial_h.astype(jnp.{step_dtype}), or cast parameters and inputs instead."
        )

    def step(h_prev, x_t):
        return gru_step(params, h_prev, x_t)

    return jax.lax.scan(step, initial_h, inputs)  # (hidden_dim,), (time, hidden_dim)


def _check_params(params: Params) -> tuple[int, int]:
    """Return (hidden_dim, input_dim), or say which parameter is wrong and how to mend it."""
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params is {kind_of(params)}; expected a dict of arrays as "
            "initialize_gru_params returns it."
        )
    missing = [name for name in PARAMETER_SHAPES if name not in params]
    if missing:
        raise ValueError(
            f"params lacks {', '.join(missing)}; expected all of {', '.join(PARAMETER_SHAPES)}. "
            "initialize_gru_params makes a complete set."
        )
    seen = {"hidden_dim": [], "input_dim": []}
    for name, dims in PARAMETER_SHAPES.items():
        _check_array(name, params[name], dims, (None,) * len(dims))
        for dim, size in zip(dims, params[name].shape):
            seen[dim].append(size)
    sizes = {dim: max(counted, key=counted.count) for dim, counted in seen.items()}  # the most say
    for name, dims in PARAMETER_SHAPES.items():
        _check_array(name, params[name], dims, tuple(sizes[dim] for dim in dims))
    return sizes["hidden_dim"], sizes["input_dim"]


def _check_array(
    name: str,
    value: jax.Array,
    dims: tuple[str, ...],
    expected: tuple[int | None, ...],
    batched: str | None = None,
) -> None:
    """Raise unless `value` is a floating array of the expected shape; None admits any size."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name} is {kind_of(value)}; expected an array: use jnp.asarray({name}).")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} has dtype {value.dtype}; expected a floating dtype: "
            f"use {name}.astype(jnp.float32)."
        )
    shape = tuple(value.shape)
    if len(shape) == len(expected) and all(
        want is None or size == want for size, want in zip(shape, expected)
    ):
        return
    sizes = tuple(dim if want is None else want for dim, want in zip(dims, expected))
    wanted = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
    known = f"({', '.join(map(str, sizes))}{',' if len(dims) == 1 else ''})"
    message = f"{name} has shape {shape}; expected {wanted}"
    if known != wanted:
        message += f" = {known}"
    if len(shape) == len(expected) == 2 and all(
        want is None or size == want for size, want in zip(shape[::-1], expected)
    ):
        message += f". It looks transposed: use {name}.T"
    elif batched is not None and len(shape) > len(expected):
        message += f". To run a batch, map over it: {batched}"
    raise ValueError(message + ".")
