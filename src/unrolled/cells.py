"""Recurrent cells: one time step each, as `flax.nnx` modules (chapters 6 and 7).

A cell is any module with two methods: `initialize_carry(input_shape, rngs)` makes the state before
the first step, and `cell(carry, inputs)` returns `(new_carry, output)` for one step. `unrolled.RNN`
runs it over a sequence. Names, arguments, defaults and parameter paths are those of `flax.nnx`, so
weights move between the two by name.

Dtypes: parameters are made in `param_dtype`. A step computes in `dtype`, or, if that is None, in
the common dtype of inputs and parameters, and its output has that dtype. The carry is as precise as
the more precise of `param_dtype` and `dtype`: with `dtype=jnp.bfloat16` and float32 parameters it
accumulates in float32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, update_wrapper
from types import MappingProxyType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as default_promote_dtype
from flax.nnx.spmd import get_var_pspec

from unrolled._checks import (
    INITIALIZER,
    as_function,
    broadcasts,
    check_arguments,
    check_drawn,
    check_key,
    check_metadata,
    check_shape,
    describe,
    floating_dtype,
    kind_of,
    real_number,
    shape_of,
    whole_number,
)
from unrolled.scan import Carry, Gates, Recurrence, Weights, recurrence_of

Initializer = Callable[..., jax.Array]
NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def modified_orthogonal(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Draw an orthogonal matrix in full precision and cast it, since QR knows no half precision.

    Args:
      key: a JAX random key.
      shape: the shape of the matrix; its last axis counts the columns.
      dtype: any floating dtype, bfloat16 and float16 included.

    Returns:
      An array of that shape and dtype, with orthonormal rows or columns, whichever are fewer.

    From:
      Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
      networks", ICLR 2014; the name is that of `flax.nnx.nn.recurrent`.

    Example:
      >>> kernel = modified_orthogonal(jax.random.key(0), (3, 3))
      >>> bool(jnp.allclose(kernel @ kernel.T, jnp.eye(3), atol=1e-5))
      True
    """
    shape, dtype = _check_draw(key, shape, dtype)
    return nnx.initializers.orthogonal()(key, shape).astype(dtype)


