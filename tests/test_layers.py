"""`RNN`, `Bidirectional` and `StackedRNN` against Python loops, through every transformation."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from unrolled import layers
from unrolled.cells import (
    GRUCell,
    LearnedCarry,
    LSTMCell,
    OptimizedLSTMCell,
    RNNCellBase,
    SimpleCell,
)
from unrolled.lab.exercises._programs import equations, scan_sizes
from unrolled.layers import RNN, Bidirectional, StackedRNN
from unrolled.sequences import flip_sequences

CELLS = {
    "simple": SimpleCell,
    "gru": GRUCell,
    "gru before": lambda *sizes, **options: GRUCell(*sizes, reset_after=False, **options),
    "lstm": LSTMCell,
    "lstm optimized": OptimizedLSTMCell,
}
IN, HIDDEN = 2, 3
LENGTHS = {(): 3, (3,): [4, 0, 2], (2, 2): [[4, 1], [0, 3]]}


def make_cell(kind="gru", in_features=IN, hidden_features=HIDDEN, seed=0, **options):
    """A cell whose biases are not zero, so that a lost bias is noticed."""
    bias_init = nnx.initializers.normal(0.5)
    return CELLS[kind](
        in_features, hidden_features, bias_init=bias_init, rngs=nnx.Rngs(seed), **options
    )


def make_inputs(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def close(actual, expected, atol=3e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), actual, expected
    )


def carry_parts(carry):
    return carry if isinstance(carry, tuple) else (carry,)


FLAGS = list(itertools.product([False, True], repeat=3))


class GeneralLSTM(LSTMCell):
    """A cell that the fast scan does not know."""

    def recurrence(self):
        return None


def fast_and_general():
    """Two cells with the same weights, one for each of the two scans."""
    fast, general = (
        kind(IN, HIDDEN, bias_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
        for kind in (LSTMCell, GeneralLSTM)
    )
    assert fast.recurrence() is not None and general.recurrence() is None
    return fast, general


@pytest.mark.parametrize("batch", LENGTHS, ids=str)
@pytest.mark.parametrize("with_lengths", [False, True], ids=["full", "ragged"])
def test_every_combination_of_options_agrees_with_a_loop(batch, with_lengths):
    cells = fast_and_general()
    lengths = LENGTHS[batch] if with_lengths else None
    for time_major, reverse, keep_order in FLAGS:
        shape = (4, *batch, IN) if time_major else (*batch, 4, IN)
        x = make_inputs(*shape)
        options = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
        expected_carry, expected = oracle.run(cells[0], x, lengths=lengths, **options)
        for cell in cells:
            rnn = RNN(cell)
            carry, outputs = rnn(x, seq_lengths=lengths, return_carry=True, **options)
            close(outputs, expected)
            close(carry, expected_carry)
            close(rnn(x, seq_lengths=lengths, return_carry=False, **options), expected)
            made_so = RNN(cell, return_carry=True, **options)
            close(made_so(x, seq_lengths=lengths), (expected_carry, expected))


@pytest.mark.parametrize("scan", [0, 1], ids=["fast", "general"])
def test_no_steps_leave_a_given_carry_alone(scan):
    cell = fast_and_general()[scan]
    x = jnp.zeros((3, 0, IN))
    given = (make_inputs(3, HIDDEN, seed=2), make_inputs(3, HIDDEN, seed=3))
    for lengths, reverse in itertools.product((None, [0, 0, 0]), (False, True)):
        carry, outputs = RNN(cell, return_carry=True, reverse=reverse)(
            x, initial_carry=given, seq_lengths=lengths
        )
        assert outputs.shape == (3, 0, HIDDEN)
        jax.tree.map(np.testing.assert_array_equal, carry, given)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_random_cases_agree_with_a_loop(data):
    dtype = data.draw(st.sampled_from([jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]))
    kind = data.draw(st.sampled_from(sorted(CELLS)))
    batch = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    num_steps = data.draw(st.sampled_from([0, 1, 4]))
    size = int(np.prod(batch, dtype=int))
    lengths = data.draw(
        st.none() | st.lists(st.integers(0, num_steps), min_size=size, max_size=size)
    )
    lengths = None if lengths is None else np.array(lengths, int).reshape(batch)
    flags = ("time_major", "reverse", "keep_order")
    options = {name: data.draw(st.booleans(), label=name) for name in flags}
    seed = data.draw(st.integers(0, 5))
    with jax.enable_x64(dtype == jnp.float64):
        cell = make_cell(kind, seed=seed, dtype=dtype, param_dtype=dtype)
        shape = (num_steps, *batch, IN) if options["time_major"] else (*batch, num_steps, IN)
        rng = np.random.default_rng(seed)
        x = rng.normal(size=shape).astype(dtype)
        carry = None
        if data.draw(st.booleans(), label="own carry"):
            carry = tuple(rng.normal(size=(*batch, HIDDEN)).astype(dtype) for _ in cell.carry_names)
        expected_carry, expected = oracle.run(cell, x, carry=carry, lengths=lengths, **options)
        initial = carry if carry is None or len(carry) == 2 else carry[0]
        final, outputs = RNN(cell)(
            x, seq_lengths=lengths, initial_carry=initial, return_carry=True, **options
        )
        assert outputs.dtype == dtype
        # Of 250 cases, the worst was wrong by twice the spacing of the numbers at 1.
        atol = 8 * float(jnp.finfo(dtype).eps)
        actual = [np.asarray(part, float) for part in (outputs, *carry_parts(final))]
        for part, expected_part in zip(actual, (expected, *expected_carry)):
            np.testing.assert_allclose(part, expected_part, rtol=0, atol=atol)


def loop_in_jax(cell, x, lengths, reverse=False, carry=None):
    """The same recurrence as an unrolled loop over rows, differentiable, in the order of time."""
    outputs, finals = [], []
    for row, length in enumerate(lengths):
        state = cell.initialize_carry((IN,))
        if carry is not None:
            state = jax.tree.map(lambda part: part[row], carry)  # noqa: B023
        steps = {}
        for t in reversed(range(length)) if reverse else range(length):
            state, steps[t] = cell(state, x[row, t])
        zero = jnp.zeros(cell.hidden_features, x.dtype)
        outputs.append(jnp.stack([steps.get(t, zero) for t in range(x.shape[1])]))
        finals.append(state)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *finals), jnp.stack(outputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_gradients_agree_with_an_unrolled_loop_in_float64(kind, reverse):
    with jax.enable_x64(True):
        cell = make_cell(kind, dtype=jnp.float64, param_dtype=jnp.float64)
        x = make_inputs(3, 4, IN)
        lengths = [4, 0, 2]
        carry = jax.tree.map(lambda part: 0.3 + part, cell.initialize_carry((3, IN)))
        probe = make_inputs(3, 4, HIDDEN, seed=7)

        def loss(run):
            def value(params, x, carry):
                nnx.update(module := nnx.clone(cell), params)
                final, outputs = run(module, x, carry)
                final = sum((part**2).sum() for part in jax.tree.leaves(final))
                return (outputs * probe).sum() + final

            value_and_grad = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
            return value_and_grad(nnx.state(cell, nnx.Param), x, carry)

        ours = loss(
            lambda cell, x, carry: RNN(cell, reverse=reverse, keep_order=True)(
                x, initial_carry=carry, seq_lengths=lengths, return_carry=True
            )
        )
        expected = loss(lambda cell, x, carry: loop_in_jax(cell, x, lengths, reverse, carry))
        assert ours[0].dtype == jnp.float64
        close(ours, expected, atol=1e-12)


def test_the_carry_and_unroll_of_a_long_run():
    cell = make_cell()
    x = make_inputs(2, 7, IN)
    first, _ = RNN(cell)(x[:, :3], return_carry=True)
    halves = RNN(cell)(x[:, 3:], initial_carry=first)
    whole = RNN(cell)(x)
    close(halves, whole[:, 3:])
    close(RNN(cell, unroll=3)(x), whole)


@pytest.mark.parametrize("kind", CELLS)
def test_nan_in_padding_reaches_neither_outputs_nor_gradients(kind):
    layer = Bidirectional(RNN(make_cell(kind)), RNN(make_cell(kind, seed=2)))
    x, lengths = make_inputs(3, 5, IN), jnp.array([5, 0, 2])
    poisoned = x.at[1].set(jnp.nan).at[2, 2:].set(jnp.nan)

    def loss(layer, x):
        carry, outputs = layer(x, seq_lengths=lengths, return_carry=True)
        total = (outputs**2).sum() + sum((part**2).sum() for part in jax.tree.leaves(carry))
        return total, outputs

    run = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    clean, dirty = run(layer, x), run(layer, poisoned)
    close(dirty, clean)
    (_, outputs), (_, grad_x) = dirty
    for array in (outputs, grad_x):
        assert not np.any(array[1]) and not np.any(array[2, 2:])


def test_a_call_outside_jit_traces_the_cell_once():
    traced = []

    class Counting(GRUCell):
        def __call__(self, carry, inputs):
            traced.append(1)
            return super().__call__(carry, inputs)

    rnn = RNN(Counting(IN, HIDDEN, rngs=nnx.Rngs(0)))
    rnn(make_inputs(2, 4, IN))
    first = len(traced)
    for seed in range(3):
        rnn(make_inputs(2, 4, IN, seed=seed))
    RNN(Counting(IN, HIDDEN, rngs=nnx.Rngs(1)))(make_inputs(2, 4, IN))
    assert len(traced) == first


@pytest.mark.parametrize("scan", [0, 1], ids=["fast", "general"])
def test_a_call_outside_jit_compiles_a_cell_of_the_package_once(scan):
    cell = fast_and_general()[scan]
    programs = layers._scan_cell._cache_size
    rnn = RNN(cell)
    rnn(make_inputs(2, 6, IN), seq_lengths=[6, 2])
    first = programs()
    for seed in range(3):
        rnn(make_inputs(2, 6, IN, seed=seed), seq_lengths=[seed, 6])
    same_structure = type(cell)(IN, HIDDEN, rngs=nnx.Rngs(1))
    RNN(same_structure)(make_inputs(2, 6, IN), seq_lengths=np.array([1, 2]))
    assert programs() == first
    rnn(make_inputs(2, 7, IN), seq_lengths=[6, 2])  # another shape is another program
    assert programs() == first + 1


@pytest.mark.parametrize("kind", ["lstm", "gru before"])
def test_carries_are_not_stacked(kind):
    """A ragged forward pass stores its outputs for every step, and not the carries beside them."""
    rnn = RNN(make_cell(kind, hidden_features=5))
    program = jax.make_jaxpr(lambda x: rnn(x, seq_lengths=jnp.array([7, 3]), return_carry=True))(
        make_inputs(2, 7, IN)
    )
    scans = [equation for equation in equations(program.jaxpr) if equation.primitive.name == "scan"]
    assert scans
    for scan in scans:
        assert len(scan.outvars) - scan_sizes(scan)[1] == 1


TRANSFORMS = {
    "plain jit": lambda f: jax.jit(f),
    "nnx jit": lambda f: nnx.jit(f),
    "checkpoint": lambda f: jax.checkpoint(f),
    "vmap": lambda f: lambda x: jax.vmap(f)(x[:, None])[:, 0],
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, x: (c, f(x)), 0, x[None])[1][0],
    "jit of checkpoint": lambda f: jax.jit(jax.checkpoint(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_works_inside_a_transformation_that_closes_over_it(transform):
    layer = Bidirectional(RNN(make_cell("lstm")), RNN(make_cell("lstm", seed=2)))
    stack = StackedRNN([layer, RNN(make_cell("gru", 2 * HIDDEN))])
    x = make_inputs(2, 4, IN)
    close(TRANSFORMS[transform](lambda x: stack(x))(x), stack(x))


def test_derivatives_of_every_kind():
    rnn = RNN(make_cell("gru"))
    x = make_inputs(2, 3, IN)

    def f(x):
        return (rnn(x) ** 2).sum()

    grad = jax.grad(f)(x)
    tangent = make_inputs(2, 3, IN, seed=5)
    _, slope = jax.jvp(f, (x,), (tangent,))
    np.testing.assert_allclose(slope, (grad * tangent).sum(), rtol=1e-4)
    close(jax.jacfwd(f)(x), grad, atol=1e-5)
    close(jax.grad(jax.checkpoint(f))(x), grad)
    assert jax.hessian(f)(x).shape == (2, 3, IN, 2, 3, IN)
    assert jax.eval_shape(f, x).shape == ()


def test_split_merge_pickle_deepcopy_and_vmap_over_modules():
    rnn = RNN(make_cell("lstm"))
    layer = Bidirectional(rnn, RNN(make_cell("lstm", seed=2)))
    stack = StackedRNN([layer, RNN(LearnedCarry(make_cell("gru", 2 * HIDDEN)))])
    x = make_inputs(2, 4, IN)
    for module in (rnn, layer, stack):
        expected = module(x)
        close(nnx.merge(*nnx.split(module))(x), expected)
        close(pickle.loads(pickle.dumps(module))(x), expected)
        close(copy.deepcopy(module)(x), expected)
        close(nnx.clone(module)(x), expected)

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return RNN(GRUCell(IN, HIDDEN, rngs=nnx.Rngs(key)), rngs=False)

    ensemble = make(jax.random.split(jax.random.key(0), 3))
    outputs = nnx.vmap(lambda rnn, x: rnn(x), in_axes=(0, None))(ensemble, x)
    assert outputs.shape == (3, 2, 4, HIDDEN)
    assert float(jnp.std(outputs, axis=0).min()) > 0


def test_pickled_activations_are_the_public_functions():
    cell = GRUCell(
        IN, HIDDEN, gate_fn=jax.nn.hard_sigmoid, activation_fn=jax.nn.relu, rngs=nnx.Rngs(0)
    )
    again = pickle.loads(pickle.dumps(cell))
    assert again.gate_fn is jax.nn.hard_sigmoid and again.activation_fn is jax.nn.relu


def test_a_pickled_merge_is_the_public_function():
    pair = Bidirectional(RNN(make_cell()), RNN(make_cell(seed=1)), merge_fn=jnp.add)
    again = pickle.loads(pickle.dumps(pair))
    assert again.merge_fn is jnp.add
    close(again(make_inputs(2, 4, IN)), pair(make_inputs(2, 4, IN)))


def test_tabulate_works_and_breaks_nothing():
    rnn, x = RNN(make_cell("lstm")), make_inputs(2, 4, IN)
    before = rnn(x)
    assert "LSTMCell" in nnx.tabulate(rnn, x)
    close(rnn(x), before)


# Initial carries


def test_initial_carries_are_broadcast_and_cast():
    rnn, x = RNN(make_cell("lstm"), return_carry=True), make_inputs(2, 4, IN)
    one = (jnp.full((HIDDEN,), 0.2), jnp.full((HIDDEN,), -0.1))
    full = jax.tree.map(lambda part: jnp.broadcast_to(part, (2, HIDDEN)), one)
    expected = rnn(x, initial_carry=full)
    close(rnn(x, initial_carry=one), expected)
    close(rnn(x, initial_carry=jax.tree.map(lambda part: part[None], one)), expected)
    close(rnn(x, initial_carry=list(full)), expected)
    close(rnn(x, initial_carry=jax.tree.map(np.asarray, full)), expected)
    half = jax.tree.map(lambda part: part.astype(jnp.bfloat16), full)
    carry, _ = rnn(x, initial_carry=half)
    assert carry[0].dtype == jnp.float32
    ints = jax.tree.map(lambda part: jnp.zeros(part.shape, int), full)
    close(rnn(x, initial_carry=ints), rnn(x))


def test_a_zero_carry_draws_nothing_and_a_random_one_draws_as_in_flax():
    x = make_inputs(2, 4, IN)
    rngs = nnx.Rngs(3)
    rnn = RNN(make_cell(), rngs=nnx.Rngs(carry=1))
    rnn(x)
    rnn(x, rngs=rngs)
    assert rnn.rngs.count[...] == 0 and rngs.default.count[...] == 0
    init = nnx.initializers.normal(1.0)
    for make in (RNN, nnx.RNN):
        for rngs in (True, nnx.Rngs(carry=1)):
            other = nnx.RNN if make is RNN else RNN
            a = make(LSTMCell(IN, HIDDEN, carry_init=init, rngs=nnx.Rngs(0)), rngs=rngs)
            b = other(
                LSTMCell(IN, HIDDEN, carry_init=init, rngs=nnx.Rngs(0)),
                rngs=True if rngs is True else nnx.Rngs(carry=1),
            )
            close(a(x), b(x))
            close(a(x), b(x))


@pytest.mark.parametrize(
    "rngs", [True, False, nnx.Rngs(0), nnx.RngStream(0, tag="carry")], ids=repr
)
def test_every_kind_of_rngs_is_accepted(rngs):
    x = make_inputs(2, 4, IN)
    close(RNN(make_cell(), rngs=rngs)(x), RNN(make_cell())(x))
    Bidirectional(RNN(make_cell()), RNN(make_cell()), rngs=rngs)(x)


def test_a_learned_carry_is_trained_and_starts_rows_without_steps():
    cell = LearnedCarry(
        make_cell("lstm"), carry_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(4)
    )
    rnn, x = RNN(cell, return_carry=True), make_inputs(2, 3, IN)
    learned = cell.initial.get_value()
    assert jax.tree.map(jnp.shape, learned) == ((HIDDEN,), (HIDDEN,))
    close(rnn(x), RNN(cell.cell, return_carry=True)(x, initial_carry=learned))
    carry, _ = rnn(x, seq_lengths=[0, 3])
    close(jax.tree.map(lambda part: part[0], carry), learned)
    grads = nnx.grad(lambda rnn: (rnn(x)[1] ** 2).sum())(rnn)
    assert all(jnp.any(part != 0) for part in jax.tree.leaves(grads["cell"]["initial"]))
    other = cell.initialize_carry((5, IN), nnx.Rngs(0), nnx.initializers.ones_init())
    close(other, (jnp.ones((5, HIDDEN)),) * 2)


# Cells of one's own


class Resetting(RNNCellBase):
    """A cell with two inputs: a reset flag brings the carry back to zero."""

    def __init__(self, cell):
        self.cell = cell

    def __call__(self, carry, inputs):
        x, reset = inputs
        carry = jnp.where(reset[..., None], 0.0, carry)
        return self.cell(carry, x)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.cell.initialize_carry(input_shape, rngs, carry_init)


@pytest.mark.parametrize("time_major", [False, True])
def test_inputs_may_be_a_pytree(time_major):
    cell, x = make_cell(), make_inputs(2, 5, IN)
    resets = jnp.array([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    layout = (lambda a: jnp.swapaxes(a, 0, 1)) if time_major else (lambda a: a)
    rnn = RNN(Resetting(cell), time_major=time_major)
    outputs = layout(rnn((layout(x), layout(resets))))
    close(outputs[0, 2:], RNN(cell)(x[0, 2:]))
    close(outputs[1], RNN(cell)(x[1]))
    ragged = rnn((layout(x), layout(resets)), seq_lengths=[4, 2], reverse=True, keep_order=True)
    close(layout(ragged)[0, :3], RNN(cell, reverse=True, keep_order=True)(x[0, :3]))


class Stateful(RNNCellBase):
    """Counts its steps, as BatchNorm-like state would; adds the count to its input."""

    def __init__(self):
        self.count = nnx.BatchStat(jnp.zeros(()))
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, carry, inputs):
        self.count[...] = self.count[...] + 1
        carry = carry + self.weight[...] * inputs
        return carry, carry * 0 + self.count[...]

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)


@pytest.mark.parametrize("jit", [False, True])
def test_state_inside_the_scan_is_carried_from_step_to_step_and_written_back(jit):
    rnn = RNN(Stateful())
    call = nnx.jit(lambda rnn, x: rnn(x)) if jit else lambda rnn, x: rnn(x)
    close(call(rnn, jnp.zeros((1, 4, 1)))[0, :, 0], np.array([1.0, 2, 3, 4]))
    close(call(rnn, jnp.zeros((1, 4, 1)))[0, :, 0], np.array([5.0, 6, 7, 8]))
    assert rnn.cell.count[...] == 8


def test_state_axes_choose_what_a_step_sees():
    dropped = RNN(Stateful(), state_axes={nnx.BatchStat: None, ...: nnx.Carry})
    close(dropped(jnp.zeros((1, 3, 1)))[0, :, 0], np.ones(3))
    assert dropped.cell.count[...] == 0

    sliced = RNN(Stateful(), state_axes={nnx.BatchStat: 0, ...: nnx.Carry})
    sliced.cell.count = nnx.BatchStat(jnp.array([10.0, 20.0, 30.0]))
    close(sliced(jnp.zeros((1, 3, 1)))[0, :, 0], np.array([11.0, 21, 31]))
    close(sliced.cell.count[...], np.array([11.0, 21, 31]))

    per_step = RNN(Stateful(), state_axes=nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry}))
    per_step.cell.weight = nnx.Param(jnp.array([1.0, 10.0, 100.0]))
    carry, _ = per_step(jnp.ones((1, 3, 1)), return_carry=True)
    assert carry[0, 0] == 111

    with pytest.raises(ValueError, match=r"state_axes says nothing about.*\.\.\.: nnx.Carry"):
        RNN(Stateful(), state_axes={nnx.BatchStat: None})(jnp.ones((1, 3, 1)))


class Dropping(GRUCell):
    """Recurrent dropout by a subclass that overrides `__call__`."""

    def __init__(self, *args, rngs, **kwargs):
        super().__init__(*args, rngs=rngs, **kwargs)
        self.dropout = nnx.Dropout(0.5, rng_collection="recurrent_dropout", rngs=rngs)

    def __call__(self, carry, inputs):
        dropped = self.dropout(jnp.ones_like(carry))
        carry, _ = super().__call__(carry, inputs)
        return carry, dropped


@pytest.mark.parametrize("jit", [False, True])
def test_recurrent_dropout_shares_its_mask_within_a_call_if_asked(jit):
    def run(rnn):
        call = nnx.jit(lambda rnn, x: rnn(x)) if jit else lambda rnn, x: rnn(x)
        return call(rnn, jnp.zeros((1, 6, IN)))[0]  # the mask at each step

    def cell():
        return Dropping(IN, 32, rngs=nnx.Rngs(0, recurrent_dropout=1))

    rnn = RNN(cell(), broadcast_rngs="recurrent_dropout")
    first, second = run(rnn), run(rnn)
    assert (first == first[0]).all() and (second == second[0]).all()
    assert (first != second).any()
    fresh = run(RNN(cell()))
    assert all((fresh[t] != fresh[t + 1]).any() for t in range(5))
    rnn.eval()
    assert (run(rnn) == 1).all()


def test_a_cell_may_be_any_module_and_lose_precision_in_its_carry():
    class Foreign(nnx.Module):
        def __call__(self, carry, inputs):
            count, total = carry["count"], carry["total"]
            total = (total + inputs).astype(jnp.bfloat16)
            return {"count": count + 1, "total": total}, {"double": 2 * total}

        def initialize_carry(self, input_shape, rngs):
            batch = input_shape[:-1]
            return {"count": jnp.zeros(batch, int), "total": jnp.zeros(input_shape)}

    carry, outputs = RNN(Foreign())(jnp.ones((2, 3, 1)), seq_lengths=[3, 1], return_carry=True)
    assert carry["total"].dtype == jnp.float32 and carry["count"].dtype == jnp.int32
    close(carry["count"], np.array([3, 1]))
    close(outputs["double"][..., 0], np.array([[2.0, 4, 6], [2, 0, 0]]))


def test_convolutional_cells_have_more_feature_axes():
    class Smear(RNNCellBase):
        num_feature_axes = 3

        def __call__(self, carry, inputs):
            carry = 0.5 * carry + inputs
            return carry, carry

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros(input_shape)

    x = make_inputs(2, 5, 3, 3, 1)
    outputs = RNN(Smear(), reverse=True, keep_order=True)(x, seq_lengths=[5, 2])
    close(outputs[1, 0], 0.5 * x[1, 1] + x[1, 0])
    assert not np.any(outputs[1, 2:])


# Dtypes

DTYPES = [None, jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("kind", ["simple", "gru", "gru before", "lstm", "lstm optimized"])
def test_every_mixture_of_dtypes_runs_and_the_output_has_dtype(kind):
    for dtype, param_dtype in itertools.product(DTYPES, DTYPES[1:]):
        if kind == "simple" and dtype is None:
            continue  # its default is float32; None is tried below
        cell = CELLS[kind](IN, HIDDEN, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        carry_dtype = param_dtype if dtype is None else jnp.promote_types(dtype, param_dtype)
        initial = jax.tree.leaves(cell.initialize_carry((2, IN)))[0]
        assert initial.dtype == carry_dtype
        for input_dtype in (jnp.float32, jnp.bfloat16):
            x = make_inputs(2, 3, IN).astype(input_dtype)
            carry, outputs = jax.eval_shape(
                lambda x: RNN(cell)(x, seq_lengths=jnp.array([3, 1]), return_carry=True),  # noqa: B023
                x,
            )
            computed = jnp.promote_types(input_dtype, param_dtype) if dtype is None else dtype
            assert outputs.dtype == computed
            for part in jax.tree.leaves(carry):
                assert part.dtype == jnp.promote_types(carry_dtype, computed)


def test_float64_inputs_run_with_default_cells():
    with jax.enable_x64(True):
        x = jnp.ones((2, 3, IN), jnp.float64)
        for kind in CELLS:
            outputs = RNN(make_cell(kind))(x)
            assert outputs.dtype == (jnp.float32 if kind == "simple" else jnp.float64)
        assert RNN(make_cell("simple", dtype=None))(x).dtype == jnp.float64


# Two directions


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("batch", LENGTHS, ids=str)
def test_bidirectional_agrees_with_loops(batch, with_lengths, time_major):
    forward, backward = make_cell("lstm"), make_cell("gru", seed=2)
    lengths = LENGTHS[batch] if with_lengths else None
    x = make_inputs(*((4, *batch, IN) if time_major else (*batch, 4, IN)))
    layer = Bidirectional(RNN(forward), RNN(backward), time_major=time_major, return_carry=True)
    carries, outputs = layer(x, seq_lengths=lengths)
    options = {"lengths": lengths, "time_major": time_major}
    forward_carry, forward_outputs = oracle.run(forward, x, **options)
    backward_carry, backward_outputs = oracle.run(
        backward, x, reverse=True, keep_order=True, **options
    )
    expected = np.concatenate([forward_outputs, backward_outputs], axis=-1)
    close(outputs, expected)
    close(carries, (forward_carry, backward_carry[0]))
    close(layer(x, seq_lengths=lengths, return_carry=False), expected)
    initial = jax.tree.map(lambda part: part + 0.5, carries)
    again, _ = layer(x, initial_carry=initial, seq_lengths=lengths)
    close(again[1], oracle.run(backward, x, carry=(initial[1],), reverse=True, **options)[0][0])


def test_bidirectional_reversed_is_bidirectional_over_flipped_inputs():
    layer = Bidirectional(RNN(make_cell()), RNN(make_cell(seed=2)))
    x, lengths = make_inputs(3, 4, IN), [4, 0, 2]
    flipped = flip_sequences(x, lengths, 1, False)
    expected = layer(flipped, seq_lengths=lengths)
    close(layer(x, seq_lengths=lengths, reverse=True), expected)
    in_order = layer(x, seq_lengths=lengths, reverse=True, keep_order=True)
    close(in_order, flip_sequences(expected, lengths, 1, False))


def test_bidirectional_honours_the_options_of_its_layers_and_merges_as_told():
    x = make_inputs(4, 2, IN)  # time first
    options = {"time_major": True, "return_carry": True}
    layer = Bidirectional(RNN(make_cell(), **options), RNN(make_cell(seed=2), **options))
    plain = Bidirectional(RNN(make_cell()), RNN(make_cell(seed=2)))
    carry, outputs = layer(x)
    close((carry, outputs), plain(x, **options))
    summed = Bidirectional(RNN(make_cell()), RNN(make_cell(seed=2)), merge_fn=jnp.add)
    both = plain(x)
    close(summed(x), both[..., :HIDDEN] + both[..., HIDDEN:])


def test_mismatched_layers_are_named():
    with pytest.raises(ValueError, match="time_major=True, backward_rnn with time_major=False"):
        Bidirectional(RNN(make_cell(), time_major=True), RNN(make_cell()))
    with pytest.raises(ValueError, match="return_carry=False, backward_rnn with return_carry=True"):
        Bidirectional(RNN(make_cell()), RNN(make_cell(), return_carry=True))
    with pytest.raises(ValueError, match=r"forward_rnn was made with reverse=True.*exchanged"):
        Bidirectional(RNN(make_cell(), reverse=True), RNN(make_cell()))
    with pytest.raises(ValueError, match="in_features=2, backward_rnn has in_features=5"):
        Bidirectional(RNN(make_cell()), RNN(make_cell(in_features=5)))
    with pytest.raises(ValueError, match=r"expected the pair \(forward carry, backward carry\)"):
        layer = Bidirectional(RNN(make_cell()), RNN(make_cell()))
        layer(make_inputs(2, 3, IN), initial_carry=jnp.zeros((2, HIDDEN)))
    rnn = RNN(make_cell())
    with pytest.warns(UserWarning, match="one object and share their parameters") as caught:
        Bidirectional(rnn, rnn)
    assert caught[0].filename == __file__  # where it was written, not somewhere in Flax


# Several layers


@pytest.mark.parametrize("time_major", [False, True])
def test_a_stack_runs_its_layers_one_after_another(time_major):
    bottom = Bidirectional(RNN(make_cell()), RNN(make_cell(seed=2)))
    top = RNN(make_cell("lstm", 2 * HIDDEN))
    stack = StackedRNN([bottom, top], time_major=time_major)
    x = make_inputs(*((5, 3, IN) if time_major else (3, 5, IN)))
    options = {"seq_lengths": [5, 0, 2], "return_carry": True, "time_major": time_major}
    carry_0, hidden = bottom(x, **options)
    carry_1, expected = top(hidden, **options)
    carries, outputs = stack(x, seq_lengths=[5, 0, 2], return_carry=True)
    close((carries, outputs), ((carry_0, carry_1), expected))
    close(stack(x, seq_lengths=[5, 0, 2], initial_carry=[None, None]), expected)

    def flip(sequence):
        return flip_sequences(sequence, [5, 0, 2], 1, time_major)

    reversed_outputs = stack(x, seq_lengths=[5, 0, 2], reverse=True)
    close(reversed_outputs, stack(flip(x), seq_lengths=[5, 0, 2]))
    in_order = stack(x, seq_lengths=[5, 0, 2], reverse=True, keep_order=True)
    close(in_order, flip(reversed_outputs))


def test_a_stack_can_be_one_direction_of_two():
    forward, backward = (
        StackedRNN([RNN(make_cell(seed=seed)), RNN(make_cell("gru", HIDDEN, seed=seed + 1))])
        for seed in (0, 5)
    )
    x, lengths = make_inputs(2, 4, IN), [4, 2]
    outputs = Bidirectional(forward, backward)(x, seq_lengths=lengths)
    expected = flip_sequences(
        backward(flip_sequences(x, lengths, 1, False), seq_lengths=lengths), lengths, 1, False
    )
    close(outputs, jnp.concatenate([forward(x, seq_lengths=lengths), expected], -1))


def test_dropout_between_layers():
    layers = [RNN(make_cell()), RNN(make_cell("gru", HIDDEN))]
    stack, x = StackedRNN(layers, dropout_rate=0.5, rngs=nnx.Rngs(0)), make_inputs(2, 4, IN)
    plain = StackedRNN(layers)
    assert jnp.any(stack(x) != stack(x))
    stack.eval()
    close(stack(x), plain(x))


def test_wrong_stacks_are_named():
    with pytest.raises(ValueError, match="no layers"):
        StackedRNN([])
    with pytest.raises(ValueError, match="differ in time_major"):
        StackedRNN([RNN(make_cell(), time_major=True), RNN(make_cell())])
    with pytest.raises(ValueError, match=r"dropout_rate is 0.5, which needs random keys"):
        StackedRNN([RNN(make_cell())], dropout_rate=0.5)
    with pytest.raises(TypeError, match=r"rngs is .*3.*; expected nnx.Rngs\(0\)"):
        StackedRNN([RNN(make_cell())], dropout_rate=0.5, rngs=3)
    with pytest.raises(ValueError, match=r"is a single array .* expected a tuple of 1"):
        StackedRNN([RNN(make_cell())])(make_inputs(2, 3, IN), initial_carry=jnp.zeros((2, HIDDEN)))
    with pytest.raises(ValueError, match="in_features=2"):
        StackedRNN([RNN(make_cell()), RNN(make_cell())])(make_inputs(2, 3, IN))


# Errors


@pytest.mark.parametrize(
    "cell, message",
    [
        (GRUCell, "the class GRUCell; expected a cell made from it"),
        (lambda carry, x: (carry, x), "got a function; expected a cell"),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "got a Linear; expected a cell.*initialize_carry"),
        (RNN(make_cell()), "got an RNN; expected a cell.*StackedRNN"),
        (None, "got a NoneType"),
    ],
    ids=["class", "function", "Linear", "RNN", "None"],
)
def test_what_is_not_a_cell_is_named(cell, message):
    with pytest.raises(TypeError, match=message):
        RNN(cell)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "shape, options, message",
    [
        (
            (3, 4, 5),
            {},
            r"GRUCell: inputs of one step have shape \(3, 5\); expected \(\*batch, 2\)",
        ),
        (
            (2,),
            {},
            r"inputs have shape \(2,\); expected \(\*batch, time, \*features\).*inputs\[...",
        ),
        (
            (3, 4, 2),
            {"initial_carry": np.zeros((3, 5))},
            r"h has shape \(3, 5\); expected \(3, 3\)",
        ),
        (
            (3, 4, 2),
            {"initial_carry": np.zeros((4, 3))},
            r"h has shape \(4, 3\); expected \(3, 3\)",
        ),
        ((3, 4, 2), {"initial_carry": (np.zeros((3, 3)),) * 2}, "h is a tuple; expected one array"),
        ((3, 4, 2), {"seq_lengths": [1, 2]}, r"seq_lengths has shape \(2,\); expected \(3,\)"),
        ((3, 4, 2), {"seq_lengths": [1, 2, 5]}, "seq_lengths holds 5.*has length 4"),
        ((3, 4, 2), {"seq_lengths": [1, 2, -1]}, "seq_lengths holds -1"),
    ],
)
def test_what_does_not_fit_is_named(shape, options, message, jit):
    rnn = RNN(make_cell())
    call = jax.jit(lambda x: rnn(x, **options)) if jit else lambda x: rnn(x, **options)
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros(shape))


def test_other_mistakes_are_named():
    x = jnp.zeros((3, 4, IN))
    with pytest.raises(TypeError, match="seq_lengths has dtype float32"):
        RNN(make_cell())(x, seq_lengths=jnp.ones(3))
    with pytest.raises(ValueError, match=r"the carry is a .*expected the pair \(c, h\)"):
        RNN(make_cell("lstm"))(x, initial_carry=jnp.zeros((3, HIDDEN)))
    with pytest.raises(TypeError, match=r"rngs is an int; expected nnx.Rngs\(0\)"):
        RNN(make_cell(), rngs=7)
    with pytest.raises(ValueError, match="needs a random key: pass rngs"):
        RNN(make_cell(carry_init=nnx.initializers.normal()), rngs=False)(x)
    with pytest.raises(ValueError, match="arrays that share batch and time"):
        RNN(Resetting(make_cell()))((x, jnp.zeros((3, 5))))
    with pytest.raises(ValueError, match="inputs holds no arrays"):
        RNN(make_cell())({})

    class Forgetful(RNNCellBase):
        def __call__(self, carry, inputs):
            return carry

        def initialize_carry(self, input_shape, rngs):
            return jnp.zeros(input_shape)

    with pytest.raises(TypeError, match=r"Forgetful returned a .*expected the pair \(new_carry"):
        RNN(Forgetful())(x)

    class Growing(Forgetful):
        def __call__(self, carry, inputs):
            return (carry, carry), inputs

    with pytest.raises(ValueError, match=r"initial carry has 1 arrays.*step returns 2"):
        RNN(Growing())(x)

    class Shrinking(Forgetful):
        def __call__(self, carry, inputs):
            return carry[..., :1], inputs

    with pytest.raises(ValueError, match=r"array of shape \(3, 2\) where a step returns.*\(3, 1\)"):
        RNN(Shrinking())(x)

    class Adding(Forgetful):
        def __call__(self, carry, inputs):
            self.extra = nnx.Param(jnp.zeros(1))
            return carry, inputs

    with pytest.raises(ValueError, match=r"adds or removes variables in a step.*extra"):
        RNN(Adding())(x)
    with pytest.raises(NotImplementedError, match="does not define __call__"):
        RNNCellBase()(None, None)
    with pytest.raises(NotImplementedError, match="does not define initialize_carry"):
        RNNCellBase().initialize_carry((2,))


def test_layers_that_are_none_are_named():
    layer = RNN(make_cell())
    for odd in (np.array("x"), None, "abc", 3):
        with pytest.raises(TypeError, match="expected a list of RNNs"):
            StackedRNN(odd)
    for odd in (None, make_cell(), RNN):
        with pytest.raises(TypeError, match=r"layer 1 is .*; expected a layer"):
            StackedRNN([layer, odd])
        with pytest.raises(TypeError, match=r"backward_rnn is .*; expected a layer"):
            Bidirectional(layer, odd)
    for rate in (2, np.nan):
        with pytest.raises(ValueError, match=f"dropout_rate is {rate}; expected a share"):
            StackedRNN([layer], dropout_rate=rate, rngs=nnx.Rngs(0))
    for rate in ("0.5", True, jnp.array([0.5])):
        with pytest.raises(TypeError, match=r"dropout_rate is .*; expected a share"):
            StackedRNN([layer], dropout_rate=rate, rngs=nnx.Rngs(0))
    assert StackedRNN([layer], dropout_rate=np.float32(0.5), rngs=nnx.Rngs(0)).dropout.rate == 0.5
    with pytest.raises(TypeError, match=r"initial_carry is .*; expected an array of numbers"):
        layer(make_inputs(4, IN), initial_carry="abc")


@pytest.mark.parametrize("layer", ["dense_i", "dense_h"])
def test_adapters_may_take_the_place_of_a_cells_layers(layer):
    cell, x = GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0)), make_inputs(2, 4, IN)
    theirs = nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0))
    for one in (cell, theirs):
        base = getattr(one, layer)
        normal = nnx.initializers.normal(1.0)
        sizes = base.in_features, 2, base.out_features
        adapter = nnx.LoRA(*sizes, base_module=base, b_initializer=normal, rngs=nnx.Rngs(7))
        setattr(one, layer, adapter)
    close(RNN(cell)(x), nnx.RNN(theirs)(x))
    own = nnx.grad(lambda rnn: (rnn(x) ** 2).sum(), argnums=nnx.DiffState(0, nnx.LoRAParam))(
        RNN(cell)
    )
    assert len(jax.tree.leaves(own)) == 2 and all(np.any(leaf) for leaf in jax.tree.leaves(own))


def test_a_gru_that_resets_before_names_an_exchanged_layer():
    cell = GRUCell(IN, HIDDEN, reset_after=False, rngs=nnx.Rngs(0))
    for other in (
        nnx.LoRALinear(HIDDEN, 3 * HIDDEN, lora_rank=2, use_bias=False, rngs=nnx.Rngs(0)),
        nnx.Linear(HIDDEN, 3 * HIDDEN, rngs=nnx.Rngs(0)),
    ):
        cell.dense_h = other
        with pytest.raises(TypeError, match=r"with reset_after=False .* dense_h, .*; expected"):
            RNN(cell)(make_inputs(2, 4, IN))


@pytest.mark.parametrize("kind", CELLS)
def test_a_product_of_ones_own_is_used(kind):
    def doubled(*args, **options):
        return 2 * jax.lax.dot_general(*args, **options)

    x = make_inputs(2, 4, IN)
    cell, expected = make_cell(kind), make_cell(kind)
    for name in ("dense_h", "hi", "hf", "hg", "ho"):
        if hasattr(cell, name):
            getattr(cell, name).dot_general = doubled
            getattr(expected, name).kernel[...] *= 2
    close(RNN(cell)(x), RNN(expected)(x))


def test_the_dtype_in_which_a_layer_adds_is_used():
    ours, theirs = (
        kind(IN, HIDDEN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)) for kind in (LSTMCell, nnx.LSTMCell)
    )
    x = make_inputs(2, 9, IN)
    for cell in (ours, theirs):
        for name in ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"):
            getattr(cell, name).preferred_element_type = jnp.float32
    carry = jnp.zeros((2, HIDDEN)), jnp.zeros((2, HIDDEN))
    expected = nnx.RNN(theirs)(x, initial_carry=carry)
    close(RNN(ours)(x, initial_carry=carry), expected.astype(jnp.bfloat16))


def test_a_parameter_may_be_a_plain_array():
    cell, x = make_cell(), make_inputs(2, 4, IN)
    expected = RNN(cell)(x)
    cell.dense_i.kernel = nnx.data(cell.dense_i.kernel[...])
    close(RNN(cell)(x), expected)


def test_an_error_within_a_stack_says_in_which_layer():
    rnns = [RNN(GRUCell(width, HIDDEN, rngs=nnx.Rngs(0))) for width in (IN, HIDDEN, HIDDEN + 1)]
    with pytest.raises(ValueError, match="inputs of one step have shape") as error:
        StackedRNN(rnns)(make_inputs(2, 4, IN))
    assert "This is layer 2 of the 3 in a StackedRNN." in error.value.__notes__


def test_a_list_is_no_array_unless_the_cell_says_so():
    x = make_inputs(4, IN)
    for cell in (make_cell(), LearnedCarry(make_cell())):
        for inputs in ([x, x], [x, x[:2]], (x, x), [[[1.0] * IN] * 4]):
            with pytest.raises(TypeError, match=r"inputs is a (list|tuple); .*pad_sequences"):
                RNN(cell)(inputs)


class Settings:
    """What a cell of a reader's may carry along: a plain object that can change."""

    scale = 2.0


