"""Break the package on purpose, one small bug at a time: the notebooks alone must notice each.

Every mutant is a copy of `src` with one piece of text replaced. nbval runs the chapters against
the copy, quickest first, until one turns red. The working tree is never touched. Exit status 1
means that a mutant survived, or that the notebooks are red without any bug.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds that the chapters may take against one mutant


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file`, `old` (which stands there exactly once) becomes `new`."""

    file: str
    name: str
    old: str
    new: str


def gru(name: str, old: str, new: str) -> Mutant:
    return Mutant("gru.py", name, old, new)


UPDATE = 'jnp.dot(params["Wz"], x_t) + jnp.dot(params["Uz"], h_prev) + params["bz"]'
RESET = 'jnp.dot(params["Wr"], x_t) + jnp.dot(params["Ur"], h_prev) + params["br"]'
CANDIDATE = 'jnp.dot(params["Wh"], x_t) + jnp.dot(params["Uh"], reset * h_prev) + params["bh"]'
BLEND = "h_t = (1 - update) * h_prev + update * candidate"

MUTANTS = [
    gru("update gate turned round", BLEND, "h_t = update * h_prev + (1 - update) * candidate"),
    gru("candidate replaces the state", BLEND, "h_t = candidate"),
    gru("old state not scaled", BLEND, "h_t = h_prev + update * candidate"),
    gru("candidate not scaled", BLEND, "h_t = (1 - update) * h_prev + candidate"),
    gru("reset gate used as update gate", BLEND, BLEND.replace("update", "reset")),
    gru("update gate reads the reset weights", UPDATE, UPDATE.replace("Uz", "Ur")),
    gru("update gate loses its bias", UPDATE, UPDATE.removesuffix(' + params["bz"]')),
    gru("update gate subtracts its bias", UPDATE, UPDATE.replace(' + params["bz"]', ' - params["bz"]')),
    gru("update gate does not see the state", UPDATE, UPDATE.replace(' + jnp.dot(params["Uz"], h_prev)', "")),
    gru("update gate's recurrent matrix transposed", UPDATE, UPDATE.replace('params["Uz"]', 'params["Uz"].T')),
    gru("reset gate reads the update weights", RESET, RESET.replace("Wr", "Wz")),
    gru("reset gate loses its bias", RESET, RESET.removesuffix(' + params["br"]')),
    gru("reset gate takes the wrong bias", RESET, RESET.replace('"br"', '"bz"')),
    gru("reset gate's recurrent matrix transposed", RESET, RESET.replace('params["Ur"]', 'params["Ur"].T')),
    gru("candidate loses its bias", CANDIDATE, CANDIDATE.removesuffix(' + params["bh"]')),
    gru("candidate ignores the reset gate", CANDIDATE, CANDIDATE.replace("reset * h_prev", "h_prev")),
    gru("reset after the product", CANDIDATE, CANDIDATE.replace('jnp.dot(params["Uh"], reset * h_prev)', 'reset * jnp.dot(params["Uh"], h_prev)')),
    gru("update gate used as reset gate", CANDIDATE, CANDIDATE.replace("reset * h_prev", "update * h_prev")),
    gru("reset gate turned round", CANDIDATE, CANDIDATE.replace("reset * h_prev", "(1 - reset) * h_prev")),
    gru("candidate's recurrent matrix transposed", CANDIDATE, CANDIDATE.replace('params["Uh"]', 'params["Uh"].T')),
    gru("candidate squashed by the sigmoid", "candidate = jnp.tanh(", "candidate = jax.nn.sigmoid("),
    gru("update gate squashed by tanh", "update = jax.nn.sigmoid(", "update = jnp.tanh("),
    gru("reset gate squashed by a hard sigmoid", "reset = jax.nn.sigmoid(", "reset = jax.nn.hard_sigmoid("),
    gru("output is the old state", "return h_t, h_t", "return h_t, h_prev"),
    gru("carry is never updated", "return h_t, h_t", "return h_prev, h_t"),
    gru("output is the candidate", "return h_t, h_t", "return h_t, candidate"),
    gru("gradient stopped between steps", "return gru_step(params, h_prev, x_t)", "return gru_step(params, jax.lax.stop_gradient(h_prev), x_t)"),
    gru("time runs backwards", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs, reverse=True)"),
    gru("initial state ignored", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, jnp.zeros_like(initial_h), inputs)"),
    gru("first step left out", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs[1:])"),
    gru("last step left out", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs[:-1])"),
    gru("weights ten times too large", "scale: float = 0.01", "scale: float = 0.1"),
    gru("weights uniform instead of normal", "scale * jax.random.normal(next(keys), shape)", "scale * jax.random.uniform(next(keys), shape)"),
    gru("all weights from one key", "jax.random.normal(next(keys), shape)", "jax.random.normal(key, shape)"),
    gru("biases start at one", "jnp.zeros(shape, dtype)", "jnp.ones(shape, dtype)"),
    gru("input and hidden size exchanged", '"W": ("hidden_dim", "input_dim")', '"W": ("input_dim", "hidden_dim")'),
    gru("a missing parameter goes unnoticed", "    if missing:\n", "    if False:\n"),
    gru("integer arrays are let through", "if not jnp.issubdtype(value.dtype, jnp.floating):", "if False:"),
    gru("the carry's dtype is not checked", "if step_dtype != jnp.result_type(initial_h):", "if False:"),
    gru("batched input gets no advice", "elif batched is not None and len(shape) > len(expected):", "elif False:"),
    gru("a transposed array gets no advice", "if len(shape) == len(expected) == 2 and all(", "if False and all("),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="mutants whose name or file contains this")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in m.name or options.only in m.file]

    chapters = sorted((ROOT / "book").glob("[0-9][0-9]_*.ipynb"))
    seconds = {}
    for chapter in chapters:
        start = time.perf_counter()
        red = first_red_cell(ROOT / "src", chapter)
        seconds[chapter] = time.perf_counter() - start
        took = f"{seconds[chapter]:.0f} s"
        print(f"without a bug: {chapter.name} {red or 'green'}, {took}", flush=True)
        if red:
            return 1
    quickest_first = sorted(chapters, key=seconds.get)

    survivors = []
    with ThreadPoolExecutor(options.workers) as pool:
        verdicts = pool.map(lambda mutant: caught_by(mutant, quickest_first), chosen)
        for mutant, red in zip(chosen, verdicts):
            print(f"{mutant.file}: {mutant.name}: {red or 'SURVIVED'}", flush=True)
            if not red:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants turned a notebook red.")
    return 1 if survivors else 0


