"""The checkers of chapter 1: a leak, how far a gradient reaches, a backward pass, a clock."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from unrolled.lab.exercises._base import Wrong, exercise, expect_array, expect_close, run


def _numbers(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Draw one float32 array for each shape, as the chapter's JAX arrays would hold them."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


@exercise("1.1", "Every state of the leak", "easy")
def leaky_states(function: Callable) -> str:
    (inputs,) = _numbers(11, (6,))
    a, length = 0.7, len(inputs)

    def recur(update: Callable, h: float = 0.0, inputs: np.ndarray = inputs) -> np.ndarray:
        states = []
        for x_t in inputs:
            h = update(h, x_t)
            states.append(h)
        return np.array(states)

    def leak(h: float, x_t: float) -> float:
        return a * h + x_t

    right = recur(leak)
    result = run(function, a, jnp.asarray(inputs))
    if isinstance(result, (int, float)) or getattr(result, "shape", None) == ():
        raise Wrong(
            "`leaky_states` returned a single number. Collect the state of every step in a list "
            "and return them all, not only the last."
        )
    if isinstance(result, tuple) and len(result) == 2:
        raise Wrong(
            "`leaky_states` returned a pair. If it is what `scan` returns, the last state and all "
            "states, return only the second."
        )
    if isinstance(result, (list, np.ndarray, jax.Array)) and len(result) == length + 1:
        raise Wrong(
            f"`leaky_states` returned {length + 1} states for {length} inputs. The first state to "
            "keep is h_1: leave h_0 out of the result."
        )
    expect_close(
        expect_array(
            result, (length,), "`leaky_states(a, inputs)`", "There is one number for each step."
        ),
        right,
        name="`leaky_states(a, inputs)`",
        mistakes={
            "You appended the state before updating it: the result starts with h_0, without h_T.": (
                np.concatenate([[0.0], right[:-1]])
            ),
            "The new input is multiplied by a as well. Only the old state leaks: a * h + x_t.": (
                recur(lambda h, x_t: a * (h + x_t))
            ),
            "Each state holds only the input of its own step. Is the old state in your update?": (
                inputs
            ),
            "The old state is kept whole: multiply it by a before you add the input.": (
                np.cumsum(inputs)
            ),
            "You used (1 - a) where the equation has a.": (recur(lambda h, x_t: (1 - a) * h + x_t)),
            "That is an average that weights the input with (1 - a). Here it counts in full.": (
                recur(lambda h, x_t: a * h + (1 - a) * x_t)
            ),
            "The states are in the reverse order. The first to return is h_1.": right[::-1],
            "You read the inputs from the last to the first.": recur(leak, inputs=inputs[::-1]),
            "You read the inputs from the last to the first, and turned the states round.": (
                recur(leak, inputs=inputs[::-1])[::-1]
            ),
            "The first input counts twice: h_0 is 0, not the first input.": recur(leak, inputs[0]),
            "The very first input never enters: h_1 is already x_1.": (
                right - a ** np.arange(length) * inputs[0]
            ),
            "The input is subtracted.": -right,
        },
        otherwise="Compare with h_1 = x_1 and h_2 = a x_1 + x_2.",
    )
    return "each input counts with a to the power of its age, in all states at once."


def _reach_case() -> tuple[np.ndarray, np.ndarray]:
    """Return U and states for which each mistake named below leads to a count of its own."""
    U, weak, strong = _numbers(3302, (3, 3), (12, 3), (12, 3))  # a seed found by search
    return U, np.tanh(np.concatenate([0.9 * strong, 0.5 * weak]))


@exercise("1.2", "How far back does the gradient reach?", "medium")
def reach(function: Callable) -> str:
    def count(norms: list[float], threshold: float) -> int:
        below = [k for k, norm in enumerate(norms) if norm < threshold]
        return below[0] if below else len(norms)

    def norms(factors: list[np.ndarray], order: Callable, kind: object = 2) -> list[float]:
        product, found = np.eye(len(factors[0])), []
        for factor in factors:
            product = order(product, factor)
            found.append(float(np.linalg.norm(product, ord=kind)))
        return found

    def earlier_right(product: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return product @ factor

    def later_left(product: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return factor @ product

    U, states = _reach_case()
    thresholds = (1e-2, 0.5, 0.1, 1e-3)  # together they tell the mistakes apart

    def backwards(slopes: Callable, matrix: np.ndarray = U) -> list[np.ndarray]:
        return [np.diag(slopes(h_t)) @ matrix for h_t in states[::-1]]

    jacobians = backwards(lambda h_t: 1 - h_t**2)
    columns = [U @ np.diag(1 - h_t**2) for h_t in states[::-1]]
    sizes = norms(jacobians, earlier_right)
    found = {
        "You started at the first step. Begin with the last one, `states[-1]`, and go back.": (
            norms(jacobians[::-1], later_left)
        ),
        "The factors are in the wrong order: going back, the earlier step goes on the right, "
        "`product @ jacobian`.": norms(jacobians, later_left),
        "You measured with the Frobenius norm, the default of `norm`. Use `ord=2`: the most a "
        "vector is stretched.": norms(jacobians, earlier_right, "fro"),
        "You measured with another norm. Use `ord=2`: the most a vector is stretched.": (
            norms(jacobians, earlier_right, 1)
        ),
        "The slopes are missing: each Jacobian is diag(1 - h_t²) U, not U alone.": (
            norms([U] * len(states), earlier_right)
        ),
        "Your slopes are 1 - h_t. The slope of tanh is 1 - h_t², with the square.": (
            norms(backwards(lambda h_t: 1 - h_t), earlier_right)
        ),
        "Your slopes are 1 - h_t, and they scale the columns of U. The slope of tanh is 1 - h_t², "
        "and it belongs to the new state: diag(1 - h_t²) on the left of U.": (
            norms([U @ np.diag(1 - h_t) for h_t in states[::-1]], earlier_right)
        ),
        "You took tanh of the states once more. They have gone through it already: the slopes are "
        "1 - h_t².": norms(backwards(lambda h_t: 1 - np.tanh(h_t) ** 2), earlier_right),
        "U is transposed. Here a Jacobian is wanted, dh_t/dh_{t-1}; a gradient that goes back is "
        "what needs the transpose.": norms(backwards(lambda h_t: 1 - h_t**2, U.T), earlier_right),
        "The slopes scale the columns of U. They belong to the new state, so they scale the "
        "rows: diag(1 - h_t²) on the left of U.": norms(columns, earlier_right),
        "Your product lacks the last step, J_T: begin with `states[-1]`.": (
            norms(jacobians[1:], earlier_right)
        ),
    }
    right = [count(sizes, threshold) for threshold in thresholds]
    mistakes = {
        message: [count(wrong, threshold) for threshold in thresholds]
        for message, wrong in found.items()
    } | {
        "That is one too many: the step at which the norm is below the threshold for the first "
        "time does not count.": [steps + 1 for steps in right],
        "That is one too few. Is the last step, J_T, in your product?": [
            steps - 1 for steps in right
        ],
        "The norm may rise again after it fell. Stop at the first step below the threshold.": [
            sum(size >= threshold for size in sizes) for threshold in thresholds
        ],
    }
    result = [
        _whole_number(run(function, jnp.asarray(U), jnp.asarray(states), threshold))
        for threshold in thresholds
    ]
    if result != right:
        for message, wrong in mistakes.items():
            if result == wrong:
                raise Wrong(message)
        threshold, steps = next(
            (threshold, got)
            for threshold, got, steps in zip(thresholds, result, right)
            if got != steps
        )
        raise Wrong(
            f"for the threshold {threshold:g} you count {steps} step{'s' * (steps != 1)}, which is "
            "not right. Print the norm for each k: it starts with that of J_T alone."
        )

    keeps = np.eye(2, dtype=np.float32)
    resting = np.zeros((5, 2), dtype=np.float32)
    always = _whole_number(run(function, jnp.asarray(keeps), jnp.asarray(resting), 0.5))
    if always != 5:
        raise Wrong(
            f"with U = I and all states 0 the norm is 1 for ever, and yet you returned {always}. "
            "If the norm never falls below the threshold, return T, here 5."
        )
    exactly = _whole_number(run(function, jnp.asarray(keeps), jnp.asarray(resting), 1.0))
    if exactly != 5:
        raise Wrong(
            "a norm equal to the threshold is not below it. Compare with `<`, so that it counts."
        )
    at_once = _whole_number(run(function, jnp.asarray(0.1 * keeps), jnp.asarray(resting), 0.5))
    if at_once != 0:
        raise Wrong(
            f"when already the norm of J_T is below the threshold, the answer is 0, not {at_once}."
        )
    return (
        f"in the network of this check the gradient reaches {right[0]} of {len(states)} steps back."
    )


def _whole_number(value: object) -> int:
    number = expect_array(value, (), "`reach(U, states, threshold)`", "Return one number.")
    if number != np.round(number):
        raise Wrong(f"`reach` returned {number:.4g}; expected a whole number of steps.")
    return int(number)


@exercise("1.3", "Backwards along the additive path", "hard")
def additive_backward(function: Callable) -> str:
    W, U, b, inputs, initial_h, delta = _numbers(13, (3, 2), (3, 3), (3,), (5, 2), (3,), (3,))
    params = {"W": W, "U": U, "b": b}
    z = 0.3

    def correct(*mistakes: str) -> tuple[np.ndarray, float]:
        forward = z if "exchanged forwards" not in mistakes else 1 - z
        start = np.zeros(3) if "from zeros" in mistakes else initial_h.astype(np.float64)
        states, candidates = [start], []
        for x_t in inputs:
            candidates.append(np.tanh(W @ x_t + U @ states[-1] + b))
            states.append((1 - forward) * states[-1] + forward * candidates[-1])
        weight = z if "exchanged backwards" not in mistakes else 1 - z
        back, z_gradient = delta.astype(np.float64), 0.0
        for t in reversed(range("stops early" in mistakes, len(inputs))):
            slope = 1 - (states[t + 1] if "slope of state" in mistakes else candidates[t]) ** 2
            if "no slope" in mistakes:
                slope = 1.0
            matrix = U if "untransposed" in mistakes else U.T
            through = matrix @ (slope * back)
            if "slope after matrix" in mistakes:
                through = slope * (matrix @ back)
            through = through * (1.0 if "z missing" in mistakes else weight)
            direct = (1.0 if "direct in full" in mistakes else 1 - weight) * back
            if "no direct path" in mistakes:
                direct = 0.0
            later = back
            back = direct + through
            moved = back if "too late" in mistakes else later
            old = states[t + 1] if "new state" in mistakes else states[t]
            share = moved @ (candidates[t] - (0.0 if "only candidate" in mistakes else old))
            z_gradient = share if "only last" in mistakes else z_gradient + share
        return back, z_gradient

    result = run(
        function,
        {name: jnp.asarray(value) for name, value in params.items()},
        z,
        jnp.asarray(initial_h),
        jnp.asarray(inputs),
        jnp.asarray(delta),
    )
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong(
            "`additive_backward` should return two things, the gradients of h_0 and of z: "
            "`return delta, z_gradient`."
        )
    if np.shape(result[0]) == () and np.shape(result[1]) == (3,):
        raise Wrong("The two gradients are in the wrong order: first that of h_0, then that of z.")
    back, z_gradient = correct()
    expect_close(
        expect_array(result[0], (3,), "dL/dh_0"),
        back,
        name="dL/dh_0",
        mistakes={
            "dL/dh_0: the slopes are those of the tanh, 1 - c_t². You used 1 - h_t².": (
                correct("slope of state")[0]
            ),
            "dL/dh_0: the slopes of the tanh, 1 - c_t², are missing.": correct("no slope")[0],
            "dL/dh_0: the slopes come too late. On the way back delta meets the tanh first, and "
            "then the matrix.": correct("slope after matrix")[0],
            "dL/dh_0: U must be transposed on the way back.": correct("untransposed")[0],
            "dL/dh_0: the path through the tanh lacks its factor z.": correct("z missing")[0],
            "dL/dh_0: the direct path is missing. h_{t-1} also reaches h_t by (1 - z) h_{t-1}.": (
                correct("no direct path")[0]
            ),
            "dL/dh_0: the direct path lacks its factor: h_{t-1} stands next to 1 - z.": (
                correct("direct in full")[0]
            ),
            "dL/dh_0: z and 1 - z are exchanged, forwards and backwards. In (1.12) z weighs the "
            "candidate c_t.": correct("exchanged forwards", "exchanged backwards")[0],
            "dL/dh_0: z and 1 - z are exchanged on the way forward. In (1.12) z weighs the "
            "candidate c_t.": correct("exchanged forwards")[0],
            "dL/dh_0: z and 1 - z are exchanged on the way back. In (1.12) h_{t-1} stands next "
            "to 1 - z.": correct("exchanged backwards")[0],
            "dL/dh_0: this is dL/dh_1. One step back is still to be made.": (
                correct("stops early")[0]
            ),
            "dL/dh_0: the way forward starts from zeros. Start from `initial_h`.": (
                correct("from zeros")[0]
            ),
            "dL/dh_0 is `delta` as it came in: is it carried back inside the loop?": delta,
        },
        tolerance=1e-4,
        otherwise="Try a sequence of one step first and compare with jax.grad.",
    )
    expect_close(
        expect_array(result[1], (), "dL/dz", "z is one number for all units: sum over the units."),
        z_gradient,
        name="dL/dz",
        mistakes={
            "dL/dh_0 is right. dL/dz: use delta before you move it one step back.": (
                correct("too late")[1]
            ),
            "dL/dh_0 is right. dL/dz: more z also means less of h_{t-1}: use c_t - h_{t-1}.": (
                correct("only candidate")[1]
            ),
            "dL/dh_0 is right. dL/dz: c_t - h_{t-1} wants the state before the step, not h_t.": (
                correct("new state")[1]
            ),
            "dL/dh_0 is right. dL/dz holds one step's share only: add the shares of all steps.": (
                correct("only last")[1]
            ),
            "dL/dh_0 is right. dL/dz has the wrong sign.": -z_gradient,
            "dL/dh_0 is right. dL/dz is still 0: is it added to inside the loop?": 0.0,
        },
        tolerance=1e-4,
        otherwise="dL/dh_0 is right. Each step's share is delta_t · dh_t/dz, summed over units.",
    )
    return "two paths back for the state, and one sum over time for z. So it goes in every GRU."


@exercise("1.4", "Two units that never forget", "open")
def clock_weights(function: Callable) -> str:
    turns = {}
    for steps in (12, 7, 5):
        turns[steps] = U = expect_array(
            run(function, steps), (2, 2), "the matrix", "Two units need a (2, 2) matrix."
        )
        call = f"clock_weights({steps})"
        powers = [np.linalg.matrix_power(U, k) for k in range(1, steps + 1)]
        radius = np.abs(np.linalg.eigvals(U)).max()
        stretch = np.linalg.svd(U, compute_uv=False)
        if radius > 1.001 or radius < 0.999:
            fate = "explodes" if radius > 1 else "vanishes"
            raise Wrong(
                f"the spectral radius of {call} is {radius:.4g}, so its gradient {fate}. "
                "It has to be 1."
            )
        if np.abs(stretch - 1).max() > 1e-3:
            raise Wrong(
                f"one step of {call} stretches vectors by between {stretch[1]:.3g} and "
                f"{stretch[0]:.3g}, depending on their direction. It has to be 1 for all: the "
                "columns must have length 1 and be perpendicular to each other."
            )
        back = [
            k for k, power in enumerate(powers, start=1) if np.abs(power - np.eye(2)).max() < 1e-3
        ]
        if not back:
            advice = ""
            if np.allclose(U[0, 0], np.cos(360 / steps), atol=1e-3):
                advice = " `cos` and `sin` take radians, and you seem to have given degrees."
            elif np.allclose(powers[-1], -np.eye(2), atol=1e-3):
                advice = " It is at the opposite point: that was half a turn."
            elif np.allclose(U, turns[12], atol=1e-3) and steps != 12:
                advice = " It is the same matrix as for 12 steps."
            raise Wrong(
                f"{call} keeps every length, but after {steps} steps the state is not back where "
                f"it was.{advice} How large is the angle of one step?"
            )
        if back[0] < steps:
            moves = (
                "does not move at all" if back[0] == 1 else f"is back after only {back[0]} steps"
            )
            raise Wrong(f"with {call} the state {moves}; it should take {steps}, and not fewer.")
    return "it turns for ever: after 7 or 12 steps all is as it was, state and gradient."