ATTRIBUTES = {
    "dict": lambda: {"scale": 2.0},
    "set": lambda: {1, 2},
    "slice": lambda: slice(0, 2),
    "object": Settings,
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_a_cell_may_hold_anything(kind):
    class Holding(GRUCell):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.held = ATTRIBUTES[kind]()

    x = make_inputs(2, 4, IN)
    expected = RNN(GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0)))(x)
    rnn = RNN(Holding(IN, HIDDEN, rngs=nnx.Rngs(0)))
    close(rnn(x), expected)
    if kind == "object":  # Flax keeps nothing that it cannot compare
        close(nnx.jit(lambda rnn, x: rnn(x))(rnn, x), expected)


def test_metadata_may_be_a_list():
    options = {"kernel_metadata": {"note": ["a", "b"]}, "rngs": nnx.Rngs(0)}
    x = make_inputs(2, 4, IN)
    close(RNN(GRUCell(IN, HIDDEN, **options))(x), RNN(GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0)))(x))


def test_a_changed_object_in_a_cell_is_noticed():
    class Scaling(SimpleCell):
        settings: Settings

        def __call__(self, carry, inputs):
            return super().__call__(carry, self.settings.scale * inputs)

    cell = Scaling(IN, HIDDEN, rngs=nnx.Rngs(0))
    cell.settings = Settings()
    x = make_inputs(2, 4, IN)
    before = RNN(cell)(x)
    cell.settings.scale = 1.0
    after = RNN(cell)(x)
    close(after, RNN(SimpleCell(IN, HIDDEN, rngs=nnx.Rngs(0)))(x))
    assert np.abs(before - after).max() > 1e-3


