"""Layers: a cell over a sequence, in one direction or two, and stacks of such layers.

`RNN` is one `jax.lax.scan` over time. Around the scan stands what real data needs: batch- or
time-major inputs, sequences of different length, reading backwards, carries in and out, and cells
that hold random streams or state of their own (chapters 8 to 10).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from unrolled._checks import (
    as_array,
    as_function,
    check_arguments,
    describe,
    kind_of,
    real_number,
    warn,
    whole_number,
)
from unrolled.cells import _picklable
from unrolled.scan import TRANSPOSABLE, Recurrence, gate_uses, recurrence_of, scan_recurrence
from unrolled.sequences import check_seq_lengths, flip_sequences, mask_padding, sequence_mask

# What equals nothing but itself, and does not change.
UNCHANGING = (
    type(None),
    type,
    FunctionType,
    BuiltinFunctionType,
    type(jax.jit(abs)),
    type(nnx.jit(abs)),
    jnp.ufunc,
    jax.custom_jvp,
    jax.custom_vjp,
    jax.sharding.Mesh,
)


class RNNBase(Protocol):
    """What `Bidirectional` and `StackedRNN` expect of a layer: the call of `RNN`.

    Example, a function that takes any such layer:
      >>> def last_output(layer: RNNBase, inputs):
      ...     return layer(inputs)[..., -1, :]
      >>> from unrolled.cells import GRUCell
      >>> last_output(RNN(GRUCell(3, 4, rngs=nnx.Rngs(0))), jnp.ones((2, 5, 3))).shape
      (2, 4)
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        seq_lengths: Any | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run the layer; see `RNN.__call__`."""
        ...


class RNN(nnx.Module):
    """Run a cell over a sequence.

    For one sequence without options it computes what this loop computes, compiled once::

        outputs = []
        for x_t in inputs:
            carry, output = cell(carry, x_t)
            outputs.append(output)

    Every option can be given here and overridden in a call.

    Long sequences: a gradient keeps the states, and memory grows in proportion to the steps. Values
    and gradients of a `GRUCell` with 32 units over 100,000 steps of 8 features (float32, one
    sequence) take 45 MB beside inputs and results, three and a half times the states; a cell that
    the fast scan does not know, and Flax's layer, take 144 MB.

    A call outside `jit` is compiled once. Objects that a cell holds are read anew in each call;
    what a function looks up when it runs, a global or a variable around it, is looked up when it is
    compiled, and attributes are compared by `==`, as under `nnx.jit`.

    Batch and time may be left open (`jax.export.symbolic_shape`): one exported program serves all.

    Args:
      cell: a cell of `unrolled.cells`, or any module with `__call__(carry, inputs)` and
        `initialize_carry(input_shape, rngs)`.
      time_major: inputs and outputs are (time, *batch, features), not (*batch, time, features).
      return_carry: return `(carry, outputs)`, not outputs alone.
      reverse: read each sequence from its last valid step to its first. Outputs come in the order
        in which they were computed, so the output at step 0 belongs to the last input.
      keep_order: with reverse, put the outputs back in the order of the inputs.
      unroll: how many steps the compiled loop does per iteration; True or 0 for all of them.
      state_axes: what the scan does with the cell's variables: a mapping from an `nnx` filter to
        `nnx.Carry` (a step sees what the last step wrote; the default), None (every step sees the
        same, and what it writes is dropped) or an axis (each step has its own slice).
      broadcast_rngs: filter of random streams that every step of a call shares, for example
        `"recurrent_dropout"`: one mask for the whole sequence, a new one in the next call.
      rngs: where a random initial carry gets its keys: True (a stream with seed 0), `nnx.Rngs`, a
        stream, or False for none. A zero carry draws nothing.

    Raises:
      TypeError: something that is not a cell, or rngs, state_axes, broadcast_rngs or unroll of
        another kind.
      ValueError: a negative unroll.

    From:
      the API of `flax.nnx.RNN`. What it does otherwise: outputs at padded steps are zero, the final
      carry is that of the last valid step (the initial carry for a sequence of length zero), and
      padding, NaN included, never reaches a gradient. The cell is still called at padded steps,
      with zeros for inputs: a cell of your own needs a finite derivative there, and statistics that
      it keeps, such as a running mean, count these zeros.

    Example:
      >>> from unrolled.cells import GRUCell
      >>> rnn = RNN(GRUCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0)))
      >>> inputs = jnp.ones((2, 5, 3))
      >>> rnn(inputs).shape
      (2, 5, 4)
      >>> carry, outputs = rnn(inputs, seq_lengths=[5, 2], return_carry=True)
      >>> bool((carry[1] == outputs[1, 1]).all()), bool((outputs[1, 2:] == 0).all())
      (True, True)
    """

    def __init__(
        self,
        cell: Any,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Mapping[str, Any] | None = None,
        broadcast_rngs: Any = None,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ):
        _check_cell(cell)
        if not (state_axes is None or isinstance(state_axes, (Mapping, nnx.StateAxes))):
            raise TypeError(
                f"state_axes is {describe(state_axes)}; expected a mapping from nnx filters to "
                "nnx.Carry, None or an axis, {...: nnx.Carry} for example."
            )
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll if isinstance(unroll, bool) else whole_number("unroll", unroll, 0)
        self.state_axes = (
            state_axes
            if isinstance(state_axes, nnx.StateAxes)
            else nnx.StateAxes(state_axes or {...: nnx.Carry})
        )
        for selects, axis in self.state_axes.items():
            _check_filter("a key of state_axes", selects, "nnx.BatchStat, or ... for all the rest")
            if not (axis is None or axis is nnx.Carry or type(axis) is int):
                raise TypeError(
                    f"a value of state_axes is {describe(axis)}; expected nnx.Carry, None or an "
                    "axis as a whole number."
                )
        if broadcast_rngs is not None:
            _check_filter("broadcast_rngs", broadcast_rngs, '"dropout", a stream by its name')
        self.broadcast_rngs = broadcast_rngs
        self.rngs = nnx.data(_carry_stream(rngs))

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any | None = None,
        seq_lengths: Any | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Run the cell over the sequences in `inputs`.

        Args:
          inputs: shape (*batch, time, *features), any number of batch dimensions. For cells with
            several inputs, a pytree of arrays that share batch and time.
          initial_carry: the carry before the first step; it is broadcast over the batch, so one
            carry will do for all. None asks the cell's `initialize_carry`. An array in it whose
            first axes are not those of the batch, a count of steps for example, belongs to no
            sequence and heeds no lengths.
          seq_lengths: whole numbers of shape (*batch,), the count of valid steps of each sequence;
            None if all are. Inside `jit` lengths out of range are clamped; elsewhere an error.
          return_carry, time_major, reverse, keep_order: override the layer's options.
          rngs: where a random initial carry gets its keys in this call.

        Returns:
          outputs, or `(carry, outputs)` with return_carry. outputs are (*batch, time, *output
          features) (time first when time_major), zero at padded steps. carry is that of the last
          valid step. Its dtype is the common dtype of the initial carry and of what a step returns.

        Raises:
          TypeError: seq_lengths that are not whole numbers, or a list as the inputs of a cell that
            reads one array.
          ValueError: inputs, carry or seq_lengths that do not fit the cell or each other.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        _check_one_array(inputs, self.cell)
        inputs = jax.tree.map(partial(as_array, "inputs"), inputs)
        step_shape, num_batch_dims = _step_shape(inputs, self.num_feature_axes, time_major)
        if seq_lengths is not None:
            time_axis = 0 if time_major else num_batch_dims
            num_steps = jax.tree.leaves(inputs)[0].shape[time_axis]
            seq_lengths = check_seq_lengths(seq_lengths, step_shape[:num_batch_dims], num_steps)
        if initial_carry is None:
            rngs = self.rngs if rngs is None else rngs
            rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
            initial_carry = self.cell.initialize_carry(step_shape, rngs)
        initial_carry = jax.tree.map(partial(as_array, "initial_carry"), initial_carry)

        with self._shared_streams():
            graphdef, paths, axes, variables = self._split_cell()
            scan_cell = _scan_cell if _lasts(graphdef, variables) else _scan_cell.__wrapped__
            carry, outputs, written = scan_cell(
                variables,
                initial_carry,
                inputs,
                seq_lengths,
                graphdef=graphdef,
                paths=paths,
                axes=axes,
                num_batch_dims=num_batch_dims,
                time_major=bool(time_major),
                reverse=bool(reverse),
                keep_order=bool(keep_order),
                unroll=self.unroll,
            )
            if written:
                nnx.update(self.cell, nnx.from_flat_state(list(written.items())))
        return (carry, outputs) if return_carry else outputs

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features; one unless the cell says otherwise."""
        return getattr(self.cell, "num_feature_axes", 1)

    def _shared_streams(self) -> Any:
        """While open, the streams in broadcast_rngs hold one fresh key for the whole call."""
        if self.broadcast_rngs is None:
            return contextlib.nullcontext()
        return nnx.split_rngs(self.cell, splits=1, only=self.broadcast_rngs, squeeze=True)

    def _split_cell(self) -> tuple[Any, tuple[Any, ...], tuple[Any, ...], list[Any]]:
        """Take the cell apart into its structure and its variables, each with its scan axis."""
        rules = [(nnx.All(nnx.RngState, self.broadcast_rngs), None), *self.state_axes.items()]
        rules = [(nnx.filterlib.to_predicate(selects), axis) for selects, axis in rules]
        graphdef, state = nnx.split(self.cell)
        paths, variables = zip(*nnx.to_flat_state(state)) if jax.tree.leaves(state) else ((), ())
        axes = []
        for path, variable in zip(paths, variables):
            axis = [axis for selects, axis in rules if selects(path, variable)]
            if not axis:
                raise ValueError(
                    f"state_axes says nothing about the cell's variable {path}; expected an entry "
                    "for every variable: add `...: nnx.Carry` at its end."
                )
            axes.append(axis[0])
        return graphdef, tuple(paths), tuple(axes), list(variables)


