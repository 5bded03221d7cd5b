"""The exercises of chapter 6: modules, their parameters, and weights from other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled.cells import GRUCell, SimpleCell
from unrolled.lab.exercises._base import (
    NotStarted,
    Wrong,
    describe,
    exercise,
    expect_array,
    expect_close,
    run,
)

IN_FEATURES, HIDDEN_FEATURES = 3, 4
Arrays = dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------- 6.1


class _Network(nnx.Module):
    """A cell in a module, beside variables that are not parameters and a list of layers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.cell = GRUCell(IN_FEATURES, HIDDEN_FEATURES, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([SimpleCell(IN_FEATURES, 2, rngs=rngs)])
        self.steps = nnx.BatchStat(jnp.zeros(()))


@exercise("6.1", "How many numbers, and where?", "easy")
def check_sizes(sizes: Callable[[Any], Any]) -> str:
    for name, module in {
        "SimpleCell(3, 2, ...)": SimpleCell(IN_FEATURES, 2, rngs=nnx.Rngs(0)),
        "a network with a GRUCell, a Dropout and a list of layers in it": _Network(),
    }.items():
        answer = run(sizes, module)
        if not isinstance(answer, Mapping):
            raise Wrong(f"expected a dict from path to size, but got {describe(answer)}.")
        _expect_sizes(answer, module, name)
    return "a GRUCell(3, 4) has 100 numbers under four paths, in a network as well as alone."


def _expect_sizes(answer: Mapping[Any, Any], module: Any, name: str) -> None:
    everything, wanted = _arrays(module), _arrays(module, nnx.Param)
    for path in answer:
        if not isinstance(path, str):
            raise Wrong(
                f"The key {path!r} should be one string with dots, such as 'dense_i.kernel': "
                '".".join(map(str, path)).'
            )
    extra, missing = set(answer) - set(wanted), set(wanted) - set(answer)
    if extra & set(everything):
        raise Wrong(
            f"For {name} you counted {', '.join(sorted(extra & set(everything)))}, which is not "
            "learned. Ask `nnx.state` for `nnx.Param` only."
        )
    if answer and all(any(path.endswith(f".{name}") for path in wanted) for name in answer):
        raise Wrong(
            f"For {name} your keys are {', '.join(sorted(answer))}: the last part of each path "
            "only. Join all of its parts with dots."
        )
    if missing or extra:
        raise Wrong(
            f"For {name} the paths should be {', '.join(sorted(wanted))}; yours are "
            f"{', '.join(sorted(answer)) or 'none'}."
        )
    given = [answer[path] for path in sorted(wanted)]
    sizes = [wanted[path].size for path in sorted(wanted)]
    if any(isinstance(size, tuple) for size in given):
        raise Wrong("The values are shapes. How many entries does an array of that shape have?")
    expect_close(
        given,
        sizes,
        name=f"the list of sizes for {name}",
        mistakes={
            "The values count the axes of each array. Count its entries: `.size`.": [
                wanted[path].ndim for path in sorted(wanted)
            ],
            "The values are the lengths of the first axes (`len`). Count all entries: `.size`.": [
                len(wanted[path]) for path in sorted(wanted)
            ],
            "The values are in bytes. Count the entries: `.size`.": [4 * size for size in sizes],
            "The values add up the axes' lengths. The number of entries is their product.": [
                sum(wanted[path].shape) for path in sorted(wanted)
            ],
            "The values are the lengths of the last axes. Count all entries: `.size`.": [
                wanted[path].shape[-1] for path in sorted(wanted)
            ],
        },
        otherwise="Each value should be the number of entries of that parameter.",
    )


# ---------------------------------------------------------------------------------------- 6.2


@exercise("6.2", "Package the simple cell", "medium")
def check_simple_cell(cell_class: Callable[..., Any]) -> str:
    cell = _make(cell_class)
    writer = next(base for base in cell_class.__mro__ if "__call__" in vars(base))
    if writer.__module__.split(".")[0] in ("unrolled", "flax"):
        raise Wrong(
            f"what {cell_class.__name__} computes has been written already. Write `__call__` "
            "yourself."
        )
    _expect_started(cell, "dense_i", "dense_h")
    wanted = {"dense_i.kernel": (3, 4), "dense_i.bias": (4,), "dense_h.kernel": (4, 4)}
    given = {path: array.shape for path, array in _arrays(cell, nnx.Param).items()}
    if given != wanted:
        if set(given) - set(wanted) == {"dense_h.bias"}:
            raise Wrong(
                "Both layers have a bias, and the two would only be added. Give one of them "
                "use_bias=False: dense_h."
                if "dense_i.bias" in given
                else "The only bias is dense_h.bias. In unrolled.SimpleCell it is dense_i.bias, "
                "and weights move by path: give use_bias=False to dense_h, not to dense_i."
            )
        if set(wanted) == set(given):
            path = next(path for path in wanted if given[path] != wanted[path])
            reason = (
                "The number of inputs comes first, then that of outputs."
                if given[path] == wanted[path][::-1]
                else "A simple cell has no gates."
            )
            raise Wrong(
                f"With in_features=3 and hidden_features=4, {path} has shape {given[path]}; "
                f"expected {wanted[path]}. {reason}"
            )
        raise Wrong(
            f"The parameters should be {', '.join(wanted)}; yours are {', '.join(given) or 'none'}."
        )
    _expect_carry(cell)
    rng = np.random.default_rng(0)
    w = {path: rng.normal(size=shape) for path, shape in wanted.items()}
    _fill(cell, w)
    carry, inputs = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3))
    new, output = _step(cell, carry, inputs)
    total = inputs @ w["dense_i.kernel"] + w["dense_i.bias"] + carry @ w["dense_h.kernel"]
    mistakes = {
        "The activation is missing: the state should be the tanh of the sum.": total,
        "The activation is not tanh: it looks like a sigmoid.": 1 / (1 + np.exp(-total)),
        "The old state takes no part: add dense_h of the carry.": np.tanh(
            inputs @ w["dense_i.kernel"] + w["dense_i.bias"]
        ),
        "There is one tanh around each layer. The two are added first, then comes one tanh.": (
            np.tanh(inputs @ w["dense_i.kernel"] + w["dense_i.bias"])
            + np.tanh(carry @ w["dense_h.kernel"])
        ),
        "The old state is also added by itself, as with residual=True. Leave it out here.": (
            np.tanh(total + carry)
        ),
        "The old state is added after the tanh. It takes part through dense_h only.": (
            np.tanh(total) + carry
        ),
        "The bias counts twice.": np.tanh(total + w["dense_i.bias"]),
        "The bias takes no part: the layers already know how to add theirs.": np.tanh(
            total - w["dense_i.bias"]
        ),
        "dense_h's kernel is transposed. Let the layer multiply: `self.dense_h(carry)`.": np.tanh(
            total + carry @ (w["dense_h.kernel"].T - w["dense_h.kernel"])
        ),
        "The input takes no part: add dense_i of the input.": np.tanh(carry @ w["dense_h.kernel"]),
    }
    where = {
        "the new carry": (
            new,
            "The carry comes back as it was. The new state is the new carry.",
        ),
        "the output": (output, "The output is the old state. Return the new one, twice."),
    }
    for name, (value, old) in where.items():
        expect_close(
            value,
            np.tanh(total),
            name=name,
            mistakes=mistakes | {old: carry},
            tolerance=1e-4,
            otherwise="Both are the tanh of one sum: dense_i of the input and dense_h of the "
            "carry.",
        )
    return "weights move between your cell and unrolled.SimpleCell by path, and the steps agree."


