"""The explorer of chapter 10: what the states of two directions have seen at each step."""

from __future__ import annotations

from collections.abc import Sequence

from unrolled.lab.explorers._base import Explorer, check_whole, check_within

STEPS = 8


class DirectionsExplorer(Explorer):
    """Two GRU units, one for each direction, over eight inputs of which `length` are valid.

    It shows what `Bidirectional` computes with seq_lengths. Both units have the same weights:
    reset gate 0.5 x + 1, update gate 1.5 - x, candidate 2.5 x + r * 0.5 h, before their sigmoid or
    tanh.

    Args:
      inputs: the eight inputs at first, each from -1 to 1.
      length: how many of them are valid at first, from 0 to 8.
      step: the step that is chosen at first, from 1 to 8.

    Raises:
      ValueError: a wrong number of inputs, or a value that its slider does not reach.

    Example:
      >>> DirectionsExplorer()
      <DirectionsExplorer: an interactive figure, shown where HTML is>
    """

    name = "directions"

    def __init__(
        self,
        inputs: Sequence[float] = (0.8, 0, 0.2, -0.6, 0.3, 1, -1, 0.4),
        *,
        length: int = 6,
        step: int = 3,
    ):
        if len(inputs) != STEPS:
            raise ValueError(f"inputs holds {len(inputs)} numbers; expected {STEPS}.")
        start = {f"x_{t}": float(value) for t, value in enumerate(inputs, start=1)}
        for name, value in start.items():
            check_within(name, value, -1, 1)
        check_whole("length", length, 0, STEPS)
        check_whole("step", step, 1, STEPS)
        super().__init__(start | {"length": int(length), "step": int(step)})
