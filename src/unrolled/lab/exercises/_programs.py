"""Reading jaxprs: what a compiled function will do, whatever the version of JAX calls its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from unrolled.lab.exercises._base import Wrong

LOOPS = ("scan", "while")


def traced(function: Callable, *arguments: Any) -> Any:
    """Return the jaxpr of the reader's function, whose numbers have been found right."""
    try:
        return jax.make_jaxpr(function)(*arguments).jaxpr
    except Exception as error:
        raise Wrong(
            "the numbers are right, but JAX cannot trace the function "
            f"({type(error).__name__}). Use `jnp` and `jax.lax.scan` instead of NumPy, `float()` "
            "and `if`."
        ) from None


def one_scan(function: Callable, *arguments: Any) -> Any:
    """Return the equation of the only scan in `function`, or say what there is instead."""
    found = list(outermost_loops(traced(function, *arguments)))
    if not found:
        raise Wrong(
            "the function runs, but there is no scan in it. Python loops and ready-made functions "
            "do the work too; here the point is `jax.lax.scan`."
        )
    if len(found) > 1:
        raise Wrong(
            f"the function runs, but it uses {len(found)} loops. Everything fits into one scan: "
            "its carry and its inputs may be pairs."
        )
    (loop,) = found
    if loop.primitive.name != "scan" or not _takes_or_gives_steps(loop):
        raise Wrong(
            "the function runs, but its loop neither takes its inputs one by one nor stacks "
            "outputs, which is what a scan is for. Write it with `jax.lax.scan`, hand in what each "
            "step reads as its third argument, and let the step return what is to be stacked."
        )
    return loop


def outermost_loops(program: Any) -> Iterator[Any]:
    """Yield the loops of a jaxpr that are in no other loop, at any depth of `jit`."""
    for equation in program.eqns:
        if equation.primitive.name in LOOPS:
            yield equation
        else:
            for inner in inner_programs(equation):
                yield from outermost_loops(inner)


def equations(program: Any) -> Iterator[Any]:
    """Yield every operation of a jaxpr, and of those inside its operations."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations(inner)


def inner_programs(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs that an operation holds: the body of a loop, a jitted function."""
    for value in jax.tree.leaves(list(equation.params.values())):
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value


def scan_sizes(equation: Any) -> tuple[int, int, int]:
    """Return how many constants, carries and scanned arrays a scan's equation is called with.

    Up to JAX 0.10 its parameters say so. What is told here is told by shapes: what is cut into
    steps, or stacked from them, has an axis outside of the step that it has not inside.
    """
    step = equation.params["jaxpr"].jaxpr
    scanned = sum(map(_is_cut, equation.invars, step.invars))
    carries = len(equation.outvars) - sum(map(_is_cut, equation.outvars, step.outvars))
    return len(equation.invars) - carries - scanned, carries, scanned


def _takes_or_gives_steps(scan: Any) -> bool:
    """Say whether a scan reads or stacks anything; a `fori_loop`, as JAX writes it, does not."""
    _, carries, scanned = scan_sizes(scan)
    return scanned > 0 or len(scan.outvars) > carries


def _is_cut(outside: Any, inside: Any) -> bool:
    return outside.aval.shape != inside.aval.shape
