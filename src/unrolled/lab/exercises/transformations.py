"""The exercises of chapter 4: axes, gradients, a backward pass by hand, and a memory budget."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.gru import PARAMETER_SHAPES, gru_sequence
from unrolled.lab.exercises._base import Wrong, exercise, expect_array, expect_close, run
from unrolled.lab.exercises._programs import LOOPS, inner_programs

INPUT_DIM, HIDDEN_DIM = 3, 4


def _draw(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def _params(hidden_dim: int = HIDDEN_DIM, scale: float = 0.6) -> dict[str, jax.Array]:
    sizes = {"input_dim": INPUT_DIM, "hidden_dim": hidden_dim}
    return {
        name: jnp.asarray(_draw(tuple(sizes[dim] for dim in dims), seed, scale))
        for seed, (name, dims) in enumerate(PARAMETER_SHAPES.items())
    }


def _pair(value: object) -> tuple[object, object]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong("expected a pair `(final_h, outputs_h)`, as gru_sequence returns it.")
    return value[0], value[1]


@cache
def _time_major_case() -> tuple:
    params = _params()
    initial_h = jnp.asarray(_draw((5, HIDDEN_DIM), 20))
    inputs = jnp.asarray(_draw((7, 5, INPUT_DIM), 21))
    run_all = jax.jit(jax.vmap(gru_sequence, in_axes=(None, 0, 1), out_axes=(0, 1)))
    right = run_all(params, initial_h, inputs)
    from_zeros = run_all(params, 0 * initial_h, inputs)
    one_start = run_all(params, 0 * initial_h + initial_h[0], inputs)
    reshaped = run_all(params, initial_h, inputs.reshape(5, 7, -1).swapaxes(0, 1))
    return params, initial_h, inputs, right, from_zeros, one_start, reshaped


@exercise("4.1", "Time first", "easy")
def time_major(function) -> str:
    """Map over axis 1 of inputs, axis 0 of initial_h, and put the batch back at axis 1."""
    params, initial_h, inputs, right, from_zeros, one_start, reshaped = _time_major_case()
    time, batch = inputs.shape[:2]
    try:
        result = run(function, params, initial_h, inputs)
    except Wrong as wrong:
        if "inconsistent sizes" in str(wrong):
            raise Wrong(
                f"{wrong} Two arguments disagree about the batch size: along which axis of "
                "inputs, (time, batch, input_dim), and of initial_h, (batch, hidden_dim), do the "
                "examples lie?"
            ) from None
        if "has shape" in str(wrong):
            raise Wrong(
                f"{wrong} gru_sequence runs one sequence, so each mapped argument must lose "
                "exactly its batch axis."
            ) from None
        raise
    if callable(result):
        raise Wrong(
            "the result is a function, what `jax.vmap` returns. Call it with the three arguments."
        )
    final_h, outputs_h = _pair(result)
    shape = getattr(outputs_h, "shape", None)
    if shape == (batch, HIDDEN_DIM) and getattr(final_h, "ndim", None) == 3:
        raise Wrong("the pair is in the wrong order: final_h comes first, then outputs_h.")
    if shape == (batch, time, HIDDEN_DIM):
        raise Wrong(
            f"outputs_h has shape {shape}: the batch axis is in front. Inputs came with time "
            "first, so outputs should leave with time first; `out_axes` says where the batch "
            "axis goes, one entry for each result."
        )
    if getattr(final_h, "shape", None) == (HIDDEN_DIM, batch):
        raise Wrong(
            f"final_h has shape {(HIDDEN_DIM, batch)}: the batch axis went to the end. `out_axes` "
            "has one entry for final_h and one for outputs_h."
        )
    for name, value, k in (("final_h", final_h, 0), ("outputs_h", outputs_h, 1)):
        expect_close(
            value,
            right[k],
            name=name,
            mistakes={
                "the numbers are those of sequences that all start from zeros: pass initial_h "
                "on to gru_sequence.": from_zeros[k],
                "all sequences started from the first row of initial_h: each example has a row "
                "of its own.": one_start[k],
                "the examples are mixed: `reshape` cuts the numbers anew and does not exchange two "
                "axes. `in_axes` says where the examples lie.": reshaped[k],
                "outputs_h runs backwards in time: keep the order of the inputs."
                if name == "outputs_h"
                else "": right[k][::-1],
            },
            otherwise="Does each example meet its own initial_h and its own inputs?",
        )
    if _turns_back(function, params, initial_h, inputs):
        raise Wrong(
            "the numbers are right, but axes are exchanged by hand and exchanged back by `vmap`, "
            "or the other way round. `in_axes` can say where the examples lie in inputs, and "
            "`out_axes` where they are to lie in outputs_h: then nothing is transposed."
        )
    return f"{batch} sequences of {time} steps went in and came out with time first."


def _turns_back(function, *arguments) -> bool:
    """Whether a transposition is undone by the next one, outside of loops.

    A single one proves nothing: `vmap` makes some of its own for code that indexes or stacks.
    """
    try:
        program = jax.make_jaxpr(function)(*arguments).jaxpr
    except Exception:  # with NumPy, say: the numbers are right all the same
        return False
    found = False

    def follow(program, given):
        """Return how each result has come from a transposition, or None."""
        nonlocal found
        made = dict(zip(program.invars, given))

        def how(variable):
            return None if hasattr(variable, "val") else made.get(variable)

        for equation in program.eqns:
            inner = list(inner_programs(equation))
            if equation.primitive.name == "transpose":
                turn, before = equation.params["permutation"], how(equation.invars[0])
                if before is not None and [before[axis] for axis in turn] == sorted(turn):
                    found = True
                made[equation.outvars[0]] = turn
            elif equation.primitive.name not in LOOPS and [len(equation.invars)] == [
                len(one.invars) for one in inner
            ]:
                results = follow(inner[0], map(how, equation.invars))
                made.update(zip(equation.outvars, results))
        return list(map(how, program.outvars))

    follow(program, [None] * len(program.invars))
    return found


@cache
def _norm_case() -> tuple:
    params, initial_h = _params(), jnp.asarray(_draw((HIDDEN_DIM,), 30))
    inputs = jnp.asarray(_draw((6, INPUT_DIM), 31))

    def all_kinds(h):
        final_h, outputs_h = gru_sequence(params, h, inputs)
        kinds = [
            jnp.linalg.norm(final_h),
            (final_h**2).sum(),
            jnp.linalg.norm(outputs_h),
            final_h.sum(),
            (final_h**2).mean(),
            jnp.abs(final_h).sum(),
            jnp.linalg.norm(outputs_h[0]),
            *final_h,
        ]
        return jnp.stack(kinds)

    return params, initial_h, inputs, jax.jit(jax.jacrev(all_kinds))(initial_h)


@exercise("4.2", "What the initial state is still worth", "medium")
def initial_state_gradient(function) -> str:
    """The gradient of the final state's norm with respect to the initial state."""
    params, initial_h, inputs, slopes = _norm_case()
    result = run(function, params, initial_h, inputs)
    if isinstance(result, dict):
        raise Wrong(
            "this is a dict, the gradient with respect to params. `argnums` chooses another "
            "argument, counted from zero."
        )
    if isinstance(result, (tuple, list)) and len(result) == 1:
        raise Wrong(
            "this is a tuple of one gradient: `argnums=(1,)` gives a tuple, `argnums=1` the "
            "gradient itself."
        )
    if isinstance(result, (tuple, list)) and any(
        isinstance(one, dict) or np.ndim(one) for one in result
    ):
        value_first = not isinstance(result[0], dict) and np.ndim(result[0]) == 0
        raise Wrong(
            f"this is a {type(result).__name__} of {len(result)}; expected the gradient alone. "
            + (
                "value_and_grad returns the value as well; grad does not."
                if value_first
                else "With several `argnums` there is one gradient for each: `argnums=1` is enough."
            )
        )
    shape = getattr(result, "shape", None)
    if shape == inputs.shape:
        raise Wrong(
            f"the result has shape {shape}, so it is the gradient with respect to inputs. Which "
            "argument is the initial state?"
        )
    if shape == (HIDDEN_DIM, HIDDEN_DIM):
        raise Wrong(
            f"the result has shape {shape}: that is the Jacobian of the whole final state. Take "
            "the norm first: one number, so one slope for each unit of initial_h."
        )
    if shape == ():
        raise Wrong(
            "the result is a single number: is it the norm itself? Its gradient has one slope for "
            "each unit of initial_h."
        )
    expect_close(
        result,
        slopes[0],
        mistakes={
            "this is the gradient of the squared norm: the square root is missing.": slopes[1],
            "this is the gradient of the norm of all outputs: take only the final state.": slopes[
                2
            ],
            "this is the gradient of the sum of the final state's entries, not of its "
            "norm.": slopes[3],
            "this is the gradient of the mean of squares: the norm is the square root of the "
            "sum.": slopes[4],
            "this is the gradient of the sum of absolute values; here the norm is the Euclidean "
            "one, the square root of the sum of squares.": slopes[5],
            "this is the gradient of the norm of the first state, after one step: take the final "
            "one.": slopes[6],
            "these are the norms of the Jacobian's columns. Take the norm of the final state "
            "first, and then its gradient.": np.linalg.norm(slopes[7:], axis=0),
            "these are the norms of the Jacobian's rows. Take the norm of the final state first, "
            "and then its gradient.": np.linalg.norm(slopes[7:], axis=1),
            "the signs are turned around: this is minus the gradient.": -slopes[0],
        },
        otherwise="Is it the norm of the final state, differentiated by initial_h?",
    )
    return "after six steps the initial state still moves the last one, and you know how much."


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def _reset_after_backward(params, h_prev, x_t, d_h, mistake: str = "") -> np.ndarray:
    """d_h_prev of the reset-after step, or what a known mistake makes of it."""
    update = _sigmoid(params["Wz"] @ x_t + params["Uz"] @ h_prev + params["bz"])
    reset = _sigmoid(params["Wr"] @ x_t + params["Ur"] @ h_prev + params["br"])
    recurrent = params["Uh"] @ h_prev
    candidate = np.tanh(params["Wh"] @ x_t + params["bh"] + reset * recurrent)
    if mistake == "forward of the chapter":
        candidate = np.tanh(params["Wh"] @ x_t + params["bh"] + params["Uh"] @ (reset * h_prev))

    def turned(name):
        kept = mistake in ("not transposed", f"{name} not transposed")
        return params[name] if kept else params[name].T

    def slope(gate, name):
        return 1 if mistake in ("sigmoid", f"sigmoid of {name}") else gate * (1 - gate)

    written = 1 - update if mistake == "exchanged" else update  # the share of the candidate
    direction = -1 if mistake in ("sign", "exchanged") else 1
    d_a_h = d_h * written * (1 if mistake == "tanh" else 1 - candidate**2)
    blended = candidate if mistake == "h_prev lost" else candidate - h_prev
    d_a_z = direction * d_h * blended * slope(update, "update")
    if mistake in ("forward of the chapter", "reset before"):
        through_candidate = reset * (turned("Uh") @ d_a_h)
        d_reset = (turned("Uh") @ d_a_h) * h_prev
    else:
        through_candidate = turned("Uh") @ (d_a_h * (1 if mistake == "reset lost" else reset))
        d_reset = d_a_h * (h_prev if mistake == "wrong factor" else recurrent)
    paths = {
        "straight": d_h * (written if mistake == "update for 1 - update" else 1 - written),
        "candidate": through_candidate,
        "reset": turned("Ur") @ (d_reset * slope(reset, "reset")),
        "update": turned("Uz") @ d_a_z,
    }
    return sum(value for name, value in paths.items() if f"without {name}" != mistake)


