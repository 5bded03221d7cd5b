"""The exercises of chapter 7: the memory of an LSTM and the gates around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import permutations
from typing import Any

import numpy as np

from unrolled.lab.exercises._base import (
    NotStarted,
    Wrong,
    exercise,
    expect_array,
    expect_close,
    run,
)

Arrays = dict[str, np.ndarray]


@exercise("7.1", "How full does the belt get?", "easy")
def memory_after(function: Callable[..., Any]) -> str:
    for f, w, c_0, steps in ((0.6, 1.0, 3.0, 3), (0.9, -0.3, 2.0, 10), (1.0, 0.5, 1.0, 40)):
        memories = _belt(f, w, c_0, steps)
        mistakes = {
            "The start is missing: f^T of c_0 is still on the belt at the end.": (
                memories[-1] - f**steps * c_0
            ),
            "What is added is missing: every step puts w on the belt.": f**steps * c_0,
            "You made one step too few.": memories[-2],
            "You made one step too many.": f * memories[-1] + w,
            "There is one parcel too many: in T steps T of them are put on the belt, and the last "
            "one is still whole.": memories[-1] + f**steps * w,
            "There is one parcel too few: in T steps T of them are put on the belt, and the first "
            "one has shrunk T - 1 times.": memories[-1] - f ** (steps - 1) * w,
            "The start does not shrink: c_0 lies on the belt too, and every step takes its share "
            "of it.": memories[-1] + (1 - f**steps) * c_0,
            "The forget gate is turned round: the memory is multiplied by 1 - f. What the gate "
            "tells is the share that *stays*.": _belt(1 - f, w, c_0, steps)[-1],
            "f and w are exchanged.": _belt(w, f, c_0, steps)[-1],
            "This is the memory after one step only. Each step must begin with the memory that the "
            "one before has left, not with c_0 again.": memories[1],
            "You added w first and forgot afterwards, f (c + w). The new w is not touched by the "
            "forget gate of its own step: f c + w.": _added_first(f, w, c_0, steps),
            "You blended, f c + (1 - f) w. That is a GRU: in an LSTM what is added does not depend "
            "on f.": _belt(f, (1 - f) * w, c_0, steps)[-1],
            "You added w only once: every step puts a w on the belt.": f**steps * c_0 + w,
        }
        if f < 1:
            mistakes["That is where the memory ends after infinitely many steps, w / (1 - f)."] = (
                w / (1 - f)
            )
        call = f"memory_after({f}, {w}, {c_0}, {steps})"
        by_zero = (
            "The formula with 1 - f below the fraction line divides by zero at f = 1, where each "
            "step simply adds w."
        )
        try:
            value = run(function, f, w, c_0, steps)
        except Wrong as wrong:
            if f == 1 and "ZeroDivisionError" in str(wrong):
                raise Wrong(f"{call} stopped with ZeroDivisionError. {by_zero}") from None
            raise
        if f == 1 and not np.all(np.isfinite(np.asarray(value, dtype=np.float64))):
            raise Wrong(f"{call} is not a finite number. {by_zero}")
        expect_close(
            value,
            memories[-1],
            name=call,
            mistakes=mistakes,
            tolerance=1e-4,
            otherwise="One step is c = f c + w; make `steps` of them.",
        )
    return "the belt fills up towards w / (1 - f), and with f = 1 it never stops."


@exercise("7.2", "Four kernels, one product", "medium")
def fuse(function: Callable[[Arrays], Any]) -> str:
    rng = np.random.default_rng(7)
    inputs, hidden = 3, 4
    shapes = {"W": (hidden, inputs), "U": (hidden, hidden), "b": (hidden,)}
    params = {kind + gate: rng.normal(size=shapes[kind]) for gate in "ifgo" for kind in "WUb"}
    fused = run(function, dict(params))
    if not isinstance(fused, (tuple, list)) or len(fused) != 3:
        raise Wrong(
            f"`fuse` should return three arrays, W, U and b, but it returned a "
            f"{type(fused).__name__}"
            + (f" of {len(fused)}." if isinstance(fused, (tuple, list, dict)) else ".")
        )
    if np.ndim(fused[1]) == 1 and np.ndim(fused[2]) == 2:
        raise Wrong("The second array has one axis and the third has two: the order is W, U, b.")
    for kind, array in zip("WUb", fused):
        rows = (4 * hidden, *shapes[kind][1:])
        hint = ""
        if kind != "b" and np.shape(array) == (rows[1], rows[0]):
            hint = "It is transposed: the product is W @ x_t, with the gates along the rows."
        elif kind != "b" and np.shape(array) == (hidden, 4 * rows[1]):
            hint = "Put the four on top of each other (axis=0), so that each has rows of its own."
        elif kind != "b" and np.shape(array) == (4 * rows[1], hidden):
            hint = "Each of the four is transposed. In this dict they already stand to the left."
        elif np.shape(array) == (4, hidden, *rows[1:]):
            hint = "The gates have an axis of their own. Join them along the axis that is there."
        elif kind == "W" and [np.shape(a)[1:] for a in fused[:2]] == [(hidden,), (inputs,)]:
            hint = "That is the shape of U: the order is W, U, b."
        array = expect_array(array, rows, kind, hint)
        expect_close(
            array,
            _stack(params, kind, "ifgo"),
            name=kind,
            mistakes={
                f"The gates in {kind} are in the order {', '.join(order)}; fused_step takes them "
                "apart in the order i, f, g, o.": _stack(params, kind, order)
                for order in permutations("ifgo")
            }
            | {
                f"Each of the four {kind} is transposed: rows and columns of a square kernel are "
                "exchanged, which no shape tells. Leave them as they are.": np.concatenate(
                    [params[kind + gate].T for gate in "ifgo"]
                ),
                f"The rows of the gates in {kind} are interleaved, unit by unit. All rows of a "
                "gate belong together.": np.stack(
                    [params[kind + gate] for gate in "ifgo"], axis=1
                ).reshape(rows),
            },
            otherwise="Its rows should be those of gate i, then f, then g, then o, unchanged.",
        )
    return "one product with W and one with U now do the work of eight."


@exercise("7.3", "A counter that can be set to zero", "hard")
def resettable_counter(function: Callable[[], Any]) -> str:
    params = _parameters(run(function), 2)
    pulse, reset, quiet = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)
    first = _memories(params, [pulse])[-1]
    idle = _memories(params, [quiet] * 100)[-1]
    if abs(idle) > 0.01:
        raise Wrong(
            f"With no pulse at all the memory should stay 0, but after 100 quiet steps it is "
            f"{idle:.3f}: something is added when both inputs are 0. Is g = 0 there?"
        )
    if abs(first - 1) > 0.01:
        raise Wrong(
            f"After the first pulse the memory is {first:.3f}; expected 1. That is i times g at a "
            "pulse: both must be 1."
        )
    waited = _memories(params, [pulse] + [quiet] * 100)[-1]
    if abs(waited - 1) > 0.01:
        blind = params | {"U" + gate: np.zeros((1, 1)) for gate in "ifgo"}
        if abs(_memories(blind, [pulse] + [quiet] * 100)[-1] - 1) <= 0.01:
            raise Wrong(
                f"One pulse is counted, but 100 quiet steps later the memory is {waited:.3f}: "
                "after a pulse h is no longer 0, and a gate or g looks at it. Set Ui, Uf and Ug "
                "to 0."
            )
        raise Wrong(
            f"One pulse is counted, but 100 quiet steps later the memory is {waited:.3f}: the "
            "forget gate is not close enough to 1 when both inputs are 0."
        )
    fifty = _memories(params, [pulse] * 50)[-1]
    if abs(fifty - 50) > 0.01:
        if abs(fifty - 50 * first) < 1e-3:
            raise Wrong(
                f"Nothing is forgotten, but each pulse adds {first:.5f}, so that after 50 in a row "
                f"the memory is {fifty:.3f}. Bring i and g closer to 1 at a pulse."
            )
        raise Wrong(
            f"The first pulse is counted, but after 50 in a row the memory is {fifty:.3f}. At a "
            "pulse, too, the forget gate must be 1, and no gate should look at h."
        )
    slow = _memories(params, ([pulse] + [quiet] * 100) * 50)
    wrong = np.abs(slow - np.repeat(np.arange(50) + 1, 101)) > 0.01
    if wrong.any():
        count = int(wrong.argmax()) // 101 + 1
        raise Wrong(
            f"With 100 quiet steps after each pulse the memory is {slow[wrong][0]:.3f} where the "
            f"count is {count}, and {slow[-1]:.3f} after 50 pulses. The forget gate is close to 1, "
            "but each step loses the missing share of *all* that is there: close it more tightly."
        )
    left = _memories(params, [pulse] * 50 + [reset])[-1]
    if abs(left) > 0.01:
        raise Wrong(
            f"After 50 pulses and a reset the memory is {left:.3f}; expected 0. At a reset the "
            "forget gate must be 0, although its bias says keep, and nothing may be added."
        )
    rng = np.random.default_rng(73)
    kinds = rng.choice(3, size=300, p=(0.45, 0.1, 0.45))
    count, expected = 0, []
    for kind in kinds:
        count = (count + 1, 0, count)[kind]
        expected.append(count)
    got = _memories(params, [(pulse, reset, quiet)[kind] for kind in kinds])
    worst = int(np.abs(got - expected).argmax())
    if abs(got[worst] - expected[worst]) > 0.01:
        raise Wrong(
            f"In a mixed sequence the memory is {got[worst]:.3f} at step {worst + 1}, where the "
            f"count is {expected[worst]}."
        )
    return "50 pulses give 50, a reset gives 0, and 300 mixed steps are counted without a mistake."


@exercise("7.4", "A flip-flop", "open")
def flip_flop(function: Callable[[], Any]) -> str:
    params = _parameters(run(function), 1)
    shown = _shown(params, [(1.0,)])[-1]
    if abs(shown) < 0.5 or shown < 0:
        raise Wrong(
            f"After the first pulse h is {shown:.3f}; expected at least 0.5. There c is i times g, "
            "and h is o times tanh(c): make each of them large enough, and g positive when h is 0."
        )
    waited = _shown(params, [(1.0,)] + [(0.0,)] * 100)[1:]
    if np.min(waited) < 0.5:
        step = int(np.argmax(waited < 0.5)) + 1
        raise Wrong(
            f"The first pulse works, but after {step} quiet steps h is {waited[step - 1]:.3f}. "
            "Without a pulse keep everything (f = 1) and write nothing (i = 0)."
        )
    for gap in (0, 1, 7, 100):
        inputs = ([(1.0,)] + [(0.0,)] * gap) * 9
        shown = _shown(params, inputs)
        sign = np.repeat(np.where(np.arange(9) % 2 == 0, 1.0, -1.0), gap + 1)
        bad = np.flatnonzero(shown * sign < 0.5)
        if bad.size:
            pulses, quiet = divmod(int(bad[0]), gap + 1)
            pulses += 1
            wanted = "at least 0.5" if sign[bad[0]] > 0 else "-0.5 or less"
            if quiet:
                raise Wrong(
                    f"{pulses} pulses work, but {quiet} quiet steps after them h is "
                    f"{shown[bad[0]]:.3f}; expected {wanted}. Without a pulse keep everything "
                    "(f = 1) and write nothing (i = 0), whatever the sign of h is."
                )
            raise Wrong(
                f"With {gap} quiet steps between the pulses h is {shown[bad[0]]:.3f} after "
                f"{pulses} pulses; expected {wanted}. At a pulse the old memory must go (f = 0), "
                "and g must have the opposite sign of h."
            )
    return "nine pulses turn the sign nine times, with up to 100 quiet steps between them."


def _belt(f: float, w: float, c_0: float, steps: int) -> list[float]:
    memories = [c_0]
    for _ in range(steps):
        memories.append(f * memories[-1] + w)
    return memories


def _added_first(f: float, w: float, c_0: float, steps: int) -> float:
    c = c_0
    for _ in range(steps):
        c = f * (c + w)
    return c


def _stack(params: Arrays, kind: str, order: Iterable[str]) -> np.ndarray:
    return np.concatenate([params[kind + gate] for gate in order])


def _parameters(params: Any, inputs: int) -> Arrays:
    """Return the reader's parameters of a unit as float64 arrays, or say which is not right."""
    if not isinstance(params, Mapping):
        raise Wrong(f"expected a dict of twelve arrays, but got a {type(params).__name__}.")
    if any(value is Ellipsis for value in params.values()):
        raise NotStarted
    shapes = {"W": (1, inputs), "U": (1, 1), "b": (1,)}
    missing = [kind + gate for gate in "ifgo" for kind in "WUb" if kind + gate not in params]
    if missing:
        raise Wrong(f"The dict lacks {', '.join(missing)}: return all twelve parameters.")
    return {
        kind + gate: expect_array(
            params[kind + gate], shapes[kind], kind + gate, "One row for each unit." * (kind != "b")
        )
        for gate in "ifgo"
        for kind in "WUb"
    }


def _sigmoid(a: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(a)))  # without overflow for large negative a


def _states(params: Arrays, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (c, h) of a unit after each of `inputs`, started from zeros."""
    c, h, states = np.zeros(1), np.zeros(1), []
    W, U, b = (np.concatenate([params[kind + gate] for gate in "ifgo"]) for kind in "WUb")
    for from_input in np.asarray(inputs, dtype=np.float64) @ W.T + b:
        i, f, g, o = (from_input + U @ h)[:, None]
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        states.append((c[0], h[0]))
    memories, shown = np.array(states).T
    return memories, shown


def _memories(params: Arrays, inputs: Any) -> np.ndarray:
    return _states(params, inputs)[0]


def _shown(params: Arrays, inputs: Any) -> np.ndarray:
    return _states(params, inputs)[1]
