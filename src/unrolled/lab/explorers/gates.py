"""The explorer of chapter 2: what the gates of one GRU unit do to its state."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from unrolled.gru import PARAMETER_SHAPES
from unrolled.lab.explorers._base import Explorer, check_within

LIMITS = {"x_t": 2.0, "h_prev": 1.0}  # how far the sliders go; those of parameters go to 10


class GatesExplorer(Explorer):
    """One GRU unit with one input: sliders for its input, its old state and its nine parameters.

    It shows both gates, the candidate, the new state and the next 20 steps, as `gru_step`
    computes them.

    Args:
      params: parameters of a GRU with input_dim = hidden_dim = 1 to start from; by default a unit
        that listens to its input more than to itself.
      x_t: the input at first, from -2 to 2.
      h_prev: the old state at first, from -1 to 1.

    Raises:
      ValueError: a missing parameter, one of another size, or a value that its slider does not
        reach.

    Example:
      >>> GatesExplorer()
      <GatesExplorer: an interactive figure, shown where HTML is>
    """

    name = "gates"

    def __init__(
        self,
        params: Mapping[str, jax.Array] | None = None,
        *,
        x_t: float = 0.5,
        h_prev: float = -0.8,
    ):
        start = {"x_t": x_t, "h_prev": h_prev}
        params = DEFAULT if params is None else params
        missing = [name for name in PARAMETER_SHAPES if name not in params]
        if missing:
            raise ValueError(f"params lacks {', '.join(missing)}.")
        for name in PARAMETER_SHAPES:
            value = np.asarray(params[name])
            if value.size != 1:
                raise ValueError(
                    f"{name} has shape {value.shape}; this explorer shows one unit with one "
                    "input: use initialize_gru_params(key, input_dim=1, hidden_dim=1)."
                )
            start[name] = float(value.item())
        for name in start:
            limit = LIMITS.get(name, 10.0)
            check_within(name, start[name], -limit, limit)
        super().__init__(start)


DEFAULT = {"Wz": 1, "Uz": 0, "bz": 0, "Wr": 0, "Ur": 0, "br": 0, "Wh": 2, "Uh": 1.5, "bh": 0}