BACKWARD_MISTAKES = {
    "without straight": "the straight path is missing: h_prev enters the last line of the forward "
    "pass directly, with the factor 1 - update.",
    "without candidate": "the path through the candidate is missing: h_prev enters it by way of "
    "Uh @ h_prev.",
    "without reset": "the path through the reset gate is missing: reset was computed from h_prev, "
    "too.",
    "without update": "the path through the update gate is missing: update was computed from "
    "h_prev, too.",
    "reset before": "this goes back as in the chapter, where reset multiplies h_prev. Here it "
    "multiplies the product Uh @ h_prev, so on the way back you meet reset *before* Uh.T.",
    "forward of the chapter": "this is the backward pass of the chapter's GRU. Here reset acts "
    "after the matrix product: start from the new forward pass and rename its parts.",
    "exchanged": "update and 1 - update are exchanged: in the forward pass the candidate stands "
    "next to update.",
    "Uh not transposed": "Uh is not transposed on the way back.",
    "Ur not transposed": "Ur is not transposed on the way back.",
    "Uz not transposed": "Uz is not transposed on the way back.",
    "sigmoid of update": "the slope of the update gate's sigmoid is missing: update * "
    "(1 - update).",
    "sigmoid of reset": "the slope of the reset gate's sigmoid is missing: reset * (1 - reset).",
    "not transposed": "the matrices are not transposed: what went forwards through U goes back "
    "through U.T.",
    "tanh": "the slope of tanh is missing: d_candidate times 1 - candidate ** 2.",
    "sigmoid": "the slope of the sigmoid is missing: a gate's gradient times gate * (1 - gate).",
    "sign": "the gradient of the update gate has the wrong sign: a larger update means more "
    "candidate and less h_prev.",
    "h_prev lost": "in the gradient of the update gate h_prev is missing: more update also means "
    "less of h_prev, so its factor is candidate - h_prev.",
    "reset lost": "the path through the candidate forgets the reset gate: recurrent was "
    "multiplied by reset, so what comes back is, too.",
    "wrong factor": "the gradient of reset has the wrong factor: what stood next to reset in the "
    "product was Uh @ h_prev, not h_prev.",
    "update for 1 - update": "the straight path has the factor update; in the forward pass h_prev "
    "stands next to 1 - update.",
}


