"""What nbval passes in silence: cells never run, stored errors, skip markers, missing alt text."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from tools import notebooks

NOTEBOOKS = notebooks.all_notebooks()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_executed_complete_and_canonical(path):
    found = notebooks.problems(path)
    name = path.relative_to(notebooks.ROOT)
    assert not found, "\n" + "\n".join(f"{name}: {problem}" for problem in found)


LOOKED_UP = {"errors", "options"}  # the one compares nothing, the other in float64


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem not in LOOKED_UP], ids=lambda path: path.name
)
def test_notebook_asks_for_full_products_before_it_computes(path):
    _, second, *_ = (cell for cell in notebooks.read(path).cells if cell.cell_type == "code")
    asked = 'jax.config.update("jax_default_matmul_precision", "highest")'
    assert asked in second.source, "a GPU or TPU would call right numbers wrong"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The text of a small notebook that has nothing wrong with it."""
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(notebooks.setup_cell(), execution_count=1, id="setup"),
            nbformat.v4.new_code_cell(
                "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()",
                id="figure",
                metadata={"mystnb": {"image": {"alt": "A straight line rising from 0 to 1."}}},
            ),
            nbformat.v4.new_markdown_cell("**Figure 1.1.** A line.", id="caption"),
            nbformat.v4.new_code_cell("print('x ≈ 1.25')\nassert 1 < 2", id="measured"),
        ]
    )
    path = tmp_path_factory.mktemp("notebook") / "good.ipynb"
    path.write_text(notebooks.dumps(book), encoding="utf-8")
    return notebooks.dumps(notebooks.execute(path))


@pytest.fixture
def good(executed, tmp_path):
    """The path of a copy of that notebook."""
    path = tmp_path / "good.ipynb"
    path.write_text(executed, encoding="utf-8")
    return path


def change(path, edit):
    book = notebooks.read(path)
    edit(book)
    path.write_text(notebooks.dumps(book), encoding="utf-8")
    return notebooks.problems(path)


def test_a_good_notebook_has_no_problem_and_executing_again_gives_the_same_bytes(good):
    before = good.read_bytes()
    assert notebooks.problems(good) == []
    assert notebooks.dumps(notebooks.execute(good)).encode() == before


def test_measured_values_keep_their_stored_digits_and_others_do_not(good):
    def edit(book):
        book.cells[3].outputs[0].text = "x ≈ 1.75\n"

    assert change(good, edit) == []
    assert "≈ 1.75" in notebooks.dumps(notebooks.execute(good))
    change(good, lambda book: book.cells[3].outputs[0].update(text="y ≈ 1.75\n"))
    assert "x ≈ 1.25" in notebooks.dumps(notebooks.execute(good))


def test_what_an_explorer_has_of_a_training_is_masked_and_asserted(good):
    page = '<unrolled-draw data-start="{}" data-measured="[%d]"></unrolled-draw>'
    assert notebooks.masked(page % 1) == notebooks.masked(page % 2) != page % 1
    shown = nbformat.v4.new_output("display_data", data={"text/html": page % 1})

    def edit(book):
        book.cells[3].update(source="weights", outputs=[shown])

    assert any("without asserting its bound" in problem for problem in change(good, edit))


def test_what_a_network_has_written_is_masked_and_asserted(good):
    text = 'a sample:\n≈ «The "if"\nstatement 3»\n'
    assert notebooks.masked(text) == notebooks.masked(text.replace("3", "a 4")) != text

    def edit(book):
        book.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]

    assert any("without asserting its bound" in problem for problem in change(good, edit))


BROKEN = {
    "execution count None": lambda book: book.cells[1].update(execution_count=None),
    "stores the error ValueError": lambda book: book.cells[1].outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    ),
    "stderr": lambda book: book.cells[1].outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="warning")
    ),
    "memory address": lambda book: book.cells[1].outputs.append(
        nbformat.v4.new_output("stream", name="stdout", text="<object at 0x7f00>")
    ),
    "makes nbval skip": lambda book: book.cells[1].update(source="# NBVAL_SKIP\n1"),
    "has tags": lambda book: book.cells[1].metadata.update(tags=["nbval-skip"]),
    "parity that does not hold": lambda book: (
        book.cells[3].outputs[0].update(text="max |difference| < 1e-6: False")
    ),
    "without alt text": lambda book: book.cells[1].metadata.pop("mystnb"),
    "without a caption": lambda book: book.cells.pop(2),
    "magic": lambda book: book.cells[1].update(source="%matplotlib inline\n1"),
    "without asserting its bound": lambda book: book.cells[3].update(source="print('x ≈ 1.25')"),
    "takes for a comment": lambda book: book.cells[2].update(source="**Figure 1.1.** 9\n% of all."),
    "not the set-up cell": lambda book: book.cells[0].update(source="import unrolled"),
    "canonical form": lambda book: book.metadata.update(colab={"name": "x"}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_each_silent_fault_is_found_and_named(good, message):
    found = change(good, BROKEN[message])
    assert any(message in problem for problem in found), found


# The third code cell: nbval counts from 0 and calls it Cell 2, Jupyter shows [3] beside it.
FAILURES = {
    "an error": ("1 / 0", r"^Cell 2, \[3\] in Jupyter \(`1 / 0`\) raised ZeroDivisionError"),
    "a dead kernel": (
        "import os\nos._exit(1)",
        r"^the kernel gave up in Cell 2, \[3\] in Jupyter \(`import os`\): Kernel died",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_cell_is_named_and_the_file_is_left_alone(good, failure):
    source, message = FAILURES[failure]

    def edit(book):
        book.cells[1].update(source="1")  # quicker than a figure
        book.cells[3].update(source=source)

    change(good, edit)
    before = good.read_bytes()
    with pytest.raises(notebooks.NotebookError, match=message):
        notebooks.execute(good)
    assert good.read_bytes() == before


def test_nbval_turns_red_on_a_changed_text_and_a_changed_picture_and_names_their_cells(executed):
    """The whole way: stored outputs, a kernel, nbval, and what conftest.py adds to it."""
    book = nbformat.reads(executed, as_version=4)
    picture = next(cell.outputs for cell in book.cells if cell.id == "figure")
    line = "import matplotlib.pyplot as plt\nplt.plot([0, 1]{})\nplt.show()"
    cells = [
        (line.format(""), picture),
        ("print('as stored')", [printed("as stored\n")]),
        ("print('new')", [printed("old\n")]),
        (line.format(", lw=9"), picture),
        (line.format(""), picture),
    ]
    book.cells = [
        nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=count)
        for count, (source, outputs) in enumerate(cells, start=1)
    ]
    (notebooks.ROOT / "_build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=notebooks.ROOT / "_build") as folder:
        path = Path(folder, "stale.ipynb")
        path.write_text(notebooks.dumps(book), encoding="utf-8")
        run = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider"),
                *("--nbval", "--nbval-current-env"),
                *("--nbval-sanitize-with", "tests/nbval_sanitize.cfg", str(path)),
            ],
            cwd=notebooks.ROOT,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 1, run.stdout + run.stderr
    red = re.findall(r"^FAILED _build/\S*/stale\.ipynb::(Cell \d)", run.stdout, re.MULTILINE)
    assert red == ["Cell 2", "Cell 3"] and "2 failed, 3 passed" in run.stdout, run.stdout
    assert "a figure differs from the stored one" in run.stdout


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def test_a_file_that_is_no_notebook_is_said_to_be_none(tmp_path):
    path = tmp_path / "broken.ipynb"
    path.write_text("{", encoding="utf-8")
    assert "not a readable notebook" in notebooks.problems(path)[0]