@partial(
    jax.jit,
    static_argnames=(
        "graphdef",
        "paths",
        "axes",
        "num_batch_dims",
        "time_major",
        "reverse",
        "keep_order",
        "unroll",
    ),
)
def _scan_cell(
    variables: list[Any],
    initial_carry: Any,
    inputs: Any,
    seq_lengths: jax.Array | None,
    *,
    graphdef: Any,
    paths: tuple[Any, ...],
    axes: tuple[Any, ...],
    num_batch_dims: int,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
    unroll: int,
) -> tuple[Any, Any, dict[Any, Any]]:
    """Scan a cell over time, as a pure function: the cell's variables go in and come out.

    It is compiled once for each cell structure and set of shapes, so that a call outside `jit` does
    not trace the cell again.

    Returns:
      `(carry, outputs, written)`; written maps the path of each variable that a step changes to its
      new value.
    """
    time_axis = 0 if time_major else num_batch_dims
    num_steps = jax.tree.leaves(inputs)[0].shape[time_axis]

    def batched(array):
        shape, batch = array.shape, seq_lengths.shape
        starts = range(len(shape) - len(batch) + 1)
        places = [i for i in starts if shape[i : i + len(batch)] == batch]
        if places and 0 not in places:
            raise ValueError(
                f"the carry has an array of shape {shape}; expected the batch {batch} in "
                "front, where sequences have lengths."
            )
        return 0 in places

    def flip(sequence):
        return flip_sequences(sequence, seq_lengths, num_batch_dims, time_major)

    mask = None
    if seq_lengths is not None:
        mask = sequence_mask(seq_lengths, num_steps, time_major=time_major)  # (*batch, time)
        # NaN in padding ends here; random keys hold none.
        inputs = jax.tree.map(lambda x: x if _is_key(x) else mask_padding(x, mask), inputs)

    def step_cell(variables, carry, x):
        variables = jax.tree.map(lambda array: array, variables)  # copies: a step may write to them
        cell = nnx.merge(graphdef, nnx.from_flat_state(list(zip(paths, variables))))
        result = cell(carry, x)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{type(cell).__name__} returned {kind_of(result)}; expected the pair "
                "(new_carry, output)."
            )
        state = dict(nnx.to_flat_state(nnx.state(cell)))
        if state.keys() != set(paths):
            raise ValueError(
                f"{type(cell).__name__} adds or removes variables in a step "
                f"({sorted(map(str, state.keys() ^ set(paths)))}); expected the same variables "
                "before and after: create them in __init__."
            )
        return [state[path] for path in paths], *result

    # Three kinds of variables: a step sees its own slice, what the last step wrote, or the same as
    # every other step. A carried variable that no step writes to is of the last kind.
    sliced = [index for index, axis in enumerate(axes) if isinstance(axis, int)]
    variables = [
        _move_axis(variable, axis, 0) if isinstance(axis, int) else variable
        for variable, axis in zip(variables, axes)
    ]
    first = [
        _first_slice(variable) if isinstance(axis, int) else variable
        for variable, axis in zip(variables, axes)
    ]
    writes, carry_after, output = _try_one_step(
        step_cell, first, initial_carry, _first_slice(inputs, time_axis)
    )
    for leaf in jax.tree.leaves(output):
        if len(leaf.shape) < (time_axis if seq_lengths is None else num_batch_dims):
            raise ValueError(
                f"a step returns an output of shape {leaf.shape}; expected (*batch, *features) "
                f"with {num_batch_dims} batch {'axis' if num_batch_dims == 1 else 'axes'}. What "
                "has no batch can stay in the carry."
            )
    carry_before = _settle_carry(initial_carry, carry_after)

    cell = nnx.merge(graphdef, nnx.from_flat_state(list(zip(paths, variables))))
    sizes = [size for leaf in jax.tree.leaves(inputs) for size in leaf.shape]
    general = sliced or any(writes) or any(map(export.is_symbolic_dim, sizes))
    recurrence = None if general else _fast_recurrence(cell, carry_before)
    if recurrence is not None:
        parts, structure = jax.tree.flatten(carry_before)
        parts, outputs = scan_recurrence(
            recurrence,
            tuple(parts),
            jnp.moveaxis(inputs, time_axis, 0),  # (time, *batch, features)
            None if mask is None else jnp.moveaxis(mask, time_axis, 0),  # (time, *batch)
            reverse=reverse,
            unroll=unroll,
        )
        outputs = jnp.moveaxis(outputs.astype(output.dtype), 0, time_axis)  # (*batch, time, hidden)
        outputs = outputs if mask is None else mask_padding(outputs, mask)
        outputs = flip(outputs) if reverse and not keep_order else outputs
        return jax.tree.unflatten(structure, parts), outputs, {}

    if reverse:
        inputs = jax.tree.map(flip, inputs)
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, time_axis, 0), inputs)  # (time, *batch, ...)
    carried = [index for index, axis in enumerate(axes) if axis is nnx.Carry and writes[index]]

    def step(state, scanned):
        carry, carried_now = state
        t, x, sliced_now = scanned
        now = list(variables)
        for index, variable in zip(carried + sliced, carried_now + sliced_now):
            now[index] = variable
        now, new_carry, output = step_cell(now, carry, x)
        new_carry = jax.tree.map(lambda new, old: new.astype(old.dtype), new_carry, carry)
        if seq_lengths is not None:
            valid = t < seq_lengths  # (*batch,)
            # What has no batch, such as a count of steps or one key, belongs to no sequence.
            new_carry = jax.tree.map(
                lambda new, old: mask_padding(new, valid, old) if batched(new) else new,
                new_carry,
                carry,
            )
            output = jax.tree.map(lambda y: y if _is_key(y) else mask_padding(y, valid), output)
        written = [now[index] for index in sliced]
        return (new_carry, [now[index] for index in carried]), (output, written)

    (carry, carried_after), (outputs, sliced_after) = jax.lax.scan(
        step,
        (carry_before, [variables[index] for index in carried]),
        (jnp.arange(num_steps, dtype=jnp.int32), inputs, [variables[index] for index in sliced]),
        unroll=unroll,
    )
    outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), outputs)  # (*batch, time, ...)
    if reverse and keep_order:
        outputs = jax.tree.map(flip, outputs)
    written = {paths[index]: variable for index, variable in zip(carried, carried_after)}
    for index, variable in zip(sliced, sliced_after):
        if writes[index]:
            written[paths[index]] = _move_axis(variable, 0, axes[index])
    return carry, outputs, written


