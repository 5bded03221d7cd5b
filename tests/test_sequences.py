"""Padding, masks and flips, against plain Python lists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.sequences import (
    check_seq_lengths,
    flip_sequences,
    last_valid_step,
    mask_padding,
    pad_sequences,
    sequence_mask,
    unpad_sequences,
)


@st.composite
def batches(draw):
    batch = draw(st.sampled_from([(), (3,), (2, 2)]))
    num_steps = draw(st.sampled_from([0, 1, 4]))
    features = draw(st.sampled_from([(), (2,), (2, 3)]))
    lengths = draw(
        st.lists(
            st.integers(0, num_steps),
            min_size=int(np.prod(batch, dtype=int)),
            max_size=int(np.prod(batch, dtype=int)),
        )
    )
    values = np.arange(np.prod((*batch, num_steps, *features), dtype=int))
    values = values.reshape(*batch, num_steps, *features).astype(np.float32)
    return values, np.array(lengths, int).reshape(batch), draw(st.booleans())


@settings(max_examples=40, deadline=None)
@given(batches())
def test_flip_mask_and_last_step_agree_with_lists(case):
    values, lengths, time_major = case
    num_batch_dims = lengths.ndim
    flipped, last = values.copy(), np.zeros_like(np.moveaxis(values, num_batch_dims, 0)[:1].sum(0))
    mask = np.zeros(values.shape[: num_batch_dims + 1], bool)
    for row in np.ndindex(*lengths.shape):
        n = lengths[row]
        flipped[row][:n] = values[row][:n][::-1]
        mask[row][:n] = True
        if n:
            last[row] = values[row][n - 1]

    def layout(array):
        return np.moveaxis(array, num_batch_dims, 0) if time_major else array

    x = layout(values)
    result = flip_sequences(x, lengths, num_batch_dims, time_major)
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, layout(flipped))
    np.testing.assert_array_equal(flip_sequences(result, lengths, num_batch_dims, time_major), x)
    num_steps = values.shape[num_batch_dims]
    got_mask = sequence_mask(lengths, num_steps, time_major=time_major)
    np.testing.assert_array_equal(got_mask, layout(mask))
    np.testing.assert_array_equal(last_valid_step(x, lengths, num_batch_dims, time_major), last)


def test_flip_without_lengths_is_a_plain_flip():
    x = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(flip_sequences(x, None, 1, False), x[:, ::-1])
    np.testing.assert_array_equal(flip_sequences(x, None, 1, True), x[::-1])
    np.testing.assert_array_equal(flip_sequences(x, None, 0, False), x[::-1])


def test_flip_agrees_with_flax_on_valid_steps():
    from flax.nnx.nn.recurrent import flip_sequences as flax_flip

    x = jax.random.normal(jax.random.key(0), (4, 6, 2))
    lengths = jnp.array([1, 6, 4, 2])
    for time_major in (False, True):
        inputs = jnp.swapaxes(x, 0, 1) if time_major else x
        mask = sequence_mask(lengths, 6, time_major=time_major)
        ours = flip_sequences(inputs, lengths, 1, time_major)
        flax = flax_flip(inputs, lengths, 1, time_major)
        np.testing.assert_array_equal(mask_padding(ours, mask), mask_padding(flax, mask))


def test_flip_leaves_a_row_of_length_zero_alone():
    x = jnp.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(flip_sequences(x, [0, 2], 1, False), [[1, 2, 3], [5, 4, 6]])


def test_gradient_of_a_flip_is_the_flip_back():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    weights = jax.random.normal(jax.random.key(1), (2, 4, 3))
    lengths = [1, 3]
    grad = jax.grad(lambda x: (flip_sequences(x, lengths, 1, False) * weights).sum())(x)
    np.testing.assert_allclose(grad, flip_sequences(weights, lengths, 1, False))


def test_mask_padding_stops_nan_in_values_and_gradients():
    x = jnp.array([[1.0, jnp.nan], [2.0, 3.0]])
    value, grad = jax.value_and_grad(lambda x: mask_padding(x, sequence_mask([1, 2])).sum())(x)
    assert value == 6
    np.testing.assert_array_equal(grad, [[1, 0], [1, 1]])


@pytest.mark.parametrize("time_major", [False, True])
def test_pad_and_unpad_are_inverse(time_major):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 2)) for n in (3, 0, 5)]
    padded, lengths = pad_sequences(rows, time_major=time_major, fill=-1)
    assert padded.shape == ((5, 3, 2) if time_major else (3, 5, 2))
    assert lengths.tolist() == [3, 0, 5] and lengths.dtype == np.int32
    assert (np.moveaxis(padded, 0, 1) if time_major else padded)[1].min() == -1
    for row, back in zip(rows, unpad_sequences(padded, lengths, time_major=time_major)):
        np.testing.assert_array_equal(row, back)
    assert pad_sequences(rows, num_steps=8)[0].shape == (3, 8, 2)


def test_lengths_under_jit_are_clamped_and_lists_are_accepted():
    x = jnp.arange(6.0).reshape(2, 3)
    clamped = jax.jit(lambda x, n: flip_sequences(x, n, 1, False))(x, jnp.array([-4, 9]))
    np.testing.assert_array_equal(clamped, [[0, 1, 2], [5, 4, 3]])
    mask = jax.jit(lambda n: sequence_mask(n, 3))(jnp.array([-4, 9]))
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 1, 1]])
    traced_list = jax.jit(lambda n: sequence_mask([n, 2], 3))(1)
    np.testing.assert_array_equal(traced_list, sequence_mask([1, 2], 3))


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_under_jit_lengths_of_every_dtype_are_what_they_are_outside(dtype):
    with jax.enable_x64(dtype.endswith("64")):
        lengths = jnp.array([0, 1, 100, min(300, jnp.iinfo(dtype).max)], dtype)
        masked = jax.jit(lambda n: sequence_mask(n, 300))
        np.testing.assert_array_equal(masked(lengths), sequence_mask(lengths, 300))
        largest = jnp.array([jnp.iinfo(dtype).max], dtype)
        assert masked(largest).sum() == min(300, jnp.iinfo(dtype).max)


@pytest.mark.parametrize(
    "lengths, error, message",
    [
        ([1.0, 2.0], TypeError, "dtype float.*whole numbers.*astype"),
        ([True, False], TypeError, "dtype bool.*whole numbers"),
        ([1, 2, 3], ValueError, r"shape \(3,\); expected \(2,\), one length for each"),
        ([[1, 2], [1, 2]], ValueError, r"shape \(2, 2\).*mask.sum"),
        ([1, 4], ValueError, "holds 4, but the time axis has length 3.*time_major"),
        ([-1, 2], ValueError, "holds -1; a sequence has at least 0 steps"),
    ],
)
def test_wrong_lengths_are_named(lengths, error, message):
    with pytest.raises(error, match=message):
        check_seq_lengths(lengths, (2,), 3)
    with pytest.raises(error, match=message):
        check_seq_lengths(np.array(lengths), (2,), 3)


def test_other_errors_are_named():
    with pytest.raises(ValueError, match="no sequences"):
        pad_sequences([])
    with pytest.raises(ValueError, match=r"sequence 1 is the number 2; expected an array"):
        pad_sequences([[1], 2])
    with pytest.raises(ValueError, match=r"sequence 1 has shape \(2, 3\), but sequence 0"):
        pad_sequences([np.zeros((2, 2)), np.zeros((2, 3))])
    with pytest.raises(ValueError, match="sequence 0 has 4 steps, more than num_steps=2"):
        pad_sequences([np.zeros(4)], num_steps=2)
    with pytest.raises(ValueError, match="needs num_steps inside jit"):
        jax.jit(sequence_mask)(jnp.array([1, 2]))
    with pytest.raises(ValueError, match="begin with the mask's dimensions"):
        mask_padding(jnp.zeros((3, 2)), sequence_mask([1, 2]))
    with pytest.raises(ValueError, match="expected at least 3 dimensions: 2 for the batch"):
        flip_sequences(jnp.zeros((3, 2)), None, 2, False)


NO_NUMBERS = [None, "abc", {}, [1, [2]]]


@pytest.mark.parametrize("odd", NO_NUMBERS, ids=str)
def test_what_is_no_array_of_numbers_is_named(odd):
    """What `make fuzz` found: each of these ended somewhere in NumPy or JAX."""
    with pytest.raises(TypeError, match=r"seq_lengths .*expected"):
        sequence_mask(odd, 3)
    with pytest.raises((TypeError, ValueError), match="expected"):
        pad_sequences(odd)
    for function in (flip_sequences, last_valid_step):
        with pytest.raises(TypeError, match=r"inputs is .*expected an array of numbers"):
            function(odd, None, 1, False)


def test_sizes_that_are_no_whole_numbers_are_named():
    with pytest.raises(TypeError, match=r"num_steps is 2.5; expected a whole number"):
        sequence_mask([1], 2.5)
    with pytest.raises(TypeError, match="num_steps is '3'; expected a whole number"):
        pad_sequences([np.zeros(2)], num_steps="3")
    with pytest.raises(ValueError, match="num_batch_dims is -1; expected at least 0"):
        flip_sequences(jnp.zeros((2, 2)), None, -1, False)
    with pytest.raises(ValueError, match="expected at least 3 dimensions: 2 for the batch"):
        last_valid_step(jnp.zeros((2, 2)), None, 2)
    with pytest.raises(ValueError, match=r"padded has shape \(3,\); expected \(batch, time"):
        unpad_sequences(np.zeros(3), [1, 1, 1])


def test_a_fill_must_fit_the_dtype_and_the_shape():
    with pytest.raises(ValueError, match=r"fill is -1; expected a number .* uint8 holds"):
        pad_sequences([np.zeros(2, np.uint8)], 3, fill=-1)
    assert pad_sequences([[1], [2, 3]], fill=[7, 8])[0].tolist() == [[1, 8], [2, 3]]
    for fill in (np.nan, 0.5, 2**70):
        with pytest.raises(ValueError, match=rf"fill is {fill}; expected a number .* int64 holds"):
            pad_sequences([np.zeros(2, np.int64)], 3, fill=fill)
    mask = jnp.array([True, False])
    for fill in (np.nan, 0.5, 2**70):
        with pytest.raises(ValueError, match=rf"fill is {fill}; expected a number .* int32 holds"):
            mask_padding(jnp.zeros(2, jnp.int32), mask, fill)
    with pytest.raises(ValueError, match=r"fill is an array .* int32; expected a number .* uint8"):
        mask_padding(jnp.zeros(2, jnp.uint8), mask, jnp.int32(300))
    with pytest.raises(ValueError, match=r"fill is 0.5; expected a number .* bool holds"):
        jax.jit(lambda x: mask_padding(x, mask, 0.5))(mask)
    assert mask_padding(jnp.zeros(2, jnp.int32), mask, 7.0).tolist() == [0, 7]
    assert jax.jit(mask_padding)(jnp.zeros(2, jnp.uint8), mask, 3.0).tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"fill has shape \(3,\); expected a number"):
        mask_padding(jnp.zeros(2), jnp.array([True, False]), jnp.zeros(3))


def test_two_half_precisions_meet_in_float32():
    halves = [np.ones(1, jnp.bfloat16), np.ones(2, np.float16)]
    assert pad_sequences(halves)[0].dtype == np.float32
