"""The fast scan equals the plain one, in values and in derivatives of every kind, and stays fast.

The plain one is the general scan of `unrolled.layers`, which runs any cell by its `__call__`; a
subclass that says again what a step is gets it.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import unrolled
from tests.programs import needs_the_fast_scan
from unrolled import layers, scan
from unrolled.cells import GRUCell, LearnedCarry, LSTMCell, OptimizedLSTMCell, SimpleCell
from unrolled.lab.exercises._programs import equations, scan_sizes
from unrolled.layers import RNN, _fast_recurrence, _scan_cell
from unrolled.scan import Recurrence, Weights, gate_uses, scan_recurrence

CELLS = {
    "simple": SimpleCell,
    "residual": partial(SimpleCell, residual=True),
    "gru": GRUCell,
    "lstm": LSTMCell,
    "lstm optimized": OptimizedLSTMCell,
}
IN, HIDDEN = 2, 3


def make_cell(kind, in_features=IN, hidden_features=HIDDEN, seed=0, **options):
    bias_init = nnx.initializers.normal(0.5)  # so that a lost bias is noticed
    return CELLS[kind](
        in_features, hidden_features, bias_init=bias_init, rngs=nnx.Rngs(seed), **options
    )


def plain(cell):
    """The same cell, as one whose step the fast scan does not know."""

    class Plain(type(cell)):
        def __call__(self, carry, inputs):
            return super().__call__(carry, inputs)

    twin = nnx.clone(cell)
    twin.__class__ = Plain
    return twin


def make_carry(cell, batch_shape, seed=5):
    zeros = cell.initialize_carry((*batch_shape, IN))
    parts, structure = jax.tree.flatten(zeros)
    keys = jax.random.split(jax.random.key(seed), len(parts))
    drawn = [0.3 * jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, parts)]
    return jax.tree.unflatten(structure, drawn)


def close(actual, expected, rtol=1e-4, atol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )


def run_and_differentiate(cell, x, carry, seq_lengths, probe, **options):
    """Outputs and final carry, and the gradient of a loss in both by weights, inputs and carry."""
    graphdef, params = nnx.split(RNN(cell, rngs=False, return_carry=True, **options))

    def loss(params, x, carry):
        rnn = nnx.merge(graphdef, params)
        final, outputs = rnn(x, initial_carry=carry, seq_lengths=seq_lengths)
        final_loss = sum((part**2).sum() for part in jax.tree.leaves(final))
        return (outputs * probe).sum() + final_loss, (final, outputs)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, results), gradients = gradient(params, x, carry)
    return value, results, gradients


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two or three steps, so that a short sequence has several."""
    monkeypatch.setattr(scan, "CHUNK_STEPS", (2, 3))
    _scan_cell.clear_cache()
    yield
    _scan_cell.clear_cache()


SMOOTH = [None, jnp.sin, jax.nn.softplus]  # None: the cell's own
FUNCTIONS = [*SMOOTH, jax.nn.relu, jax.nn.hard_sigmoid]
TOLERANCE = {"float32": 3e-5, "float64": 1e-10, "bfloat16": 0.1}  # of 1, or of the largest number


