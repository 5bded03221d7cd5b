"""Every layer lowers for every kind of device: `jax.export` can tell without having one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export

from unrolled import gru, sequences
from unrolled.cells import (
    GRUCell,
    LearnedCarry,
    LSTMCell,
    OptimizedLSTMCell,
    SimpleCell,
    modified_orthogonal,
    orthogonal_per_gate,
)
from unrolled.lab import finite
from unrolled.layers import RNN, Bidirectional, StackedRNN

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
CELLS = {
    "SimpleCell": SimpleCell,
    "GRUCell": GRUCell,
    "GRUCell, reset before": lambda *sizes, **o: GRUCell(*sizes, reset_after=False, **o),
    "LSTMCell": LSTMCell,
    "OptimizedLSTMCell": OptimizedLSTMCell,
    "learned carry": lambda *sizes, **o: LearnedCarry(LSTMCell(*sizes, **o)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_lowering(name, dtype):
    def rnn(in_features):
        return RNN(CELLS[name](in_features, 4, dtype=dtype, rngs=nnx.Rngs(0)))

    stack = StackedRNN([Bidirectional(rnn(3), rnn(3)), rnn(8)])
    graphdef, params, rest = nnx.split(stack, nnx.Param, ...)

    def loss(params, x, seq_lengths):
        results = nnx.merge(graphdef, params, rest)(x, seq_lengths=seq_lengths, return_carry=True)
        return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(results))

    exported = export.export(jax.jit(jax.value_and_grad(loss)), platforms=PLATFORMS)(
        params, jnp.ones((2, 5, 3), dtype), jnp.array([5, 2])
    )
    assert exported.platforms == PLATFORMS


@pytest.mark.parametrize("sizes", ["batch, 5, 3", "batch, time, 3"])
@pytest.mark.parametrize("name", CELLS)
def test_sizes_may_be_left_open(name, sizes):
    def rnn(in_features, seed):
        return RNN(CELLS[name](in_features, 4, rngs=nnx.Rngs(seed)))

    stack = StackedRNN([Bidirectional(rnn(3, 0), rnn(3, 1)), rnn(8, 2)])
    batch, *_ = shape = export.symbolic_shape(sizes)
    exported = export.export(jax.jit(lambda x, lengths: stack(x, seq_lengths=lengths)))(
        jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    )
    inputs = jnp.sin(jnp.arange(45.0)).reshape(3, 5, 3)
    lengths = jnp.array([5, 2, 0])
    ours = stack(inputs, seq_lengths=lengths)
    assert jnp.abs(exported.call(inputs, lengths) - ours).max() < 1e-6


PARAMS = gru.initialize_gru_params(jax.random.key(0), input_dim=3, hidden_dim=4)
RAGGED = jnp.ones((2, 5, 3)), jnp.array([5, 2])
FUNCTIONS = {
    "gru": (
        jax.value_and_grad(lambda params, x: gru.gru_sequence(params, jnp.zeros(4), x)[1].sum()),
        (PARAMS, jnp.ones((5, 3))),
    ),
    "gru_step": (gru.gru_step, (PARAMS, jnp.zeros(4), jnp.ones(3))),
    "backwards, unrolled, time first": (
        lambda x, lengths: RNN(
            GRUCell(3, 4, activation_fn=nnx.softplus, rngs=nnx.Rngs(0)),
            time_major=True,
            reverse=True,
            keep_order=True,
            unroll=2,
        )(jnp.swapaxes(x, 0, 1), seq_lengths=lengths),
        RAGGED,
    ),
    "gates that mix units": (
        jax.grad(
            lambda x, lengths: RNN(SimpleCell(3, 4, activation_fn=nnx.softmax, rngs=nnx.Rngs(0)))(
                x, seq_lengths=lengths
            ).sum()
        ),
        RAGGED,
    ),
    "initial weights": (
        lambda key: (
            gru.initialize_gru_params(key, input_dim=3, hidden_dim=4),
            modified_orthogonal(key, (4, 4)),
            orthogonal_per_gate(key, (4, 12)),
        ),
        (jax.random.key(0),),
    ),
    "sequences": (
        lambda x, lengths: (
            sequences.flip_sequences(x, lengths, 1, time_major=False),
            sequences.mask_padding(x, sequences.sequence_mask(lengths, 5)),
            sequences.last_valid_step(x, lengths),
        ),
        RAGGED,
    ),
    "finite": (lambda params: finite.count_nonfinite(params=params), (PARAMS,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowering_of_functions(name):
    function, arguments = FUNCTIONS[name]
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
