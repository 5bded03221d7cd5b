"""examples/train_language.py: a short run, and one that goes on from its checkpoint."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import pytest

from unrolled.lab.language import python_manual

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "train_language.py"
SIZES = ["--updates", "6", "--round", "3", "--hidden", "8", "--batch", "4", "--steps", "8"]
SIZES += ["--layers", "1"]


@pytest.fixture(scope="module")
def example():
    """The example on a short text, with one temperature to write at."""
    spec = importlib.util.spec_from_file_location("train_language", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = python_manual()[:3_000]
    module.python_manual = lambda: text
    module.HELD_OUT = 300
    return module


def lines_of(example, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), *SIZES, *arguments])
    example.main()
    return capsys.readouterr().out.splitlines()


def test_a_training_goes_on_from_a_checkpoint_to_the_same_end(
    example, monkeypatch, capsys, tmp_path
):
    measure, rounds = example.bits_of, []

    def measure_and_copy(*arguments):
        rounds.append(None)
        if len(rounds) == 2:  # before the second checkpoint replaces the first
            while not (tmp_path / "whole" / "3").exists():
                time.sleep(0.01)
            shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
        return measure(*arguments)

    monkeypatch.setattr(example, "bits_of", measure_and_copy)
    whole = lines_of(example, monkeypatch, capsys, "--checkpoints", str(tmp_path / "whole"))
    names = [line.split(":")[0] for line in whole[:5]]
    assert names[1:] == ["6-grams", "8-grams", "lzma", "zlib"]
    assert names[0] == "2,700 characters to learn from, 300 held out"
    assert whole[6].startswith("update     3: training ") and "held out" in whole[7]
    assert sum(line.startswith("--- temperature") for line in whole) == 3

    again = lines_of(example, monkeypatch, capsys, "--checkpoints", str(tmp_path / "stopped"))
    assert again == whole[:6] + whole[7:]


def test_the_log_is_that_of_the_example():
    log = EXAMPLE.with_suffix(".log").read_text(encoding="utf-8")
    updates = [line for line in log.splitlines() if line.startswith("update")]
    assert [int(line.split()[1].rstrip(":")) for line in updates] == list(range(500, 4001, 500))
    best_table = float(log.split("8-grams: ")[1].split()[0])
    assert float(updates[-1].split()[-1]) < best_table - 0.05
    assert log.count("--- temperature") == 3


def test_a_training_that_diverges_stops_with_the_update_and_the_parameter(
    example, monkeypatch, capsys
):
    with pytest.raises(
        FloatingPointError, match=r"^step 1 is not finite: gradient\.embed\."
    ) as told:
        lines_of(example, monkeypatch, capsys, "--rate", "inf")
    assert str(told.value).endswith("; loss: 1 NaN")