@settings(
    max_examples=18, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_it_equals_the_plain_scan(data, small_chunks, monkeypatch):
    """Values, and gradients to weights, inputs and a carry that is not zero, over all options."""
    draw = data.draw
    kind = draw(st.sampled_from(list(CELLS)))
    batch_shape = draw(st.sampled_from([(), (3,), (2, 2)]))
    num_steps = draw(st.integers(1, 8))
    time_major = draw(st.booleans())
    options = {
        "time_major": time_major,
        "reverse": draw(st.booleans()),
        "keep_order": draw(st.booleans()),
        "unroll": draw(st.sampled_from([1, 2])),
    }
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    # Rounded to 8 bits, a number may fall on the other side of a kink and have another slope.
    functions = st.sampled_from(SMOOTH if dtype == "bfloat16" else FUNCTIONS)
    drawn = {"activation_fn": draw(functions), "gate_fn": draw(functions)}
    if kind in ("simple", "residual"):
        del drawn["gate_fn"]
    cell_options = {name: function for name, function in drawn.items() if function is not None}
    count = int(np.prod(batch_shape))
    seq_lengths, padding = None, 0.0
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, num_steps), min_size=count, max_size=count))
        seq_lengths = np.array(lengths, np.int32).reshape(batch_shape)
        padding = draw(st.sampled_from([0.0, np.nan]))
    monkeypatch.setattr(scan, "VECTOR_SIZE", draw(st.sampled_from([1, 4])))  # both layouts
    monkeypatch.setattr(scan, "KEPT", draw(st.sampled_from([((0, 2**25),), ()])))  # products
    if scan.VECTOR_SIZE == 4 and draw(st.booleans()):
        monkeypatch.setattr(scan, "VECTOR_SIZE", 16)
    _scan_cell.clear_cache()

    shape = (num_steps, *batch_shape) if time_major else (*batch_shape, num_steps)
    rng = np.random.default_rng(1)
    x, probe = rng.normal(size=(*shape, IN)), rng.normal(size=(*shape, HIDDEN))
    padded = x
    if seq_lengths is not None:
        valid = np.arange(num_steps) < seq_lengths[..., None]
        valid = np.moveaxis(valid, -1, 0) if time_major else valid
        padded = np.where(valid[..., None], x, padding)
    with jax.enable_x64(dtype == "float64"):
        cell = make_cell(kind, dtype=dtype, param_dtype=dtype, **cell_options)
        carry = make_carry(cell, batch_shape)
        assert (_fast_recurrence(cell, carry) is not None) == scan.TRANSPOSABLE
        assert plain(cell).recurrence() is None
        fast, slow = (
            run_and_differentiate(
                c, jnp.asarray(i, dtype), carry, seq_lengths, jnp.asarray(probe, dtype), **options
            )
            for c, i in ((cell, padded), (plain(cell), x))
        )
        assert fast[0].dtype == dtype
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assume(np.isfinite(b).all())  # unbounded gates may grow beyond all numbers in a few steps
        np.testing.assert_allclose(a, b, atol=TOLERANCE[dtype] * max(1, np.abs(b).max()))


@pytest.mark.parametrize("batch", [3, 20], ids=["features last", "batch last"])
@pytest.mark.parametrize("kind", CELLS)
def test_values_without_a_derivative(kind, batch, small_chunks):
    cell = make_cell(kind)
    x = jax.random.normal(jax.random.key(1), (batch, 7, IN))
    options = {"initial_carry": make_carry(cell, (batch,)), "seq_lengths": jnp.arange(batch) % 8}
    fast, slow = (
        RNN(c, rngs=False, return_carry=True, reverse=True)(x, **options)
        for c in (cell, plain(cell))
    )
    close(fast, slow)


@pytest.mark.parametrize("batch", [3, 20], ids=["features last", "batch last"])
@pytest.mark.parametrize("kind", CELLS)
def test_float64_agrees_to_ten_digits(kind, batch, small_chunks):
    with jax.enable_x64(True):
        cell = make_cell(kind, dtype=jnp.float64, param_dtype=jnp.float64)
        x = jax.random.normal(jax.random.key(1), (batch, 7, IN), jnp.float64)
        lengths = jnp.arange(batch) % 8
        carry, probe = make_carry(cell, (batch,)), jnp.sin(jnp.arange(HIDDEN) + 1.0)
        fast, slow = (
            run_and_differentiate(c, x, carry, lengths, probe, reverse=True, keep_order=True)
            for c in (cell, plain(cell))
        )
        assert fast[0].dtype == jnp.float64
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), fast, slow
        )


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["gru", "lstm optimized"])
def test_half_precision_has_the_dtypes_of_the_plain_scan_and_its_values(kind, param_dtype):
    cell = make_cell(kind, dtype=jnp.bfloat16, param_dtype=param_dtype)
    x = jax.random.normal(jax.random.key(1), (3, 6, IN), jnp.bfloat16)
    carry, probe = make_carry(cell, (3,)), jnp.ones(HIDDEN, jnp.bfloat16)
    fast, slow = (run_and_differentiate(c, x, carry, [6, 0, 2], probe) for c in (cell, plain(cell)))
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", CELLS)
def test_nan_in_padding_reaches_nothing(kind, small_chunks):
    cell = make_cell(kind)
    x = jax.random.normal(jax.random.key(1), (3, 7, IN))
    lengths = jnp.array([7, 0, 4])
    bad = jnp.where(jnp.arange(7)[:, None] < lengths[:, None, None], x, jnp.nan)
    carry, probe = make_carry(cell, (3,)), jnp.ones(HIDDEN)
    with_nan, without = (run_and_differentiate(cell, i, carry, lengths, probe) for i in (bad, x))
    jax.tree.map(np.testing.assert_array_equal, with_nan, without)