def _lasts(graphdef: Any, variables: list[Any]) -> bool:
    """Whether a program compiled for a cell of this structure will do in the next call.

    The cell's plain attributes and the metadata of its variables are part of the program, which is
    found again by comparing them. A list cannot be kept for that, and an object without an `__eq__`
    equals itself after a change.
    """
    try:
        hash(graphdef)
    except TypeError:
        return False
    held = [getattr(attribute, "value", None) for _, attribute in graphdef.attributes]
    for variable in variables:
        held += variable.get_metadata().values() if isinstance(variable, nnx.Variable) else ()
    return all(map(_stays, held))


def _stays(value: Any) -> bool:
    """Whether a value that equals itself is unchanged, as far as a look at it can tell."""
    if isinstance(value, UNCHANGING):
        return True
    if isinstance(value, (tuple, frozenset)):
        return all(map(_stays, value))
    if isinstance(value, MethodType):
        return _stays(value.__self__)
    if isinstance(value, partial):
        return all(map(_stays, (value.func, *value.args, *value.keywords.values())))
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        return _has_equality(value) and all(map(_stays, fields))
    return _has_equality(value)


def _has_equality(value: Any) -> bool:
    return type(value).__hash__ not in (None, object.__hash__)


def _try_one_step(
    step_cell: Callable[..., Any], variables: list[Any], carry: Any, x: Any
) -> tuple[list[bool], Any, Any]:
    """Trace one step without computing it: which variables does it write, what comes out of it?"""
    writes = []

    def step(variables, carry, x):
        after, carry, output = step_cell(variables, carry, x)
        for old, new in zip(variables, after):
            leaves = zip(jax.tree.leaves(old), jax.tree.leaves(new))
            writes.append(any(new_leaf is not old_leaf for old_leaf, new_leaf in leaves))
        return carry, output

    carry, output = jax.eval_shape(step, variables, jax.tree.map(jnp.asarray, carry), x)
    return writes, carry, output


