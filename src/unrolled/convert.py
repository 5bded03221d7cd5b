"""Weights from and to other libraries: the functional GRU, torch, Keras, Flax linen and Flax nnx.

A conversion is exact: the converted model computes the same function with the same gradients. What
libraries disagree on is the order of the gates, which side carries a bias, whether the reset gate
acts before or after the matrix product, and which way the update gate turns (chapter 6 tabulates
it). Everything passes through one form, the dict of a cell's parameters by path that
`flax.nnx` uses. torch and Keras need not be installed: their layers are only read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled._checks import describe, kind_of, shape_of
from unrolled.cells import GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell, _defining_class
from unrolled.gru import PARAMETER_SHAPES
from unrolled.layers import RNN, Bidirectional, StackedRNN

Weights = dict[str, np.ndarray]
CELLS = (SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell)
# How a Bidirectional merges unless told otherwise, ours and Flax's.
CONCATENATES = tuple(
    inspect.signature(kind.__init__).parameters["merge_fn"].default
    for kind in (Bidirectional, nnx.Bidirectional)
)


# The functional GRU of chapter 2


def gru_from_functional(params: Mapping[str, Any]) -> GRUCell:
    """Make a `GRUCell(reset_after=False)` that computes what `gru_step(params, ...)` computes.

    The functional update gate writes, h' = (1 - z) h + z candidate, and the cell's keeps. Since
    σ(-a) = 1 - σ(a), changing the sign of everything that feeds z turns one into the other.

    Args:
      params: `Wz, Wr, Wh` of shape (hidden, input), `Uz, Ur, Uh` of shape (hidden, hidden) and
        `bz, br, bh` of shape (hidden,).

    Returns:
      A cell with the dtype of the parameters.

    Raises:
      ValueError: a missing parameter, or a shape that does not fit.

    Example:
      >>> from unrolled.gru import gru_step, initialize_gru_params
      >>> params = initialize_gru_params(jax.random.key(0), input_dim=3, hidden_dim=4, scale=1.0)
      >>> cell, h, x = gru_from_functional(params), jnp.full(4, 0.5), jnp.ones(3)
      >>> bool(jnp.allclose(cell(h, x)[0], gru_step(params, h, x)[0], atol=1e-6))
      True
    """
    source = "the functional GRU's params"
    _check_mapping(params, source)
    sizes = dict(zip(("hidden_dim", "input_dim"), _matrix(params, "Wz", source).shape))
    w = {
        name: _weight(params, name, tuple(sizes[dim] for dim in dims), source)
        for name, dims in PARAMETER_SHAPES.items()
    }
    cell = _make(GRUCell, sizes["input_dim"], sizes["hidden_dim"], w["Wz"].dtype, reset_after=False)
    return _load(
        cell,
        {
            "dense_i.kernel": np.concatenate([w["Wr"].T, -w["Wz"].T, w["Wh"].T], 1),
            "dense_i.bias": np.concatenate([w["br"], -w["bz"], w["bh"]]),
            "dense_h.kernel": np.concatenate([w["Ur"].T, -w["Uz"].T, w["Uh"].T], 1),
        },
    )


def gru_to_functional(cell: GRUCell) -> dict[str, jax.Array]:
    """Return the functional GRU's params that compute what a `GRUCell(reset_after=False)` does.

    Args:
      cell: a GRU cell with reset_after=False and the usual activations.

    Returns:
      The dict of `gru_from_functional`, of jax arrays.

    Raises:
      TypeError: something that is not a GRU cell.
      ValueError: a cell that resets after the matrix product, or with other activations; a weight
        that is missing, has the wrong shape, or has no place in the functional GRU.

    Example:
      >>> cell = GRUCell(3, 4, reset_after=False, rngs=nnx.Rngs(0))
      >>> sorted(gru_to_functional(cell))
      ['Uh', 'Ur', 'Uz', 'Wh', 'Wr', 'Wz', 'bh', 'br', 'bz']
    """
    _check_kind(cell, (GRUCell,), "gru_to_functional")
    _check_activations(cell, "the functional GRU")
    if cell.reset_after:
        raise ValueError(
            "the cell has reset_after=True, and the functional GRU resets before the matrix "
            "product; expected a GRUCell(reset_after=False). In general no weights make the two "
            "equal."
        )
    w = _unload(cell)
    params = {}
    for name, fused in {"W": "dense_i.kernel", "U": "dense_h.kernel", "b": "dense_i.bias"}.items():
        reset, update, candidate = np.split(w[fused].T, 3)  # (3 * hidden, ...) -> (hidden, ...)
        params |= {name + "z": -update, name + "r": reset, name + "h": candidate}
    return {name: jnp.asarray(params[name]) for name in PARAMETER_SHAPES}


# LSTMCell and OptimizedLSTMCell


def to_optimized_lstm(cell: LSTMCell) -> OptimizedLSTMCell:
    """Make the `OptimizedLSTMCell` that computes what an `LSTMCell` computes.

    Args:
      cell: an `LSTMCell`; its activations and dtypes are kept.

    Returns:
      A new cell.

    Raises:
      TypeError: something that is not an LSTMCell.
      ValueError: a cell that computes more than its weights say.

    Example:
      >>> cell = LSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> to_optimized_lstm(cell).dense_h.kernel.shape
      (4, 16)
    """
    _check_kind(cell, (LSTMCell,), "to_optimized_lstm")
    return _load(_make_like(OptimizedLSTMCell, cell), _fuse_lstm(_unload(cell)))


def to_lstm(cell: OptimizedLSTMCell) -> LSTMCell:
    """Make the `LSTMCell` that computes what an `OptimizedLSTMCell` computes.

    Args:
      cell: an `OptimizedLSTMCell`; its activations and dtypes are kept.

    Returns:
      A new cell.

    Raises:
      TypeError: something that is not an OptimizedLSTMCell.
      ValueError: a cell that computes more than its weights say.

    Example:
      >>> cell = OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> to_lstm(to_optimized_lstm(to_lstm(cell))).hf.kernel.shape
      (4, 4)
    """
    _check_kind(cell, (OptimizedLSTMCell,), "to_lstm")
    return _load(_make_like(LSTMCell, cell), _split_lstm(_unload(cell)))


def _fuse_lstm(w: Weights) -> Weights:
    return {
        "dense_i.kernel": np.concatenate([w[f"{n}.kernel"] for n in ("ii", "if_", "ig", "io")], 1),
        "dense_h.kernel": np.concatenate([w[f"{n}.kernel"] for n in ("hi", "hf", "hg", "ho")], 1),
        "dense_h.bias": np.concatenate([w[f"{n}.bias"] for n in ("hi", "hf", "hg", "ho")]),
    }


def _split_lstm(w: Weights) -> Weights:
    inputs = np.split(w["dense_i.kernel"], 4, axis=1)
    kernels, biases = np.split(w["dense_h.kernel"], 4, axis=1), np.split(w["dense_h.bias"], 4)
    return (
        {f"{n}.kernel": kernel for n, kernel in zip(("ii", "if_", "ig", "io"), inputs)}
        | {f"{n}.kernel": kernel for n, kernel in zip(("hi", "hf", "hg", "ho"), kernels)}
        | {f"{n}.bias": bias for n, bias in zip(("hi", "hf", "hg", "ho"), biases)}
    )


# torch


def from_torch(module: Any) -> Any:
    """Make the layer that computes what `torch.nn.RNN`, `GRU` or `LSTM` computes.

    torch has a bias on both sides. Where both are simply added, here is their sum; the GRU's
    candidate keeps them apart, as b_in and b_hn.

    Args:
      module: the torch layer: any number of layers, one or two directions, with or without biases,
        batch_first or not; or one of torch's cells.

    Returns:
      For one layer an `RNN`, or a `Bidirectional`; for several a `StackedRNN` of these, with
      torch's dropout between them, which drops only if the module was in training; for a torch
      cell a cell. LSTMs become `OptimizedLSTMCell`s.
      Layers are time_major unless the module is batch_first, as torch is.

    Raises:
      TypeError: a module of another kind.
      ValueError: a missing weight or one of the wrong shape; an LSTM with proj_size.

    Example, without torch:
      >>> from types import SimpleNamespace
      >>> sizes = {"weight_ih_l0": (12, 3), "weight_hh_l0": (12, 4), "bias_ih_l0": 12}
      >>> state = {name: np.ones(size) for name, size in (sizes | {"bias_hh_l0": 12}).items()}
      >>> module = SimpleNamespace(
      ...     mode="GRU", input_size=3, hidden_size=4, num_layers=1, bidirectional=False, bias=True,
      ...     batch_first=True, dropout=0.0, state_dict=lambda: state)
      >>> from_torch(module)(jnp.ones((2, 5, 3))).shape
      (2, 5, 4)
    """
    cells = {"RNNCell": "RNN", "GRUCell": "GRU", "LSTMCell": "LSTM"}
    name = type(module).__name__
    state = {key: _to_numpy(value) for key, value in _torch_state(module).items()}
    if name in cells:
        mode = cells[name]
        if mode == "RNN":
            mode = f"RNN_{module.nonlinearity.upper()}"
        return _cell_from_torch(state, "", mode, module.input_size, module.hidden_size, module.bias)
    if getattr(module, "proj_size", 0):
        raise ValueError(
            f"the torch LSTM has proj_size={module.proj_size}; expected 0: the cells here have no "
            "projection of the hidden state."
        )
    directions = ("", "_reverse") if module.bidirectional else ("",)
    layers, in_features = [], module.input_size
    for index in range(module.num_layers):
        rnns = [
            RNN(
                _cell_from_torch(
                    state,
                    f"_l{index}{direction}",
                    module.mode,
                    in_features,
                    module.hidden_size,
                    module.bias,
                ),
                time_major=not module.batch_first,
            )
            for direction in directions
        ]
        layers.append(Bidirectional(*rnns) if module.bidirectional else rnns[0])
        in_features = len(directions) * module.hidden_size
    if len(layers) == 1:
        return layers[0]
    stack = StackedRNN(layers, dropout_rate=module.dropout, rngs=nnx.Rngs(0))
    if not getattr(module, "training", False):
        stack.eval()
    return stack


def to_torch(layer: Any) -> Weights:
    """Return a layer's weights as the `state_dict` of the torch layer that computes the same.

    Where torch has two biases that are simply added, the second is zero.

    Args:
      layer: an `RNN`, a `Bidirectional` of two, or a `StackedRNN` of either, with cells of one kind
        (SimpleCell with tanh or relu and no residual, GRUCell with reset_after, either LSTM); or a
        cell alone, for torch's cells.

    Returns:
      A dict of NumPy arrays in torch's names. Load it with `module.load_state_dict({name:
      torch.tensor(array) for name, array in to_torch(layer).items()})`.

    Raises:
      TypeError: a layer or cell of another kind.
      ValueError: a cell or a layer whose function torch does not have; a weight that is missing,
        has the wrong shape, or has no place in torch.

    Example:
      >>> rnn = RNN(GRUCell(3, 4, rngs=nnx.Rngs(0)))
      >>> {name: array.shape for name, array in to_torch(rnn).items()}
      {'weight_ih_l0': (12, 3), 'weight_hh_l0': (12, 4), 'bias_ih_l0': (12,), 'bias_hh_l0': (12,)}
    """
    if isinstance(layer, CELLS):
        return _cell_to_torch(layer, "")
    state, activations = {}, set()
    for index, one in enumerate(layer.layers if isinstance(layer, StackedRNN) else [layer]):
        _check_kind(one, (RNN, Bidirectional), "to_torch")
        if isinstance(one, RNN) and one.reverse:
            raise ValueError(
                "the RNN has reverse=True, and torch reads backwards only within a bidirectional "
                "layer; expected reverse=False: flip the inputs and the outputs instead."
            )
        if isinstance(one, Bidirectional):
            _check_merge(one, CONCATENATES, "torch")
        for rnn, direction in zip(_directions(one, "to_torch"), ("", "_reverse")):
            state |= _cell_to_torch(rnn.cell, f"_l{index}{direction}")
            _check_begins_with_zeros(rnn.cell, "torch")
            activations.add(rnn.cell.activation_fn)
    if len(activations) > 1:
        raise ValueError(
            "some of the layers have tanh and others relu, and a module of torch has one "
            "nonlinearity for all its layers; expected one: convert them one by one."
        )
    return state


def _torch_state(module: Any) -> Mapping[str, Any]:
    known = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
    if not hasattr(module, "state_dict") or not hasattr(module, "hidden_size"):
        raise TypeError(
            f"from_torch got {kind_of(module)}; expected one of torch.nn's {', '.join(known)}."
        )
    return module.state_dict()


def _cell_from_torch(
    state: Mapping[str, Any], suffix: str, mode: str, in_features: int, hidden: int, bias: bool
) -> Any:
    gates = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}[mode]
    source = "the torch state_dict"
    w_ih = _weight(state, f"weight_ih{suffix}", (gates * hidden, in_features), source).T
    w_hh = _weight(state, f"weight_hh{suffix}", (gates * hidden, hidden), source).T
    b_ih = b_hh = np.zeros(gates * hidden, w_ih.dtype)
    if bias:
        b_ih = _weight(state, f"bias_ih{suffix}", (gates * hidden,), source)
        b_hh = _weight(state, f"bias_hh{suffix}", (gates * hidden,), source)
    if mode == "GRU":  # r, z, n in both libraries
        cell = _make(GRUCell, in_features, hidden, w_ih.dtype)
        added = np.concatenate([b_hh[: 2 * hidden], np.zeros(hidden, b_hh.dtype)])
        biases = {"dense_i.bias": b_ih + added, "b_hn": b_hh[2 * hidden :]}
    elif mode == "LSTM":  # i, f, g, o in both libraries
        cell = _make(OptimizedLSTMCell, in_features, hidden, w_ih.dtype)
        biases = {"dense_h.bias": b_ih + b_hh}
    else:
        activation = nnx.tanh if mode == "RNN_TANH" else nnx.relu
        cell = _make(SimpleCell, in_features, hidden, w_ih.dtype, activation_fn=activation)
        biases = {"dense_i.bias": b_ih + b_hh}
    return _load(cell, {"dense_i.kernel": w_ih, "dense_h.kernel": w_hh} | biases)


def _cell_to_torch(cell: Any, suffix: str) -> Weights:
    _check_kind(cell, CELLS, "to_torch")
    _check_activations(cell, "torch", simple=(nnx.tanh, nnx.relu))
    w = _unload(cell)
    if isinstance(cell, LSTMCell):
        w = _fuse_lstm(w)
    if isinstance(cell, GRUCell):
        _check_resets_after(cell, "torch")
        b_ih, b_hh = w["dense_i.bias"], np.concatenate([0 * np.tile(w["b_hn"], 2), w["b_hn"]])
    elif isinstance(cell, SimpleCell):
        _check_no_residual(cell, "torch")
        b_ih, b_hh = w["dense_i.bias"], np.zeros_like(w["dense_i.bias"])
    else:
        b_ih, b_hh = w["dense_h.bias"], np.zeros_like(w["dense_h.bias"])
    return {
        f"weight_ih{suffix}": w["dense_i.kernel"].T,
        f"weight_hh{suffix}": w["dense_h.kernel"].T,
        f"bias_ih{suffix}": b_ih,
        f"bias_hh{suffix}": b_hh,
    }


# Keras


def from_keras(layer: Any) -> Any:
    """Make the layer that computes what Keras 3's `SimpleRNN`, `GRU` or `LSTM` computes.

    Keras returns the last output only, unless return_sequences; an `RNN` returns all of them. Its
    masks are boolean and its LSTM states are (h, c), where ours are lengths and (c, h).

    Args:
      layer: the Keras layer, built (it has been called once), with any of Keras's activations
        that `jax.nn` has too; or a `Bidirectional` of such layers with merge_mode "concat" or
        "sum".

    Returns:
      An `RNN` (reversed if the layer has go_backwards) or a `Bidirectional`.

    Raises:
      TypeError: a layer of another kind.
      ValueError: a layer that is not built yet, an activation that is not known here or is one's
        own, or a Bidirectional whose first layer reads backwards.

    Example, without Keras:
      >>> class SimpleRNN:
      ...     units, use_bias, go_backwards = 4, True, False
      ...     activation = jnp.tanh
      ...     def get_weights(self):
      ...         return [np.ones((3, 4)), np.ones((4, 4)), np.ones(4)]
      >>> from_keras(SimpleRNN())(jnp.ones((2, 5, 3))).shape
      (2, 5, 4)
    """
    name = type(layer).__name__
    if name == "Bidirectional":
        merges: dict[str, Callable[..., Any]] = {"sum": jnp.add, "concat": None}
        if layer.merge_mode not in merges:
            raise ValueError(
                f"the Keras layer has merge_mode={layer.merge_mode!r}; expected one of "
                f"{', '.join(map(repr, merges))}. Give Bidirectional a merge_fn for others."
            )
        if getattr(layer.forward_layer, "go_backwards", False):
            raise ValueError(
                "the first layer of the Keras Bidirectional has go_backwards=True; expected that "
                "the first reads forwards and the second backwards."
            )
        merge_fn = merges[layer.merge_mode]
        # Bidirectional reverses the second layer itself, so only the cells are taken over.
        rnns = [RNN(from_keras(part).cell) for part in (layer.forward_layer, layer.backward_layer)]
        return Bidirectional(*rnns, **({"merge_fn": merge_fn} if merge_fn else {}))
    if name not in ("SimpleRNN", "GRU", "LSTM"):
        raise TypeError(
            f"from_keras got a {name}; expected one of keras.layers' SimpleRNN, GRU, LSTM and "
            "Bidirectional."
        )
    arrays = [_to_numpy(array) for array in layer.get_weights()]
    wanted = ["kernel", "recurrent_kernel", "bias"][: 3 if layer.use_bias else 2]
    if len(arrays) != len(wanted):
        raise ValueError(
            f"the Keras {name} holds {len(arrays)} weights; expected {', '.join(wanted)}. A layer "
            "has its weights once it has been called, or after layer.build(input_shape)."
        )
    given, hidden, source = dict(zip(wanted, arrays)), layer.units, f"the Keras {name}"
    in_features = _matrix(given, "kernel", source).shape[0]
    gates = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}[name]
    kernel = _weight(given, "kernel", (in_features, gates * hidden), source)
    recurrent = _weight(given, "recurrent_kernel", (hidden, gates * hidden), source)
    reset_after = name == "GRU" and bool(layer.reset_after)
    bias = np.zeros((2, gates * hidden) if reset_after else gates * hidden, kernel.dtype)
    if layer.use_bias:
        bias = _weight(given, "bias", bias.shape, source)
    activations = {"activation_fn": _keras_activation(layer.activation)}
    if name != "SimpleRNN":
        activations["gate_fn"] = _keras_activation(layer.recurrent_activation)
    w = {"dense_i.kernel": kernel, "dense_h.kernel": recurrent}
    if name == "GRU":
        cell = _make(
            GRUCell, in_features, hidden, kernel.dtype, reset_after=reset_after, **activations
        )
        w = {key: _swap_gates(array) for key, array in w.items()}  # z, r, h -> r, z, n
        if reset_after:
            b_input, b_recurrent = _swap_gates(bias)
            added = np.concatenate([b_recurrent[: 2 * hidden], np.zeros(hidden, bias.dtype)])
            w |= {"dense_i.bias": b_input + added, "b_hn": b_recurrent[2 * hidden :]}
        else:
            w |= {"dense_i.bias": _swap_gates(bias)}
    elif name == "LSTM":  # i, f, c, o: the same order as here
        cell = _make(OptimizedLSTMCell, in_features, hidden, kernel.dtype, **activations)
        w |= {"dense_h.bias": bias}
    else:
        cell = _make(SimpleCell, in_features, hidden, kernel.dtype, **activations)
        w |= {"dense_i.bias": bias}
    return RNN(_load(cell, w), reverse=bool(layer.go_backwards))


def to_keras(layer: Any) -> list[np.ndarray]:
    """Return a layer's weights in the order of the Keras layer that computes the same.

    Args:
      layer: a SimpleCell, GRUCell or LSTM cell, an `RNN` with one, or a `Bidirectional` of two that
        concatenates or adds.

    Returns:
      `[kernel, recurrent_kernel, bias]`, for `layer.set_weights` of a built `SimpleRNN`, `GRU`
      (with the cell's reset_after) or `LSTM` that has the cell's activations, use_bias=True and,
      for a reversed `RNN`, go_backwards. For a `Bidirectional` those of both directions, in a row.

    Raises:
      TypeError: a layer or cell of another kind.
      ValueError: a SimpleCell with residual or a first state, which Keras does not have; a
        Bidirectional that merges otherwise; a weight that is missing, has the wrong shape, or has
        no place in Keras.

    Example:
      >>> [array.shape for array in to_keras(GRUCell(3, 4, rngs=nnx.Rngs(0)))]
      [(3, 12), (4, 12), (2, 12)]
    """
    if isinstance(layer, Bidirectional):
        _check_merge(layer, (*CONCATENATES, jnp.add), "Keras")
        return [array for rnn in _directions(layer, "to_keras") for array in to_keras(rnn)]
    cell = layer.cell if isinstance(layer, RNN) else layer
    _check_kind(cell, CELLS, "to_keras")
    if isinstance(layer, RNN):
        _check_begins_with_zeros(cell, "Keras")
    w = _unload(cell)
    if isinstance(cell, LSTMCell):
        w = _fuse_lstm(w)
    if isinstance(cell, GRUCell):
        bias = w["dense_i.bias"]
        if cell.reset_after:
            recurrent_bias = np.concatenate([0 * np.tile(w["b_hn"], 2), w["b_hn"]])
            bias = np.stack([bias, recurrent_bias])  # (2, 3 * hidden)
        return [_swap_gates(array) for array in (w["dense_i.kernel"], w["dense_h.kernel"], bias)]
    if isinstance(cell, SimpleCell):
        _check_no_residual(cell, "Keras")
        return [w["dense_i.kernel"], w["dense_h.kernel"], w["dense_i.bias"]]
    return [w["dense_i.kernel"], w["dense_h.kernel"], w["dense_h.bias"]]


def _swap_gates(array: np.ndarray) -> np.ndarray:
    """Exchange the first two of three gates along the last axis: z, r, h <-> r, z, n."""
    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)


def _keras_activation(activation: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(activation, "__name__", repr(activation))
    function = KERAS_ACTIVATIONS.get(name) or getattr(jax.nn, name, None)
    own = getattr(activation, "__module__", "").split(".")[0] not in ("keras", "jax")
    if own or function is None:
        raise ValueError(
            f"the Keras layer has {'an activation of its own,' if own else 'the activation'} "
            f"{name!r}; expected one that keras.activations and jax.nn both have, such as tanh, "
            "sigmoid or relu."
        )
    return function


def _exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def _keras_leaky_relu(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, negative_slope=0.2)


KERAS_ACTIVATIONS = {  # what jax.nn has under another name, or under the same name otherwise
    "tanh": nnx.tanh,
    "linear": jax.nn.identity,
    "softsign": jax.nn.soft_sign,
    "gelu": _exact_gelu,
    "leaky_relu": _keras_leaky_relu,
}


# Flax


def from_linen(params: Mapping[str, Any]) -> Any:
    """Make the cell that computes what a `flax.linen` cell with these params computes.

    Args:
      params: the params of a `flax.linen` SimpleCell, GRUCell, LSTMCell or OptimizedLSTMCell: the
        value of `cell.init(...)["params"]`.

    Returns:
      A cell with Flax's default activations. linen's two LSTM cells have the same params and become
      an OptimizedLSTMCell; `to_lstm` makes the other of it.

    Raises:
      ValueError: params that are of none of these cells, a missing weight, or a wrong shape.

    Example:
      >>> from flax import linen
      >>> variables = linen.GRUCell(4).init(jax.random.key(0), jnp.zeros(4), jnp.zeros(3))
      >>> from_linen(variables["params"]).hidden_features
      4
    """
    source = "the linen params"
    _check_mapping(params, source)
    flat = {
        f"{layer}.{name}": value
        for layer, leaves in params.items()
        for name, value in (leaves.items() if isinstance(leaves, Mapping) else ())
    }
    if "hr" in params or "in" in params:
        in_features, hidden = _matrix(flat, "in.kernel", source).shape

        def gates(side, name):
            size = {"i": in_features, "h": hidden}[side]
            shape = (size, hidden) if name == "kernel" else (hidden,)
            names = [f"{side}{gate}.{name}" for gate in "rzn"]
            return np.concatenate([_weight(flat, key, shape, source) for key in names], -1)

        cell = _make(GRUCell, in_features, hidden, gates("i", "kernel").dtype)
        return _load(
            cell,
            {
                "dense_i.kernel": gates("i", "kernel"),
                "dense_i.bias": gates("i", "bias"),
                "dense_h.kernel": gates("h", "kernel"),
                "b_hn": _weight(flat, "hn.bias", (hidden,), source),
            },
        )
    if "hi" in params or "if" in params:
        in_features, hidden = _matrix(flat, "ii.kernel", source).shape
        shapes = {f"i{gate}.kernel": (in_features, hidden) for gate in "ifgo"}
        shapes |= {f"h{gate}.kernel": (hidden, hidden) for gate in "ifgo"}
        shapes |= {f"h{gate}.bias": (hidden,) for gate in "ifgo"}
        w = {name: _weight(flat, name, shape, source) for name, shape in shapes.items()}
        w["if_.kernel"] = w.pop("if.kernel")
        return _load(
            _make(OptimizedLSTMCell, in_features, hidden, w["hi.kernel"].dtype), _fuse_lstm(w)
        )
    if "i" in params and "h" in params:
        in_features, hidden = _matrix(flat, "i.kernel", source).shape
        w = {
            "dense_i.kernel": _weight(flat, "i.kernel", (in_features, hidden), source),
            "dense_i.bias": _weight(flat, "i.bias", (hidden,), source),
            "dense_h.kernel": _weight(flat, "h.kernel", (hidden, hidden), source),
        }
        return _load(_make(SimpleCell, in_features, hidden, w["dense_i.kernel"].dtype), w)
    raise ValueError(
        f"{source} have the entries {sorted(params)}; expected those of flax.linen's SimpleCell "
        "(i, h), GRUCell (ir, iz, in, hr, hz, hn) or LSTMCell (ii, if, ...): "
        'variables["params"] of the cell itself.'
    )


def to_linen(cell: Any) -> dict[str, dict[str, jax.Array]]:
    """Return a cell's weights as the params of the `flax.linen` cell of the same name.

    Args:
      cell: a SimpleCell, a GRUCell with reset_after, an LSTMCell or an OptimizedLSTMCell.

    Returns:
      A nested dict for `linen_cell.apply({"params": ...}, carry, inputs)`, where `linen_cell` was
      made with the options of `cell`, such as its activations.

    Raises:
      TypeError: a cell of another kind.
      ValueError: a GRUCell(reset_after=False), which linen does not have; a weight that is missing,
        has the wrong shape, or has no place in linen.

    Example:
      >>> sorted(to_linen(SimpleCell(3, 4, rngs=nnx.Rngs(0))))
      ['h', 'i']
    """
    _check_kind(cell, CELLS, "to_linen")
    w = _unload(cell)
    if isinstance(cell, GRUCell):
        _check_resets_after(cell, "flax.linen")
        flat = {"hn.bias": w["b_hn"]}
        for name, fused in {"i": "dense_i", "h": "dense_h"}.items():
            for gate, kernel in zip("rzn", np.split(w[f"{fused}.kernel"], 3, axis=1)):
                flat[f"{name}{gate}.kernel"] = kernel
        for gate, bias in zip("rzn", np.split(w["dense_i.bias"], 3)):
            flat[f"i{gate}.bias"] = bias
    elif isinstance(cell, SimpleCell):
        flat = {name.replace("dense_", ""): array for name, array in w.items()}
    else:
        flat = w if isinstance(cell, LSTMCell) else _split_lstm(w)
        flat = {name.replace("if_", "if"): array for name, array in flat.items()}
    params: dict[str, dict[str, jax.Array]] = {}
    for path, array in flat.items():
        layer, name = path.split(".")
        params.setdefault(layer, {})[name] = jnp.asarray(array)
    return params


def from_nnx(module: Any) -> Any:
    """Make the module of this package that computes what a `flax.nnx` module computes.

    For weights alone no conversion is needed: `nnx.update(ours, nnx.state(theirs))` moves them by
    path, and leaves b_hn of a GRUCell, which Flax's has not, at zero.

    Args:
      module: a `flax.nnx` SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell, RNN or Bidirectional.

    Returns:
      The module of the same name, with the same options.

    Raises:
      TypeError: a module of another kind.

    Example:
      >>> cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
      >>> type(from_nnx(nnx.RNN(cell)).cell).__module__
      'unrolled.cells'
    """
    if isinstance(module, (nnx.RNN, nnx.Bidirectional)):
        return _rebuild(module, RNN, Bidirectional, from_nnx)
    for kind in CELLS:
        if type(module) is getattr(nnx, kind.__name__):
            cell = _make_like(kind, module)
            w = _unload(module)
            if kind is GRUCell and "b_hn" not in w:
                w["b_hn"] = np.zeros(module.hidden_features, module.param_dtype)
            return _load(cell, w)
    raise TypeError(
        f"from_nnx got {kind_of(module)} of {type(module).__module__}; expected flax.nnx's "
        "SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell, RNN or Bidirectional."
    )


def to_nnx(module: Any) -> Any:
    """Make the `flax.nnx` module that computes what a module of this package computes.

    Where sequences have lengths, Flax's layers leave other numbers at padded steps than zero.

    Args:
      module: a SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell, RNN or Bidirectional.

    Returns:
      The `flax.nnx` module of the same name, with the same options.

    Raises:
      TypeError: a module of another kind.
      ValueError: a GRUCell with reset_after=False or with a b_hn other than zero, neither of which
        Flax's cell has; a weight that is missing, has the wrong shape, or has no place in Flax.

    Example:
      >>> to_nnx(SimpleCell(3, 4, rngs=nnx.Rngs(0))).dense_h.kernel.shape
      (4, 4)
    """
    if isinstance(module, (RNN, Bidirectional)):
        return _rebuild(module, nnx.RNN, nnx.Bidirectional, to_nnx)
    cell = module
    _check_kind(cell, (*CELLS, RNN, Bidirectional), "to_nnx")
    kind = next(kind for kind in CELLS if isinstance(cell, kind))
    flax_cell = _make_like(getattr(nnx, kind.__name__), cell)
    w = _unload(cell)
    if isinstance(cell, GRUCell):
        _check_resets_after(cell, "flax.nnx")
        if "b_hn" not in _unload(flax_cell) and np.any(w.pop("b_hn")):
            raise ValueError(
                "the cell's b_hn is not zero, and flax.nnx.GRUCell has no such bias; expected "
                "zeros. flax.linen has it: to_linen(cell)."
            )
    return _load(flax_cell, w)


# What the conversions share


def _make(kind: Any, in_features: int, hidden: int, dtype: Any, **options: Any) -> Any:
    """A cell of float parameters of this dtype, to be filled with weights."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if kind is SimpleCell:
        options["dtype"] = dtype
    return kind(in_features, hidden, param_dtype=dtype, rngs=nnx.Rngs(0), **options)


def _make_like(kind: Any, cell: Any) -> Any:
    """A cell of this kind with the sizes, activations and dtypes of another."""
    names = ("gate_fn", "activation_fn", "residual", "dtype", "param_dtype", "carry_init")
    options = {name: getattr(cell, name) for name in names if hasattr(cell, name)}
    options["promote_dtype"] = cell.promote_dtype
    # The weights are loaded afterwards, and Flax's default cannot draw them in half precision.
    options["recurrent_kernel_init"] = nnx.initializers.zeros_init()
    return kind(cell.in_features, cell.hidden_features, rngs=nnx.Rngs(0), **options)


def _rebuild(module: Any, rnn: Any, bidirectional: Any, convert: Callable[[Any], Any]) -> Any:
    """A layer of the other library: its cells converted, its options those of `module`."""
    shared = {name: getattr(module, name) for name in ("time_major", "return_carry")}
    if hasattr(module, "forward_rnn"):
        rnns = (convert(module.forward_rnn), convert(module.backward_rnn))
        if module.forward_rnn.cell is module.backward_rnn.cell:
            rnns[1].cell = rnns[0].cell  # tied weights stay tied
        return bidirectional(*rnns, merge_fn=module.merge_fn, **shared)
    names = ("reverse", "keep_order", "unroll", "state_axes", "broadcast_rngs")
    options = {name: getattr(module, name) for name in names}
    return rnn(convert(module.cell), **shared, **options)


def _directions(layer: Any, function: str) -> list[RNN]:
    """The `RNN`s in a layer: itself, or the two of a `Bidirectional`."""
    rnns = [layer] if isinstance(layer, RNN) else [layer.forward_rnn, layer.backward_rnn]
    for rnn in rnns:
        _check_kind(rnn, (RNN,), function)
    return rnns


def _unload(cell: Any) -> Weights:
    """A cell's parameters by dotted path, each of the shape that its sizes ask for."""
    source = f"the {type(cell).__name__}"
    flat = nnx.to_flat_state(nnx.state(cell, nnx.Param))
    weights = {".".join(map(str, path)): _to_numpy(param.get_value()) for path, param in flat}
    shapes = _shapes(cell)
    _check_no_other(weights, shapes, source)
    weights = {name: _weight(weights, name, shape, source) for name, shape in shapes.items()}
    _check_weights_say_all(cell, {name.split(".")[0] for name in shapes if "." in name}, source)
    return weights


def _shapes(cell: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a cell's parameters, ours or Flax's."""
    inputs, hidden = cell.in_features, cell.hidden_features
    if isinstance(cell, (LSTMCell, nnx.LSTMCell)):
        shapes = {f"{name}.kernel": (inputs, hidden) for name in ("ii", "if_", "ig", "io")}
        for name in ("hi", "hf", "hg", "ho"):
            shapes |= {f"{name}.kernel": (hidden, hidden), f"{name}.bias": (hidden,)}
        return shapes
    gru = isinstance(cell, (GRUCell, nnx.GRUCell))
    simple = isinstance(cell, (SimpleCell, nnx.SimpleCell))
    gates = 1 if simple else 3 if gru else 4
    shapes = {
        "dense_i.kernel": (inputs, gates * hidden),
        "dense_h.kernel": (hidden, gates * hidden),
        "dense_i.bias" if simple or gru else "dense_h.bias": (gates * hidden,),
    }
    if gru and getattr(cell, "reset_after", hasattr(cell, "b_hn")):  # Flax's has neither
        shapes["b_hn"] = (hidden,)
    return shapes


def _load(cell: Any, weights: Weights) -> Any:
    """Fill a cell with parameters by dotted path."""
    flat = nnx.to_flat_state(nnx.state(cell, nnx.Param))
    for path, param in flat:
        array = _weight(weights, ".".join(map(str, path)), param.shape, "the weights")
        param[...] = jnp.asarray(array, param.dtype)
    nnx.update(cell, nnx.from_flat_state(list(flat)))
    return cell


def _weight(
    weights: Mapping[str, Any], name: str, shape: tuple[int, ...], source: str
) -> np.ndarray:
    """Return one weight, or say which is missing or has the wrong shape."""
    if name not in weights:
        raise ValueError(f"{source}: {name!r} is missing; found {', '.join(sorted(weights))}.")
    array = _to_numpy(weights[name])
    if array.shape != tuple(shape):
        raise ValueError(
            f"{name!r} in {source} has shape {array.shape}; expected {tuple(shape)}"
            + (". It looks transposed." if array.shape == tuple(shape)[::-1] else ".")
        )
    return array


def _check_no_other(weights: Mapping[str, Any], known: Mapping[str, Any], source: str) -> None:
    other = sorted(set(weights) - set(known))
    if other:
        raise ValueError(
            f"{source}: {', '.join(map(repr, other))} would be lost in a conversion; "
            f"expected {', '.join(map(repr, known))} alone."
        )


def _check_weights_say_all(cell: Any, layers: set[str], source: str) -> None:
    """Raise ValueError for a cell that computes something which its weights do not tell."""
    kind = next((kind for kind in CELLS if isinstance(cell, kind)), type(cell))
    for name in ("__call__", "gate", "read", "initialize_carry"):
        if hasattr(kind, name) and not issubclass(kind, _defining_class(cell, name)):
            raise ValueError(
                f"{source} has its own {name}, which would be lost in a conversion; expected "
                f"the package's {kind.__name__}: nnx.update(one, nnx.state(cell)) gives one the "
                "same weights."
            )
    for name in sorted(layers):
        layer = getattr(cell, name)
        usual = {
            "dot_general": jax.lax.dot_general,
            "preferred_element_type": None,
            "dtype": cell.dtype,
        }
        own = [option for option, v in usual.items() if getattr(layer, option, v) != v]
        if type(layer) is not nnx.Linear or own:
            what = f" with a {own[0]} of its own" if own else ""
            raise ValueError(
                f"{name} of {source} is {kind_of(layer)}{what}: what it computes besides its "
                "kernel and bias would be lost in a conversion; expected a plain nnx.Linear."
            )


def _matrix(weights: Mapping[str, Any], name: str, source: str) -> np.ndarray:
    """Return the weight that tells the sizes of the others."""
    shape = _to_numpy(weights[name]).shape if name in weights else ()
    if name in weights and len(shape) != 2:
        raise ValueError(f"{name!r} in {source} has shape {shape}; expected a matrix.")
    return _weight(weights, name, shape, source)


def _to_numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):  # a torch tensor
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":  # which NumPy does not know
            return np.asarray(array.float()).astype(jnp.bfloat16)
    if isinstance(array, jax.core.Tracer):
        raise TypeError(
            "a weight is being traced by jit, grad or vmap; expected its numbers: convert outside "
            "of the transformed function, and pass it what the conversion returned."
        )
    if isinstance(array, jax.ShapeDtypeStruct):
        raise TypeError(
            f"a weight is {array}, a shape without numbers, as nnx.eval_shape makes it; expected "
            "numbers: load the weights into the model first."
        )
    shape_of("a weight", array)  # raises for rows of different length
    array = np.asarray(array)
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, np.number)):
        raise TypeError(f"a weight is {describe(array)}; expected an array of numbers.")
    return array


def _check_mapping(params: Any, source: str) -> None:
    if not isinstance(params, Mapping):
        raise TypeError(f"{source} are {describe(params)}; expected a dict of arrays.")


def _check_kind(value: Any, kinds: tuple[type, ...], function: str) -> None:
    if not isinstance(value, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{function} got {kind_of(value)}; expected one of {names}.")


def _check_activations(cell: Any, target: str, simple: tuple[Any, ...] = (nnx.tanh,)) -> None:
    allowed = simple if isinstance(cell, SimpleCell) else (nnx.tanh,)
    if cell.activation_fn not in allowed or getattr(cell, "gate_fn", nnx.sigmoid) != nnx.sigmoid:
        raise ValueError(
            f"the {type(cell).__name__} has activations of its own; expected those that {target} "
            "computes: sigmoid for gates and tanh" + (" or relu." if len(allowed) > 1 else ".")
        )


def _check_merge(layer: Bidirectional, known: tuple[Any, ...], target: str) -> None:
    if layer.merge_fn not in known:
        raise ValueError(
            f"the Bidirectional has a merge_fn of its own; expected {target}'s: "
            + ("concatenation, or jnp.add." if jnp.add in known else "concatenated outputs.")
        )


def _check_resets_after(cell: GRUCell, target: str) -> None:
    if not cell.reset_after:
        raise ValueError(
            f"the cell has reset_after=False, and {target} resets after the matrix product; "
            "expected a GRUCell(reset_after=True). In general no weights make the two equal."
        )


def _check_begins_with_zeros(cell: Any, target: str) -> None:
    if cell.carry_init not in (None, jax.nn.initializers.zeros):
        raise ValueError(
            f"the {type(cell).__name__} has a carry_init, and {target} begins with zeros; expected "
            "None: give that layer its initial state in the call."
        )


def _check_no_residual(cell: SimpleCell, target: str) -> None:
    if cell.residual:
        raise ValueError(
            f"the cell has residual=True, which {target} does not have; expected residual=False. "
            "Adding the identity to the recurrent kernel gives the same function."
        )
