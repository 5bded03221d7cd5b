"""How it is measured: turn by turn in one process, so that a noisy machine is noisy for both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TURN_SECONDS = 0.02  # short calls are repeated until a turn lasts as long
FEWEST_ROUNDS = 5
COMPARISON_SECONDS = 3.0  # after this no round is begun that FEWEST_ROUNDS does not ask for
GEMM_SIZE = 2048

Run = Callable[[], Any]


def seconds(run: Run, repeats: int = 1) -> float:
    """Time one call: the mean of so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def interleave(
    runs: Sequence[Run], rounds: int, selects: Sequence[Run] | None = None
) -> np.ndarray:
    """Let every run have its turn, round after round, in an order that turns round each time.

    A turn begins with a call that is not timed, unless calls are long: it brings the weights back
    into the caches and puts the other library's threads to sleep.

    Args:
      runs: functions that do the work and return when it is done; already compiled.
      rounds: how many rounds; fewer, but at least FEWEST_ROUNDS, if they take too long.
      selects: for each run what has to be called before its turn.

    Returns:
      Seconds of a call, shape (rounds, runs).
    """
    selects = selects or [lambda: None] * len(runs)
    repeats = []
    for run, select in zip(runs, selects):
        select()
        taken = seconds(run)
        if taken < 1:  # then the first call may have been the slow one
            taken = seconds(run)
        repeats.append(max(1, round(TURN_SECONDS / taken)))

    def turn(index: int) -> float:
        selects[index]()
        if repeats[index] > 1:
            runs[index]()
        return seconds(runs[index], repeats[index])

    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < min(rounds, FEWEST_ROUNDS) or (
        len(times) < rounds and time.perf_counter() - start < COMPARISON_SECONDS
    ):
        order = list(range(len(runs)))
        taken = {index: turn(index) for index in (order if len(times) % 2 == 0 else order[::-1])}
        times.append([taken[index] for index in order])
    return np.array(times)


def quartiles(samples: Any) -> dict[str, float]:
    """Return median and quartiles of a sample.

    Example:
      >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
      {'median': 3.0, 'q1': 2.0, 'q3': 4.0}
    """
    q1, median, q3 = np.quantile(np.asarray(samples), (0.25, 0.5, 0.75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the mean that fits ratios: twice as fast and half as fast make 1.

    Example:
      >>> geometric_mean([2.0, 0.5])
      1.0
    """
    return float(np.exp(np.mean(np.log(list(ratios)))))


def gemm_peak() -> float:
    """Return the most operations a second that a large float32 matrix product reaches here."""
    square = jax.random.normal(jax.random.key(0), (GEMM_SIZE, GEMM_SIZE))
    multiply = jax.jit(jnp.matmul)

    def run():
        return jax.block_until_ready(multiply(square, square))

    run()
    return 2 * GEMM_SIZE**3 / min(seconds(run) for _ in range(10))


def gradient_bytes(loss: Callable[..., Any], *arguments: Any) -> int:
    """Return what the compiled gradient allocates, its result included; it is not run."""
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def cold_compile(function: Callable[..., Any], *arguments: Any) -> None:
    """Trace, lower and compile a function that JAX has never seen."""
    jax.clear_caches()
    jax.jit(function).lower(*arguments).compile()
