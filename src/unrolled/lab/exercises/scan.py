"""Exercises of chapter 3: scans of your own."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.lab.exercises._base import (
    Wrong,
    describe,
    exercise,
    expect_array,
    expect_close,
    run,
)
from unrolled.lab.exercises._programs import one_scan, outermost_loops, scan_sizes


@exercise("3.1", "The highest so far", "easy")
def running_max(function: Callable) -> str:
    xs = np.array([-3.0, -5.0, -1.0, -2.0, -1.5, 0.5, 0.25, 4.0, -7.0, 3.0], np.float32)
    result = _run(function, jnp.asarray(xs))
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
    expect_array(result, xs.shape, "the running maximum", "There is one for each number.")
    start = np.asarray(result, np.float64)[0]
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
            "These are the numbers themselves: the step outputs `x`, or a maximum with a carry "
            "that never changes. Is the new maximum also the new carry?": xs,
            "The carry never changes: each output is the larger of that number and the start. The "
            "first thing that a step returns is the next carry.": np.maximum(xs, xs[0]),
            "The carry never changes, and it starts at zero. The first thing that a step returns "
            "is the next carry.": np.maximum(xs, 0),
            "Each output looks back one step only: the carry is the last number, not the highest "
            "so far.": np.maximum(xs, np.concatenate([xs[:1], xs[:-1]])),
            f"Your first maximum is {start:g}, a number that is not among them: the carry must "
            "start below every number, or at the first one.": (
                np.maximum.accumulate(np.maximum(xs, start)) if start > xs[0] else late
            ),
            "This is the running sum. Replace the sum in your step by `jnp.maximum`.": xs.cumsum(),
        },
        otherwise="Write down by hand what the carry is after each of -3, -5 and -1.",
    )
    low = 1e30 * np.minimum(xs, -1)
    result = expect_array(run(function, jnp.asarray(low)), low.shape, "the running maximum")
    if not np.allclose(result, np.maximum.accumulate(low)):
        raise Wrong(
            f"Among numbers such as {low[0]:.0e} your first maximum is {result[0]:g}: they lie "
            "below your start. Start at minus infinity, or at the first number."
        )
    one_scan(function, jnp.asarray(xs))
    return (
        "it holds for negative numbers too, and one scan does it. A carry of one number is enough "
        "to know the highest of any number of values."
    )


@exercise("3.2", "Let the gate be seen", "medium")
def gru_with_update_gate(function: Callable) -> str:
    params, initial_h, inputs = _gru(seed=32)
    steps, hidden = inputs.shape[0], initial_h.shape[0]
    result = run(function, *map(_to_jax, (params, initial_h, inputs)))
    if isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[0], dict):
        raise Wrong("The pair is in the wrong order: the last state comes first, then the dict.")
    final_h, outputs = _pair(
        result, "gru_with_update_gate", '`(final_h, {"h": …, "update": …})`, as scan returns it'
    )
    if not isinstance(outputs, dict):
        raise Wrong(
            "The second result should be a dict with the entries `h` and `update`. Let the step "
            f"return such a dict as its output; it is {describe(outputs)} now."
        )
    missing = [name for name in ("h", "update") if name not in outputs]
    if missing:
        raise Wrong(f"The dict of outputs lacks {' and '.join(f'`{name}`' for name in missing)}.")
    truth = _numpy_gru(params, initial_h, inputs)
    transposed = params | {name: params[name].T for name in ("Uz", "Ur", "Uh")}
    from_start = np.broadcast_to(initial_h, (steps, hidden))
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
            'outputs["h"] always starts again from initial_h: the carry is not updated. The first '
            "thing that a step returns is the next carry.": _numpy_gru(
                params, initial_h, inputs, frozen=True
            )["h"],
            'outputs["h"] is initial_h at every step: the step returns `h_prev`, not the new '
            "state.": from_start,
            'outputs["h"] holds the states of a GRU whose recurrent matrices are transposed: here '
            "it is Uz @ h, not h @ Uz.": _numpy_gru(transposed, initial_h, inputs)["h"],
            'outputs["h"] holds the states of a GRU whose reset gate acts after the matrix. Here '
            "it acts on `h_prev`, before Uh. `gru_step` does it for you.": _numpy_gru(
                params, initial_h, inputs, reset_after=True
            )["h"],
            'outputs["h"] holds the states from zeros: start the scan from `initial_h`.': (
                _numpy_gru(params, 0 * initial_h, inputs)["h"]
            ),
        },
        otherwise="Make one step by hand, with `gru_step(params, initial_h, inputs[0])`, and "
        "compare.",
    )
    h_prev = np.concatenate([initial_h[None], truth["h"][:-1]])
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
            'outputs["update"] was computed with Uz transposed: it is Uz @ h_prev, not '
            "h_prev @ Uz.": _sigmoid(
                inputs @ params["Wz"].T + h_prev @ params["Uz"] + params["bz"]
            ),
            'outputs["update"] went through tanh. A gate has the sigmoid, so that it lies between '
            "0 and 1.": np.tanh(truth["before_sigmoid"]),
            'outputs["update"] always looks at initial_h: take the `h_prev` of the step.': _sigmoid(
                inputs @ params["Wz"].T + initial_h @ params["Uz"].T + params["bz"]
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
            "final_h is the initial state: the first thing that a step returns must be the new "
            "state.": initial_h,
        },
        otherwise="It is the first of the two things that scan returns.",
    )
    one_scan(function, *map(_to_jax, (params, initial_h, inputs)))
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

    def frozen(params: dict, xs: np.ndarray) -> np.ndarray:
        return _numpy_gru(params, initial_h, xs, frozen=True)["h"]

    still_forward, still_backward = (
        frozen(forward_params, inputs),
        frozen(backward_params, inputs[::-1])[::-1],
    )
    crossed = _crossed(forward_params, backward_params, initial_h, inputs)
    not_updated = "The first thing that a step returns is the pair of new states."

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
            f"Every state was computed from initial_h: the carry is not updated. {not_updated}": (
                join(still_forward, still_backward)
            ),
            "Every forward state was computed from initial_h: its half of the carry is not "
            f"updated. {not_updated}": join(still_forward, backward),
            "Every backward state was computed from initial_h: its half of the carry is not "
            f"updated. {not_updated}": join(forward, still_backward),
            "The carry comes back with its halves exchanged: each GRU goes on from the other's "
            "state.": join(crossed[0], crossed[1][::-1]),
            "Both GRUs start from zeros: start from `initial_h`, both of them.": join(
                _numpy_gru(forward_params, 0 * initial_h, inputs)["h"],
                _numpy_gru(backward_params, 0 * initial_h, inputs[::-1])["h"][::-1],
            ),
        },
        otherwise="Compare each half with a GRU of its own to see which one is wrong.",
    )
    one_scan(function, *arguments)
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
        estimate = _run(function, readings)
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
            _remembers_in_the_carry(function, readings)
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
    equation = one_scan(function, readings)
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


def _remembers_in_the_carry(function: Callable, readings: jax.Array) -> None:
    """Raise `Wrong` if earlier readings reach an estimate by another way than the carry.

    One reading is changed, and every step is given the carry that it had before: then one step may
    differ, and one estimate. Shapes would not tell: a step may look up its reading in an array.
    """
    for place in (100, 300):
        try:
            steps, estimates = _changes_without_carry(function, readings, place)
        except Exception:  # it runs, but not like this: nothing is known
            return
        if steps > 1:
            raise Wrong(
                f"when the reading at index {place} changes, {steps} steps do something else, "
                "although the carry of each is held as it was. A step should be given one reading; "
                "what it knows of earlier ones belongs in the carry."
            )
        if estimates > 1:
            raise Wrong(
                f"when the reading at index {place} changes, one step does something else, but "
                f"{estimates} estimates do. What is known of earlier readings belongs in the "
                "carry; behind the scan each estimate may use what its own step has put out."
            )


class _Met(Exception):
    """The function has called `jax.lax.scan` by this name."""


def _changes_without_carry(function: Callable, readings: jax.Array, place: int) -> tuple[int, int]:
    """How many steps and how many estimates change with a reading, the carries being held."""
    scan, held, done, estimates = jax.lax.scan, [], [], []

    def meet(*_, **__):
        raise _Met

    def with_held_carries(f, init, xs=None, length=None, **options):
        with jax.disable_jit(False):
            if not held:
                held.append(scan(lambda c, x: (f(c, x)[0], c), init, xs, length, **options))
            final, carries = held[0]
            done.append(jax.jit(jax.vmap(f))(carries, xs))
            return final, done[-1][1]

    changed = readings.at[place].add(5.0)
    try:
        jax.lax.scan = meet
        try:
            function(readings[1:])  # of a new length: nothing has been compiled for it
        except _Met:
            jax.lax.scan = with_held_carries
            with jax.disable_jit():  # so that what has been compiled is run anew
                estimates = [function(given) for given in (readings, changed)]
    finally:
        jax.lax.scan = scan
    before, after = done
    steps = sum(map(_differs, jax.tree.leaves(before), jax.tree.leaves(after)))
    return int((steps > 0).sum()), int(_differs(*estimates).sum())


def _differs(before: Any, after: Any) -> np.ndarray:
    """For each row of two arrays whether they differ there."""
    gap = np.abs(np.asarray(before, np.float64) - np.asarray(after, np.float64))
    return gap.reshape(len(gap), -1).max(axis=1) > 1e-5


def _run(function: Callable, *arguments: Any) -> Any:
    """Run the reader's function; None from a scan whose step outputs nothing is told as such."""
    try:
        return run(function, *arguments)
    except Wrong as wrong:
        if "returned None" not in str(wrong):
            raise
        try:
            program = jax.make_jaxpr(function)(*arguments)
        except Exception:
            raise wrong from None
        if not any(outermost_loops(program.jaxpr)):
            raise
        raise Wrong(
            "what comes out is None, although there is a scan. Scan stacks what the step returns "
            "as the second of its two results: is that None?"
        ) from None


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


