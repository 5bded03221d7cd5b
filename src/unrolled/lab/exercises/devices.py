"""Exercises of chapter 13: shares, means over devices, a GRU cut in pieces, and fewer bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.gru import gru_step, initialize_gru_params
from unrolled.lab.exercises._base import (
    Criterion,
    NotStarted,
    Wrong,
    describe,
    exercise,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.exercises._programs import inner_programs

AXIS = "devices"


@exercise("13.1", "Who holds what", "easy")
def share(function: Callable) -> str:
    mesh = {"data": 2, "model": 4}
    cases = [
        ((48, 12), (None, None)),
        ((48, 12), ("data", None)),
        ((48, 12), ("data", "model")),
        ((48, 26, 12), ("data",)),
        ((48, 12), ()),
        ((48, 12), (("data", "model"), None)),
        ((24, 96), (None, ("model", "data"))),
    ]
    for shape, spec in cases:
        result = run(function, shape, spec, dict(mesh))
        call = f"share({shape}, {spec}, {mesh})"
        if not isinstance(result, tuple | list):
            raise Wrong(f"{call} should be a tuple of sizes, not {describe(result)}.")
        if len(result) != len(shape):
            raise Wrong(
                f"{call} has {len(result)} sizes, the array has {len(shape)} dimensions. A short "
                "spec says nothing about the dimensions behind it: they stay whole."
            )
        if any(entry is Ellipsis for entry in result):
            raise NotStarted
        if any(isinstance(entry, float) for entry in result):
            raise Wrong(f"{call} holds {result}: sizes are whole numbers. Divide with //.")
        _expect_share(tuple(result), shape, spec, mesh, call)
    unequal = [
        ((50, 12), ("model",), "50 rows cannot be cut into 4 equal shares"),
        (
            (4,),
            (("data", "model"),),
            "4 numbers cannot be cut into 2 x 4 equal shares, though each axis alone would do",
        ),
        ((48, 10), (None, "model"), "10 columns cannot be cut into 4 equal shares"),
    ]
    for shape, spec, why in unequal:
        call = f"share({shape}, {spec}, {mesh})"
        try:
            result = function(shape, spec, dict(mesh))
        except ValueError:
            continue
        except Exception as error:
            raise Wrong(f"{call}: {why}: raise ValueError, not {type(error).__name__}.") from None
        raise Wrong(f"{call} is {result}, but {why}: raise ValueError.")
    return (
        "each name divides one dimension, several names divide it by their product, and what no "
        "name divides is held whole, by every device."
    )


def _expect_share(result: tuple, shape: tuple, spec: tuple, mesh: dict, call: str) -> None:
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    names = [tuple(name for name in group if name) for group in names]
    names += [()] * (len(shape) - len(names))

    def divided(divisor: Callable) -> tuple[int, ...]:
        return tuple(size // divisor(group) for size, group in zip(shape, names))

    expected = divided(lambda group: math.prod(mesh[name] for name in group))
    everything = math.prod(mesh.values())
    mistakes = {
        "A dimension without a name is not cut: all devices hold all of it.": divided(
            lambda group: math.prod(mesh[name] for name in group) if group else everything
        ),
        "A named dimension is cut among the devices of that axis only, not among all of the "
        "mesh.": divided(lambda group: everything if group else 1),
        "Several names for one dimension cut it by the product of their sizes, not by the first "
        "name's alone.": divided(lambda group: mesh[group[0]] if group else 1),
        "Several names for one dimension cut it by the product of their sizes, not by the last "
        "name's alone.": divided(lambda group: mesh[group[-1]] if group else 1),
        "Several names for one dimension cut it by the product of their sizes, not by the sum.": (
            divided(lambda group: sum(mesh[name] for name in group) or 1)
        ),
        "This is how many shares there are along each dimension, not how large one is.": tuple(
            math.prod(mesh[name] for name in group) for group in names
        ),
        "Nothing is cut here: this is the whole shape.": shape,
    }
    if result == expected:
        return
    for message, wrong in mistakes.items():
        if result == wrong:
            raise Wrong(f"{call} is {result}. {message}")
    raise Wrong(f"{call} is {result}; expected another. Go through the dimensions one by one.")


@exercise("13.2", "A mean over unequal shares", "medium")
def mean_loss(function: Callable) -> str:
    rng = np.random.default_rng(132)
    losses = rng.uniform(0.5, 3.0, size=(4, 6)).astype(np.float32)
    counts = {"full": [6, 6, 6, 6], "the last batch": [6, 6, 3, 1], "one has none": [6, 5, 2, 0]}
    for name, count in counts.items():
        valid = np.arange(6) < np.array(count)[:, None]
        given = np.where(valid, losses, 99.0 if name == "the last batch" else losses)
        given = given.astype(np.float32)
        results = _on_devices(lambda a, b: run(function, a, b, AXIS), given, valid)
        if np.shape(results) != (4,):
            raise Wrong(
                f"Each device should return one number; yours returns an array of shape "
                f"{np.shape(results)[1:]}."
            )
        sums = np.where(valid, given, 0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            own = sums / valid.sum(axis=1)
        right = sums.sum() / valid.sum()
        left_out = np.where(valid, 0, given).sum()
        if not np.isfinite(results).all() and name == "full":
            raise Wrong(
                "Where every row of every device is valid the result is not a number: what do you "
                "count and divide by? The mask may be turned round."
            )
        if not np.isfinite(results).all():
            raise Wrong(
                "A device without a single valid row makes the result NaN: 0 / 0. Exchange sums "
                "and counts, and divide once, by the count of all devices."
            )
        expect_close(
            results,
            np.full(4, right),
            name=f"the mean ({name})",
            mistakes={
                "Every device has the mean of its own rows: nothing has been exchanged. See "
                "`jax.lax.psum`.": own,
                "This is the mean of the devices' means. A device with one valid row has as much "
                "say as one with six.": np.full(4, own.mean()),
                "You divide by the number of all rows; the invalid ones do not count.": np.full(
                    4, sums.sum() / valid.size
                ),
                "The invalid rows are in the sum: `jnp.where(valid, losses, 0)`.": np.full(
                    4, given.sum() / valid.sum()
                ),
                "This is the mean over all rows, valid or not.": np.full(4, given.mean()),
                "The mask is turned round: these are the invalid rows.": np.full(
                    4, left_out / max(1, (~valid).sum())
                ),
                "The mask is turned round: the sum is that of the invalid rows.": np.full(
                    4, left_out / valid.sum()
                ),
                "The sum has been exchanged, the count has not: each device divides by its "
                "own.": sums.sum() / np.maximum(valid.sum(axis=1), 1),
                "The count has been exchanged, the sum has not.": sums / valid.sum(),
                "A device without a valid row counts as if it had one. Only the count of all "
                "devices is divided by, and that is not zero.": np.full(
                    4, sums.sum() / np.maximum(valid.sum(axis=1), 1).sum()
                ),
                "The sum is that of `pmean`, which is divided by the number of devices; the count "
                "is not. Both by `psum`, or both by `pmean`.": np.full(4, right / 4),
                "This is the sum of all valid losses. Divide by their count.": np.full(
                    4, sums.sum()
                ),
                "`pmean` divides by the number of devices: this is the mean sum of a device. "
                "Divide the sum of all by the count of all.": np.full(4, sums.mean()),
            },
            otherwise="Sum up the valid losses of all devices by hand, and count them.",
        )
    return (
        "two numbers are exchanged, a sum and a count, and the division comes last. This is how a "
        "loss over padded batches stays the same on any number of devices."
    )


UNITS, SHARES, INPUTS = 12, 4, 3


@exercise("13.3", "A GRU in pieces", "hard")
def gru_share(function: Callable) -> str:
    params = initialize_gru_params(jax.random.key(13), INPUTS, UNITS, scale=0.7)
    params = {
        name: leaf + 0.1 * np.arange(UNITS) / UNITS if leaf.ndim == 1 else leaf
        for name, leaf in params.items()
    }
    params = {name: leaf.astype(jnp.float32) for name, leaf in params.items()}
    shares = {
        name: leaf.reshape(SHARES, UNITS // SHARES, *leaf.shape[1:])
        for name, leaf in params.items()
    }
    state = jax.random.normal(jax.random.key(14), (UNITS,), jnp.float32)
    x_t = jax.random.normal(jax.random.key(15), (INPUTS,), jnp.float32)
    own = state.reshape(SHARES, -1)

    def one(params, h, x):
        result = run(function, params, h, x, AXIS)
        return result[0] if isinstance(result, tuple) and len(result) == 2 else result

    given = shares, own, jnp.broadcast_to(x_t, (SHARES, INPUTS))
    result = np.asarray(_on_devices(one, *given))
    if result.shape == (SHARES, UNITS):
        raise Wrong("Each device should return the new state of its own units only.")
    if result.shape != (SHARES, UNITS // SHARES):
        raise Wrong(
            f"Each device returned an array of shape {result.shape[1:]}; expected its own "
            f"{UNITS // SHARES} units."
        )
    expected = np.asarray(gru_step(params, state, x_t)[0]).reshape(SHARES, -1)
    expect_close(
        result,
        expected,
        name="the new state",
        mistakes=_gru_mistakes(params, state, x_t),
        otherwise="Compare with a step of chapter 2 that has all rows: `gru_step`.",
    )
    sent = [(name, size) for name, size, _ in _exchanges(SHARES, one, *_first(given))]
    total, share = sum(size for _, size in sent), 4 * UNITS // SHARES
    if total > 2 * (SHARES - 1) * share:
        raise Wrong(
            f"The values are right, but each device sends {total} bytes in a step; "
            f"{2 * (SHARES - 1) * share} do, two gathered vectors of one number per unit. The "
            "kernels stay where they are."
        )
    return (
        f"two exchanges of {share} bytes from each device, and no kernel was moved. The second is "
        "the price of a reset gate that comes before the matrix: `GRUCell`, which resets behind "
        "it, needs one."
    )


def _gru_mistakes(params: Any, state: Any, x_t: Any) -> dict[str, Any]:
    """What the new state would be after one of the likely mistakes: message -> value."""
    W, U, b = ({gate: params[kind + gate] for gate in "zrh"} for kind in "WUb")
    size = UNITS // SHARES
    in_blocks = jnp.kron(jnp.eye(SHARES), jnp.ones((size, size)))

    def step(
        own_only=False, reset=True, reset_own_only=False, blend=False, tiled=False, names="zr",
        behind=False, kept=state,
    ):  # fmt: skip
        blocks = in_blocks if own_only else 1.0
        update, gate = (
            jax.nn.sigmoid(W[name] @ x_t + (blocks * U[name]) @ state + b[name]) for name in names
        )
        h = gate * state if reset else state
        h = jnp.tile(gate[:size], SHARES) * state if tiled else h
        candidate = W["h"] @ x_t + b["h"]
        if behind:
            candidate += gate * (U["h"] @ state)
        elif reset_own_only:
            candidate += ((in_blocks if own_only or reset_own_only else 1.0) * U["h"]) @ h
        else:
            candidate += (blocks * U["h"]) @ h
        candidate = jnp.tanh(candidate)
        if blend:
            update = 1 - update
        return np.asarray((1 - update) * kept + update * candidate).reshape(SHARES, -1)

    return {
        "Every device looks at its own units only. Each gate needs the whole state: "
        "`jax.lax.all_gather(h, axis, tiled=True)`.": step(own_only=True),
        "The candidate sees the own units only. After the reset the state has to be gathered once "
        "more.": step(reset_own_only=True),
        "The reset gate is missing in the candidate.": step(reset=False),
        "The update gate is the wrong way round: in chapter 2 it lets the candidate in.": step(
            blend=True
        ),
        "The update gate and the reset gate are exchanged.": step(names="rz"),
        "You reset behind the product with U, as `GRUCell` does: one exchange less, and another "
        "function. Chapter 2 resets the state before the product.": step(behind=True),
        "The blend takes the state after the reset. What is kept is the old state itself.": step(
            kept=jax.nn.sigmoid(W["r"] @ x_t + U["r"] @ state + b["r"]) * state
        ),
        "Every device resets with the gates of device 0: gather the product `reset * h`, each "
        "device's own.": step(tiled=True),
    }


DEVICES, SIZE = 8, 512
EXACT = 2 * (DEVICES - 1) / DEVICES * 4 * SIZE  # bytes that a sum of float32 numbers sends


@exercise("13.4", "Fewer bytes", "open")
def exchange(function: Callable) -> str:
    gradients = np.random.default_rng(134).normal(size=(DEVICES, SIZE)).astype(np.float32)
    gradients *= np.exp(0.5 * np.random.default_rng(135).normal(size=SIZE)).astype(np.float32)
    gradients += 0.5 * gradients.mean(axis=0)

    def one(gradient, memory):
        result = run(function, gradient, memory, AXIS)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise Wrong("Return two arrays: the mean, and the memory for the next call.")
        for array, name in zip(result, ("mean", "memory")):
            if array is Ellipsis:
                raise NotStarted
            if jnp.shape(array) != (SIZE,):
                raise Wrong(f"The {name} has shape {jnp.shape(array)}; expected {(SIZE,)}.")
        return tuple(jnp.asarray(array, jnp.float32) for array in result)

    together = jax.jit(jax.vmap(one, axis_name=AXIS))
    nothing = np.zeros_like(gradients)
    mean, memory = together(gradients, nothing)
    if memory.any() and (memory == memory[0]).all() and not (mean == mean[0]).all():
        raise Wrong("The two results are exchanged: first the mean, then the memory.")
    sent = sum(size for _, size, _ in _exchanges(DEVICES, one, gradients[0], nothing[0])) / EXACT
    if sent == 0:
        raise Wrong("Nothing is exchanged: no device can know the others' gradients.")

    kept, found = _nothing_lost(together, gradients)
    return rubric(
        [
            Criterion(
                "the same mean on every device",
                bool((mean == mean[0]).all()),
                "Else the copies of the parameters drift apart. Compute it from what all devices "
                "received, by the same operations, the own part included.",
            ),
            Criterion(
                "at most half of the bytes",
                sent <= 0.51,
                "`gradient.astype(jnp.bfloat16)` before the exchange halves them. An array that is "
                "gathered goes to seven others.",
                f"you send {100 * sent:.0f} %",
            ),
            Criterion(
                "gradients a million times smaller or larger, and zero",
                _any_scale(together, gradients),
                "Give every message a scale of its own, and beware of 0 / 0.",
            ),
            Criterion(
                "nothing is lost for good",
                kept,
                "Add `memory` to the gradient before you shorten it, and return as new memory what "
                "the message left out. If you shorten the mean as well, that leaves out something, "
                "too.",
                found,
            ),
            Criterion(
                "a regression trained with it ends as well",
                _it_trains(one),
                "Do results have the right size on average? Ten rounds of a constant gradient "
                "tell.",
            ),
        ],
        extra=[
            Criterion("at most a quarter of the bytes", sent <= 0.27),
            Criterion("at most an eighth of the bytes", sent <= 0.14),
        ],
    )


def _any_scale(together: Callable, gradients: np.ndarray) -> bool:
    """Whether the result has the size of the mean, for very small and very large gradients."""
    sizes = []
    for scale in (1e-6, 1.0, 1e6):
        mean, memory = together(scale * gradients, np.zeros_like(gradients))
        if not (np.isfinite(mean).all() and np.isfinite(memory).all()):
            return False
        sizes.append(float(jnp.linalg.norm(mean[0])) / scale)
    zero, memory = together(np.zeros_like(gradients), np.zeros_like(gradients))
    quiet = np.isfinite(memory).all() and np.abs(zero).max() < 1e-6
    return bool(quiet and min(sizes) > 0 and max(sizes) < 1.1 * min(sizes))


def _nothing_lost(together: Callable, gradients: np.ndarray) -> tuple[bool, str]:
    """Whether the results of many rounds sum to what was given to them, and how far off they are.

    What is remembered comes later, so the error of their mean shrinks with the rounds. What is
    lost for good leaves an error that stays.
    """
    memory, means = np.zeros_like(gradients), []
    exact = gradients.mean(axis=0, dtype=np.float64)

    def error_after(rounds):
        nonlocal memory
        while len(means) < rounds:
            mean, memory = together(gradients, memory)
            means.append(np.asarray(mean[0], np.float64))
        return float(np.linalg.norm(np.mean(means, axis=0) - exact) / np.linalg.norm(exact))

    first = error_after(200)
    found = f"off by ≈ {100 * first:.2g} % after 200 rounds"
    if first < 0.01 or not np.isfinite(first):
        return first < 0.01, found
    later = error_after(800)
    return later <= 0.6 * first, f"{found}, by ≈ {100 * later:.2g} % after 800"


def _it_trains(one: Callable) -> bool:
    """Whether a regression on eight devices ends with nearly the loss of exact means."""
    rng = np.random.default_rng(136)
    inputs = rng.normal(size=(DEVICES, 128, SIZE)).astype(np.float32)
    truth = rng.normal(size=SIZE).astype(np.float32)
    targets = inputs @ truth + rng.normal(size=(DEVICES, 128)).astype(np.float32)

    def final_loss(exchange):
        def train(inputs, targets):
            def loss_of(w):
                return jnp.mean((inputs @ w - targets) ** 2)

            def update(carry, _):
                w, memory = carry
                mean, memory = exchange(jax.grad(loss_of)(w), memory)
                return (w - 0.05 * mean, memory), None

            start = (jnp.zeros(SIZE, jnp.float32),) * 2
            (w, _), _ = jax.lax.scan(update, start, length=200)
            return loss_of(w)

        return float(jax.jit(jax.vmap(train, axis_name=AXIS))(inputs, targets).mean())

    exact = final_loss(lambda gradient, memory: (jax.lax.pmean(gradient, AXIS), memory))
    return final_loss(one) < 1.2 * exact + 0.05


def _on_devices(function: Callable, *arguments: Any) -> Any:
    """Run `function` on as many devices as the arguments have first rows, each with its own row."""
    return jax.vmap(function, axis_name=AXIS)(*jax.tree.map(jnp.asarray, arguments))


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda array: jnp.asarray(array)[0], tree)


def _exchanges(
    devices: int, function: Callable, *arguments: Any
) -> Iterator[tuple[str, float, int]]:
    """What one device sends: for each exchange its name, its bytes, and how often it runs."""
    program = jax.make_jaxpr(function, axis_env=[(AXIS, devices)])(*arguments)
    share = (devices - 1) / devices
    factors = {
        "psum": 2 * share,
        "pmax": 2 * share,
        "pmin": 2 * share,
        "all_gather": devices - 1,
        "all_to_all": share,
        "reduce_scatter": share,
        "ppermute": 1,
    }

    def visit(jaxpr, times):
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            kind = next((k for k in factors if name == k or name.startswith(f"{k}_")), None)
            kind = "psum" if name in ("psum2", "psum_invariant") else kind
            if kind:
                size = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
                yield kind, times * factors[kind] * size, times
            rounds = equation.params.get("length", 1) if name == "scan" else 1
            for inner in inner_programs(equation):
                yield from visit(inner, times * rounds)

    return visit(program.jaxpr, 1)