def test_other_derivatives(small_chunks):
    """Forward mode, forward over reverse, vmap over weights, and a checkpoint around the layer."""
    cell = make_cell("lstm")
    x = jax.random.normal(jax.random.key(1), (2, 5, IN))
    results = []
    for one in (cell, plain(cell)):
        graphdef, params = nnx.split(RNN(one, rngs=False))

        def loss(params, x, graphdef=graphdef):
            return (nnx.merge(graphdef, params)(x, seq_lengths=jnp.array([5, 3])) ** 2).sum()

        direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
        two = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
        tangent = jax.jvp(loss, (params, x), (direction, jnp.sin(x)))
        hessian = jax.jvp(jax.grad(loss), (params, x), (direction, jnp.zeros_like(x)))[1]
        mapped = jax.vmap(jax.grad(loss), in_axes=(0, None))(two, x)
        checkpointed = jax.grad(jax.checkpoint(loss), argnums=1)(params, x)
        results.append((tangent, hessian, mapped, checkpointed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.parametrize("num_steps, batch", [(0, 2), (3, 0)], ids=["no steps", "no sequences"])
def test_empty_inputs(num_steps, batch):
    cell = make_cell("gru")
    x = jnp.zeros((batch, num_steps, IN))
    carry, outputs = RNN(cell)(x, return_carry=True)
    assert outputs.shape == (batch, num_steps, HIDDEN) and carry.shape == (batch, HIDDEN)
    gradient = jax.grad(lambda x: RNN(cell)(x).sum())(x)
    assert gradient.shape == x.shape


def test_a_learned_carry_is_differentiated():
    cell = LearnedCarry(make_cell("gru"))
    rnn = RNN(cell, rngs=False)
    assert cell.recurrence() is not None
    x = jax.random.normal(jax.random.key(1), (2, 3, IN))
    gradient = nnx.grad(lambda rnn: (rnn(x, seq_lengths=[3, 0]) ** 2).sum())(rnn)
    assert float(jnp.abs(gradient["cell"]["initial"][...]).min()) > 0


class Scaled(nnx.Module):
    """An activation with a parameter of its own."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array(0.7))

    def __call__(self, x):
        return jnp.tanh(self.scale[...] * x)


def test_cells_it_cannot_know_run_by_the_plain_scan():
    x = jax.random.normal(jax.random.key(1), (2, 4, IN))
    reference = make_cell("gru")

    class Louder(GRUCell):
        def __call__(self, carry, inputs):
            carry, output = super().__call__(carry, inputs)
            return carry, 2 * output

    louder = Louder(IN, HIDDEN, bias_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(RNN(louder)(x), 2 * RNN(reference)(x), rtol=1e-6)

    exchanged = make_cell("gru")
    exchanged.dense_i = nnx.Linear(IN, 3 * HIDDEN, precision="highest", rngs=nnx.Rngs(0))
    assert exchanged.recurrence() is None
    biased = make_cell("gru")  # the fast scan has room for one bias of the state, b_hn
    biased.dense_h = nnx.Linear(HIDDEN, 3 * HIDDEN, rngs=nnx.Rngs(0))
    biased.dense_h.bias[...] = jnp.ones(3 * HIDDEN)
    np.testing.assert_allclose(RNN(biased)(x), RNN(plain(biased))(x), rtol=1e-6)
    assert make_cell("gru", promote_dtype=lambda args, **_: args).recurrence() is None
    assert GRUCell(IN, HIDDEN, reset_after=False, rngs=nnx.Rngs(0)).recurrence() is None

    mixing = make_cell("gru", activation_fn=jax.nn.softmax)
    np.testing.assert_allclose(RNN(mixing)(x), RNN(plain(mixing))(x), rtol=1e-6)

    learned = RNN(make_cell("simple", activation_fn=Scaled()), rngs=False)
    gradient = nnx.grad(lambda rnn: rnn(x).sum())(learned)
    assert float(jnp.abs(gradient["cell"]["activation_fn"]["scale"][...])) > 0


@needs_the_fast_scan
@pytest.mark.parametrize("kind", ["lstm", "lstm optimized"])
def test_the_derivative_of_h_goes_through_the_new_memory(kind, small_chunks):
    """Six coefficients a step instead of nine; a gate of one's own is differentiated as it is."""

    def arrays_of_the_way_back(cell):
        program = jax.make_jaxpr(jax.grad(lambda x: RNN(cell)(x).sum()))(jnp.ones((4, 6, IN)))
        (loop,) = (
            e
            for e in equations(program.jaxpr)
            if e.primitive.name == "scan"
            and e.params["reverse"]
            and all(inner.primitive.name != "scan" for inner in equations(e.params["jaxpr"].jaxpr))
        )
        return scan_sizes(loop)[2]

    class Leaky(type(make_cell(kind))):
        def gate(self, carry, projected, recurrent):
            memory, hidden = super().gate(carry, projected, recurrent)
            return memory, hidden + 0.1 * carry[1]

    plainly = make_cell(kind)
    own = nnx.clone(plainly)
    own.__class__ = Leaky
    assert own.recurrence().read is None
    given = 1  # the gradient by h, from the loss
    assert arrays_of_the_way_back(plainly) == 6 + given
    assert arrays_of_the_way_back(own) == 10 + given
    x, carry = jax.random.normal(jax.random.key(1), (2, 7, IN)), make_carry(own, (2,))
    close(*(run_and_differentiate(c, x, carry, None, jnp.ones(())) for c in (own, plain(own))))


@needs_the_fast_scan
def test_a_jax_that_cannot_transpose_it_runs_the_plain_scan(monkeypatch):
    cell = make_cell("gru")
    assert _fast_recurrence(cell, make_carry(cell, (2,))) is not None
    monkeypatch.setattr(layers, "TRANSPOSABLE", False)
    assert _fast_recurrence(cell, make_carry(cell, (2,))) is None


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, given: (jnp.clip(given, -1e-3, 1e-3),))


@jax.custom_jvp
def straight_through(hard, soft):
    return hard


straight_through.defjvp(lambda x, tangents: (x[0], tangents[1]))


@jax.custom_jvp
def normalised(x):
    return x


normalised.defjvp(lambda x, tangent: (x[0], tangent[0] * (1 + x[0].mean())))


@jax.custom_jvp
def by_its_size(x):
    return x


by_its_size.defjvp(lambda x, tangent: (x[0], tangent[0] / x[0].size))


@pytest.mark.parametrize("own", [clipped, normalised, by_its_size])
@pytest.mark.parametrize("kind", CELLS)
def test_a_derivative_of_ones_own_is_used(kind, own, small_chunks):
    cell = make_cell(kind, activation_fn=lambda x: jnp.tanh(own(x)))
    usual = make_cell(kind)
    x = jax.random.normal(jax.random.key(1), (3, 7, IN))

    def gradient(cell):
        return nnx.grad(lambda rnn: (rnn(x) ** 2).sum())(RNN(cell, rngs=False))

    actual, expected, other = gradient(cell), gradient(plain(cell)), gradient(usual)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), actual, other)
    assert max(jax.tree.leaves(apart)) > 1e-2


