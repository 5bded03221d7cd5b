"""Who runs against whom: the same layer with the same weights in three libraries.

A contender computes one problem (a cell and a shape) in two tasks: the forward pass, and one step
of training: loss, gradient with respect to every weight, plain gradient descent. `verify` compares
what two contenders return, so that nothing wrong is ever timed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import unrolled
from unrolled import convert

torch: Any = None
with suppress(ImportError):
    import torch

GATES = {"SimpleCell": 1, "GRUCell": 3, "LSTMCell": 4, "OptimizedLSTMCell": 4}
CELLS = tuple(GATES)
TORCH_LAYERS = {"SimpleCell": "RNN", "GRUCell": "GRU", "OptimizedLSTMCell": "LSTM"}
TASKS = ("forward", "training")
ALL_THREADS = torch.get_num_threads() if torch else 1
LEARNING_RATE = 1e-3
TOLERANCE = {"values": 1e-4, "gradients": 1e-3}  # of the largest number compared; all is float32


class Disagreement(Exception):
    """Two contenders do not compute the same, so timing them would mean nothing."""


@dataclass(frozen=True)
class Shape:
    """The size of a problem, written BxTxIxH, or BxTxIxH-ragged for sequences of unequal length."""

    batch: int
    time: int
    features: int
    hidden: int
    ragged: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read what `str` writes.

        Example:
          >>> Shape.parse("32x128x64x128-ragged").ragged
          True
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(-ragged)?", text)
        if match is None:
            raise ValueError(f"the shape is {text!r}; expected BxTxIxH, such as 32x128x64x128.")
        return cls(*map(int, match.groups()[:4]), ragged=match[5] is not None)

    def __str__(self) -> str:
        sizes = (self.batch, self.time, self.features, self.hidden)
        return "x".join(map(str, sizes)) + ("-ragged" if self.ragged else "")

    @property
    def lengths(self) -> np.ndarray | None:
        """The count of valid steps of each sequence, from 1 to T; None if every step is valid."""
        if not self.ragged:
            return None
        lengths = np.random.default_rng(0).integers(1, self.time + 1, self.batch, dtype=np.int32)
        lengths[0] = self.time
        return lengths

    def flops(self, cell: str) -> int:
        """Operations of the matrix products of one forward pass over the valid steps."""
        steps = self.batch * self.time if self.lengths is None else int(self.lengths.sum())
        return 2 * steps * (self.features + self.hidden) * GATES[cell] * self.hidden


@dataclass(frozen=True)
class Data:
    """Inputs, targets and the mask of valid steps: the same for every contender."""

    inputs: np.ndarray  # (batch, time, features)
    targets: np.ndarray  # (batch, time, hidden)
    lengths: np.ndarray | None  # (batch,)
    mask: np.ndarray  # (batch, time, 1), divided by the count of valid steps

    @classmethod
    def random(cls, shape: Shape) -> Data:
        rng = np.random.default_rng(1)
        lengths, steps = shape.lengths, np.arange(shape.time)
        valid = np.ones((shape.batch, shape.time, 1), np.float32)
        if lengths is not None:
            valid = (steps < lengths[:, None])[..., None].astype(np.float32)
        return cls(
            rng.standard_normal((shape.batch, shape.time, shape.features), np.float32),
            rng.standard_normal((shape.batch, shape.time, shape.hidden), np.float32),
            lengths,
            valid / valid.sum(),
        )


@dataclass(frozen=True)
class Contender:
    """One library's way to compute a problem.

    Args:
      name: how the report calls it.
      tasks: for each of `TASKS` a function that runs it once, to the end.
      outputs: returns the outputs at valid steps.
      gradients: returns the gradients by this package's parameter names.
      select: called before each turn, for what the library keeps globally.
    """

    name: str
    tasks: dict[str, Callable[[], Any]]
    outputs: Callable[[], np.ndarray]
    gradients: Callable[[], dict[str, np.ndarray]]
    select: Callable[[], None] = lambda: None


def make_layers(cell: str, shape: Shape) -> tuple[unrolled.RNN, nnx.RNN]:
    """Make our layer and Flax's, with the same weights and biases that are not zero."""
    bias_init = nnx.initializers.normal(0.1)
    sizes = (shape.features, shape.hidden)
    theirs = nnx.RNN(getattr(nnx, cell)(*sizes, bias_init=bias_init, rngs=nnx.Rngs(0)))
    ours = unrolled.RNN(getattr(unrolled, cell)(*sizes, rngs=nnx.Rngs(1)))
    nnx.update(ours, nnx.state(theirs, nnx.Param))  # leaves b_hn, which Flax has not, at zero
    return ours, theirs