class Steep:
    """An activation that can be changed: an object with a method and a call."""

    slope = 2.0

    def __call__(self, x):
        return jnp.tanh(self.slope * x)

    def method(self, x):
        return self(x)


class Wrapping(Steep):
    """It looks like the function that it wraps."""

    def __init__(self):
        functools.update_wrapper(self, jnp.tanh)


@pytest.mark.filterwarnings("ignore:Variable hooks are deprecated")
def test_a_changed_hook_of_a_variable_is_noticed():
    class Scale:
        by = 2.0

        def __call__(self, variable, value):
            return self.by * value

    scale, x = Scale(), make_inputs(2, 4, IN)
    rnn = RNN(make_cell(kernel_metadata={"on_get_value": scale}))
    before = rnn(x)
    scale.by = 1.0
    close(rnn(x), RNN(make_cell())(x))
    assert np.abs(before - rnn(x)).max() > 1e-3


@dataclass(frozen=True)
class Frozen:
    """It cannot change, but what it holds can."""

    steep: Steep
    cache: object = field(init=False, compare=False)  # not there before it is needed

    def __call__(self, x):
        return self.steep(x)


@dataclass(frozen=True)
class FrozenSet:
    """The same for a set."""

    steeps: frozenset

    def __call__(self, x):
        return sum(steep(x) for steep in self.steeps)