def running_sum(x):
    return jax.lax.scan(lambda c, u: (c + u, c + u), jnp.zeros(x.shape[1:]), jnp.tanh(x))[1]


def a_few_steps(x):
    start = jnp.zeros_like(x), jnp.zeros_like(x)
    return jax.lax.fori_loop(0, 3, lambda i, ab: (ab[1], 0.9 * jnp.tanh(x)), start)[0]


GATES_OF_ONE_SHAPE = {
    "width": lambda x: jnp.tanh(x) / x.shape[-1] ** 0.5,
    "batch": lambda x: jnp.tanh(x) / x.shape[0],
    "size": lambda x: jnp.tanh(x) * x.size**-0.5,
    "axes": lambda x: jnp.tanh(x) / (1 + x.ndim),
    "vmap": lambda x: jax.vmap(lambda s: jax.lax.cond(s.sum() > 0, jnp.sin, jnp.tanh, s))(x),
    "scan": running_sum,
    "loop": a_few_steps,
    "array in jit": jax.jit(lambda x: jnp.tanh(x) * np.linspace(0.1, 1, x.size).reshape(x.shape)),
}


@pytest.mark.parametrize("activation", GATES_OF_ONE_SHAPE)
@pytest.mark.parametrize("batch", [(3,), (), (2, 2), (20,)])
def test_an_activation_that_looks_at_shapes_or_loops_runs_by_the_plain_scan(activation, batch):
    cell = make_cell("simple", activation_fn=GATES_OF_ONE_SHAPE[activation])
    x = jax.random.normal(jax.random.key(1), (*batch, 6, IN))

    def loss(cell, x):
        return (RNN(cell)(x) ** 2).sum()

    actual, expected = (jax.value_and_grad(partial(loss, one))(x) for one in (cell, plain(cell)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), actual, expected)