@exercise("4.3", "The other reset gate, backwards", "hard")
def reset_after_backward(function) -> str:
    """The gradient by h_prev of a GRU step whose reset gate acts after the matrix product."""
    params = _params()
    for seed in (40, 50):
        h_prev, x_t = _draw((HIDDEN_DIM,), seed), _draw((INPUT_DIM,), seed + 1)
        d_h = _draw((HIDDEN_DIM,), seed + 2)
        result = run(function, params, jnp.asarray(h_prev), jnp.asarray(x_t), jnp.asarray(d_h))
        case = ({name: np.asarray(p, float) for name, p in params.items()}, h_prev, x_t, d_h)
        expect_close(
            expect_array(result, (HIDDEN_DIM,), "d_h_prev", "It has the shape of h_prev."),
            _reset_after_backward(*case),
            name="d_h_prev",
            mistakes={
                message: _reset_after_backward(*case, mistake)
                for mistake, message in BACKWARD_MISTAKES.items()
            },
            otherwise="Four paths lead back to h_prev; compute them one at a time and compare "
            "each with jax.vjp of a forward pass in which the other three are held fixed.",
        )
    return "four paths, one sum: this is the backward pass of Flax's and torch's kind of GRU."


STEPS, UNITS, BUDGET = 1000, 16, 40_000
PRIMES, PRIME_BUDGET = (37, 997), 80_000  # no chunk length divides them: a rest is left over


