"""The cells: one step against the equations in float64, initialisers, dtypes, errors."""

from __future__ import annotations

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import oracle
from unrolled.cells import (
    GRUCell,
    LearnedCarry,
    LSTMCell,
    OptimizedLSTMCell,
    SimpleCell,
    modified_orthogonal,
    orthogonal_in_any_dtype,
    orthogonal_per_gate,
)
from unrolled.layers import RNN

IN, HIDDEN = 3, 4
CELLS = [SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell]
RANDOM_BIAS = nnx.initializers.normal(0.5)


def make(kind, **options):
    return kind(IN, HIDDEN, bias_init=RANDOM_BIAS, rngs=nnx.Rngs(0), **options)


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def random_carry(cell, *batch):
    parts = tuple(draw(*batch, HIDDEN, seed=5 + i) for i, _ in enumerate(cell.carry_names))
    return parts if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", [*CELLS, "reset before"])
def test_one_step_is_what_the_equations_say(kind, batch):
    cell = make(GRUCell, reset_after=False) if kind == "reset before" else make(kind)
    carry, x = random_carry(cell, *batch), draw(*batch, IN)
    new_carry, output = cell(carry, x)
    parts = carry if isinstance(carry, tuple) else (carry,)
    expected_carry, expected = oracle.run(cell, x[..., None, :], carry=parts)
    np.testing.assert_allclose(output, expected[..., 0, :], atol=1e-6)
    new_parts = new_carry if isinstance(new_carry, tuple) else (new_carry,)
    for part, want in zip(new_parts, expected_carry):
        np.testing.assert_allclose(part, want, atol=1e-6)
    np.testing.assert_array_equal(output, new_parts[-1])


def test_residual_adds_the_last_state_before_the_activation():
    plain, residual = make(SimpleCell), make(SimpleCell, residual=True)
    h, x = draw(2, HIDDEN), draw(2, IN, seed=1)
    _, expected = plain(h, x)
    np.testing.assert_allclose(residual(h, x)[1], np.tanh(np.arctanh(expected) + h), atol=1e-5)


def test_reset_before_and_after_differ_and_agree_where_they_must():
    after, before = make(GRUCell), make(GRUCell, reset_after=False)
    nnx.update(after, {"b_hn": nnx.Param(jnp.zeros(HIDDEN))})
    h, x = draw(2, HIDDEN), draw(2, IN, seed=1)
    assert before.b_hn is None
    assert np.abs(after(h, x)[1] - before(h, x)[1]).max() > 1e-2
    np.testing.assert_allclose(after(0 * h, x)[1], before(0 * h, x)[1], atol=1e-6)
    diagonal = jnp.concatenate([after.dense_h.kernel[...][:, : 2 * HIDDEN], jnp.eye(HIDDEN)], 1)
    after.dense_h.kernel[...] = before.dense_h.kernel[...] = diagonal
    np.testing.assert_allclose(after(h, x)[1], before(h, x)[1], atol=1e-6)


def test_the_gru_has_the_bias_of_its_equation_and_trains_it():
    cell = make(GRUCell)
    assert cell.b_hn.shape == (HIDDEN,) and np.any(cell.b_hn[...])
    grads = nnx.grad(lambda cell: (cell(draw(HIDDEN), draw(IN))[1] ** 2).sum())(cell)
    assert np.any(grads["b_hn"][...])
    assert not np.any(GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0)).b_hn[...])


def test_the_forget_bias_is_added_to_the_forget_gate_only():
    for kind in (LSTMCell, OptimizedLSTMCell):
        plain, with_bias = make(kind), make(kind, forget_bias=1.5)
        difference = jax.tree.map(
            lambda a, b: b - a, oracle.weights(plain), oracle.weights(with_bias)
        )
        total = sum(np.abs(array).sum() for array in difference.values())
        forget = (
            difference["hf.bias"]
            if kind is LSTMCell
            else difference["dense_h.bias"][HIDDEN : 2 * HIDDEN]
        )
        np.testing.assert_allclose(forget, 1.5)
        np.testing.assert_allclose(total, 1.5 * HIDDEN, rtol=1e-6)