def test_a_derivative_by_what_the_value_ignores_is_used():
    class Binary(SimpleCell):
        def gate(self, carry, projected, recurrent):
            soft = jnp.tanh(projected[0] + recurrent[0])
            return (straight_through(jnp.sign(projected[0]), soft),)

    cell = Binary(IN, HIDDEN, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, 7, IN))
    weights = jnp.arange(1.0, 1 + HIDDEN)
    actual, expected = (
        jax.grad(lambda x, one=one: (RNN(one)(x) * weights).sum())(x) for one in (cell, plain(cell))
    )
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@needs_the_fast_scan
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("lengths", [None, [7, 2]])
def test_a_function_that_is_not_defined_everywhere_meets_no_invented_step(
    kind, lengths, small_chunks
):
    cell = CELLS[kind](IN, HIDDEN, activation_fn=jnp.sqrt, rngs=nnx.Rngs(0))
    for path, param in nnx.to_flat_state(nnx.state(cell, nnx.Param)):
        if path[-1] == "kernel":  # what is summed is negative where the input is zero
            recurrent = path[0] in ("dense_h", "hi", "hf", "hg", "ho")
            value = -0.05 * jnp.eye(*param.shape) if recurrent else jnp.ones(param.shape)
            getattr(cell, path[0]).kernel.set_value(value)
    x = 1 + jax.random.uniform(jax.random.key(1), (2, 7, IN))

    def gradient(cell, x):
        return jax.grad(lambda x: RNN(cell)(x, seq_lengths=lengths)[:, :2].sum())(x)

    actual = gradient(cell, x)
    expected = jnp.stack([gradient_of_one(cell, row, n) for row, n in zip(x, lengths or [7, 7])])
    assert jnp.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@needs_the_fast_scan
@pytest.mark.parametrize("reverse", [False, True])
def test_second_derivatives_meet_no_invented_step(reverse):
    def activation(x):
        return jnp.tanh(jnp.sqrt(x - 1))

    inputs = 1 + jax.random.uniform(jax.random.key(0), (2, 129, 2))

    def curvature(kind):
        ones = nnx.initializers.constant(1.0)
        small = nnx.initializers.constant(0.01)
        options = {"kernel_init": ones, "recurrent_kernel_init": small}

        def loss(bias):
            cell = kind(2, 3, activation_fn=activation, rngs=nnx.Rngs(0), **options)
            cell.dense_i.bias[...] = bias
            return (RNN(cell, reverse=reverse)(inputs) ** 2).mean()

        return jax.grad(lambda bias: (jax.grad(loss)(bias) ** 2).sum())(jnp.zeros(3))

    class General(SimpleCell):
        def recurrence(self):
            return None

    expected = curvature(General)
    assert jnp.isfinite(expected).all()
    np.testing.assert_allclose(curvature(SimpleCell), expected, rtol=1e-4)


