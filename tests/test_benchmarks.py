"""The benchmark: it refuses what is wrong, its arithmetic is right, and it really runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import contenders, measure, products, profile, report
from benchmarks.contenders import CELLS, Disagreement, Shape, make_contenders, verify

TINY = Shape(3, 5, 2, 4)
ROOT = Path(__file__).parent.parent


def test_geometric_mean_and_quartiles():
    assert measure.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert measure.geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)
    assert measure.quartiles([5, 1, 4, 2, 3]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


def test_shapes_are_read_as_they_are_written_and_count_the_work():
    for text in program.SHAPES:
        assert str(Shape.parse(text)) == text
    for wrong in ("32x128", "0x1x1x1", "1x2x3x4-long"):
        with pytest.raises(ValueError, match="expected BxTxIxH"):
            Shape.parse(wrong)
    assert TINY.flops("GRUCell") == 2 * 3 * 5 * (2 + 4) * 3 * 4
    ragged = dataclasses.replace(TINY, ragged=True)
    assert ragged.lengths.max() == 5 and ragged.lengths.min() < 5
    assert ragged.flops("GRUCell") * 15 == TINY.flops("GRUCell") * ragged.lengths.sum()


@pytest.mark.parametrize("cell", CELLS)
def test_the_limit_multiplies_all_that_an_implementation_must_and_nothing_else(cell):
    """As XLA counts the compiled programs: products in a loop once, those of all steps in full."""
    steps, rows, features, hidden = 8, 4, 64, 128
    functions, arguments = products.programs(cell, Shape(rows, steps, features, hidden))
    expected = {
        "forward": steps * features + hidden,
        "training": 2 * steps * features + 2 * hidden + steps * hidden,
    }
    for task, per_number in expected.items():
        counted = functions[task].lower(*arguments).compile().cost_analysis()["flops"]
        multiplied = 2 * rows * contenders.GATES[cell] * hidden * per_number
        assert multiplied <= counted < 1.01 * multiplied


def test_a_profile_finds_the_products_of_a_loop_and_those_before_it():
    def run(inputs, kernel, recurrent):
        def step(h, x):
            return jnp.tanh(x + h @ recurrent), None

        return jax.lax.scan(step, jnp.zeros((8, 64)), inputs @ kernel)[0]

    arguments = jnp.ones((32, 8, 16)), jnp.ones((16, 64)), jnp.ones((64, 64))
    run = jax.jit(run)
    seconds, text = profile.stages(run, arguments)
    (loop,) = profile.loops(text)
    assert min(seconds.values()) > 0 and sum("dot" in line for line in loop) == 1
    assert (np.array(profile.call_times([(run, arguments)] * 2)) >= 0).all()
    spent = profile.profile(run, arguments, steps=32)
    each_step, many_steps, others, _ = (spent[kind] for kind in profile.KINDS)
    assert each_step > 0 and many_steps > 0 and others > 0


def test_turns_alternate_and_the_order_turns_round():
    calls = []
    runs = [lambda name=name: calls.append(name) or measure.time.sleep(0.03) for name in "ab"]
    times = measure.interleave(runs, rounds=3)
    assert times.shape == (3, 2) and (times >= 0.03).all()
    assert calls[-6:] == list("abbaab")


def test_summaries_keep_the_faster_torch_and_the_worst_shape():
    def row(shape, against, ratio):
        row = {"cell": "GRUCell", "shape": shape, "task": "forward", "against": against}
        return row | {"ratio": {"median": ratio}, "limit": {"median": 2 * ratio}}

    rows = [
        row("1x1x1x1", "torch, 1 thread", 4.0),
        row("1x1x1x1", "torch, all threads", 9.0),
        row("2x2x2x2", "torch, 1 thread", 3.0),
        row("2x2x2x2", "torch, all threads", 1.0),
    ]
    found = {(r["cell"], r["against"]): r for r in report.summarize(rows)}
    best = found["GRUCell", report.FASTER_TORCH]
    assert best["geometric_mean"] == pytest.approx(2.0)
    assert (best["minimum"], best["minimum_at"]) == (1.0, "GRUCell 2x2x2x2")
    assert best["limit"] == pytest.approx(4.0)
    assert found["all", "torch, all threads"]["geometric_mean"] == pytest.approx(3.0)


@pytest.mark.parametrize("cell", CELLS)
def test_contenders_agree_and_every_wrong_one_is_refused(cell):
    pytest.importorskip("torch")
    ours, *rivals = make_contenders(cell, dataclasses.replace(TINY, ragged=True), ["flax", "torch"])
    threads = {"torch, 1 thread", "torch, all threads"} if cell in contenders.TORCH_LAYERS else {0}
    assert {rival.name for rival in rivals} <= {"flax.nnx"} | threads
    assert len(rivals) == 1 or cell != "LSTMCell"
    for rival in rivals:
        verify(ours, rival)
        values = rival.outputs()
        gradients = rival.gradients()
        name = sorted(gradients)[0]
        wrong = {
            "the outputs and that": {"outputs": lambda v=values: v * 1.001},
            "the outputs have shapes": {"outputs": lambda v=values: v[:, 1:]},
            "the outputs and that of": {"outputs": lambda v=values: v * np.nan},
            f"the gradient of {name}": {"gradients": lambda g=gradients, n=name: g | {n: -g[n]}},
            "has weights that unrolled has not": {"gradients": lambda g=gradients: g | {"x": 0}},
        }
        for message, change in wrong.items():
            with pytest.raises(Disagreement, match=message):
                verify(ours, dataclasses.replace(rival, **change))


def test_a_disagreement_ends_the_program_with_its_reason(monkeypatch):
    def disagree(ours, theirs):
        raise Disagreement("the outputs differ.")

    monkeypatch.setattr(contenders, "verify", disagree)
    monkeypatch.setattr(measure, "gemm_peak", lambda: 1e9)
    with pytest.raises(SystemExit, match=r"Refused: GRUCell, 3x5x2x4: the outputs differ\."):
        program.main(["--cells", "GRUCell", "--shapes", str(TINY)])


def test_without_torch_one_line_says_so_and_flax_is_compared(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(contenders, "torch", None)
    seen = []

    def run(cells, shapes, against, rounds):
        seen.append(against)
        raise Disagreement("enough")

    monkeypatch.setattr(program, "run", run)
    with pytest.raises(SystemExit):
        program.main(["--quick"])
    assert seen == [["flax"]]
    assert capsys.readouterr().out.splitlines() == [program.NO_TORCH]
    with pytest.raises(SystemExit):
        program.main(["--against", "torch"])
    assert len(seen) == 1


def test_only_a_full_run_replaces_the_results_that_are_kept():
    assert program.parse([]).output == program.ROOT / "benchmarks"
    for arguments in (["--quick"], ["--cells", "GRUCell"], ["--against", "flax"]):
        assert program.parse(arguments).output == program.ROOT / "_build/benchmarks"


def test_the_smallest_quick_problem_runs_and_is_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measure, "GEMM_SIZE", 64)
    monkeypatch.setattr(measure, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(program, "CALL_SHAPE", TINY)
    monkeypatch.setattr(program, "MEMORY_SHAPE", TINY)
    shape = program.QUICK_SHAPES[0]
    program.main(["--quick", "--shapes", shape, "--rounds", "2", "--output", str(tmp_path)])

    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {
        *("machine", "rounds", "gemm_gflops", "comparisons", "summary"),
        *("memory", "eager", "compile"),
    }
    machine = results["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["versions"]["jax"]
    assert {row["task"] for row in results["comparisons"]} == {"forward", "training"}
    for row in results["comparisons"]:
        assert (row["cell"], row["shape"], row["rounds"]) == ("GRUCell", shape, 2)
        for sample in ("ours_seconds", "theirs_seconds", "ratio"):
            assert 0 < row[sample]["q1"] <= row[sample]["median"] <= row[sample]["q3"]
        assert row["percent_of_peak"] > 0 and row["limit"]["median"] > 0
    for kind in ("memory", "eager", "compile"):
        (row,) = results[kind]
        assert row["ours"] > 0 and row["theirs"] > 0
    assert (tmp_path / "results.svg").read_text(encoding="utf-8").startswith("<?xml")

    told = capsys.readouterr().out
    assert "[1/1, " in told and machine["cpu"] in told and "geometric mean" in told


def words(path):
    """The prose of a page, on one line where it stands in a paragraph."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return " ".join(text.split())