def _crossed(
    forward_params: dict, backward_params: dict, h: np.ndarray, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The states of two GRUs, each of which goes on from the other's last state."""
    pair, states = (h, h), []
    for x, from_end in zip(inputs, inputs[::-1]):
        new = (
            _numpy_gru(forward_params, pair[0], x[None])["h"][0],
            _numpy_gru(backward_params, pair[1], from_end[None])["h"][0],
        )
        states.append(new)
        pair = new[::-1]
    return tuple(np.stack(half) for half in zip(*states))


def _numpy_gru(
    params: dict[str, np.ndarray],
    h: np.ndarray,
    inputs: np.ndarray,
    keep: bool = False,
    frozen: bool = False,
    reset_after: bool = False,
) -> dict[str, np.ndarray]:
    """Run the GRU in double precision, right or with a mistake.

    With `keep` the update gate turns the other way, with `frozen` the carry is never updated, and
    with `reset_after` the reset gate acts after the matrix.
    """
    initial_h = h
    trace: dict[str, list] = {"h": [], "update": [], "reset": [], "before_sigmoid": []}
    for x in inputs:
        before_sigmoid = params["Wz"] @ x + params["Uz"] @ h + params["bz"]
        update = _sigmoid(before_sigmoid)
        reset = _sigmoid(params["Wr"] @ x + params["Ur"] @ h + params["br"])
        recurrent = params["Uh"] @ (reset * h)
        if reset_after:
            recurrent = reset * (params["Uh"] @ h)
        candidate = np.tanh(params["Wh"] @ x + recurrent + params["bh"])
        written = 1 - update if keep else update
        h = (1 - written) * h + written * candidate
        values = {"h": h, "update": update, "reset": reset, "before_sigmoid": before_sigmoid}
        for name, value in values.items():
            trace[name].append(value)
        h = initial_h if frozen else h
    return {name: np.stack(values) for name, values in trace.items()}