def gradient_of_one(cell, x, length):
    """By a loop over the valid steps, of the sum of the first two outputs."""

    def loss(x):
        carry, outputs = cell.initialize_carry((IN,)), []
        for x_t in x[:length]:
            carry, output = cell(carry, x_t)
            outputs.append(output)
        return sum(outputs[:2]).sum()

    return jax.grad(loss)(x)


@pytest.mark.parametrize("kind", [LSTMCell, OptimizedLSTMCell])
@pytest.mark.parametrize("dtype", [jnp.int8, bool])
def test_whole_numbers_are_multiplied_as_floats(kind, dtype):
    cell = kind(IN, HIDDEN, rngs=nnx.Rngs(0))
    for name in ("ii", "if_", "ig", "io", "dense_i"):
        if hasattr(cell, name):
            kernel = getattr(cell, name).kernel
            draws = np.random.default_rng(0).integers(-100, 100, kernel.shape)
            kernel.set_value(jnp.asarray(draws, dtype))
    x = jnp.asarray(np.random.default_rng(1).integers(-100, 100, (2, 5, IN)), dtype)
    carry, outputs = cell.initialize_carry((2, IN)), []
    for t in range(5):
        carry, output = cell(carry, x[:, t])
        outputs.append(output)
    np.testing.assert_allclose(RNN(cell)(x), jnp.stack(outputs, 1), rtol=1e-5, atol=1e-6)


@needs_the_fast_scan
@pytest.mark.parametrize("wanted", ["recurrent_kernels", "kernels"])
def test_a_part_that_ignores_the_carry_has_derivatives(wanted):
    weights = Weights((jnp.eye(2, 3),), (None,), (0.1 * jnp.eye(3),), (None,))
    carry, x = (jnp.ones((2, 3)),) * 2, jax.random.normal(jax.random.key(1), (5, 2, 2))

    def gate(carry, projected, recurrent):
        return projected[0], jnp.tanh(projected[0] + recurrent[0] - carry[0])

    def value(kernel):
        recurrence = Recurrence(gate, weights._replace(**{wanted: (kernel,)}))
        return (scan_recurrence(recurrence, carry, x)[1] ** 2).sum()

    def by_hand(kernel):
        used = weights._replace(**{wanted: (kernel,)})
        (c, h), total = carry, 0.0
        for x_t in x:
            c, h = gate((c, h), (x_t @ used.kernels[0],), (h @ used.recurrent_kernels[0],))
            total += (h**2).sum()
        return total

    kernel = getattr(weights, wanted)[0]
    expected = jax.grad(by_hand)(kernel)
    np.testing.assert_allclose(jax.grad(value)(kernel), expected, rtol=1e-5, atol=1e-6)
    only = Recurrence(lambda c, x, h: (jnp.sin(x[0]),), weights)  # its carry counts for nothing
    gradient = jax.grad(lambda h: scan_recurrence(only, (h,), x)[1].sum())(carry[0])
    assert not gradient.any()


def test_a_gate_with_whole_numbers_or_arrays_of_its_own_is_refused():
    weights = Weights((jnp.eye(2, 3),), (None,), (jnp.eye(3),), (None,))
    h, count, x = jnp.zeros((2, 3)), jnp.zeros((2, 3), int), jnp.ones((5, 2, 2))

    def counting(carry, projected, recurrent):
        return carry[0] + 1, jnp.tanh(projected[0] + recurrent[0])

    with pytest.raises(ValueError, match="counts in whole numbers, or"):
        scan_recurrence(Recurrence(counting, weights), (count, h), x)
    scales = np.linspace(0.5, 1, 6, dtype=np.float32).reshape(2, 3)
    for as_literals in (False, True):  # a jaxpr may hold an array in either way
        before = jax.config.jax_use_simplified_jaxpr_constants
        jax.config.update("jax_use_simplified_jaxpr_constants", as_literals)
        try:
            assert gate_uses(lambda c, x, y: (c[0] * scales,), (h,), 1) is None
        finally:
            jax.config.update("jax_use_simplified_jaxpr_constants", before)


