"""Exercises of chapter 3: scans of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.lab.exercises._base import (
    Wrong,
    exercise,
    expect_array,
    expect_close,
    run,
)
from unrolled.lab.exercises._programs import scan_sizes


@exercise("3.1", "The highest so far", "easy")
def running_max(function: Callable) -> str:
    xs = np.array([-3.0, -5.0, -1.0, -2.0, -1.5, 0.5, 0.25, 4.0, -7.0, 3.0], np.float32)
    result = run(function, jnp.asarray(xs))
    if isinstance(result, tuple | list):
        raise Wrong(
            "`running_max` returned several things. Scan returns the final carry and the stacked "
            "outputs; return only the outputs."
        )
    if np.shape(result) == ():
        raise Wrong(
            "`running_max` returned a single number, the highest of all: that is the final carry. "
            "The values on the way are scan's second result."
        )
    if np.shape(result) == xs.shape and np.asarray(result).flat[0] == -np.inf:
        raise Wrong(
            "Your first output is minus infinity, so each step outputs the carry it was given. "
            "The value at a position must include that position: output the new carry."
        )
    started_at_zero = np.maximum.accumulate(np.maximum(xs, 0))
    late = np.concatenate([xs[:1], np.maximum.accumulate(xs)[:-1]])
    late_from_zero = np.concatenate([[0.0], started_at_zero[:-1]])
    outputs_old = (
        "Each step outputs the carry it was given, so every value comes one step late. "
        "Output the new carry."
    )
    expect_close(
        result,
        np.maximum.accumulate(xs),
        name="the running maximum",
        mistakes={
            "With negative numbers your maximum is 0, a number that is not among them: the carry "
            "must not start at zero. Start below every number, or at the first one.": (
                started_at_zero
            ),
            outputs_old: late,
            outputs_old + " And start it below every number, not at zero.": late_from_zero,
            "This is the maximum from each position to the end. It should be of what came before: "
            "leave out `reverse=True`.": np.maximum.accumulate(xs[::-1])[::-1],
            "This is the running minimum: take the larger of the two, not the smaller.": (
                np.minimum.accumulate(xs)
            ),
            "These are the numbers themselves: the step outputs `x`, not the highest so far.": xs,
            "This is the running sum. Replace the sum in your step by `jnp.maximum`.": xs.cumsum(),
        },
        otherwise="Write down by hand what the carry is after each of -3, -5 and -1.",
    )
    _one_scan(function, jnp.asarray(xs))
    return (
        "it holds for negative numbers too, and one scan does it. A carry of one number is enough "
        "to know the highest of any number of values."
    )


@exercise("3.2", "Let the gate be seen", "medium")
def gru_with_update_gate(function: Callable) -> str:
    params, initial_h, inputs = _gru(seed=32)
    steps, hidden = inputs.shape[0], initial_h.shape[0]
    result = run(function, *map(_to_jax, (params, initial_h, inputs)))
    final_h, outputs = _pair(
        result, "gru_with_update_gate", '`(final_h, {"h": …, "update": …})`, as scan returns it'
    )
    if not isinstance(outputs, dict):
        raise Wrong(
            "The second result should be a dict with the entries `h` and `update`. Let the step "
            f"return such a dict as its output; it is a {type(outputs).__name__} now."
        )
    missing = [name for name in ("h", "update") if name not in outputs]
    if missing:
        raise Wrong(f"The dict of outputs lacks {' and '.join(f'`{name}`' for name in missing)}.")
    truth = _numpy_gru(params, initial_h, inputs)
    expected_shape = (steps, hidden)
    for name in ("h", "update"):
        expect_array(
            outputs[name],
            expected_shape,
            f'outputs["{name}"]',
            "Each step should output a vector of shape (hidden_dim,); scan stacks them.",
        )
    expect_close(
        outputs["h"],
        truth["h"],
        name='outputs["h"]',
        mistakes={
            'In outputs["h"] every state comes one step late: the step outputs `h_prev` instead of '
            "the new state.": np.concatenate([initial_h[None], truth["h"][:-1]]),
            'outputs["h"] holds the update gate and outputs["update"] probably the state: the two '
            "are swapped.": truth["update"],
            'outputs["h"] holds the states of a GRU whose update gate turns the other way. Here '
            "`update` weighs the candidate: (1 - z) * h_prev + z * candidate. `gru_step` does it "
            "for you.": _numpy_gru(params, initial_h, inputs, keep=True)["h"],
        },
        otherwise="Let `gru_step` compute the new state.",
    )
    with_new_state = _sigmoid(inputs @ params["Wz"].T + truth["h"] @ params["Uz"].T + params["bz"])
    expect_close(
        outputs["update"],
        truth["update"],
        name='outputs["update"]',
        mistakes={
            'outputs["update"] was computed from the new state. The gate decides before there is '
            "one: use `h_prev`.": with_new_state,
            'outputs["update"] is the reset gate: use Wz, Uz and bz.': truth["reset"],
            'outputs["update"] is 1 - z: it shows what is kept, not what is written.': (
                1 - truth["update"]
            ),
            'outputs["update"] is the sum before the sigmoid: its values should lie between 0 and '
            "1.": truth["before_sigmoid"],
            'outputs["update"] lacks the bias bz.': _sigmoid(
                truth["before_sigmoid"] - params["bz"]
            ),
            'outputs["update"] lacks the old state: add Uz times `h_prev`.': _sigmoid(
                inputs @ params["Wz"].T + params["bz"]
            ),
            'outputs["update"] holds the hidden states. Output the gate there.': truth["h"],
        },
        otherwise="z_t = sigmoid(Wz x_t + Uz h_prev + bz).",
    )
    expect_close(
        final_h,
        truth["h"][-1],
        name="final_h",
        mistakes={
            "final_h is the last update gate: the first thing that a step returns must be the new "
            "state.": truth["update"][-1],
        },
    )
    _one_scan(function, *map(_to_jax, (params, initial_h, inputs)))
    return (
        "the states are unchanged and every gate is there to be looked at. An output may hold "
        "whatever the step has computed."
    )


@exercise("3.3", "Both directions in one scan", "hard")
def both_directions(function: Callable) -> str:
    forward_params, initial_h, inputs = _gru(seed=33)
    backward_params, _, _ = _gru(seed=34)
    arguments = [_to_jax(a) for a in (forward_params, backward_params, initial_h, inputs)]
    steps, hidden = inputs.shape[0], initial_h.shape[0]
    result = run(function, *arguments)
    if isinstance(result, tuple | list) and len(result) == 2:
        raise Wrong(
            "`both_directions` returned a pair. Join the two directions into one array of shape "
            "(time, 2 * hidden_dim), and leave out the final carry."
        )
    if np.shape(result) == (2 * steps, hidden):
        raise Wrong(
            f"the result has shape {(2 * steps, hidden)}: the halves are joined along time. Join "
            "them along the features: axis=1."
        )

    def states(params: dict, xs: np.ndarray) -> np.ndarray:
        return _numpy_gru(params, initial_h, xs)["h"]

    forward = states(forward_params, inputs)
    backward_as_computed = states(backward_params, inputs[::-1])
    backward = backward_as_computed[::-1]
    same_direction = states(backward_params, inputs)

    def join(*halves: np.ndarray) -> np.ndarray:
        return np.concatenate(halves, axis=1)

    expect_close(
        expect_array(result, (steps, 2 * hidden), "the result"),
        join(forward, backward),
        mistakes={
            "The backward half is in the order in which it was computed, so its first row belongs "
            "to the last input. Turn the backward states round along time: `[::-1]`.": join(
                forward, backward_as_computed
            ),
            "The backward half has read the inputs forwards. Scan over the pair "
            "`(inputs, inputs[::-1])` and give each GRU its own.": join(forward, same_direction),
            "The backward half has read the inputs forwards, and its states were then turned "
            "round. It is the inputs that must be turned first: `inputs[::-1]`.": join(
                forward, same_direction[::-1]
            ),
            "Both halves are right but swapped: the forward states come first.": join(
                backward, forward
            ),
            "The forward half is turned round too. Only the backward states need `[::-1]`.": join(
                forward[::-1], backward
            ),
            "Both halves are turned round in time: with `reverse=True` it is the forward GRU that "
            "reads from the end.": join(forward[::-1], backward_as_computed),
            "Both halves use forward_params. The backward GRU has parameters of its own.": join(
                forward, states(forward_params, inputs[::-1])[::-1]
            ),
            "The two sets of parameters are swapped.": join(
                same_direction, states(forward_params, inputs[::-1])[::-1]
            ),
            "The backward states were turned round along the features and not along time: write "
            "`[::-1]`, which turns the first axis.": join(forward, backward_as_computed[:, ::-1]),
        },
        otherwise="Compare each half with a GRU of its own to see which one is wrong.",
    )
    _one_scan(function, *arguments)
    return (
        "past and future meet in every row, and one scan computes both. A bidirectional layer is "
        "this and a choice of how to join the halves."
    )


@exercise("3.4", "A memory of eight numbers", "open")
def smooth(function: Callable) -> str:
    steps = 400
    random = np.random.default_rng(0)
    time = np.arange(steps)
    signals = {
        "a wave": 8.0 * np.sin(2 * np.pi * time / 200),
        "a staircase": np.repeat(random.uniform(-6, 6, 4), steps // 4),
        "a long calm": np.cumsum(0.02 * random.standard_normal(steps)),
    }
    removed, smoothed = {}, {}
    for name, signal in signals.items():
        noise = random.standard_normal(steps)
        readings = jnp.asarray(signal + noise, jnp.float32)
        estimate = run(function, readings)
        if isinstance(estimate, tuple | list) and len(estimate) == 2:
            raise Wrong(
                "`smooth` returned two things. Scan returns the final carry and the stacked "
                "outputs; return only the outputs."
            )
        estimate = expect_array(
            estimate, (steps,), "the estimate", "There should be one estimate for every reading."
        )
        if not removed:
            _sees_no_future(function, readings, estimate)
            _small_carry(function, readings)
        removed[name] = 1 - np.mean((estimate - signal) ** 2) / np.mean(noise**2)
        smoothed[name] = np.mean((estimate - signal - noise) ** 2) / np.mean(noise**2)
    report = ", ".join(f"{100 * share:.0f} % on {name}" for name, share in removed.items())
    worst = min(removed, key=removed.get)
    if removed[worst] < 0.5:
        detail = (
            "it follows the readings too closely: keep more of the old estimate"
            if smoothed[worst] < 0.5
            else "it lags too far behind: move faster towards a new reading, or carry the slope too"
        )
        raise Wrong(
            f"the rules are kept, but of the noise your estimate removes {report}. At least 50 % "
            f"are needed on each; on {worst} {detail}."
        )
    return f"no look at the future, a small carry, and of the noise it removes {report}."


def _sees_no_future(function: Callable, readings: jax.Array, estimate: np.ndarray) -> None:
    """Raise `Wrong` if an estimate changes when only later readings do."""
    for cut in (60, 200, 399):
        changed = np.asarray(run(function, readings.at[cut:].set(25.0)), np.float64)
        early = np.abs(changed[:cut] - estimate[:cut])
        if early.max() > 1e-4:
            raise Wrong(
                f"When the readings from index {cut} on change, your estimate at index "
                f"{int(early.argmax())} changes too: it has seen the future. Use no reading later "
                "than the estimate, no mean over everything and no `reverse=True`."
            )


def _small_carry(function: Callable, readings: jax.Array) -> None:
    """Raise `Wrong` unless one scan with a carry of at most eight numbers does the work."""
    equation = _one_scan(function, readings)
    first, carries, _ = scan_sizes(equation)
    carry = equation.invars[first : first + carries]
    size = sum(prod(variable.aval.shape) for variable in carry)
    if size > 8:
        raise Wrong(
            f"the carry holds {size} numbers; at most 8 are allowed. Remember a summary of the "
            "readings, not the readings."
        )
    window = max((prod(v.aval.shape[1:]) for v in equation.invars[first + len(carry) :]), default=0)
    if window > 1:
        raise Wrong(
            f"each step is handed {window} numbers. It should be given one reading; what it knows "
            "of earlier ones belongs in the carry."
        )


def _one_scan(function: Callable, *arguments: Any) -> Any:
    """Return the equation of the only scan in `function`, or say what there is instead."""
    try:
        jaxpr = jax.make_jaxpr(function)(*arguments)
    except Exception as error:
        raise Wrong(
            "the numbers are right, but JAX cannot trace the function "
            f"({type(error).__name__}). Use `jnp` and `jax.lax.scan` instead of NumPy, `float()` "
            "and `if`."
        ) from None
    loops = list(_loops(jaxpr.jaxpr))
    if not loops:
        raise Wrong(
            "the function runs, but there is no scan in it. Python loops and ready-made functions "
            "do the work too; here the point is `jax.lax.scan`."
        )
    if len(loops) > 1:
        raise Wrong(
            f"the function runs, but it uses {len(loops)} loops. Everything fits into one scan: "
            "its carry and its inputs may be pairs."
        )
    if loops[0].primitive.name != "scan":
        raise Wrong("the function runs, but its loop is no scan. Write it with `jax.lax.scan`.")
    return loops[0]


def _loops(jaxpr: Any) -> Iterator[Any]:
    """Yield the outermost loops of a jaxpr, at any depth of `jit`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("scan", "while"):
            yield equation
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _loops(inner)


