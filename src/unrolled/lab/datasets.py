"""Data sets of the book: small enough to generate or to ship, never downloaded."""

from __future__ import annotations

from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np


def adding_problem(
    key: jax.Array, batch_size: int, length: int, *, dtype: jnp.dtype = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Draw sequences of numbers of which two are marked; the target is the sum of those two.

    Every step brings two features: a value, uniform in [0, 1), and a marker, 1 at exactly two steps
    and 0 elsewhere. One marker stands in the first half of the sequence and one in the second, each
    uniform over its half, so that the first value has to be kept for at least half of the sequence
    and for three quarters of it on average. Always guessing 1 has a mean squared error of 1/6, the
    variance of the sum of two uniform numbers.

    It can be called under `jax.jit` and inside a `jax.lax.scan`, when `batch_size` and `length`
    are fixed.

    Args:
      key: a JAX random key; the same key gives the same sequences.
      batch_size: number of sequences.
      length: number of steps of each; at least 2. In a sequence of odd length the second half is
        one step longer than the first.
      dtype: floating dtype of inputs and targets.

    Returns:
      `(inputs, targets)`: inputs of shape (batch, time, 2) with the value in feature 0 and the
      marker in feature 1, targets of shape (batch,).

    Raises:
      TypeError: `key` is not a random key, a size is not an integer, or `dtype` is not floating.
      ValueError: a size is too small, or `key` is a whole array of keys.

    From:
      Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 1997, experiment 4,
      in the simpler form of Le et al., "A Simple Way to Initialize Recurrent Networks of Rectified
      Linear Units", 2015; one marker in each half as in Arjovsky et al., "Unitary Evolution
      Recurrent Neural Networks", 2016.

    Example:
      >>> import jax
      >>> inputs, targets = adding_problem(jax.random.key(0), batch_size=64, length=50)
      >>> inputs.shape, targets.shape
      ((64, 50, 2), (64,))
      >>> inputs[..., 1].sum(axis=1).tolist() == [2.0] * 64
      True
    """
    _check_key(key, "adding_problem(key, batch_size, length)")
    _check_size("batch_size", batch_size, 1)
    _check_size("length", length, 2)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"dtype is {jnp.dtype(dtype).name}; the values are real numbers: use jnp.float32, "
            "jnp.bfloat16 or jnp.float64."
        )
    # One draw for everything: a value for each step, then a place for each of the two markers.
    uniform = jax.random.uniform(key, (batch_size, length + 2))
    values, places = uniform[:, :length].astype(dtype), uniform[:, length:]
    starts = jnp.array([0, length // 2])
    sizes = jnp.array([length // 2, length - length // 2])
    marked = starts + jnp.floor(places * sizes).astype(int)  # (batch, 2)
    markers = jax.nn.one_hot(marked, length, dtype=dtype).sum(axis=1)  # (batch, time)
    inputs = jnp.stack([values, markers], axis=-1)  # (batch, time, 2)
    return inputs, jnp.sum(values * markers, axis=1)


def japanese_vowels(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Load utterances of two Japanese vowels, said one after the other by nine men.

    Every utterance is a sequence of 7 to 29 frames, and each frame 12 numbers that describe a short
    piece of sound: the coefficients of its LPC cepstrum. The task is to tell who is speaking. The
    original split is kept: 30 utterances of each speaker to train on, 24 to 88 to test on.

    Args:
      split: "train" for 270 utterances, "test" for 370.

    Returns:
      `(utterances, speakers)`: a list of float32 arrays of shape (frames, 12), and the speakers, an
      int32 array of numbers from 0 to 8.

    Raises:
      ValueError: another split.

    From:
      Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through
      regions", Pattern Recognition Letters, 1999; UCI Machine Learning Repository, CC BY 4.0
      (https://doi.org/10.24432/C5NS47). The file is part of the package: nothing is downloaded.

    Example:
      >>> utterances, speakers = japanese_vowels("train")
      >>> len(utterances), utterances[0].shape, int(speakers[0])
      (270, (20, 12), 0)
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is {split!r}; expected "train" or "test".')
    with (
        (files(__package__) / "data" / "japanese_vowels.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        frames, lengths, speakers = (
            arrays[f"{split}_{name}"] for name in ("frames", "lengths", "speakers")
        )
    return np.split(frames, np.cumsum(lengths)[:-1]), speakers


def _check_key(key: jax.Array, call: str) -> None:
    """Raise unless `key` is one random key, new style (`key`) or old style (`PRNGKey`)."""
    if not hasattr(key, "dtype"):
        raise TypeError(
            f"key is {key!r}; expected a random key such as jax.random.key(0), as in {call}."
        )
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(
            f"key is an array of {key.dtype}; expected a random key such as jax.random.key(0), "
            f"as in {call}."
        )
    if key.ndim != (0 if typed else 1):
        raise ValueError(
            f"key holds keys of shape {key.shape if typed else key.shape[:-1]}; expected a single "
            "one. Take one of them, keys[0], or use jax.vmap or jax.lax.scan over them."
        )


def _check_size(name: str, size: int, smallest: int) -> None:
    """Raise unless `size` is a whole number that is large enough."""
    if isinstance(size, bool) or not hasattr(size, "__index__") or isinstance(size, jax.Array):
        raise TypeError(
            f"{name} is {size!r}; expected a whole number known before the function is compiled, "
            "such as 64."
        )
    if size < smallest:
        raise ValueError(f"{name} is {size}; expected at least {smallest}.")
