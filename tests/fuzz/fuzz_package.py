"""Any input at all: each public function answers as the oracle does, or says what is wrong with it.

`make fuzz` runs this file; `make test` does not collect it. An example passes if the function

- returns what plain NumPy in float64 computes, to the precision of the dtype, or
- raises a TypeError or ValueError *itself*, with a message that says what was expected.

An error from the depths of JAX, an AttributeError, a wrong number or a call that does not come back
is a failure, which Hypothesis then makes small. FUZZ in the environment says how many examples an
ordinary test has; the default makes 24,500 in all. JAX runs mostly without compiling here: what is
looked for are wrong answers to odd questions.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import traceback
import warnings
from types import MappingProxyType, SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import unrolled
from tests import oracle
from unrolled import convert
from unrolled.gru import PARAMETER_SHAPES
from unrolled.lab.finite import check_finite, count_nonfinite
from unrolled.lab.language import CHARACTERS, decode, encode, ngram_bits
from unrolled.scan import Recurrence, Weights, gate_uses, scan_recurrence
from unrolled.sequences import check_seq_lengths

EXAMPLES = int(os.environ.get("FUZZ", "1000"))  # of a test of ordinary cost
IN, HIDDEN = 2, 3
FLOATS = ("float32", "float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATS, "int32", "int8", "uint8", "bool")
SPECIAL = (np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0)
# Not arrays of numbers, and now and then given as one.
ODD = (None, "abc", 3, 2.5, [], {}, (), [1, [2]], object(), [None], True, np.array("x"), b"0")
TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}


def fuzz(share):
    """Settings of a test: its share of EXAMPLES, fewer for what takes long."""
    return settings(
        max_examples=max(1, round(share * EXAMPLES)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )


@pytest.fixture(autouse=True, scope="module")
def without_compiling():
    with jax.disable_jit():
        yield


def answer(function, *args, **kwargs):
    """What a call returns, or the clear error that it raises, within a minute."""
    faulthandler.dump_traceback_later(60, exit=True)  # a call that hangs ends the run, by name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        if os.sep + "unrolled" + os.sep not in innermost.replace("/lab/", "/"):
            raise  # the package let it through to somewhere else
        words = ("expected", "needs", "pass ", "use ", "cut it", "is missing; found")
        message = str(error).lower()
        assert any(word in message for word in words), f"not a clear message: {error}"
        return error
    finally:
        faulthandler.cancel_dump_traceback_later()


def is_error(result):
    return isinstance(result, Exception)


def expect(actual, expected, *given):
    """Compare with the oracle, as precisely as the coarsest dtype in play allows."""
    finite = all(np.isfinite(np.asarray(a, np.float64)).all() for a in jax.tree.leaves(given))
    names = {str(jnp.asarray(a).dtype) for a in jax.tree.leaves((actual, given))}
    atol = max(TOLERANCE.get(name, 2e-5) for name in names)
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        if finite:
            np.testing.assert_allclose(one, other, atol=atol, rtol=max(1e-4, atol))


# What is given


@st.composite
def arrays(draw, shape, dtypes=DTYPES, special=True):
    """An array of this shape, of some dtype, of NumPy or of JAX."""
    values = np.random.default_rng(draw(st.integers(0, 2**16))).normal(size=shape)
    dtype = draw(st.sampled_from(dtypes))
    if special and values.size and dtype in FLOATS and draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, values.size - 1))
        values.reshape(-1)[place] = draw(st.sampled_from(SPECIAL))
    with np.errstate(all="ignore"):
        if dtype in ("float32", "float64", "int32", "int8", "uint8", "bool", "float16"):
            array = values.astype(dtype)
        else:
            array = np.asarray(jnp.asarray(values, dtype))
    return array if draw(st.booleans()) else jnp.asarray(array)


def bent(shape):
    """A shape near the given one, or the same."""
    shape = tuple(shape)
    others = [shape, shape[:-1], shape[1:], (*shape, 1), (1, *shape), shape[::-1], ()]
    others += [
        tuple(0 if i == axis else n for i, n in enumerate(shape)) for axis in range(len(shape))
    ]
    others += [
        tuple(n + 1 if i == axis else n for i, n in enumerate(shape)) for axis in range(len(shape))
    ]
    return st.sampled_from(others)


@st.composite
def maybe(draw, shape, dtypes=DTYPES, odds=8):
    """Most often an array of this shape, else one of another, else something else altogether."""
    luck = draw(st.integers(0, odds))
    if luck == 0:
        return draw(arrays(draw(bent(shape)), dtypes))
    if luck == 1 and draw(st.booleans()):
        return draw(st.sampled_from(ODD))
    return draw(arrays(shape, dtypes))


@st.composite
def seq_lengths(draw, batch, num_steps):
    """Lengths of some kind: none, good ones, or ones that are out of range or not numbers."""
    kind = draw(st.sampled_from(["none", "good", "good", "good", "wild", "float", "bent", "odd"]))
    size = int(np.prod(batch, dtype=int))
    if kind == "none":
        return None
    if kind == "odd":
        return draw(st.sampled_from(ODD))
    if kind == "bent":
        batch = draw(bent(batch))
        size = int(np.prod(batch, dtype=int))
    low, high = (-2, num_steps + 2) if kind == "wild" else (0, num_steps)
    values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    dtype = draw(
        st.sampled_from(
            ["float32", "bool"] if kind == "float" else ["int32", "int64", "uint8", "int8"]
        )
    )
    array = np.array(values).reshape(batch).astype(dtype)
    return draw(st.sampled_from([array, array.tolist(), jnp.asarray(array)]))


keys = st.sampled_from(
    [0, 1, None, "key", 2.5, jnp.zeros(2, jnp.uint32), jnp.zeros(3, jnp.uint32), np.zeros(2)]
) | st.builds(lambda seed: jax.random.key(seed), st.integers(0, 9))
sizes = st.sampled_from(
    [1, 2, 3, 3, 4, 0, -1, 2.0, "4", None, True, np.int32(2), np.array([2]), (2,)]
)
scales = st.sampled_from([0.01, 1.0, 0, -1, np.nan, None, "1", jnp.ones(()), jnp.ones(3)])
kinds_of_dtype = st.sampled_from(
    ["float32", "bfloat16", jnp.float16, np.float64, "int32", bool, complex, None, "banana", 7]
)


# The functional GRU


@fuzz(1.5)
@given(keys, sizes, sizes, scales, kinds_of_dtype)
def fuzz_initialize_gru_params(key, input_dim, hidden_dim, scale, dtype):
    params = answer(
        unrolled.initialize_gru_params, key, input_dim, hidden_dim, scale=scale, dtype=dtype
    )
    if not is_error(params):
        dims = {"input_dim": int(input_dim), "hidden_dim": int(hidden_dim)}
        for name, shape in PARAMETER_SHAPES.items():
            assert params[name].shape == tuple(dims[dim] for dim in shape)
            assert params[name].dtype == jax.dtypes.canonicalize_dtype(dtype)


@st.composite
def functional_params(draw, strategy=arrays):
    dims = {"input_dim": IN, "hidden_dim": HIDDEN}
    dtype = draw(st.sampled_from(FLOATS))
    params = {
        name: draw(arrays(tuple(dims[dim] for dim in shape), (dtype,), special=False))
        for name, shape in PARAMETER_SHAPES.items()
    }
    luck = draw(st.integers(0, 9))
    name = draw(st.sampled_from(sorted(params)))
    if luck == 0:
        del params[name]
    elif luck == 1:
        params[name] = draw(maybe(np.shape(params[name]), odds=1))
    elif luck == 2:
        return draw(st.sampled_from(ODD))
    return params


def functional_step(params, h, x):
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    z = oracle.sigmoid(p["Wz"] @ x + p["Uz"] @ h + p["bz"])
    r = oracle.sigmoid(p["Wr"] @ x + p["Ur"] @ h + p["br"])
    new = np.tanh(p["Wh"] @ x + p["Uh"] @ (r * h) + p["bh"])
    return (1 - z) * h + z * new


@fuzz(2)
@given(functional_params(), maybe((HIDDEN,), FLOATS), maybe((IN,), FLOATS))
def fuzz_gru_step(params, h, x):
    result = answer(unrolled.gru_step, params, h, x)
    if not is_error(result):
        with np.errstate(all="ignore"):
            new = functional_step(params, np.asarray(h, np.float64), np.asarray(x, np.float64))
        expect(result, (new, new), params, h, x)


@fuzz(1.5)
@given(functional_params(), maybe((HIDDEN,), FLOATS), st.data())
def fuzz_gru_sequence(params, h, data):
    inputs = data.draw(maybe((data.draw(st.integers(0, 3)), IN), FLOATS))
    with runs(inputs):
        result = answer(unrolled.gru_sequence, params, h, inputs)
    if not is_error(result):
        state, states = np.asarray(h, np.float64), []
        with np.errstate(all="ignore"):
            for x in np.asarray(inputs, np.float64):
                state = functional_step(params, state, x)
                states.append(state)
        states = np.stack(states) if states else np.zeros((0, HIDDEN))
        expect(result, (state, states), params, h, inputs)


# Cells and layers

MAKERS = {
    "SimpleCell": unrolled.SimpleCell,
    "GRUCell": unrolled.GRUCell,
    "GRUCell before": functools.partial(unrolled.GRUCell, reset_after=False),
    "LSTMCell": unrolled.LSTMCell,
    "OptimizedLSTMCell": unrolled.OptimizedLSTMCell,
}


@functools.cache
def make_cell(kind, in_features=IN, hidden=HIDDEN, seed=0, param_dtype="float32"):
    bias_init = nnx.initializers.normal(0.5)
    return MAKERS[kind](
        in_features,
        hidden,
        bias_init=bias_init,
        param_dtype=jnp.dtype(param_dtype),
        rngs=nnx.Rngs(seed),
    )


cells = st.builds(
    make_cell,
    st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 1),
    param_dtype=st.sampled_from(["float32", "float32", "bfloat16"]),
)


@fuzz(0.7)
@given(
    st.sampled_from(sorted(MAKERS)),
    sizes,
    sizes,
    kinds_of_dtype,
    st.sampled_from([nnx.Rngs(0), nnx.Rngs(0), None, 0, jax.random.key(0), "rngs"]),
)
def fuzz_make_a_cell(kind, in_features, hidden, dtype, rngs):
    cell = answer(MAKERS[kind], in_features, hidden, param_dtype=dtype, rngs=rngs)
    if not is_error(cell):
        assert cell.initialize_carry((4, int(in_features))) is not None


def one_argument(array):
    """Neither an initialiser nor anything else that is called with two or three arguments."""
    return array


# Initialisers, and what is often given instead of one.
initialisers = st.sampled_from(
    [
        *[nnx.initializers.normal(0.5), nnx.initializers.ones_init()] * 4,
        lambda key, shape, dtype: np.full(shape, 0.5, dtype),
        lambda key, shape, dtype: jnp.ones(HIDDEN, dtype),
        lambda key, shape, dtype: shape,
        nnx.initializers.zeros_init,
        nnx.initializers.lecun_normal,
        unrolled.orthogonal_per_gate,
        one_argument,
        *ODD,
    ]
)


def mostly(good, *others):
    return st.sampled_from([good] * 12 + [*others, *ODD])


@fuzz(0.5)
@given(st.sampled_from(sorted(MAKERS)), st.data())
def fuzz_options_of_a_cell(kind, data):
    options = {}
    for name in ("kernel_init", "recurrent_kernel_init", "bias_init", "carry_init"):
        if data.draw(st.integers(0, 3)) == 0:
            options[name] = data.draw(initialisers)
    metadata = mostly({"name": "k"}, {}, MappingProxyType({}), {1: 2})
    for name in ("kernel_metadata", "recurrent_kernel_metadata", "bias_metadata"):
        if data.draw(st.booleans()):
            options[name] = data.draw(metadata)
    if data.draw(st.booleans()):
        options["promote_dtype"] = data.draw(
            mostly(lambda arrays, dtype: nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype))
        )
        options["activation_fn"] = data.draw(mostly(nnx.tanh, jnp.tanh))
        if kind != "SimpleCell":
            options["gate_fn"] = data.draw(mostly(nnx.sigmoid, jax.nn.sigmoid))
    if "LSTM" in kind and data.draw(st.booleans()):
        options["forget_bias"] = data.draw(mostly(1.5, np.float32(2), jnp.ones(HIDDEN), np.nan))
    with jax.disable_jit(False):
        cell = answer(MAKERS[kind], IN, HIDDEN, rngs=nnx.Rngs(0), **options)
        if is_error(cell):
            return
        carry = answer(cell.initialize_carry, (2, IN), nnx.Rngs(1))
    if is_error(carry):
        return
    x = data.draw(arrays((2, IN), ("float32",)))
    result = answer(cell, carry, x)
    with np.errstate(all="ignore"):
        final, outputs = oracle.run(cell, x[:, None], carry=spread(carry, cell, (2,)))
    expect(result, (*final, outputs[:, 0]), carry, x)


shapes = st.sampled_from([(IN,), (2, IN), [2, IN], (0, IN), (2, 1, IN), np.array([2, IN]), *ODD])
shapes |= st.lists(
    st.sampled_from([2, 2, 0, IN, -1, 2.5, "a", None, True, np.int32(2), np.array(2), (2,)]),
    max_size=3,
).map(tuple)


@fuzz(0.9)
@given(cells, st.booleans(), shapes, st.none() | initialisers, st.data())
def fuzz_initial_carries(cell, learned, shape, carry_init, data):
    rngs = data.draw(st.sampled_from([None, 0, "x", jax.random.key(0)] + [nnx.Rngs(0)] * 4))
    with jax.disable_jit(False):
        made = unrolled.LearnedCarry(cell) if learned else cell
        carry = answer(made.initialize_carry, shape, rngs, carry_init)
    if not is_error(carry):
        wanted = (*np.array(shape, int)[:-1], HIDDEN)
        for part in carry if len(cell.carry_names) > 1 else (carry,):
            assert part.shape == wanted or (carry_init is not None and part.shape == (HIDDEN,))


@st.composite
def carries(draw, cell, batch):
    """A carry for a cell: one or two arrays, or something else."""
    count = len(cell.carry_names)
    if draw(st.integers(0, 9)) == 0:
        count = draw(st.sampled_from([0, 1, 2, 3]))
        kind = draw(st.sampled_from([tuple, list]))
        return kind(draw(maybe((*batch, HIDDEN), FLOATS)) for _ in range(count))
    parts = tuple(draw(maybe((*batch, HIDDEN), FLOATS, odds=20)) for _ in range(count))
    return parts if count > 1 else parts[0]


def spread(carry, cell, batch):
    """The parts of a carry that was accepted, in float64, for every row."""
    parts = carry if len(cell.carry_names) > 1 else (carry,)
    return tuple(np.broadcast_to(np.asarray(p, np.float64), (*batch, HIDDEN)) for p in parts)


@fuzz(0.7)
@given(cells, st.sampled_from([(), (2,), (0,), (2, 1)]), st.data())
def fuzz_a_step(cell, batch, data):
    carry = data.draw(carries(cell, batch))
    inputs = data.draw(maybe((*batch, IN)))
    result = answer(cell, carry, inputs)
    if not is_error(result):
        batch = np.shape(inputs)[:-1]
        x = np.asarray(inputs, np.float64)[..., None, :]  # a sequence of one step
        with np.errstate(all="ignore"):
            final, outputs = oracle.run(cell, x, carry=spread(carry, cell, batch))
        expect(result, (*final, outputs[..., 0, :]), carry, inputs, oracle_dtypes(cell))


def oracle_dtypes(cell):
    return jnp.zeros((), cell.param_dtype)


def tri():
    return st.sampled_from([None, False, True])


@st.composite
def sequences(draw):
    """Inputs with their batch and number of steps, and how they are laid out."""
    batch = draw(st.sampled_from([(), (2,), (2,), (0,), (2, 1)]))
    num_steps = draw(st.sampled_from([0, 1, 3, 3]))
    time_major = draw(st.booleans())
    shape = (num_steps, *batch, IN) if time_major else (*batch, num_steps, IN)
    return draw(maybe(shape)), batch, num_steps, time_major


def runs(inputs):
    """Run without compiling, unless there is an axis of size 0, which JAX cannot scan so."""
    return jax.disable_jit(0 not in np.shape(inputs) if hasattr(inputs, "shape") else True)


def described(inputs, time_major):
    """Batch and time of inputs that were accepted, whatever was meant."""
    shape = np.shape(inputs)
    return (shape[1:-1], shape[0]) if time_major else (shape[:-2], shape[-2])


@fuzz(0.6)
@given(cells, sequences(), tri(), tri(), st.data())
def fuzz_rnn(cell, sequence, reverse, keep_order, data):
    inputs, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch, num_steps))
    carry = data.draw(st.none() | carries(cell, batch))
    options = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
    unroll = data.draw(st.sampled_from([1, 1, 2, 5, 0, True, np.int64(2)]))
    with runs(inputs):
        result = answer(
            unrolled.RNN(cell, unroll=unroll),
            inputs,
            initial_carry=carry,
            seq_lengths=lengths,
            return_carry=True,
            **options,
        )
    if not is_error(result):
        compare_layer(cell, result, inputs, carry, lengths, options)


def compare_layer(cell, result, inputs, carry, lengths, options):
    batch, num_steps = described(inputs, options["time_major"])
    start = None if carry is None else spread(carry, cell, batch)
    x = np.asarray(inputs, np.float64)
    if lengths is not None:  # what stands in the padding must not matter
        lengths = np.asarray(lengths, int).reshape(batch)
        order = np.moveaxis(x, 0, -2) if options["time_major"] else x
        valid = (np.arange(num_steps) < lengths[..., None])[..., None]
        order = np.where(valid, order, 0)
        x = np.moveaxis(order, -2, 0) if options["time_major"] else order
    with np.errstate(all="ignore"):
        final, outputs = oracle.run(cell, x, carry=start, lengths=lengths, **options)
    expect(result, (*final, outputs), carry, x, oracle_dtypes(cell))


@fuzz(0.3)
@given(cells, sequences(), tri(), st.data())
def fuzz_learned_carry(cell, sequence, reverse, data):
    inputs, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch, num_steps))
    with jax.disable_jit(False):
        learned = unrolled.LearnedCarry(
            cell, carry_init=nnx.initializers.normal(), rngs=nnx.Rngs(data.draw(st.integers(0, 9)))
        )
    options = {"time_major": time_major, "reverse": reverse, "keep_order": True}
    with runs(inputs):
        result = answer(
            unrolled.RNN(learned), inputs, seq_lengths=lengths, return_carry=True, **options
        )
    if not is_error(result):
        compare_layer(cell, result, inputs, learned.initial.get_value(), lengths, options)


MODES = {
    "plain": {},
    "with lengths": {"seq_lengths": True},
    "reversed": {"seq_lengths": True, "reverse": True, "unroll": 2},
}


@functools.cache
def value_and_gradients(kind, mode):
    """A layer's outputs and final carry, weighted and added up, and all gradients; compiled."""
    options = dict(MODES[mode])
    layer = unrolled.RNN(make_cell(kind), unroll=options.pop("unroll", 1))
    with_lengths = options.pop("seq_lengths", False)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def total(params, inputs, carry, lengths, weights):
        results = nnx.merge(graphdef, params, rest)(
            inputs,
            initial_carry=carry,
            seq_lengths=lengths if with_lengths else None,
            return_carry=True,
            **options,
        )
        products = jax.tree.map(lambda a, b: (a * b).sum(), results, weights)
        return sum(jax.tree.leaves(products))

    return params, jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))


