"""The functional GRU: equations, gradients, transformations, and errors that teach."""

from __future__ import annotations

import doctest
import os
from importlib import import_module

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unrolled.gru
from unrolled import gru_sequence, gru_step, initialize_gru_params

os.environ.setdefault("KERAS_BACKEND", "jax")

D, H, T = 3, 4, 6


jitted_sequence = jax.jit(gru_sequence)


def random_params(seed=0, input_dim=D, hidden_dim=H, dtype=jnp.float32):
    """Parameters of ordinary size with biases that are not zero, so that nothing can hide."""
    keys = jax.random.split(jax.random.key(seed), 9)
    shapes = initialize_gru_params(keys[0], input_dim, hidden_dim)
    return {
        name: jax.random.normal(key, shapes[name].shape, dtype) for name, key in zip(shapes, keys)
    }


def random_case(seed=0, time=T, input_dim=D, hidden_dim=H):
    keys = jax.random.split(jax.random.key(100 + seed))
    initial_h = jnp.tanh(jax.random.normal(keys[0], (hidden_dim,)))
    inputs = jax.random.normal(keys[1], (time, input_dim))
    return random_params(seed, input_dim, hidden_dim), initial_h, inputs


def oracle(params, h, inputs):
    """The equations in NumPy and float64, one unit at a time where it is easy to get wrong."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    h = np.asarray(h, np.float64)
    outputs = []
    for x in np.asarray(inputs, np.float64):
        z = 1 / (1 + np.exp(-(params["Wz"] @ x + params["Uz"] @ h + params["bz"])))
        r = 1 / (1 + np.exp(-(params["Wr"] @ x + params["Ur"] @ h + params["br"])))
        candidate = np.tanh(params["Wh"] @ x + params["Uh"] @ (r * h) + params["bh"])
        h = np.array([(1 - z[i]) * h[i] + z[i] * candidate[i] for i in range(len(h))])
        outputs.append(h)
    return h, np.reshape(outputs, (len(inputs), len(h)))


def test_docstring_examples_run():
    result = doctest.testmod(unrolled.gru)
    assert result.attempted >= 8 and result.failed == 0


def test_parameters_have_the_documented_names_shapes_and_spread():
    params = initialize_gru_params(jax.random.key(0), 40, 50)
    assert sorted(params) == ["Uh", "Ur", "Uz", "Wh", "Wr", "Wz", "bh", "br", "bz"]
    for gate in "zrh":
        assert params["W" + gate].shape == (50, 40)
        assert params["U" + gate].shape == (50, 50)
        assert params["b" + gate].shape == (50,)
        assert not params["b" + gate].any()
        assert float(params["U" + gate].std()) == pytest.approx(0.01, rel=0.1)
    drawn = [np.asarray(value).ravel()[:5] for name, value in params.items() if name[0] != "b"]
    assert len({tuple(values) for values in drawn}) == 6, "two weights share their random key"


def test_initialisation_follows_key_scale_and_dtype():
    first = initialize_gru_params(jax.random.key(1), D, H)
    again = initialize_gru_params(jax.random.key(1), D, H)
    other = initialize_gru_params(jax.random.key(2), D, H)
    assert all((first[name] == again[name]).all() for name in first)
    assert not (first["Wz"] == other["Wz"]).any()
    wide = initialize_gru_params(jax.random.key(1), D, H, scale=0.5)
    np.testing.assert_allclose(wide["Uh"], 50 * first["Uh"], rtol=1e-6)
    half = initialize_gru_params(jax.random.key(1), D, H, dtype=jnp.bfloat16)
    assert {value.dtype for value in half.values()} == {jnp.dtype(jnp.bfloat16)}


def test_it_is_the_gru_of_the_published_exercise_bit_for_bit():
    """The example that the package began with, its formulas written anew: the same names, shapes,
    draws and results, from an old-style key, compiled and over a batch."""
    key = jax.random.PRNGKey(0)
    params = initialize_gru_params(key, 5, 8)
    draws = iter(jax.random.split(key, 6))
    for gate in "zrh":
        for letter, columns in (("W", 5), ("U", 8)):
            expected = 0.01 * jax.random.normal(next(draws), (8, columns))
            np.testing.assert_array_equal(params[letter + gate], expected)
        np.testing.assert_array_equal(params["b" + gate], np.zeros(8, np.float32))
    assert len(params) == 9 and {value.dtype for value in params.values()} == {jnp.dtype("float32")}

    def affine(gate, x, h):
        return params["W" + gate] @ x + params["U" + gate] @ h + params["b" + gate]

    def step(h, x):
        z, r = (jax.nn.sigmoid(affine(gate, x, h)) for gate in "zr")
        h = (1.0 - z) * h + z * jnp.tanh(affine("h", x, r * h))
        return h, h

    start, inputs = jnp.zeros(8), jax.random.normal(jax.random.split(key)[1], (10, 5))
    expected = jax.lax.scan(step, start, inputs)
    final_state, states = jitted_sequence(params, start, inputs)
    assert final_state.shape == (8,) and states.shape == (10, 8)
    np.testing.assert_array_equal(final_state, states[-1])
    np.testing.assert_allclose(states, expected[1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(gru_step(params, start, inputs[0])[0], expected[1][0], atol=1e-7)
    over_batch = jax.vmap(gru_sequence, in_axes=(None, 0, 0))
    finals, batch = over_batch(params, jnp.zeros((32, 8)), jnp.stack([inputs] * 32))
    assert finals.shape == (32, 8) and batch.shape == (32, 10, 8)
    np.testing.assert_allclose(batch[31], states, rtol=0, atol=1e-7)


DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]


@settings(max_examples=25, deadline=None)
@given(
    time=st.integers(0, 5),
    input_dim=st.integers(1, 4),
    hidden_dim=st.integers(1, 4),
    dtype_of_params=st.sampled_from(DTYPES),
    dtype_of_inputs=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_sequence_equals_the_equations(
    time, input_dim, hidden_dim, dtype_of_params, dtype_of_inputs, seed
):
    rng, sizes = np.random.default_rng(seed), {"hidden_dim": hidden_dim, "input_dim": input_dim}
    with jax.enable_x64(jnp.float64 in (dtype_of_params, dtype_of_inputs)):
        params = {
            name: rng.normal(size=[sizes[dim] for dim in dims], scale=0.5).astype(dtype_of_params)
            for name, dims in unrolled.gru.PARAMETER_SHAPES.items()
        }
        dtype = jnp.promote_types(dtype_of_params, dtype_of_inputs)
        initial_h = rng.uniform(-1, 1, hidden_dim).astype(dtype)
        inputs = rng.normal(size=(time, input_dim)).astype(dtype_of_inputs)
        final_h, outputs_h = jitted_sequence(params, initial_h, inputs)
        assert final_h.dtype == outputs_h.dtype == dtype
        assert outputs_h.shape == (time, hidden_dim)
        # Of 8,000 cases of this size, the worst was wrong by 2.4 times the spacing of numbers at 1.
        tolerance = {"rtol": 0, "atol": 8 * float(jnp.finfo(dtype).eps)}
        expected_h, expected_outputs = oracle(params, initial_h, inputs)
        np.testing.assert_allclose(np.asarray(final_h, float), expected_h, **tolerance)
        np.testing.assert_allclose(np.asarray(outputs_h, float), expected_outputs, **tolerance)


def test_step_returns_the_new_state_twice():
    params, h_prev, inputs = random_case()
    carry, output = gru_step(params, h_prev, inputs[0])
    np.testing.assert_array_equal(carry, output)
    np.testing.assert_allclose(carry, oracle(params, h_prev, inputs[:1])[0], atol=1e-6)


def test_keras_computes_the_same_values_and_gradients():
    keras = import_module("keras")
    params, initial_h, inputs = random_case(3)
    layer = keras.layers.GRU(H, reset_after=False, return_sequences=True)
    layer.build((1, T, D))
    seeds = [variable.value for variable in layer.non_trainable_variables]

    def outputs_by_keras(params, initial_h, inputs):
        def fused(letter):  # Keras orders z, r, h and keeps where our z writes: flip z's sign
            blocks = [-params[f"{letter}z"], params[f"{letter}r"], params[f"{letter}h"]]
            return jnp.concatenate([block.T for block in blocks], axis=-1)

        weights = [fused("W"), fused("U"), fused("b")]
        outputs, _ = layer.stateless_call(
            weights, seeds, inputs[None], initial_state=initial_h[None], training=False
        )
        return outputs[0]

    def outputs_by_us(params, initial_h, inputs):
        return gru_sequence(params, initial_h, inputs)[1]

    def loss(outputs, *case):
        return jnp.sum(jnp.sin(3 * outputs(*case)))

    case = (params, initial_h, inputs)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(outputs_by_us(*case), outputs_by_keras(*case), atol=1e-6)
        ours = jax.grad(lambda *c: loss(outputs_by_us, *c), argnums=(0, 1, 2))(*case)
        theirs = jax.grad(lambda *c: loss(outputs_by_keras, *c), argnums=(0, 1, 2))(*case)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64():
        params, initial_h, inputs = random_case(5)
        case = jax.tree.map(lambda array: array.astype(jnp.float64), (params, initial_h, inputs))
        jax.test_util.check_grads(lambda *c: gru_sequence(*c)[1], case, order=1, modes=["rev"])


def test_jit_vmap_grad_and_scan_over_the_step_agree_with_the_loop():
    params, initial_h, _ = random_case()
    inputs = jax.random.normal(jax.random.key(9), (5, T, D))
    starts = jnp.stack([initial_h * i for i in range(5)])
    batched = jax.jit(jax.vmap(gru_sequence, in_axes=(None, 0, 0)))
    finals, outputs = batched(params, starts, inputs)
    assert finals.shape == (5, H) and outputs.shape == (5, T, H)
    for i in range(5):
        np.testing.assert_allclose(outputs[i], oracle(params, starts[i], inputs[i])[1], atol=2e-6)

    h = initial_h
    for x_t in inputs[0]:
        h, _ = gru_step(params, h, x_t)
    np.testing.assert_allclose(gru_sequence(params, initial_h, inputs[0])[0], h, atol=1e-6)

    def loss(params, inputs):
        return batched(params, starts, inputs)[0].sum()

    whole = jax.grad(loss)(params, inputs)
    parts = jax.vmap(
        jax.grad(lambda p, h, x: gru_sequence(p, h, x)[0].sum()), in_axes=(None, 0, 0)
    )(params, starts, inputs)
    jax.tree.map(lambda w, p: np.testing.assert_allclose(w, p.sum(0), atol=1e-5), whole, parts)


def test_no_steps_leave_the_state_alone():
    params, initial_h, _ = random_case()
    final_h, outputs_h = gru_sequence(params, initial_h, jnp.zeros((0, D)))
    np.testing.assert_array_equal(final_h, initial_h)
    assert outputs_h.shape == (0, H)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_one_dtype_everywhere_comes_back(dtype):
    cast = jax.tree.map(lambda array: array.astype(dtype), random_case())
    final_h, outputs_h = gru_sequence(*cast)
    assert final_h.dtype == outputs_h.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(final_h, np.float32), oracle(*random_case())[0], atol=0.05
    )


def test_narrow_inputs_are_widened_to_the_parameters():
    params, initial_h, inputs = random_case()
    narrow = inputs.astype(jnp.bfloat16)
    expected = gru_sequence(params, initial_h, narrow.astype(jnp.float32))[0]
    np.testing.assert_allclose(gru_sequence(params, initial_h, narrow)[0], expected, atol=1e-2)


def test_numpy_arrays_and_extra_entries_are_accepted():
    params, initial_h, inputs = jax.tree.map(np.asarray, random_case())
    expected = gru_sequence(params, initial_h, inputs)[0]
    extended = {**params, "readout": np.ones(3)}
    np.testing.assert_array_equal(gru_sequence(extended, initial_h, inputs)[0], expected)


def without(name):
    return {key: value for key, value in random_params().items() if key != name}


BAD_STEPS = {
    "missing parameter": (
        lambda p, h, x: (without("br"), h, x),
        ValueError,
        r"params lacks br; .*initialize_gru_params",
    ),
    "no dict": (lambda p, h, x: (list(p.values()), h, x), TypeError, "params is a list"),
    "transposed recurrent weight": (
        lambda p, h, x: ({**p, "Wr": p["Wr"].T}, h, x),
        ValueError,
        r"Wr has shape \(3, 4\); expected \(hidden_dim, input_dim\) = \(4, 3\).*Wr\.T",
    ),
    "weight of another size": (
        lambda p, h, x: ({**p, "Uh": jnp.ones((5, 5))}, h, x),
        ValueError,
        r"Uh has shape \(5, 5\); expected \(hidden_dim, hidden_dim\) = \(4, 4\)",
    ),
    "bias with a batch axis": (
        lambda p, h, x: ({**p, "bz": jnp.zeros((1, 4))}, h, x),
        ValueError,
        r"bz has shape \(1, 4\); expected \(hidden_dim,\)",
    ),
    "bias of another size": (  # the other eight say which size is right
        lambda p, h, x: ({**p, "bz": jnp.zeros(3)}, h, x),
        ValueError,
        r"bz has shape \(3,\); expected \(hidden_dim,\) = \(4,\)\.(\n|$)",
    ),
    "first weight of another size": (
        lambda p, h, x: ({**p, "Wz": jnp.ones((4, 5))}, h, x),
        ValueError,
        r"Wz has shape \(4, 5\); expected \(hidden_dim, input_dim\) = \(4, 3\)\.(\n|$)",
    ),
    "integer weight": (
        lambda p, h, x: ({**p, "Wz": jnp.ones((4, 3), int)}, h, x),
        TypeError,
        r"Wz has dtype int32; .*astype",
    ),
    "wrong hidden size": (
        lambda p, h, x: (p, jnp.zeros(5), x),
        ValueError,
        r"h_prev has shape \(5,\); expected \(hidden_dim,\) = \(4,\)",
    ),
    "wrong input size": (
        lambda p, h, x: (p, h, jnp.zeros(2)),
        ValueError,
        r"x_t has shape \(2,\); expected \(input_dim,\) = \(3,\)",
    ),
    "scalar input": (
        lambda p, h, x: (p, h, jnp.float32(1.0)),
        ValueError,
        r"x_t has shape \(\)",
    ),
    "a batch": (
        lambda p, h, x: (p, jnp.zeros((7, 4)), x),
        ValueError,
        r"h_prev has shape \(7, 4\).*jax\.vmap\(gru_step, in_axes=\(None, 0, 0\)\)",
    ),
    "integer input": (
        lambda p, h, x: (p, h, jnp.ones(3, int)),
        TypeError,
        r"x_t has dtype int32.*x_t\.astype\(jnp\.float32\)",
    ),
    "complex input": (
        lambda p, h, x: (p, h, jnp.ones(3, complex)),
        TypeError,
        "x_t has dtype complex64",
    ),
    "a list": (lambda p, h, x: (p, h, [1.0, 2.0, 3.0]), TypeError, r"x_t is a list.*jnp\.asarray"),
    "None": (lambda p, h, x: (p, None, x), TypeError, "h_prev is a NoneType"),
}


def twice(tree):
    return jax.tree.map(lambda array: jnp.stack([array, array]), tree)


def over_examples(f):
    batched = jax.vmap(f, in_axes=(None, 0, 0))
    return lambda params, h, x: batched(params, twice(h), twice(x))


def over_parameters(f):
    ensemble = jax.vmap(f, in_axes=(0, None, None))
    return lambda params, h, x: ensemble(twice(params), h, x)


# Under vmap an error speaks of what the function sees: one example, one set of parameters.
TRANSFORMS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "vmap": over_examples,
    "vmap over parameters": over_parameters,
    "jit of vmap": lambda f: jax.jit(over_examples(f)),
}
# These take lists, dicts and None apart before the function sees them.
ONLY_PLAIN = {"a list", "no dict", "None"}


def cases(table):
    return [
        (name, transform)
        for name in table
        for transform in TRANSFORMS
        if transform == "plain" or name not in ONLY_PLAIN
    ]


@pytest.mark.parametrize(("name", "transform"), cases(BAD_STEPS))
def test_bad_step_arguments_are_explained(name, transform):
    change, error, message = BAD_STEPS[name]
    params, h_prev, inputs = random_case()
    arguments = change(params, h_prev, inputs[0])
    with pytest.raises(error, match=message):
        TRANSFORMS[transform](gru_step)(*arguments)


BAD_SEQUENCES = {
    "a single step": (lambda p, h, x: (p, h, x[0]), ValueError, r"inputs has shape \(3,\)"),
    "time and features swapped": (
        lambda p, h, x: (p, h, x.T),
        ValueError,
        r"inputs has shape \(3, 6\); expected \(time, input_dim\) = \(time, 3\).*inputs\.T",
    ),
    "a batch": (
        lambda p, h, x: (p, h, jnp.stack([x, x])),
        ValueError,
        r"inputs has shape \(2, 6, 3\).*jax\.vmap\(gru_sequence, in_axes=\(None, 0, 0\)\)",
    ),
    "integer inputs": (
        lambda p, h, x: (p, h, jnp.ones((6, 3), int)),
        TypeError,
        "inputs has dtype int32",
    ),
    "state narrower than the parameters": (
        lambda p, h, x: (p, h.astype(jnp.bfloat16), x),
        TypeError,
        r"initial_h has dtype bfloat16.*a step returns float32.*astype\(jnp\.float32\)",
    ),
    "wrong state": (
        lambda p, h, x: (p, jnp.zeros((1, 4)), x),
        ValueError,
        r"initial_h has shape \(1, 4\)",
    ),
    "wrong input size": (
        lambda p, h, x: (p, h, x[:, :2]),
        ValueError,
        r"inputs has shape \(6, 2\); expected \(time, input_dim\) = \(time, 3\)",
    ),
    "missing parameters": (
        lambda p, h, x: ({"Wz": p["Wz"]}, h, x),
        ValueError,
        r"params lacks Uz, bz, Wr, .*initialize_gru_params",
    ),
    "transposed weight": (
        lambda p, h, x: ({**p, "Wh": p["Wh"].T}, h, x),
        ValueError,
        r"Wh has shape \(3, 4\); expected \(hidden_dim, input_dim\) = \(4, 3\).*Wh\.T",
    ),
    "integer weight": (
        lambda p, h, x: ({**p, "Uh": jnp.ones((4, 4), int)}, h, x),
        TypeError,
        r"Uh has dtype int32; .*astype",
    ),
    "a list": (lambda p, h, x: (p, h, [[1.0] * 3] * 6), TypeError, r"inputs is a list.*asarray"),
}


@pytest.mark.parametrize(("name", "transform"), cases(BAD_SEQUENCES))
def test_bad_sequence_arguments_are_explained(name, transform):
    change, error, message = BAD_SEQUENCES[name]
    with pytest.raises(error, match=message):
        TRANSFORMS[transform](gru_sequence)(*change(*random_case()))


@pytest.mark.parametrize("size", [0, -1])
def test_empty_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"hidden_dim is {size}"):
        initialize_gru_params(jax.random.key(0), 3, size)


@pytest.mark.parametrize("size", [2.0, "3", True, None])
def test_sizes_that_are_no_integers_are_refused(size):
    with pytest.raises(TypeError, match="input_dim is"):
        initialize_gru_params(jax.random.key(0), size, 3)


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match="dtype is int32"):
        initialize_gru_params(jax.random.key(0), 3, 4, dtype=jnp.int32)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_it_lowers_for_every_platform(platform):
    def loss(*case):
        return gru_sequence(*case)[0].sum()

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=[platform])(*random_case())
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("key", [0, None, 2.5, "key", np.zeros(3, np.uint32), np.zeros(2)])
def test_something_else_than_a_key_is_named(key):
    with pytest.raises(TypeError, match=r"key is .*; expected one random key, jax.random.key\(0\)"):
        initialize_gru_params(key, 2, 3)


def test_old_and_new_keys_are_accepted():
    for key in (jax.random.key(1), jax.random.PRNGKey(1)):
        assert len(jax.jit(lambda key: initialize_gru_params(key, 2, 3))(key)) == 9


def test_other_arguments_of_the_initialisation_are_named():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="dtype is 'banana'"):
        initialize_gru_params(key, 2, 3, dtype="banana")
    with pytest.raises(TypeError, match="scale is None; expected one number"):
        initialize_gru_params(key, 2, 3, scale=None)
    with pytest.raises(TypeError, match="expected a whole number of features"):
        initialize_gru_params(key, np.array([2]), 3)
