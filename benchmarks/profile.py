"""Where the time of a training step goes, ours and Flax's: `python -m benchmarks.profile`.

JAX's profiler tells how long each operation of the compiled program took, and the program's text
whether it is a matrix product and whether it stands in a loop. Together they say what there is to
win: products have to be computed by everyone, all else is open.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from benchmarks.contenders import CELLS, LEARNING_RATE, Data, Shape, make_layers, pure_layer

CALLS = 20  # that are traced; each operation counts with its median
KINDS = (
    "products, a step each",
    "products, many steps each",
    "other operations, a step each",
    "other operations, many steps each",
)
PROBLEMS = (
    "GRUCell 32x128x64x128",
    "GRUCell 64x256x128x256",
    "OptimizedLSTMCell 32x128x64x128",
    "OptimizedLSTMCell 64x128x512x512",
)


def operations(program: str) -> dict[str, bool]:
    """Return the operations of a compiled program's text, and whether each is a matrix product.

    Loops and calls are left out, since what they run is there too.

    Example:
      >>> operations("%a = f32[2]{0} add(%x, %y)\\n ROOT %dot.1 = f32[2]{0} dot(%a, %b)")
      {'a': False, 'dot.1': True}
    """
    products: dict[str, bool] = {}  # for each computation of the text
    found: dict[str, tuple[str, str | None]] = {}
    computation = ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = head[1]
        elif match := re.match(r"\s+(?:ROOT )?%([\w.-]+) = .*?[\])}] ([\w-]+)\(", " " + line):
            called = re.search(r"calls=%([\w.-]+)", line)
            found[match[1]] = match[2], called and called[1]
            products[computation] = products.get(computation, False) or match[2] == "dot"
    return {
        name: kind == "dot" or products.get(called, False)
        for name, (kind, called) in found.items()
        if kind not in ("while", "call", "conditional")
    }


def profile(function: Any, arguments: Sequence[Any], steps: int) -> dict[str, float]:
    """Return the milliseconds that one call of a jitted function spends on each of `KINDS`."""
    compiled = function.lower(*arguments).compile()
    is_product = operations(compiled.as_text())
    jax.block_until_ready(compiled(*arguments))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(CALLS):
                jax.block_until_ready(compiled(*arguments))
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = ProfileData.from_file(str(trace)).planes
        durations = defaultdict(list)
        for event in (e for plane in planes for line in plane.lines for e in line.events):
            if event.name in is_product:
                durations[event.name].append(event.duration_ns / 1e6)
    spent = dict.fromkeys(KINDS, 0.0)
    for name, times in durations.items():
        count = round(len(times) / CALLS)
        kind = KINDS[2 * (not is_product[name]) + (count < steps)]
        spent[kind] += count * statistics.median(times)
    return spent


def training_steps(cell: str, shape: Shape) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return the step that the benchmark times, ours and Flax's, each with its arguments."""
    data = jax.tree.map(jnp.asarray, vars(Data.random(shape)))
    batch = [data[name] for name in ("inputs", "lengths", "targets", "mask")]
    layers = map(pure_layer, make_layers(cell, shape))
    return {
        name: (jax.jit(pure.step), (pure.weights, *batch, LEARNING_RATE))
        for name, pure in zip(("unrolled", "flax.nnx"), layers)
    }


def main(problems: Sequence[tuple[str, Shape]]) -> None:
    print("Milliseconds of a training step, the median of each operation times its count.\n")
    for cell, shape in problems:
        steps = training_steps(cell, shape)
        spent = {name: profile(*step, shape.time) for name, step in steps.items()}
        print(f"{cell} {shape}".ljust(36), *(f"{name:>10s}" for name in spent))
        for kind in KINDS:
            print(kind.ljust(36), *(f"{spent[name][kind]:10.2f}" for name in spent))
        print("sum".ljust(36), *(f"{sum(times.values()):10.2f}" for times in spent.values()), "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", help="such as 'GRUCell 32x128x64x128'")
    chosen = [problem.split() for problem in parser.parse_args().problems or PROBLEMS]
    for cell, _ in chosen:
        if cell not in CELLS:
            parser.error(f"the cell is {cell!r}; expected one of {', '.join(CELLS)}.")
    main([(cell, Shape.parse(shape)) for cell, shape in chosen])