@fuzz(0.3)
@given(st.sampled_from(sorted(MAKERS)), st.sampled_from(sorted(MODES)), st.data())
def fuzz_gradients_in_jit(kind, mode, data):
    cell, batch, num_steps = make_cell(kind), (2,), 3
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    x = rng.normal(size=(*batch, num_steps, IN)).astype(np.float32)
    lengths = np.array(data.draw(st.tuples(*[st.integers(0, num_steps)] * 2)), np.int32)
    lengths = lengths if mode != "plain" else np.full(batch, num_steps, np.int32)
    padding = np.arange(num_steps) >= lengths[:, None]
    x[padding] = data.draw(st.sampled_from(SPECIAL))
    parts = tuple(rng.normal(size=(*batch, HIDDEN)).astype(np.float32) for _ in cell.carry_names)
    weights = tuple(rng.normal(size=part.shape).astype(np.float32) for part in parts)
    carry, weights = (parts, weights) if len(parts) > 1 else (parts[0], weights[0])
    weights = (weights, rng.normal(size=(*batch, num_steps, HIDDEN)).astype(np.float32))

    params, function = value_and_gradients(kind, mode)
    with jax.disable_jit(False):
        value, (of_params, of_x, of_carry) = function(params, x, carry, lengths, weights)
    assert not np.any(np.asarray(of_x)[padding])

    # The same total in float64, and how it changes along one direction of all that it depends on.
    own = oracle.weights(cell)
    steps = {name: rng.normal(size=array.shape) for name, array in own.items()}
    step_x = np.where(padding[..., None], 0, rng.normal(size=x.shape))
    step_parts = [rng.normal(size=part.shape) for part in parts]

    def moved(distance):
        there = {name: own[name] + distance * steps[name] for name in own}
        start = tuple(part + distance * step for part, step in zip(parts, step_parts))
        with mock.patch.object(oracle, "weights", return_value=there):
            final, outputs = oracle.run(
                cell,
                x + distance * step_x,
                carry=start,
                lengths=lengths,
                reverse=MODES[mode].get("reverse", False),
            )
        pairs = zip((*final, outputs), jax.tree.leaves(weights), strict=True)
        return sum((array * weight).sum() for array, weight in pairs)

    np.testing.assert_allclose(value, moved(0), atol=1e-4, rtol=1e-4)
    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    along = sum(
        (np.asarray(param.get_value()) * steps[".".join(map(str, path[1:]))]).sum()
        for path, param in nnx.to_flat_state(of_params)
    )
    along += (np.asarray(of_x) * step_x).sum()
    along += sum((np.asarray(a) * b).sum() for a, b in zip(jax.tree.leaves(of_carry), step_parts))
    np.testing.assert_allclose(along, slope, atol=1e-3, rtol=1e-3)


