"""What says whether a notebook notices a bug: nbval, against a copy of `src` that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds that a notebook may take
CACHE = {  # as in the Makefile: programs that JAX has compiled once
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "_build" / "jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def notebooks() -> list[Path]:
    """Return what judges: the chapters and the pages that check everything, not the solutions."""
    return sorted((ROOT / "book").glob("*.ipynb"))


@contextmanager
def changed_source(file: str, text: str) -> Iterator[Path]:
    """Yield a copy of `src` in which a file of the package has this text."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "unrolled" / file).write_text(text, encoding="utf-8")
        yield source


def first_red_cell(source: Path, notebook: Path, line_log: Path | None = None) -> str:
    """Run nbval on a notebook with the package from `source`; return what failed first, if any.

    The lines of the package that it executes are written into the folder line_log, if there is one.
    """
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"),
        *("--nbval", "--nbval-current-env", "--nbval-cell-timeout", "120"),
        *("--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), str(notebook)),
    ]
    environment = {**CACHE, **os.environ, "PYTHONPATH": str(source)}
    if line_log is not None:
        environment["PYTHONPATH"] += os.pathsep + str(ROOT / "tools" / "line_log")
        environment |= {"LINE_LOG": str(line_log), "LINE_LOG_PACKAGE": str(source / "unrolled")}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f"{notebook.name}: no end after {TIMEOUT} s"
    if run.returncode == 0:
        return ""
    failed = list(_failed_cells(run.stdout))
    if not failed:
        raise SystemExit(f"nbval itself failed on {notebook.name}:\n{run.stdout}\n{run.stderr}")
    return failed[0]


def without_a_bug(notebook: Path, line_log: Path | None = None) -> tuple[str, float]:
    """Return the first red cell of a notebook, if any, and the seconds it took."""
    start = time.perf_counter()
    red = first_red_cell(ROOT / "src", notebook, line_log)
    seconds = time.perf_counter() - start
    print(f"without a bug: {notebook.name} {red or 'green'}, {seconds:.0f} s", flush=True)
    return red, seconds


def _failed_cells(output: str) -> Iterator[str]:
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            yield line.split(" ", 1)[1].split(" - ")[0].removeprefix("book/")