@pytest.mark.parametrize(
    "as_activation",
    [
        lambda steep: steep,
        Frozen,
        lambda steep: FrozenSet(frozenset([steep])),
        lambda steep: steep.method,
        lambda steep: partial(steep),
        lambda steep: partial(lambda x, f: f(x), f=steep),
    ],
    ids=["object", "frozen", "set", "method", "partial", "keyword"],
)
@pytest.mark.parametrize("kind", [Steep, Wrapping])
def test_a_changed_activation_is_noticed(as_activation, kind):
    steep, x = kind(), make_inputs(2, 4, IN)
    rnn = RNN(make_cell(activation_fn=as_activation(steep)))
    before = rnn(x)
    steep.slope = 1.0
    close(rnn(x), RNN(make_cell())(x))
    assert np.abs(before - rnn(x)).max() > 1e-3


def test_a_changed_object_in_a_tuple_is_noticed():
    cell, x = make_cell(), make_inputs(2, 4, IN)
    settings = Settings()
    cell.held = nnx.static((settings,))
    cell.activation_fn = lambda x: jnp.tanh(cell.held[0].scale * x)
    before = RNN(cell)(x)
    settings.scale = 1.0
    close(RNN(cell)(x), RNN(make_cell())(x))
    assert np.abs(before - RNN(cell)(x)).max() > 1e-3