@fuzz(0.25)
@given(cells, cells, sequences(), tri(), tri(), st.data())
def fuzz_bidirectional(first, second, sequence, reverse, keep_order, data):
    inputs, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch, num_steps))
    carry = data.draw(
        st.none() | st.sampled_from(ODD) | st.tuples(carries(first, batch), carries(second, batch))
    )
    options = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order}
    exchanged = data.draw(st.booleans())
    merge = {"merge_fn": lambda one, other: jnp.concatenate([other, one], -1)} if exchanged else {}
    layer = answer(unrolled.Bidirectional, unrolled.RNN(first), unrolled.RNN(second), **merge)
    with runs(inputs):
        result = answer(
            layer, inputs, initial_carry=carry, seq_lengths=lengths, return_carry=True, **options
        )
    if is_error(result):
        return
    (one, other), outputs = result
    size = outputs.shape[-1] // 2
    places = (
        (slice(size, None), slice(0, size)) if exchanged else (slice(0, size), slice(size, None))
    )
    given_carries = (None, None) if carry is None else carry
    kept = bool(keep_order) or not reverse
    for cell, final, start, backwards, features in (
        (first, one, given_carries[0], bool(reverse), places[0]),
        (second, other, given_carries[1], not reverse, places[1]),
    ):
        # With reverse, the merged outputs are turned round as a whole.
        place = {"time_major": time_major, "reverse": backwards, "keep_order": True}
        own = outputs[..., features]
        if not kept:
            num_batch_dims = np.ndim(inputs) - 2
            own = unrolled.flip_sequences(own, lengths, num_batch_dims, time_major)
        compare_layer(cell, (final, own), inputs, start, lengths, place)


