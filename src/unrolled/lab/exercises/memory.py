"""The checkers of chapter 1: a leak, how far a gradient reaches, a backward pass, a clock."""

from __future__ import annotations

from collections.abc import Callable

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

    def recur(update: Callable, h: float = 0.0) -> np.ndarray:
        states = []
        for x_t in inputs:
            h = update(h, x_t)
            states.append(h)
        return np.array(states)

    right = recur(lambda h, x_t: a * h + x_t)
    result = run(function, a, jnp.asarray(inputs))
    if np.shape(result) == ():
        raise Wrong(
            "`leaky_states` returned a single number. Collect the state of every step in a list "
            "and return them all, not only the last."
        )
    if np.shape(result) == (length + 1,):
        raise Wrong(
            f"`leaky_states` returned {length + 1} states for {length} inputs. The first state to "
            "keep is h_1: leave h_0 out of the result."
        )
    expect_close(
        expect_array(result, (length,), "`leaky_states(a, inputs)`"),
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
    threshold = 1e-2
    jacobians = [np.diag(1 - h_t**2) @ U for h_t in states]
    backwards = jacobians[::-1]
    sizes = norms(backwards, earlier_right)
    right = count(sizes, threshold)
    mistakes = {
        count(norms(jacobians, later_left), threshold): (
            "You started at the first step. Begin with the last one, `states[-1]`, and go back."
        ),
        count(norms(backwards, later_left), threshold): (
            "The factors are in the wrong order: going back, the earlier step goes on the right, "
            "`product @ jacobian`."
        ),
        count(norms(backwards, earlier_right, "fro"), threshold): (
            "You measured with the Frobenius norm, the default of `norm`. Use `ord=2`: the most a "
            "vector is stretched."
        ),
        count(norms([U] * len(states), earlier_right), threshold): (
            "The slopes are missing: each Jacobian is diag(1 - h_t²) U, not U alone."
        ),
        count(norms([U @ np.diag(1 - h**2) for h in states[::-1]], earlier_right), threshold): (
            "The slopes scale the columns of U. They belong to the new state, so they scale the "
            "rows: diag(1 - h_t²) on the left of U."
        ),
        right + 1: (
            "That is one too many: the step at which the norm is below the threshold for the first "
            "time does not count."
        ),
        right - 1: "That is one too few. Is the last step, J_T, in your product?",
        sum(size >= threshold for size in sizes): (
            "The norm may rise again after it fell. Stop at the first step below the threshold."
        ),
    }
    result = _whole_number(run(function, jnp.asarray(U), jnp.asarray(states), threshold))
    if result != right:
        raise Wrong(
            mistakes.get(result)
            or f"the gradient reaches back {result} steps by your count, which is not right. "
            "Print the norm for each k: it starts with that of J_T alone."
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
    return f"in the network of this check the gradient reaches {right} of {len(states)} steps back."


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

    def correct(**change: bool) -> tuple[np.ndarray, float]:
        states, candidates = [initial_h.astype(np.float64)], []
        for x_t in inputs:
            candidates.append(np.tanh(W @ x_t + U @ states[-1] + b))
            states.append((1 - z) * states[-1] + z * candidates[-1])
        back, z_gradient = delta.astype(np.float64), 0.0
        for t in reversed(range(len(inputs))):
            slope = 1 - (states[t + 1] if change.get("slope_of_state") else candidates[t]) ** 2
            matrix = U if change.get("untransposed") else U.T
            through = matrix @ (slope * back) * (1.0 if change.get("z_missing") else z)
            direct = 0.0 if change.get("no_direct_path") else (1 - z) * back
            later = back
            back = direct + through
            moved = back if change.get("too_late") else later
            share = moved @ (candidates[t] - (0.0 if change.get("only_candidate") else states[t]))
            z_gradient = share if change.get("only_last") else z_gradient + share
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
    back, z_gradient = correct()
    expect_close(
        expect_array(result[0], (3,), "dL/dh_0"),
        back,
        name="dL/dh_0",
        mistakes={
            "dL/dh_0: the slopes are those of the tanh, 1 - c_t². You used 1 - h_t².": (
                correct(slope_of_state=True)[0]
            ),
            "dL/dh_0: U must be transposed on the way back.": correct(untransposed=True)[0],
            "dL/dh_0: the path through the tanh lacks its factor z.": correct(z_missing=True)[0],
            "dL/dh_0: the direct path is missing. h_{t-1} also reaches h_t by (1 - z) h_{t-1}.": (
                correct(no_direct_path=True)[0]
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
                correct(too_late=True)[1]
            ),
            "dL/dh_0 is right. dL/dz: more z also means less of h_{t-1}: use c_t - h_{t-1}.": (
                correct(only_candidate=True)[1]
            ),
            "dL/dh_0 is right. dL/dz holds one step's share only: add the shares of all steps.": (
                correct(only_last=True)[1]
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
    for steps in (12, 7):
        U = expect_array(
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