class Counting(RNNCellBase):
    """Its carry holds a count of steps and a random key besides the state of each sequence."""

    def __call__(self, carry, inputs):
        state, count, key = carry
        key, used = jax.random.split(key)
        state = state + count * inputs + jax.random.normal(used, (IN,))
        return (state, count + 1, key), state

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros(input_shape), 0, jax.random.key(3)


def test_what_has_no_batch_in_a_carry_goes_on_beside_the_lengths():
    x = make_inputs(2, 4, IN)
    rnn = RNN(Counting(), return_carry=True)
    (state, count, key), outputs = rnn(x, seq_lengths=[4, 2])
    (_, _, expected_key), expected = rnn(x)
    close(outputs, expected.at[1, 2:].set(0))
    close(state, jnp.stack([expected[0, -1], expected[1, 1]]))
    assert int(count) == 4 and key == expected_key


def test_an_output_without_batch_is_named():
    class Mean(Counting):
        def __call__(self, carry, inputs):
            carry, output = super().__call__(carry, inputs)
            return carry, output.mean()

    for options in ({}, {"seq_lengths": [4, 2]}):
        with pytest.raises(
            ValueError, match=r"output of shape \(\); expected .* with 1 batch axis"
        ):
            RNN(Mean())(make_inputs(2, 4, IN), **options)
    assert RNN(Mean())(make_inputs(4, IN)).shape == (4,)
    assert RNN(Mean(), time_major=True)(make_inputs(4, 2, IN)).shape == (4,)