@fuzz(0.25)
@given(cells, st.sampled_from(sorted(MAKERS)), sequences(), tri(), st.data())
def fuzz_stack(bottom, top, sequence, reverse, data):
    inputs, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch, num_steps))
    upper = make_cell(top, in_features=HIDDEN)
    carry = data.draw(
        st.none()
        | st.sampled_from(ODD)
        | st.tuples(st.none() | carries(bottom, batch), st.none() | carries(upper, batch))
    )
    stack = unrolled.StackedRNN([unrolled.RNN(bottom), unrolled.RNN(upper)])
    options = {"time_major": time_major, "reverse": reverse, "keep_order": True}
    with runs(inputs):
        result = answer(
            stack, inputs, initial_carry=carry, seq_lengths=lengths, return_carry=True, **options
        )
        if is_error(result):
            return
        starts = (None, None) if carry is None else carry
        middle = unrolled.RNN(bottom)(
            inputs, initial_carry=starts[0], seq_lengths=lengths, return_carry=True, **options
        )
    (one, other), outputs = result
    compare_layer(bottom, (one, middle[1]), inputs, starts[0], lengths, options)
    compare_layer(upper, (other, outputs), middle[1], starts[1], lengths, options)


@fuzz(1.5)
@given(
    st.sampled_from(
        [unrolled.RNN, unrolled.StackedRNN, unrolled.Bidirectional, unrolled.LearnedCarry]
    ),
    st.data(),
)
def fuzz_make_a_layer(make, data):
    layer = unrolled.RNN(make_cell("GRUCell"))
    parts = st.sampled_from(
        [
            *ODD,
            make_cell("GRUCell"),
            make_cell("LSTMCell", in_features=4),
            unrolled.GRUCell,
            layer,
            [layer],
            [layer, None],
        ]
    )
    count = 2 if make is unrolled.Bidirectional else 1
    options = {}
    if data.draw(st.booleans()):
        options["rngs"] = data.draw(st.sampled_from([None, True, False, 3, nnx.Rngs(0), "x"]))
    if make is unrolled.StackedRNN and data.draw(st.booleans()):
        rates = [0.0, 0.5, 1.0, np.float32(0.5), -1, 2, np.nan, "0.5", True, np.ones(3), None]
        options["dropout_rate"] = data.draw(st.sampled_from(rates))
    if make is unrolled.Bidirectional and data.draw(st.booleans()):
        options["merge_fn"] = data.draw(st.sampled_from([jnp.add, np.add, max, len, divmod, *ODD]))
    if make is unrolled.RNN and data.draw(st.booleans()):
        options["unroll"] = data.draw(st.sampled_from([1, 9, 0, -1, np.int8(2), *ODD]))
        filters = st.sampled_from([..., nnx.Param, "dropout", None, True, 3, 2.5, (), b"x"])
        axes = st.sampled_from([nnx.Carry, None, 0, -1, True, "time", 1.5])
        rules = st.sampled_from([None, {...: nnx.Carry}, *ODD]) | st.dictionaries(filters, axes)
        options["state_axes"] = data.draw(rules)
        options["broadcast_rngs"] = data.draw(filters)
    if make is unrolled.LearnedCarry and data.draw(st.booleans()):
        options["carry_init"] = data.draw(initialisers)
        options["input_shape"] = data.draw(shapes)
    answer(make, *(data.draw(parts) for _ in range(count)), **options)


