"""Reading a scan in a jaxpr, whatever the version of JAX calls its parts."""

from __future__ import annotations

from typing import Any


def scan_sizes(equation: Any) -> tuple[int, int, int]:
    """Return how many constants, carries and scanned arrays a scan's equation is called with.

    Up to JAX 0.10 its parameters say so. What is told here is told by shapes: what is cut into
    steps, or stacked from them, has an axis outside of the step that it has not inside.
    """
    step = equation.params["jaxpr"].jaxpr
    scanned = sum(map(_is_cut, equation.invars, step.invars))
    carries = len(equation.outvars) - sum(map(_is_cut, equation.outvars, step.outvars))
    return len(equation.invars) - carries - scanned, carries, scanned


def _is_cut(outside: Any, inside: Any) -> bool:
    return outside.aval.shape != inside.aval.shape
