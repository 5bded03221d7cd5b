"""The fast scan: a recurrence run, and differentiated, many steps at once where it can be.

A step of a gated cell multiplies its input by a matrix, its hidden state by another, and mixes the
products number by number. Only the second product has to wait for the step before, so
`scan_recurrence` does the first one for a whole chunk of steps and keeps the second in the loop::

    projected = inputs @ kernels                                     a chunk of steps at once
    carry = gate(carry, projected[t], h @ recurrent_kernel)          step by step

The derivative rests on one remark: the tangent of a recurrence is a recurrence too, a *linear* one,
and its coefficients are known as soon as the states are. They are computed a chunk at a time, from
the states alone, so that nothing else has to be kept for the way back (products are, where that is
faster: `KEPT`); one product and a few multiplications stay in the loop. JAX transposes a linear
scan by itself, which gives reverse mode; forward mode and second derivatives come with it.

`RNN` runs every cell that has a method `recurrence` in this way, and any other cell by the general
scan in `unrolled.layers`, with the same results.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

# Before 0.10, JAX could not transpose a scan within a derivative of one's own: there `RNN` runs
# every cell by the general scan.
TRANSPOSABLE = jax.__version_info__ >= (0, 10)

CHUNK_SIZE = 2**17  # numbers of one gate that a chunk of steps may hold, so that it stays in cache
CHUNK_STEPS = (16, 128)  # the fewest and the most steps of a chunk
SPREAD_SIZE = 2**23  # the same over devices, where every chunk exchanges its gradients
# Products are kept for the derivative, not computed again, from so many hidden units on, if they
# are at most so many numbers: of narrow layers if a cache holds them, of wide ones if memory does.
KEPT = ((65, 2**22), (256, 2**25))
VECTOR_SIZE = 16  # float32 numbers in the widest vector register of a CPU

Carry = tuple[jax.Array, ...]
Gates = Sequence[jax.Array]


class Weights(NamedTuple):
    """The parameters of a recurrence, gate by gate.

    Args:
      kernels: what multiplies the inputs: for each gate (features, hidden).
      biases: what is added to that: for each gate (hidden,) or None.
      recurrent_kernels: what multiplies the hidden state: for each gate (hidden, hidden).
      recurrent_biases: what is added to that: for each gate (hidden,) or None.

    Example:
      >>> weights = Weights((jnp.ones((3, 4)),), (None,), (jnp.eye(4),), (None,))
      >>> weights.recurrent_kernels[0].shape
      (4, 4)
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array | None, ...]
    recurrent_kernels: tuple[jax.Array, ...]
    recurrent_biases: tuple[jax.Array | None, ...]


class Recurrence(NamedTuple):
    """A cell in the form that `scan_recurrence` runs; what a cell's method `recurrence` returns.

    Args:
      gate: the equations of a step, `(carry, projected, recurrent) -> new carry`, with tuples of
        arrays (*batch, hidden): the parts of the carry, the hidden state h last, and for each gate
        its share of the input and of the state. Every number must be treated by itself.
      weights: the parameters.
      dtype: dtype of the products; None takes the common dtype of what is multiplied.
      read: how the gate reads h off the other parts of its new carry, if it does, as an LSTM's
        h = o * tanh(c): `(new parts, projected, recurrent) -> h`. The values are the same; the
        derivative of h then goes through theirs, which takes fewer arrays.

    Example, a leaky sum:
      >>> weights = Weights((jnp.eye(2),), (None,), (0.5 * jnp.eye(2),), (None,))
      >>> leaky = Recurrence(lambda carry, x, h: (x[0] + h[0],), weights)
      >>> carry, states = scan_recurrence(leaky, (jnp.zeros(2),), jnp.ones((3, 2)))
      >>> states[:, 0]
      Array([1.  , 1.5 , 1.75], dtype=float32)
    """

    gate: Callable[[Carry, Gates, Gates], Carry]
    weights: Weights
    dtype: Any = None
    read: Callable[[Carry, Gates, Gates], jax.Array] | None = None


class _Joined(NamedTuple):
    """The parameters as the loop uses them: one product with the state serves every gate."""

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array | None, ...]
    recurrent_kernel: jax.Array  # (hidden, gates * hidden), or (hidden, gates, hidden) if spread
    recurrent_biases: tuple[jax.Array | None, ...]