# Sequences


@fuzz(2)
@given(st.sampled_from([(), (2,), (2, 1), (0,)]), st.sampled_from([None, 0, 3]), st.data())
def fuzz_lengths_and_masks(batch, num_steps, data):
    lengths = data.draw(seq_lengths(batch, 3))
    checked = answer(check_seq_lengths, lengths, batch, num_steps)
    if not is_error(checked):
        expect(checked, np.asarray(lengths, int).reshape(batch), np.zeros(()))
    time_major = data.draw(st.booleans())
    mask = answer(unrolled.sequence_mask, lengths, num_steps, time_major=time_major)
    if not is_error(mask):
        known = np.asarray(lengths, int)
        steps = np.arange(known.max(initial=0) if num_steps is None else num_steps)
        expected = steps < known[..., None]
        expected = np.moveaxis(expected, -1, 0) if time_major else expected
        np.testing.assert_array_equal(mask, expected)


@fuzz(1)
@given(sequences(), st.data())
def fuzz_flips_and_last_steps(sequence, data):
    inputs, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch, num_steps))
    dims = data.draw(st.sampled_from([len(batch), len(batch), len(batch), 0, 1, 2, -1]))
    flipped = answer(unrolled.flip_sequences, inputs, lengths, dims, time_major)
    last = answer(unrolled.last_valid_step, inputs, lengths, dims, time_major)
    if is_error(flipped) or is_error(last) or dims < 0:
        assert (is_error(flipped) and is_error(last)) or np.ndim(inputs) == 0 or dims < 0
        return
    x = np.asarray(jnp.asarray(inputs))  # float64 becomes what JAX makes of it
    x = np.moveaxis(x, 0, dims) if time_major else x
    batch, steps = x.shape[:dims], x.shape[dims]
    known = np.full(batch, steps) if lengths is None else np.asarray(lengths, int).reshape(batch)
    right, ends = x.copy(), np.zeros(batch + x.shape[dims + 1 :], x.dtype)
    for row in np.ndindex(*batch):
        right[row][: known[row]] = x[row][: known[row]][::-1]
        if known[row]:
            ends[row] = x[row][known[row] - 1]
    right = np.moveaxis(right, dims, 0) if time_major else right
    np.testing.assert_array_equal(np.asarray(flipped, np.float64), right.astype(np.float64))
    np.testing.assert_array_equal(np.asarray(last, np.float64), ends.astype(np.float64))


