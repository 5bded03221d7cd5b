"""Execute the book's notebooks and store them in canonical form, or say what is wrong with them.

`make notebooks` runs this. A notebook is written only when every cell ran cleanly; otherwise the
file stays as it was and the message names the notebook and the cell. Running it twice gives the
same bytes: a stored output is kept as long as a new one differs from it only in measured values.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120  # seconds a cell may take
CELL_METADATA = ("mystnb", "tags")
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # dead without a kernel, ids are random
MEASURED_TAG = "measured"  # on a cell whose figure shows measured values
SETUP_CELL = """\
# Run this cell first. It installs the book's package where it is missing, as in Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("unrolled") is None:
    source = "unrolled[book] @ git+{repository}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)"""


class NotebookError(Exception):
    """A notebook cannot be stored; the message names the cell and the reason."""


def all_notebooks() -> list[Path]:
    """Return the book's chapters and solutions, in order."""
    return sorted([*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book/solutions").glob("*.ipynb")])


def declared_repository() -> str:
    """Return the repository that pyproject.toml declares: the one place where it stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def setup_cell() -> str:
    """Return the source that every notebook's first code cell must have."""
    return SETUP_CELL.format(repository=declared_repository())


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook, or raise NotebookError when it is not one."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise NotebookError(f"not a readable notebook: {error}") from error


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy without anything that changes from run to run or from editor to editor."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    seen: set[str] = set()
    for cell in notebook.cells:
        cell.source = cell.source.strip("\n")
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        )
        base, copies = cell.get("id") or "cell", 1
        cell.id = base
        while cell.id in seen:
            copies += 1
            cell.id = f"{base}-{copies}"
        seen.add(cell.id)
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
                output.get("data", {}).pop(WIDGET_VIEW, None)
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
    return notebook


def dumps(notebook: nbformat.NotebookNode) -> str:
    """Return the text of a notebook's file."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def execute(path: Path) -> nbformat.NotebookNode:
    """Run the notebook at `path` in a fresh kernel and return it in canonical form."""
    stored = read(path)
    fresh = canonical(stored)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    begun: list[int] = []
    client = NotebookClient(
        fresh,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=lambda cell, cell_index: begun.append(cell_index),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        running = next(i for i, cell in enumerate(fresh.cells) if _failed(cell))
        raise NotebookError(f"{describe(fresh, running)} raised {error.ename}: {error}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        where = f"in {describe(fresh, begun[-1])}" if begun else "before the first cell"
        raise NotebookError(f"the kernel gave up {where}: {error}") from error
    fresh = canonical(fresh)
    for index, cell in enumerate(fresh.cells):
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream" and output.name == "stderr":
                    raise NotebookError(
                        f"{describe(fresh, index)} wrote to stderr: {output.text.strip()}"
                    )
    _keep_measured(stored, fresh)
    return fresh


def describe(notebook: nbformat.NotebookNode, index: int) -> str:
    """Name a code cell for a message: the number that nbval gives it, Jupyter's, its first line."""
    before = sum(cell.cell_type == "code" for cell in notebook.cells[:index])
    first = notebook.cells[index].source.strip().splitlines()[0]
    return f"Cell {before}, [{before + 1}] in Jupyter (`{first[:60]}`)"


def masked(text: str) -> str:
    """Return `text` with measured values masked, by the rule that nbval uses too."""
    config = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for pattern, replacement in re.findall(r"regex: (.*)\nreplace: (.*)\n", config):
        text = re.sub(pattern, replacement, text)
    return text


def problems(path: Path) -> list[str]:
    """Return what nbval would let pass in silence, or what a reader would stumble over."""
    try:
        notebook = read(path)
    except NotebookError as error:
        return [str(error)]
    found = []
    code = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    if not code:
        return ["has no code cell"]
    if code[0][1].source != setup_cell():
        found.append(
            f"{describe(notebook, code[0][0])} is not the set-up cell: run `make repository`"
        )
    for count, (index, cell) in enumerate(code, start=1):
        where = describe(notebook, index)
        if cell.execution_count != count:
            found.append(
                f"{where} has execution count {cell.execution_count}, not {count}: "
                "run `make notebooks`"
            )
        markers = [tag for tag in cell.metadata.get("tags", []) if tag != MEASURED_TAG]
        if markers:
            found.append(f"{where} has tags {markers}; only `{MEASURED_TAG}` is allowed")
        if re.search(r"NBVAL_|PYTEST_VALIDATE", cell.source):
            found.append(f"{where} has a comment that makes nbval skip or ignore it")
        if re.search(r"^\s*[%!]", cell.source, re.MULTILINE):
            found.append(f"{where} uses a magic or a shell line; write Python")
        found += [f"{where} {problem}" for problem in _output_problems(notebook, index)]
    for cell in notebook.cells:
        prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        if cell.cell_type == "markdown" and (hidden := re.search(r"^ *%.*", prose, re.MULTILINE)):
            found.append(
                "has a line that the book takes for a comment, since it begins with a percent "
                f"sign: {hidden[0]!r}"
            )
    if not found and dumps(canonical(notebook)) != path.read_text(encoding="utf-8"):
        found.append("is not in canonical form: run `make notebooks`")
    return found


def _output_problems(notebook: nbformat.NotebookNode, index: int) -> list[str]:
    cell, found = notebook.cells[index], []
    for output in cell.outputs:
        if output.output_type == "error":
            found.append(f"stores the error {output.ename}: {output.evalue}")
        elif output.output_type == "stream" and output.name == "stderr":
            found.append("stores output on stderr")
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/html", ""))
        if re.search(r"\bat 0x[0-9a-f]+", text):
            found.append("prints a memory address, which changes from run to run")
        if re.search(r"difference.*: False", text):
            found.append("prints a parity that does not hold")
        # In an exercise's rubric, `[x]` says that the bound holds, and is compared to the letter.
        unbounded = re.sub(r"^ +\[[x ]\].*", "", text, flags=re.MULTILINE)
        if re.search("≈| data-measured=", unbounded) and "assert " not in cell.source:
            found.append("prints or shows a measured value without asserting its bound")
        if "image/png" in output.get("data", {}):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt) < 20:
                found.append('has a figure without alt text: {"mystnb": {"image": {"alt": "…"}}}')
            following = notebook.cells[index + 1 : index + 2]
            if not following or not following[0].source.startswith("**Figure "):
                found.append(
                    "has a figure without a caption (a cell that starts `**Figure n.m.**`)"
                )
    return found