def _pair(result: Any, name: str, what: str) -> tuple[Any, Any]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong(f"`{name}` should return the pair {what}.")
    return result[0], result[1]


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def _gru(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Draw parameters, an initial state and inputs; every size differs and no bias is zero."""
    random = np.random.default_rng(seed)
    steps, inputs, hidden = 6, 3, 4
    shapes = {"W": (hidden, inputs), "U": (hidden, hidden), "b": (hidden,)}
    params = {
        kind + gate: random.normal(size=shape) for gate in "zrh" for kind, shape in shapes.items()
    }
    return params, random.normal(size=hidden), random.normal(size=(steps, inputs))


def _to_jax(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def _numpy_gru(
    params: dict[str, np.ndarray], h: np.ndarray, inputs: np.ndarray, keep: bool = False
) -> dict[str, np.ndarray]:
    """Run the GRU in double precision; with `keep`, the update gate turns the other way."""
    trace: dict[str, list] = {"h": [], "update": [], "reset": [], "before_sigmoid": []}
    for x in inputs:
        before_sigmoid = params["Wz"] @ x + params["Uz"] @ h + params["bz"]
        update = _sigmoid(before_sigmoid)
        reset = _sigmoid(params["Wr"] @ x + params["Ur"] @ h + params["br"])
        candidate = np.tanh(params["Wh"] @ x + params["Uh"] @ (reset * h) + params["bh"])
        written = 1 - update if keep else update
        h = (1 - written) * h + written * candidate
        values = {"h": h, "update": update, "reset": reset, "before_sigmoid": before_sigmoid}
        for name, value in values.items():
            trace[name].append(value)
    return {name: np.stack(values) for name, values in trace.items()}
