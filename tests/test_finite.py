"""A NaN in one batch of a compiled training is found: the step, the parameter, and what else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import unrolled
from unrolled.lab.finite import check_finite, count_nonfinite


@pytest.fixture(scope="module")
def train():
    """Train a GRU in one scan over batches; return what each step counted."""
    layer = unrolled.RNN(unrolled.GRUCell(2, 3, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def update(params, batch):
        def loss_of(params):
            return (nnx.merge(graphdef, params, rest)(batch) ** 2).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return params, count_nonfinite(loss=loss, gradient=gradient, inputs=batch)

    return jax.jit(lambda batches: jax.lax.scan(update, params, batches)[1])


def test_the_first_step_that_a_nan_spoils_is_named(train):
    batches = np.ones((6, 2, 4, 2), np.float32)
    check_finite(train(batches))
    batches[3, 1, 2, 0] = np.nan
    batches[4, 0, 0, :] = np.inf
    with pytest.raises(FloatingPointError) as told:
        check_finite(train(batches), step=40)
    assert str(told.value) == (
        "step 43 is not finite: gradient.cell.b_hn: 3 NaN; gradient.cell.dense_h.kernel: 27 NaN; "
        "gradient.cell.dense_i.bias: 9 NaN; and 1 more in gradient; inputs: 1 NaN; loss: 1 NaN"
    )


def test_one_step_without_a_scan_and_infinities():
    counts = count_nonfinite(
        loss=jnp.array(-jnp.inf),
        labels=jnp.arange(3),
        key=jax.random.key(0),
        batch=[jnp.array([jnp.nan, jnp.inf, 1.0, jnp.inf]), 1.5],
    )
    with pytest.raises(FloatingPointError) as told:
        check_finite(counts, 7)
    assert str(told.value) == (
        "step 7 is not finite: batch.0: 1 NaN and 2 infinite; loss: 1 infinite"
    )


def test_what_was_finite_or_empty_passes():
    check_finite(count_nonfinite(loss=1.0, empty=jnp.zeros((0, 2)), half=jnp.ones(2, jnp.bfloat16)))
    check_finite({})
    check_finite(jax.tree.map(lambda count: jnp.zeros((0, 2), jnp.int32), count_nonfinite(a=1.0)))


@pytest.mark.parametrize(
    ("counts", "step", "expected"),
    [
        ({"loss": 0.5}, 0, "what count_nonfinite returns"),
        ([jnp.zeros(2, jnp.int32)], 0, "what count_nonfinite returns"),
        ({"a": jnp.zeros((3, 2), jnp.int32), "b": jnp.zeros(2, jnp.int32)}, 0, "same for all"),
        ({"a": jnp.zeros(2, jnp.int32)}, 1.5, "step is 1.5; expected a whole number"),
    ],
    ids=["a loss", "a list", "of different steps", "half a step"],
)
def test_what_is_no_count_is_told(counts, step, expected):
    with pytest.raises(TypeError, match=expected):
        check_finite(counts, step)


def test_what_cannot_be_counted_is_named():
    with pytest.raises(TypeError, match=r"batch\.names is 'Ada'; expected an array of numbers"):
        count_nonfinite(batch={"names": "Ada"})