def test_gates_that_mix_are_told_from_those_that_do_not():
    h = (jnp.zeros((2, 4)),)

    def uses(function):
        return gate_uses(lambda carry, x, y: (function(carry[0], x[0], y[0]),), h, 1)

    assert uses(lambda c, x, y: jnp.tanh(x + y)) == (frozenset({1, 2}),)
    assert uses(lambda c, x, y: jnp.where(x > 0, c, jax.nn.gelu(y))) == (frozenset({0, 1, 2}),)
    assert uses(lambda c, x, y: jax.jit(jax.nn.elu)(c)) == (frozenset({0}),)
    assert uses(lambda c, x, y: c + jax.lax.stop_gradient(0 * x)) == (frozenset({0, 1}),)
    for mixing in (
        lambda c, x, y: jax.nn.softmax(x + y),
        lambda c, x, y: jnp.cumsum(x, -1),
        lambda c, x, y: jnp.flip(x, -1),
        lambda c, x, y: x + y.mean(),
        lambda c, x, y: x @ jnp.eye(4),
        lambda c, x, y: x[..., :1] + y,
        lambda c, x, y: x + jnp.arange(4.0),
        lambda c, x, y: jax.lax.cond(True, lambda a: a, jnp.tanh, x),
    ):
        assert uses(mixing) is None
    weights = Weights((jnp.eye(4),), (None,), (jnp.eye(4),), (None,))
    with pytest.raises(ValueError, match="mixes the numbers of an array"):
        scan_recurrence(
            Recurrence(lambda carry, x, y: (jax.nn.softmax(x[0] + y[0]),), weights),
            h,
            jnp.ones((3, 2, 4)),
        )


# What makes it fast, told from the compiled program and not from a clock.


def compiled_forward(run, in_features=8, hidden=16, batch=4, num_steps=64):
    x = jnp.ones((batch, num_steps, in_features))
    return jax.jit(run(in_features, hidden)).lower(x).compile().as_text()


def computations(text):
    """The computations of a compiled program by name, each a list of its lines."""
    found, name = {}, None
    for line in text.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = match.group(1)
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def inner_loops(text):
    """The innermost loops of a compiled program, each with the computations it calls, by name."""
    program = computations(text)

    def called(name):
        found = {name: program[name]}
        for inner in re.findall(r"(?:calls|body|to_apply)=%?([\w.\-]+)", "\n".join(program[name])):
            found |= called(inner) if inner in program else {}
        return found

    loops = map(called, sorted(set(re.findall(r"body=%?([\w.\-]+)", text))))
    return [loop for loop in loops if " while(" not in text_of(loop)]


def text_of(computations):
    return "\n".join(line for lines in computations.values() for line in lines)


def slices_used_twice(fusions):
    """Dynamic slices with several users inside one of these fusions, given by name.

    XLA does not compile such a fusion to vector instructions (chapter 11).
    """
    found = []
    for lines in fusions.values():
        body = "\n".join(lines)
        for name in re.findall(r"%([\w.\-]+) = \S+ dynamic-slice\(", body):
            same = [name, *re.findall(rf"%([\w.\-]+) = \S+ bitcast\(%{re.escape(name)}\)", body)]
            users = [line for line in lines if " bitcast(" not in line and _reads(line, same)]
            if len(users) > 1:
                found.append(name)
    return found


def _reads(line, names):
    return any(re.search(rf"[(, ]%{re.escape(name)}[,)]", line) for name in names)


def with_activation(text):
    """The computations that hold an activation."""
    activation = re.compile(r"= \S+ (tanh|exponential|logistic)\(")
    return {
        k: lines for k, lines in computations(text).items() if any(map(activation.search, lines))
    }


def ours(kind):
    def run(in_features, hidden):
        rnn = RNN(make_cell(kind, in_features, hidden), rngs=False)
        return lambda x: rnn(x)

    return run