@pytest.mark.parametrize("kind", [LSTMCell, OptimizedLSTMCell])
def test_a_forget_bias_is_one_finite_number(kind):
    for fine in (1, np.float32(1.0), jnp.float32(1.0)):
        same = make(kind, forget_bias=fine), make(kind, forget_bias=1.0)
        jax.tree.map(np.testing.assert_array_equal, *map(oracle.weights, same))
    for odd in ("1", None, True, [1.0], jnp.ones(HIDDEN)):
        with pytest.raises(TypeError, match=r"Cell: forget_bias is .*; expected a finite number"):
            make(kind, forget_bias=odd)
    with pytest.raises(ValueError, match="forget_bias is nan; expected a finite number"):
        make(kind, forget_bias=float("nan"))


def test_orthogonal_initialisers():
    key, eye = jax.random.key(0), np.eye(HIDDEN)
    fused = orthogonal_in_any_dtype(key, (HIDDEN, 3 * HIDDEN))
    np.testing.assert_array_equal(fused, nnx.initializers.orthogonal()(key, fused.shape))
    np.testing.assert_allclose(fused @ fused.T, eye, atol=1e-6)
    per_gate = orthogonal_per_gate(key, (HIDDEN, 3 * HIDDEN))
    for of_whole, own in zip(np.split(fused, 3, 1), np.split(per_gate, 3, 1)):
        np.testing.assert_allclose(own @ own.T, eye, atol=1e-6)
        assert np.abs(of_whole @ of_whole.T - eye).max() > 0.1
    assert len({float(block[0, 0]) for block in np.split(per_gate, 3, 1)}) == 3
    for init in (modified_orthogonal, orthogonal_in_any_dtype, orthogonal_per_gate):
        assert init(key, (4, 8), jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"\(4, 7\); expected \(hidden, gates \* hidden\)"):
        orthogonal_per_gate(key, (4, 7))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", CELLS)
def test_half_precision_parameters(kind, dtype):
    cell = kind(IN, HIDDEN, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(cell))} == {jnp.dtype(dtype)}
    carry, output = cell(cell.initialize_carry((2, IN)), draw(2, IN))
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, output))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("kind", [*CELLS, "reset before"])
def test_mixed_precision_computes_low_and_carries_high(kind):
    options = {"dtype": jnp.bfloat16, "reset_after": False} if kind == "reset before" else {}
    kind = GRUCell if kind == "reset before" else kind
    cell = make(kind, **({"dtype": jnp.bfloat16} | options))
    carry, output = cell(cell.initialize_carry((2, IN)), draw(2, IN))
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
    expected = make(kind, **{k: v for k, v in options.items() if k != "dtype"})
    _, exact = expected(expected.initialize_carry((2, IN)), draw(2, IN))
    np.testing.assert_allclose(output.astype(jnp.float32), exact, atol=3e-2)


def test_initial_carries():
    cell = make(LSTMCell)
    ones, normal = nnx.initializers.ones_init(), nnx.initializers.normal(1.0)
    for carry in (cell.initialize_carry((2, IN)), cell.initialize_carry((2, IN), None, None)):
        assert all(part.shape == (2, HIDDEN) and not np.any(part) for part in carry)
    zeros = cell.initialize_carry((2, IN), carry_init=nnx.initializers.zeros_init())
    assert not np.any(zeros[0])
    assert np.all(cell.initialize_carry((IN,), carry_init=ones)[1] == 1)
    c, h = cell.initialize_carry((2, IN), nnx.Rngs(0), normal)
    assert np.any(c != h)
    own = make(GRUCell, carry_init=normal, keep_rngs=True)
    first, second = own.initialize_carry((2, IN)), own.initialize_carry((2, IN))
    assert np.any(first != second)
    assert np.all(own.initialize_carry((2, IN), carry_init=ones) == 1)
    with pytest.raises(ValueError, match=r"LSTMCell: .* needs a random key: pass rngs=nnx.Rngs"):
        cell.initialize_carry((2, IN), carry_init=normal)