def test_a_batch_that_is_not_in_front_is_named():
    class Layers(RNNCellBase):
        """Two layers, whose states are stacked before the batch."""

        def __call__(self, carry, inputs):
            carry = carry + jnp.stack([inputs, 2 * inputs])
            return carry, carry[1]

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros((2, *input_shape))

    x = make_inputs(3, 4, IN)
    assert RNN(Layers())(x).shape == x.shape
    with pytest.raises(
        ValueError, match=r"array of shape \(2, 3, 2\); expected the batch \(3,\) in"
    ):
        RNN(Layers())(x, seq_lengths=[4, 0, 2])


@pytest.mark.parametrize(
    "as_carry", [OrderedDict, lambda **parts: namedtuple("State", list(parts))(**parts)]
)
def test_carries_in_another_order_are_named(as_carry):
    class Turned(RNNCellBase):
        def __call__(self, carry, inputs):
            carry = carry if isinstance(carry, dict) else carry._asdict()
            return as_carry(c=carry["c"] + 1, h=carry["h"] + inputs), carry["h"]

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return as_carry(h=jnp.zeros(input_shape), c=jnp.ones(input_shape))

    with pytest.raises(ValueError, match=r"in the order h, c, but a step returns .* c, h; exp"):
        RNN(Turned())(make_inputs(2, 4, IN))


