"""Test the package and the chapters on other versions than the pinned ones.

`make test-versions` runs this. Each set has an environment of its own in _build/versions:

- lowest: the lowest versions that pyproject.toml admits, of the packages it names;
- newest: the newest that there are for this Python, whatever requirements.txt pins;
- python: the newest for another Python than this one, if there is one.

In each the package's unit tests run, and all chapters with their assertions and checks. What a
chapter prints and draws is *not* compared there: a jaxpr, a compiled program, the pixels of a
figure and the last digits of a training differ between versions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "versions"
UV = Path(sys.executable).parent / "uv"
SETS = ("lowest", "newest", "python")
# What runs the tests; its versions are the pinned ones, as far as this Python has them.
RUNNERS = ("hypothesis", "ipykernel", "nbclient", "nbformat", "nbval", "pytest", "pytest-xdist")
# torch and Keras stay out: they take gigabytes, and only conversions need them.
WITHOUT_ORACLES = "not torch and not keras"
UNIT_TESTS = [
    *(f"tests/test_{name}.py" for name in ("gru", "cells", "layers", "sequences", "scan")),
    *(f"tests/test_{name}.py" for name in ("flax_dropin", "convert", "lowering", "sharding")),
    *(f"tests/test_{name}.py" for name in ("datasets", "examples", "laboratory", "explorers")),
    *(f"tests/test_{name}.py" for name in ("figures", "finite", "language", "train_language")),
    "tests/exercises",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=SETS, metavar="SET", help="default: all three")
    parser.add_argument("--python", help="the other Python; default: a newer one on the PATH")
    parser.add_argument("--only", choices=("unit", "chapters"), help="half of the tests")
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    failed = []
    for name in options.sets:
        python = (options.python or other_python()) if name == "python" else sys.executable
        if python is None:
            print("python: skipped, no other Python of at least 3.11 was found; name one: --python")
            continue
        environment = install(name, python)
        print(f"{name}: {versions(environment)}", flush=True)
        for what, command in tests(environment, options.workers):
            if options.only not in (None, what):
                continue
            if subprocess.run(command, cwd=ROOT).returncode:
                failed.append(f"{name}, {what}")
    if failed:
        raise SystemExit(f"Failed: {'; '.join(failed)}.")


def other_python() -> str | None:
    """The newest Python on the PATH that runs and is not of this one's version."""
    for minor in range(20, 10, -1):
        name = f"python3.{minor}"
        if minor != sys.version_info.minor:
            try:
                found = subprocess.run([name, "-c", "print(1)"], capture_output=True)
            except FileNotFoundError:
                continue
            if found.returncode == 0:
                return name
    return None


def install(name: str, python: str) -> Path:
    """Make or update the environment of a set; return its Python."""
    folder = FOLDER / name
    executable = folder / "bin" / "python"
    if not executable.exists():
        subprocess.run([UV, "venv", "--quiet", "--python", python, folder], check=True)
    pip = [UV, "pip", "install", "--quiet", "--python", executable]
    resolution = "lowest-direct" if name == "lowest" else "highest"
    upgrade = [] if name == "lowest" else ["--upgrade"]
    book = ["--editable", f"{ROOT}[book,examples]"]
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    runners = [re.search(rf"^{name}==\S+", pins, re.MULTILINE)[0] for name in RUNNERS]
    subprocess.run([*pip, *upgrade, "--resolution", resolution, *book, *runners], check=True)
    return executable


def versions(python: Path) -> str:
    """What is installed that counts."""
    shown = (
        "import sys; from importlib.metadata import version as v; print(sys.version.split()[0], "
    )
    names = ("jax", "jaxlib", "flax", "numpy", "optax", "matplotlib", "ipywidgets")
    code = shown + ", ".join(f"'{name}', v('{name}')" for name in names) + ")"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def tests(python: Path, workers: str) -> list[tuple[str, list]]:
    """The commands that test an environment."""
    pytest = [python, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider"]
    chapters = sorted((ROOT / "book").glob("**/*.ipynb"))  # and solutions, and what is at hand
    command = [python, "-c", "import jax; print(jax.__version_info__ < (0, 10))"]
    if subprocess.run(command, capture_output=True, text=True).stdout.strip() == "True":
        print("Without chapter 11, which says that it needs JAX 0.10.", flush=True)
        chapters = [chapter for chapter in chapters if chapter.stem != "11_speed"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "240"]
    return [
        ("unit", [*pytest, "-k", WITHOUT_ORACLES, *UNIT_TESTS]),
        ("chapters", [*pytest, "--dist", "loadfile", *nbval, *chapters]),
    ]


if __name__ == "__main__":
    main()
