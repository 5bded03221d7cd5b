"""Exercises of chapter 11: a hoisted LSTM, a roofline, a tangent, unrolling, and a fast cell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled.lab.exercises._base import (
    Criterion,
    NotStarted,
    Wrong,
    describe,
    exercise,
    expect_array,
    expect_close,
    rubric,
    run,
)
from unrolled.lab.exercises._networks import in_haste
from unrolled.lab.exercises._programs import LOOPS, equations, scan_sizes, traced
from unrolled.layers import RNN
from unrolled.scan import TRANSPOSABLE, Recurrence, gate_uses, scan_recurrence


@exercise("11.1", "Hoist an LSTM", "easy")
def lstm_sequence(function: Callable) -> str:
    steps, batch, features, hidden = 5, 2, 3, 4
    rng = np.random.default_rng(111)
    weights = {
        "W": rng.normal(size=(features, 4 * hidden)),
        "b": rng.normal(size=4 * hidden),
        "U": rng.normal(size=(hidden, 4 * hidden)),
    }
    carry = rng.normal(size=(batch, hidden)), rng.normal(size=(batch, hidden))
    inputs = rng.normal(size=(steps, batch, features))
    arguments = _to_jax((weights, carry, inputs))
    result = run(function, *arguments)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong("Return the pair (carry after the last step, all h), as scan does.")
    final, states = result
    if isinstance(states, tuple | list) and np.ndim(final) == 3:
        raise Wrong("The two results are exchanged: first the carry (c, h), then all h.")
    if not isinstance(final, tuple | list) or len(final) != 2:
        raise Wrong("The carry of an LSTM is the pair (c, h).")

    right = _lstm(weights, carry, inputs)
    expect_array(states, (steps, batch, hidden), "what the steps return", "Each step outputs h.")
    no_bias = _lstm({**weights, "b": 0 * weights["b"]}, carry, inputs)
    mistakes = {
        "The bias is missing. It belongs to the projected inputs.": no_bias[2],
        "These are the memories c. The output of a step is h.": right[3],
        "The product with U takes the memory c. It takes h, the second part of the carry.": _lstm(
            weights, carry, inputs, recur_from="c"
        )[2],
        "You start with c and h exchanged: the carry is (c, h).": _lstm(
            weights, carry[::-1], inputs
        )[2],
        "You start with zeros. The scan begins with the carry that is given.": _lstm(
            weights, tuple(map(np.zeros_like, carry)), inputs
        )[2],
        "The carry is not handed on: every step begins with the one that was given.": _lstm(
            weights, carry, inputs, keep=""
        )[2],
        "h is handed on from step to step, and c is not: every step begins with the first "
        "memory.": _lstm(weights, carry, inputs, keep="h")[2],
        "c is handed on from step to step, and h is not: the product with U takes the first h in "
        "every step.": _lstm(weights, carry, inputs, keep="c")[2],
        "The four squares in U are transposed, which no shape tells. Each step multiplies h by "
        "U, h first.": _lstm(
            weights
            | {"U": np.concatenate([u.T for u in np.split(weights["U"], 4, axis=1)], axis=1)},
            carry,
            inputs,
        )[2],
        "The steps run backwards through time.": _lstm(weights, carry, inputs[::-1])[2][::-1],
    }
    mistakes |= {
        f"The gates are in the order {', '.join(order)}. W, b and U hold them in another order: "
        "i, f, g, o.": _lstm(weights, carry, inputs, order="".join(order))[2]
        for order in permutations("ifgo")
    }
    otherwise = "Split W, b and the product with U in the same order."
    expect_close(states, right[2], name="h", mistakes=mistakes, otherwise=otherwise)
    exchanged = {"The final carry is (h, c); it should be (c, h), as it came in.": right[1]}
    first = {
        "The carry is the one before the first step. Scan returns the one after the last.": (
            carry[0]
        )
    }
    where = "The h are right. Return the carry that scan returns."
    expect_close(final[0], right[0], name="the last c", mistakes=exchanged | first, otherwise=where)
    both = {"The carry is (c, c); its second part is h.": right[0]}
    expect_close(final[1], right[1], name="the last h", mistakes=both, otherwise=where)

    scan = _only_scan(function, *arguments)
    products = list(_factors(scan.params["jaxpr"].jaxpr))
    if len(products) > 1:
        of_inputs = features in products
        raise Wrong(
            f"The numbers are right, but the loop holds {len(products)} products. "
            + (
                "The inputs' products do not wait: compute them for all steps before the scan."
                if of_inputs
                else "One does: multiply h by all of U, and split what comes out."
            )
        )
    scanned = _scanned(scan)
    if any(size[-1:] == (4 * hidden,) for size in scanned):
        raise Wrong(
            "The numbers are right and the product is out of the loop, but the loop still cuts one "
            "array into four gates. Give scan a tuple with an array for each gate."
        )
    if scanned.count((batch, hidden)) != 4:
        raise Wrong(
            f"Each step is handed arrays of the shapes {scanned}; expected four of the shape "
            f"(batch, H) = {(batch, hidden)}, one for each gate."
        )
    return (
        "one product in the loop, and one array for each gate. Each slice has a single reader, so "
        "the loop keeps its vector instructions."
    )


def _lstm(
    weights: dict[str, np.ndarray],
    carry: tuple[np.ndarray, ...],
    inputs: np.ndarray,
    recur_from: str = "h",
    order: str = "ifgo",
    keep: str = "ch",
) -> tuple[np.ndarray, ...]:
    """Return the last c, the last h, all h and all c. What is not in `keep` is not handed on."""
    c, h = carry
    hidden, memories = [], []
    for x in inputs:
        c, h = c if "c" in keep else carry[0], h if "h" in keep else carry[1]
        total = x @ weights["W"] + weights["b"] + (h if recur_from == "h" else c) @ weights["U"]
        gates = dict(zip(order, np.split(total, 4, axis=-1)))
        i, f, o = (1 / (1 + np.exp(-gates[name])) for name in "ifo")
        c = f * c + i * np.tanh(gates["g"])
        h = o * np.tanh(c)
        hidden.append(h)
        memories.append(c)
    return c, h, np.stack(hidden), np.stack(memories)


@exercise("11.2", "How large must the batch be?", "medium")
def smallest_batch(function: Callable) -> str:
    machines = [
        (512, 3, 4e11, 1e10),
        (1024, 4, 2e13, 1e12),
        (64, 1, 1e11, 1e11),
        (300, 3, 5e10, 7e9),
        (64, 1, 8e10, 1e10),  # 32 rows are just enough, without rounding
    ]
    for hidden, gates, peak, bandwidth in machines:
        given = f"{hidden} units, {gates} gates, peak {peak:g} and bandwidth {bandwidth:g}"
        got = _number(run(function, hidden, gates, peak, bandwidth), given)
        right = _smallest(hidden, gates, peak / bandwidth)
        if got == right:
            continue
        ratio = peak / bandwidth
        mistakes = {
            "That is rounded down: this batch is still limited by memory, by a little. Round up.": (
                right - 1
            ),
            "One row fewer is enough: at that batch the intensity is at least what the machine "
            "wants. What is the bound where it is a whole number?": right + 1,
            "A multiplication and an addition are two operations: 2 · B · H · kH.": _smallest(
                hidden, gates, 2 * ratio
            ),
            "A float32 number has 4 bytes.": _smallest(hidden, gates, ratio / 4),
            "This is the approximation B/2 for intensity. Count h and the product as well; they "
            "grow with B.": math.ceil(2 * ratio),
            "The product that is written is missing from the bytes: B · kH numbers.": _smallest(
                hidden, gates, ratio, written=False
            ),
            "The state that is read is missing from the bytes: B · H numbers.": _smallest(
                hidden, gates, ratio, read=False
            ),
            "You divided bandwidth by peak. Intensity is operations per byte: peak / bandwidth.": (
                _smallest(hidden, gates, 1 / ratio)
            ),
        }
        for message, value in mistakes.items():
            if got == value:
                raise Wrong(message)
        raise Wrong(
            f"For {given} you say {got:g}; at this batch the intensity is "
            f"{_intensity(got, hidden, gates):.4g} operations per byte, and the machine wants at "
            f"least {ratio:.4g}, by as few rows as possible."
        )
    for hidden, gates, peak, bandwidth in [(16, 3, 1e13, 1e11), (64, 1, 1.6e11, 1e10)]:
        ratio, limit = peak / bandwidth, _intensity(math.inf, hidden, gates)
        none = (
            f"With {hidden} units, {gates} gates and {ratio:g} operations per byte no batch is "
            "large enough: reading h and writing the product grow with B as well."
        )
        if limit == ratio:
            none = f"{none[:-1]}, so the intensity comes close to {limit:g} and never reaches it."
        try:
            got = _number(run(function, hidden, gates, peak, bandwidth), "a narrow layer")
        except Wrong as wrong:
            raise Wrong(f"{none} Expected math.inf. ({wrong})") from None
        if got != math.inf:
            raise Wrong(f"{none} You say {got:g}; expected math.inf.")
    return (
        "a wide layer needs a batch of about twice the machine's ratio, and a narrow one never "
        "reaches the roof, whatever the batch."
    )


def _number(value: Any, given: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Wrong(f"For {given}: expected one number, not a {type(value).__name__}.") from None


def _intensity(batch: float, hidden: int, gates: int) -> float:
    if not math.isfinite(batch):
        return hidden * gates / (2 * (1 + gates))
    moved = 4 * (gates * hidden**2 + batch * hidden + gates * batch * hidden)
    return 2 * batch * gates * hidden**2 / moved


def _smallest(
    hidden: int, gates: int, ratio: float, *, read: bool = True, written: bool = True
) -> float:
    slope = 2 * gates * hidden - 4 * ratio * (read + gates * written)
    return math.ceil(4 * ratio * gates * hidden / slope) if slope > 0 else math.inf


@exercise("11.3", "The tangent of the simple cell", "hard")
def simple_tangents(function: Callable) -> str:
    steps, batch, features, hidden = 5, 2, 3, 4
    rng = np.random.default_rng(113)
    shapes = [(features, hidden), (hidden,), (hidden, hidden), (batch, hidden)]
    shapes.append((steps, batch, features))
    given = [0.5 * rng.normal(size=shape) for shape in shapes]
    tangents = [rng.normal(size=shape) for shape in shapes]
    *weights, initial_h, inputs = given
    states = _simple_states(*given)
    right = _simple_tangents(given, tangents)

    arguments = _to_jax((tuple(weights), states, initial_h, inputs, tuple(tangents)))
    result = run(function, *arguments)
    hint = "One tangent for each state."
    expect_array(result, (steps, batch, hidden), "the result", hint)
    names = ("dW", "db", "dU", "d_initial_h", "d_inputs")
    mistakes = {
        f"The tangent {name} has no effect. Its share of the drive is missing.": _simple_tangents(
            given, [0 * t if index == place else t for place, t in enumerate(tangents)]
        )
        for index, name in enumerate(names)
    }
    mistakes |= {
        "The share h · dU uses the states after each step. It needs those before: `initial_h` "
        "first, and the last state not at all.": _simple_tangents(given, tangents, before=False),
        "The derivative of tanh is missing: 1 - h². It multiplies everything, the drive too.": (
            _simple_tangents(given, tangents, slope=lambda h: np.ones_like(h))
        ),
        "The derivative of tanh is 1 - h², with the square.": _simple_tangents(
            given, tangents, slope=lambda h: 1 - h
        ),
        "The derivative of tanh is applied to the recurrent product only, not to the drive.": (
            _simple_tangents(given, tangents, slope_of_drive=False)
        ),
        "The loop multiplies by the transpose of U. That is the way back; tangents run forwards.": (
            _simple_tangents(given, tangents, transpose=True)
        ),
    }
    mistakes |= {
        "The tangent of the state is not handed on: every step begins with d_initial_h.": (
            _simple_tangents(given, tangents, hand_on=False)
        ),
        "The steps run backwards through time. That is the way of gradients; tangents run "
        "forwards.": _simple_tangents(given, tangents, backwards=True),
        "These are the drives alone, times the slope: the product with U is missing.": (
            _simple_tangents([*given[:2], 0 * given[2], *given[3:]], tangents, states=states)
        ),
    }
    otherwise = "Compute the first step by hand: there the tangent of the state before is given."
    expect_close(result, right, mistakes=mistakes, tolerance=1e-4, otherwise=otherwise)

    scan = _only_scan(function, *arguments)
    body = scan.params["jaxpr"].jaxpr
    if _count(traced(function, *arguments), "tanh"):
        raise Wrong(
            "The numbers are right, but you compute tanh again. The states are given, and the "
            "derivative of tanh follows from them."
        )
    inside = _count(body, "dot_general")
    if inside > 1:
        raise Wrong(
            f"The numbers are right, but the loop holds {inside} products. Only the one with the "
            "tangent of the state has to wait; compute the others for all steps before the scan."
        )
    return (
        "a linear recurrence: one product and a multiplication in each step, and everything else "
        "before the loop. JAX can transpose it to get the gradient."
    )


def _simple_states(
    W: np.ndarray, b: np.ndarray, U: np.ndarray, h: np.ndarray, inputs: np.ndarray
) -> np.ndarray:
    states = []
    for x in inputs:
        h = np.tanh(x @ W + b + h @ U)
        states.append(h)
    return np.stack(states)


def _simple_tangents(
    given: list[np.ndarray],
    tangents: list[np.ndarray],
    *,
    before: bool = True,
    slope: Callable = lambda h: 1 - h**2,
    slope_of_drive: bool = True,
    transpose: bool = False,
    hand_on: bool = True,
    backwards: bool = False,
    states: np.ndarray | None = None,
) -> np.ndarray:
    W, _, U, initial_h, inputs = given
    dW, db, dU, dh, d_inputs = tangents
    states = _simple_states(*given) if states is None else states
    earlier = np.concatenate([initial_h[None], states[:-1]]) if before else states
    result = []
    steps = list(zip(inputs, d_inputs, states, earlier))
    for x, dx, h, h_before in steps[::-1] if backwards else steps:
        drive = dx @ W + x @ dW + db + h_before @ dU
        moved = (dh if hand_on else tangents[3]) @ (U.T if transpose else U)
        dh = slope(h) * (moved + drive) if slope_of_drive else slope(h) * moved + drive
        result.append(dh)
    return np.stack(result[::-1] if backwards else result)


@exercise("11.4", "Where unrolling pays", "open")
def worth_unrolling(function: Callable) -> str:
    result = run(function)
    if not isinstance(result, tuple | list) or len(result) != 4:
        raise Wrong("Return four things: (step, carry, xs, unroll).")
    step, carry, xs, unroll = result
    if not callable(step):
        raise Wrong("The first thing should be the step, a function (carry, x) -> (carry, y).")
    if isinstance(unroll, bool) or not isinstance(unroll, int | np.integer) or unroll < 2:
        raise Wrong(f"unroll is {unroll!r}; expected a whole number of at least 2.")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(lengths) != 1 or lengths == {()}:
        raise Wrong("xs should be an array, or a tuple of arrays, whose first axis is time.")
    ((length,),) = lengths
    if not 500 <= length <= 50_000:
        raise Wrong(f"xs has {length} steps; expected 500 to 50,000.")
    if unroll > length // 2:
        raise Wrong(
            f"unroll is {unroll} for {length} steps: nothing is left of the loop. Let it go round "
            "at least twice."
        )
    loops = [
        jax.jit(lambda carry, xs, n=n: jax.lax.scan(step, carry, xs, unroll=n))
        for n in (1, int(unroll))
    ]
    plain, unrolled = (run(_named(loop, function), carry, xs) for loop in loops)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(unrolled)):
        expect_close(b, a, name="the unrolled result", tolerance=1e-3)
    best = 0.0
    for _ in range(3):  # a busy machine gets another chance
        plain, unrolled = _turn_by_turn(loops, carry, xs)
        best = max(best, float(plain / unrolled))
        if best >= 1.15:
            return (
                "the unrolled loop is faster: its steps are so short that the loop's own work "
                "counted."
            )
    if best < 0.9:
        raise Wrong(
            f"Unrolled, your loop runs at {best:.2f} times the speed, so it got slower. Make the "
            "step shorter: smaller arrays, no product, fewer outputs."
        )
    raise Wrong(
        f"Unrolled, your loop runs at {best:.2f} times the speed; at least 1.15 is wanted. Which "
        "steps are so short that the loop itself is a large part of the work?"
    )


FEATURES, HIDDEN = 3, 5


@exercise("11.5", "A fast cell of your own", "open")
def own_cell(cell_class: Callable) -> str:
    if not TRANSPOSABLE:
        raise Wrong("The fast scan needs JAX 0.10 or newer; with yours every cell takes the other.")
    cell = run(cell_class, FEATURES, HIDDEN, rngs=nnx.Rngs(115))
    for method in ("__call__", "initialize_carry", "recurrence"):
        if not isinstance(cell, nnx.Module) or not hasattr(type(cell), method):
            raise Wrong(
                f"Pass the class of your cell, a subclass of `unrolled.RNNCellBase` with the "
                f"methods `__call__`, `initialize_carry` and `recurrence`. {method} is missing."
            )
    _draw_parameters(cell)
    carry, inputs = _first_carry(cell), _normal(1151, 2, FEATURES)
    new, output = _one_step(cell, carry, inputs)
    recurrence = _recurrence_of(cell)
    parts = tuple(jax.tree.leaves(carry))
    _expect_parts(recurrence, parts)
    elementwise = run(
        _called(lambda *given: gate_uses(*given) is not None, recurrence.gate),
        parts,
        len(recurrence.weights.kernels),
    )
    facts = [
        Criterion(
            "the gate treats every number by itself",
            elementwise,
            "A sum, a product of matrices or a softmax in it mixes the numbers, and an array that "
            "it takes from outside counts as mixing: all products belong into the weights.",
        )
    ]
    if elementwise:
        facts += _one_step_facts(cell, recurrence, parts, inputs, new, output)
    if all(fact.met for fact in facts):
        facts += _whole_facts(cell)
    else:
        facts.append(Criterion("over a sequence", False, found="tried as soon as a step is right"))
    size, gru = _size(cell), 3 * (FEATURES * HIDDEN + HIDDEN**2 + HIDDEN) + HIDDEN
    return rubric(
        facts,
        extra=[
            Criterion(
                "fewer parameters than a GRUCell of the same size",
                size < gru,
                found=f"{size}, a GRUCell has {gru}",
            ),
            Criterion("at most two thirds of them", 3 * size <= 2 * gru),
        ],
    )


def _draw_parameters(cell: Any) -> None:
    """Random numbers for all parameters, so that none of them is zero."""
    leaves, structure = jax.tree.flatten(nnx.state(cell, nnx.Param))
    drawn = [0.5 * _normal((1150, i), *leaf.shape) for i, leaf in enumerate(leaves)]
    nnx.update(cell, jax.tree.unflatten(structure, drawn))


def _normal(seed: Any, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _size(cell: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(cell, nnx.Param)))


def _called(function: Callable, own: Callable) -> Callable:
    """`function` with a callable of the reader's as its first argument, under that one's name."""

    @wraps(own)
    def call(*arguments: Any) -> Any:
        return function(own, *arguments)

    return call


def _first_carry(cell: Any) -> Any:
    carry = run(cell.initialize_carry, (2, FEATURES))
    for part in jax.tree.leaves(carry):
        expect_array(part, (2, HIDDEN), "a part of the initial carry", "Batch first, then units.")
    return jax.tree.map(lambda part: 0.5 * _normal(1152, *part.shape), carry)


def _one_step(cell: Any, carry: Any, inputs: jax.Array) -> tuple[Any, Any]:
    result = run(cell.__call__, carry, inputs)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong("A step returns the pair (new carry, output).")
    new, output = result
    if jax.tree.structure(new) != jax.tree.structure(carry):
        raise Wrong(
            "The carry that a step returns is built in another way than the one that "
            "`initialize_carry` makes."
        )
    for part in jax.tree.leaves((new, output)):
        expect_array(part, (2, HIDDEN), "what a step returns")
    return new, output


def _recurrence_of(cell: Any) -> Recurrence:
    try:
        recurrence = cell.recurrence()
    except NotImplementedError:
        raise NotStarted from None
    if recurrence is Ellipsis:
        raise NotStarted
    recurrence = run(cell.recurrence)
    if not isinstance(recurrence, Recurrence):
        raise Wrong(
            f"`recurrence` returned {describe(recurrence)}; expected "
            "`unrolled.scan.Recurrence(gate, weights)`."
        )
    kernels, biases, recurrent_kernels, recurrent_biases = recurrence.weights
    counts = [len(part) for part in recurrence.weights]
    if len(set(counts)) > 1:
        raise Wrong(
            f"`Weights` holds {counts} entries; expected as many of each as there are gates, with "
            "None where there is no bias."
        )
    for name, arrays, shape in (
        ("a kernel", kernels, (FEATURES, HIDDEN)),
        ("a bias", biases, (HIDDEN,)),
        ("a recurrent kernel", recurrent_kernels, (HIDDEN, HIDDEN)),
        ("a recurrent bias", recurrent_biases, (HIDDEN,)),
    ):
        for array in arrays:
            if array is not None:
                expect_array(array, shape, name, "One for each gate: `jnp.split` cuts a joint one.")
    return recurrence


def _expect_parts(recurrence: Recurrence, parts: tuple) -> None:
    """Raise unless the gate makes a tuple of new parts of the carry."""
    shares = parts[-1:] * len(recurrence.weights.kernels)
    new = run(recurrence.gate, parts, shares, shares)
    if not isinstance(new, tuple) or len(new) != len(parts):
        found = f"{len(new)} parts" if isinstance(new, tuple) else describe(new)
        raise Wrong(
            f"The gate returned {found}; expected a tuple with an array for each part of the carry,"
            f" of which there {'is' if len(parts) == 1 else 'are'} {len(parts)}, the hidden state "
            "last."
        )


def _one_step_facts(
    cell: Any, recurrence: Recurrence, carry: tuple, inputs: jax.Array, new: Any, output: Any
) -> list[Criterion]:
    """Compare a step of the cell with a step of its recurrence, and say on which side they part."""

    def difference(carry, inputs):
        structure = jax.tree.structure(new)
        stepped, _ = cell(jax.tree.unflatten(structure, carry), inputs)
        scanned, _ = scan_recurrence(recurrence, tuple(carry), inputs[None])
        return _largest_difference(jax.tree.leaves(stepped), scanned)

    off = difference(carry, inputs)
    nothing = tuple(map(jnp.zeros_like, carry))
    if difference(nothing, 0 * inputs) > 1e-5:
        advice = "They differ even for a carry and an input of zero: is it a bias, or the gate?"
    elif difference(nothing, inputs) > 1e-5:
        advice = (
            "From a carry of zero they differ too: what the input contributes to each gate is "
            "not the same. Are the kernels and the biases in the order in which the gate reads "
            "them?"
        )
    else:
        advice = (
            "From a carry of zero they agree, so it is the state's share: the recurrent kernels, "
            "their order, or what the gate does with the old carry."
        )
    last = jax.tree.leaves(new)[-1]
    return [
        Criterion(
            "one step of the recurrence is one step of `__call__`",
            off < 1e-5,
            advice,
            "equal" if off < 1e-5 else f"off by up to {off:.2g}",
        ),
        Criterion(
            "the output of a step is its hidden state, the last part of the carry",
            _largest_difference(output, last) < 1e-6,
            "The fast scan outputs the hidden state; anything else you compute from the outputs, "
            "behind the layer.",
        ),
    ]


class _OnlySteps(nnx.Module):
    """A cell without its recurrence: `RNN` runs it by the general scan."""

    def __init__(self, cell: Any):
        self.cell = cell

    def __call__(self, carry: Any, inputs: Any) -> Any:
        return self.cell(carry, inputs)

    def initialize_carry(self, *arguments: Any, **options: Any) -> Any:
        return self.cell.initialize_carry(*arguments, **options)


def _whole_facts(cell: Any) -> list[Criterion]:
    """What holds over a sequence: both scans agree, one product waits, and nothing runs away."""
    inputs, probe = _normal(1153, 3, 7, FEATURES), _normal(1154, 3, 7, HIDDEN)
    lengths = jnp.array([7, 0, 4])
    carry = jax.tree.map(lambda part: part[0], _first_carry(cell))
    graphdef, weights, rest = nnx.split(cell, nnx.Param, ...)

    def results(wrap):
        def loss(weights, carry, inputs):
            layer = RNN(wrap(nnx.merge(graphdef, weights, rest)), reverse=True, return_carry=True)
            final, outputs = layer(inputs, initial_carry=carry, seq_lengths=lengths)
            squares = sum((part**2).sum() for part in jax.tree.leaves(final))
            return (outputs * probe).sum() + squares, (final, outputs)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

    given = (weights, carry, inputs)
    gradients, values = in_haste(results(lambda cell: cell))(*given)
    right_gradients, right_values = in_haste(results(_OnlySteps))(*given)
    loops = _products_in_loops(jax.make_jaxpr(results(lambda cell: cell))(*given).jaxpr)
    forget = "Does `__call__` do something that the gate does not, or the gate hold something?"
    far = RNN(cell)(1e4 * _normal(1155, 2, 500, FEATURES))
    size = float(jnp.abs(far).max())
    return [
        Criterion(
            "reversed and ragged, the fast scan has the values of the general one",
            _largest_difference(values, right_values) < 1e-5,
            forget,
        ),
        Criterion(
            "and its gradients",
            _largest_difference(gradients, right_gradients) < 1e-4,
            forget,
        ),
        Criterion(
            "one product in the loop, and one on the way back",
            loops == [1, 1],
            "More than that waits: is `recurrence` really what `RNN` runs?",
            f"counted {' and '.join(map(str, loops))}",
        ),
        Criterion(
            "the state stays below 10, after 500 inputs of the size 10,000",
            size < 10,
            "It grows from step to step. A gate that lets in as much as it lets go keeps a state "
            "in its place, and so does a tanh around all of it.",
            f"{size:.2g}",
        ),
    ]


def _products_in_loops(program: Any) -> list[int]:
    """How many products of matrices each innermost scan of a jaxpr holds."""
    scans = [e for e in equations(program) if e.primitive.name == "scan"]
    bodies = [list(equations(scan.params["jaxpr"].jaxpr)) for scan in scans]
    names = [[equation.primitive.name for equation in body] for body in bodies]
    return [body.count("dot_general") for body in names if "scan" not in body]


def _largest_difference(found: Any, right: Any) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(right))
    return max(float(jnp.abs(jnp.asarray(a) - jnp.asarray(b)).max()) for a, b in pairs)


def _named(loop: Callable, function: Callable) -> Callable:
    """Call a loop under the reader's name for it, so that an error tells where it comes from."""

    def call(carry: Any, xs: Any) -> Any:
        return loop(carry, xs)

    call.__name__ = f"the step of {getattr(function, '__name__', 'your function')}"
    return call


