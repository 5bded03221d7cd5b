"""What cells and layers that a check makes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

import unrolled


class BareCell:
    """A cell with nothing but its methods: a layer finds that it is not meant here."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"the cell of this check has no `{name}`. It has what its exercise says, which is "
            "enough for a scan of your own; `RNN`, which asks for more, is not allowed here: it "
            "does what you are to write."
        )


class WatchedRNN(unrolled.RNN):
    """`RNN`, with all that it can do, which also tells `note` the shape of what it is given.

    The shape is told with the batch first, even if time comes first in the call.
    """

    def __init__(self, cell: Any, note: Callable[[tuple[int, ...]], None]):
        super().__init__(cell)
        self.note = note

    def __call__(self, inputs: Any, **options: Any) -> Any:
        shape = np.shape(inputs)
        batch_first = (*shape[1:-1], shape[0], shape[-1]) if options.get("time_major") else shape
        self.note(batch_first)
        return super().__call__(inputs, **options)