def test_chapter_and_pages_quote_the_results_that_are_kept():
    """A new benchmark turns this red: paste what `python -m benchmarks.report` prints."""
    results = json.loads((ROOT / "benchmarks/results.json").read_text(encoding="utf-8"))
    quoted = report.quoted_tables(results).items()
    tables = {name: table.replace("\u00a0", " ") for name, table in quoted}
    chapter, page = words(ROOT / "book/11_speed.ipynb"), words(ROOT / "benchmarks/README.md")
    for text, names in ((chapter, ("flax", "torch", "once")), (page, ("summary", "once", "below"))):
        for name in names:
            assert " ".join(tables[name].split()) in text

    def entry(table, shape, column):
        (line,) = [line for line in tables[table].splitlines() if line.startswith(f"| {shape} |")]
        return line.strip("| ").split(" | ")[column]

    machine, versions = results["machine"], results["machine"]["versions"]
    in_favour = entry("flax", "32 × 128 × 64 × 128", 2).replace(" · ", " and ")
    worst = {
        (row["cell"], row["task"]): f"{1 / row['minimum']:.1f} times"
        for row in results["summary"]
        if row["against"] == report.FASTER_TORCH
    }
    lstm = [worst["OptimizedLSTMCell", task] for task in ("training", "forward")]
    for quoted in (
        f"(Measured on {machine['cores']} cores of a shared machine, {machine['cpu']},",
        *(f"{name} {versions[name].split('+')[0]}," for name in ("jax", "flax", "torch")),
        f"{machine['date']}; a large product reached {results['gemm_gflops']:.0f} GFLOP/s.)",
        f"a sequence twice as long gives {in_favour} in our favour",
        f'An entry against torch says "{entry("torch", "8 × 4000 × 1 × 32", 3)}"',
        f"a training step of the simple cell up to {worst['SimpleCell', 'training']} as fast",
        f"written by hand and up to {lstm[0]} as fast in training, {lstm[1]} forward",
    ):
        assert quoted in chapter
    # The repository's own page promises nothing that would have to be brought up to date.
    assert "times as fast" not in words(ROOT / "README.md")