def _turn_by_turn(loops: list[Callable], carry: Any, xs: Any) -> np.ndarray:
    """The least seconds of each loop in 25 turns, or in as many as begin within two seconds."""
    times, start = [], time.perf_counter()
    while len(times) < 25 and (len(times) < 3 or time.perf_counter() - start < 2):
        times.append([_seconds(loop, carry, xs) for loop in loops])
    return np.min(times, axis=0)


def _seconds(loop: Callable, carry: Any, xs: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(loop(carry, xs))
    return time.perf_counter() - start


def _to_jax(tree: Any) -> Any:
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), tree)


def _only_scan(function: Callable, *arguments: Any) -> Any:
    """Return the equation of the only loop of a function, or say what there is instead."""
    program = traced(function, *arguments)
    loops = [e for e in equations(program) if e.primitive.name in LOOPS]
    if len(loops) != 1 or loops[0].primitive.name != "scan":
        raise Wrong(
            f"The numbers are right, but there are {len(loops)} loops in the compiled form; "
            "expected one `jax.lax.scan` over time."
        )
    return loops[0]


def _scanned(scan: Any) -> list[tuple[int, ...]]:
    """The shapes of what each step is handed besides the carry."""
    constants, carries, _ = scan_sizes(scan)
    step = scan.params["jaxpr"].jaxpr
    return [variable.aval.shape for variable in step.invars[constants + carries :]]


def _factors(program: Any) -> Iterator[int]:
    """Over how many numbers each product of a jaxpr sums."""
    for equation in equations(program):
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            yield math.prod(equation.invars[0].aval.shape[axis] for axis in summed)


def _count(program: Any, name: str) -> int:
    return sum(equation.primitive.name == name for equation in equations(program))
