"""The explorer of chapter 1: what is left of a gradient after many steps of a simple cell."""

from __future__ import annotations

import jax
import numpy as np

from unrolled.lab.explorers._base import Explorer, check_within

MOST_UNITS = 8


class GradientExplorer(Explorer):
    """The norm of a gradient on its way through up to 100 steps of a simple cell.

    The cell is h_t = tanh(U h_(t-1) + strength * noise_t), started at zero. The first slider scales
    U to a spectral radius, the second the inputs, the third is the number of steps. At strength 0
    the state stays at zero, where the tanh has the slope 1: that is the linear cell.

    Args:
      U: a square matrix of up to 8 units, for example your own; by default a random one of 8. Only
        its direction counts, since the first slider sets its spectral radius.
      radius: the spectral radius at first, from 0 to 2; by default that of U, or 0.9 without one.
      strength: the standard deviation of the inputs at first, from 0 to 2.
      steps: the number of steps at first, from 5 to 100.

    Raises:
      ValueError: U is not square, too large, not finite or has the spectral radius 0, or a value
        that its slider does not reach.

    Example:
      >>> GradientExplorer()
      <GradientExplorer: an interactive figure, shown where HTML is>
    """

    name = "gradient"

    def __init__(
        self,
        U: jax.Array | None = None,
        *,
        radius: float | None = None,
        strength: float = 0.0,
        steps: int = 50,
    ):
        matrix = np.random.default_rng(2).normal(size=(8, 8)) if U is None else np.asarray(U)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"U has shape {matrix.shape}; expected (hidden_dim, hidden_dim).")
        if len(matrix) > MOST_UNITS:
            raise ValueError(
                f"U has {len(matrix)} units; this explorer shows up to {MOST_UNITS}, such as "
                f"U[:{MOST_UNITS}, :{MOST_UNITS}]."
            )
        if not np.isfinite(matrix).all():
            raise ValueError("U has a number that is not finite.")
        own = float(np.abs(np.linalg.eigvals(matrix)).max())
        if own < 1e-6:
            raise ValueError("U has the spectral radius 0: no scaling gives it another one.")
        if radius is None:
            radius = 0.9 if U is None else round(own, 6)
        check_within("radius", radius, 0, 2)
        check_within("strength", strength, 0, 2)
        check_within("steps", steps, 5, 100)
        start = {"radius": float(radius), "strength": float(strength), "steps": int(steps)}
        super().__init__(start, given={"U": ((matrix / own).round(5) + 0.0).tolist()})