# ---------------------------------------------------------------------------------------- 6.3


@exercise("6.3", "Weights from a stranger", "hard")
def check_from_stranger(from_stranger: Callable[..., Any]) -> str:
    rng = np.random.default_rng(3)
    hidden = HIDDEN_FEATURES
    kernel, recurrent = rng.normal(size=(3, 3 * hidden)), rng.normal(size=(hidden, 3 * hidden))
    biases = rng.normal(size=(2, 3 * hidden))
    answer = run(from_stranger, kernel.copy(), recurrent.copy(), biases.copy())
    if not isinstance(answer, Mapping):
        raise Wrong(f"expected a dict of four arrays, but got {describe(answer)}.")
    fused = {"dense_i.kernel": kernel, "dense_i.bias": biases, "dense_h.kernel": recurrent}
    missing = [path for path in (*fused, "b_hn") if path not in answer]
    if missing:
        raise Wrong(f"The dict lacks {', '.join(missing)}.")
    expected = {
        "dense_i.kernel": _reorder(kernel),
        "dense_h.kernel": _reorder(recurrent),
        "dense_i.bias": _merge_biases(biases),
        "b_hn": biases[1, 2 * hidden :],
    }
    answer = {
        path: expect_array(answer[path], array.shape, path) for path, array in expected.items()
    }
    for path in ("dense_i.kernel", "dense_h.kernel"):
        expect_close(
            answer[path],
            expected[path],
            name=path,
            mistakes=_reordering_mistakes(path, fused[path], _reorder)
            | _cutting_mistakes(path, fused[path]),
            otherwise="Cut it into three blocks and look at each: its place and its sign.",
        )
    first, second = biases
    mistakes = _reordering_mistakes("dense_i.bias", biases, _merge_biases) | {
        "dense_i.bias holds the first row only. For r and z the second row is added to it.": (
            _reorder(first)
        ),
        "dense_i.bias adds the second row to the candidate's bias as well. That part is "
        "multiplied by r, so it must stay apart, as b_hn.": _reorder(first + second),
        "dense_i.bias adds the second row with its old sign: in z's bias both parts change "
        "theirs.": _merge_biases(np.stack([first, second * np.repeat([-1, 1, 1], hidden)])),
        "dense_i.bias adds the second row to z only; r needs it, too.": _merge_biases(
            np.stack([first, second * np.repeat([1, 0, 1], hidden)])
        ),
        "dense_i.bias adds the second row to r only; z needs it, too.": _merge_biases(
            np.stack([first, second * np.repeat([0, 1, 1], hidden)])
        ),
    }
    expect_close(
        answer["dense_i.bias"],
        expected["dense_i.bias"],
        name="dense_i.bias",
        mistakes=mistakes,
        otherwise="Its blocks are r, z, n: two sums, and the first row alone.",
    )
    z, r, n = np.split(second, 3)
    expect_close(
        answer["b_hn"],
        n,
        name="b_hn",
        mistakes={
            "b_hn is zero, so the second row's part of the candidate is lost.": np.zeros(hidden),
            "b_hn is z's block. The candidate's is the last of the stranger's three.": z,
            "b_hn is r's block. The candidate's is the last of the stranger's three.": r,
            "b_hn comes from the first row, the input side.": first[2 * hidden :],
            "b_hn is the sum of both rows. The first row's part is in dense_i.bias.": (
                first[2 * hidden :] + n
            ),
            "b_hn has changed its sign. Only what feeds z does.": -n,
        },
        otherwise="It is the candidate's part of the second row.",
    )
    return "your dict gives GRUCell the stranger's function, and b_hn has a place of its own."