@cache
def _budget_arguments(steps: int) -> tuple:
    """Some units forget within a few steps, and some remember through all of them.

    So even the first state and the first input count in the end.
    """
    params = _params(UNITS, scale=0.2) | {"bz": jnp.linspace(-7.0, 0.0, UNITS, dtype="float32")}
    return params, jnp.asarray(_draw((UNITS,), 61)), jnp.asarray(_draw((steps, INPUT_DIM), 60))


@cache
def _budget_gradient() -> tuple:
    """The gradient for the longer prime, by each argument, and all states."""

    def loss(*arguments):
        final_h, outputs_h = gru_sequence(*arguments)
        return (final_h**2).sum(), outputs_h

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return gradient(*_budget_arguments(PRIMES[1]))


@exercise("4.4", "A gradient on a budget", "open")
def memory_budget(function) -> str:
    """Any way to the final state whose gradient keeps to the budget, for every length."""
    right, outputs_h = _budget_gradient()
    short, long = PRIMES
    _expect_final_state(run(function, *_budget_arguments(short)), outputs_h[:short])

    def final_state_and_square(*arguments):
        final_h = function(*arguments)
        return (final_h**2).sum(), final_h

    def gradient_of_your_function():
        square = jax.grad(final_state_and_square, argnums=(0, 1, 2), has_aux=True)
        return _compile(square, *_budget_arguments(long))

    (gradient, final_h), used_for_prime = run(gradient_of_your_function)
    _expect_final_state(final_h, outputs_h)
    for name, expected in _named(right).items():
        off = np.abs(np.asarray(_named(gradient)[name], float) - np.asarray(expected, float)).max()
        if not off <= 1e-4 * np.abs(expected).max():
            raise Wrong(
                f"the gradient by {name} is not that of gru_sequence. Is something held constant, "
                "or computed outside of the function that is differentiated?"
            )

    def memory_of_your_gradient():
        square = jax.grad(lambda *arguments: final_state_and_square(*arguments)[0])
        return _compile(square, *_budget_arguments(STEPS))

    _, used = run(memory_of_your_gradient)
    if used > BUDGET:
        vectors = used / (STEPS * UNITS * 4)
        if vectors > 4:
            reason = (
                "That is as much as without any checkpoint: does `jax.checkpoint` wrap the "
                "function that runs a chunk?"
            )
        elif 0.9 < vectors < 1.5:
            reason = (
                "That is about one vector for each step: save a state only every so many steps."
            )
        else:
            reason = (
                "You save something already. Which chunk length makes the number of saved states "
                "and the work inside one chunk fit best?"
            )
        raise Wrong(
            f"the gradient for {STEPS} steps needs {used / 1000:.0f} kB, more than the "
            f"{BUDGET / 1000:.0f} kB of the budget. {reason}"
        )
    if used_for_prime > PRIME_BUDGET:
        raise Wrong(
            f"the gradient for {STEPS} steps keeps to the budget, but that for {long} needs "
            f"{used_for_prime / 1000:.0f} kB. This is a prime number: whole chunks must do for all "
            "steps but a few, which are left over."
        )
    return f"the gradient through {STEPS} steps keeps to {BUDGET / 1000:.0f} kB and is exact."