def test_a_learned_carry_for_a_cell_of_ones_own():
    class Bare(nnx.Module):
        num_feature_axes = 1

        def __call__(self, carry, inputs):
            return carry + inputs, carry

        def initialize_carry(self, input_shape, rngs=None):
            return jnp.zeros(input_shape)

    cell = LearnedCarry(Bare(), input_shape=(2,))
    assert cell.initialize_carry((5, 2)).shape == (5, 2) and cell.num_feature_axes == 1


def test_options_reach_every_parameter():
    names = {"kernel_metadata": "k", "recurrent_kernel_metadata": "r", "bias_metadata": "b"}
    for kind in CELLS:
        cell = make(kind, **{name: {"mark": mark} for name, mark in names.items()})
        for path, param in nnx.to_flat_state(nnx.state(cell, nnx.Param)):
            layer, leaf = path[0], path[-1]
            bias = leaf in ("bias", "b_hn")
            wanted = "b" if bias else "r" if layer.startswith(("h", "dense_h")) else "k"
            assert param.get_metadata()["mark"] == wanted, path


def test_a_promotion_of_ones_own_is_used():
    def in_half(arrays, *, dtype):
        return tuple(None if a is None else jnp.asarray(a, jnp.bfloat16) for a in arrays)

    for options in ({}, {"reset_after": False}):
        cell = make(GRUCell, promote_dtype=in_half, **options)
        hidden = jnp.zeros((2, HIDDEN), jnp.bfloat16)
        assert cell(hidden, draw(2, IN))[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", CELLS)
def test_errors_at_a_step(kind):
    cell = make(kind)
    name, carry = kind.__name__, cell.initialize_carry((2, IN))
    with pytest.raises(ValueError, match=rf"{name}: inputs .* \(2, 5\); expected \(\*batch, 3\)"):
        cell(carry, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=rf"{name}: inputs of one step have shape \(\)"):
        cell(carry, 1.0)
    wrong = jax.tree.map(lambda part: part[:, :2], carry)
    with pytest.raises(ValueError, match=rf"{name}: .* \(2, 2\); expected \(2, 4\).*initialize"):
        cell(wrong, jnp.zeros((2, IN)))
    one_unit = jax.tree.map(lambda part: part[:, :1], carry)
    with pytest.raises(ValueError, match=rf"{name}: .* \(2, 1\); expected \(2, 4\)"):
        cell(one_unit, jnp.zeros((2, IN)))


@pytest.mark.parametrize("kind", [LSTMCell, OptimizedLSTMCell])
def test_a_carry_with_names_must_have_those_of_the_cell(kind):
    cell, x = make(kind), jnp.ones((2, IN))
    c, h = jnp.ones((2, HIDDEN)), jnp.zeros((2, HIDDEN))
    expected = cell((c, h), x)
    same = namedtuple("State", ["c", "h"])(c, h)
    assert (cell(same, x)[1] == expected[1]).all()
    other = namedtuple("State", ["hidden", "cell"])(h, c)
    expected = r"the carry is a State with the names hidden, cell; expected the pair \(c, h\)"
    with pytest.raises(ValueError, match=expected):
        cell(other, x)
    with pytest.raises(ValueError, match=expected):
        RNN(cell)(x[:, None], initial_carry=other)


@pytest.mark.parametrize("kind", CELLS)
def test_errors_when_a_cell_is_made(kind):
    with pytest.raises(TypeError, match=r"rngs is 0; expected the source of the initial weights"):
        kind(IN, HIDDEN, rngs=0)
    with pytest.raises(TypeError, match=r"required keyword-only argument: 'rngs'"):
        kind(IN, HIDDEN)
    with pytest.raises(TypeError, match=r"hidden_features is 4.0; expected a whole number"):
        kind(IN, 4.0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"in_features is 0; expected at least 1"):
        kind(0, HIDDEN, rngs=nnx.Rngs(0))


def test_what_fuzzing_found_is_named():
    key, draws = jax.random.key(0), (modified_orthogonal, orthogonal_per_gate)
    for draw in draws:
        with pytest.raises(TypeError, match="expected one random key"):
            draw(0, (2, 2))
        with pytest.raises(ValueError, match="expected two sizes at least"):
            draw(key, (2,))
        with pytest.raises(ValueError, match="a size of shape is 0; expected at least 1"):
            draw(key, (0, 2))
        with pytest.raises(TypeError, match="dtype is 'int32'; expected a floating dtype"):
            draw(key, (2, 2), "int32")
    with pytest.raises(TypeError, match="GRUCell: param_dtype is 'int32'; expected a floating"):
        GRUCell(2, 3, param_dtype="int32", rngs=nnx.Rngs(0))
    cell = SimpleCell(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"SimpleCell: inputs is \[1, \[2\]\]; expected an array"):
        cell(jnp.zeros(3), [1, [2]])
    for odd in (None, [cell], SimpleCell):
        with pytest.raises(TypeError, match=r"LearnedCarry got .*; expected a cell"):
            LearnedCarry(odd)


INITIALIZER = r"expected a function of \(key, shape, dtype\), such as nnx.initializers.zeros_init"


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("kernel_init", 3, f"is 3; {INITIALIZER}"),
        ("recurrent_kernel_init", "orthogonal", f"is 'orthogonal'; {INITIALIZER}"),
        ("bias_init", "zeros", f"is 'zeros'; {INITIALIZER}"),
        ("carry_init", "zeros", f"is 'zeros'; {INITIALIZER}"),
        ("bias_init", nnx.initializers.zeros_init, rf"takes \(\); {INITIALIZER}"),
        ("kernel_init", lambda key, shape: 0, rf"takes \(key, shape\); {INITIALIZER}"),
        (
            "recurrent_kernel_init",
            nnx.initializers.lecun_normal,
            r"returned a function; expected an array of shape .* Are parentheses missing",
        ),
        ("promote_dtype", 3, r"is 3; expected a function of \(arrays, dtype\), such as flax"),
        ("activation_fn", "tanh", r"is 'tanh'; expected a function of \(array\), such as nnx.tanh"),
        ("gate_fn", "sigmoid", r"is 'sigmoid'; expected a function of .*, such as nnx.sigmoid"),
        ("kernel_metadata", 3, "is 3; expected a dict from names"),
        ("recurrent_kernel_metadata", {3: 4}, "is {3: 4}; expected a dict from names"),
        ("bias_metadata", "model", "is 'model'; expected a dict from names"),
    ],
    ids=lambda value: value if str(value).endswith(("_init", "_fn", "dtype", "metadata")) else "",
)
def test_an_option_of_the_wrong_kind_is_named(kind, option, value, message):
    if (kind, option) == (SimpleCell, "gate_fn"):
        return
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: {option} {message}"):
        kind(IN, HIDDEN, rngs=nnx.Rngs(0), **{option: value})


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("option", ["kernel_init", "recurrent_kernel_init", "bias_init"])
def test_an_initialiser_that_draws_another_shape_is_named(kind, option):
    message = rf"^{kind.__name__}: {option} returned an array of shape \(5,\); expected \(.*, the"
    with pytest.raises(ValueError, match=message):
        kind(IN, HIDDEN, rngs=nnx.Rngs(0), **{option: lambda *_: jnp.ones(5)})


