"""The explorer of chapter 14: a trained character model that writes in the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from unrolled._checks import kind_of
from unrolled.cells import GRUCell
from unrolled.lab.explorers._base import Explorer, check_within
from unrolled.lab.language import CHARACTERS
from unrolled.layers import RNN, StackedRNN


class LanguageExplorer(Explorer):
    """A trained language model that writes on from any beginning, one character at a time.

    The page gets each matrix in eight bits a number, with one scale for each column, and computes
    with these; what rounding costs is for the cell that shows the explorer to say.

    Args:
      embed: the vectors of the 96 characters, trained.
      stack: layers of `GRUCell`s with the same number of units, trained.
      readout: the linear layer that makes 96 scores of the top layer's states, trained.
      units: whose value the page can show as a colour: `(layer, unit, sign)` for the units that
        know the place in the line, double quotes and parentheses.
      text: the beginning.
      temperature: at first, from 0 to 1.5.

    Raises:
      TypeError: a layer of another kind.
      ValueError: sizes that do not fit, weights that are not finite, a beginning with characters
        that the model does not know, a temperature that its slider does not reach.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> stack = StackedRNN([RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(4, 4, rngs=rngs))])
      >>> embed, readout = nnx.Embed(96, 3, rngs=rngs), nnx.Linear(4, 96, rngs=rngs)
      >>> LanguageExplorer(embed, stack, readout, [(0, 1, 1), (0, 2, -1), (1, 0, 1)])
      <LanguageExplorer: an interactive figure, shown where HTML is>
    """

    name = "language"

    def __init__(
        self,
        embed: nnx.Embed,
        stack: StackedRNN,
        readout: nnx.Linear,
        units: Sequence[tuple[int, int, int]],
        *,
        text: str = "The ",
        temperature: float = 0.5,
    ):
        cells = [_gru_cell(layer) for layer in stack.layers]
        size, hidden = len(CHARACTERS), cells[0].hidden_features
        inputs = [embed.features] + [hidden] * (len(cells) - 1)
        found = [(cell.in_features, cell.hidden_features) for cell in cells]
        if found != [(before, hidden) for before in inputs]:
            raise ValueError(
                f"the layers have (in, hidden) features {found}; expected {hidden} units in each, "
                f"and {embed.features} inputs of the first, as many as the embedding has."
            )
        shapes = embed.embedding.shape, readout.kernel.shape
        if shapes != ((size, embed.features), (hidden, size)):
            raise ValueError(
                f"embedding and readout have shapes {shapes}; expected "
                f"{((size, embed.features), (hidden, size))}: {size} characters, {hidden} units."
            )
        if not set(text) <= set(CHARACTERS):
            raise ValueError(f"text is {text!r}; it may hold line ends and printable ASCII only.")
        if len(units) != 3 or not all(
            0 <= layer < len(cells) and 0 <= unit < hidden and sign in (-1, 1)
            for layer, unit, sign in units
        ):
            raise ValueError(
                f"units is {list(units)}; expected three (layer, unit, sign), layers from 0 to "
                f"{len(cells) - 1}, units from 0 to {hidden - 1}, signs 1 or -1."
            )
        check_within("temperature", temperature, 0, 1.5)

        parts: list[Any] = [embed.embedding]
        for cell in cells:
            parts += [cell.dense_i.kernel, cell.dense_h.kernel, cell.dense_i.bias, cell.b_hn]
        whole, real = [], []
        for part in [*parts, readout.kernel, readout.bias]:
            numbers = np.asarray(part[...], np.float32)
            if not np.isfinite(numbers).all():
                raise ValueError("a weight is not finite: has the training diverged?")
            if numbers.ndim == 2:
                numbers, scales = in_eight_bits(numbers)
                whole.append(numbers.ravel())
                numbers = scales
            real.append(numbers.ravel())
        super().__init__(
            {"temperature": temperature, "unit": 0},
            given={
                "inputs": embed.features,
                "hidden": hidden,
                "layers": len(cells),
                "text": text,
            },
            measured={
                "int8": _as_words(np.concatenate(whole), "i1"),
                "float32": _as_words(np.concatenate(real), "<f4"),
                "units": [[int(number) for number in unit] for unit in units],
            },
        )


def in_eight_bits(matrix: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to whole numbers from -127 to 127, times one scale for each column.

    Returns:
      `(whole, scales)`, an int8 array of the matrix's shape and a float32 array (columns,);
      `whole * scales` is close to the matrix.

    Example:
      >>> whole, scales = in_eight_bits(np.array([[1.0, 0.0], [-0.5, 0.0]]))
      >>> whole.tolist(), scales.round(4).tolist()
      ([[127, 0], [-64, 0]], [0.007899999618530273, 1.0])
    """
    matrix = np.asarray(matrix, np.float32)
    scales = np.abs(matrix).max(axis=0) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1))
    return np.rint(matrix / scales).astype(np.int8), scales


def _gru_cell(layer: Any) -> GRUCell:
    cell = layer.cell if isinstance(layer, RNN) else layer
    if not isinstance(cell, GRUCell) or not cell.reset_after:
        raise TypeError(
            f"a layer is {kind_of(cell)}; expected an RNN around a GRUCell with reset_after=True."
        )
    return cell


def _as_words(numbers: np.ndarray, kind: str) -> str:
    return base64.b64encode(numbers.astype(kind).tobytes()).decode()