def _compile(function, *arguments) -> tuple:
    """What the compiled function returns, and the bytes that it needs besides."""
    program = jax.jit(function).lower(*arguments).compile()
    return program(*arguments), program.memory_analysis().temp_size_in_bytes


def _named(gradient: tuple) -> dict[str, jax.Array]:
    by_params, by_initial_h, by_inputs = gradient
    return {**by_params, "initial_h": by_initial_h, "inputs": by_inputs}


def _expect_final_state(result: object, outputs_h: jax.Array) -> None:
    if isinstance(result, (tuple, list)):
        raise Wrong(
            f"the function returned a {type(result).__name__}; expected the final state alone."
        )
    steps = len(outputs_h)
    name = f"the final state after {steps} steps"
    dropped = {
        f"after {steps} steps the result is the state after only {kept}: what is left over after "
        "the last whole chunk must run, too.": state
        for kept, state in enumerate(np.asarray(outputs_h[:-1]), start=1)
    }
    initial_h = _budget_arguments(steps)[1]
    expect_close(
        expect_array(result, (UNITS,), name),
        outputs_h[-1],
        name=name,
        tolerance=1e-4,
        mistakes={"this is the initial state: no step was made.": initial_h} | dropped,
        otherwise="If you padded: a step with a zero input still changes the state.",
    )
