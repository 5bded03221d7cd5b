"""What every explorer is made of: one HTML element and the script that brings it to life."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files


class Explorer:
    """A figure with sliders that works in the page itself: no kernel, no network.

    In a notebook an explorer is the last line of a cell. The page shows a custom element; its
    script, `base.js` and the explorer's own file, computes the same equations as the package.

    Args:
      start: the value that each slider has at first, by the slider's name.
    """

    name: str
    """Of the explorer: the stem of its JavaScript file and, capitalised, of the class in it."""

    def __init__(self, start: Mapping[str, float]):
        self.start = dict(start)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: an interactive figure, shown where HTML is>"

    def _repr_html_(self) -> str:
        tag = f"unrolled-{self.name}"
        start = html.escape(json.dumps(self.start))
        code = _compact("base.js") + _compact(f"{self.name}.js")
        return (
            f'<{tag} class="unrolled-explorer" data-start="{start}"><p>This figure moves once its '
            "script may run: in a notebook, trust the notebook and run this cell.</p>"
            f'</{tag}>\n<script>(() => {{\nif (customElements.get("{tag}")) return;\n'
            f'{code}customElements.define("{tag}", {self.name.capitalize()});\n}})();</script>'
        )


def _compact(file: str) -> str:
    """Return a script without the indentation and the comments that only its readers need."""
    lines = (files(__package__) / file).read_text(encoding="utf-8").splitlines()
    kept = (line.strip() for line in lines)
    return "".join(f"{line}\n" for line in kept if line and not line.startswith("//"))