def _failed(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and any(o.output_type == "error" for o in cell.outputs)


def _merge_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if (
            merged
            and output.output_type == "stream" == merged[-1].output_type
            and output.name == merged[-1].name
        ):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _keep_measured(stored: nbformat.NotebookNode, fresh: nbformat.NotebookNode) -> None:
    """Put stored outputs back into `fresh` where only measured values differ."""
    before = {cell.get("id"): cell for cell in stored.cells if cell.cell_type == "code"}
    for cell in fresh.cells:
        old = before.get(cell.id)
        if cell.cell_type != "code" or old is None or old.source != cell.source:
            continue
        old_outputs = _merge_streams(copy.deepcopy(old.outputs))
        if _comparable(old_outputs) != _comparable(cell.outputs):
            continue
        for kept, output in zip(old_outputs, cell.outputs):
            if output.output_type == "stream":
                output.text = kept.text
            for kind in output.get("data", {}):
                if kind != "image/png" or MEASURED_TAG in cell.metadata.get("tags", []):
                    output.data[kind] = kept.data[kind]


def _comparable(outputs: list[nbformat.NotebookNode]) -> list:
    """Return the outputs without pictures and with measured values masked."""
    return [
        (
            output.output_type,
            masked(str(output.get("text", ""))),
            {
                kind: "" if kind == "image/png" else masked(str(data))
                for kind, data in output.get("data", {}).items()
            },
        )
        for output in outputs
    ]


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".ipynb.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of the book's")
    failed = 0
    for path in parser.parse_args().notebooks or all_notebooks():
        start = time.perf_counter()
        try:
            text = dumps(execute(path.resolve()))
        except NotebookError as error:
            failed += 1
            print(f"{path}: {error}\n{path}: left as it was.", file=sys.stderr)
            continue
        changed = text != path.read_text(encoding="utf-8")
        if changed:
            _write(path, text)
        seconds = time.perf_counter() - start
        print(f"{path}: {'stored' if changed else 'unchanged'} ({seconds:.0f} s)", flush=True)
        for problem in problems(path.resolve()):
            failed += 1
            print(f"{path}: {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