@fuzz(1.7)
@given(st.data())
def fuzz_mask_padding(data):
    shape = data.draw(st.sampled_from([(2,), (2, 3), (2, 3, 1), (0, 3), ()]))
    inputs = data.draw(maybe(shape))
    mask = data.draw(
        maybe(shape[: data.draw(st.integers(0, 3))], ("bool", "bool", "bool", "int32", "float32"))
    )
    fill = data.draw(st.sampled_from([0, 0, 1, np.nan, None, "x", 2.5]) | arrays(shape))
    result = answer(unrolled.mask_padding, inputs, mask, fill)
    if not is_error(result):
        dtype = jnp.asarray(inputs).dtype
        filled = np.broadcast_to(np.asarray(jnp.asarray(fill, dtype), np.float64), np.shape(inputs))
        known = np.asarray(mask, bool)
        known = known.reshape(known.shape + (1,) * (np.ndim(inputs) - known.ndim))
        expected = np.where(known, np.asarray(jnp.asarray(inputs), np.float64), filled)
        np.testing.assert_array_equal(np.asarray(result, np.float64), expected)


@fuzz(2)
@given(st.data())
def fuzz_padding_there_and_back(data):
    count = data.draw(st.integers(0, 3))
    given_sequences = [
        data.draw(maybe((data.draw(st.integers(0, 3)), 2), odds=25)) for _ in range(count)
    ]
    given_sequences = data.draw(st.sampled_from([given_sequences] * 9 + [3, None, "abc"]))
    num_steps = data.draw(st.sampled_from([None, None, 3, 3, 1, -1, 2.5, "3"]))
    fill = data.draw(st.sampled_from([0, 0, -1, np.nan, None, "x"]))
    time_major = data.draw(st.booleans())
    result = answer(
        unrolled.pad_sequences, given_sequences, num_steps, fill=fill, time_major=time_major
    )
    if is_error(result):
        return
    padded, lengths = result
    rows = answer(unrolled.unpad_sequences, padded, lengths, time_major=time_major)
    assert not is_error(rows)
    for row, sequence in zip(rows, given_sequences, strict=True):
        np.testing.assert_array_equal(
            np.asarray(row, np.float64), np.asarray(sequence, padded.dtype).astype(np.float64)
        )