def test_random_keys_may_come_out_beside_lengths():
    class Splitting(RNNCellBase):
        def __call__(self, carry, inputs):
            carry, drawn = jax.random.split(carry)
            return carry, jax.random.split(drawn, inputs.shape[0])

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jax.random.key(0)

    x = make_inputs(2, 4, IN)
    assert (RNN(Splitting())(x, seq_lengths=[4, 2]) == RNN(Splitting())(x)).all()


def test_a_learned_carry_of_a_cell_without_feature_axes():
    class Embedding(RNNCellBase):
        num_feature_axes = 0

        def __init__(self):
            self.table = nnx.Embed(5, HIDDEN, rngs=nnx.Rngs(0))

        def __call__(self, carry, inputs):
            carry = carry + self.table(inputs)
            return carry, carry

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros((*input_shape, HIDDEN))

    ids = jnp.array([[1, 2, 3], [4, 0, 1]])
    learned = LearnedCarry(Embedding(), input_shape=())
    assert learned.initialize_carry((2,)).shape == (2, HIDDEN)
    close(RNN(learned)(ids), RNN(Embedding())(ids))


def test_random_keys_may_be_inputs_beside_lengths():
    class Noisy(RNNCellBase):
        def __call__(self, carry, inputs):
            x, keys = inputs
            carry = carry + x + jax.vmap(lambda key: jax.random.normal(key, (IN,)))(keys)
            return carry, carry

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros(input_shape)

    x, keys = make_inputs(2, 4, IN), jax.random.split(jax.random.key(0), (2, 4))
    outputs = RNN(Noisy())((x, keys), seq_lengths=[4, 2])
    close(outputs, RNN(Noisy())((x, keys)).at[1, 2:].set(0))