def _fast_recurrence(cell: Any, carry: Any) -> Recurrence | None:
    """What the fast scan needs to know of a cell; None if only the general scan can run it."""
    recurrence = recurrence_of(cell)
    if recurrence is None or not TRANSPOSABLE:
        return None
    uses = gate_uses(
        recurrence.gate, tuple(jax.tree.leaves(carry)), len(recurrence.weights.kernels)
    )
    return None if uses is None else recurrence


def _settle_carry(initial: Any, after: Any) -> Any:
    """Give the initial carry the structure, shapes and common dtypes of a carry after one step."""
    names, wanted_names = _names(initial), _names(after)
    if names != wanted_names and sorted(names) == sorted(wanted_names):
        raise ValueError(
            f"the initial carry has its arrays in the order {', '.join(names)}, but a step returns "
            f"them as {', '.join(wanted_names)}; expected one order."
        )
    leaves, wanted = jax.tree.leaves(initial), jax.tree.leaves(after)
    if len(leaves) != len(wanted):
        raise ValueError(
            f"the initial carry has {len(leaves)} arrays ({jax.tree.structure(initial)}), but a "
            f"step returns {len(wanted)} ({jax.tree.structure(after)}); expected the same "
            "structure: cell.initialize_carry(input_shape) makes a fitting one."
        )
    settled = []
    for leaf, want in zip(map(jnp.asarray, leaves), wanted):
        try:
            leaf = jnp.broadcast_to(leaf, want.shape)
        except ValueError:
            raise ValueError(
                f"the initial carry has an array of shape {leaf.shape} where a step returns one of "
                f"shape {want.shape}; expected that shape, or one that broadcasts to it."
            ) from None
        if leaf.dtype != want.dtype:
            leaf = leaf.astype(jnp.promote_types(leaf.dtype, want.dtype))
        settled.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(after), settled)


