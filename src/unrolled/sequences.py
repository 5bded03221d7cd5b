"""Sequences of different length in one array: padding, masks, and flips that keep padding in place.

A batch of sequences is an array of shape (*batch, time, *features), or (time, *batch, *features)
when `time_major`; row b holds `seq_lengths[b]` valid steps, the rest is padding. Any number of
batch dimensions will do, also none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from unrolled._checks import as_array, broadcasts, describe, shape_of, whole_number


def check_seq_lengths(
    seq_lengths: Any, batch_shape: tuple[int, ...], num_steps: int | None = None
) -> jax.Array:
    """Return `seq_lengths` as an integer array, or say what is wrong with it.

    Values can only be checked where they are known. Inside `jax.jit` they are not, and lengths out
    of range are clamped to [0, num_steps] instead.

    Args:
      seq_lengths: whole numbers of shape batch_shape: an array, a list, or one int without batch.
      batch_shape: the batch dimensions of the sequences.
      num_steps: the length of the time axis; None if there is no upper limit.

    Returns:
      An int32 array of shape batch_shape.

    Raises:
      TypeError: lengths that are not whole numbers.
      ValueError: a wrong shape, a negative length, or one beyond num_steps.

    Example:
      >>> check_seq_lengths([2, 0, 3], batch_shape=(3,), num_steps=3)
      Array([2, 0, 3], dtype=int32)
    """
    leaves = jax.tree.leaves(seq_lengths)
    known = all(
        not isinstance(leaf, jax.core.Tracer) and getattr(leaf, "is_fully_addressable", True)
        for leaf in leaves
    )
    shape_of("seq_lengths", seq_lengths)
    lengths = np.asarray(seq_lengths) if known else jnp.asarray(seq_lengths)
    if lengths.size and not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"seq_lengths has dtype {lengths.dtype}; expected whole numbers, the count of valid "
            "steps in each row: use seq_lengths.astype(jnp.int32), or mask.sum(axis) for a mask."
        )
    if lengths.shape != tuple(batch_shape):
        raise ValueError(
            f"seq_lengths has shape {lengths.shape}; expected {tuple(batch_shape)}, one length for "
            "each sequence of the batch. From a mask, count the valid steps: mask.sum(time_axis)."
        )
    if not known:
        if jnp.iinfo(lengths.dtype).bits < 32:
            lengths = lengths.astype(jnp.int32)  # num_steps may be beyond what a byte can hold
        return jnp.clip(lengths, 0, num_steps).astype(jnp.int32)
    if lengths.size and lengths.min() < 0:
        raise ValueError(
            f"seq_lengths holds {lengths.min()}; a sequence has at least 0 steps, so expected "
            "lengths from 0 on."
        )
    if lengths.size and num_steps is not None and lengths.max() > num_steps:
        raise ValueError(
            f"seq_lengths holds {lengths.max()}, but the time axis has length {num_steps}; "
            "expected lengths within it. Is time_major set as the inputs are laid out?"
        )
    return jnp.asarray(lengths, jnp.int32)


def sequence_mask(
    seq_lengths: Any, num_steps: int | None = None, *, time_major: bool = False
) -> jax.Array:
    """Mark the valid steps: `mask[b, t] = t < seq_lengths[b]`.

    Args:
      seq_lengths: whole numbers, shape (*batch,).
      num_steps: the length of the time axis; None takes the longest sequence (not under `jit`,
        where shapes must be known).
      time_major: put time first.

    Returns:
      A bool array of shape (*batch, num_steps), or (num_steps, *batch) when time_major.

    Raises:
      TypeError, ValueError: see `check_seq_lengths`.

    Example:
      >>> sequence_mask([1, 3], num_steps=4).astype(int)
      Array([[1, 0, 0, 0],
             [1, 1, 1, 0]], dtype=int32)
    """
    if num_steps is not None and not export.is_symbolic_dim(num_steps):
        num_steps = whole_number("num_steps", num_steps, least=0)
    lengths = check_seq_lengths(seq_lengths, shape_of("seq_lengths", seq_lengths), num_steps)
    if num_steps is None:
        if isinstance(lengths, jax.core.Tracer):
            raise ValueError(
                "sequence_mask needs num_steps inside jit, where the longest length is not known "
                "while the program is traced: pass num_steps=inputs.shape[time_axis]."
            )
        num_steps = int(lengths.max(initial=0))
    time_axis = 0 if time_major else lengths.ndim
    lengths = jnp.expand_dims(lengths, time_axis)  # (1, *batch) or (*batch, 1)
    steps = jnp.arange(num_steps, dtype=jnp.int32).reshape(
        [num_steps if axis == time_axis else 1 for axis in range(lengths.ndim)]
    )
    return steps < lengths  # (time, *batch) or (*batch, time)


def mask_padding(inputs: jax.Array, mask: jax.Array, fill: Any = 0) -> jax.Array:
    """Keep `inputs` where `mask` is true and put `fill` elsewhere, whatever stood there.

    What is replaced gets no gradient, NaN included.

    Args:
      inputs: an array whose first dimensions are those of mask.
      mask: bool, as from `sequence_mask`.
      fill: a number, or an array of the shape of inputs.

    Returns:
      An array of the shape and dtype of inputs.

    Raises:
      TypeError: inputs or a mask that are no numbers.
      ValueError: inputs that do not begin with the dimensions of mask, or a fill that does not fit
        their dtype or shape.

    Example:
      >>> mask_padding(jnp.array([[1.0, jnp.nan], [2.0, 3.0]]), sequence_mask([1, 2]))
      Array([[1., 0.],
             [2., 3.]], dtype=float32)
    """
    inputs, mask = as_array("inputs", inputs), as_array("mask", mask)
    try:
        cast = jnp.asarray(fill, inputs.dtype)
        _check_whole(fill, inputs.dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"fill is {describe(fill)}; expected a number that the inputs' dtype {inputs.dtype} "
            "holds."
        ) from None
    if inputs.shape[: mask.ndim] != mask.shape:
        raise ValueError(
            f"cannot mask an array of shape {inputs.shape} by a mask of shape {mask.shape}; "
            "expected the array to begin with the mask's dimensions."
        )
    if not broadcasts(cast.shape, inputs.shape):
        raise ValueError(
            f"fill has shape {cast.shape}; expected a number, or an array that broadcasts to the "
            f"shape {inputs.shape} of inputs."
        )
    mask = mask.reshape(mask.shape + (1,) * (inputs.ndim - mask.ndim))  # (..., 1, 1)
    return jnp.where(mask, inputs, cast)


def _check_whole(fill: Any, dtype: Any) -> None:
    """Raise ValueError for 0.5 or 300 where the dtype holds whole numbers up to 255."""
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(fill))
    if known and not jnp.issubdtype(dtype, jnp.inexact):
        with np.errstate(invalid="ignore"):  # NaN as a whole number
            if np.any(np.asarray(fill).astype(dtype) != np.asarray(fill)):
                raise ValueError


def flip_sequences(
    inputs: jax.Array, seq_lengths: Any | None, num_batch_dims: int, time_major: bool
) -> jax.Array:
    """Reverse each sequence in time and leave its padding where it is.

    ::

        flipped[b, t] = inputs[b, seq_lengths[b] - 1 - t]    for t < seq_lengths[b]
        flipped[b, t] = inputs[b, t]                         otherwise

    A plain flip would bring the padding to the front. Flipping twice gives the inputs back.

    Args:
      inputs: any dtype, shape (*batch, time, *features), or (time, *batch, *features).
      seq_lengths: whole numbers, shape (*batch,); None if all steps are valid.
      num_batch_dims: how many batch dimensions there are.
      time_major: whether time comes first.

    Returns:
      An array of the shape and dtype of inputs.

    Raises:
      TypeError, ValueError: see `check_seq_lengths`.

    From:
      `flax.nnx.nn.recurrent.flip_sequences`, which reverses the padding too.

    Example:
      >>> inputs = jnp.array([[1, 0, 0], [2, 3, 0], [4, 5, 6]])
      >>> flip_sequences(inputs, jnp.array([1, 2, 3]), num_batch_dims=1, time_major=False)
      Array([[1, 0, 0],
             [3, 2, 0],
             [6, 5, 4]], dtype=int32)
    """
    inputs, num_batch_dims = _with_time(inputs, num_batch_dims)
    time_axis = 0 if time_major else num_batch_dims
    if seq_lengths is None:
        return jnp.flip(inputs, axis=time_axis)
    num_steps = inputs.shape[time_axis]
    first_batch_axis = 1 if time_major else 0
    batch_shape = inputs.shape[first_batch_axis : first_batch_axis + num_batch_dims]
    lengths = check_seq_lengths(seq_lengths, batch_shape, num_steps)
    lengths = jnp.expand_dims(lengths, time_axis)  # (*batch, 1) or (1, *batch)
    steps = jnp.arange(num_steps, dtype=jnp.int32).reshape(
        [num_steps if axis == time_axis else 1 for axis in range(num_batch_dims + 1)]
    )  # time, broadcast over the batch
    source = jnp.where(steps < lengths, lengths - 1 - steps, steps)  # (*batch, time)
    source = source.reshape(source.shape + (1,) * (inputs.ndim - source.ndim))
    return jnp.take_along_axis(inputs, source, axis=time_axis)


def last_valid_step(
    inputs: jax.Array, seq_lengths: Any | None, num_batch_dims: int = 1, time_major: bool = False
) -> jax.Array:
    """Take each sequence's last valid step: `inputs[b, seq_lengths[b] - 1]`.

    Args:
      inputs: shape (*batch, time, *features), or (time, *batch, *features).
      seq_lengths: whole numbers, shape (*batch,); None if all steps are valid.
      num_batch_dims: how many batch dimensions there are.
      time_major: whether time comes first.

    Returns:
      An array of shape (*batch, *features); zeros for a sequence without steps.

    Raises:
      TypeError, ValueError: see `check_seq_lengths`.

    Example:
      >>> last_valid_step(jnp.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), [3, 1, 0])
      Array([3, 4, 0], dtype=int32)
    """
    inputs, num_batch_dims = _with_time(inputs, num_batch_dims)
    if time_major:
        inputs = jnp.moveaxis(inputs, 0, num_batch_dims)  # (*batch, time, *features)
    batch_shape, num_steps = inputs.shape[:num_batch_dims], inputs.shape[num_batch_dims]
    if seq_lengths is None:
        seq_lengths = np.full(batch_shape, num_steps)
    lengths = check_seq_lengths(seq_lengths, batch_shape, num_steps)
    if num_steps == 0:
        return jnp.zeros(batch_shape + inputs.shape[num_batch_dims + 1 :], inputs.dtype)
    last = jnp.maximum(lengths - 1, 0)
    last = last.reshape(batch_shape + (1,) * (inputs.ndim - num_batch_dims))
    taken = jnp.take_along_axis(inputs, last, axis=num_batch_dims)  # (*batch, 1, *features)
    return mask_padding(jnp.squeeze(taken, num_batch_dims), lengths > 0)


def _with_time(inputs: Any, num_batch_dims: Any) -> tuple[jax.Array, int]:
    """Return inputs as an array that has this many batch dimensions and time, or say what it is."""
    inputs = as_array("inputs", inputs)
    num_batch_dims = whole_number("num_batch_dims", num_batch_dims, least=0)
    if inputs.ndim < num_batch_dims + 1:
        raise ValueError(
            f"inputs has shape {inputs.shape}; expected at least {num_batch_dims + 1} dimensions: "
            f"{num_batch_dims} for the batch, one for time."
        )
    return inputs, num_batch_dims


def pad_sequences(
    sequences: Sequence[Any],
    num_steps: int | None = None,
    *,
    fill: Any = 0,
    time_major: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Put sequences of different length into one array, with padding at the end of each.

    This prepares data and runs in NumPy; the results go to a device when a model uses them.

    Args:
      sequences: arrays of shape (time_b, *features) that differ in time_b only.
      num_steps: the length of the time axis; None takes the longest sequence.
      fill: what to put at padded steps.
      time_major: put time first.

    Returns:
      `(padded, seq_lengths)`: an array of shape (batch, num_steps, *features), or (num_steps,
      batch, *features), in the sequences' common dtype; and the lengths, int32, shape (batch,).

    Raises:
      TypeError: something that is not a sequence of arrays, or a num_steps that is not an int.
      ValueError: no sequences, features that differ, a sequence longer than num_steps, or a fill
        that the sequences' dtype does not hold.

    Example:
      >>> padded, seq_lengths = pad_sequences([np.array([1, 2, 3]), np.array([4])])
      >>> padded.tolist(), seq_lengths.tolist()
      ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    if not hasattr(sequences, "__iter__") or isinstance(sequences, (str, bytes)):
        raise TypeError(f"sequences is {describe(sequences)}; expected a list of arrays.")
    arrays = []
    for index, sequence in enumerate(sequences):
        shape_of(f"sequence {index}", sequence)  # raises for rows of different length
        arrays.append(np.asarray(sequence))
    if not arrays:
        raise ValueError("pad_sequences got no sequences; expected at least one array.")
    for index, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(
                f"sequence {index} is the number {array}; expected an array (time, *features)."
            )
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"sequence {index} has shape {array.shape}, but sequence 0 has shape "
                f"{arrays[0].shape}; expected (time, *features) with the same features everywhere."
            )
    lengths = np.array([len(array) for array in arrays], np.int32)
    longest = int(lengths.max())
    num_steps = longest if num_steps is None else whole_number("num_steps", num_steps, least=0)
    if longest > num_steps:
        raise ValueError(
            f"sequence {int(lengths.argmax())} has {longest} steps, more than num_steps={num_steps}"
            "; cut it, or leave num_steps out to take the longest."
        )
    shape = (len(arrays), num_steps, *arrays[0].shape[1:])
    try:
        dtype = np.result_type(*arrays)
    except TypeError:  # NumPy knows nothing above both bfloat16 and float16; JAX does
        dtype = jnp.result_type(*arrays)
    try:
        _check_whole(fill, dtype)
        padded = np.full(shape, fill, dtype)  # (batch, time, *features)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"fill is {describe(fill)}; expected a number that the sequences' dtype {dtype} holds."
        ) from None
    for row, array in zip(padded, arrays):
        row[: len(array)] = array
    if time_major:
        padded = padded.swapaxes(0, 1)  # (time, batch, *features)
    return padded, lengths


def unpad_sequences(padded: Any, seq_lengths: Any, *, time_major: bool = False) -> list[np.ndarray]:
    """Undo `pad_sequences`: the list of valid parts, one array for each sequence.

    Args:
      padded: shape (batch, time, *features), or (time, batch, *features).
      seq_lengths: whole numbers, shape (batch,).
      time_major: whether time comes first.

    Returns:
      A list of arrays of shape (seq_lengths[b], *features).

    Raises:
      TypeError, ValueError: see `check_seq_lengths`.

    Example:
      >>> [row.tolist() for row in unpad_sequences([[1, 2, 3], [4, 0, 0]], [3, 1])]
      [[1, 2, 3], [4]]
    """
    shape = shape_of("padded", padded)
    if len(shape) < 2:
        raise ValueError(
            f"padded has shape {shape}; expected (batch, time, *features), or time first."
        )
    padded = np.asarray(padded)
    if time_major:
        padded = padded.swapaxes(0, 1)  # (batch, time, *features)
    lengths = np.asarray(check_seq_lengths(seq_lengths, padded.shape[:1], padded.shape[1]))
    return [row[:length] for row, length in zip(padded, lengths)]
