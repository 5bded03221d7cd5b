"""What every explorer is made of: one HTML element and the script that brings it to life."""

from __future__ import annotations

import html
import inspect
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


class Explorer:
    """A figure with sliders that works in the page itself: no kernel, no network.

    In a notebook an explorer is the last line of a cell. The page shows a custom element; its
    script, `base.js` and the explorer's own file, computes the same equations as the package. Where
    no script may run, the first line of the class's docstring says what would be seen.

    Args:
      start: the value that each slider has at first, by the slider's name.
      given: numbers that the explorer needs and no slider changes, as lists in a dict.
      measured: the same for numbers that come out of a training. They differ from CPU to CPU, so
        nbval masks them; the cell that shows the explorer has to assert what they are good for.
    """

    name: str
    """Of the explorer: the stem of its JavaScript file and, capitalised, of the class in it."""

    def __init__(
        self,
        start: Mapping[str, float],
        *,
        given: Mapping[str, Any] | None = None,
        measured: Mapping[str, Any] | None = None,
    ):
        self.start = dict(start)
        self.given = given
        self.measured = measured

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: an interactive figure, shown where HTML is>"

    def _repr_html_(self) -> str:
        tag = f"unrolled-{self.name}"
        data = {"start": self.start, "given": self.given, "measured": self.measured}
        attributes = "".join(
            f' data-{name}="{html.escape(json.dumps(numbers, separators=(",", ":")))}"'
            for name, numbers in data.items()
            if numbers is not None
        )
        summary = html.escape(inspect.getdoc(type(self)).splitlines()[0])
        code = _compact("base.js") + _compact(f"{self.name}.js")
        return (
            f'<{tag} class="unrolled-explorer"{attributes}><p><em>{summary}</em> '
            "This figure moves once its script may run: in a notebook, trust the notebook and run "
            "this cell.</p>"
            f'</{tag}>\n<script>(() => {{\nif (customElements.get("{tag}")) return;\n'
            f'{code}customElements.define("{tag}", {self.name.capitalize()});\n}})();</script>'
        )


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number that a slider from `low` to `high` does not reach."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; its slider goes from {low:g} to {high:g}.")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no whole number from `low` to `high`."""
    if value not in range(low, high + 1):
        raise ValueError(f"{name} is {value}; its slider goes from {low} to {high} in whole steps.")


def _compact(file: str) -> str:
    """Return a script without the indentation and the comments that only its readers need."""
    lines = (files(__package__) / file).read_text(encoding="utf-8").splitlines()
    kept = (line.strip() for line in lines)
    return "".join(f"{line}\n" for line in kept if line and not line.startswith("//"))