class _Plan(NamedTuple):
    """What is fixed while a recurrence is compiled."""

    gate: Callable[[Carry, Gates, Gates], Carry]
    read: Callable[[Carry, Gates, Gates], Carry] | None  # the same from new parts, but for h
    uses: tuple[frozenset[int], ...]  # what each part of the new carry depends on
    tame: bool  # the gate and its derivatives are finite wherever they are taken
    steps: int  # in a chunk
    axis: int  # of the features: -1, or -2 where the batch comes last
    keep_products: bool  # for the derivative, or compute them again from the states
    spread: bool  # over several devices: no axis that may be cut between them is merged or split
    reverse: bool
    unroll: int


def scan_recurrence(
    recurrence: Recurrence,
    carry: Carry,
    inputs: jax.Array,
    valid: jax.Array | None = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[Carry, jax.Array]:
    """Run a recurrence over time.

    ::

        for t in range(time):                          from the end if reverse
            if valid[t]:
                projected = inputs[t] @ kernels + biases
                recurrent = h @ recurrent_kernels + recurrent_biases
                carry = gate(carry, projected, recurrent)
            states[t] = h

    Args:
      recurrence: the equations and the parameters.
      carry: a tuple of arrays (*batch, hidden), the hidden state h last.
      inputs: shape (time, *batch, features).
      valid: booleans (time, *batch); None if every step is valid.
      reverse: begin with the last step.
      unroll: how many steps the compiled loop does per iteration.

    Returns:
      `(carry, states)`: the carry after all steps, in the dtypes of the given one, and h after each
      step, (time, *batch, hidden), in the order of the inputs.

    Raises:
      ValueError: a gate, or what reads h, for which `gate_uses` is None: one that mixes numbers of
        an array, as a softmax does, or holds arrays, for example.

    Example:
      >>> from flax import nnx
      >>> from unrolled.cells import GRUCell
      >>> recurrence = GRUCell(3, 4, rngs=nnx.Rngs(0)).recurrence()
      >>> carry, states = scan_recurrence(recurrence, (jnp.zeros((2, 4)),), jnp.ones((5, 2, 3)))
      >>> carry[0].shape, states.shape
      ((2, 4), (5, 2, 4))
    """
    num_steps, (*batch_shape, size) = len(inputs), carry[-1].shape
    weights = _promote(recurrence, carry, inputs)
    if num_steps == 0:
        return carry, jnp.zeros((0, *carry[-1].shape), carry[-1].dtype)
    plan = _make_plan(recurrence, carry, num_steps, reverse, unroll)
    batch = math.prod(batch_shape)

    carry = tuple(part.reshape(batch, size) for part in carry)
    inputs = inputs.astype(weights.kernels[0].dtype).reshape(num_steps, batch, inputs.shape[-1])
    padding = -num_steps % plan.steps
    if padding and valid is None:
        valid = jnp.ones((num_steps, batch), bool)
    if valid is not None:
        valid = valid.reshape(num_steps, batch, 1)
    if padding:
        widths = [(0, padding), (0, 0), (0, 0)]
        # Invented steps read the last input again: where that is defined, they are.
        inputs, valid = jnp.pad(inputs, widths, mode="edge"), jnp.pad(valid, widths)
    biases, recurrent_biases = jax.tree.map(
        lambda bias: bias[None], (weights.biases, weights.recurrent_biases)
    )

    def lay_out(tree):
        return tree if plan.axis == -1 else jax.tree.map(lambda a: a.swapaxes(-1, -2), tree)

    biases, recurrent_biases = lay_out((biases, recurrent_biases))
    join = partial(jnp.stack, axis=1) if plan.spread else partial(jnp.concatenate, axis=-1)
    recurrent_kernel = join(weights.recurrent_kernels)
    joined = _Joined(weights.kernels, biases, recurrent_kernel, recurrent_biases)
    carry, states = _run(plan, joined, *lay_out((carry, inputs, valid)))
    carry, states = lay_out((carry, states[:num_steps]))
    carry = tuple(part.reshape(*batch_shape, size) for part in carry)
    return carry, states.reshape(num_steps, *batch_shape, size)


def _make_plan(
    recurrence: Recurrence, carry: Carry, num_steps: int, reverse: bool, unroll: int
) -> _Plan:
    """Decide what the rest of the module need not ask again."""
    num_gates, hidden = len(recurrence.weights.kernels), carry[-1]
    uses, read = gate_uses(recurrence.gate, carry, num_gates), None
    if recurrence.read is not None:

        def read(carry, projected, recurrent):
            return (*carry[:-1], recurrence.read(carry[:-1], projected, recurrent))

        reads = gate_uses(read, carry, num_gates)
        uses = uses and reads and (*uses[:-1], reads[-1])
    if uses is None:
        raise ValueError(
            "the gate mixes the numbers of an array, as a softmax or a mean over the units does, "
            "looks at their shape, counts in whole numbers, or holds arrays, a loop or a "
            "jax.custom_vjp of its own; expected one that treats every number by itself. RNN runs "
            "such a cell if it has no method `recurrence`."
        )
    mesh = jax.sharding.get_abstract_mesh()
    spread = jax.device_count() > 1 if mesh.empty else mesh.size > 1
    room, (fewest, most) = CHUNK_SIZE, CHUNK_STEPS
    if spread:
        room, most = SPREAD_SIZE, num_steps
    steps = min(max(room // max(hidden.size, 1), fewest), most)
    num_chunks = -(-num_steps // steps)
    steps = -(-num_steps // num_chunks)  # chunks as even as can be
    # The axis that lies side by side in memory should fill a vector register.
    size = hidden.shape[-1]
    axis = -2 if size < VECTOR_SIZE <= hidden.size // size else -1
    num_products = 2 * num_gates * num_steps * hidden.size
    keep_products = any(size >= least and num_products <= room for least, room in KEPT)
    tame = all(_is_tame(f, carry, num_gates) for f in (recurrence.gate, read) if f)
    return _Plan(
        recurrence.gate, read, uses, tame, steps, axis, keep_products, spread, reverse, unroll
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(
    plan: _Plan, weights: _Joined, carry: Carry, inputs: jax.Array, valid: jax.Array | None
) -> tuple[Carry, jax.Array]:
    # The product of one gate alone is as fast within the loop, and needs no room for a chunk there.
    hoist = len(weights.kernels) > 1 or len(inputs) == plan.steps
    if not hoist:
        plan = plan._replace(steps=len(inputs))

    def forward(carry, chunk):
        carry, _, states = _forward(
            plan, weights, carry, *chunk, hoist=hoist, keep=lambda carry, _: carry[-1]
        )
        return carry, states

    chunks = _fold(plan, (inputs, valid))  # (chunks, steps, batch, ...)
    carry, states = _scan_chunks(plan, forward, carry, chunks)
    return carry, _unfold(states)  # (time, batch, hidden)


@partial(_run.defjvp, symbolic_zeros=True)
def _run_with_tangents(plan: _Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    weights, carry, inputs, valid = primals
    tangents = jax.tree.map(lambda t: None if _is_zero(t) else t, tangents, is_leaf=_is_zero)
    weight_tangents, carry_tangents, input_tangents, _ = tangents
    carry_tangents = tuple(
        jnp.zeros_like(part) if tangent is None else tangent
        for part, tangent in zip(carry, carry_tangents)
    )

    def keep(carry, recurrent):
        return carry, recurrent if plan.keep_products else None

    def forward(carry, chunk):
        carry, projected, (states, recurrent) = _forward(plan, weights, carry, *chunk, keep=keep)
        return carry, (states, (projected, recurrent) if plan.keep_products else None)

    chunks = _fold(plan, (inputs, valid))
    final, (states, products) = _scan_chunks(plan, forward, carry, chunks)
    last = [part[:, 0 if plan.reverse else -1] for part in states]  # of each chunk
    first = _before(plan, carry, last)  # (chunks, batch, hidden): the carry before each chunk

    # Checkpointed: what a chunk's tangents need is computed again from these, not stored.
    @partial(jax.checkpoint, prevent_cse=False)
    def forward_tangents(carry_tangents, chunk):
        return _tangents(plan, weights, weight_tangents, carry_tangents, *chunk)

    given = (first, *chunks, states, products, _fold(plan, input_tangents))
    final_tangents, state_tangents = _scan_chunks(plan, forward_tangents, carry_tangents, given)
    return (final, _unfold(states[-1])), (final_tangents, _unfold(state_tangents))


def _forward(
    plan: _Plan,
    weights: _Joined,
    carry: Carry,
    inputs: jax.Array,
    valid: jax.Array | None,
    *,
    keep: Callable[[Carry, jax.Array], Any],
    hoist: bool = True,
) -> tuple[Carry, Gates, Any]:
    """Run a chunk of steps, its inputs projected before the loop if `hoist`, or else within.

    Returns:
      the carry after it, the projected inputs if they were hoisted, and what `keep` takes of each
      step's carry and product with the recurrent kernel.
    """

    def step(carry, scanned):
        inputs, valid = scanned
        projected = inputs if hoist else _project(plan, weights, inputs)
        product = _multiply(plan, carry[-1], weights.recurrent_kernel)
        recurrent = _split(plan, weights, product)
        carry = _advance(plan.gate, weights, carry, projected, recurrent, valid)
        return carry, keep(carry, product)

    projected = _project(plan, weights, inputs) if hoist else inputs
    carry, kept = _scan_steps(plan, step, carry, (projected, valid))
    return carry, projected, kept


def _tangents(
    plan: _Plan,
    weights: _Joined,
    weight_tangents: _Joined,
    carry_tangents: Carry,
    carry: Carry,
    inputs: jax.Array,
    valid: jax.Array | None,
    states: Carry,
    products: tuple[Gates, jax.Array] | None,
    input_tangents: jax.Array | None,
) -> tuple[Carry, jax.Array]:
    """Run the linear recurrence of the tangents over a chunk of steps.

    It begins with carry_tangents, and for each part of the carry it computes::

        tangent' = Σ derivative by carry * tangent
                 + Σ derivative by recurrent * (h's tangent @ recurrent_kernel)
                 + drive

    where the derivatives and the drive, which holds the tangents of inputs and weights, are
    computed for all steps of the chunk before the loop.
    """
    weights, weight_tangents = map(_over_steps, (weights, weight_tangents))
    before = _before(plan, carry, states)
    projected, recurrent = products or (
        _project(plan, weights, inputs),
        _multiply(plan, before[-1], weights.recurrent_kernel),
    )
    recurrent = _split(plan, weights, recurrent)
    by_carry, by_projected, by_recurrent = _derivatives(
        plan, weights, before, states, projected, recurrent, valid
    )

    projected_tangents = [
        _add(
            None if input_tangents is None else _multiply(plan, input_tangents, kernel),
            None if kernel_tangent is None else _multiply(plan, inputs, kernel_tangent),
            bias_tangent,
        )
        for kernel, kernel_tangent, bias_tangent in zip(
            weights.kernels, weight_tangents.kernels, weight_tangents.biases
        )
    ]
    recurrent_tangents = [None] * len(weights.kernels)
    if weight_tangents.recurrent_kernel is not None:
        product = _multiply(plan, before[-1], weight_tangents.recurrent_kernel)
        recurrent_tangents = _split(plan, weights, product)
    recurrent_tangents = map(_add, recurrent_tangents, weight_tangents.recurrent_biases)
    every_tangent = [*projected_tangents, *recurrent_tangents]
    drive = [
        _weighted(row + more, every_tangent) for row, more in zip(by_projected, by_recurrent)
    ]  # (steps, *batch, hidden)

    def step(tangents, scanned):
        by_carry, by_recurrent, drive = scanned
        product = _multiply(plan, tangents[-1], weights.recurrent_kernel)
        recurrent = _split(plan, weights, product)
        new = ()
        for index, row in enumerate(zip(by_carry, by_recurrent, drive)):
            by_part, by_gate, rest = row
            _, given = _source(plan, index, tangents, new)
            tangent = _add(_weighted(by_part, given), _weighted(by_gate, recurrent), rest)
            tangent = jnp.zeros_like(tangents[index]) if tangent is None else tangent
            new = (*new, tangent.astype(tangents[index].dtype))
        return new, new[-1]

    return _scan_steps(plan, step, carry_tangents, (by_carry, by_recurrent, drive))


def _advance(
    gate: Callable[[Carry, Gates, Gates], Carry],
    weights: _Joined,
    carry: Carry,
    projected: Gates,
    recurrent: Gates,
    valid: jax.Array | None,
) -> Carry:
    """One step number by number: biases, gate, and the old carry where the step is not valid."""
    projected = tuple(map(_add, projected, weights.biases))
    recurrent = tuple(map(_add, recurrent, weights.recurrent_biases))
    new = gate(carry, projected, recurrent)
    new = tuple(part.astype(old.dtype) for part, old in zip(new, carry))
    if valid is None:
        return new
    return tuple(jnp.where(valid, part, old) for part, old in zip(new, carry))


def _derivatives(
    plan: _Plan,
    weights: _Joined,
    carry: Carry,
    after: Carry,
    projected: Gates,
    recurrent: Gates,
    valid: jax.Array | None,
) -> tuple[list[list[Any]], ...]:
    """The derivative of each part of the new carry by each argument; None where there is none.

    A number depends only on the numbers in its own place, so one backward pass with ones gives all
    derivatives of a part, for all steps at once.
    """
    table, inside = [], valid if plan.tame else None
    for index in range(len(carry)):
        gate, given = _source(plan, index, carry, after)

        def part(given, projected, recurrent, index=index, gate=gate):
            return _advance(gate, weights, given, projected, recurrent, inside)[index]

        value, pullback = jax.vjp(part, given, tuple(projected), tuple(recurrent))
        derivatives = jax.tree.leaves(pullback(jnp.ones_like(value)))
        used = plan.uses[index] | (set() if inside is None else {index})
        row = [d if place in used else None for place, d in enumerate(derivatives)]
        if valid is not inside:  # where a step is not valid, a derivative may be NaN
            row = [None if d is None else jnp.where(valid, d, 0) for d in row]
            row[index] = _add(row[index], jnp.where(valid, jnp.zeros_like(value), 1))
        table.append(row)
    first, second = len(carry), len(carry) + len(projected)
    columns = slice(0, first), slice(first, second), slice(second, None)
    return tuple([row[column] for row in table] for column in columns)


def _source(
    plan: _Plan, index: int, before: Carry, after: Carry
) -> tuple[Callable[[Carry, Gates, Gates], Carry], Carry]:
    """The equations of a part of the new carry, and the parts in them: those before the step or,
    where h is read off them, the new ones."""
    if plan.read is None or index < len(before) - 1:
        return plan.gate, before
    return plan.read, (*after[:index], before[index])


def _project(plan: _Plan, weights: _Joined, inputs: jax.Array) -> Gates:
    """The inputs' share of every gate, without biases, as one array for each gate.

    They are separate arrays because a loop that slices one common array for three gates is not
    compiled to vector instructions.
    """
    return tuple(_multiply(plan, inputs, kernel) for kernel in weights.kernels)


def _split(plan: _Plan, weights: _Joined, product: jax.Array) -> Gates:
    """Cut a product with the recurrent kernel into the gates' shares."""
    if plan.spread:
        return tuple(jnp.moveaxis(product, plan.axis - 1, 0))
    return tuple(jnp.split(product, len(weights.kernels), plan.axis))


def _multiply(plan: _Plan, array: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply the features of (..., batch, features), or (..., features, batch), by a kernel.

    The arrays are brought into a form whose derivative needs no transposed copies: one matrix for
    all steps, or, where the batch comes last, one small product for each step. Spread over devices
    they are left as they are, since an axis that is cut between devices cannot be merged into
    another: every device would first fetch the whole array.
    """
    array = array.astype(kernel.dtype)
    gate = "g" if kernel.ndim == 3 else ""  # the recurrent kernel when spread, one axis for gates
    if plan.axis == -1 and plan.spread:
        return jnp.einsum(f"...bf,f{gate}h->...b{gate}h", array, kernel)
    if plan.axis == -1:
        rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
        return (rows @ kernel).reshape(*array.shape[:-1], kernel.shape[-1])
    kernel = jnp.broadcast_to(kernel, (*array.shape[:-2], *kernel.shape))
    return jnp.einsum(f"...fb,...f{gate}h->...{gate}hb", array, kernel)


def _over_steps(weights: _Joined) -> _Joined:
    """Give the biases an axis for the steps of a chunk."""
    rows = jax.tree.map(lambda bias: bias[None], (weights.biases, weights.recurrent_biases))
    return weights._replace(biases=rows[0], recurrent_biases=rows[1])


def _add(*terms: jax.Array | None) -> jax.Array | None:
    """Add what is not None."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _weighted(coefficients: Sequence[Any], terms: Sequence[Any]) -> jax.Array | None:
    """Add coefficient * term wherever both are there."""
    pairs = zip(coefficients, terms)
    return _add(*(c * term for c, term in pairs if c is not None and term is not None))


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _before(plan: _Plan, carry: Carry, after: Sequence[jax.Array]) -> Carry:
    """The carries before each step (or chunk), from the first carry and those after each."""
    if plan.reverse:
        pairs = [(states[1:], part[None]) for part, states in zip(carry, after)]
    else:
        pairs = [(part[None], states[:-1]) for part, states in zip(carry, after)]
    return tuple(map(jnp.concatenate, pairs))


def _scan_steps(plan: _Plan, step: Callable[..., Any], carry: Any, scanned: Any) -> Any:
    return jax.lax.scan(
        step, carry, scanned, length=plan.steps, reverse=plan.reverse, unroll=plan.unroll
    )


def _scan_chunks(plan: _Plan, function: Callable[..., Any], carry: Any, chunks: Any) -> Any:
    """Scan `function`, which runs a chunk of steps; a single chunk needs no loop."""
    if len(jax.tree.leaves(chunks)[0]) > 1:
        return jax.lax.scan(function, carry, chunks, reverse=plan.reverse)
    carry, results = function(carry, jax.tree.map(lambda array: array[0], chunks))
    return carry, jax.tree.map(lambda array: array[None], results)


def _fold(plan: _Plan, arrays: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(len(a) // plan.steps, plan.steps, *a.shape[1:]), arrays)


def _unfold(array: jax.Array) -> jax.Array:
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def _promote(recurrence: Recurrence, carry: Carry, inputs: jax.Array) -> Weights:
    """Give each side's parameters the dtype in which it is multiplied."""
    kernels, biases, recurrent_kernels, recurrent_biases = recurrence.weights
    given = [array for array in (inputs, *kernels, *biases) if array is not None]
    dtype = recurrence.dtype or _inexact_type(given)
    given = [a for a in (carry[-1], *recurrent_kernels, *recurrent_biases) if a is not None]
    recurrent_dtype = recurrence.dtype or _inexact_type(given)

    def cast(arrays, dtype):
        return tuple(None if array is None else array.astype(dtype) for array in arrays)

    return Weights(
        cast(kernels, dtype),
        cast(biases, dtype),
        cast(recurrent_kernels, recurrent_dtype),
        cast(recurrent_biases, recurrent_dtype),
    )


def _inexact_type(arrays: Sequence[jax.Array]) -> Any:
    """The common dtype of arrays; of whole numbers that of floats, as `nnx.Linear` has it."""
    dtype = jnp.result_type(*arrays)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(jnp.float32, dtype)


def gate_uses(
    gate: Callable[[Carry, Gates, Gates], Carry], carry: Carry, num_gates: int
) -> tuple[frozenset[int], ...] | None:
    """Find what each part of a gate's new carry depends on, or that the gate is not elementwise.

    Args:
      gate: see `Recurrence`.
      carry: a carry to try it on; only its shapes and dtypes count.
      num_gates: how many gates the recurrence has.

    Returns:
      For each part of the carry, the places in `(*carry, *projected, *recurrent)` on which it
      depends, or its derivatives do; None if the gate or a derivative of its own mixes numbers in
      different places, if it looks at the shape of what it gets, if it holds arrays, a loop or a
      backward pass (`jax.custom_vjp`) of its own, or if a part of the carry is of whole numbers.

    Example:
      >>> def gate(carry, projected, recurrent):
      ...     return (jnp.tanh(projected[0] + recurrent[0]),)
      >>> [sorted(places) for places in gate_uses(gate, (jnp.zeros(4),), 1)]
      [[1, 2]]
      >>> gate_uses(lambda carry, x, h: (jax.nn.softmax(x[0] + h[0]),), (jnp.zeros(4),), 1)
    """
    if not all(jnp.issubdtype(part.dtype, jnp.floating) for part in carry):
        return None
    program, shape = _trace(gate, carry, num_gates), carry[-1].shape
    places = [frozenset([place]) for place in range(len(program.jaxpr.invars))]
    uses = None if program.consts else _follow(program.jaxpr, places)
    if uses is None:
        return None
    traced = gate
    if "custom_jvp" in str(program):
        # A derivative of one's own may use, and mix, what the function itself does not.
        def traced(*given):
            return jax.jvp(gate, given, given)

        program = _trace(traced, carry, num_gates)
        both = None if program.consts else _follow(program.jaxpr, places)
        if both is None:
            return None
        uses = map(frozenset.union, both[: len(uses)], both[len(uses) :])
    # The fast scan lays its arrays out in other shapes, with more axes or fewer, than one step has.
    other = max(shape, default=0) + 2, *(size + 1 for size in shape)
    try:
        same = _without_shapes(_trace(traced, carry, num_gates, other)) == _without_shapes(program)
    except Exception:  # of any kind: the gate is the user's, and made for the shape of a step
        return None
    return tuple(uses) if same else None


def _trace(
    function: Callable[..., Any], carry: Carry, num_gates: int, shape: tuple[int, ...] | None = None
) -> Any:
    """The jaxpr of a gate, for arrays of the carry's shape or of another."""
    shape = carry[-1].shape if shape is None else shape
    parts = tuple(jax.ShapeDtypeStruct(shape, part.dtype) for part in carry)
    gates = (parts[-1],) * num_gates
    return jax.make_jaxpr(function)(parts, gates, gates)


def _is_tame(gate: Callable[..., Any], carry: Carry, num_gates: int) -> bool:
    """Whether the operations of a gate have finite derivatives at all numbers."""
    return all(name in TAME for name in _operations(_trace(gate, carry, num_gates).jaxpr))


def _operations(program: Any) -> Iterator[str]:
    for equation in program.eqns:
        name = equation.primitive.name
        if name in ("jit", "pjit"):
            yield from _operations(equation.params["jaxpr"].jaxpr)
        else:
            yield name


def _without_shapes(program: Any) -> str:
    text = program.pretty_print(use_color=False)
    text = re.sub(r"\[[\d,]*\]|(broadcast_dimensions|shape)=\([\d, ]*\)", "", text)
    return "".join(text.split())


def recurrence_of(cell: Any) -> Recurrence | None:
    """Ask a cell what the fast scan needs to know of it.

    Args:
      cell: any object.

    Returns:
      What its method `recurrence` returns; None if by that name it means something else than a
      method without arguments that returns a `Recurrence` or None.

    Example:
      >>> from flax import nnx
      >>> from unrolled.cells import GRUCell
      >>> type(recurrence_of(GRUCell(3, 4, rngs=nnx.Rngs(0)))).__name__
      'Recurrence'
      >>> recurrence_of(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))) is None
      True
    """
    method = getattr(type(cell), "recurrence", None)
    try:
        inspect.signature(method).bind(cell)
    except TypeError:  # no such method, or one that wants more than a cell
        return None
    recurrence = cell.recurrence()
    return recurrence if isinstance(recurrence, Recurrence) else None


def _follow(program: Any, places: list[frozenset[int]]) -> list[frozenset[int]] | None:
    """Follow which arguments each result of a jaxpr is made of, through elementwise operations."""
    known = dict(zip(program.invars, places))

    def read(variable):
        is_literal = hasattr(variable, "val")
        return frozenset() if is_literal else known.get(variable, frozenset())

    for equation in program.eqns:
        arguments, name = list(map(read, equation.invars)), equation.primitive.name
        if _holds_arrays(equation):
            results = None
        elif name in CALLS:
            called = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            results = _follow(getattr(called, "jaxpr", called), arguments)
        elif name in ELEMENTWISE and _same_places(equation):
            results = [frozenset().union(*arguments)] * len(equation.outvars)
        else:
            results = None
        if results is None:
            return None
        known.update(zip(equation.outvars, results))
    return list(map(read, program.outvars))


def _holds_arrays(equation: Any) -> bool:
    """Whether an operation uses an array that is no argument of the program."""
    literals = any(hasattr(given, "val") and given.aval.shape for given in equation.invars)
    return literals or any(getattr(value, "consts", ()) for value in equation.params.values())


def _same_places(equation: Any) -> bool:
    shapes = {variable.aval.shape for variable in (*equation.invars, *equation.outvars)}
    return len(shapes - {()}) <= 1


CALLS = frozenset({"checkpoint", "closed_call", "custom_jvp_call", "jit", "pjit", "remat2"})
ELEMENTWISE = frozenset(
    re.findall(
        r"\w+",
        """
        abs acos acosh add add_any and asin asinh atan atan2 atanh broadcast_in_dim cbrt ceil clamp
        convert_element_type copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
        integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow
        reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan
        tanh xor
        """,
    )
)
TAME = frozenset(
    re.findall(
        r"\w+",
        """
        abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos eq erf floor
        ge gt is_finite le logistic lt max min mul ne neg not or round select_n sign sin square
        stop_gradient sub tanh xor
        """,
    )
)
