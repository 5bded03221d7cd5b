"""Chapter 13: starters are told apart, right answers pass, and mistakes are named."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest

from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, *answer):
    return judge(EXERCISES[number], *answer)


# 13.1


def names_of(spec, ndim):
    groups = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    groups = [tuple(name for name in group if name) for group in groups]
    return groups + [()] * (ndim - len(groups))


def dividing(divisor, careful=True, whole=1):
    def share(shape, spec, mesh):
        sizes = []
        for size, names in zip(shape, names_of(spec, len(shape))):
            parts = divisor(names, mesh) if names else whole
            if careful and size % parts:
                raise ValueError(f"{size} rows, {parts} devices")
            sizes.append(size // parts)
        return tuple(sizes)

    return share


def product(names, mesh):
    return math.prod(mesh[name] for name in names)


share = dividing(product)


def share_starter(shape, spec, mesh):
    return ...


def share_short_spec(shape, spec, mesh):
    return share(shape, spec, mesh)[: len(spec)]


def share_floats(shape, spec, mesh):
    return tuple(
        size / product(names, mesh) for size, names in zip(shape, names_of(spec, len(shape)))
    )


def share_tests_each_name_alone(shape, spec, mesh):
    for size, names in zip(shape, names_of(spec, len(shape))):
        if any(size % mesh[name] for name in names):
            raise ValueError(size)
    return dividing(product, careful=False)(shape, spec, mesh)


def share_tests_the_first_dimension(shape, spec, mesh):
    share(shape[:1], spec[:1], mesh)
    return dividing(product, careful=False)(shape, spec, mesh)


def share_asserts(shape, spec, mesh):
    for size, names in zip(shape, names_of(spec, len(shape))):
        assert size % product(names, mesh) == 0
    return share(shape, spec, mesh)


def share_raises(shape, spec, mesh):
    return tuple(size // mesh[name] for size, name in zip(shape, spec))


@pytest.mark.parametrize(
    "answer, words",
    [
        (dividing(lambda names, mesh: 8), "that axis only"),
        (dividing(lambda names, mesh: mesh[names[0]]), "not by the first"),
        (dividing(lambda names, mesh: mesh[names[-1]]), "not by the last"),
        (dividing(lambda names, mesh: sum(mesh[n] for n in names)), "not by the sum"),
        (dividing(product, careful=False, whole=8), "without a name is not cut"),
        (dividing(product, careful=False), "50 rows cannot be cut"),
        (share_tests_each_name_alone, "is (0,), but 4 numbers cannot be cut into 2 x 4"),
        (share_tests_the_first_dimension, "is (48, 2), but 10 columns cannot be cut"),
        (share_asserts, "raise ValueError, not AssertionError"),
        (share_short_spec, "stay whole"),
        (share_floats, "Divide with //"),
        (lambda shape, spec, mesh: shape, "whole shape"),
        (
            lambda shape, spec, mesh: tuple(
                product(names, mesh) for names in names_of(spec, len(shape))
            ),
            "how many shares",
        ),
        (lambda shape, spec, mesh: math.prod(shape), "tuple of sizes"),
        (share_raises, "KeyError"),
    ],
)
def test_13_1_names_the_mistake(answer, words):
    found, message = verdict("13.1", answer)
    assert found == "not yet" and words in message, message


def test_13_1_starter_and_right_answer():
    assert verdict("13.1", share_starter)[0] == "not started"
    assert verdict("13.1", share)[0] == "right"


# 13.2


def mean_loss(losses, valid, axis):
    total = jax.lax.psum(jnp.where(valid, losses, 0).sum(), axis)
    return total / jax.lax.psum(valid.sum(), axis)


def own_mean(losses, valid, axis):
    return jnp.where(valid, losses, 0).sum() / jnp.maximum(valid.sum(), 1)


def nan_mean(losses, valid, axis):
    return jax.lax.pmean(jnp.where(valid, losses, 0).sum() / valid.sum(), axis)


def safe_pmean(losses, valid, axis):
    return jax.lax.pmean(own_mean(losses, valid, axis), axis)


@pytest.mark.parametrize(
    "answer, words",
    [
        (own_mean, "own rows"),
        (safe_pmean, "mean of the devices' means"),
        (nan_mean, "mean of the devices' means"),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(jnp.where(valid, losses, 0).sum(), axis)
                / jax.lax.psum(valid.size, axis)
            ),
            "number of all rows",
        ),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(losses.sum(), axis) / jax.lax.psum(valid.sum(), axis)
            ),
            "invalid rows are in the sum",
        ),
        (lambda losses, valid, axis: jax.lax.pmean(losses.mean(), axis), "valid or not"),
        (lambda losses, valid, axis: mean_loss(losses, ~valid, axis), "may be turned round"),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(jnp.where(valid, 0, losses).sum(), axis)
                / jax.lax.psum(valid.sum(), axis)
            ),
            "The mask is turned round",
        ),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(jnp.where(valid, 0, losses).sum(), axis)
                / jnp.maximum(jax.lax.psum((~valid).sum(), axis), 1)
            ),
            "these are the invalid rows",
        ),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(jnp.where(valid, losses, 0).sum(), axis) / valid.sum()
            ),
            "count has not",
        ),
        (
            lambda losses, valid, axis: jax.lax.psum(jnp.where(valid, losses, 0).sum(), axis),
            "sum of all valid losses",
        ),
        (
            lambda losses, valid, axis: (
                jax.lax.psum(jnp.where(valid, losses, 0).sum(), axis)
                / jax.lax.psum(jnp.maximum(valid.sum(), 1), axis)
            ),
            "counts as if it had one",
        ),
        (
            lambda losses, valid, axis: (
                jax.lax.pmean(jnp.where(valid, losses, 0).sum(), axis)
                / jax.lax.psum(valid.sum(), axis)
            ),
            "or both by `pmean`",
        ),
        (lambda losses, valid, axis: 2 * mean_loss(losses, valid, axis), "by hand, and count"),
        (lambda losses, valid, axis: losses, "one number"),
        (lambda losses, valid, axis: jax.lax.psum(losses.sum(), "nobody"), "nobody"),
    ],
)
def test_13_2_names_the_mistake(answer, words):
    found, message = verdict("13.2", answer)
    assert found == "not yet" and words in message, message


def test_13_2_starter_and_right_answer():
    assert verdict("13.2", lambda losses, valid, axis: ...)[0] == "not started"
    assert verdict("13.2", mean_loss)[0] == "right"


# 13.3


def gather(array, axis):
    return jax.lax.all_gather(array, axis, tiled=True)


def in_pieces(
    seen=gather, again=gather, reset_with=lambda r, h: r * h, z_of=lambda z: z, result=lambda h: h,
    names="zr", behind=False, kept=lambda r, h: h,
):  # fmt: skip
    def step(params, h, x_t, axis):
        whole = seen(h, axis)

        def gate(name, state):
            return params["W" + name] @ x_t + params["U" + name] @ state + params["b" + name]

        update, reset = (jax.nn.sigmoid(gate(name, whole)) for name in names)
        update = z_of(update)
        candidate = jnp.tanh(gate("h", again(reset_with(reset, h), axis)))
        if behind:
            from_input = gate("h", 0 * whole)
            candidate = jnp.tanh(from_input + reset * (gate("h", whole) - from_input))
        return result((1 - update) * kept(reset, h) + update * candidate)

    return step


def in_its_place(array, axis):
    """The own share in its place, zeros elsewhere: nothing is exchanged."""
    place = jax.lax.axis_index(axis) * len(array)
    return jax.lax.dynamic_update_slice(jnp.zeros(4 * len(array)), array, (place,))


def moves_the_kernels(params, h, x_t, axis):
    params = {name: gather(leaf, axis) for name, leaf in params.items()}
    new = in_pieces(seen=lambda h, _: h, again=lambda h, _: h)(params, gather(h, axis), x_t, axis)
    place = jax.lax.axis_index(axis) * len(h)
    return jax.lax.dynamic_slice(new, (place,), (len(h),))


@pytest.mark.parametrize(
    "answer, words",
    [
        (in_pieces(seen=in_its_place, again=in_its_place), "own units only. Each gate"),
        (in_pieces(again=in_its_place), "gathered once more"),
        (in_pieces(reset_with=lambda r, h: h), "reset gate is missing"),
        (in_pieces(z_of=lambda z: 1 - z), "wrong way round"),
        (in_pieces(names="rz"), "are exchanged"),
        (in_pieces(behind=True), "reset behind the product"),
        (in_pieces(kept=lambda r, h: r * h), "the old state itself"),
        (in_pieces(result=lambda h: 2 * h), "`gru_step`"),
        (lambda p, h, x, axis: gather(in_pieces()(p, h, x, axis), axis), "own units only"),
        (lambda p, h, x, axis: in_pieces()(p, h, x, axis)[:1], "own 3 units"),
        (moves_the_kernels, "kernels stay where they are"),
        (lambda p, h, x, axis: p["Uz"] @ h, "TypeError"),
    ],
)
def test_13_3_names_the_mistake(answer, words):
    found, message = verdict("13.3", answer)
    assert found == "not yet" and words in message, message


def test_13_3_starter_and_right_answer():
    assert verdict("13.3", lambda params, h, x_t, axis: ...)[0] == "not started"
    assert verdict("13.3", in_pieces())[0] == "right"


# 13.4


def exact(gradient, memory, axis):
    return jax.lax.pmean(gradient, axis), memory


def halves(gradient, memory, axis):
    wanted = gradient + memory
    short = wanted.astype(jnp.bfloat16)
    everyone = jax.lax.all_to_all(short.reshape(8, -1), axis, 0, 0)
    mean = everyone.astype(jnp.float32).mean(axis=0)
    left = jnp.zeros_like(gradient)
    mean = gather(mean.astype(jnp.bfloat16), axis).astype(jnp.float32)
    return mean, left + wanted - short.astype(jnp.float32)


def signs(gradient, memory, axis):
    wanted = gradient + memory
    scale = jnp.abs(wanted).mean()
    bits = jax.lax.all_gather(jnp.packbits(wanted >= 0), axis)
    scales = jax.lax.all_gather(scale, axis)
    everyone = jnp.unpackbits(bits, axis=1).astype(jnp.float32) * 2 - 1
    said = jnp.where(wanted >= 0, scale, -scale)
    return (everyone * scales[:, None]).mean(axis=0), wanted - said


def forgets(gradient, memory, axis):
    return signs(gradient, jnp.zeros_like(memory), axis)[0], memory


def in_bits(bits, shorten, remember=True, remember_the_mean=False):
    """Whole numbers of so many bits, first of each gradient and then of the mean."""
    largest = 2 ** (bits - 1) - 1

    def shortened(array):
        scale = jnp.maximum(jnp.abs(array).max(), 1e-30) / largest
        return shorten(array / scale).astype(jnp.int8), scale

    def exchange(gradient, memory, axis):
        wanted = gradient + memory if remember else gradient
        said, scale = shortened(wanted)
        eighths = jax.lax.all_to_all(said.reshape(8, -1), axis, 0, 0)
        mean = (eighths * jax.lax.all_gather(scale, axis)[:, None]).mean(axis=0)
        left = (wanted - said * scale).reshape(8, -1)
        said, scale = shortened(mean)
        if remember_the_mean:  # times 8, since it will be one of eight in a mean
            left = left.at[jax.lax.axis_index(axis)].add(8 * (mean - said * scale))
        everything = jax.lax.all_gather(said, axis) * jax.lax.all_gather(scale, axis)[:, None]
        return everything.ravel(), left.ravel() if remember else memory

    return exchange


def the_largest(gradient, memory, axis):
    """Each device sends 16 of its numbers and their places; the others wait."""
    wanted = gradient + memory
    places = jax.lax.top_k(jnp.abs(wanted), 16)[1]
    said = jax.lax.all_gather(wanted[places], axis)
    where = jax.lax.all_gather(places.astype(jnp.uint16), axis)
    total = jnp.zeros_like(gradient).at[where.ravel()].add(said.ravel())
    return total / 8, wanted.at[places].set(0)


def drifts(gradient, memory, axis):
    mean, memory = signs(gradient, memory, axis)
    return mean + 1e-3 * gradient, memory


def divides_by_zero(gradient, memory, axis):
    mean, memory = signs(gradient, memory, axis)
    return mean * (jnp.abs(gradient).max() / jnp.abs(gradient).max()), memory


@pytest.mark.parametrize(
    "answer, words",
    [
        (exact, "Next: at most half of the bytes"),
        (forgets, "Next: nothing is lost for good"),
        (in_bits(6, jnp.trunc, remember=False), "≈ 13 % after 200 rounds, by ≈ 13 % after 800"),
        (in_bits(8, jnp.trunc, remember=False), "≈ 3.2 % after 200 rounds, by ≈ 3.2 % after 800"),
        (in_bits(4, jnp.round), "If you shorten the mean as well"),
        (drifts, "Next: the same mean on every device"),
        (divides_by_zero, "Next: gradients a million times"),
        (lambda g, m, axis: (g, m), "Nothing is exchanged"),
        (lambda g, m, axis: signs(g, m, axis)[::-1], "two results are exchanged"),
        (lambda g, m, axis: jax.lax.pmean(g, axis), "Return two arrays"),
        (lambda g, m, axis: (jax.lax.pmean(g, axis)[:3], m), "expected (512,)"),
        (lambda g, m, axis: (jax.lax.pmean(g, "nobody"), m), "nobody"),
    ],
)
def test_13_4_names_what_is_missing(answer, words):
    found, message = verdict("13.4", answer)
    assert found == "not yet" and words in message, message


@pytest.mark.parametrize(
    "answer, score",
    [
        (halves, "5 of 7"),
        (signs, "7 of 7"),
        (in_bits(8, jnp.round), "6 of 7"),
        (in_bits(4, jnp.trunc, remember_the_mean=True), "6 of 7"),
        (the_largest, "6 of 7"),
    ],
)
def test_13_4_scores_what_works(answer, score):
    found, message = verdict("13.4", answer)
    assert found == "right" and score in message, message


def test_13_4_starter():
    assert verdict("13.4", lambda gradient, memory, axis: (..., ...))[0] == "not started"
