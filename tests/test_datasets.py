"""The generated data sets: what a batch holds, how often, and how a wrong call is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.lab.datasets import adding_problem, japanese_vowels


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), sizes=st.sampled_from([(1, 2), (5, 3), (3, 50)]))
def test_adding_problem_marks_one_value_in_each_half_and_sums_them(seed, sizes):
    batch_size, length = sizes
    inputs, targets = adding_problem(jax.random.key(seed), batch_size, length)
    assert inputs.shape == (batch_size, length, 2)
    assert targets.shape == (batch_size,)
    assert inputs.dtype == targets.dtype == jnp.float32
    values, markers = np.asarray(inputs[..., 0]), np.asarray(inputs[..., 1])
    assert ((values >= 0) & (values < 1)).all()
    assert set(np.unique(markers)) <= {0.0, 1.0}
    assert (markers[:, : length // 2].sum(axis=1) == 1).all()
    assert (markers[:, length // 2 :].sum(axis=1) == 1).all()
    for row, marked, target in zip(values, markers == 1, targets):
        np.testing.assert_allclose(row[marked].sum(), target, rtol=1e-6)


def test_adding_problem_is_uniform_over_values_and_places():
    length = 10
    inputs, targets = adding_problem(jax.random.key(0), 20_000, length)
    values, markers = np.asarray(inputs[..., 0]), np.asarray(inputs[..., 1])
    np.testing.assert_allclose(values.mean(), 1 / 2, atol=0.005)
    np.testing.assert_allclose(values.var(), 1 / 12, atol=0.002)
    np.testing.assert_allclose(markers.mean(axis=0), np.full(length, 2 / length), atol=0.015)
    np.testing.assert_allclose(np.mean((np.asarray(targets) - 1) ** 2), 1 / 6, atol=0.005)
    # the first place says nothing about the second
    first, second = markers[:, :5].argmax(axis=1), markers[:, 5:].argmax(axis=1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_adding_problem_depends_on_the_key_alone_also_compiled_and_scanned():
    key = jax.random.key(3)
    inputs, targets = adding_problem(key, 4, 20)
    compiled = jax.jit(adding_problem, static_argnums=(1, 2))
    for again in (adding_problem(key, 4, 20), compiled(key, 4, 20)):
        np.testing.assert_array_equal(inputs, again[0])
        np.testing.assert_allclose(targets, again[1], rtol=1e-6)
    keys = jax.random.split(key, 3)
    _, (scanned, _) = jax.lax.scan(lambda _, k: (None, adding_problem(k, 4, 20)), None, keys)
    np.testing.assert_array_equal(scanned[1], adding_problem(keys[1], 4, 20)[0])
    assert not np.array_equal(scanned[0], scanned[1])


def test_adding_problem_takes_old_keys_and_other_floats():
    inputs, targets = adding_problem(jax.random.PRNGKey(0), 3, 8, dtype=jnp.bfloat16)
    assert inputs.dtype == targets.dtype == jnp.bfloat16
    assert (inputs[..., 1].sum(axis=1) == 2).all()


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 4, 20), {}, TypeError, r"key is 0; expected a random key such as jax\.random\.key"),
        ((jnp.zeros(2), 4, 20), {}, TypeError, "key is an array of float32"),
        ((jax.random.split(KEY, 3), 4, 20), {}, ValueError, r"keys of shape \(3,\).*keys\[0\]"),
        ((jax.random.split(jax.random.PRNGKey(0)), 4, 20), {}, ValueError, r"keys of shape \(2,\)"),
        ((KEY, 4.0, 20), {}, TypeError, r"batch_size is 4\.0; expected a whole number"),
        ((KEY, True, 20), {}, TypeError, "batch_size is True"),
        ((KEY, 0, 20), {}, ValueError, "batch_size is 0; expected at least 1"),
        ((KEY, 4, 1), {}, ValueError, "length is 1; expected at least 2"),
        ((KEY, 4, "20"), {}, TypeError, "length is '20'"),
        ((KEY, 4, 20), {"dtype": jnp.int32}, TypeError, "dtype is int32; the values are real"),
    ],
)
def test_a_wrong_call_says_what_was_given_and_what_was_expected(arguments, options, error, message):
    with pytest.raises(error, match=message):
        adding_problem(*arguments, **options)


def test_a_size_that_is_traced_is_told_to_be_fixed():
    with pytest.raises(TypeError, match="known before the function is compiled"):
        jax.jit(lambda length: adding_problem(KEY, 4, length))(20)


@pytest.mark.parametrize(
    "split, counts, lengths, frames",
    [
        ("train", [30] * 9, (7, 26), 4274),
        ("test", [31, 35, 88, 44, 29, 24, 40, 50, 29], (7, 29), 5687),
    ],
)
def test_japanese_vowels_are_those_of_the_original_split(split, counts, lengths, frames):
    utterances, speakers = japanese_vowels(split)
    assert len(utterances) == len(speakers) == sum(counts)
    assert np.bincount(speakers).tolist() == counts
    assert speakers.dtype == np.int32 and (np.diff(speakers) >= 0).all()
    assert {utterance.dtype for utterance in utterances} == {np.dtype("float32")}
    assert {utterance.shape[1] for utterance in utterances} == {12}
    steps = [len(utterance) for utterance in utterances]
    assert (min(steps), max(steps), sum(steps)) == (*lengths, frames)


def test_japanese_vowels_begin_with_the_published_numbers():
    utterances, _ = japanese_vowels("train")
    np.testing.assert_allclose(utterances[0][0, :3], [1.860936, -0.207383, 0.261557], rtol=1e-6)
    assert not np.shares_memory(utterances[0], japanese_vowels("train")[0][0])


def test_japanese_vowels_knows_two_splits_only():
    with pytest.raises(ValueError, match='expected "train" or "test"'):
        japanese_vowels("validation")