def orthogonal_in_any_dtype(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Draw an orthogonal matrix in `dtype`, or in full precision where QR cannot use `dtype`.

    With float32 and float64 these are the bits of `flax.nnx.initializers.orthogonal()`, the default
    of Flax's cells; with bfloat16 and float16, where that fails, those of `modified_orthogonal`.

    Args:
      key: a JAX random key.
      shape: the shape of the matrix; its last axis counts the columns.
      dtype: any floating dtype.

    Returns:
      An array of that shape and dtype, with orthonormal rows or columns, whichever are fewer.

    Example:
      >>> orthogonal_in_any_dtype(jax.random.key(0), (2, 6), jnp.bfloat16).shape
      (2, 6)
    """
    shape, dtype = _check_draw(key, shape, dtype)
    if jnp.finfo(dtype).bits < 32:
        return modified_orthogonal(key, shape, dtype)
    return nnx.initializers.orthogonal()(key, shape, dtype)


def orthogonal_per_gate(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Draw one orthogonal block for each gate of a fused recurrent kernel.

    Flax's default makes the whole (hidden, gates · hidden) matrix orthogonal, which leaves each
    gate's own (hidden, hidden) block a contraction. With this initialiser each block is orthogonal.

    Args:
      key: a JAX random key.
      shape: (hidden, gates · hidden).
      dtype: any floating dtype.

    Returns:
      An array of that shape and dtype.

    Raises:
      ValueError: a number of columns that is not a multiple of the number of rows.

    Example:
      >>> cell = GRUCell(3, 4, recurrent_kernel_init=orthogonal_per_gate, rngs=nnx.Rngs(0))
      >>> reset_block = cell.dense_h.kernel[...][:, :4]
      >>> bool(jnp.allclose(reset_block @ reset_block.T, jnp.eye(4), atol=1e-5))
      True
    """
    shape, dtype = _check_draw(key, shape, dtype)
    hidden, columns = shape if len(shape) == 2 else (0, 0)
    if not hidden or columns % hidden:
        raise ValueError(
            f"orthogonal_per_gate got the shape {tuple(shape)}; expected (hidden, gates * hidden), "
            "as a recurrent kernel has."
        )
    blocks = [
        orthogonal_in_any_dtype(gate_key, (hidden, hidden), dtype)
        for gate_key in jax.random.split(key, columns // hidden)
    ]
    return jnp.concatenate(blocks, axis=-1)  # (hidden, gates * hidden)


def _check_draw(key: Any, shape: Any, dtype: Any) -> tuple[tuple[int, ...], Any]:
    """Return shape and dtype of a matrix to be drawn, or say what is wrong with them or the key."""
    check_key(key)
    if not isinstance(shape, (tuple, list)) or len(shape) < 2:
        raise ValueError(f"shape is {shape!r}; expected two sizes at least, (rows, columns).")
    sizes = tuple(whole_number("a size of shape", size, least=1) for size in shape)
    return sizes, floating_dtype("dtype", dtype)


class _QuietMethod:
    """A method that `nnx.tabulate`, which traces the functions of a module, leaves alone."""

    def __init__(self, function: Callable[..., Any]):
        update_wrapper(self, function)

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else MethodType(self.__wrapped__, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


class RNNCellBase(nnx.Module):
    """What `RNN` needs to know of a cell: subclass it to write your own.

    Example, a leaky sum:
      >>> class Leaky(RNNCellBase):
      ...     def __call__(self, carry, inputs):
      ...         carry = 0.5 * carry + inputs
      ...         return carry, carry
      ...
      ...     def initialize_carry(self, input_shape, rngs=None, carry_init=None):
      ...         return jnp.zeros(input_shape)
      >>> from unrolled.layers import RNN
      >>> RNN(Leaky())(jnp.ones((3, 1)))[:, 0]
      Array([1.  , 1.5 , 1.75], dtype=float32)
    """

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        """Advance by one step.

        Args:
          carry: the state before this step.
          inputs: the input at this step, shape (*batch, *features).

        Returns:
          `(new_carry, output)`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(carry, inputs)")

    @_QuietMethod
    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """Make the state before the first step.

        Args:
          input_shape: shape of the input of one step, (*batch, *features).
          rngs: where random keys come from, if the carry needs any.
          carry_init: an initialiser `(key, shape, dtype) -> array` for this carry.

        Returns:
          The carry: any pytree of arrays whose first dimensions are the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define initialize_carry")

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features, one unless a cell says otherwise."""
        return 1

    def __getstate__(self) -> dict[str, Any]:
        """Pickle jitted functions such as `jax.nn.sigmoid` by their public name."""
        return {name: _picklable(value) for name, value in super().__getstate__().items()}


class _FeatureCell(RNNCellBase):
    """What the four cells share: options, initial carry, checks of a step's arguments."""

    carry_names: tuple[str, ...] = ("h",)

    def _set_options(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation_fn: Callable[[jax.Array], jax.Array],
        dtype: Any,
        param_dtype: Any,
        carry_init: Initializer | None,
        promote_dtype: Callable[..., Any],
        keep_rngs: bool,
        rngs: nnx.Rngs,
    ) -> None:
        name = type(self).__name__
        for option, size in {
            "in_features": in_features,
            "hidden_features": hidden_features,
        }.items():
            if isinstance(size, bool) or not hasattr(size, "__index__") or np.ndim(size):
                raise TypeError(
                    f"{name}: {option} is {size!r}; expected a whole number, such as 8."
                )
            if size < 1:
                raise ValueError(f"{name}: {option} is {size}; expected at least 1.")
        if not hasattr(rngs, "params"):
            raise TypeError(
                f"{name}: rngs is {rngs!r}; expected the source of the initial weights, "
                "nnx.Rngs(0) for example."
            )
        floating_dtype(f"{name}: param_dtype", param_dtype)
        if dtype is not None:
            floating_dtype(f"{name}: dtype", dtype)
        as_function(f"{name}: activation_fn", activation_fn, "(array)", "nnx.tanh")
        promotion = "(arrays, dtype)", "flax.nnx.nn.dtypes.promote_dtype"
        as_function(f"{name}: promote_dtype", promote_dtype, *promotion)
        if carry_init is not None:
            as_function(f"{name}: carry_init", carry_init, *INITIALIZER)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.activation_fn = activation_fn
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.carry_init = carry_init
        self.promote_dtype = promote_dtype
        self.rngs = nnx.data(rngs.carry.fork() if keep_rngs else None)

    def _linear_layers(
        self,
        *,
        kernel_init: Initializer,
        recurrent_kernel_init: Initializer,
        bias_init: Initializer,
        kernel_metadata: Mapping[str, Any],
        recurrent_kernel_metadata: Mapping[str, Any],
        bias_metadata: Mapping[str, Any],
        rngs: nnx.Rngs,
    ) -> tuple[Callable[..., nnx.Linear], Callable[..., nnx.Linear]]:
        """Return two makers of linear layers: one for the input, one for the hidden state."""
        name = type(self).__name__
        initializers = {
            "kernel_init": kernel_init,
            "recurrent_kernel_init": recurrent_kernel_init,
            "bias_init": bias_init,
        }
        for option, initializer in initializers.items():
            as_function(f"{name}: {option}", initializer, *INITIALIZER)
        check_metadata(f"{name}: kernel_metadata", kernel_metadata)
        check_metadata(f"{name}: recurrent_kernel_metadata", recurrent_kernel_metadata)
        check_metadata(f"{name}: bias_metadata", bias_metadata)

        def linear(size, option, metadata, out_features, use_bias=True) -> nnx.Linear:
            try:
                layer = nnx.Linear(
                    size,
                    out_features,
                    use_bias=use_bias,
                    kernel_init=initializers[option],
                    bias_init=bias_init,
                    kernel_metadata=metadata,
                    bias_metadata=bias_metadata,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    promote_dtype=self.promote_dtype,
                    rngs=rngs,
                )
            except TypeError:
                check_arguments(f"{name}: {option}", initializers[option], *INITIALIZER)
                check_arguments(f"{name}: bias_init", bias_init, *INITIALIZER)
                raise
            check_drawn(f"{name}: {option}", layer.kernel.get_value(), (size, out_features))
            if use_bias:
                check_drawn(f"{name}: bias_init", layer.bias.get_value(), (out_features,))
            return layer

        return (
            partial(linear, self.in_features, "kernel_init", kernel_metadata),
            partial(
                linear, self.hidden_features, "recurrent_kernel_init", recurrent_kernel_metadata
            ),
        )

    @_QuietMethod
    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """Make the carry before the first step: zeros, unless an initialiser says otherwise.

        Args:
          input_shape: shape of the input of one step, (*batch, in_features).
          rngs: where keys come from: `nnx.Rngs` (its stream `carry`), or one stream. Zeros and
            ones need none, and draw none.
          carry_init: an initialiser `(key, shape, dtype) -> array`; None takes the cell's own
            `carry_init`, and zeros if it has none.

        Returns:
          The hidden state `h` of shape (*batch, hidden_features); for an LSTM the pair `(c, h)`.

        Raises:
          TypeError: an input_shape, rngs or carry_init of another kind.
          ValueError: a negative size, or a random initialiser without rngs.

        Example:
          >>> cell = GRUCell(3, 4, rngs=nnx.Rngs(0))
          >>> cell.initialize_carry((2, 3)).shape
          (2, 4)
        """
        name = type(self).__name__
        check_shape(f"{name}: input_shape", input_shape)
        if carry_init is not None:
            as_function(f"{name}: carry_init", carry_init, *INITIALIZER)
        parts = tuple(self._draw(input_shape, rngs, carry_init) for _ in self.carry_names)
        return parts if len(parts) > 1 else parts[0]

    def _draw(self, input_shape, rngs, carry_init) -> jax.Array:
        carry_init = carry_init or self.carry_init or jax.nn.initializers.zeros
        rngs = self.rngs if rngs is None else rngs
        if carry_init in (jax.nn.initializers.zeros, jax.nn.initializers.ones):
            key = None
        elif callable(rngs):
            key = rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs()
        elif rngs is not None:
            raise TypeError(
                f"{type(self).__name__}: rngs is {describe(rngs)}; expected nnx.Rngs(0) for "
                "example, or one stream of it."
            )
        else:
            name = getattr(carry_init, "__qualname__", type(carry_init).__name__).split(".")[0]
            raise ValueError(
                f"{type(self).__name__}: the initial carry is drawn by {name}, which needs a "
                "random key: pass rngs=nnx.Rngs(0) to initialize_carry, or to the RNN."
            )
        shape = (*input_shape[:-1], self.hidden_features)
        dtype = (
            self.param_dtype if self.dtype is None else self._wider(self.param_dtype, self.dtype)
        )
        option = f"{type(self).__name__}: carry_init"
        try:
            drawn = carry_init(key, shape, dtype)
        except TypeError:
            check_arguments(option, carry_init, *INITIALIZER)
            raise
        found = getattr(drawn, "shape", ())
        if found != shape and not (broadcasts(found, shape) and found[-1:] == shape[-1:]):
            check_drawn(option, drawn, shape)
        return drawn

    @staticmethod
    def _wider(*arrays_or_dtypes) -> Any:
        return jnp.result_type(*arrays_or_dtypes)

    def _recurrence(
        self,
        input_layers: Sequence[nnx.Linear],
        recurrent_layers: Sequence[nnx.Linear],
        *,
        num_gates: int,
        added: tuple[jax.Array | None, ...] | None = None,
    ) -> Recurrence | None:
        """Hand the layers' parameters and this cell's gate to the fast scan.

        None if a layer is not the plain `nnx.Linear` that this cell was made with, or if a subclass
        says anew what a step is: then only `__call__` knows what to compute.
        """
        plain = all(map(self._is_plain, [*input_layers, *recurrent_layers]))
        if not plain or _defining_class(self, "__call__") is not _defining_class(
            self, "recurrence"
        ):
            return None

        gates_of_a_layer = num_gates // len(input_layers)

        def split(parameters):
            parts = []
            for parameter in parameters:
                if parameter is None:
                    parts += [None] * gates_of_a_layer
                else:
                    gates = jnp.split(parameter[...], gates_of_a_layer, -1)
                    parts += [_as_declared(gate, parameter) for gate in gates]
            return tuple(parts)

        weights = Weights(
            split(layer.kernel for layer in input_layers),
            split(layer.bias for layer in input_layers),
            split(layer.kernel for layer in recurrent_layers),
            added or split(layer.bias for layer in recurrent_layers),
        )
        read = getattr(self, "read", None)
        if read and _defining_class(self, "read") is not _defining_class(self, "gate"):
            read = None  # a gate of one's own may compute h in another way
        return Recurrence(self.gate, weights, self.dtype, read)

    def _is_plain(self, layer: Any) -> bool:
        """Whether a layer multiplies by its kernel and adds its bias, and nothing else."""
        return (
            type(layer) is nnx.Linear
            and layer.dtype == self.dtype
            and layer.precision is None
            and layer.preferred_element_type is None
            and layer.promote_dtype is default_promote_dtype
            and layer.dot_general is jax.lax.dot_general
        )

    def _output(self, hidden: jax.Array) -> jax.Array:
        """The output of a step: its new hidden state, in the dtype of the computation."""
        return hidden if self.dtype is None else hidden.astype(self.dtype)

    def _check_step(self, carry: Any, inputs: Any) -> None:
        """Raise unless `inputs` and `carry` fit this cell and each other."""
        name = type(self).__name__
        shape = shape_of(f"{name}: inputs", inputs)
        if not shape or shape[-1] != self.in_features:
            raise ValueError(
                f"{name}: inputs of one step have shape {shape}; expected (*batch, "
                f"{self.in_features}), since the cell was made with in_features="
                f"{self.in_features}."
            )
        if jnp.iscomplexobj(inputs):
            raise TypeError(f"{name}: inputs are complex numbers; expected real ones.")
        wanted = (*shape[:-1], self.hidden_features)
        mend = f"cell.initialize_carry({shape}) makes a fitting one."
        names = self.carry_names
        is_pair = isinstance(carry, (tuple, list)) and len(carry) == len(names)
        given = getattr(carry, "_fields", names)
        if len(names) > 1 and not (is_pair and given == names):
            named = "" if given == names else f" with the names {', '.join(given)}"
            raise ValueError(
                f"{name}: the carry is {kind_of(carry)}{named}; expected the pair "
                f"({', '.join(names)}), each of shape {wanted}; {mend}"
            )
        for part_name, part in zip(names, carry if len(names) > 1 else (carry,)):
            if isinstance(part, (tuple, list, dict)):
                raise ValueError(
                    f"{name}: the carry's {part_name} is {kind_of(part)}; expected one "
                    f"array of shape {wanted}; {mend}"
                )
            part_shape = shape_of(f"{name}: the carry's {part_name}", part)
            if not (broadcasts(part_shape, wanted) and part_shape[-1:] == wanted[-1:]):
                raise ValueError(
                    f"{name}: the carry's {part_name} has shape {part_shape}; expected "
                    f"{wanted} for inputs of shape {shape}; {mend}"
                )
            if jnp.iscomplexobj(part):
                raise TypeError(
                    f"{name}: the carry's {part_name} is of complex numbers; expected real ones; "
                    f"{mend}"
                )


def _as_declared(gate: jax.Array, parameter: nnx.Variable) -> jax.Array:
    """Cut a gate's share of a parameter between devices as the parameter's metadata says.

    A fused parameter is cut without regard to where a gate begins. The shares are brought into
    place here, once for a whole sequence, so that the loop over time need not do it in every step.
    """
    spec = get_var_pspec(parameter) if isinstance(parameter, nnx.Variable) else None
    mesh = jax.sharding.get_abstract_mesh()
    if not spec or not mesh.are_all_axes_auto:
        return gate
    for size, names in zip(gate.shape, spec):
        names = names if isinstance(names, tuple) else (names,)
        devices = math.prod(mesh.shape.get(name, 0) for name in names if name is not None)
        if not devices or size % devices:
            return gate  # declared for another mesh, or a gate is too narrow to be cut evenly
    return jax.lax.with_sharding_constraint(gate, spec)


class SimpleCell(_FeatureCell):
    """The simple recurrent cell: a layer that also sees its own last output.

    ::

        h' = tanh(W_i x + b_i + W_h h)
        h' = tanh(W_i x + b_i + W_h h + h)    with residual

    Args:
      in_features: number of input features.
      hidden_features: number of hidden units.
      dtype: dtype of the computation; unlike the other cells' default it is float32, as in Flax.
        None takes the common dtype of inputs and parameters.
      param_dtype: dtype of the parameters.
      carry_init: initialiser of the carry; None means zeros.
      residual: add the last hidden state before the activation.
      activation_fn: tanh, or another function element by element.
      kernel_init: initialiser of the input kernel `dense_i.kernel`, (in_features, hidden_features).
      recurrent_kernel_init: initialiser of `dense_h.kernel`, (hidden_features, hidden_features).
      bias_init: initialiser of `dense_i.bias`, (hidden_features,).
      promote_dtype: casts `(inputs, kernel, bias)` before the matrix product.
      keep_rngs: keep a fork of the stream `rngs.carry` for random carries.
      rngs: where the initial weights come from.
      kernel_metadata: metadata of the input kernel, such as its sharding.
      recurrent_kernel_metadata: metadata of the recurrent kernel.
      bias_metadata: metadata of the bias.

    From:
      Elman, "Finding structure in time", Cognitive Science, 1990; the API of
      `flax.nnx.SimpleCell`.

    Example:
      >>> cell = SimpleCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0))
      >>> carry = cell.initialize_carry((2, 3))
      >>> carry, output = cell(carry, jnp.ones((2, 3)))
      >>> output.shape
      (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        residual: bool = False,
        activation_fn: Callable[..., Any] = nnx.tanh,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        recurrent_kernel_init: Initializer = orthogonal_in_any_dtype,
        bias_init: Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        promote_dtype: Callable[..., Any] = default_promote_dtype,
        keep_rngs: bool = False,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        self._set_options(
            in_features,
            hidden_features,
            activation_fn=activation_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            promote_dtype=promote_dtype,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.residual = residual
        input_linear, recurrent_linear = self._linear_layers(
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        # The two are added, so one bias is enough. Flax draws the recurrent kernel first.
        self.dense_h = recurrent_linear(hidden_features, use_bias=False)
        self.dense_i = input_linear(hidden_features)

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Advance by one step.

        Args:
          carry: the hidden state, shape (*batch, hidden_features).
          inputs: shape (*batch, in_features).

        Returns:
          `(new_carry, output)`, both the new hidden state, shape (*batch, hidden_features).

        Raises:
          ValueError: inputs or a carry of the wrong shape.
        """
        self._check_step(carry, inputs)
        (hidden,) = self.gate((carry,), (self.dense_i(inputs),), (self.dense_h(carry),))
        return hidden.astype(self._wider(hidden, carry)), self._output(hidden)

    @_QuietMethod
    def gate(self, carry: Carry, projected: Gates, recurrent: Gates) -> Carry:
        """The equation above, from the input's and the state's share; see `scan.Recurrence`."""
        total = projected[0] + recurrent[0]  # (*batch, hidden)
        if self.residual:
            total = total + carry[0]
        return (self.activation_fn(total),)

    @_QuietMethod
    def recurrence(self) -> Recurrence | None:
        """This cell for the fast scan, or None if its layers were exchanged for others."""
        return self._recurrence([self.dense_i], [self.dense_h], num_gates=1)


class GRUCell(_FeatureCell):
    """The gated recurrent unit.

    ::

        r = σ(W_ir x + b_ir + W_hr h)                        reset gate
        z = σ(W_iz x + b_iz + W_hz h)                        update gate
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))        candidate, reset_after=True
        n = tanh(W_in x + b_in + W_hn (r * h))               candidate, reset_after=False
        h' = (1 - z) * n + z * h

    Here the update gate *keeps*: z = 1 holds the old state. `flax.nnx.GRUCell` has no b_hn, though
    its equation shows it; its weights load by name and leave b_hn at zero.

    The three kernels on one side are stored side by side, in the order r, z, n. The default
    initialiser makes the fused recurrent matrix orthogonal, not each gate's block of it; choose
    `recurrent_kernel_init=orthogonal_per_gate` for that.

    Args:
      in_features: number of input features.
      hidden_features: number of hidden units.
      gate_fn: σ, the activation of the gates.
      activation_fn: the activation of the candidate.
      kernel_init: initialiser of `dense_i.kernel`, (in_features, 3 · hidden_features).
      recurrent_kernel_init: initialiser of `dense_h.kernel`, (hidden_features, 3 ·
        hidden_features).
      bias_init: initialiser of `dense_i.bias`, (3 · hidden_features,), and `b_hn`,
        (hidden_features,).
      dtype: dtype of the computation; None takes the common dtype of inputs and parameters.
      param_dtype: dtype of the parameters.
      carry_init: initialiser of the carry; None means zeros.
      promote_dtype: casts `(inputs, kernel, bias)` before each matrix product.
      keep_rngs: keep a fork of the stream `rngs.carry` for random carries.
      rngs: where the initial weights come from.
      kernel_metadata: metadata of the input kernel, such as its sharding.
      recurrent_kernel_metadata: metadata of the recurrent kernel.
      bias_metadata: metadata of the biases.
      reset_after: apply the reset gate after the matrix product, as Flax, torch, cuDNN and Keras
        do, or before it. Before it, b_hn would only repeat b_in, so there is none, and a step
        raises TypeError if another layer has taken the place of dense_h.

    From:
      Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
      Machine Translation", EMNLP 2014; the API of `flax.nnx.GRUCell`.

    Example:
      >>> cell = GRUCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0))
      >>> carry = cell.initialize_carry((2, 3))
      >>> carry, output = cell(carry, jnp.ones((2, 3)))
      >>> output.shape, cell.b_hn.shape
      ((2, 4), (4,))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = nnx.sigmoid,
        activation_fn: Callable[..., Any] = nnx.tanh,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        recurrent_kernel_init: Initializer = orthogonal_in_any_dtype,
        bias_init: Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        promote_dtype: Callable[..., Any] = default_promote_dtype,
        keep_rngs: bool = False,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        reset_after: bool = True,
    ):
        self._set_options(
            in_features,
            hidden_features,
            activation_fn=activation_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            promote_dtype=promote_dtype,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.gate_fn = as_function(
            f"{type(self).__name__}: gate_fn", gate_fn, "(array)", "nnx.sigmoid"
        )
        self.reset_after = reset_after
        input_linear, recurrent_linear = self._linear_layers(
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self.dense_i = input_linear(3 * hidden_features)  # r, z, n
        self.dense_h = recurrent_linear(3 * hidden_features, use_bias=False)  # r, z, n
        self.b_hn = nnx.data(None)
        if reset_after:
            # The key is folded out of the stream without advancing it: layers made after this cell
            # get the weights that they would get after Flax's cell, which has no b_hn.
            stream = rngs.params
            key = jax.random.fold_in(stream.key[...], jnp.uint32(2**32 - 1) - stream.count[...])
            self.b_hn = nnx.Param(bias_init(key, (hidden_features,), param_dtype), **bias_metadata)
            drawn = self.b_hn.get_value()
            check_drawn(f"{type(self).__name__}: bias_init", drawn, (hidden_features,))

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Advance by one step.

        Args:
          carry: the hidden state, shape (*batch, hidden_features).
          inputs: shape (*batch, in_features).

        Returns:
          `(new_carry, output)`, both the new hidden state, shape (*batch, hidden_features).

        Raises:
          ValueError: inputs or a carry of the wrong shape.
        """
        self._check_step(carry, inputs)
        hidden = jnp.asarray(carry)
        projected = jnp.split(self.dense_i(inputs), 3, -1)  # r, z, n, each (*batch, hidden)
        if self.reset_after:
            reset_h, update_h, candidate_h = jnp.split(self.dense_h(hidden), 3, -1)
            b_hn = self.b_hn[...].astype(candidate_h.dtype)
            candidate_h = candidate_h + jnp.broadcast_to(b_hn, candidate_h.shape)
        else:
            reset_h, update_h = jnp.split(self._recur(hidden, gates=slice(0, 2)), 2, -1)
            reset = self.gate_fn(projected[0] + reset_h)
            candidate_h = self._recur(reset * hidden, gates=slice(2, 3))
        (hidden,) = self.gate((hidden,), projected, (reset_h, update_h, candidate_h))
        return hidden, self._output(hidden)

    @_QuietMethod
    def gate(self, carry: Carry, projected: Gates, recurrent: Gates) -> Carry:
        """The equations above, from the inputs' and the state's share; see `scan.Recurrence`."""
        (hidden,) = carry
        reset_i, update_i, candidate_i = projected
        reset_h, update_h, candidate_h = recurrent
        if self.reset_after:
            candidate_h = self.gate_fn(reset_i + reset_h) * candidate_h
        candidate = self.activation_fn(candidate_i + candidate_h)
        update = self.gate_fn(update_i + update_h)
        return ((1 - update) * candidate + update * hidden,)

    @_QuietMethod
    def recurrence(self) -> Recurrence | None:
        """This cell for the fast scan, or None if the reset comes first or layers were changed."""
        if not self.reset_after or getattr(self.dense_h, "bias", None) is not None:
            return None
        biases = (None, None, self.b_hn[...])
        return self._recurrence([self.dense_i], [self.dense_h], num_gates=3, added=biases)

    def _recur(self, hidden: jax.Array, gates: slice) -> jax.Array:
        """Multiply by the recurrent kernels of some of the gates r, z, n."""
        if type(self.dense_h) is not nnx.Linear or self.dense_h.bias is not None:
            raise TypeError(
                f"{type(self).__name__}: with reset_after=False a step multiplies by parts of the "
                f"kernel of dense_h, which is {kind_of(self.dense_h)}; expected the nnx.Linear "
                "without a bias that the cell was made with. reset_after=True takes any layer."
            )
        size = self.hidden_features
        if not self._is_plain(self.dense_h):  # a dot_general or a precision of its own
            return self.dense_h(hidden)[..., gates.start * size : gates.stop * size]
        kernel = self.dense_h.kernel[...][:, gates.start * size : gates.stop * size]
        hidden, kernel = self.promote_dtype((hidden, kernel), dtype=self.dtype)
        return hidden @ kernel  # (*batch, number of gates * hidden)


class _LSTMBase(_FeatureCell):
    """The equations that `LSTMCell` and `OptimizedLSTMCell` share."""

    carry_names = ("c", "h")

    @_QuietMethod
    def gate(self, carry: Carry, projected: Gates, recurrent: Gates) -> Carry:
        """The equations of a step, from the inputs' and the state's share of i, f, g and o."""
        memory, _ = carry
        input_i, forget_i, candidate_i, _ = projected
        input_h, forget_h, candidate_h, _ = recurrent
        input_gate = self.gate_fn(input_i + input_h)
        forget_gate = self.gate_fn(forget_i + forget_h)
        candidate = self.activation_fn(candidate_i + candidate_h)
        memory = forget_gate * memory + input_gate * candidate
        return memory, self.read((memory,), projected, recurrent)

    @_QuietMethod
    def read(self, memory: Carry, projected: Gates, recurrent: Gates) -> jax.Array:
        """The last two equations: what the output gate shows of the new memory."""
        (memory,) = memory
        output_gate = self.gate_fn(projected[-1] + recurrent[-1])
        return output_gate * self.activation_fn(memory)


class LSTMCell(_LSTMBase):
    """Long short-term memory, with a layer of its own for every arrow of the diagram.

    ::

        i = σ(W_ii x + W_hi h + b_hi)          input gate
        f = σ(W_if x + W_hf h + b_hf)          forget gate
        g = tanh(W_ig x + W_hg h + b_hg)       candidate
        o = σ(W_io x + W_ho h + b_ho)          output gate
        c' = f * c + i * g                     memory
        h' = o * tanh(c')                      hidden state

    `OptimizedLSTMCell` computes the same with two matrix products instead of eight;
    `unrolled.convert` moves weights between them.

    Args:
      in_features: number of input features.
      hidden_features: number of hidden units.
      gate_fn: σ, the activation of the gates.
      activation_fn: the activation of the candidate and of the memory.
      kernel_init: initialiser of the kernels of `ii, if_, ig, io`, (in_features, hidden_features).
      recurrent_kernel_init: initialiser of the kernels of `hi, hf, hg, ho`, (hidden_features,
        hidden_features).
      bias_init: initialiser of the biases of `hi, hf, hg, ho`, (hidden_features,).
      dtype: dtype of the computation; None takes the common dtype of inputs and parameters.
      param_dtype: dtype of the parameters.
      carry_init: initialiser of c and h; None means zeros.
      promote_dtype: casts `(inputs, kernel, bias)` before each matrix product.
      keep_rngs: keep a fork of the stream `rngs.carry` for random carries.
      rngs: where the initial weights come from.
      kernel_metadata: metadata of the input kernels, such as their sharding.
      recurrent_kernel_metadata: metadata of the recurrent kernels.
      bias_metadata: metadata of the biases.
      forget_bias: added to the forget gate's initial bias. Flax has 0, Keras 1; with 1 the cell
        begins by remembering.

    From:
      Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation, 1997; the forget
      gate is that of Gers et al., "Learning to forget", 2000; the API of `flax.nnx.LSTMCell`.

    Example:
      >>> cell = LSTMCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0))
      >>> carry = cell.initialize_carry((2, 3))
      >>> (c, h), output = cell(carry, jnp.ones((2, 3)))
      >>> c.shape, h.shape, output.shape
      ((2, 4), (2, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = nnx.sigmoid,
        activation_fn: Callable[..., Any] = nnx.tanh,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        recurrent_kernel_init: Initializer = modified_orthogonal,
        bias_init: Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        promote_dtype: Callable[..., Any] = default_promote_dtype,
        keep_rngs: bool = False,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        forget_bias: float = 0.0,
    ):
        self._set_options(
            in_features,
            hidden_features,
            activation_fn=activation_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            promote_dtype=promote_dtype,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.gate_fn = as_function(
            f"{type(self).__name__}: gate_fn", gate_fn, "(array)", "nnx.sigmoid"
        )
        input_linear, recurrent_linear = self._linear_layers(
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        # An input and a recurrent layer are added, so one bias for the two is enough.
        self.ii = input_linear(hidden_features, use_bias=False)
        self.if_ = input_linear(hidden_features, use_bias=False)
        self.ig = input_linear(hidden_features, use_bias=False)
        self.io = input_linear(hidden_features, use_bias=False)
        self.hi = recurrent_linear(hidden_features)
        self.hf = recurrent_linear(hidden_features)
        self.hg = recurrent_linear(hidden_features)
        self.ho = recurrent_linear(hidden_features)
        forget_bias = real_number(
            f"{type(self).__name__}: forget_bias", forget_bias, "a finite number"
        )
        if forget_bias:
            self.hf.bias[...] = self.hf.bias[...] + forget_bias

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Advance by one step.

        Args:
          carry: the pair (c, h) of memory and hidden state, each (*batch, hidden_features). torch
            and Keras write (h, c).
          inputs: shape (*batch, in_features).

        Returns:
          `((c', h'), output)`; the output is h', shape (*batch, hidden_features).

        Raises:
          ValueError: inputs or a carry of the wrong shape or structure.
        """
        self._check_step(carry, inputs)
        hidden = carry[1]
        projected = self.ii(inputs), self.if_(inputs), self.ig(inputs), self.io(inputs)
        recurrent = self.hi(hidden), self.hf(hidden), self.hg(hidden), self.ho(hidden)
        memory, hidden = self.gate(carry, projected, recurrent)  # (*batch, hidden)
        return (memory, hidden), self._output(hidden)

    @_QuietMethod
    def recurrence(self) -> Recurrence | None:
        """This cell for the fast scan, or None if its layers were exchanged for others."""
        return self._recurrence(
            [self.ii, self.if_, self.ig, self.io], [self.hi, self.hf, self.hg, self.ho], num_gates=4
        )


class OptimizedLSTMCell(_LSTMBase):
    """Long short-term memory in two matrix products: the same function as `LSTMCell`, faster.

    ::

        i = σ(W_ii x + W_hi h + b_hi)          input gate
        f = σ(W_if x + W_hf h + b_hf)          forget gate
        g = tanh(W_ig x + W_hg h + b_hg)       candidate
        o = σ(W_io x + W_ho h + b_ho)          output gate
        c' = f * c + i * g                     memory
        h' = o * tanh(c')                      hidden state

    The four kernels on one side are stored side by side, in the order i, f, g, o. The default
    initialiser makes the fused recurrent matrix orthogonal, not each gate's block of it; choose
    `recurrent_kernel_init=orthogonal_per_gate` for that.

    Args:
      in_features: number of input features.
      hidden_features: number of hidden units.
      gate_fn: σ, the activation of the gates.
      activation_fn: the activation of the candidate and of the memory.
      kernel_init: initialiser of `dense_i.kernel`, (in_features, 4 · hidden_features).
      recurrent_kernel_init: initialiser of `dense_h.kernel`, (hidden_features, 4 ·
        hidden_features).
      bias_init: initialiser of `dense_h.bias`, (4 · hidden_features,).
      dtype: dtype of the computation; None takes the common dtype of inputs and parameters.
      param_dtype: dtype of the parameters.
      carry_init: initialiser of c and h; None means zeros.
      promote_dtype: casts `(inputs, kernel, bias)` before each matrix product.
      keep_rngs: keep a fork of the stream `rngs.carry` for random carries.
      rngs: where the initial weights come from.
      kernel_metadata: metadata of the input kernel, such as its sharding.
      recurrent_kernel_metadata: metadata of the recurrent kernel.
      bias_metadata: metadata of the bias.
      forget_bias: added to the forget gate's initial bias. Flax has 0, Keras 1; with 1 the cell
        begins by remembering.

    From:
      Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation, 1997; the API of
      `flax.nnx.OptimizedLSTMCell`.

    Example:
      >>> cell = OptimizedLSTMCell(3, 4, forget_bias=1.0, rngs=nnx.Rngs(0))
      >>> carry = cell.initialize_carry((2, 3))
      >>> (c, h), output = cell(carry, jnp.ones((2, 3)))
      >>> c.shape, h.shape, output.shape
      ((2, 4), (2, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = nnx.sigmoid,
        activation_fn: Callable[..., Any] = nnx.tanh,
        kernel_init: Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        recurrent_kernel_init: Initializer = orthogonal_in_any_dtype,
        bias_init: Initializer = nnx.initializers.zeros_init(),  # noqa: B008
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        promote_dtype: Callable[..., Any] = default_promote_dtype,
        keep_rngs: bool = False,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        forget_bias: float = 0.0,
    ):
        self._set_options(
            in_features,
            hidden_features,
            activation_fn=activation_fn,
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            promote_dtype=promote_dtype,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.gate_fn = as_function(
            f"{type(self).__name__}: gate_fn", gate_fn, "(array)", "nnx.sigmoid"
        )
        input_linear, recurrent_linear = self._linear_layers(
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        # The two are added, so one bias is enough.
        self.dense_i = input_linear(4 * hidden_features, use_bias=False)  # i, f, g, o
        self.dense_h = recurrent_linear(4 * hidden_features)  # i, f, g, o
        forget_bias = real_number(
            f"{type(self).__name__}: forget_bias", forget_bias, "a finite number"
        )
        if forget_bias:
            forget_gate = slice(hidden_features, 2 * hidden_features)
            self.dense_h.bias[...] = self.dense_h.bias[...].at[forget_gate].add(forget_bias)

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], inputs: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Advance by one step.

        Args:
          carry: the pair (c, h) of memory and hidden state, each (*batch, hidden_features). torch
            and Keras write (h, c).
          inputs: shape (*batch, in_features).

        Returns:
          `((c', h'), output)`; the output is h', shape (*batch, hidden_features).

        Raises:
          ValueError: inputs or a carry of the wrong shape or structure.
        """
        self._check_step(carry, inputs)
        projected = jnp.split(self.dense_i(inputs), 4, -1)  # i, f, g, o, each (*batch, hidden)
        recurrent = jnp.split(self.dense_h(carry[1]), 4, -1)
        memory, hidden = self.gate(carry, projected, recurrent)
        return (memory, hidden), self._output(hidden)

    @_QuietMethod
    def recurrence(self) -> Recurrence | None:
        """This cell for the fast scan, or None if its layers were exchanged for others."""
        return self._recurrence([self.dense_i], [self.dense_h], num_gates=4)


class LearnedCarry(RNNCellBase):
    """Wrap a cell so that its initial carry is a parameter, learned like any other.

    ::

        carry_0[b] = θ    the same for every sequence b

    Args:
      cell: the cell to wrap; a step is its step.
      input_shape: shape of one input without batch; None takes (cell.in_features,).
      carry_init: initialiser `(key, shape, dtype) -> array` of θ; None takes the cell's own.
      rngs: where a random initialiser gets its keys (the stream `carry`).

    Raises:
      TypeError: something that is not a cell.
      ValueError: a random initialiser without rngs.

    Example:
      >>> from unrolled.layers import RNN
      >>> rnn = RNN(LearnedCarry(GRUCell(3, 4, rngs=nnx.Rngs(0))))
      >>> rnn(jnp.ones((2, 5, 3))).shape, rnn.cell.initial.shape
      ((2, 5, 4), (4,))
    """

    def __init__(
        self,
        cell: Any,
        *,
        input_shape: tuple[int, ...] | None = None,
        carry_init: Initializer | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ):
        if isinstance(cell, type) or not (callable(cell) and hasattr(cell, "initialize_carry")):
            raise TypeError(
                f"LearnedCarry got {describe(cell)}; expected a cell to wrap, such as "
                "GRUCell(in_features, hidden_features, rngs=nnx.Rngs(0))."
            )
        self.cell = cell
        if input_shape is None:
            if not hasattr(cell, "in_features"):
                raise ValueError(
                    f"{kind_of(cell)} does not say its in_features; expected input_shape, "
                    "the shape of one input without batch."
                )
            input_shape = (cell.in_features,)
        check_shape("LearnedCarry: input_shape", input_shape)
        if carry_init is not None:
            as_function("LearnedCarry: carry_init", carry_init, *INITIALIZER)
        own = () if carry_init is None else (carry_init,)
        carry = cell.initialize_carry(input_shape, rngs, *own)
        self.initial = nnx.Param(carry)

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
        """Advance the wrapped cell by one step; see its `__call__`."""
        return self.cell(carry, inputs)

    @_QuietMethod
    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """Repeat the learned carry for every sequence of the batch.

        Args:
          input_shape: shape of the input of one step, (*batch, *features).
          rngs: not used, since the carry is a parameter.
          carry_init: an initialiser that replaces the learned carry in this call.

        Returns:
          The wrapped cell's carry.
        """
        check_shape("LearnedCarry: input_shape", input_shape)
        if carry_init is not None:
            return self.cell.initialize_carry(input_shape, rngs, carry_init)
        batch_shape = tuple(input_shape[: len(input_shape) - self.num_feature_axes])

        def repeat(part):
            return jnp.broadcast_to(part, batch_shape + part.shape)

        return jax.tree.map(repeat, self.initial.get_value())

    @_QuietMethod
    def recurrence(self) -> Recurrence | None:
        """The wrapped cell for the fast scan, or None if it has none."""
        return recurrence_of(self.cell) if type(self) is LearnedCarry else None

    @property
    def num_feature_axes(self) -> int:
        """As many as the wrapped cell's."""
        return self.cell.num_feature_axes


def _defining_class(instance: Any, name: str) -> type:
    """The class that an instance takes its method of this name from."""
    return next(cls for cls in type(instance).__mro__ if name in vars(cls))


class _PublicFunction:
    """Stands for a function in a pickle, which looks it up again by module and name."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __reduce__(self):
        return _public_function, (self.module, self.name)


def _public_function(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)


def _picklable(value: Any) -> Any:
    for module in ("jax.nn", "jax.numpy"):
        name = getattr(value, "__name__", None)
        if callable(value) and name and getattr(sys.modules[module], name, None) is value:
            return _PublicFunction(module, name)
    return value
