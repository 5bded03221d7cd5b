"""Where the time of a layer goes, ours and Flax's: `python -m benchmarks.profile`.

JAX's profiler tells how long each operation of the compiled program took, and the program's text
whether it is a matrix product and whether it stands in a loop. Together they say what there is to
win: products have to be computed by everyone, all else is open. Operations that run side by side on
several cores count twice in such a sum, so the time of whole calls, taken in turns, stands beside
it, and the processor's time, which company on the machine lengthens least.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData

from benchmarks.contenders import CELLS, LEARNING_RATE, TASKS, Data, Shape, make_layers, pure_layer
from benchmarks.report import usable_cores

CALLS = 10  # that are traced; each operation counts with its median
ROUNDS = 11  # of whole calls, in turns
TRIVIAL = ("parameter", "get-tuple-element", "tuple", "constant", "bitcast")
TOLD = ("dot", "dynamic-slice", "dynamic-update-slice", "tanh", "exponential")
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


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    shape: str
    opcode: str
    called: str | None  # the computation of a fusion or a call, the body of a loop


def parse(program: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each computation of a compiled program's text.

    Example:
      >>> parse("ENTRY %main (x: f32[2]) -> f32[2] {\\n ROOT %a = f32[2]{0} add(%x, %x)\\n}")
      {'main': [Instruction(name='a', shape='f32[2]', opcode='add', called=None)]}
    """
    found: dict[str, list[Instruction]] = defaultdict(list)
    computation = ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = head[1]
        elif match := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?[\])}]) ([\w-]+)\(", " " + line):
            called = re.search(r"(?:calls|to_apply|body)=%([\w.-]+)", line)
            shape = re.sub(r"\{[^}]*\}", "", match[2])
            found[computation].append(Instruction(match[1], shape, match[3], called and called[1]))
    return dict(found)


def operations(program: str) -> dict[str, bool]:
    """Return the operations of a compiled program's text, and whether each is a matrix product.

    Loops and calls are left out, since what they run is there too.

    Example:
      >>> operations("%a = f32[2]{0} add(%x, %y)\\n ROOT %dot.1 = f32[2]{0} dot(%a, %b)")
      {'a': False, 'dot.1': True}
    """
    computations = parse(program)

    def multiplies(instruction: Instruction) -> bool:
        inside = computations[instruction.called] if instruction.called else ()
        return "dot" in (instruction.opcode, *(inner.opcode for inner in inside))

    return {
        instruction.name: multiplies(instruction)
        for instructions in computations.values()
        for instruction in instructions
        if instruction.opcode not in ("while", "call", "conditional")
    }


def loops(program: str) -> list[list[str]]:
    """Describe what the innermost loops of a compiled program do in each round.

    Returns:
      For each loop its operations on arrays; of a fusion, the operations in TOLD, and the count of
      all others.
    """
    computations = parse(program)

    def describe(name: str) -> Iterator[str]:
        for _, shape, opcode, called in computations[name]:
            if opcode == "call":
                yield from describe(called)
            elif "[]" in shape or opcode in TRIVIAL:
                continue
            elif opcode == "fusion":
                inside = Counter(
                    inner.opcode if inner.opcode in TOLD else "others"
                    for inner in computations[called]
                    if inner.opcode not in TRIVIAL
                )
                yield f"{shape} fusion: " + ", ".join(
                    f"{count} {inner}" for inner, count in sorted(inside.items())
                )
            else:
                yield f"{shape} {opcode}"

    bodies = [
        instruction.called
        for instructions in computations.values()
        for instruction in instructions
        if instruction.opcode == "while"
    ]
    innermost = [
        body for body in bodies if "while" not in {inner.opcode for inner in computations[body]}
    ]
    return [list(describe(body)) for body in innermost]


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


def contestants(cell: str, shape: Shape) -> dict[str, dict[str, tuple[Any, tuple[Any, ...]]]]:
    """Return, for each task, what the benchmark times, ours and Flax's, each with its arguments."""
    data = jax.tree.map(jnp.asarray, vars(Data.random(shape)))
    batch = [data[name] for name in ("inputs", "lengths", "targets", "mask")]
    layers = dict(zip(("unrolled", "flax.nnx"), map(pure_layer, make_layers(cell, shape))))
    forward = {n: (jax.jit(p.forward), (p.weights, *batch[:2])) for n, p in layers.items()}
    step = {n: (jax.jit(p.step), (p.weights, *batch, LEARNING_RATE)) for n, p in layers.items()}
    return dict(zip(TASKS, (forward, step)))


def stages(function: Any, arguments: Sequence[Any]) -> tuple[dict[str, float], str]:
    """Return the seconds of each stage of compiling a jitted function anew, and its program."""
    jax.clear_caches()
    start = time.perf_counter()
    traced = function.trace(*arguments)
    middle = time.perf_counter()
    lowered = traced.lower()
    end = time.perf_counter()
    program = lowered.compile().as_text()
    taken = middle - start, end - middle, time.perf_counter() - end
    return dict(zip(("trace", "lower", "compile"), taken)), program


def call_times(runs: Sequence[tuple[Any, Sequence[Any]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return seconds and processor seconds of calls that take turns, each (rounds, runs)."""
    for function, arguments in runs:
        jax.block_until_ready(function(*arguments))
    times = np.zeros((2, ROUNDS, len(runs)))
    for number in range(ROUNDS):
        for index in range(len(runs))[:: 1 if number % 2 == 0 else -1]:
            function, arguments = runs[index]
            start = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(function(*arguments))
            times[:, number, index] = [time.perf_counter(), time.process_time()] - start
    return times[0], times[1]


def main(problems: Sequence[tuple[str, Shape]]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"On {usable_cores()} cores, {os.getloadavg()[0]:.1f} programs at work before.")
    print("Milliseconds: of a call, ours and Flax's in turns; of operations, median times count.")
    for cell, shape in problems:
        for task, runs in contestants(cell, shape).items():
            names = [f"{cell} {shape}, {task}", *runs]
            print("\n" + f"{names[0]:44s}" + "".join(f"{name:>12s}" for name in names[1:]))

            def line(label, numbers, digits=2):
                print(f"{label:44s}" + "".join(f"{number:12.{digits}f}" for number in numbers))

            programs = {name: stages(*run) for name, run in runs.items()}
            spent = [profile(*run, shape.time) for run in runs.values()]
            taken = call_times(list(runs.values()))
            for label, times in zip(("a call", "its processor time"), taken):
                line(label, 1e3 * np.median(times, axis=0))
                print(f"{'  Flax / ours':44s}{np.median(times[:, 1] / times[:, 0]):12.2f}")
            for kind in KINDS:
                line(kind, [times[kind] for times in spent])
            line("sum of the operations", [sum(times.values()) for times in spent])
            for stage in ("trace", "lower", "compile"):
                line(f"{stage}, s", [seconds[stage] for seconds, _ in programs.values()])
            counts = [sum(map(len, parse(text).values())) for _, text in programs.values()]
            line("instructions of the program", counts, 0)
            for name, (_, text) in programs.items():
                for loop in loops(text):
                    print(f"  a loop of {name}:", *loop, sep="\n    ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", help="such as 'GRUCell 32x128x64x128'")
    chosen = [problem.split() for problem in parser.parse_args().problems or PROBLEMS]
    for cell, _ in chosen:
        if cell not in CELLS:
            parser.error(f"the cell is {cell!r}; expected one of {', '.join(CELLS)}.")
    main([(cell, Shape.parse(shape)) for cell, shape in chosen])
