"""The explorer of the home page: what one GRU unit keeps of the inputs that you tick."""

from __future__ import annotations

from unrolled.lab.explorers._base import Explorer, check_within

STEPS = range(1, 9)


class PulseExplorer(Explorer):
    """One GRU unit over eight steps: tick inputs, move the update gate's bias, watch the state.

    Its parameters are Wz = 4, Wh = 3 and the bias bz of the slider; all others are zero.

    Args:
      bz: the update gate's bias at first, from -8 to 2.

    Raises:
      ValueError: a bias that the slider does not reach.

    Example:
      >>> PulseExplorer()
      <PulseExplorer: an interactive figure, shown where HTML is>
    """

    name = "pulse"

    def __init__(self, bz: float = -3.0):
        check_within("bz", bz, -8, 2)
        super().__init__({f"x_{t}": float(t == 2) for t in STEPS} | {"bz": bz})