def caught_by(mutant: Mutant, chapters: list[Path]) -> str:
    """Return the first cell that turned red against `mutant`, or an empty string."""
    with mutated_source(mutant) as source:
        for chapter in chapters:
            red = first_red_cell(source, chapter)
            if red:
                return red
    return ""


@contextmanager
def mutated_source(mutant: Mutant) -> Iterator[Path]:
    """Yield a copy of `src` with one bug in it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "unrolled" / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in "
                f"{mutant.file}; a mutant needs exactly one place."
            )
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        yield source


def first_red_cell(source: Path, chapter: Path) -> str:
    """Run nbval on `chapter` with the package from `source`; return what failed first, if any."""
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"),
        *("--nbval", "--nbval-current-env", "--nbval-cell-timeout", "120"),
        *("--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), str(chapter)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f"{chapter.name}: no end after {TIMEOUT} s"
    if run.returncode == 0:
        return ""
    failed = list(_failed_cells(run.stdout))
    if not failed:
        raise SystemExit(f"nbval itself failed on {chapter.name}:\n{run.stdout}\n{run.stderr}")
    return failed[0]


def _failed_cells(output: str) -> Iterator[str]:
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            yield line.split(" ", 1)[1].split(" - ")[0].removeprefix("book/")


if __name__ == "__main__":
    sys.exit(main())