def make_contenders(cell: str, shape: Shape, against: list[str]) -> list[Contender]:
    """Return our contender, and after it those of the other libraries.

    Args:
      cell: one of `CELLS`.
      shape: the size of the problem.
      against: "flax", "torch" or both. torch is left out if it is missing, and for LSTMCell, which
        computes what OptimizedLSTMCell does: torch's LSTM is the rival of the faster of the two.
    """
    data = Data.random(shape)
    ours, theirs = make_layers(cell, shape)
    contenders = [jax_contender("unrolled", ours, data)]
    if "flax" in against:
        contenders.append(jax_contender("flax.nnx", theirs, data))
    if "torch" in against and torch is not None and cell in TORCH_LAYERS:
        module = getattr(torch.nn, TORCH_LAYERS[cell])(
            shape.features, shape.hidden, batch_first=True
        )
        weights = convert.to_torch(ours).items()
        module.load_state_dict({name: torch.tensor(value) for name, value in weights})
        contenders += torch_contenders(module, data)
    return contenders


# JAX: this package and Flax, called in exactly the same way


@dataclass(frozen=True)
class PureLayer:
    """A layer as pure functions of a list of arrays, so that no module is taken apart in a call."""

    names: list[str]
    weights: list[jax.Array]
    forward: Callable[..., jax.Array]  # (weights, inputs, lengths)
    loss: Callable[..., jax.Array]  # (weights, inputs, lengths, targets, mask)
    step: Callable[..., Any]  # (weights, *the same, learning_rate) -> (loss, new weights)


def pure_layer(layer: Any) -> PureLayer:
    """Split a layer once, for good."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    weights, structure = jax.tree.flatten(params)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = [".".join(key.key for key in path[:-1]) for path in paths]

    def forward(weights, inputs, lengths):
        params = jax.tree.unflatten(structure, weights)
        layer = nnx.merge(graphdef, params, rest, copy=True)  # Flax counts its random keys
        return layer(inputs, seq_lengths=lengths)

    def loss(weights, inputs, lengths, targets, mask):
        return ((forward(weights, inputs, lengths) - targets) ** 2 * mask).sum()

    def step(weights, inputs, lengths, targets, mask, learning_rate):
        value, gradients = jax.value_and_grad(loss)(weights, inputs, lengths, targets, mask)
        return value, [w - learning_rate * g for w, g in zip(weights, gradients)]

    return PureLayer(names, weights, forward, loss, step)


def jax_contender(name: str, layer: Any, data: Data) -> Contender:
    """Compile a layer of JAX, ours or Flax's, for both tasks."""
    pure = pure_layer(layer)
    forward_jit, step_jit = jax.jit(pure.forward), jax.jit(pure.step)
    inputs, lengths, targets, mask = jax.tree.map(
        jnp.asarray, (data.inputs, data.lengths, data.targets, data.mask)
    )
    weights = pure.weights

    def forward():
        return jax.block_until_ready(forward_jit(pure.weights, inputs, lengths))

    def train():
        nonlocal weights
        arguments = (weights, inputs, lengths, targets, mask, LEARNING_RATE)
        _, weights = jax.block_until_ready(step_jit(*arguments))

    def gradients():
        """From the very step that is timed: a large rate leaves nothing but the gradient."""
        rate = 1e3
        _, moved = step_jit(pure.weights, inputs, lengths, targets, mask, rate)
        pairs = zip(pure.weights, moved)
        return dict(zip(pure.names, (np.asarray((old - new) / rate) for old, new in pairs)))

    return Contender(
        name=name,
        tasks={"forward": forward, "training": train},
        outputs=lambda: np.asarray(forward()) * (data.mask > 0),
        gradients=gradients,
    )