def _names(tree: Any) -> list[str]:
    """The paths to the arrays of a tree, in its order."""
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _move_axis(tree: Any, source: int, destination: int) -> Any:
    return jax.tree.map(lambda array: jnp.moveaxis(array, source, destination), tree)


def _first_slice(tree: Any, axis: int = 0) -> Any:
    """The shape and dtype of one time step of each array; the array may have no steps at all."""

    def one_step(array):
        shape = array.shape[:axis] + array.shape[axis + 1 :]
        return jax.ShapeDtypeStruct(shape, array.dtype)

    return jax.tree.map(one_step, tree)


def _check_one_array(inputs: Any, cell: Any) -> None:
    """Raise TypeError for a list of inputs, if the cell is known to read one array."""
    if isinstance(inputs, (list, tuple)) and recurrence_of(cell) is not None:
        raise TypeError(
            f"inputs is {kind_of(inputs)}; expected one array of shape (*batch, time, *features). "
            "jnp.stack joins sequences of one length and pad_sequences those of several; "
            "jnp.asarray makes an array of numbers."
        )


def _step_shape(
    inputs: Any, num_feature_axes: int, time_major: bool
) -> tuple[tuple[int, ...], int]:
    """Return the shape of one step's input and its number of batch dimensions.

    In a pytree of inputs the array with most dimensions decides (the features, not a mask of shape
    (*batch, time) beside them), and all must share its batch and time.
    """
    arrays = jax.tree.leaves(inputs)
    if not arrays:
        raise ValueError("inputs holds no arrays; expected an array of shape (*batch, time, ...).")
    shape = max((array.shape for array in arrays), key=len)
    num_batch_dims = len(shape) - num_feature_axes - 1
    layout = "(time, *batch, *features)" if time_major else "(*batch, time, *features)"
    if num_batch_dims < 0:
        raise ValueError(
            f"inputs have shape {shape}; expected {layout} with {num_feature_axes} feature "
            f"{'axis' if num_feature_axes == 1 else 'axes'}. A single feature needs an axis of "
            "its own: inputs[..., None]."
        )
    for array in arrays:
        if array.shape[: num_batch_dims + 1] != shape[: num_batch_dims + 1]:
            raise ValueError(
                f"inputs have shapes {shape} and {array.shape}; expected arrays that share batch "
                f"and time, laid out {layout}."
            )
    time_axis = 0 if time_major else num_batch_dims
    return shape[:time_axis] + shape[time_axis + 1 :], num_batch_dims


