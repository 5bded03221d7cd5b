"""The explorer of chapter 10: a trained bidirectional GRU that reads a curve as it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from unrolled._checks import kind_of
from unrolled.cells import GRUCell
from unrolled.lab.explorers._base import Explorer, check_whole
from unrolled.layers import Bidirectional

STEPS, DIGITS = 40, 10
DECIMALS = 4  # of a weight in the page


class DrawExplorer(Explorer):
    """A trained bidirectional GRU that reads a curve of 40 steps and says which digit it is.

    The outputs at all steps, laid side by side, are read by one linear layer. The page gets the
    weights with four decimals and computes the probabilities from these.

    Args:
      layer: two `GRUCell`s with one input feature and the same number of units, trained.
      readout: the linear layer that makes ten scores of the 40 outputs, trained.
      curves: a curve to begin with for each digit, shape (10, 40), each number from -5 to 5; the
        page keeps two decimals.
      example: the digit whose curve is shown at first.
      step: the step that is chosen at first, from 1 to 40.

    Raises:
      TypeError: a layer of another kind.
      ValueError: sizes that do not fit, weights that are not finite, a value that its slider does
        not reach.

    Example:
      >>> import jax.numpy as jnp
      >>> from unrolled import RNN
      >>> rngs = nnx.Rngs(0)
      >>> layer = Bidirectional(RNN(GRUCell(1, 6, rngs=rngs)), RNN(GRUCell(1, 6, rngs=rngs)))
      >>> DrawExplorer(layer, nnx.Linear(40 * 12, 10, rngs=rngs), jnp.zeros((10, 40)))
      <DrawExplorer: an interactive figure, shown where HTML is>
    """

    name = "draw"

    def __init__(
        self,
        layer: Bidirectional,
        readout: nnx.Linear,
        curves: jax.Array,
        *,
        example: int = 3,
        step: int = 20,
    ):
        if not isinstance(layer, Bidirectional):
            raise TypeError(f"layer is {kind_of(layer)}; expected a Bidirectional.")
        cells = {"forward": layer.forward_rnn.cell, "backward": layer.backward_rnn.cell}
        for direction, cell in cells.items():
            if not isinstance(cell, GRUCell) or not cell.reset_after:
                raise TypeError(
                    f"the {direction} cell is {kind_of(cell)}; expected a GRUCell with "
                    "reset_after=True."
                )
            if cell.in_features != 1:
                raise ValueError(
                    f"the {direction} cell has in_features={cell.in_features}; a curve has 1."
                )
        units = sum(cell.hidden_features for cell in cells.values())
        if readout.kernel.shape != (STEPS * units, DIGITS):
            raise ValueError(
                f"readout.kernel has shape {readout.kernel.shape}; expected "
                f"{(STEPS * units, DIGITS)}: {STEPS} steps of {units} units, and {DIGITS} digits."
            )
        curves = np.asarray(curves, np.float64)
        if curves.shape != (DIGITS, STEPS):
            raise ValueError(f"curves has shape {curves.shape}; expected {(DIGITS, STEPS)}.")
        if not np.abs(curves).max() <= 5:
            raise ValueError("curves has a number beyond the slider, which goes from -5 to 5.")
        check_whole("example", example, 0, DIGITS - 1)
        check_whole("step", step, 1, STEPS)
        weights = {direction: _gru_weights(cell) for direction, cell in cells.items()}
        weights["readout"] = {"W": readout.kernel, "b": readout.bias}
        super().__init__(
            {"example": int(example), "step": int(step)},
            given={"curves": (curves.round(2) + 0.0).tolist()},
            measured=jax.tree.map(_shortened, weights, is_leaf=lambda x: isinstance(x, nnx.Param)),
        )


def _gru_weights(cell: GRUCell) -> Mapping[str, nnx.Param]:
    return {
        "W": cell.dense_i.kernel,
        "b": cell.dense_i.bias,
        "U": cell.dense_h.kernel,
        "b_hn": cell.b_hn,
    }


def _shortened(weight: nnx.Param) -> Any:
    """The numbers of a weight in units of its last decimal, which are whole, as lists."""
    numbers = np.asarray(weight[...], np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a weight is not finite: has the training diverged?")
    return np.rint(numbers * 10**DECIMALS).astype(int).tolist()
