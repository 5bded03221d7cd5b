"""Explorers: figures with sliders that work in the rendered page, without a kernel.

Each explorer is a small class in a module of its own, with a JavaScript file of the same name; what
they share is in `_base.py` and `base.js`.
"""

from unrolled.lab.explorers._base import Explorer
from unrolled.lab.explorers.cells import CellsExplorer
from unrolled.lab.explorers.directions import DirectionsExplorer
from unrolled.lab.explorers.draw import DrawExplorer
from unrolled.lab.explorers.gates import GatesExplorer
from unrolled.lab.explorers.gradient import GradientExplorer
from unrolled.lab.explorers.language import LanguageExplorer
from unrolled.lab.explorers.pulse import PulseExplorer
from unrolled.lab.explorers.scan import ScanExplorer

__all__ = [
    "CellsExplorer",
    "DirectionsExplorer",
    "DrawExplorer",
    "Explorer",
    "GatesExplorer",
    "GradientExplorer",
    "LanguageExplorer",
    "PulseExplorer",
    "ScanExplorer",
]