def _check_cell(cell: Any) -> None:
    if isinstance(cell, type):
        raise TypeError(
            f"RNN got the class {cell.__name__}; expected a cell made from it: "
            f"RNN({cell.__name__}(in_features, hidden_features, rngs=nnx.Rngs(0)))."
        )
    if not (callable(cell) and hasattr(cell, "initialize_carry")):
        raise TypeError(
            f"RNN got {kind_of(cell)}; expected a cell: a module with __call__(carry, "
            "inputs) and initialize_carry(input_shape, rngs), GRUCell for example. To run one "
            "layer after another, see StackedRNN."
        )


def _check_filter(name: str, selects: Any, example: str) -> None:
    try:
        nnx.filterlib.to_predicate(selects)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is {describe(selects)}; expected an nnx filter such as {example}."
        ) from None


def _carry_stream(rngs: Any) -> nnx.RngStream | None:
    """Return the stream of random keys for initial carries that the argument `rngs` stands for."""
    if rngs is True:
        return nnx.RngStream(0, tag="carry")
    if rngs is False or rngs is None:
        return None
    if isinstance(rngs, nnx.Rngs):
        return rngs.carry.fork()
    if isinstance(rngs, nnx.RngStream):
        return rngs
    raise TypeError(
        f"rngs is {kind_of(rngs)}; expected nnx.Rngs(0) for example, one stream of it, "
        "True or False."
    )


def _concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nnx.Module):
    """Read each sequence from both ends and merge what the two layers say at each step.

    ::

        outputs[t] = merge_fn(forward_rnn over inputs[0..t], backward_rnn over inputs[T-1..t])

    Args:
      forward_rnn: an `RNN`, or another layer with its call.
      backward_rnn: the same for the other direction; it is reversed here, and its outputs are put
        back in order. A sequence is reversed within its valid steps.
      merge_fn: merges two outputs of shape (*batch, time, features); concatenates the features.
      time_major: inputs and outputs are (time, *batch, features). Also on if both layers were made
        with it.
      return_carry: return `((forward carry, backward carry), outputs)`. Also on if both layers were
        made with it.
      rngs: as in `RNN`; both layers draw from this stream.

    Raises:
      TypeError: something that is not a layer, or a merge_fn that is not a function of two outputs.
      ValueError: two layers that do not match in features, time_major or return_carry, or a forward
        layer made with reverse=True.

    From:
      Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal
      Processing, 1997; the API of `flax.nnx.Bidirectional`.

    Example:
      >>> from unrolled.cells import GRUCell
      >>> rngs = nnx.Rngs(0)
      >>> layer = Bidirectional(RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(3, 4, rngs=rngs)))
      >>> layer(jnp.ones((2, 5, 3))).shape
      (2, 5, 8)
    """

    def __init__(
        self,
        forward_rnn: Any,
        backward_rnn: Any,
        *,
        merge_fn: Callable[[jax.Array, jax.Array], jax.Array] = _concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ):
        _check_pair(forward_rnn, backward_rnn)
        if merge_fn is not _concatenate:
            merges = "(forward, backward)", "jnp.add"
            as_function("merge_fn", merge_fn, *merges)
            check_arguments("merge_fn", merge_fn, *merges)
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn
        self.time_major = time_major or getattr(forward_rnn, "time_major", False)
        self.return_carry = return_carry or getattr(forward_rnn, "return_carry", False)
        self.rngs = nnx.data(_carry_stream(rngs))

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: tuple[Any, Any] | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        seq_lengths: Any | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run both layers over the sequences in `inputs`.

        Args:
          inputs: shape (*batch, time, *features), or (time, *batch, *features) when time_major.
          initial_carry: the pair of initial carries (forward, backward).
          rngs: where random initial carries get their keys in this call.
          seq_lengths: whole numbers of shape (*batch,), the count of valid steps of each sequence.
          return_carry, time_major: override the layer's options.
          reverse: exchange the directions: the forward layer reads from the end. As in `RNN`,
            outputs then come in reversed time,
          keep_order: unless this puts them back in the order of the inputs.

        Returns:
          outputs, or `((forward carry, backward carry), outputs)` with return_carry. The backward
          carry has seen the whole sequence, as the forward carry has.

        Raises:
          TypeError, ValueError: see `RNN.__call__`; also an initial_carry that is not a pair, or
            outputs of different width that merge_fn cannot merge.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        if initial_carry is None:
            initial_carry = (None, None)
        if not (isinstance(initial_carry, (tuple, list)) and len(initial_carry) == 2):
            raise ValueError(
                f"initial_carry is {kind_of(initial_carry)}; expected the pair (forward "
                "carry, backward carry) of a bidirectional layer."
            )
        run = {
            "rngs": rngs,
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": time_major,
            "keep_order": True,
        }
        forward_carry, forward_outputs = self.forward_rnn(
            inputs, initial_carry=initial_carry[0], reverse=bool(reverse), **run
        )
        backward_carry, backward_outputs = self.backward_rnn(
            inputs, initial_carry=initial_carry[1], reverse=not reverse, **run
        )
        outputs = jax.tree.map(self._merge, forward_outputs, backward_outputs)
        if reverse and not keep_order:
            inputs = jax.tree.map(jnp.asarray, inputs)
            _, num_batch_dims = _step_shape(inputs, self.num_feature_axes, time_major)
            outputs = jax.tree.map(
                lambda y: flip_sequences(y, seq_lengths, num_batch_dims, time_major), outputs
            )
        return ((forward_carry, backward_carry), outputs) if return_carry else outputs

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a jitted merge_fn such as `jnp.add` by its public name."""
        return {name: _picklable(value) for name, value in super().__getstate__().items()}

    def _merge(self, forward: jax.Array, backward: jax.Array) -> jax.Array:
        try:
            return self.merge_fn(forward, backward)
        except (TypeError, ValueError) as error:
            if forward.shape == backward.shape:
                raise
            raise ValueError(
                f"merge_fn could not merge outputs of shape {forward.shape}, forward, and "
                f"{backward.shape}, backward. Give both layers the same width, or merge by joining "
                "the features, as without a merge_fn."
            ) from error

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features; one unless the forward layer says otherwise."""
        return getattr(self.forward_rnn, "num_feature_axes", 1)


