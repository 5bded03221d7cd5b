"""`from unrolled import ...` in place of `from flax.nnx import ...`: nothing else changes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn import recurrent as flax_recurrent

import unrolled
from unrolled.sequences import mask_padding, sequence_mask

CELLS = ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"]
CLASSES = [*CELLS, "RNN", "Bidirectional", "RNNBase", "RNNCellBase"]
EXTRAS = {"GRUCell": {"reset_after": True}, "LSTMCell": {"forget_bias": 0.0}}
EXTRAS["OptimizedLSTMCell"] = EXTRAS["LSTMCell"]


def of_flax(name):
    return getattr(flax_recurrent, name)


def same_default(ours, flax, name):
    if ours is flax or ours == flax:
        return True
    if name.endswith("_init"):  # an initialiser: it draws the same bits
        key, shape = jax.random.key(0), (4, 12)
        return bool((ours(key, shape, jnp.float32) == flax(key, shape, jnp.float32)).all())
    if name == "merge_fn":
        a, b = jnp.zeros((2, 1)), jnp.ones((2, 2))
        return bool((ours(a, b) == flax(a, b)).all())
    return False


def positional(parameters):
    return [name for name, p in parameters.items() if p.kind != inspect.Parameter.KEYWORD_ONLY]


METHODS = [
    (name, method)
    for name in CLASSES
    for method in ("__init__", "__call__", "initialize_carry")
    if hasattr(of_flax(name), method) and not (name.endswith("Base") and method == "__init__")
]


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_signatures_are_those_of_flax(name, method):
    ours = inspect.signature(getattr(getattr(unrolled, name), method)).parameters
    flax = inspect.signature(getattr(of_flax(name), method)).parameters
    shared = [p for p in ours if p not in EXTRAS.get(name, {})]
    if name in ("RNN", "Bidirectional"):  # Flax orders the keyword-only ones either way
        assert set(shared) == set(flax)
        assert positional(ours) == positional(flax) != []
    else:
        assert shared == list(flax)
    for parameter in flax.values():
        mine = ours[parameter.name]
        assert mine.kind == parameter.kind, parameter.name
        assert same_default(mine.default, parameter.default, parameter.name), parameter.name
    for extra in set(ours) - set(flax):
        assert ours[extra].kind == inspect.Parameter.KEYWORD_ONLY
        assert ours[extra].default == EXTRAS[name][extra]


@pytest.mark.parametrize("name", ["flip_sequences", "modified_orthogonal"])
def test_functions_have_the_signatures_of_flax(name):
    ours = inspect.signature(getattr(unrolled, name)).parameters
    flax = inspect.signature(of_flax(name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in flax.values()
    ]


def both(name, *args, **options):
    """The module of this package and that of Flax, made in the same way."""
    return (
        getattr(unrolled, name)(*args, rngs=nnx.Rngs(7), **options),
        of_flax(name)(*args, rngs=nnx.Rngs(7), **options),
    )


def flat(module):
    return dict(nnx.to_flat_state(nnx.state(module)))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(name, x64):
    with jax.enable_x64(x64):
        for bias_init in (nnx.initializers.zeros_init(), nnx.initializers.normal(0.5)):
            weights = []
            for library in (unrolled, flax_recurrent):
                rngs = nnx.Rngs(3)
                cell = getattr(library, name)(3, 4, bias_init=bias_init, rngs=rngs)
                after = nnx.Linear(4, 2, rngs=rngs)  # draws what it would draw after Flax's cell
                weights.append(flat(cell) | {("after",): after.kernel})
            ours, flax = weights
            assert set(ours) - set(flax) <= {("b_hn",)} and set(flax) <= set(ours)
            for path, value in flax.items():
                assert ours[path].dtype == value.dtype
                np.testing.assert_array_equal(ours[path][...], value[...], err_msg=str(path))


@pytest.mark.filterwarnings("ignore:keep_rngs argument is deprecated")
@pytest.mark.parametrize("name", CELLS)
def test_random_streams_that_are_kept_have_the_paths_and_keys_of_flax(name):
    ours, flax = map(flat, both(name, 3, 4, keep_rngs=True))
    kept = {path for path in flax if path[0] == "rngs"}
    assert kept and set(ours) - set(flax) <= {("b_hn",)} and set(flax) <= set(ours)
    for path in kept:
        key, expected = ours[path][...], flax[path][...]
        assert type(ours[path]) is type(flax[path]) and key.dtype == expected.dtype
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key, expected = jax.random.key_data(key), jax.random.key_data(expected)
        np.testing.assert_array_equal(key, expected)


@pytest.mark.parametrize("name", CELLS)
def test_attributes_of_flax_are_there(name):
    ours, flax = both(name, 3, 4)
    assert set(vars(flax)) <= set(vars(ours))
    for attribute in ("in_features", "hidden_features", "dtype", "param_dtype", "activation_fn"):
        assert getattr(ours, attribute) == getattr(flax, attribute)
    assert ours.num_feature_axes == flax.num_feature_axes == 1
    our_rnn, flax_rnn = unrolled.RNN(ours), nnx.RNN(flax)
    assert set(vars(flax_rnn)) <= set(vars(our_rnn))
    assert our_rnn.state_axes == flax_rnn.state_axes
    pairs = (
        unrolled.Bidirectional(our_rnn, our_rnn.__class__(ours)),
        nnx.Bidirectional(flax_rnn, nnx.RNN(flax)),
    )
    assert set(vars(pairs[1])) <= set(vars(pairs[0]))


@pytest.mark.parametrize("name", CELLS)
def test_weights_move_by_path_in_both_directions(name):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    random = {"bias_init": nnx.initializers.normal(0.5)}
    flax = nnx.RNN(both(name, 3, 4, **random)[1])
    ours = unrolled.RNN(both(name, 3, 4)[0])
    nnx.update(ours, nnx.state(flax))
    np.testing.assert_allclose(ours(x), flax(x), atol=1e-6)
    fresh = nnx.RNN(of_flax(name)(3, 4, rngs=nnx.Rngs(1)))
    nnx.update(fresh, nnx.state(ours))
    np.testing.assert_allclose(fresh(x), flax(x), atol=1e-6)
    # Either library's RNN runs the other's cell.
    np.testing.assert_allclose(unrolled.RNN(flax.cell)(x), flax(x), atol=1e-6)
    np.testing.assert_allclose(nnx.RNN(ours.cell)(x), flax(x), atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_of_flax_at_valid_steps(name):
    ours, flax = both(name, 3, 4)
    lengths = jnp.array([5, 2, 3])
    mask = sequence_mask(lengths, 5)
    # The loop in test_layers.py goes through all eight; here each option is on and off once.
    for time_major, reverse, keep_order in [(False, True, False), (True, True, True)]:
        options = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
        x = jax.random.normal(jax.random.key(0), (3, 5, 3))
        x = jnp.swapaxes(x, 0, 1) if time_major else x

        def loss(rnn, x):
            carry, y = rnn(x, seq_lengths=lengths, return_carry=True)
            y = mask_padding(jnp.swapaxes(y, 0, 1) if time_major else y, mask)  # noqa: B023
            last = sum((part**2).sum() for part in jax.tree.leaves(carry))
            return (y**2).sum() + last, y

        run = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (our_loss, our_y), (our_grad, our_grad_x) = run(unrolled.RNN(ours, **options), x)
        (flax_loss, flax_y), (grad, grad_x) = run(nnx.RNN(flax, **options), x)
        np.testing.assert_allclose(our_y, flax_y, atol=1e-6)
        np.testing.assert_allclose(our_loss, flax_loss, rtol=1e-5)
        np.testing.assert_allclose(our_grad_x, grad_x, atol=1e-5)
        our_grad = dict(nnx.to_flat_state(our_grad))
        for path, value in nnx.to_flat_state(grad):
            np.testing.assert_allclose(our_grad[path][...], value[...], atol=2e-5)


def test_bidirectional_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))

    def make(library, **options):
        rngs = nnx.Rngs(0)
        rnns = [library.RNN(library.OptimizedLSTMCell(3, 4, rngs=rngs)) for _ in range(2)]
        return library.Bidirectional(*rnns, **options)

    ours, flax = make(unrolled, return_carry=True), make(nnx, return_carry=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours(x), flax(x))
    merged = make(unrolled, merge_fn=jnp.maximum)(x)
    np.testing.assert_allclose(merged, make(nnx, merge_fn=jnp.maximum)(x), atol=1e-6)


def test_reverse_turns_a_bidirectional_layer_round_and_does_nothing_in_flax():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))

    def make(library):
        rngs = nnx.Rngs(0)
        return library.Bidirectional(*[library.RNN(library.GRUCell(3, 4, rngs=rngs)) for _ in "ab"])

    ours, flax = make(unrolled), make(nnx)
    np.testing.assert_array_equal(flax(x, reverse=True), flax(x))
    np.testing.assert_allclose(ours(x, reverse=True), flax(x[:, ::-1]), atol=1e-6)


def test_a_call_draws_its_random_carry_from_the_stream_that_it_was_given():
    """Flax forks an `Rngs`, and not a stream, before the cell draws from it."""
    random = nnx.initializers.normal(1.0)
    ours, flax = both("GRUCell", 3, 4, carry_init=random)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))

    def stream():
        return nnx.Rngs(carry=5).carry

    given = unrolled.RNN(ours)(x, rngs=stream())
    np.testing.assert_array_equal(unrolled.RNN(ours)(x, rngs=nnx.Rngs(carry=5)), given)
    np.testing.assert_allclose(nnx.RNN(flax)(x, rngs=stream()), given, atol=1e-6)
    forked = nnx.RNN(flax)(x, rngs=nnx.Rngs(carry=5))
    assert np.abs(forked - given).max() > 0.01
    np.testing.assert_allclose(unrolled.RNN(ours)(x, rngs=stream().fork()), forked, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_random_carries_are_those_of_flax(name):
    ours, flax = both(name, 3, 4)
    init = nnx.initializers.normal(1.0)
    for make_rngs in (lambda: nnx.Rngs(carry=5), lambda: nnx.RngStream(5, tag="carry")):
        jax.tree.map(
            np.testing.assert_array_equal,
            ours.initialize_carry((2, 3), make_rngs(), init),
            flax.initialize_carry((2, 3), make_rngs(), init),
        )


def test_recurrent_dropout_draws_the_masks_of_flax():
    def make(base):
        class Dropping(base):
            def __init__(self, *args, rngs):
                super().__init__(*args, rngs=rngs)
                self.dropout = nnx.Dropout(0.5, rng_collection="recurrent", rngs=rngs)

            def __call__(self, carry, inputs):
                return super().__call__(self.dropout(carry), inputs)

        return Dropping(3, 4, rngs=nnx.Rngs(0, recurrent=1))

    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    for broadcast in (None, "recurrent"):
        ours = unrolled.RNN(make(unrolled.GRUCell), broadcast_rngs=broadcast)
        flax = nnx.RNN(make(nnx.GRUCell), broadcast_rngs=broadcast)
        for _ in range(2):  # the second call draws anew
            np.testing.assert_allclose(ours(x), flax(x), atol=1e-6)


def test_sharding_metadata_arrives():
    auto = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((1,), ("units",), axis_types=auto)):
        cell = unrolled.GRUCell(
            3,
            4,
            rngs=nnx.Rngs(0),
            kernel_metadata={"out_sharding": (None, "units")},
            bias_metadata={"out_sharding": ("units",)},
        )
        assert unrolled.RNN(cell)(jnp.ones((2, 5, 3))).shape == (2, 5, 4)
    assert cell.dense_i.kernel.get_metadata()["out_sharding"] == (None, "units")
    assert cell.b_hn.get_metadata()["out_sharding"] == ("units",)
    assert "out_sharding" not in cell.dense_h.kernel.get_metadata()


def test_the_page_of_differences_names_tests_that_exist():
    root = Path(__file__).resolve().parents[1]
    page = (root / "book/flax.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    entries = page.count("\n- **")
    assert entries > 20 and len(named) >= entries
    for file, test in named:
        assert f"def {test}(" in (root / "tests" / file).read_text(encoding="utf-8"), test
