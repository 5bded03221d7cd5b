"""The explorer of chapter 7: the memory of an LSTM beside the state of a GRU."""

from __future__ import annotations

from collections.abc import Sequence

from unrolled.lab.explorers._base import Explorer, check_whole, check_within

STEPS = 12


class CellsExplorer(Explorer):
    """One LSTM unit and one GRU unit that read the same twelve inputs.

    It shows what `LSTMCell` and `GRUCell` compute with all recurrent kernels zero. Both candidates
    are tanh(2 x). The LSTM's input and output gates have the bias 4, so they are open; its forget
    gate has the bias `bias`. The GRU's update gate, which keeps, is sigmoid(bias - weight * x).

    Args:
      inputs: the twelve inputs at first, each from 0 to 1.
      bias: of the two gates that keep at first, from -2 to 8.
      weight: by how much an input of 1 opens the GRU's gate for writing at first, from 0 to 12.
      step: the step that is chosen at first, from 1 to 12.

    Raises:
      ValueError: a wrong number of inputs, or a value that its slider does not reach.

    Example:
      >>> CellsExplorer()
      <CellsExplorer: an interactive figure, shown where HTML is>
    """

    name = "cells"

    def __init__(
        self,
        inputs: Sequence[float] = (0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0),
        *,
        bias: float = 3.0,
        weight: float = 0.0,
        step: int = 9,
    ):
        if len(inputs) != STEPS:
            raise ValueError(f"inputs holds {len(inputs)} numbers; expected {STEPS}.")
        start = {f"x_{t}": float(value) for t, value in enumerate(inputs, start=1)}
        for name, value in start.items():
            check_within(name, value, 0, 1)
        check_within("bias", bias, -2, 8)
        check_within("weight", weight, 0, 12)
        check_whole("step", step, 1, STEPS)
        knobs = {"bias": float(bias), "weight": float(weight), "step": int(step)}
        super().__init__(start | knobs)