def _reorder(array: np.ndarray, signs: tuple[int, int, int] = (-1, 1, 1)) -> np.ndarray:
    """From the stranger's z, r, n to r, z, n, with a sign for each of z, r, n."""
    z, r, n = (sign * block for sign, block in zip(signs, np.split(array, 3, axis=-1)))
    return np.concatenate([r, z, n], axis=-1)


def _merge_biases(biases: np.ndarray, reorder: Callable[..., np.ndarray] = _reorder) -> np.ndarray:
    first, second = biases
    apart = np.concatenate([np.ones(2), np.zeros(1)]).repeat(len(first) // 3)
    return reorder(first + apart * second)


def _reordering_mistakes(
    path: str, array: np.ndarray, right: Callable[..., np.ndarray]
) -> dict[str, np.ndarray]:
    def variant(reorder: Callable[..., np.ndarray]) -> np.ndarray:
        return reorder(array) if right is _reorder else _merge_biases(array, reorder)

    def in_place(signs: tuple[int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
        def keep_order(a: np.ndarray) -> np.ndarray:
            return a * np.repeat(signs, a.shape[-1] // 3)

        return keep_order

    def one_minus(a: np.ndarray) -> np.ndarray:
        z, r, n = np.split(a, 3, axis=-1)
        return np.concatenate([r, 1 - z, n], axis=-1)

    blocks = dict(zip("rzn", np.split(variant(_reorder), 3, axis=-1)))
    orders = {}
    for order in permutations("zrn"):
        for sign, also in ((1, ""), (-1, " Nor has z's sign changed.")):
            found = f"{path} has its blocks in the order {', '.join(order)}"
            message = f"{found}; the cell wants r, z, n."
            orders[message + also] = np.concatenate(
                [blocks[gate] * (sign if gate == "z" else 1) for gate in order], axis=-1
            )
    return {
        f"{path} is as the stranger stores it: neither the order nor z's sign has changed.": (
            variant(in_place((1, 1, 1)))
        ),
        f"{path} still has z first. The cell wants r, z, n.": variant(in_place((-1, 1, 1))),
        f"{path} has the right order, but z still writes: change the sign of what feeds it.": (
            variant(partial(_reorder, signs=(1, 1, 1)))
        ),
        f"{path} has r's sign changed instead of z's. The stranger stores z first.": variant(
            partial(_reorder, signs=(1, -1, 1))
        ),
        f"{path} has r's sign changed as well as z's. Only z means something else.": variant(
            partial(_reorder, signs=(-1, -1, 1))
        ),
        f"{path} has all signs changed. Only z means something else.": variant(
            partial(_reorder, signs=(-1, -1, -1))
        ),
        f"{path} has z and r exchanged back, but the first block negated: after the exchange the "
        "first block is r.": variant(lambda a: in_place((-1, 1, 1))(_reorder(a, (1, 1, 1)))),
        f"{path} holds 1 - z's block. It is the gate that becomes 1 - z; what feeds it changes its "
        "sign.": variant(one_minus),
    } | orders


def _cutting_mistakes(path: str, kernel: np.ndarray) -> dict[str, np.ndarray]:
    """What comes of cutting a kernel's gates out of it in the wrong way."""
    rows, columns = kernel.shape
    reshaped = kernel.reshape(3, rows, columns // 3)
    mistakes = {
        f"{path} was cut with `reshape`, which mixes the gates. Cut it along its last axis: "
        "`jnp.split(..., 3, axis=-1)`.": _reorder(np.concatenate(reshaped, axis=-1)),
    }
    if rows * 3 == columns:  # each gate's block is square
        turned = np.concatenate([block.T for block in np.split(kernel, 3, axis=-1)], axis=-1)
        mistakes |= {
            f"{path} has each gate's block transposed. Both sides compute h U: leave the blocks "
            "as they are.": _reorder(turned),
            f"{path} has each gate's block transposed, and z's sign has not changed.": _reorder(
                turned, (1, 1, 1)
            ),
        }
    return mistakes


# ---------------------------------------------------------------------------------------- 6.4


@exercise("6.4", "A gated cell of your own", "open")
def check_gated_cell(cell_class: Callable[..., Any]) -> str:
    cell = _make(cell_class)
    _expect_started(cell, "gate_bias")
    params = _arrays(cell, nnx.Param)
    if "gate_bias" not in params or params["gate_bias"].shape != (HIDDEN_FEATURES,):
        raise Wrong(
            "The cell needs an nnx.Param called gate_bias of shape (hidden_features,) = (4,); its "
            f"parameters are { {path: array.shape for path, array in params.items()} }."
        )
    count, gru = sum(array.size for array in params.values()), 3 * (3 * 4 + 4 * 4 + 4) + 4
    if count >= gru:
        raise Wrong(
            f"The cell has {count} parameters with 3 inputs and 4 units. unrolled.GRUCell has "
            f"{gru}; find something to leave out."
        )
    _expect_carry(cell)

    rng = np.random.default_rng(6)
    _fill(cell, {path: 0.7 * rng.normal(size=array.shape) for path, array in params.items()})
    carry, inputs = np.tanh(rng.normal(size=(2, 5, 4))), rng.normal(size=(2, 5, 3))
    new, output = _step(cell, carry, inputs)
    new = expect_array(new, (2, 5, 4), "the new carry")
    expect_array(output, (2, 5, 4), "the output")
    alone, _ = _step(cell, carry[1, 3], inputs[1, 3])
    if np.abs(expect_array(alone, (4,), "the new carry without batch") - new[1, 3]).max() > 1e-4:
        raise Wrong(
            "A row of a batch gives another state than the same row alone: the rows are mixed. "
            "Work on the last axis only."
        )
    _expect_scan(cell, inputs[0])
    _expect_used(cell, carry, inputs)
    _expect_gate(cell, carry, inputs)
    _expect_bounded(cell, rng, inputs)
    return f"{count} parameters where a GRU has {gru}, and it keeps, writes and stays bounded."


def _expect_scan(cell: Any, inputs: np.ndarray) -> None:
    def scan(inputs):
        return jax.lax.scan(cell, cell.initialize_carry((3,)), inputs)[1]

    scan.__name__ = "the cell in jax.lax.scan"
    run(scan, jnp.asarray(inputs, jnp.float32))


def _expect_used(cell: Any, carry: np.ndarray, inputs: np.ndarray) -> None:
    graphdef, state = nnx.split(cell)
    weights = np.random.default_rng(0).normal(size=(2, *carry.shape))

    @jax.jit
    def gradients(state, carry, inputs):
        def weighted(state, carry, inputs):
            pair = nnx.merge(graphdef, state)(carry, inputs)
            return [jnp.sum(weight * part) for weight, part in zip(weights, pair)]

        (new, output), back = jax.vjp(weighted, state, carry, inputs)
        return back([new * 0 + 1, output * 0]), back([new * 0, output * 0 + 1])[0]

    arrays = (jnp.asarray(array, jnp.float32) for array in (carry, inputs))
    (by_state, by_carry, by_inputs), of_output = gradients(state, *arrays)
    for name, gradient in {"old state": by_carry, "input": by_inputs}.items():
        if np.abs(gradient).max() < 1e-7:
            raise Wrong(f"The new state does not depend on the {name}.")
    of_output = _named(of_output)
    for path, gradient in _named(by_state).items():
        if max(np.abs(gradient).max(), np.abs(of_output[path]).max()) < 1e-7:
            raise Wrong(
                f"The parameter {path} has no effect on the new state, nor on the output: its "
                "gradient is zero."
            )
    _expect_state_seen(cell, carry, inputs)


def _expect_state_seen(cell: Any, carry: np.ndarray, inputs: np.ndarray) -> None:
    """A gate or the candidate looks at the old state.

    Of a blend alone, each unit is a straight line over its own old state. So the old state of
    another unit has to count, or the line has to bend.
    """
    new = _step(cell, carry, inputs)[0]
    first_moved = _step(cell, carry + np.array([0.3, 0, 0, 0]), inputs)[0]
    bend = _step(cell, carry + 0.3, inputs)[0] + _step(cell, carry - 0.3, inputs)[0] - 2 * new
    if np.abs(first_moved - new)[..., 1:].max() < 1e-6 and np.abs(bend).max() < 1e-5:
        raise Wrong(
            "The old state enters only through the blend: neither a gate nor the candidate looks "
            "at it. Let one of them see it, through a matrix or through one weight for each unit."
        )


def _expect_gate(cell: Any, carry: np.ndarray, inputs: np.ndarray) -> None:
    saved = cell.gate_bias[...]
    cell.gate_bias[...] = jnp.full_like(saved, 30.0)
    kept = np.asarray(_step(cell, carry, inputs)[0])
    cell.gate_bias[...] = jnp.full_like(saved, -30.0)
    written = np.asarray(_step(cell, carry, inputs)[0])
    other_inputs = np.asarray(_step(cell, carry, -inputs)[0])
    cell.gate_bias[...] = saved
    if np.abs(written - carry).max() < 1e-3 and np.abs(kept - carry).max() > 1e-3:
        raise Wrong(
            "The gate turns the other way: at gate_bias = -30 the state is kept. The check wants "
            "it kept at +30."
        )
    if np.abs(kept - carry).max() > 1e-4:
        raise Wrong(
            f"At gate_bias = +30 a step changes the state by up to {np.abs(kept - carry).max():.2g}"
            ", but an open gate should keep it as it is. Is gate_bias inside the sigmoid that "
            "weighs the old state in the blend?"
        )
    if np.abs(written - other_inputs).max() < 1e-3:
        raise Wrong(
            "At gate_bias = -30 the new state should follow the input, but another input gives "
            "the same state."
        )


def _expect_bounded(cell: Any, rng: np.random.Generator, inputs: np.ndarray) -> None:
    state = {
        path: 20 * rng.normal(size=array.shape) for path, array in _arrays(cell, nnx.Param).items()
    }
    _fill(cell, state)
    carry = np.zeros((*inputs.shape[:-1], 4))
    for _ in range(3):
        carry = np.asarray(_step(cell, carry, inputs)[0])
    if np.abs(carry).max() > 1 + 1e-5:
        raise Wrong(
            f"With large weights the state reaches {np.abs(carry).max():.2g}; it should stay "
            "within [-1, 1]. Blend the old state with a candidate that is bounded, with shares "
            "that add up to 1."
        )


# ---------------------------------------------------------------------------------------- shared


def _make(cell_class: Any) -> Any:
    if not (isinstance(cell_class, type) and issubclass(cell_class, nnx.Module)):
        raise Wrong(
            "expected a class that inherits from nnx.Module, but got "
            f"{getattr(cell_class, '__name__', None) or f'a {type(cell_class).__name__}'}. Pass "
            "the class itself, without making a cell."
        )
    construct = partial(cell_class)
    construct.__name__ = cell_class.__name__  # so that `run` can name it
    for method in ("initialize_carry", "__call__"):
        if not any(method in vars(base) for base in cell_class.__mro__):
            raise Wrong(f"{cell_class.__name__} needs the method `{method}`.")
    return run(construct, IN_FEATURES, HIDDEN_FEATURES, rngs=nnx.Rngs(0))


def _expect_started(cell: Any, *names: str) -> None:
    if any(getattr(cell, name, None) is Ellipsis for name in names):
        raise NotStarted
    missing = [name for name in names if not hasattr(cell, name)]
    if missing:
        raise Wrong(f"The cell has no attribute {' and no '.join(missing)}.")


def _expect_carry(cell: Any) -> None:
    for shape in [(3,), (2, 5, 3)]:
        carry = run(cell.initialize_carry, shape)
        wanted = (*shape[:-1], HIDDEN_FEATURES)
        carry = expect_array(
            carry,
            wanted,
            f"initialize_carry({shape})",
            hint="Keep the batch dimensions and replace the last one by hidden_features.",
        )
        if carry.any():
            raise Wrong(f"initialize_carry({shape}) should be zeros.")


def _step(cell: Any, carry: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    call = type(cell).__call__
    result = run(call, cell, *(jnp.asarray(array, jnp.float32) for array in (carry, inputs)))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise Wrong(
            "`__call__` should return a pair: the new carry and the output. Yours returns "
            f"{'one array' if hasattr(result, 'shape') else f'a {type(result).__name__}'}."
        )
    shape = (*carry.shape[:-1], HIDDEN_FEATURES)
    new, output = (
        expect_array(value, shape, name) for value, name in zip(result, ("the new carry", "output"))
    )
    return new, output


def _fill(cell: Any, weights: Mapping[str, np.ndarray]) -> None:
    state = nnx.state(cell, nnx.Param)
    flat = nnx.to_flat_state(state)
    for path, param in flat:
        param[...] = jnp.asarray(weights[".".join(map(str, path))], jnp.float32)
    nnx.update(cell, state)


def _arrays(module: Any, *filters: Any) -> dict[str, jax.Array]:
    return _named(nnx.state(module, *filters))


def _named(state: Any) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}