def _check_layer(name: str, layer: Any) -> None:
    if isinstance(layer, type) or not callable(layer) or hasattr(layer, "initialize_carry"):
        what = f"the class {layer.__name__}" if isinstance(layer, type) else describe(layer)
        raise TypeError(
            f"{name} is {what}; expected a layer: RNN(GRUCell(in_features, hidden_features, "
            "rngs=nnx.Rngs(0))) for example."
        )


def _check_pair(forward_rnn: Any, backward_rnn: Any) -> None:
    _check_layer("forward_rnn", forward_rnn)
    _check_layer("backward_rnn", backward_rnn)
    for option in ("time_major", "return_carry"):
        forward, backward = (getattr(layer, option, False) for layer in (forward_rnn, backward_rnn))
        if forward != backward:
            raise ValueError(
                f"forward_rnn was made with {option}={forward}, backward_rnn with {option}="
                f"{backward}; expected the same. Give the option to Bidirectional instead."
            )
    if getattr(forward_rnn, "reverse", False):
        raise ValueError(
            "forward_rnn was made with reverse=True; expected a layer that reads forwards: "
            "Bidirectional reverses the second layer itself. Are the two exchanged?"
        )
    features = [
        getattr(getattr(layer, "cell", None), "in_features", None)
        for layer in (forward_rnn, backward_rnn)
    ]
    if None not in features and features[0] != features[1]:
        raise ValueError(
            f"forward_rnn has in_features={features[0]}, backward_rnn has in_features="
            f"{features[1]}; expected the same, since both read the same inputs."
        )
    if forward_rnn is backward_rnn:
        warn(
            "forward_rnn and backward_rnn are one object and share their parameters. If that is "
            "not intended, make two."
        )


