"""What a cell that a check makes has in common with the others."""

from __future__ import annotations

from typing import NoReturn


class BareCell:
    """A cell with nothing but its methods: a layer finds that it is not meant here."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"the cell of this check has no `{name}`. It has what its exercise says, which is "
            "enough for a scan of your own; `RNN`, which asks for more, is not allowed here: it "
            "does what you are to write."
        )