@fuzz(2)
@given(sequences(), st.data())
def fuzz_unpad(sequence, data):
    padded, batch, num_steps, time_major = sequence
    lengths = data.draw(seq_lengths(batch[:1], num_steps))
    rows = answer(unrolled.unpad_sequences, padded, lengths, time_major=time_major)
    if not is_error(rows):
        assert [len(row) for row in rows] == np.asarray(lengths, int).tolist()


# The fast scan and the initialisers

GATES = {
    "leaky": (lambda carry, x, h: (0.5 * carry[0] + np.tanh(1) * x[0] + h[0],), 1, 1, True),
    "gru": (None, 3, 1, True),
    "pair": (lambda carry, x, h: (carry[0] + x[0], jnp.sin(carry[0] + h[1]) + x[1]), 2, 2, True),
    "softmax": (lambda carry, x, h: (jax.nn.softmax(x[0] + h[0]),), 1, 1, False),
    "holds": (lambda carry, x, h: (x[0] + h[0] + jnp.arange(float(HIDDEN)),), 1, 1, False),
}


@fuzz(0.4)
@given(st.sampled_from(sorted(GATES)), st.sampled_from([(), (2,), (0,)]), st.data())
def fuzz_scan_recurrence(name, batch, data):
    gate, count, parts, elementwise = GATES[name]
    gate = make_cell("GRUCell").gate if gate is None else gate
    dtypes = data.draw(st.sampled_from([("float32",), ("float32",), FLOATS]))
    num_steps = data.draw(st.integers(0, 3))
    weights = Weights(
        *(
            tuple(data.draw(arrays(shape, dtypes, special=False)) for _ in range(count))
            for shape in ((IN, HIDDEN), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,))
        )
    )
    carry = tuple(data.draw(arrays((*batch, HIDDEN), dtypes)) for _ in range(parts))
    inputs = data.draw(arrays((num_steps, *batch, IN)))
    valid = data.draw(st.none() | arrays((num_steps, *batch), ("bool",)))
    reverse = data.draw(st.booleans())
    carry = jax.tree.map(jnp.asarray, carry)
    weights = jax.tree.map(jnp.asarray, weights)
    valid = None if valid is None else jnp.asarray(valid)
    assert (gate_uses(gate, carry, count) is not None) == elementwise
    with runs(inputs):
        result = answer(
            scan_recurrence,
            Recurrence(gate, weights),
            carry,
            jnp.asarray(inputs),
            valid,
            reverse=reverse,
        )
    if is_error(result):
        assert not elementwise
        return
    if num_steps == 0 and not elementwise:
        return
    kernels, biases, recurrent, recurrent_biases = jax.tree.map(
        lambda a: np.asarray(a, np.float64), weights
    )
    state = [np.asarray(part, np.float64) for part in carry]
    states = np.zeros((num_steps, *batch, HIDDEN))
    for t in range(num_steps)[:: -1 if reverse else 1]:
        x = np.asarray(inputs, np.float64)[t]
        with np.errstate(all="ignore"), jax.disable_jit(False):
            projected = tuple(x @ k + b for k, b in zip(kernels, biases))
            products = tuple(state[-1] @ k + b for k, b in zip(recurrent, recurrent_biases))
            new = gate(tuple(state), projected, products)
        keep = np.ones(batch, bool) if valid is None else np.asarray(valid)[t]
        state = [
            np.where(keep[..., None], np.asarray(a, np.float64), b) for a, b in zip(new, state)
        ]
        states[t] = state[-1]
    expect(result, (*state, states), carry, weights, inputs)


@fuzz(1)
@given(
    st.sampled_from([unrolled.modified_orthogonal, unrolled.orthogonal_per_gate]),
    keys,
    st.sampled_from(
        [
            (2, 2),
            (2, 6),
            (3, 2),
            (2, 5),
            (0, 2),
            (2, 0),
            (2,),
            (),
            3,
            None,
            (2, 2, 2),
            ("a", 2),
            (-1, 2),
        ]
    ),
    kinds_of_dtype,
)
def fuzz_initialisers(initialiser, key, shape, dtype):
    kernel = answer(initialiser, key, shape, dtype)
    if not is_error(kernel):
        assert kernel.shape == tuple(shape) and kernel.dtype == jax.dtypes.canonicalize_dtype(dtype)
        assert bool(jnp.isfinite(kernel).all())


