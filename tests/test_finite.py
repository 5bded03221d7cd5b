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


def test_a_number_is_looked_at_as_it_is_given():
    wide = np.array([1e39, np.nan, np.inf, -1e300])
    counts = count_nonfinite(a=1e39, b=wide, c=jnp.float32(np.inf), d=True, e=1j * np.inf, f=2**40)
    found = {name: count.tolist() for name, count in counts.items()}
    assert found == {"a": [0, 0], "b": [1, 1], "c": [0, 1], "d": [0, 0], "e": [1, 1], "f": [0, 0]}
    check_finite(count_nonfinite(a=1e39))
    half = np.array([np.inf, np.nan, 1.0], jnp.bfloat16)
    assert jax.jit(lambda: count_nonfinite(half=half))()["half"].tolist() == [1, 1]
    assert all(isinstance(count, jax.Array) for count in counts.values())


def test_what_jax_can_read_is_counted():
    class Boxed:
        def __jax_array__(self):
            return jnp.array([jnp.nan])

    assert count_nonfinite(boxed=Boxed())["boxed"].tolist() == [1, 0]
    for odd in (object(), 10**30, np.array(["a"]), np.datetime64(0, "s")):
        with pytest.raises(TypeError, match=r"odd is .*; expected an array of numbers"):
            count_nonfinite(odd=odd)