def test_an_initialiser_is_called_for_each_of_the_biases():
    def one_length(key, shape, dtype):
        return jnp.ones(3 * HIDDEN, dtype)

    with pytest.raises(ValueError, match=r"bias_init .* \(12,\); expected \(4,\), the shape that"):
        GRUCell(IN, HIDDEN, bias_init=one_length, rngs=nnx.Rngs(0))
    assert GRUCell(IN, HIDDEN, bias_init=one_length, reset_after=False, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="of its own"):
        GRUCell(IN, HIDDEN, bias_init=complains, rngs=nnx.Rngs(0))


def complains(key, shape, dtype):
    raise TypeError("of its own")


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (("a", 2), TypeError, r"\('a', 2\); expected a tuple of whole numbers"),
        ("ab", TypeError, "'ab'; expected a tuple of whole numbers"),
        (b"ab", TypeError, "b'ab'; expected a tuple of whole numbers"),
        ("", TypeError, "''; expected a tuple of whole numbers"),
        ((2.5, 2), TypeError, r"\(2.5, 2\); expected a tuple of whole"),
        ((True, 2), TypeError, r"\(True, 2\); expected a tuple of whole"),
        ((2, (3,)), TypeError, r"\(2, \(3,\)\); expected a tuple of whole"),
        (3, TypeError, "3; expected a tuple of whole numbers"),
        ((-1, 2), ValueError, r"\(-1, 2\); expected sizes of at least 0"),
        (jnp.ones((2, IN)), TypeError, r"an array of shape \(2, 3\) .* Pass its \.shape"),
    ],
    ids=str,
)
def test_a_shape_that_is_none_makes_no_carry(kind, shape, error, message):
    cell = make(kind)
    with pytest.raises(error, match=rf"^{kind.__name__}: input_shape is {message}"):
        cell.initialize_carry(shape)
    with pytest.raises(error, match=r"^LearnedCarry: input_shape"):
        LearnedCarry(cell).initialize_carry(shape)
    with pytest.raises(error, match=r"^LearnedCarry: input_shape"):
        LearnedCarry(cell, input_shape=shape)