# Conversions


@fuzz(0.6)
@given(functional_params(), st.data())
def fuzz_convert_functional(params, data):
    cell = answer(convert.gru_from_functional, params)
    if not is_error(cell):
        back = convert.gru_to_functional(cell)
        for name in PARAMETER_SHAPES:
            expected = np.asarray(jnp.asarray(params[name], cell.param_dtype), np.float64)
            np.testing.assert_array_equal(np.asarray(back[name], np.float64), expected)


@fuzz(0.5)
@given(
    st.sampled_from(
        [
            "to_torch",
            "to_keras",
            "to_linen",
            "to_nnx",
            "gru_to_functional",
            "to_lstm",
            "to_optimized_lstm",
        ]
    ),
    st.sampled_from([*ODD, unrolled.GRUCell]) | cells | cells | cells,
    st.booleans(),
)
def fuzz_convert_from_a_cell(name, cell, in_a_layer):
    if in_a_layer and isinstance(cell, unrolled.RNNCellBase):
        cell = unrolled.RNN(cell)
    answer(getattr(convert, name), cell)


@fuzz(0.9)
@given(
    st.sampled_from(["from_torch", "from_keras", "from_linen", "from_nnx"]),
    st.data(),
)
def fuzz_convert_to_a_cell(name, data):
    source = data.draw(st.sampled_from(ODD))
    if name == "from_linen" and data.draw(st.booleans()):
        kind = data.draw(st.sampled_from(["SimpleCell", "GRUCell", "LSTMCell"]))
        source = {
            layer: dict(leaves) for layer, leaves in convert.to_linen(make_cell(kind)).items()
        }
        layer = data.draw(st.sampled_from(sorted(source)))
        luck = data.draw(st.integers(0, 4))
        if luck == 0:
            del source[layer]
        elif luck == 1:
            source[layer] = data.draw(st.sampled_from(ODD))
        elif luck == 2:
            leaf = data.draw(st.sampled_from(sorted(source[layer])))
            source[layer][leaf] = data.draw(maybe(np.shape(source[layer][leaf]), odds=1))
    if name == "from_torch" and data.draw(st.booleans()):
        shapes = {
            "weight_ih_l0": (9, IN),
            "weight_hh_l0": (9, HIDDEN),
            "bias_ih_l0": (9,),
            "bias_hh_l0": (9,),
        }
        state = {
            key: data.draw(maybe(shape, ("float32",), odds=12)) for key, shape in shapes.items()
        }
        if data.draw(st.integers(0, 9)) == 0:
            del state[data.draw(st.sampled_from(sorted(state)))]
        source = SimpleNamespace(
            mode="GRU",
            input_size=IN,
            hidden_size=HIDDEN,
            num_layers=1,
            bidirectional=False,
            bias=True,
            batch_first=True,
            dropout=0.0,
            state_dict=lambda: state,
        )
    answer(getattr(convert, name), source)


# The laboratory


@fuzz(0.7)
@given(
    st.dictionaries(
        st.sampled_from("abc"),
        arrays((2, 3)) | arrays(()) | arrays((0,)) | st.floats() | st.sampled_from(ODD),
        max_size=3,
    ),
    st.sampled_from([0, 0, 3, -1, 1.5, None, np.int64(2)]),
)
def fuzz_what_is_not_finite(watched, step):
    counts = answer(count_nonfinite, **watched)
    no_numbers = any(np.asarray(leaf).dtype.kind in "OSU" for leaf in jax.tree.leaves(watched))
    assert is_error(counts) == no_numbers
    if no_numbers:
        return
    expected = []
    for name, value in watched.items():
        arrays_of_it = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(value)]
        found = [count.tolist() for count in jax.tree.leaves(counts[name])]
        assert found == [[np.isnan(a).sum(), np.isinf(a).sum()] for a in arrays_of_it]
        expected += found
    finite = not np.any(expected)
    try:
        told = answer(check_finite, counts, step)
    except FloatingPointError as error:
        assert not finite and str(error).startswith(f"step {step} is not finite: ")
    else:
        assert finite or is_error(told)
    assert is_error(answer(check_finite, watched)) or not jax.tree.leaves(watched)


@fuzz(0.7)
@given(st.text(max_size=9) | st.text(CHARACTERS) | st.sampled_from(ODD), st.data())
def fuzz_language(text, data):
    codes = answer(encode, text)
    if is_error(codes):
        assert not isinstance(text, str) or set(text) - set(CHARACTERS)
        assert is_error(answer(decode, text)) or np.shape(text) == (0,)
    else:
        assert answer(decode, codes) == text

    size = data.draw(st.sampled_from([2, 3, 3, 96, 1, 2.5, None]))
    order = data.draw(st.sampled_from([1, 2, 3, 4, 0, 12, 10**9, 1.5, "2"]))
    train = data.draw(st.lists(st.integers(0, 2), max_size=12) | st.sampled_from(ODD))
    train = data.draw(st.sampled_from([train, np.array(train, object), train]))
    bits = [answer(ngram_bits, train, [code], order, size) for code in range(3)]
    if not any(map(is_error, bits)) and size == 3:
        assert abs(sum(2 ** -float(one[0]) for one in bits) - 1) < 1e-9
