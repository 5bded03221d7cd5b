"""Run the benchmark: `python -m benchmarks`; `make bench` does it in the pinned environment."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A GPU is shared with torch, so JAX must not take all of its memory at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from benchmarks import contenders, measure, report
from benchmarks.contenders import CELLS, TASKS, Disagreement, Shape
from benchmarks.products import products_alone

ROOT = Path(__file__).resolve().parent.parent
SHAPES = (
    "1x128x32x64",
    "32x128x64x128",
    "64x256x128x256",
    "16x1000x32x64",
    "64x128x512x512",
    "8x4000x1x32",
    "256x40x1x6",
    "32x128x64x128-ragged",
)
QUICK_CELLS = ("GRUCell",)
QUICK_SHAPES = ("256x40x1x6", "32x128x64x128-ragged")
ROUNDS, QUICK_ROUNDS = 15, 3
CALL_SHAPE = Shape(32, 128, 64, 128)  # for compile time and calls outside jit
MEMORY_SHAPE = Shape(16, 4000, 64, 128)
NO_TORCH = "torch is not installed, so only Flax is compared; pip install '.[bench]' adds it."


def compare(cell: str, shape: Shape, against: list[str], rounds: int, peak: float) -> list[dict]:
    """Verify all contenders for a problem, then time them turn by turn.

    Returns:
      For each task and rival a row of results.json.

    Raises:
      Disagreement: a rival computes something else; the message names the problem.
    """
    ours, *rivals = contestants = contenders.make_contenders(cell, shape, against)
    for rival in rivals:
        try:
            contenders.verify(ours, rival)
        except Disagreement as error:
            raise Disagreement(f"{cell}, {shape}: {error}") from None
    rows, floor = [], products_alone(cell, shape)
    for task, passes in zip(TASKS, (1, 3)):  # a gradient costs two more forward passes
        runs = [*(contender.tasks[task] for contender in contestants), floor[task]]
        selects = [*(contender.select for contender in contestants), lambda: None]
        times = measure.interleave(runs, rounds, selects)
        of_peak = passes * shape.flops(cell) / np.median(times[:, 0]) / peak
        rows += [
            {
                "cell": cell,
                "shape": str(shape),
                "task": task,
                "against": rival.name,
                "rounds": len(times),
                "ours_seconds": measure.quartiles(times[:, 0]),
                "theirs_seconds": measure.quartiles(times[:, index]),
                "ratio": measure.quartiles(times[:, index] / times[:, 0]),
                "limit": measure.quartiles(times[:, index] / times[:, -1]),
                "percent_of_peak": 100 * float(of_peak),
            }
            for index, rival in enumerate(rivals, start=1)
        ]
    for contender in contestants:
        contender.select()  # the last one uses all threads again
    return rows


def compare_pairs(kind: str, cell: str, rounds: int) -> dict[str, Any]:
    """Compare with Flax what has one number for a cell: "compile", "eager" or "memory"."""
    shape = MEMORY_SHAPE if kind == "memory" else CALL_SHAPE
    layers = contenders.make_layers(cell, shape)
    pures = [contenders.pure_layer(layer) for layer in layers]
    row: dict[str, Any] = {"cell": cell, "shape": str(shape), "against": "flax.nnx"}

    def array(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.batch, shape.time, *sizes), np.float32)

    arguments = (array(shape.features), None, array(shape.hidden), array(1))
    if kind == "memory":
        ours, theirs = (
            measure.gradient_bytes(pure.loss, pure.weights, *arguments) / 1e6 for pure in pures
        )
        return row | {"ours": ours, "theirs": theirs, "ratio": theirs / ours}
    if kind == "compile":
        runs = [
            lambda pure=pure: measure.cold_compile(pure.step, pure.weights, *arguments, 0.1)
            for pure in pures
        ]
    else:
        inputs = jax.numpy.ones(arguments[0].shape)
        runs = [lambda layer=layer: jax.block_until_ready(layer(inputs)) for layer in layers]
        for run in runs:
            run()  # what can be compiled is
    times = measure.interleave(runs, rounds)
    ours, theirs = np.median(times, axis=0).tolist()
    ratio = measure.quartiles(times[:, 1] / times[:, 0])
    return row | {"ours": ours, "theirs": theirs, "ratio": ratio, "rounds": len(times)}


def run(cells: Sequence[str], shapes: Sequence[Shape], against: list[str], rounds: int) -> dict:
    """Measure everything, telling on stdout what is done, and return what results.json holds."""
    machine = report.describe_machine()
    if machine["load_before"] and machine["load_before"] > 0.3 * machine["cores"]:
        say(f"The machine is busy (load {machine['load_before']}): expect noisy ratios.")
    peak = measure.gemm_peak()
    say(f"A large matrix product reaches {peak / 1e9:.0f} GFLOP/s.")
    problems = [(cell, shape) for cell in cells for shape in shapes]
    comparisons: list[dict] = []
    for number, (cell, shape) in enumerate(problems, start=1):
        start = time.perf_counter()
        rows = compare(cell, shape, against, rounds, peak)
        comparisons += rows
        ratios = {task: [r for r in rows if r["task"] == task] for task in TASKS}
        told = "; ".join(
            f"{task} " + ", ".join(f"{r['ratio']['median']:.2f} × {r['against']}" for r in members)
            for task, members in ratios.items()
            if members
        )
        taken = time.perf_counter() - start
        say(f"[{number}/{len(problems)}, {taken:.0f} s] {cell} {shape}: {told or 'no rival'}")
    pairs: dict[str, list[dict]] = {"memory": [], "eager": [], "compile": []}
    for kind, found in pairs.items():
        for cell in cells if "flax" in against else ():
            found.append(compare_pairs(kind, cell, max(1, rounds // 4)))
            say(
                f"[{kind}] {cell}: ours {found[-1]['ours']:.3g}, flax.nnx {found[-1]['theirs']:.3g}"
            )
    return {
        "machine": machine,
        "rounds": rounds,
        "gemm_gflops": peak / 1e9,
        "comparisons": comparisons,
        "summary": report.summarize(comparisons),
        **pairs,
    }


def say(line: str) -> None:
    print(line, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare the stack with flax.nnx and torch, turn by turn in one process.",
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, metavar="CELL", help=", ".join(CELLS))
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="BxTxIxH", help="or BxTxIxH-ragged"
    )
    parser.add_argument("--against", nargs="+", choices=("flax", "torch"), help="default: both")
    parser.add_argument("--rounds", type=int, help=f"at most so many turns each ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="one cell, two shapes, few rounds")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of results.json and results.svg: benchmarks after a full run, and "
        "_build/benchmarks after any other, so that it does not replace the full results",
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; expected at least 1.")
    full = not (options.cells or options.shapes or options.against or options.quick)
    options.output = options.output or ROOT / ("benchmarks" if full else "_build/benchmarks")
    options.cells = options.cells or (QUICK_CELLS if options.quick else CELLS)
    shapes = QUICK_SHAPES if options.quick else SHAPES
    options.shapes = options.shapes or [Shape.parse(shape) for shape in shapes]
    options.against = options.against or ["flax", "torch"]
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def _shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    jax.config.update("jax_enable_compilation_cache", False)  # what compiling costs is measured
    if jax.default_backend() != "cpu":  # both libraries in float32, not in TensorFloat32
        jax.config.update("jax_default_matmul_precision", "highest")
        if contenders.torch:
            contenders.torch.backends.cudnn.allow_tf32 = False
    if contenders.torch is None and "torch" in options.against:
        options.against.remove("torch")
        say(NO_TORCH)
        if not options.against:
            sys.exit(1)
    start = time.perf_counter()
    try:
        results = run(options.cells, options.shapes, options.against, options.rounds)
    except Disagreement as error:
        sys.exit(f"Refused: {error}")
    paths = report.write(results, options.output)
    say("\n" + report.table(results))
    minutes = (time.perf_counter() - start) / 60
    say(f"\n{minutes:.1f} minutes. Written: {', '.join(os.path.relpath(path) for path in paths)}")


if __name__ == "__main__":
    main()