class StackedRNN(nnx.Module):
    """Run layers one after another: each reads the outputs of the one below.

    ::

        for layer in layers:
            inputs = layer(inputs)

    Args:
      layers: `RNN`s or `Bidirectional`s, from the bottom up.
      time_major: inputs and outputs are (time, *batch, features). Also on if all layers were made
        with it.
      return_carry: return `(carries, outputs)`. Also on if all layers were made with it.
      dropout_rate: the share of features to drop between layers; nothing is dropped after
        `stack.eval()`.
      rngs: where dropout gets its keys (the stream `dropout`).

    Raises:
      TypeError: something that is not a list of layers, a dropout_rate that is not a number, or
        rngs of another kind.
      ValueError: no layers, layers that differ in time_major or return_carry, or dropout without
        rngs.

    Example:
      >>> from unrolled.cells import GRUCell
      >>> rngs = nnx.Rngs(0)
      >>> stack = StackedRNN([RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(4, 4, rngs=rngs))])
      >>> carries, outputs = stack(jnp.ones((2, 5, 3)), return_carry=True)
      >>> outputs.shape, [carry.shape for carry in carries]
      ((2, 5, 4), [(2, 4), (2, 4)])
    """

    def __init__(
        self,
        layers: Sequence[Any],
        *,
        time_major: bool = False,
        return_carry: bool = False,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs | None = None,
    ):
        if not isinstance(layers, Sequence) or isinstance(layers, (str, bytes)):
            raise TypeError(f"layers is {describe(layers)}; expected a list of RNNs.")
        if len(layers) == 0:
            raise ValueError("StackedRNN got no layers; expected at least one RNN.")
        for index, layer in enumerate(layers):
            _check_layer(f"layer {index}", layer)
        dropout_rate = real_number("dropout_rate", dropout_rate, "a share from 0 to 1")
        if not 0 <= dropout_rate <= 1:
            raise ValueError(f"dropout_rate is {dropout_rate:g}; expected a share from 0 to 1.")
        for option in ("time_major", "return_carry"):
            values = {getattr(layer, option, False) for layer in layers}
            if len(values) > 1:
                raise ValueError(
                    f"the layers differ in {option}; expected the same in all. Give the option to "
                    "StackedRNN instead."
                )
        if dropout_rate and rngs is None:
            raise ValueError(
                f"dropout_rate is {dropout_rate}, which needs random keys: pass rngs=nnx.Rngs(0)."
            )
        if not (rngs is None or isinstance(rngs, (nnx.Rngs, nnx.RngStream))):
            raise TypeError(f"rngs is {describe(rngs)}; expected nnx.Rngs(0) for example.")
        self.layers = nnx.List(layers)
        self.dropout = nnx.data(nnx.Dropout(dropout_rate, rngs=rngs) if dropout_rate else None)
        self.time_major = time_major or getattr(layers[0], "time_major", False)
        self.return_carry = return_carry or getattr(layers[0], "return_carry", False)

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Sequence[Any] | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        seq_lengths: Any | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Run all layers over the sequences in `inputs`.

        Args:
          inputs: shape (*batch, time, *features), or (time, *batch, *features) when time_major.
          initial_carry: one initial carry for each layer; None in a place takes that layer's own.
          rngs: where random initial carries get their keys in this call.
          seq_lengths: whole numbers of shape (*batch,), the count of valid steps of each sequence.
          return_carry, time_major: override the stack's options.
          reverse: every layer reads from the end; None leaves each layer its own option. As in
            `RNN`, outputs then come in reversed time,
          keep_order: unless this puts them back in the order of the inputs.

        Returns:
          outputs of the top layer, or `(carries, outputs)` with return_carry; carries is a tuple
          with the final carry of each layer.

        Raises:
          TypeError, ValueError: see `RNN.__call__`; also a wrong number of initial carries.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        if initial_carry is None:
            initial_carry = [None] * len(self.layers)
        if not isinstance(initial_carry, (tuple, list)) or len(initial_carry) != len(self.layers):
            raise ValueError(
                f"initial_carry is {kind_of(initial_carry)} that does not hold one carry "
                f"for each layer; expected a tuple of {len(self.layers)}, from the bottom up."
            )
        outputs, carries = inputs, []
        for index, layer in enumerate(self.layers):
            if index and self.dropout is not None:
                outputs = self.dropout(outputs)
            is_top = index == len(self.layers) - 1
            try:
                carry, outputs = layer(
                    outputs,
                    initial_carry=initial_carry[index],
                    rngs=rngs,
                    seq_lengths=seq_lengths,
                    return_carry=True,
                    time_major=time_major,
                    reverse=reverse,
                    keep_order=keep_order if is_top or not reverse else True,
                )
            except Exception as error:
                error.add_note(f"This is layer {index} of the {len(self.layers)} in a StackedRNN.")
                raise
            carries.append(carry)
        return (tuple(carries), outputs) if return_carry else outputs

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features; one unless the bottom layer says otherwise."""
        return getattr(self.layers[0], "num_feature_axes", 1)
