"""The explorer of chapter 3: a scan that takes one step at a time, forward and back."""

from __future__ import annotations

from collections.abc import Sequence

from unrolled.lab.explorers._base import Explorer, check_whole, check_within

STEPS = 4


class ScanExplorer(Explorer):
    """Four years of an account as a scan: carry, input and output of each step.

    The step is chapter 3's: from a balance and a deposit it makes the new balance,
    balance + rate * balance + deposit, and puts out the interest, rate * balance.

    Args:
      deposits: the four inputs at first, each from -50 to 50.
      opening: the initial carry at first, from 0 to 200.
      rate: of interest at first, from -0.5 to 0.5.
      taken: how many steps are taken at first, from 0 to 4.
      reverse: whether the scan starts at the last input, as `jax.lax.scan(..., reverse=True)`.

    Raises:
      ValueError: a wrong number of deposits, or a value that its slider does not reach.

    Example:
      >>> ScanExplorer()
      <ScanExplorer: an interactive figure, shown where HTML is>
    """

    name = "scan"

    def __init__(
        self,
        deposits: Sequence[float] = (10, 20, 30, 40),
        *,
        opening: float = 100,
        rate: float = 0.1,
        taken: int = 2,
        reverse: bool = False,
    ):
        if len(deposits) != STEPS:
            raise ValueError(f"deposits holds {len(deposits)} numbers; expected {STEPS}.")
        start = {f"x_{t}": float(value) for t, value in enumerate(deposits, start=1)}
        for name, value in start.items():
            check_within(name, value, -50, 50)
        check_within("opening", opening, 0, 200)
        check_within("rate", rate, -0.5, 0.5)
        check_whole("taken", taken, 0, STEPS)
        account = {"opening": float(opening), "rate": float(rate)}
        super().__init__(start | account | {"taken": int(taken), "reverse": int(reverse)})