def hoisted_naively(in_features, hidden):
    """One projected array for all gates, cut up inside the loop."""
    cell = make_cell("gru", in_features, hidden)

    def run(x):
        def step(h, totals):
            reset, update, candidate = jnp.split(totals, 3, -1)
            r, z, n = jnp.split(cell.dense_h(h), 3, -1)
            n = jnp.tanh(candidate + jax.nn.sigmoid(reset + r) * n)
            z = jax.nn.sigmoid(update + z)
            h = (1 - z) * n + z * h
            return h, h

        return jax.lax.scan(step, jnp.zeros((len(x), hidden)), cell.dense_i(x).swapaxes(0, 1))[1]

    return run


@pytest.mark.parametrize("kind", CELLS)
def test_the_loop_keeps_its_vector_form(kind):
    text = compiled_forward(ours(kind))
    assert "dynamic-slice(" in text
    assert not slices_used_twice(with_activation(text))


def test_the_vector_check_finds_the_naive_form():
    assert slices_used_twice(with_activation(compiled_forward(hoisted_naively)))


@needs_the_fast_scan
@pytest.mark.parametrize("kind", ["gru", "lstm optimized"])
def test_the_loops_of_the_gradient_keep_their_vector_form_and_one_product_each(kind):
    """The states' loop and the way back's, compiled: there is a chunk of steps around each."""
    graphdef, params = nnx.split(RNN(make_cell(kind, 8, 16), rngs=False))

    def loss(params, x):
        return (nnx.merge(graphdef, params)(x) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    text = gradient.lower(params, jnp.ones((4, 256, 8))).compile().as_text()
    loops = inner_loops(text)
    assert len(loops) == 2 and text.count(" while(") == 4
    for loop in loops:
        assert text_of(loop).count(" dot(") == 1
        assert " dynamic-slice(" in text_of(loop)
        assert not slices_used_twice(loop)


@needs_the_fast_scan
@pytest.mark.parametrize("kind", CELLS)
def test_only_the_product_with_the_state_is_in_the_loop(kind):
    cell = make_cell(kind, 8, 16)
    program = jax.make_jaxpr(lambda x: RNN(cell, rngs=False)(x))(jnp.ones((4, 20, 8)))
    (loop,) = [e for e in equations(program.jaxpr) if e.primitive.name == "scan"]
    inside = [e for e in equations(loop.params["jaxpr"].jaxpr) if e.primitive.name == "dot_general"]
    assert len(inside) == 1


@needs_the_fast_scan
def test_100000_steps_need_the_memory_that_the_docstring_states():
    steps, hidden = 100_000, 32
    graphdef, params, rest = nnx.split(RNN(GRUCell(8, hidden, rngs=nnx.Rngs(0))), nnx.Param, ...)

    def loss(params, x):
        return (nnx.merge(graphdef, params, rest)(x)[:, -1] ** 2).sum()

    inputs = jnp.ones((1, steps, 8))
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, inputs).compile()
    stated = 45e6
    assert run.memory_analysis().temp_size_in_bytes < 1.05 * stated
    assert stated < 4 * steps * hidden * 4
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(run(params, inputs)))


@needs_the_fast_scan
@pytest.mark.parametrize("kind", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"])
def test_the_gradient_of_a_long_run_needs_a_third_of_the_memory(kind):
    """Of the simple cell a little more than half: Flax keeps too little of it for a third."""
    batch, steps, features, hidden = 4, 4000, 16, 32

    def bytes_needed(library):
        rnn = library.RNN(getattr(library, kind)(features, hidden, rngs=nnx.Rngs(0)))
        graphdef, params, rest = nnx.split(rnn, nnx.Param, ...)

        def loss(params, x):
            return (nnx.merge(graphdef, params, rest, copy=True)(x) ** 2).sum()

        gradient = jax.jit(jax.grad(loss)).lower(params, jnp.ones((batch, steps, features)))
        return gradient.compile().memory_analysis().temp_size_in_bytes

    ours, flax = bytes_needed(unrolled), bytes_needed(nnx)
    # The states, the derivative by each of them, and the inputs, time first.
    least = 4 * steps * batch * (2 * hidden + features)
    if kind == "SimpleCell":
        assert ours < flax / 1.6 and flax / 3 < least  # 1.97 with JAX 0.10, 1.66 with 0.12
        assert ours < 1.15 * least
    else:
        assert ours < flax / 3