def test_a_cell_may_call_something_else_recurrence():
    class Layer(RNNCellBase):
        def __init__(self):
            self.recurrence = nnx.Linear(IN, IN, rngs=nnx.Rngs(0))

        def __call__(self, carry, inputs):
            carry = jnp.tanh(self.recurrence(carry) + inputs)
            return carry, carry

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros(input_shape)

    class Method(Layer):
        def __init__(self):
            self.dense = nnx.Linear(IN, IN, rngs=nnx.Rngs(0))

        def recurrence(self, carry):
            return self.dense(carry)

    class Bare(Method):
        def recurrence(self):
            return self.dense

        def __call__(self, carry, inputs):
            carry = jnp.tanh(self.recurrence()(carry) + inputs)
            return carry, carry

    x = make_inputs(2, 4, IN)
    expected = RNN(Layer())(x)
    for cell in (Layer(), Method(), Bare()):
        close(RNN(cell)(x), expected)
        close(RNN(LearnedCarry(cell, input_shape=(IN,)))(x), expected)


@pytest.mark.parametrize("kind", CELLS)
def test_it_runs_where_jax_is_told_to_be_strict(kind):
    layer = RNN(make_cell(kind), return_carry=True, reverse=True)
    x, lengths = make_inputs(3, 4, IN), [4, 0, 2]

    def value_and_gradient(layer, x):
        return nnx.value_and_grad(lambda layer: (layer(x, seq_lengths=lengths)[1] ** 2).sum())(
            layer
        )

    expected = value_and_gradient(layer, x)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        close(value_and_gradient(layer, x), expected)
        with jax.enable_x64(True):
            close(value_and_gradient(layer, x), expected)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_complex_numbers_are_refused(kind):
    rnn = RNN(make_cell(kind))
    with pytest.raises(TypeError, match=r"inputs are complex numbers; expected real"):
        rnn(jnp.ones((2, 4, IN), complex))
    carry = jax.tree.map(lambda part: part.astype(complex), rnn.cell.initialize_carry((2, IN)))
    with pytest.raises(TypeError, match=r"the carry's \w+ is of complex numbers; expected real"):
        rnn(make_inputs(2, 4, IN), initial_carry=carry)


def test_options_of_the_wrong_kind_are_named():
    cell = GRUCell(2, 3, rngs=nnx.Rngs(0))
    for unroll in ("two", 2.0, None):
        with pytest.raises(TypeError, match=r"unroll is .*; expected a whole number"):
            RNN(cell, unroll=unroll)
    with pytest.raises(ValueError, match="unroll is -1; expected at least 0"):
        RNN(cell, unroll=-1)
    assert [RNN(cell, unroll=unroll).unroll for unroll in (0, np.int64(2), True)] == [0, 2, True]
    with pytest.raises(TypeError, match=r"state_axes is 0; expected a mapping from nnx filters"):
        RNN(cell, state_axes=0)
    with pytest.raises(TypeError, match=r"a key of state_axes is 3; expected an nnx filter"):
        RNN(cell, state_axes={3: nnx.Carry})
    with pytest.raises(TypeError, match=r"a value of state_axes is 'x'; expected nnx.Carry, None"):
        RNN(cell, state_axes={...: "x"})
    with pytest.raises(TypeError, match=r"broadcast_rngs is 3; expected an nnx filter such as"):
        RNN(cell, broadcast_rngs=3)


def test_a_merge_that_does_not_merge_two_is_named():
    one, other = (RNN(GRUCell(2, 3, rngs=nnx.Rngs(0))) for _ in range(2))
    expected = r"expected a function of \(forward, backward\), such as jnp.add"
    for merge_fn, found in (("sum", "is 'sum'"), (lambda a: a, r"takes \(a\)"), (None, "is None")):
        with pytest.raises(TypeError, match=f"merge_fn {found}; {expected}"):
            Bidirectional(one, other, merge_fn=merge_fn)
    inputs = jnp.ones((2, 4, 2))
    for merge_fn in (jnp.add, np.add, max, lambda *both: both[1], lambda a, b, c=0: a + b):
        layer = Bidirectional(one, other, merge_fn=merge_fn)
        if merge_fn is not max:  # takes any number of numbers, but of arrays none
            assert layer(inputs).shape == (2, 4, 3)


def test_outputs_of_different_width_that_do_not_merge_are_named():
    narrow, wide = (RNN(GRUCell(2, units, rngs=nnx.Rngs(0))) for units in (3, 4))
    inputs = jnp.ones((2, 5, 2))
    assert Bidirectional(narrow, wide)(inputs).shape == (2, 5, 7)
    added = Bidirectional(narrow, wide, merge_fn=jnp.add)
    with pytest.raises(ValueError, match=r"of shape \(2, 5, 3\), forward, and \(2, 5, 4\), backw"):
        added(inputs)
    other = RNN(GRUCell(2, 3, rngs=nnx.Rngs(1)))
    broken = Bidirectional(narrow, other, merge_fn=lambda one, other: one @ other)
    with pytest.raises(TypeError, match="dot_general"):  # the reader's own error, as it is
        broken(inputs)
