"""A chapter run the way Colab runs it: a machine with jax and flax, an empty folder, one file.

`make test` rehearses one chapter on the pinned versions. `make colab` rehearses all of them, on
the pinned, the lowest or the newest versions that pyproject.toml admits (VERSIONS=lowest).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from tools import notebooks, release

VERSIONS = os.environ.get("COLAB_VERSIONS", "")
CHAPTERS = sorted((notebooks.ROOT / "book").glob("*.ipynb" if VERSIONS else "02_gates.ipynb"))
UV = str(Path(sys.executable).with_name("uv"))  # installs many times faster than pip
ON_COLAB = ["jax", "flax", "optax", "matplotlib", "ipywidgets"]
NEEDS_A_NEWER_JAX = "11_speed"  # and says so in its second cell
MOST_MEMORY = 2e9  # bytes: what a free machine is sure to have
ON_A_MAC = sys.platform == "darwin"  # there the system counts memory in bytes, not in kB
RUNNERS = ["ipykernel>=6.29", "nbclient>=0.10"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package as a reader installs it: a wheel of the sources, or the one of `make dist`."""
    if "COLAB_WHEEL" in os.environ:
        return Path(os.environ["COLAB_WHEEL"])
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(notebooks.ROOT)], check=True)
    return next(folder.glob("unrolled-*.whl"))


class Machine:
    """A virtual environment of its own, in which nothing of this project is installed."""

    def __init__(self, folder: Path):
        subprocess.run([UV, "venv", "--quiet", "--seed", str(folder)], check=True)
        self.python = str(folder / "bin" / "python")
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST", "XLA_FLAGS")
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def try_to_run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        command = [self.python, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, **options
        )

    def run(self, *arguments: str, **options) -> str:
        done = self.try_to_run(*arguments, **options)
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def forget(self, package: str) -> None:
        """Uninstall a package, if it is there."""
        self.run("-m", "pip", "uninstall", "--quiet", "--yes", package)

    def packages(self) -> dict[str, str]:
        listed = json.loads(self.run("-m", "pip", "list", "--format=json"))
        return {package["name"]: package["version"] for package in listed}


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("colab") / "env")
    install = [UV, "pip", "install", "--quiet", "--python", machine.python]
    subprocess.run([*install, *versions(VERSIONS or "pinned"), *RUNNERS], check=True)
    packages = machine.packages()
    print(*(f"{name} {packages[name]}" for name in ("jax", "flax", "numpy")), sep=", ")
    return machine


def versions(which: str) -> list[str]:
    """What tells the installer what Colab has, and in which versions."""
    if which == "newest":
        return ON_COLAB
    if which == "lowest":
        text = (notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        ranges = [*project["dependencies"], *project["optional-dependencies"]["book"]]
        on_colab = [bound for bound in ranges if not bound.startswith("mnist1d")]
        return ["--resolution", "lowest-direct", *on_colab]
    assert which == "pinned", f"VERSIONS is {which!r}; expected pinned, lowest or newest"
    return ["--constraint", str(notebooks.ROOT / "requirements.txt"), *ON_COLAB]


def test_the_wheel_holds_the_package_every_licence_and_nothing_else(wheel):
    assert not release.wheel_faults(wheel)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_in_an_empty_folder_and_leaves_jax_alone(machine, wheel, tmp_path, chapter):
    machine.forget("unrolled")
    before = machine.packages()
    assert "unrolled" not in before and "jax" in before

    stored = notebooks.read(chapter)
    copy = notebooks.read(chapter)
    setup = next(cell for cell in copy.cells if cell.cell_type == "code")
    source = f"git+{notebooks.declared_repository()}"
    assert setup.source.count(source) == 1
    setup.source = setup.source.replace(source, wheel.as_uri())
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (tmp_path / chapter.name).write_text(nbformat.writes(copy), encoding="utf-8")

    execute = (
        "import nbformat, nbclient\n"
        f"book = nbformat.read({chapter.name!r}, as_version=4)\n"
        "nbclient.NotebookClient(book, timeout=120, kernel_name='python3').execute()\n"
        f"nbformat.write(book, {chapter.name!r})\n"
        "import resource\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"  # the kernel's, mostly
    )
    if VERSIONS == "lowest" and chapter.stem == NEEDS_A_NEWER_JAX:
        done = machine.try_to_run("-c", execute, cwd=tmp_path)
        assert done.returncode != 0 and "This chapter needs JAX 0.10" in done.stderr
        return
    highest = int(machine.run("-c", execute, cwd=tmp_path)) * (1 if ON_A_MAC else 1024)
    assert highest < MOST_MEMORY, f"{chapter.stem} takes {highest / 1e9:.1f} GB of memory, not 2"

    after = machine.packages()
    assert after.pop("unrolled")
    assert {name: after[name] for name in before} == before, "the set-up cell moved a package"

    if VERSIONS in ("lowest", "newest"):
        return  # a compiled program prints itself differently; the chapter's own checks passed
    fresh = notebooks.canonical(notebooks.read(tmp_path / chapter.name))
    for index, (cell, reference) in enumerate(zip(fresh.cells, stored.cells, strict=True)):
        # pip may warn in the set-up cell; everything after it prints what the book shows.
        if cell.cell_type == "code" and cell.execution_count > 1:
            assert printed(cell) == printed(reference), notebooks.describe(stored, index)


def test_the_set_up_cell_does_nothing_where_the_package_is_installed():
    done = subprocess.run(
        [sys.executable, "-c", notebooks.setup_cell()], capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == ""


def test_the_set_up_cell_fails_loudly_when_the_package_cannot_be_installed(machine):
    cell = notebooks.setup_cell().replace("git+https://", "file:///nowhere/")
    done = subprocess.run(
        [machine.python, "-c", cell.replace("unrolled", "unrolled_is_missing")],
        env=machine.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "CalledProcessError" in done.stderr


def printed(cell) -> str:
    return notebooks.masked("".join(output.get("text", "") for output in cell.outputs))
