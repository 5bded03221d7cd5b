"""Reading jaxprs: what a compiled function will do, before it does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import pytest

from unrolled.scan import TRANSPOSABLE

needs_the_fast_scan = pytest.mark.skipif(
    not TRANSPOSABLE, reason="before JAX 0.10 every cell runs by the general scan"
)


def equations(program: Any) -> Iterator[Any]:
    """Every operation of a jaxpr, and of those inside its operations."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                yield from equations(getattr(value, "jaxpr", value))