# torch


def torch_contenders(module: Any, data: Data) -> list[Contender]:
    """Return torch's contenders: one thread and every core, or the GPU if JAX runs on one too."""
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return [torch_contender("torch", module.to("cuda"), data)]
    names = {1: "torch, 1 thread", ALL_THREADS: "torch, all threads"}
    return [torch_contender(name, module, data, threads) for threads, name in names.items()]


def torch_contender(name: str, module: Any, data: Data, threads: int | None = None) -> Contender:
    """Prepare a torch layer for both tasks, with packed sequences if their lengths differ."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    device = next(module.parameters()).device
    inputs, targets, mask = (
        torch.tensor(array, device=device) for array in (data.inputs, data.targets, data.mask)
    )
    lengths = None if data.lengths is None else torch.tensor(data.lengths, dtype=torch.int64)

    def run():
        if lengths is None:
            return module(inputs)[0]
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        steps = inputs.shape[1]
        return pad_packed_sequence(module(packed)[0], batch_first=True, total_length=steps)[0]

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.inference_mode():
            outputs = run()
        wait()
        return outputs

    def backward():
        ((run() - targets) ** 2 * mask).sum().backward()

    def train():
        backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= LEARNING_RATE * parameter.grad
                parameter.grad = None
        wait()

    def gradients():
        """torch's two biases have the same gradient wherever they are added; ours is one."""
        backward()
        holder = copy.deepcopy(module)
        with torch.no_grad():
            for (label, parameter), kept in zip(module.named_parameters(), holder.parameters()):
                kept.copy_(parameter.grad)
                parameter.grad = None
                if label == "bias_hh_l0":
                    kept[: 2 * module.hidden_size if module.mode == "GRU" else None] = 0
        pure = pure_layer(convert.from_torch(holder))
        return dict(zip(pure.names, map(np.asarray, pure.weights)))

    return Contender(
        name=name,
        tasks={"forward": forward, "training": train},
        outputs=lambda: forward().cpu().numpy() * (data.mask > 0),
        gradients=gradients,
        select=lambda: torch.set_num_threads(threads) if threads else None,
    )


# Both


def verify(ours: Contender, theirs: Contender) -> None:
    """Raise unless two contenders agree in outputs and in every gradient that both have.

    Raises:
      Disagreement: they differ by more than `TOLERANCE`.
    """
    for contender in (ours, theirs):
        contender.select()
    _compare("values", "the outputs", ours.outputs(), theirs.outputs(), theirs.name)
    our_gradients, their_gradients = ours.gradients(), theirs.gradients()
    if missing := their_gradients.keys() - our_gradients.keys():
        raise Disagreement(f"{theirs.name} has weights that {ours.name} has not: {missing}.")
    for name, gradient in their_gradients.items():
        what = f"the gradient of {name}"
        _compare("gradients", what, our_gradients[name], gradient, theirs.name)


def _compare(kind: str, what: str, ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    if ours.shape != theirs.shape:
        raise Disagreement(f"{what} have shapes {ours.shape}, and {theirs.shape} in {name}.")
    difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
    if not difference <= TOLERANCE[kind]:  # NaN too
        raise Disagreement(
            f"{what} and that of {name} differ by {difference:.1e} of the largest number; "
            f"expected at most {TOLERANCE[kind]:.0e}. Nothing wrong is timed."
        )