def test_shapes_of_other_kinds_make_a_carry():
    cell = make(GRUCell)
    for shape in ([2, IN], np.array([2, IN]), (np.int64(2), IN), jnp.array([2, IN])):
        assert cell.initialize_carry(shape).shape == (2, HIDDEN)
    assert cell.initialize_carry((0, IN)).shape == (0, HIDDEN)
    (batch,) = jax.export.symbolic_shape("b")
    traced = jax.export.export(jax.jit(lambda x: cell.initialize_carry(x.shape)))
    assert traced(jax.ShapeDtypeStruct((batch, IN), jnp.float32)).out_avals[0].shape[0] == batch


def test_what_draws_a_carry_is_looked_at():
    cell, normal = make(GRUCell), nnx.initializers.normal()
    with pytest.raises(TypeError, match=rf"GRUCell: carry_init is 'ones'; {INITIALIZER}"):
        cell.initialize_carry((2, IN), carry_init="ones")
    with pytest.raises(TypeError, match=rf"LearnedCarry: carry_init is 0; {INITIALIZER}"):
        LearnedCarry(cell, carry_init=0)
    with pytest.raises(TypeError, match=r"rngs is an array .* key<fry>; expected nnx.Rngs\(0\)"):
        cell.initialize_carry((2, IN), jax.random.key(0), normal)
    rngs = nnx.Rngs(0)
    with pytest.raises(TypeError, match=rf"carry_init takes \(\); {INITIALIZER}"):
        cell.initialize_carry((2, IN), rngs, nnx.initializers.zeros_init)
    with pytest.raises(TypeError, match=r"carry_init returned a function; expected .* \(2, 4\)"):
        cell.initialize_carry((2, IN), rngs, nnx.initializers.lecun_normal)
    with pytest.raises(
        ValueError, match=r"carry_init returned .* \(2, 1\); expected \(2, 4\), the"
    ):
        cell.initialize_carry((2, IN), rngs, lambda key, shape, dtype: jnp.ones((2, 1)))
    one_for_all = cell.initialize_carry((2, IN), rngs, lambda *_: jnp.ones(HIDDEN))
    assert one_for_all.shape == (HIDDEN,)
